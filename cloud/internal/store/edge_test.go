package store_test

import (
	"math"
	"testing"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/simulator/postgres"
)

// offered starts a rollout on the first device and returns its execution.
func offered(t *testing.T, s *store.Store) fleet.Execution {
	t.Helper()
	must(t, s.AddRelease(t.Context(), fleet.Release{ID: "agent/1.0.0"}, event("release.add")))
	must(t, s.AddRollout(t.Context(), fleet.Rollout{ID: "r1", Tenant: "main", Release: "agent/1.0.0", State: fleet.RolloutRunning}, event("rollout.add")))
	_, err := s.Enlist(t.Context(), "r1")
	must(t, err)
	es, _, err := s.RolloutUnits(t.Context(), "main", "r1", fleet.ExecutionFilter{}, fleet.Page{})
	must(t, err)
	return es[0].Execution
}

// TestStepBeyondRange has a device claim numbers of bytes that no column holds. That is the message's fault for
// ever: said otherwise, the group it came in would be tried again for ever.
func TestStepBeyondRange(t *testing.T) {
	s, ds := enrolled(t, 1)
	e := offered(t, s)
	for name, tt := range map[string]struct {
		done, total uint64
		want        error
	}{
		"done":       {math.MaxInt64 + 1, 1, fleet.ErrInvalid},
		"total":      {1, math.MaxUint64, fleet.ErrInvalid},
		"just fits":  {math.MaxInt64, math.MaxInt64, nil},
		"small ones": {1, 2, nil},
	} {
		step := store.ExecutionStep{ID: e.ID, State: fleet.ExecDownloading, Done: tt.done, Total: tt.total}
		_, err := s.Commit(t.Context(), []store.Intake{{Device: ds[0].ID, Tenant: "main", At: noon, Step: &step}})
		wantErr(t, name, err, tt.want)
	}
}

// TestProgress reports bytes of a download, with and without knowing how many there will be. The same report
// again is no move.
func TestProgress(t *testing.T) {
	s, _ := enrolled(t, 1)
	e := offered(t, s)
	for i, tt := range []struct {
		done, total         uint64
		moved               bool
		wantDone, wantTotal uint64
	}{
		{10, 0, true, 10, 0},
		{10, 0, false, 10, 0},
		{20, 0, true, 20, 0},
		{30, 100, true, 30, 100},
		{25, 100, false, 30, 100},
		{40, 0, true, 40, 100}, // the total stays known
	} {
		got, err := s.MoveExecution(t.Context(), store.ExecutionStep{ID: e.ID, State: fleet.ExecDownloading, Done: tt.done, Total: tt.total}, noon)
		must(t, err)
		if (got != nil) != tt.moved {
			t.Errorf("step %d: got %+v, want moved %v", i, got, tt.moved)
		}
		es, _, err := s.RolloutUnits(t.Context(), "main", "r1", fleet.ExecutionFilter{}, fleet.Page{})
		must(t, err)
		if es[0].Done != tt.wantDone || es[0].Total != tt.wantTotal {
			t.Errorf("step %d: got %d of %d, want %d of %d", i, es[0].Done, es[0].Total, tt.wantDone, tt.wantTotal)
		}
	}
}

// TestServiceTrailOfAnyText chains names that are no UTF-8: an entry that was just written must verify.
func TestServiceTrailOfAnyText(t *testing.T) {
	s := open(t, postgres.Place(t))
	must(t, s.Audit(t.Context(), fleet.AuditEvent{
		Tenant: "main", Kind: "a\xff", Severity: "warn", Actor: "an\xffna", Subject: "\xc3", Detail: map[string]string{"k\xff": "v\xff", "html": "<&>\u2028"},
	}))
	must(t, s.Audit(t.Context(), event("next")))
	if rep, err := s.VerifyAudit(t.Context(), "main", ""); err != nil || !rep.OK || rep.Entries != 2 {
		t.Errorf("got %+v, %v, want 2 entries and a whole chain", rep, err)
	}
}

// TestVerifyFindsHiddenEntry gives an entry of a device to another tenant, or to another actor, behind the
// store's back: the first would not be listed any more, the second would lay it at someone else's door.
func TestVerifyFindsHiddenEntry(t *testing.T) {
	for _, column := range []string{"tenant", "actor"} {
		dir := postgres.Place(t)
		s := open(t, dir)
		d := device("main", 1)
		must(t, s.Enrol(t.Context(), d))
		_, err := s.Commit(t.Context(), []store.Intake{{Device: d.ID, Tenant: "main", At: noon, Audit: chain(t, 1, [32]byte{}, 3, "link.up")}})
		must(t, err)
		if rep, err := s.VerifyAudit(t.Context(), "main", d.ID); err != nil || !rep.OK {
			t.Fatalf("before: got %+v, %v", rep, err)
		}
		tamper(t, dir, `UPDATE audit SET `+column+` = 'other' WHERE device = ? AND seq = 2`, d.ID)
		if rep, err := s.VerifyAudit(t.Context(), "main", d.ID); err != nil || rep.OK || rep.BrokenAt != 2 {
			t.Errorf("%s changed: got %+v, %v, want broken at 2", column, rep, err)
		}
	}
}

// TestQueryFindsUmlauts asks for a label as it is written on the till.
func TestQueryFindsUmlauts(t *testing.T) {
	s, ds := enrolled(t, 1)
	label := "Kasse SÜD"
	must(t, s.SetDevice(t.Context(), "main", ds[0].ID, store.DevicePatch{Label: &label}, event("device.set")))
	for query, want := range map[string]int{"SÜD": 1, "kasse sÜd": 1, "Kasse SÜD": 1, "NORD": 0} {
		if got, _, err := s.Devices(t.Context(), "main", store.DeviceFilter{Query: query}, fleet.Page{}); err != nil || len(got) != want {
			t.Errorf("query %q: got %d, %v, want %d", query, len(got), err, want)
		}
	}
}
