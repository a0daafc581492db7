package rollout_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/rollout"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// scene is devices d1, d2... made from words: a state, then marks.
//
//   - away for a minute     ~  away for days           +  back      #  not trusted
//     !  past its deadline    ?  long in its step        *  ended an hour ago    >  just offered
//     /m of model m           @s at site s               =2 in wave 2        ^2 attempt 2        %r of reason r
type scene struct {
	units []fleet.Unit
	there map[fleet.DeviceID]rollout.Presence
}

const marks = "-~+#!?*>/@=^%"

func stage(words string) *scene {
	s := &scene{there: map[fleet.DeviceID]rollout.Presence{}}
	for i, w := range strings.Fields(words) {
		d := fleet.DeviceID(fmt.Sprintf("d%d", i+1))
		end := strings.IndexAny(w, marks)
		if end < 0 {
			end = len(w)
		}
		u := fleet.Unit{Execution: fleet.Execution{ID: fleet.ExecutionID("x-" + d), Device: d, State: fleet.ExecutionState(w[:end])}, Model: "m", LastSeen: noon.Add(-time.Minute)}
		u.EnteredAt = noon.Add(-time.Minute)
		if u.State != fleet.ExecQueued {
			u.OfferedAt, u.Attempt = noon.Add(-time.Minute), 1
		}
		there := rollout.Here
		for w = w[end:]; w != ""; {
			mark := w[0]
			w = w[1:]
			n := strings.IndexAny(w, marks)
			if n < 0 {
				n = len(w)
			}
			arg := w[:n]
			w = w[n:]
			switch mark {
			case '-':
				there = rollout.Away
			case '~':
				there, u.LastSeen = rollout.Away, noon.Add(-72*time.Hour)
			case '+':
				there = rollout.Back
			case '#':
				there = rollout.Barred
			case '!':
				u.OfferedAt = noon.Add(-8 * 24 * time.Hour)
			case '?':
				u.EnteredAt = noon.Add(-25 * time.Hour)
			case '*':
				u.EnteredAt = noon.Add(-time.Hour)
			case '/':
				u.Model = arg
			case '@':
				u.Site = arg
			case '%':
				u.Reason = strings.ReplaceAll(arg, "_", "-")
			case '>':
				u.OfferedAt = noon.Add(-10 * time.Second)
			case '=':
				_, _ = fmt.Sscan(arg, &u.Wave)
				u.Wave--
			case '^':
				_, _ = fmt.Sscan(arg, &u.Attempt)
			}
		}
		s.there[d] = there
		s.units = append(s.units, u)
	}
	return s
}

func (s *scene) view() rollout.View {
	return rollout.View{
		Release:  fleet.Release{ID: "agent/1.2.3", Component: "agent", Version: "1.2.3"},
		Presence: func(d fleet.DeviceID) rollout.Presence { return s.there[d] },
	}
}

func devices(units []fleet.Unit) string {
	var ids []string
	for _, u := range units {
		ids = append(ids, string(u.Device))
	}
	return strings.Join(ids, " ")
}

func moves(list []rollout.Move) string {
	var out []string
	for _, m := range list {
		out = append(out, fmt.Sprintf("%s:%s:%s", m.Unit.Device, m.To, m.Reason))
	}
	return strings.Join(out, " ")
}

func waves(list []fleet.WaveStatus) string {
	var out []string
	for _, w := range list {
		out = append(out, string(w.State))
	}
	return strings.Join(out, " ")
}

func holds(list []fleet.Hold) string {
	var out []string
	for _, h := range list {
		if h.ReleasedAt.IsZero() {
			out = append(out, h.Model+h.Site)
		}
	}
	return strings.Join(out, " ")
}

// many repeats a word.
func many(n int, word string) string { return strings.Repeat(word+" ", n) }

