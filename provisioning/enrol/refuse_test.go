package enrol

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/provisioning/identity"
)

// respelt shows the endorsement key in another spelling.
type respelt struct {
	*tpm.TPM
	spell func([]byte) []byte
}

func (r respelt) Endorsement(ctx context.Context) (public, cert []byte, chain [][]byte, err error) {
	public, cert, chain, err = r.TPM.Endorsement(ctx)
	return r.spell(public), cert, chain, err
}

// respell changes a public area.
func respell(t *testing.T, change func(*tpm2.TPMTPublic)) func([]byte) []byte {
	return func(b []byte) []byte {
		pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](b)
		if err != nil {
			t.Fatal(err)
		}
		change(pub)
		return tpm2.Marshal(*pub)
	}
}

// A TPM opens a credential whatever its public area is said to hold besides
// the key, and the device id is a hash over all of it: one TPM must not be
// many devices.
func TestOneTPMIsOneDevice(t *testing.T) {
	for kind, rsa := range map[string]bool{"P-256": false, "RSA-2048": true} {
		s := newSite(t, true)
		s.farm.RSA = rsa
		dev := s.till(t)
		res, err := s.client(dev).Enrol(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		again, err := s.client(dev).Enrol(t.Context())
		if err != nil || again.Device != res.Device {
			t.Errorf("%s: enrolled as %s, then as %s (%v)", kind, res.Device, again.Device, err)
		}
		for name, spell := range map[string]func([]byte) []byte{
			"a byte more": func(b []byte) []byte { return append(bytes.Clone(b), 0) },
			"attribute":   respell(t, func(p *tpm2.TPMTPublic) { p.ObjectAttributes.NoDA = true }),
			"policy":      respell(t, func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer[0] ^= 1 }),
			"leading zero": respell(t, func(p *tpm2.TPMTPublic) {
				if rsa {
					n, _ := p.Unique.RSA()
					n.Buffer = append([]byte{0}, n.Buffer...)
					return
				}
				q, _ := p.Unique.ECC()
				q.X.Buffer = append([]byte{0}, q.X.Buffer...)
			}),
		} {
			c := s.client(dev)
			c.TPM = respelt{dev, spell}
			if res, err := c.Enrol(t.Context()); !errors.Is(err, ErrRefused) {
				t.Errorf("%s, %s: enrolled as %s (%v), want ErrRefused", kind, name, res.Device, err)
			}
		}
	}
}

func TestEndorsementKeyOfAnotherTenantIsRefused(t *testing.T) {
	s := newSite(t, true)
	s.dir.taken = true
	if _, err := s.client(s.till(t)).Enrol(t.Context()); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "another tenant") {
		t.Errorf("got %v, want ErrRefused and why", err)
	}
	s.audited(t, "enrol.refused alarm")
}

// A directory that errs must not lift a virtual TPM to a maker's.
func TestTierIsNeverBetterThanTheEvidence(t *testing.T) {
	s := newSite(t, true)
	s.dir.tier = identity.TierA
	if res, err := s.client(s.till(t)).Enrol(t.Context()); err == nil {
		t.Errorf("a virtual TPM enrolled with tier %s", res.Tier)
	}
	if len(s.dir.members) != 0 {
		t.Error("a member was recorded")
	}
}

func TestFlippedNonceIsRefused(t *testing.T) {
	s := newSite(t, true)
	hc, _ := s.http(t)
	err := steps(t, s, s.till(t), hc, script{challenge: func(c *challenge) { c.Nonce[0] ^= 1 }})
	if !errors.Is(err, ErrRefused) || Check(err) != "enrol.activation" {
		t.Errorf("got %v with check %q, want ErrRefused", err, Check(err))
	}
}

func TestFlippedCredentialDoesNotOpen(t *testing.T) {
	s := newSite(t, true)
	hc, _ := s.http(t)
	err := steps(t, s, s.till(t), hc, script{challenge: func(c *challenge) { c.Credential[len(c.Credential)-1] ^= 1 }})
	if !errors.Is(err, tpm2.TPMRCIntegrity) {
		t.Errorf("got %v, want TPM_RC_INTEGRITY", err)
	}
}

