package haltest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
)

// Law 8: what the device cannot tell is Unknown, and it is not called healthy.
func blind(t *testing.T, b Bench) {
	d := b.Blind(t)
	b.closeLater(t, d)
	s := status(t, d)
	for _, name := range b.Unseen {
		if is, ok := s.Sensors[name]; ok && is != hal.Unknown {
			t.Errorf("%s reads %v on a device that does not have it", name, is)
		}
	}
	if s.Health == hal.OK {
		t.Errorf("a device without %v reads OK", b.Unseen)
	}
}

// Law 9: a call whose context has ended returns, events end with their
// listener, and a device that is halted or closed lets go, all at once, and
// also when the device is mute.
func cancelling(t *testing.T, b Bench) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	d := b.open(t)
	if b.Mute != nil {
		b.Mute(true)
		defer b.Mute(false)
	}
	promptly(t, "status with a context that has ended", func() { _, _ = d.(hal.StatusReader).Status(ended) })
	if h, ok := d.(hal.HealthChecker); ok {
		promptly(t, "an internal check with a context that has ended", func() { _, _ = h.CheckHealth(ended, hal.Internal) })
		promptly(t, "an interactive check that is called off", func() {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			_, _ = h.CheckHealth(ctx, hal.Interactive)
		})
	}
	if s, ok := d.(hal.Statistics); ok {
		promptly(t, "statistics with a context that has ended", func() { _, _ = s.Statistics(ended) })
	}
	promptly(t, "ending the events", func() {
		e := listen(t, d)
		e.stop()
		if err := e.end(t); err != nil {
			t.Errorf("events whose listener has gone ended with %v, want no error", err)
		}
	})
	halting(t, b, d)
}

// halting halts the device, up to three times for the sake of a busy machine.
func halting(t *testing.T, b Bench, d hal.Device) {
	for try := 1; ; try++ {
		ears := []*ear{listen(t, d)}
		if p, ok := d.(hal.Parent); ok {
			for _, part := range p.Parts() {
				if _, tells := part.(hal.Notifier); tells {
					ears = append(ears, listen(t, part))
				}
			}
		}
		var took time.Duration
		if b.Close == nil {
			took = returns(t, "halt", patience, func() { _ = d.Halt() })
		}
		took += returns(t, "close", patience, func() { _ = b.close(d) })
		for _, e := range ears {
			if err := e.end(t); !errors.Is(err, hal.ErrClosed) {
				t.Errorf("events of a closed device ended with %v, want ErrClosed", err)
			}
		}
		if took <= prompt {
			return
		}
		if try == 3 {
			t.Errorf("halt and close took %v", took)
			return
		}
		d = b.Open(t)
	}
}

// numbers are what Feed gets: of several makers, in several shapes. None is
// anybody's.
var numbers = []string{
	"4111111111111111", "378282246310005", "6011000990139424", "5555 5555 5555 4444", "3530-1113-3330-0000", "6304000000000000000",
	"%B4111111111111111^DOE/J^2512101?", ";4111111111111111=25121010000?",
}

// Law 10: whatever the device meets, nothing that could be a card's comes out
// of the driver.
func cardNumber(t *testing.T, b Bench) {
	d := b.open(t)
	e := listen(t, d)
	for _, number := range numbers {
		b.Feed(t, d, number)
	}
	var said []string
	s := status(t, d)
	said = append(said, s.Reason, s.Advice, string(s.Power), string(s.Health), fmt.Sprintf("%+v", d.Info()), d.String())
	said = append(said, slices.Collect(maps.Keys(s.Sensors))...)
	for name, v := range stats(t, d) {
		said = append(said, name, fmt.Sprintf("%.0f", v.Value))
	}
	if h, ok := d.(hal.HealthChecker); ok {
		r, err := h.CheckHealth(t.Context(), hal.Internal)
		said = append(said, r.Text, fmt.Sprint(err))
		for _, c := range r.Checks {
			said = append(said, c.ID, c.Code)
		}
	}
	returns(t, "close", patience, func() { _ = b.close(d) }) // so that all is heard
	_ = e.end(t)
	for _, e := range e.events() {
		said = append(said, e.Code, e.From, e.To)
	}
	for _, s := range said {
		if hal.MayHoldPAN(s) {
			t.Errorf("a card number came out: %q", strings.TrimSpace(s))
		}
	}
}

// Law 11: an internal check finds a healthy device healthy, says what it
// looked at, and moves nothing.
func internalCheck(t *testing.T, b Bench) {
	d := b.open(t)
	h, ok := d.(hal.HealthChecker)
	if !ok {
		t.Fatalf("%v has no health check", d)
	}
	before := b.Output()
	r, err := h.CheckHealth(t.Context(), hal.Internal)
	if err != nil || !r.OK || r.Text == "" || len(r.Checks) == 0 {
		t.Errorf("got %+v, %v; want a healthy device, a sentence, and what was looked at", r, err)
	}
	for _, c := range r.Checks {
		if c.ID == "" || !c.OK || c.Took < 0 {
			t.Errorf("a step of it: got %+v, want it named and well", c)
		}
	}
	if b.Output() != before {
		t.Error("an internal check caused output")
	}
}

