package store_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/simulator/postgres"
)

// staged adds release component/version, a running rollout of it, and its executions by device.
func staged(t testing.TB, s *store.Store, id fleet.RolloutID, version string, spec fleet.Spec) map[fleet.DeviceID]fleet.Unit {
	t.Helper()
	release := fleet.ReleaseID("agent/" + version)
	if _, err := s.Release(t.Context(), release); err != nil {
		must(t, s.AddRelease(t.Context(), fleet.Release{ID: release, Component: "agent", Class: "agent", Version: version}, event("release.add")))
	}
	must(t, s.AddRollout(t.Context(), fleet.Rollout{ID: id, Tenant: "main", Release: release, State: fleet.RolloutRunning, CreatedAt: noon, StartedAt: noon, Spec: spec}, event("rollout.add")))
	_, err := s.Enlist(t.Context(), id)
	must(t, err)
	return members(t, s, id)
}

func members(t testing.TB, s *store.Store, id fleet.RolloutID) map[fleet.DeviceID]fleet.Unit {
	t.Helper()
	us, _, err := s.Units(t.Context(), id, 0)
	must(t, err)
	by := map[fleet.DeviceID]fleet.Unit{}
	for _, u := range us {
		by[u.Device] = u
	}
	return by
}

func step(t testing.TB, s *store.Store, st store.ExecutionStep) *fleet.Execution {
	t.Helper()
	e, err := s.MoveExecution(t.Context(), st, noon)
	must(t, err)
	return e
}

// says commits what a device reports.
func says(t testing.TB, s *store.Store, device fleet.DeviceID, when time.Time, in store.Intake) store.Outcome {
	t.Helper()
	in.Device, in.Tenant, in.At = device, "main", when
	out, err := s.Commit(t.Context(), []store.Intake{in})
	must(t, err)
	return out[0]
}

