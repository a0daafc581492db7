package store_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/simulator/postgres"
)

func kinds(t testing.TB, s *store.Store) map[string]int {
	t.Helper()
	trail, _, err := s.AuditTrail(t.Context(), "main", "", false, fleet.Page{Limit: 1000})
	must(t, err)
	n := map[string]int{}
	for _, ev := range trail {
		n[ev.Kind+" "+ev.Severity]++
	}
	return n
}

// TestReconcile: what a device runs settles what it did not report.
func TestReconcile(t *testing.T) {
	for name, c := range map[string]struct {
		state   fleet.ExecutionState
		rollout fleet.RolloutState
		runs    fleet.Installed
		work    bool // it says that it works on it
		want    fleet.ExecutionState
	}{
		"its end was lost":                 {fleet.ExecChecking, "", fleet.Installed{Component: "agent", Version: "1.0.0"}, false, fleet.ExecSucceeded},
		"it came back too late":            {fleet.ExecTimedOut, "", fleet.Installed{Component: "agent", Version: "1.0.0"}, false, fleet.ExecSucceeded},
		"it was too far to be called back": {fleet.ExecCanceled, fleet.RolloutAborting, fleet.Installed{Component: "agent", Version: "1.0.0"}, false, fleet.ExecSucceeded},
		"a rollout that is history":        {fleet.ExecCanceled, fleet.RolloutAborted, fleet.Installed{Component: "agent", Version: "1.0.0"}, false, fleet.ExecCanceled},
		"from a stick":                     {fleet.ExecQueued, "", fleet.Installed{Component: "agent", Version: "1.0.0"}, false, fleet.ExecAlready},
		"offered what it runs":             {fleet.ExecOffered, "", fleet.Installed{Component: "agent", Version: "1.0.0"}, false, fleet.ExecAlready},
		"it still looks at itself":         {fleet.ExecChecking, "", fleet.Installed{Component: "agent", Version: "1.0.0"}, true, fleet.ExecChecking},
		"on trial":                         {fleet.ExecRebooting, "", fleet.Installed{Component: "agent", Version: "1.0.0", Trial: true}, false, fleet.ExecRebooting},
		"the old one":                      {fleet.ExecInstalling, "", fleet.Installed{Component: "agent", Version: "0.9.0"}, false, fleet.ExecInstalling},
		"another component":                {fleet.ExecInstalling, "", fleet.Installed{Component: "os/vend-1/prod", Version: "1.0.0"}, false, fleet.ExecInstalling},
		"it failed and said so":            {fleet.ExecFailed, "", fleet.Installed{Component: "agent", Version: "1.0.0"}, false, fleet.ExecFailed},
	} {
		t.Run(name, func(t *testing.T) {
			s, ds := enrolled(t, 1)
			x := staged(t, s, "r1", "1.0.0", fleet.Spec{})[ds[0].ID]
			if c.state != fleet.ExecQueued {
				step(t, s, store.ExecutionStep{ID: x.ID, State: fleet.ExecOffered, Attempt: 1})
				step(t, s, store.ExecutionStep{ID: x.ID, State: c.state, Attempt: 1, Number: 3})
			}
			if c.rollout != "" {
				r, err := s.Rollout(t.Context(), "main", "r1")
				must(t, err)
				r.State = c.rollout
				_, err = s.SaveRollout(t.Context(), r, event("rollout.set"))
				must(t, err)
			}
			rep := &store.Report{Boot: [16]byte{1}, Seq: 1, Sent: noon, AgentVersion: "1.0.0", Installed: []fleet.Installed{c.runs}}
			if c.work {
				rep.Execution = x.ID
			}
			out := says(t, s, ds[0].ID, noon, store.Intake{Report: rep})
			got := members(t, s, "r1")[ds[0].ID]
			if got.State != c.want {
				t.Errorf("got %s, want %s", got.State, c.want)
			}
			if moved := c.state != c.want; moved != (len(out.Reconciled) == 1) || moved && (got.Reason != "reconciled" || kinds(t, s)["update.reconciled info"] != 1) {
				t.Errorf("got outcome %+v, reason %q and trail %v", out, got.Reason, kinds(t, s))
			}
		})
	}
}

