package ca

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"
)

const (
	rootLife    = 20 * 365 * 24 * time.Hour
	issuingLife = 5 * 365 * 24 * time.Hour
)

// Root is the root of an authority by itself: on the machine where its key is,
// it signs requests; in a service's folder, where it is not, it makes them and
// takes the certificates that come back.
type Root struct {
	f    folder
	cert *x509.Certificate
}

// MakeRoot makes the root of an authority in dir, and nothing else. That there
// is a file of this authority already is an error.
func MakeRoot(dir, name string, o Options) (*Root, error) {
	f := folder{dir: dir, name: name, o: o}
	for _, ending := range []string{certFile, keyFile, bornFile} {
		if _, err := os.Stat(f.path(ending)); !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("make root %s: %s is there already (%w); choose another folder or name", name, f.path(ending), fs.ErrExist)
		}
	}
	if err := f.makeRoot(); err != nil {
		return nil, fmt.Errorf("make root %s: %w", name, err)
	}
	return OpenRoot(dir, name, o)
}

// OpenRoot reads the root of an authority. Its key may be elsewhere.
func OpenRoot(dir, name string, o Options) (*Root, error) {
	f := folder{dir: dir, name: name, o: o}
	if err := f.finish(); err != nil {
		return nil, fmt.Errorf("root %s: %w", name, err)
	}
	cert, err := f.root()
	if err != nil {
		return nil, fmt.Errorf("root %s: %w", name, err)
	}
	if cert == nil {
		return nil, fmt.Errorf("root %s: no %s; copy the root's certificate there, or make a root", name, f.path(certFile))
	}
	return &Root{f: f, cert: cert}, nil
}

// Certificate is what others pin.
func (r *Root) Certificate() *x509.Certificate { return r.cert }

// Sign makes the issuing certificate that a request asks for, valid for life
// but no longer than the root, and returns it in PEM. Nothing of the request
// gets into it but the key: its name only tells one authority from another.
// Whoever calls has made sure that the request is the one that left the
// service.
func (r *Root) Sign(request []byte, life time.Duration) ([]byte, error) {
	csr, err := parseRequest(request)
	if err != nil {
		return nil, fmt.Errorf("sign request: %w", err)
	}
	switch {
	case csr.Subject.CommonName != issuingName(r.cert):
		return nil, fmt.Errorf("sign request: it is for %.80q, and this is the root %q", csr.Subject.CommonName, r.cert.Subject.CommonName)
	case !p256(csr.PublicKey):
		return nil, errors.New("sign request: key is not ECDSA P-256")
	case direct(r.cert):
		return nil, errors.New("sign request: a root made by an older Tillward may have no issuing certificate below it")
	case life <= 0:
		return nil, fmt.Errorf("sign request: a life of %s", life)
	}
	key, err := r.f.rootKey(r.cert)
	if err != nil {
		return nil, fmt.Errorf("sign request: %w", err)
	}
	cert, err := signIssuing(r.cert, key, csr.PublicKey, life)
	if err != nil {
		return nil, err
	}
	return chainPEM(cert), nil
}

// Request returns a signing request, in PEM, for the next issuing key, which
// it makes unless one waits already. Only Install puts it to use.
func (r *Root) Request() ([]byte, error) {
	b, err := r.request()
	if err != nil {
		return nil, fmt.Errorf("request issuing certificate: %w", err)
	}
	return b, nil
}

func (r *Root) request() ([]byte, error) {
	if direct(r.cert) {
		return nil, errDirect
	}
	n, err := r.f.waiting()
	if err != nil {
		return nil, err
	}
	key, err := r.f.makeIssuing(n)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: issuingName(r.cert)}}, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// ErrCertificate is returned, with the reason, when Install refuses one.
var ErrCertificate = errors.New("not the issuing certificate that was requested")

// Install puts the certificate in place that the root has signed for the key
// that waits; behind it, in PEM, come those between it and the root, where a
// CA of the company's does not sign with its root. A service that runs takes
// it with its next Rotate.
func (r *Root) Install(certificate []byte) error {
	list, err := parseChain(certificate)
	if err != nil {
		return fmt.Errorf("install issuing certificate: %w: %w", err, ErrCertificate)
	}
	n, err := r.f.waiting()
	if err != nil {
		return fmt.Errorf("install issuing certificate: %w", err)
	}
	key, err := r.f.key(r.f.numbered(n, keyFile))
	if err != nil {
		return fmt.Errorf("install issuing certificate: %w", err)
	}
	switch {
	case key == nil:
		return fmt.Errorf("install issuing certificate: no key waits for one, make a request first: %w", ErrCertificate)
	case !belong(list[0], key):
		return fmt.Errorf("install issuing certificate: it is for another key than %s: %w", r.f.numbered(n, keyFile), ErrCertificate)
	}
	if list, err = checkIssuing(r.cert, list, time.Now()); err != nil {
		return fmt.Errorf("install issuing certificate: %w: %w", err, ErrCertificate)
	}
	if err := write(r.f.numbered(n, certFile), chainPEM(list...), 0o644); err != nil {
		return fmt.Errorf("install issuing certificate: %w", err)
	}
	return nil
}

