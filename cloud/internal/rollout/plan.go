// Package rollout brings a release to the devices that a rollout reaches: wave
// by wave, so many at a time, and no further when it does harm. A model or a
// site that does badly is held while the others go on; when it is not one of
// them alone, the rollout stops and asks a person.
//
// Next is pure: it looks at where a rollout stands and says what to do, Why
// explains one device and Preview a rollout that has not begun. Runner is the
// small loop around Next. What a device does with an offer is the device's
// business; one that cannot be reached is waited for only so long, and is in
// no share that is judged.
//
// The package exports more names than other rooms: the pure part is looked at
// from outside by tests and by what measures it.
package rollout

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// Plan says what to do with a rollout now. Whatever of it is not carried out is
// planned again.
type Plan struct {
	Assign []int32      // the wave of each unit, by its index; -1: of one that is over; nil: nobody is in another than before
	Offer  []fleet.Unit // to be offered: queued ones for the first time or once more, others again since they may have missed it
	Recall []fleet.Unit // offered and not installing yet: told to drop it
	Retry  []fleet.Unit // ended in a way that may pass: back into the queue
	Moves  []Move       // executions whose state the service knows better
	Waves  []fleet.WaveStatus
	Holds  []fleet.Hold
	To     fleet.RolloutState
	Reason string // of To
	// Decisions are the changes of Waves, Holds and To, for the audit trail.
	Decisions []Decision
	Stopped   map[string]int // devices in the queue by why they are not offered it now
	Next      time.Time      // when time alone makes another plan; zero: never
}

// Move is an execution's step that the service takes by itself.
type Move struct {
	Unit         fleet.Unit
	To           fleet.ExecutionState
	Reason, Text string
}

// Decision is something that the planner decided and an operator may ask about.
type Decision struct {
	Kind, Severity string
	Detail         map[string]string
}

// Presence is how a device can be reached.
type Presence int

// How devices can be reached.
const (
	Away   Presence = iota // not connected
	Barred                 // connected and not trusted, so that it gets no offer
	Here
	Back // here again: it may have missed what it was sent
)

// View is what a plan must know beside the rollout.
type View struct {
	Release  fleet.Release
	Presence func(fleet.DeviceID) Presence
	Busy     func(fleet.DeviceID) bool // another rollout is at work on it; nil: none is
	Lanes    map[string]int            // by site: that other rollouts are at work on
	// What a device has to say can be heard since Began, when the service did, and
	// of one that is connected since it came; zero: for long.
	Began  time.Time
	Came   func(fleet.DeviceID) time.Time // nil: for long
	Health map[string]fleet.Health        // by model; "" of all
	Sites  map[string]fleet.Site          // by name; one that is missing has no hours of its own
	// HealthFrom is when what is in Health began to be counted; zero: with the rollout.
	HealthFrom time.Time
	Newer      fleet.ReleaseID // that has taken over from this one; empty: none has
}

// Next plans. It neither changes nor keeps what it is given.
func Next(now time.Time, ro fleet.Rollout, units []fleet.Unit, v View) Plan {
	if !planned(ro) {
		return Plan{To: ro.State, Waves: ro.Waves, Holds: ro.Holds}
	}
	p := newPlanner(now, ro, units, v)
	p.standing()
	p.assign()
	p.survey()
	switch {
	case p.ro.State == fleet.RolloutAborting:
		p.drain(fleet.RolloutAborted, "aborted", p.ro.Reason)
	case v.Newer != "":
		p.drain(fleet.RolloutSuperseded, reasonSuperseded, fmt.Sprintf("%s has taken over", v.Newer))
	case p.ro.State == fleet.RolloutCompleted && v.Release.Withdrawn:
		p.drain(fleet.RolloutCompleted, "withdrawn", "the release was withdrawn")
	case p.ro.State == fleet.RolloutCompleted && !p.ro.Spec.Joiners:
		p.drain(fleet.RolloutCompleted, "completed", "the rollout was completed without it")
	default:
		p.leave()
		p.judge()
		p.queue()
		p.advance()
		p.complete()
		p.offer()
	}
	return p.Plan
}

