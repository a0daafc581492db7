package api

import (
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// spec is how a rollout goes, as it is asked for and shown. What is left out
// has the default that its doc names.
type spec struct {
	Filter       filter         `json:"filter,omitzero"`
	Waves        []wave         `json:"waves,omitempty" maxItems:"100" doc:"in order, the last takes whoever is left; none: one of all"`
	Gate         gate           `json:"gate,omitzero"`
	Rate         rate           `json:"rate,omitzero"`
	PerSite      int            `json:"per_site,omitempty" minimum:"0" maximum:"100000" doc:"lanes of one site under way at once; 0: no limit"`
	InFlight     int            `json:"in_flight,omitempty" minimum:"0" maximum:"1000000" doc:"devices under way at once; 0: 500"`
	Download     string         `json:"download,omitempty" maxLength:"512" doc:"hours of the site, e.g. mon-fri 22:00-05:00, sun 00:00-24:00; empty: the site's own, or any time"`
	Install      string         `json:"install,omitempty" maxLength:"512" doc:"hours of the site in which tills may be touched"`
	DeadlineS    int            `json:"deadline_s,omitempty" minimum:"0" maximum:"31536000" doc:"seconds of an attempt, from its offer to its end; 0: 7 days"`
	StepsS       map[string]int `json:"steps_s,omitempty" doc:"seconds that a state may take, by its name"`
	Attempts     int            `json:"attempts,omitempty" minimum:"0" maximum:"100" doc:"of one device, at ends that may pass; 0: 3"`
	UnreachableS int            `json:"unreachable_s,omitempty" minimum:"0" maximum:"31536000" doc:"seconds of silence after which no wave waits for a device; 0: 24 h"`
	Joiners      bool           `json:"joiners,omitempty" doc:"also devices that are reached only after the end"`
	RateKiB      int            `json:"rate_kib,omitempty" minimum:"0" maximum:"10000000" doc:"KiB per second of one device's download; 0: as it is configured"`
	Repair       bool           `json:"repair,omitempty" doc:"quarantined devices are offered the release, too"`
}

type filter struct {
	Group   string   `json:"group,omitempty" maxLength:"64"`
	Model   string   `json:"model,omitempty" maxLength:"64"`
	Site    string   `json:"site,omitempty" maxLength:"64"`
	Devices []string `json:"devices,omitempty" maxItems:"10000" doc:"ids"`
}

type wave struct {
	Name    string  `json:"name" minLength:"1" maxLength:"64"`
	Filter  filter  `json:"filter,omitzero"`
	Percent float64 `json:"percent,omitempty" minimum:"0" maximum:"100" doc:"of all that the rollout reaches, earlier waves included; 0: all that the filter picks"`
	SoakS   int     `json:"soak_s,omitempty" minimum:"0" maximum:"31536000" doc:"seconds that it is watched after its last end"`
	Gate    gate    `json:"gate,omitzero" doc:"in place of the rollout's, where it says something"`
}

type gate struct {
	Success   float64 `json:"success,omitempty" doc:"percent of the ended that must have ended well; 0: 95, negative: not judged"`
	Bad       float64 `json:"bad,omitempty" doc:"percent of the ended that may end badly; 0: 5, negative: not judged"`
	MinSample int     `json:"min_sample,omitempty" minimum:"0" doc:"ends before a share is judged; 0: 20"`
	BadCap    int     `json:"bad_cap,omitempty" minimum:"0" doc:"bad ends at most, whatever their share; 0: no limit"`
	SiteBad   int     `json:"site_bad,omitempty" doc:"bad ends in one site at which it is held; 0: 2, negative: not judged"`
	Health    float64 `json:"health,omitempty" doc:"times the faults per device-hour of devices not yet updated; 0: 3, negative: not judged"`
}

type rate struct {
	Base   float64 `json:"base,omitempty" minimum:"0" doc:"devices a minute; 0: no limit"`
	Factor float64 `json:"factor,omitempty" minimum:"0" doc:"times more each time another every have ended well"`
	Every  int     `json:"every,omitempty" minimum:"0"`
	Max    float64 `json:"max,omitempty" minimum:"0"`
}

func span(s int) time.Duration         { return time.Duration(s) * time.Second }
func wholeSeconds(d time.Duration) int { return int(d / time.Second) }

func (f filter) domain() fleet.Filter {
	d := fleet.Filter{Group: f.Group, Model: f.Model, Site: f.Site}
	for _, id := range f.Devices {
		d.Devices = append(d.Devices, fleet.DeviceID(id))
	}
	return d
}

func viewFilter(f fleet.Filter) filter {
	v := filter{Group: f.Group, Model: f.Model, Site: f.Site}
	for _, id := range f.Devices {
		v.Devices = append(v.Devices, string(id))
	}
	return v
}

func (s spec) domain() fleet.Spec {
	d := fleet.Spec{
		Filter: s.Filter.domain(), Gate: fleet.Gate(s.Gate), Rate: fleet.Rate(s.Rate), PerSite: s.PerSite, InFlight: s.InFlight, Download: s.Download, Install: s.Install,
		Deadline: span(s.DeadlineS), Attempts: s.Attempts, Unreachable: span(s.UnreachableS), Joiners: s.Joiners, RateKiB: s.RateKiB, Repair: s.Repair,
	}
	for _, w := range s.Waves {
		d.Waves = append(d.Waves, fleet.Wave{Name: w.Name, Filter: w.Filter.domain(), Percent: w.Percent, Soak: span(w.SoakS), Gate: fleet.Gate(w.Gate)})
	}
	for k, v := range s.StepsS {
		if d.Steps == nil {
			d.Steps = map[fleet.ExecutionState]time.Duration{}
		}
		d.Steps[fleet.ExecutionState(k)] = span(v)
	}
	return d
}

func viewSpec(d fleet.Spec) spec {
	s := spec{
		Filter: viewFilter(d.Filter), Gate: gate(d.Gate), Rate: rate(d.Rate), PerSite: d.PerSite, InFlight: d.InFlight, Download: d.Download, Install: d.Install,
		DeadlineS: wholeSeconds(d.Deadline), Attempts: d.Attempts, UnreachableS: wholeSeconds(d.Unreachable), Joiners: d.Joiners, RateKiB: d.RateKiB, Repair: d.Repair,
	}
	for _, w := range d.Waves {
		s.Waves = append(s.Waves, wave{Name: w.Name, Filter: viewFilter(w.Filter), Percent: w.Percent, SoakS: wholeSeconds(w.Soak), Gate: gate(w.Gate)})
	}
	for k, v := range d.Steps {
		if s.StepsS == nil {
			s.StepsS = map[string]int{}
		}
		s.StepsS[string(k)] = wholeSeconds(v)
	}
	return s
}

// flat are the fields of a rollout from before there was a spec.
type flat struct {
	Group     string `json:"group,omitempty" maxLength:"64" doc:"without a spec: as its filter.group; empty: every device"`
	DeadlineS int    `json:"deadline_s,omitempty" minimum:"0" maximum:"2592000" doc:"without a spec: seconds for one device, from its offer; 0: an hour"`
	MaxFailed int    `json:"max_failed,omitempty" minimum:"0" doc:"without a spec: pauses by itself when more end badly; 0: 1. Nothing else is judged."`
	Repair    bool   `json:"repair,omitempty" doc:"without a spec: offer it to quarantined devices, too"`
}

// domain is a spec that does what those fields have always done.
func (f flat) domain() fleet.Spec {
	d := fleet.Spec{
		Filter: fleet.Filter{Group: f.Group}, Gate: fleet.Gate{Success: -1, Bad: -1, BadCap: max(f.MaxFailed, 1), SiteBad: -1, Health: -1},
		InFlight: 50, Deadline: span(f.DeadlineS), Attempts: 1, Repair: f.Repair,
	}
	if f.DeadlineS == 0 {
		d.Deadline = time.Hour
	}
	return d
}

// told is a spec in the words of the audit trail.
func told(s fleet.Spec) map[string]string {
	detail := map[string]string{}
	note := func(k, v string) {
		if v != "" && v != "0" && v != "false" {
			detail[k] = v
		}
	}
	note("group", s.Filter.Group)
	note("model", s.Filter.Model)
	note("site", s.Filter.Site)
	note("devices", strconv.Itoa(len(s.Filter.Devices)))
	note("waves", strconv.Itoa(len(s.Waves)))
	note("bad_cap", strconv.Itoa(s.Gate.BadCap))
	note("per_site", strconv.Itoa(s.PerSite))
	note("download", cut(s.Download, 100))
	note("install", cut(s.Install, 100))
	note("joiners", strconv.FormatBool(s.Joiners))
	detail["repair"] = strconv.FormatBool(s.Repair)
	return detail
}

// waveNames are the waves of a spec; a spec without any has one of all.
func waveNames(s fleet.Spec) []fleet.Wave {
	if len(s.Waves) == 0 {
		return []fleet.Wave{{Name: "all"}}
	}
	return s.Waves
}

// counted is a count by state, with its sums.
func counted(counts map[fleet.ExecutionState]int) (by map[string]int, total, good, bad int) {
	by = make(map[string]int, len(counts))
	for _, k := range slices.Collect(maps.Keys(counts)) {
		n := counts[k]
		by[string(k)] = n
		switch {
		case k == fleet.ExecRemoved || k == fleet.ExecCanceled:
		case k.Good():
			good += n
		case k.Ended():
			bad += n
		}
		total += n
	}
	return by, total, good, bad
}
