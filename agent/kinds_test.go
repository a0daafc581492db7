package agent_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tillward/tillward/cloud/wire"
)

// recorders put something into the trail: the kind is their second argument.
var recorders = []string{"record", "note", "Record", "alarm", "Countersigned", "dispute", "do"}

// madeKinds are kinds that are put together from a part in the source and a state.
var madeKinds = map[string][]string{
	"agent.":   {"agent.stop", "agent.reboot"},
	"attest.":  {"attest.attested", "attest.degraded", "attest.quarantined", "attest.pending", "attest.stale"},
	"command.": {"command.failed", "command.rejected", "command.expired"},
	"update.": {
		"update.staged", "update.installed", "update.checking", "update.succeeded", "update.already-installed", "update.failed", "update.rejected", "update.rolled-back",
	},
}

var kindForm = regexp.MustCompile(`^[a-z]+\.[a-z_-]*[a-z]$`)

// recorded is what the source of a package says of kinds and details.
type recorded struct {
	kinds     map[string]bool
	constants map[string]string // kinds with a name
	errs      []string
	later     []func() // checks that need the kinds of the whole package
}

func reading() *recorded { return &recorded{kinds: map[string]bool{}, constants: map[string]string{}} }

// read takes in the files of one package: in a function that records, every word
// of the form of a kind is one, and every key of a map of texts is a detail of one
// of them, or of one of the package when the kind is handed to the function.
func (rec *recorded) read(set *token.FileSet, files ...*ast.File) {
	for _, file := range files {
		ast.Inspect(file, func(n ast.Node) bool {
			if v, ok := n.(*ast.ValueSpec); ok {
				for i, name := range v.Names {
					if i < len(v.Values) {
						if text, ok := literal(v.Values[i]); ok && isKind(text) {
							rec.constants[name.Name] = text
						}
					}
				}
			}
			return true
		})
	}
	for _, file := range files {
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Body != nil {
				rec.function(set, f)
			}
		}
	}
	for _, check := range rec.later {
		check()
	}
}

func isKind(text string) bool {
	return kindForm.MatchString(text) && !strings.HasSuffix(text, ".cbor") && !strings.HasSuffix(text, ".db")
}

func (rec *recorded) function(set *token.FileSet, f *ast.FuncDecl) {
	records, kinds, details := f.Name.Name == "detail", map[string]bool{}, map[string]bool{}
	where := set.Position(f.Pos()).String()
	var errs []string
	ast.Inspect(f.Body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			name := ""
			switch fun := n.Fun.(type) {
			case *ast.SelectorExpr:
				name = fun.Sel.Name
			case *ast.Ident:
				name = fun.Name
			}
			records = records || slices.Contains(recorders, name) && len(n.Args) >= 3
			if key, ok := literal(slices.Concat(n.Args, []ast.Expr{n})[0]); ok && name == "put" && len(n.Args) == 2 {
				details[key] = true
			}
		case *ast.CompositeLit:
			if sel, ok := n.Type.(*ast.SelectorExpr); ok && sel.Sel.Name == "AuditRecord" {
				records = true
			}
			if texts(n.Type) {
				for _, e := range n.Elts {
					if key, ok := literal(e.(*ast.KeyValueExpr).Key); ok {
						details[key] = true
					}
				}
			}
		case *ast.IndexExpr:
			if lit, ok := n.X.(*ast.CompositeLit); ok && texts(lit.Type) {
				return false // looked up in at once: no detail
			}
			if x, ok := n.X.(*ast.Ident); ok && (x.Name == "detail" || x.Name == "d") {
				if key, ok := literal(n.Index); ok {
					details[key] = true
				}
			}
		case *ast.BinaryExpr:
			if prefix, ok := literal(n.X); ok && n.Op == token.ADD && strings.HasSuffix(prefix, ".") {
				if len(madeKinds[prefix]) == 0 {
					errs = append(errs, fmt.Sprintf("%s: nobody says here which kinds %q makes", where, prefix))
				}
				for _, k := range madeKinds[prefix] {
					kinds[k] = true
				}
			}
		case *ast.BasicLit:
			if text, ok := literal(n); ok && isKind(text) {
				kinds[text] = true
			}
		case *ast.Ident:
			if k := rec.constants[n.Name]; k != "" {
				kinds[k] = true
			}
		}
		return true
	})
	if !records {
		return
	}
	rec.errs = append(rec.errs, errs...)
	for k := range kinds {
		if _, ok := wire.AuditKindOf(k); !ok {
			rec.errs = append(rec.errs, fmt.Sprintf("%s: the kind %q is not in cloud/wire/kinds.go", where, k))
		}
		rec.kinds[k] = true
	}
	for _, p := range f.Type.Params.List {
		for _, name := range p.Names {
			if name.Name == "kind" {
				kinds = nil
			}
		}
	}
	rec.later = append(rec.later, func() {
		if len(kinds) == 0 { // handed in
			kinds = rec.kinds
		}
		for key := range details {
			if !slices.ContainsFunc(names(kinds), func(k string) bool { return lists(k, key) }) {
				rec.errs = append(rec.errs, fmt.Sprintf("%s: none of the kinds %q has the detail %q in cloud/wire/kinds.go", where, names(kinds), key))
			}
		}
	})
}

