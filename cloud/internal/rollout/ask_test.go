package rollout_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/rollout"
)

// TestWhy asks of one device in each plight.
func TestWhy(t *testing.T) {
	for _, c := range []struct {
		units, device string
		ro            fleet.Rollout
		view          func(*rollout.View)
		reason, text  string // empty: nothing keeps it
	}{
		{units: "SUCCEEDED", device: "d1"},
		{units: "ALREADY_INSTALLED", device: "d1"},
		{units: "REMOVED", device: "d1"},
		{units: "QUEUED", device: "d9"},
		{units: "QUEUED", device: "d1", reason: "next", text: "about to be offered"},
		{units: "QUEUED", device: "d1", ro: fleet.Rollout{State: fleet.RolloutPaused, Reason: "lunch"}, reason: "rollout", text: "the rollout is paused: lunch"},
		{units: "QUEUED", device: "d1", ro: fleet.Rollout{State: fleet.RolloutAwaiting}, reason: "rollout", text: "somebody to approve"},
		{units: "QUEUED", device: "d1", ro: fleet.Rollout{State: fleet.RolloutCompleted}, reason: "rollout", text: "takes nobody any more"},
		{units: "QUEUED-", device: "d1", reason: "offline", text: "not connected"},
		{units: "QUEUED~", device: "d1", reason: "unreachable", text: "not heard of for 3 days"},
		{units: "QUEUED#", device: "d1", reason: "quarantined", text: "attestation"},
		{units: "QUEUED/x", device: "d1", view: func(v *rollout.View) { v.Release.Models = []string{"y", "z"} }, reason: "model", text: "the release is for y, z, and this is x"},
		{units: "QUEUED", device: "d1", view: func(v *rollout.View) { v.Release.Requires = map[string]string{"bootloader": "2.0.0"} }, reason: "requires", text: "requires bootloader 2.0.0"},
		{units: "QUEUED", device: "d1", view: func(v *rollout.View) { v.Release.Targets = []fleet.Target{{Length: 9 << 30}} }, reason: "space", text: "500 MiB are free and the release alone takes 9216"},
		{units: "QUEUED", device: "d1", view: func(v *rollout.View) { v.Busy = func(fleet.DeviceID) bool { return true } }, reason: "busy", text: "another rollout"},
		{units: "QUEUED@a", device: "d1", ro: fleet.Rollout{Spec: fleet.Spec{Deadline: time.Hour, Download: "sun 01:00-02:00"}}, reason: "window", text: "none of the site's hours lie within the next 1h0m0s"},
		{units: "QUEUED@a", device: "d1", view: func(v *rollout.View) { v.Sites = map[string]fleet.Site{"a": {Zone: "Mars/Olympus"}} }, reason: "window", text: "Mars/Olympus"},
		{units: "QUEUED=0 QUEUED=0 QUEUED=0", device: "d3", ro: fleet.Rollout{Spec: fleet.Spec{Waves: two}}, reason: "wave", text: "its wave, rest, begins when wave canary has passed"},
		{units: "SUCCEEDED SUCCEEDED QUEUED=2", device: "d3", ro: fleet.Rollout{Spec: fleet.Spec{Waves: two}}, reason: "wave", text: "watched until 2026-11-24 13:00 UTC"},
		{units: "DOWNLOADING@s QUEUED@s", device: "d2", ro: fleet.Rollout{Spec: fleet.Spec{PerSite: 1}}, reason: "site", text: "1 of its site are under way"},
		{units: "DOWNLOADING QUEUED", device: "d2", ro: fleet.Rollout{Spec: fleet.Spec{InFlight: 1}}, reason: "in-flight", text: "1 devices are under way, at most 1"},
		{units: many(2, "DOWNLOADING/x") + "QUEUED/x", device: "d3", ro: fleet.Rollout{Spec: fleet.Spec{Gate: fleet.Gate{MinSample: 1}}}, reason: "model-unproved", text: "how model x takes the release; 2 of it"},
		{units: "DOWNLOADING> QUEUED", device: "d2", ro: fleet.Rollout{Spec: fleet.Spec{Rate: fleet.Rate{Base: 1}}}, reason: "rate", text: "1 were offered the release within 1m0s"},
		{units: "QUEUED/x", device: "d1", ro: fleet.Rollout{Holds: []fleet.Hold{{Model: "x", Reason: "it smokes", Since: noon}}}, reason: "held", text: "it smokes"},
		{units: "OFFERED", device: "d1", reason: "offered", text: "has not said anything yet"},
		{units: "WAITING%idle_lock", device: "d1", reason: "idle-lock", text: "the POS application to let go"},
		{units: "WAITING%window_install", device: "d1", ro: fleet.Rollout{State: fleet.RolloutPaused}, reason: "window-install", text: "everything is fetched"},
		{units: "WAITING%power-", device: "d1", reason: "power", text: "not connected now"},
		{units: "DOWNLOADING", device: "d1", reason: "downloading", text: "25 % of 4.0 MiB"},
		{units: "CHECKING", device: "d1", reason: "installing", text: "CHECKING"},
		{units: "ROLLED_BACK%unproven", device: "d1", reason: "unproven", text: "attempt 1 ended ROLLED_BACK (unproven); it is not tried again"},
		{units: "FAILED%storage SUCCEEDED", device: "d1", reason: "storage", text: "it is tried again in 9m"},
		{units: "CHECKING! SUCCEEDED", device: "d1", reason: "deadline", text: "ended TIMED_OUT (deadline)"},
	} {
		s := stage(c.units)
		for i := range s.units {
			s.units[i].FreeMiB, s.units[i].Done, s.units[i].Total = 500, 1<<20, 4<<20
		}
		if c.ro.State == "" {
			c.ro.State = fleet.RolloutRunning
		}
		c.ro.ID = "ro-7"
		v := s.view()
		if c.view != nil {
			c.view(&v)
		}
		got := rollout.Why(noon, c.ro, s.units, v, fleet.DeviceID(c.device))
		switch {
		case c.reason == "" && len(got) > 0:
			t.Errorf("%s of %s: got %+v, want nothing", c.device, c.units, got)
		case c.reason != "" && (len(got) != 1 || got[0].Reason != c.reason || !strings.Contains(got[0].Text, c.text) || got[0].Rollout != "ro-7"):
			t.Errorf("%s of %s: got %+v, want %s: %s", c.device, c.units, got, c.reason, c.text)
		case c.reason != "" && got[0].Since.IsZero():
			t.Errorf("%s of %s: since when is not said", c.device, c.units)
		}
	}
}

