package rollout_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/rollout"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// bound is how many executions of one rollout may be under way at once.
const bound = 50

// execs makes executions from words: a state, then + for one whose device has
// just come back, - for one that is offline, ! for one past its deadline.
func execs(words string) (list []fleet.Execution, online, again func(fleet.DeviceID) bool) {
	off, back := map[fleet.DeviceID]bool{}, map[fleet.DeviceID]bool{}
	for i, w := range strings.Fields(words) {
		d := fleet.DeviceID(fmt.Sprintf("d%d", i+1))
		e := fleet.Execution{ID: fleet.ExecutionID("x-" + d), Device: d, State: fleet.ExecutionState(strings.TrimRight(w, "+-!"))}
		if e.State != fleet.ExecQueued {
			e.OfferedAt = noon.Add(-time.Minute)
		}
		if strings.Contains(w, "!") {
			e.OfferedAt = noon.Add(-time.Hour - time.Second)
		}
		off[d], back[d] = strings.Contains(w, "-"), strings.Contains(w, "+")
		list = append(list, e)
	}
	return list, func(d fleet.DeviceID) bool { return !off[d] }, func(d fleet.DeviceID) bool { return back[d] }
}

func devices(list []fleet.Execution) string {
	var ids []string
	for _, e := range list {
		ids = append(ids, string(e.Device))
	}
	return strings.Join(ids, " ")
}

func TestNext(t *testing.T) {
	for _, c := range []struct {
		name, execs    string
		state          fleet.RolloutState
		maxFailed      int
		offer, timeout string
		to             fleet.RolloutState
	}{
		{"nobody is there yet", "", "RUNNING", 1, "", "", "RUNNING"},
		{"who is there is offered", "QUEUED QUEUED- QUEUED", "RUNNING", 1, "d1 d3", "", "RUNNING"},
		{"paused", "QUEUED OFFERED+ OFFERED!", "PAUSED", 1, "", "", "PAUSED"},
		{"aborted", "QUEUED", "ABORTED", 1, "", "", "ABORTED"},
		{"completed", "QUEUED", "COMPLETED", 1, "", "", "COMPLETED"},
		{"who comes back is offered once more", "OFFERED+ DOWNLOADING+ CHECKING OFFERED+-", "RUNNING", 1, "d1 d2", "", "RUNNING"},
		{"all good", "SUCCEEDED ALREADY_INSTALLED", "RUNNING", 1, "", "", "COMPLETED"},
		{"one bad is allowed", "SUCCEEDED FAILED", "RUNNING", 1, "", "", "COMPLETED"},
		{"zero means one", "SUCCEEDED FAILED QUEUED", "RUNNING", 0, "d3", "", "RUNNING"},
		{"two bad are not", "ROLLED_BACK FAILED QUEUED", "RUNNING", 1, "", "", "PAUSED"},
		{"refusals count", "REJECTED REJECTED QUEUED", "RUNNING", 1, "", "", "PAUSED"},
		{"timeouts count", "FAILED CHECKING! QUEUED", "RUNNING", 1, "", "d2", "PAUSED"},
		{"past the deadline", "OFFERED! DOWNLOADING QUEUED", "RUNNING", 1, "d3", "d1", "RUNNING"},
		{"past the deadline, back too late", "OFFERED!+ QUEUED-", "RUNNING", 1, "", "d1", "RUNNING"},
		{"the last one times out", "SUCCEEDED OFFERED!-", "RUNNING", 1, "", "d2", "COMPLETED"},
		{"waits for who is away", "SUCCEEDED QUEUED-", "RUNNING", 1, "", "", "RUNNING"},
	} {
		t.Run(c.name, func(t *testing.T) {
			list, online, again := execs(c.execs)
			p := rollout.Next(noon, fleet.Rollout{State: c.state, Deadline: time.Hour, MaxFailed: c.maxFailed}, list, online, again)
			if devices(p.Offer) != c.offer || devices(p.Timeout) != c.timeout || p.To != c.to {
				t.Errorf("got offer %q, timeout %q, %s; want %q, %q, %s", devices(p.Offer), devices(p.Timeout), p.To, c.offer, c.timeout, c.to)
			}
			if (p.Reason != "") != (p.To == fleet.RolloutPaused && c.state == fleet.RolloutRunning) {
				t.Errorf("%s because of %q", p.To, p.Reason)
			}
		})
	}
}

var states = []fleet.ExecutionState{
	fleet.ExecQueued, fleet.ExecOffered, fleet.ExecWaiting, fleet.ExecDownloading, fleet.ExecStaged, fleet.ExecInstalling, fleet.ExecInstalled, fleet.ExecRebooting,
	fleet.ExecChecking, fleet.ExecSucceeded, fleet.ExecAlready, fleet.ExecFailed, fleet.ExecRolledBack, fleet.ExecRejected, fleet.ExecTimedOut, fleet.ExecCanceled,
}

