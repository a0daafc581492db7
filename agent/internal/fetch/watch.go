package fetch

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A source that sends nothing for stall, or less than floor bytes per second
// over a window of waiting, is let go: an attacker who trickles could hold up
// an update for ever. [TUF specification 1.5.2, slow retrieval]
const (
	stall  = 30 * time.Second
	window = time.Minute
	floor  = 1 << 10 // bytes per second
)

// Errors of a source that is too slow.
var (
	errStalled = fmt.Errorf("sent nothing for %s", stall)
	errSlow    = errors.New("sends too slowly to be worth waiting for")
)

// watch measures how long a source is waited for. The time that we take
// ourselves - for the rate cap, for the disk - does not count.
type watch struct {
	timer  *time.Timer // runs while a source is waited for
	since  time.Time
	waited time.Duration
	bytes  int
}

func newWatch(cancel context.CancelCauseFunc) *watch {
	w := &watch{timer: time.AfterFunc(stall, func() { cancel(errStalled) })}
	w.timer.Stop()
	return w
}

// start begins to wait.
func (w *watch) start() {
	w.since = time.Now()
	w.timer.Reset(stall)
}

func (w *watch) stop() { w.timer.Stop() }

// got ends the wait, with n bytes.
func (w *watch) got(n int) error {
	w.timer.Stop()
	w.waited += time.Since(w.since)
	w.bytes += n
	if w.waited < window {
		return nil
	}
	enough := time.Duration(w.bytes)*time.Second >= floor*w.waited
	w.waited, w.bytes = 0, 0
	if !enough {
		return errSlow
	}
	return nil
}
