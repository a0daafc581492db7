package rollout

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// judge holds models and sites that do badly, and stops the rollout when it is
// not one of them alone.
func (p *planner) judge() {
	if p.To != fleet.RolloutRunning && p.To != fleet.RolloutCompleted {
		return
	}
	cur := min(p.current(), len(p.waves)-1)
	g := merged(p.spec.Gate, p.waves[cur].Gate)
	before := len(p.heldModel)
	for _, m := range slices.Sorted(maps.Keys(p.models)) {
		if p.heldModel[m] {
			continue
		}
		t := p.models[m]
		why := tripped(g, t.bad, t.ended())
		if why == "" {
			why = tripped(g, t.waveBad, t.waveGood+t.waveBad)
		}
		if why == "" && m != "" {
			why = unwell(g, p.v.Health[m])
		}
		if why == "" {
			continue
		}
		if m == "" || !p.others(m) {
			p.stop(cur, why)
			return
		}
		p.hold(fleet.Hold{Model: m, Reason: why})
	}
	p.judgeSites(g)
	if why := p.judgeAll(g); why != "" {
		p.stop(cur, why)
		return
	}
	if len(p.heldModel) > before {
		p.explain(g)
	}
}

// stop pauses a rollout that runs. One that is complete takes late devices only
// and has nothing to stop: it holds what does badly.
func (p *planner) stop(wave int, why string) {
	if p.To == fleet.RolloutRunning {
		p.fail(wave, why)
	}
}

// tripped says why so many bad ends among so many are too many; empty: they are
// not, or are too few to be judged.
func tripped(g fleet.Gate, bad, ended int) string {
	if g.Bad < 0 || ended < g.MinSample || float64(bad)*100 <= g.Bad*float64(ended) {
		return ""
	}
	return fmt.Sprintf("%s of %s devices ended badly (%s), %s may", count(bad), count(ended), share(bad, ended), percent(g.Bad))
}

// others reports whether any other model is left to go on with.
func (p *planner) others(model string) bool {
	for m, t := range p.models {
		if m != model && !p.heldModel[m] && t.units > 0 {
			return true
		}
	}
	return false
}

func (p *planner) hold(h fleet.Hold) {
	h.Since = p.now
	p.Holds = append(p.Holds, h)
	if h.Model != "" {
		p.heldModel[h.Model] = true
		p.decide("rollout.held", "alarm", "model", h.Model, "reason", h.Reason)
		return
	}
	p.heldSite[h.Site] = true
	p.decide("rollout.held", "alarm", "site", h.Site, "reason", h.Reason)
}

// badSites counts bad ends by site, apart from those of held models.
func (p *planner) badSites() map[string]int {
	n := map[string]int{}
	for _, i := range p.bads {
		u := &p.units[i]
		if u.Site == "" || p.heldModel[u.Model] {
			continue
		}
		if _, _, at := p.end(i); at.After(p.released[fleet.Hold{Site: u.Site}]) {
			n[u.Site]++
		}
	}
	return n
}

func (p *planner) judgeSites(g fleet.Gate) {
	if g.SiteBad < 0 {
		return
	}
	bad := p.badSites()
	for _, site := range slices.Sorted(maps.Keys(bad)) {
		if n := bad[site]; n >= g.SiteBad && !p.heldSite[site] {
			p.hold(fleet.Hold{Site: site, Reason: fmt.Sprintf("%s devices there ended badly", count(n))})
		}
	}
}

// explain lifts holds of sites whose bad ends turn out to be those of a model
// that is held since: the others there need not wait.
func (p *planner) explain(g fleet.Gate) {
	bad := p.badSites()
	p.Holds = slices.DeleteFunc(p.Holds, func(h fleet.Hold) bool {
		if h.Site == "" || !h.ReleasedAt.IsZero() || bad[h.Site] >= g.SiteBad {
			return false
		}
		delete(p.heldSite, h.Site)
		p.decide("rollout.released", "info", "site", h.Site, "reason", "its bad ends are of a model that is held")
		return true
	})
}

