package rollout_test

import (
	"fmt"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/rollout"
)

// TestBadMinority brings 10,000 devices, 30 % of them away, a release that does harm to 4 % of them, all of one model:
// the model is held before 200 of it were offered the release, and everybody else who is there gets it.
func TestBadMinority(t *testing.T) {
	waves := []fleet.Wave{{Name: "canary", Percent: 1, Soak: 30 * time.Minute}, {Name: "tenth", Percent: 10, Soak: 30 * time.Minute}, {Name: "rest"}}
	for _, c := range []struct {
		name  string
		model int // devices of the bad model
		fate  fate
		waves []fleet.Wave
	}{
		{"all of a small model", 400, bad, waves},
		{"all of a small model, in one wave", 400, bad, nil},
		{"they fail, and are tried again", 400, fails, waves},
		{"they never come back from the restart", 400, dies, nil},
		{"a fifth of a model", 2000, bad, waves},
		{"a fifth of a model, in one wave", 2000, bad, nil},
		{"an eighth of a model, in one wave", 3200, bad, nil},
	} {
		for seed := range uint64(1) {
			t.Run(fmt.Sprintf("%s/%d", c.name, seed), func(t *testing.T) {
				t.Parallel()
				g := newGame(t, seed, fleet.Spec{Waves: c.waves, Unreachable: time.Hour, PerSite: 4, InFlight: 500, Gate: fleet.Gate{MinSample: 20}})
				there, sick := 0, 400
				for i := range 10000 {
					model, f := fmt.Sprintf("m%02d", i%9), well
					if i < c.model {
						model = "lemon"
						if i*sick/c.model != (i+1)*sick/c.model { // spread over the model
							f = c.fate
						}
					}
					g.join(model, fmt.Sprintf("s%d", g.rnd.IntN(310)), f)
					if g.rnd.IntN(10) < 3 {
						g.lose(i)
						g.units[i].LastSeen = g.now.Add(-2 * time.Hour)
					} else if model != "lemon" {
						there++
					}
				}
				for minutes := 0; g.ro.State == fleet.RolloutRunning && minutes < 1500; minutes++ {
					g.round()
					g.live()
				}
				good := 0
				for _, u := range g.units {
					if u.Model != "lemon" && u.State == fleet.ExecSucceeded {
						good++
					}
				}
				t.Logf("after %v: %d of the model were offered it, %d of %d others run it; %s", g.now.Sub(noon), len(g.hit["lemon"]), good, there, g.ro.Reason)
				if n := len(g.hit["lemon"]); n >= 200 || holds(g.ro.Holds) != "lemon" {
					t.Errorf("%d of the model were offered it; held is %q", n, holds(g.ro.Holds))
				}
				if g.ro.State != fleet.RolloutPaused || good != there {
					t.Errorf("it is %s (%s), and %d of %d others run it", g.ro.State, g.ro.Reason, good, there)
				}
			})
		}
	}
}

// large is a rollout over many devices in the middle of its way: the worst that a step has to look at.
func large(devices int) (fleet.Rollout, []fleet.Unit, rollout.View) {
	ro := fleet.Rollout{
		ID: "ro", State: fleet.RolloutRunning, StartedAt: noon.Add(-time.Hour),
		Spec: fleet.Spec{
			PerSite: 2, InFlight: 2000, Download: "20:00-06:00", Install: "mon-sat 22:00-05:00",
			Waves: []fleet.Wave{{Name: "canary", Percent: 1, Soak: time.Hour}, {Name: "tenth", Percent: 10, Soak: time.Hour}, {Name: "rest"}},
		},
		Waves: []fleet.WaveStatus{{State: fleet.WavePassed}, {State: fleet.WavePassed}, {State: fleet.WaveRunning, StartedAt: noon.Add(-time.Minute)}},
	}
	units := make([]fleet.Unit, devices)
	runs := map[string]string{"agent": "1.0.0", "os/m/prod": "3.0.0"}
	zones := []string{"Europe/Berlin", "Europe/London", "America/New_York", ""}
	v := rollout.View{
		Release: fleet.Release{ID: "agent/2.0.0", Component: "agent", Version: "2.0.0", Requires: map[string]string{"os": "2.0.0"}, Targets: []fleet.Target{{Path: "agent/2.0.0/a", Length: 10 << 20}}},
		Sites:   map[string]fleet.Site{}, Presence: nil,
	}
	there := make(map[fleet.DeviceID]rollout.Presence, devices)
	for i := range units {
		u := &units[i]
		*u = fleet.Unit{
			Execution: fleet.Execution{ID: fleet.ExecutionID(fmt.Sprintf("x-%012d", i)), Device: fleet.DeviceID(fmt.Sprintf("device-%016d", i)), State: fleet.ExecQueued, Wave: 2, EnteredAt: noon.Add(-time.Hour)},
			Model:     fmt.Sprintf("model-%d", i%23), Site: fmt.Sprintf("site-%05d", i/5), LastSeen: noon.Add(-time.Minute), Installed: runs, FreeMiB: 900,
		}
		v.Sites[u.Site] = fleet.Site{Name: u.Site, Zone: zones[i/5%len(zones)]}
		there[u.Device] = rollout.Here
		switch {
		case i%10 < 3:
			there[u.Device] = rollout.Away
		case i%10 < 7:
			u.State, u.Attempt, u.OfferedAt, u.Wave = fleet.ExecSucceeded, 1, noon.Add(-time.Hour), i%3
		case i%100 == 8:
			u.State, u.Attempt, u.OfferedAt, u.EnteredAt = fleet.ExecWaiting, 1, noon.Add(-time.Minute), noon.Add(-time.Minute)
		case i%1000 == 9:
			u.State, u.Attempt, u.OfferedAt = fleet.ExecFailed, 3, noon.Add(-time.Hour)
		}
	}
	v.Presence = func(d fleet.DeviceID) rollout.Presence { return there[d] }
	return ro, units, v
}

// BenchmarkStep is one step over 150,000 devices in the middle of a rollout, BenchmarkFirstStep the one that assigns
// waves. One core has to do it in 200 ms.
func BenchmarkStep(b *testing.B) {
	ro, units, v := large(150_000)
	p := rollout.Next(noon, ro, units, v)
	b.Logf("offers %d, stopped %v, %s", len(p.Offer), p.Stopped, p.To)
	steps(b, ro, units, v)
}

// steps counts the time of the processor: what else runs on the machine is in no step.
func steps(b *testing.B, ro fleet.Rollout, units []fleet.Unit, v rollout.View) {
	b.Helper()
	busy := func() time.Duration {
		var r syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
			b.Fatal(err)
		}
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	runtime.GC()
	began := busy()
	for b.Loop() {
		rollout.Next(noon, ro, units, v)
	}
	b.ReportMetric(float64((busy()-began).Milliseconds())/float64(b.N), "cpu-ms/op")
}

func BenchmarkFirstStep(b *testing.B) {
	ro, units, v := large(150_000)
	ro.Waves = nil
	for i := range units {
		units[i].State, units[i].Wave, units[i].OfferedAt, units[i].Attempt = fleet.ExecQueued, -1, time.Time{}, 0
	}
	steps(b, ro, units, v)
}
