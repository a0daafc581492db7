package enrol

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/provisioning/ca"
	"github.com/tillward/tillward/provisioning/identity"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// directory is the fleet of the test: everyone with a trusted EK certificate
// joins, and the EKs on list do without one.
type directory struct {
	mu      sync.Mutex
	list    []string
	wait    bool
	taken   bool // by another tenant, since the challenge
	tier    identity.Tier
	members []Member
	reg     registry
}

func (d *directory) Owner(_ context.Context, a Applicant) (string, identity.Tier, error) {
	switch {
	case d.wait:
		return "", "", ErrUnclaimed
	case d.tier != "":
		return "demo", d.tier, nil
	case slices.Contains(d.list, a.EKHash):
		return "demo", identity.TierB, nil
	case a.Tier == "":
		return "", "", ErrRefused
	}
	return "demo", a.Tier, nil
}

func (d *directory) Enrolled(_ context.Context, m Member) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.taken {
		return fmt.Errorf("its key belongs to another tenant: %w", ErrRefused)
	}
	d.members = append(d.members, m)
	d.reg.enrolled(m)
	return nil
}

// site is a service and a farm of TPMs.
type site struct {
	url    string
	roots  *x509.CertPool
	makers *x509.CertPool // of TPMs with tier A
	dir    *directory
	farm   *tpmfarm.Farm
	issuer *ca.Authority
	server *Server
	around func(serve func()) // of a benchmark
	lie    func(path string, body []byte) []byte

	mu    sync.Mutex
	audit []string
	boot  func(id identity.Identity, pcrs [][]byte, log []byte) (bool, error) // nil: all boots are good
}

func (s *site) judge(_ context.Context, _ bool, id identity.Identity, pcrs [][]byte, log []byte) (bool, error) {
	s.mu.Lock()
	f := s.boot
	s.mu.Unlock()
	if f == nil {
		return true, nil
	}
	return f(id, pcrs, log)
}

func (s *site) judgeBy(f func(id identity.Identity, pcrs [][]byte, log []byte) (bool, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.boot = f
}

func newSite(t testing.TB, trustFarm bool) *site {
	t.Helper()
	farm, err := tpmfarm.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(farm.Close)
	issuer, err := ca.Open(t.TempDir(), "tenant", ca.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := &site{farm: farm, issuer: issuer, dir: &directory{}, roots: x509.NewCertPool()}
	virtual := x509.NewCertPool()
	if trustFarm {
		b, err := os.ReadFile(farm.CA())
		if err != nil {
			t.Fatal(err)
		}
		virtual.AppendCertsFromPEM(b)
	}
	s.makers = x509.NewCertPool()
	s.server = NewServer(Options{
		EKRoots: s.makers, VirtualRoots: virtual, Directory: s.dir, Registry: &s.dir.reg, Issuer: issuer, Life: time.Hour,
		Boot: s.judge,
		Welcome: func(_ context.Context, m Member) (Result, error) {
			return Result{Brokers: []string{"127.0.0.1:8883"}, ReattestS: 900, Voucher: []byte(m.Device)}, nil
		},
		Audit: func(_ context.Context, kind, severity, device string, detail map[string]string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.audit = append(s.audit, strings.Join([]string{kind, severity, device, detail["check"], detail["reason"]}, " "))
		},
		Log: slog.New(slog.DiscardHandler),
	})
	s.server.maxAsked = math.MaxInt // tests are in a hurry
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.lie != nil {
			rec := httptest.NewRecorder()
			s.server.ServeHTTP(rec, r)
			w.WriteHeader(rec.Code)
			_, _ = w.Write(s.lie(r.URL.Path, rec.Body.Bytes()))
			return
		}
		if s.around == nil {
			s.server.ServeHTTP(w, r)
			return
		}
		s.around(func() { s.server.ServeHTTP(w, r) })
	}))
	cert, err := issuer.IssueServer([]string{"127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	srv.TLS = &tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true,
		ClientCAs: issuer.Pool(), ClientAuth: tls.VerifyClientCertIfGiven,
	}
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	s.url = srv.URL
	s.roots.AddCert(issuer.Root())
	return s
}

