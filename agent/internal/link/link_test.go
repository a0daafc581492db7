package link_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/agent/internal/link"
	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/cloud/wire"
)

// till is a device with a real spool and a running link.
type till struct {
	t      testing.TB
	spool  *spool.Spool
	link   *link.Link
	states chan link.Status
	stop   func()
}

func (s *service) options(t testing.TB) link.Options {
	cert := s.ca.issue(t, device, time.Now().Add(time.Hour))
	return link.Options{
		Brokers: []string{s.addr}, ServerName: "fleet.test", Roots: s.ca.pool(),
		Certificate: func() (tls.Certificate, error) { return cert, nil },
		Tenant:      tenant, Device: device, ExporterLabel: label,
		Evidence: func(_ context.Context, exporter []byte, seq uint64, nonce []byte, full bool) ([]byte, error) {
			e := evidenceOf(exporter, seq, nonce, full)
			return wire.Encode(&e)
		},
		Timeout: 10 * time.Second, BackoffMin: time.Millisecond, BackoffMax: 20 * time.Millisecond,
		Log: slog.New(slog.DiscardHandler),
	}
}

func newTill(t testing.TB, o link.Options) *till {
	t.Helper()
	d := &till{t: t, states: make(chan link.Status, 1000)}
	var err error
	if d.spool, err = spool.Open(filepath.Join(t.TempDir(), "spool.db"), spool.Options{}); err != nil {
		t.Fatal(err)
	}
	o.Spool = d.spool
	o.Changed = func(s link.Status) { d.states <- s }
	if d.link, err = link.New(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if d.stop != nil {
			d.stop()
		}
		d.spool.Close()
	})
	return d
}

func (d *till) start() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := d.link.Run(ctx); !errors.Is(err, context.Canceled) {
			d.t.Errorf("run ended with %v", err)
		}
	})
	d.stop = func() { cancel(); wg.Wait() }
}

func (d *till) put(class string, channel wire.Channel, payload string) {
	d.t.Helper()
	if err := d.spool.Put(context.Background(), class, string(channel), []byte(payload)); err != nil {
		d.t.Fatal(err)
	}
}

// until waits for a state of the link.
func (d *till) until(what string, ok func(link.Status) bool) link.Status {
	d.t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case s := <-d.states:
			if ok(s) {
				return s
			}
		case <-deadline:
			d.t.Fatalf("after 20 s the link is not %s: %+v", what, d.link.Status())
		}
	}
}

// empty waits until the spool has forgotten everything.
func (d *till) empty() {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for d.spool.Depth() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			d.t.Fatalf("%d messages are left in the spool", d.spool.Depth())
		}
	}
}

func mixed(i int) (class string, c wire.Channel) {
	switch i % 4 {
	case 0:
		return spool.Audit, wire.Audit
	case 1:
		return spool.Result, wire.Result
	default:
		return spool.Telemetry, wire.Telemetry
	}
}

func TestAttestedDrainsInOrder(t *testing.T) {
	s := newService(t, "attested")
	d := newTill(t, s.options(t))
	const n = 150
	for i := range n {
		class, c := mixed(i)
		d.put(class, c, fmt.Sprint(i))
	}
	d.start()
	st := d.until("attested", func(s link.Status) bool { return s.Open() })
	if st.Broker != s.addr || !d.link.Online() || !slices.Equal(st.Reasons, []string{"because"}) {
		t.Errorf("status %+v, online %v", st, d.link.Online())
	}
	d.put(spool.Audit, wire.Audit, fmt.Sprint(n)) // while connected
	stored := s.wait(func(a []arrival) bool { return len(a) >= n+1 })
	d.empty()
	for i, a := range stored {
		_, c := mixed(i)
		if want := (arrival{wire.Topic{Tenant: tenant, Device: device, Channel: c}.String(), fmt.Sprint(i)}); i < n && a != want {
			t.Fatalf("message %d: got %+v, want %+v", i, a, want)
		}
	}
	if len(stored) != n+1 {
		t.Errorf("%d messages, want %d", len(stored), n+1)
	}
	e, exporter := <-s.evidences, <-s.exporters
	if !bytes.Equal(e.Quoted, exporter) || e.Seq != 1 || len(e.Nonce) != 0 {
		t.Errorf("evidence %d is bound to %x, the connection is %x", e.Seq, e.Quoted, exporter)
	}
	d.stop()
	if last := d.link.Status(); last.Online {
		t.Errorf("after Run: %+v", last)
	}
}

