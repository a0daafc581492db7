package makers_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/tillward/tillward/provisioning/makers"
)

var (
	begin = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	now   = time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	end   = time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)
)

// authority is a certificate made for a test, and its key.
type authority struct {
	*x509.Certificate
	key *ecdsa.PrivateKey
}

// issue makes a certificate; change alters it before it is signed. by nil: a root.
func issue(t testing.TB, name string, by *authority, change func(*x509.Certificate), key ...*ecdsa.PrivateKey) *authority {
	t.Helper()
	if len(key) == 0 {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		key = append(key, k)
	}
	a := &authority{key: key[0]}
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name, Organization: []string{"Test AG"}},
		NotBefore: begin, NotAfter: end, BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if change != nil {
		change(tpl)
	}
	if by == nil {
		by = &authority{Certificate: tpl, key: a.key}
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, by.Certificate, a.key.Public(), by.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.Certificate, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) sum() string {
	s := sha256.Sum256(a.Raw)
	return hex.EncodeToString(s[:])
}

// file writes a certificate as PEM and returns its name.
func (a *authority) file(t testing.TB) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "in.pem")
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func offer(maker string, files ...string) makers.Offer {
	return makers.Offer{Maker: maker, Source: "https://maker.example/ca", Licence: "none stated", Files: files}
}

// add adds certificates with every fingerprint confirmed.
func add(t testing.TB, dir, maker string, list ...*authority) ([]makers.Certificate, error) {
	t.Helper()
	o := offer(maker)
	for _, a := range list {
		o.Files, o.Confirmed = append(o.Files, a.file(t)), append(o.Confirmed, a.sum())
	}
	return makers.Add(dir, o, now)
}

// stocked returns a folder with two makers, a root and an intermediate each.
func stocked(t testing.TB) (dir string, root, inter *authority) {
	t.Helper()
	dir = t.TempDir()
	for _, m := range []string{"beta", "alpha"} {
		root = issue(t, m+" Root", nil, nil)
		inter = issue(t, m+" EK CA 001", root, nil)
		if _, err := add(t, dir, m, root, inter); err != nil {
			t.Fatal(err)
		}
	}
	return dir, root, inter
}

