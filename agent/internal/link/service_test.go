package link_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/tillward/tillward/cloud/wire"
)

const (
	label  = "EXPORTER-tillward-test"
	tenant = "acme"
	device = "dev-1"
)

// authority is a small CA.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB, name string) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key}
}

func (a authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func (a authority) issue(t testing.TB, name string, until time.Time) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// arrival is one publish as the service saw it.
type arrival struct {
	topic   string
	payload string
}

// service is the fleet service as the link sees it: a real broker that stores
// first and acknowledges then, and that answers evidence with a verdict.
type service struct {
	t         testing.TB
	addr      string
	server    *mqtt.Server
	ca        authority
	evidences chan wire.EvidenceReport
	exporters chan []byte
	pubacks   chan struct{} // of the device, for down messages

	mu      sync.Mutex
	verdict string // said for each evidence; "" says nothing
	version uint16 // of the contract that the service knows; 1 when zero
	stored  []arrival
	filters []string
	denied  string                    // filter that is refused
	busyIDs int                       // subscriptions whose packet id is taken
	cut     func(n int) bool          // after the n-th message: close the connection instead of acknowledging it
	mute    func(n int) bool          // after the n-th message: neither acknowledge nor close
	hold    func(c wire.Channel) bool // withhold the acknowledgement until release
	held    []func()
	slow    chan struct{} // evidence is acknowledged once it is closed; nil: at once
	shown   [][]byte      // device certificates, by connection
	changed chan struct{} // closed and renewed at each arrival
}

type hook struct {
	mqtt.HookBase
	s *service
}

func (h *hook) ID() string           { return "service" }
func (h *hook) Provides(b byte) bool { return true }
func (h *hook) OnConnectAuthenticate(cl *mqtt.Client, _ packets.Packet) bool {
	if conn, ok := cl.Net.Conn.(*tls.Conn); ok {
		h.s.set(func() { h.s.shown = append(h.s.shown, conn.ConnectionState().PeerCertificates[0].Raw) })
	}
	return cl.ID == device
}

func (h *hook) OnACLCheck(_ *mqtt.Client, topic string, _ bool) bool {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	return h.s.denied == "" || topic != h.s.denied
}

func (h *hook) OnSubscribe(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	if h.s.busyIDs > 0 { // a message of ours is in flight under the same id
		h.s.busyIDs--
		cl.State.Inflight.Set(packets.Packet{PacketID: pk.PacketID, FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}})
	}
	for _, f := range pk.Filters {
		h.s.filters = append(h.s.filters, f.Filter)
	}
	return pk
}

func (h *hook) OnPacketRead(_ *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if pk.FixedHeader.Type == packets.Puback {
		h.s.pubacks <- struct{}{}
	}
	return pk, nil
}

var errCut = errors.New("cut")

func (h *hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if cl.Net.Inline {
		return pk, nil
	}
	s := h.s
	topic, err := wire.ParseTopic(pk.TopicName)
	if err != nil || topic.Device != device || topic.Tenant != tenant || !topic.Channel.Up() {
		s.t.Errorf("published to %s (%v)", pk.TopicName, err)
	}
	if topic.Channel == wire.Evidence {
		s.evidence(cl, pk)
		return pk, packets.ErrRejectPacket
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stored = append(s.stored, arrival{pk.TopicName, string(pk.Payload)})
	close(s.changed)
	s.changed = make(chan struct{})
	n := len(s.stored)
	switch {
	case s.cut != nil && s.cut(n):
		cl.Stop(errCut)
	case s.mute != nil && s.mute(n):
	case s.hold != nil && s.hold(topic.Channel):
		s.held = append(s.held, func() { h.ack(cl, pk) })
	default:
		h.ack(cl, pk)
	}
	return pk, packets.ErrRejectPacket
}

func (h *hook) ack(cl *mqtt.Client, pk packets.Packet) {
	_ = cl.WritePacket(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: pk.PacketID})
}

