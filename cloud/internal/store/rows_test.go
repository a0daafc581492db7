package store_test

import (
	"testing"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
)

// TestSomeAgain: a group of which some samples are there already, some came twice in it, and some are new. Each is
// counted once, for the intake that brought it, and the newest of its series is right.
func TestSomeAgain(t *testing.T) {
	s, ds := enrolled(t, 2)
	batch := func(d int, seq uint64, samples, from int) store.Intake {
		in := store.Intake{Device: ds[d].ID, Tenant: "main", At: noon}
		for k := range samples {
			in.Samples = append(in.Samples, fleet.Sample{Boot: [16]byte{1}, Seq: seq, Index: from + k, At: minute(float64(seq)), Name: "n", Value: float64(seq)})
		}
		return in
	}
	commit := func(in ...store.Intake) []store.Outcome {
		t.Helper()
		out, err := s.Commit(t.Context(), in)
		must(t, err)
		return out
	}
	commit(batch(0, 1, 50, 0), batch(0, 2, 50, 0), batch(1, 1, 50, 0))
	var in []store.Intake
	for seq := range uint64(40) { // 1 and 2 are there, of 3 a part comes first, 5 comes twice
		in = append(in, batch(0, seq+1, 50, 0))
	}
	in = append(in[:2:2], append([]store.Intake{batch(0, 3, 20, 10), batch(0, 5, 50, 0)}, in[2:]...)...)
	in = append(in, batch(1, 2, 1, 0), batch(1, 1, 60, 0))
	out := commit(in...)
	for n, o := range out {
		fresh, again := len(in[n].Samples), 0
		switch n {
		case 0, 1:
			fresh, again = 0, 50
		case 4: // 3 as a whole
			fresh, again = 30, 20
		case 6: // 5 for the second time
			fresh, again = 0, 50
		case len(in) - 1:
			fresh, again = 10, 50
		}
		if o.NewSamples != fresh || o.Duplicates != again {
			t.Errorf("intake %d: got %d new and %d again, want %d and %d", n, o.NewSamples, o.Duplicates, fresh, again)
		}
	}
	for d, want := range []int{40 * 50, 61} {
		got, err := s.DeviceByID(t.Context(), ds[d].ID)
		must(t, err)
		if got.Samples != uint64(want) {
			t.Errorf("device %d: got %d samples, want %d", d, got.Samples, want)
		}
		all, err := s.Series(t.Context(), "main", ds[d].ID)
		must(t, err)
		if len(all) != 1 || all[0].Count != uint64(want) || all[0].Last != float64([]int{40, 2}[d]) {
			t.Errorf("device %d: got %+v", d, all)
		}
	}
}
