// Package makers holds whose TPMs are believed: the certificate authorities
// with which TPM makers sign endorsement keys (EKs), a folder a maker, each
// file pinned by its SHA-256 in the list PINS beside them.
//
// It owns the folder's form and its checks. It promises that a certificate is
// handed out only when its bytes are those that were pinned, that each
// intermediate leads to a root of the same maker, that no key stands under two
// makers and that no virtual TPM's authority is among them.
//
// It does not fetch anything, does not judge an EK certificate (provisioning/enrol
// does) and does not vouch for a fingerprint: whoever adds a root compares that
// with what its maker publishes. The folder built into the binary is the one in
// this directory. Of a folder without a maker Pool refuses with ErrNone.
//
// It exports more than eight names because a folder is read, grown and relisted
// by the same rules, in one place.
package makers

import (
	"cmp"
	"crypto/x509"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// Errors that callers decide on.
var (
	ErrNone    = errors.New("no TPM maker is there; add one with \"tillward-provision maker add\" (docs/ek-authorities.md)")
	ErrRefused = errors.New("refused") // a certificate or a folder that breaks a rule
)

//go:embed PINS ca
var builtin embed.FS

// Maker is one TPM maker and its authorities.
type Maker struct {
	Name         string // its folder: "infineon"
	Certificates []Certificate
}

// Certificate is one pinned authority.
type Certificate struct {
	SHA256  string // of the DER, lower-case hex
	File    string // below the folder: "ca/infineon/NAME.pem"
	Expired bool   // listed as expired: kept for the record, believed no more
	Licence string // of the collection it was taken from, or "none stated"
	Source  string // where it was taken from
	*x509.Certificate
}

// Root says whether the certificate is issued by its own subject.
func (c Certificate) Root() bool { return string(c.RawSubject) == string(c.RawIssuer) }

// Folder is a folder of makers whose every byte has been checked against its pins.
type Folder struct{ makers []Maker }

// Makers returns the makers by name.
func (f *Folder) Makers() []Maker { return f.makers }

// Believed returns the roots and intermediates of the named makers, of all when
// none is named, without those listed as expired. A name that is not there is
// an error, and so is a maker without a root: a list that vouches for nobody
// would look like a service that trusts nobody on purpose.
func (f *Folder) Believed(names ...string) (out []Certificate, err error) {
	if len(f.makers) == 0 {
		return nil, ErrNone
	}
	for _, n := range names {
		if !slices.ContainsFunc(f.makers, func(m Maker) bool { return m.Name == n }) {
			return nil, fmt.Errorf("TPM maker %q is not among %s: %w", n, f.names(), ErrRefused)
		}
	}
	for _, m := range f.makers {
		if len(names) > 0 && !slices.Contains(names, m.Name) {
			continue
		}
		rooted := false
		for _, c := range m.Certificates {
			if !c.Expired {
				out = append(out, c)
				rooted = rooted || c.Root()
			}
		}
		if !rooted {
			return nil, fmt.Errorf("TPM maker %s has no root that is still valid: %w", m.Name, ErrRefused)
		}
	}
	return out, nil
}

// Pool is Believed, roots and intermediates apart.
func (f *Folder) Pool(names ...string) (roots, intermediates *x509.CertPool, err error) {
	all, err := f.Believed(names...)
	if err != nil {
		return nil, nil, err
	}
	roots, intermediates = x509.NewCertPool(), x509.NewCertPool()
	for _, c := range all {
		if c.Root() {
			roots.AddCert(c.Certificate)
		} else {
			intermediates.AddCert(c.Certificate)
		}
	}
	return roots, intermediates, nil
}

func (f *Folder) names() string {
	var b strings.Builder
	for i, m := range f.makers {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(m.Name)
	}
	return b.String()
}

// Builtin is the folder built into the binary, checked as Open does.
func Builtin() (*Folder, error) { return Open(builtin) }

// Pool is Folder.Pool of the folder built into the binary.
func Pool(makers ...string) (roots, intermediates *x509.CertPool, err error) {
	f, err := Builtin()
	if err != nil {
		return nil, nil, err
	}
	return f.Pool(makers...)
}

// List returns the makers built into the binary.
func List() ([]Maker, error) {
	f, err := Builtin()
	if err != nil {
		return nil, err
	}
	return f.makers, nil
}

// Open reads a folder and checks it against its pins, whole: one file that is
// altered, not pinned or missing refuses all of it.
func Open(fsys fs.FS) (*Folder, error) {
	raw, err := fs.ReadFile(fsys, pinsFile)
	if err != nil {
		return nil, fmt.Errorf("read pins: %w", err)
	}
	pins, err := parsePins(raw)
	if err != nil {
		return nil, err
	}
	if err := everyFilePinned(fsys, pins); err != nil {
		return nil, err
	}
	list := make([]Certificate, 0, len(pins))
	for _, p := range pins {
		c, err := p.load(fsys)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return gather(list)
}

// gather sorts certificates into makers and holds the rules that span files.
func gather(list []Certificate) (*Folder, error) {
	slices.SortFunc(list, func(a, b Certificate) int { return cmp.Compare(a.File, b.File) })
	f := &Folder{}
	for _, c := range list {
		name := makerOf(c.File)
		if n := len(f.makers); n == 0 || f.makers[n-1].Name != name {
			f.makers = append(f.makers, Maker{Name: name})
		}
		m := &f.makers[len(f.makers)-1]
		m.Certificates = append(m.Certificates, c)
	}
	return f, f.check()
}