// TestCutMidWindow closes the connection again and again with messages in
// flight: nothing is lost and nothing overtakes.
func TestCutMidWindow(t *testing.T) {
	s := newService(t, "attested")
	s.cut = func(n int) bool { return n%23 == 0 }
	d := newTill(t, s.options(t))
	const n = 200
	for i := range n {
		class, c := mixed(i)
		d.put(class, c, fmt.Sprint(i))
	}
	d.start()
	stored := s.wait(func(a []arrival) bool { return len(a) > 0 && a[len(a)-1].payload == fmt.Sprint(n-1) })
	d.empty()
	seen := map[string]bool{}
	next := 0
	for _, a := range stored {
		if seen[a.payload] {
			continue // sent again, because it was not acknowledged
		}
		seen[a.payload] = true
		if a.payload != fmt.Sprint(next) {
			t.Fatalf("message %s came before %d", a.payload, next)
		}
		next++
	}
	if next != n {
		t.Errorf("%d different messages arrived, want %d", next, n)
	}
	if len(stored) == n {
		t.Error("nothing was sent twice: the connection was never cut in mid-window")
	}
}

// TestNotAttested holds that a device which is not attested says only what the
// q door allows, and says it there.
func TestNotAttested(t *testing.T) {
	for _, verdict := range []string{"quarantined", "pending", ""} {
		t.Run("verdict "+verdict, func(t *testing.T) {
			s := newService(t, verdict)
			o := s.options(t)
			if verdict == "" {
				o.Timeout = 300 * time.Millisecond // no verdict in time
			}
			d := newTill(t, o)
			for i := range 40 {
				class, c := mixed(i)
				d.put(class, c, fmt.Sprint(i))
			}
			d.put(spool.State, wire.State, "state")
			d.put(spool.Event, wire.Event, "event")
			d.start()
			stored := s.wait(func(a []arrival) bool { return len(a) >= 21 })
			if dd, q := doors(stored); dd != 0 || q != 21 {
				t.Errorf("%d messages through d and %d through q, want 0 and 21", dd, q)
			}
			for _, a := range stored {
				if strings.HasSuffix(a.topic, "telemetry") || strings.HasSuffix(a.topic, "event") {
					t.Errorf("%s left a device that is not attested", a.topic)
				}
			}
			s.set(func() {
				if slices.Contains(s.filters, wire.Down(tenant, device, false)) {
					t.Error("subscribed to the d topics")
				}
			})
			// The repair: attested later, in the same connection. The rest follows.
			s.say(wire.Challenge{V: 1, Verdict: "attested"})
			stored = s.wait(func(a []arrival) bool { return len(a) >= 42 })
			if dd, _ := doors(stored); dd != 21 {
				t.Errorf("%d messages through d after the verdict, want 21", dd)
			}
			d.empty()
		})
	}
}

func TestQuarantineClosesTheDoor(t *testing.T) {
	s := newService(t, "attested")
	d := newTill(t, s.options(t))
	d.start()
	d.until("attested", func(s link.Status) bool { return s.Open() })
	s.say(wire.Challenge{V: 1, Verdict: "quarantined", Reasons: []string{"pcr 7"}})
	d.until("quarantined", func(s link.Status) bool { return s.Verdict == "quarantined" && !s.Open() && s.Online })
	d.put(spool.Telemetry, wire.Telemetry, "t")
	d.put(spool.Audit, wire.Audit, "a")
	stored := s.wait(func(a []arrival) bool { return len(a) >= 1 })
	if dd, q := doors(stored); dd != 0 || q != 1 {
		t.Errorf("got %+v, want the audit message through q only", stored)
	}
}

