package telemetry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
)

const (
	panicsAllowed = 3 // within panicWindow; then the driver is left alone until the agent starts again
	panicWindow   = 10 * time.Minute
)

var errStuck = errors.New("driver does not answer")

// watcher looks after one device.
type watcher struct {
	m    *Monitor
	d    hal.Device
	id   string
	kick chan struct{} // look now

	stuck  chan struct{} // closed when a call that overran its deadline comes back
	panics []time.Time   // of poll
}

// poll looks at the device again and again. A device that fails is looked at
// soon, and then less and less often.
func (w *watcher) poll(ctx context.Context) {
	failures := 0
	stats := time.Time{}
	for {
		err := w.look(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil && time.Since(stats) >= w.m.o.Stats {
			stats = time.Now()
			err = w.count(ctx)
		}
		wait := w.m.o.Poll
		switch {
		case w.given(ctx, err):
			return
		case err != nil:
			wait = backoff(failures)
			failures++
			w.m.o.Log.Debug("peripheral does not answer", "peripheral", w.id, "error", err, "again_in", wait)
		default:
			failures = 0
		}
		select {
		case <-ctx.Done():
			return
		case <-w.kick:
		case <-time.After(wait):
		}
	}
}

// look asks for the status once and tells it.
func (w *watcher) look(ctx context.Context) error {
	reader, ok := w.d.(hal.StatusReader)
	if !ok {
		return nil
	}
	began, answer := time.Now(), make(chan hal.Status, 1)
	err := w.call(ctx, func(ctx context.Context) error {
		s, err := reader.Status(ctx)
		answer <- s
		return err
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	p := describe(w.d.Info()) // after the look: a printer tells its model when it is reached
	if err != nil {
		p.Power, p.Health = string(hal.PowerOffOffline), string(hal.Offline)
		p.Reason, p.Advice = reason(err), "Check power and cable."
	} else {
		s := <-answer
		p.Power, p.Health, p.Reason, p.Advice = string(s.Power), string(s.Health), s.Reason, s.Advice
		p.Sensors = make(map[string]string, len(s.Sensors))
		for name, is := range s.Sensors {
			p.Sensors[name] = is.String()
		}
	}
	w.m.post(ctx, func(ctx context.Context) { w.m.status(ctx, p, began) })
	return err
}

// reason is a code for the state of a device that could not be asked.
func reason(err error) string {
	var p panicked
	switch {
	case errors.As(err, &p):
		return "M_DRIVER_PANIC"
	case errors.Is(err, errStuck), errors.Is(err, context.DeadlineExceeded):
		return "M_TIMEOUT"
	}
	return "POWER_OFF_OFFLINE"
}

// count asks for the statistics once and tells them.
func (w *watcher) count(ctx context.Context) error {
	counter, ok := w.d.(hal.Statistics)
	if !ok {
		return nil
	}
	answer := make(chan []hal.Stat, 1)
	err := w.call(ctx, func(ctx context.Context) error {
		s, err := counter.Statistics(ctx)
		answer <- s
		return err
	})
	if err != nil {
		return err
	}
	of := w.id
	if w.d.Info().Category == hal.Host {
		of = ""
	}
	now, stats := time.Now().UnixMilli(), <-answer
	w.m.post(ctx, func(ctx context.Context) {
		for _, s := range stats {
			w.m.sample(ctx, wire.Sample{At: now, Peripheral: of, Name: s.Name, Value: s.Value})
		}
	})
	return nil
}

// listen hands on events until the device is lost, and begins again.
func (w *watcher) listen(ctx context.Context, n hal.Notifier) {
	failures := 0
	for ctx.Err() == nil {
		began := time.Now()
		err := safely(func() error {
			for e, err := range n.Events(ctx) {
				if err != nil {
					return err
				}
				if e.At.IsZero() {
					e.At = time.Now()
				}
				told := wire.PeripheralEvent{
					At: e.At.UnixMilli(), Peripheral: w.id, Category: string(w.d.Info().Category), Code: e.Code, From: e.From, To: e.To,
				}
				w.m.post(ctx, func(ctx context.Context) { w.m.event(ctx, told) })
				nudge(w.kick)
			}
			return nil
		})
		if time.Since(began) > time.Minute {
			failures = 0
		}
		wait := backoff(failures)
		failures++
		if err != nil && ctx.Err() == nil {
			w.m.o.Log.Debug("events of a peripheral ended", "peripheral", w.id, "error", err, "again_in", wait)
			nudge(w.kick)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// nudge has somebody look now.
func nudge(kick chan<- struct{}) {
	select {
	case kick <- struct{}{}:
	default:
	}
}

// call runs do with the deadline. A driver that does not heed it is left
// behind, and not called again before it has come back.
func (w *watcher) call(ctx context.Context, do func(context.Context) error) error {
	if w.stuck != nil {
		select {
		case <-w.stuck:
			w.stuck = nil
		default:
			return errStuck
		}
	}
	within, cancel := context.WithTimeout(ctx, w.m.o.Deadline)
	ended := make(chan error, 1)
	back := make(chan struct{})
	go func() {
		defer close(back)
		defer cancel()
		ended <- safely(func() error { return do(within) })
	}()
	select {
	case err := <-ended:
		return err
	case <-within.Done():
	}
	select { // a moment to heed the context
	case err := <-ended:
		return err
	case <-time.After(time.Second):
		w.stuck = back
		return fmt.Errorf("%w: %w", errStuck, within.Err())
	}
}

// panicked is a driver's panic.
type panicked struct{ value any }

func (p panicked) Error() string { return fmt.Sprintf("driver panicked: %v", p.value) }

func safely(do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = panicked{p}
		}
	}()
	return do()
}

// given reports whether the driver is given up: it has panicked too often.
func (w *watcher) given(ctx context.Context, err error) bool {
	if _, ok := errors.AsType[panicked](err); !ok {
		return false
	}
	now := time.Now()
	w.m.o.Log.Error("driver panicked", "peripheral", w.id, "error", err)
	w.panics = append(w.panics, now)
	for now.Sub(w.panics[0]) > panicWindow {
		w.panics = w.panics[1:]
	}
	if len(w.panics) < panicsAllowed {
		return false
	}
	w.m.post(ctx, func(ctx context.Context) {
		w.m.mu.Lock()
		delete(w.m.asked, w.id) // nobody asks it any more
		w.m.mu.Unlock()
		w.m.record(ctx, "peripheral.quarantined", "alarm", w.id, map[string]string{"error": err.Error()})
	})
	return true
}
