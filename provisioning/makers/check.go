package makers

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	pinsFile  = "PINS"
	folder    = "ca"
	note      = "ca/README.md"
	blockType = "CERTIFICATE"
	day       = "2006-01-02"
	maxFile   = 16 << 10 // bytes of one PEM file
)

var (
	fileName = regexp.MustCompile(`^ca/[a-z][a-z0-9]{1,31}/[a-z0-9][a-z0-9-]{0,95}\.pem$`)
	hexSum   = regexp.MustCompile(`^[0-9a-f]{64}$`)

	// virtual are words of authorities that anybody can run on any computer.
	virtual = []string{"swtpm", "libtpms", "vtpm", "simulator"}
)

// Fields of a line of PINS, with tabs between them.
const (
	fieldSum = iota
	fieldFile
	fieldNotAfter
	fieldState
	fieldLicence
	fieldSource
	fieldSubject
	fields
)

const (
	stateValid   = "valid"
	stateExpired = "expired"
)

func makerOf(file string) string { return strings.Split(file, "/")[1] }

// pin is a line of PINS; its certificate has not been read yet.
type pin struct {
	Certificate
	notAfter, subject string
}

// parsePins reads a list of pins.
func parsePins(raw []byte) ([]pin, error) {
	var pins []pin
	seen := make(map[string]bool)
	for n, line := range strings.Split(string(raw), "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		bad := func(why string) error { return fmt.Errorf("%s line %d: %s: %w", pinsFile, n+1, why, ErrRefused) }
		f := strings.Split(line, "\t")
		switch {
		case len(f) != fields:
			return nil, bad(fmt.Sprintf("has %d fields, want %d with tabs between them", len(f), fields))
		case !hexSum.MatchString(f[fieldSum]):
			return nil, bad("the first field is not a SHA-256")
		case !fileName.MatchString(f[fieldFile]):
			return nil, bad(fmt.Sprintf("file %q: want ca/MAKER/NAME.pem in lower case", f[fieldFile]))
		case seen[f[fieldFile]] || seen[f[fieldSum]]:
			return nil, bad("this file or certificate is pinned twice")
		case f[fieldState] != stateValid && f[fieldState] != stateExpired:
			return nil, bad(fmt.Sprintf("state %q: want valid or expired", f[fieldState]))
		case f[fieldLicence] == "" || f[fieldSource] == "":
			return nil, bad("say where the certificate was taken from and under which licence")
		}
		seen[f[fieldFile]], seen[f[fieldSum]] = true, true
		if _, err := time.Parse(day, f[fieldNotAfter]); err != nil {
			return nil, bad("the third field is not a day such as 2031-12-24")
		}
		subject, err := strconv.Unquote(f[fieldSubject])
		if err != nil {
			return nil, bad("the subject is not a quoted string")
		}
		pins = append(pins, pin{Certificate{
			SHA256: f[fieldSum], File: f[fieldFile], Expired: f[fieldState] == stateExpired, Licence: f[fieldLicence], Source: f[fieldSource],
		}, f[fieldNotAfter], subject})
	}
	return pins, nil
}

// formatPins is the inverse of parsePins for loaded certificates.
func formatPins(list []Certificate) []byte {
	var b bytes.Buffer
	b.WriteString("# sha256 of the DER, file, not after, state, licence, source, subject; tabs between them.\n" +
		"# Written by \"tillward-provision maker add\"; see docs/ek-authorities.md.\n")
	for _, c := range list {
		state := stateValid
		if c.Expired {
			state = stateExpired
		}
		b.WriteString(strings.Join([]string{
			c.SHA256, c.File, c.NotAfter.UTC().Format(day), state, c.Licence, c.Source, strconv.QuoteToASCII(c.Subject.String()),
		}, "\t") + "\n")
	}
	return b.Bytes()
}

func everyFilePinned(fsys fs.FS, pins []pin) error {
	return fs.WalkDir(fsys, folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil && (path != folder || !errors.Is(err, fs.ErrNotExist)) {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if err != nil || d.IsDir() || path == note {
			return nil
		}
		if !slices.ContainsFunc(pins, func(p pin) bool { return p.File == path }) {
			return fmt.Errorf("%s is not in %s; add it with \"tillward-provision maker add\" or remove it: %w", path, pinsFile, ErrRefused)
		}
		return nil
	})
}