func TestPreview(t *testing.T) {
	s := stage("QUEUED=0@a QUEUED=0@a QUEUED=0-@a QUEUED=0~@b QUEUED=0#@b QUEUED=0/x@b QUEUED=0@c QUEUED=0@c QUEUED=0@c " + many(1200, "QUEUED=0@b"))
	for i := range s.units {
		s.units[i].FreeMiB = 500
	}
	s.units[7].FreeMiB, s.units[8].Installed = 3, map[string]string{"agent": "1.2.3"}
	v := s.view()
	v.Release.Models, v.Release.Targets = []string{"m"}, []fleet.Target{{Path: "boot/m/agent_1.2.3.json", Length: 1}, {Path: "agent/1.2.3/a", Length: 40 << 20}}
	v.Sites = map[string]fleet.Site{"a": {Name: "a", Zone: "America/New_York", Install: "22:00-05:00", Download: "00:00-24:00"}, "c": {Name: "c", Download: "22:00-05:00"}}
	p := rollout.Preview(noon, fleet.Rollout{Spec: fleet.Spec{Waves: []fleet.Wave{{Name: "list", Filter: fleet.Filter{Devices: []fleet.DeviceID{"d1", "d7"}}}, {Name: "tenth", Percent: 10}, {Name: "rest"}}}}, s.units, v)
	if want := "reaches 1,209 devices in 3 sites; 1 run it already; 6 blocked: 2 offline, 1 model, 1 quarantined, 1 space, 1 window"; p.Text != want {
		t.Errorf("got %s, want %s", p.Text, want)
	}
	if got := fmt.Sprint(p.Waves); got != "[{list 2} {tenth 119} {rest 1088}]" { // of all, with those of the list
		t.Errorf("got waves %s", got)
	}
	for _, b := range p.Blocked {
		if b.Text == "" {
			t.Errorf("%s: nobody says what would help", b.Reason)
		}
	}
	if p := rollout.Preview(noon, fleet.Rollout{}, nil, v); p.Text != "reaches 0 devices in 0 sites" || len(p.Waves) != 1 {
		t.Errorf("got %+v of nobody", p)
	}
}