// TestAttempts: an execution fails, is tried again, and what is still heard of the first attempt moves nothing.
func TestAttempts(t *testing.T) {
	s, ds := enrolled(t, 1)
	x := staged(t, s, "r1", "1.0.0", fleet.Spec{})[ds[0].ID]
	if x.Attempt != 0 || x.Wave != -1 || x.Version != 1 {
		t.Fatalf("enlisted: got %+v", x)
	}
	offer := func(n int) *fleet.Execution {
		return step(t, s, store.ExecutionStep{ID: x.ID, State: fleet.ExecOffered, Attempt: n, To: "1.0.0"})
	}
	report := func(attempt int, n uint32, state fleet.ExecutionState) *fleet.Execution {
		st := store.ExecutionStep{ID: x.ID, State: state, Reason: "storage", Attempt: attempt, Number: n, Done: uint64(n), Total: 100, Bytes: fleet.Bytes{Wire: uint64(n), Reused: 50}}
		return says(t, s, ds[0].ID, noon.Add(time.Duration(n)*time.Minute), store.Intake{Step: &st}).Execution
	}
	if e := offer(1); e == nil || e.Attempt != 1 || e.OfferedAt.IsZero() || e.Version != 2 {
		t.Fatalf("offered: got %+v", e)
	}
	report(1, 1, fleet.ExecDownloading)
	if e := report(1, 2, fleet.ExecWaiting); e == nil || e.State != fleet.ExecWaiting || e.Done != 2 {
		t.Errorf("waits in the middle of a download: got %+v", e)
	}
	if e := report(1, 2, fleet.ExecWaiting); e != nil {
		t.Errorf("said twice: got %+v", e)
	}
	if e := report(1, 4, fleet.ExecFailed); e == nil || !e.EnteredAt.Equal(noon.Add(4*time.Minute)) || e.Bytes != (fleet.Bytes{Wire: 4, Reused: 50}) {
		t.Fatalf("failed: got %+v", e)
	}
	if e := report(1, 3, fleet.ExecStaged); e != nil {
		t.Errorf("overtaken: got %+v", e)
	}

	failed := members(t, s, "r1")[ds[0].ID]
	wantErr(t, "retry of what has changed", s.RetryExecution(t.Context(), x.ID, failed.Version-1, noon), fleet.ErrConflict)
	must(t, s.RetryExecution(t.Context(), x.ID, failed.Version, noon.Add(time.Hour)))
	wantErr(t, "retry of what is queued", s.RetryExecution(t.Context(), x.ID, failed.Version+1, noon), fleet.ErrConflict)
	if e := report(1, 4, fleet.ExecFailed); e != nil {
		t.Errorf("the end of the first attempt came again: got %+v", e)
	}
	if e := members(t, s, "r1")[ds[0].ID]; e.State != fleet.ExecQueued || e.Attempt != 1 || !e.OfferedAt.IsZero() || !strings.Contains(e.Text, "attempt 1 ended FAILED: storage") {
		t.Errorf("queued again: got %+v", e)
	}
	// The device is faster than our note that it was offered.
	if e := report(2, 1, fleet.ExecDownloading); e == nil || e.Attempt != 2 || e.Step != 1 || e.OfferedAt.IsZero() {
		t.Errorf("second attempt: got %+v", e)
	}
	if e := offer(2); e != nil {
		t.Errorf("offered after it began: got %+v", e)
	}
	if e := report(1, 9, fleet.ExecSucceeded); e != nil {
		t.Errorf("of the first attempt: got %+v", e)
	}
	if e := report(3, 9, fleet.ExecSucceeded); e != nil {
		t.Errorf("of an attempt that nobody offered: got %+v", e)
	}
	seen := members(t, s, "r1")[ds[0].ID].Version
	if e := report(2, 2, fleet.ExecChecking); e == nil {
		t.Error("checking: got nothing")
	}
	late := store.ExecutionStep{ID: x.ID, State: fleet.ExecTimedOut, Reason: "timeout", Version: seen}
	if e := step(t, s, late); e != nil {
		t.Errorf("timed out on old news: got %+v", e)
	}
	late.Version++
	if e := step(t, s, late); e == nil || e.State != fleet.ExecTimedOut {
		t.Errorf("timed out: got %+v", e)
	}
	if e := report(2, 3, fleet.ExecSucceeded); e == nil || e.State != fleet.ExecSucceeded {
		t.Errorf("the truth after a time-out: got %+v", e)
	}
	if _, err := s.RetryRollout(t.Context(), "main", "r1", "", event("rollout.retry")); err == nil {
		t.Error("retry of what went well: got no error")
	}
}

func TestRetryRollout(t *testing.T) {
	s, ds := enrolled(t, 4)
	us := staged(t, s, "r1", "1.0.0", fleet.Spec{})
	for n, end := range []fleet.ExecutionState{fleet.ExecFailed, fleet.ExecTimedOut, fleet.ExecRolledBack, fleet.ExecRejected} {
		step(t, s, store.ExecutionStep{ID: us[ds[n].ID].ID, State: fleet.ExecOffered, Attempt: 1})
		step(t, s, store.ExecutionStep{ID: us[ds[n].ID].ID, State: end, Reason: map[bool]string{true: "expired", false: "storage"}[end == fleet.ExecRejected], Attempt: 1, Number: 2})
	}
	if n, err := s.RetryRollout(t.Context(), "main", "r1", ds[0].ID, event("rollout.retry")); n != 1 || err != nil {
		t.Errorf("one device: got %d, %v", n, err)
	}
	if n, err := s.RetryRollout(t.Context(), "main", "r1", "", event("rollout.retry")); n != 2 || err != nil {
		t.Errorf("the rest: got %d, %v, want the one that timed out and the one whose offer came too late", n, err)
	}
	if e := members(t, s, "r1")[ds[2].ID]; e.State != fleet.ExecRolledBack {
		t.Errorf("what did not prove itself: got %s, want it left", e.State)
	}
}