// TestDoubt: a device that was said to run a release and runs something older is one alarm.
func TestDoubt(t *testing.T) {
	s, ds := enrolled(t, 2)
	us := staged(t, s, "r1", "1.10.0", fleet.Spec{})
	seq := uint64(0)
	runs := func(n int, version string, after time.Duration) int {
		t.Helper()
		seq++
		says(t, s, ds[n].ID, noon.Add(after), store.Intake{Report: &store.Report{
			Boot: [16]byte{1}, Seq: seq, Sent: noon, AgentVersion: version, Slot: "a", Installed: []fleet.Installed{{Component: "agent", Version: version, Slot: "a"}},
		}})
		return kinds(t, s)["update.truth alarm"]
	}
	for _, d := range ds[:2] {
		step(t, s, store.ExecutionStep{ID: us[d.ID].ID, State: fleet.ExecOffered, Attempt: 1})
		step(t, s, store.ExecutionStep{ID: us[d.ID].ID, State: fleet.ExecSucceeded, Attempt: 1, Number: 9})
	}
	if n := runs(0, "1.9.0", time.Minute); n != 0 {
		t.Errorf("a report that was under way: got %d alarms", n)
	}
	if n := runs(1, "1.10.0", time.Hour); n != 0 {
		t.Errorf("it runs what it said: got %d alarms", n)
	}
	if n := runs(1, "1.11.0", time.Hour); n != 0 {
		t.Errorf("it runs something newer, from a stick: got %d alarms", n)
	}
	for range 2 {
		if n := runs(0, "1.9.0", time.Hour); n != 1 {
			t.Errorf("it never got it: got %d alarms, want one", n)
		}
	}
	if n := runs(1, "1.9.0", 2*time.Hour); n != 2 {
		t.Errorf("it fell back later: got %d alarms, want a second", n)
	}
}

// TestTruthTakesBack: what was said to have ended well and did not counts as bad where ends are judged, is brought once
// more where late devices are, and stays in what is history.
func TestTruthTakesBack(t *testing.T) {
	for _, c := range []struct {
		rollout fleet.RolloutState
		joiners bool
		want    fleet.ExecutionState
	}{
		{fleet.RolloutRunning, false, fleet.ExecRolledBack},
		{fleet.RolloutPaused, true, fleet.ExecRolledBack},
		{fleet.RolloutCompleted, true, fleet.ExecQueued},
		{fleet.RolloutCompleted, false, fleet.ExecSucceeded},
		{fleet.RolloutAborted, true, fleet.ExecSucceeded},
	} {
		s, ds := enrolled(t, 1)
		id := ds[0].ID
		x := staged(t, s, "r1", "1.10.0", fleet.Spec{Joiners: c.joiners})[id]
		succeed := func(attempt int) {
			t.Helper()
			step(t, s, store.ExecutionStep{ID: x.ID, State: fleet.ExecOffered, Attempt: attempt})
			step(t, s, store.ExecutionStep{ID: x.ID, State: fleet.ExecSucceeded, Attempt: attempt, Number: 9})
		}
		succeed(1)
		r, err := s.Rollout(t.Context(), "main", "r1")
		must(t, err)
		r.State = c.rollout
		_, err = s.SaveRollout(t.Context(), r, event("rollout.set"))
		must(t, err)
		seq := uint64(0)
		found := func(after time.Duration) fleet.Unit {
			t.Helper()
			seq++
			says(t, s, id, noon.Add(after), store.Intake{Report: &store.Report{
				Boot: [16]byte{1}, Seq: seq, Sent: noon, AgentVersion: "1.9.0", Installed: []fleet.Installed{{Component: "agent", Version: "1.9.0"}},
			}})
			return members(t, s, "r1")[id]
		}
		if e := found(time.Hour); e.State != c.want {
			t.Errorf("%s, joiners %v: it is %s (%s), want %s", c.rollout, c.joiners, e.State, e.Reason, c.want)
		}
		if c.want != fleet.ExecQueued {
			continue
		}
		succeed(2)
		if e := found(2 * time.Hour); e.State != fleet.ExecSucceeded { // a box that falls back each time is not flashed for ever
			t.Errorf("again: it is %s", e.State)
		}
	}
}

// TestHealth sets what befalls updated devices against what befalls the others in the same slots.
func TestHealth(t *testing.T) { synctest.Test(t, testHealth) }