func (s *site) till(t testing.TB) *tpm.TPM {
	t.Helper()
	chip, err := s.farm.Start(t.Context(), filepath.Join(t.TempDir(), "tpm"))
	if err != nil {
		t.Fatal(err)
	}
	dev, err := tpm.Open("unix:" + chip.Socket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dev.Close() })
	return dev
}

func (s *site) client(dev *tpm.TPM) *Client {
	return &Client{URL: s.url, Roots: s.roots, Serial: "till-1", Model: "box-9", TPM: dev}
}

// TestServiceKnowsNoOtherDevice: which box it is, a box is not told. By another
// name it would believe another box's ownership voucher.
func TestServiceKnowsNoOtherDevice(t *testing.T) {
	s := newSite(t, true)
	dev := s.till(t)
	s.lie = func(path string, body []byte) []byte {
		if path != PathEvidence {
			return body
		}
		res, err := decode[Result](body)
		if err != nil {
			t.Errorf("the service's answer: %v", err)
		}
		res.Device = identity.DeviceID([]byte("another"))
		body, err = encMode.Marshal(res)
		if err != nil {
			t.Error(err)
		}
		return body
	}
	if _, err := s.client(dev).Enrol(t.Context()); err == nil || !strings.Contains(err.Error(), "it is for device") {
		t.Errorf("got %v, want a refusal", err)
	}
}

func (s *site) audited(t *testing.T, want string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.ContainsFunc(s.audit, func(a string) bool { return strings.Contains(a, want) }) {
		t.Errorf("audit trail %q does not mention %q", s.audit, want)
	}
}

func TestEnrolThenHandshakeByTPM(t *testing.T) {
	s := newSite(t, true)
	dev := s.till(t)
	res, err := s.client(dev).Enrol(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if res.Tenant != "demo" || res.Tier != "C" || len(res.Chain) != 2 || len(s.dir.members) != 1 {
		t.Fatalf("got %+v and members %v", res, s.dir.members)
	}
	s.audited(t, "enrol.done info "+res.Device)
	id, err := handshake(t, s, dev, res.Chain)
	if err != nil {
		t.Fatal(err)
	}
	if id.Device != res.Device || id.Tenant != "demo" || id.Tier != identity.TierC || id.Model != "box-9" {
		t.Errorf("the service saw %+v", id)
	}
}

// A TPM that others have made: swtpm_setup puts an RSA-2048 EK certificate of
// a two-step authority into it, with a critical SAN and no intermediates, and
// a P-384 one of the high range.
func TestTPMOfAnotherMaker(t *testing.T) {
	s := newSite(t, false)
	dir, state := t.TempDir(), t.TempDir()
	localca, err := exec.LookPath("swtpm_localca")
	if err != nil {
		t.Fatal("swtpm_localca is not installed: apt-get install swtpm-tools")
	}
	for name, text := range map[string]string{
		"setup.conf": "create_certs_tool = " + localca + "\ncreate_certs_tool_config = " + dir + "/ca.conf\n" +
			"create_certs_tool_options = " + dir + "/ca.options\nactive_pcr_banks = sha256\n",
		"ca.conf":    "statedir = " + dir + "\nsigningkey = " + dir + "/sign.pem\nissuercert = " + dir + "/issuer.pem\ncertserial = " + dir + "/serial\n",
		"ca.options": "--platform-manufacturer Maker\n--platform-version 1\n--platform-model box\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.CommandContext(t.Context(), "swtpm_setup", "--tpm2", "--tpmstate", state, "--create-ek-cert", "--config", dir+"/setup.conf").CombinedOutput()
	if err != nil {
		t.Fatalf("swtpm_setup (of swtpm-tools): %v: %s", err, out)
	}
	// It has its certificate: nothing is left to provision.
	if err := os.WriteFile(filepath.Join(state, "provisioned"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	chip, err := s.farm.Start(t.Context(), state)
	if err != nil {
		t.Fatal(err)
	}
	dev, err := tpm.Open("unix:" + chip.Socket())
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	if _, err := s.client(dev).Enrol(t.Context()); !errors.Is(err, ErrRefused) {
		t.Errorf("maker that nobody trusts: got %v, want ErrRefused", err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "issuer.pem"))
	if err != nil {
		t.Fatal(err)
	}
	s.makers.AppendCertsFromPEM(b)
	res, err := s.client(dev).Enrol(t.Context())
	if err != nil || res.Tier != "A" {
		t.Errorf("got tier %q and %v, want A", res.Tier, err)
	}
}

// handshake connects with the chain and the TPM's LDevID key and returns whom
// the service saw.
func handshake(t *testing.T, s *site, dev *tpm.TPM, chain [][]byte) (identity.Identity, error) {
	t.Helper()
	key, err := dev.Signer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return handshakeBy(t, s, tls.Certificate{Certificate: chain, PrivateKey: key})
}

func handshakeBy(t *testing.T, s *site, own tls.Certificate) (identity.Identity, error) {
	t.Helper()
	var seen identity.Identity
	var seenErr error
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		seen, seenErr = identity.FromTLS(*r.TLS)
	}))
	cert, err := s.issuer.IssueServer([]string{"127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	srv.TLS = &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientCAs: s.issuer.Pool(), ClientAuth: tls.RequireAndVerifyClientCert,
		MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true,
	}
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	srv.StartTLS()
	defer srv.Close()
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.roots, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{own}}}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get(srv.URL)
	if err != nil {
		return identity.Identity{}, err
	}
	_ = resp.Body.Close()
	return seen, seenErr
}

