package rollout

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/semver"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// maxLife is how long an offer lives at most, whatever the deadline.
const maxLife = 7 * 24 * time.Hour

// life is how long an offer made now lives.
func life(spec fleet.Spec) time.Duration { return min(spec.Deadline, maxLife) }

// older reports whether version a comes before b.
func older(a, b string) bool { return semver.Compare("v"+a, "v"+b) < 0 }

// rated notes when something was offered, for the rate.
func (p *planner) rated(at time.Time) {
	if r := p.spec.Rate; r.Base > 0 && at.After(p.now.Add(-rateWindow(p.rate()))) {
		p.recent++
		if p.oldest.IsZero() || at.Before(p.oldest) {
			p.oldest = at
		}
	}
}

// rate is how many devices may be offered the release in a minute by now.
func (p *planner) rate() float64 {
	if p.perMinute > 0 {
		return p.perMinute
	}
	r := p.spec.Rate
	p.perMinute = r.Base
	if r.Factor > 1 && r.Every > 0 {
		well := 0
		for _, t := range p.models {
			well += t.good
		}
		p.perMinute *= math.Pow(r.Factor, min(float64(well/r.Every), 64))
	}
	if r.Max > 0 {
		p.perMinute = min(p.perMinute, r.Max)
	}
	return p.perMinute
}

// quota is how many devices may be offered the release now.
func (p *planner) quota() (n int, why string) {
	n, why = p.spec.InFlight-p.flying, "busy"
	if p.spec.Rate.Base > 0 {
		if left := int(max(1, p.rate())) - p.recent; left < n {
			n, why = left, "rate"
		}
	}
	return max(n, 0), why
}

// width is how many devices of a model may be exposed at once: a few before
// anything is known of it, and more with each that ends well.
func (p *planner) width(model string) int {
	return 2*p.spec.Gate.MinSample + p.model(model).good
}

// offer chooses who is offered the release, again or for the first time, who is
// tried once more, and who is told to drop it.
func (p *planner) offer() {
	paused := p.To == fleet.RolloutPaused
	quota, short := p.quota()
	cur := p.current()
	for i := range p.units {
		u := &p.units[i]
		s := p.state(i)
		here := p.presence[i] == Here || p.presence[i] == Back
		switch {
		case s.Ended():
			again, at := p.retryable(i)
			switch {
			case !again || paused || !here || p.held(u):
			case p.now.Before(at):
				p.by(at)
			default:
				p.Retry = append(p.Retry, *u)
			}
			continue
		case s != fleet.ExecQueued:
			if paused || p.held(u) {
				if here && !installs(s) {
					p.Recall = append(p.Recall, *u)
				}
			} else if p.presence[i] == Back {
				p.Offer = append(p.Offer, *u)
			}
			continue
		}
		if paused {
			continue
		}
		code, _ := p.unready(i)
		if code == "" {
			code = p.full(i, cur)
		}
		if code == "" && quota == 0 {
			code = short
			if short == "rate" {
				p.by(p.oldest.Add(rateWindow(p.rate())))
			}
		}
		if code != "" {
			p.Stopped[code]++
			continue
		}
		quota--
		p.flying++
		p.sites[u.Site]++
		if u.Attempt == 0 {
			p.model(u.Model).exposed++
		}
		o := *u
		if w, ok := p.Assign[u.ID]; ok {
			o.Wave = w
		}
		p.Offer = append(p.Offer, o)
	}
}

// unfit says why a device cannot take the release as things are; empty: it can.
func (p *planner) unfit(u *fleet.Unit) string {
	r := &p.v.Release
	if len(r.Models) > 0 && !slices.Contains(r.Models, u.Model) {
		return "model"
	}
	if p.lacks(u) != "" {
		return "requires"
	}
	if u.FreeMiB > 0 && len(r.Targets) > 0 && u.FreeMiB < p.needMiB() {
		return "space"
	}
	if p.timetable(u.Site).err != nil {
		return "window"
	}
	return ""
}

