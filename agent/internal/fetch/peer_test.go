package fetch_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/agent/internal/fetch"
	"github.com/tillward/tillward/provisioning/identity"
	"github.com/tillward/tillward/provisioning/trust"
)

// authority signs devices.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	a := &authority{t: t}
	a.key = a.newKey()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "devices"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert = a.sign(tmpl, tmpl, &a.key.PublicKey)
	return a
}

func (a *authority) newKey() *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return k
}

func (a *authority) sign(tmpl, parent *x509.Certificate, pub any) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

// device returns the certificate of a device, after edit.
func (a *authority) device(tenant string, edit func(*x509.Certificate, *identity.Identity)) *tls.Certificate {
	id := identity.Identity{Tenant: tenant, Device: strings.Repeat("a", 24), Tier: identity.TierD, Model: "box"}
	if edit != nil {
		edit(&x509.Certificate{}, &id)
	}
	tmpl, err := identity.Template(id, big.NewInt(2), time.Now(), time.Hour)
	if err != nil {
		a.t.Fatal(err)
	}
	if edit != nil {
		edit(tmpl, &id)
	}
	key := a.newKey()
	leaf := a.sign(tmpl, a.cert, &key.PublicKey)
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

func (a *authority) peering(tenant string, cert *tls.Certificate) *fetch.Peering {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &fetch.Peering{
		Certificate: func() (*tls.Certificate, error) { return cert, nil },
		Roots:       func() (*x509.CertPool, error) { return pool, nil },
		Tenant:      func() string { return tenant },
	}
}

// serve lets a box serve on a port of its own, until the test ends.
func serve(t *testing.T, f *fetch.Fetcher) (host string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- f.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-over; err != nil {
			t.Errorf("serve: got %v at the end", err)
		}
	})
	return ln.Addr().String()
}

// sharing makes a box that has the content and serves it.
func sharing(t *testing.T, s *service, p *fetch.Peering, target trust.Target) string {
	t.Helper()
	f := s.box(fetch.Options{Peers: p, Keep: 1 << 30})
	mustGet(t, f, target, full(nil))
	return serve(t, f)
}

// A till that has it saves the line: everything comes from it, the index too.
func TestPeer(t *testing.T) {
	for _, index := range []bool{true, false} {
		s, a := newService(t), newAuthority(t)
		target := s.release("1.0.0", noise(1, 2<<20), index)
		host := sharing(t, s, a.peering("main", a.device("main", nil)), target)
		before := s.sent()
		var last fetch.Progress
		r := fetch.Request{Peers: []string{host}, Progress: full(&last).Progress}
		mustGet(t, s.box(fetch.Options{Peers: a.peering("main", a.device("main", nil)), Daily: 1}), target, r)
		if last.Bytes.Peer < target.Length || last.Bytes.Wire != 0 || s.sent() != before {
			t.Errorf("index %v: bytes %+v, the service sent %d", index, last.Bytes, s.sent()-before)
		}
	}
}

// Who is not a member of the tenant gets nothing and is believed nothing; the
// service steps in.
func TestPeerStrangers(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	good := ours.device("main", nil)
	for name, c := range map[string]struct {
		cert *tls.Certificate // of one of the two
		ok   bool
	}{
		"member":          {good, true}, // the twin
		"other tenant":    {ours.device("other", nil), false},
		"other authority": {theirs.device("main", nil), false},
		"recovery":        {ours.device("main", func(_ *x509.Certificate, id *identity.Identity) { id.Role = identity.RoleRecovery }), false},
		"expired":         {ours.device("main", func(c *x509.Certificate, _ *identity.Identity) { c.NotAfter = time.Now().Add(-time.Minute) }), false},
		"not yet valid":   {ours.device("main", func(c *x509.Certificate, _ *identity.Identity) { c.NotBefore = time.Now().Add(time.Minute) }), false},
		"server of the realm": {ours.device("main", func(c *x509.Certificate, _ *identity.Identity) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}), false},
		"no device": {ours.device("main", func(c *x509.Certificate, _ *identity.Identity) { c.URIs = nil }), false},
	} {
		for _, side := range []string{"serves", "asks"} {
			t.Run(name+" "+side, func(t *testing.T) {
				s := newService(t)
				target := s.release("1.0.0", noise(1, 300<<10), true)
				serving, asking := good, good
				if side == "serves" {
					serving = c.cert
				} else {
					asking = c.cert
				}
				host := sharing(t, s, ours.peering("main", serving), target)
				var last fetch.Progress
				r := full(&last)
				r.Peers = []string{host}
				mustGet(t, s.box(fetch.Options{Peers: ours.peering("main", asking)}), target, r)
				if got := last.Bytes.Peer > 0; got != c.ok {
					t.Errorf("served: %v, want %v (%+v)", got, c.ok, last.Bytes)
				}
			})
		}
	}
}

