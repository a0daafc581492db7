package fleet

import "time"

// Preview is what a rollout would do if it began now.
type Preview struct {
	Reaches int // devices
	Sites   int // that they stand in
	Waves   []PreviewWave
	Blocked []Blocked
	Text    string // all of it in one sentence
}

// PreviewWave is how many devices a wave would take.
type PreviewWave struct {
	Name    string
	Devices int
}

// Blocked is how many devices could not be brought the release now, and why.
// One that waits for its hours is among them; one that is offline, too.
type Blocked struct {
	Reason  string // window, space, requires, model, offline, power, held, quarantined, busy
	Text    string // for people; says what would help
	Devices int
}

// Delay is why one device has not got a release yet. (Waiting is a device that
// nobody owns.)
type Delay struct {
	Rollout RolloutID // empty: of no rollout in particular
	Reason  string    // a code, as in Execution and Blocked
	Text    string    // for people; says what would help
	Since   time.Time // zero: not known
}
