package agent_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/tillward/tillward/agent"
	"github.com/tillward/tillward/agent/chip"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/provisioning/ca"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/provisioning/identity"
	"github.com/tillward/tillward/provisioning/trust"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

const tenant = "demo"

// fleet is the service as an agent sees it: enrolment, releases and a broker
// that stores what comes before it acknowledges it.
type fleet struct {
	t      *testing.T
	dir    string
	farm   *tpmfarm.Farm
	ca     *ca.Authority
	https  *httptest.Server
	mqtt   *mqtt.Server
	broker string
	repo   *trust.Repository
	keys   trust.Keys
	orders *trust.OrderSigner
	seal   *ecdsa.PrivateKey
	server atomic.Pointer[tls.Certificate]
	vendor ed25519.PrivateKey

	mu       sync.Mutex
	changed  chan struct{}
	members  map[string]enrol.Member
	nextAK   map[string][]byte
	life     time.Duration
	voucher  []byte
	unowned  bool  // nobody owns the devices yet
	refuse   error // enrolment
	frozen   bool  // nothing is renewed
	amnesiac bool  // it does not say up to where it has a trail
	renewals int
	verdict  wire.Challenge
	locked   map[string]bool // serial numbers that the broker turns away
	shown    []identity.Identity
	evidence []wire.EvidenceReport
	audit    map[uint64]wire.AuditRecord // of the device, by sequence
	results  []wire.ResultReport
	samples  map[string]float64 // the newest of the box itself
	state    wire.StateReport   // the newest
	taken    int
	deaf     map[wire.Channel]bool // is stored and not acknowledged: the line is cut instead
	counter  uint64
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{
		t: t, dir: t.TempDir(), changed: make(chan struct{}), members: map[string]enrol.Member{}, nextAK: map[string][]byte{}, life: time.Hour,
		verdict: wire.Challenge{Verdict: "attested"}, locked: map[string]bool{}, audit: map[uint64]wire.AuditRecord{}, deaf: map[wire.Channel]bool{},
		keys: trust.Keys{}, samples: map[string]float64{},
	}
	var err error
	f.farm, err = tpmfarm.Open(t.Context(), t.TempDir())
	must(t, err)
	t.Cleanup(f.farm.Close)
	f.ca, err = ca.Open(t.TempDir(), "tenant", ca.Options{})
	must(t, err)
	_, order, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	f.orders = trust.NewOrderSigner(order)
	_, f.vendor, err = ed25519.GenerateKey(rand.Reader)
	must(t, err)
	f.seal, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	for _, role := range []string{trust.RoleRoot, trust.RoleTargets, trust.RoleSnapshot, trust.RoleTimestamp} {
		_, k, err := ed25519.GenerateKey(rand.Reader)
		must(t, err)
		f.keys[role] = []ed25519.PrivateKey{k}
	}
	f.repo, err = trust.InitRepository(filepath.Join(f.dir, "repo"), f.keys, nil)
	must(t, err)
	root, err := f.repo.Root()
	must(t, err)
	must(t, os.WriteFile(f.path("root.json"), root, 0o600))
	must(t, os.WriteFile(f.path("roots.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.ca.Root().Raw}), 0o600))
	f.public("seal.pem", &f.seal.PublicKey)
	f.public("vendor.pem", f.vendor.Public())
	f.serve()
	return f
}

func (f *fleet) path(name string) string { return filepath.Join(f.dir, name) }

func (f *fleet) public(name string, key any) {
	f.t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	must(f.t, err)
	must(f.t, os.WriteFile(f.path(name), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600))
}

func (f *fleet) serve() {
	t := f.t
	t.Helper()
	makers := x509.NewCertPool()
	pemCA, err := os.ReadFile(f.farm.CA())
	must(t, err)
	makers.AppendCertsFromPEM(pemCA)
	cert, err := f.ca.IssueServer([]string{"localhost", "127.0.0.1"}, time.Hour)
	must(t, err)
	f.server.Store(&cert)
	conf := &tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true,
		ClientCAs: f.ca.Pool(), ClientAuth: tls.VerifyClientCertIfGiven,
	}
	mux := http.NewServeMux()
	mux.Handle("/v1/", enrol.NewServer(enrol.Options{
		EKRoots: makers, Directory: f, Registry: f, Issuer: f, Life: time.Hour, Welcome: f.welcome,
		Boot:  func(context.Context, bool, identity.Identity, [][]byte, []byte) (bool, error) { return true, nil },
		Audit: func(context.Context, string, string, string, map[string]string) {}, Log: slog.New(slog.DiscardHandler),
	}))
	files := http.FileServer(http.Dir(f.repo.Dir))
	mux.Handle("/tuf/", http.StripPrefix("/tuf/", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if role, ok := strings.CutPrefix(r.URL.Path, "metadata/"); ok { // the slash of a delegated role is written %2F on the disk
			r.URL.Path = "metadata/" + strings.ReplaceAll(role, "/", "%2F")
		}
		files.ServeHTTP(w, r)
	})))
	f.https = httptest.NewUnstartedServer(mux)
	f.https.TLS = f.shows(conf.Clone())
	f.https.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	f.https.StartTLS()
	t.Cleanup(f.https.Close)
	conf.ClientAuth = tls.RequireAndVerifyClientCert
	l, err := tls.Listen("tcp", "127.0.0.1:0", f.shows(conf))
	must(t, err)
	f.broker = l.Addr().String()
	f.mqtt = mqtt.New(&mqtt.Options{InlineClient: true, Logger: slog.New(slog.DiscardHandler)})
	must(t, f.mqtt.AddHook(&hook{f: f}, nil))
	must(t, f.mqtt.AddListener(listeners.NewNet("tls", l)))
	must(t, f.mqtt.Serve())
	t.Cleanup(func() { _ = f.mqtt.Close() })
}

