package rollout_test

import (
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/rollout"
)

// TestRateGrowsOn: a rate that has doubled often enough to be no number of devices any more does not become none.
func TestRateGrowsOn(t *testing.T) {
	for name, rate := range map[string]fleet.Rate{
		"doubled 64 times": {Base: 50, Factor: 2, Every: 1},
		"a huge one":       {Base: 1e300},
	} {
		s := stage(many(64, "SUCCEEDED*") + "QUEUED")
		p := rollout.Next(noon, fleet.Rollout{State: fleet.RolloutRunning, Spec: fleet.Spec{Rate: rate}}, s.units, s.view())
		if devices(p.Offer) != "d65" {
			t.Errorf("%s: offered to %q, stopped %v", name, devices(p.Offer), p.Stopped)
		}
	}
	// The smallest one has a window that ends.
	s := stage("SUCCEEDED* QUEUED")
	p := rollout.Next(noon, fleet.Rollout{State: fleet.RolloutRunning, Spec: fleet.Spec{Rate: fleet.Rate{Base: 1e-300}}}, s.units, s.view())
	if devices(p.Offer) != "" || p.Next.Before(noon) {
		t.Errorf("offered to %q, next plan at %v", devices(p.Offer), p.Next)
	}
}

// TestClockSetBack: moments that a clock wrote which ran ahead hold nothing up once it is right again.
func TestClockSetBack(t *testing.T) {
	ahead := noon.AddDate(1, 0, 0)
	s := stage("DOWNLOADING QUEUED")
	s.units[0].OfferedAt = ahead
	p := rollout.Next(noon, fleet.Rollout{State: fleet.RolloutRunning, Spec: fleet.Spec{Rate: fleet.Rate{Base: 1}}}, s.units, s.view())
	if devices(p.Offer) != "d2" {
		t.Errorf("the rate: offered to %q, stopped %v", devices(p.Offer), p.Stopped)
	}
	s = stage("SUCCEEDED SUCCEEDED QUEUED=2")
	ro := fleet.Rollout{State: fleet.RolloutRunning, Spec: fleet.Spec{Waves: two}, Waves: []fleet.WaveStatus{{State: fleet.WaveSoaking, StartedAt: ahead, SoakedAt: ahead}, {State: fleet.WavePending}}}
	ro.Waves = rollout.Next(noon, ro, s.units, s.view()).Waves
	if p = rollout.Next(noon.Add(hour), ro, s.units, s.view()); devices(p.Offer) != "d3" {
		t.Errorf("the soak: it is %s, offered to %q", waves(p.Waves), devices(p.Offer))
	}
	// What was forgiven until next year is judged from now on.
	s = stage(many(20, "ROLLED_BACK") + "QUEUED")
	ro = fleet.Rollout{State: fleet.RolloutRunning, Waves: []fleet.WaveStatus{{State: fleet.WaveRunning, ForgivenAt: ahead}}}
	ro.Waves = rollout.Next(noon.Add(-hour), ro, stage("QUEUED").units, s.view()).Waves
	if p = rollout.Next(noon, ro, s.units, s.view()); p.To != fleet.RolloutPaused {
		t.Errorf("twenty bad ends after a resume: it is %s", p.To)
	}
}

// TestWithdrawnAfterTheEnd: what was withdrawn is not brought to late devices either, and who has not begun drops it.
func TestWithdrawnAfterTheEnd(t *testing.T) {
	s := stage("SUCCEEDED QUEUED OFFERED INSTALLING")
	v := s.view()
	v.Release.Withdrawn = true
	p := rollout.Next(noon, fleet.Rollout{State: fleet.RolloutCompleted, Spec: fleet.Spec{Joiners: true}, Waves: []fleet.WaveStatus{{State: fleet.WavePassed}}}, s.units, v)
	if devices(p.Offer) != "" || devices(p.Recall) != "d3" || moves(p.Moves) != "d2:CANCELED:withdrawn" {
		t.Errorf("offered to %q, called back %q, moved %q", devices(p.Offer), devices(p.Recall), moves(p.Moves))
	}
}

