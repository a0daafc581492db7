package fleet_test

import (
	"slices"
	"testing"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

var executionStates = []fleet.ExecutionState{
	fleet.ExecQueued, fleet.ExecOffered, fleet.ExecWaiting, fleet.ExecDownloading, fleet.ExecStaged, fleet.ExecInstalling,
	fleet.ExecInstalled, fleet.ExecRebooting, fleet.ExecChecking,
	fleet.ExecSucceeded, fleet.ExecAlready, fleet.ExecFailed, fleet.ExecRolledBack, fleet.ExecRejected, fleet.ExecTimedOut, fleet.ExecCanceled,
}

// TestExecutionMoves tries every move: forward and into an end is one, staying, backwards and out of an end is
// none, but for TIMED_OUT, which the service only guessed.
func TestExecutionMoves(t *testing.T) {
	const ends = 9 // states before the first end
	for i, from := range executionStates {
		for j, to := range executionStates {
			want := i < ends && j > i
			if from == fleet.ExecTimedOut {
				want = j >= ends && to != fleet.ExecTimedOut
			}
			if got := from.MayBecome(to); got != want {
				t.Errorf("%s to %s: got %v, want %v", from, to, got, want)
			}
		}
		if from.Ended() != (i >= ends) || !from.Known() {
			t.Errorf("%s: ended %v, known %v", from, from.Ended(), from.Known())
		}
		if good := from == fleet.ExecSucceeded || from == fleet.ExecAlready; from.Good() != good {
			t.Errorf("%s: good %v", from, from.Good())
		}
		if from.MayBecome("DANCING") || fleet.ExecutionState("DANCING").MayBecome(from) {
			t.Errorf("%s: moves from or to what is no state", from)
		}
	}
	if fleet.ExecutionState("DANCING").Known() {
		t.Error("an unknown state is known")
	}
}

func TestCommandEnds(t *testing.T) {
	for s, want := range map[fleet.CommandState]bool{
		fleet.CommandQueued: false, fleet.CommandSent: false, "": false, "DANCING": false,
		fleet.CommandSucceeded: true, fleet.CommandFailed: true, fleet.CommandRejected: true, fleet.CommandExpired: true,
	} {
		if s.Ended() != want {
			t.Errorf("%q: got %v, want %v", s, s.Ended(), want)
		}
	}
}

func TestRoles(t *testing.T) {
	roles := []fleet.Role{fleet.Viewer, fleet.Operator, fleet.Admin}
	for i, have := range roles {
		for j, need := range roles {
			if have.Covers(need) != (i >= j) {
				t.Errorf("%s covers %s: got %v", have, need, have.Covers(need))
			}
		}
		for _, none := range []fleet.Role{"", "root"} {
			if have.Covers(none) || none.Covers(have) || none.Covers(none) {
				t.Errorf("%s and %q cover each other", have, none)
			}
		}
	}
}

func TestPageIsBounded(t *testing.T) {
	for limit, want := range map[int]int{-1: 100, 0: 100, 1: 1, 1000: 1000, 1001: 1000} {
		if got := (fleet.Page{Limit: limit}).Bounded(); got != want {
			t.Errorf("limit %d: got %d, want %d", limit, got, want)
		}
	}
}

func TestVerbsAreACopy(t *testing.T) {
	fleet.Verbs()[0] = "shoot"
	if !slices.Contains(fleet.Verbs(), "identify") || slices.Contains(fleet.Verbs(), "shoot") {
		t.Errorf("got %v", fleet.Verbs())
	}
}
