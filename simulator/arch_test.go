package simulator_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/version"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

// This file holds the rules of the house: which room may import which, how large a room may grow and
// what it must say of itself. The rules run over the source of every build configuration, not over
// what the compiler of this machine happens to see, and each has its twin below that breaks it.

const (
	module = "github.com/tillward/tillward"

	maxGo       = "go1.26.3" // the Go of the Buildroot LTS, which builds the image
	maxLines    = 500        // of a file written by hand, tests apart
	maxExported = 8          // functions and types of a package
)

// house is all that the rules look at.
type house struct {
	rooms   []room
	folders []string // every folder with something of ours in it
	top     []string // names of the files and folders at the top; folders end in "/"
	goMod   string
}

// room is one Go package. Imports of ours are relative to the module: "cloud/wire"; the module itself is ".".
type room struct {
	path        string
	name        string // of the package clause; empty when there are only tests
	doc         string
	imports     []imp
	testImports []imp
	exported    []string
	lines       map[string]int // by file name
	linknames   []string       // files that reach behind the compiler's back
}

type imp struct {
	path string
	ours bool
}

// row is a line of the import table. The first row that fits a package counts.
type row struct {
	room   string   // a package, or with /* each room directly below and whatever it holds
	ours   []string // rooms of ours that it may import beside its own; /* as above
	theirs []string // import path prefixes outside the standard library; anyone means all
}

const anyone = "*"

var table = []row{
	{"hal", nil, []string{"periph.io/x/conn"}},
	{"hal/haltest", []string{"hal", "hal/virtual"}, []string{anyone}},
	{"hal/port", []string{"hal"}, []string{"golang.org/x/sys"}},
	{"hal/*", []string{"hal", "hal/port"}, []string{anyone}},

	{"cloud/wire", nil, []string{"github.com/fxamacker/cbor"}},
	{"cloud/console", nil, nil},
	{"cloud/internal/fleet", nil, nil},
	{"cloud/internal/archive/shelf", []string{"cloud/internal/archive", "cloud/internal/fleet", "provisioning/trust", "provisioning/enrol", "provisioning/durable"}, nil},
	{"cloud/internal/archive", []string{"cloud/wire", "cloud/internal/fleet", "provisioning/trust", "provisioning/enrol"}, nil},
	{"cloud/internal/*", []string{"cloud/wire", "cloud/internal/fleet", "provisioning", "provisioning/*"}, []string{anyone}},
	{"cloud/cmd/*", []string{"cloud", "cloud/wire", "cloud/internal/archive", "provisioning", "provisioning/*"}, []string{anyone}},
	{"cloud", []string{"cloud/wire", "cloud/console", "cloud/internal/*", "provisioning", "provisioning/*"}, []string{anyone}},

	{"provisioning/identity", nil, []string{"golang.org/x/crypto"}},
	{"provisioning/trust", nil, []string{
		"golang.org/x/crypto", "github.com/theupdateframework/go-tuf", "github.com/sigstore/sigstore", "github.com/secure-systems-lab",
	}},
	{"provisioning/boot", nil, []string{"github.com/google/go-attestation", "github.com/google/go-tpm"}},
	{"provisioning/uki", nil, nil},
	{"provisioning/makers", nil, nil},
	{"provisioning/chunk", nil, []string{"github.com/restic/chunker"}},
	{"provisioning/tree", nil, nil},
	{"provisioning/durable", nil, nil},
	{"provisioning/ca/pkcs11", nil, []string{"github.com/ThalesGroup/crypto11", "github.com/miekg/pkcs11"}},
	{"provisioning/ca/step", nil, nil},
	{"provisioning/ca", []string{"provisioning/identity"}, []string{"golang.org/x/crypto"}},
	{"provisioning/enrol", []string{"provisioning/identity"}, []string{anyone}},
	{"provisioning/owner", []string{"provisioning/identity"}, []string{"github.com/fxamacker/cbor", "rsc.io/qr"}},
	{"provisioning/cmd/*", []string{"provisioning", "provisioning/*", "hal/tpm"}, []string{anyone}},
	{"provisioning", []string{"provisioning/*"}, []string{anyone}},

	{"agent/internal/update/*", []string{"agent/internal/update", "hal", "provisioning", "provisioning/*"}, []string{anyone}},
	{"agent/internal/*", []string{"cloud/wire", "hal", "provisioning", "provisioning/*"}, []string{anyone}},
	{"agent/chip", []string{"agent", "hal/tpm", "provisioning/boot"}, nil},
	{"agent/cmd/*", []string{"agent", "agent/chip", "cloud/wire", "hal", "hal/*", "provisioning", "provisioning/*"}, []string{anyone}},
	{"agent", []string{"agent/internal/*", "cloud/wire", "hal", "provisioning", "provisioning/*"}, []string{anyone}},

	{"simulator/swarm", []string{"cloud/wire", "provisioning", "provisioning/*", "simulator/tpmfarm"}, []string{anyone}},
	{"simulator/*", []string{"*"}, []string{anyone}},
	{"simulator", []string{"*"}, []string{anyone}},
}

