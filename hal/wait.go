package hal

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff is how long to wait before something is tried again that has failed
// so often: from a range that doubles with each failure, from least to most,
// drawn so that a fleet does not try at one moment.
func Backoff(failures int, least, most time.Duration) time.Duration {
	d := most
	if failures < 20 { // more would overflow, and is above any most
		d = min(d, least<<failures)
	}
	return d/2 + rand.N(d/2) //nolint:gosec // spreads load, guards nothing
}

// Pause waits; false when it was woken before its time by a nudge, as Nudger
// brings it. The end of ctx ends it, too.
func Pause(ctx context.Context, d time.Duration, nudge <-chan struct{}) bool {
	wait := time.NewTimer(d)
	defer wait.Stop()
	select {
	case <-ctx.Done():
	case <-nudge:
		return false
	case <-wait.C:
	}
	return true
}