func TestChallengeIsAnswered(t *testing.T) {
	s := newService(t, "attested")
	d := newTill(t, s.options(t))
	d.start()
	<-s.evidences
	nonce := bytes.Repeat([]byte{9}, 32)
	s.say(wire.Challenge{V: 1, Nonce: nonce})
	if e := <-s.evidences; !bytes.Equal(e.Nonce, nonce) || e.Seq != 2 || len(e.Log) != 0 {
		t.Errorf("answer has sequence %d and nonce %x, want 2 and the nonce", e.Seq, e.Nonce)
	}
	s.send(wire.Topic{Tenant: tenant, Device: device, Quarantine: true, Channel: wire.DownChallenge}, []byte("no CBOR"))
	s.say(wire.Challenge{V: 1, Nonce: nonce}) // came twice: it has been answered
	other := bytes.Repeat([]byte{8}, 32)
	s.say(wire.Challenge{V: 1, Nonce: other})
	if e := <-s.evidences; e.Seq != 3 || !bytes.Equal(e.Nonce, other) {
		t.Errorf("after one that cannot be read and one that came twice: sequence %d and nonce %x, want 3 and the other's", e.Seq, e.Nonce)
	}
	s.say(wire.Challenge{V: 2, Nonce: nonce, Need: wire.NeedLog})
	if e := <-s.evidences; e.Seq != 4 || string(e.Log) != "log" {
		t.Errorf("asked for the log: got sequence %d and log %q", e.Seq, e.Log)
	}
}

// TestVerdictIsPassedOn: whoever looks at the device sees what the service saw, and the attester what it said.
func TestVerdictIsPassedOn(t *testing.T) {
	s := newService(t, "")
	o := s.options(t)
	judged, renewed := make(chan string, 10), make(chan struct{}, 10)
	o.Judged = func(_ context.Context, verdict string) { judged <- verdict }
	o.Renew = func() { renewed <- struct{}{} }
	d := newTill(t, o)
	d.start()
	<-s.evidences
	until := time.UnixMilli(1_800_000_000_000)
	said := wire.Challenge{
		V: 2, Verdict: "degraded", Reasons: []string{"why"}, Release: "agent/1.2.3", Actions: []string{wire.ActionReboot}, Until: until.UnixMilli(),
		Findings: []wire.Finding{{Check: "boot.unknown-event", PCR: "4", Text: "why"}},
	}
	s.say(said)
	st := d.until("degraded", func(s link.Status) bool { return s.Verdict == "degraded" })
	if !st.Open() || !slices.Equal(st.Findings, said.Findings) || st.Release != said.Release || !slices.Equal(st.Actions, said.Actions) || !st.Until.Equal(until) {
		t.Errorf("got %+v", st)
	}
	s.say(wire.Challenge{V: 2, Need: wire.NeedRenew}) // no verdict: nothing else changes
	<-renewed
	s.say(wire.Challenge{V: 2, Verdict: "attested"})
	st = d.until("attested", func(s link.Status) bool { return s.Verdict == "attested" })
	if len(st.Findings) != 0 || st.Release != "" || len(st.Actions) != 0 || !st.Until.IsZero() {
		t.Errorf("the next verdict: got %+v, want nothing left of the one before", st)
	}
	if a, b := <-judged, <-judged; a != "degraded" || b != "attested" || len(judged) != 0 {
		t.Errorf("told %s, %s and %d more", a, b, len(judged))
	}
}

// TestRenewedCertificate: the next connection is made with what is newest.
func TestRenewedCertificate(t *testing.T) {
	s := newService(t, "attested")
	s.cut = func(n int) bool { return n == 1 }
	o := s.options(t)
	fresh := s.ca.issue(t, device, time.Now().Add(30*time.Minute))
	asked, first := 0, o.Certificate
	o.Certificate = func() (tls.Certificate, error) {
		if asked++; asked > 1 {
			return fresh, nil
		}
		return first()
	}
	d := newTill(t, o)
	d.put(spool.Audit, wire.Audit, "a")
	d.start()
	s.wait(func(a []arrival) bool { return len(a) >= 2 })
	d.stop()
	if shown := s.certificates(); len(shown) != 2 || bytes.Equal(shown[0], fresh.Certificate[0]) || !bytes.Equal(shown[1], fresh.Certificate[0]) {
		t.Errorf("%d certificates were shown, want the first and then the renewed one", len(shown))
	}
}

