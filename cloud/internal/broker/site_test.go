package broker_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/broker"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/ca"
	"github.com/tillward/tillward/provisioning/identity"
)

const (
	tenant = "acme"
	label  = "EXPORTER-test"
	wait   = 10 * time.Second // for what must happen
)

// site is a broker and what it told.
type site struct {
	t      testing.TB
	b      *broker.Broker
	addr   string
	issuer *ca.Authority
	stop   func() // ends Run and waits for it

	messages chan broker.Message // not yet acknowledged

	mu         sync.Mutex
	presence   []string
	violations []string
	refused    []error
	clones     chan string
	ready      chan fleet.DeviceID
	online     chan string
}

// start runs a broker; by default what it takes waits in messages.
func start(t testing.TB, change ...func(*broker.Options)) *site {
	t.Helper()
	issuer, err := ca.Open(t.TempDir(), tenant, ca.Options{})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := issuer.IssueServer([]string{"127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{
		t: t, addr: ln.Addr().String(), issuer: issuer, messages: make(chan broker.Message, 1024), ready: make(chan fleet.DeviceID, 64),
		online: make(chan string, 1024), clones: make(chan string, 64),
	}
	o := broker.Options{
		Listener: ln, TLS: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}, Clients: issuer.Pool, ExporterLabel: label,
		Admit:  func(context.Context, identity.Identity) (fleet.Admission, error) { return fleet.AdmitMember, nil },
		Submit: func(m broker.Message) bool { s.messages <- m; return true },
		Presence: func(d fleet.DeviceID, online bool, _ time.Time) {
			s.mu.Lock()
			s.presence = append(s.presence, fmt.Sprintf("%s %v", d, online))
			s.mu.Unlock()
			select {
			case s.online <- fmt.Sprintf("%s %v", d, online):
			default: // nobody listens
			}
		},
		Ready: func(d fleet.DeviceID) { s.ready <- d },
		Violation: func(d, what string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.violations = append(s.violations, d+": "+what)
		},
		Refused: func(d string, err error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.refused = append(s.refused, err)
		},
		Clone: func(d, what string) { s.clones <- d + ": " + what },
		Log:   slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(&o)
	}
	if s.b, err = broker.New(o); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.b.Run(ctx) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(wait):
			t.Error("the broker did not stop")
		}
	})
	t.Cleanup(s.stop)
	return s
}

// name is the id of the nth device.
func name(n int) string { return identity.DeviceID(fmt.Appendf(nil, "device %d", n)) }

// certificate is that of the nth device of a tenant.
func certificate(t testing.TB, issuer *ca.Authority, tenant string, n int) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := issuer.IssueDevice(identity.Identity{Tenant: tenant, Device: name(n), Tier: identity.TierC, Model: "vend-1"}, key.Public(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (s *site) config(n int) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(s.issuer.Root())
	return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{certificate(s.t, s.issuer, tenant, n)}, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12}
}

// conn is a device that speaks MQTT byte by byte, so that it can also say what
// a library would not.
type conn struct {
	*tls.Conn
	t  testing.TB
	id string
}

// dial does the handshake.
func (s *site) dial(cfg *tls.Config) *conn {
	s.t.Helper()
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: wait}, "tcp", s.addr, cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(wait))
	return &conn{Conn: c, t: s.t}
}

// device connects the nth device as it should.
func (s *site) device(n int) *conn {
	s.t.Helper()
	c := s.dial(s.config(n))
	c.id = name(n)
	c.send(connect(c.id))
	if typ, body := c.packet(); typ != 2 || body[1] != 0 {
		s.t.Fatalf("got packet %d %x, want CONNACK 0", typ, body)
	}
	return c
}

// attested is device with both doors open and listened to.
func (s *site) attested(n int) *conn {
	s.t.Helper()
	c := s.device(n)
	if code := c.subscribe(wire.Down(tenant, c.id, true)); code != 1 {
		s.t.Fatalf("subscribe q: got %x", code)
	}
	if err := s.b.Verdict(fleet.DeviceID(c.id), c.exporter(), fleet.Attested, []byte("verdict")); err != nil {
		s.t.Fatal(err)
	}
	if topic, payload := c.delivery(); payload != "verdict" || topic != (wire.Topic{Tenant: tenant, Device: c.id, Quarantine: true, Channel: wire.DownChallenge}.String()) {
		s.t.Fatalf("got %s %q, want the verdict", topic, payload)
	}
	if code := c.subscribe(wire.Down(tenant, c.id, false)); code != 1 {
		s.t.Fatalf("subscribe d: got %x", code)
	}
	return c
}

