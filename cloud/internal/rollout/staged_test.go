package rollout_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/rollout"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/cloud/wire"
)

// watched is a store in whose words one may fall.
type watched struct {
	*store.Store
	peers []string
	save  func() // before a rollout is saved by the loop
	offer func() // before an offer is noted
}

func (w *watched) MoveExecution(ctx context.Context, step fleet.ExecutionStep, at time.Time) (*fleet.Execution, error) {
	if w.offer != nil && step.State == fleet.ExecOffered {
		w.offer()
		w.offer = nil
	}
	return w.Store.MoveExecution(ctx, step, at)
}

func (w *watched) Peers(ctx context.Context, t fleet.TenantID, site string, r fleet.ReleaseID) ([]string, error) {
	if w.peers != nil {
		return w.peers, nil
	}
	return w.Store.Peers(ctx, t, site, r)
}

func (w *watched) SaveRollout(ctx context.Context, r fleet.Rollout, events ...fleet.AuditEvent) (fleet.Rollout, error) {
	if w.save != nil {
		w.save()
		w.save = nil
	}
	return w.Store.SaveRollout(ctx, r, events...)
}

// bring starts a rollout of a spec to group canary.
func (w *world) bring(t *testing.T, id fleet.RolloutID, version string, spec fleet.Spec) {
	t.Helper()
	release := fleet.ReleaseID("agent/" + version)
	if _, err := w.store.Release(t.Context(), release); err != nil {
		must(t, w.store.AddRelease(t.Context(), fleet.Release{ID: release, Component: "agent", Class: "agent", Version: version}, fleet.AuditEvent{Kind: "release.published"}))
	}
	spec.Filter.Group = "canary"
	must(t, w.store.AddRollout(t.Context(), fleet.Rollout{
		ID: id, Tenant: "main", Release: release, State: fleet.RolloutRunning, CreatedAt: time.Now(), StartedAt: time.Now(), CreatedBy: "anna", Spec: spec,
	}, fleet.AuditEvent{Kind: "rollout.started"}))
	w.Wake()
}

func (w *world) change(t *testing.T, change func(*fleet.Rollout)) {
	t.Helper()
	for {
		ro, err := w.store.Rollout(t.Context(), "main", "ro-1")
		must(t, err)
		change(&ro)
		if _, err = w.store.SaveRollout(t.Context(), ro, fleet.AuditEvent{Kind: "rollout.set"}); err == nil {
			w.Wake()
			return
		}
	}
}

func (w *world) plugAll() {
	for _, d := range []fleet.DeviceID{"d1", "d2", "d3", "d4"} {
		w.link.plug(d, fleet.Attested, false)
	}
}

// kinds lists what the rollout decided, oldest first.
func (w *world) kinds(t *testing.T) string {
	t.Helper()
	evs, _, err := w.store.AuditTrail(t.Context(), "main", "", false, fleet.Page{Limit: 1000})
	must(t, err)
	var out []string
	for _, e := range evs {
		if e.Actor == "rollout" {
			out = append(out, strings.TrimSpace(strings.TrimPrefix(e.Kind, "rollout.")+" "+e.Detail["wave"]+e.Detail["model"]+" "+e.Detail["state"]))
		}
	}
	return strings.Join(out, ", ")
}