// Law 12: a driver may be asked from all sides at once, also while its device
// breaks, and while it is closed, twice. What this does to its memory is seen
// with -race; what it does to its locks without.
func allAtOnce(t *testing.T, b Bench) {
	d := b.open(t)
	e := listen(t, d)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var callers sync.WaitGroup
	call := func(what string, do func(context.Context)) {
		callers.Go(func() {
			defer survive(t, what)
			for ctx.Err() == nil {
				brief, done := context.WithTimeout(ctx, prompt)
				do(brief)
				done()
				pause(ctx)
			}
		})
	}
	for range 2 {
		call("status", func(ctx context.Context) { _, _ = d.(hal.StatusReader).Status(ctx) })
		call("identity", func(context.Context) { _ = fmt.Sprintf("%+v %s", d.Info(), d.String()) })
		if s, ok := d.(hal.Statistics); ok {
			call("statistics", func(ctx context.Context) { _, _ = s.Statistics(ctx) })
		}
		if h, ok := d.(hal.HealthChecker); ok {
			call("check", func(ctx context.Context) { _, _ = h.CheckHealth(ctx, hal.Internal) })
		}
		if n, ok := d.(hal.Nudger); ok {
			call("nudge", func(context.Context) { n.Nudge() })
		}
		if p, ok := d.(hal.Parent); ok {
			call("parts", func(context.Context) {
				for _, part := range p.Parts() {
					_ = part.Info()
				}
			})
		}
	}
	for _, f := range b.Faults {
		f.Set(true)
		pause(ctx)
		f.Set(false)
	}
	if b.Unplug != nil {
		b.Unplug(true)
		pause(ctx)
		b.Unplug(false)
	}
	until(t, d, "after all that", b.well)
	var closers sync.WaitGroup
	for range 2 {
		closers.Go(func() {
			defer survive(t, "close")
			_ = b.close(d)
		})
	}
	returns(t, "two closing at once while others ask", patience, closers.Wait)
	pause(ctx) // and now they ask a closed one
	cancel()
	returns(t, "asking a closed device", patience, callers.Wait)
	if err := e.end(t); !errors.Is(err, hal.ErrClosed) {
		t.Errorf("events of a closed device ended with %v, want ErrClosed", err)
	}
}

// Law 13: the first look and the events since give the last look, whatever
// came upon the device in whatever order.
func replayed(t *testing.T, b Bench) {
	d := b.open(t)
	e := listen(t, d)
	first := status(t, d)
	dice := rand.New(rand.NewPCG(13, uint64(len(b.Faults)))) //nolint:gosec // the same order each time
	on := make([]bool, len(b.Faults))
	set := func(i int, to bool) {
		on[i] = to
		b.Faults[i].Set(to)
	}
	clear := func(which func(Fault) bool) {
		for i, f := range b.Faults {
			if on[i] && which(f) {
				set(i, false)
			}
		}
		if !slices.Contains(on, true) {
			until(t, d, "all is well again", b.well)
		}
	}
	for range max(8, 2*len(b.Faults)) {
		i := dice.IntN(len(b.Faults))
		f := b.Faults[i]
		clear(func(other Fault) bool { return (f.Alone || other.Alone) && other.Name != f.Name })
		set(i, !on[i])
		if dice.IntN(3) > 0 {
			continue // more than one thing happens between two looks
		}
		if on[i] {
			until(t, d, f.Name, func(s hal.Status) bool { return f.Sensor == "" || s.Sensors[f.Sensor] == hal.Yes })
		}
		equal(t, d, e, first)
	}
	clear(func(Fault) bool { return true })
	if b.Unplug != nil {
		b.Unplug(true)
		until(t, d, "unplugged", func(s hal.Status) bool { return s.Power == hal.PowerOffOffline })
		equal(t, d, e, first)
		b.Unplug(false)
		until(t, d, "plugged in again", b.well)
	}
	equal(t, d, e, first)
	last := status(t, d)
	returns(t, "close", patience, func() { _ = b.close(d) }) // so that all is heard
	_ = e.end(t)
	told := hal.Replay(d.Info().Category, first, e.events()...)
	if differ := differences(last, told); len(differ) > 0 {
		t.Errorf("after all events, %v, they say otherwise than the last look in %v:\n say  %+v\n look %+v", codes(e.events()), differ, told, last)
	}
}

// equal waits until the events say the same as the device.
func equal(t *testing.T, d hal.Device, e *ear, first hal.Status) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		s, err := d.(hal.StatusReader).Status(ctx)
		told := hal.Replay(d.Info().Category, first, e.events()...)
		differ := differences(s, told)
		if err == nil && len(differ) == 0 {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("the events say otherwise than the look in %v:\n events %v\n say    %+v\n look   %+v (%v)", differ, codes(e.events()), told, s, err)
		}
		pause(ctx)
	}
}

// differences names what a look knows and the events tell otherwise.
func differences(look, told hal.Status) []string {
	var list []string
	if look.Power != told.Power {
		list = append(list, "Power")
	}
	for name, is := range look.Sensors {
		if is == hal.Unknown || is == told.Sensors[name] {
			continue
		}
		if name == "RecNearEnd" && look.Sensors["RecEmpty"] == hal.Yes {
			continue // of paper that is out nobody tells how near its end is
		}
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}
