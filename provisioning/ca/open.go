package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// Options say how an authority keeps its keys and what others hold it to. The
// zero value keeps them in plain files.
type Options struct {
	// Passphrase encrypts key files. A plain one that is there already is
	// encrypted when it is read.
	Passphrase []byte
	// Keys keeps new keys elsewhere than in files. Keys in files go on working.
	Keys Keys
	// Upstream signs requests where the root's key is not here, so that Rotate
	// needs nobody to carry them, and Open not for the first.
	Upstream Upstream
	// Pinned: others pin the root, so Rotate never makes another one.
	Pinned bool
}

// Upstream is a CA that signs requests for issuing keys by itself: package step
// asks a step-ca.
type Upstream interface {
	// Sign returns the certificate and those between it and the root, in PEM.
	Sign(ctx context.Context, request []byte) ([]byte, error)
}

// upstreamWait is how long Open waits for the first certificate.
const upstreamWait = 30 * time.Second

// Open reads the authority called name from dir, or makes it there when it has
// no file at all: a root and an issuing certificate, P-256, keys readable by
// their owner only. A power cut while it is made leaves what the next Open
// completes. The root's key may be missing: it is offline then. Any other file
// that is missing is an error: making a new authority over an old one would
// lock out a fleet.
func Open(dir, name string, o Options) (*Authority, error) {
	a := &Authority{f: folder{dir: dir, name: name, o: o}}
	if err := a.read(); err != nil {
		return nil, fmt.Errorf("authority %s: %w", name, err)
	}
	return a, nil
}

// read takes what is in the folder, after completing what a power cut left.
func (a *Authority) read() error {
	if err := a.f.finish(); err != nil {
		return err
	}
	root, err := a.f.root()
	if err != nil {
		return err
	}
	if root == nil {
		if root, err = a.f.fresh(); err != nil {
			return err
		}
	}
	list, err := a.f.issuing(root)
	if err != nil {
		return err
	}
	rootKey, err := a.f.rootKey(root) // read each time, so that a plain one is encrypted
	if err != nil && !errors.Is(err, ErrOffline) {
		return err
	}
	if len(list) == 0 {
		if list, err = a.f.first(root, rootKey); err != nil {
			return err
		}
	}
	a.take(root, list)
	return a.f.tidy(list)
}

// first returns who issues where there is no issuing certificate yet.
func (f folder) first(root *x509.Certificate, rootKey crypto.Signer) ([]issuer, error) {
	switch {
	case rootKey != nil && direct(root):
		return []issuer{{cert: root, key: rootKey}}, nil
	case rootKey != nil:
		i, err := f.next(root, rootKey)
		return []issuer{i}, err
	case f.o.Upstream != nil:
		ctx, cancel := context.WithTimeout(context.Background(), upstreamWait)
		defer cancel()
		if err := f.ask(ctx, root); err != nil {
			return nil, err
		}
		return f.issuing(root)
	}
	return nil, fmt.Errorf("%s is missing and so is an issuing certificate: restore them from a backup, or install one that the root has signed", f.path(keyFile))
}

// fresh makes the root of an authority that has no file yet.
func (f folder) fresh() (*x509.Certificate, error) {
	certs, err := f.numbers(certFile)
	if err != nil {
		return nil, err
	}
	keys, err := f.numbers(keyFile)
	if err != nil {
		return nil, err
	}
	block, err := keyBlock(f.path(keyFile))
	if block != nil || err != nil || len(certs)+len(keys) > 0 {
		return nil, errors.Join(fmt.Errorf("%s is missing, restore it from a backup", f.path(certFile)), err)
	}
	if err := f.makeRoot(); err != nil {
		return nil, err
	}
	return f.root()
}

// issuing reads the issuing certificates, newest first, and the key of the
// newest. One that has ended is left out, unless it is the newest.
func (f folder) issuing(root *x509.Certificate) ([]issuer, error) {
	ns, err := f.numbers(certFile)
	if err != nil {
		return nil, err
	}
	var list []issuer
	for _, n := range ns {
		path, by := f.numbered(n, certFile), root
		chain, err := f.chain(path)
		if err != nil {
			return nil, err
		}
		if n == 0 { // a root that issued by itself
			by = chain[0]
		}
		if err := linked(by, chain); err != nil {
			return nil, fmt.Errorf("%s is not signed by the root in %s: %w", path, f.path(certFile), err)
		}
		if len(list) == 0 || time.Now().Before(chain[0].NotAfter) {
			list = append(list, issuer{n: n, cert: chain[0], up: chain[1:]})
		}
	}
	if len(list) == 0 {
		return nil, nil
	}
	path := f.numbered(list[0].n, keyFile)
	list[0].key, err = f.key(path)
	switch {
	case err != nil:
		return nil, err
	case list[0].key == nil:
		return nil, fmt.Errorf("%s is missing: restore it from a backup, or install another issuing certificate", path)
	case !belong(list[0].cert, list[0].key):
		return nil, fmt.Errorf("%s is not the key of the certificate beside it, restore both from a backup", path)
	}
	return list, nil
}

// next makes the next issuing certificate under a root whose key is here.
func (f folder) next(root *x509.Certificate, rootKey crypto.Signer) (issuer, error) {
	n, err := f.waiting()
	if err != nil {
		return issuer{}, err
	}
	key, err := f.makeIssuing(n)
	if err != nil {
		return issuer{}, err
	}
	cert, err := signIssuing(root, rootKey, key.Public(), issuingLife)
	if err != nil {
		return issuer{}, err
	}
	return issuer{n: n, cert: cert, key: key}, write(f.numbered(n, certFile), chainPEM(cert), 0o644)
}

// ask has the next issuing certificate signed by the CA upstream.
func (f folder) ask(ctx context.Context, root *x509.Certificate) error {
	r := &Root{f: f, cert: root}
	request, err := r.Request()
	if err != nil {
		return err
	}
	list, err := f.o.Upstream.Sign(ctx, request)
	if err != nil {
		return fmt.Errorf("have issuing certificate signed: %w", err)
	}
	return r.Install(list)
}

func (f folder) makeIssuing(n int) (crypto.Signer, error) {
	return f.make(f.numbered(n, keyFile), fmt.Sprintf("%s.%d", f.name, n))
}

// tidy takes away what an authority with these issuing certificates needs no
// more: the keys of all but the newest, and the certificates that have ended.
func (f folder) tidy(list []issuer) error {
	newest := list[0].n
	keys, err := f.numbers(keyFile)
	if err != nil {
		return err
	}
	for _, n := range keys {
		if n < newest {
			if err := f.drop(f.numbered(n, keyFile)); err != nil {
				return err
			}
		}
	}
	certs, err := f.numbers(certFile)
	if err != nil {
		return err
	}
	kept := map[int]bool{}
	for _, c := range list {
		kept[c.n] = true
	}
	for _, n := range certs {
		if n < newest && !kept[n] {
			if err := remove(f.numbered(n, certFile)); err != nil {
				return err
			}
		}
	}
	return nil
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
