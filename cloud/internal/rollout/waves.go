package rollout

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// assign puts devices that are in no wave into one: the first that picks them,
// else the last. Which of them a share takes hangs on the rollout and the device
// alone. A device that comes later is not put behind the wave that runs: the
// waves before are over.
func (p *planner) assign() {
	var fresh []int
	for i := range p.units {
		if p.wave[i] < 0 && !p.kinds[i].ended() {
			fresh = append(fresh, i)
		}
	}
	if len(fresh) == 0 {
		return
	}
	p.Assign = p.wave
	last := len(p.waves) - 1
	first, drawn := min(p.current(), last), false
	if p.ro.State == fleet.RolloutCompleted { // no other wave will begin
		last = first
	}
	for w := first; w < last && len(fresh) > 0; w++ {
		wave := &p.waves[w]
		take := len(fresh)
		if wave.Percent > 0 {
			if take = p.share(w); !drawn {
				p.shuffle(fresh) // those that are left stay in order
				drawn = true
			}
		}
		picked := picker(wave.Filter)
		rest := fresh[:0:0]
		for _, i := range fresh {
			if take > 0 && picked(&p.units[i]) {
				p.put(i, w)
				take--
				continue
			}
			rest = append(rest, i)
		}
		fresh = rest
	}
	for _, i := range fresh {
		p.put(i, last)
	}
}

func (p *planner) put(i, wave int) {
	p.wave[i] = int32(wave)
}

// share is how many devices wave w, which takes a percentage, is short of.
func (p *planner) share(w int) int {
	picked := picker(p.waves[w].Filter)
	all, have := 0, 0
	for i := range p.units {
		if p.kinds[i] == out || !picked(&p.units[i]) {
			continue
		}
		all++
		if in := int(p.wave[i]); in >= 0 && in <= w {
			have++
		}
	}
	return int(math.Ceil(float64(all)*p.waves[w].Percent/100-1e-9)) - have
}

// shuffle orders units by chance that is the same whenever it is drawn.
func (p *planner) shuffle(units []int) {
	type drawn struct {
		key  uint64
		unit int
	}
	lots := make([]drawn, len(units))
	for n, i := range units {
		lots[n] = drawn{lot(string(p.ro.ID), string(p.units[i].Device)), i}
	}
	slices.SortFunc(lots, func(a, b drawn) int {
		if a.key == b.key {
			return strings.Compare(string(p.units[a.unit].Device), string(p.units[b.unit].Device))
		}
		return cmp.Compare(a.key, b.key)
	})
	for n, d := range lots {
		units[n] = d.unit
	}
}