// lacks names what the release requires and the device has not.
func (p *planner) lacks(u *fleet.Unit) string {
	for _, what := range p.requires {
		version, ok := p.v.Release.Requires[what], false
		for component, has := range u.Installed {
			if (component == what || strings.HasPrefix(component, what+"/")) && !older(has, version) {
				ok = true
			}
		}
		if !ok {
			return what + " " + version
		}
	}
	return ""
}

// needMiB is the space that the content alone takes: of a release with a target
// for each kind of device, the smallest.
func (p *planner) needMiB() uint64 {
	least := int64(math.MaxInt64)
	for _, t := range p.v.Release.Targets {
		if !strings.HasPrefix(t.Path, "boot/") {
			least = min(least, t.Length)
		}
	}
	if least == math.MaxInt64 {
		return 0
	}
	return uint64(max(least, 0)) >> 20
}

// timetable is when a site may be worked on. Sites with the same hours share one.
func (p *planner) timetable(site string) *timetable {
	if t := p.hours[site]; t != nil {
		return t
	}
	s := p.v.Sites[site]
	s.Tenant, s.Name = "", ""
	t := p.alike[s]
	if t == nil {
		made := timetableOf(p.spec, s, p.now, p.now.Add(life(p.spec)))
		t = &made
		p.alike[s] = t
	}
	p.hours[site] = t
	return t
}

// unready says by a code and a sentence why a queued device cannot be offered
// the release whatever the others do; empty: it can.
func (p *planner) unready(i int) (code, text string) {
	u := &p.units[i]
	if p.held(u) {
		return "held", "held: " + p.holdOf(u)
	}
	switch code := p.unfit(u); code {
	case "model":
		return code, fmt.Sprintf("the release is for %s, and this is %s", strings.Join(p.v.Release.Models, ", "), orNone(u.Model))
	case "requires":
		return code, fmt.Sprintf("the release requires %s; bring it that first", p.lacks(u))
	case "space":
		return code, fmt.Sprintf("%s MiB are free and the release alone takes %s; make room", count(int(u.FreeMiB)), count(int(p.needMiB()))) //nolint:gosec // a disk
	case "window":
		return code, p.timetable(u.Site).err.Error()
	}
	switch p.presence[i] {
	case Away:
		if p.passed(silent(u)) {
			return reasonUnreachable, "not heard of " + ago(p.now, silent(u)) + "; nobody waits for it, and it is offered the release when it is back"
		}
		return "offline", "not connected; it is offered the release when it is back"
	case Barred:
		return "quarantined", "it has not shown that it can be trusted; see its attestation"
	}
	if p.v.Busy != nil && p.v.Busy(u.Device) {
		return "busy", "it is at work on another release, and takes one at a time"
	}
	if !p.timetable(u.Site).opens() {
		return "window", fmt.Sprintf("none of the site's hours lie within the next %v", life(p.spec))
	}
	return "", ""
}

// full says why a queued device that is ready must wait for others.
func (p *planner) full(i, cur int) string {
	u := &p.units[i]
	if p.wave(i) > cur {
		return "wave"
	}
	if p.spec.PerSite > 0 && u.Site != "" && p.sites[u.Site] >= p.spec.PerSite {
		return "site"
	}
	if t := p.model(u.Model); u.Attempt == 0 && t.exposed >= p.width(u.Model) {
		return "model-unproved"
	}
	return ""
}

func (p *planner) holdOf(u *fleet.Unit) string {
	for _, h := range p.Holds {
		if h.ReleasedAt.IsZero() && (h.Model != "" && h.Model == u.Model || h.Site != "" && h.Site == u.Site) {
			return h.Reason
		}
	}
	return ""
}

func orNone(s string) string {
	if s == "" {
		return "of no known model"
	}
	return s
}

// ago is a time in the past, for people.
func ago(now, t time.Time) string {
	if t.IsZero() {
		return "ever"
	}
	d := now.Sub(t)
	if d >= 48*time.Hour {
		return fmt.Sprintf("for %d days", int(d.Hours()/24))
	}
	return "for " + d.Round(time.Minute).String()
}
