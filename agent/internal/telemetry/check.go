package telemetry

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
)

// levels are the health checks of UnifiedPOS and what each may take. A person
// has to come for the last.
var levels = map[hal.Level]struct {
	name   string
	within time.Duration
}{
	hal.Internal:    {"internal", 30 * time.Second},
	hal.External:    {"external", time.Minute},
	hal.Interactive: {"interactive", 2 * time.Minute},
}

const checkGrace = 10 * time.Minute // a device that was just found is not tested before

// Check has a peripheral test itself, and tells the outcome, its status and its
// counts. An error means that there was no test.
func (m *Monitor) Check(ctx context.Context, id string, level hal.Level) (wire.HealthCheck, error) {
	m.mu.Lock()
	w := m.watchers[nameOf(id)]
	m.mu.Unlock()
	if w == nil {
		return wire.HealthCheck{}, fmt.Errorf("no peripheral called %q here", id)
	}
	return w.check(ctx, level)
}

// test has the device test itself from time to time, without physical output.
func (w *watcher) test(ctx context.Context) {
	wait := checkGrace/2 + rand.N(checkGrace/2) //nolint:gosec // spreads load, guards nothing
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if _, err := w.check(ctx, hal.Internal); err != nil && ctx.Err() == nil {
			w.m.o.Log.Debug("no health check", "peripheral", w.id, "error", err)
		}
		wait = w.m.o.Check*9/10 + rand.N(w.m.o.Check/5+1) //nolint:gosec // as above
	}
}

func (w *watcher) check(ctx context.Context, level hal.Level) (wire.HealthCheck, error) {
	l, known := levels[level]
	checker, ok := w.d.(hal.HealthChecker)
	if !ok || !known {
		return wire.HealthCheck{}, fmt.Errorf("peripheral %s has no such check", w.id)
	}
	select {
	case <-w.left:
		return wire.HealthCheck{}, fmt.Errorf("peripheral %s is not watched any more", w.id)
	case w.testing <- struct{}{}:
		defer func() { <-w.testing }()
	default:
		return wire.HealthCheck{}, fmt.Errorf("a check of peripheral %s is under way", w.id)
	}
	began, reports := time.Now(), make(chan hal.Report, 1)
	err := w.tests.call(ctx, l.within, func(ctx context.Context) error {
		r, err := checker.CheckHealth(ctx, level)
		reports <- r
		return err
	})
	var r hal.Report
	select {
	case r = <-reports:
	default:
	}
	if e := (*hal.Error)(nil); errors.As(err, &e) && e.Code == "E_ILLEGAL" && len(r.Checks) == 0 {
		return wire.HealthCheck{}, fmt.Errorf("peripheral %s has no %s check", w.id, l.name)
	}
	w.given(ctx, err)
	c := w.m.outcome(w.id, l.name, r, err, time.Since(began))
	w.m.post(ctx, func(ctx context.Context) { w.m.addCheck(ctx, c) })
	w.due.Store(true)
	nudge(w.kick)
	return c, nil
}

// outcome is a report in the words of the contract: codes, and no text.
func (m *Monitor) outcome(id, level string, r hal.Report, err error, took time.Duration) wire.HealthCheck {
	c := wire.HealthCheck{At: m.o.Now().UnixMilli(), Peripheral: id, Level: level, OK: r.OK && err == nil}
	steps := r.Checks
	if err != nil {
		_, _, code := unanswered(err)
		if e := (*hal.Error)(nil); errors.As(err, &e) {
			code = e.Code
		}
		steps = append(slices.Clip(steps), hal.Check{ID: "check", Code: code, Took: took})
	} else if len(steps) == 0 {
		steps = []hal.Check{{ID: "check", OK: r.OK, Took: took}}
	}
	if n := len(steps); n > wire.MaxSteps {
		steps = append(steps[:wire.MaxSteps-1:wire.MaxSteps-1], steps[n-1])
	}
	for _, s := range steps {
		step := wire.CheckStep{ID: m.guarded(identifier(s.ID)), OK: s.OK, Code: m.guarded(identifier(s.Code)), MS: uint32(min(max(s.Took.Milliseconds(), 0), 1e9))} // #nosec G115 -- bounded
		if step.ID == "" {
			step.ID = "check"
		}
		c.Checks = append(c.Checks, step)
	}
	return c
}

func (m *Monitor) addCheck(ctx context.Context, c wire.HealthCheck) {
	m.checks = append(m.checks, c)
	size := len(c.Peripheral) + 48
	for _, s := range c.Checks {
		size += len(s.ID) + len(s.Code) + 16
	}
	m.grown(ctx, size)
}
