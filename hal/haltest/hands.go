package haltest

import (
	"context"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
)

// ready reports whether a status is that of a device in order.
func (b Bench) ready(s hal.Status) bool {
	if b.Ready != nil {
		return b.Ready(s)
	}
	return s.Power == hal.PowerOnline && s.Health == hal.OK
}

// well is ready, and no fault shows.
func (b Bench) well(s hal.Status) bool {
	return b.ready(s) && !slices.ContainsFunc(b.Faults, func(f Fault) bool { return f.Sensor != "" && s.Sensors[f.Sensor] != hal.No })
}

// open opens the device and waits until it is ready.
func (b Bench) open(t *testing.T) hal.Device {
	t.Helper()
	d := b.Open(t)
	b.closeLater(t, d)
	until(t, d, "after opening", b.ready)
	return d
}

func (b Bench) closeLater(t *testing.T, d hal.Device) {
	t.Cleanup(func() {
		defer survive(t, "close")
		_ = b.close(d)
	})
}

func (b Bench) close(d hal.Device) error {
	if b.Close != nil {
		return b.Close(d)
	}
	return d.Close()
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
		look, err := d.(hal.StatusReader).Status(ctx)
		if err == nil {
			if s = look; ok(s) {
				return s
			}
		}
		pause(ctx)
	}
	t.Fatalf("%s: the device never became so; last it said %+v", what, s)
	return s
}

func pause(ctx context.Context) {
	wait := time.NewTimer(5 * time.Millisecond)
	defer wait.Stop()
	select {
	case <-ctx.Done():
	case <-wait.C:
	}
}

// returns runs do, and fails the test when it does not return.
func returns(t *testing.T, what string, within time.Duration, do func()) time.Duration {
	t.Helper()
	began := time.Now()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer survive(t, what)
		do()
	}()
	late := time.NewTimer(within)
	defer late.Stop()
	select {
	case <-done:
	case <-late.C:
		t.Fatalf("%s has not returned after %v", what, within)
	}
	return time.Since(began)
}

// promptly runs do, which must be quick at least once: a machine may be busy
// now and then, but a driver that waits does so each time.
func promptly(t *testing.T, what string, do func()) {
	t.Helper()
	var took time.Duration
	for range 3 {
		if took = returns(t, what, patience, do); took <= prompt {
			return
		}
	}
	t.Errorf("%s took %v", what, took)
}

func survive(t *testing.T, what string) {
	if p := recover(); p != nil {
		t.Errorf("%s panicked: %v", what, p)
	}
}

// ear collects what a device tells.
type ear struct {
	mu    sync.Mutex
	heard []hal.Event
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
			e.heard = append(e.heard, ev)
			e.mu.Unlock()
		}
		e.ended <- last
	}()
	return e
}

func (e *ear) events() []hal.Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.heard)
}

func (e *ear) count(code string) int {
	n := 0
	for _, h := range e.events() {
		if h.Code == code {
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
			t.Fatalf("waiting for %s: heard only %v", code, codes(e.events()))
		}
		pause(ctx)
	}
}

// end waits for the end of the events.
func (e *ear) end(t *testing.T) error {
	t.Helper()
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case err := <-e.ended:
		return err
	case <-late.C:
		t.Fatal("the events do not end")
	}
	return nil
}

func codes(events []hal.Event) []string {
	var list []string
	for _, e := range events {
		list = append(list, e.Code)
	}
	return list
}

func stats(t *testing.T, d hal.Device) map[string]hal.Stat {
	t.Helper()
	s, ok := d.(hal.Statistics)
	if !ok {
		t.Fatalf("%v has no statistics", d)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	list, err := s.Statistics(ctx)
	if err != nil {
		t.Fatalf("statistics: %v", err)
	}
	m := map[string]hal.Stat{}
	for _, s := range list {
		if _, twice := m[s.Name]; twice || s.Name == "" {
			t.Errorf("statistic %q appears twice or has no name", s.Name)
		}
		m[s.Name] = s
	}
	return m
}

// held counts what a leaking driver would hold: goroutines and files.
func held() (int, int) {
	files, _ := os.ReadDir("/proc/self/fd")
	return runtime.NumGoroutine(), len(files)
}
