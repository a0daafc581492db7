package fetch

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// pace is what a source must keep to. One that sends nothing for stall, or less
// than floor bytes per second over a window of waiting, is let go: an attacker
// who trickles could hold up an update for ever. [TUF specification 1.5.2, slow
// retrieval]
type pace struct {
	stall, window time.Duration
	floor         time.Duration // bytes per second
}

// A line may be poor, and there is no other. A till is in the same room, and
// the service does what it does not.
var (
	wirePace = pace{stall: 30 * time.Second, window: time.Minute, floor: 1 << 10}
	peerPace = pace{stall: 10 * time.Second, window: 20 * time.Second, floor: 16 << 10}
)

// errSlow is a source that does not keep to its pace.
var errSlow = errors.New("sends too slowly to be worth waiting for")

// watch measures how long a source is waited for. The time that we take
// ourselves - for the rate cap, for the disk - does not count.
type watch struct {
	pace
	timer  *time.Timer // runs while a source is waited for
	since  time.Time
	waited time.Duration
	bytes  int
}

func newWatch(p pace, cancel context.CancelCauseFunc) *watch {
	stalled := fmt.Errorf("sent nothing for %s: %w", p.stall, errSlow)
	w := &watch{pace: p, timer: time.AfterFunc(p.stall, func() { cancel(stalled) })}
	w.timer.Stop()
	return w
}

// start begins to wait.
func (w *watch) start() {
	w.since = time.Now()
	w.timer.Reset(w.stall)
}

func (w *watch) stop() { w.timer.Stop() }

// got ends the wait, with n bytes.
func (w *watch) got(n int) error {
	w.timer.Stop()
	w.waited += time.Since(w.since)
	w.bytes += n
	if w.waited < w.window {
		return nil
	}
	enough := time.Duration(w.bytes)*time.Second >= w.floor*w.waited
	w.waited, w.bytes = 0, 0
	if !enough {
		return errSlow
	}
	return nil
}
