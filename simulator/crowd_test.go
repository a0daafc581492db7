package simulator_test

import (
	"testing"

	"github.com/tillward/tillward/simulator"
)

// TestCrowd is the short form of the scenario rollout-minority: a fleet on the wire of which a third is away and one
// model cannot run the release. The model is held in time, everybody else has it, and who comes back late gets it, too.
func TestCrowd(t *testing.T) {
	t.Parallel()
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	r, err := simulator.Crowd(t.Context(), simulator.CrowdOptions{
		Bin: bin, Dir: t.TempDir(), Devices: 400, Offline: 0.3, Minority: 0.1, Of: 0.1, Sample: 4, Bad: 30, Limit: 20, Away: 8, Out: t.Output(), Say: t.Output(),
	})
	t.Logf("%+v", r)
	if err != nil {
		t.Fatal(err)
	}
}

// TestCrowdCanFail: with gates that judge nothing the bad model is hit, and the scenario says so.
func TestCrowdCanFail(t *testing.T) {
	t.Parallel()
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	r, err := simulator.Crowd(t.Context(), simulator.CrowdOptions{
		Bin: bin, Dir: t.TempDir(), Devices: 200, Offline: 0.3, Minority: 0.2, Of: 0.2, Sample: 1000, Bad: 99, Away: 8, Out: t.Output(), Say: t.Output(),
	})
	if err == nil || r.OK || r.Hit < r.Limit {
		t.Fatalf("a rollout that nobody stopped was called good: %+v", r)
	}
}