// shows lets a test change the certificate of the service.
func (f *fleet) shows(conf *tls.Config) *tls.Config {
	conf.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c := conf.Clone()
		c.GetConfigForClient, c.Certificates = nil, []tls.Certificate{*f.server.Load()}
		return c, nil
	}
	return conf
}

// IssueDevice, Chain and Root implement enrol.Issuer, with a life that a test
// changes.
func (f *fleet) IssueDevice(id identity.Identity, pub crypto.PublicKey, life time.Duration) ([]byte, error) {
	f.mu.Lock()
	if id.Role == "" {
		life = f.life
	}
	f.mu.Unlock()
	return f.ca.IssueDevice(id, pub, life)
}
func (f *fleet) Chain() [][]byte         { return f.ca.Chain() }
func (f *fleet) Root() *x509.Certificate { return f.ca.Root() }

// Owner and Enrolled implement enrol.Directory.
func (f *fleet) Owner(_ context.Context, a enrol.Applicant) (string, identity.Tier, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse != nil {
		return "", "", f.refuse
	}
	if f.unowned {
		return "", "", enrol.ErrUnclaimed
	}
	return tenant, a.Tier, nil
}

func (f *fleet) Enrolled(_ context.Context, m enrol.Member) error {
	f.set(func() { f.members[m.Device] = m; delete(f.nextAK, m.Device) })
	return nil
}

// Standing and Renewed implement enrol.Registry.
func (f *fleet) Standing(_ context.Context, id identity.Identity) (enrol.Standing, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m, ok := f.members[id.Device]
	if !ok || f.locked[id.Serial] || f.frozen {
		return enrol.Standing{}, enrol.Refuse("identity.revoked", "not a member")
	}
	return enrol.Standing{AK: m.AK, NextAK: f.nextAK[id.Device], EKHash: m.EKHash, Tier: m.Tier, Model: m.Model, Good: true}, nil
}

func (f *fleet) Renewed(_ context.Context, r enrol.Renewal) error {
	f.set(func() {
		f.renewals++
		if r.NextAK != nil {
			f.nextAK[r.Shown.Device] = r.NextAK
		}
	})
	return nil
}

func (f *fleet) welcome(_ context.Context, m enrol.Member) (enrol.Result, error) {
	id, pub := f.orders.Public()
	f.mu.Lock()
	defer f.mu.Unlock()
	var seq uint64
	var hash []byte
	for n, r := range f.audit {
		if n > seq && !f.amnesiac {
			e, err := wire.SealAudit(r)
			must(f.t, err)
			seq, hash = n, e.Hash[:]
		}
	}
	return enrol.Result{
		TrailSeq: seq, TrailHash: hash,
		Brokers: []string{f.broker}, Artifacts: f.https.URL + "/tuf", OrderKeys: []enrol.OrderKey{{ID: id, Public: pub}}, ReattestS: 900,
		Voucher: f.voucher,
	}, nil
}

func (f *fleet) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.changed)
	f.changed = make(chan struct{})
}

// until waits for the service to see something.
func (f *fleet) until(what string, ok func() bool) {
	f.t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		f.mu.Lock()
		good, changed := ok(), f.changed
		f.mu.Unlock()
		if good {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			f.t.Fatalf("after 30 s: %s; audit %q", what, f.kinds())
		}
	}
}

