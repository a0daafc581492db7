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
	before := len(p.Holds)
	for _, t := range p.byName() {
		if t.held {
			continue
		}
		why := cmp.Or(tripped(g, t.bad, t.ended()), tripped(g, t.waveBad, t.waveGood+t.waveBad))
		if why == "" && t.name != "" {
			why = unwell(g, p.health(t))
		}
		switch {
		case why == "":
			continue
		case t.name == "" || p.To == fleet.RolloutRunning && !p.others(t):
			p.stop(cur, why)
			return
		}
		p.holdModel(t, why)
	}
	p.judgeSites(g)
	if why := p.judgeAll(g); why != "" {
		p.stop(cur, why)
		return
	}
	if len(p.Holds) > before {
		p.explain(g)
	}
}

// byName are the tallies in an order that is the same each time.
func (p *planner) byName() []*tally {
	all := make([]*tally, len(p.models))
	for i := range p.models {
		all[i] = &p.models[i]
	}
	slices.SortFunc(all, func(a, b *tally) int { return strings.Compare(a.name, b.name) })
	return all
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
func (p *planner) others(than *tally) bool {
	for i := range p.models {
		if t := &p.models[i]; t != than && !t.held && t.units > 0 {
			return true
		}
	}
	return false
}

func (p *planner) holdModel(t *tally, why string) {
	t.held = true
	p.Holds = append(p.Holds, fleet.Hold{Model: t.name, Reason: why, Since: p.now})
	p.decide("rollout.held", "alarm", "model", t.name, "reason", why)
}

// badSites counts bad ends by site, apart from those of held models.
func (p *planner) badSites() map[int32]int {
	n := map[int32]int{}
	for _, i := range p.bads {
		s := p.site[i]
		if p.sites[s].name != "" && !p.models[p.model[i]].held && p.endedAt(i).After(p.sites[s].released) {
			n[s]++
		}
	}
	return n
}

func (p *planner) judgeSites(g fleet.Gate) {
	if g.SiteBad < 0 {
		return
	}
	bad := p.badSites()
	for _, s := range slices.SortedFunc(maps.Keys(bad), func(a, b int32) int { return strings.Compare(p.sites[a].name, p.sites[b].name) }) {
		site := &p.sites[s]
		if n := bad[s]; n >= g.SiteBad && !site.held {
			site.held = true
			why := fmt.Sprintf("%s devices there ended badly", count(n))
			p.Holds = append(p.Holds, fleet.Hold{Site: site.name, Reason: why, Since: p.now})
			p.decide("rollout.held", "alarm", "site", site.name, "reason", why)
		}
	}
}

// explain lifts holds of sites whose bad ends turn out to be those of a model
// that is held since: the others there need not wait.
func (p *planner) explain(g fleet.Gate) {
	bad := map[string]int{}
	for s, n := range p.badSites() {
		bad[p.sites[s].name] = n
	}
	p.Holds = slices.DeleteFunc(p.Holds, func(h fleet.Hold) bool {
		if h.Site == "" || !h.ReleasedAt.IsZero() || bad[h.Site] >= g.SiteBad {
			return false
		}
		for s := range p.sites {
			if p.sites[s].name == h.Site {
				p.sites[s].held = false
			}
		}
		p.decide("rollout.released", "info", "site", h.Site, "reason", "its bad ends are of a model that is held")
		return true
	})
}

// judgeAll judges the devices that nothing holds, and all of them against the
// cap. When few models are to blame, those are held instead.
func (p *planner) judgeAll(g fleet.Gate) string {
	if g.BadCap > 0 && len(p.bads) > g.BadCap {
		return fmt.Sprintf("%s devices ended badly, at most %s may", count(len(p.bads)), count(g.BadCap))
	}
	if why := p.trippedAll(g); why != "" {
		blamed := p.blame(g)
		if len(blamed) == 0 {
			return why
		}
		for _, t := range blamed {
			p.holdModel(t, fmt.Sprintf("%s of its %s devices that ended did so badly, and without them the rollout is well", count(t.bad), count(t.ended())))
		}
		if why := p.trippedAll(g); why != "" {
			return why
		}
	}
	var all fleet.Health
	byModel := false
	for i := range p.models {
		if t := &p.models[i]; t.name != "" && p.known(t) {
			h := p.health(t)
			byModel = true
			if !t.held {
				all.Updated, all.Control = plus(all.Updated, h.Updated), plus(all.Control, h.Control)
			}
		}
	}
	if !byModel {
		all = p.health(&tally{})
	}
	return unwell(g, all)
}

// sum adds up what nothing holds.
func (p *planner) sum() (all tally) {
	for i := range p.models {
		if t := &p.models[i]; !t.held {
			all.units, all.good, all.bad, all.waveGood, all.waveBad = all.units+t.units, all.good+t.good, all.bad+t.bad, all.waveGood+t.waveGood, all.waveBad+t.waveBad
		}
	}
	cur := int32(p.current())
	for _, i := range p.bads {
		t := &p.models[p.model[i]]
		if p.sites[p.site[i]].held && !t.held && p.endedAt(i).After(t.released) {
			all.bad--
			if p.wave[i] == cur {
				all.waveBad--
			}
		}
	}
	return all
}

func (p *planner) trippedAll(g fleet.Gate) string {
	all := p.sum()
	return cmp.Or(tripped(g, all.bad, all.ended()), tripped(g, all.waveBad, all.waveGood+all.waveBad))
}

// blame finds the models without which the rollout is well: those that do
// worst, if the others have shown something and are at least half of it.
func (p *planner) blame(g fleet.Gate) (blamed []*tally) {
	rest := p.sum()
	half := rest.units / 2
	worst := p.byName()
	slices.SortStableFunc(worst, func(a, b *tally) int { return cmp.Compare(b.bad*max(a.ended(), 1), a.bad*max(b.ended(), 1)) })
	for _, t := range worst {
		if t.held || t.name == "" || t.bad < 2 || float64(t.bad)*100 <= g.Bad*float64(t.ended()) {
			continue
		}
		blamed = append(blamed, t)
		rest.units, rest.good, rest.bad = rest.units-t.units, rest.good-t.good, rest.bad-t.bad
		switch {
		case rest.units < half:
			return nil
		case rest.ended()*2 >= g.MinSample && float64(rest.bad)*100 <= g.Bad*float64(rest.ended()):
			return blamed
		}
	}
	return nil
}

// fewFaults of one kind are chance.
const fewFaults = 5

func (p *planner) known(t *tally) bool {
	_, ok := p.v.Health[t.name]
	return ok
}

// health is what befell a model since somebody went on in spite of what had: the
// same is not held against it once more.
func (p *planner) health(t *tally) fleet.Health {
	if p.forgiven().After(p.v.HealthFrom) || t.released.After(p.v.HealthFrom) {
		return fleet.Health{}
	}
	return p.v.Health[t.name]
}

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