// TestRetryOfWhatHasEnded: nothing is queued where nobody sees to it any more, by whoever was slow.
func TestRetryOfWhatHasEnded(t *testing.T) {
	for _, end := range []fleet.RolloutState{fleet.RolloutAborting, fleet.RolloutAborted, fleet.RolloutCompleted, fleet.RolloutSuperseded} {
		s, ds := enrolled(t, 1)
		x := staged(t, s, "r1", "1.0.0", fleet.Spec{})[ds[0].ID]
		step(t, s, store.ExecutionStep{ID: x.ID, State: fleet.ExecOffered, Attempt: 1})
		step(t, s, store.ExecutionStep{ID: x.ID, State: fleet.ExecFailed, Attempt: 1, Number: 2})
		r, err := s.Rollout(t.Context(), "main", "r1")
		must(t, err)
		r.State = end
		_, err = s.SaveRollout(t.Context(), r, event("rollout.set"))
		must(t, err)
		_, err = s.RetryRollout(t.Context(), "main", "r1", "", event("rollout.retry"))
		wantErr(t, string(end)+", an operator", err, fleet.ErrConflict)
		wantErr(t, string(end)+", the loop", s.RetryExecution(t.Context(), x.ID, members(t, s, "r1")[ds[0].ID].Version, noon), fleet.ErrConflict)
	}
}

// TestNeverAStaleOne: a late device is not brought what was complete before the newest one, though that takes no joiners.
func TestNeverAStaleOne(t *testing.T) {
	s, ds := enrolled(t, 2)
	complete := func(id fleet.RolloutID) {
		t.Helper()
		r, err := s.Rollout(t.Context(), "main", id)
		must(t, err)
		r.State = fleet.RolloutCompleted
		_, err = s.SaveRollout(t.Context(), r, event("rollout.completed"))
		must(t, err)
	}
	running := func() (ids []fleet.RolloutID) {
		t.Helper()
		rs, err := s.RunningRollouts(t.Context())
		must(t, err)
		for _, r := range rs {
			ids = append(ids, r.ID)
		}
		return ids
	}
	old := staged(t, s, "old", "1.0.0", fleet.Spec{Joiners: true})
	step(t, s, store.ExecutionStep{ID: old[ds[0].ID].ID, State: fleet.ExecAlready})
	complete("old")
	if got := running(); !slices.Equal(got, []fleet.RolloutID{"old"}) {
		t.Errorf("one is complete: got %v", got)
	}
	for _, u := range staged(t, s, "new", "1.1.0", fleet.Spec{}) {
		step(t, s, store.ExecutionStep{ID: u.ID, State: fleet.ExecAlready})
	}
	complete("new")
	if got := running(); !slices.Equal(got, []fleet.RolloutID{"old", "new"}) {
		t.Errorf("one device of the old is queued: got %v, want both, so that the loop ends it", got)
	}
	step(t, s, store.ExecutionStep{ID: old[ds[1].ID].ID, State: fleet.ExecCanceled})
	if got := running(); len(got) > 0 {
		t.Errorf("then: got %v", got)
	}
}

// TestMoveMany: a plan that ends many executions is written in few transactions, and passes over those that moved meanwhile.
func TestMoveMany(t *testing.T) {
	s, ds := enrolled(t, 3)
	us := staged(t, s, "r1", "1.0.0", fleet.Spec{})
	var steps []store.ExecutionStep
	for _, d := range ds {
		steps = append(steps, store.ExecutionStep{ID: us[d.ID].ID, State: fleet.ExecAlready, Reason: "installed", Version: us[d.ID].Version})
	}
	step(t, s, store.ExecutionStep{ID: us[ds[1].ID].ID, State: fleet.ExecOffered, Attempt: 1})
	if n, err := s.MoveExecutions(t.Context(), append(steps, store.ExecutionStep{ID: "nothing", State: fleet.ExecAlready}), noon); n != 2 || err != nil {
		t.Errorf("got %d, %v, want two", n, err)
	}
	if n, err := s.Counts(t.Context(), "r1"); err != nil || n[fleet.ExecAlready] != 2 || n[fleet.ExecOffered] != 1 {
		t.Errorf("got %v, %v", n, err)
	}
	if n, err := s.MoveExecutions(t.Context(), nil, noon); n != 0 || err != nil {
		t.Errorf("none: got %d, %v", n, err)
	}
}

