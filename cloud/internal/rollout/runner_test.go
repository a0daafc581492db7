package rollout_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/rollout"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/cloud/wire"
)

// link is the broker with devices plugged in by hand.
type link struct {
	mu      sync.Mutex
	trust   map[fleet.DeviceID]fleet.Trust
	deaf    map[fleet.DeviceID]bool // connected, and nothing can be sent
	offered chan wire.OfferOrder
	taken   chan wire.OfferOrder // back: offers whose life is over
}

func (l *link) Send(d fleet.DeviceID, c wire.Channel, payload []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.trust[d]; !ok || l.deaf[d] {
		return errors.New("not connected")
	}
	if c != wire.DownOffer {
		return fmt.Errorf("an offer on %s", c)
	}
	o, err := wire.Decode[wire.OfferOrder](payload)
	if err != nil {
		return err
	}
	if time.Now().UnixMilli() > o.NotAfter {
		l.taken <- o
		return nil
	}
	l.offered <- o
	return nil
}

func (l *link) Connected() map[fleet.DeviceID]fleet.Trust {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.trust)
}

func (l *link) plug(d fleet.DeviceID, t fleet.Trust, deaf bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trust[d], l.deaf[d] = t, deaf
}

// world is a Runner over a real store with devices d1 to d4 of group canary.
type world struct {
	*rollout.Runner
	store   *store.Store
	link    *link
	changed chan fleet.RolloutID
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newWorld(t *testing.T, change ...func(*rollout.Options)) *world {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	st, err := store.Open(t.Context(), t.TempDir(), quiet)
	must(t, err)
	for i := range 4 {
		id := fmt.Sprintf("d%d", i+1)
		must(t, st.Enrol(t.Context(), fleet.Device{ID: fleet.DeviceID(id), Tenant: "main", Tier: fleet.TierC, Group: "canary", EKHash: id, EnrolledAt: time.Now()}))
	}
	must(t, st.AddRelease(t.Context(), fleet.Release{ID: "agent/1.2.3", Class: "agent", Version: "1.2.3"}, fleet.AuditEvent{Kind: "release.published"}))
	w := &world{
		store: st, link: &link{trust: map[fleet.DeviceID]fleet.Trust{}, deaf: map[fleet.DeviceID]bool{}, offered: make(chan wire.OfferOrder, 100), taken: make(chan wire.OfferOrder, 100)},
		changed: make(chan fleet.RolloutID, 1000),
	}
	o := rollout.Options{
		Store: st, Link: w.link, Log: quiet, Changed: func(_ fleet.TenantID, id fleet.RolloutID) { w.changed <- id },
		Sign: func(kind string, m wire.Message) ([]byte, error) {
			if kind != wire.OrderOffer {
				return nil, fmt.Errorf("signed as %s", kind)
			}
			return wire.Encode(m)
		},
	}
	for _, f := range change {
		f(&o)
	}
	w.Runner = rollout.New(o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, st.Close()); err != nil {
			t.Error(err)
		}
	})
	return w
}

// plain is a spec of one wave and one limit.
func plain(maxFailed int) fleet.Spec {
	return fleet.Spec{
		Filter: fleet.Filter{Group: "canary"}, Deadline: time.Hour, Attempts: 1,
		Gate: fleet.Gate{Success: -1, Bad: -1, SiteBad: -1, BadCap: maxFailed},
	}
}

func (w *world) start(t *testing.T, maxFailed int) fleet.RolloutID {
	t.Helper()
	ro := fleet.Rollout{
		ID: "ro-1", Tenant: "main", Release: "agent/1.2.3", State: fleet.RolloutRunning, CreatedAt: time.Now(), CreatedBy: "anna", Spec: plain(maxFailed),
	}
	must(t, w.store.AddRollout(t.Context(), ro, fleet.AuditEvent{Kind: "rollout.started"}))
	w.Wake()
	return ro.ID
}

// set moves a rollout as an operator does.
func (w *world) set(t *testing.T, id fleet.RolloutID, from, to fleet.RolloutState) {
	t.Helper()
	for {
		ro, err := w.store.Rollout(t.Context(), "main", id)
		must(t, err)
		if ro.State != from {
			t.Fatalf("it is %s, want %s", ro.State, from)
		}
		ro.State = to
		_, err = w.store.SaveRollout(t.Context(), ro, fleet.AuditEvent{Kind: "rollout.set"})
		if !errors.Is(err, fleet.ErrConflict) { // else the loop was faster
			must(t, err)
			return
		}
	}
}

