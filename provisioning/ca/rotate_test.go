package ca_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/provisioning/ca"
)

// issued is a device's certificate.
func issued(t testing.TB, a *ca.Authority) *x509.Certificate {
	t.Helper()
	der, err := a.IssueDevice(device, key(t, elliptic.P256()).Public(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, der)
}

func parse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// counts verifies a device's certificate as the broker does, with whatever
// intermediates the device likes to send.
func counts(a *ca.Authority, c *x509.Certificate, sent ...*x509.Certificate) error {
	between := x509.NewCertPool()
	for _, s := range sent {
		between.AddCert(s)
	}
	_, err := c.Verify(x509.VerifyOptions{Roots: a.Pool(), Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err
}

func rotate(t testing.TB, a *ca.Authority) ca.Issued {
	t.Helper()
	i, err := a.Rotate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func files(t testing.TB, dir string) string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func TestRotate(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir)
	root, before := a.Root(), issued(t, a)
	now := rotate(t, a)
	after := issued(t, a)
	if !a.Root().Equal(root) {
		t.Error("the root is another one")
	}
	if err := parse(t, a.Chain()[0]).CheckSignatureFrom(root); err != nil {
		t.Error(err)
	}
	if before.CheckSignatureFrom(parse(t, a.Chain()[0])) == nil || after.CheckSignatureFrom(parse(t, a.Chain()[0])) != nil {
		t.Error("the new issuing certificate does not sign")
	}
	if got, want := files(t, dir), "tenant.1.pem tenant.2.key tenant.2.pem tenant.key tenant.pem"; got != want {
		t.Errorf("files: got %s, want %s", got, want)
	}
	for name, a := range map[string]*ca.Authority{"running": a, "opened again": open(t, dir)} {
		if err := errors.Join(counts(a, before), counts(a, after)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		list := a.Issuing()
		if len(list) != 2 || !list[0].Current || list[1].Current || list[0].Serial != now.Serial {
			t.Errorf("%s: issuing certificates %+v", name, list)
		}
	}
	// A device that is asked for a certificate of these issuers has one.
	if name := parse(t, a.Chain()[0]).RawSubject; !bytes.Equal(name, before.RawIssuer) || !bytes.Equal(name, after.RawIssuer) {
		t.Error("issuing certificates of one root have different names")
	}
	if stranger := issued(t, open(t, t.TempDir())); bytes.Equal(stranger.RawIssuer, after.RawIssuer) || counts(a, stranger) == nil {
		t.Error("a certificate of another authority counts")
	}
}

func TestRetire(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir)
	stolen := parse(t, a.Chain()[0])
	serial := a.Issuing()[0].Serial
	if err := a.Retire(serial); !errors.Is(err, ca.ErrCurrent) {
		t.Errorf("the certificate that signs: got %v, want ErrCurrent", err)
	}
	before := issued(t, a)
	rotate(t, a)
	after := issued(t, a)
	if err := a.Retire("abc"); !errors.Is(err, ca.ErrUnknown) {
		t.Errorf("an unknown one: got %v, want ErrUnknown", err)
	}
	if err := counts(a, before); err != nil {
		t.Fatalf("before it is retired: %v", err)
	}
	if err := a.Retire(strings.ToUpper(serial)); err != nil {
		t.Fatal(err)
	}
	if err := a.Retire(serial); !errors.Is(err, ca.ErrUnknown) {
		t.Errorf("again: got %v, want ErrUnknown", err)
	}
	for name, a := range map[string]*ca.Authority{"running": a, "opened again": open(t, dir)} {
		if err := counts(a, after); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		// The root has signed the retired one, and that alone must not count.
		if counts(a, before) == nil || counts(a, before, stolen, a.Root()) == nil {
			t.Errorf("%s: what a retired certificate has signed counts", name)
		}
		if n := len(a.Issuing()); n != 1 {
			t.Errorf("%s: %d issuing certificates, want one", name, n)
		}
	}
}

// The tool retires beside a service, which takes it when it starts.
func TestRetireInTheFolder(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir)
	before := issued(t, a)
	old, here := a.Issuing()[0].Serial, openRoot(t, dir)
	if err := here.Retire(old); !errors.Is(err, ca.ErrCurrent) {
		t.Errorf("the certificate that signs: got %v, want ErrCurrent", err)
	}
	if err := here.Retire("abc"); !errors.Is(err, ca.ErrUnknown) {
		t.Errorf("an unknown one: got %v, want ErrUnknown", err)
	}
	rotate(t, a)
	after := issued(t, a)
	if err := here.Retire(strings.ToUpper(old)); err != nil {
		t.Fatal(err)
	}
	if a = open(t, dir); counts(a, before) == nil {
		t.Error("what a retired certificate has signed counts")
	}
	if err := counts(a, after); err != nil {
		t.Error(err)
	}
}

// A certificate ends no later than the one that vouches for it, and one that
// has ended signs nothing, and vouches for nothing.
func TestIssuingCertificateEnds(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		const year = 365 * 24 * time.Hour
		a := open(t, dir)
		ends := a.Issuing()[0].NotAfter
		time.Sleep(time.Until(ends) - 24*time.Hour)
		der, err := a.IssueDevice(device, key(t, elliptic.P256()).Public(), year)
		if err != nil {
			t.Fatal(err)
		}
		if c := parse(t, der); !c.NotAfter.Equal(ends) {
			t.Errorf("device's certificate ends on %s, want %s", c.NotAfter, ends)
		}
		server, err := a.IssueServer([]string{"x"}, year)
		if err != nil {
			t.Fatal(err)
		}
		if c := parse(t, server.Certificate[0]); c.NotAfter.After(ends) {
			t.Errorf("server's certificate ends on %s, after %s", c.NotAfter, ends)
		}
		time.Sleep(24 * time.Hour)
		for name, a := range map[string]*ca.Authority{"running": a, "opened again": open(t, dir)} {
			if _, err := a.IssueDevice(device, key(t, elliptic.P256()).Public(), year); !errors.Is(err, ca.ErrNotIssuing) {
				t.Errorf("%s: device: got %v, want ErrNotIssuing", name, err)
			}
			if _, err := a.IssueServer(nil, year); !errors.Is(err, ca.ErrNotIssuing) {
				t.Errorf("%s: server: got %v, want ErrNotIssuing", name, err)
			}
		}
		rotate(t, a)
		issued(t, a)
		if list := a.Issuing(); len(list) != 1 {
			t.Errorf("issuing certificates %+v, want one", list)
		}
		if got, want := files(t, dir), "tenant.2.key tenant.2.pem tenant.key tenant.pem"; got != want {
			t.Errorf("files: got %s, want %s", got, want)
		}
	})
}