// keeper says who alone may import a library. The simulator looks at everything from outside and is free.
type keeper struct {
	what  string
	libs  []string
	rooms []string
}

var keepers = []keeper{
	{"the broker library", []string{"github.com/mochi-mqtt"}, []string{"cloud/internal/broker"}},
	{"SQL", []string{"database/sql", "github.com/mattn/go-sqlite3", "github.com/jackc/pgx"}, []string{"cloud/internal/store", "agent/internal/spool"}},
	{"NATS", []string{"github.com/nats-io"}, []string{"cloud/internal/backbone"}},
	{"PKCS#11", []string{"github.com/ThalesGroup/crypto11", "github.com/miekg/pkcs11"}, []string{"provisioning/ca/pkcs11"}},
	{"kong", []string{"github.com/alecthomas/kong"}, []string{"cloud/cmd/tillward", "provisioning/cmd/tillward-provision"}},
}

// props are the parts of the simulator that tests of other rooms may stand on.
var props = []string{"simulator/tpmfarm", "simulator/emulator", "simulator/postgres"}

// road goes the whole way from link to store. The two are internal to agent and cloud, so it needs a device that the
// simulator's own tests cannot give it.
const road, roadUses = "agent/internal/road", "simulator/swarm"

var (
	topNames = []string{
		"agent/", "cloud/", "buildroot/", "hal/", "provisioning/", "simulator/", "docs/",
		"go.mod", "go.sum", "Makefile", "README.md", "LICENSE",
	}
	drawers = []string{"common", "util", "utils", "helper", "helpers", "types", "models", "pkg"}
)

// rule finds what breaks it; each line says where and what to do. bad holds its must-fail twins, each breaking it once.
type rule struct {
	name  string
	check func(house) []string
	bad   []house
}

var rules = []rule{
	{"imports", checkImports, badImports()},
	{"keepers", checkKeepers, badKeepers()},
	{"simulator", checkSimulator, []house{
		of(room{path: "agent", imports: ours("simulator/tpmfarm")}),
		of(room{path: "hal/escpos", testImports: ours("simulator")}),
		of(room{path: "hal/pcsc", testImports: ours("simulator/swarm")}),
		of(room{path: road, testImports: ours("simulator")}),
	}},
	{"authority", checkAuthority, []house{
		of(room{path: "agent", imports: ours("provisioning/ca")}),
		of(room{path: "agent/internal/link", imports: ours("provisioning/ca/pkcs11")}),
		of(room{path: "provisioning/enrol", imports: ours("provisioning/ca")}),
		of(room{path: "provisioning/ca", imports: ours("provisioning/ca/pkcs11")}),
	}},
	{"comment", checkComment, []house{
		of(room{path: "hal", name: "hal"}),
		of(room{path: "hal", name: "hal", doc: "HAL is a layer.\n"}),
		of(room{path: "hal", name: "hal", doc: "Package halt stops.\n"}),
		of(room{path: "agent/cmd/tillward-agent", name: "main", doc: "Package main is the agent.\n"}),
	}},
	{"lines", checkLines, []house{
		of(room{path: "hal", lines: map[string]int{"hal.go": 501, "ok.go": 500}}),
	}},
	{"exported", checkExported, []house{
		of(room{path: "hal", exported: strings.Fields("A B C D E F G H I")}),
	}},
	{"linkname", checkLinkname, []house{
		of(room{path: "hal", linknames: []string{"hal.go"}}),
	}},
	{"top", checkTop, []house{
		{top: []string{"agent/", "tools/", "go.mod"}},
		{top: []string{"docs/", "main.go"}},
	}},
	{"drawers", checkDrawers, []house{
		{folders: []string{"hal", "hal/common"}},
		{folders: []string{"agent/internal/util", "agent/internal"}},
	}},
	{"go version", checkGo, []house{
		{goMod: "module x\n\ngo 1.26.4\n"},
		{goMod: "module x\n\ngo 1.27\n"},
		{goMod: "module x\n"},
	}},
}