// offer waits for the next offer.
func (w *world) offer(t *testing.T) wire.OfferOrder {
	t.Helper()
	select {
	case o := <-w.link.offered:
		return o
	case <-time.After(20 * time.Second):
		t.Fatal("no offer")
		return wire.OfferOrder{}
	}
}

// recalled waits for an offer to be taken back.
func (w *world) recalled(t *testing.T) wire.OfferOrder {
	t.Helper()
	select {
	case o := <-w.link.taken:
		return o
	case <-time.After(20 * time.Second):
		t.Fatal("nothing is called back")
		return wire.OfferOrder{}
	}
}

// until waits for the rollout to satisfy a condition.
func (w *world) until(t *testing.T, what string, ok func(fleet.Rollout, map[fleet.ExecutionState]int) bool) {
	t.Helper()
	end := time.After(20 * time.Second)
	for {
		ro, err := w.store.Rollout(t.Context(), "main", "ro-1")
		must(t, err)
		counts, err := w.store.Counts(t.Context(), "ro-1")
		must(t, err)
		if ok(ro, counts) {
			return
		}
		select {
		case <-w.changed:
		case <-end:
			t.Fatalf("%s: it is %s with %v", what, ro.State, counts)
		}
	}
}

func (w *world) move(t *testing.T, o wire.OfferOrder, s fleet.ExecutionState) {
	t.Helper()
	w.until(t, "offer of "+o.Device+" noted", func(fleet.Rollout, map[fleet.ExecutionState]int) bool {
		e, _, err := w.store.RolloutUnits(t.Context(), "main", "ro-1", fleet.ExecutionFilter{}, fleet.Page{})
		must(t, err)
		for _, e := range e {
			if string(e.ID) == o.Execution {
				return e.State != fleet.ExecQueued
			}
		}
		return false
	})
	_, err := w.store.MoveExecution(t.Context(), fleet.ExecutionStep{ID: fleet.ExecutionID(o.Execution), State: s}, time.Now())
	must(t, err)
	w.Wake()
}

func TestRunner(t *testing.T) {
	w := newWorld(t)
	w.link.plug("d1", fleet.Attested, false)
	w.link.plug("d2", fleet.Quarantined, false) // must never be offered anything
	w.link.plug("d3", fleet.Attested, true)
	w.start(t, 1)
	o := w.offer(t)
	if o.Device != "d1" || o.Tenant != "main" || o.Class != "agent" || o.Version != "1.2.3" || o.Target != "agent/1.2.3" || o.By != "anna" || o.NotAfter <= o.IssuedAt {
		t.Errorf("offered %+v", o)
	}
	w.until(t, "only d1 is offered", func(_ fleet.Rollout, n map[fleet.ExecutionState]int) bool {
		return n[fleet.ExecOffered] == 1 && n[fleet.ExecQueued] == 3
	})
	w.move(t, o, fleet.ExecDownloading)
	w.Deliver("d1") // came back in the middle
	if again := w.offer(t); again.Execution != o.Execution {
		t.Errorf("offered %+v, want d1's once more", again)
	}
	w.move(t, o, fleet.ExecSucceeded)
	w.link.plug("d3", fleet.Attested, false)
	w.link.plug("d4", fleet.Degraded, false)
	w.Wake()
	a, b := w.offer(t), w.offer(t)
	if a.Device != "d3" || b.Device != "d4" {
		t.Errorf("offered %s and %s, want d3 and d4", a.Device, b.Device)
	}
	w.move(t, a, fleet.ExecSucceeded)
	w.move(t, b, fleet.ExecFailed)
	w.link.plug("d2", fleet.Attested, false)
	w.Wake()
	w.move(t, w.offer(t), fleet.ExecAlready)
	w.until(t, "complete", func(ro fleet.Rollout, _ map[fleet.ExecutionState]int) bool { return ro.State == fleet.RolloutCompleted })
	if ev := w.newest(t); ev.Kind != "rollout.completed" || ev.Tenant != "main" || ev.Severity != "info" {
		t.Errorf("audited as %+v", ev)
	}
}

func (w *world) newest(t *testing.T) fleet.AuditEvent {
	t.Helper()
	evs, _, err := w.store.AuditTrail(t.Context(), "main", "", true, fleet.Page{Limit: 1})
	must(t, err)
	return evs[0]
}