// TestServiceWithALongQueue acknowledges evidence much later than anything else may take: the device waits.
func TestServiceWithALongQueue(t *testing.T) {
	s := newService(t, "attested")
	s.slow = make(chan struct{})
	o := s.options(t)
	o.Timeout = 200 * time.Millisecond
	o.Patience = time.Minute
	d := newTill(t, o)
	d.start()
	<-s.evidences
	select {
	case st := <-d.states:
		if !st.Online {
			t.Fatalf("got %+v", st)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("not connected")
	}
	select {
	case st := <-d.states:
		t.Errorf("got %+v, want the device to wait for its acknowledgement", st)
	case <-time.After(3 * o.Timeout): // the rule under test is that nothing happens for longer than Timeout
	}
	close(s.slow)
	if st := d.until("attested or lost", func(s link.Status) bool { return s.Open() || s.Err != nil }); st.Err != nil {
		t.Error(st.Err)
	}
}

// TestRestrictedDevice can be helped: commands and offers reach it through the q door.
func TestRestrictedDevice(t *testing.T) {
	s := newService(t, "quarantined")
	o := s.options(t)
	got := make(chan string, 10)
	o.Down = map[wire.Channel]func([]byte) bool{
		wire.DownCommand: func(p []byte) bool { got <- "command " + string(p); return true },
		wire.DownOffer:   func(p []byte) bool { got <- "offer " + string(p); return true },
	}
	d := newTill(t, o)
	d.start()
	d.until("quarantined", func(s link.Status) bool { return s.Verdict == "quarantined" })
	for c, want := range map[wire.Channel]string{wire.DownCommand: "command x", wire.DownOffer: "offer x"} {
		s.send(wire.Topic{Tenant: tenant, Device: device, Quarantine: true, Channel: c}, []byte("x"))
		if p := <-got; p != want {
			t.Errorf("got %q, want %q", p, want)
		}
	}
}

// TestServiceThatDoesNotAcknowledge is left, called again and served again.
func TestServiceThatDoesNotAcknowledge(t *testing.T) {
	s := newService(t, "attested")
	s.mute = func(n int) bool { return n <= 3 }
	o := s.options(t)
	o.Timeout = 500 * time.Millisecond
	d := newTill(t, o)
	for i := range 3 {
		d.put(spool.Audit, wire.Audit, fmt.Sprint(i))
	}
	d.start()
	st := d.until("left", func(s link.Status) bool { return s.Err != nil })
	if !strings.Contains(st.Err.Error(), "no acknowledgement") {
		t.Errorf("left with %v", st.Err)
	}
	stored := s.wait(func(a []arrival) bool { return len(a) >= 6 })
	d.empty()
	for i, a := range stored[:6] {
		if a.payload != fmt.Sprint(i%3) {
			t.Errorf("message %d is %s, want all three twice", i, a.payload)
		}
	}
}

func TestDownMessages(t *testing.T) {
	s := newService(t, "attested")
	got := make(chan string, 10)
	take := make(chan bool, 10)
	o := s.options(t)
	o.Down = map[wire.Channel]func([]byte) bool{
		wire.DownCommand: func(p []byte) bool { got <- string(p); return <-take },
	}
	d := newTill(t, o)
	d.start()
	d.until("attested", func(s link.Status) bool { return s.Open() })
	<-s.pubacks // of the verdict
	to := func(c wire.Channel) wire.Topic { return wire.Topic{Tenant: tenant, Device: device, Channel: c} }
	take <- true
	s.send(to(wire.DownCommand), []byte("one"))
	if p := <-got; p != "one" {
		t.Errorf("got %q", p)
	}
	<-s.pubacks
	take <- false
	s.send(to(wire.DownCommand), []byte("two"))
	<-got
	s.send(to(wire.DownOffer), []byte("nobody")) // acknowledged: nobody will ever take it
	<-s.pubacks
	if n := len(s.pubacks); n != 0 {
		t.Errorf("%d acknowledgements more: a message that was not taken was acknowledged", n)
	}
}

// TestSubscriptions holds that a packet id which the broker believes taken is
// no refusal, and that a refusal ends the connection.
func TestSubscriptions(t *testing.T) {
	t.Run("packet id taken", func(t *testing.T) {
		s := newService(t, "attested")
		s.busyIDs = 3
		d := newTill(t, s.options(t))
		d.start()
		if st := d.until("attested or lost", func(s link.Status) bool { return s.Open() || s.Err != nil }); st.Err != nil {
			t.Error(st.Err)
		}
	})
	for _, q := range []bool{true, false} {
		t.Run(fmt.Sprintf("refused, quarantine %v", q), func(t *testing.T) {
			s := newService(t, "attested")
			s.denied = wire.Down(tenant, device, q)
			d := newTill(t, s.options(t))
			d.put(spool.Telemetry, wire.Telemetry, "t")
			d.start()
			st := d.until("lost", func(s link.Status) bool { return s.Err != nil })
			if !strings.Contains(st.Err.Error(), "refused by the service") {
				t.Errorf("lost with %v", st.Err)
			}
			d.stop()
			if s.stored != nil {
				t.Errorf("stored %v", s.stored)
			}
		})
	}
}

func TestSecondBroker(t *testing.T) {
	s := newService(t, "attested")
	o := s.options(t)
	o.Brokers = []string{deadAddress(t), s.addr}
	d := newTill(t, o)
	d.start()
	if st := d.until("attested", func(s link.Status) bool { return s.Open() }); st.Broker != s.addr {
		t.Errorf("connected to %s, want %s", st.Broker, s.addr)
	}
}

// TestRefusedConnections are connections that must not come about, with what
// the log has to say of them.
func TestRefusedConnections(t *testing.T) {
	ca, other := newAuthority(t, "service root"), newAuthority(t, "another root")
	for _, tt := range []struct {
		name    string
		server  func(*tls.Config)
		device  func(*link.Options)
		says    string
		advises string
	}{
		{"service of another authority", nil, func(o *link.Options) { o.Roots = other.pool() }, "unknown authority", "roots"},
		{"service of another name", nil, func(o *link.Options) { o.ServerName = "other.test" }, "not other.test", "server name"},
		{
			"service asks for another issuer",
			func(c *tls.Config) { c.ClientCAs = other.pool() },
			nil, "asks for a device certificate of CN=another root, this device has one of CN=service root", "enrol the device again",
		},
		{"service with an old certificate", func(c *tls.Config) {
			c.Certificates = []tls.Certificate{ca.issue(t, "fleet.test", time.Now().Add(-time.Hour))}
		}, nil, "expired", "clock"},
		{"service with TLS 1.2", func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }, nil, "protocol version", ""},
		{
			"device with an old certificate", nil,
			func(o *link.Options) {
				old := ca.issue(t, device, time.Now().Add(-time.Minute))
				o.Certificate = func() (tls.Certificate, error) { return old, nil }
			},
			"device certificate expired", "enrol",
		},
		{"device that cannot use its key", nil, func(o *link.Options) {
			o.Certificate = func() (tls.Certificate, error) { return tls.Certificate{}, errors.New("TPM is busy") }
		}, "TPM is busy", ""},
		{"device with another id", nil, func(o *link.Options) { o.Device = "dev-2" }, "", "look at it in the console"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newServiceTLS(t, "attested", ca, tt.server)
			var log lines
			o := s.options(t)
			o.Log = slog.New(slog.NewTextHandler(&log, nil))
			o.BackoffMin, o.BackoffMax = time.Hour, time.Hour
			if tt.device != nil {
				tt.device(&o)
			}
			log.first = make(chan struct{})
			d := newTill(t, o)
			d.put(spool.Audit, wire.Audit, "secret")
			d.start()
			st := d.until("refused", func(s link.Status) bool { return s.Err != nil })
			if st.Online || !strings.Contains(st.Err.Error(), tt.says) {
				t.Errorf("status %+v, want an error with %q", st, tt.says)
			}
			<-log.first
			if text := log.String(); !strings.Contains(text, tt.advises) {
				t.Errorf("the log says %q, want advice with %q", text, tt.advises)
			}
			d.stop()
			if s.stored != nil || len(s.evidences) != 0 {
				t.Errorf("sent %v", s.stored)
			}
		})
	}
}