func open(t testing.TB, dir string) *makers.Folder {
	t.Helper()
	f, err := makers.Open(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestBuiltIn holds the folder in this directory to its rules. It fails when a
// certificate ends: "tillward-provision maker verify --relist" then lists it.
func TestBuiltIn(t *testing.T) {
	f, err := makers.Open(os.DirFS("."))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range f.Stale(time.Now()) {
		t.Errorf("%s ended on %s and is not listed as expired", c.File, c.NotAfter)
	}
	got, err := makers.List()
	if err != nil || len(got) != len(f.Makers()) {
		t.Errorf("built in: %d makers, %v; on disk %d", len(got), err, len(f.Makers()))
	}
	roots, _, err := makers.Pool()
	if none := len(got) == 0; none != errors.Is(err, makers.ErrNone) || none != (roots == nil) {
		t.Errorf("pool of %d makers: %v, %v", len(got), roots, err)
	}
	if _, _, err := makers.Pool("swtpm"); err == nil {
		t.Error("virtual TPMs have a pool")
	}
}

func TestPool(t *testing.T) {
	dir, _, inter := stocked(t)
	f := open(t, dir)
	if m := f.Makers(); len(m) != 2 || m[0].Name != "alpha" || m[1].Name != "beta" || len(m[0].Certificates) != 2 {
		t.Fatalf("got %+v", m)
	}
	leaf := issue(t, "EK", inter, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageKeyEncipherment })
	for _, tc := range []struct {
		names []string
		ok    bool
	}{{nil, true}, {[]string{"alpha"}, true}, {[]string{"beta"}, false}, {[]string{"beta", "alpha"}, true}} {
		roots, inters, err := f.Pool(tc.names...)
		if err != nil {
			t.Fatal(err)
		}
		_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inters, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		if (err == nil) != tc.ok {
			t.Errorf("EK of alpha with the pool of %q: %v, want ok %t", tc.names, err, tc.ok)
		}
	}
	if _, _, err := f.Pool("alpha", "gamma"); !errors.Is(err, makers.ErrRefused) || !strings.Contains(err.Error(), "alpha, beta") {
		t.Errorf("unknown maker: got %v", err)
	}
	empty := t.TempDir()
	if err := os.WriteFile(filepath.Join(empty, "PINS"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := open(t, empty).Pool(); !errors.Is(err, makers.ErrNone) {
		t.Errorf("empty folder: got %v, want ErrNone", err)
	}
}

// TestExpired lists what has ended and hands it out no more.
func TestExpired(t *testing.T) {
	dir := t.TempDir()
	short := func(c *x509.Certificate) { c.NotAfter = now.Add(48 * time.Hour) }
	root := issue(t, "R", nil, nil)
	if _, err := add(t, dir, "alpha", root, issue(t, "I", root, short)); err != nil {
		t.Fatal(err)
	}
	if _, err := add(t, dir, "beta", issue(t, "B", nil, short)); err != nil {
		t.Fatal(err)
	}
	later := now.Add(72 * time.Hour)
	if n := len(open(t, dir).Stale(now)); n != 0 {
		t.Errorf("stale today: %d, want 0", n)
	}
	if n := len(open(t, dir).Stale(later)); n != 2 {
		t.Errorf("stale later: %d, want 2", n)
	}
	if got, err := makers.Relist(dir, later); err != nil || len(got) != 2 {
		t.Fatalf("relist: %v, %v", got, err)
	}
	f := open(t, dir)
	if n := len(f.Stale(later)); n != 0 {
		t.Errorf("stale after relist: %d, want 0", n)
	}
	if _, inters, err := f.Pool("alpha"); err != nil || !inters.Equal(x509.NewCertPool()) {
		t.Errorf("an expired intermediate is handed out: %v", err)
	}
	if _, _, err := f.Pool("beta"); !errors.Is(err, makers.ErrRefused) {
		t.Errorf("a maker whose only root has expired: got %v", err)
	}
}

// TestAltered changes a sound folder in one way at a time; none may open.
func TestAltered(t *testing.T) {
	write := func(t *testing.T, name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pemOf := func(a *authority) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Raw})
	}
	lines := func(change func([]string) []string) func(*testing.T, string, makers.Certificate) {
		return func(t *testing.T, dir string, c makers.Certificate) {
			b, err := os.ReadFile(filepath.Join(dir, "PINS"))
			if err != nil {
				t.Fatal(err)
			}
			var out []string
			for line := range strings.Lines(string(b)) {
				if strings.HasPrefix(line, c.SHA256) {
					line = strings.Join(change(strings.Split(line, "\t")), "\t")
				}
				out = append(out, line)
			}
			write(t, filepath.Join(dir, "PINS"), []byte(strings.Join(out, "")))
		}
	}
	field := func(n int, to string) func(*testing.T, string, makers.Certificate) {
		return lines(func(f []string) []string { f[n] = to; return f })
	}
	for name, tc := range map[string]struct {
		change func(t *testing.T, dir string, c makers.Certificate)
		want   string
	}{
		"altered file": {func(t *testing.T, dir string, c makers.Certificate) {
			write(t, filepath.Join(dir, c.File), pemOf(issue(t, c.Subject.CommonName, nil, nil)))
		}, "SHA-256"},
		"two in a file": {func(t *testing.T, dir string, c makers.Certificate) {
			b := pemOf(&authority{Certificate: c.Certificate})
			write(t, filepath.Join(dir, c.File), append(b, b...))
		}, "more than one"},
		"not a certificate": {func(t *testing.T, dir string, c makers.Certificate) {
			write(t, filepath.Join(dir, c.File), []byte("hello"))
		}, "no PEM"},
		"file too large": {func(t *testing.T, dir string, c makers.Certificate) {
			write(t, filepath.Join(dir, c.File), make([]byte, 1<<20))
		}, "larger"},
		"missing file": {func(t *testing.T, dir string, c makers.Certificate) {
			if err := os.Remove(filepath.Join(dir, c.File)); err != nil {
				t.Fatal(err)
			}
		}, "cannot be read"},
		"missing pin": {lines(func([]string) []string { return nil }), "is not in PINS"},
		"another file": {func(t *testing.T, dir string, _ makers.Certificate) {
			write(t, filepath.Join(dir, "ca", "alpha", "x.txt"), nil)
		}, "is not in PINS"},
		"pinned twice":  {lines(func(f []string) []string { return append(f, strings.Join(f, "\t")) }), "fields"},
		"other pin":     {field(0, strings.Repeat("0", 64)), "SHA-256"},
		"no pin":        {field(0, "00"), "not a SHA-256"},
		"path":          {field(1, "ca/../PINS"), "want ca/MAKER"},
		"other end":     {field(2, "2039-01-01"), "end"},
		"no end":        {field(2, "soon"), "not a day"},
		"other state":   {field(3, "fine"), "state"},
		"no licence":    {field(4, ""), "licence"},
		"no source":     {field(5, ""), "where"},
		"other subject": {field(6, "\"CN=x\"\n"), "subject"},
		"no subject":    {field(6, "x\n"), "not a quoted"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, _, _ := stocked(t)
			c := open(t, dir).Makers()[0].Certificates[0]
			tc.change(t, dir, c)
			if _, err := makers.Open(os.DirFS(dir)); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

// TestAddRefuses offers what must not get in; the folder stays as it is.
func TestAddRefuses(t *testing.T) {
	dir, root, inter := stocked(t)
	sound, err := os.ReadFile(filepath.Join(dir, "PINS"))
	if err != nil {
		t.Fatal(err)
	}
	stray := issue(t, "Stray Root", nil, nil)
	for name, tc := range map[string]struct {
		maker string
		list  []*authority
		want  string
	}{
		"no CA": {"alpha", []*authority{issue(t, "leaf", root, func(c *x509.Certificate) { c.IsCA = false })}, "not a CA"},
		"may not sign": {"alpha", []*authority{issue(t, "odd", root, func(c *x509.Certificate) {
			c.KeyUsage = x509.KeyUsageCRLSign
		})}, "may not sign"},
		"ended":                  {"alpha", []*authority{issue(t, "old", root, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Hour) })}, "ended on"},
		"not begun":              {"alpha", []*authority{issue(t, "new", root, func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) })}, "is the clock right"},
		"unchained":              {"alpha", []*authority{issue(t, "lost", stray, nil)}, "leads to no root"},
		"chained to another":     {"beta", []*authority{issue(t, "lost", root, nil)}, "leads to no root"},
		"key of another maker":   {"gamma", []*authority{issue(t, "twin", nil, nil, root.key)}, "of another maker"},
		"there already":          {"alpha", []*authority{inter}, "already"},
		"virtual":                {"alpha", []*authority{issue(t, "swtpm-localca", nil, nil)}, "virtual"},
		"virtual maker":          {"swtpm", []*authority{stray}, "virtual"},
		"issued by itself, not":  {"alpha", []*authority{issue(t, "same", issue(t, "same", nil, nil), nil)}, "own key"},
		"maker's name":           {"../alpha", []*authority{stray}, "maker"},
		"nothing":                {"alpha", nil, "no certificate"},
		"one bad among the good": {"gamma", []*authority{stray, issue(t, "x", stray, func(c *x509.Certificate) { c.IsCA = false })}, "not a CA"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := add(t, dir, tc.maker, tc.list...); !errors.Is(err, makers.ErrRefused) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want a refusal with %q", err, tc.want)
			}
			if b, err := os.ReadFile(filepath.Join(dir, "PINS")); err != nil || string(b) != string(sound) {
				t.Errorf("the list changed: %v", err)
			}
			open(t, dir)
		})
	}
	o := offer("alpha", stray.file(t))
	o.Licence = "two\nlines"
	if _, err := makers.Add(dir, o, now); !errors.Is(err, makers.ErrRefused) {
		t.Errorf("a licence of two lines: got %v", err)
	}
}

