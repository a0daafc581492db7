package clock_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/tillward/tillward/agent/internal/clock"
	"github.com/tillward/tillward/cloud/wire"
)

// authority signs servers.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	tmpl := &x509.Certificate{
		Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().AddDate(-1, 0, 0), NotAfter: time.Now().AddDate(90, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.key, a.cert = a.sign(tmpl, nil)
	return a
}

func (a *authority) sign(tmpl *x509.Certificate, by *authority) (*ecdsa.PrivateKey, *x509.Certificate) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	parent, signer := tmpl, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	tmpl.SerialNumber = big.NewInt(time.Now().UnixNano())
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return key, cert
}

// server is a certificate that begins and ends so many years from now.
func (a *authority) server(from, to int, use x509.ExtKeyUsage) tls.Certificate {
	a.t.Helper()
	key, cert := a.sign(&x509.Certificate{
		DNSNames: []string{"service"}, NotBefore: time.Now().AddDate(from, 0, 0), NotAfter: time.Now().AddDate(to, 0, 0),
		ExtKeyUsage: []x509.ExtKeyUsage{use}, KeyUsage: x509.KeyUsageDigitalSignature,
	}, a)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

// reach shakes hands with a server by the clock.
func reach(t *testing.T, c *clock.Clock, cert tls.Certificate, roots *x509.CertPool) error {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		there, err := l.Accept()
		if err != nil {
			return
		}
		defer there.Close()
		_, _ = there.Read(make([]byte, 1))
	}()
	here, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	err = tls.Client(here, &tls.Config{RootCAs: roots, ServerName: "service", MinVersion: tls.VersionTLS13, Time: c.Now}).HandshakeContext(t.Context())
	if err != nil {
		return fmt.Errorf("reach the service: %w", err)
	}
	return nil
}

// TestDeadBattery: a till that is years behind reaches its service, and no other.
func TestDeadBattery(t *testing.T) {
	ours, foreign := newAuthority(t), newAuthority(t)
	roots := x509.NewCertPool()
	roots.AddCert(ours.cert)
	for name, tt := range map[string]struct {
		cert   tls.Certificate
		learns bool
	}{
		"has not begun":            {ours.server(20, 21, x509.ExtKeyUsageServerAuth), true},
		"of another authority":     {foreign.server(20, 21, x509.ExtKeyUsageServerAuth), false},
		"of no server":             {ours.server(20, 21, x509.ExtKeyUsageClientAuth), false},
		"has ended":                {ours.server(-2, -1, x509.ExtKeyUsageServerAuth), false},
		"ends before it begins":    {ours.server(20, 19, x509.ExtKeyUsageServerAuth), false},
		"begins after its root is": {ours.server(95, 96, x509.ExtKeyUsageServerAuth), false},
	} {
		t.Run(name, func(t *testing.T) {
			c := &clock.Clock{}
			err := reach(t, c, tt.cert, roots)
			if err == nil {
				t.Fatal("reached")
			}
			behind, ok := c.Learn(err, roots)
			if ok != tt.learns || ok && behind < 19*365*24*time.Hour {
				t.Errorf("learned %v, %s behind, want %v", ok, behind, tt.learns)
			}
			if err := reach(t, c, tt.cert, roots); (err == nil) != tt.learns {
				t.Errorf("after it: %v", err)
			}
			if at, _, quality := c.Stamp(); (quality == wire.ClockHeld) != tt.learns || tt.learns && time.Until(at) < 0 {
				t.Errorf("stamped %s, %s", at, quality)
			}
			if ahead := time.Until(c.Now()); !tt.learns && ahead > 0 {
				t.Errorf("the clock runs %s ahead", ahead)
			}
		})
	}
	c := &clock.Clock{}
	if err := reach(t, c, ours.server(-1, 1, x509.ExtKeyUsageServerAuth), roots); err != nil {
		t.Errorf("a clock that is right: %v", err)
	}
	for _, err := range []error{nil, errors.New("refused"), &tls.CertificateVerificationError{}} {
		if _, ok := c.Learn(err, roots); ok {
			t.Errorf("learned from %v", err)
		}
	}
}
