package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Endings of an authority's files. A root is NAME.pem and NAME.key, an issuing
// certificate NAME.1.pem and NAME.1.key, its successor NAME.2.pem and so on. A
// key without certificate is one that waits for it. bornFile holds a root and
// its key together between the moment it exists and the moment it has its two
// files.
const (
	certFile = ".pem"
	keyFile  = ".key"
	bornFile = ".new"
)

// folder is where an authority lies. Every change of it is one file put in
// place whole, so that a power cut leaves a folder as before or as after.
type folder struct {
	dir, name string
}

func (f folder) path(ending string) string { return filepath.Join(f.dir, f.name+ending) }

func (f folder) numbered(n int, ending string) string {
	return f.path("." + strconv.Itoa(n) + ending)
}

// numbers lists the n for which there is NAME.n with this ending, ascending.
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
	return ns, nil
}

// cert reads a certificate of an authority; nil when there is no such file.
func (f folder) cert(path string) (*x509.Certificate, error) {
	b, err := os.ReadFile(path) // #nosec G304 -- below the service's data folder
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	c, err := parseCert(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; restore it from a backup", path, err)
	}
	return c, nil
}

// key reads a private key; nil when there is no such file.
func (f folder) key(path string) (crypto.Signer, error) {
	b, err := os.ReadFile(path) // #nosec G304 -- below the service's data folder
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	k, err := parseKey(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

// newKey makes a P-256 key and returns what its file holds.
func (f folder) newKey() (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	p8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: p8}), nil
}

// putRoot gives the authority a root and its key, in place of any other.
func (f folder) putRoot(cert *x509.Certificate, keyPEM []byte) error {
	if err := write(f.path(bornFile), append(certPEM(cert), keyPEM...), 0o600); err != nil {
		return err
	}
	return f.split()
}

// split gives a born root its two files. It may be done any number of times,
// and is done by whoever finds bornFile.
func (f folder) split() error {
	born, err := os.ReadFile(f.path(bornFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	cert, rest := pem.Decode(born)
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

func certPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func parseCert(b []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("not a certificate in PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}

func parseKey(b []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("not a private key in PEM (PKCS#8)")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("not a private key (PKCS#8): %w", err)
	}
	s, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("key of type %T cannot sign", k)
	}
	return s, nil
}

// remove takes a file away for good; that it is gone already is well.
func remove(path string) error {
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
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode) // #nosec G304 -- below the service's data folder
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
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
