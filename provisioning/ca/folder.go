package ca

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Endings of an authority's files. A root is NAME.pem and NAME.key, an issuing
// certificate NAME.1.pem and NAME.1.key, its successor NAME.2.pem and so on. A
// key with a higher number than any certificate waits for its own. NAME.0.pem
// is a root of an older Tillward, which issued by itself. bornFile holds a
// root's key, and then both, before they are put in their places.
const (
	certFile = ".pem"
	keyFile  = ".key"
	bornFile = ".new"
)

// folder is where an authority lies. Every change of it is one file put in
// place whole or taken away, in an order in which a power cut leaves either
// what was or what the next one who comes completes.
type folder struct {
	dir, name string
	o         Options
}

func (f folder) path(ending string) string { return filepath.Join(f.dir, f.name+ending) }

func (f folder) numbered(n int, ending string) string {
	return f.path("." + strconv.Itoa(n) + ending)
}

// numbers lists the n for which there is NAME.n with this ending, highest first.
func (f folder) numbers(ending string) ([]int, error) {
	list, err := os.ReadDir(f.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var ns []int
	for _, e := range list {
		s, ok := strings.CutPrefix(e.Name(), f.name+".")
		if s, is := strings.CutSuffix(s, ending); ok && is {
			if n, err := strconv.Atoi(s); err == nil && n >= 0 && strconv.Itoa(n) == s {
				ns = append(ns, n)
			}
		}
	}
	slices.Sort(ns)
	slices.Reverse(ns)
	return ns, nil
}

// waiting returns the number of the key that waits for its certificate, or
// that the next such key is to have.
func (f folder) waiting() (int, error) {
	certs, err := f.numbers(certFile)
	if err != nil {
		return 0, err
	}
	keys, err := f.numbers(keyFile)
	if err != nil {
		return 0, err
	}
	n := 1
	if len(certs) > 0 {
		n = certs[0] + 1
	}
	if len(keys) > 0 {
		n = max(n, keys[0])
	}
	return n, nil
}

// chain reads a certificate and those above it; nil when there is no such file.
func (f folder) chain(path string) ([]*x509.Certificate, error) {
	b, err := os.ReadFile(path) // #nosec G304 -- below the service's data folder
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list, err := parseChain(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; restore it from a backup", path, err)
	}
	return list, nil
}

// finish gives a root that was being made when the power went its two files.
func (f folder) finish() error {
	b, err := os.ReadFile(f.path(bornFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if block, _ := pem.Decode(b); block != nil && block.Type != "CERTIFICATE" {
		return f.makeRoot()
	}
	return f.split()
}

// split does so for one whose certificate has been made. It may be done any
// number of times.
func (f folder) split() error {
	b, err := os.ReadFile(f.path(bornFile))
	if err != nil {
		return err
	}
	cert, rest := pem.Decode(b)
	key, _ := pem.Decode(rest)
	if cert == nil || key == nil {
		return fmt.Errorf("%s is damaged: remove it", f.path(bornFile))
	}
	if err := write(f.path(keyFile), pem.EncodeToMemory(key), 0o600); err != nil {
		return err
	}
	if err := write(f.path(certFile), pem.EncodeToMemory(cert), 0o644); err != nil {
		return err
	}
	return remove(f.path(bornFile))
}

func chainPEM(list ...*x509.Certificate) (b []byte) {
	for _, c := range list {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return b
}

// maxChain is how many certificates are read; roots lie no further away.
const maxChain = 8

func parseChain(b []byte) ([]*x509.Certificate, error) {
	var list []*x509.Certificate
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" || len(list) == maxChain {
			return nil, fmt.Errorf("not one to %d certificates in PEM", maxChain)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	if len(list) == 0 {
		return nil, errors.New("not a certificate in PEM")
	}
	return list, nil
}

// step is called before each change of the disk; tests cut the power there.
var step = func() {}

// remove takes a file away for good; that it is gone already is well.
func remove(path string) error {
	step()
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return syncDir(filepath.Dir(path))
}

// write puts a file in place whole and on the disk, or not at all.
func write(path string, b []byte, mode os.FileMode) error {
	step()
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode) // #nosec G304 -- below the service's data folder
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	step()
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path) // #nosec G304 -- below the service's data folder
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
