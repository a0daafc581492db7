package ingest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/ingest"
	"github.com/tillward/tillward/cloud/wire"
)

// counter is a store that takes its time, which is that of the test.
type counter struct {
	takes func(in []fleet.Intake) time.Duration
	fail  func(in []fleet.Intake) error

	mu     sync.Mutex
	groups [][]fleet.Intake
}

func (c *counter) Commit(_ context.Context, in []fleet.Intake) ([]fleet.Outcome, error) {
	if c.takes != nil {
		time.Sleep(c.takes(in))
	}
	if c.fail != nil {
		if err := c.fail(in); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.groups = append(c.groups, slices.Clone(in))
	out := make([]fleet.Outcome, len(in))
	for n := range in {
		out[n].NewSamples = len(in[n].Samples)
	}
	return out, nil
}

func (c *counter) AuditHead(context.Context, fleet.DeviceID) (uint64, [32]byte, error) {
	return 0, [32]byte{}, nil
}

// order is what was stored, in order, by device and sequence.
func (c *counter) order() (all []fleet.Sample) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, g := range c.groups {
		for _, in := range g {
			all = append(all, in.Samples...)
		}
	}
	return all
}

// lab is an Ingest over a counter, in a bubble of time.
type lab struct {
	t *testing.T
	c *counter
	i *ingest.Ingest

	mu    sync.Mutex
	n     int // acknowledged
	ended bool
}

func newLab(t *testing.T, c *counter) *lab {
	l := &lab{t: t, c: c, i: ingest.New(ingest.Options{Store: c, Stored: func(fleet.Intake, fleet.Outcome) {}, Log: quiet})}
	return l
}

func (l *lab) run() (stop func()) {
	ctx, cancel := context.WithCancel(l.t.Context())
	done := make(chan error)
	go func() { done <- l.i.Run(ctx) }()
	return func() {
		l.mu.Lock()
		l.ended = true
		l.mu.Unlock()
		cancel()
		if err := <-done; err != nil {
			l.t.Error(err)
		}
	}
}

// sends submits a batch of one sample that was recorded so long ago.
func (l *lab) sends(id string, seq uint64, age time.Duration, c wire.Channel) {
	m := telemetry(seq, 1)
	m.Head.Sent = time.Now().Add(-age).UnixMilli()
	ok := l.i.Submit(ingest.Message{Device: fleet.DeviceID(id), Tenant: "main", Channel: c, Payload: encode(l.t, m), At: time.Now(), Ack: func(err error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if err != nil && !l.ended {
			l.t.Errorf("message %d of %s: %v", seq, id, err)
		}
		l.n++
	}})
	if !ok {
		l.t.Fatalf("message %d of %s was not taken", seq, id)
	}
}

func (l *lab) acked() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.n
}

const month = 30 * 24 * time.Hour

// TestLiveFirst: a chain of tills comes back with a month each; what others say now is in the very next group.
func TestLiveFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &counter{takes: func([]fleet.Intake) time.Duration { return 50 * time.Millisecond }}
		l := newLab(t, c)
		const tills, window = 60, 200
		for d := range tills {
			for seq := range uint64(window) {
				l.sends(fmt.Sprintf("late-%d", d), seq+1, month, wire.Telemetry)
			}
		}
		defer l.run()()
		for n := range 10 {
			time.Sleep(time.Second)
			l.sends(fmt.Sprintf("now-%d", n), 1, 0, wire.Telemetry)
			c.mu.Lock()
			first := len(c.groups)
			c.mu.Unlock()
			for done := false; !done && l.acked() <= tills*window+n; {
				time.Sleep(time.Millisecond)
				c.mu.Lock()
				for _, g := range c.groups[first:] {
					done = done || slices.ContainsFunc(g, func(in fleet.Intake) bool { return in.Device == fleet.DeviceID(fmt.Sprintf("now-%d", n)) })
				}
				groups := len(c.groups) - first
				c.mu.Unlock()
				if groups > 2 {
					t.Fatalf("message %d waits for %d groups, want at most the one under way and the next", n, groups)
				}
			}
			if s := l.i.Stats(); s.Backlog == 0 && n < 3 {
				t.Fatalf("got %+v: no backlog is left that could have been in the way", s)
			}
		}
	})
}