// lot is a number that hangs on two names [FNV-1a], with its bits spread: by
// itself it is close for names that differ at the end.
func lot(a, b string) uint64 {
	h := uint64(14695981039346656037)
	for _, s := range [...]string{a, "\x00", b} {
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * 1099511628211
		}
	}
	return mix(h)
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
		if began := p.ro.StartedAt; p.To == fleet.RolloutRunning && !began.IsZero() && p.passed(began) {
			p.become(fleet.RolloutCompleted, "warn", fmt.Sprintf("it has reached no device within %v; see its filter", p.spec.Unreachable))
		}
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
		if st.OfferedAt.IsZero() && p.ready[w] == 0 && (p.waiting[w] == 0 || p.settled()) {
			st.OfferedAt = p.now
		}
		if p.waiting[w] > 0 {
			return false
		}
		if why := p.missed(w); why != "" { // at once, also when nobody runs the release yet
			p.fail(w, why)
			return true
		}
		switch {
		case p.proved(w):
		case p.members[w] == 0:
			p.fail(w, fmt.Sprintf("no device of the rollout is in wave %s; see its filter, or resume to go on without it", wave.Name))
			return true
		case !p.passed(latest(st.StartedAt, st.ForgivenAt)) || !p.settled():
			return false
		case w == len(p.waves)-1:
			p.fail(w, fmt.Sprintf("nobody of wave %s has come to run the release within %v; resume to wait for as long again, or complete it without them", wave.Name, p.spec.Unreachable))
			return true
		default:
			p.fail(w, fmt.Sprintf("nobody of wave %s has come to run the release within %v, so it shows nothing; resume to go on without it", wave.Name, p.spec.Unreachable))
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
		if p.waiting[w] > 0 { // back in time
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
// can be reached, or nobody is any more, says nothing for the others, and neither
// does one that names devices and has none. In the last wave it is enough that
// nobody is left.
func (p *planner) proved(w int) bool {
	switch {
	case w == len(p.waves)-1:
		if p.open[w] == 0 {
			return true
		}
	case p.members[w] == 0 && !named(p.waves[w].Filter), !p.forgiven().IsZero():
		return true
	}
	for i := range p.units {
		if k := p.kinds[i]; k == good || k == already {
			return true
		}
	}
	return false
}

// named reports whether a filter asks for any devices in particular.
func named(f fleet.Filter) bool {
	return f.Group != "" || f.Model != "" || f.Site != "" || len(f.Devices) > 0
}

// missed says why a wave did not succeed; empty: it did.
func (p *planner) missed(w int) string {
	g := merged(p.spec.Gate, p.waves[w].Gate)
	forgiven := p.forgiven()
	well, ended := 0, 0
	for i := range p.units {
		if k := p.kinds[i]; k != good && k != bad || int(p.wave[i]) != w || p.held(i) || !p.endedAt(i).After(forgiven) {
			continue
		}
		ended++
		if p.kinds[i] == good {
			well++
		}
	}
	if ended > 0 && float64(well)*100 < g.Success*float64(ended) {
		return fmt.Sprintf("of %s devices of wave %s that ended %s ended well, %s must", count(ended), p.waves[w].Name, share(well, ended), percent(g.Success))
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
	if p.active > 0 { // late ones, too
		return
	}
	if p.heldOpen > 0 {
		p.become(fleet.RolloutPaused, "warn", fmt.Sprintf("everybody else is done; %s devices are held: %s. Release the hold and resume, or complete the rollout without them", count(p.heldOpen), p.holdText()))
		return
	}
	p.become(fleet.RolloutCompleted, "info", "")
	for i := range p.units {
		switch k := p.kinds[i]; {
		case k == underWay:
			p.move(i, fleet.ExecTimedOut, reasonUnreachable, "the rollout was completed while it was "+string(p.units[i].State)+" and silent")
		case k == queued && !p.spec.Joiners:
			p.move(i, fleet.ExecCanceled, "completed", "the rollout was completed without it")
		}
	}
}

// leave ends what a rollout that was completed early left in waves that never
// began.
func (p *planner) leave() {
	if p.ro.State != fleet.RolloutCompleted {
		return
	}
	cur := p.current()
	for i := range p.units {
		if p.kinds[i] == queued && int(p.wave[i]) > cur {
			p.move(i, fleet.ExecCanceled, "completed", "the rollout was completed without it")
		}
	}
}

// drain ends what must not go on. What installs finishes; who cannot be told is
// waited for until its offer is over, unless another offer takes its place anyway.
func (p *planner) drain(to fleet.RolloutState, reason, text string) {
	left := 0
	for i := range p.units {
		switch k := p.kinds[i]; {
		case k.ended():
		case k == queued:
			p.move(i, fleet.ExecCanceled, reason, text)
		case k == installing:
			left++
		case to == fleet.RolloutSuperseded:
			p.move(i, fleet.ExecCanceled, reason, text)
			p.Recall = append(p.Recall, p.units[i])
		case to == fleet.RolloutAborted:
			left++
			p.Recall = append(p.Recall, p.units[i])
		case p.v.Release.Withdrawn:
			p.Recall = append(p.Recall, p.units[i])
		}
	}
	if left == 0 && !p.ro.State.Ended() {
		p.become(to, "info", text)
	}
}

// rateWindow is the time over which a rate is looked at.
func rateWindow(perMinute float64) time.Duration {
	if perMinute >= 1 {
		return time.Minute
	}
	return time.Duration(min(float64(time.Minute)/perMinute, float64(366*24*time.Hour)))
}
