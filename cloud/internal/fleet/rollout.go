package fleet

import "time"

// Release is a published TUF target folder that a rollout can point at.
type Release struct {
	ID          ReleaseID // the folder: {component}/{version}
	Component   string    // agent, os/{model}/{channel}, ops/{tenant}/{name}
	Class       string    // agent, os, app, config, script
	Version     string
	Tenant      TenantID          // whose it is; empty: of the vendor, for everybody
	Models      []string          // it fits; empty: all
	Requires    map[string]string // component -> version at least
	Targets     []Target
	Withdrawn   bool // devices that run it may go on; nobody gets it any more
	PublishedAt time.Time
	PublishedBy string
}

// Target is one artifact of a release.
type Target struct {
	Path   string
	SHA256 string
	Length int64
}

// RolloutState is where a rollout stands.
type RolloutState string

// The states of a rollout. Denied, Superseded, Aborted and Completed are ends.
const (
	RolloutDraft      RolloutState = "DRAFT"
	RolloutAwaiting   RolloutState = "AWAITING_APPROVAL"
	RolloutDenied     RolloutState = "DENIED"
	RolloutReady      RolloutState = "READY"
	RolloutRunning    RolloutState = "RUNNING"
	RolloutPaused     RolloutState = "PAUSED"
	RolloutAborting   RolloutState = "ABORTING" // nothing more is offered; what installs finishes
	RolloutAborted    RolloutState = "ABORTED"
	RolloutCompleted  RolloutState = "COMPLETED"
	RolloutSuperseded RolloutState = "SUPERSEDED" // a newer release of the component took over
)

// Ended reports whether the state is final.
func (s RolloutState) Ended() bool {
	switch s {
	case RolloutDenied, RolloutAborted, RolloutCompleted, RolloutSuperseded:
		return true
	}
	return false
}

// Rollout brings one release to the devices that its plan reaches. A device
// that is reached later is taken in while it runs, and, when the plan takes
// joiners, afterwards by the newest completed rollout of its component.
type Rollout struct {
	ID         RolloutID
	Tenant     TenantID
	Release    ReleaseID
	State      RolloutState
	Reason     string // why paused, denied, aborted
	Auto       bool   // paused by a gate, not by a person
	CreatedAt  time.Time
	CreatedBy  string
	ApprovedBy string
	ApprovedAt time.Time
	StartedAt  time.Time
	EndedAt    time.Time
	Spec       Spec
	Waves      []WaveStatus // as many as Spec.Waves; empty before it started
	Holds      []Hold
	Version    int64 // counts changes of the row; whoever changes it says which it saw
}

// Spec is how a rollout goes: what an operator composes and another approves.
// Times are whole seconds. The JSON form is what the store keeps.
type Spec struct {
	Filter      Filter                           `json:"filter,omitzero"`
	Waves       []Wave                           `json:"waves,omitempty"` // in order; none: one of all
	Gate        Gate                             `json:"gate,omitzero"`
	Rate        Rate                             `json:"rate,omitzero"`
	PerSite     int                              `json:"per_site,omitempty"`    // lanes of one site under way at once; 0: no limit
	InFlight    int                              `json:"in_flight,omitempty"`   // executions under way at once; 0: 500
	Download    string                           `json:"download,omitempty"`    // hours of the site, e.g. "22:00-05:00" or "mon-fri 22:00-05:00, sun 00:00-24:00"
	Install     string                           `json:"install,omitempty"`     // empty: the site's own hours, or any time
	Deadline    time.Duration                    `json:"deadline,omitempty"`    // of an attempt, from its offer to its end; 0: 7 days
	Steps       map[ExecutionState]time.Duration `json:"steps,omitempty"`       // that a state may take, on the device and, with a grace, here; DefaultSteps for those left out
	Attempts    int                              `json:"attempts,omitempty"`    // of one device at ends that may be tried again; 0: 3
	Unreachable time.Duration                    `json:"unreachable,omitempty"` // silent for so long: its own bucket, no wave waits for it; 0: 24 h
	Joiners     bool                             `json:"joiners,omitempty"`     // also devices that are reached only after the end
	RateKiB     int                              `json:"rate_kib,omitempty"`    // KiB per second of one device's download; 0: as it is configured
	Repair      bool                             `json:"repair,omitempty"`      // quarantined devices are offered the release, too
}