// lines is a log that says when its first line is there.
type lines struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	first chan struct{}
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buf.Len() == 0 {
		defer close(l.first)
	}
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func TestEvidenceThatCannotBeMade(t *testing.T) {
	s := newService(t, "attested")
	o := s.options(t)
	n := 0
	good := o.Evidence
	o.Evidence = func(ctx context.Context, exporter []byte, seq uint64, nonce []byte, full bool) ([]byte, error) {
		if n++; n == 1 {
			return nil, errors.New("TPM is busy")
		}
		return good(ctx, exporter, seq, nonce, full)
	}
	d := newTill(t, o)
	d.start()
	st := d.until("left", func(s link.Status) bool { return s.Err != nil })
	if !strings.Contains(st.Err.Error(), "TPM is busy") {
		t.Errorf("left with %v", st.Err)
	}
	d.until("attested", func(s link.Status) bool { return s.Open() })
}

// TestBackOff lets a network fail for an hour of its own time.
func TestBackOff(t *testing.T) {
	ca := newAuthority(t, "root")
	synctest.Test(t, func(t *testing.T) {
		var at []time.Time
		o := (&service{ca: ca, addr: "192.0.2.1:8883"}).options(t)
		o.BackoffMin, o.BackoffMax, o.Timeout = time.Second, 5*time.Minute, time.Second
		o.Spool = nothing{}
		o.Dial = func(context.Context, string, string) (net.Conn, error) {
			at = append(at, time.Now())
			return nil, errors.New("network is unreachable")
		}
		changes := 0
		o.Changed = func(link.Status) { changes++ }
		l, err := link.New(o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := l.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("run ended with %v", err)
		}
		if len(at) < 15 || len(at) > 80 {
			t.Errorf("%d attempts in an hour", len(at))
		}
		waits := map[time.Duration]bool{}
		for i := 1; i < len(at); i++ {
			wait := at[i].Sub(at[i-1])
			if ceiling := min(5*time.Minute, time.Second<<min(i-1, 10)); wait > ceiling+time.Millisecond {
				t.Errorf("wait %d is %v, more than %v", i, wait, ceiling)
			}
			waits[wait.Round(time.Millisecond)] = true
		}
		if len(waits) < len(at)/2 {
			t.Errorf("%d different waits in %d: no jitter", len(waits), len(at)-1)
		}
		if changes != 1 {
			t.Errorf("%d changes were told for one lost network, want 1", changes)
		}
	})
}

