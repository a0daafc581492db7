package ca_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/provisioning/ca"
	"github.com/tillward/tillward/provisioning/identity"
)

var device = identity.Identity{Tenant: "shop", Device: strings.Repeat("a", 24), Tier: identity.TierA, Model: "box"}

func open(t testing.TB, dir string) *ca.Authority {
	t.Helper()
	a, err := ca.Open(dir, "tenant", ca.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func key(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestAuthorityIsKept(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir).Root()
	if again := open(t, dir).Root(); !again.Equal(first) {
		t.Error("opening it again made another root")
	}
	for _, n := range []string{"tenant.key", "tenant.1.key"} {
		if fi, err := os.Stat(filepath.Join(dir, n)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v and %v, want mode 0600", n, fi, err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 4 {
		t.Errorf("files %v and %v, want four", left, err)
	}
	for _, n := range []string{"tenant.pem", "tenant.1.pem"} {
		if b, err := os.ReadFile(filepath.Join(dir, n)); err != nil || strings.Contains(string(b), "PRIVATE") {
			t.Errorf("%s holds a key (%v)", n, err)
		}
	}
}

func TestDeviceCertificateChains(t *testing.T) {
	a := open(t, t.TempDir())
	der, err := a.IssueDevice(device, key(t, elliptic.P256()).Public(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	between := x509.NewCertPool()
	for _, der := range a.Chain() {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		between.AddCert(c)
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.Root())
	client := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: client}); err != nil {
		t.Errorf("under the root: %v", err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: a.Pool(), KeyUsages: client}); err != nil {
		t.Errorf("under the pool: %v", err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: a.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err == nil {
		t.Error("a device's certificate passes for a server's")
	}
	if id, err := identity.FromCertificate(cert); err != nil || id.Device != device.Device {
		t.Errorf("got %+v and %v", id, err)
	}
	if left := time.Until(cert.NotAfter); left > time.Hour || left < 50*time.Minute {
		t.Errorf("certificate is valid for %s, want an hour", left)
	}
}

func TestOtherKeysGetNoDeviceCertificate(t *testing.T) {
	a := open(t, t.TempDir())
	for name, pub := range map[string]crypto.PublicKey{"P-384": key(t, elliptic.P384()).Public(), "none": nil} {
		if _, err := a.IssueDevice(device, pub, time.Hour); err == nil {
			t.Errorf("%s: a certificate was issued", name)
		}
	}
	if _, err := a.IssueDevice(identity.Identity{Tenant: "shop"}, key(t, elliptic.P256()).Public(), time.Hour); !errors.Is(err, identity.ErrIdentity) {
		t.Errorf("half an identity: got %v, want ErrIdentity", err)
	}
}

func TestServerCertificate(t *testing.T) {
	a := open(t, t.TempDir())
	cert, err := a.IssueServer([]string{"fleet.example", "192.0.2.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(a.Root())
	for _, der := range cert.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		between.AddCert(c)
	}
	for _, name := range []string{"fleet.example", "192.0.2.1"} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: "other.example"}); err == nil {
		t.Error("the certificate is good for any name")
	}
	if _, err := tls.X509KeyPair(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}), keyPEM(t, cert.PrivateKey)); err != nil {
		t.Error(err)
	}
}

func keyPEM(t testing.TB, k crypto.PrivateKey) []byte {
	t.Helper()
	b, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b})
}

// One file without the other is a disk that lost something, not a new site.
func TestHalfAnAuthorityIsNotReplaced(t *testing.T) {
	for _, lost := range []string{"tenant.pem", "tenant.1.key"} {
		dir := t.TempDir()
		open(t, dir)
		if err := os.Remove(filepath.Join(dir, lost)); err != nil {
			t.Fatal(err)
		}
		if _, err := ca.Open(dir, "tenant", ca.Options{}); err == nil || !strings.Contains(err.Error(), "backup") {
			t.Errorf("without %s: got %v, want what to do", lost, err)
		}
		left, err := os.ReadDir(dir)
		if err != nil || len(left) != 3 {
			t.Errorf("without %s: files are now %v (%v)", lost, left, err)
		}
	}
}

// Where the root's key is at hand, a lost issuing certificate is made again,
// and no device notices.
func TestLostIssuingCertificate(t *testing.T) {
	dir := t.TempDir()
	before := issued(t, open(t, dir))
	if err := removeFile(dir, "tenant.1.pem"); err != nil {
		t.Fatal(err)
	}
	a := open(t, dir)
	if err := errors.Join(counts(a, before), counts(a, issued(t, a))); err != nil {
		t.Error(err)
	}
}

// The power may go at any step of the first start; the next one must come up,
// and with the same root once a root was ever readable.
func TestPowerCutWhileItIsMade(t *testing.T) {
	source := t.TempDir()
	root := open(t, source).Root()
	files := make(map[string][]byte)
	for _, n := range []string{"tenant.pem", "tenant.key"} {
		b, err := os.ReadFile(filepath.Join(source, n))
		if err != nil {
			t.Fatal(err)
		}
		files[n] = b
	}
	born := append(append([]byte{}, files["tenant.pem"]...), files["tenant.key"]...)
	for name, cut := range map[string]struct {
		disk map[string][]byte
		same bool
	}{
		"before anything":      {nil, false},
		"torn temporary":       {map[string][]byte{"tenant.new.tmp": born[:40]}, false},
		"whole temporary":      {map[string][]byte{"tenant.new.tmp": born}, false},
		"born":                 {map[string][]byte{"tenant.new": born}, true},
		"torn key":             {map[string][]byte{"tenant.new": born, "tenant.key.tmp": files["tenant.key"][:40]}, true},
		"key":                  {map[string][]byte{"tenant.new": born, "tenant.key": files["tenant.key"]}, true},
		"torn certificate":     {map[string][]byte{"tenant.new": born, "tenant.key": files["tenant.key"], "tenant.pem.tmp": files["tenant.pem"][:40]}, true},
		"before the last step": {map[string][]byte{"tenant.new": born, "tenant.key": files["tenant.key"], "tenant.pem": files["tenant.pem"]}, true},
	} {
		dir := t.TempDir()
		for n, b := range cut.disk {
			if err := os.WriteFile(filepath.Join(dir, n), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, err := ca.Open(dir, "tenant", ca.Options{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got.Root().Equal(root) != cut.same {
			t.Errorf("%s: same root is %t, want %t", name, !cut.same, cut.same)
		}
		if !open(t, dir).Root().Equal(got.Root()) {
			t.Errorf("%s: the next start made another root", name)
		}
		if _, err := os.Stat(filepath.Join(dir, "tenant.new")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the file with both is still there (%v)", name, err)
		}
	}
}

func removeFile(dir, name string) error { return os.Remove(filepath.Join(dir, name)) }

// The power goes before each change of the disk while an authority is made.
func TestPowerCutAtEachStep(t *testing.T) {
	for n := 1; ; n++ {
		dir := t.TempDir()
		ca.CutBefore(n)
		cut := powerless(func() { open(t, dir) })
		ca.CutBefore(0)
		if !cut {
			if n < 8 {
				t.Errorf("only %d steps were cut", n-1)
			}
			return
		}
		a := open(t, dir)
		issued(t, a)
		if !open(t, dir).Root().Equal(a.Root()) {
			t.Errorf("cut %d: the next start made another root", n)
		}
		if got, want := files(t, dir), "tenant.1.key tenant.1.pem tenant.key tenant.pem"; got != want {
			t.Errorf("cut %d: files %s, want %s", n, got, want)
		}
	}
}
