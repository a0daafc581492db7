package broker_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/broker"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/ca"
	"github.com/tillward/tillward/provisioning/identity"
)

// TestRestricted: a certificate that opens only quarantine opens only quarantine, whatever the evidence says; the twin
// is TestDoors.
func TestRestricted(t *testing.T) {
	for _, admission := range []fleet.Admission{fleet.AdmitQuarantine, "", "what nobody knows"} {
		s := start(t, func(o *broker.Options) {
			o.Admit = func(context.Context, identity.Identity) (fleet.Admission, error) { return admission, nil }
		})
		id := fleet.DeviceID(name(1))
		c := s.device(1)
		c.subscribe(wire.Down(tenant, c.id, true))
		if err := s.b.Verdict(id, c.exporter(), fleet.Attested, []byte("v")); err != nil {
			t.Fatal(err)
		}
		c.delivery()
		if code := c.subscribe(wire.Down(tenant, c.id, false)); code != 0x80 {
			t.Errorf("%q: d door: got %#x, want 0x80", admission, code)
		}
		if got := s.b.Issuer(id); got != "" {
			t.Errorf("%q: it came by a certificate of %s, want nobody's", admission, got)
		}
		if got := s.b.Connected()[id]; got != fleet.Quarantined {
			t.Errorf("%q: connected as %s", admission, got)
		}
		if err := s.b.Send(id, wire.DownOffer, []byte("repair")); err != nil {
			t.Fatal(err)
		}
		if topic, _ := c.delivery(); topic != up(c.id, true, wire.DownOffer) {
			t.Errorf("%q: got the offer on %s, want the q door", admission, topic)
		}
		c.send(publish(2, up(c.id, true, wire.State), 1, nil))
		m := s.next()
		if m.Admission != admission {
			t.Errorf("message of a connection admitted as %q: got %q", admission, m.Admission)
		}
		m.Ack(nil)
		c.puback()
		c.send(publish(2, up(c.id, false, wire.Telemetry), 2, nil))
		if got := c.closed(); len(got) != 0 {
			t.Errorf("%q: telemetry: got packets %v, want the end", admission, got)
		}
	}
}

// TestAuthorities changes the authorities of device certificates under a live fleet: who is connected stays, who comes
// with a certificate of the new one is let in, and of the old one as long as it counts.
func TestAuthorities(t *testing.T) {
	next, err := ca.Open(t.TempDir(), tenant, ca.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var pool atomic.Pointer[x509.CertPool]
	s := start(t, func(o *broker.Options) {
		pool.Store(o.Clients())
		o.Clients = pool.Load
	})
	both := x509.NewCertPool()
	for _, a := range []*ca.Authority{s.issuer, next} {
		both.AddCert(issuing(t, a))
	}
	handshake := func(issuer *ca.Authority, n int) error {
		cfg := s.config(n)
		cfg.Certificates = []tls.Certificate{certificate(t, issuer, tenant, n)}
		c, err := tls.Dial("tcp", s.addr, cfg)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(wait))
		raw := &conn{Conn: c, t: t}
		raw.send(connect(name(n)))
		_, body, err := raw.read()
		if err == nil && body[1] != 0 {
			err = fmt.Errorf("CONNACK %d", body[1])
		}
		return err
	}
	old := s.attested(1)
	if err := handshake(next, 2); err == nil {
		t.Error("an authority was believed before its time")
	}
	pool.Store(both)
	for _, a := range []*ca.Authority{s.issuer, next} {
		if err := handshake(a, 2); err != nil {
			t.Errorf("while both count: %v", err)
		}
	}
	if got, want := s.b.Issuer(fleet.DeviceID(old.id)), hex.EncodeToString(issuing(t, s.issuer).SubjectKeyId); got != want {
		t.Errorf("the first one came by a certificate of %q, want %q", got, want)
	}
	if got := s.b.Issuer(fleet.DeviceID(name(9))); got != "" {
		t.Errorf("who is not connected came by a certificate of %q", got)
	}
	pool.Store(next.Pool())
	if err := handshake(s.issuer, 3); err == nil {
		t.Error("an authority was believed after its time")
	}
	if err := handshake(next, 3); err != nil {
		t.Error(err)
	}
	pool.Store(nil)
	if err := handshake(next, 3); err == nil {
		t.Error("without any authority somebody was let in")
	}
	old.send(mqtt(0xc0))
	if typ, _ := old.packet(); typ != 13 {
		t.Errorf("who was connected all the time: got packet %d, want PINGRESP", typ)
	}
}