func TestPeerWithoutCertificate(t *testing.T) {
	s, a := newService(t), newAuthority(t)
	target := s.release("1.0.0", noise(1, 1000), false)
	host := sharing(t, s, a.peering("main", a.device("main", nil)), target)
	anybody := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // #nosec G402 -- an intruder does not care
	if resp, err := anybody.Get("https://" + host + "/content/" + target.SHA256); err == nil {
		_ = resp.Body.Close()
		t.Errorf("got %s without a certificate", resp.Status)
	}
	// A box that takes no part neither asks nor serves.
	var last fetch.Progress
	r := full(&last)
	r.Peers = []string{host}
	mustGet(t, s.box(fetch.Options{}), target, r)
	if last.Bytes.Peer != 0 {
		t.Errorf("asked: %+v", last.Bytes)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.box(fetch.Options{}).Serve(t.Context(), ln); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("serve without a certificate: got %v", err)
	}
}

// fake is a till with a right certificate and a mind of its own.
func fake(t *testing.T, a *authority, h http.HandlerFunc) (host string, asked *[]string) {
	t.Helper()
	asked = new([]string)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*asked = append(*asked, r.URL.Path)
		h(w, r)
	}))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{*a.device("main", nil)}, ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13}
	srv.Config.ErrorLog = nil
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String(), asked
}

// A till that lies costs what it sent, and is not asked again.
func TestPeerLies(t *testing.T) {
	for _, index := range []bool{true, false} {
		for name, h := range map[string]func(content []byte) http.HandlerFunc{
			"flips a byte": func(content []byte) http.HandlerFunc {
				return func(w http.ResponseWriter, r *http.Request) {
					if strings.HasSuffix(r.URL.Path, sum(content)) {
						flipped(w, r, content)
						return
					}
					http.NotFound(w, r)
				}
			},
			"sends junk for everything": func([]byte) http.HandlerFunc {
				return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(noise(9, 4<<20)) }
			},
			"sends us to the service": func([]byte) http.HandlerFunc {
				return func(w http.ResponseWriter, r *http.Request) {
					http.Redirect(w, r, "http://127.0.0.1:1/secret", http.StatusFound)
				}
			},
			"has nothing": func([]byte) http.HandlerFunc { return http.NotFound },
			"is busy": func([]byte) http.HandlerFunc {
				return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
			},
			"hangs up": func([]byte) http.HandlerFunc {
				return func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
			},
		} {
			t.Run(fmt.Sprintf("%s, index %v", name, index), func(t *testing.T) {
				s, a := newService(t), newAuthority(t)
				content := noise(1, 2<<20)
				target := s.release("1.0.0", content, index)
				host, asked := fake(t, a, h(content))
				var last fetch.Progress
				r := full(&last)
				r.Peers = []string{host, "nonsense", "127.0.0.1:1"}
				mustGet(t, s.box(fetch.Options{Peers: a.peering("main", a.device("main", nil))}), target, r)
				if len(*asked) == 0 || len(*asked) > 4 {
					t.Errorf("it was asked for %q", *asked)
				}
				if name == "flips a byte" && index && (last.Bytes.Peer > 1<<20+200<<10 || last.Bytes.Wire > 1<<20+200<<10) {
					t.Errorf("a lie in the middle cost %+v", last.Bytes)
				}
			})
		}
	}
}

// What came from tills is fetched again when the whole is wrong, and no more.
func TestPeerLiesAboutAPart(t *testing.T) {
	s, a := newService(t), newAuthority(t)
	content := noise(1, 2<<20)
	target := s.release("1.0.0", content, false)
	host, _ := fake(t, a, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		wrong := append([]byte("lie"), content[3:500<<10]...)
		part(w, r, content, wrong)
		panic(http.ErrAbortHandler)
	})
	var last fetch.Progress
	r := full(&last)
	r.Peers = []string{host}
	// It hangs up after its part each time, so that the rest comes from the service.
	mustGet(t, s.box(fetch.Options{Peers: a.peering("main", a.device("main", nil))}), target, r)
	if last.Bytes.Wire > int64(len(content))+10<<10 {
		t.Errorf("cost %+v", last.Bytes)
	}
}

// plainly reaches another service where a till would be.
type plainly struct{ s *service }