// judgeAll judges the devices that nothing holds, and all of them against the
// cap. When one model alone is to blame, that one is held instead.
func (p *planner) judgeAll(g fleet.Gate) string {
	if g.BadCap > 0 && len(p.bads) > g.BadCap {
		return fmt.Sprintf("%s devices ended badly, at most %s may", count(len(p.bads)), count(g.BadCap))
	}
	for {
		why := p.trippedAll(g)
		if why == "" {
			break
		}
		m, t := p.culprit()
		if m == "" || !p.others(m) {
			return why
		}
		p.hold(fleet.Hold{Model: m, Reason: fmt.Sprintf("%s of its %s devices that ended did so badly, and without them the rollout is well", count(t.bad), count(t.ended()))})
	}
	var all fleet.Health
	byModel := false
	for m, h := range p.v.Health {
		if m != "" {
			byModel = true
			if !p.heldModel[m] {
				all.Updated, all.Control = plus(all.Updated, h.Updated), plus(all.Control, h.Control)
			}
		}
	}
	if !byModel {
		all = p.v.Health[""]
	}
	return unwell(g, all)
}

func (p *planner) trippedAll(g fleet.Gate) string {
	var all tally
	for m, t := range p.models {
		if !p.heldModel[m] {
			all.good, all.bad, all.waveGood, all.waveBad = all.good+t.good, all.bad+t.bad, all.waveGood+t.waveGood, all.waveBad+t.waveBad
		}
	}
	if len(p.heldSite) > 0 {
		cur := p.current()
		for _, i := range p.bads {
			if u := &p.units[i]; p.heldSite[u.Site] && !p.heldModel[u.Model] {
				all.bad--
				if p.wave(i) == cur {
					all.waveBad--
				}
			}
		}
	}
	if why := tripped(g, all.bad, all.ended()); why != "" {
		return why
	}
	return tripped(g, all.waveBad, all.waveGood+all.waveBad)
}

// culprit is the model with the most bad ends among those where most are bad.
func (p *planner) culprit() (string, *tally) {
	var worst string
	for m, t := range p.models {
		if m == "" || p.heldModel[m] || t.bad < 2 || t.bad*2 <= t.ended() {
			continue
		}
		if worst == "" || cmp.Or(cmp.Compare(t.bad, p.models[worst].bad), cmp.Compare(worst, m)) > 0 {
			worst = m
		}
	}
	return worst, p.models[worst]
}

// fewFaults of one kind are chance.
const fewFaults = 5

// unwell says why updated devices do worse than those that are not yet; empty:
// they do not, or too little is known.
func unwell(g fleet.Gate, h fleet.Health) string {
	up, control := h.Updated, h.Control
	if g.Health < 0 || up.Hours <= 0 || control.Hours <= 0 {
		return ""
	}
	for _, f := range [...]struct {
		what         string
		got, control int
	}{
		{"printers, readers and drawers went bad", up.Peripheral, control.Peripheral},
		{"the connection was lost", up.Reconnects, control.Reconnects},
		{"the agent crashed", up.Crashes, control.Crashes},
	} {
		// One more than was seen: a control group without a fault may have been lucky.
		allowed := g.Health * float64(f.control+1) / control.Hours * up.Hours
		if f.got > fewFaults && float64(f.got) > allowed {
			return fmt.Sprintf("%s %s times in %.0f device-hours of updated devices, and %s times in %.0f of those that are not yet", f.what, count(f.got), up.Hours, count(f.control), control.Hours)
		}
	}
	return ""
}

func plus(a, b fleet.Faults) fleet.Faults {
	return fleet.Faults{
		Devices: a.Devices + b.Devices, Hours: a.Hours + b.Hours, Peripheral: a.Peripheral + b.Peripheral,
		Reconnects: a.Reconnects + b.Reconnects, Crashes: a.Crashes + b.Crashes,
	}
}

// holdText names what is held.
func (p *planner) holdText() string {
	var names []string
	for _, h := range p.Holds {
		switch {
		case !h.ReleasedAt.IsZero():
		case h.Model != "":
			names = append(names, "model "+h.Model)
		default:
			names = append(names, "site "+h.Site)
		}
	}
	if n := len(names); n > 5 {
		names = append(names[:5], fmt.Sprintf("and %d more", n-5))
	}
	return strings.Join(names, ", ")
}

// count writes a number with its thousands apart.
func count(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// share is a part of a whole, for people.
func share(part, whole int) string { return percent(100 * float64(part) / float64(whole)) }

func percent(f float64) string {
	return strings.TrimSuffix(strconv.FormatFloat(f, 'f', 1, 64), ".0") + " %"
}
