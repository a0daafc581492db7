package road_test

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/agent/internal/link"
	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/enrol"
)

var (
	batches = flag.Int("batches", 2500, "telemetry messages of the backlog")
	audits  = flag.Int("audits", 300, "audit records of the backlog")
	faults  = flag.Int("faults", 20, "connections that end badly")
	seed    = flag.Uint64("seed", 1, "of the faults")
)

const perBatch = 4 // samples

// till has a real spool, and remembers in which order its messages were
// acknowledged.
type till struct {
	*spool.Spool
	t     testing.TB
	boot  wire.Boot
	seq   uint64
	chain uint64
	prev  [32]byte

	mu      sync.Mutex
	acked   int               // messages
	placed  map[string]moment // live messages by payload
	asked   map[uint64]moment // and by id
	passed  []int             // by how many each was overtaken
	session int               // connections
	moved   chan struct{}
}

// moment is when a live message was there: how many messages had been
// acknowledged, and in which connection.
type moment struct{ acked, session int }

func newTill(t testing.TB) *till {
	t.Helper()
	s, err := spool.Open(filepath.Join(t.TempDir(), "spool.db"), spool.Options{})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return &till{Spool: s, t: t, boot: wire.Boot{1}, placed: map[string]moment{}, asked: map[uint64]moment{}, moved: make(chan struct{}, 1)}
}

// Done notes what was acknowledged.
func (x *till) Done(ctx context.Context, ids ...uint64) error {
	x.mu.Lock()
	for _, id := range ids {
		if m, live := x.asked[id]; live && m.session == x.session {
			x.passed = append(x.passed, x.acked-m.acked)
		}
		x.acked++
	}
	x.mu.Unlock()
	err := x.Spool.Done(ctx, ids...)
	select { // not before: who is woken looks at what is left
	case x.moved <- struct{}{}:
	default:
	}
	return err
}

// Next learns the ids of live messages.
func (x *till) Next(ctx context.Context, after uint64, limit int, channels []string, yield func(id uint64, channel string, payload []byte)) error {
	return x.Spool.Next(ctx, after, limit, channels, func(id uint64, channel string, payload []byte) {
		x.mu.Lock()
		if m, ok := x.placed[string(payload)]; ok {
			x.asked[id] = m
		}
		x.mu.Unlock()
		yield(id, channel, payload)
	})
}

func (x *till) put(class string, c wire.Channel, m wire.Message) []byte {
	x.t.Helper()
	b, err := wire.Encode(m)
	must(x.t, err)
	must(x.t, x.Put(context.Background(), class, string(c), b))
	return b
}

func (x *till) head(at time.Time) wire.Head {
	x.seq++
	return wire.Head{V: wire.Version, Boot: x.boot, Seq: x.seq, Sent: at.UnixMilli()}
}

func (x *till) measures(at time.Time) []byte {
	b := &wire.TelemetryBatch{Head: x.head(at)}
	for n := range perBatch {
		b.Samples = append(b.Samples, wire.Sample{At: at.UnixMilli(), Peripheral: "receipt", Name: fmt.Sprint("M_Count", n), Value: float64(x.seq)})
	}
	return x.put(spool.Telemetry, wire.Telemetry, b)
}

func (x *till) audits(at time.Time) {
	x.chain++
	e, err := wire.SealAudit(wire.AuditRecord{Seq: x.chain, At: at.UnixMilli(), Boot: x.boot, Kind: "link.up", Severity: "info", Prev: x.prev})
	must(x.t, err)
	x.prev = e.Hash
	x.put(spool.Audit, wire.Audit, &wire.AuditBatch{Head: x.head(at), Entries: []wire.AuditEntry{e}})
}

// away records a month: two runs of the agent.
func (x *till) away() {
	began := time.Now().Add(-30 * 24 * time.Hour)
	every := max(2, *batches / *audits)
	for n := range *batches {
		if n == *batches/2 {
			x.boot, x.seq = wire.Boot{2}, 0
		}
		at := began.Add(time.Duration(n) * 30 * 24 * time.Hour / time.Duration(*batches+1))
		x.measures(at)
		if n%every == 0 && int(x.chain) < *audits {
			x.audits(at)
		}
	}
	for int(x.chain) < *audits {
		x.audits(time.Now().Add(-time.Hour))
	}
}

// live puts something that is recorded now.
func (x *till) live(audit bool) {
	if audit {
		x.audits(time.Now())
		return
	}
	b := x.measures(time.Now())
	x.mu.Lock()
	defer x.mu.Unlock()
	x.placed[string(b)] = moment{x.acked, x.session} // when it was sent by now, it is not counted
}

