package broker_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/tillward/tillward/cloud/internal/broker"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/ca"
	"github.com/tillward/tillward/provisioning/identity"
)

// TestAcknowledgedMeansStored publishes with a common library: its token is done only after the commit.
func TestAcknowledgedMeansStored(t *testing.T) {
	s := start(t)
	o := paho.NewClientOptions().AddBroker("ssl://" + s.addr).SetClientID(name(1)).SetTLSConfig(s.config(1)).SetCleanSession(true).SetAutoReconnect(false)
	c := paho.NewClient(o)
	if tok := c.Connect(); !tok.WaitTimeout(wait) || tok.Error() != nil {
		t.Fatal(tok.Error())
	}
	defer c.Disconnect(0)
	s.heard(name(1) + " true")
	tok := c.Publish(up(name(1), true, wire.State), 1, false, []byte("hello"))
	m := s.next()
	if string(m.Payload) != "hello" || m.Identity.Device != name(1) || m.Identity.Tenant != tenant || m.Topic.Channel != wire.State || !m.Topic.Quarantine || len(m.Exporter) != 32 {
		t.Errorf("got %+v", m)
	}
	select {
	case <-tok.Done():
		t.Fatal("acknowledged before it was stored")
	default:
	}
	m.Ack(nil)
	if !tok.WaitTimeout(wait) || tok.Error() != nil {
		t.Fatalf("not acknowledged after it was stored: %v", tok.Error())
	}
	c.Disconnect(10)
	s.heard(name(1) + " false")
}

// TestFailedCommit fails a commit in every way that mochi treats in its own manner: never a PUBACK, the
// connection is closed, and the message that comes again after the reconnect is acknowledged once.
func TestFailedCommit(t *testing.T) {
	for name, failure := range map[string]error{
		"plain":             errors.New("disk full"),
		"code":              packets.ErrQuotaExceeded,
		"wrapped code":      fmt.Errorf("commit: %w", packets.ErrQuotaExceeded),
		"code of success":   packets.CodeSuccess,
		"ignore":            packets.CodeSuccessIgnore,
		"canceled":          context.Canceled,
		"reject, as we say": packets.ErrRejectPacket,
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			stored := 0
			c := s.device(1)
			c.send(publish(2, up(c.id, true, wire.Audit), 5, []byte("entry")))
			s.next().Ack(failure)
			if got := c.closed(); len(got) != 0 {
				t.Errorf("got packets %v before the end, want none", got)
			}
			c = s.device(1)
			c.send(publish(2|8, up(c.id, true, wire.Audit), 5, []byte("entry")))
			m := s.next()
			stored++
			m.Ack(nil)
			if got := c.puback(); got != 5 || string(m.Payload) != "entry" || stored != 1 {
				t.Errorf("after the reconnect: got PUBACK %d for %q", got, m.Payload)
			}
		})
	}
}

// TestOrderHolds lets the first of three fail: what came behind it on the connection is not acknowledged,
// though it was stored.
func TestOrderHolds(t *testing.T) {
	s := start(t)
	c := s.device(1)
	for i := range uint16(3) {
		c.send(publish(2, up(c.id, true, wire.Audit), i+1, []byte{byte(i)}))
	}
	a, b, d := s.next(), s.next(), s.next()
	if a.Payload[0] != 0 || b.Payload[0] != 1 || d.Payload[0] != 2 {
		t.Errorf("got %x %x %x, want the order of publishing", a.Payload, b.Payload, d.Payload)
	}
	a.Ack(errors.New("disk full"))
	b.Ack(nil)
	d.Ack(nil)
	if got := c.closed(); len(got) != 0 {
		t.Errorf("got packets %v, want none", got)
	}
}

