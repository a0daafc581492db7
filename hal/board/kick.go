package board

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/tillward/tillward/hal"
)

// kicker is a drawer whose kick line is ours too.
type kicker struct {
	*sw
	out   string
	how   How
	pulse time.Duration

	mu sync.Mutex // one kick at a time
}

// OpenDrawer implements hal.DrawerKicker.
func (k *kicker) OpenDrawer(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.drawer.Kick(ctx, k.kick)
}

// rest lets no current through the coil, whatever an agent that was killed in
// the middle of a kick has left behind.
func (k *kicker) rest() {
	if line, err := k.lines.Take(k.out, k.how); err == nil {
		_, _ = line.Set(false), line.Close()
	}
}

// kick lets current through the drawer's coil for a moment. It ends also when
// ctx does: a coil that is left on burns.
func (k *kicker) kick(ctx context.Context) (err error) {
	line, err := k.lines.Take(k.out, k.how)
	if err != nil {
		code := "E_NOHARDWARE"
		if errors.Is(err, syscall.EBUSY) {
			code = "E_BUSY"
		}
		return &hal.Error{Code: code, Op: "open drawer", Err: fmt.Errorf("line %s: %w", k.out, err)}
	}
	defer func() { err = errors.Join(err, line.Set(false), line.Close()) }()
	if err := line.Set(true); err != nil {
		return &hal.Error{Code: "E_FAILURE", Op: "open drawer", Err: err}
	}
	pulse := time.NewTimer(k.pulse)
	defer pulse.Stop()
	select {
	case <-pulse.C:
	case <-ctx.Done():
	}
	return nil
}

// CheckHealth implements hal.HealthChecker. External opens the drawer.
func (k *kicker) CheckHealth(ctx context.Context, level hal.Level) (hal.Report, error) {
	if level != hal.External {
		return k.sw.CheckHealth(ctx, level)
	}
	began := time.Now()
	err := k.OpenDrawer(ctx)
	c := hal.Check{ID: "kick", OK: err == nil, Took: time.Since(began)}
	var e *hal.Error
	switch {
	case err == nil:
		return hal.Report{OK: true, Text: "The drawer opened.", Checks: []hal.Check{c}}, nil
	case errors.As(err, &e) && e.Code != "E_TIMEOUT":
		c.Code = e.Code
		return hal.Report{Text: "The drawer did not open: " + e.Error() + ".", Checks: []hal.Check{c}}, nil
	}
	return hal.Report{}, err
}