// TestCompletedEarly: who completes a rollout in its first wave leaves the other waves out for good; who joins later is
// brought it.
func TestCompletedEarly(t *testing.T) {
	s := stage("SUCCEEDED QUEUED=1 QUEUED=2 QUEUED=0")
	ro := fleet.Rollout{State: fleet.RolloutCompleted, Spec: fleet.Spec{Joiners: true, Waves: two}, Waves: []fleet.WaveStatus{{State: fleet.WaveRunning}, {State: fleet.WavePending}}}
	p := rollout.Next(noon, ro, s.units, s.view())
	if devices(p.Offer) != "d2 d4" || moves(p.Moves) != "d3:CANCELED:completed" {
		t.Errorf("offered to %q, moved %q, stopped %v", devices(p.Offer), moves(p.Moves), p.Stopped)
	}
}

// TestEmptyCanary: a wave that names devices and gets none, for a slip in a list, shows nothing for the others.
func TestEmptyCanary(t *testing.T) {
	s := stage("QUEUED=0 QUEUED=0")
	canary := []fleet.Wave{{Name: "canary", Filter: fleet.Filter{Devices: []fleet.DeviceID{"dl"}}, Soak: time.Hour}, {Name: "rest"}}
	ro := fleet.Rollout{State: fleet.RolloutRunning, Spec: fleet.Spec{Waves: canary}}
	p := rollout.Next(noon, ro, s.units, s.view())
	if p.To != fleet.RolloutPaused || devices(p.Offer) != "" || p.Reason != "no device of the rollout is in wave canary; see its filter, or resume to go on without it" {
		t.Errorf("it is %s (%s), offered to %q", p.To, p.Reason, devices(p.Offer))
	}
	ro.Waves = p.Waves // resumed
	if p = rollout.Next(noon.Add(time.Minute), ro, s.units, s.view()); devices(p.Offer) != "d1 d2" {
		t.Errorf("resumed: it is %s (%s), offered to %q", p.To, p.Reason, devices(p.Offer))
	}
	// Behind a wave that has shown something, and as a share that others fill, an empty one is passed.
	s = stage("SUCCEEDED=1 QUEUED=3")
	ro = fleet.Rollout{State: fleet.RolloutRunning, Spec: fleet.Spec{Waves: []fleet.Wave{{Name: "a", Percent: 1}, {Name: "b", Filter: fleet.Filter{Group: "none"}}, {Name: "rest"}}}}
	if p = rollout.Next(noon, ro, s.units, s.view()); devices(p.Offer) != "d2" {
		t.Errorf("behind others: it is %s (%s)", p.To, p.Reason)
	}
}

// TestNobodyToReach: a rollout that nobody has come to run is not complete.
func TestNobodyToReach(t *testing.T) {
	s := stage("QUEUED~ OFFERED~")
	ro := fleet.Rollout{State: fleet.RolloutRunning, Waves: []fleet.WaveStatus{{State: fleet.WaveRunning, StartedAt: noon.Add(-hour)}}}
	p := rollout.Next(noon, ro, s.units, s.view())
	if p.To != fleet.RolloutRunning || len(p.Moves) > 0 || !p.Next.After(noon) {
		t.Errorf("at first: it is %s (%s), moved %q, next plan at %v", p.To, p.Reason, moves(p.Moves), p.Next)
	}
	ro.Waves[0].StartedAt = noon.Add(-25 * hour)
	p = rollout.Next(noon, ro, s.units, s.view())
	if p.To != fleet.RolloutPaused || p.Reason != "nobody of wave all has come to run the release within 24h0m0s; resume to wait for as long again, or complete it without them" {
		t.Errorf("after a day: it is %s (%s), moved %q", p.To, p.Reason, moves(p.Moves))
	}
	ro.Waves = p.Waves // resumed
	if p = rollout.Next(noon.Add(hour), ro, s.units, s.view()); p.To != fleet.RolloutRunning {
		t.Errorf("resumed: it is %s (%s)", p.To, p.Reason)
	}
	ro.Waves = p.Waves
	if p = rollout.Next(noon.Add(26*hour), ro, s.units, s.view()); p.To != fleet.RolloutPaused {
		t.Errorf("a day later: it is %s (%s)", p.To, p.Reason)
	}
	// Nobody that needs it is another thing: all run something newer.
	s = stage("REJECTED%downgrade REJECTED%downgrade")
	if p = rollout.Next(noon, fleet.Rollout{State: fleet.RolloutRunning}, s.units, s.view()); p.To != fleet.RolloutCompleted {
		t.Errorf("all run something newer: it is %s (%s)", p.To, p.Reason)
	}
}

