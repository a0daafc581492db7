package rollout

import (
	"cmp"
	"math"
	"reflect"
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

// rated notes when something was offered, for the rate. What lies ahead was
// written by a clock that has been set back since.
func (p *planner) rated(at time.Time) {
	if r := p.spec.Rate; r.Base > 0 && at.After(p.now.Add(-rateWindow(p.rate()))) && !at.After(p.now.Add(skew)) {
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
		for i := range p.models {
			well += p.models[i].good
		}
		p.perMinute *= math.Pow(r.Factor, min(float64(well/r.Every), 64))
	}
	p.perMinute = min(p.perMinute, 1e6) // more than any fleet, and still a number of devices
	if r.Max > 0 {
		p.perMinute = min(p.perMinute, r.Max)
	}
	return p.perMinute
}

// quota is how many devices may be offered the release now.
func (p *planner) quota() (n int, why string) {
	n, why = p.spec.InFlight-p.flying, "in-flight"
	if p.spec.Rate.Base > 0 {
		if left := int(max(1, p.rate())) - p.recent; left < n {
			n, why = left, "rate"
		}
	}
	return max(n, 0), why
}

// width is how many devices of a model may be exposed at once: a few before
// anything is known of it, and more with each that ends well.
func (p *planner) width(t *tally) int { return 2*p.spec.Gate.MinSample + t.good }

// offer chooses who is offered the release, again or for the first time, who is
// tried once more, and who is told to drop it.
func (p *planner) offer() {
	paused := p.To == fleet.RolloutPaused
	quota, short := p.quota()
	cur := p.current()
	for i := range p.units {
		switch k := p.kinds[i]; {
		case k.ended():
			if again, from := p.retryable(i); !again || paused || !p.here(i) || p.held(i) {
				continue
			} else if p.now.Before(from) {
				p.by(from)
				continue
			}
			p.Retry = append(p.Retry, p.units[i])
		case k != queued && (paused || p.held(i)):
			if k == underWay && p.here(i) {
				p.Recall = append(p.Recall, p.units[i])
			}
		case k != queued:
			if p.presence[i] == Back {
				p.Offer = append(p.Offer, p.units[i])
			}
		case !paused:
			code := cmp.Or(p.unready(i), p.full(i, cur))
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
			u := p.units[i]
			u.Wave = int(p.wave[i])
			p.Offer = append(p.Offer, u)
			p.flying++
			p.sites[p.site[i]].flying++
			if u.Attempt == 0 {
				p.models[p.model[i]].exposed++
			}
		}
	}
}

// fit says whether the release is for a device, as it is.
type fit uint8

const (
	unknown fit = iota
	fitting
	otherModel
	lacking
	tight
	noHours
)

var fitCodes = [...]string{otherModel: "model", lacking: "requires", tight: "space", noHours: "window"}

// unfit says by a code why a device cannot take the release as things are;
// empty: it can.
func (p *planner) unfit(i int) string {
	if p.fits[i] == unknown {
		p.fits[i] = p.fit(i)
	}
	return fitCodes[p.fits[i]]
}

func (p *planner) fit(i int) fit {
	r, u := &p.v.Release, &p.units[i]
	switch {
	case len(r.Models) > 0 && !slices.Contains(r.Models, u.Model):
		return otherModel
	case len(p.requires) > 0 && !p.has(u):
		return lacking
	case u.FreeMiB > 0 && len(r.Targets) > 0 && u.FreeMiB < p.needMiB():
		return tight
	case p.timetable(i).err != nil:
		return noHours
	}
	return fitting
}

// has reports whether a device has all that the release requires. Thousands
// run the same, and share the map that says so.
func (p *planner) has(u *fleet.Unit) bool {
	key := reflect.ValueOf(u.Installed).Pointer()
	ok, known := p.having[key]
	if !known {
		ok = p.lacks(u) == ""
		p.having[key] = ok
	}
	return ok
}

// lacks names what the release requires and the device has not.
func (p *planner) lacks(u *fleet.Unit) string {
	for _, what := range p.requires {
		version, ok := p.v.Release.Requires[what], false
		for component, has := range u.Installed {
			if strings.HasPrefix(component, what) && (len(component) == len(what) || component[len(what)] == '/') && !older(has, version) {
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

// week is what the hours of a site hang on.
type week struct{ zone, download, install string }

// timetable is when unit i may be worked on. Sites with the same hours share one.
func (p *planner) timetable(i int) *timetable {
	site := &p.sites[p.site[i]]
	if site.hours == nil {
		s := p.v.Sites[site.name]
		w := week{s.Zone, s.Download, s.Install}
		t := p.alike[w]
		if t == nil {
			made := timetableOf(p.spec, s, p.now, p.now.Add(life(p.spec)))
			t = &made
			p.alike[w] = t
		}
		site.hours = t
	}
	return site.hours
}

// unready says by a code why a queued device cannot be offered the release
// whatever the others do; empty: it can.
func (p *planner) unready(i int) string {
	if p.held(i) {
		return "held"
	}
	if code := p.unfit(i); code != "" {
		return code
	}
	switch p.presence[i] {
	case Away:
		if p.passed(silent(&p.units[i])) {
			return reasonUnreachable
		}
		return "offline"
	case Barred:
		return "quarantined"
	}
	if p.v.Busy != nil && p.v.Busy(p.units[i].Device) {
		return "busy"
	}
	if !p.timetable(i).opens() {
		return "window"
	}
	return ""
}

// full says by a code why a queued device that is ready must wait for others.
func (p *planner) full(i, cur int) string {
	site, t, fresh := &p.sites[p.site[i]], &p.models[p.model[i]], p.units[i].Attempt == 0
	switch {
	case int(p.wave[i]) > cur:
		return "wave"
	case p.spec.PerSite > 0 && site.name != "" && site.flying >= p.spec.PerSite:
		return "site"
	case fresh && t.exposed >= p.width(t):
		return "model-unproved"
	}
	return ""
}