// A disk that is copied to another box carries the certificate, not the key.
func TestCopiedDiskOnAnotherTPM(t *testing.T) {
	s := newSite(t, true)
	owner, thief := s.till(t), s.till(t)
	res, err := s.client(owner).Enrol(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := thief.Keys(t.Context()); err != nil {
		t.Fatal(err)
	}
	if id, err := handshake(t, s, thief, res.Chain); err == nil {
		t.Errorf("another TPM was taken for %s", id.Device)
	}
	// Nor can it enrol with the first box's endorsement key.
	c := s.client(owner)
	c.TPM = &mixed{Endorser: owner, Prover: thief}
	c.TPM.(*mixed).activator = thief
	if res, err := c.Enrol(t.Context()); err == nil {
		t.Errorf("a TPM enrolled with another's endorsement key as %s", res.Device)
	}
	if len(s.dir.members) != 1 {
		t.Errorf("%d members, want 1", len(s.dir.members))
	}
}

// mixed shows one TPM's endorsement key and proves with another's keys.
type mixed struct {
	Endorser
	Prover
	activator Endorser
}

func (m *mixed) Activate(ctx context.Context, c, s []byte) ([]byte, error) {
	return m.activator.Activate(ctx, c, s)
}

// The attestation key of one TPM cannot ride on the endorsement key of
// another, even when both are at hand: the credential names the key.
func TestCredentialOpensOnlyForItsKey(t *testing.T) {
	s := newSite(t, true)
	a, b := s.till(t), s.till(t)
	c := s.client(a)
	c.TPM = &mixed{Endorser: a, Prover: b, activator: a}
	if _, err := c.Enrol(t.Context()); err == nil || !strings.Contains(err.Error(), "TPM_RC_INTEGRITY") {
		t.Errorf("got %v, want TPM_RC_INTEGRITY", err)
	}
}

func TestUnknownEndorsementKeyIsRefused(t *testing.T) {
	s := newSite(t, false)
	dev := s.till(t)
	if _, err := s.client(dev).Enrol(t.Context()); !errors.Is(err, ErrRefused) {
		t.Fatalf("got %v, want ErrRefused", err)
	}
	s.audited(t, "enrol.refused alarm")
	if len(s.dir.members) != 0 {
		t.Error("a member was recorded")
	}
}

func TestListedEndorsementKeyIsTierB(t *testing.T) {
	s := newSite(t, false)
	dev := s.till(t)
	ek, _, _, err := dev.Endorsement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.dir.list = []string{Hash(ek)}
	res, err := s.client(dev).Enrol(t.Context())
	if err != nil || res.Tier != "B" {
		t.Errorf("got tier %q and %v, want B", res.Tier, err)
	}
}

func TestUnclaimedDeviceIsToldToWait(t *testing.T) {
	s := newSite(t, true)
	s.dir.wait = true
	_, err := s.client(s.till(t)).Enrol(t.Context())
	if w, ok := errors.AsType[Wait](err); !ok || w.After <= 0 || !errors.Is(err, ErrUnclaimed) {
		t.Errorf("got %v, want Wait", err)
	}
}

// wiretap keeps what the device sent and lets the test change it.
type wiretap struct {
	http.RoundTripper
	change func(path string, body []byte) []byte
	sent   map[string][]byte
}

func (w *wiretap) RoundTrip(r *http.Request) (*http.Response, error) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if w.change != nil {
		b = w.change(r.URL.Path, b)
	}
	w.sent[r.URL.Path] = b
	r = r.Clone(r.Context())
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader(string(b))), int64(len(b))
	return w.RoundTripper.RoundTrip(r)
}