func issuing(t *testing.T, a *ca.Authority) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(a.Chain()[0])
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestCutOff revokes a device: its connection ends at once, what it published and what was not stored yet is not
// taken, and it does not come back. Another device notices nothing.
func TestCutOff(t *testing.T) {
	var revoked atomic.Bool
	s := start(t, func(o *broker.Options) {
		o.Admit = func(_ context.Context, id identity.Identity) (fleet.Admission, error) {
			if revoked.Load() && id.Device == name(1) {
				return "", fmt.Errorf("admit: %w", fleet.ErrRevoked)
			}
			return fleet.AdmitMember, nil
		}
	})
	c, other := s.attested(1), s.attested(2)
	c.send(publish(2, up(c.id, false, wire.Audit), 1, []byte("before")))
	m := s.next()
	limit := time.Now().Add(2 * time.Second)
	_ = c.SetDeadline(limit)
	revoked.Store(true)
	s.b.Disconnect(fleet.DeviceID(c.id), "revoked")
	c.send(publish(2, up(c.id, false, wire.Audit), 2, []byte("after")))
	m.Ack(nil)
	if got := c.closed(); len(got) != 0 {
		t.Errorf("got packets %v, want none", got)
	}
	if time.Now().After(limit) {
		t.Error("cut off too late")
	}
	again := s.dial(s.config(1))
	again.send(connect(c.id))
	for _, typ := range again.closed() {
		if typ != 2 {
			t.Errorf("came back: got packet %d", typ)
		}
	}
	select {
	case m := <-s.messages:
		t.Errorf("taken: %s %q", m.Topic, m.Payload)
	default:
	}
	if err := s.b.Send(fleet.DeviceID(c.id), wire.DownCommand, nil); !errors.Is(err, broker.ErrOffline) {
		t.Errorf("send: got %v, want ErrOffline", err)
	}
	s.mu.Lock()
	if len(s.refused) != 1 || !errors.Is(s.refused[0], fleet.ErrRevoked) {
		t.Errorf("told of refusals: %v, want one", s.refused)
	}
	s.mu.Unlock()
	other.send(mqtt(0xc0))
	if typ, _ := other.packet(); typ != 13 {
		t.Errorf("another device: got packet %d, want PINGRESP", typ)
	}
}

// TestCutOffWhileConnecting: the answer of Admit may be older than the revocation.
func TestCutOffWhileConnecting(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	s := start(t, func(o *broker.Options) {
		o.Admit = func(context.Context, identity.Identity) (fleet.Admission, error) {
			asked <- struct{}{}
			<-answer
			return fleet.AdmitMember, nil
		}
	})
	for _, cut := range []string{name(1), name(2)} {
		c := s.dial(s.config(1))
		c.send(connect(name(1)))
		<-asked
		s.b.Disconnect(fleet.DeviceID(cut), "revoked")
		answer <- struct{}{}
		typ, body, err := c.read()
		if in := err == nil && typ == 2 && body[1] == 0; in == (cut == name(1)) {
			t.Errorf("%s was cut off: got packet %d %x, %v", cut, typ, body, err)
		}
	}
}

// TestToldOfStrangers: a certificate of ours for somebody who is no member is told, a store that does not answer is not.
func TestToldOfStrangers(t *testing.T) {
	for err, want := range map[error]int{fleet.ErrNotFound: 1, fleet.ErrReplaced: 1, errors.New("disk full"): 0} {
		s := start(t, func(o *broker.Options) {
			o.Admit = func(context.Context, identity.Identity) (fleet.Admission, error) {
				return "", fmt.Errorf("admit: %w", err)
			}
		})
		for range 2 { // once a minute is enough
			c := s.dial(s.config(1))
			c.send(connect(name(1)))
			c.closed()
		}
		s.stop()
		if len(s.refused) != want {
			t.Errorf("%v: told %d times, want %d", err, len(s.refused), want)
		}
	}
}

// living reads until the other side closes, and then says goodbye as an agent does.
func (c *conn) living() *conn {
	go func() {
		_ = c.SetDeadline(time.Time{})
		_, _ = io.Copy(io.Discard, c)
		_ = c.Close()
	}()
	return c
}

// from connects the first device from another address of this machine.
func (s *site) from(host string) *conn {
	s.t.Helper()
	d := &net.Dialer{Timeout: wait, LocalAddr: &net.TCPAddr{IP: net.ParseIP(host)}}
	raw, err := tls.DialWithDialer(d, "tcp", s.addr, s.config(1))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = raw.Close() })
	_ = raw.SetDeadline(time.Now().Add(wait))
	c := &conn{Conn: raw, t: s.t, id: name(1)}
	c.send(connect(c.id))
	if typ, body := c.packet(); typ != 2 || body[1] != 0 {
		s.t.Fatalf("got packet %d %x, want CONNACK 0", typ, body)
	}
	return c
}