// TestSaveRollout: of two who change a rollout that they read at the same time, one is told so.
func TestSaveRollout(t *testing.T) {
	s, ds := enrolled(t, 2)
	us := staged(t, s, "r1", "1.0.0", fleet.Spec{PerSite: 1})
	step(t, s, store.ExecutionStep{ID: us[ds[0].ID].ID, State: fleet.ExecOffered, Attempt: 1})
	a, err := s.Rollout(t.Context(), "main", "r1")
	must(t, err)
	b := a
	a.Waves = []fleet.WaveStatus{{State: fleet.WaveRunning, StartedAt: noon}}
	a.Holds = []fleet.Hold{{Model: "vend-9", Reason: "3 of 20 ended badly", Since: noon}}
	a.State, a.Reason, a.Auto = fleet.RolloutPaused, "a gate", true
	got, err := s.SaveRollout(t.Context(), a, event("rollout.paused"))
	if err != nil || got.Version != a.Version+1 || !got.Auto || got.Spec.PerSite != 1 || len(got.Waves) != 1 || !got.Waves[0].StartedAt.Equal(noon) || got.Holds[0].Model != "vend-9" {
		t.Fatalf("saved: got %+v, %v", got, err)
	}
	b.State = fleet.RolloutCompleted
	_, err = s.SaveRollout(t.Context(), b, event("rollout.completed"))
	wantErr(t, "on old news", err, fleet.ErrConflict)
	got.Tenant = "other"
	_, err = s.SaveRollout(t.Context(), got, event("rollout.completed"))
	wantErr(t, "of another tenant", err, fleet.ErrNotFound)
	if now, err := s.Rollout(t.Context(), "main", "r1"); err != nil || now.State != fleet.RolloutPaused {
		t.Errorf("afterwards: got %+v, %v", now, err)
	}
	got.Tenant, got.State = "main", fleet.RolloutAborting
	_, err = s.SaveRollout(t.Context(), got, event("rollout.abort"))
	must(t, err)
	now := members(t, s, "r1")
	if q, o := now[ds[1].ID], now[ds[0].ID]; q.State != fleet.ExecCanceled || q.Reason != "aborted" || o.State != fleet.ExecOffered {
		t.Errorf("aborted: got %s %s and %s, want what was queued canceled and what was offered left", q.State, q.Reason, o.State)
	}
}