func (c *conn) exporter() []byte {
	state := c.ConnectionState()
	b, err := state.ExportKeyingMaterial(label, nil, 32)
	if err != nil {
		c.t.Fatal(err)
	}
	return b
}

func (c *conn) send(b []byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil && !errors.Is(err, net.ErrClosed) {
		c.t.Logf("write: %v", err) // the other side may have closed already, which the reader sees
	}
}

// read returns the next packet.
func (c *conn) read() (typ byte, body []byte, err error) {
	var head [1]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return 0, nil, err
	}
	var n, shift int
	for {
		var b [1]byte
		if _, err := io.ReadFull(c, b[:]); err != nil {
			return 0, nil, err
		}
		n |= int(b[0]&0x7f) << shift
		if shift += 7; b[0] < 0x80 {
			break
		}
	}
	body = make([]byte, n)
	_, err = io.ReadFull(c, body)
	return head[0] >> 4, body, err
}

func (c *conn) packet() (byte, []byte) {
	c.t.Helper()
	typ, body, err := c.read()
	if err != nil {
		c.t.Fatalf("read: %v", err)
	}
	return typ, body
}

// closed reads until the other side closes and returns the types of the packets
// before that. A DISCONNECT that mochi says is no answer.
func (c *conn) closed() (types []byte) {
	c.t.Helper()
	for {
		typ, _, err := c.read()
		if err != nil {
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				c.t.Error("the connection was not closed")
			}
			return types
		}
		if typ != 14 {
			types = append(types, typ)
		}
	}
}

func (c *conn) subscribe(filter string) byte {
	c.t.Helper()
	c.send(mqtt(0x82, binary.BigEndian.AppendUint16(nil, 7), text(filter), []byte{1}))
	typ, body := c.packet()
	if typ != 9 || len(body) != 3 {
		c.t.Fatalf("got packet %d %x, want SUBACK", typ, body)
	}
	return body[2]
}

// delivery reads a PUBLISH.
func (c *conn) delivery() (topic, payload string) {
	c.t.Helper()
	typ, body := c.packet()
	if typ != 3 {
		c.t.Fatalf("got packet %d %x, want PUBLISH", typ, body)
	}
	n := int(binary.BigEndian.Uint16(body))
	return string(body[2 : 2+n]), string(body[4+n:])
}

// puback reads a PUBACK and returns its packet id.
func (c *conn) puback() uint16 {
	c.t.Helper()
	typ, body := c.packet()
	if typ != 4 {
		c.t.Fatalf("got packet %d %x, want PUBACK", typ, body)
	}
	return binary.BigEndian.Uint16(body)
}

func mqtt(head byte, parts ...[]byte) []byte {
	body := bytes.Join(parts, nil)
	out := []byte{head}
	for n := len(body); ; {
		b := byte(n & 0x7f)
		if n >>= 7; n > 0 {
			out = append(out, b|0x80)
			continue
		}
		return append(append(out, b), body...)
	}
}

func text(s string) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...) }

// connect is a CONNECT with a clean session and a keep-alive of a minute.
func connect(id string) []byte { return connectWith(4, 0x02, 60, id) }

func connectWith(version, flags byte, keepalive uint16, id string, more ...[]byte) []byte {
	proto := text("MQTT")
	if version == 3 {
		proto = text("MQIsdp")
	}
	parts := [][]byte{proto, {version, flags}, binary.BigEndian.AppendUint16(nil, keepalive)}
	if version == 5 {
		parts = append(parts, []byte{0})
	}
	return mqtt(0x10, append(append(parts, text(id)), more...)...)
}

// publish is a PUBLISH with the flags DUP 8, QoS 2 and 4, RETAIN 1.
func publish(flags byte, topic string, packet uint16, payload []byte) []byte {
	parts := [][]byte{text(topic)}
	if flags&6 != 0 {
		parts = append(parts, binary.BigEndian.AppendUint16(nil, packet))
	}
	return mqtt(0x30|flags, append(parts, payload)...)
}

func up(id string, q bool, c wire.Channel) string {
	return wire.Topic{Tenant: tenant, Device: id, Quarantine: q, Channel: c}.String()
}

// next waits for a message.
func (s *site) next() broker.Message {
	s.t.Helper()
	select {
	case m := <-s.messages:
		return m
	case <-time.After(wait):
		s.t.Fatal("no message came")
		return broker.Message{}
	}
}

// heard waits until the last presence of a device is what it should be.
func (s *site) heard(want string) {
	s.t.Helper()
	for {
		select {
		case got := <-s.online:
			if got == want {
				return
			}
		case <-time.After(wait):
			s.t.Fatalf("presence: %q did not come", want)
		}
	}
}