func (s *service) evidence(cl *mqtt.Client, pk packets.Packet) {
	e, err := wire.Decode[wire.EvidenceReport](pk.Payload)
	if err != nil {
		s.t.Errorf("evidence: %v", err)
		return
	}
	cs := cl.Net.Conn.(*tls.Conn).ConnectionState()
	exporter, err := cs.ExportKeyingMaterial(label, nil, 32)
	if err != nil {
		s.t.Error(err)
	}
	s.mu.Lock()
	verdict, slow, version := s.verdict, s.slow, max(1, s.version)
	s.mu.Unlock()
	s.evidences <- e
	s.exporters <- exporter
	if slow != nil {
		<-slow
	}
	(&hook{s: s}).ack(cl, pk)
	if verdict != "" {
		s.say(wire.Challenge{V: version, Verdict: verdict, Reasons: []string{"because"}})
	}
}

func (s *service) say(c wire.Challenge) {
	b, err := wire.Encode(&c)
	if err != nil {
		s.t.Error(err)
	}
	s.send(wire.Topic{Tenant: tenant, Device: device, Quarantine: true, Channel: wire.DownChallenge}, b)
}

func (s *service) send(topic wire.Topic, payload []byte) {
	if err := s.server.Publish(topic.String(), payload, false, 1); err != nil {
		s.t.Error(err)
	}
}

func (s *service) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// release acknowledges what was withheld, and withholds nothing more.
func (s *service) release() {
	s.mu.Lock()
	held := s.held
	s.hold, s.held = nil, nil
	s.mu.Unlock()
	for _, ack := range held {
		ack()
	}
}

// wait returns what has been stored once ok holds for it.
func (s *service) wait(ok func([]arrival) bool) []arrival {
	s.t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		s.mu.Lock()
		stored, changed := bytesClone(s.stored), s.changed
		s.mu.Unlock()
		if ok(stored) {
			return stored
		}
		select {
		case <-changed:
		case <-deadline:
			s.t.Fatalf("after 20 s the service has stored %d messages", len(stored))
		}
	}
}

func bytesClone(a []arrival) []arrival { return append([]arrival(nil), a...) }

func newService(t testing.TB, verdict string) *service {
	t.Helper()
	return newServiceTLS(t, verdict, newAuthority(t, "service root"), nil)
}

func newServiceTLS(t testing.TB, verdict string, ca authority, change func(*tls.Config)) *service {
	t.Helper()
	s := &service{
		t: t, ca: ca, verdict: verdict, changed: make(chan struct{}),
		evidences: make(chan wire.EvidenceReport, 100), exporters: make(chan []byte, 100), pubacks: make(chan struct{}, 100),
	}
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{ca.issue(t, "fleet.test", time.Now().Add(time.Hour))},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.pool(), SessionTicketsDisabled: true,
	}
	if change != nil {
		change(conf)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", conf)
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	s.server = mqtt.New(&mqtt.Options{InlineClient: true, Logger: slog.New(slog.DiscardHandler)})
	if err := s.server.AddHook(&hook{s: s}, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.server.AddListener(listeners.NewNet("tls", l)); err != nil {
		t.Fatal(err)
	}
	if err := s.server.Serve(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.server.Close() })
	return s
}

// deadAddress is one where nobody listens.
func deadAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func evidenceOf(exporter []byte, seq uint64, nonce []byte, full bool) wire.EvidenceReport {
	e := wire.EvidenceReport{
		Head: wire.Head{V: 1, Boot: wire.Boot{1}, Seq: seq}, Quoted: bytes.Clone(exporter), Signature: []byte("sig"),
		Seq: seq, Nonce: nonce, AgentVersion: "1.2.3",
	}
	if full {
		e.Log = []byte("log")
	}
	return e
}

// certificates are those that were shown, in order.
func (s *service) certificates() (shown [][]byte) {
	s.set(func() { shown = s.shown })
	return shown
}

func doors(stored []arrival) (d, q int) {
	for _, a := range stored {
		if strings.HasPrefix(a.topic, "t/acme/d/") {
			d++
		} else {
			q++
		}
	}
	return d, q
}