// Filter picks devices; what is empty picks all.
type Filter struct {
	Group   string     `json:"group,omitempty"`
	Model   string     `json:"model,omitempty"`
	Site    string     `json:"site,omitempty"`
	Devices []DeviceID `json:"devices,omitempty"`
}

// Wave is one step of a rollout. A device is in the first wave that picks it;
// the last wave takes whoever is left.
type Wave struct {
	Name    string        `json:"name"`
	Filter  Filter        `json:"filter,omitzero"`   // a canary list, a group; all of them
	Percent float64       `json:"percent,omitempty"` // of the devices that the rollout reaches, those of earlier waves included; 0: all that Filter picks
	Soak    time.Duration `json:"soak,omitempty"`    // watched after the last end before the next wave
	Gate    Gate          `json:"gate,omitzero"`     // in place of the rollout's, where it says something
}

// Gate is when a wave passes and when a rollout stops by itself. Shares are in
// percent of the executions that ended; what is unreachable is in neither.
type Gate struct {
	Success   float64 `json:"success,omitempty"`    // share that must have ended well; 0: 95, negative: not judged
	Bad       float64 `json:"bad,omitempty"`        // share that may end badly; 0: 5, negative: not judged
	MinSample int     `json:"min_sample,omitempty"` // ends before a share is judged; 0: 20
	BadCap    int     `json:"bad_cap,omitempty"`    // ends badly at most, whatever their share; 0: no limit
	SiteBad   int     `json:"site_bad,omitempty"`   // in one site, at which it is held; 0: 2, negative: not judged
	Health    float64 `json:"health,omitempty"`     // times the control group's faults per device-hour that updated devices may have; 0: 3, negative: not judged
}

// Rate is how fast devices are offered a release: Base a minute, times Factor
// each time another Every have ended well, up to Max.
type Rate struct {
	Base   float64 `json:"base,omitempty"` // devices a minute; 0: no limit
	Factor float64 `json:"factor,omitempty"`
	Every  int     `json:"every,omitempty"`
	Max    float64 `json:"max,omitempty"`
}

// WaveState is where a wave stands.
type WaveState string

// The states of a wave.
const (
	WavePending WaveState = "PENDING"
	WaveRunning WaveState = "RUNNING"
	WaveSoaking WaveState = "SOAKING"
	WavePassed  WaveState = "PASSED"
	WaveFailed  WaveState = "FAILED"
)

// WaveStatus is where a wave of a rollout stands.
type WaveStatus struct {
	State     WaveState `json:"state"`
	StartedAt time.Time `json:"started_at,omitzero"`
	OfferedAt time.Time `json:"offered_at,omitzero"` // whoever of it could be reached had been offered it
	SoakedAt  time.Time `json:"soaked_at,omitzero"`  // the soak began
	EndedAt   time.Time `json:"ended_at,omitzero"`
	// Somebody resumed the rollout after the wave had failed: what ended before
	// is not judged again.
	ForgivenAt time.Time `json:"forgiven_at,omitzero"`
}