// TestHouse runs the rules over the source at hand.
func TestHouse(t *testing.T) {
	h, err := load(os.DirFS(".."))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"cloud/wire", "simulator"} {
		if !slices.ContainsFunc(h.rooms, func(r room) bool { return r.path == path }) {
			t.Fatalf("%s is not among the %d packages found: the rules look in the wrong place", path, len(h.rooms))
		}
	}
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			for _, broken := range r.check(h) {
				t.Error(broken)
			}
		})
	}
}

// TestRulesCanFail breaks every rule, and every row of the tables, in turn.
func TestRulesCanFail(t *testing.T) {
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			if len(r.bad) == 0 {
				t.Error("rule without an example that breaks it")
			}
			for i, h := range r.bad {
				if got := r.check(h); len(got) != 1 {
					t.Errorf("example %d: got %d violations %q, want 1", i, len(got), got)
				}
			}
			if got := r.check(good); len(got) != 0 {
				t.Errorf("a tidy house: got %q, want nothing", got)
			}
		})
	}
	for _, row := range table {
		if slices.Equal(row.ours, []string{"*"}) && slices.Equal(row.theirs, []string{anyone}) {
			continue // nothing can break it
		}
		if !slices.ContainsFunc(badImports(), func(h house) bool { return rowOf(h.rooms[0].path).room == row.room }) {
			t.Errorf("row %s of the import table has no example that breaks it", row.room)
		}
	}
}

// good keeps every rule, close to the edge of each.
var good = house{
	rooms: []room{
		{path: "hal", name: "hal", doc: "Package hal is the contract.\n", imports: append(theirs("periph.io/x/conn/v3/i2c"), std("context")...), exported: strings.Fields("A B C D E F G H")},
		{path: "hal/haltest", name: "haltest", doc: "Package haltest exports more than eight names: one for each property.\n", imports: ours("hal", "hal/virtual"), exported: strings.Fields("A B C D E F G H I")},
		{path: "hal/escpos", testImports: ours("simulator/emulator", "hal/haltest")},
		{path: "hal/tpm", imports: append(ours("hal", "hal/tpm/internal/event"), theirs("github.com/google/go-tpm/tpm2")...)},
		{path: "cloud/wire", imports: theirs("github.com/fxamacker/cbor/v2")},
		{path: "cloud/internal/broker", imports: append(ours("cloud/wire", "provisioning/identity"), theirs("github.com/mochi-mqtt/server/v2")...)},
		{path: "cloud/internal/store", imports: append(ours("cloud/internal/fleet"), std("database/sql")...), lines: map[string]int{"rows.go": 501}, doc: "Package store: rows.go is larger than 500 lines because.\n"},
		{path: "cloud", imports: ours("cloud/internal/store", "cloud/console", "cloud/wire")},
		{path: "provisioning/enrol", imports: ours("provisioning/identity"), testImports: ours("hal/tpm", "simulator/tpmfarm")},
		{path: "agent/internal/spool", imports: append(ours("cloud/wire"), std("database/sql")...)},
		{path: "agent", imports: ours("agent/internal/spool", "hal", "cloud/wire", "provisioning/trust")},
		{path: "agent/cmd/tillward-agent", name: "main", doc: "Command tillward-agent guards a till.\n", imports: ours("agent", "hal/escpos")},
		{path: "simulator", imports: append(ours("agent", "cloud", "simulator/tpmfarm"), theirs("github.com/mochi-mqtt/server/v2", "github.com/alecthomas/kong")...)},
		{path: "simulator/swarm", imports: ours("cloud/wire")},
	},
	folders: []string{"agent/internal/spool", "cloud/console/src", "buildroot/package/tillward-agent"},
	top:     []string{".ci/", ".gitignore", "agent/", "cloud/", "go.mod", "LICENSE"},
	goMod:   "module x\n\ngo 1.26.3\n",
}