// TestEnlist takes in whom the filter picks, by each of its parts, and lets go whom it does not pick any more.
func TestEnlist(t *testing.T) {
	s, ds := enrolled(t, 4)
	ctx := t.Context()
	set := func(n int, site, group string) {
		t.Helper()
		must(t, s.SetDevice(ctx, "main", ds[n].ID, store.DevicePatch{Site: &site, Group: &group}, event("device.set")))
	}
	set(1, "paris", "rest")
	for name, c := range map[string]struct {
		f    fleet.Filter
		want int
	}{
		"all": {fleet.Filter{}, 4}, "group": {fleet.Filter{Group: "canary"}, 3}, "site": {fleet.Filter{Site: "paris"}, 1}, "model": {fleet.Filter{Model: "vend-1"}, 4},
		"no model": {fleet.Filter{Model: "vend-2"}, 0}, "a list": {fleet.Filter{Devices: []fleet.DeviceID{ds[0].ID, ds[1].ID, "nobody", "other-d01"}}, 2},
		"a list and a site": {fleet.Filter{Site: "paris", Devices: []fleet.DeviceID{ds[0].ID, ds[1].ID}}, 1},
	} {
		us, err := s.Reach(ctx, "main", c.f) // as it would be
		must(t, err)
		got := staged(t, s, fleet.RolloutID("r-"+name), "1.0.0", fleet.Spec{Filter: c.f})
		if len(got) != c.want || len(us) != c.want {
			t.Errorf("%s: got %d and before %d, want %d", name, len(got), len(us), c.want)
		}
		for _, u := range us {
			if x := got[u.Device]; u.ID != "" || u.State != x.State || u.Wave != x.Wave || u.Site != x.Site || u.Model != x.Model || u.Group != x.Group || !u.FirstSeen.Equal(x.FirstSeen) {
				t.Errorf("%s: got %+v, it was to be %+v", name, x, u)
			}
		}
	}

	us := staged(t, s, "r1", "1.0.0", fleet.Spec{Filter: fleet.Filter{Site: "paris"}, Joiners: true})
	set(2, "paris", "rest")
	set(3, "paris", "rest")
	if n, err := s.Enlist(ctx, "r1"); n != 2 || err != nil {
		t.Errorf("moved there: got %d, %v", n, err)
	}
	step(t, s, store.ExecutionStep{ID: us[ds[1].ID].ID, State: fleet.ExecOffered, Attempt: 1})
	set(1, "oslo", "rest")
	set(2, "oslo", "rest")
	if n, err := s.Enlist(ctx, "r1"); n != 0 || err != nil {
		t.Errorf("moved away: got %d, %v", n, err)
	}
	now := members(t, s, "r1")
	if now[ds[1].ID].State != fleet.ExecOffered || now[ds[2].ID].State != fleet.ExecRemoved || now[ds[3].ID].State != fleet.ExecQueued {
		t.Errorf("moved away: got %v", now)
	}
	set(2, "paris", "rest")
	if n, err := s.Enlist(ctx, "r1"); n != 1 || err != nil {
		t.Errorf("back again: got %d, %v", n, err)
	}
	if e := members(t, s, "r1")[ds[2].ID]; e.State != fleet.ExecQueued || e.ID != now[ds[2].ID].ID {
		t.Errorf("back again: got %+v", e)
	}

	// A rollout that is paused takes nobody in; a complete one with joiners does.
	r, err := s.Rollout(ctx, "main", "r1")
	must(t, err)
	r.State = fleet.RolloutPaused
	r, err = s.SaveRollout(ctx, r, event("rollout.pause"))
	must(t, err)
	must(t, s.Enrol(ctx, func() fleet.Device { d := device("main", 9); d.Site = "paris"; return d }()))
	if n, err := s.Enlist(ctx, "r1"); n != 0 || err != nil {
		t.Errorf("paused: got %d, %v", n, err)
	}
	r.State = fleet.RolloutCompleted
	_, err = s.SaveRollout(ctx, r, event("rollout.completed"))
	must(t, err)
	if n, err := s.Enlist(ctx, "r1"); n != 1 || err != nil {
		t.Errorf("complete, a joiner: got %d, %v", n, err)
	}
}

// TestRunningRollouts: what runs, rests or ends, and of what is complete the newest of each component and filter.
func TestRunningRollouts(t *testing.T) {
	s, _ := enrolled(t, 1)
	canary := fleet.Filter{Group: "canary"}
	for _, r := range []struct {
		id      fleet.RolloutID
		version string
		state   fleet.RolloutState
		filter  fleet.Filter
		joiners bool
	}{
		{"old", "1.0.0", fleet.RolloutCompleted, fleet.Filter{}, true},
		{"canary", "1.0.0", fleet.RolloutCompleted, canary, true},
		{"new", "1.1.0", fleet.RolloutCompleted, fleet.Filter{}, true},
		{"static", "1.2.0", fleet.RolloutCompleted, fleet.Filter{}, false},
		{"runs", "1.3.0", fleet.RolloutRunning, fleet.Filter{}, false},
		{"ends", "1.3.0", fleet.RolloutAborting, fleet.Filter{}, false},
		{"rests", "1.3.0", fleet.RolloutPaused, fleet.Filter{}, true},
		{"draft", "1.3.0", fleet.RolloutDraft, fleet.Filter{}, true},
	} {
		for _, u := range staged(t, s, r.id, r.version, fleet.Spec{Filter: r.filter, Joiners: r.joiners}) {
			_, err := s.MoveExecution(t.Context(), store.ExecutionStep{ID: u.ID, State: fleet.ExecOffered}, noon)
			must(t, err)
		}
		ro, err := s.Rollout(t.Context(), "main", r.id)
		must(t, err)
		ro.State = r.state
		_, err = s.SaveRollout(t.Context(), ro, event("rollout.set"))
		must(t, err)
	}
	look := func(want ...fleet.RolloutID) {
		t.Helper()
		rs, err := s.RunningRollouts(t.Context())
		must(t, err)
		var ids []fleet.RolloutID
		for _, r := range rs {
			ids = append(ids, r.ID)
		}
		if !slices.Equal(ids, want) {
			t.Errorf("got %v, want %v", ids, want)
		}
	}
	look("old", "canary", "new", "static", "runs", "ends", "rests")
	for _, id := range []fleet.RolloutID{"old", "canary", "new", "static", "runs"} { // nobody is at it any more
		us, _, err := s.Units(t.Context(), id, 0)
		must(t, err)
		for _, u := range us {
			_, err := s.MoveExecution(t.Context(), store.ExecutionStep{ID: u.ID, State: fleet.ExecCanceled}, noon)
			must(t, err)
		}
	}
	look("canary", "runs", "ends", "rests") // new is stale: static came after it, though it takes nobody
}