// TestHandshake refuses whoever is not a device of ours; the twin is every other test.
func TestHandshake(t *testing.T) {
	s := start(t)
	stranger, err := ca.Open(t.TempDir(), tenant, ca.Options{})
	if err != nil {
		t.Fatal(err)
	}
	server, err := s.issuer.IssueServer([]string{"127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*tls.Config){
		"TLS 1.2":                       func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 },
		"no certificate":                func(c *tls.Config) { c.Certificates = nil },
		"certificate of another CA":     func(c *tls.Config) { c.Certificates = []tls.Certificate{certificate(t, stranger, tenant, 1)} },
		"certificate of a server":       func(c *tls.Config) { c.Certificates = []tls.Certificate{server} },
		"someone else's key beside his": func(c *tls.Config) { c.Certificates[0].PrivateKey = certificate(t, s.issuer, tenant, 2).PrivateKey },
	} {
		cfg := s.config(1)
		change(cfg)
		c, err := tls.Dial("tcp", s.addr, cfg)
		if err != nil {
			continue // refused at once
		}
		_ = c.SetDeadline(time.Now().Add(wait))
		raw := &conn{Conn: c, t: t}
		raw.send(connect(name(1))) // in TLS 1.3 the client learns of the refusal when it reads
		if got := raw.closed(); len(got) != 0 {
			t.Errorf("%s: got packets %v, want none", what, got)
		}
		_ = c.Close()
	}
	if got := s.b.Connected(); len(got) != 0 {
		t.Errorf("connected: got %v, want nobody", got)
	}
}

// TestNoResumption offers a session cache: each handshake is a full one, in which the client signs.
func TestNoResumption(t *testing.T) {
	s := start(t)
	cfg := s.config(1)
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	for range 3 {
		c := s.dial(cfg)
		c.send(connect(name(1)))
		if typ, body := c.packet(); typ != 2 || body[1] != 0 {
			t.Fatalf("got packet %d %x, want CONNACK 0", typ, body)
		}
		if c.ConnectionState().DidResume {
			t.Error("the session was resumed")
		}
		_ = c.Close()
	}
}

// TestConnect refuses at CONNECT what the contract does not know.
func TestConnect(t *testing.T) {
	s := start(t, func(o *broker.Options) {
		o.Admit = func(_ context.Context, id identity.Identity) (fleet.Admission, error) {
			switch id.Device {
			case name(8):
				return "", fmt.Errorf("certificate %s: %w", id.Serial, fleet.ErrReplaced)
			case name(9):
				panic("broken registry")
			}
			return fleet.AdmitMember, nil
		}
	})
	for what, tt := range map[string]struct {
		n    int
		pack []byte
	}{
		"another device's id": {1, connect(name(2))},
		"no id":               {1, connect("")},
		"upper case":          {1, connect(strings.ToUpper(name(1)))},
		"a last will":         {1, connectWith(4, 0x02|0x04|0x08, 60, name(1), text(up(name(1), true, wire.State)), text("gone"))},
		"a session to keep":   {1, connectWith(4, 0x00, 60, name(1))},
		"no keep-alive":       {1, connectWith(4, 0x02, 0, name(1))},
		"long keep-alive":     {1, connectWith(4, 0x02, 3600, name(1))},
		"MQTT 3.1":            {1, connectWith(3, 0x02, 60, name(1))},
		"MQTT 5":              {1, connectWith(5, 0x02, 60, name(1))},
		"not admitted":        {8, connect(name(8))},
		"registry panics":     {9, connect(name(9))},
		"no CONNECT first":    {1, publish(2, up(name(1), true, wire.State), 1, []byte("x"))},
		"a torn CONNECT":      {1, mqtt(0x10, text("MQTT"), []byte{4, 2, 0, 60}, text(name(1))[:3])},
	} {
		c := s.dial(s.config(tt.n))
		c.send(tt.pack)
		for _, typ := range c.closed() {
			if typ != 2 {
				t.Errorf("%s: got packet %d", what, typ)
			}
		}
		if got := s.b.Connected(); len(got) != 0 {
			t.Errorf("%s: connected: got %v, want nobody", what, got)
		}
	}
	s.device(1)
}

