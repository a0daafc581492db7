package telemetry_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/agent/internal/audit"
	"github.com/tillward/tillward/agent/internal/clock"
	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/agent/internal/telemetry"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
)

// lived is what four hours of a till have left, over four starts.
type lived struct {
	batches, samples, events, entries, anchors int
	span                                       time.Duration // of the times that entries are stamped with
}

// TestClockJumps sets the clock of a till while it measures and records, and between
// two starts: ten years back, then five years forward, then one hour back. All is as
// on a till whose clock goes right: what is told, when it is told, the order of the
// queue, the chain and its anchors. The stamps alone differ.
func TestClockJumps(t *testing.T) {
	const year = 365 * 24 * time.Hour
	want := live(t, []time.Duration{0, 0, 0, 0})
	got := live(t, []time.Duration{0, -10 * year, -5 * year, -5*year - time.Hour})
	if want.span > 4*time.Hour || got.span < 9*year {
		t.Errorf("entries are %v and %v apart: the clock did not jump", want.span, got.span)
	}
	t.Logf("in four hours: %+v", got)
	for _, n := range []*int{&got.batches, &got.samples, &want.batches, &want.samples} {
		*n = (*n + 20) / 40 // what the end of a run cuts off differs by one
	}
	if got.span = want.span; got != want {
		t.Errorf("with a clock that jumps: %+v\nwith one that does not: %+v", got, want)
	}
	if want.anchors < 12 || want.events < 24 || want.batches < 3 {
		t.Errorf("%+v: this is no till at work", want)
	}
}

func live(t *testing.T, jumps []time.Duration) (l lived) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var seq, counter uint64
		sign := func(_ context.Context, n uint64, hash [32]byte) (string, wire.Anchor, error) {
			counter++
			b := wire.AnchorBinding("dev-1", n, hash)
			return "dev-1", wire.Anchor{Attest: b[:], Signature: make([]byte, 64), Counter: counter}, nil
		}
		var off atomic.Int64
		wall := func() time.Time { return time.Now().Add(time.Duration(off.Load())) }
		o := spool.Options{Copied: []string{"audit.head"}}
		for run, jump := range jumps {
			s, err := spool.Open(filepath.Join(dir, "spool.db"), o)
			if err != nil {
				t.Fatal(err)
			}
			next := func() wire.Head {
				seq++
				return wire.Head{V: wire.Version, Boot: wire.Boot{byte(run + 1)}, Seq: seq, Sent: wall().UnixMilli()}
			}
			j, err := audit.Open(t.Context(), audit.Options{
				Chain: s, Next: func() wire.Head { return next() }, Stamp: (&clock.Clock{Wall: wall}).Stamp, Sign: sign,
				Mark: filepath.Join(dir, "trail.json"), Rebuilt: s.Rebuilt(), Strict: true, Log: slog.New(slog.DiscardHandler),
			})
			if err != nil {
				t.Fatal(err)
			}
			p := printer()
			m := telemetry.New(telemetry.Options{
				Devices: []hal.Device{p}, Spool: s, Next: next, Now: wall, Record: j.Record, Pace: telemetry.Pace{Poll: 5 * time.Second},
			})
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 2)
			go func() { ended <- m.Run(ctx) }()
			go func() { ended <- j.Run(ctx) }()
			for n := range 8 { // an hour of it
				if n == 4 {
					off.Store(int64(jump))
				}
				p.does(func(context.Context) (hal.Status, error) {
					return hal.Status{Health: []hal.Health{hal.OK, hal.Fault}[n%2], Power: []hal.Power{hal.PowerOnline, hal.PowerOffOffline}[n%2]}, nil
				})
				time.Sleep(7*time.Minute + 32*time.Second)
			}
			cancel()
			for range 2 {
				if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			}
			if run == len(jumps)-1 {
				l = left(t, s)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return l
}

// left reads the queue as the service does, and holds its order.
func left(t *testing.T, s *spool.Spool) (l lived) {
	t.Helper()
	var prev [32]byte
	var last, mono, counter, boot uint64
	var stamps []int64
	head := func(h wire.Head) {
		if b := uint64(h.Boot[0]); h.Seq <= last || b < boot {
			t.Errorf("message %d of run %d is behind message %d of run %d", h.Seq, b, last, boot)
		} else {
			last, boot = h.Seq, b
		}
	}
	take := func(_ uint64, channel string, payload []byte) {
		switch wire.Channel(channel) {
		case wire.Telemetry:
			b, err := wire.Decode[wire.TelemetryBatch](payload)
			if err != nil {
				t.Fatal(err)
			}
			head(b.Head)
			l.batches, l.samples = l.batches+1, l.samples+len(b.Samples)
		case wire.Event:
			b, err := wire.Decode[wire.EventBatch](payload)
			if err != nil {
				t.Fatal(err)
			}
			head(b.Head)
			l.events += len(b.Events)
		case wire.Audit:
			b, err := wire.Decode[wire.AuditBatch](payload)
			if err != nil {
				t.Fatal(err)
			}
			head(b.Head)
			r, err := b.Entries[0].Open()
			if err != nil {
				t.Fatal(err)
			}
			if r.Seq != uint64(l.entries+1) || r.Prev != prev || r.Mono < int64(mono) || r.Break != nil {
				t.Errorf("entry %d (%s) is not behind entry %d", r.Seq, r.Kind, l.entries)
			}
			if r.Anchor != nil {
				if r.Anchor.Counter != counter+1 {
					t.Errorf("anchor %d is behind anchor %d", r.Anchor.Counter, counter)
				}
				counter = r.Anchor.Counter
				l.anchors++
			}
			prev, mono, stamps = b.Entries[0].Hash, uint64(r.Mono), append(stamps, r.At)
			l.entries++
		}
	}
	for after, n := uint64(0), -1; n != 0; {
		n = 0
		err := s.Next(t.Context(), after, 100, nil, func(id uint64, channel string, payload []byte) {
			n, after = n+1, id
			take(id, channel, payload)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	l.span = time.Duration(slices.Max(stamps)-slices.Min(stamps)) * time.Millisecond
	return l
}
