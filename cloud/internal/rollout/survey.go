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
)

// tally counts ends that say something of the release. A device that ran it
// already is in none.
type tally struct {
	good, bad         int
	waveGood, waveBad int // of the wave that runs
	units             int
	exposed           int // under way, or to be tried once more
}

func (t *tally) ended() int { return t.good + t.bad }

// Reasons of ends and delays that the service gives itself; others come from
// the device.
const (
	reasonTimeout     = "timeout"
	reasonDeadline    = "deadline"
	reasonUnreachable = "unreachable" // it fell silent before it touched anything
	reasonWaited      = "waited"      // for its hours, power, space or lock, until time was up
	reasonCanceled    = "canceled"
	reasonSuperseded  = "superseded"
	reasonDowngrade   = "downgrade" // it runs something newer
)

// installs reports whether a device in this state touches what it runs: from
// here on it is not called back, and its silence is a bad sign.
func installs(s fleet.ExecutionState) bool {
	switch s {
	case fleet.ExecInstalling, fleet.ExecInstalled, fleet.ExecRebooting, fleet.ExecChecking:
		return true
	}
	return false
}

// neutral reports whether an end says nothing of the release.
func neutral(s fleet.ExecutionState, reason string) bool {
	switch s {
	case fleet.ExecCanceled, fleet.ExecRemoved, fleet.ExecAlready:
		return true
	case fleet.ExecFailed, fleet.ExecTimedOut:
		return reason == reasonCanceled || reason == reasonSuperseded || reason == reasonUnreachable || reason == reasonWaited
	case fleet.ExecRejected:
		return reason == reasonDowngrade
	}
	return false
}

// end returns the end that unit i has come to, in this plan or before.
func (p *planner) end(i int) (s fleet.ExecutionState, reason string, at time.Time) {
	if m, ok := p.moved[i]; ok {
		return m.To, m.Reason, p.now
	}
	u := &p.units[i]
	at = u.EnteredAt
	if at.IsZero() {
		at = u.UpdatedAt
	}
	return u.State, u.Reason, at
}

func (p *planner) state(i int) fleet.ExecutionState {
	if len(p.moved) > 0 {
		if m, ok := p.moved[i]; ok {
			return m.To
		}
	}
	return p.units[i].State
}

func (p *planner) model(m string) *tally {
	t := p.models[m]
	if t == nil {
		t = &tally{}
		p.models[m] = t
	}
	return t
}