// TestFairness: nobody's backlog stands behind that of a till with more of it.
func TestFairness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &counter{takes: func([]fleet.Intake) time.Duration { return 300 * time.Millisecond }}
		l := newLab(t, c)
		for seq := range uint64(500) {
			l.sends("month", seq+1, month, wire.Telemetry)
		}
		for seq := range uint64(80) {
			l.sends("day", seq+1, 24*time.Hour, wire.Telemetry)
		}
		stop := l.run()
		time.Sleep(time.Hour)
		stop()
		if l.acked() != 580 {
			t.Fatalf("%d acknowledged, want all 580", l.acked())
		}
		last, before := map[fleet.DeviceID]uint64{}, 0
		for _, s := range c.order() {
			if s.Seq != last[s.Device]+1 {
				t.Fatalf("%s: message %d behind %d", s.Device, s.Seq, last[s.Device])
			}
			if last[s.Device] = s.Seq; s.Device == "month" && last["day"] < 80 {
				before++
			}
		}
		if before > 160 {
			t.Errorf("%d of the long backlog came before the end of the short one, which has 80", before)
		}
	})
}

// TestOrderWithin: what is fresh does not overtake what waits on its own channel; what was sent ahead does, and so
// does another channel. A slow clock alone makes no backlog.
func TestOrderWithin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &counter{}
		l := newLab(t, c)
		for seq := range uint64(100) {
			l.sends("a", seq+1, month, wire.Telemetry)
		}
		l.sends("a", 101, 0, wire.Telemetry)
		l.sends("a", 102, 0, wire.Live)
		for range 10 {
			time.Sleep(20 * time.Second)
			l.sends("slow", uint64(l.acked())+1, time.Hour, wire.Telemetry)
		}
		if s := l.i.Stats(); s.Live != 8+1+10 || s.Backlog != 100-8+1 {
			t.Errorf("got %d live and %d in the backlog", s.Live, s.Backlog)
		}
		stop := l.run()
		time.Sleep(time.Minute)
		stop()
		var seqs []uint64
		for _, s := range c.order() {
			if s.Device == "a" {
				seqs = append(seqs, s.Seq)
			}
		}
		if at := slices.Index(seqs, 102); at < 0 || at > 40 || len(seqs) != 102 {
			t.Fatalf("got %v, want 102 ahead of what waited", seqs)
		}
		if seqs = slices.DeleteFunc(seqs, func(n uint64) bool { return n == 102 }); !slices.IsSorted(seqs) {
			t.Errorf("got %v, want the others in order", seqs)
		}
	})
}

// TestShortCommits: the backlog takes what it can have while commits stay short, and ends with a slow disk too.
func TestShortCommits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		perRow := 10 * time.Microsecond
		c := &counter{takes: func(in []fleet.Intake) time.Duration { return 5*time.Millisecond + time.Duration(len(in))*perRow }}
		l := newLab(t, c)
		defer l.run()()
		for _, slow := range []time.Duration{10 * time.Microsecond, 20 * time.Millisecond} {
			perRow = slow
			for seq := range uint64(4000) {
				for l.i.Stats().Backlog > 300 {
					time.Sleep(time.Millisecond)
				}
				if seq%10 == 0 { // somebody is live all the time
					l.sends(fmt.Sprintf("now-%d", seq%1000), seq+1, 0, wire.Telemetry)
				}
				l.sends(fmt.Sprintf("late-%d", seq%50), seq+1, month, wire.Telemetry)
			}
			time.Sleep(time.Minute)
			s := l.i.Stats()
			t.Logf("%s a message: %d groups, %d bytes a group, last commit %s", slow, s.Commits, s.Share, s.Last)
			if s.Backlog != 0 || s.Live != 0 {
				t.Errorf("%s a message: %d live and %d backlog are left", slow, s.Live, s.Backlog)
			}
		}
	})
}