// script is the protocol by hand, with something changed on the way.
type script struct {
	two       *http.Client // carries the evidence; nil: the client of the request
	request   func(*request)
	challenge func(*challenge)
	exporter  func([]byte)
	between   func()
}

// steps runs the protocol by hand over hc.
func steps(t *testing.T, s *site, dev *tpm.TPM, hc *http.Client, do script) error {
	t.Helper()
	c := s.client(dev)
	ek, cert, chain, err := dev.Endorsement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ak, ldevid, err := dev.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r := request{V: 1, EK: ek, EKCert: cert, EKChain: chain, AK: ak, LDevID: ldevid}
	if do.request != nil {
		do.request(&r)
	}
	req, err := encMode.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	ch, state, err := post[challenge](t.Context(), hc, s.url+PathEnrol, req)
	if err != nil {
		return err
	}
	if do.challenge != nil {
		do.challenge(&ch)
	}
	exporter, err := state.ExportKeyingMaterial(enrolExporterLabel, nil, exporterLen)
	if err != nil {
		t.Fatal(err)
	}
	if do.exporter != nil {
		do.exporter(exporter)
	}
	ev, err := c.answer(t.Context(), ch, exporter, req, r)
	if err != nil {
		return err
	}
	body, err := encMode.Marshal(ev)
	if err != nil {
		t.Fatal(err)
	}
	if do.between != nil {
		do.between()
	}
	if do.two != nil {
		hc = do.two
	}
	_, _, err = post[Result](t.Context(), hc, s.url+PathEvidence, body)
	return err
}

func (s *site) http(t *testing.T) (*http.Client, *wiretap) {
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.roots, MinVersion: tls.VersionTLS13}, MaxConnsPerHost: 1}
	t.Cleanup(tr.CloseIdleConnections)
	w := &wiretap{RoundTripper: tr, sent: make(map[string][]byte)}
	return &http.Client{Transport: w}, w
}

func TestAnswerOverAnotherChannelIsRefused(t *testing.T) {
	s := newSite(t, true)
	one, _ := s.http(t)
	two, _ := s.http(t)
	if err := steps(t, s, s.till(t), one, script{two: two}); Check(err) != "enrol.binding" || !strings.Contains(err.Error(), "another TLS channel") {
		t.Errorf("got %v with check %q, want a refusal that names the channel", err, Check(err))
	}
	s.audited(t, "another TLS channel")
}