func (p plainly) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Scheme = "http"
	return p.s.client.Transport.RoundTrip(r)
}

// A till that is slow, on purpose or not, holds up nobody for long.
func TestPeerIsSlow(t *testing.T) {
	for _, index := range []bool{true, false} {
		for name, m := range map[string]meddler{"holds the line": nothing, "trickles": trickle} {
			bubble(t, fmt.Sprintf("%s, index %v", name, index), func(t *testing.T) {
				s, till := newService(t), newService(t)
				content := noise(1, 1<<20)
				target := s.release("1.0.0", content, index)
				till.meddle = func(w http.ResponseWriter, r *http.Request, _ []byte) bool { return m(w, r, content) }
				f := s.box(fetch.Options{})
				f.AskBy(&http.Client{Transport: plainly{till}})
				begin := time.Now()
				r := full(nil)
				r.Peers = []string{"till-1:8446", "till-2:8446"}
				mustGet(t, f, target, r)
				// Two tills, asked once each, for the index or the content.
				if took, n := time.Since(begin), len(till.asked()); took > 2*20*time.Second || n > 2 {
					t.Errorf("took %s, they were asked %d times", took, n)
				}
			})
		}
	}
}

// A till that is busy is asked again when it said it may.
func TestPeerIsBusy(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		s, till := newService(t), newService(t)
		content := noise(1, 1<<20)
		target := s.release("1.0.0", content, true)
		busy := status(2, http.StatusServiceUnavailable, "Retry-After", "5")
		till.meddle = func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
			if busy(w, r, nil) {
				return true
			}
			if !strings.HasSuffix(r.URL.Path, target.SHA256) {
				return false
			}
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(content)))
			return true
		}
		s.meddle = cutting(64 << 10) // the service goes on meanwhile, badly
		f := s.box(fetch.Options{Rate: 100 << 10})
		f.AskBy(&http.Client{Transport: plainly{till}})
		var last fetch.Progress
		r := full(&last)
		r.Peers = []string{"till:8446"}
		mustGet(t, f, target, r)
		if last.Bytes.Wire < 100<<10 || last.Bytes.Peer < 100<<10 {
			t.Errorf("bytes: %+v, want some of both", last.Bytes)
		}
	})
}

// Nothing but whole contents can be had, by their exact hash.
func TestServesContentAlone(t *testing.T) {
	s, a := newService(t), newAuthority(t)
	content := noise(1, 100<<10)
	target := s.release("1.0.0", content, false)
	dir := t.TempDir()
	f := s.box(fetch.Options{Dir: dir, Peers: a.peering("main", a.device("main", nil)), Keep: 1 << 30})
	mustGet(t, f, target, full(nil))
	other := strings.Repeat("b", 64)
	for _, p := range []string{"staging-" + other, "content/" + other + ".new", other} {
		if err := os.WriteFile(filepath.Join(dir, p), []byte("not for others"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	host := serve(t, f)
	me := a.device("main", nil)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		Certificates: []tls.Certificate{*me}, InsecureSkipVerify: true, // #nosec G402 -- whom it asks is known
	}}}
	for _, c := range []struct {
		method, path, span string
		code, length       int
	}{
		{"GET", "/content/" + target.SHA256, "", 200, len(content)},
		{"GET", "/content/" + target.SHA256, "bytes=10-19", 206, 10},
		{"GET", "/content/" + target.SHA256, "bytes=200000-", 416, -1},
		{"POST", "/content/" + target.SHA256, "", 404, -1},
		{"GET", "/content/" + strings.ToUpper(target.SHA256), "", 404, -1},
		{"GET", "/content/" + other, "", 404, -1},
		{"GET", "/content/" + other + ".new", "", 404, -1},
		{"GET", "/content/../" + other, "", 404, -1},
		{"GET", "/content/..%2f" + other, "", 404, -1},
		{"GET", "/content/../budget.json", "", 404, -1},
		{"GET", "/content/", "", 404, -1},
		{"GET", "/", "", 404, -1},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, "https://"+host, strings.NewReader(""))
		if err != nil {
			t.Fatal(err)
		}
		req.URL.Opaque = "//" + host + c.path // as it is, without cleaning
		if c.span != "" {
			req.Header.Set("Range", c.span)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatalf("%s %s: %v", c.method, c.path, err)
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != c.code || c.length >= 0 && len(b) != c.length {
			t.Errorf("%s %s %s: got %s, %d bytes, %v; want %d, %d bytes", c.method, c.path, c.span, resp.Status, len(b), err, c.code, c.length)
		}
	}
}