func TestOldChallengeIsRefused(t *testing.T) {
	s := newSite(t, true)
	hc, _ := s.http(t)
	err := steps(t, s, s.till(t), hc, script{between: func() {
		s.server.pending.mu.Lock()
		defer s.server.pending.mu.Unlock()
		for _, at := range s.server.pending.open {
			at.expires = time.Now().Add(-time.Second)
		}
	}})
	if !errors.Is(err, ErrRefused) || Check(err) != "enrol.challenge" || !strings.Contains(err.Error(), "expired") {
		t.Errorf("got %v with check %q, want ErrRefused", err, Check(err))
	}
}

// What is said of the device's key is what its TPM certifies, or no certificate.
func TestDeviceKeyMustBeInTheTPM(t *testing.T) {
	s := newSite(t, true)
	dev := s.till(t)
	software, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := software.PublicKey.Bytes() // 4, x, y
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(*tpm2.TPMTPublic)
		want   string
	}{
		"may leave its TPM":       {func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false }, "not a signing key fixed to its TPM"},
		"may leave its parent":    {func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedParent = false }, "not a signing key fixed to its TPM"},
		"was brought along":       {func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SensitiveDataOrigin = false }, "not a signing key fixed to its TPM"},
		"is said to be otherwise": {func(p *tpm2.TPMTPublic) { p.ObjectAttributes.NoDA = false }, "another key was certified"},
		"is in software": {func(p *tpm2.TPMTPublic) {
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
				X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
			})
		}, "another key was certified"},
		"is no point": {func(p *tpm2.TPMTPublic) {
			q, _ := p.Unique.ECC()
			q.Y.Buffer = make([]byte, 32)
		}, "LDevID key"},
	} {
		hc, _ := s.http(t)
		err := steps(t, s, dev, hc, script{request: func(r *request) { r.LDevID = respell(t, tt.change)(r.LDevID) }})
		check := "enrol.key-attributes"
		if strings.Contains(tt.want, "certified") {
			check = "enrol.certify"
		}
		if !errors.Is(err, ErrRefused) || Check(err) != check || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("key that %s: got %v with check %q, want a refusal with %q", name, err, Check(err), tt.want)
		}
	}
	hc, _ := s.http(t)
	err = steps(t, s, dev, hc, script{request: func(r *request) { r.LDevID = append(r.LDevID, 0) }})
	if !errors.Is(err, ErrRefused) {
		t.Errorf("public area with a byte more: got %v, want ErrRefused", err)
	}
	if len(s.dir.members) != 0 {
		t.Errorf("%d members, want none", len(s.dir.members))
	}
}

// An AK that would sign anything is turned away before it is asked anything.
func TestAttestationKeyMustBeRestricted(t *testing.T) {
	s := newSite(t, true)
	hc, _ := s.http(t)
	err := steps(t, s, s.till(t), hc, script{
		request: func(r *request) {
			r.AK = respell(t, func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = false })(r.AK)
		},
		challenge: func(*challenge) { t.Error("it was challenged") },
	})
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "not a restricted signing key") {
		t.Errorf("got %v, want ErrRefused and why", err)
	}
}

// What the device said of itself in ENROL is part of what its TPM signs.
func TestChangedRequestIsRefused(t *testing.T) {
	s := newSite(t, true)
	hc, tap := s.http(t)
	tap.change = func(path string, body []byte) []byte {
		if path != PathEnrol {
			return body
		}
		r, err := decode[request](body)
		if err != nil {
			t.Fatal(err)
		}
		r.Model = "dearer"
		return must(encMode.Marshal(r))
	}
	if err := steps(t, s, s.till(t), hc, script{}); !errors.Is(err, ErrRefused) {
		t.Errorf("got %v, want ErrRefused", err)
	}
}