// TestDeadConnection: behind a commit that failed, nothing of that connection is stored.
func TestDeadConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failed := errors.New("disk full")
		c := &counter{}
		c.fail = func(in []fleet.Intake) error {
			if slices.ContainsFunc(in, func(in fleet.Intake) bool { return in.Device == "a" && in.Samples[0].Seq == 3 }) {
				return failed
			}
			return nil
		}
		i := ingest.New(ingest.Options{Store: c, Stored: func(fleet.Intake, fleet.Outcome) {}, Log: quiet})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		dead := false
		var acks []error
		for seq := range uint64(600) {
			if !i.Submit(ingest.Message{
				Device: "a", Tenant: "main", Channel: wire.Telemetry, Payload: encode(t, telemetry(seq+1, 1)), At: noon.AddDate(1, 0, 0),
				Ack: func(err error) { acks, dead = append(acks, err), dead || err != nil }, Dead: func() bool { return dead },
			}) {
				break // 512 of one device are enough
			}
		}
		go func() { done <- i.Run(ctx) }()
		time.Sleep(time.Minute)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := len(c.order()); n != 0 || len(acks) < 512 {
			t.Errorf("%d are stored and %d answered, want none stored behind the failure and all answered", n, len(acks))
		}
	})
}

// TestFull: without a committer one device can have a bounded number waiting, and all together a bounded size; who
// brings backlog is held up before.
func TestFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := ingest.New(ingest.Options{Log: quiet})
		n := 0
		for i.Submit(ingest.Message{Device: "one"}) {
			if n++; n > 2000 {
				t.Fatal("the queue of one device has no end")
			}
		}
		old := telemetry(1, wire.MaxBatch)
		old.Head.Sent = 1
		for n := range old.Samples {
			old.Samples[n].Name, old.Samples[n].Peripheral = strings.Repeat("n", wire.MaxName), strings.Repeat("p", wire.MaxName)
		}
		payload := encode(t, old)
		began := time.Now()
		for n = 0; i.Submit(ingest.Message{Device: fleet.DeviceID(fmt.Sprint(n % 40)), Channel: wire.Telemetry, Payload: payload, At: time.Now()}); n++ {
			if n > 20_000 {
				t.Fatal("the queue has no end")
			}
		}
		if s := i.Stats(); s.Bytes < 500<<20 || s.Bytes > 600<<20 {
			t.Errorf("%d bytes wait", s.Bytes)
		}
		if time.Since(began) < time.Minute {
			t.Error("nobody was held up")
		}
	})
}

// TestStopWithABacklog commits one group more and leaves nobody waiting: what is not stored is sent again.
func TestStopWithABacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &counter{}
		i := ingest.New(ingest.Options{Store: c, Stored: func(fleet.Intake, fleet.Outcome) {}, Log: quiet})
		good, bad := 0, 0
		send := func(id string, seq uint64) bool {
			return i.Submit(ingest.Message{
				Device: fleet.DeviceID(id), Tenant: "main", Channel: wire.Telemetry, Payload: encode(t, telemetry(seq, 1)), At: noon.AddDate(1, 0, 0),
				Ack: func(err error) {
					if good++; err != nil {
						good, bad = good-1, bad+1
					}
				},
			})
		}
		for d := range 10 {
			for seq := range uint64(200) {
				send(fmt.Sprint(d), seq+1)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := i.Run(ctx); err != nil {
			t.Error(err)
		}
		if stored := len(c.order()); good == 0 || good != stored || good+bad != 2000 {
			t.Errorf("%d are acknowledged, %d refused and %d stored of 2000", good, bad, stored)
		}
		if send("late", 1) {
			t.Error("a message was taken that nobody will commit")
		}
	})
}

// TestDeadAmongRefused: when a group is stored one by one, since one of it never can be, nothing is stored behind
// what failed.
func TestDeadAmongRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &counter{}
		c.fail = func(in []fleet.Intake) error {
			switch {
			case len(in) > 1:
				return fleet.ErrInvalid
			case in[0].Samples[0].Seq == 2:
				return errors.New("disk full")
			}
			return nil
		}
		i := ingest.New(ingest.Options{Store: c, Stored: func(fleet.Intake, fleet.Outcome) {}, Log: quiet})
		dead, acks := false, 0
		for seq := range uint64(4) {
			i.Submit(ingest.Message{
				Device: "a", Tenant: "main", Channel: wire.Telemetry, Payload: encode(t, telemetry(seq+1, 1)), At: noon,
				Ack: func(err error) { acks, dead = acks+1, dead || err != nil }, Dead: func() bool { return dead },
			})
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- i.Run(ctx) }()
		time.Sleep(time.Minute)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := len(c.order()); n != 1 || acks != 4 {
			t.Errorf("%d are stored and %d answered, want the one before the failure and all answered", n, acks)
		}
	})
}