// TestSendOpen: what is for trusted devices alone does not pass the q door.
func TestSendOpen(t *testing.T) {
	s := start(t)
	c := s.attested(1)
	send := func(what string) error { return s.b.SendOpen(fleet.DeviceID(c.id), wire.DownCommand, []byte(what)) }
	if err := send("one"); err != nil {
		t.Fatal(err)
	}
	if topic, payload := c.delivery(); payload != "one" || topic != (wire.Topic{Tenant: tenant, Device: c.id, Channel: wire.DownCommand}).String() {
		t.Errorf("got %q on %s", payload, topic)
	}
	if err := s.b.Verdict(fleet.DeviceID(c.id), c.exporter(), fleet.Quarantined, []byte("verdict")); err != nil {
		t.Fatal(err)
	}
	if err := send("two"); !errors.Is(err, broker.ErrOffline) {
		t.Errorf("quarantined: got %v, want ErrOffline", err)
	}
	if err := s.b.Send(fleet.DeviceID(c.id), wire.DownCommand, []byte("for everybody")); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"verdict", "for everybody"} {
		if _, payload := c.delivery(); payload != want {
			t.Errorf("got %q, want %q", payload, want)
		}
	}
}

// TestChallengeNamesItsConnection: a challenge is answered on the connection that it went by, and that one alone.
func TestChallengeNamesItsConnection(t *testing.T) {
	s := start(t)
	for range 2 { // the second takes over
		c := s.attested(1)
		exporter, err := s.b.Challenge(fleet.DeviceID(c.id), []byte("show"))
		if err != nil || !bytes.Equal(exporter, c.exporter()) {
			t.Errorf("got connection %x, %v, want %x", exporter, err, c.exporter())
		}
		if topic, payload := c.delivery(); payload != "show" || !strings.HasSuffix(topic, "/down/challenge") {
			t.Errorf("got %q on %s", payload, topic)
		}
	}
	if _, err := s.b.Challenge(fleet.DeviceID(name(2)), nil); !errors.Is(err, broker.ErrOffline) {
		t.Errorf("nobody there: got %v", err)
	}
}

// TestClone: two that live and take turns are told as copies, from two addresses at once, from one when it goes on.
func TestClone(t *testing.T) {
	for what, tt := range map[string]struct {
		hosts []string
		says  string
	}{
		"two addresses": {[]string{"127.0.0.1", "127.0.0.2", "127.0.0.1"}, "from 127.0.0.2 and from 127.0.0.1 take turns"},
		"one address":   {[]string{"127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.1"}, "4 live connections"},
	} {
		t.Run(what, func(t *testing.T) {
			s := start(t)
			for _, host := range tt.hosts {
				select {
				case got := <-s.clones:
					t.Fatalf("told too early: %s", got)
				default:
				}
				s.from(host).living()
			}
			select {
			case got := <-s.clones:
				if !strings.HasPrefix(got, name(1)+": ") || !strings.Contains(got, tt.says) {
					t.Errorf("got %q, want %q", got, tt.says)
				}
			case <-time.After(wait):
				t.Fatal("not told")
			}
			for range 8 { // once is enough
				s.from("127.0.0.1").living()
				s.from("127.0.0.2").living()
			}
			s.stop()
			if n := len(s.clones); n != 0 {
				t.Errorf("told %d times more", n)
			}
		})
	}
}

// TestCloneAtWork: a connection that is taken over while the service has a message of it in hand is alive, too.
func TestCloneAtWork(t *testing.T) {
	taken, leave := make(chan struct{}), make(chan struct{})
	s := start(t, func(o *broker.Options) {
		o.Submit = func(m broker.Message) bool {
			taken <- struct{}{}
			<-leave
			m.Ack(nil)
			return true
		}
	})
	var last *conn
	for _, host := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.1"} {
		c := s.from(host) // takes over; who is taken over has a message in hand
		if last != nil {
			leave <- struct{}{}
			last.living()
		}
		c.send(publish(2, up(c.id, true, wire.Audit), 1, []byte("entry")))
		<-taken
		last = c
	}
	close(leave)
	select {
	case got := <-s.clones:
		if !strings.Contains(got, "take turns") {
			t.Errorf("got %q", got)
		}
	case <-time.After(wait):
		t.Fatal("not told")
	}
}

// TestNoClone: one device that loses its link, changes it, or is started again is no copy, however often.
func TestNoClone(t *testing.T) {
	for what, leave := range map[string]func(c *conn){
		"cut link":        func(*conn) {}, // the other end is silent for ever
		"killed":          func(c *conn) { _ = c.NetConn().(*net.TCPConn).SetLinger(0); _ = c.NetConn().Close() },
		"stopped":         func(c *conn) { _ = c.Close() },
		"stopped orderly": func(c *conn) { c.send(mqtt(0xe0)); _ = c.Close() },
		"stopped in the middle of it": func(c *conn) {
			for i := range uint16(50) {
				c.send(publish(2, up(c.id, true, wire.Audit), i+1, make([]byte, 1000)))
			}
			_ = c.Close()
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			for i := range 10 {
				c := s.from([]string{"127.0.0.1", "127.0.0.2"}[i%2])
				leave(c)
			}
			s.stop() // waits until each connection has ended
			select {
			case got := <-s.clones:
				t.Errorf("told: %s", got)
			default:
			}
		})
	}
}
