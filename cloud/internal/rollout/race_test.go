package rollout_test

import (
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/rollout"
	"github.com/tillward/tillward/cloud/internal/store"
)

// TestRunnerIsOverruled: who aborts in the moment in which an offer is on its way has it called back, though nobody has
// noted that it was made.
func TestRunnerIsOverruled(t *testing.T) {
	var w *world
	slow := &watched{}
	slow.offer = func() {
		w.change(t, func(ro *fleet.Rollout) { ro.State = fleet.RolloutAborting })
	}
	w = newWorld(t, func(o *rollout.Options) {
		slow.Store = o.Store.(*store.Store)
		o.Store = slow
	})
	w.link.plug("d1", fleet.Attested, false)
	w.bring(t, "ro-1", "1.2.3", fleet.Spec{})
	o := w.offer(t)
	if back := w.recalled(t); back.Execution != o.Execution || back.Attempt != o.Attempt {
		t.Errorf("called back %+v, want %+v", back, o)
	}
	w.until(t, "aborted", func(ro fleet.Rollout, n map[fleet.ExecutionState]int) bool {
		return ro.State == fleet.RolloutAborted && n[fleet.ExecCanceled] == 4
	})
}

// TestRunnerSupersedesWhatItCan: a newer release for other models, or that passes over those in quarantine, takes the
// place of none.
func TestRunnerSupersedesWhatItCan(t *testing.T) {
	for name, c := range map[string]struct {
		models []string
		repair bool
	}{
		"for another model": {models: []string{"lemon"}},
		"a repair":          {repair: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.bring(t, "ro-1", "1.2.3", fleet.Spec{Repair: c.repair})
			must(t, w.store.AddRelease(t.Context(), fleet.Release{ID: "agent/1.3.0", Component: "agent", Class: "agent", Version: "1.3.0", Models: c.models}, fleet.AuditEvent{Kind: "release.published"}))
			w.bring(t, "ro-2", "1.3.0", fleet.Spec{})
			w.link.plug("d1", fleet.Attested, false)
			w.Deliver("d1")
			seen := map[string]bool{}
			for !seen["1.2.3"] {
				o := w.offer(t)
				if seen[o.Version] = true; o.Version == "1.3.0" && c.repair { // both want it, one at a time
					_, err := w.store.MoveExecution(t.Context(), fleet.ExecutionStep{ID: fleet.ExecutionID(o.Execution), State: fleet.ExecRejected, Reason: "requires", Attempt: 1, Number: 1}, time.Now())
					must(t, err)
				}
			}
			ro, err := w.store.Rollout(t.Context(), "main", "ro-1")
			must(t, err)
			if ro.State != fleet.RolloutRunning {
				t.Errorf("it is %s: %s", ro.State, ro.Reason)
			}
		})
	}
}

// TestRunnerKeepsLanes: two rollouts at once do not take both lanes of a site.
func TestRunnerKeepsLanes(t *testing.T) {
	w := newWorld(t)
	site := "berlin"
	for _, d := range []fleet.DeviceID{"d1", "d2"} {
		must(t, w.store.SetDevice(t.Context(), "main", d, fleet.DevicePatch{Site: &site}, fleet.AuditEvent{Kind: "device.set"}))
		w.link.plug(d, fleet.Attested, false)
	}
	must(t, w.store.AddRelease(t.Context(), fleet.Release{ID: "ops/main/pos/1.0.0", Component: "ops/main/pos", Class: "app", Version: "1.0.0", Tenant: "main"}, fleet.AuditEvent{Kind: "release.published"}))
	w.bring(t, "ro-1", "1.2.3", fleet.Spec{PerSite: 1})
	first := w.offer(t)
	w.until(t, "noted", func(_ fleet.Rollout, n map[fleet.ExecutionState]int) bool { return n[fleet.ExecOffered] == 1 })
	must(t, w.store.AddRollout(t.Context(), fleet.Rollout{
		ID: "ro-2", Tenant: "main", Release: "ops/main/pos/1.0.0", State: fleet.RolloutRunning, CreatedAt: time.Now(), StartedAt: time.Now(),
		Spec: fleet.Spec{PerSite: 1, Filter: fleet.Filter{Group: "canary"}},
	}, fleet.AuditEvent{Kind: "rollout.started"}))
	w.Wake()
	select {
	case o := <-w.link.offered:
		t.Errorf("%s is offered %s while %s is at %s", o.Device, o.Target, first.Device, first.Target)
	case <-time.After(1500 * time.Millisecond): // some rounds
	}
	w.move(t, first, fleet.ExecSucceeded)
	w.offer(t)
}
