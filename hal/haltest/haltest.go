// Package haltest is the conformance suite of hardware drivers. Each driver
// brings a Bench - hardware or an emulator of it, and hands that break it - and
// has to pass Run. It proves that a driver tells the truth, in time, and holds
// nothing back when it is closed; it does not prove what only one model does.
package haltest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
)

// Bench is one device on the bench. A nil field is something that cannot be
// done to this kind of device, and its tests do not apply.
type Bench struct {
	Open   func(t *testing.T) hal.Device // may be called again and again
	Faults []Fault
	Unplug func(on bool) // takes the device away
	Mute   func(on bool) // the device takes what it is told and never answers
	Noise  func(on bool) // the device says things that mean nothing
	Blind  func(t *testing.T) hal.Device
	// Unseen are the sensors that the device of Blind does not have.
	Unseen []string
	// Output tells how much the device has physically put out so far.
	Output func() int
	// Feed lets the device meet a card number, in any way it could.
	Feed func(t *testing.T, d hal.Device, number string)
	// Observe opens the device without claiming it; Compete is then what its
	// owner does, and must not be kept waiting.
	Observe func(t *testing.T) hal.Device
	Compete func(ctx context.Context) error
}

// Fault is something that can happen to a device, and what it must say then.
type Fault struct {
	Name   string
	Set    func(on bool)
	Sensor string // that must read Yes while it is on and No when it is off
	On     string // event when it comes
	Off    string // event when it goes
}

const prompt = time.Second // for everything that must not wait

var patience = 10 * time.Second // until a device has noticed something

// Run tests the driver. bench is called for each test and brings a fresh
// bench, which it takes down with t.Cleanup.
func Run(t *testing.T, bench func(t *testing.T) Bench) {
	for _, test := range []struct {
		name string
		do   func(t *testing.T, b Bench)
	}{
		{"open and close leave nothing behind", leaks},
		{"a healthy device reads OK", healthy},
		{"each fault tells its events once", faults},
		{"a lost device is told once and comes back", unplugged},
		{"a mute device never hangs a call", mute},
		{"noise is counted and survived", noise},
		{"an absent sensor is unknown", blind},
		{"cancelling is prompt", cancelling},
		{"an internal check moves nothing", internalCheck},
		{"no card number comes out", cardNumber},
		{"observing keeps nobody waiting", observing},
	} {
		t.Run(test.name, func(t *testing.T) { test.do(t, bench(t)) })
	}
}

func status(t *testing.T, d hal.Device) hal.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := d.(hal.StatusReader).Status(ctx)
	if err != nil {
		t.Fatalf("status: %v", err)
	}
	return s
}

// until looks until the status is as wanted.
func until(t *testing.T, d hal.Device, what string, ok func(hal.Status) bool) hal.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var s hal.Status
	for ctx.Err() == nil {
		var err error
		if s, err = d.(hal.StatusReader).Status(ctx); err == nil && ok(s) {
			return s
		}
		pause(ctx)
	}
	t.Fatalf("%s: the device never became so; last it said %+v", what, s)
	return s
}

func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(5 * time.Millisecond):
	}
}

// ear collects what a device tells.
type ear struct {
	mu    sync.Mutex
	codes []string
	ended chan error
	stop  context.CancelFunc
}

func listen(t *testing.T, d hal.Device) *ear {
	t.Helper()
	n, ok := d.(hal.Notifier)
	if !ok {
		t.Fatalf("%v tells no events", d)
	}
	ctx, cancel := context.WithCancel(context.Background())
	e := &ear{ended: make(chan error, 1), stop: cancel}
	t.Cleanup(cancel)
	go func() {
		var last error
		for ev, err := range n.Events(ctx) {
			if last = err; err != nil {
				break
			}
			e.mu.Lock()
			e.codes = append(e.codes, ev.Code)
			e.mu.Unlock()
		}
		e.ended <- last
	}()
	return e
}

func (e *ear) count(code string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for _, c := range e.codes {
		if c == code {
			n++
		}
	}
	return n
}

func (e *ear) wait(t *testing.T, code string, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for e.count(code) < n {
		if ctx.Err() != nil {
			e.mu.Lock()
			defer e.mu.Unlock()
			t.Fatalf("waiting for %s: heard only %v", code, e.codes)
		}
		pause(ctx)
	}
}

