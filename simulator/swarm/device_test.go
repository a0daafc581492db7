package swarm_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/ca"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/provisioning/identity"
	"github.com/tillward/tillward/simulator/swarm"
)

// tpm is what an enrolment needs of one.
type tpm interface {
	enrol.Endorser
	enrol.Prover
}

// directory lets in whoever has a trusted EK certificate.
type directory struct {
	mu      sync.Mutex
	members []enrol.Member
}

func (d *directory) Owner(_ context.Context, a enrol.Applicant) (string, identity.Tier, error) {
	if a.Tier == "" {
		return "", "", enrol.ErrRefused
	}
	return "demo", a.Tier, nil
}

func (d *directory) Enrolled(_ context.Context, m enrol.Member) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.members = append(d.members, m)
	return nil
}

// site is an enrolment service that trusts one authority.
type site struct {
	url   string
	roots *x509.CertPool
	dir   directory
}

func newSite(t *testing.T, maker *swarm.Authority) *site {
	t.Helper()
	issuer, err := ca.Open(t.TempDir(), "tenant", ca.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := &site{roots: x509.NewCertPool()}
	s.roots.AddCert(issuer.Root())
	makers := x509.NewCertPool()
	makers.AddCert(maker.Certificate())
	srv := httptest.NewUnstartedServer(enrol.NewServer(enrol.Options{
		VirtualRoots: makers, Directory: &s.dir, Issuer: issuer, Welcome: func(context.Context, enrol.Member) (enrol.Result, error) { return enrol.Result{}, nil },
		Audit: func(context.Context, string, string, string, map[string]string) {}, Log: slog.New(slog.DiscardHandler),
	}))
	cert, err := issuer.IssueServer([]string{"localhost"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	s.url = srv.URL
	return s
}

func (s *site) enrol(t *testing.T, dev tpm) (enrol.Result, error) {
	t.Helper()
	c := &enrol.Client{URL: s.url, Roots: s.roots, ServerName: "localhost", Model: "m", TPM: dev}
	return c.Enrol(t.Context())
}

func newMaker(t testing.TB) *swarm.Authority {
	t.Helper()
	a, err := swarm.NewAuthority(nil)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// rsaKey is made once: it takes long.
var rsaKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func newRSA(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	k, err := rsaKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Both kinds of EK enrol, and the service gives the id the device expects.
func TestEnrol(t *testing.T) {
	maker := newMaker(t)
	s := newSite(t, maker)
	for name, d := range map[string]*swarm.Device{
		"P-256":    swarm.New("fleet", 1, maker, nil),
		"RSA-2048": swarm.New("fleet", 2, maker, newRSA(t)),
	} {
		res, err := s.enrol(t, d)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		id, err := d.ID()
		if err != nil || res.Device != id || res.Tier != string(identity.TierC) {
			t.Errorf("%s: got device %s of tier %s and %v, want %s of tier C", name, res.Device, res.Tier, err, id)
		}
		key, err := d.Signer()
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(res.Chain[0])
		if err != nil {
			t.Fatal(err)
		}
		if k, ok := cert.PublicKey.(interface{ Equal(x any) bool }); ok && !k.Equal(key.Public()) {
			t.Errorf("%s: certificate is for another key than Signer's", name)
		}
		rescue, err := x509.ParseCertificate(res.Recovery[0])
		if err != nil {
			t.Fatal(err)
		}
		spare, err := d.SignerFor(t.Context(), res.RecoveryKey)
		if err != nil {
			t.Fatal(err)
		}
		if k, ok := rescue.PublicKey.(interface{ Equal(x any) bool }); ok && !k.Equal(spare.Public()) {
			t.Errorf("%s: recovery certificate is for another key", name)
		}
		ak, _, _ := d.Keys(t.Context())
		if !slices.ContainsFunc(s.dir.members, func(m enrol.Member) bool {
			return m.Device == id && bytes.Equal(m.AK, ak) && m.ResetCount == d.Reset
		}) {
			t.Errorf("%s: the directory got %+v", name, s.dir.members)
		}
	}
}

// liar is a device that tells one lie.
type liar struct {
	*swarm.Device
	other   *swarm.Device
	secret  bool // answers with a wrong secret
	open    bool // has the other's AK, so the credential is not for its TPM
	quote   bool // shows the other's quote
	certify bool // shows the other's Certify
	ek      bool // shows the other's EK and certificate
	cert    bool // shows the other's certificate only
}

func (l liar) Endorsement(ctx context.Context) ([]byte, []byte, [][]byte, error) {
	if l.ek {
		return l.other.Endorsement(ctx)
	}
	ek, cert, chain, err := l.Device.Endorsement(ctx)
	if l.cert {
		_, cert, _, err = l.other.Endorsement(ctx)
	}
	return ek, cert, chain, err
}

func (l liar) Activate(ctx context.Context, credential, secret []byte) ([]byte, error) {
	s, err := l.Device.Activate(ctx, credential, secret)
	if l.secret && err == nil {
		s[0] ^= 1
	}
	return s, err
}

func (l liar) Keys(ctx context.Context) ([]byte, []byte, error) {
	ak, ldevid, err := l.Device.Keys(ctx)
	if l.open {
		ak, _, err = l.other.Keys(ctx)
	}
	return ak, ldevid, err
}

func (l liar) Certify(ctx context.Context, extra []byte) ([]byte, []byte, error) {
	if l.certify {
		return l.other.Certify(ctx, extra)
	}
	return l.Device.Certify(ctx, extra)
}

func (l liar) Quote(ctx context.Context, extra []byte) ([]byte, []byte, [][]byte, error) {
	if l.quote {
		return l.other.Quote(ctx, extra)
	}
	return l.Device.Quote(ctx, extra)
}

// Each lie is refused, by the service or already by the TPM's own rule.
func TestEnrolRefused(t *testing.T) {
	maker := newMaker(t)
	s := newSite(t, maker)
	for name, ek := range map[string]*rsa.PrivateKey{"P-256": nil, "RSA-2048": newRSA(t)} {
		honest := func() liar {
			return liar{Device: swarm.New("fleet", 1, maker, ek), other: swarm.New("fleet", 2, maker, nil)}
		}
		if _, err := s.enrol(t, honest()); err != nil {
			t.Fatalf("%s: honest device: %v", name, err)
		}
		for what, tt := range map[string]struct {
			lie  func(*liar)
			want string
		}{
			"wrong secret":        {func(l *liar) { l.secret = true }, "did not open the credential"},
			"another's AK":        {func(l *liar) { l.open = true }, "integrity"},
			"another's quote":     {func(l *liar) { l.quote = true }, "signature is not by the attestation key"},
			"another's Certify":   {func(l *liar) { l.certify = true }, "signature is not by the attestation key"},
			"another's EK":        {func(l *liar) { l.ek = true }, "credential is not for this"},
			"another certificate": {func(l *liar) { l.cert = true }, "EK certificate is for another key"},
			"no certificate":      {func(l *liar) { l.Device = swarm.New("fleet", 1, nil, ek) }, "no EK certificate"},
			"another maker":       {func(l *liar) { l.Device = swarm.New("fleet", 1, newMaker(t), ek) }, "signed by unknown authority"},
		} {
			l := honest()
			tt.lie(&l)
			if res, err := s.enrol(t, l); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s, %s: got %+v and %v, want refusal with %q", name, what, res, err, tt.want)
			}
		}
	}
}

// Evidence is a quote that holds for its connection, device and number only.
func TestEvidence(t *testing.T) {
	d, other := swarm.New("fleet", 1, nil, nil), swarm.New("fleet", 2, nil, nil)
	d.Reset, d.Restart, d.Firmware = 9, 3, 77
	d.PCRs[4][0] ^= 1
	id, err := d.ID()
	if err != nil {
		t.Fatal(err)
	}
	exporter := bytes.Repeat([]byte{7}, 32)
	b, err := d.Evidence(exporter, 1, time.Now().UnixMilli())
	if err != nil {
		t.Fatal(err)
	}
	m, err := wire.Decode[wire.EvidenceReport](b)
	if err != nil {
		t.Fatal(err)
	}
	ak, _, err := d.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	q, err := enrol.VerifyQuote(ak, m.Quoted, m.Signature, m.PCRs, enrol.ConnBinding(id, exporter, 1))
	if err != nil || q.ResetCount != 9 || q.RestartCount != 3 || q.Firmware != 77 || !bytes.Equal(m.PCRs[4], d.PCRs[4][:]) {
		t.Errorf("got %+v and %v", q, err)
	}
	steady, err := d.Steady(exporter, 1<<16-1, time.Now().UnixMilli())
	if err != nil || len(steady) > wire.MaxSteadyEvidence {
		t.Errorf("steady evidence has %d bytes (%v), want at most %d", len(steady), err, wire.MaxSteadyEvidence)
	}
	if s, err := wire.Decode[wire.EvidenceReport](steady); err != nil || s.PCRs != nil || len(s.Signature) != 64 {
		t.Errorf("steady evidence: got %+v and %v", s, err)
	} else if _, err := enrol.VerifyQuote(ak, s.Quoted, s.Signature, m.PCRs, enrol.ConnBinding(id, exporter, 1<<16-1)); err != nil {
		t.Error("steady evidence: ", err)
	}
	theirs, _, err := other.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"sequence": second(enrol.VerifyQuote(ak, m.Quoted, m.Signature, m.PCRs, enrol.ConnBinding(id, exporter, 2))),
		"channel":  second(enrol.VerifyQuote(ak, m.Quoted, m.Signature, m.PCRs, enrol.ConnBinding(id, make([]byte, 32), 1))),
		"key":      second(enrol.VerifyQuote(theirs, m.Quoted, m.Signature, m.PCRs, enrol.ConnBinding(id, exporter, 1))),
	} {
		if !errors.Is(err, enrol.ErrProof) {
			t.Errorf("another %s: got %v, want ErrProof", what, err)
		}
	}
}

func second(_ enrol.Quoted, err error) error { return err }

// The same seed is the same fleet; its devices differ in every key.
func TestSeed(t *testing.T) {
	seen := make(map[string]bool)
	for n := range uint64(3) {
		for _, seed := range []string{"a", "b"} {
			ak, ldevid, err := swarm.New(seed, n, nil, nil).Keys(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			ek, _, _, err := swarm.New(seed, n, nil, nil).Endorsement(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			again, _, err := swarm.New(seed, n, nil, nil).Keys(t.Context())
			if err != nil || !bytes.Equal(again, ak) {
				t.Errorf("device %d of %s has another AK the second time (%v)", n, seed, err)
			}
			for _, pub := range [][]byte{ak, ldevid, ek} {
				p, err := tpm2.Unmarshal[tpm2.TPMTPublic](pub)
				if err != nil {
					t.Fatal(err)
				}
				point, err := p.Unique.ECC()
				if err != nil {
					t.Fatal(err)
				}
				if seen[string(point.X.Buffer)] {
					t.Errorf("device %d of %s: a key occurs twice", n, seed)
				}
				seen[string(point.X.Buffer)] = true
			}
		}
	}
}

// FuzzActivate: no credential of a hostile service panics a device, and none
// but a genuine one opens.
func FuzzActivate(f *testing.F) {
	ecc := swarm.New("fuzz", 1, nil, nil)
	key := newRSA(f)
	for _, d := range []*swarm.Device{ecc, swarm.New("fuzz", 1, nil, key)} {
		credential, secret := challenge(f, d, []byte("0123456789abcdef0123456789abcdef"))
		f.Add(credential, secret)
		f.Add(credential[:10], secret)
		f.Add([]byte{0xff, 0xff}, []byte{0, 32})
	}
	f.Fuzz(func(t *testing.T, credential, secret []byte) {
		for _, d := range []*swarm.Device{ecc, swarm.New("fuzz", 1, nil, key)} {
			got, err := d.Activate(t.Context(), credential, secret)
			if (err == nil) != bytes.Equal(got, []byte("0123456789abcdef0123456789abcdef")) {
				t.Errorf("got %q and %v", got, err)
			}
		}
	})
}

// challenge makes a credential for a device.
func challenge(t testing.TB, d *swarm.Device, value []byte) (credential, secret []byte) {
	t.Helper()
	ek, _, _, err := d.Endorsement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ak, _, err := d.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](ek)
	if err != nil {
		t.Fatal(err)
	}
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](ak)
	if err != nil {
		t.Fatal(err)
	}
	name, err := tpm2.ObjectName(area)
	if err != nil {
		t.Fatal(err)
	}
	kem, err := tpm2.ImportEncapsulationKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	if credential, secret, err = tpm2.CreateCredential(rand.Reader, kem, name.Buffer, value); err != nil {
		t.Fatal(err)
	}
	return credential, secret
}

// BenchmarkEvidence is what a device costs whoever plays it: keys and quote.
func BenchmarkEvidence(b *testing.B) {
	exporter := make([]byte, 32)
	var n uint64
	b.ReportAllocs()
	for b.Loop() {
		n++
		if _, err := swarm.New("bench", n, nil, nil).Evidence(exporter, 1, 1); err != nil {
			b.Fatal(err)
		}
	}
}
