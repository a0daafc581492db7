package haltest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
)

// Law 1: a device that was opened and closed a hundred times has left neither
// goroutine nor file behind.
func leaks(t *testing.T, b Bench) {
	cycle := func() {
		d := b.Open(t)
		if _, err := d.(hal.StatusReader).Status(t.Context()); err != nil {
			t.Fatalf("status: %v", err)
		}
		if err := b.close(d); err != nil {
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

// Law 2: a status comes before its deadline, or an error that says E_TIMEOUT,
// also from a device that is mute; and in time it is seen to be.
func mute(t *testing.T, b Bench) {
	d := b.open(t)
	b.Mute(true)
	for range 3 {
		var err error
		promptly(t, "status of a mute device", func() {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			_, err = d.(hal.StatusReader).Status(ctx)
		})
		if err != nil && !errors.Is(err, &hal.Error{Code: "E_TIMEOUT"}) {
			t.Errorf("status of a mute device: %v, want a Status or E_TIMEOUT", err)
		}
	}
	until(t, d, "mute", func(s hal.Status) bool { return !b.ready(s) && s.Health != hal.OK && s.Reason != "" })
	b.Mute(false)
	until(t, d, "speaking again", b.ready)
}

// Law 3: each fault is told once with its code when it comes, and once when it
// goes.
func faults(t *testing.T, b Bench) {
	d := b.open(t)
	e := listen(t, d)
	for _, f := range slices.Concat(b.Faults, b.Faults) { // also the second time
		began, on, off := len(e.events()), e.count(f.On), e.count(f.Off)
		f.Set(true)
		e.wait(t, f.On, on+1)
		if s := until(t, d, f.Name, func(s hal.Status) bool { return f.Sensor == "" || s.Sensors[f.Sensor] == hal.Yes }); s.Health == hal.Fault && (s.Reason == "" || s.Advice == "") {
			t.Errorf("%s: a fault without reason or advice: %+v", f.Name, s)
		}
		f.Set(false)
		e.wait(t, f.Off, off+1)
		until(t, d, f.Name+" cleared", b.well)
		told := codes(e.events()[began:])
		slices.Sort(told)
		if once := slices.Compact(slices.Clone(told)); len(once) != len(told) {
			t.Errorf("%s: something was told more than once: %v", f.Name, told)
		}
	}
}

// Law 4: a device that goes while it is asked is told to be gone once, comes
// back by itself, and can be opened while it is away.
func unplugged(t *testing.T, b Bench) {
	d := b.open(t)
	e := listen(t, d)
	ctx, cancel := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	defer readers.Wait()
	defer cancel()
	for range 2 {
		readers.Go(func() {
			defer survive(t, "status while the device goes")
			for ctx.Err() == nil {
				_, _ = d.(hal.StatusReader).Status(ctx)
				pause(ctx)
			}
		})
	}
	b.Unplug(true)
	e.wait(t, "POWER_OFF_OFFLINE", 1)
	if s := until(t, d, "unplugged", func(s hal.Status) bool { return s.Power == hal.PowerOffOffline }); s.Health != hal.Offline || s.Advice == "" {
		t.Errorf("a device that is gone reads %s, with advice %q", s.Health, s.Advice)
	}
	b.Unplug(false)
	e.wait(t, "POWER_ONLINE", 1)
	until(t, d, "plugged in again", b.ready)
	if n := e.count("POWER_OFF_OFFLINE"); n != 1 {
		t.Errorf("the loss was told %d times, want once", n)
	}
	b.Unplug(true)
	until(t, d, "unplugged again", func(s hal.Status) bool { return s.Power == hal.PowerOffOffline })
	cancel()
	readers.Wait()
	returns(t, "close of a device that is gone", patience, func() { _ = b.close(d) })
	again := b.Open(t)
	b.closeLater(t, again)
	until(t, again, "opened while it is gone", func(s hal.Status) bool { return s.Power == hal.PowerOffOffline })
	b.Unplug(false)
	until(t, again, "plugged in after opening", b.ready)
}

// Law 5: what means nothing is counted and survived.
func noise(t *testing.T, b Bench) {
	d := b.open(t)
	before := stats(t, d)["CommunicationErrorCount"]
	b.Noise(true)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for i := 0; i < 20 || stats(t, d)["CommunicationErrorCount"].Value <= before.Value; i++ {
		if _, err := d.(hal.StatusReader).Status(ctx); ctx.Err() != nil {
			t.Fatalf("CommunicationErrorCount stayed at %v under noise; last status: %v", before.Value, err)
		}
		pause(ctx)
	}
	b.Noise(false)
	until(t, d, "quiet again", b.ready)
}

// Law 6: a count has an epoch, and only grows within it: over faults, over a
// reconnect, over a reset of the device, and over closing and opening again.
func epochs(t *testing.T, b Bench) {
	d := b.open(t)
	last := stats(t, d)
	look := func(d hal.Device, after string) map[string]hal.Stat {
		now := stats(t, d)
		for name, s := range now {
			was, ok := last[name]
			switch {
			case strings.HasSuffix(name, "Count") && s.Epoch == 0:
				t.Errorf("%s is a count without an epoch", name)
			case s.Epoch != 0 && ok && was.Epoch == s.Epoch && s.Value < was.Value:
				t.Errorf("%s fell from %v to %v after %s, and its epoch is the same", name, was.Value, s.Value, after)
			case s.Epoch > time.Now().Unix()+3600:
				t.Errorf("%s has epoch %d, which is to come", name, s.Epoch)
			}
		}
		last = now
		return now
	}
	for _, f := range b.Faults {
		f.Set(true)
		until(t, d, f.Name, func(s hal.Status) bool { return f.Sensor == "" || s.Sensors[f.Sensor] == hal.Yes })
		f.Set(false)
		until(t, d, f.Name+" cleared", b.well)
		look(d, f.Name)
	}
	if b.Unplug != nil {
		b.Unplug(true)
		until(t, d, "unplugged", func(s hal.Status) bool { return s.Power == hal.PowerOffOffline })
		b.Unplug(false)
		until(t, d, "plugged in again", b.ready)
		look(d, "a reconnect")
	}
	var kept []string
	for name, s := range look(d, "nothing") {
		if s.Kept && s.Value > 0 {
			kept = append(kept, name)
		}
	}
	switch {
	case len(kept) > 0 && b.Reset == nil:
		t.Errorf("the device counts %v itself, and the bench cannot reset it", kept)
	case b.Reset != nil && len(kept) == 0:
		t.Error("the bench can reset the device, and nothing is said to be kept by it")
	case b.Reset != nil:
		reset(t, b, d, kept)
		look(d, "a reset")
	}
	returns(t, "close", patience, func() { _ = b.close(d) })
	look(b.open(t), "closing and opening again")
}

// reset waits until a reset of the device shows in what it keeps, which is a new epoch.
func reset(t *testing.T, b Bench, d hal.Device, kept []string) {
	before := stats(t, d)
	b.Reset()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		now, fell := stats(t, d), 0
		for _, name := range kept {
			if now[name].Value >= before[name].Value {
				continue
			}
			if fell++; now[name].Epoch <= before[name].Epoch {
				t.Errorf("%s fell from %v to %v with the device's reset, and its epoch went from %d to %d", name, before[name].Value, now[name].Value, before[name].Epoch, now[name].Epoch)
			}
		}
		if fell > 0 {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("the device was reset, and none of %v fell", kept)
		}
		pause(ctx)
	}
}

// Law 7: whoever owns the device gets at it at once while it is observed.
func observing(t *testing.T, b Bench) {
	d := b.Observe(t)
	b.closeLater(t, d)
	ctx, cancel := context.WithCancel(t.Context())
	var looks sync.WaitGroup
	begun := make(chan struct{})
	begin := sync.OnceFunc(func() { close(begun) })
	looks.Go(func() {
		for ctx.Err() == nil {
			begin()
			_, _ = d.(hal.StatusReader).Status(ctx)
			pause(ctx)
		}
	})
	defer looks.Wait()
	defer cancel()
	<-begun
	var worst time.Duration
	slow := 0
	for range 20 {
		pause(ctx) // so that looks and owner meet in every way
		began := time.Now()
		within, done := context.WithTimeout(t.Context(), patience)
		err := b.Compete(within)
		done()
		took := time.Since(began)
		if worst = max(worst, took); err != nil {
			t.Fatalf("the owner did not get through: %v", err)
		}
		if took > prompt {
			slow++
		}
		if slow == 3 { // once a busy machine may be to blame
			t.Fatalf("the owner was kept waiting for up to %v", worst)
		}
	}
	t.Logf("the owner waited for at most %v", worst)
}