// survey ends what is over, and counts ends.
func (p *planner) survey() {
	forgiven := p.forgiven()
	cur := p.current()
	for i := range p.units {
		u := &p.units[i]
		if !u.State.Ended() {
			if m, over := p.over(i); over {
				p.move(i, m.To, m.Reason, m.Text)
			}
		}
		t := p.model(u.Model)
		if s := p.state(i); s != fleet.ExecRemoved && s != fleet.ExecCanceled {
			t.units++
		}
		s, reason, at := p.end(i)
		if !s.Ended() || !at.After(forgiven) {
			continue
		}
		switch {
		case neutral(s, reason):
			continue
		case !s.Good():
			p.bads = append(p.bads, i)
		}
		if since, ok := p.released[fleet.Hold{Model: u.Model}]; ok && !at.After(since) {
			continue
		}
		inWave := p.wave(i) == cur
		if s.Good() {
			t.good++
			if inWave {
				t.waveGood++
			}
			continue
		}
		t.bad++
		if inWave {
			t.waveBad++
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

// over says whether an open execution has come to an end that the device has not reported.
func (p *planner) over(i int) (Move, bool) {
	u := &p.units[i]
	if u.State == fleet.ExecQueued {
		if v := p.v.Release.Version; (p.ro.State == fleet.RolloutRunning || p.ro.State == fleet.RolloutCompleted) && !p.spec.Repair && v != "" {
			if has := u.Installed[p.v.Release.Component]; has == v {
				return Move{*u, fleet.ExecAlready, "installed", "it runs " + has}, true
			}
		}
		return Move{}, false
	}
	away := p.presence[i] == Away
	if deadline := u.OfferedAt.Add(p.spec.Deadline); !u.OfferedAt.IsZero() && p.now.After(deadline) {
		m := Move{*u, fleet.ExecTimedOut, reasonDeadline, fmt.Sprintf("no end within %v of its offer; it was %s", p.spec.Deadline, u.State)}
		switch {
		case away && !installs(u.State):
			m.Reason = reasonUnreachable
		case u.State == fleet.ExecWaiting:
			m.Reason, m.Text = reasonWaited, m.Text+" ("+u.Reason+")"
		}
		return m, true
	} else if !u.OfferedAt.IsZero() {
		p.by(deadline.Add(time.Millisecond))
	}
	// A device that is away may sleep in any step before it touches something;
	// when it comes back its own timer goes on.
	limit, ok := p.spec.Steps[u.State]
	if !ok || limit <= 0 || u.EnteredAt.IsZero() || away && !installs(u.State) {
		return Move{}, false
	}
	if last := u.EnteredAt.Add(limit + grace); p.now.After(last) {
		return Move{*u, fleet.ExecTimedOut, reasonTimeout, fmt.Sprintf("nothing heard of it for %v in %s, where %v are enough", p.now.Sub(u.EnteredAt).Round(time.Second), u.State, limit)}, true
	} else {
		p.by(last.Add(time.Millisecond))
	}
	return Move{}, false
}

// held reports whether a hold keeps unit i out.
func (p *planner) held(u *fleet.Unit) bool {
	return len(p.heldModel) > 0 && p.heldModel[u.Model] || len(p.heldSite) > 0 && p.heldSite[u.Site]
}

// aside reports whether nobody waits for open unit i: it cannot be reached, or
// cannot be brought the release as things are.
func (p *planner) aside(i int) bool {
	u := &p.units[i]
	switch p.presence[i] {
	case Away:
		return !installs(u.State) && p.passed(silent(u))
	case Barred: // it may be about to show that it can be trusted
		since := u.EnteredAt
		if w := p.wave(i); w >= 0 && since.Before(p.Waves[w].StartedAt) {
			since = p.Waves[w].StartedAt
		}
		if !installs(u.State) && p.passed(since) {
			return true
		}
	}
	switch u.State {
	case fleet.ExecQueued:
		return p.unfit(u) != ""
	case fleet.ExecWaiting: // for hours it may wait for days, and is waited for; else somebody must see to it
		return !strings.HasPrefix(u.Reason, "window") && p.passed(u.EnteredAt)
	}
	return false
}

// silent is since when nothing was heard of a device that is away.
func silent(u *fleet.Unit) time.Time {
	if u.LastSeen.IsZero() {
		return u.EnteredAt
	}
	return u.LastSeen
}

// passed reports whether a moment lies back so far that nobody waits any more.
func (p *planner) passed(since time.Time) bool {
	until := since.Add(p.spec.Unreachable)
	if p.now.After(until) {
		return true
	}
	p.by(until.Add(time.Millisecond))
	return false
}

// retryable reports whether unit i, which has ended, will be tried again, and when.
func (p *planner) retryable(i int) (bool, time.Time) {
	u := &p.units[i]
	if _, now := p.moved[i]; now || !u.Retryable() {
		return false, time.Time{}
	}
	_, reason, at := p.end(i)
	switch reason {
	case reasonCanceled, reasonUnreachable, reasonWaited:
		return true, p.now
	}
	pause := min(retryPause, p.spec.Deadline/8) * time.Duration(max(u.Attempt, 1))
	return max(u.Attempt, 1) < p.spec.Attempts, at.Add(pause)
}

// queue counts what is still to be done, held ones apart.
func (p *planner) queue() {
	for i := range p.units {
		u := &p.units[i]
		s := p.state(i)
		w := p.wave(i)
		if w >= 0 && s != fleet.ExecRemoved && s != fleet.ExecCanceled {
			p.members[w]++
		}
		if !u.OfferedAt.IsZero() {
			p.rated(u.OfferedAt)
		}
		if s.Ended() {
			again, _ := p.retryable(i)
			if !again {
				continue
			}
			if p.held(u) {
				p.heldOpen++
				continue
			}
			// One that timed out and is not back may be lost; one that is here will have its turn.
			if w >= 0 && (p.presence[i] == Here || p.presence[i] == Back) {
				p.waiting[w]++
			}
			continue
		}
		held, aside := p.held(u), p.aside(i)
		if held {
			p.heldOpen++
		}
		if s != fleet.ExecQueued && !aside {
			p.flying++
			p.sites[u.Site]++
		}
		if (s != fleet.ExecQueued || u.Attempt > 0) && !aside {
			p.model(u.Model).exposed++
		}
		if !held && !aside && w >= 0 {
			p.waiting[w]++
		}
	}
}