// kinds lists the trail of the device.
func (f *fleet) kinds() (out []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for seq := uint64(1); len(out) < len(f.audit) && seq < 10_000; seq++ {
		if r, ok := f.audit[seq]; ok {
			out = append(out, strings.TrimSpace(fmt.Sprintf("%d %s %s %s %s", seq, r.Kind, r.Severity, r.Detail["check"], r.Detail["reason"])))
		}
	}
	return out
}

// audited reports whether the trail holds the kind; the caller holds the lock.
func (f *fleet) audited(kind string) bool {
	for _, r := range f.audit {
		if r.Kind == kind {
			return true
		}
	}
	return false
}

// chained shows that nothing is missing in the trail and that it is one chain.
func (f *fleet) chained() {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	var prev [32]byte
	last := uint64(0)
	for _, seq := range slices.Sorted(maps.Keys(f.audit)) {
		r := f.audit[seq]
		if r.Break != nil && r.Break.Seq+1 < seq { // what it says is lost, and nothing else
			last, prev = seq-1, r.Prev
		}
		if seq != last+1 {
			f.t.Errorf("entries %d to %d are missing", last+1, seq-1)
			return
		}
		if r.Prev != prev {
			f.t.Errorf("entry %d does not follow entry %d", seq, last)
		}
		if err := r.CheckKind(); err != nil {
			f.t.Errorf("entry %d: %v", seq, err)
		}
		e, err := wire.SealAudit(r)
		must(f.t, err)
		last, prev = seq, e.Hash
	}
}

type hook struct {
	mqtt.HookBase
	f *fleet
}

func (h *hook) ID() string         { return "fleet" }
func (h *hook) Provides(byte) bool { return true }

func (h *hook) OnConnectAuthenticate(cl *mqtt.Client, _ packets.Packet) bool {
	id, err := peer(cl)
	h.f.set(func() {
		if err == nil && h.f.locked[id.Serial] {
			err = errors.New("turned away")
			return
		}
		h.f.shown = append(h.f.shown, id)
	})
	return err == nil && cl.ID == id.Device
}

func (h *hook) OnACLCheck(*mqtt.Client, string, bool) bool { return true }

func peer(cl *mqtt.Client) (identity.Identity, error) {
	conn, ok := cl.Net.Conn.(*tls.Conn)
	if !ok {
		return identity.Identity{}, errors.New("no TLS")
	}
	return identity.FromTLS(conn.ConnectionState())
}

func (h *hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if cl.Net.Inline {
		return pk, nil
	}
	topic, err := wire.ParseTopic(pk.TopicName)
	if err != nil {
		h.f.t.Error(err)
		return pk, packets.ErrRejectPacket
	}
	deaf := false
	h.f.set(func() { deaf = h.f.deaf[topic.Channel]; h.f.store(topic, pk.Payload) })
	if deaf {
		cl.Stop(errors.New("cut"))
		return pk, packets.ErrRejectPacket
	}
	_ = cl.WritePacket(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: pk.PacketID})
	if topic.Channel == wire.Evidence {
		h.f.mu.Lock()
		v := h.f.verdict
		h.f.mu.Unlock()
		if id, err := peer(cl); err == nil && id.Role == identity.RoleRecovery {
			v.Verdict = "quarantined"
		}
		h.f.say(topic.Device, v)
	}
	return pk, packets.ErrRejectPacket
}

// store takes a message in; the caller holds the lock.
func (f *fleet) store(topic wire.Topic, payload []byte) {
	f.taken++
	switch topic.Channel {
	case wire.Evidence:
		e, err := wire.Decode[wire.EvidenceReport](payload)
		must(f.t, err)
		f.evidence = append(f.evidence, e)
	case wire.Audit:
		b, err := wire.Decode[wire.AuditBatch](payload)
		must(f.t, err)
		for _, e := range b.Entries {
			r, err := e.Open()
			must(f.t, err)
			if was, ok := f.audit[r.Seq]; ok && was.Prev != r.Prev {
				f.t.Errorf("entry %d came as %s and as %s", r.Seq, was.Kind, r.Kind)
			}
			f.audit[r.Seq] = r
		}
	case wire.Telemetry:
		b, err := wire.Decode[wire.TelemetryBatch](payload)
		must(f.t, err)
		for _, s := range b.Samples {
			if s.Peripheral == "" {
				f.samples[s.Name] = s.Value
			}
		}
	case wire.State:
		s, err := wire.Decode[wire.StateReport](payload)
		must(f.t, err)
		f.state = s
	case wire.Result:
		r, err := wire.Decode[wire.ResultReport](payload)
		must(f.t, err)
		if !slices.ContainsFunc(f.results, func(o wire.ResultReport) bool { return o.Head == r.Head }) {
			f.results = append(f.results, r)
		}
	}
}