// TestRunnerWaves brings a release to the canary, and when that is well to the others. An offer carries all that a
// device must know while it lives.
func TestRunnerWaves(t *testing.T) {
	w := newWorld(t, func(o *rollout.Options) {
		o.Store = &watched{Store: o.Store.(*store.Store), peers: strings.Fields("10.0.0.1:8446 10.0.0.2:8446 3 4 5 6 7 8 9 10")}
	})
	w.plugAll()
	must(t, w.store.SetDevice(t.Context(), "main", "d2", store.DevicePatch{Site: new("berlin")}, fleet.AuditEvent{Kind: "device.set"}))
	must(t, w.store.PutSite(t.Context(), fleet.Site{Tenant: "main", Name: "berlin", Zone: "Europe/Berlin", Install: "00:00-24:00"}, fleet.AuditEvent{Kind: "site.set"}))
	w.bring(t, "ro-1", "1.2.3", fleet.Spec{
		Waves: []fleet.Wave{{Name: "canary", Filter: fleet.Filter{Devices: []fleet.DeviceID{"d2"}}}, {Name: "rest"}}, Deadline: 8 * time.Hour, RateKiB: 512,
		Download: "00:00-24:00", Steps: map[fleet.ExecutionState]time.Duration{fleet.ExecChecking: 7 * time.Minute},
	})
	o := w.offer(t)
	life := time.UnixMilli(o.NotAfter).Sub(time.UnixMilli(o.IssuedAt))
	if o.Device != "d2" || o.Attempt != 1 || o.Rollout != "ro-1" || o.RateKiB != 512 || o.Steps["CHECKING"] != 420 || o.Steps["REBOOTING"] != 900 || o.V != wire.Version || life.Round(time.Minute) != 8*time.Hour {
		t.Errorf("offered %+v", o)
	}
	if len(o.Peers) != wire.MaxPeers || len(o.Download) != 1 || len(o.Install) != 1 || o.Install[0].To < o.NotAfter {
		t.Errorf("offered with peers %v, download %v, install %v", o.Peers, o.Download, o.Install)
	}
	w.until(t, "the others wait", func(_ fleet.Rollout, n map[fleet.ExecutionState]int) bool { return n[fleet.ExecOffered] == 1 })
	delays, err := w.Why(t.Context(), "main", "d3")
	must(t, err)
	if len(delays) != 1 || delays[0].Reason != "wave" {
		t.Errorf("d3 waits for %+v", delays)
	}
	if delays, err = w.Why(t.Context(), "other", "d3"); err != nil || len(delays) > 0 {
		t.Errorf("another tenant hears %+v, %v", delays, err)
	}
	w.move(t, o, fleet.ExecSucceeded)
	for range 3 {
		o := w.offer(t)
		if len(o.Peers) > 0 || len(o.Install) > 0 { // they stand at no site
			t.Errorf("offered %+v", o)
		}
		w.move(t, o, fleet.ExecSucceeded)
	}
	w.until(t, "complete", func(ro fleet.Rollout, _ map[fleet.ExecutionState]int) bool {
		return ro.State == fleet.RolloutCompleted && !ro.EndedAt.IsZero()
	})
	if got := w.kinds(t); got != "wave canary RUNNING, wave canary PASSED, wave rest RUNNING, wave rest PASSED, completed" {
		t.Errorf("audited: %s", got)
	}
}

