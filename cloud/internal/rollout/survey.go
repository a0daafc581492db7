package rollout

import (
	"fmt"
	"strings"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const (
	// grace is what the service gives a device beyond the time that a step may
	// take: its report has to arrive first.
	grace = 5 * time.Minute
	// retryPause stands between the end of an attempt and the next.
	retryPause = 10 * time.Minute
	// settling is how long devices take to connect and to say what has happened
	// after the service began.
	settling = 15 * time.Minute
	// callbacks are how often one that was called back, or fell silent, is tried
	// again at once; then it has to pause, too.
	callbacks = 3
)

// Reasons of ends and delays that the service gives itself; others come from
// the device.
const (
	reasonTimeout     = "timeout"
	reasonDeadline    = "deadline"
	reasonUnreachable = "unreachable" // it fell silent before it touched anything
	reasonWaited      = "waited"      // for its hours, power, space or lock, until time was up
	reasonExpired     = "expired"     // the device's word: its offer was over before it touched anything
	reasonCanceled    = "canceled"
	reasonSuperseded  = "superseded"
)

// kind is what a state comes to for the planner.
type kind uint8

const (
	queued     kind = iota
	underWay        // offered, and touches nothing yet: it can be called back
	installing      // it touches what it runs: its silence is a bad sign
	// The ends.
	neutral // says nothing of the release
	already // ran it before: says nothing of it either
	good
	bad
	out // is no part of the rollout any more
)

func (k kind) ended() bool { return k >= neutral }

func kindOf(s fleet.ExecutionState, reason string) kind {
	switch s {
	case fleet.ExecQueued:
		return queued
	case fleet.ExecInstalling, fleet.ExecInstalled, fleet.ExecRebooting, fleet.ExecChecking:
		return installing
	case fleet.ExecSucceeded:
		return good
	case fleet.ExecAlready:
		return already
	case fleet.ExecCanceled, fleet.ExecRemoved:
		return out
	case fleet.ExecFailed, fleet.ExecTimedOut, fleet.ExecRejected, fleet.ExecRolledBack:
		if (fleet.Execution{State: s, Reason: reason}).Neutral() {
			return neutral
		}
		return bad
	}
	return underWay
}

// move ends an execution.
func (p *planner) move(i int, to fleet.ExecutionState, reason, text string) {
	if p.moved == nil {
		p.moved = make([]int32, len(p.units))
	}
	p.Moves = append(p.Moves, Move{p.units[i], to, reason, text})
	p.moved[i], p.kinds[i] = int32(len(p.Moves)), kindOf(to, reason)
}

// moving is the move that ends unit i in this plan; nil: none does.
func (p *planner) moving(i int) *Move {
	if p.moved == nil || p.moved[i] == 0 {
		return nil
	}
	return &p.Moves[p.moved[i]-1]
}

// endedAt is when unit i came to its end.
func (p *planner) endedAt(i int) time.Time {
	if p.moving(i) != nil {
		return p.now
	}
	if u := &p.units[i]; !u.EnteredAt.IsZero() {
		return u.EnteredAt
	}
	return p.units[i].UpdatedAt
}

// survey ends what is over, and counts ends.
func (p *planner) survey() {
	forgiven := p.forgiven()
	cur := int32(p.current())
	for i := range p.units {
		if !p.kinds[i].ended() {
			p.over(i)
		}
		t := &p.models[p.model[i]]
		k := p.kinds[i]
		if k != out {
			t.units++
		}
		if k != good && k != bad {
			continue
		}
		at := p.endedAt(i)
		if !at.After(forgiven) {
			continue
		}
		if k == bad {
			p.bads = append(p.bads, i)
		}
		if !at.After(t.released) {
			continue
		}
		inWave := p.wave[i] == cur
		switch {
		case k == good && inWave:
			t.waveGood++
			t.good++
		case k == good:
			t.good++
		case inWave:
			t.waveBad++
			t.bad++
		default:
			t.bad++
		}
	}
}

// forgiven is the moment up to which ends are not judged.
func (p *planner) forgiven() (t time.Time) {
	for _, w := range p.Waves {
		if w.ForgivenAt.After(t) {
			t = w.ForgivenAt
		}
	}
	return t
}

// over ends an open execution that has come to an end which the device has not
// reported.
func (p *planner) over(i int) {
	u := &p.units[i]
	if p.kinds[i] == queued {
		r := &p.v.Release
		if takesIn := p.ro.State == fleet.RolloutRunning || p.ro.State == fleet.RolloutCompleted; takesIn && !p.spec.Repair && r.Version != "" && u.Installed[r.Component] == r.Version {
			p.move(i, fleet.ExecAlready, "installed", "it runs "+r.Version)
		}
		return
	}
	sleeps := p.presence[i] == Away && p.kinds[i] == underWay
	if !u.OfferedAt.IsZero() {
		deadline := p.heard(i, u.OfferedAt.Add(p.spec.Deadline), grace)
		if p.now.After(deadline) {
			reason, text := reasonDeadline, fmt.Sprintf("no end within %v of its offer; it was %s", p.spec.Deadline, u.State)
			switch {
			case sleeps:
				reason = reasonUnreachable
			case u.State == fleet.ExecWaiting:
				reason, text = reasonWaited, text+" ("+u.Reason+")"
			}
			p.move(i, fleet.ExecTimedOut, reason, text)
			return
		}
		p.by(deadline.Add(time.Millisecond))
	}
	// A device that is away may sleep in any step before it touches something;
	// when it comes back it has as long again.
	limit, ok := p.spec.Steps[u.State]
	if !ok || limit <= 0 || u.EnteredAt.IsZero() || sleeps {
		return
	}
	last := p.heard(i, u.EnteredAt.Add(limit+grace), limit+grace)
	if p.now.After(last) {
		p.move(i, fleet.ExecTimedOut, reasonTimeout, fmt.Sprintf("nothing heard of it for %v in %s, where %v are enough", p.now.Sub(u.EnteredAt).Round(time.Second), u.State, limit))
		return
	}
	p.by(last.Add(time.Millisecond))
}

// heard puts off the moment at which the silence of open unit i is its own: it
// could not be heard before the service began, and one that touched nothing yet
// need not have been there before it came.
func (p *planner) heard(i int, last time.Time, again time.Duration) time.Time {
	if !p.v.Began.IsZero() {
		last = latest(last, p.v.Began.Add(settling))
	}
	if p.v.Came == nil || p.kinds[i] != underWay || p.presence[i] == Away {
		return last
	}
	if came := p.v.Came(p.units[i].Device); !came.IsZero() {
		last = latest(last, came.Add(again))
	}
	return last
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// held reports whether a hold keeps unit i out.
func (p *planner) held(i int) bool { return p.models[p.model[i]].held || p.sites[p.site[i]].held }

// aside reports whether nobody waits for open unit i: it cannot be reached, or
// cannot be brought the release as things are.
func (p *planner) aside(i int) bool {
	if p.kinds[i] == installing {
		return false
	}
	u := &p.units[i]
	switch p.presence[i] {
	case Away:
		return p.passed(silent(u)) && p.settled()
	case Barred: // it may be about to show that it can be trusted
		since := u.EnteredAt
		if w := p.wave[i]; w >= 0 && since.Before(p.Waves[w].StartedAt) {
			since = p.Waves[w].StartedAt
		}
		if p.passed(since) {
			return true
		}
	}
	if p.kinds[i] == queued {
		return p.unfit(i) != ""
	}
	// For hours it may wait for days, and is waited for; else somebody must see to it.
	return u.State == fleet.ExecWaiting && !strings.HasPrefix(u.Reason, "window") && p.passed(u.EnteredAt)
}

// settled reports whether devices have had the time to come since the service
// began: before that, that one is away says nothing.
func (p *planner) settled() bool {
	if ready := p.v.Began.Add(min(settling, p.spec.Unreachable)); p.now.Before(ready) {
		p.by(ready)
		return false
	}
	return true
}

// silent is since when nothing was heard of a device that is away.
func silent(u *fleet.Unit) time.Time {
	if u.LastSeen.IsZero() {
		return u.EnteredAt
	}
	return u.LastSeen
}

// late reports whether unit i came when its wave had been at it for so long
// that nobody waits for it any more. Without this a fleet whose devices come
// and go all day would never get past a wave.
func (p *planner) late(i int) bool {
	st := p.Waves[p.wave[i]]
	if st.OfferedAt.IsZero() || !p.passed(st.OfferedAt) {
		return false
	}
	u := &p.units[i]
	return u.OfferedAt.IsZero() || u.OfferedAt.After(st.OfferedAt.Add(p.spec.Unreachable))
}

// here reports whether unit i can be told something now.
func (p *planner) here(i int) bool { return p.presence[i] == Here || p.presence[i] == Back }

// passed reports whether a moment lies back so far that nobody waits any more.
func (p *planner) passed(since time.Time) bool {
	until := since.Add(p.spec.Unreachable)
	if p.now.After(until) {
		return true
	}
	p.by(until.Add(time.Millisecond))
	return false
}

// retryable reports whether unit i, which has ended, will be tried again, and
// from when on.
func (p *planner) retryable(i int) (again bool, from time.Time) {
	u := &p.units[i]
	if k := p.kinds[i]; k != bad && k != neutral || p.moving(i) != nil || !u.Retryable() {
		return false, time.Time{}
	}
	n := max(u.Attempt, 1)
	pause := min(retryPause, p.spec.Deadline/8) * time.Duration(min(n, 100))
	switch u.Reason {
	case reasonCanceled, reasonUnreachable, reasonWaited, reasonExpired:
		if n < max(p.spec.Attempts, callbacks) {
			return true, p.now
		}
		return true, p.endedAt(i).Add(pause) // for ever, but not in a loop
	}
	return n < p.spec.Attempts, p.endedAt(i).Add(pause)
}

// worn reports whether unit i had its attempts and touched nothing in any: it
// goes on being tried, and nobody waits for it.
func (p *planner) worn(i int) bool {
	u := &p.units[i]
	if u.Attempt < max(p.spec.Attempts, callbacks) {
		return false
	}
	return p.kinds[i].ended() || p.kinds[i] == queued || u.State == fleet.ExecOffered || u.State == fleet.ExecWaiting && !strings.HasPrefix(u.Reason, "window")
}

// queue counts what is still to be done, held ones apart.
func (p *planner) queue() {
	rate := p.spec.Rate.Base > 0
	for i := range p.units {
		u := &p.units[i]
		k, w := p.kinds[i], p.wave[i]
		if w >= 0 && k != out {
			p.members[w]++
		}
		if rate && !u.OfferedAt.IsZero() {
			p.rated(u.OfferedAt)
		}
		if k.ended() {
			// One that timed out and is not back may be lost; one that is here will have its turn.
			switch again, _ := p.retryable(i); {
			case !again:
			case p.held(i):
				p.heldOpen++
			case w >= 0 && p.here(i):
				p.await(i)
			}
			continue
		}
		if w >= 0 {
			p.open[w]++
		}
		held, aside := p.held(i), p.aside(i)
		if held {
			p.heldOpen++
		}
		if aside {
			continue
		}
		if k != queued {
			p.flying++
			p.sites[p.site[i]].flying++
		}
		if k != queued || u.Attempt > 0 {
			p.models[p.model[i]].exposed++
		}
		if !held && w >= 0 {
			p.await(i)
			if k == queued && p.here(i) {
				p.ready[w]++
			}
		}
	}
}

// await notes that unit i has a part to play yet.
func (p *planner) await(i int) {
	switch late := p.late(i); {
	case !late:
		p.waiting[p.wave[i]]++
		p.active++
	case !p.worn(i):
		p.active++
	}
}
