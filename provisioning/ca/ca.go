// Package ca is the certificate authority of a tenant and of the service: it
// issues LDevID certificates to devices and the server certificate devices
// recognise the service by.
//
// An authority is a root, whose key signs nothing but issuing certificates and
// may lie in a safe, and an issuing certificate, whose key signs everything
// else and is changed while a fleet is connected. Whoever checks a device's
// certificate trusts the issuing certificates one by one (Pool), not the root:
// that is how a retired one stops counting at once, with no list of revoked
// certificates to fetch.
//
// Keys lie in files or wherever Keys puts them; no caller ever holds one. The
// package decides what is in a certificate, never who may have one.
//
// It exports more names than other rooms because a root is also worked on where
// no authority runs: in a safe.
package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"sync"
	"time"

	"github.com/tillward/tillward/provisioning/identity"
)

// Authority issues certificates under one root. It may be used by many
// goroutines at once, also while it rotates.
type Authority struct {
	f folder

	change sync.Mutex // held by whoever changes the folder

	mu      sync.RWMutex
	root    *x509.Certificate
	issuing []issuer // newest first; all of them count
	pool    *x509.CertPool
}

// issuer is an issuing certificate. Only the newest has its key.
type issuer struct {
	n    int
	cert *x509.Certificate
	up   []*x509.Certificate // what lies between it and the root, if anything does
	key  crypto.Signer
}

// chain is what to send after a certificate that it signed.
func (i issuer) chain() [][]byte {
	der := [][]byte{i.cert.Raw}
	for _, c := range i.up {
		der = append(der, c.Raw)
	}
	return der
}

// Issued describes an issuing certificate that counts.
type Issued struct {
	Serial    string // hex, as in the certificates' other mentions
	KeyID     string // hex identifier of its key, as the certificates it signed name it
	NotBefore time.Time
	NotAfter  time.Time
	Current   bool // signs; the others only vouch for what they signed
}

// ErrNotIssuing is returned while an authority has no issuing certificate that
// is valid.
var ErrNotIssuing = errors.New("no valid issuing certificate: rotate the authority, or install one that the root has signed")

// Root is the certificate that others pin.
func (a *Authority) Root() *x509.Certificate {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.root
}

// Chain is what whoever shows a certificate of this authority sends after it,
// in DER: the issuing certificate, what lies between it and the root, if
// anything does, and not the root, which the other side has.
func (a *Authority) Chain() [][]byte {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if len(a.issuing) == 0 {
		return nil
	}
	return a.issuing[0].chain()
}

// Pool holds the issuing certificates that count, each trusted for itself. It
// is for who verifies certificates of this authority and can ask again: what
// Retire takes out is gone from the next Pool, whatever the root has signed.
// The pool is shared: do not add to it.
func (a *Authority) Pool() *x509.CertPool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.pool
}

// Issuing lists the issuing certificates that count, newest first.
func (a *Authority) Issuing() []Issued {
	a.mu.RLock()
	defer a.mu.RUnlock()
	list := make([]Issued, 0, len(a.issuing))
	now := time.Now()
	for i, c := range a.issuing {
		if i > 0 && now.After(c.cert.NotAfter) {
			continue
		}
		list = append(list, Issued{Serial: c.cert.SerialNumber.Text(16), KeyID: hex.EncodeToString(c.cert.SubjectKeyId), NotBefore: c.cert.NotBefore, NotAfter: c.cert.NotAfter, Current: i == 0})
	}
	return list
}

// IssueDevice signs an LDevID certificate for the P-256 key pub, valid for
// life from now, but no longer than the issuing certificate. It returns the
// certificate in DER.
func (a *Authority) IssueDevice(id identity.Identity, pub crypto.PublicKey, life time.Duration) ([]byte, error) {
	if !p256(pub) {
		return nil, fmt.Errorf("issue certificate for %s: key is not ECDSA P-256", id.Device)
	}
	der, _, err := a.issue(pub, life, func(serial *big.Int, now time.Time, life time.Duration) (*x509.Certificate, error) {
		return identity.Template(id, serial, now, life)
	})
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", id.Device, err)
	}
	return der, nil
}

// IssueServer makes a key and a certificate for the service itself, for the
// DNS names and IP addresses given, valid for life from now, but no longer
// than the issuing certificate.
func (a *Authority) IssueServer(names []string, life time.Duration) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make server key: %w", err)
	}
	der, by, err := a.issue(key.Public(), life, func(serial *big.Int, now time.Time, life time.Duration) (*x509.Certificate, error) {
		t := &x509.Certificate{
			SerialNumber: serial, Subject: pkix.Name{CommonName: "Tillward service"},
			NotBefore: now.Add(-time.Hour), NotAfter: now.Add(life),
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
			BasicConstraintsValid: true,
		}
		for _, n := range names {
			if ip := net.ParseIP(n); ip != nil {
				t.IPAddresses = append(t.IPAddresses, ip)
			} else {
				t.DNSNames = append(t.DNSNames, n)
			}
		}
		return t, nil
	})
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("sign server certificate: %w", err)
	}
	return tls.Certificate{Certificate: append([][]byte{der}, by.chain()...), PrivateKey: key}, nil
}

// issue signs what fill describes, and says who did.
func (a *Authority) issue(pub crypto.PublicKey, life time.Duration, fill func(*big.Int, time.Time, time.Duration) (*x509.Certificate, error)) ([]byte, issuer, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, issuer{}, err
	}
	a.mu.RLock()
	defer a.mu.RUnlock() // held while it signs: the key is let go only after that
	now := time.Now()
	if len(a.issuing) == 0 || !now.Before(a.issuing[0].cert.NotAfter) {
		return nil, issuer{}, ErrNotIssuing
	}
	by := a.issuing[0]
	t, err := fill(serial, now, min(life, by.cert.NotAfter.Sub(now)))
	if err != nil {
		return nil, issuer{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, t, by.cert, pub, by.key)
	return der, by, err
}

// newSerial returns a random 127-bit serial number [RFC 5280, 4.1.2.2].
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("draw serial number: %w", err)
	}
	return n, nil
}