// TestNobodyAtAll: a rollout whose filter picks nobody does not run for ever.
func TestNobodyAtAll(t *testing.T) {
	v := stage("").view()
	ro := fleet.Rollout{State: fleet.RolloutRunning, StartedAt: noon}
	if p := rollout.Next(noon.Add(hour), ro, nil, v); p.To != fleet.RolloutRunning || p.Next.IsZero() {
		t.Errorf("at first: it is %s, next plan at %v", p.To, p.Next)
	}
	if p := rollout.Next(noon.Add(25*hour), ro, nil, v); p.To != fleet.RolloutCompleted || p.Reason != "it has reached no device within 24h0m0s; see its filter" || len(p.Decisions) != 1 {
		t.Errorf("after a day: it is %s (%s)", p.To, p.Reason)
	}
}

// TestNoLoop: a device that gives up whatever it is offered is not offered it again and again, and holds nobody up.
func TestNoLoop(t *testing.T) {
	for _, reason := range []string{"canceled", "waited", "unreachable", "expired"} {
		s := stage("SUCCEEDED FAILED^3%" + reason + " FAILED%" + reason)
		wave := fleet.WaveStatus{State: fleet.WaveRunning, StartedAt: noon.Add(-hour)}
		p := rollout.Next(noon, fleet.Rollout{State: fleet.RolloutRunning, Waves: []fleet.WaveStatus{wave}}, s.units, s.view())
		if devices(p.Retry) != "d3" || !p.Next.After(noon) || p.Next.After(noon.Add(hour)) {
			t.Errorf("%s: tried again %q, next plan at %v", reason, devices(p.Retry), p.Next)
		}
		s = stage("SUCCEEDED FAILED^9%" + reason + " QUEUED^9 WAITING^9%power OFFERED^9")
		wave.StartedAt, wave.OfferedAt = noon.Add(-26*hour), noon.Add(-25*hour)
		p = rollout.Next(noon, fleet.Rollout{State: fleet.RolloutRunning, Waves: []fleet.WaveStatus{wave}}, s.units, s.view())
		if p.To != fleet.RolloutCompleted {
			t.Errorf("%s: it is %s, %s", reason, p.To, waves(p.Waves))
		}
	}
}

// TestHeardAgain: what a device could not say while it, or the service, was away does not time it out; its silence
// afterwards does.
func TestHeardAgain(t *testing.T) {
	for _, c := range []struct {
		name, units, moves string
		came, began        time.Time
	}{
		{"back from a night", "OFFERED? STAGED?+ OFFERED!", "", noon.Add(-time.Minute), time.Time{}},
		{"back long ago", "OFFERED? STAGED? OFFERED!", "d1:TIMED_OUT:timeout d2:TIMED_OUT:timeout d3:TIMED_OUT:deadline", noon.Add(-20 * hour), time.Time{}},
		{"what installs was at it meanwhile", "INSTALLING?", "d1:TIMED_OUT:timeout", noon.Add(-time.Minute), time.Time{}},
		{"the service begins", "INSTALLING?- CHECKING? REBOOTING?- CHECKING!-", "", time.Time{}, noon.Add(-time.Minute)},
		{"the service has begun", "INSTALLING?- CHECKING? REBOOTING?- CHECKING!-", "d1:TIMED_OUT:timeout d2:TIMED_OUT:timeout d3:TIMED_OUT:timeout d4:TIMED_OUT:deadline", time.Time{}, noon.Add(-hour)},
	} {
		s := stage(c.units)
		v := s.view()
		v.Began, v.Came = c.began, func(fleet.DeviceID) time.Time { return c.came }
		p := rollout.Next(noon, fleet.Rollout{State: fleet.RolloutRunning}, s.units, v)
		if got := moves(p.Moves); got != c.moves {
			t.Errorf("%s: moved %q, want %q", c.name, got, c.moves)
		}
		if c.moves == "" && !p.Next.After(noon) {
			t.Errorf("%s: nobody looks again", c.name)
		}
	}
}