func badImports() []house {
	var bad []house
	add := func(path string, list []imp) { bad = append(bad, of(room{path: path, imports: list})) }

	add("hal", ours("cloud/wire"))
	add("hal", ours("hal/virtual"))
	add("hal", theirs("periph.io/x/host/v3"))
	add("hal/haltest", ours("hal/escpos"))
	add("hal/port", ours("hal/escpos"))
	add("hal/port", theirs("periph.io/x/host/v3"))
	add("hal/escpos", ours("hal/virtual"))
	add("hal/tpm", ours("provisioning/enrol"))
	add("hal/slot", ours("agent"))
	add("cloud/wire", ours("cloud/internal/fleet"))
	add("cloud/wire", theirs("golang.org/x/sync/errgroup"))
	add("cloud/console", ours("cloud/internal/fleet"))
	add("cloud/internal/fleet", ours("cloud/wire"))
	add("cloud/internal/fleet", theirs("github.com/fxamacker/cbor/v2"))
	add("cloud/internal/ingest", ours("cloud/internal/store"))
	add("cloud/internal/ingest", ours("hal"))
	add("cloud/internal/ingest/order", ours("cloud/internal/store"))
	add("cloud/cmd/tillward", ours("cloud/internal/store"))
	add("cloud/cmd/tillward", ours("cloud/internal/archived"))
	add("cloud/internal/archive", ours("cloud/internal/store"))
	add("cloud/internal/archive", ours("provisioning/durable"))
	add("cloud/internal/archive/shelf", ours("cloud/internal/store"))
	add("cloud/internal/archive", theirs("github.com/danielgtaylor/huma/v2"))
	add("cloud", ours("agent"))
	add("cloud", ours("hal"))
	add("provisioning/identity", ours("provisioning/trust"))
	add("provisioning/identity", theirs("github.com/google/go-tpm/tpm2"))
	add("provisioning/trust", ours("provisioning/identity"))
	add("provisioning/trust", theirs("github.com/mattn/go-sqlite3"))
	add("provisioning/boot", ours("provisioning/trust"))
	add("provisioning/boot", theirs("github.com/google/go-tpm-tools/server"))
	add("provisioning/uki", ours("provisioning/boot"))
	add("provisioning/makers", ours("provisioning/identity"))
	add("provisioning/chunk", ours("provisioning/tree"))
	add("provisioning/tree", theirs("github.com/restic/chunker"))
	add("provisioning/durable", ours("provisioning/tree"))
	add("provisioning/ca", ours("provisioning/enrol"))
	add("provisioning/ca", theirs("github.com/fxamacker/cbor/v2"))
	add("provisioning/ca/pkcs11", ours("provisioning/identity"))
	add("provisioning/ca/pkcs11", theirs("golang.org/x/crypto/scrypt"))
	add("provisioning/ca/step", theirs("go.step.sm/crypto/jose"))
	add("provisioning/enrol", ours("hal/tpm"))
	add("provisioning/enrol", ours("cloud/wire"))
	add("provisioning/owner", ours("provisioning/trust"))
	add("provisioning/owner", theirs("github.com/google/go-tpm/tpm2"))
	add("provisioning/cmd/tillward-provision", ours("cloud/wire"))
	add("provisioning/cmd/tillward-provision", ours("hal/slot"))
	add("provisioning", ours("cloud"))
	add("agent/internal/link", ours("agent/internal/spool"))
	add("agent/internal/telemetry", ours("hal/escpos"))
	add("agent/internal/audit", ours("cloud/internal/fleet"))
	add("agent/internal/update/app", ours("agent/internal/spool"))
	add("agent/cmd/tillward-agent", ours("agent/internal/link"))
	add("agent/cmd/tillward-agent", ours("cloud"))
	add("agent", ours("hal/escpos"))
	add("agent/chip", ours("hal/escpos"))
	add("agent", ours("cloud"))
	add("simulator/swarm", ours("agent"))
	add("cloud/shared", nil) // a room that no row knows
	add(".", nil)
	return bad
}

func badKeepers() []house {
	return []house{
		of(room{path: "cloud/internal/ingest", imports: theirs("github.com/mochi-mqtt/server/v2/packets")}),
		of(room{path: "cloud/internal/api", imports: std("database/sql/driver")}),
		of(room{path: "agent/internal/audit", imports: theirs("github.com/mattn/go-sqlite3")}),
		of(room{path: "cloud", imports: theirs("github.com/jackc/pgx/v5")}),
		of(room{path: "cloud/internal/live", imports: theirs("github.com/nats-io/nats.go")}),
		of(room{path: "agent/cmd/tillward-agent", imports: theirs("github.com/alecthomas/kong")}),
		of(room{path: "provisioning/ca", imports: theirs("github.com/ThalesGroup/crypto11")}),
	}
}

