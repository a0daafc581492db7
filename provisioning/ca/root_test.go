package ca_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/provisioning/ca"
)

const year = 365 * 24 * time.Hour

// offline makes a root in one folder and copies its certificate, and nothing
// else, to another: the service's.
func offline(t testing.TB) (safe *ca.Root, dir string) {
	t.Helper()
	away := t.TempDir()
	safe, err := ca.MakeRoot(away, "tenant", ca.Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	put(t, filepath.Join(dir, "tenant.pem"), get(t, filepath.Join(away, "tenant.pem")))
	return safe, dir
}

func openRoot(t testing.TB, dir string) *ca.Root {
	t.Helper()
	r, err := ca.OpenRoot(dir, "tenant", ca.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func request(t testing.TB, of interface{ Request() ([]byte, error) }) []byte {
	t.Helper()
	b, err := of.Request()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func sign(t testing.TB, r *ca.Root, csr []byte) []byte {
	t.Helper()
	b, err := r.Sign(csr, year)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The root's key is never where the service is, from the first day on.
func TestOfflineRoot(t *testing.T) {
	safe, dir := offline(t)
	if _, err := ca.Open(dir, "tenant", ca.Options{}); err == nil || !strings.Contains(err.Error(), "install") {
		t.Errorf("without an issuing certificate: got %v, want what to do", err)
	}
	here := openRoot(t, dir)
	csr := request(t, here)
	if err := here.Install(sign(t, safe, csr)); err != nil {
		t.Fatal(err)
	}
	a := open(t, dir)
	if !a.Root().Equal(safe.Certificate()) {
		t.Error("the root is another one")
	}
	before := issued(t, a)
	if _, err := a.Rotate(t.Context()); !errors.Is(err, ca.ErrOffline) {
		t.Errorf("rotate: got %v, want ErrOffline", err)
	}

	// By the running service.
	csr = request(t, a)
	if again := request(t, a); string(public(t, csr)) != string(public(t, again)) {
		t.Error("a second request is for another key")
	}
	if issued(t, a).CheckSignatureFrom(parse(t, a.Chain()[0])) != nil {
		t.Error("a request changed who signs")
	}
	now, err := a.Install(sign(t, safe, csr))
	if err != nil || !now.Current {
		t.Fatalf("got %+v and %v", now, err)
	}
	if left := time.Until(now.NotAfter); left > year || left < year-time.Hour {
		t.Errorf("issuing certificate lasts %s, want a year", left)
	}

	// By the tool beside it: the service takes it when it rotates.
	csr = request(t, here)
	if err := here.Install(sign(t, safe, csr)); err != nil {
		t.Fatal(err)
	}
	if got := a.Issuing()[0]; got != now {
		t.Errorf("before it rotates, the service signs with %+v", got)
	}
	between := issued(t, a)
	if next := rotate(t, a); next == now {
		t.Error("the installed certificate was not taken")
	}
	for name, a := range map[string]*ca.Authority{"running": a, "opened again": open(t, dir)} {
		if err := errors.Join(counts(a, before), counts(a, between), counts(a, issued(t, a))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got, want := files(t, dir), "tenant.1.pem tenant.2.pem tenant.3.key tenant.3.pem tenant.pem"; got != want {
		t.Errorf("files: got %s, want %s", got, want)
	}
}

// public returns the key of a request.
func public(t testing.TB, csr []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(csr)
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return r.RawSubjectPublicKeyInfo
}

// A root that was made in the service's folder may leave it.
func TestRootLeaves(t *testing.T) {
	dir, away := t.TempDir(), t.TempDir()
	root := open(t, dir).Root()
	for _, n := range []string{"tenant.pem", "tenant.key"} {
		put(t, filepath.Join(away, n), get(t, filepath.Join(dir, n)))
	}
	if err := removeFile(dir, "tenant.key"); err != nil {
		t.Fatal(err)
	}
	a := open(t, dir)
	before := issued(t, a)
	if _, err := a.Install(sign(t, openRoot(t, away), request(t, a))); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(counts(a, before), counts(a, issued(t, a))); err != nil || !a.Root().Equal(root) {
		t.Errorf("got %v and root %s", err, a.Root().Subject)
	}
}

// An issuing key is lost, with its token or its disk: another takes over, and
// the certificate of the lost one goes on vouching.
func TestIssuingKeyIsLost(t *testing.T) {
	dir := t.TempDir()
	before := issued(t, open(t, dir))
	if err := removeFile(dir, "tenant.1.key"); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Open(dir, "tenant", ca.Options{}); err == nil || !strings.Contains(err.Error(), "install another") {
		t.Errorf("got %v, want what to do", err)
	}
	r := openRoot(t, dir)
	if err := r.Install(sign(t, r, request(t, r))); err != nil {
		t.Fatal(err)
	}
	a := open(t, dir)
	if err := errors.Join(counts(a, before), counts(a, issued(t, a))); err != nil {
		t.Error(err)
	}
}

// Certificates and requests come from other machines.
func FuzzCarried(f *testing.F) {
	safe, dir := offline(f)
	here := openRoot(f, dir)
	csr := request(f, here) // of this process; others fuzz with a root of their own
	f.Add(csr)
	f.Add(toPEM(safe.Certificate()))
	f.Add(append(toPEM(safe.Certificate()), csr...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := here.Install(b); !errors.Is(err, ca.ErrCertificate) {
			t.Errorf("got %v, want ErrCertificate", err)
		}
		out, err := safe.Sign(b, year)
		if err != nil {
			return
		}
		block, _ := pem.Decode(out)
		if c := parse(t, block.Bytes); string(c.RawSubjectPublicKeyInfo) != string(public(t, b)) || c.MaxPathLen != 0 || !c.IsCA {
			t.Errorf("signed something else than was asked for:\n%s", out)
		}
	})
}

// Each refused certificate differs from a good one in one thing, and the good
// one is installed last, after all of them.
func TestInstallRefuses(t *testing.T) {
	rootKey := key(t, elliptic.P256())
	good := func() *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "issuing"},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(year),
			KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
		}
	}
	rootTmpl := good()
	rootTmpl.Subject, rootTmpl.MaxPathLen, rootTmpl.MaxPathLenZero = pkix.Name{CommonName: "Tillward tenant"}, 1, false
	root := certificate(t, rootTmpl, rootTmpl, rootKey.Public(), rootKey)
	dir := t.TempDir()
	put(t, filepath.Join(dir, "tenant.pem"), toPEM(root))
	here := openRoot(t, dir)

	nobody := certificate(t, good(), root, key(t, elliptic.P256()).Public(), rootKey)
	if err := here.Install(toPEM(nobody)); !errors.Is(err, ca.ErrCertificate) || !strings.Contains(err.Error(), "request first") {
		t.Errorf("without a request: got %v, want ErrCertificate and what to do", err)
	}
	csr, _ := pem.Decode(request(t, here))
	req, err := x509.ParseCertificateRequest(csr.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	pub := req.PublicKey

	otherKey := key(t, elliptic.P256())
	otherRoot := certificate(t, rootTmpl, rootTmpl, otherKey.Public(), otherKey) // same name
	for name, bad := range map[string]struct {
		change func(*x509.Certificate)
		pub    crypto.PublicKey
		root   *x509.Certificate
		key    *ecdsa.PrivateKey
		why    string
	}{
		"for another key":     {pub: key(t, elliptic.P256()).Public(), why: "another key"},
		"of another root":     {root: otherRoot, key: otherKey, why: "not signed by the root"},
		"no authority":        {change: func(c *x509.Certificate) { c.IsCA, c.MaxPathLenZero = false, false }, why: "not that of an authority"},
		"no signing":          {change: func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }, why: "not that of an authority"},
		"path length 1":       {change: func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 1, false }, why: "path length"},
		"no path length":      {change: func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = -1, false }, why: "path length"},
		"ended":               {change: func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, why: "ended"},
		"not yet valid":       {change: func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }, why: "not yet valid"},
		"unknown constraints": {change: func(c *x509.Certificate) { c.ExtraExtensions = critical() }, why: "critical"},
	} {
		tmpl, by, signer := good(), root, rootKey
		if bad.change != nil {
			bad.change(tmpl)
		}
		if bad.root != nil {
			by, signer = bad.root, bad.key
		}
		to := pub
		if bad.pub != nil {
			to = bad.pub
		}
		if err := here.Install(toPEM(certificate(t, tmpl, by, to, signer))); !errors.Is(err, ca.ErrCertificate) || !strings.Contains(err.Error(), bad.why) {
			t.Errorf("%s: got %v, want ErrCertificate for: %s", name, err, bad.why)
		}
	}
	for name, b := range map[string][]byte{"nothing": nil, "the root": toPEM(root), "a request": pem.EncodeToMemory(csr), "garbage": []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")} {
		if err := here.Install(b); !errors.Is(err, ca.ErrCertificate) {
			t.Errorf("%s: got %v, want ErrCertificate", name, err)
		}
	}
	if got, want := files(t, dir), "tenant.1.key tenant.pem"; got != want {
		t.Errorf("files: got %s, want %s", got, want)
	}
	if err := here.Install(toPEM(certificate(t, good(), root, pub, rootKey))); err != nil {
		t.Errorf("the good one: %v", err)
	}
	issued(t, open(t, dir))
}

// A company's CA signs with an intermediate of its own; that comes along, and
// the root alone is pinned.
func TestInstallBelowACompanysCA(t *testing.T) {
	rootKey, subKey := key(t, elliptic.P384()), key(t, elliptic.P384())
	tmpl := func(name string, length int) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(year),
			KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, MaxPathLen: length, MaxPathLenZero: length == 0,
		}
	}
	root := certificate(t, tmpl("Bank Root", -1), tmpl("Bank Root", -1), rootKey.Public(), rootKey)
	sub := certificate(t, tmpl("Bank Devices", 1), root, subKey.Public(), rootKey)
	short := certificate(t, tmpl("Bank Devices", 0), root, subKey.Public(), rootKey)
	ended := tmpl("Bank Devices", 1)
	ended.NotAfter = time.Now().Add(-time.Minute)
	over := certificate(t, ended, root, subKey.Public(), rootKey)

	dir := t.TempDir()
	put(t, filepath.Join(dir, "tenant.pem"), toPEM(root))
	here := openRoot(t, dir)
	block, _ := pem.Decode(request(t, here))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	issuing := certificate(t, tmpl("Tills", 0), sub, csr.PublicKey, subKey)
	files := func(list ...*x509.Certificate) (b []byte) {
		for _, c := range list {
			b = append(b, toPEM(c)...)
		}
		return b
	}
	stranger := certificate(t, tmpl("Bank Devices", 1), tmpl("Bank Devices", 1), subKey.Public(), subKey)
	for name, bad := range map[string][]byte{
		"without the intermediate":                files(issuing),
		"with one that may have nothing below it": files(issuing, short),
		"with one that has ended":                 files(issuing, over),
		"with one of another root":                files(issuing, stranger, root),
		"in another order":                        files(sub, issuing),
		"in a longer chain than anybody looks at": files(issuing, sub, sub, sub, sub, sub, sub, sub, sub),
		"with a key":                              append(files(issuing, sub), keyPEM(t, subKey)...),
	} {
		if err := here.Install(bad); !errors.Is(err, ca.ErrCertificate) {
			t.Errorf("%s: got %v, want ErrCertificate", name, err)
		}
	}
	if err := here.Install(files(issuing, sub, root)); err != nil {
		t.Fatal(err)
	}
	a := open(t, dir)
	if chain := a.Chain(); len(chain) != 2 || !parse(t, chain[0]).Equal(issuing) || !parse(t, chain[1]).Equal(sub) {
		t.Errorf("chain of %d certificates, want the issuing one and what is above it", len(chain))
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	server, err := a.IssueServer([]string{"fleet.example"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for _, der := range server.Certificate[1:] {
		between.AddCert(parse(t, der))
	}
	if _, err := parse(t, server.Certificate[0]).Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: "fleet.example"}); err != nil {
		t.Errorf("for who pins the root: %v", err)
	}
	if err := counts(a, issued(t, a)); err != nil {
		t.Error(err)
	}
	// What else the company's CA signs is nothing to us.
	otherKey := key(t, elliptic.P256())
	other := certificate(t, tmpl("Printers", 0), sub, otherKey.Public(), subKey)
	leaf := tmpl("x", -1)
	leaf.IsCA, leaf.ExtKeyUsage = false, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if stray := certificate(t, leaf, other, csr.PublicKey, otherKey); counts(a, stray, other, sub, root) == nil {
		t.Error("a certificate of the company's other issuers counts")
	}
}