// oldAuthority makes a folder as version 0.1 did: a root that may have no
// authority below it and signs devices itself.
func oldAuthority(t testing.TB) (dir string) {
	t.Helper()
	k := key(t, elliptic.P256())
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(0x15474c05), Subject: pkix.Name{CommonName: "Tillward tenant", SerialNumber: "15474c05"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(20 * 365 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	put(t, filepath.Join(dir, "tenant.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	put(t, filepath.Join(dir, "tenant.key"), keyPEM(t, k))
	return dir
}

func put(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func get(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestOldAuthority(t *testing.T) {
	dir := oldAuthority(t)
	a := open(t, dir)
	old := a.Root()
	before := issued(t, a)
	if err := before.CheckSignatureFrom(old); err != nil {
		t.Errorf("its root does not sign: %v", err)
	}
	if got, want := files(t, dir), "tenant.key tenant.pem"; got != want {
		t.Errorf("files: got %s, want %s", got, want)
	}
	if _, err := a.Request(); err == nil || !strings.Contains(err.Error(), "rotate once") {
		t.Errorf("request: got %v, want what to do", err)
	}
	rotate(t, a)
	after := issued(t, a)
	for name, a := range map[string]*ca.Authority{"running": a, "opened again": open(t, dir)} {
		if a.Root().Equal(old) {
			t.Errorf("%s: the old root is still the root", name)
		}
		if err := errors.Join(counts(a, before), counts(a, after)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got, want := files(t, dir), "tenant.0.pem tenant.1.key tenant.1.pem tenant.key tenant.pem"; got != want {
		t.Errorf("files: got %s, want %s", got, want)
	}
	if err := a.Retire(old.SerialNumber.Text(16)); err != nil {
		t.Fatal(err)
	}
	for name, a := range map[string]*ca.Authority{"running": a, "opened again": open(t, dir)} {
		if counts(a, before, old) == nil {
			t.Errorf("%s: the old root counts when it is retired", name)
		}
		if err := counts(a, after); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What devices pin stays what it is.
func TestPinnedRootStays(t *testing.T) {
	old := oldAuthority(t)
	a, err := ca.Open(old, "tenant", ca.Options{Pinned: true})
	if err != nil {
		t.Fatal(err)
	}
	root := a.Root()
	if _, err := a.Rotate(t.Context()); err == nil || !strings.Contains(err.Error(), "docs/ca.md") {
		t.Errorf("rotate: got %v, want what to do", err)
	}
	issued(t, a)
	if got, want := files(t, old), "tenant.key tenant.pem"; got != want || !open(t, old).Root().Equal(root) {
		t.Errorf("files: got %s, want %s and the same root", got, want)
	}

	dir := t.TempDir()
	if a, err = ca.Open(dir, "tenant", ca.Options{Pinned: true}); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.Root())
	for range 3 {
		cert, err := a.IssueServer([]string{"fleet.example"}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		between := x509.NewCertPool()
		between.AddCert(parse(t, cert.Certificate[1]))
		if _, err := parse(t, cert.Certificate[0]).Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: "fleet.example"}); err != nil {
			t.Error(err)
		}
		rotate(t, a)
	}
}

// A fleet connects and enrols while its authority rotates: no device that has
// a certificate is refused, before or after, until what issued it is retired.
func TestRotateUnderALiveFleet(t *testing.T) {
	a := open(t, t.TempDir())
	server, err := a.IssueServer([]string{"127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.Root())
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return &tls.Config{
				Certificates: []tls.Certificate{server}, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true,
				ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: a.Pool(),
			}, nil
		},
	}
	connect := func(cert tls.Certificate) error {
		c, s := net.Pipe()
		defer c.Close()
		done := make(chan error, 1)
		go func() {
			defer s.Close()
			done <- tls.Server(s, conf).HandshakeContext(t.Context())
		}()
		client := tls.Client(c, &tls.Config{RootCAs: roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}})
		if err := client.HandshakeContext(t.Context()); err != nil {
			return err
		}
		heard := make(chan error, 1)
		go func() { // in TLS 1.3 the client learns of a refusal when it reads
			_, err := client.Read(make([]byte, 1))
			heard <- err
		}()
		if err := <-done; err != nil {
			return errors.Join(err, <-heard)
		}
		return nil
	}
	enrol := func() (tls.Certificate, error) {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return tls.Certificate{}, err
		}
		der, err := a.IssueDevice(device, k.Public(), time.Hour)
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}, err
	}

	old, err := enrol()
	if err != nil {
		t.Fatal(err)
	}
	oldSerial := a.Issuing()[0].Serial
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					if i > 0 {
						return
					}
				default:
				}
				fresh, err := enrol()
				if err == nil {
					err = errors.Join(connect(fresh), connect(old))
				}
				if err != nil {
					t.Errorf("a till was dropped: %v", err)
					return
				}
				if a.Chain() == nil || len(a.Issuing()) == 0 {
					t.Error("the authority has no issuing certificate")
				}
			}
		})
	}
	for range 20 {
		rotate(t, a)
	}
	close(stop)
	wg.Wait()
	if err := a.Retire(oldSerial); err != nil {
		t.Fatal(err)
	}
	// It is told so by the service itself: that is why an agent enrols again.
	if alert, ok := errors.AsType[*net.OpError](connect(old)); !ok || alert.Op != "remote error" {
		t.Errorf("a till with a certificate of the retired issuer hears %v, want a TLS alert", alert)
	}
	if fresh, err := enrol(); err != nil || connect(fresh) != nil {
		t.Errorf("a till with a new one does not (%v)", err)
	}
}

