package step_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/provisioning/ca"
	"github.com/tillward/tillward/provisioning/ca/step"
	"github.com/tillward/tillward/provisioning/identity"
)

const hour = time.Hour

// company is the PKI of a company: a root, and below it what its CA signs with.
type company struct {
	root, sub       *x509.Certificate
	rootKey, subKey *ecdsa.PrivateKey
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newCompany(t testing.TB) company {
	t.Helper()
	c := company{rootKey: newKey(t), subKey: newKey(t)}
	tmpl := authority("Bank Root", 2)
	c.root = signed(t, tmpl, tmpl, c.rootKey.Public(), c.rootKey)
	c.sub = signed(t, authority("Bank Issuing", 1), c.root, c.subKey.Public(), c.rootKey)
	return c
}

func authority(name string, length int) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-hour), NotAfter: time.Now().Add(5 * 365 * 24 * hour),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLen: length, MaxPathLenZero: length == 0,
	}
}

func signed(t testing.TB, tmpl, by *x509.Certificate, pub crypto.PublicKey, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, by, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func toPEM(list ...*x509.Certificate) (b []byte) {
	for _, c := range list {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return b
}

func put(t testing.TB, path string, b []byte) string {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

var b64 = base64.RawURLEncoding

// jwk returns both halves of a provisioner's key as the step tool writes them.
func jwk(t testing.TB, k *ecdsa.PrivateKey) (public map[string]string, private []byte) {
	t.Helper()
	point, err := k.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	d, err := k.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	public = map[string]string{"use": "sig", "kty": "EC", "kid": "tills-1", "crv": "P-256", "alg": "ES256", "x": b64.EncodeToString(point[1:33]), "y": b64.EncodeToString(point[33:])}
	all := maps.Clone(public)
	all["d"] = b64.EncodeToString(d)
	if private, err = json.Marshal(all); err != nil {
		t.Fatal(err)
	}
	return public, private
}

// works lets an authority below a CA issue, rotate, retire and start again.
func works(t *testing.T, upstream ca.Upstream, root *x509.Certificate) {
	t.Helper()
	dir := t.TempDir()
	put(t, filepath.Join(dir, "tenant.pem"), toPEM(root))
	open := func() *ca.Authority {
		t.Helper()
		a, err := ca.Open(dir, "tenant", ca.Options{Upstream: upstream, Pinned: true})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	device := func(a *ca.Authority) *x509.Certificate {
		t.Helper()
		id := identity.Identity{Tenant: "shop", Device: strings.Repeat("a", 24), Tier: identity.TierA, Model: "box"}
		der, err := a.IssueDevice(id, newKey(t).Public(), hour)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	counts := func(a *ca.Authority, c *x509.Certificate) error {
		_, err := c.Verify(x509.VerifyOptions{Roots: a.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		return err
	}
	a := open()
	before, old := device(a), a.Issuing()[0].Serial
	if _, err := a.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := device(a)
	for _, a := range []*ca.Authority{a, open()} {
		if err := errors.Join(counts(a, before), counts(a, after)); err != nil {
			t.Error(err)
		}
	}
	if err := a.Retire(old); err != nil {
		t.Fatal(err)
	}
	if counts(a, before) == nil {
		t.Error("what a retired certificate has signed counts")
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	server, err := a.IssueServer([]string{"fleet.example"}, hour)
	if err != nil {
		t.Fatal(err)
	}
	for _, der := range server.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		between.AddCert(c)
	}
	leaf, err := x509.ParseCertificate(server.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: "fleet.example"}); err != nil {
		t.Errorf("for who pins the company's root: %v", err)
	}
}

// fake answers as a step-ca does, and checks what it is told as strictly.
type fake struct {
	company
	key  *ecdsa.PublicKey
	url  string
	seen map[string]bool // tokens

	mu     sync.Mutex
	change func(w http.ResponseWriter, r *http.Request) (done bool)
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.change != nil && f.change(w, r) {
		return
	}
	chain, why := f.sign(r)
	if why != "" {
		w.WriteHeader(http.StatusUnauthorized)
		_ = json.NewEncoder(w).Encode(map[string]any{"status": 401, "message": why})
		return
	}
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(map[string]any{"crt": string(toPEM(chain[0])), "ca": string(toPEM(chain[1])), "certChain": []string{string(toPEM(chain[0])), string(toPEM(chain[1]))}})
}

func (f *fake) sign(r *http.Request) (chain []*x509.Certificate, why string) {
	var in struct{ CSR, OTT, NotAfter string }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.URL.Path != "/1.0/sign" || r.Method != http.MethodPost {
		return nil, "not a request to sign"
	}
	p := strings.Split(in.OTT, ".")
	if len(p) != 3 {
		return nil, "no token"
	}
	sig, err := b64.DecodeString(p[2])
	digest := sha256.Sum256([]byte(p[0] + "." + p[1]))
	if err != nil || len(sig) != 64 || !ecdsa.Verify(f.key, digest[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		return nil, "token is not signed by the provisioner"
	}
	var head struct{ Alg, Kid string }
	var claims struct {
		Iss, Sub, Aud, Jti string
		Nbf, Exp           int64
		Cnf                map[string]string
	}
	for i, v := range []any{&head, &claims} {
		if b, err := b64.DecodeString(p[i]); err != nil || json.Unmarshal(b, v) != nil {
			return nil, "token is damaged"
		}
	}
	block, _ := pem.Decode([]byte(in.CSR))
	if block == nil {
		return nil, "no request"
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || csr.CheckSignature() != nil {
		return nil, "request is damaged"
	}
	sum := sha256.Sum256(csr.Raw)
	now := time.Now().Unix()
	switch {
	case head.Alg != "ES256" || head.Kid != "tills-1" || claims.Iss != "tillward" || claims.Aud != f.url+"/1.0/sign":
		return nil, "token is for another provisioner or place"
	case claims.Nbf > now || claims.Exp < now || claims.Exp > now+600:
		return nil, "token is not valid now"
	case claims.Jti == "" || f.seen[claims.Jti]:
		return nil, "token was used before"
	case claims.Sub != csr.Subject.CommonName || claims.Cnf["x5rt#S256"] != b64.EncodeToString(sum[:]):
		return nil, "token is for another request"
	case in.NotAfter != "720h0m0s":
		return nil, "another life than was configured"
	}
	f.seen[claims.Jti] = true
	tmpl := authority(csr.Subject.CommonName, 0)
	tmpl.NotAfter = time.Now().Add(720 * hour)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, f.sub, csr.PublicKey, f.subKey)
	if err != nil {
		return nil, err.Error()
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err.Error()
	}
	return []*x509.Certificate{c, f.sub}, ""
}

func newFake(t *testing.T) (*fake, step.Config) {
	t.Helper()
	key := newKey(t)
	f := &fake{company: newCompany(t), key: &key.PublicKey, seen: map[string]bool{}}
	srv := httptest.NewUnstartedServer(f)
	tmpl := authority("step-ca", -1)
	tmpl.IsCA, tmpl.MaxPathLen, tmpl.IPAddresses, tmpl.KeyUsage = false, 0, []net.IP{net.IPv4(127, 0, 0, 1)}, x509.KeyUsageDigitalSignature
	own := newKey(t)
	leaf := signed(t, tmpl, f.sub, own.Public(), f.subKey)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw, f.sub.Raw}, PrivateKey: own}}, MinVersion: tls.VersionTLS12}
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	f.url = srv.URL
	dir := t.TempDir()
	_, private := jwk(t, key)
	return f, step.Config{
		URL: f.url, Root: put(t, filepath.Join(dir, "root.pem"), toPEM(f.root)), Provisioner: "tillward",
		Key: put(t, filepath.Join(dir, "key.json"), private), Life: 720 * hour,
	}
}

func open(t *testing.T, c step.Config) *step.CA {
	t.Helper()
	s, err := step.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAuthorityBelowACA(t *testing.T) {
	f, conf := newFake(t)
	works(t, open(t, conf), f.root)
}

// request is one for an issuing key of an authority below root.
func request(t *testing.T, root *x509.Certificate) []byte {
	t.Helper()
	dir := t.TempDir()
	put(t, filepath.Join(dir, "tenant.pem"), toPEM(root))
	r, err := ca.OpenRoot(dir, "tenant", ca.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := r.Request()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSignFails(t *testing.T) {
	f, conf := newFake(t)
	csr := request(t, f.root)
	if _, err := open(t, conf).Sign(t.Context(), csr); err != nil {
		t.Fatalf("without a change: %v", err)
	}
	for name, bad := range map[string]struct {
		change func(*step.Config)
		answer func(w http.ResponseWriter, r *http.Request) bool
		why    string
	}{
		"a CA of another root": {
			change: func(c *step.Config) {
				c.Root = put(t, filepath.Join(t.TempDir(), "root.pem"), toPEM(newCompany(t).root))
			},
			why: "unknown authority",
		},
		"another key": {
			change: func(c *step.Config) {
				_, private := jwk(t, newKey(t))
				c.Key = put(t, filepath.Join(t.TempDir(), "key.json"), private)
			},
			why: "not signed by the provisioner",
		},
		"another provisioner": {change: func(c *step.Config) { c.Provisioner = "other" }, why: "another provisioner"},
		"a redirect": {answer: func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "https://elsewhere.example/1.0/sign", http.StatusTemporaryRedirect)
			return true
		}, why: "307"},
		"a long answer": {answer: func(w http.ResponseWriter, _ *http.Request) bool {
			_, _ = io.WriteString(w, strings.Repeat("x", 1<<20))
			return true
		}, why: "more than"},
		"no JSON": {answer: func(w http.ResponseWriter, _ *http.Request) bool { _, _ = io.WriteString(w, "<html>"); return true }, why: "answer"},
	} {
		c := conf
		if bad.change != nil {
			bad.change(&c)
		}
		f.mu.Lock()
		f.change = bad.answer
		f.mu.Unlock()
		if _, err := open(t, c).Sign(t.Context(), csr); err == nil || !strings.Contains(err.Error(), bad.why) {
			t.Errorf("%s: got %v, want: %s", name, err, bad.why)
		}
	}
}

// Whatever the CA answers, an authority takes only what its root has signed
// for its key.
func TestAuthorityChecksTheAnswer(t *testing.T) {
	f, conf := newFake(t)
	other := newCompany(t)
	for name, answer := range map[string]func() []byte{
		"nothing": func() []byte { return nil },
		"another's": func() []byte {
			return toPEM(signed(t, authority("x", 0), other.sub, newKey(t).Public(), other.subKey), other.sub)
		},
		"for another key":   func() []byte { return toPEM(signed(t, authority("x", 0), f.sub, newKey(t).Public(), f.subKey), f.sub) },
		"its own authority": func() []byte { return toPEM(f.sub) },
	} {
		f.mu.Lock()
		f.change = func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusCreated)
			_ = json.NewEncoder(w).Encode(map[string]any{"certChain": []string{string(answer())}})
			return true
		}
		f.mu.Unlock()
		dir := t.TempDir()
		put(t, filepath.Join(dir, "tenant.pem"), toPEM(f.root))
		if _, err := ca.Open(dir, "tenant", ca.Options{Upstream: open(t, conf)}); !errors.Is(err, ca.ErrCertificate) {
			t.Errorf("%s: got %v, want ErrCertificate", name, err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	_, conf := newFake(t)
	dir := t.TempDir()
	b, err := os.ReadFile(conf.Key)
	if err != nil {
		t.Fatal(err)
	}
	edit := func(name string, change func(map[string]string)) string {
		var j map[string]string
		if err := json.Unmarshal(b, &j); err != nil {
			t.Fatal(err)
		}
		change(j)
		out, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		return put(t, filepath.Join(dir, name), out)
	}
	_, stranger := jwk(t, newKey(t))
	var s map[string]string
	if err := json.Unmarshal(stranger, &s); err != nil {
		t.Fatal(err)
	}
	open := put(t, filepath.Join(dir, "open.json"), b)
	if err := os.Chmod(open, 0o644); err != nil { // #nosec G302 -- the point of it
		t.Fatal(err)
	}
	for name, bad := range map[string]struct {
		change func(*step.Config)
		why    string
	}{
		"no TLS":            {func(c *step.Config) { c.URL = "http://ca.example" }, "https://"},
		"a path":            {func(c *step.Config) { c.URL += "/acme" }, "https://"},
		"no provisioner":    {func(c *step.Config) { c.Provisioner = "" }, "name the provisioner"},
		"no root":           {func(c *step.Config) { c.Root = filepath.Join(dir, "none") }, "root"},
		"a root of nothing": {func(c *step.Config) { c.Root = c.Key }, "no certificate"},
		"no key":            {func(c *step.Config) { c.Key = filepath.Join(dir, "none") }, "provisioner key"},
		"a key for all":     {func(c *step.Config) { c.Key = open }, "chmod 600"},
		"a public key":      {func(c *step.Config) { c.Key = edit("public", func(j map[string]string) { delete(j, "d") }) }, "not a private JWK"},
		"another's half":    {func(c *step.Config) { c.Key = edit("half", func(j map[string]string) { j["d"] = s["d"] }) }, "do not belong together"},
		"a damaged half":    {func(c *step.Config) { c.Key = edit("damaged", func(j map[string]string) { j["x"] = "AA" }) }, "damaged"},
		"another curve":     {func(c *step.Config) { c.Key = edit("curve", func(j map[string]string) { j["crv"] = "P-384" }) }, "P-256"},
		"a key out of range": {func(c *step.Config) {
			c.Key = edit("zero", func(j map[string]string) { j["d"] = b64.EncodeToString(make([]byte, 32)) })
		}, "damaged"},
	} {
		c := conf
		bad.change(&c)
		if _, err := step.Open(c); err == nil || !strings.Contains(err.Error(), bad.why) {
			t.Errorf("%s: got %v, want: %s", name, err, bad.why)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(201, []byte(`{"crt":"a","ca":"b","certChain":["a","b"]}`))
	f.Add(200, []byte(`{"crt":"a"}`))
	f.Add(401, []byte(`{"status":401,"message":"The request lacked necessary authorization."}`))
	f.Add(201, []byte(`{"certChain":[1]}`))
	f.Fuzz(func(t *testing.T, status int, b []byte) {
		_, err := step.Answer(status, b)
		if err == nil && status != http.StatusOK && status != http.StatusCreated {
			t.Errorf("status %d is taken for a yes", status)
		}
		if err != nil && len(err.Error()) > 1500 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	})
}