func critical() []pkix.Extension {
	return []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 25, 1}, Critical: true, Value: []byte{5, 0}}}
}

func certificate(t testing.TB, tmpl, by *x509.Certificate, pub crypto.PublicKey, signer crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, by, pub, signer)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, der)
}

func toPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func TestSignRefuses(t *testing.T) {
	safe, dir := offline(t)
	here := openRoot(t, dir)
	good := request(t, here)
	csr := func(name string, k crypto.Signer) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, k)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	}
	block, _ := pem.Decode(good)
	forged := append([]byte{}, block.Bytes...)
	forged[len(forged)-1] ^= 1
	for name, bad := range map[string]struct {
		csr []byte
		why string
	}{
		"nothing":              {nil, "not a certificate request"},
		"a certificate":        {toPEM(safe.Certificate()), "not a certificate request"},
		"of another authority": {csr("Tillward other issuing", key(t, elliptic.P256())), `this is the root "Tillward tenant"`},
		"P-384":                {csr("Tillward tenant issuing", key(t, elliptic.P384())), "P-256"},
		"key of someone else":  {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: forged}), "does not have the key"},
	} {
		if _, err := safe.Sign(bad.csr, year); err == nil || !strings.Contains(err.Error(), bad.why) {
			t.Errorf("%s: got %v, want: %s", name, err, bad.why)
		}
	}
	if _, err := safe.Sign(good, 0); err == nil {
		t.Error("a certificate that never counts was signed")
	}
	if _, err := here.Sign(good, year); !errors.Is(err, ca.ErrOffline) {
		t.Errorf("where the root's key is not: got %v, want ErrOffline", err)
	}
	if _, err := openRoot(t, oldAuthority(t)).Sign(good, year); err == nil || !strings.Contains(err.Error(), "older") {
		t.Errorf("a root that may have nothing below it: got %v", err)
	}

	// What else a request says does not get into the certificate.
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "Tillward tenant issuing", Organization: []string{"Elsewhere"}}, DNSNames: []string{"bank.example"},
	}, key(t, elliptic.P256()))
	if err != nil {
		t.Fatal(err)
	}
	out, _ := pem.Decode(sign(t, safe, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})))
	c := parse(t, out.Bytes)
	if len(c.DNSNames) > 0 || len(c.Subject.Organization) > 0 || c.MaxPathLen != 0 || !c.MaxPathLenZero || !c.IsCA {
		t.Errorf("signed %s for %q, path length %d", c.Subject, c.DNSNames, c.MaxPathLen)
	}
	if b, err := safe.Sign(good, 100*year); err != nil {
		t.Error(err)
	} else if block, _ := pem.Decode(b); !parse(t, block.Bytes).NotAfter.Equal(safe.Certificate().NotAfter) {
		t.Error("the certificate outlives the root")
	}
}