// The power goes before each change of the disk in turn, and the next start
// must come up with an authority that lost nothing: what was issued counts,
// the root is the same, and rotating goes on.
func TestPowerCutWhileItRotates(t *testing.T) {
	for name, prepare := range map[string]func(testing.TB) string{
		"rotate": func(t testing.TB) string {
			dir := t.TempDir()
			open(t, dir)
			return dir
		},
		"old authority": oldAuthority,
	} {
		n := 1
		for ; ; n++ {
			dir := prepare(t)
			a := open(t, dir)
			before := issued(t, a)
			ca.CutBefore(n)
			cut := powerless(func() {
				_, err := a.Rotate(t.Context())
				if err != nil {
					t.Errorf("%s, cut %d: %v", name, n, err)
				}
			})
			ca.CutBefore(0)
			if !cut {
				break
			}
			b := open(t, dir)
			if err := counts(b, before); err != nil {
				t.Errorf("%s, cut %d: %v", name, n, err)
			}
			between := issued(t, b)
			if err := counts(b, between); err != nil {
				t.Errorf("%s, cut %d: %v", name, n, err)
			}
			rotate(t, b)
			after := issued(t, b)
			c := open(t, dir)
			if err := errors.Join(counts(c, before), counts(c, between), counts(c, after)); err != nil {
				t.Errorf("%s, cut %d: after the next rotation: %v", name, n, err)
			}
			if !c.Root().Equal(b.Root()) || c.Root().MaxPathLen != 1 {
				t.Errorf("%s, cut %d: root is %s", name, n, c.Root().Subject)
			}
			keys, err := filepath.Glob(filepath.Join(dir, "tenant.*.key"))
			if err != nil || len(keys) != 1 {
				t.Errorf("%s, cut %d: keys %v are left (%v), want one", name, n, keys, err)
			}
			if _, err := os.Stat(filepath.Join(dir, "tenant.new")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s, cut %d: tenant.new is still there (%v)", name, n, err)
			}
		}
		if n < 5 {
			t.Errorf("%s: only %d steps were cut", name, n-1)
		}
	}
}

// powerless runs f and reports whether the power was cut.
func powerless(f func()) (cut bool) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(ca.Cut); !ok {
				panic(r)
			}
			cut = true
		}
	}()
	f()
	return false
}

// A rotation that failed and was not followed by a restart goes on as well.
func TestRotateGoesOn(t *testing.T) {
	for n := 1; ; n++ {
		a := open(t, oldAuthority(t))
		before := issued(t, a)
		ca.CutBefore(n)
		cut := powerless(func() { _, _ = a.Rotate(t.Context()) })
		ca.CutBefore(0)
		if !cut {
			break
		}
		rotate(t, a)
		if err := errors.Join(counts(a, before), counts(a, issued(t, a))); err != nil {
			t.Errorf("cut %d: %v", n, err)
		}
	}
}