// load reads the file of a pin, compares and checks it.
func (p pin) load(fsys fs.FS) (Certificate, error) {
	raw, err := fs.ReadFile(fsys, p.File)
	if err != nil {
		return Certificate{}, fmt.Errorf("%s is pinned and cannot be read: %w", p.File, err)
	}
	c, err := decode(raw)
	if err != nil {
		return Certificate{}, fmt.Errorf("%s: %w", p.File, err)
	}
	for _, same := range []struct{ what, got, want string }{
		{"SHA-256", sum(c), p.SHA256}, {"subject", c.Subject.String(), p.subject}, {"end", c.NotAfter.UTC().Format(day), p.notAfter},
	} {
		if same.got != same.want {
			return Certificate{}, fmt.Errorf("%s has the %s %s, pinned is %s: %w", p.File, same.what, same.got, same.want, ErrRefused)
		}
	}
	p.Certificate.Certificate = c
	return p.Certificate, authority(p.Certificate)
}

func sum(c *x509.Certificate) string {
	s := sha256.Sum256(c.Raw)
	return hex.EncodeToString(s[:])
}

func encode(c Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: blockType, Bytes: c.Raw})
}

// decode reads a file with exactly one certificate in it.
func decode(raw []byte) (*x509.Certificate, error) {
	if len(raw) > maxFile {
		return nil, fmt.Errorf("larger than %d bytes: %w", maxFile, ErrRefused)
	}
	block, rest := pem.Decode(raw)
	if block == nil || block.Type != blockType {
		return nil, fmt.Errorf("no PEM certificate in it: %w", ErrRefused)
	}
	if next, _ := pem.Decode(rest); next != nil {
		return nil, fmt.Errorf("more than one PEM block in it; give each certificate a file: %w", ErrRefused)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return c, nil
}

// authority holds the rules of one certificate.
func authority(c Certificate) error {
	bad := func(why string) error { return fmt.Errorf("%s (%s) %s: %w", c.File, c.Subject, why, ErrRefused) }
	names := strings.ToLower(makerOf(c.File) + " " + c.Subject.String() + " " + c.Issuer.String())
	for _, word := range virtual {
		if strings.Contains(names, word) {
			return bad("is an authority of virtual TPMs (" + word + "); those go to enrol.virtual_ek_roots")
		}
	}
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return bad("is not a CA certificate")
	case c.KeyUsage&x509.KeyUsageCertSign == 0:
		return bad("may not sign certificates")
	}
	if k, ok := c.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() < 2048 {
		return bad(fmt.Sprintf("has an RSA key of %d bits, want at least 2048", k.N.BitLen()))
	}
	if !c.Root() {
		return nil
	}
	// A root is believed for its pin. Its own signature shows only that the
	// file is whole; makers still ship roots signed with SHA-1, which Go does
	// not verify any more.
	if err := c.CheckSignatureFrom(c.Certificate); err != nil && !errors.As(err, new(x509.InsecureAlgorithmError)) {
		return bad("is not signed by its own key: " + err.Error())
	}
	return nil
}

// check holds the rules that span files.
func (f *Folder) check() error {
	owner := make(map[string]Certificate)
	for _, m := range f.makers {
		roots, others := x509.NewCertPool(), x509.NewCertPool()
		for _, c := range m.Certificates {
			key := string(c.RawSubjectPublicKeyInfo)
			if o, ok := owner[key]; ok && makerOf(o.File) != m.Name {
				return fmt.Errorf("%s has the key of %s, of another maker: %w", c.File, o.File, ErrRefused)
			}
			owner[key] = c
			if c.Root() {
				roots.AddCert(c.Certificate)
			} else {
				others.AddCert(c.Certificate)
			}
		}
		for _, c := range m.Certificates {
			if c.Root() || c.Expired {
				continue
			}
			if err := leads(c.Certificate, roots, others); err != nil {
				return fmt.Errorf("%s (%s) leads to no root of %s; add its issuer %q first: %w: %w", c.File, c.Subject, m.Name, c.Issuer, ErrRefused, err)
			}
		}
	}
	return nil
}

// leads says whether a certificate leads to a root at one end of its own life:
// an issuer may have ended since, or have been renewed after it issued. Whether
// the chain holds today is for whoever verifies an EK certificate.
func leads(c *x509.Certificate, roots, others *x509.CertPool) (err error) {
	for _, at := range []time.Time{c.NotBefore, c.NotAfter} {
		if _, err = c.Verify(x509.VerifyOptions{
			Roots: roots, Intermediates: others, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		}); err == nil {
			return nil
		}
	}
	return err
}

// Stale returns the certificates that have ended by a moment and are not listed as expired.
func (f *Folder) Stale(at time.Time) []Certificate {
	var out []Certificate
	for _, m := range f.makers {
		for _, c := range m.Certificates {
			if !c.Expired && at.After(c.NotAfter) {
				out = append(out, c)
			}
		}
	}
	return out
}