// TestRunnerHolds: a model that does badly is held and audited while another goes on; what waits of it is called back;
// released, it is let in again.
func TestRunnerHolds(t *testing.T) {
	w := newWorld(t)
	w.plugAll()
	for i := range 3 {
		id := fleet.DeviceID(fmt.Sprintf("e%d", i+1))
		must(t, w.store.Enrol(t.Context(), fleet.Device{ID: id, Tenant: "main", Tier: fleet.TierC, Group: "canary", Model: "lemon", EKHash: string(id), EnrolledAt: time.Now()}))
	}
	w.link.plug("e1", fleet.Attested, false)
	w.link.plug("e2", fleet.Attested, false)
	w.bring(t, "ro-1", "1.2.3", fleet.Spec{Deadline: time.Hour, Gate: fleet.Gate{MinSample: 1, SiteBad: -1}})
	offers := map[string]wire.OfferOrder{}
	for len(offers) < 4 { // two of each model, until something is known
		o := w.offer(t)
		offers[o.Device] = o
	}
	w.move(t, offers["e1"], fleet.ExecRolledBack)
	if o := w.recalled(t); o.Device != "e2" {
		t.Errorf("called back from %s, want e2", o.Device)
	}
	w.until(t, "held", func(ro fleet.Rollout, _ map[fleet.ExecutionState]int) bool {
		return ro.State == fleet.RolloutRunning && len(ro.Holds) == 1 && ro.Holds[0].Model == "lemon"
	})
	_, err := w.store.MoveExecution(t.Context(), fleet.ExecutionStep{ID: fleet.ExecutionID(offers["e2"].Execution), State: fleet.ExecFailed, Reason: "canceled"}, time.Now())
	must(t, err)
	w.link.plug("e3", fleet.Attested, false)
	for d, o := range offers {
		if d[0] == 'd' {
			w.move(t, o, fleet.ExecSucceeded)
		}
	}
	for range 2 {
		if o := w.offer(t); o.Device[0] != 'd' {
			t.Errorf("offered to %s, which is held", o.Device)
		} else {
			w.move(t, o, fleet.ExecSucceeded)
		}
	}
	w.until(t, "all others done", func(ro fleet.Rollout, _ map[fleet.ExecutionState]int) bool {
		return ro.State == fleet.RolloutPaused && ro.Auto && strings.Contains(ro.Reason, "lemon")
	})
	if got := w.kinds(t); got != "wave all RUNNING, held lemon, wave all PASSED, paused" {
		t.Errorf("audited: %s", got)
	}
	w.change(t, func(ro *fleet.Rollout) {
		ro.State, ro.Reason, ro.Holds[0].ReleasedAt = fleet.RolloutRunning, "", time.Now()
	})
	a, b := w.offer(t), w.offer(t)
	if got := []string{a.Device, b.Device}; !slices.Contains(got, "e2") || !slices.Contains(got, "e3") || max(a.Attempt, b.Attempt) != 2 {
		t.Errorf("offered %+v and %+v, want e2 again and e3", a, b)
	}
	w.move(t, a, fleet.ExecSucceeded)
	w.move(t, b, fleet.ExecSucceeded)
	w.until(t, "complete", func(ro fleet.Rollout, _ map[fleet.ExecutionState]int) bool { return ro.State == fleet.RolloutCompleted })
}

// TestRunnerYields: an operator who pauses in the moment in which a plan is made is not overruled.
func TestRunnerYields(t *testing.T) {
	var w *world
	held := &watched{}
	held.save = func() {
		ro, err := w.store.Rollout(t.Context(), "main", "ro-1")
		must(t, err)
		ro.State = fleet.RolloutPaused
		_, err = w.store.SaveRollout(t.Context(), ro, fleet.AuditEvent{Kind: "rollout.pause"})
		must(t, err)
	}
	w = newWorld(t, func(o *rollout.Options) {
		held.Store = o.Store.(*store.Store)
		o.Store = held
	})
	w.plugAll()
	w.bring(t, "ro-1", "1.2.3", fleet.Spec{})
	select {
	case o := <-w.link.offered:
		t.Errorf("offered %+v in the pause", o)
	case <-time.After(1500 * time.Millisecond): // some rounds
	}
	ro, err := w.store.Rollout(t.Context(), "main", "ro-1")
	must(t, err)
	if ro.State != fleet.RolloutPaused || len(ro.Waves) > 0 {
		t.Errorf("it is %+v", ro)
	}
}

// TestRunnerRetries: what failed is tried again by itself, as another attempt.
func TestRunnerRetries(t *testing.T) {
	w := newWorld(t)
	w.link.plug("d1", fleet.Attested, false)
	w.bring(t, "ro-1", "1.2.3", fleet.Spec{Deadline: 8 * time.Second, Attempts: 2}) // tried again after an eighth of it
	o := w.offer(t)
	w.move(t, o, fleet.ExecFailed)
	again := w.offer(t)
	if again.Execution != o.Execution || again.Attempt != 2 {
		t.Errorf("offered %+v, want %s once more", again, o.Execution)
	}
}

