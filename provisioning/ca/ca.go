// Package ca is the certificate authority of a tenant and of the service: it
// issues LDevID certificates to devices and the server certificate devices
// recognise the service by.
//
// The key is whatever crypto.Signer the caller brings: Open keeps one in a
// file, a PKCS#11 token or a remote signer fits the same place. The package
// decides what is in a certificate, never who may have one.
package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/tillward/tillward/provisioning/identity"
)

// rootLife is how long a root made by Open lasts.
const rootLife = 20 * 365 * 24 * time.Hour

// Authority issues certificates under one root.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// New returns an authority that signs with key under the root certificate.
func New(root *x509.Certificate, key crypto.Signer) (*Authority, error) {
	pub, ok := root.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(key.Public()) {
		return nil, errors.New("root certificate and key do not belong together")
	}
	if !root.IsCA {
		return nil, errors.New("root certificate is not that of an authority")
	}
	return &Authority{cert: root, key: key}, nil
}

// Open reads the authority called name from dir (name.pem and name.key), or
// makes it there when neither file exists: P-256, the key readable by its
// owner only. A power cut while it is made leaves either nothing or what the
// next Open completes. One file without the other is an error: making a new
// root over an old one would lock out a fleet.
func Open(dir, name string) (*Authority, error) {
	a, err := open(dir, name)
	if err != nil {
		return nil, fmt.Errorf("authority %s: %w", name, err)
	}
	return a, nil
}

// Endings of an authority's files. born holds certificate and key together
// between the moment the authority exists and the moment it has its two files.
const (
	certFile = ".pem"
	keyFile  = ".key"
	bornFile = ".new"
)

func open(dir, name string) (*Authority, error) {
	base := filepath.Join(dir, name)
	certPEM, certErr := os.ReadFile(base + certFile) // #nosec G304 -- below the service's data folder
	keyPEM, keyErr := os.ReadFile(base + keyFile)    // #nosec G304 -- below the service's data folder
	if errors.Is(certErr, fs.ErrNotExist) || errors.Is(keyErr, fs.ErrNotExist) {
		born, err := os.ReadFile(base + bornFile) // #nosec G304 -- below the service's data folder
		if errors.Is(err, fs.ErrNotExist) {
			if certErr == nil || keyErr == nil {
				return nil, fmt.Errorf("%s and %s are both needed, restore them from a backup: %w",
					base+certFile, base+keyFile, errors.Join(certErr, keyErr))
			}
			if born, err = create(name); err == nil {
				err = write(base+bornFile, born, 0o600)
			}
		}
		if err != nil {
			return nil, err
		}
		if certPEM, keyPEM, err = split(base, born); err != nil {
			return nil, err
		}
	} else if err := errors.Join(certErr, keyErr); err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	// Left over when the power went between split's last two steps.
	if err := os.Remove(base + bornFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("key of type %T cannot sign", pair.PrivateKey)
	}
	return New(pair.Leaf, key)
}

// create returns a new root and its key in PEM.
func create(name string) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Tillward " + name, SerialNumber: fmt.Sprintf("%032x", serial)[:8]},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(rootLife),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign root: %w", err)
	}
	p8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: p8})...), nil
}

// split gives a new authority its two files. It may be done any number of times.
func split(base string, born []byte) (certPEM, keyPEM []byte, err error) {
	cert, rest := pem.Decode(born)
	key, _ := pem.Decode(rest)
	if cert == nil || key == nil {
		return nil, nil, fmt.Errorf("%s is damaged: remove it", base+bornFile)
	}
	certPEM, keyPEM = pem.EncodeToMemory(cert), pem.EncodeToMemory(key)
	if err := write(base+keyFile, keyPEM, 0o600); err != nil {
		return nil, nil, err
	}
	return certPEM, keyPEM, write(base+certFile, certPEM, 0o644)
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
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Root is the certificate that others pin.
func (a *Authority) Root() *x509.Certificate { return a.cert }

// IssueDevice signs an LDevID certificate for the P-256 key pub, valid for
// life from now. It returns the certificate in DER.
func (a *Authority) IssueDevice(id identity.Identity, pub crypto.PublicKey, life time.Duration) ([]byte, error) {
	if k, ok := pub.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
		return nil, fmt.Errorf("issue certificate for %s: key is not ECDSA P-256", id.Device)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl, err := identity.Template(id, serial, time.Now(), life)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", id.Device, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, pub, a.key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", id.Device, err)
	}
	return der, nil
}

// IssueServer makes a key and a certificate for the service itself, for the
// DNS names and IP addresses given, valid for life from now.
func (a *Authority) IssueServer(names []string, life time.Duration) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make server key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Tillward service"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("sign server certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key}, nil
}

// newSerial returns a random 127-bit serial number [RFC 5280, 4.1.2.2].
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("draw serial number: %w", err)
	}
	return n, nil
}