// TestWavesAreStable: the same devices are in the same waves whenever it is asked, and another rollout has others.
func TestWavesAreStable(t *testing.T) {
	s := stage(many(400, "QUEUED=0"))
	picked := func(id fleet.RolloutID, units []fleet.Unit) string {
		p := rollout.Next(noon, fleet.Rollout{ID: id, State: fleet.RolloutRunning, Spec: fleet.Spec{Waves: []fleet.Wave{{Name: "a", Percent: 5}, {Name: "b", Percent: 50}, {Name: "c"}}}}, units, s.view())
		var in [3]int
		var first []string
		for i, u := range units {
			w := p.Assign[i]
			if in[w]++; w == 0 {
				first = append(first, string(u.Device))
			}
		}
		if in != [3]int{20, 180, 200} {
			t.Errorf("got %v", in)
		}
		return strings.Join(first, " ")
	}
	a := picked("ro-1", s.units)
	if b := picked("ro-1", s.units); a != b {
		t.Errorf("got %s, then %s", a, b)
	}
	if b := picked("ro-2", s.units); a == b {
		t.Error("two rollouts try it on the same devices")
	}
}

func TestCheck(t *testing.T) {
	wave := func(w ...fleet.Wave) fleet.Spec { return fleet.Spec{Waves: w} }
	for name, s := range map[string]fleet.Spec{
		"hours":            {Download: "at night"},
		"other hours":      {Install: "22:00-22:00"},
		"a wave unnamed":   wave(fleet.Wave{Percent: 10}),
		"a name twice":     wave(fleet.Wave{Name: "a"}, fleet.Wave{Name: "a"}),
		"a share":          wave(fleet.Wave{Name: "a", Percent: 101}),
		"a negative share": wave(fleet.Wave{Name: "a", Percent: -1}),
		"a soak":           wave(fleet.Wave{Name: "a", Soak: -1}),
		"a wave's gate":    wave(fleet.Wave{Name: "a", Gate: fleet.Gate{Bad: 101}}),
		"a gate":           {Gate: fleet.Gate{Success: 101}},
		"a sample":         {Gate: fleet.Gate{MinSample: -1}},
		"a cap":            {Gate: fleet.Gate{BadCap: -1}},
		"a step":           {Steps: map[fleet.ExecutionState]time.Duration{"DANCING": 1}},
		"an end":           {Steps: map[fleet.ExecutionState]time.Duration{fleet.ExecSucceeded: 1}},
		"a rate":           {Rate: fleet.Rate{Base: -1}},
		"a factor":         {Rate: fleet.Rate{Base: 1, Factor: 0.5}},
		"a rate of none":   {Rate: fleet.Rate{Factor: 2}},
		"lanes":            {PerSite: -1},
		"in flight":        {InFlight: -1},
		"a deadline":       {Deadline: -1},
		"attempts":         {Attempts: -1},
		"unreachable":      {Unreachable: -1},
		"a rate per till":  {RateKiB: -1},
	} {
		if err := rollout.Check(s); !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("%s: got %v, want a refusal", name, err)
		}
	}
	if err := rollout.Check(fleet.Spec{
		Waves: two, Download: "mon-fri 22:00-05:00, sun 00:00-24:00", Steps: fleet.DefaultSteps(), Rate: fleet.Rate{Base: 50, Factor: 2, Every: 1000, Max: 400},
		Gate: fleet.Gate{Success: -1, Bad: -1, SiteBad: -1, Health: -1},
	}); err != nil {
		t.Error(err)
	}
}