func testHealth(t *testing.T) {
	time.Sleep(5 * time.Minute) // of the bubble: into the middle of a slot
	s, now := open(t, postgres.Place(t)), time.Now()
	var ds []fleet.Device
	for n := range 4 {
		d := device("main", n+1)
		d.EnrolledAt = now.AddDate(0, 0, -10)
		must(t, s.Enrol(t.Context(), d))
		ds = append(ds, d)
	}
	us := staged(t, s, "r1", "1.0.0", fleet.Spec{})
	r, err := s.Rollout(t.Context(), "main", "r1")
	must(t, err)
	r.StartedAt = now.Add(-5 * time.Hour)
	_, err = s.SaveRollout(t.Context(), r, event("rollout.set"))
	must(t, err)

	updated := now.Add(-3 * time.Hour)
	move := func(st store.ExecutionStep) {
		t.Helper()
		if _, err := s.MoveExecution(t.Context(), st, updated); err != nil {
			t.Fatal(err)
		}
	}
	move(store.ExecutionStep{ID: us[ds[0].ID].ID, State: fleet.ExecOffered, Attempt: 1})
	move(store.ExecutionStep{ID: us[ds[0].ID].ID, State: fleet.ExecSucceeded, Attempt: 1, Number: 1})
	come := func(n int, ago time.Duration) { must(t, s.SetPresence(t.Context(), ds[n].ID, true, now.Add(-ago))) }
	come(0, 3*time.Hour) // brought about by the update
	come(0, 2*time.Hour)
	come(0, time.Hour)
	come(1, 4*time.Hour) // before anybody was updated: no comparison
	come(1, 2*time.Hour)
	come(2, 2*time.Hour)
	come(2, 90*time.Second)
	come(3, 4*time.Hour)
	must(t, s.SetPresence(t.Context(), ds[3].ID, false, now.Add(-4*time.Hour))) // silent since
	says(t, s, ds[0].ID, now.Add(-time.Hour), store.Intake{Audit: []fleet.AuditEvent{
		{Seq: 1, At: now.Add(-time.Hour), Kind: "peripheral.fault", Hash: [32]byte{1}}, {Seq: 2, At: now.Add(-30 * time.Hour), Kind: "peripheral.fault", Hash: [32]byte{2}, Prev: [32]byte{1}},
	}})
	crashed := func(n int, ago time.Duration, crashes uint64) {
		says(t, s, ds[n].ID, now.Add(-ago), store.Intake{Report: &store.Report{Boot: [16]byte{byte(crashes + 1)}, Seq: 1, Sent: now.Add(-ago), AgentVersion: "1", Crashes: crashes}})
	}
	crashed(0, time.Hour, 7) // all of its life
	crashed(0, 50*time.Minute, 9)

	h, err := s.RolloutHealth(t.Context(), "r1")
	must(t, err)
	got := h["vend-1"]
	if got != h[""] || len(h) != 2 {
		t.Errorf("one model: got %+v", h)
	}
	if u := got.Updated; u.Devices != 1 || u.Hours < 2.5 || u.Hours > 3 || u.Reconnects != 2 || u.Peripheral != 1 || u.Crashes != 2 {
		t.Errorf("updated: got %+v, want about 3 hours, 2 reconnects, 1 fault and 2 crashes", u)
	}
	// Two were there all the time, each came back once in a slot with an updated one; the third was silent.
	if c := got.Control; c.Devices != 3 || c.Hours < 5 || c.Hours > 6 || c.Reconnects != 2 || c.Peripheral != 0 || c.Crashes != 0 {
		t.Errorf("control: got %+v, want about 6 hours and 2 reconnects", c)
	}
	// Since somebody said that it may go on, an hour and a half ago, there is less of everything.
	h, err = s.RolloutHealthSince(t.Context(), "r1", now.Add(-90*time.Minute))
	must(t, err)
	if u, c := h[""].Updated, h[""].Control; u.Hours < 1 || u.Hours > 1.5 || u.Reconnects != 1 || u.Crashes != 2 || c.Hours < 2 || c.Hours > 3 {
		t.Errorf("since then: got %+v and %+v", u, c)
	}
	h, err = s.RolloutHealthSince(t.Context(), "r1", now)
	must(t, err)
	if u := h[""].Updated; u.Hours != 0 || u.Reconnects != 0 {
		t.Errorf("from now on: got %+v", u)
	}
}
