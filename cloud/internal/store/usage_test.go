package store_test

import (
	"slices"
	"testing"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
)

// TestUsageReadsOn reads more than fits at once, batch by batch, each sample once.
func TestUsageReadsOn(t *testing.T) {
	x := newTill(t)
	x.says(noon, "OK", "", noon)
	const batches, each = 50, 200
	for n := range batches {
		in := store.Intake{Device: x.id, Tenant: "main", At: noon}
		for k := range each {
			in.Samples = append(in.Samples, fleet.Sample{Boot: [16]byte{1}, Seq: uint64(100 + n), Index: k, At: noon, Peripheral: "receipt", Name: "ReceiptLineFeedCount", Value: float64(n*each + k), Epoch: 5, Kept: true})
		}
		_, err := x.s.Commit(t.Context(), []store.Intake{in})
		must(t, err)
	}
	got := 0
	for more := true; more; {
		u, err := x.s.Usage(t.Context(), x.id)
		must(t, err)
		for _, s := range u.Samples {
			if s.Value != float64(got) || s.Epoch != 5 || !s.Kept || s.Boot != [16]byte{1} {
				t.Fatalf("sample %d: got %+v", got, s)
			}
			got++
		}
		_, err = x.s.Derive(t.Context(), []fleet.Derived{{Device: x.id, Tenant: "main", Cursor: u.Next, Body: []byte("{}")}}, noon)
		must(t, err)
		more = u.More
	}
	if got != batches*each {
		t.Errorf("got %d samples, want %d", got, batches*each)
	}
}

// TestUsageReadsEventsFirst has more happen than is read at once: what was counted
// comes with the last of it.
func TestUsageReadsEventsFirst(t *testing.T) {
	x := newTill(t)
	x.says(noon, "OK", "", noon)
	const batches, each = 12, 200
	for n := range batches {
		in := store.Intake{Device: x.id, Tenant: "main", At: noon}
		in.Samples = append(in.Samples, fleet.Sample{Boot: [16]byte{1}, Seq: uint64(100 + n), At: minute(float64(n)), Peripheral: "receipt", Name: "ReceiptLineFeedCount", Value: float64(n)})
		for k := range each {
			in.Events = append(in.Events, fleet.PeripheralEvent{Boot: [16]byte{1}, Seq: uint64(200 + n), Index: k, At: minute(float64(n)), Peripheral: "receipt", Category: "POSPrinter", Code: "COVER_OPEN"})
		}
		_, err := x.s.Commit(t.Context(), []store.Intake{in})
		must(t, err)
	}
	events, samples := 0, 0
	for more := true; more; {
		u, err := x.s.Usage(t.Context(), x.id)
		must(t, err)
		if events += len(u.Events); len(u.Samples) > 0 && events < batches*each {
			t.Fatalf("got %d samples and only %d events", len(u.Samples), events)
		}
		samples += len(u.Samples)
		_, err = x.s.Derive(t.Context(), []fleet.Derived{{Device: x.id, Tenant: "main", Cursor: u.Next, Body: []byte("{}")}}, noon)
		must(t, err)
		more = u.More
	}
	if events != batches*each || samples != batches {
		t.Errorf("got %d events and %d samples, want %d and %d", events, samples, batches*each, batches)
	}
}

// TestUsageOfManyRuns has a till tell at once of twenty days in each of which it
// was switched on.
func TestUsageOfManyRuns(t *testing.T) {
	x := newTill(t)
	x.says(noon, "OK", "", noon)
	count := func(boot, seq int) {
		_, err := x.s.Commit(t.Context(), []store.Intake{{Device: x.id, Tenant: "main", At: noon, Samples: []fleet.Sample{
			{Boot: [16]byte{byte(boot)}, Seq: uint64(seq), At: noon, Peripheral: "receipt", Name: "ReceiptLinePrintedCount", Value: float64(boot)},
		}}})
		must(t, err)
	}
	read := func() (got []float64) {
		t.Helper()
		for more := true; more; {
			u, err := x.s.Usage(t.Context(), x.id)
			must(t, err)
			for _, v := range u.Samples {
				got = append(got, v.Value)
			}
			if more = u.More; !more && len(u.Next.Boots) > 4 {
				t.Errorf("the cursor is of %d runs", len(u.Next.Boots))
			}
			_, err = x.s.Derive(t.Context(), []fleet.Derived{{Device: x.id, Tenant: "main", Cursor: u.Next, Body: []byte("{}")}}, noon)
			must(t, err)
		}
		return got
	}
	for n := range 20 {
		count(100+n, 1)
	}
	if got := read(); len(got) != 20 || !slices.IsSorted(got) {
		t.Errorf("got %v, want each of twenty, in their order", got)
	}
	if got := read(); len(got) != 0 {
		t.Errorf("got %v a second time", got)
	}
	count(118, 2) // the last but one, late
	count(120, 1)
	count(101, 2) // too late
	if got := read(); len(got) != 2 {
		t.Errorf("got %v, want what two runs said since", got)
	}
}