func checkImports(h house) (broken []string) {
	for _, r := range h.rooms {
		row := rowOf(r.path)
		if row.room == "" {
			broken = append(broken, r.path+": no row of the import table knows this room; put the code into one that is there, or write its row")
			continue
		}
		own := ownRoom(r.path, row.room)
		for _, i := range r.imports {
			switch {
			case i.ours && !fits(i.path, own) && !slices.ContainsFunc(row.ours, func(p string) bool { return fits(i.path, p) }):
				broken = append(broken, fmt.Sprintf("%s imports %s; it may import %s: state an interface and let the owner wire it", r.path, i.path, list(row.ours)))
			case !i.ours && !isStd(i.path) && !slices.ContainsFunc(row.theirs, func(p string) bool { return p == anyone || within(i.path, p) }):
				broken = append(broken, fmt.Sprintf("%s imports %s; beside the standard library it may import %s", r.path, i.path, list(row.theirs)))
			}
		}
	}
	return broken
}

func checkKeepers(h house) (broken []string) {
	for _, r := range h.rooms {
		for _, k := range keepers {
			if within(r.path, "simulator") || slices.ContainsFunc(k.rooms, func(p string) bool { return within(r.path, p) }) {
				continue
			}
			for _, i := range r.imports {
				if slices.ContainsFunc(k.libs, func(lib string) bool { return !i.ours && within(i.path, lib) }) {
					broken = append(broken, fmt.Sprintf("%s imports %s; only %s may see %s", r.path, i.path, list(k.rooms), k.what))
				}
			}
		}
	}
	return broken
}

func checkSimulator(h house) (broken []string) {
	for _, r := range h.rooms {
		if within(r.path, "simulator") {
			continue
		}
		for _, i := range r.imports {
			if i.ours && within(i.path, "simulator") {
				broken = append(broken, fmt.Sprintf("%s imports %s; the simulator never ships", r.path, i.path))
			}
		}
		for _, i := range r.testImports {
			if r.path == road && i.path == roadUses {
				continue
			}
			if i.ours && within(i.path, "simulator") && !slices.ContainsFunc(props, func(p string) bool { return within(i.path, p) }) {
				broken = append(broken, fmt.Sprintf("a test of %s imports %s; tests outside the simulator may use %s", r.path, i.path, list(props)))
			}
		}
	}
	return broken
}

// checkAuthority keeps what signs certificates out of the agent, which holds no such key and is static, and PKCS#11
// modules, which run with all rights of the process, out of whatever is not told to load one.
func checkAuthority(h house) (broken []string) {
	const authority, modules = "provisioning/ca", "provisioning/ca/pkcs11"
	for _, r := range h.rooms {
		who := []string{"cloud", "provisioning/cmd", "simulator"}
		for _, i := range r.imports {
			switch {
			case !i.ours || !within(i.path, authority) || slices.ContainsFunc(who, func(p string) bool { return within(r.path, p) }):
			case within(i.path, modules), !within(r.path, authority):
				broken = append(broken, fmt.Sprintf("%s imports %s; only %s may", r.path, i.path, list(who)))
			}
		}
	}
	return broken
}

func checkComment(h house) (broken []string) {
	for _, r := range h.rooms {
		want := "Package " + r.name
		if r.name == "main" {
			want = "Command " + path.Base(r.path)
		}
		if first, _, _ := strings.Cut(r.doc, "\n"); r.name != "" && !regexp.MustCompile(`^`+want+`\b`).MatchString(first) {
			broken = append(broken, fmt.Sprintf("%s: its comment must start with %q and say what the package owns, promises and does not do", r.path, want))
		}
	}
	return broken
}

func checkLines(h house) (broken []string) {
	for _, r := range h.rooms {
		for file, n := range r.lines {
			if n > maxLines && !strings.Contains(r.doc, "larger than") {
				broken = append(broken, fmt.Sprintf("%s/%s has %d lines, at most %d; split it, or let the package comment say why it is larger than that", r.path, file, n, maxLines))
			}
		}
	}
	return broken
}

func checkExported(h house) (broken []string) {
	for _, r := range h.rooms {
		if n := len(r.exported); n > maxExported && !strings.Contains(r.doc, "exports") {
			broken = append(broken, fmt.Sprintf("%s has %d exported functions and types, at most %d; hide some, or let the package comment say why it exports more: %s", r.path, n, maxExported, list(r.exported)))
		}
	}
	return broken
}