// TestUnits reads on from a cursor: what the executions did and what their devices did that matters, and nothing else.
func TestUnits(t *testing.T) {
	dir := postgres.Place(t)
	s := open(t, dir)
	for n := range 3 {
		must(t, s.Enrol(t.Context(), device("main", n+1)))
	}
	a, b := device("main", 1).ID, device("main", 2).ID
	us := staged(t, s, "r1", "1.0.0", fleet.Spec{})
	staged(t, s, "r2", "1.0.0", fleet.Spec{})
	_, cursor, err := s.Units(t.Context(), "r1", 0)
	must(t, err)
	changed := func(what string, want ...fleet.DeviceID) []fleet.Unit {
		t.Helper()
		news, to, err := s.Units(t.Context(), "r1", cursor)
		must(t, err)
		var got []fleet.DeviceID
		for _, u := range news {
			got = append(got, u.Device)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", what, got, want)
		}
		cursor = to
		return news
	}
	changed("nothing")
	step(t, s, store.ExecutionStep{ID: us[a].ID, State: fleet.ExecOffered, Attempt: 1})
	changed("a move", a)
	says(t, s, a, noon, store.Intake{Samples: samples(1, 1)})
	must(t, s.SetPresence(t.Context(), a, true, noon))
	changed("it was heard")
	must(t, s.SetPresence(t.Context(), a, false, noon.Add(time.Hour)))
	if u := changed("it fell silent", a); !u[0].LastSeen.Equal(noon.Add(time.Hour)) {
		t.Errorf("last seen: got %v", u[0].LastSeen)
	}
	runs := []fleet.Installed{{Component: "agent", Version: "0.9.0", Slot: "a"}, {Component: "os/vend-1/prod", Version: "3.0.0"}}
	tell := func(d fleet.DeviceID, seq uint64, free uint64) {
		t.Helper()
		says(t, s, d, noon, store.Intake{Report: &store.Report{Boot: [16]byte{1}, Seq: seq, Sent: noon, AgentVersion: "0.9.0", Installed: runs, FreeMiB: free, Share: "10.0.0.7:9443", Supply: "mains"}})
	}
	tell(a, 1, 1000)
	tell(b, 1, 1000)
	two := changed("what they run", a, b)
	if !maps.Equal(two[0].Installed, map[string]string{"agent": "0.9.0", "os/vend-1/prod": "3.0.0"}) || two[0].FreeMiB != 1000 || two[0].Model != "vend-1" || two[0].FirstSeen.IsZero() {
		t.Errorf("what they run: got %+v", two[0])
	}
	tell(a, 2, 1001)
	changed("a little more free space")
	tell(a, 3, 10)
	changed("no space any more", a)
	site := "paris"
	must(t, s.SetDevice(t.Context(), "main", b, store.DevicePatch{Site: &site}, event("device.set")))
	changed("another site", b)
	must(t, s.AssignWaves(t.Context(), "r1", map[fleet.ExecutionID]int{us[a].ID: 0, us[b].ID: 1, "nothing": 1}))
	changed("waves", a, b)
	must(t, s.AssignWaves(t.Context(), "r1", map[fleet.ExecutionID]int{us[a].ID: 0, us[b].ID: 1}))
	changed("the same waves")
	step(t, s, store.ExecutionStep{ID: us[a].ID, State: fleet.ExecSucceeded, Attempt: 1, Number: 1})
	changed("an end", a)
	must(t, s.SetPresence(t.Context(), a, false, noon.Add(2*time.Hour)))
	changed("silent after its end")
	if d, err := s.Device(t.Context(), "main", a); err != nil || len(d.Installed) != 2 || d.Installed[0].Slot != "a" || d.Share != "10.0.0.7:9443" || d.Supply != "mains" || d.FreeMiB != 10 {
		t.Errorf("device: got %+v, %v", d, err)
	}

	f := fleet.ExecutionFilter{State: fleet.ExecQueued}
	if l, _, err := s.RolloutUnits(t.Context(), "main", "r1", f, fleet.Page{}); err != nil || len(l) != 2 {
		t.Errorf("queued: got %v, %v", l, err)
	}
	one := 1
	for name, f := range map[string]fleet.ExecutionFilter{"wave": {Wave: &one}, "site": {Site: "paris"}, "both": {Wave: &one, Site: "paris", Model: "vend-1"}} {
		if l, _, err := s.RolloutUnits(t.Context(), "main", "r1", f, fleet.Page{}); err != nil || len(l) != 1 || l[0].Device != b {
			t.Errorf("by %s: got %v, %v", name, l, err)
		}
	}
	if l, _, err := s.RolloutUnits(t.Context(), "main", "r1", fleet.ExecutionFilter{Model: "vend-2"}, fleet.Page{}); err != nil || len(l) != 0 {
		t.Errorf("no model: got %v, %v", l, err)
	}

	if postgres.On() {
		return // its plans depend on how much there is
	}
	db, err := store.Behind(dir)
	must(t, err)
	defer db.Close()
	for query, index := range map[string]string{
		`SELECT * FROM execution e JOIN device d ON d.id = e.device WHERE e.rollout = 'r1' AND e.changed > 7`: "execution_changed (rollout=? AND changed>?)",
		`SELECT state, COUNT(*) FROM execution WHERE rollout = 'r1' GROUP BY state`:                           "COVERING INDEX execution_stands",
	} {
		var id, parent, unused int
		var plan string
		must(t, db.QueryRowContext(context.Background(), `EXPLAIN QUERY PLAN `+query).Scan(&id, &parent, &unused, &plan))
		if !strings.Contains(plan, index) {
			t.Errorf("%s: got plan %q, want it by %s", query, plan, index)
		}
	}
}

