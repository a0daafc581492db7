package hal

import "time"

const (
	maxPanics   = 3                // of a driver's work on one device ...
	panicWindow = 10 * time.Minute // ... within which it is given up
)

// Contain runs a piece of a driver's work in a goroutine of its own choosing,
// such as reading one connection, and reports whether it came to its end: a
// panic there costs the connection, and after three in ten minutes the device.
// A panic nobody contains would cost the agent, and what a device says may be
// anything.
func (t *Tracker) Contain(work func()) (ended bool) {
	defer func() {
		if recover() != nil {
			t.panicked(1)
		}
	}()
	work()
	return true
}

// Supervise runs what a device lives by, for as long as it is open. A panic
// there is the end: the device is given up.
func (t *Tracker) Supervise(life func()) {
	defer func() {
		if recover() != nil {
			t.panicked(maxPanics)
		}
	}()
	life()
}

// panicked notes a panic that weighs as many. What was said in it is not looked
// at: it may quote the device.
func (t *Tracker) panicked(weight int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count("M_DriverPanicCount", 1)
	now := time.Now()
	for range weight {
		t.panics = append(t.panics, now)
	}
	for len(t.panics) > 0 && now.Sub(t.panics[0]) > panicWindow {
		t.panics = t.panics[1:]
	}
	if len(t.panics) < maxPanics || t.broken {
		return
	}
	t.post("M_DRIVER_PANIC", string(t.last.Power), string(PowerUnknown))
	t.broken, t.last = true, givenUp(t.category)
}

// Broken reports whether the device has been given up. Its driver leaves it
// alone from then on; it is Offline, and says why.
func (t *Tracker) Broken() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.broken
}

func givenUp(category Category) Status {
	s := Judge(category, PowerUnknown, nil)
	s.Health, s.Reason, s.Advice = Offline, "M_DRIVER_PANIC", "The agent cannot cope with what this device says; report it, and restart the agent to try again."
	return s
}