type nothing struct{}

func (nothing) Next(context.Context, uint64, int, []string, func(uint64, string, []byte)) error {
	return nil
}
func (nothing) Done(context.Context, ...uint64) error  { return nil }
func (nothing) Newest(context.Context) (uint64, error) { return 0, nil }
func (nothing) Depth() uint64                          { return 0 }
func (nothing) Wake() <-chan struct{}                  { return nil }

func TestOptions(t *testing.T) {
	s := &service{ca: newAuthority(t, "root"), addr: "fleet.test:8883"}
	good := s.options(t)
	good.Spool = nothing{}
	if _, err := link.New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*link.Options){
		"no broker":            func(o *link.Options) { o.Brokers = nil },
		"broker without port":  func(o *link.Options) { o.Brokers = []string{"fleet.test"} },
		"no roots":             func(o *link.Options) { o.Roots = nil },
		"no certificate":       func(o *link.Options) { o.Certificate = nil },
		"no spool":             func(o *link.Options) { o.Spool = nil },
		"no evidence":          func(o *link.Options) { o.Evidence = nil },
		"tenant of two levels": func(o *link.Options) { o.Tenant = "a/b" },
		"device with wildcard": func(o *link.Options) { o.Device = "+" },
		"handler for an up channel": func(o *link.Options) {
			o.Down = map[wire.Channel]func([]byte) bool{wire.Telemetry: func([]byte) bool { return true }}
		},
	} {
		o := good
		change(&o)
		if _, err := link.New(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