// Hold keeps a model or a site out of a rollout that goes on elsewhere.
type Hold struct {
	Model  string    `json:"model,omitempty"` // one of the two
	Site   string    `json:"site,omitempty"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	// Somebody released it: it holds nothing any more, and what ended before is
	// not judged again. Zero: it holds.
	ReleasedAt time.Time `json:"released_at,omitzero"`
}

// ExecutionState is where one device's part in a rollout stands.
type ExecutionState string

// The states of an execution, in order, then its ends.
const (
	ExecQueued      ExecutionState = "QUEUED"
	ExecOffered     ExecutionState = "OFFERED"
	ExecWaiting     ExecutionState = "WAITING"
	ExecDownloading ExecutionState = "DOWNLOADING"
	ExecStaged      ExecutionState = "STAGED"
	ExecInstalling  ExecutionState = "INSTALLING"
	ExecInstalled   ExecutionState = "INSTALLED"
	ExecRebooting   ExecutionState = "REBOOTING"
	ExecChecking    ExecutionState = "CHECKING"
	ExecSucceeded   ExecutionState = "SUCCEEDED"
	ExecAlready     ExecutionState = "ALREADY_INSTALLED"
	ExecFailed      ExecutionState = "FAILED"
	ExecRolledBack  ExecutionState = "ROLLED_BACK"
	ExecRejected    ExecutionState = "REJECTED"
	ExecTimedOut    ExecutionState = "TIMED_OUT"
	ExecCanceled    ExecutionState = "CANCELED"
	ExecRemoved     ExecutionState = "REMOVED" // the device left what the rollout reaches
)

var execRank = map[ExecutionState]int{
	ExecQueued: 1, ExecOffered: 2, ExecWaiting: 3, ExecDownloading: 4, ExecStaged: 5, ExecInstalling: 6,
	ExecInstalled: 7, ExecRebooting: 8, ExecChecking: 9,
	ExecSucceeded: 100, ExecAlready: 100, ExecFailed: 100, ExecRolledBack: 100, ExecRejected: 100, ExecTimedOut: 100, ExecCanceled: 100, ExecRemoved: 100,
}

// Known reports whether s is a state of the model.
func (s ExecutionState) Known() bool { return execRank[s] != 0 }

// Ended reports whether the state is final.
func (s ExecutionState) Ended() bool { return execRank[s] >= 100 }

// Good reports whether the execution ended with the release running.
func (s ExecutionState) Good() bool { return s == ExecSucceeded || s == ExecAlready }

// MayBecome reports whether an execution may move from s to next. Reports can
// arrive twice or late: moving backwards or out of an end is not a move. The
// exceptions are TIMED_OUT and CANCELED, which the service says without
// knowing: what the device says later is the truth.
func (s ExecutionState) MayBecome(next ExecutionState) bool {
	if s == ExecTimedOut || s == ExecCanceled {
		return next.Ended() && next != ExecTimedOut && next != ExecCanceled && next != ExecRemoved
	}
	return s.Known() && next.Known() && !s.Ended() && execRank[next] > execRank[s]
}

// Takes reports whether step moves the execution. Steps of an attempt are
// numbered by the device, which may wait again after it fetched: the newest
// number is the truth, a lower one is old news, and so is what is said of an
// older attempt. A step without a number, of the service or of an agent that
// counts none, only leads on.
func (e Execution) Takes(step ExecutionStep) bool {
	switch {
	case !step.State.Known() || step.Version != 0 && step.Version != e.Version:
		return false
	case step.Attempt != 0 && step.Attempt != e.Attempt && (step.Attempt != e.Attempt+1 || e.State != ExecQueued):
		return false // of an attempt that is over, or that nobody was offered
	case e.State == ExecCanceled && step.State == ExecFailed && (step.Reason == "canceled" || step.Reason == "superseded"):
		return false // it only says that it did as it was told
	case e.State.Ended():
		return e.State.MayBecome(step.State)
	case step.Number != 0 && step.Attempt == e.Attempt:
		return step.Number > e.Step
	case step.State == e.State:
		return step.Done > e.Done || step.Reason != e.Reason && step.State == ExecWaiting
	}
	return e.State.MayBecome(step.State)
}

// DefaultSteps are how long a state may take on the device. A state that is not
// here may take as long as the attempt.
func DefaultSteps() map[ExecutionState]time.Duration {
	return map[ExecutionState]time.Duration{
		ExecOffered: 10 * time.Minute, ExecStaged: time.Hour, ExecInstalling: time.Hour, ExecInstalled: 24 * time.Hour, ExecRebooting: 15 * time.Minute, ExecChecking: 15 * time.Minute,
	}
}

// Execution is one device's part in a rollout.
type Execution struct {
	ID        ExecutionID
	Rollout   RolloutID
	Device    DeviceID
	Wave      int // index; -1: not assigned yet
	State     ExecutionState
	Attempt   int    // from 1 once offered
	Step      uint32 // of the device's last report of this attempt
	Version   int64  // counts changes; whoever changes it says which it saw
	Reason    string // why it waits, or how it ended; a code
	Text      string
	From, To  string // versions
	Done      uint64
	Total     uint64 // bytes
	Bytes     Bytes
	OfferedAt time.Time
	EnteredAt time.Time // State
	UpdatedAt time.Time
}

// Bytes says where the bytes of an artifact came from.
type Bytes struct {
	Wire, Peer, Medium, Reused uint64
}

// Retryable reports whether the end e may be tried again: it failed for a
// reason that may pass. Refusals, and releases that did not prove themselves,
// stay as they are; an offer that came after its time is no refusal.
func (e Execution) Retryable() bool {
	return e.State == ExecFailed || e.State == ExecTimedOut || e.State == ExecRejected && e.Reason == "expired"
}

// Neutral reports whether e ended in a way that says nothing of the release:
// it was called back, fell silent or waited until its time was over before
// anything was touched, had too much else to do, or the device runs something
// newer. Such an end is neither good nor bad.
func (e Execution) Neutral() bool {
	switch e.State {
	case ExecFailed, ExecTimedOut:
		switch e.Reason {
		case "canceled", "superseded", "unreachable", "waited", "expired", "busy":
			return true
		}
	case ExecRejected:
		return e.Reason == "downgrade" || e.Reason == "expired"
	}
	return false
}

// Unit is an execution with what the planner must know of its device.
type Unit struct {
	Execution
	Model, Site, Group string
	LastSeen           time.Time
	Installed          map[string]string // component -> version; devices share it, so it is only read
	FreeMiB            uint64            // 0: not known
	FirstSeen          time.Time         // enrolled
}

// Health is what happened to the devices of a rollout since it began, the
// updated ones apart from those that are not yet.
type Health struct {
	Updated, Control Faults
}

// Faults counts what went wrong on some devices in some time.
type Faults struct {
	Devices    int
	Hours      float64 // device-hours watched
	Peripheral int     // printers, readers and drawers that went bad
	Reconnects int
	Crashes    int
}

// Site is a place with devices, and its hours.
type Site struct {
	Tenant   TenantID
	Name     string
	Zone     string // IANA time zone, e.g. Europe/Berlin; empty: UTC
	Download string // hours in which updates may be fetched, as in Spec
	Install  string // hours in which tills may be touched
	Devices  int    // that stand there
}

// Installed is one component that a device runs: what it found, whatever was
// said of an execution.
type Installed struct {
	Component string `json:"component"`
	Version   string `json:"version"`
	Slot      string `json:"slot,omitempty"`
	Hash      string `json:"hash,omitempty"` // hex, of what was installed
	Trial     bool   `json:"trial,omitempty"`
}

// ExecutionFilter picks executions of a rollout; empty fields pick all.
type ExecutionFilter struct {
	State       ExecutionState
	Wave        *int
	Model, Site string
}

// Progress is where a rollout stands, in numbers.
type Progress struct {
	Counts      map[ExecutionState]int
	Waves       map[int]map[ExecutionState]int // by index; -1: not assigned yet
	Neutral     map[int]int                    // ends that say nothing of the release, by wave
	Unreachable map[int]int                    // of those that have not ended, by wave: silent for too long
	Bytes       Bytes
}
