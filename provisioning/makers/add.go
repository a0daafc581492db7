package makers

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Offer is what somebody wants to add to a folder.
type Offer struct {
	Maker     string   // folder name
	Source    string   // where the certificates were taken from
	Licence   string   // of that collection
	Files     []string // PEM, one certificate each
	Confirmed []string // SHA-256 of each new root, compared with what its maker publishes
}

// Unconfirmed is the refusal of roots whose fingerprint nobody has compared yet.
type Unconfirmed struct{ Roots []Certificate }

// Error lists the fingerprints and says what to do with them.
func (u *Unconfirmed) Error() string {
	var b strings.Builder
	b.WriteString("compare each fingerprint with what the maker publishes, by another way than the file came, and repeat with")
	for _, c := range u.Roots {
		fmt.Fprintf(&b, "\n  --sha256 %s   %s, until %s", c.SHA256, c.Subject, c.NotAfter.UTC().Format(day))
	}
	return b.String()
}

var (
	makerName = regexp.MustCompile(`^[a-z][a-z0-9]{1,31}$`)
	notName   = regexp.MustCompile(`[^a-z0-9]+`)
)

// Add checks an offer against a folder on disk, writes the files and pins them.
// Nothing is written unless all of it is accepted. A root wants its
// fingerprint confirmed (Unconfirmed otherwise), an intermediate a way to a
// root of its maker, in the folder or in the offer. It returns what was added.
func Add(dir string, o Offer, now time.Time) ([]Certificate, error) {
	f, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	if !makerName.MatchString(o.Maker) {
		return nil, fmt.Errorf("maker %q: want 2 to 32 small letters and digits, such as infineon: %w", o.Maker, ErrRefused)
	}
	for what, s := range map[string]string{"source": o.Source, "licence": o.Licence} {
		if strings.TrimSpace(s) == "" || strings.ContainsAny(s, "\t\r\n") {
			return nil, fmt.Errorf("%s %q: say it in one line without tabs: %w", what, s, ErrRefused)
		}
	}
	added, err := o.read(f, now)
	if err != nil {
		return nil, err
	}
	all, err := gather(append(f.all(), added...))
	if err != nil {
		return nil, err
	}
	var ask Unconfirmed
	for _, c := range added {
		if c.Root() && !slices.ContainsFunc(o.Confirmed, func(s string) bool { return plainHex(s) == c.SHA256 }) {
			ask.Roots = append(ask.Roots, c)
		}
	}
	if len(ask.Roots) > 0 {
		return nil, &ask
	}
	for _, c := range added {
		if err := replace(dir, c.File, encode(c)); err != nil {
			return nil, err
		}
	}
	// The list comes last: power lost before it leaves files that Open names.
	return added, replace(dir, pinsFile, formatPins(all.all()))
}

// Relist marks in the list of a folder what has ended by now and returns it.
func Relist(dir string, now time.Time) ([]Certificate, error) {
	f, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	stale := f.Stale(now)
	if len(stale) == 0 {
		return nil, nil
	}
	list := f.all()
	for i := range list {
		list[i].Expired = list[i].Expired || now.After(list[i].NotAfter)
	}
	return stale, replace(dir, pinsFile, formatPins(list))
}

// openDir is Open of a folder on disk; one that is not there yet is empty.
func openDir(dir string) (*Folder, error) {
	f, err := Open(os.DirFS(dir))
	if errors.Is(err, os.ErrNotExist) {
		if entries, e := os.ReadDir(dir); errors.Is(e, os.ErrNotExist) || e == nil && len(entries) == 0 {
			return &Folder{}, nil
		}
	}
	return f, err
}

func (f *Folder) all() []Certificate {
	var out []Certificate
	for _, m := range f.makers {
		out = append(out, m.Certificates...)
	}
	return out
}

// read reads the offered files; what the folder has already is left out.
func (o Offer) read(f *Folder, now time.Time) ([]Certificate, error) {
	var added []Certificate
	for _, name := range o.Files {
		raw, err := os.ReadFile(name) // #nosec G304 -- the caller names the files
		if err != nil {
			return nil, fmt.Errorf("read certificate: %w", err)
		}
		x, err := decode(raw)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		c := Certificate{SHA256: sum(x), Source: o.Source, Licence: o.Licence, Certificate: x}
		c.File = "ca/" + o.Maker + "/" + o.fileName(x)
		same := func(b Certificate) bool { return b.SHA256 == c.SHA256 }
		switch {
		case slices.ContainsFunc(added, same):
			continue
		case slices.ContainsFunc(f.all(), same):
			return nil, fmt.Errorf("%s (%s) is in the folder already: %w", name, x.Subject, ErrRefused)
		case now.After(x.NotAfter):
			return nil, fmt.Errorf("%s (%s) ended on %s: %w", name, x.Subject, x.NotAfter.UTC().Format(day), ErrRefused)
		case now.Before(x.NotBefore):
			return nil, fmt.Errorf("%s (%s) begins on %s only; is the clock right?: %w", name, x.Subject, x.NotBefore.UTC().Format(day), ErrRefused)
		}
		if err := authority(c); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		added = append(added, c)
	}
	if len(added) == 0 {
		return nil, fmt.Errorf("no certificate to add: %w", ErrRefused)
	}
	return added, nil
}

// fileName names a certificate by its subject and the start of its fingerprint.
func (o Offer) fileName(c *x509.Certificate) string {
	slug := strings.Trim(notName.ReplaceAllString(strings.ToLower(c.Subject.CommonName), "-"), "-")
	if len(slug) > 60 {
		slug = strings.TrimRight(slug[:60], "-")
	}
	if slug == "" {
		slug = "ca"
	}
	return slug + "-" + sum(c)[:8] + ".pem"
}

// plainHex is a fingerprint without the colons, spaces and capitals that tools print.
func plainHex(s string) string {
	return strings.ToLower(strings.NewReplacer(":", "", " ", "").Replace(s))
}

// replace writes a file of the folder by a rename, so that it is there whole or not at all.
func replace(dir, name string, b []byte) (err error) {
	path := filepath.Join(dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { // #nosec G301 -- certificates are public
		return fmt.Errorf("folder of %s: %w", name, err)
	}
	tmp, err := os.CreateTemp(dir, ".new-")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write %s: %w", name, err), os.Remove(tmp.Name()))
		}
	}()
	_, err = tmp.Write(b)
	if err = errors.Join(err, tmp.Chmod(0o644), tmp.Sync(), tmp.Close()); err != nil { // public, as above
		return err
	}
	return os.Rename(tmp.Name(), path)
}