func open(t *testing.T, b Bench) hal.Device {
	t.Helper()
	d := b.Open(t)
	t.Cleanup(func() { _ = d.Close() })
	until(t, d, "after opening", func(s hal.Status) bool { return s.Power == hal.PowerOnline })
	return d
}

// held counts what a leaking driver would hold: goroutines and files.
func held() (int, int) {
	files, _ := os.ReadDir("/proc/self/fd")
	return runtime.NumGoroutine(), len(files)
}

func leaks(t *testing.T, b Bench) {
	cycle := func() {
		d := b.Open(t)
		if _, err := d.(hal.StatusReader).Status(t.Context()); err != nil {
			t.Fatalf("status: %v", err)
		}
		if err := d.Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
	}
	cycle()
	goroutines, files := held()
	for range 100 {
		cycle()
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		g, f := held()
		if g <= goroutines+2 && f <= files+2 { // the bench itself breathes a little
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("after 100 times: %d goroutines and %d files, before: %d and %d", g, f, goroutines, files)
		}
		pause(ctx)
	}
}

func healthy(t *testing.T, b Bench) {
	d := open(t, b)
	s := until(t, d, "healthy", func(s hal.Status) bool { return s.Health == hal.OK })
	if s.Reason != "" || s.Advice != "" {
		t.Errorf("a healthy device gives reason %q and advice %q", s.Reason, s.Advice)
	}
	if i := d.Info(); i.ID == "" || i.Category == "" || i.Driver == "" || d.String() == "" {
		t.Errorf("incomplete identity: %+v", i)
	}
}

func faults(t *testing.T, b Bench) {
	d := open(t, b)
	e := listen(t, d)
	for _, f := range b.Faults {
		on, off := e.count(f.On), e.count(f.Off)
		f.Set(true)
		e.wait(t, f.On, on+1)
		if s := until(t, d, f.Name, func(s hal.Status) bool { return f.Sensor == "" || s.Sensors[f.Sensor] == hal.Yes }); s.Health == hal.Fault && (s.Reason == "" || s.Advice == "") {
			t.Errorf("%s: a fault without reason or advice: %+v", f.Name, s)
		}
		f.Set(false)
		e.wait(t, f.Off, off+1)
		until(t, d, f.Name+" cleared", func(s hal.Status) bool { return f.Sensor == "" || s.Sensors[f.Sensor] == hal.No })
		if g := e.count(f.On) - on; g != 1 {
			t.Errorf("%s: %s was told %d times, want once", f.Name, f.On, g)
		}
		if g := e.count(f.Off) - off; g != 1 {
			t.Errorf("%s: %s was told %d times, want once", f.Name, f.Off, g)
		}
	}
}

func stats(t *testing.T, d hal.Device) map[string]float64 {
	t.Helper()
	list, err := d.(hal.Statistics).Statistics(t.Context())
	if err != nil {
		t.Fatalf("statistics: %v", err)
	}
	m := map[string]float64{}
	for _, s := range list {
		if _, twice := m[s.Name]; twice || s.Name == "" {
			t.Errorf("statistic %q appears twice or has no name", s.Name)
		}
		m[s.Name] = s.Value
	}
	return m
}

func unplugged(t *testing.T, b Bench) {
	if b.Unplug == nil {
		return
	}
	d := open(t, b)
	e := listen(t, d)
	before := stats(t, d)
	b.Unplug(true)
	e.wait(t, "POWER_OFF_OFFLINE", 1)
	if s := until(t, d, "unplugged", func(s hal.Status) bool { return s.Power == hal.PowerOffOffline }); s.Health != hal.Offline {
		t.Errorf("a device that is gone reads %s", s.Health)
	}
	b.Unplug(false)
	e.wait(t, "POWER_ONLINE", 1)
	until(t, d, "plugged in again", func(s hal.Status) bool { return s.Health == hal.OK })
	if n := e.count("POWER_OFF_OFFLINE"); n != 1 {
		t.Errorf("the loss was told %d times, want once", n)
	}
	after := stats(t, d)
	for name, v := range before {
		if after[name] < v {
			t.Errorf("%s fell from %v to %v over a reconnect", name, v, after[name])
		}
	}
}

