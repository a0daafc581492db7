package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"slices"
	"time"
)

const (
	rootLife    = 20 * 365 * 24 * time.Hour
	issuingLife = 5 * 365 * 24 * time.Hour
)

// Options say how an authority keeps its keys and what others hold it to. The
// zero value keeps them in plain files.
type Options struct {
	// Pinned: others pin the root, so Rotate never makes another one.
	Pinned bool
}

// Open reads the authority called name from dir, or makes it there when it has
// no file at all: a root and an issuing certificate, P-256, keys readable by
// their owner only. A power cut while it is made leaves what the next Open
// completes. A root's key may be missing: it is offline then. Any other file
// that is missing is an error: making a new authority over an old one would
// lock out a fleet.
func Open(dir, name string, o Options) (*Authority, error) {
	a := &Authority{f: folder{dir: dir, name: name}, life: issuingLife}
	if err := a.open(); err != nil {
		return nil, fmt.Errorf("authority %s: %w", name, err)
	}
	return a, nil
}

func (a *Authority) open() error {
	if err := a.f.split(); err != nil {
		return err
	}
	root, rootKey, err := a.openRoot()
	if err != nil {
		return err
	}
	list, err := a.openIssuing(root)
	if err != nil {
		return err
	}
	if len(list) == 0 && rootKey != nil {
		if direct(root) { // made by an older Tillward: it signs devices itself
			list = []issuer{{cert: root, key: rootKey}}
		} else {
			first, err := a.next(root, rootKey, 1)
			if err != nil {
				return err
			}
			list = []issuer{first}
		}
	}
	if len(list) == 0 {
		return fmt.Errorf("%s is missing; restore it from a backup, or install an issuing certificate that the root has signed", a.f.path(keyFile))
	}
	a.take(root, list)
	return nil
}

// openRoot reads the root, or makes it. The key is nil when it is not here.
func (a *Authority) openRoot() (*x509.Certificate, crypto.Signer, error) {
	cert, err := a.f.cert(a.f.path(certFile))
	if err != nil {
		return nil, nil, err
	}
	key, err := a.f.key(a.f.path(keyFile))
	if err != nil {
		return nil, nil, err
	}
	if cert == nil {
		certs, err := a.f.numbers(certFile)
		if err != nil {
			return nil, nil, err
		}
		keys, err := a.f.numbers(keyFile)
		if err != nil {
			return nil, nil, err
		}
		if key != nil || len(certs)+len(keys) > 0 {
			return nil, nil, fmt.Errorf("%s is missing, restore it from a backup", a.f.path(certFile))
		}
		return a.makeRoot()
	}
	switch {
	case !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return nil, nil, fmt.Errorf("%s is not the certificate of an authority", a.f.path(certFile))
	case key != nil && !belong(cert, key):
		return nil, nil, fmt.Errorf("%s and %s do not belong together, restore them from a backup", a.f.path(certFile), a.f.path(keyFile))
	}
	return cert, key, nil
}

// makeRoot makes a root and its two files.
func (a *Authority) makeRoot() (*x509.Certificate, crypto.Signer, error) {
	key, keyPEM, err := a.f.newKey()
	if err != nil {
		return nil, nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Tillward " + a.f.name, SerialNumber: fmt.Sprintf("%032x", serial)[:8]},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(rootLife),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLen: 1,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("sign root: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	return cert, key, a.f.putRoot(cert, keyPEM)
}

// openIssuing reads the issuing certificates, newest first, and the key of the
// newest.
func (a *Authority) openIssuing(root *x509.Certificate) ([]issuer, error) {
	ns, err := a.f.numbers(certFile)
	if err != nil {
		return nil, err
	}
	slices.Sort(ns)
	slices.Reverse(ns)
	var list []issuer
	for _, n := range ns {
		path := a.f.numbered(n, certFile)
		cert, err := a.f.cert(path)
		if err != nil {
			return nil, err
		}
		if err := cert.CheckSignatureFrom(root); err != nil {
			return nil, fmt.Errorf("%s is not signed by the root in %s: %w", path, a.f.path(certFile), err)
		}
		list = append(list, issuer{n: n, cert: cert})
	}
	if len(list) == 0 {
		return nil, nil
	}
	path := a.f.numbered(list[0].n, keyFile)
	key, err := a.f.key(path)
	switch {
	case err != nil:
		return nil, err
	case key == nil:
		return nil, fmt.Errorf("%s is missing, restore it from a backup", path)
	case !belong(list[0].cert, key):
		return nil, fmt.Errorf("%s is not the key of the certificate beside it, restore both from a backup", path)
	}
	list[0].key = key
	return list, nil
}

// next makes issuing certificate n under a root whose key is here.
func (a *Authority) next(root *x509.Certificate, rootKey crypto.Signer, n int) (issuer, error) {
	key, err := a.f.key(a.f.numbered(n, keyFile))
	if err != nil {
		return issuer{}, err
	}
	if key == nil {
		var keyPEM []byte
		if key, keyPEM, err = a.f.newKey(); err != nil {
			return issuer{}, err
		}
		if err := write(a.f.numbered(n, keyFile), keyPEM, 0o600); err != nil {
			return issuer{}, err
		}
	}
	cert, err := signIssuing(root, rootKey, key.Public(), a.life)
	if err != nil {
		return issuer{}, err
	}
	return issuer{n: n, cert: cert, key: key}, write(a.f.numbered(n, certFile), certPEM(cert), 0o644)
}

// signIssuing makes the certificate of an issuing key. It may sign devices and
// servers, and no further authority.
func signIssuing(root *x509.Certificate, rootKey crypto.Signer, pub crypto.PublicKey, life time.Duration) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	life = min(life, root.NotAfter.Sub(now))
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: root.Subject.CommonName + " issuing", SerialNumber: fmt.Sprintf("%032x", serial)[:8]},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(life),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, root, pub, rootKey)
	if err != nil {
		return nil, fmt.Errorf("sign issuing certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// take puts what was read or made to use.
func (a *Authority) take(root *x509.Certificate, list []issuer) {
	pool := x509.NewCertPool()
	for _, c := range list {
		pool.AddCert(c.cert)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.root, a.issuing, a.pool = root, list, pool
}

// direct reports whether a root may have no issuing certificate below it and
// so signs by itself, as those of older versions do.
func direct(root *x509.Certificate) bool { return root.MaxPathLen == 0 }