func checkLinkname(h house) (broken []string) {
	for _, r := range h.rooms {
		for _, file := range r.linknames {
			broken = append(broken, fmt.Sprintf("%s/%s uses go:linkname, which breaks with any release of Go", r.path, file))
		}
	}
	return broken
}

func checkTop(h house) (broken []string) {
	for _, name := range h.top {
		if !strings.HasPrefix(name, ".") && !slices.Contains(topNames, name) {
			broken = append(broken, fmt.Sprintf("%s does not belong at the top; there is only %s", name, list(topNames)))
		}
	}
	return broken
}

func checkDrawers(h house) (broken []string) {
	for _, folder := range h.folders {
		if slices.Contains(drawers, path.Base(folder)) {
			broken = append(broken, folder+": name a folder after what it is about, not after what lies in it")
		}
	}
	return broken
}

func checkGo(h house) (broken []string) {
	m := regexp.MustCompile(`(?m)^go (\S+)$`).FindStringSubmatch(h.goMod)
	if m == nil {
		return []string{"go.mod has no go line"}
	}
	if version.Compare("go"+m[1], maxGo) > 0 {
		return []string{fmt.Sprintf("go.mod asks for Go %s; the image is built with %s, never ask for more", m[1], maxGo)}
	}
	return nil
}

// rowOf returns the first row that fits, or one without a room.
func rowOf(p string) row {
	for _, row := range table {
		if fits(p, row.room) {
			return row
		}
	}
	return row{}
}

// fits reports whether a package is the one that the pattern names. A pattern a/* fits everything below a; a pattern
// without a star that names a leaf of the table, such as cloud/wire, fits what lies below it too.
func fits(p, pattern string) bool {
	if pattern == "*" {
		return true
	}
	if below, ok := strings.CutSuffix(pattern, "/*"); ok {
		return p != below && within(p, below)
	}
	if strings.Contains(pattern, "/") {
		return within(p, pattern)
	}
	return p == pattern
}

// ownRoom returns the folder whose packages may import each other, which is the room that p lies in.
func ownRoom(p, pattern string) string {
	below, ok := strings.CutSuffix(pattern, "/*")
	if !ok {
		return pattern
	}
	first, _, _ := strings.Cut(strings.TrimPrefix(p, below+"/"), "/")
	return below + "/" + first
}

func within(p, folder string) bool { return p == folder || strings.HasPrefix(p, folder+"/") }

// isStd knows the standard library by the missing dot, as the go command does.
func isStd(p string) bool {
	first, _, _ := strings.Cut(p, "/")
	return !strings.Contains(first, ".")
}

func list(names []string) string {
	if len(names) == 0 {
		return "nothing"
	}
	return strings.Join(names, ", ")
}

func of(r room) house { return house{rooms: []room{r}} }

func ours(paths ...string) []imp { return imps(true, paths) }

func theirs(paths ...string) []imp { return imps(false, paths) }

func std(paths ...string) []imp { return imps(false, paths) }

func imps(ours bool, paths []string) (list []imp) {
	for _, p := range paths {
		list = append(list, imp{p, ours})
	}
	return list
}

// load reads the whole tree, whatever its build tags, and leaves out what nobody wrote: build output, other people's modules, test data.
func load(root fs.FS) (house, error) {
	var h house
	rooms := map[string]*room{}
	err := fs.WalkDir(root, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		top := p != "." && !strings.Contains(p, "/")
		if d.IsDir() {
			switch base := path.Base(p); {
			case p == ".":
				return nil
			case p == "bin", p != "." && strings.HasPrefix(base, "."), base == "node_modules", base == "dist", base == "testdata":
				return fs.SkipDir
			}
			if top {
				h.top = append(h.top, p+"/")
			}
			h.folders = append(h.folders, p)
			return nil
		}
		if top {
			h.top = append(h.top, p)
		}
		if path.Ext(p) != ".go" {
			return nil
		}
		src, err := fs.ReadFile(root, p)
		if err != nil {
			return err
		}
		dir := path.Dir(p)
		if rooms[dir] == nil {
			rooms[dir] = &room{path: dir, lines: map[string]int{}}
		}
		return rooms[dir].read(path.Base(p), src)
	})
	if err != nil {
		return h, err
	}
	for _, r := range rooms {
		h.rooms = append(h.rooms, *r)
	}
	slices.SortFunc(h.rooms, func(a, b room) int { return strings.Compare(a.path, b.path) })
	mod, err := fs.ReadFile(root, "go.mod")
	h.goMod = string(mod)
	return h, err
}