var (
	two  = []fleet.Wave{{Name: "canary", Filter: fleet.Filter{Devices: []fleet.DeviceID{"d1", "d2"}}, Soak: time.Hour}, {Name: "rest"}}
	hour = time.Hour
)

func TestNext(t *testing.T) {
	running := []fleet.WaveStatus{{State: fleet.WaveRunning, StartedAt: noon.Add(-hour)}}
	passed := []fleet.WaveStatus{{State: fleet.WavePassed}}
	for _, c := range []struct {
		name  string
		units string
		ro    fleet.Rollout
		view  func(*rollout.View)

		offer, recall, retry, moves string
		waves, holds, to, reason    string
	}{
		{name: "nobody is there yet", waves: "PENDING"},
		{name: "who is there is offered", units: "QUEUED QUEUED- QUEUED QUEUED#", offer: "d1 d3", waves: "RUNNING"},
		{name: "paused calls back what does not install", units: "QUEUED OFFERED WAITING DOWNLOADING STAGED INSTALLING CHECKING OFFERED-", ro: fleet.Rollout{State: fleet.RolloutPaused, Reason: "why", Waves: running}, recall: "d2 d3 d4 d5", waves: "RUNNING", to: "PAUSED", reason: "why"},
		{name: "aborting", units: "QUEUED STAGED CHECKING SUCCEEDED OFFERED-", ro: fleet.Rollout{State: fleet.RolloutAborting, Waves: running}, moves: "d1:CANCELED:aborted", recall: "d2 d5", waves: "RUNNING", to: "ABORTING"},
		{name: "aborted", units: "QUEUED SUCCEEDED", ro: fleet.Rollout{State: fleet.RolloutAborting, Waves: running, Reason: "bad"}, moves: "d1:CANCELED:aborted", waves: "RUNNING", to: "ABORTED", reason: "bad"},
		{name: "ends stay", units: "QUEUED", ro: fleet.Rollout{State: fleet.RolloutAborted}, to: "ABORTED"},
		{name: "complete takes nobody, and who is at it finishes", units: "QUEUED OFFERED WAITING! INSTALLING", ro: fleet.Rollout{State: fleet.RolloutCompleted, Waves: passed}, moves: "d3:TIMED_OUT:waited d1:CANCELED:completed", waves: "PASSED", to: "COMPLETED"},
		{name: "complete and superseded", units: "QUEUED INSTALLING", ro: fleet.Rollout{State: fleet.RolloutCompleted, Spec: fleet.Spec{Joiners: true}, Waves: passed}, view: func(v *rollout.View) { v.Newer = "agent/1.3.0" }, moves: "d1:CANCELED:superseded", waves: "PASSED", to: "COMPLETED"},
		{name: "complete takes joiners", units: "QUEUED SUCCEEDED FAILED^3", ro: fleet.Rollout{State: fleet.RolloutCompleted, Spec: fleet.Spec{Joiners: true}, Waves: []fleet.WaveStatus{{State: fleet.WavePassed}}}, offer: "d1", waves: "PASSED", to: "COMPLETED"},
		{name: "who comes back is offered once more", units: "OFFERED+ DOWNLOADING+ CHECKING OFFERED-", offer: "d1 d2", waves: "RUNNING"},
		{name: "all good", units: "SUCCEEDED ALREADY_INSTALLED REMOVED CANCELED", waves: "PASSED", to: "COMPLETED"},
		{name: "too few ended well", units: "SUCCEEDED ROLLED_BACK", waves: "FAILED", to: "PAUSED", reason: "of 2 devices of wave all that ended 50 % ended well, 95 % must"},
		{name: "one bad is allowed by the cap", units: "SUCCEEDED ROLLED_BACK", ro: fleet.Rollout{Spec: fleet.Spec{Gate: fleet.Gate{Success: -1, BadCap: 1}}}, waves: "PASSED", to: "COMPLETED"},
		{name: "two bad are not", units: "REJECTED ROLLED_BACK QUEUED", ro: fleet.Rollout{Spec: fleet.Spec{Gate: fleet.Gate{BadCap: 1}}}, waves: "FAILED", to: "PAUSED", reason: "2 devices ended badly, at most 1 may"},
		{name: "past the deadline", units: "OFFERED! DOWNLOADING WAITING! OFFERED!~ CHECKING!~ QUEUED", moves: "d1:TIMED_OUT:deadline d3:TIMED_OUT:waited d4:TIMED_OUT:unreachable d5:TIMED_OUT:deadline", offer: "d6", waves: "RUNNING"},
		{name: "too long in a step", units: "OFFERED? OFFERED?- CHECKING?- DOWNLOADING? REBOOTING QUEUED", moves: "d1:TIMED_OUT:timeout d3:TIMED_OUT:timeout", offer: "d6", waves: "RUNNING"},
		{name: "unreachable ones are not waited for, and end with it", units: "SUCCEEDED QUEUED~ OFFERED~", moves: "d2:CANCELED:completed d3:TIMED_OUT:unreachable", waves: "PASSED", to: "COMPLETED"},
		{name: "with joiners they stay", units: "SUCCEEDED QUEUED~", ro: fleet.Rollout{Spec: fleet.Spec{Joiners: true}}, waves: "PASSED", to: "COMPLETED"},
		{name: "waits for who is away", units: "SUCCEEDED QUEUED-", waves: "RUNNING"},
		{name: "a failure is tried again, later", units: "FAILED FAILED* FAILED*^2 FAILED*^3 TIMED_OUT* TIMED_OUT*- ROLLED_BACK* REJECTED* SUCCEEDED", ro: fleet.Rollout{Spec: fleet.Spec{Gate: fleet.Gate{Success: -1}}}, retry: "d2 d3 d5", waves: "RUNNING"},
		{name: "it runs it already", units: "QUEUED QUEUED", view: func(v *rollout.View) { v.Release.Version = "1.0.0" }, moves: "d1:ALREADY_INSTALLED:installed d2:ALREADY_INSTALLED:installed", waves: "PASSED", to: "COMPLETED"},
		{name: "it runs a newer one, which is its own to say", units: "QUEUED REJECTED%downgrade", view: func(v *rollout.View) { v.Release.Version = "0.9.0" }, offer: "d1", waves: "RUNNING"},
		{name: "what it requires", units: "QUEUED QUEUED", view: func(v *rollout.View) { v.Release.Requires = map[string]string{"os": "2.0.0", "agent": "0.9.0"} }, offer: "d2", waves: "RUNNING"},
		{name: "other models", units: "QUEUED/x QUEUED/y", view: func(v *rollout.View) { v.Release.Models = []string{"y"} }, offer: "d2", waves: "RUNNING"},
		{name: "at work on another", units: "QUEUED QUEUED", view: func(v *rollout.View) { v.Busy = func(d fleet.DeviceID) bool { return d == "d1" } }, offer: "d2", waves: "RUNNING"},
		{name: "no hours while the offer lives", units: "QUEUED@a QUEUED@b", ro: fleet.Rollout{Spec: fleet.Spec{Deadline: 24 * hour}}, view: func(v *rollout.View) {
			v.Sites = map[string]fleet.Site{"a": {Name: "a", Install: "sun 01:00-02:00"}}
		}, offer: "d2", waves: "RUNNING"},
		{name: "withdrawn", units: "QUEUED OFFERED", view: func(v *rollout.View) { v.Release.Withdrawn = true }, recall: "d2", waves: "PENDING", to: "PAUSED", reason: "the release was withdrawn; abort, and roll forward to another one"},
		{name: "superseded", units: "QUEUED OFFERED SUCCEEDED", view: func(v *rollout.View) { v.Newer = "agent/1.3.0" }, recall: "d2", moves: "d1:CANCELED:superseded d2:CANCELED:superseded", waves: "PENDING", to: "SUPERSEDED", reason: "agent/1.3.0 has taken over"},
		{name: "superseded, one installs", units: "QUEUED INSTALLING", view: func(v *rollout.View) { v.Newer = "agent/1.3.0" }, moves: "d1:CANCELED:superseded", waves: "PENDING"},

		{name: "the canary first", units: "QUEUED=0 QUEUED=0 QUEUED=0", ro: fleet.Rollout{Spec: fleet.Spec{Waves: two}}, offer: "d1 d2", waves: "RUNNING PENDING"},
		{name: "it soaks", units: "SUCCEEDED SUCCEEDED QUEUED=2", ro: fleet.Rollout{Spec: fleet.Spec{Waves: two}}, waves: "SOAKING PENDING"},
		{name: "it has soaked", units: "SUCCEEDED SUCCEEDED QUEUED=2", ro: fleet.Rollout{Spec: fleet.Spec{Waves: two}, Waves: []fleet.WaveStatus{{State: fleet.WaveSoaking, SoakedAt: noon.Add(-hour)}, {State: fleet.WavePending}}}, offer: "d3", waves: "PASSED RUNNING"},
		{name: "a canary of which nobody did well, at once", units: "ROLLED_BACK ROLLED_BACK QUEUED=2", ro: fleet.Rollout{Spec: fleet.Spec{Waves: two}, Waves: []fleet.WaveStatus{{State: fleet.WaveRunning, StartedAt: noon.Add(-time.Minute)}, {State: fleet.WavePending}}}, waves: "FAILED PENDING", to: "PAUSED", reason: "of 2 devices of wave canary that ended 0 % ended well, 95 % must"},
		{name: "nobody of the canary is there: no evidence", units: "QUEUED~ QUEUED~ QUEUED=2", ro: fleet.Rollout{Spec: fleet.Spec{Waves: two}}, waves: "RUNNING PENDING"},
		{name: "and nobody comes", units: "QUEUED~ QUEUED~ QUEUED=2", ro: fleet.Rollout{Spec: fleet.Spec{Waves: two}, Waves: []fleet.WaveStatus{{State: fleet.WaveRunning, StartedAt: noon.Add(-25 * hour)}, {State: fleet.WavePending}}}, waves: "FAILED PENDING", to: "PAUSED", reason: "nobody of wave canary has come to run the release within 24h0m0s, so it shows nothing; resume to go on without it"},
		{name: "one that came late is not waited for", units: "SUCCEEDED INSTALLING=1 QUEUED=2", ro: fleet.Rollout{Spec: fleet.Spec{Waves: two}, Waves: []fleet.WaveStatus{{State: fleet.WaveRunning, StartedAt: noon.Add(-26 * hour), OfferedAt: noon.Add(-25 * hour)}, {State: fleet.WavePending}}}, waves: "SOAKING PENDING"},
		{name: "resumed after a failure", units: "ROLLED_BACK SUCCEEDED QUEUED=2", ro: fleet.Rollout{Spec: fleet.Spec{Waves: two}, Waves: []fleet.WaveStatus{{State: fleet.WaveFailed}, {State: fleet.WavePending}}}, waves: "SOAKING PENDING"},
		{name: "resumed, what ended before is not judged again", units: many(18, "SUCCEEDED") + many(2, "ROLLED_BACK") + "QUEUED", ro: fleet.Rollout{Waves: []fleet.WaveStatus{{State: fleet.WaveFailed}}}, offer: "d21", waves: "RUNNING"},
		{name: "a late one of a wave that passed", units: "QUEUED+ SUCCEEDED QUEUED=2", ro: fleet.Rollout{Spec: fleet.Spec{Waves: two}, Waves: []fleet.WaveStatus{{State: fleet.WavePassed}, {State: fleet.WaveRunning}}}, offer: "d1 d3", waves: "PASSED RUNNING"},
		{name: "a joiner is not put behind what runs", units: "SUCCEEDED SUCCEEDED=2 QUEUED=0", ro: fleet.Rollout{
			Spec:  fleet.Spec{Waves: []fleet.Wave{{Name: "canary", Filter: fleet.Filter{Devices: []fleet.DeviceID{"d3"}}}, {Name: "rest"}}},
			Waves: []fleet.WaveStatus{{State: fleet.WavePassed}, {State: fleet.WaveRunning}},
		}, offer: "d3", waves: "PASSED RUNNING"},

		{name: "a bad share", units: many(18, "SUCCEEDED") + many(2, "ROLLED_BACK") + "QUEUED", waves: "FAILED", to: "PAUSED", reason: "2 of 20 devices ended badly (10 %), 5 % may"},
		{name: "too few to judge", units: many(17, "SUCCEEDED") + many(2, "ROLLED_BACK") + "QUEUED", offer: "d20", waves: "RUNNING"},
		{name: "unreachable ones are in no share", units: many(18, "SUCCEEDED") + many(2, "TIMED_OUT-%unreachable") + "QUEUED", offer: "d21", waves: "RUNNING"},
		{name: "a bad model is held, the others go on", units: many(18, "SUCCEEDED/a") + many(2, "ROLLED_BACK/a") + "QUEUED/a OFFERED/a QUEUED/b", offer: "d23", recall: "d22", waves: "RUNNING", holds: "a"},
		{name: "a model that is to blame is held early", units: many(18, "SUCCEEDED/a") + many(2, "ROLLED_BACK/b") + "QUEUED/a QUEUED/b", offer: "d21", waves: "RUNNING", holds: "b"},
		{name: "two models that share the blame are not", units: many(17, "SUCCEEDED/a") + "ROLLED_BACK/b ROLLED_BACK/c ROLLED_BACK/a QUEUED/a", waves: "FAILED", to: "PAUSED", reason: "3 of 20 devices ended badly (15 %), 5 % may"},
		{name: "only held ones are left", units: "SUCCEEDED/a QUEUED/b OFFERED/b", ro: fleet.Rollout{Holds: []fleet.Hold{{Model: "b", Reason: "bad"}}}, recall: "d3", waves: "PASSED", holds: "b", to: "PAUSED", reason: "everybody else is done; 2 devices are held: model b. Release the hold and resume, or complete the rollout without them"},
		{name: "a released model starts anew", units: many(20, "ROLLED_BACK*/a") + "QUEUED/a QUEUED/b", ro: fleet.Rollout{
			Spec: fleet.Spec{Gate: fleet.Gate{SiteBad: -1}}, Holds: []fleet.Hold{{Model: "a", ReleasedAt: noon.Add(-time.Minute)}},
		}, offer: "d21 d22", waves: "RUNNING"},
		{name: "a bad site is held", units: "ROLLED_BACK@s REJECTED@s QUEUED@s QUEUED@t ROLLED_BACK@t", offer: "d4", waves: "RUNNING", holds: "s"},
		{name: "a site is not to blame for a model", units: many(18, "ROLLED_BACK/a") + many(2, "ROLLED_BACK/a@s") + "QUEUED/b@s QUEUED/a@s", ro: fleet.Rollout{Holds: []fleet.Hold{{Site: "s", Reason: "2"}}}, offer: "d21", waves: "RUNNING", holds: "a"},

		{name: "lanes of a site at once", units: "DOWNLOADING@s QUEUED@s QUEUED@t QUEUED@t QUEUED QUEUED WAITING~@u QUEUED@u", ro: fleet.Rollout{Spec: fleet.Spec{PerSite: 1}}, offer: "d3 d5 d6 d8", waves: "RUNNING"},
		{name: "devices at once", units: "DOWNLOADING WAITING~ QUEUED QUEUED", ro: fleet.Rollout{Spec: fleet.Spec{InFlight: 2}}, offer: "d3", waves: "RUNNING"},
		{name: "the rate", units: "DOWNLOADING DOWNLOADING> QUEUED QUEUED", ro: fleet.Rollout{Spec: fleet.Spec{Rate: fleet.Rate{Base: 2, Factor: 3, Every: 2, Max: 9}}}, offer: "d3", waves: "RUNNING"},
		{name: "less than one a minute", units: "DOWNLOADING QUEUED", ro: fleet.Rollout{Spec: fleet.Spec{Rate: fleet.Rate{Base: 0.5}}}, waves: "RUNNING"},
		{name: "the rate grows", units: "SUCCEEDED SUCCEEDED QUEUED QUEUED QUEUED QUEUED", ro: fleet.Rollout{Spec: fleet.Spec{Rate: fleet.Rate{Base: 1, Factor: 3, Every: 2, Max: 9}}}, offer: "d3 d4 d5", waves: "RUNNING"},
		{name: "health against the control group", units: "SUCCEEDED QUEUED", view: func(v *rollout.View) {
			v.Health = map[string]fleet.Health{"": {Updated: fleet.Faults{Devices: 10, Hours: 10, Peripheral: 8}, Control: fleet.Faults{Devices: 90, Hours: 90, Peripheral: 9}}}
		}, waves: "FAILED", to: "PAUSED", reason: "printers, readers and drawers went bad 8 times in 10 device-hours of updated devices, and 9 times in 90 of those that are not yet"},
		{name: "health is as bad elsewhere", units: "SUCCEEDED QUEUED", view: func(v *rollout.View) {
			v.Health = map[string]fleet.Health{"": {Updated: fleet.Faults{Devices: 10, Hours: 10, Peripheral: 8}, Control: fleet.Faults{Devices: 90, Hours: 90, Peripheral: 30}}}
		}, offer: "d2", waves: "RUNNING"},
		{name: "an unwell model is held", units: "SUCCEEDED/a QUEUED/a QUEUED/b", view: func(v *rollout.View) {
			v.Health = map[string]fleet.Health{"a": {Updated: fleet.Faults{Hours: 10, Crashes: 8}, Control: fleet.Faults{Hours: 90}}, "b": {Control: fleet.Faults{Hours: 90}}}
		}, offer: "d3", waves: "RUNNING", holds: "a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := stage(c.units)
			for i := range s.units {
				s.units[i].Installed = map[string]string{"agent": "1.0.0"}
				if i == 1 {
					s.units[i].Installed["os/m/prod"] = "2.1.0"
				}
			}
			if c.ro.State == "" {
				c.ro.State = fleet.RolloutRunning
			}
			if c.to == "" {
				c.to = string(fleet.RolloutRunning)
			}
			v := s.view()
			if c.view != nil {
				c.view(&v)
			}
			p := rollout.Next(noon, c.ro, s.units, v)
			for _, g := range []struct{ what, got, want string }{
				{"offer", devices(p.Offer), c.offer},
				{"recall", devices(p.Recall), c.recall},
				{"retry", devices(p.Retry), c.retry},
				{"moves", moves(p.Moves), c.moves},
				{"waves", waves(p.Waves), c.waves},
				{"holds", holds(p.Holds), c.holds},
				{"state", string(p.To), c.to},
				{"reason", p.Reason, c.reason},
			} {
				if g.got != g.want {
					t.Errorf("%s: got %q, want %q", g.what, g.got, g.want)
				}
			}
			if decided := p.To != c.ro.State || len(p.Holds) != len(c.ro.Holds); decided && len(p.Decisions) == 0 {
				t.Error("something was decided and nothing is to be audited")
			}
			if again := rollout.Next(noon, c.ro, s.units, v); devices(again.Offer) != devices(p.Offer) || p.Reason != again.Reason || !slices.Equal(p.Waves, again.Waves) {
				t.Error("the same question has two answers")
			}
		})
	}
}