// TestPublish tries what a device may not publish: never a PUBACK, nothing is taken.
func TestPublish(t *testing.T) {
	s := start(t)
	own, other := name(1), name(2)
	for what, tt := range map[string]struct {
		attested bool
		pack     []byte
	}{
		"another tenant":           {true, publish(2, "t/evil/d/"+own+"/up/state", 1, nil)},
		"another device":           {true, publish(2, up(other, false, wire.State), 1, nil)},
		"another device, q door":   {true, publish(2, up(other, true, wire.State), 1, nil)},
		"d door while pending":     {false, publish(2, up(own, false, wire.State), 1, nil)},
		"telemetry while pending":  {false, publish(2, "t/acme/q/"+own+"/up/telemetry", 1, nil)},
		"unlisted":                 {true, publish(2, "t/acme/d/"+own+"/up/secrets", 1, nil)},
		"deeper":                   {true, publish(2, up(own, false, wire.State)+"/x", 1, nil)},
		"down":                     {true, publish(2, up(own, false, wire.DownCommand), 1, nil)},
		"plus":                     {true, publish(2, "t/acme/d/+/up/state", 1, nil)},
		"hash":                     {true, publish(2, "t/acme/#", 1, nil)},
		"empty topic":              {true, publish(2, "", 1, nil)},
		"retained":                 {true, publish(3, up(own, false, wire.State), 1, []byte("x"))},
		"QoS 0":                    {true, publish(0, up(own, false, wire.State), 0, []byte("x"))},
		"QoS 2":                    {true, publish(4, up(own, false, wire.State), 1, []byte("x"))},
		"QoS 3":                    {true, publish(6, up(own, false, wire.State), 1, []byte("x"))},
		"packet id 0":              {true, publish(2, up(own, false, wire.State), 0, []byte("x"))},
		"a byte too large":         {true, publish(2, up(own, false, wire.State), 1, make([]byte, wire.MaxMessage+1))},
		"far too large":            {true, publish(2, up(own, false, wire.State), 1, make([]byte, 2*wire.MaxMessage))},
		"only a large length":      {true, []byte{0x32, 0xff, 0xff, 0xff, 0x7f}},
		"a second CONNECT":         {true, connect(own)},
		"a packet of the server":   {true, mqtt(0xd0)},
		"PUBREL of nothing, flags": {true, mqtt(0x60, []byte{0, 1})},
	} {
		t.Run(what, func(t *testing.T) {
			s.t = t
			c := s.device(1)
			if tt.attested {
				_ = c.Close()
				c = s.attested(1)
			}
			c.send(tt.pack)
			c.send(publish(2, up(own, true, wire.State), 99, []byte("behind"))) // must not be taken either
			for _, typ := range c.closed() {
				if typ == 4 || typ == 5 || typ == 7 {
					t.Errorf("got packet %d, want no acknowledgement", typ)
				}
			}
			select {
			case m := <-s.messages:
				t.Errorf("taken: %s %.20q", m.Topic, m.Payload)
			default:
			}
		})
	}
	s.t = t
	c := s.attested(1)
	for i, q := range []bool{true, false} {
		c.send(publish(2, up(own, q, wire.State), uint16(i+1), make([]byte, wire.MaxMessage)))
		s.next().Ack(nil)
		if got := c.puback(); got != uint16(i+1) {
			t.Errorf("own topic: got PUBACK %d", got)
		}
	}
}

// TestNothingFromReservedTopics: what mochi drops without a word is not acknowledged either.
func TestNothingFromReservedTopics(t *testing.T) {
	s := start(t)
	c := s.attested(1)
	for _, topic := range []string{"$SYS/broker/uptime", "$share/g/t"} {
		c.send(publish(2, topic, 1, []byte("x")))
	}
	c.send(mqtt(0xc0))
	if typ, _, err := c.read(); err == nil && typ == 4 {
		t.Error("acknowledged")
	}
	select {
	case m := <-s.messages:
		t.Errorf("taken: %s", m.Topic)
	default:
	}
}