// An EK certificate counts only for its key, as an EK's, under a trusted root.
func TestEKCertificates(t *testing.T) {
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	caKey, ek := key(), key()
	issue := func(tmpl, parent *x509.Certificate, pub crypto.PublicKey, by crypto.Signer) *x509.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, by)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	authority := func(name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}
	}
	root := issue(authority("root"), authority("root"), caKey.Public(), caKey)
	middleKey := key()
	middle := issue(authority("middle"), root, middleKey.Public(), caKey)
	roots := x509.NewCertPool()
	roots.AddCert(root)
	san, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: []byte{0x30, 0}}})
	if err != nil {
		t.Fatal(err)
	}
	leaf := func(change func(*x509.Certificate)) *x509.Certificate {
		c := &x509.Certificate{
			SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			KeyUsage: x509.KeyUsageKeyAgreement, BasicConstraintsValid: true, UnknownExtKeyUsage: []asn1.ObjectIdentifier{oidEKCertificate},
			ExtraExtensions: []pkix.Extension{{Id: oidSubjectAlt, Critical: true, Value: san}},
		}
		change(c)
		return c
	}
	as := func(*x509.Certificate) {}
	for name, tt := range map[string]struct {
		cert  *x509.Certificate
		chain [][]byte
		want  string // part of the error; empty: good
	}{
		"good":                 {issue(leaf(as), root, ek.Public(), caKey), nil, ""},
		"with an intermediate": {issue(leaf(as), middle, ek.Public(), middleKey), [][]byte{[]byte("junk"), middle.Raw}, ""},
		"missing intermediate": {issue(leaf(as), middle, ek.Public(), middleKey), nil, "unknown authority"},
		"of another key":       {issue(leaf(as), root, key().Public(), caKey), nil, "another key"},
		"by another root":      {issue(leaf(as), authority("other"), ek.Public(), key()), nil, "unknown authority"},
		"of a server":          {issue(leaf(func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil }), root, ek.Public(), caKey), nil, "extended key usage"},
		"to sign":              {issue(leaf(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }), root, ek.Public(), caKey), nil, "(key usage)"},
		"of an authority":      {issue(leaf(func(c *x509.Certificate) { c.IsCA = true }), root, ek.Public(), caKey), nil, "(key usage)"},
		"expired":              {issue(leaf(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), root, ek.Public(), caKey), nil, "expired"},
		"not understood": {issue(leaf(func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}})
		}), root, ek.Public(), caKey), nil, "unhandled critical extension"},
	} {
		err := verifyEKCert(ek.Public(), tt.cert.Raw, tt.chain, roots)
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tt.want != "" && (!errors.Is(err, ErrProof) || Check(err) != "enrol.ek-certificate" || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: got %v with check %q, want ErrProof with %q", name, err, Check(err), tt.want)
		}
	}
}

// counting counts the signatures of a key.
type counting struct {
	crypto.Signer
	n *atomic.Int32
}

func (c counting) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	c.n.Add(1)
	return c.Signer.Sign(r, digest, opts)
}