func (f *fleet) say(device string, c wire.Challenge) {
	c.V = wire.Version
	b, err := wire.Encode(&c)
	must(f.t, err)
	must(f.t, f.mqtt.Publish(wire.Topic{Tenant: tenant, Device: device, Quarantine: true, Channel: wire.DownChallenge}.String(), b, false, 1))
}

// command sends an order and waits for its result.
func (f *fleet) command(device, verb string, args map[string]string) wire.ResultReport {
	f.t.Helper()
	id := f.order(device, verb, args)
	var got wire.ResultReport
	f.until("no result of "+verb, func() bool {
		i := slices.IndexFunc(f.results, func(r wire.ResultReport) bool { return r.ID == id })
		if i >= 0 {
			got = f.results[i]
		}
		return i >= 0
	})
	return got
}

func (f *fleet) order(device, verb string, args map[string]string) (id string) {
	f.t.Helper()
	f.mu.Lock()
	f.counter++
	n := f.counter
	f.mu.Unlock()
	id = fmt.Sprintf("c-%d", n)
	payload, err := wire.Encode(&wire.CommandOrder{
		V: wire.Version, ID: id, Tenant: tenant, Device: device, Counter: n, IssuedAt: time.Now().UnixMilli(),
		NotAfter: time.Now().Add(time.Hour).UnixMilli(), Verb: verb, Args: args, By: "test",
	})
	must(f.t, err)
	f.send(device, wire.DownCommand, wire.OrderCommand, payload)
	return id
}

// program publishes an agent that is none.
func (f *fleet) program(version string) {
	f.t.Helper()
	name := "tillward-agent-" + runtime.GOOS + "-" + runtime.GOARCH
	file := filepath.Join(f.t.TempDir(), name)
	must(f.t, os.WriteFile(file, []byte("no program of version "+version), 0o600))
	must(f.t, f.repo.Add([]trust.NewTarget{{
		Path: "agent/" + version + "/" + name, File: file,
		Custom: trust.Custom{Class: "agent", Version: version, OS: runtime.GOOS, Arch: runtime.GOARCH},
	}}, f.keys))
}

// offer offers a version and waits for the end of it.
func (f *fleet) offer(version string) wire.ResultReport {
	f.t.Helper()
	device := f.device()
	payload, err := wire.Encode(&wire.OfferOrder{
		V: wire.Version, Execution: "x-" + version, Tenant: tenant, Device: device, Class: "agent", Version: version, Target: "agent/" + version,
		IssuedAt: time.Now().UnixMilli(), NotAfter: time.Now().Add(time.Hour).UnixMilli(),
	})
	must(f.t, err)
	f.send(device, wire.DownOffer, wire.OrderOffer, payload)
	var got wire.ResultReport
	f.until("the offer of "+version+" does not end", func() bool {
		for _, r := range f.results {
			if r.ID == "x-"+version && (r.State == "REJECTED" || r.State == "FAILED" || r.State == "SUCCEEDED") {
				got = r
				return true
			}
		}
		return false
	})
	return got
}

// send signs an order and sends it.
func (f *fleet) send(device string, c wire.Channel, kind string, payload []byte) {
	f.t.Helper()
	o := wire.Order{Kind: kind, Payload: payload}
	var err error
	o.KeyID, o.Signature, err = f.orders.SignOrder(kind, payload)
	must(f.t, err)
	b, err := wire.Encode(&o)
	must(f.t, err)
	must(f.t, f.mqtt.Publish(wire.Topic{Tenant: tenant, Device: device, Quarantine: true, Channel: c}.String(), b, false, 1))
}

// reference publishes what a release makes a firmware boot into, approved.
func (f *fleet) reference(release string, fw tpmfarm.Firmware, floor uint64) {
	f.t.Helper()
	pcrs := map[int][]byte{}
	for i, v := range fw.Registers() {
		pcrs[boot.Quoted[i]] = v
	}
	a, err := boot.SignApproval(f.seal, []byte("spool"), pcrs, floor)
	must(f.t, err)
	r := boot.Reference{Version: 1, Model: model, Release: release, Floor: floor, Approvals: []boot.Approval{a}}
	file := filepath.Join(f.t.TempDir(), "reference.json")
	must(f.t, os.WriteFile(file, r.Bytes(), 0o600))
	must(f.t, f.repo.Add([]trust.NewTarget{{
		Path: boot.TargetPath(model, release), File: file, Custom: trust.Custom{Class: "boot", Version: release, Model: model},
	}}, f.keys))
}

