package clock

import (
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tillward/tillward/cloud/wire"
)

// built is the year in which this was written: a clock that says less has no
// battery, or one that is empty.
const built = 2026

// hasRTC reports whether the box has a clock that goes on while it is off.
var hasRTC = sync.OnceValue(func() bool {
	found, _ := filepath.Glob("/sys/class/rtc/rtc[0-9]*") // the pattern is well formed
	return len(found) > 0
})

// Stamp is what a record is stamped with: the wall time, how long the box has
// been on, and what the wall time rests on.
func (c *Clock) Stamp() (at time.Time, mono time.Duration, quality string) {
	at = c.Now()
	c.mu.Lock()
	held := at.Equal(c.least)
	c.mu.Unlock()
	return at, Mono(), rests(held, synchronised(), hasRTC(), at.UTC().Year())
}

func rests(held, synced, rtc bool, year int) string {
	switch {
	case held:
		return wire.ClockHeld
	case synced:
		return wire.ClockSync
	case rtc && year >= built:
		return wire.ClockRTC
	}
	return wire.ClockNone
}

// synchronised reports whether NTP or PTP keeps the kernel's clock in step
// [adjtimex(2)].
func synchronised() bool {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	return err == nil && state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0
}

// Mono is how long the box has been on, asleep or not. Setting the clock does
// not move it.
func Mono() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
