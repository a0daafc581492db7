package simulator_test

import (
	"testing"

	"github.com/tillward/tillward/simulator"
)

// TestOpening: a chain comes back at one moment with a backlog and full windows. What others say meanwhile is
// acknowledged ahead of most of what is on its way; the backlog itself is not, so the measure can tell the two apart.
func TestOpening(t *testing.T) {
	t.Parallel()
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	r, err := simulator.Opening(t.Context(), simulator.OpeningOptions{Bin: bin, Dir: t.TempDir(), Late: 40, Batches: 50, Samples: 120, Working: 4, Say: t.Output()})
	t.Logf("%+v", r)
	if err != nil {
		t.Fatal(err)
	}
	if r.Backlog != 40*50 || r.Live == 0 || r.Flight < 40*20 {
		t.Fatalf("got %d of the backlog, %d live messages, %d on the way", r.Backlog, r.Live, r.Flight)
	}
	if r.Overtaken > r.Flight/3 {
		t.Errorf("a live message was overtaken by %d of the backlog, of which %d were on their way", r.Overtaken, r.Flight)
	}
	if r.Beside < 2*r.Overtaken {
		t.Errorf("a message of the backlog was overtaken by %d, a live one by %d: the two are not told apart", r.Beside, r.Overtaken)
	}
}
