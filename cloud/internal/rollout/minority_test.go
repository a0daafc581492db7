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

// BenchmarkStep is one step over 150,000 devices in the middle of a rollout, BenchmarkFirstStep the one that assigns
// waves, on a processor without others.
func BenchmarkStep(b *testing.B) { steps(b, rollout.Large(150_000, false)) }

func BenchmarkFirstStep(b *testing.B) { steps(b, rollout.Large(150_000, true)) }

// steps counts the time of the processor: what else runs on the machine is in no step.
func steps(b *testing.B, step func() rollout.Plan) {
	b.Helper()
	busy := func() time.Duration {
		var r syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
			b.Fatal(err)
		}
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	if p := step(); len(p.Offer) < 100 || p.To != fleet.RolloutRunning {
		b.Fatalf("offers %d, it becomes %s: %s", len(p.Offer), p.To, p.Reason)
	}
	runtime.GC()
	began := busy()
	for b.Loop() {
		step()
	}
	b.ReportMetric(float64((busy()-began).Milliseconds())/float64(b.N), "cpu-ms/op")
}