func mute(t *testing.T, b Bench) {
	if b.Mute == nil {
		return
	}
	d := open(t, b)
	b.Mute(true)
	began := time.Now()
	until(t, d, "mute", func(s hal.Status) bool { return s.Health != hal.OK })
	if took := time.Since(began); took > patience {
		t.Errorf("took %v to see that the device is mute", took)
	}
	b.Mute(false)
	until(t, d, "speaking again", func(s hal.Status) bool { return s.Health == hal.OK })
}

func noise(t *testing.T, b Bench) {
	if b.Noise == nil {
		return
	}
	d := open(t, b)
	before := stats(t, d)["CommunicationErrorCount"]
	b.Noise(true)
	for range 20 {
		_ = status(t, d)
	}
	if after := stats(t, d)["CommunicationErrorCount"]; after <= before {
		t.Errorf("CommunicationErrorCount stayed at %v under noise", after)
	}
	b.Noise(false)
	until(t, d, "quiet again", func(s hal.Status) bool { return s.Health == hal.OK })
}

func blind(t *testing.T, b Bench) {
	if b.Blind == nil {
		return
	}
	d := b.Blind(t)
	t.Cleanup(func() { _ = d.Close() })
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

func cancelling(t *testing.T, b Bench) {
	d := open(t, b)
	e := listen(t, d)
	within := func(what string, do func()) {
		t.Helper()
		began := time.Now()
		do()
		if took := time.Since(began); took > prompt {
			t.Errorf("%s took %v", what, took)
		}
	}
	if b.Mute != nil {
		b.Mute(true)
		defer b.Mute(false)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	within("status with a context that has ended", func() { _, _ = d.(hal.StatusReader).Status(cancelled) })
	within("ending the events", func() {
		e.stop()
		if err := <-e.ended; err != nil {
			t.Errorf("events whose listener has gone ended with %v, want no error", err)
		}
	})
	e = listen(t, d)
	within("halt", func() { _ = d.Halt() })
	within("close after halt", func() { _ = d.Close() })
	if err := <-e.ended; !errors.Is(err, hal.ErrClosed) {
		t.Errorf("events of a closed device ended with %v, want ErrClosed", err)
	}
}

func internalCheck(t *testing.T, b Bench) {
	d := open(t, b)
	h, ok := d.(hal.HealthChecker)
	if !ok {
		return
	}
	before := 0
	if b.Output != nil {
		before = b.Output()
	}
	r, err := h.CheckHealth(t.Context(), hal.Internal)
	if err != nil || !r.OK || r.Text == "" {
		t.Errorf("got %+v, %v; want a healthy device and a sentence", r, err)
	}
	if b.Output != nil && b.Output() != before {
		t.Error("an internal check caused output")
	}
}

func cardNumber(t *testing.T, b Bench) {
	if b.Feed == nil {
		return
	}
	d := open(t, b)
	var heard []hal.Event
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for e, err := range d.(hal.Notifier).Events(ctx) {
			if err == nil {
				heard = append(heard, e)
			}
		}
	}()
	for _, number := range []string{"4111111111111111", "378282246310005", "6011000990139424", "5555 5555 5555 4444"} {
		b.Feed(t, d, number)
	}
	var said []string
	s := status(t, d)
	said = append(said, s.Reason, s.Advice, string(s.Power), string(s.Health), fmt.Sprintf("%+v", d.Info()), d.String())
	said = append(said, slices.Collect(maps.Keys(s.Sensors))...)
	for name, v := range stats(t, d) {
		said = append(said, name, fmt.Sprintf("%.0f", v))
	}
	cancel()
	<-done
	for _, e := range heard {
		said = append(said, e.Code, e.From, e.To)
	}
	for _, s := range said {
		if hal.MayHoldPAN(s) {
			t.Errorf("a card number came out: %q", strings.TrimSpace(s))
		}
	}
}

func observing(t *testing.T, b Bench) {
	if b.Observe == nil {
		return
	}
	d := b.Observe(t)
	t.Cleanup(func() { _ = d.Close() })
	ctx, cancel := context.WithCancel(t.Context())
	var looks sync.WaitGroup
	looks.Go(func() {
		for ctx.Err() == nil {
			_, _ = d.(hal.StatusReader).Status(ctx)
			pause(ctx)
		}
	})
	for range 20 {
		within, done := context.WithTimeout(t.Context(), prompt)
		if err := b.Compete(within); err != nil {
			t.Errorf("the owner was kept waiting: %v", err)
		}
		done()
	}
	cancel()
	looks.Wait()
}
