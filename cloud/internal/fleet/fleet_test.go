package fleet_test

import (
	"slices"
	"testing"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

var executionStates = []fleet.ExecutionState{
	fleet.ExecQueued, fleet.ExecOffered, fleet.ExecWaiting, fleet.ExecDownloading, fleet.ExecStaged, fleet.ExecInstalling,
	fleet.ExecInstalled, fleet.ExecRebooting, fleet.ExecChecking,
	fleet.ExecSucceeded, fleet.ExecAlready, fleet.ExecFailed, fleet.ExecRolledBack, fleet.ExecRejected, fleet.ExecTimedOut, fleet.ExecCanceled, fleet.ExecRemoved,
}

// TestExecutionMoves tries every move: forward and into an end is one, staying, backwards and out of an end is
// none, but for TIMED_OUT and CANCELED, which the service said without knowing.
func TestExecutionMoves(t *testing.T) {
	const ends = 9 // states before the first end
	for i, from := range executionStates {
		for j, to := range executionStates {
			want := i < ends && j > i
			if from == fleet.ExecTimedOut || from == fleet.ExecCanceled {
				want = j >= ends && to != fleet.ExecTimedOut && to != fleet.ExecCanceled && to != fleet.ExecRemoved
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

// TestExecutionTakes: within an attempt the number decides; what is of another attempt is old news or a lie; without a
// number a step only leads on; and whoever decided on what has changed since decided on nothing.
func TestExecutionTakes(t *testing.T) {
	const wait, down, staged, install, timeout, good = fleet.ExecWaiting, fleet.ExecDownloading, fleet.ExecStaged, fleet.ExecInstalling, fleet.ExecTimedOut, fleet.ExecSucceeded
	at := func(s fleet.ExecutionState) fleet.Execution {
		return fleet.Execution{State: s, Attempt: 2, Step: 5, Version: 9, Done: 10, Reason: "window-download"}
	}
	for name, c := range map[string]struct {
		e    fleet.Execution
		step fleet.ExecutionStep
		want bool
	}{
		"the next step":                        {at(down), fleet.ExecutionStep{State: staged, Attempt: 2, Number: 6}, true},
		"back to waiting":                      {at(down), fleet.ExecutionStep{State: wait, Attempt: 2, Number: 6}, true},
		"a step that was lost in between":      {at(down), fleet.ExecutionStep{State: install, Attempt: 2, Number: 9}, true},
		"the same step again":                  {at(down), fleet.ExecutionStep{State: down, Attempt: 2, Number: 5}, false},
		"an older step":                        {at(down), fleet.ExecutionStep{State: staged, Attempt: 2, Number: 4}, false},
		"a step of an older attempt":           {at(down), fleet.ExecutionStep{State: good, Attempt: 1, Number: 9}, false},
		"a step of an attempt nobody offered":  {at(down), fleet.ExecutionStep{State: good, Attempt: 3, Number: 1}, false},
		"faster than the offer was noted":      {at(fleet.ExecQueued), fleet.ExecutionStep{State: down, Attempt: 3, Number: 1}, true},
		"an attempt too far":                   {at(fleet.ExecQueued), fleet.ExecutionStep{State: down, Attempt: 4, Number: 1}, false},
		"old news while it is queued again":    {at(fleet.ExecQueued), fleet.ExecutionStep{State: fleet.ExecFailed, Attempt: 2, Number: 5}, false},
		"the truth after a time-out":           {at(timeout), fleet.ExecutionStep{State: good, Attempt: 2, Number: 8}, true},
		"no end after a time-out":              {at(timeout), fleet.ExecutionStep{State: install, Attempt: 2, Number: 8}, false},
		"the truth after it was canceled":      {at(fleet.ExecCanceled), fleet.ExecutionStep{State: good, Attempt: 2, Number: 8}, true},
		"it did as it was told":                {at(fleet.ExecCanceled), fleet.ExecutionStep{State: fleet.ExecFailed, Reason: "canceled", Attempt: 2, Number: 8}, false},
		"after an end that the device said":    {at(good), fleet.ExecutionStep{State: fleet.ExecFailed, Attempt: 2, Number: 8}, false},
		"uncounted, on":                        {at(down), fleet.ExecutionStep{State: staged}, true},
		"uncounted, back":                      {at(staged), fleet.ExecutionStep{State: down}, false},
		"uncounted, more bytes":                {at(down), fleet.ExecutionStep{State: down, Done: 11}, true},
		"uncounted, as many bytes":             {at(down), fleet.ExecutionStep{State: down, Done: 10}, false},
		"uncounted, waits for something else":  {at(wait), fleet.ExecutionStep{State: wait, Reason: "power"}, true},
		"the service, of what it saw":          {at(down), fleet.ExecutionStep{State: timeout, Version: 9}, true},
		"the service, of what has changed":     {at(down), fleet.ExecutionStep{State: timeout, Version: 8}, false},
		"the service offers another attempt":   {at(fleet.ExecQueued), fleet.ExecutionStep{State: fleet.ExecOffered, Attempt: 3}, true},
		"the service offers what runs already": {at(down), fleet.ExecutionStep{State: fleet.ExecOffered, Attempt: 3}, false},
		"no state at all":                      {at(down), fleet.ExecutionStep{State: "DANCING", Attempt: 2, Number: 6}, false},
	} {
		if got := c.e.Takes(c.step); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
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