// texts reports whether a type is map[string]string.
func texts(e ast.Expr) bool {
	m, ok := e.(*ast.MapType)
	return ok && fmt.Sprint(m.Key, m.Value) == "string string"
}

func names(kinds map[string]bool) (out []string) {
	for k := range kinds {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// lists reports whether a kind has the detail; of one that names the operator, by
// is who acts.
func lists(kind, detail string) bool {
	k, ok := wire.AuditKindOf(kind)
	if !ok {
		return false
	}
	if detail == "by" && k.Actor == "by" {
		return true
	}
	return slices.ContainsFunc(strings.Fields(k.Details), func(f string) bool { return strings.HasPrefix(f, detail+":") })
}

func literal(e ast.Node) (string, bool) {
	l, ok := e.(*ast.BasicLit)
	if !ok || l.Kind != token.STRING {
		return "", false
	}
	s, err := strconv.Unquote(l.Value)
	return s, err == nil
}

// TestKindsAreListed reads the source of the agent: whatever it records is in the
// contract, kind and details, and nothing stands there that nobody records.
func TestKindsAreListed(t *testing.T) {
	set := token.NewFileSet()
	packages := map[string][]*ast.File{}
	must(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && (d.Name() == "testdata" || d.Name() == "cmd") {
			if err == nil {
				err = fs.SkipDir
			}
			return err
		}
		if d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(set, path, nil, 0)
		packages[filepath.Dir(path)] = append(packages[filepath.Dir(path)], file)
		return err
	}))
	found := map[string]bool{}
	for _, files := range packages {
		rec := reading()
		rec.read(set, files...)
		for _, e := range rec.errs {
			t.Error(e)
		}
		maps.Copy(found, rec.kinds)
	}
	for _, k := range wire.AuditKinds() {
		if !found[k.Name] {
			t.Errorf("nobody records the kind %q of cloud/wire/kinds.go", k.Name)
		}
	}
}

// Must fail: a kind, a detail and a way to make kinds that nobody has listed.
func TestUnlistedIsFound(t *testing.T) {
	for src, want := range map[string]string{
		`a.record(ctx, "till.poem", "info", "", nil)`:                                                    `the kind "till.poem"`,
		`a.record(ctx, "link.down", "info", "", map[string]string{"words": "w"})`:                        `the detail "words"`,
		`detail := map[string]string{}; detail["words"] = "w"; a.note(ctx, "link.down", "", "", detail)`: `the detail "words"`,
		`k.Record(ctx, "poem." + state, "info", "", nil)`:                                                `which kinds "poem."`,
		`a.record(ctx, "link.down", "info", "", map[string]string{"reason": "eof"})`:                     "",
	} {
		set, rec := token.NewFileSet(), reading()
		file, err := parser.ParseFile(set, "x.go", "package x\nfunc f() {\n"+src+"\n}", 0)
		must(t, err)
		rec.read(set, file)
		if got := strings.Join(rec.errs, "; "); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: got %q, want %q", src, got, want)
		}
	}
}