// TestSubscribe tries what a device may not listen to.
func TestSubscribe(t *testing.T) {
	s := start(t)
	own, other := name(1), name(2)
	for what, tt := range map[string]struct {
		attested bool
		filter   string
	}{
		"all":                   {true, "#"},
		"all of a tenant":       {true, "t/acme/#"},
		"any device":            {true, "t/acme/d/+/down/+"},
		"any tenant":            {true, "t/+/d/" + own + "/down/+"},
		"another device":        {true, wire.Down(tenant, other, false)},
		"another device, q":     {true, wire.Down(tenant, other, true)},
		"another device, exact": {true, up(other, false, wire.DownCommand)},
		"another tenant":        {true, wire.Down("evil", own, false)},
		"own up":                {true, up(own, false, wire.State)},
		"own, deeper":           {true, "t/acme/d/" + own + "/#"},
		"shared":                {true, "$share/g/" + wire.Down(tenant, own, false)},
		"system":                {true, "$SYS/#"},
		"d door while pending":  {false, wire.Down(tenant, own, false)},
	} {
		t.Run(what, func(t *testing.T) {
			s.t = t
			c := s.device(1)
			if tt.attested {
				_ = c.Close()
				c = s.attested(1)
			}
			if code := c.subscribe(tt.filter); code != 0x80 {
				t.Errorf("got %#x, want 0x80", code)
			}
		})
	}
	t.Run("again and again", func(t *testing.T) {
		s.t = t
		c := s.device(1)
		for range 50 {
			c.send(mqtt(0x82, []byte{0, 7}, text("#"), []byte{1}))
		}
		if got := c.closed(); len(got) > 10 {
			t.Errorf("got %d answers before the end", len(got))
		}
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.violations) != 1 {
		t.Errorf("violations told: got %q, want one in a minute", s.violations)
	}
}

// TestDoors follows one connection from pending to attested to quarantined.
func TestDoors(t *testing.T) {
	s := start(t)
	id := fleet.DeviceID(name(1))
	command := func() error { return s.b.Send(id, wire.DownCommand, []byte("order")) }
	if err := command(); !errors.Is(err, broker.ErrOffline) {
		t.Errorf("send to nobody: got %v, want ErrOffline", err)
	}
	c := s.device(1)
	if err := command(); !errors.Is(err, broker.ErrOffline) {
		t.Errorf("send to who does not listen: got %v, want ErrOffline", err)
	}
	c.subscribe(wire.Down(tenant, c.id, true))
	if err := command(); err != nil {
		t.Error(err)
	}
	if topic, _ := c.delivery(); topic != up(c.id, true, wire.DownCommand) {
		t.Errorf("while pending: got it on %s, want the q door", topic)
	}
	if got := s.b.Connected(); got[id] != fleet.Pending || len(got) != 1 {
		t.Errorf("connected: got %v", got)
	}
	if !s.b.Restricted(id) || s.b.Restricted("d9") {
		t.Error("a pending device is not restricted, or one that is not there is")
	}

	// A verdict speaks for the connection whose evidence it is about.
	if err := s.b.Verdict(id, make([]byte, 32), fleet.Attested, []byte("v")); !errors.Is(err, broker.ErrOffline) {
		t.Errorf("verdict for another connection: got %v, want ErrOffline", err)
	}
	if code := c.subscribe(wire.Down(tenant, c.id, false)); code != 0x80 {
		t.Errorf("d door after a verdict for another connection: got %#x, want 0x80", code)
	}
	if err := s.b.Verdict(id, c.exporter(), fleet.Attested, []byte("v")); err != nil {
		t.Fatal(err)
	}
	c.delivery()
	if s.b.Restricted(id) {
		t.Error("an attested device is restricted")
	}
	if err := command(); !errors.Is(err, broker.ErrOffline) {
		t.Errorf("send before the device listens on the d door: got %v, want ErrOffline", err)
	}
	c.subscribe(wire.Down(tenant, c.id, false))
	select {
	case d := <-s.ready:
		if d != id {
			t.Errorf("ready: got %s", d)
		}
	case <-time.After(wait):
		t.Fatal("not told to be ready")
	}
	if err := command(); err != nil {
		t.Error(err)
	}
	if topic, payload := c.delivery(); topic != up(c.id, false, wire.DownCommand) || payload != "order" {
		t.Errorf("attested: got %q on %s, want the d door", payload, topic)
	}

	if err := s.b.Verdict(id, c.exporter(), fleet.Quarantined, []byte("v")); err != nil {
		t.Fatal(err)
	}
	c.delivery()
	select {
	case d := <-s.ready:
		if d != id || !s.b.Restricted(id) {
			t.Errorf("ready in quarantine: got %s, restricted %t", d, s.b.Restricted(id))
		}
	case <-time.After(wait):
		t.Fatal("not told to be ready at the q door")
	}
	if err := command(); err != nil {
		t.Error(err)
	}
	if topic, _ := c.delivery(); topic != up(c.id, true, wire.DownCommand) {
		t.Errorf("quarantined: got it on %s, want the q door", topic)
	}
	c.send(publish(2, up(c.id, false, wire.Telemetry), 1, nil))
	if got := c.closed(); len(got) != 0 {
		t.Errorf("telemetry in quarantine: got packets %v, want the end", got)
	}
}

// TestTakeover connects a device twice: the older connection ends, the newer one is the device, and trust does
// not pass from one to the other.
func TestTakeover(t *testing.T) {
	s := start(t)
	old := s.attested(1)
	for range 20 {
		next := s.attested(1)
		if got := old.closed(); len(got) != 0 {
			t.Errorf("the older one got packets %v", got)
		}
		old = next
	}
	if err := s.b.Send(fleet.DeviceID(name(1)), wire.DownCommand, []byte("order")); err != nil {
		t.Fatal(err)
	}
	if _, payload := old.delivery(); payload != "order" {
		t.Errorf("got %q", payload)
	}
	s.device(1)
	if got := s.b.Connected(); len(got) != 1 || got[fleet.DeviceID(name(1))] != fleet.Pending {
		t.Errorf("connected: got %v, want one that is pending", got)
	}
	s.b.Disconnect(fleet.DeviceID(name(1)), "test")
	s.heard(name(1) + " false")
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.presence) != 2 {
		t.Errorf("presence: got %v, want that it came and went", s.presence)
	}
}