// Retire takes an issuing certificate, by its serial number in hex, out of the
// folder: what it signed counts no more. A service that runs has it in its pool
// until it starts again; Authority.Retire is for one's own.
func (r *Root) Retire(serial string) error {
	ns, err := r.f.numbers(certFile)
	if err != nil {
		return fmt.Errorf("retire issuing certificate %s: %w", serial, err)
	}
	for i, n := range ns {
		list, err := r.f.chain(r.f.numbered(n, certFile))
		if err != nil {
			return fmt.Errorf("retire issuing certificate %s: %w", serial, err)
		}
		switch {
		case !strings.EqualFold(list[0].SerialNumber.Text(16), serial):
		case i == 0:
			return fmt.Errorf("retire issuing certificate %s: %w", serial, ErrCurrent)
		default:
			return remove(r.f.numbered(n, certFile))
		}
	}
	return fmt.Errorf("retire issuing certificate %.40q: %w", serial, ErrUnknown)
}

// root reads the root's certificate; nil when there is none.
func (f folder) root() (*x509.Certificate, error) {
	list, err := f.chain(f.path(certFile))
	if len(list) == 0 || err != nil {
		return nil, err
	}
	cert := list[0]
	if len(list) > 1 || !authority(cert) || !bytes.Equal(cert.RawSubject, cert.RawIssuer) || cert.CheckSignatureFrom(cert) != nil {
		return nil, fmt.Errorf("%s is not the certificate of a root", f.path(certFile))
	}
	return cert, nil
}

// rootKey reads the root's key; ErrOffline when it is not here.
func (f folder) rootKey(cert *x509.Certificate) (crypto.Signer, error) {
	key, err := f.key(f.path(keyFile))
	switch {
	case err != nil:
		return nil, err
	case key == nil:
		return nil, fmt.Errorf("no %s: %w", f.path(keyFile), ErrOffline)
	case !belong(cert, key):
		return nil, fmt.Errorf("%s and %s do not belong together, restore them from a backup", f.path(certFile), f.path(keyFile))
	}
	return key, nil
}

// makeRoot makes a root and its two files, in place of any other.
func (f folder) makeRoot() error {
	key, err := f.make(f.path(bornFile), f.name+".root")
	if err != nil {
		return err
	}
	keyPEM, err := os.ReadFile(f.path(bornFile))
	if err != nil {
		return err
	}
	serial, err := newSerial()
	if err != nil {
		return err
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Tillward " + f.name, SerialNumber: fmt.Sprintf("%032x", serial)[:8]},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(rootLife),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLen: 1,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return fmt.Errorf("sign root: %w", err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := write(f.path(bornFile), append(cert, keyPEM...), 0o600); err != nil {
		return err
	}
	return f.split()
}

// signIssuing makes the certificate of an issuing key. It may sign devices and
// servers, and no further authority. All below one root have the same name: a
// service names the issuers that it takes, and a device whose issuer was
// retired must still show its certificate, to be told that it counts no more
// and enrol again. Where only a certificate was lost, another for the same key
// vouches for everything that the lost one did.
func signIssuing(root *x509.Certificate, rootKey crypto.Signer, pub crypto.PublicKey, life time.Duration) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: issuingName(root), SerialNumber: root.Subject.SerialNumber},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(min(life, root.NotAfter.Sub(now))),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, root, pub, rootKey)
	if err != nil {
		return nil, fmt.Errorf("sign issuing certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// checkIssuing says what is wrong with an issuing certificate, the first of a
// list, and returns it with those that lead from it to the root.
func checkIssuing(root *x509.Certificate, list []*x509.Certificate, now time.Time) ([]*x509.Certificate, error) {
	cert := list[0]
	switch {
	case !authority(cert):
		return nil, errors.New("it is not that of an authority")
	case cert.MaxPathLen != 0:
		return nil, errors.New("it may make further authorities: path length 0 is wanted")
	case now.After(cert.NotAfter):
		return nil, fmt.Errorf("it ended on %s", cert.NotAfter.Format(time.DateOnly))
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	for _, c := range list[1:] {
		between.AddCert(c)
	}
	chains, err := cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
			return nil, fmt.Errorf("it is not signed by the root %q, nor by what comes with it", root.Subject.CommonName)
		}
		return nil, err
	}
	// Verify takes the issuing certificate for the end of the path, which it is
	// not: those above must allow for what comes below it [RFC 5280, 4.2.1.9].
	for below, c := range chains[0] {
		if below > 0 && c.MaxPathLen >= 0 && c.MaxPathLen < below {
			return nil, fmt.Errorf("%q may not have it below: its path length is %d", c.Subject.CommonName, c.MaxPathLen)
		}
	}
	return chains[0][:len(chains[0])-1], nil
}

// linked reports whether each certificate is signed by the next, and the last
// by the root.
func linked(root *x509.Certificate, list []*x509.Certificate) error {
	for i, c := range list {
		by := root
		if i+1 < len(list) {
			by = list[i+1]
		}
		if err := c.CheckSignatureFrom(by); err != nil {
			return err
		}
	}
	return nil
}

func parseRequest(b []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("not a certificate request in PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("whoever made it does not have the key: %w", err)
	}
	return csr, nil
}

func authority(c *x509.Certificate) bool {
	return c.BasicConstraintsValid && c.IsCA && c.KeyUsage&x509.KeyUsageCertSign != 0
}

// issuingName tells the issuing certificates of one root from others'.
func issuingName(root *x509.Certificate) string { return root.Subject.CommonName + " issuing" }

// direct reports whether a root may have no issuing certificate below it and
// so signs by itself, as those of older versions do.
func direct(root *x509.Certificate) bool { return root.MaxPathLen == 0 }
