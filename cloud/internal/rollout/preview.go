package rollout

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// Check says what is wrong with a spec that nobody could carry out.
func Check(s fleet.Spec) error {
	for what, text := range map[string]string{"download": s.Download, "install": s.Install} {
		if _, err := ParseHours(text); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	names := map[string]bool{}
	for i, w := range s.Waves {
		switch {
		case w.Name == "" || names[w.Name]:
			return fmt.Errorf("wave %d needs a name that no other has: %w", i+1, fleet.ErrInvalid)
		case w.Percent < 0 || w.Percent > 100:
			return fmt.Errorf("wave %s takes %v %%; a share is between 0 and 100: %w", w.Name, w.Percent, fleet.ErrInvalid)
		case w.Soak < 0:
			return fmt.Errorf("wave %s soaks for %v: %w", w.Name, w.Soak, fleet.ErrInvalid)
		}
		names[w.Name] = true
		if err := checkGate(w.Gate); err != nil {
			return fmt.Errorf("wave %s: %w", w.Name, err)
		}
	}
	for k := range s.Steps {
		if !k.Known() || k.Ended() || k == fleet.ExecQueued {
			return fmt.Errorf("%s is no step of a device: %w", k, fleet.ErrInvalid)
		}
	}
	r := s.Rate
	if r.Base < 0 || r.Max < 0 || r.Every < 0 || r.Factor < 0 || r.Factor > 0 && r.Factor < 1 || r.Base == 0 && r != (fleet.Rate{}) {
		return fmt.Errorf("rate %+v: a base is needed, a factor is 1 or more, and nothing is negative: %w", r, fleet.ErrInvalid)
	}
	for what, n := range map[string]int64{
		"lanes of a site at once": int64(s.PerSite), "devices at once": int64(s.InFlight), "deadline": int64(s.Deadline), "attempts": int64(s.Attempts),
		"unreachable": int64(s.Unreachable), "rate of a device": int64(s.RateKiB),
	} {
		if n < 0 {
			return fmt.Errorf("%s: negative: %w", what, fleet.ErrInvalid)
		}
	}
	return checkGate(s.Gate)
}

func checkGate(g fleet.Gate) error {
	if g.Success > 100 || g.Bad > 100 {
		return fmt.Errorf("a gate's shares are in percent, at most 100: %w", fleet.ErrInvalid)
	}
	if g.MinSample < 0 || g.BadCap < 0 {
		return fmt.Errorf("a gate's counts are not negative: %w", fleet.ErrInvalid)
	}
	return nil
}

// Preview says what a rollout would do if it began now with these devices.
func Preview(now time.Time, ro fleet.Rollout, units []fleet.Unit, v View) fleet.Preview {
	ro.State, ro.Waves, ro.Holds = fleet.RolloutRunning, nil, nil
	p := newPlanner(now, ro, units, v)
	p.assign()
	var out fleet.Preview
	sites := map[string]bool{}
	blocked := map[string]*fleet.Blocked{}
	runs := 0
	for i := range units {
		u := &units[i]
		out.Reaches++
		if u.Site != "" {
			sites[u.Site] = true
		}
		p.members[p.wave[i]]++
		if p.over(i); p.kinds[i] == already {
			runs++
			continue
		}
		code := p.unready(i)
		switch {
		case code == "" && !p.timetable(i).openNow(now):
			code = "window"
		case code == reasonUnreachable:
			code = "offline"
		}
		if code == "" {
			continue
		}
		b := blocked[code]
		if b == nil {
			b = &fleet.Blocked{Reason: code, Text: previewTexts[code]}
			blocked[code] = b
		}
		b.Devices++
	}
	out.Sites = len(sites)
	for i, w := range p.waves {
		out.Waves = append(out.Waves, fleet.PreviewWave{Name: w.Name, Devices: p.members[i]})
	}
	n := 0
	var parts []string
	out.Blocked = []fleet.Blocked{}
	for _, b := range slices.SortedFunc(maps.Values(blocked), func(a, b *fleet.Blocked) int {
		return cmp.Or(cmp.Compare(b.Devices, a.Devices), cmp.Compare(a.Reason, b.Reason))
	}) {
		n += b.Devices
		out.Blocked = append(out.Blocked, *b)
		parts = append(parts, count(b.Devices)+" "+b.Reason)
	}
	out.Text = "reaches " + counted(out.Reaches, "device") + " in " + counted(out.Sites, "site")
	if runs > 0 {
		out.Text += fmt.Sprintf("; %s run it already", count(runs))
	}
	if n > 0 {
		out.Text += fmt.Sprintf("; %s blocked: %s", count(n), strings.Join(parts, ", "))
	}
	return out
}

// counted is a number of things.
func counted(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return count(n) + " " + what
}

var previewTexts = map[string]string{
	"window":      "outside the hours of their sites now; they wait for them",
	"space":       "too little space on their disks; make room",
	"requires":    "something that the release requires is not there or too old; bring them that first",
	"model":       "of a model that the release is not for; they are never offered it",
	"offline":     "not connected; they are offered it when they are back",
	"quarantined": "not trusted now; see their attestation",
	"busy":        "at work on another release; they take one at a time",
}