// A man in the middle who relays both messages has a channel of his own to the
// service; the device's proof is for the one to him.
func TestRelayedAnswerIsRefused(t *testing.T) {
	s := newSite(t, true)
	hc, _ := s.http(t)
	err := steps(t, s, s.till(t), hc, script{exporter: func(e []byte) { e[0] ^= 1 }})
	if !errors.Is(err, ErrRefused) {
		t.Errorf("got %v, want ErrRefused", err)
	}
}

func TestReplayedAnswerIsRefused(t *testing.T) {
	s := newSite(t, true)
	hc, tap := s.http(t)
	dev := s.till(t)
	if err := steps(t, s, dev, hc, script{}); err != nil {
		t.Fatal(err)
	}
	_, _, err := post[Result](t.Context(), hc, s.url+PathEvidence, tap.sent[PathEvidence])
	if !errors.Is(err, ErrRefused) || Check(err) != "enrol.challenge" {
		t.Errorf("got %v with check %q, want ErrRefused", err, Check(err))
	}
	if len(s.dir.members) != 1 {
		t.Errorf("%d members, want 1", len(s.dir.members))
	}
}

func TestChangedAnswerIsRefused(t *testing.T) {
	s := newSite(t, true)
	dev := s.till(t)
	for name, tt := range map[string]struct {
		change func(*evidence)
		check  string
	}{
		"proof":        {func(e *evidence) { e.Proof[0] ^= 1 }, "enrol.activation"},
		"quote":        {func(e *evidence) { e.Quote[len(e.Quote)-1] ^= 1 }, "quote.signature"},
		"quote kind":   {func(e *evidence) { e.Quote, e.QuoteSig = e.Certify, e.CertifySig }, "quote.malformed"},
		"certify":      {func(e *evidence) { e.Certify, e.CertifySig = e.Quote, e.QuoteSig }, "enrol.certify"},
		"registers":    {func(e *evidence) { e.PCRs[0][0] ^= 1 }, "quote.values"},
		"fewer":        {func(e *evidence) { e.PCRs = e.PCRs[:9] }, "quote.values"},
		"no signature": {func(e *evidence) { e.QuoteSig = nil }, "quote.malformed"},
		"challenge":    {func(e *evidence) { e.ID[0] ^= 1 }, "enrol.challenge"},
		"long log":     {func(e *evidence) { e.Log = make([]byte, maxLog+1) }, "enrol.malformed"},
	} {
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
			b, err := encMode.Marshal(ev)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		if err := steps(t, s, dev, hc, script{}); err == nil || Check(err) != tt.check {
			t.Errorf("%s: got %v with check %q, want %q", name, err, Check(err), tt.check)
		}
	}
	if len(s.dir.members) != 0 {
		t.Errorf("%d members, want none", len(s.dir.members))
	}
}

// A key that may leave its TPM, or that signs anything, is no attestation key.
func TestKeyAttributesAreChecked(t *testing.T) {
	s := newSite(t, true)
	dev := s.till(t)
	ek, _, _, err := dev.Endorsement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ak, ldevid, err := dev.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := signingKey(ldevid); !errors.Is(err, ErrProof) {
		t.Errorf("the LDevID key passed as attestation key: %v", err)
	}
	if _, _, err := deviceKey(ak, "LDevID key"); !errors.Is(err, ErrProof) {
		t.Errorf("the attestation key passed as LDevID key: %v", err)
	}
	if _, _, err := endorsementKey(ak); !errors.Is(err, ErrProof) {
		t.Errorf("the attestation key passed as endorsement key: %v", err)
	}
	if _, err := signingKey(ek); !errors.Is(err, ErrProof) {
		t.Errorf("the endorsement key passed as attestation key: %v", err)
	}
}

