package rollout

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"
	"slices"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// wave is the wave of unit i; -1: of none yet.
func (p *planner) wave(i int) int {
	u := &p.units[i]
	if u.Wave >= 0 {
		return min(u.Wave, len(p.waves)-1)
	}
	if w, ok := p.Assign[u.ID]; ok {
		return w
	}
	return -1
}

// assign puts devices that are in no wave into one: the first that picks them,
// else the last. Which of them a share takes hangs on the rollout and the device
// alone. A device that comes later is not put behind the wave that runs: the
// waves before are over.
func (p *planner) assign() {
	var fresh []int
	for i := range p.units {
		if p.units[i].Wave < 0 && !p.units[i].State.Ended() {
			fresh = append(fresh, i)
		}
	}
	if len(fresh) == 0 {
		return
	}
	last := len(p.waves) - 1
	first := min(p.current(), last)
	for w := first; w < last && len(fresh) > 0; w++ {
		wave := &p.waves[w]
		take := len(fresh)
		if wave.Percent > 0 {
			take = p.share(w)
			p.shuffle(fresh)
		}
		picked := picker(wave.Filter)
		rest := fresh[:0:0]
		for _, i := range fresh {
			if take > 0 && picked(&p.units[i]) {
				p.Assign[p.units[i].ID] = w
				take--
				continue
			}
			rest = append(rest, i)
		}
		fresh = rest
	}
	for _, i := range fresh {
		p.Assign[p.units[i].ID] = last
	}
}

// share is how many devices wave w, which takes a percentage, is short of.
func (p *planner) share(w int) int {
	picked := picker(p.waves[w].Filter)
	all, have := 0, 0
	for i := range p.units {
		u := &p.units[i]
		if u.State == fleet.ExecRemoved || !picked(u) {
			continue
		}
		all++
		if in := p.wave(i); in >= 0 && in <= w {
			have++
		}
	}
	return int(math.Ceil(float64(all)*p.waves[w].Percent/100-1e-9)) - have
}

// shuffle orders units by chance that is the same whenever it is drawn.
func (p *planner) shuffle(units []int) {
	keys := make(map[int]uint64, len(units))
	for _, i := range units {
		h := fnv.New64a()
		_, _ = h.Write([]byte(p.ro.ID))
		_, _ = h.Write([]byte{0})
		_, _ = h.Write([]byte(p.units[i].Device))
		// FNV alone leaves names that differ at the end close together.
		keys[i] = mix(binary.BigEndian.Uint64(h.Sum(nil)))
	}
	slices.SortFunc(units, func(a, b int) int {
		return cmp.Or(cmp.Compare(keys[a], keys[b]), cmp.Compare(p.units[a].Device, p.units[b].Device))
	})
}

// mix spreads the bits of a number [splitmix64].
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// picker returns what a filter picks.
func picker(f fleet.Filter) func(*fleet.Unit) bool {
	devices := make(map[fleet.DeviceID]bool, len(f.Devices))
	for _, d := range f.Devices {
		devices[d] = true
	}
	return func(u *fleet.Unit) bool {
		return (f.Group == "" || f.Group == u.Group) && (f.Model == "" || f.Model == u.Model) && (f.Site == "" || f.Site == u.Site) &&
			(len(devices) == 0 || devices[u.Device])
	}
}

// advance moves waves as far as they go.
func (p *planner) advance() {
	if len(p.units) == 0 {
		return
	}
	for p.To == fleet.RolloutRunning {
		cur := p.current()
		if cur == len(p.waves) || !p.step(cur) {
			return
		}
	}
}

// step moves one wave, and reports whether it did.
func (p *planner) step(w int) bool {
	st, wave := &p.Waves[w], p.waves[w]
	switch st.State {
	case fleet.WavePending:
		st.State, st.StartedAt = fleet.WaveRunning, p.now
		p.decide("rollout.wave", "info", "wave", wave.Name, "state", string(st.State), "devices", count(p.members[w]))
		return true
	case fleet.WaveRunning:
		if p.waiting[w] > 0 || !p.proved(w) {
			return false
		}
		if why := p.missed(w); why != "" {
			p.fail(w, why)
			return true
		}
		st.State, st.SoakedAt = fleet.WaveSoaking, p.now
		if wave.Soak > 0 && p.members[w] > 0 {
			p.decide("rollout.wave", "info", "wave", wave.Name, "state", string(st.State))
		}
		return true
	case fleet.WaveSoaking:
		if end := st.SoakedAt.Add(wave.Soak); p.now.Before(end) && p.members[w] > 0 {
			p.by(end)
			return false
		}
		if why := p.missed(w); why != "" {
			p.fail(w, why)
			return true
		}
		st.State, st.EndedAt = fleet.WavePassed, p.now
		p.decide("rollout.wave", "info", "wave", wave.Name, "state", string(st.State))
		return true
	}
	return false
}