// TestFlood publishes without end while nothing is committed: a bounded number is let in, then the
// connection ends.
func TestFlood(t *testing.T) {
	s := start(t)
	c := s.device(1)
	go func() {
		for i := range 5000 {
			if _, err := c.Write(publish(2, up(c.id, true, wire.Audit), uint16(i+1), []byte("x"))); err != nil {
				return
			}
		}
	}()
	if got := c.closed(); len(got) != 0 {
		t.Errorf("got packets %v, want none", got)
	}
	if n := len(s.messages); n != 256 {
		t.Errorf("let in: got %d, want 256", n)
	}
	for len(s.messages) > 0 {
		(<-s.messages).Ack(nil) // the connection is gone; nothing hangs
	}
}

// TestFull closes the connection when there is no room, and a panic behind Submit ends no more than that.
func TestFull(t *testing.T) {
	for what, submit := range map[string]func(broker.Message) bool{
		"full":  func(broker.Message) bool { return false },
		"panic": func(broker.Message) bool { panic("broken") },
	} {
		s := start(t, func(o *broker.Options) { o.Submit = submit })
		c := s.device(1)
		c.send(publish(2, up(c.id, true, wire.Audit), 1, []byte("x")))
		if got := c.closed(); len(got) != 0 {
			t.Errorf("%s: got packets %v, want none", what, got)
		}
		s.device(1)
	}
}