// planned reports whether there is anything to plan.
func planned(ro fleet.Rollout) bool {
	switch ro.State {
	case fleet.RolloutRunning, fleet.RolloutPaused, fleet.RolloutAborting, fleet.RolloutCompleted:
		return true
	}
	return false
}

// planner is one run of Next; its methods stand in the files by what they see
// to. What is known of a unit is kept beside the units, by their index.
type planner struct {
	Plan
	now   time.Time
	ro    fleet.Rollout
	spec  fleet.Spec
	waves []fleet.Wave
	units []fleet.Unit
	v     View

	presence []Presence
	kinds    []kind
	fits     []fit
	wave     []int32 // -1: of none yet
	moved    []int32 // what ends in this plan: 1 + its index in Moves; nil: nothing
	model    []int32 // its index in models
	site     []int32 // its index in sites
	models   []tally
	sites    []place
	bads     []int // ended badly, held ones included

	alike    map[week]*timetable
	having   map[uintptr]bool // what the release requires, by what runs
	requires []string         // what the release requires

	waiting   []int // by wave: open and waited for
	open      []int // by wave, whoever waits for them
	ready     []int // by wave: could be offered it
	members   []int // by wave
	active    int   // open and within reach
	flying    int
	perMinute float64   // the rate
	recent    int       // offered within the window of the rate
	oldest    time.Time // of those
	heldOpen  int
}

// tally is what happened to a model. Ends are counted that say something of the
// release; a device that ran it already is in none.
type tally struct {
	name              string
	held              bool
	released          time.Time // a hold was: earlier ends are not counted
	units             int
	good, bad         int
	waveGood, waveBad int // of the wave that runs
	exposed           int // under way, or to be tried once more
}

func (t *tally) ended() int { return t.good + t.bad }

// place is what a site is like.
type place struct {
	name     string
	held     bool
	released time.Time // a hold was: earlier ends are not counted
	flying   int
	hours    *timetable
}

func newPlanner(now time.Time, ro fleet.Rollout, units []fleet.Unit, v View) *planner {
	spec := withDefaults(ro.Spec)
	n := len(units)
	p := &planner{
		Plan: Plan{
			To: ro.State, Reason: ro.Reason, Waves: slices.Clone(ro.Waves), Holds: slices.Clone(ro.Holds),
			Stopped: map[string]int{},
		},
		now: now, ro: ro, spec: spec, waves: spec.Waves, units: units, v: v,
		presence: make([]Presence, n), kinds: make([]kind, n), fits: make([]fit, n), wave: make([]int32, n), model: make([]int32, n), site: make([]int32, n),
		alike: map[week]*timetable{}, having: map[uintptr]bool{}, requires: slices.Sorted(maps.Keys(v.Release.Requires)),
	}
	for len(p.Waves) < len(p.waves) {
		p.Waves = append(p.Waves, fleet.WaveStatus{State: fleet.WavePending})
	}
	p.waiting, p.ready, p.members, p.open = make([]int, len(p.waves)), make([]int, len(p.waves)), make([]int, len(p.waves)), make([]int, len(p.waves))
	p.setBack()
	models, sites := map[string]int32{}, make(map[string]int32, len(v.Sites))
	for i := range units {
		u := &units[i]
		p.presence[i], p.kinds[i], p.wave[i] = v.Presence(u.Device), kindOf(u.State, u.Reason), int32(min(u.Wave, len(p.waves)-1))
		m, ok := models[u.Model]
		if !ok {
			m = int32(len(models))
			models[u.Model] = m
			p.models = append(p.models, tally{name: u.Model})
		}
		s, ok := sites[u.Site]
		if !ok {
			s = int32(len(sites))
			sites[u.Site] = s
			p.sites = append(p.sites, place{name: u.Site, flying: v.Lanes[u.Site]})
		}
		p.model[i], p.site[i] = m, s
	}
	for _, h := range p.Holds {
		if m, ok := models[h.Model]; ok && h.Model != "" {
			p.models[m].held, p.models[m].released = h.ReleasedAt.IsZero(), h.ReleasedAt
		}
		if s, ok := sites[h.Site]; ok && h.Site != "" {
			p.sites[s].held, p.sites[s].released = h.ReleasedAt.IsZero(), h.ReleasedAt
		}
	}
	return p
}