const model = "box-9"

// box is a till: a TPM, a folder, a configuration and an agent in this process.
type box struct {
	f    *fleet
	cfg  agent.Config
	chip *tpmfarm.TPM
	deaf atomic.Int32 // so often the TPM does not answer
	cut  atomic.Bool  // the power goes when a new key is to be the only one
	log  *lines

	slots   agent.Slots // nil: it has none
	drivers []hal.Driver
	tail    func(lines int) []byte

	cancel context.CancelFunc
	ended  chan error
}

// lines keeps the log for a test that fails.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (f *fleet) box() *box {
	f.t.Helper()
	b := &box{f: f, cfg: agent.DefaultConfig(), log: &lines{}}
	var err error
	b.chip, err = f.farm.Start(f.t.Context(), f.t.TempDir())
	must(f.t, err)
	b.cfg.StateDir, b.cfg.Model, b.cfg.Serial, b.cfg.Reboot = f.t.TempDir(), model, "till-1", nil
	b.cfg.Service = agent.ServiceConfig{Enrol: f.https.URL, Roots: f.path("roots.pem")}
	b.cfg.TPM.Device, b.cfg.TPM.EventLog = "unix:"+b.chip.Socket(), f.path("log")
	b.cfg.Update.Root, b.cfg.Update.AppsDir, b.cfg.Update.Media = f.path("root.json"), f.t.TempDir(), []string{f.path("media/*")}
	must(f.t, os.Chmod(filepath.Dir(b.cfg.Update.AppsDir), 0o755)) // #nosec G302 -- applications run as a user without rights
	f.t.Cleanup(func() {
		b.stop()
		if f.t.Failed() {
			b.log.mu.Lock()
			defer b.log.mu.Unlock()
			f.t.Logf("log of the agent:\n%s", b.log.b.String())
		}
	})
	return b
}

// boot power-cycles the box into a firmware.
func (b *box) boot(fw tpmfarm.Firmware) {
	b.f.t.Helper()
	b.stop()
	must(b.f.t, b.chip.Restart(b.f.t.Context()))
	must(b.f.t, fw.Boot(b.chip, b.cfg.TPM.EventLog))
	b.start()
}

// start starts the agent, and again when it asks for it, as its supervisor
// does.
func (b *box) start() {
	ctx, cancel := context.WithCancel(b.f.t.Context())
	b.cancel, b.ended = cancel, make(chan error, 1)
	o := agent.Options{
		Version: "1.0.0", Slot: "golden", Drivers: hal.NewRegistry(b.drivers...), Log: slog.New(slog.NewTextHandler(b.log, nil)),
		OpenTPM: func(path string) (agent.TPM, error) {
			if b.deaf.Add(-1) >= 0 {
				return nil, errors.New("the TPM does not answer")
			}
			dev, err := chip.Open(path)
			return clumsy{dev, &b.cut}, err
		},
		Slots: func(string) agent.Slots { return b.slots },
		Tail:  b.tail,
	}
	go func() {
		for {
			err := agent.New(b.cfg, o).Run(ctx)
			if !errors.Is(err, agent.ErrRestart) || ctx.Err() != nil {
				b.ended <- err
				return
			}
		}
	}()
}

// stop ends the agent in an orderly way.
func (b *box) stop() {
	if b.cancel == nil {
		return
	}
	b.cancel()
	if err := <-b.ended; err != nil && !errors.Is(err, agent.ErrRestart) {
		b.f.t.Errorf("the agent ended: %v", err)
	}
	b.cancel = nil
}

// sealed is a box that has booted fw, which a release approves, and has locked
// its books.
func (f *fleet) sealed(fw tpmfarm.Firmware) *box {
	f.t.Helper()
	b := f.box()
	b.cfg.Update.SealKey = f.path("seal.pem")
	b.boot(fw)
	f.until("not sealed and started again", func() bool { return f.audited("vault.sealed") && f.has("link.up", 2) })
	return b
}

// device is the id of the only member.
func (f *fleet) device() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id := range f.members {
		return id
	}
	return ""
}

// clumsy is a TPM that may lose its power at one step.
type clumsy struct {
	agent.TPM
	cut *atomic.Bool
}

func (c clumsy) KeepLDevID(ctx context.Context, public []byte) error {
	if c.cut.Load() {
		return errors.New("power cut")
	}
	return c.TPM.KeepLDevID(ctx, public)
}

func (c clumsy) KeepAK(ctx context.Context, public []byte) error {
	if c.cut.Load() {
		return errors.New("power cut")
	}
	return c.TPM.KeepAK(ctx, public)
}