// TestSlowReader sends to a device that does not read: Send says so instead of filling memory.
func TestSlowReader(t *testing.T) {
	s := start(t)
	c := s.attested(1)
	for i := range 10_000 {
		if err := s.b.Send(fleet.DeviceID(c.id), wire.DownCommand, make([]byte, wire.MaxMessage)); err != nil {
			if !errors.Is(err, broker.ErrOffline) {
				t.Errorf("got %v, want ErrOffline", err)
			}
			return
		}
		if i > 5000 {
			t.Fatal("all of it was taken")
		}
	}
}

// TestStop stops the broker while a message waits for its commit: the PUBACK still comes, and who only
// holds a connection open does not hold up the end.
func TestStop(t *testing.T) {
	s := start(t)
	silent, err := tls.Dial("tcp", s.addr, s.config(2)) // never says CONNECT
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	c := s.device(1)
	c.send(publish(2, up(c.id, true, wire.Audit), 3, []byte("x")))
	m := s.next()
	stopped := make(chan struct{})
	go func() { s.stop(); close(stopped) }()
	for { // until it listens no more
		probe, err := tls.Dial("tcp", s.addr, s.config(3))
		if err != nil {
			break
		}
		_ = probe.Close()
	}
	m.Ack(nil)
	if got := c.closed(); !slices.Equal(got, []byte{4}) {
		t.Errorf("got packets %v, want one PUBACK", got)
	}
	select {
	case <-stopped:
	case <-time.After(wait / 2): // sooner than it waits for a CONNECT
		t.Fatal("the broker did not stop")
	}
	s.heard(name(1) + " false")
}

// TestNeedsAuthorities: without client CAs crypto/tls would take any public authority.
func TestNeedsAuthorities(t *testing.T) {
	with := &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }}
	for what, o := range map[string]broker.Options{
		"no certificate": {TLS: &tls.Config{}, Clients: x509.NewCertPool},
		"no authorities": {TLS: with},
		"none of them":   {TLS: with, Clients: func() *x509.CertPool { return nil }},
	} {
		if _, err := broker.New(o); err == nil {
			t.Errorf("%s: got no error", what)
		}
	}
}

// FuzzConnection sends anything behind the handshake, with and without a CONNECT before: nobody else notices.
func FuzzConnection(f *testing.F) {
	id := name(1)
	f.Add(true, publish(2, up(id, true, wire.State), 1, []byte("x")))
	f.Add(true, mqtt(0x82, []byte{0, 7}, text("#"), []byte{1}))
	f.Add(false, connect(id))
	f.Add(false, connectWith(5, 2, 60, id))
	f.Add(true, mqtt(0x62, []byte{0, 1}))
	f.Add(true, mqtt(0xf0, []byte{0x18, 0}))
	f.Add(true, mqtt(0x40, []byte{0, 1}))
	s := start(f, func(o *broker.Options) { o.Submit = func(m broker.Message) bool { m.Ack(nil); return true } })
	cfg, healthy := s.config(1), s.device(2)
	f.Fuzz(func(t *testing.T, greet bool, data []byte) {
		c, err := tls.Dial("tcp", s.addr, cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(wait))
		raw := &conn{Conn: c, t: t}
		if greet {
			raw.send(connect(id))
			raw.packet()
		}
		raw.send(data)
		_ = c.CloseWrite()
		raw.closed()
		healthy.t = t
		_ = healthy.SetDeadline(time.Now().Add(wait))
		healthy.send(mqtt(0xc0))
		if typ, _, err := healthy.read(); err != nil || typ != 13 {
			t.Fatalf("another device: got packet %d, %v, want PINGRESP", typ, err)
		}
	})
}