// TestLanesOfOthers: the lanes of a site that another rollout has under way are not there to sell either.
func TestLanesOfOthers(t *testing.T) {
	s := stage("QUEUED@s QUEUED@s QUEUED@t")
	v := s.view()
	v.Lanes = map[string]int{"s": 1}
	p := rollout.Next(noon, fleet.Rollout{State: fleet.RolloutRunning, Spec: fleet.Spec{PerSite: 1}}, s.units, v)
	if devices(p.Offer) != "d3" {
		t.Errorf("offered to %q", devices(p.Offer))
	}
}

// TestOfferThatCameTooLate: who was called back before the offer had reached it, or was away for as long as it lived,
// refuses it as expired; that is no bad end, and it is tried again.
func TestOfferThatCameTooLate(t *testing.T) {
	s := stage(many(18, "SUCCEEDED") + "REJECTED%expired FAILED%expired QUEUED")
	p := rollout.Next(noon, fleet.Rollout{State: fleet.RolloutRunning, Spec: fleet.Spec{Gate: fleet.Gate{BadCap: 1}}}, s.units, s.view())
	if p.To != fleet.RolloutRunning || devices(p.Retry) != "d19 d20" || devices(p.Offer) != "d21" {
		t.Errorf("it is %s (%s), tried again %q, offered to %q", p.To, p.Reason, devices(p.Retry), devices(p.Offer))
	}
}

// TestBadAfterTheEnd: a rollout that is complete and does badly with the late ones stops bringing it to more of them,
// though there is no other model to go on with.
func TestBadAfterTheEnd(t *testing.T) {
	s := stage(many(18, "SUCCEEDED") + many(2, "ROLLED_BACK") + "QUEUED")
	ro := fleet.Rollout{State: fleet.RolloutCompleted, Spec: fleet.Spec{Joiners: true}, Waves: []fleet.WaveStatus{{State: fleet.WavePassed}}}
	p := rollout.Next(noon, ro, s.units, s.view())
	if p.To != fleet.RolloutCompleted || devices(p.Offer) != "" || holds(p.Holds) != "m" {
		t.Errorf("it is %s, offered to %q, held %q", p.To, devices(p.Offer), holds(p.Holds))
	}
}

