package export_test

import (
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// alarms counts entries of a kind in the service's trail.
func (b *books) alarms(t *testing.T, kind string) (n int, last fleet.AuditEvent) {
	t.Helper()
	all, err := b.Trails(t.Context(), 0, 1<<20)
	must(t, err)
	for _, e := range all {
		if e.Kind == kind {
			n, last = n+1, e.AuditEvent
		}
	}
	return n, last
}

// TestStall: a sink that stands still raises an alarm, once, also when the
// service is started anew meanwhile; and it tells when it goes on.
func TestStall(t *testing.T) {
	a, b := newAuthority(t, "house"), newBooks(t)
	b.fill(t, 10)
	var well atomic.Bool
	k := newTaker(t, a, func(k *taker, _ int, c net.Conn) {
		if well.Load() {
			k.take(c, 1<<20)
		}
	})
	sink := k.sink(a)
	sink.StallAfter = time.Millisecond
	var since time.Time
	for life := range 2 {
		x, stop := exporting(t, b, sink)
		until(t, "the alarm", func() bool {
			n, _ := b.alarms(t, "export.stalled")
			return n == 1 && state(t, x).Stalled && state(t, x).State == fleet.SinkFailing
		})
		s := state(t, x)
		if life == 1 && !s.FailingSince.Equal(since) {
			t.Errorf("after a start it fails since %s, want %s", s.FailingSince, since)
		}
		since = s.StalledAt
		stop()
	}
	_, ev := b.alarms(t, "export.stalled")
	if ev.Severity != "alarm" || ev.Subject != sink.Name || ev.Detail["since"] == "" || ev.Detail["reason"] == "" {
		t.Errorf("got %+v, want an alarm that says since when and why", ev)
	}
	well.Store(true)
	sink.StallAfter = 0 // or a receiver that is slow for a moment would be another one
	x, stop := exporting(t, b, sink)
	until(t, "it goes on", func() bool { n, _ := b.alarms(t, "export.resumed"); return n == 1 && state(t, x).Lag == 0 })
	stop()
	if s := state(t, x); s.Stalled || !s.FailingSince.IsZero() || !s.StalledAt.IsZero() {
		t.Errorf("got %+v, want a sink that is well", s)
	}
	if n, ev := b.alarms(t, "export.resumed"); n != 1 || ev.Detail["stood"] == "" {
		t.Errorf("it told %d times that it goes on: %+v", n, ev)
	}
	counted(t, k.got(), 12) // the alarm and its end, too
	if last := k.got()[len(k.got())-1]; !strings.Contains(last, `kind="export.resumed"`) {
		t.Errorf("the last line is %s", last)
	}
}

// TestNoStall is the twin: what goes on, and what fails for less than that,
// raises none.
func TestNoStall(t *testing.T) {
	a, b := newAuthority(t, "house"), newBooks(t)
	b.fill(t, 10)
	var tries atomic.Int32
	k := newTaker(t, a, func(k *taker, _ int, c net.Conn) {
		if tries.Add(1) > 1 {
			k.take(c, 1<<20)
		}
	})
	x, stop := exporting(t, b, k.sink(a)) // 15 minutes
	until(t, "it arrives", func() bool { return state(t, x).Lag == 0 })
	stop()
	if n, _ := b.alarms(t, "export.stalled"); n != 0 || state(t, x).Stalled {
		t.Error("a failure of a moment raised the alarm")
	}
}
