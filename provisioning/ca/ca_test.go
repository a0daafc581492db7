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
	"io"
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

func open(t *testing.T, dir string) *ca.Authority {
	t.Helper()
	a, err := ca.Open(dir, "tenant")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func key(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
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
	if fi, err := os.Stat(filepath.Join(dir, "tenant.key")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v and %v, want mode 0600", fi, err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Errorf("files %v and %v, want two", left, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "tenant.pem")); err != nil || strings.Contains(string(b), "PRIVATE") {
		t.Errorf("the certificate's file holds a key (%v)", err)
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
	roots := x509.NewCertPool()
	roots.AddCert(a.Root())
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err == nil {
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
	roots := x509.NewCertPool()
	roots.AddCert(a.Root())
	for _, name := range []string{"fleet.example", "192.0.2.1"} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "other.example"}); err == nil {
		t.Error("the certificate is good for any name")
	}
	if _, err := tls.X509KeyPair(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}), keyPEM(t, cert.PrivateKey)); err != nil {
		t.Error(err)
	}
}

func keyPEM(t *testing.T, k crypto.PrivateKey) []byte {
	t.Helper()
	b, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b})
}

// remote is a key that only signs, as one in a PKCS#11 token or a remote
// signer does.
type remote struct{ crypto.Signer }

func (r remote) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return r.Signer.Sign(random, digest, opts)
}

func TestAnySignerWillDo(t *testing.T) {
	dir := t.TempDir()
	root := open(t, dir).Root()
	b, err := os.ReadFile(filepath.Join(dir, "tenant.key"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	a, err := ca.New(root, remote{k.(crypto.Signer)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.IssueDevice(device, key(t, elliptic.P256()).Public(), time.Hour); err != nil {
		t.Error(err)
	}
	if _, err := ca.New(root, key(t, elliptic.P256())); err == nil {
		t.Error("a root was taken with the key of another")
	}
	cert, err := a.IssueServer([]string{"x"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ca.New(leaf, cert.PrivateKey.(crypto.Signer)); err == nil {
		t.Error("a server's certificate was taken for a root")
	}
}

// One file without the other is a disk that lost something, not a new site.
func TestHalfAnAuthorityIsNotReplaced(t *testing.T) {
	for _, lost := range []string{"tenant.pem", "tenant.key"} {
		dir := t.TempDir()
		open(t, dir)
		if err := os.Remove(filepath.Join(dir, lost)); err != nil {
			t.Fatal(err)
		}
		if _, err := ca.Open(dir, "tenant"); err == nil || !strings.Contains(err.Error(), "backup") {
			t.Errorf("without %s: got %v, want what to do", lost, err)
		}
		left, err := os.ReadDir(dir)
		if err != nil || len(left) != 1 {
			t.Errorf("without %s: files are now %v (%v)", lost, left, err)
		}
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
		got, err := ca.Open(dir, "tenant")
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