// read adds one file to the room.
func (r *room) read(name string, src []byte) error {
	f, err := parser.ParseFile(token.NewFileSet(), path.Join(r.path, name), src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	for _, group := range f.Comments {
		for _, c := range group.List {
			if strings.HasPrefix(c.Text, "//go:linkname ") && !slices.Contains(r.linknames, name) {
				r.linknames = append(r.linknames, name)
			}
		}
	}
	var list []imp
	for _, spec := range f.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return fmt.Errorf("%s/%s: import %s: %w", r.path, name, spec.Path.Value, err)
		}
		i := imp{path: p}
		if p == module {
			i = imp{".", true}
		} else if rest, ok := strings.CutPrefix(p, module+"/"); ok {
			i = imp{rest, true}
		}
		list = append(list, i)
	}
	if strings.HasSuffix(name, "_test.go") {
		r.testImports = append(r.testImports, list...)
		return nil
	}
	r.name = f.Name.Name
	r.doc += f.Doc.Text()
	for _, i := range list {
		if !slices.Contains(r.imports, i) {
			r.imports = append(r.imports, i)
		}
	}
	if ast.IsGenerated(f) {
		return nil
	}
	r.lines[name] = bytes.Count(src, []byte("\n"))
	for _, decl := range f.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil && d.Name.IsExported() {
				r.exported = append(r.exported, d.Name.Name)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				if ts, ok := spec.(*ast.TypeSpec); ok && ts.Name.IsExported() {
					r.exported = append(r.exported, ts.Name.Name)
				}
			}
		}
	}
	return nil
}

// TestLoad shows that the rules see what is written, and only that.
func TestLoad(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	h, err := load(fstest.MapFS{
		"go.mod":                     file("module " + module + "\n\ngo 1.26.0\n"),
		"bin/tillward":               file("built"),
		"hal/hal.go":                 file("// Package hal is here.\npackage hal\n\nimport (\n\t\"context\"\n\n\t\"" + module + "/cloud/wire\"\n)\n\ntype T struct{}\n\nfunc (T) M() {}\n\nfunc F(context.Context, wire.X) {}\n\nfunc g() {}\n"),
		"hal/hal_arm.go":             file("//go:build arm\n\npackage hal\n\nimport \"" + module + "\"\n\n//go:linkname now runtime.now\nfunc now()\n"),
		"hal/gen.go":                 file("// Code generated by x. DO NOT EDIT.\n\npackage hal\n\nfunc Made() {}\n"),
		"hal/hal_test.go":            file("package hal_test\n\nimport _ \"testing\"\n"),
		"hal/testdata/bad.go":        file("not Go at all"),
		"cloud/console/src/app.tsx":  file("export {}"),
		"cloud/console/dist/util/x":  file("built"),
		"cloud/node_modules/pkg/a.c": file("theirs"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"cloud/", "go.mod", "hal/"}; !slices.Equal(h.top, want) {
		t.Errorf("top: got %q, want %q", h.top, want)
	}
	if want := []string{"cloud", "cloud/console", "cloud/console/src", "hal"}; !slices.Equal(h.folders, want) {
		t.Errorf("folders: got %q, want %q", h.folders, want)
	}
	if len(h.rooms) != 1 {
		t.Fatalf("got %d packages, want 1: %+v", len(h.rooms), h.rooms)
	}
	got := fmt.Sprintf("%+v", h.rooms[0])
	want := fmt.Sprintf("%+v", room{
		path: "hal", name: "hal", doc: "Package hal is here.\n",
		imports:     []imp{{"context", false}, {"cloud/wire", true}, {".", true}},
		testImports: []imp{{"testing", false}},
		exported:    []string{"T", "F"},
		lines:       map[string]int{"hal.go": 16, "hal_arm.go": 8},
		linknames:   []string{"hal_arm.go"},
	})
	if got != want {
		t.Errorf("room:\n got %s\nwant %s", got, want)
	}
	if _, err := load(fstest.MapFS{"hal/hal.go": file("package"), "go.mod": file("")}); err == nil {
		t.Error("a file that does not parse: got no error")
	}
}