// TestRunnerPauses lets two devices fail: the others are not offered it, until
// an operator says so. Who came back in the pause is offered it again.
func TestRunnerPauses(t *testing.T) {
	w := newWorld(t)
	for _, d := range []fleet.DeviceID{"d1", "d2", "d3"} {
		w.link.plug(d, fleet.Attested, false)
	}
	id := w.start(t, 1)
	bad, worse, open := w.offer(t), w.offer(t), w.offer(t)
	w.move(t, open, fleet.ExecDownloading)
	w.move(t, bad, fleet.ExecRolledBack)
	w.move(t, worse, fleet.ExecFailed)
	w.until(t, "paused", func(ro fleet.Rollout, _ map[fleet.ExecutionState]int) bool {
		return ro.State == fleet.RolloutPaused && ro.Reason != ""
	})
	if ev := w.newest(t); ev.Kind != "rollout.paused" || ev.Severity != "alarm" || ev.Detail["reason"] == "" {
		t.Errorf("audited as %+v", ev)
	}
	if o := w.recalled(t); o.Execution != open.Execution || o.Attempt != 1 {
		t.Errorf("called back %+v, want the one that is open", o)
	}
	w.link.plug("d4", fleet.Attested, false)
	w.Deliver(fleet.DeviceID(open.Device))
	w.Deliver("d4")
	select {
	case o := <-w.link.offered:
		t.Errorf("offered %+v in the pause", o)
	case <-time.After(1500 * time.Millisecond): // a round and a half
	}
	must(t, w.store.AddRollout(t.Context(), fleet.Rollout{
		ID: "ro-2", Tenant: "main", Release: "agent/1.2.3", State: fleet.RolloutRunning, CreatedAt: time.Now(), Spec: plain(9),
	}, fleet.AuditEvent{Kind: "rollout.started"}))
	w.set(t, id, fleet.RolloutPaused, fleet.RolloutAborted)
	w.Wake()
	for range 4 { // a rollout that is new to this process: everybody of it, nobody of the other
		if o := w.offer(t); o.Execution == open.Execution {
			t.Errorf("offered %+v of an aborted rollout", o)
		}
	}
}

// TestRunnerResumes shows that an offer made before a pause is made again after it.
func TestRunnerResumes(t *testing.T) {
	w := newWorld(t)
	w.link.plug("d1", fleet.Attested, false)
	id := w.start(t, 1)
	o := w.offer(t)
	w.move(t, o, fleet.ExecWaiting)
	w.set(t, id, fleet.RolloutRunning, fleet.RolloutPaused)
	w.Deliver("d1")
	if back := w.recalled(t); back.Execution != o.Execution {
		t.Errorf("called back %+v, want what waits", back)
	}
	select {
	case o := <-w.link.offered:
		t.Errorf("offered %+v in the pause", o)
	case <-time.After(1500 * time.Millisecond):
	}
	w.set(t, id, fleet.RolloutPaused, fleet.RolloutRunning)
	w.Wake()
	if again := w.offer(t); again.Execution != o.Execution {
		t.Errorf("offered %+v, want d1's once more", again)
	}
}

// TestRepair: a quarantined device is offered a repair and nothing else, also when it was quarantined in the moment in
// which it was to be offered it.
func TestRepair(t *testing.T) {
	closed := func(id fleet.DeviceID) bool { return id == "d2" || id == "d3" } // at the broker
	var w *world
	w = newWorld(t, func(o *rollout.Options) {
		o.Open = func(id fleet.DeviceID, c wire.Channel, payload []byte) error {
			if closed(id) {
				return errors.New("the open door is closed")
			}
			return w.link.Send(id, c, payload)
		}
	})
	w.link.plug("d1", fleet.Attested, false)
	w.link.plug("d2", fleet.Quarantined, false)
	w.link.plug("d3", fleet.Attested, false) // as it was a moment ago
	w.start(t, 9)
	if o := w.offer(t); o.Device != "d1" {
		t.Errorf("offered to %s, want d1", o.Device)
	}
	select {
	case o := <-w.link.offered:
		t.Errorf("offered to %s, which is not trusted", o.Device)
	case <-time.After(1500 * time.Millisecond): // a round and a half
	}
	repair := plain(9)
	repair.Repair = true
	must(t, w.store.AddRollout(t.Context(), fleet.Rollout{
		ID: "ro-2", Tenant: "main", Release: "agent/1.2.3", State: fleet.RolloutRunning, CreatedAt: time.Now(), Spec: repair,
	}, fleet.AuditEvent{Kind: "rollout.started"}))
	w.Wake()
	got := map[string]bool{}
	for range 2 {
		got[w.offer(t).Device] = true
	}
	if !got["d2"] || !got["d3"] { // d1 is at work on it already
		t.Errorf("repair offered to %v, want the two that have no offer", got)
	}
}