// withDefaults fills in what a spec leaves out.
func withDefaults(s fleet.Spec) fleet.Spec {
	if len(s.Waves) == 0 {
		s.Waves = []fleet.Wave{{Name: "all"}}
	}
	s.InFlight = orDefault(s.InFlight, 500)
	s.Deadline = orDefault(s.Deadline, 7*24*time.Hour)
	s.Attempts = orDefault(s.Attempts, 3)
	s.Unreachable = orDefault(s.Unreachable, 24*time.Hour)
	s.Gate = merged(fleet.Gate{Success: 95, Bad: 5, MinSample: 20, SiteBad: 2, Health: 3}, s.Gate)
	steps := fleet.DefaultSteps()
	maps.Copy(steps, s.Steps)
	s.Steps = steps
	return s
}

func orDefault[T int | time.Duration](v, otherwise T) T {
	if v <= 0 {
		return otherwise
	}
	return v
}

// merged is a gate with what another says in its place.
func merged(g, over fleet.Gate) fleet.Gate {
	put(&g.Success, over.Success)
	put(&g.Bad, over.Bad)
	put(&g.MinSample, over.MinSample)
	put(&g.BadCap, over.BadCap)
	put(&g.SiteBad, over.SiteBad)
	put(&g.Health, over.Health)
	return g
}

func put[T comparable](to *T, v T) {
	if v != *new(T) {
		*to = v
	}
}

// skew is how far ahead of the clock a moment may lie that it wrote itself.
const skew = time.Minute

// setBack brings moments that lie ahead to now: the clock that wrote them has
// been set back since, and nothing waits until it is there again.
func (p *planner) setBack() {
	now := func(t *time.Time) {
		if t.After(p.now.Add(skew)) {
			*t = p.now
		}
	}
	for i := range p.Waves {
		w := &p.Waves[i]
		for _, t := range [...]*time.Time{&w.StartedAt, &w.OfferedAt, &w.SoakedAt, &w.EndedAt, &w.ForgivenAt} {
			now(t)
		}
	}
	for i := range p.Holds {
		now(&p.Holds[i].ReleasedAt)
	}
}

// standing looks at the rollout as a whole, before its devices.
func (p *planner) standing() {
	if p.To != fleet.RolloutRunning {
		return
	}
	if p.v.Release.Withdrawn {
		p.become(fleet.RolloutPaused, "alarm", "the release was withdrawn; abort, and roll forward to another one")
		return
	}
	// A wave that failed runs again: somebody has resumed the rollout and stands for what happened.
	for i := range p.Waves {
		if w := &p.Waves[i]; w.State == fleet.WaveFailed {
			w.State, w.ForgivenAt, w.EndedAt = fleet.WaveRunning, p.now, time.Time{}
			p.decide("rollout.wave", "info", "wave", p.waves[i].Name, "state", string(w.State), "reason", "resumed")
		}
	}
}

// become moves the rollout.
func (p *planner) become(to fleet.RolloutState, severity, reason string) {
	p.To, p.Reason = to, reason
	kind := map[fleet.RolloutState]string{
		fleet.RolloutPaused: "rollout.paused", fleet.RolloutCompleted: "rollout.completed",
		fleet.RolloutAborted: "rollout.aborted", fleet.RolloutSuperseded: "rollout.superseded",
	}[to]
	if reason == "" {
		p.decide(kind, severity)
		return
	}
	p.decide(kind, severity, "reason", reason)
}

// decide notes a decision with its details, as keys and values.
func (p *planner) decide(kind, severity string, details ...string) {
	d := Decision{Kind: kind, Severity: severity}
	for i := 0; i+1 < len(details); i += 2 {
		if d.Detail == nil {
			d.Detail = map[string]string{}
		}
		d.Detail[details[i]] = details[i+1]
	}
	p.Decisions = append(p.Decisions, d)
}

// by asks for another plan at a moment, when that is before others asked for.
func (p *planner) by(t time.Time) {
	if t.After(p.now) && (p.Next.IsZero() || t.Before(p.Next)) {
		p.Next = t
	}
}

// current is the index of the wave that runs, soaks or failed; past the last
// when all have passed.
func (p *planner) current() int {
	for i, w := range p.Waves {
		if w.State != fleet.WavePassed {
			return i
		}
	}
	return len(p.Waves)
}