// TestRunnerSupersedes: a newer release takes the place of an older one that still runs.
func TestRunnerSupersedes(t *testing.T) {
	w := newWorld(t)
	w.link.plug("d1", fleet.Attested, false)
	w.bring(t, "ro-1", "1.2.3", fleet.Spec{})
	old := w.offer(t)
	w.until(t, "offered", func(_ fleet.Rollout, n map[fleet.ExecutionState]int) bool { return n[fleet.ExecOffered] == 1 })
	w.bring(t, "ro-2", "1.3.0", fleet.Spec{})
	if o := w.recalled(t); o.Execution != old.Execution {
		t.Errorf("called back %+v", o)
	}
	w.until(t, "superseded", func(ro fleet.Rollout, n map[fleet.ExecutionState]int) bool {
		return ro.State == fleet.RolloutSuperseded && n[fleet.ExecCanceled] == 4
	})
	if o := w.offer(t); o.Version != "1.3.0" || o.Device != "d1" {
		t.Errorf("offered %+v, want the newer one", o)
	}
}

// TestRunnerAborts: what waits is called back, what installs finishes, and then it has ended.
func TestRunnerAborts(t *testing.T) {
	w := newWorld(t)
	w.link.plug("d1", fleet.Attested, false)
	w.link.plug("d2", fleet.Attested, false)
	w.bring(t, "ro-1", "1.2.3", fleet.Spec{})
	a, b := w.offer(t), w.offer(t)
	w.move(t, b, fleet.ExecInstalling)
	w.change(t, func(ro *fleet.Rollout) { ro.State, ro.Reason = fleet.RolloutAborting, "not this one" })
	if o := w.recalled(t); o.Execution != a.Execution {
		t.Errorf("called back %+v, want %s", o, a.Execution)
	}
	_, err := w.store.MoveExecution(t.Context(), fleet.ExecutionStep{ID: fleet.ExecutionID(a.Execution), State: fleet.ExecFailed, Reason: "canceled"}, time.Now())
	must(t, err)
	w.move(t, b, fleet.ExecSucceeded)
	w.until(t, "aborted", func(ro fleet.Rollout, n map[fleet.ExecutionState]int) bool {
		return ro.State == fleet.RolloutAborted && ro.Reason == "not this one" && n[fleet.ExecCanceled] == 2
	})
}

// TestRunnerJoiners: a device that comes after the end is brought the newest complete release.
func TestRunnerJoiners(t *testing.T) {
	w := newWorld(t)
	w.plugAll()
	w.bring(t, "ro-1", "1.2.3", fleet.Spec{Joiners: true})
	for range 4 {
		w.move(t, w.offer(t), fleet.ExecSucceeded)
	}
	w.until(t, "complete", func(ro fleet.Rollout, _ map[fleet.ExecutionState]int) bool { return ro.State == fleet.RolloutCompleted })
	must(t, w.store.Enrol(t.Context(), fleet.Device{ID: "late", Tenant: "main", Tier: fleet.TierC, Group: "canary", EKHash: "late", EnrolledAt: time.Now()}))
	w.link.plug("late", fleet.Attested, false)
	w.Deliver("late")
	if o := w.offer(t); o.Device != "late" {
		t.Errorf("offered to %s", o.Device)
	}
	p, err := w.Preview(t.Context(), "main", "agent/1.2.3", fleet.Spec{Filter: fleet.Filter{Group: "canary"}})
	must(t, err)
	if !strings.HasPrefix(p.Text, "reaches 5 devices in 0 sites") {
		t.Errorf("a dry run says %s", p.Text)
	}
	if _, err := w.Preview(t.Context(), "main", "agent/9.9.9", fleet.Spec{}); err == nil {
		t.Error("a dry run of a release that is not there")
	}
	if _, err := w.Preview(t.Context(), "main", "agent/1.2.3", fleet.Spec{Install: "sometimes"}); err == nil {
		t.Error("a dry run of hours that nobody can read")
	}
}