// A resumed session carries no client signature. With tickets off each
// connection costs one; with tickets on the service sees no device in it.
func TestEachConnectionIsSigned(t *testing.T) {
	s := newSite(t, true)
	dev := s.till(t)
	res, err := s.client(dev).Enrol(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []bool{true, false} {
		var seen []error
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, err := identity.FromTLS(*r.TLS)
			seen = append(seen, err)
			w.Header().Set("Connection", "close")
		}))
		cert, err := s.issuer.IssueServer([]string{"127.0.0.1"}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		srv.TLS = &tls.Config{
			Certificates: []tls.Certificate{cert}, ClientCAs: s.issuer.Pool(), ClientAuth: tls.RequireAndVerifyClientCert,
			MinVersion: tls.VersionTLS13, SessionTicketsDisabled: off,
		}
		srv.StartTLS()
		key, err := dev.Signer(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var signed atomic.Int32
		tr := &http.Transport{TLSClientConfig: &tls.Config{
			RootCAs: s.roots, MinVersion: tls.VersionTLS13, ClientSessionCache: tls.NewLRUClientSessionCache(4),
			Certificates: []tls.Certificate{{Certificate: res.Chain, PrivateKey: counting{key, &signed}}},
		}}
		for range 2 {
			resp, err := (&http.Client{Transport: tr}).Get(srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
		}
		tr.CloseIdleConnections()
		srv.Close()
		if off && (signed.Load() != 2 || seen[0] != nil || seen[1] != nil) {
			t.Errorf("tickets off: %d signatures and %v, want 2 and a device each time", signed.Load(), seen)
		}
		if !off && (signed.Load() != 1 || seen[0] != nil || !errors.Is(seen[1], identity.ErrIdentity)) {
			t.Errorf("tickets on: %d signatures and %v, want 1 and no device in the second", signed.Load(), seen)
		}
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	s := newSite(t, true)
	rec := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPost, PathEnrol, strings.NewReader("x"))
	r.TLS = &tls.ConnectionState{Version: tls.VersionTLS12, HandshakeComplete: true}
	s.server.ServeHTTP(rec, r)
	if rec.Code != http.StatusUpgradeRequired {
		t.Errorf("TLS 1.2: got %d, want %d", rec.Code, http.StatusUpgradeRequired)
	}
	s.audited(t, "connect by TLS 1.3")
	c := s.client(nil)
	c.URL = strings.Replace(s.url, "https:", "http:", 1)
	if _, err := c.Enrol(t.Context()); err == nil || !strings.Contains(err.Error(), "https://") {
		t.Errorf("URL without TLS: got %v", err)
	}
}

func TestBodiesAreBounded(t *testing.T) {
	s := newSite(t, true)
	hc, _ := s.http(t)
	valid := request{V: 1}
	long := valid
	long.EK = make([]byte, maxBlob+1)
	lines := valid
	lines.Serial = "a\nb"
	chain := valid
	chain.EKChain = make([][]byte, maxChain+1)
	for name, tt := range map[string]struct {
		body []byte
		want string
	}{
		"empty":         {nil, "malformed"},
		"garbage":       {[]byte("\xff\x00"), "malformed"},
		"huge":          {make([]byte, maxBody+1), "too-large"},
		"other version": {[]byte{0xa1, 0x01, 0x19, 0xff, 0xff}, "this service speaks 2"},
		"twice":         {[]byte{0xa2, 0x01, 0x01, 0x01, 0x01}, "malformed"},
		"long field":    {must(encMode.Marshal(long)), "4097 bytes"},
		"long chain":    {must(encMode.Marshal(chain)), "chain of 9"},
		"lines":         {must(encMode.Marshal(lines)), "printable ASCII"},
		"no keys":       {must(encMode.Marshal(valid)), "refused"},
	} {
		_, _, err := post[challenge](t.Context(), hc, s.url+PathEnrol, tt.body)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
	s.audited(t, "enrol.refused warn")
}

// What is sent byte by byte does not hold a connection for ever.
func TestSlowBodyIsCutOff(t *testing.T) {
	s := newSite(t, true)
	s.server.bodyTime = 20 * time.Millisecond
	u, err := url.Parse(s.url)
	if err != nil {
		t.Fatal(err)
	}
	c, err := tls.Dial("tcp", u.Host, &tls.Config{RootCAs: s.roots, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\na", PathEnrol); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 408") {
		t.Errorf("got %.60q and %v, want 408 and the end of the connection", answer, err)
	}
}

// A connection that is cut between the steps is nobody's fault: the device
// must not take the refusal for a verdict.
func TestLostConnectionIsNoRefusal(t *testing.T) {
	s := newSite(t, true)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		s.server.ServeHTTP(w, r)
	}))
	cert, err := s.issuer.IssueServer([]string{"127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}
	srv.StartTLS()
	defer srv.Close()
	c := s.client(s.till(t))
	c.URL = srv.URL
	if _, err := c.Enrol(t.Context()); err == nil || errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "lost between") {
		t.Errorf("got %v, want a lost connection", err)
	}
	if len(s.dir.members) != 0 {
		t.Error("a member was recorded over two channels")
	}
}

func TestPendingIsBounded(t *testing.T) {
	var p pending
	id := func(n int) [16]byte { return [16]byte{byte(n), byte(n >> 8)} }
	at := func(device string) *attempt {
		return &attempt{applicant: Applicant{Device: device}, expires: time.Now().Add(time.Minute)}
	}
	for n := range maxPerKey + 1 { // one key: the oldest makes room
		if err := p.add(id(n), at("one")); err != nil {
			t.Fatal(err)
		}
	}
	if p.take(id(0)) != nil || p.take(id(1)) == nil || len(p.open) != maxPerKey-1 {
		t.Errorf("%d challenges of one key are open", len(p.open))
	}
	p = pending{} // whoever knocks with the public half of an EK puts the TPM itself not out
	if err := p.add(id(0), at("one")); err != nil {
		t.Fatal(err)
	}
	for n := range 4 * maxPerKey {
		other := at("one")
		other.applicant.From = "192.0.2.9"
		if err := p.add(id(n+1), other); err != nil {
			t.Fatal(err)
		}
	}
	if len(p.open) != maxPerKey+1 || p.take(id(0)) == nil {
		t.Errorf("%d challenges of one key are open, and not that of its TPM", len(p.open))
	}
	for n := range 2 * maxOfKey { // from everywhere
		other := at("one")
		other.applicant.From = fmt.Sprint(n)
		if err := p.add(id(1000+n), other); err != nil {
			t.Fatal(err)
		}
	}
	if len(p.open) != maxOfKey {
		t.Errorf("%d challenges of one key are open, want %d", len(p.open), maxOfKey)
	}
	p = pending{}
	for n := range maxPending {
		if err := p.add(id(n), at(fmt.Sprint(n))); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.add(id(maxPending), at("late")); !errors.Is(err, errBusy) {
		t.Errorf("got %v, want errBusy", err)
	}
	p.open[id(0)].expires = time.Now().Add(-time.Second)
	if err := p.add(id(maxPending), at("late")); err != nil {
		t.Errorf("one has expired: %v", err)
	}
}

// Knocking a thousand times writes dozens of lines, not a thousand.
func TestRefusalsDoNotFillTheTrail(t *testing.T) {
	var c tally
	now := time.Now()
	listed := 0
	for i := range 1024 {
		n, list := c.next(now.Add(time.Duration(i)*time.Millisecond), maxListed)
		if n != i+1 {
			t.Fatalf("refusal %d counted as %d", i+1, n)
		}
		if list {
			listed++
		}
	}
	if want := maxListed + 5; listed != want { // 64, 128, 256, 512, 1024
		t.Errorf("%d of 1024 are listed, want %d", listed, want)
	}
	if n, list := c.next(now.Add(time.Minute), maxListed); n != 1 || !list {
		t.Errorf("a minute later: refusal %d, listed %t", n, list)
	}
}

// Whoever knocks with rubbish all day does not keep out of the trail what else is refused meanwhile.
func TestKnockingHidesNoAlarm(t *testing.T) {
	s := newSite(t, true)
	hc, _ := s.http(t)
	for range 2*maxListed + 10 {
		r, err := hc.Post(s.url+PathEnrol, "application/cbor", strings.NewReader("rubbish"))
		if err != nil {
			t.Fatal(err)
		}
		_ = r.Body.Close()
	}
	s.dir.taken = true
	if _, err := s.client(s.till(t)).Enrol(t.Context()); !errors.Is(err, ErrRefused) {
		t.Errorf("got %v, want ErrRefused", err)
	}
	s.audited(t, "enrol.refused alarm")
	var c tallies
	now := time.Now()
	for range 100 {
		c.next(kind{"identity.revoked", "one"}, now)
	}
	if n, listed := c.next(kind{"identity.revoked", "two"}, now); n != 1 || !listed {
		t.Errorf("another member: refusal %d, listed %t", n, listed)
	}
	for i := range 2 * maxKinds {
		c.next(kind{"identity.revoked", fmt.Sprint(i)}, now)
	}
	if len(c.of) > maxKinds {
		t.Errorf("%d kinds are remembered, want at most %d", len(c.of), maxKinds)
	}
}

// A member that asks without end is told to wait, and neither costs the service certificates nor fills its trail.
func TestMemberAsksTooMuch(t *testing.T) {
	s := newSite(t, true)
	server := NewServer(s.server.o)
	asks := func(device string) error {
		_, err := server.standing(t.Context(), call{peer: &x509.Certificate{NotAfter: time.Now().Add(time.Hour)}, id: identity.Identity{Device: device}})
		return err
	}
	for n := range maxAsked {
		if err := asks("one"); errors.Is(err, errBusy) {
			t.Fatalf("request %d: %v", n+1, err)
		}
	}
	if err := asks("one"); !errors.Is(err, errBusy) {
		t.Errorf("one more: got %v, want it to wait", err)
	}
	if err := asks("two"); errors.Is(err, errBusy) {
		t.Errorf("another member: got %v", err)
	}
	var c tallies
	listed := 0
	for range 1024 {
		if _, list := c.next(kind{member: "one"}, time.Unix(0, 0)); list {
			listed++
		}
	}
	if want := maxOfOne + 7; listed != want { // 16 to 1024
		t.Errorf("%d of its 1024 refusals are listed, want %d", listed, want)
	}
}

// A TPM that enrols without end is told to wait; what it does costs others nothing.
func TestEnrolsTooMuch(t *testing.T) {
	s := newSite(t, true)
	s.server.maxAsked = 2
	dev := s.till(t)
	for n := range 3 {
		_, err := s.client(dev).Enrol(t.Context())
		if busy := n == 2; (err != nil) != busy || busy && errors.Is(err, ErrRefused) {
			t.Errorf("enrolment %d: got %v", n+1, err)
		}
	}
	if _, err := s.client(s.till(t)).Enrol(t.Context()); err != nil {
		t.Errorf("another device: got %v", err)
	}
	if len(s.dir.members) != 3 {
		t.Errorf("%d enrolments were recorded, want 3", len(s.dir.members))
	}
}

// The recovery key is as good as the other one, or there is no certificate.
func TestRecoveryKeyMustBeInTheTPM(t *testing.T) {
	s := newSite(t, true)
	dev, other := s.till(t), s.till(t)
	recovery, err := dev.Recovery(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := other.Recovery(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, ldevid, err := dev.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ak, _, err := dev.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		public  []byte
		change  func(*evidence)
		check   string
		members int
	}{
		"good":                    {recovery, func(*evidence) {}, "", 1},
		"none":                    {nil, func(*evidence) {}, "", 1},
		"certified as the other":  {recovery, func(e *evidence) { e.CertifyRec, e.CertifyRecSig = e.Certify, e.CertifySig }, "enrol.certify", 0},
		"not certified":           {recovery, func(e *evidence) { e.CertifyRec, e.CertifyRecSig = nil, nil }, "enrol.certify", 0},
		"certified by other bits": {recovery, func(e *evidence) { e.CertifyRec[len(e.CertifyRec)-1] ^= 1 }, "enrol.certify", 0},
		"the LDevID key":          {ldevid, func(*evidence) {}, "enrol.key-attributes", 0},
		"the AK":                  {ak, func(*evidence) {}, "enrol.key-attributes", 0},
		"may leave its TPM":       {respell(t, func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false })(recovery), func(*evidence) {}, "enrol.key-attributes", 0},
	} {
		s.dir.members = nil
		hc, tap := s.http(t)
		tap.change = func(path string, body []byte) []byte {
			if path != PathEvidence {
				return body
			}
			ev, err := decode[evidence](body)
			if err != nil {
				t.Fatal(err)
			}
			tt.change(&ev)
			return must(encMode.Marshal(ev))
		}
		err := steps(t, s, dev, hc, script{request: func(r *request) { r.V, r.Recovery = 2, tt.public }})
		if Check(err) != tt.check || (err == nil) != (tt.check == "") || len(s.dir.members) != tt.members {
			t.Errorf("%s: got %v with check %q and %d members, want %q", name, err, Check(err), len(s.dir.members), tt.check)
		}
		if len(s.dir.members) == 1 && (s.dir.members[0].Recovery.Serial != "") != (tt.public != nil) {
			t.Errorf("%s: the directory got %+v", name, s.dir.members[0])
		}
	}
	// Another TPM's key is not certified here at all.
	hc, _ := s.http(t)
	if err := steps(t, s, dev, hc, script{request: func(r *request) { r.V, r.Recovery = 2, theirs }}); err == nil || !strings.Contains(err.Error(), "does not hold the key") {
		t.Errorf("another TPM's recovery key: got %v", err)
	}
}

// The event log goes along and is judged with the registers that were quoted.
func TestBootIsJudgedAtEnrolment(t *testing.T) {
	s := newSite(t, true)
	dev := s.till(t)
	c := s.client(dev)
	log := []byte("what the firmware measured")
	c.EventLog = func() []byte { return log }
	var seen struct {
		id   identity.Identity
		pcrs int
		log  []byte
	}
	accept, finding := true, error(nil)
	s.judgeBy(func(id identity.Identity, pcrs [][]byte, l []byte) (bool, error) {
		seen.id, seen.pcrs, seen.log = id, len(pcrs), l
		return accept, finding
	})
	if _, err := c.Enrol(t.Context()); err != nil || !bytes.Equal(seen.log, log) || seen.pcrs != 11 || seen.id.Tenant != "demo" || seen.id.Model != "box-9" || seen.id.Role != identity.RoleMember {
		t.Fatalf("judged %+v (%v)", seen, err)
	}
	finding = Refuse("boot.unknown-event", "an event that nobody knows")
	if _, err := c.Enrol(t.Context()); err != nil {
		t.Errorf("advice: got %v", err)
	}
	s.audited(t, "enrol.boot warn "+seen.id.Device+" boot.unknown-event")
	n := len(s.dir.members)
	accept = false
	if _, err := c.Enrol(t.Context()); Check(err) != "boot.unknown-event" || !errors.Is(err, ErrRefused) || len(s.dir.members) != n {
		t.Errorf("enforced: got %v with check %q", err, Check(err))
	}
	finding = fmt.Errorf("database is locked: %w", ErrUnavailable)
	s.mu.Lock()
	audited := len(s.audit)
	s.mu.Unlock()
	for _, accept = range []bool{false, true} {
		_, err := c.Enrol(t.Context())
		if err == nil || errors.Is(err, ErrRefused) || strings.Contains(err.Error(), "database") || len(s.dir.members) != n {
			t.Errorf("nobody could find out: got %v, want the device to try again, and to learn nothing of the inside", err)
		}
	}
	s.mu.Lock()
	if len(s.audit) != audited {
		t.Errorf("nobody could find out: audited as %q", s.audit[audited:])
	}
	s.mu.Unlock()
	accept, finding, log = true, nil, make([]byte, maxLog+1)
	if _, err := c.Enrol(t.Context()); err != nil || seen.log != nil {
		t.Errorf("a log that does not fit: judged %d bytes (%v), want that it stays away", len(seen.log), err)
	}
}

// Who waits is told by what name its owner finds it.
func TestWaitNamesTheDevice(t *testing.T) {
	s := newSite(t, true)
	s.dir.wait = true
	dev := s.till(t)
	ek, _, _, err := dev.Endorsement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.client(dev).Enrol(t.Context())
	if w, ok := errors.AsType[Wait](err); !ok || w.Device != identity.DeviceID(ek) {
		t.Errorf("got %+v", w)
	}
}