// proved reports whether anybody runs the release: a first wave of which nobody
// can be reached, or nobody is any more, says nothing for the others. Without
// members there is nothing to prove.
func (p *planner) proved(w int) bool {
	if p.members[w] == 0 || w == len(p.waves)-1 {
		return true
	}
	if !p.forgiven().IsZero() {
		return true
	}
	for i := range p.units {
		if p.state(i).Good() {
			return true
		}
	}
	return false
}

// missed says why a wave did not succeed; empty: it did.
func (p *planner) missed(w int) string {
	g := merged(p.spec.Gate, p.waves[w].Gate)
	forgiven := p.forgiven()
	good, ended := 0, 0
	for i := range p.units {
		s, reason, at := p.end(i)
		if !s.Ended() || neutral(s, reason) || p.wave(i) != w || !at.After(forgiven) || p.held(&p.units[i]) {
			continue
		}
		ended++
		if s.Good() {
			good++
		}
	}
	if ended > 0 && float64(good)*100 < g.Success*float64(ended) {
		return fmt.Sprintf("of %s devices of wave %s that ended %s ended well, %s must", count(ended), p.waves[w].Name, share(good, ended), percent(g.Success))
	}
	return ""
}

// fail stops at a wave.
func (p *planner) fail(w int, why string) {
	w = min(w, len(p.Waves)-1)
	p.Waves[w].State, p.Waves[w].EndedAt = fleet.WaveFailed, p.now
	p.decide("rollout.wave", "alarm", "wave", p.waves[w].Name, "state", string(fleet.WaveFailed), "reason", why)
	p.become(fleet.RolloutPaused, "alarm", why)
}

// complete ends a rollout of which all waves have passed. Whoever could not be
// reached ends with it, unless joiners are taken.
func (p *planner) complete() {
	if p.To != fleet.RolloutRunning || p.current() < len(p.waves) || len(p.units) == 0 {
		return
	}
	for _, n := range p.waiting {
		if n > 0 { // late ones of waves that have passed
			return
		}
	}
	if p.heldOpen > 0 {
		p.become(fleet.RolloutPaused, "warn", fmt.Sprintf("everybody else is done; %s devices are held: %s. Release the hold, or complete the rollout without them", count(p.heldOpen), p.holdText()))
		return
	}
	p.become(fleet.RolloutCompleted, "info", "")
	for i := range p.units {
		switch s := p.state(i); {
		case s.Ended() || installs(s):
		case s != fleet.ExecQueued:
			p.move(i, fleet.ExecTimedOut, reasonUnreachable, "the rollout was completed while it was "+string(s)+" and silent")
		case !p.spec.Joiners:
			code, _ := p.unready(i)
			p.move(i, fleet.ExecCanceled, code, "the rollout was completed without it")
		}
	}
}

// drain ends what must not go on. What installs finishes; who cannot be told is
// waited for until its offer is over, unless another offer takes its place anyway.
func (p *planner) drain(to fleet.RolloutState, reason, text string) {
	left := 0
	for i := range p.units {
		s := p.state(i)
		switch {
		case s.Ended():
		case s == fleet.ExecQueued:
			p.move(i, fleet.ExecCanceled, reason, text)
		case installs(s):
			left++
		case to == fleet.RolloutSuperseded:
			p.move(i, fleet.ExecCanceled, reason, text)
			p.Recall = append(p.Recall, p.units[i])
		default:
			left++
			p.Recall = append(p.Recall, p.units[i])
		}
	}
	if left == 0 && !p.ro.State.Ended() {
		p.become(to, "info", text)
	}
}

// move ends an execution.
func (p *planner) move(i int, to fleet.ExecutionState, reason, text string) {
	m := Move{p.units[i], to, reason, text}
	p.moved[i] = m
	p.Moves = append(p.Moves, m)
}

// rateWindow is the time over which a rate is looked at.
func rateWindow(perMinute float64) time.Duration {
	if perMinute >= 1 {
		return time.Minute
	}
	return time.Duration(float64(time.Minute) / perMinute)
}