func TestConnectionQuote(t *testing.T) {
	s := newSite(t, true)
	dev := s.till(t)
	ak, _, err := dev.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	here, there := ConnBinding("dev", []byte("exporter"), 1), ConnBinding("dev", []byte("another"), 1)
	attest, sig, pcrs, err := dev.Quote(t.Context(), here[:])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := VerifyQuote(ak, attest, sig, pcrs, here); err != nil {
		t.Error(err)
	}
	for name, extra := range map[string][32]byte{"channel": there, "sequence": ConnBinding("dev", []byte("exporter"), 2), "device": ConnBinding("de", []byte("vexporter"), 1)} {
		if _, err := VerifyQuote(ak, attest, sig, pcrs, extra); !errors.Is(err, ErrProof) {
			t.Errorf("%s: got %v, want ErrProof", name, err)
		}
	}
}

// Golden bytes: what devices of each version send and expect.
func TestGoldenMessages(t *testing.T) {
	v1 := request{
		V: 1, Serial: "s", Model: "m", EK: []byte{1}, EKCert: []byte{2}, EKChain: [][]byte{{3}}, AK: []byte{4}, LDevID: []byte{5}, Claim: "c",
	}
	v2 := v1
	v2.V, v2.Recovery = 2, []byte{6}
	ev1 := evidence{
		ID: [16]byte{1}, Proof: [32]byte{2}, Certify: []byte{3}, CertifySig: []byte{4}, Quote: []byte{5}, QuoteSig: []byte{6}, PCRs: [][]byte{{7}},
	}
	ev2 := ev1
	ev2.CertifyRec, ev2.CertifyRecSig, ev2.Log = []byte{8}, []byte{9}, []byte{10}
	res1 := Result{
		Device: "d", Tenant: "t", Tier: "C", Chain: [][]byte{{1}}, Brokers: []string{"b:1"}, Artifacts: "https://a",
		OrderKeys: []OrderKey{{ID: "k", Public: []byte{2}}}, ReattestS: 900,
	}
	res2 := res1
	res2.Recovery, res2.Voucher = [][]byte{{3}}, []byte{4}
	res2.AK, res2.LDevID, res2.RecoveryKey = []byte{5}, []byte{6}, []byte{7} // never sent
	for name, m := range map[string]any{
		"v1/enrol": v1, "v2/enrol": v2, "v1/evidence": ev1, "v2/evidence": ev2, "v1/result": res1, "v2/result": res2,
		"v1/challenge": challenge{ID: [16]byte{1}, Credential: []byte{2}, Secret: []byte{3}, Nonce: [32]byte{4}, ExpiresS: 120},
		"v1/problem":   problem{Code: "c", Text: "t"},
		"v2/problem":   problem{Code: "c", Text: "t", Check: "x", Device: "d"},
		"v2/renew": renewal{
			V: 2, LDevID: []byte{1}, Certify: []byte{2}, CertifySig: []byte{3}, Quote: []byte{4}, QuoteSig: []byte{5}, PCRs: [][]byte{{6}}, Log: []byte{7},
			Recovery: []byte{8}, CertifyRec: []byte{9}, CertifyRecSig: []byte{10},
		},
		"v2/renewed":  renewed{Chain: [][]byte{{1}}, Recovery: [][]byte{{2}}, Check: "x", Text: "t"},
		"v2/rotate":   rotation{V: 2, EK: []byte{1}, AK: []byte{2}, Certify: []byte{3}, CertifySig: []byte{4}},
		"v2/proof":    rotationProof{ID: [16]byte{1}, Proof: [32]byte{2}},
		"v2/followed": followed{AK: []byte{1}},
	} {
		got, err := encMode.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", filepath.FromSlash(name)+".pem")
		if os.Getenv("UPDATE_GOLDEN") != "" {
			if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CBOR", Bytes: got}), 0o600); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(want)
		if block == nil || string(block.Bytes) != string(got) {
			t.Errorf("%s: the bytes have changed: %x", name, got)
		}
	}
}