// TestPlanHolds draws a rollout at any point and looks at one plan.
func TestPlanHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ro := fleet.Rollout{
			State:    rapid.SampledFrom([]fleet.RolloutState{fleet.RolloutRunning, fleet.RolloutRunning, fleet.RolloutPaused, fleet.RolloutAborted, fleet.RolloutCompleted}).Draw(t, "state"),
			Deadline: time.Hour, MaxFailed: rapid.IntRange(0, 5).Draw(t, "max failed"),
		}
		var list []fleet.Execution
		online, back := map[fleet.DeviceID]bool{}, map[fleet.DeviceID]bool{}
		for i := range rapid.IntRange(0, 150).Draw(t, "devices") {
			e := fleet.Execution{Device: fleet.DeviceID(fmt.Sprint(i)), State: rapid.SampledFrom(states).Draw(t, "execution")}
			if rapid.Bool().Draw(t, "queued") {
				e.State = fleet.ExecQueued
			}
			if e.State != fleet.ExecQueued {
				e.OfferedAt = noon.Add(-time.Duration(rapid.IntRange(0, 70).Draw(t, "minutes")) * time.Minute)
			}
			online[e.Device], back[e.Device] = rapid.Bool().Draw(t, "online"), rapid.Bool().Draw(t, "back")
			list = append(list, e)
		}
		p := rollout.Next(noon, ro, list, func(d fleet.DeviceID) bool { return online[d] }, func(d fleet.DeviceID) bool { return back[d] })

		flying, bad, open := 0, 0, 0
		late := func(e fleet.Execution) bool { return noon.Sub(e.OfferedAt) > ro.Deadline }
		for _, e := range list {
			switch {
			case e.State.Ended() && !e.State.Good():
				bad++
			case e.State.Ended():
			case e.State == fleet.ExecQueued:
				open++
			case late(e):
				bad++
				if ro.State == fleet.RolloutRunning && !slices.Contains(p.Timeout, e) {
					t.Fatalf("%v is past its deadline and goes on", e)
				}
			default:
				flying++
				open++
			}
		}
		for _, e := range p.Timeout {
			if e.State == fleet.ExecQueued || e.State.Ended() || !late(e) {
				t.Fatalf("%v is timed out", e)
			}
		}
		fresh := 0
		for i, e := range p.Offer {
			if !online[e.Device] || e.State.Ended() || slices.Contains(p.Offer[:i], e) || slices.Contains(p.Timeout, e) {
				t.Fatalf("%v is offered", e)
			}
			if e.State == fleet.ExecQueued {
				fresh++
			} else if !back[e.Device] {
				t.Fatalf("%v is offered again for no reason", e)
			}
		}
		switch {
		case fresh > 0 && flying+fresh > bound:
			t.Fatalf("%d are under way and %d more are offered", flying, fresh)
		case p.To != fleet.RolloutRunning && len(p.Offer) > 0:
			t.Fatalf("offers to %s while it becomes %s", devices(p.Offer), p.To)
		case ro.State != fleet.RolloutRunning && (p.To != ro.State || len(p.Timeout) > 0):
			t.Fatalf("%s becomes %s, timeouts %s", ro.State, p.To, devices(p.Timeout))
		case ro.State == fleet.RolloutRunning && (p.To == fleet.RolloutPaused) != (bad > max(ro.MaxFailed, 1)):
			t.Fatalf("%d ended badly, at most %d may, and it becomes %s", bad, ro.MaxFailed, p.To)
		case p.To == fleet.RolloutCompleted && ro.State == fleet.RolloutRunning && (open > 0 || len(list) == 0):
			t.Fatalf("%d are open and it is complete", open)
		}
	})
}

// TestRolloutEnds plays rollouts to their end: devices come and go, do well or
// badly or nothing at all, and never are too many under way.
func TestRolloutEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ro := fleet.Rollout{State: fleet.RolloutRunning, Deadline: time.Hour, MaxFailed: rapid.IntRange(1, 20).Draw(t, "max failed")}
		list := make([]fleet.Execution, rapid.IntRange(1, 120).Draw(t, "devices"))
		for i := range list {
			list[i] = fleet.Execution{ID: fleet.ExecutionID(fmt.Sprint(i)), Device: fleet.DeviceID(fmt.Sprint(i)), State: fleet.ExecQueued}
		}
		luck := rapid.SliceOfN(rapid.IntRange(0, 9), 400, 400).Draw(t, "luck")
		now := noon
		for round := 0; ro.State == fleet.RolloutRunning; round++ {
			if round > 2000 {
				t.Fatal("it does not end")
			}
			roll := func(i int) int { return luck[(round*31+i*7)%len(luck)] }
			at := func(d fleet.DeviceID) int {
				return slices.IndexFunc(list, func(e fleet.Execution) bool { return e.Device == d })
			}
			online := func(d fleet.DeviceID) bool { return round%2 == 0 || roll(at(d)) < 5 }
			p := rollout.Next(now, ro, list, online, func(fleet.DeviceID) bool { return false })
			for _, e := range p.Timeout {
				list[at(e.Device)].State = fleet.ExecTimedOut
			}
			for _, e := range p.Offer {
				i := at(e.Device)
				list[i].State, list[i].OfferedAt = fleet.ExecOffered, now
			}
			flying := 0
			for _, e := range list {
				if !e.State.Ended() && e.State != fleet.ExecQueued {
					flying++
				}
			}
			if flying > bound {
				t.Fatalf("%d are under way", flying)
			}
			for i := range list {
				if list[i].State != fleet.ExecOffered {
					continue
				}
				switch roll(i) {
				case 0:
					list[i].State = fleet.ExecFailed
				case 1, 2, 3, 4:
					list[i].State = fleet.ExecSucceeded
				}
			}
			ro.State, now = p.To, now.Add(10*time.Minute)
		}
		bad := 0
		for _, e := range list {
			if e.State.Ended() && !e.State.Good() {
				bad++
			}
		}
		if ro.State == fleet.RolloutCompleted && bad > ro.MaxFailed {
			t.Fatalf("it is complete with %d bad ends, at most %d may", bad, ro.MaxFailed)
		}
	})
}