func TestRootIsNotMadeOver(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	before := files(t, dir)
	if _, err := ca.MakeRoot(dir, "tenant", ca.Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v, want ErrExist", err)
	}
	if err := removeFile(dir, "tenant.pem"); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.MakeRoot(dir, "tenant", ca.Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("with a key left: got %v, want ErrExist", err)
	}
	if got := "tenant.pem"; strings.Contains(files(t, dir), got+" ") || !strings.Contains(before, got) {
		t.Errorf("files: %s", files(t, dir))
	}
	if _, err := ca.OpenRoot(t.TempDir(), "tenant", ca.Options{}); err == nil || !strings.Contains(err.Error(), "copy the root's certificate") {
		t.Errorf("an empty folder: got %v, want what to do", err)
	}
	leaf := certificate(t, &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}, &x509.Certificate{}, key(t, elliptic.P256()).Public(), key(t, elliptic.P256()))
	put(t, filepath.Join(dir, "leaf.pem"), toPEM(leaf))
	for name, f := range map[string]func() error{
		"OpenRoot": func() error { _, err := ca.OpenRoot(dir, "leaf", ca.Options{}); return err },
		"Open":     func() error { _, err := ca.Open(dir, "leaf", ca.Options{}); return err },
	} {
		if err := f(); err == nil || !strings.Contains(err.Error(), "not the certificate of a root") {
			t.Errorf("%s of a certificate that is no root's: got %v", name, err)
		}
	}
}

// The power goes before each change of the disk while an offline root's
// certificate is requested and installed.
func TestPowerCutWhileItIsInstalled(t *testing.T) {
	safe, from := offline(t)
	for n := 1; ; n++ {
		dir := t.TempDir()
		put(t, filepath.Join(dir, "tenant.pem"), get(t, filepath.Join(from, "tenant.pem")))
		ca.CutBefore(n)
		cut := powerless(func() {
			here := openRoot(t, dir)
			if err := here.Install(sign(t, safe, request(t, here))); err != nil {
				t.Errorf("cut %d: %v", n, err)
			}
		})
		ca.CutBefore(0)
		if !cut {
			if n < 4 {
				t.Errorf("only %d steps were cut", n-1)
			}
			return
		}
		here := openRoot(t, dir)
		if err := here.Install(sign(t, safe, request(t, here))); err != nil {
			t.Errorf("cut %d: %v", n, err)
		}
		issued(t, open(t, dir))
	}
}