// TestPeersAndProgress counts a rollout by wave and finds who has what others of a site want.
func TestPeersAndProgress(t *testing.T) {
	s, ds := enrolled(t, 4)
	us := staged(t, s, "r1", "1.0.0", fleet.Spec{})
	waves := map[fleet.ExecutionID]int{}
	for n, d := range ds[:4] {
		waves[us[d.ID].ID] = min(n, 1)
		must(t, s.SetPresence(t.Context(), d.ID, n != 3, noon))
		says(t, s, d.ID, noon, store.Intake{Report: &store.Report{Boot: [16]byte{1}, Seq: 1, Sent: noon, AgentVersion: "0.9.0", Share: fmt.Sprintf("10.0.0.%d:9443", n+1)}})
	}
	must(t, s.AssignWaves(t.Context(), "r1", waves))
	for n, state := range []fleet.ExecutionState{fleet.ExecSucceeded, fleet.ExecStaged, fleet.ExecDownloading} {
		step(t, s, store.ExecutionStep{ID: us[ds[n].ID].ID, State: fleet.ExecOffered, Attempt: 1})
		step(t, s, store.ExecutionStep{ID: us[ds[n].ID].ID, State: state, Attempt: 1, Number: 1, Bytes: fleet.Bytes{Wire: 10, Peer: 5, Medium: 2, Reused: 100}})
	}
	peers, err := s.Peers(t.Context(), "main", "site-1", "agent/1.0.0")
	if want := []string{"10.0.0.1:9443", "10.0.0.2:9443"}; err != nil || !slices.Equal(peers, want) {
		t.Errorf("peers: got %v, %v, want %v", peers, err, want)
	}
	for name, got := range map[string]func() ([]string, error){
		"another site":    func() ([]string, error) { return s.Peers(t.Context(), "main", "paris", "agent/1.0.0") },
		"another release": func() ([]string, error) { return s.Peers(t.Context(), "main", "site-1", "agent/2.0.0") },
		"another tenant":  func() ([]string, error) { return s.Peers(t.Context(), "other", "site-1", "agent/1.0.0") },
	} {
		if l, err := got(); err != nil || len(l) != 0 {
			t.Errorf("peers of %s: got %v, %v", name, l, err)
		}
	}
	p, err := s.Progress(t.Context(), "r1", noon.Add(time.Minute))
	must(t, err)
	if p.Counts[fleet.ExecQueued] != 1 || p.Waves[0][fleet.ExecSucceeded] != 1 || p.Waves[1][fleet.ExecStaged] != 1 || p.Waves[1][fleet.ExecQueued] != 1 || len(p.Waves) != 2 ||
		p.Unreachable[1] != 1 || len(p.Unreachable) != 1 || p.Bytes != (fleet.Bytes{Wire: 30, Peer: 15, Medium: 6, Reused: 300}) {
		t.Errorf("progress: got %+v", p)
	}
	if p, err = s.Progress(t.Context(), "r1", noon); err != nil || len(p.Unreachable) != 0 {
		t.Errorf("nobody silent for so long: got %+v, %v", p.Unreachable, err)
	}
}

