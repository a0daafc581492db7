package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
)

// ErrOffline is returned where the root's key is needed and is not here.
var ErrOffline = errors.New("the root is offline: make a request, sign it where the root is, install the certificate, and rotate again")

// ErrCurrent is returned when the certificate that signs is to be retired.
var ErrCurrent = errors.New("it signs: rotate first")

// ErrUnknown is returned for a serial number that no issuing certificate has.
var ErrUnknown = errors.New("no such issuing certificate")

var errDirect = errors.New("its root was made by an older Tillward and may have no issuing certificate below it: rotate once where its key is, or, where devices pin it, give them another root first (docs/ca.md)")

// Rotate puts the next issuing certificate to use: the one that Install has
// left in the folder, or else one that it makes with the root's key or has
// made upstream. The one before goes on vouching for what it signed until it ends or is retired, and
// its key is destroyed. A power cut at any step leaves an authority that
// signs, and the next Rotate goes on from there.
//
// An authority whose root issued by itself gets a root of its own; the old one
// then counts as one more issuing certificate.
func (a *Authority) Rotate(ctx context.Context) (Issued, error) {
	a.change.Lock()
	defer a.change.Unlock()
	if err := a.rotate(ctx); err != nil {
		return Issued{}, fmt.Errorf("rotate authority %s: %w", a.f.name, err)
	}
	return a.Issuing()[0], nil
}

func (a *Authority) rotate(ctx context.Context) error {
	a.mu.RLock()
	before := a.issuing[0].n
	a.mu.RUnlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if ns, err := a.f.numbers(certFile); err != nil || len(ns) > 0 && ns[0] > before {
		return errors.Join(err, a.read())
	}
	if err := a.f.finish(); err != nil { // what an attempt before this one left
		return err
	}
	root, rootKey, err := a.f.rootAndKey()
	if errors.Is(err, ErrOffline) && a.f.o.Upstream != nil {
		if err := a.f.ask(ctx, root); err != nil {
			return err
		}
		return a.read()
	}
	if err != nil {
		return err
	}
	if direct(root) {
		if a.f.o.Pinned {
			return errDirect
		}
		if err := a.part(); err != nil {
			return err
		}
		if root, rootKey, err = a.f.rootAndKey(); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := a.f.next(root, rootKey); err != nil {
		return err
	}
	return a.read()
}

func (f folder) rootAndKey() (*x509.Certificate, crypto.Signer, error) {
	root, err := f.root()
	if err != nil {
		return nil, nil, err
	}
	if root == nil {
		return nil, nil, fmt.Errorf("%s is missing, restore it from a backup", f.path(certFile))
	}
	key, err := f.rootKey(root)
	return root, key, err
}

// part makes a root that issued by itself an issuing certificate, number 0,
// and then another root.
func (a *Authority) part() error {
	for _, file := range []struct {
		ending string
		mode   os.FileMode
	}{{keyFile, 0o600}, {certFile, 0o644}} {
		b, err := os.ReadFile(a.f.path(file.ending))
		if err != nil {
			return err
		}
		if err := write(a.f.numbered(0, file.ending), b, file.mode); err != nil {
			return err
		}
	}
	return a.f.makeRoot()
}

// Request returns a signing request, in PEM, for the next issuing key: for
// when the root is offline. Nothing changes until Install.
func (a *Authority) Request() ([]byte, error) {
	a.change.Lock()
	defer a.change.Unlock()
	return (&Root{f: a.f, cert: a.Root()}).Request()
}

// Install puts the certificate that the root has signed for a request to use,
// as Rotate does.
func (a *Authority) Install(certificate []byte) (Issued, error) {
	a.change.Lock()
	defer a.change.Unlock()
	if err := (&Root{f: a.f, cert: a.Root()}).Install(certificate); err != nil {
		return Issued{}, err
	}
	if err := a.read(); err != nil {
		return Issued{}, fmt.Errorf("install issuing certificate: %w", err)
	}
	return a.Issuing()[0], nil
}

// Retire takes an issuing certificate, by its serial number in hex, out of the
// pool: nothing it signed counts from then on. Who is connected stays so until
// he has to show his certificate again.
func (a *Authority) Retire(serial string) error {
	a.change.Lock()
	defer a.change.Unlock()
	a.mu.RLock()
	root, list := a.root, a.issuing
	a.mu.RUnlock()
	kept := make([]issuer, 0, len(list))
	gone := -1
	for i, c := range list {
		switch {
		case !strings.EqualFold(c.cert.SerialNumber.Text(16), serial):
			kept = append(kept, c)
		case i == 0:
			return fmt.Errorf("retire issuing certificate %s: %w", serial, ErrCurrent)
		default:
			gone = c.n
		}
	}
	if gone < 0 {
		return fmt.Errorf("retire issuing certificate %.40q: %w", serial, ErrUnknown)
	}
	a.take(root, kept) // even if the disk refuses: whoever retires one means now
	if err := remove(a.f.numbered(gone, certFile)); err != nil {
		return fmt.Errorf("retire issuing certificate %s: %w; it counts again after a restart", serial, err)
	}
	return nil
}