// TestHealthIsForgiven: who goes on in spite of what printers say, or lets a model in again, is not stopped once more by
// the same; what comes after it counts.
func TestHealthIsForgiven(t *testing.T) {
	sick := fleet.Health{Updated: fleet.Faults{Devices: 10, Hours: 10, Peripheral: 80}, Control: fleet.Faults{Devices: 90, Hours: 90, Peripheral: 9}}
	s := stage("SUCCEEDED/a QUEUED/a QUEUED/b")
	for name, c := range map[string]struct {
		ro     fleet.Rollout
		health map[string]fleet.Health
		from   time.Time

		offer, holds, to string
	}{
		"resumed":                      {ro: fleet.Rollout{Waves: []fleet.WaveStatus{{State: fleet.WaveFailed, StartedAt: noon.Add(-hour)}}}, health: map[string]fleet.Health{"": sick}, offer: "d2 d3", to: "RUNNING"},
		"resumed, a plan later":        {ro: fleet.Rollout{Waves: []fleet.WaveStatus{{State: fleet.WaveRunning, ForgivenAt: noon.Add(-time.Minute)}}}, health: map[string]fleet.Health{"": sick}, from: noon.Add(-hour), offer: "d2 d3", to: "RUNNING"},
		"resumed, and it goes on":      {ro: fleet.Rollout{Waves: []fleet.WaveStatus{{State: fleet.WaveRunning, ForgivenAt: noon.Add(-hour)}}}, health: map[string]fleet.Health{"": sick}, from: noon.Add(-hour), to: "PAUSED"},
		"let in again":                 {ro: fleet.Rollout{Holds: []fleet.Hold{{Model: "a", ReleasedAt: noon.Add(-time.Minute)}}}, health: map[string]fleet.Health{"a": sick, "b": {}}, offer: "d2 d3", to: "RUNNING"},
		"let in again, and it goes on": {ro: fleet.Rollout{Holds: []fleet.Hold{{Model: "a", ReleasedAt: noon.Add(-hour)}}}, health: map[string]fleet.Health{"a": sick, "b": {}}, from: noon.Add(-hour), offer: "d3", holds: "a", to: "RUNNING"},
	} {
		c.ro.State = fleet.RolloutRunning
		v := s.view()
		v.Health, v.HealthFrom = c.health, c.from
		p := rollout.Next(noon, c.ro, s.units, v)
		if devices(p.Offer) != c.offer || holds(p.Holds) != c.holds || string(p.To) != c.to {
			t.Errorf("%s: it is %s (%s), offered to %q, held %q", name, p.To, p.Reason, devices(p.Offer), holds(p.Holds))
		}
	}
}

// TestNobodyIsThereYet: in the moments after the service began nobody is connected, which is not to say that everybody
// has been offered the release.
func TestNobodyIsThereYet(t *testing.T) {
	s := stage("QUEUED- QUEUED-")
	v := s.view()
	ro := fleet.Rollout{State: fleet.RolloutRunning}
	v.Began = noon.Add(-time.Minute)
	if p := rollout.Next(noon, ro, s.units, v); !p.Waves[0].OfferedAt.IsZero() || !p.Next.After(noon) {
		t.Errorf("just after it began: got %+v, next plan at %v", p.Waves[0], p.Next)
	}
	v.Began = noon.Add(-hour)
	if p := rollout.Next(noon, ro, s.units, v); p.Waves[0].OfferedAt.IsZero() {
		t.Errorf("an hour after: got %+v", p.Waves[0])
	}
}

// TestServiceWasAway: after days without the service everybody has been silent for long, and nobody is given up before
// he could come.
func TestServiceWasAway(t *testing.T) {
	s := stage("SUCCEEDED QUEUED~ QUEUED~ OFFERED~")
	ro := fleet.Rollout{State: fleet.RolloutRunning, Waves: []fleet.WaveStatus{{State: fleet.WaveRunning, StartedAt: noon.Add(-90 * hour)}}}
	v := s.view()
	v.Began = noon.Add(-time.Minute)
	p := rollout.Next(noon, ro, s.units, v)
	if p.To != fleet.RolloutRunning || len(p.Moves) > 0 || !p.Next.After(noon) || p.Next.After(noon.Add(hour)) {
		t.Errorf("just after it began: it is %s, moved %q, next plan at %v", p.To, moves(p.Moves), p.Next)
	}
	s.units = s.units[1:] // nobody has it
	if p = rollout.Next(noon, ro, s.units, v); p.To != fleet.RolloutRunning {
		t.Errorf("and nobody has it: it is %s (%s)", p.To, p.Reason)
	}
	v.Began = noon.Add(-hour)
	if p = rollout.Next(noon, ro, s.units, v); p.To != fleet.RolloutPaused {
		t.Errorf("an hour after: it is %s", p.To)
	}
}
