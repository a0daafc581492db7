package ingest_test

import (
	"slices"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/cloud/wire"
)

// offered starts a rollout on device a and offers it.
func (x *site) offered() fleet.ExecutionID {
	x.t.Helper()
	ctx, ev := x.t.Context(), fleet.AuditEvent{Kind: "rollout.add", Actor: "ingest", Subject: "r1"}
	for _, err := range []error{
		x.s.AddRelease(ctx, fleet.Release{ID: "agent/1.2.0", Component: "agent", Class: "agent", Version: "1.2.0"}, ev),
		x.s.AddRollout(ctx, fleet.Rollout{ID: "r1", Tenant: "main", Release: "agent/1.2.0", State: fleet.RolloutRunning, StartedAt: noon, Spec: fleet.Spec{Filter: fleet.Filter{Devices: []fleet.DeviceID{"a"}}}}, ev),
	} {
		if err != nil {
			x.t.Fatal(err)
		}
	}
	if n, err := x.s.Enlist(ctx, "r1"); n != 1 || err != nil {
		x.t.Fatal(n, err)
	}
	id := x.execution().ID
	if e, err := x.s.MoveExecution(ctx, store.ExecutionStep{ID: id, State: fleet.ExecOffered, Attempt: 1}, noon); e == nil || err != nil {
		x.t.Fatal(e, err)
	}
	return id
}

func (x *site) execution() fleet.Unit {
	x.t.Helper()
	us, _, err := x.s.Units(x.t.Context(), "r1", 0)
	if err != nil || len(us) != 1 {
		x.t.Fatal(us, err)
	}
	return us[0]
}

// TestUpdate hands on all that a device says of an update, in whatever order it comes.
func TestUpdate(t *testing.T) {
	x := start(t)
	id := x.offered()
	seq := uint64(0)
	say := func(attempt, step uint32, state fleet.ExecutionState, reason string) {
		t.Helper()
		seq++
		x.ok(wire.Result, &wire.ResultReport{
			Head: head(seq), Kind: wire.OrderOffer, ID: string(id), State: string(state), Reason: reason, From: "1.0.0", To: "1.2.0", Done: 10, Total: 100,
			Attempt: attempt, Step: step, Wire: 10, Peer: 20, Medium: 30, Reused: 40,
		})
	}
	say(1, 1, fleet.ExecDownloading, "")
	say(1, 3, fleet.ExecWaiting, "window-install")
	say(1, 2, fleet.ExecStaged, "") // overtaken
	if e := x.execution(); e.State != fleet.ExecWaiting || e.Reason != "window-install" || e.Step != 3 || e.From != "1.0.0" || e.Bytes != (fleet.Bytes{Wire: 10, Peer: 20, Medium: 30, Reused: 40}) {
		t.Errorf("got %+v", e)
	}
	say(2, 4, fleet.ExecSucceeded, "") // of an attempt that nobody offered
	if e := x.execution(); e.State != fleet.ExecWaiting {
		t.Errorf("got %+v", e)
	}

	// The result is lost; what it runs says it all.
	x.ok(wire.State, &wire.StateReport{
		Head: head(99), AgentVersion: "1.2.0", Slot: "b", Installed: []wire.Installed{{Component: "agent", Version: "1.2.0", Slot: "b", Hash: "ab"}, {Component: "ops/main/pos", Version: "4.0.0", Trial: true}},
		FreeMiB: 700, Supply: "battery", Share: "192.168.1.7:9443", Crashes: 3,
	})
	e, d := x.execution(), x.device()
	if e.State != fleet.ExecSucceeded || e.Reason != "reconciled" {
		t.Errorf("execution: got %+v", e)
	}
	want := []fleet.Installed{{Component: "agent", Version: "1.2.0", Slot: "b", Hash: "ab"}, {Component: "ops/main/pos", Version: "4.0.0", Trial: true}}
	if !slices.Equal(d.Installed, want) || d.FreeMiB != 700 || d.Supply != "battery" || d.Share != "192.168.1.7:9443" {
		t.Errorf("device: got %+v", d)
	}
	reconciled := 0
	for range 5 {
		reconciled += len((<-x.stored).Reconciled)
	}
	if reconciled != 1 {
		t.Errorf("told of %d that were reconciled, want 1", reconciled)
	}
}

// TestStatesOfTheService: a device cannot say what is the service's to say, and its twin, what it may.
func TestStatesOfTheService(t *testing.T) {
	for _, state := range []fleet.ExecutionState{fleet.ExecQueued, fleet.ExecRemoved, fleet.ExecTimedOut, fleet.ExecCanceled, fleet.ExecDownloading, fleet.ExecFailed} {
		x := start(t)
		id := x.offered()
		x.ok(wire.Result, &wire.ResultReport{Head: head(1), Kind: wire.OrderOffer, ID: string(id), State: string(state), Attempt: 1, Step: 1})
		may := state == fleet.ExecDownloading || state == fleet.ExecFailed
		if got := x.execution().State; (got == state) != may {
			t.Errorf("%s: got %s, may %v", state, got, may)
		}
		if refused := slices.Contains(x.kinds(), "ingest.refused a"); refused == may {
			t.Errorf("%s: refused %v, may %v", state, refused, may)
		}
	}
}

// TestShare: a device sends others only to where a till of the site can be.
func TestShare(t *testing.T) {
	x := start(t)
	seq := uint64(0)
	for addr, want := range map[string]string{
		"192.168.1.7:9443": "192.168.1.7:9443", "10.1.2.3:1": "10.1.2.3:1", "127.0.0.1:9443": "127.0.0.1:9443", "[fd00::7]:9443": "[fd00::7]:9443", "[fe80::7]:9443": "[fe80::7]:9443",
		"198.51.100.7:9443": "", "[2001:db8::7]:9443": "", "evil.example:443": "", "localhost:9443": "", "192.168.1.7": "", "192.168.1.7:0": "", "192.168.1.7:443/x": "", "": "",
	} {
		seq++
		if err := x.sendAt(noon.Add(time.Duration(seq)), "a", wire.State, encode(t, &wire.StateReport{Head: head(seq), AgentVersion: "1", Share: addr})); err != nil {
			t.Fatal(err)
		}
		if got := x.device().Share; got != want {
			t.Errorf("%q: got %q, want %q", addr, got, want)
		}
	}
}