func TestSites(t *testing.T) {
	s, ds := enrolled(t, 2)
	site := "paris"
	must(t, s.SetDevice(t.Context(), "main", ds[0].ID, store.DevicePatch{Site: &site}, event("device.set")))
	must(t, s.PutSite(t.Context(), fleet.Site{Tenant: "main", Name: "oslo", Zone: "Europe/Oslo"}, event("site.set")))
	must(t, s.PutSite(t.Context(), fleet.Site{Tenant: "main", Name: "paris", Zone: "Europe/London"}, event("site.set")))
	must(t, s.PutSite(t.Context(), fleet.Site{Tenant: "main", Name: "paris", Zone: "Europe/Paris", Install: "22:00-05:00"}, event("site.set")))
	got, err := s.Sites(t.Context(), "main")
	want := []fleet.Site{
		{Tenant: "main", Name: "oslo", Zone: "Europe/Oslo"},
		{Tenant: "main", Name: "paris", Zone: "Europe/Paris", Install: "22:00-05:00", Devices: 1},
		{Tenant: "main", Name: "site-1", Devices: 1},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if got, err := s.Sites(t.Context(), "other"); err != nil || len(got) != 1 || got[0].Name != "site-1" {
		t.Errorf("another tenant: got %+v, %v", got, err)
	}
}

// TestNeutral holds the SQL to what fleet says, for every end and reason.
func TestNeutral(t *testing.T) {
	dir := postgres.Place(t)
	s := open(t, dir)
	must(t, s.Enrol(t.Context(), device("main", 1)))
	x := staged(t, s, "r1", "1.0.0", fleet.Spec{})[device("main", 1).ID]
	for _, state := range []fleet.ExecutionState{fleet.ExecQueued, fleet.ExecWaiting, fleet.ExecSucceeded, fleet.ExecFailed, fleet.ExecRolledBack, fleet.ExecRejected, fleet.ExecTimedOut, fleet.ExecCanceled, fleet.ExecRemoved} {
		for _, reason := range []string{"", "canceled", "superseded", "unreachable", "waited", "expired", "busy", "downgrade", "storage", "signature"} {
			sql1(t, dir, `UPDATE execution SET state = ?, reason = ? WHERE id = ?`, state, reason, x.ID)
			want := 0
			if (fleet.Execution{State: state, Reason: reason}).Neutral() {
				want = 1
			}
			n, err := s.Neutral(t.Context(), "r1")
			must(t, err)
			p, err := s.Progress(t.Context(), "r1", noon)
			must(t, err)
			if n != want || p.Neutral[-1] != want {
				t.Errorf("%s %s: got %d and %d, want %d", state, reason, n, p.Neutral[-1], want)
			}
		}
	}
}