// connects runs a link until the spool is empty; between asks for live messages.
func (x *till) connects(addr, name string, s *service, m enrol.Result, evidence func(exporter []byte, seq uint64, sent int64) ([]byte, error), cert tls.Certificate, between func(acked int)) {
	x.t.Helper()
	l, err := link.New(link.Options{
		Brokers: []string{addr}, ServerName: name, Roots: s.roots(), Certificate: func() (tls.Certificate, error) { return cert, nil },
		Tenant: m.Tenant, Device: m.Device, Spool: x, ExporterLabel: enrol.ConnExporterLabel,
		Evidence: func(_ context.Context, exporter []byte, seq uint64, _ []byte, _ bool) ([]byte, error) {
			x.mu.Lock()
			x.session++
			x.mu.Unlock()
			return evidence(exporter, seq, time.Now().UnixMilli())
		},
		BackoffMin: time.Millisecond, BackoffMax: 50 * time.Millisecond, BacklogRate: -1, Log: slog.New(slog.DiscardHandler),
	})
	must(x.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() { _ = l.Run(ctx) })
	defer func() { cancel(); run.Wait() }()
	late := time.After(10 * time.Minute)
	for x.Depth() > 0 {
		select {
		case <-x.moved:
		case <-late:
			x.t.Fatalf("%d messages are left: %+v", x.Depth(), l.Status())
		}
		x.mu.Lock()
		acked := x.acked
		x.mu.Unlock()
		between(acked)
	}
}

type chain struct {
	OK      bool   `json:"ok"`
	Entries uint64 `json:"entries"`
	Text    string `json:"text"`
}

// TestMonth brings a month over a line that is cut at any moment, loses acknowledgements, and has the service killed
// behind commits, while the till goes on recording: every row is there once, the trail is whole and in order, nobody
// raised an alarm, and what was recorded meanwhile waited for a handful of messages.
func TestMonth(t *testing.T) {
	s := newService(t)
	x := newTill(t)
	x.away()
	device, member := s.member(1)
	evidence := device.Evidence
	l := newLine(t, *seed, func() string { return s.at().MQTT }, func(n int, r *rand.Rand) fault {
		after := 4<<10 + r.IntN(*batches*300 / *faults) // evidence is on its way at the least
		switch {
		case n > *faults:
			return fault{}
		case n%5 == 0: // it then has forgotten how much evidence it was shown
			return fault{kind: "kill", after: after, kill: s.again}
		case r.IntN(2) == 0:
			return fault{kind: "cut", after: after}
		}
		return fault{kind: "deaf", after: after, deaf: r.IntN(20 << 10)}
	})
	lived, next := 0, 0
	most := *batches / 20
	x.connects(l.ln.Addr().String(), "localhost", s, member, evidence, keys(t, device, member), func(acked int) {
		if acked < next || lived >= most {
			return
		}
		next = acked + 10
		lived++
		x.live(lived%10 == 0)
	})

	var d struct {
		Samples uint64 `json:"samples"`
		AuditOK bool   `json:"audit_ok"`
	}
	s.get("/v1/devices/"+member.Device, &d)
	if want := uint64((*batches + lived - lived/10) * perBatch); d.Samples != want || !d.AuditOK {
		t.Errorf("got %d samples, audit %v, want each of %d once", d.Samples, d.AuditOK, want)
	}
	var c chain
	s.get("/v1/devices/"+member.Device+"/audit/verify", &c)
	if !c.OK || c.Entries != x.chain {
		t.Errorf("trail: got %+v, want %d entries", c, x.chain)
	}
	var alarms struct {
		Items []map[string]any `json:"items"`
	}
	s.get("/v1/audit?severity=alarm&limit=100", &alarms)
	if len(alarms.Items) != 0 {
		t.Errorf("got alarms %v", alarms.Items)
	}
	l.mu.Lock()
	had, conns := l.faults, l.n
	l.mu.Unlock()
	if had["cut"] == 0 || had["deaf"] == 0 || had["kill"] == 0 {
		t.Errorf("got faults %v over %d connections: each kind must come up", had, conns)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.passed) == 0 {
		t.Fatal("no live message was acknowledged in the connection that it was recorded in")
	}
	slices.Sort(x.passed)
	t.Logf("%d batches and %d audit records, %d live, faults %v, %d connections; live overtaken by %d in the middle, %d at most",
		*batches, *audits, lived, had, conns, x.passed[len(x.passed)/2], x.passed[len(x.passed)-1])
	if worst := x.passed[len(x.passed)-1]; worst > 64 {
		t.Errorf("a live message was overtaken by %d, want no more than what is in flight", worst)
	}

	// The bytes of a whole connection, sent once more, are worth nothing.
	replay(t, s.at().MQTT, l.first.Bytes())
	before := d.Samples
	s.get("/v1/devices/"+member.Device, &d)
	if d.Samples != before {
		t.Errorf("%d samples came by a connection that was recorded and played again", d.Samples-before)
	}
}

// replay sends what was recorded and waits until the service hangs up.
func replay(t *testing.T, addr string, sent []byte) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	must(t, err)
	defer c.Close()
	_, _ = c.Write(sent)
	must(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
	buf := make([]byte, 4096)
	for {
		if _, err := c.Read(buf); err != nil {
			if e, ok := err.(net.Error); ok && e.Timeout() { //nolint:errorlint // of this very call
				t.Error("the service listens to a connection that was recorded")
			}
			return
		}
	}
}