// TestConfirm wants a root's fingerprint, in any of the forms tools print.
func TestConfirm(t *testing.T) {
	root := issue(t, "Root", nil, nil)
	dir := filepath.Join(t.TempDir(), "new")
	o := offer("alpha", root.file(t))
	for _, wrong := range [][]string{nil, {strings.Repeat("0", 64)}, {root.sum()[:32]}, {""}} {
		o.Confirmed = wrong
		_, err := makers.Add(dir, o, now)
		ask, ok := errors.AsType[*makers.Unconfirmed](err)
		if !ok || len(ask.Roots) != 1 || !strings.Contains(err.Error(), root.sum()) {
			t.Errorf("confirmed %q: got %v, want the fingerprint asked for", wrong, err)
		}
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Fatalf("confirmed %q: the folder was written", wrong)
		}
	}
	var colons []string
	for i := 0; i < 64; i += 2 {
		colons = append(colons, strings.ToUpper(root.sum()[i:i+2]))
	}
	o.Confirmed = []string{strings.Join(colons, ":")}
	got, err := makers.Add(dir, o, now)
	if err != nil || len(got) != 1 || got[0].File != "ca/alpha/root-"+root.sum()[:8]+".pem" {
		t.Fatalf("got %+v, %v", got, err)
	}
	if c := open(t, dir).Makers()[0].Certificates[0]; c.Source != o.Source || c.Licence != o.Licence || !c.Root() || c.Expired {
		t.Errorf("got %+v", c)
	}
}

// FuzzOpen feeds a list and a file: whatever opens is what its pin says.
func FuzzOpen(f *testing.F) {
	dir, root, _ := stocked(f)
	list, err := os.ReadFile(filepath.Join(dir, "PINS"))
	if err != nil {
		f.Fatal(err)
	}
	name := "ca/alpha/alpha-root-" + root.sum()[:8] + ".pem"
	raw, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		f.Fatal(err)
	}
	for line := range strings.Lines(string(list)) {
		if strings.HasPrefix(line, root.sum()) {
			f.Add([]byte(line), name, raw)
		}
	}
	f.Add(list, name, raw)
	f.Add([]byte("# nothing\n"), "ca/README.md", []byte{})
	f.Fuzz(func(t *testing.T, pins []byte, name string, raw []byte) {
		if !fs.ValidPath(name) {
			return // no file has such a name; MapFS does not come back from it
		}
		folder, err := makers.Open(fstest.MapFS{"PINS": {Data: pins}, name: {Data: raw}})
		if err != nil {
			return
		}
		for _, m := range folder.Makers() {
			for _, c := range m.Certificates {
				if (&authority{Certificate: c.Certificate}).sum() != c.SHA256 || !c.IsCA || !strings.HasPrefix(c.File, "ca/"+m.Name+"/") {
					t.Errorf("opened: %+v", c)
				}
			}
		}
	})
}
