package peripheral_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/peripheral"
	"github.com/tillward/tillward/cloud/internal/store"
)

// record is one message of a till that was away: three runs of its agent, a count each minute, a roll of paper now and
// then.
type record struct {
	intake fleet.Intake
	event  bool
}

const perRun = 400

func away(id fleet.DeviceID, began time.Time) (all []record) {
	lines := 0.0
	for run := range byte(3) {
		seq := uint64(0)
		next := func(in fleet.Intake, event bool) {
			in.Device, in.Tenant, in.At = id, "main", time.Now()
			all = append(all, record{in, event})
		}
		for n := range perRun {
			at := began.Add(time.Duration(int(run)*(perRun+30)+n) * time.Minute)
			lines += 17
			if seq++; n%100 == 50 {
				for _, code := range []string{"REC_EMPTY", "REC_PAPEROK"} {
					next(fleet.Intake{Events: []fleet.PeripheralEvent{{Boot: [16]byte{run}, Seq: seq, At: at, Peripheral: "receipt", Category: "POSPrinter", Code: code}}}, true)
					seq++
				}
			}
			next(fleet.Intake{Samples: []fleet.Sample{{
				Boot: [16]byte{run}, Seq: seq, At: at.Add(time.Second), Peripheral: "receipt", Name: "ReceiptLineFeedCount", Value: lines, Epoch: 7, Kept: true,
			}}}, false)
		}
	}
	return all
}

// derived stores messages in an order, derives after every few as the worker does, and returns what is known at the end.
func derived(t *testing.T, b *store.Store, id fleet.DeviceID, all []record) string {
	t.Helper()
	printer := &peripheral.Printer{RollLines: 1700}
	for n, r := range all {
		if _, err := b.Commit(t.Context(), []fleet.Intake{r.intake}); err != nil {
			t.Fatal(err)
		}
		for more := n%7 == 0 || n == len(all)-1; more; {
			u, err := b.Usage(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			printer.Fold(u.Samples, u.Events, time.UTC)
			if _, err := b.Derive(t.Context(), []fleet.Derived{{Device: id, Tenant: "main", Cursor: u.Next, Body: []byte("{}")}}, time.Now()); err != nil {
				t.Fatal(err)
			}
			more = u.More
		}
	}
	got, err := json.Marshal(printer)
	if err != nil {
		t.Fatal(err)
	}
	return string(got)
}

// TestLiveBeforeBacklog: a till that was away says what is now before what was then. What is derived is the same as if
// it had said all in order.
func TestLiveBeforeBacklog(t *testing.T) {
	b := newBench(t, 0, fleet.Device{ID: "in-order", Tenant: "main"}, fleet.Device{ID: "lanes", Tenant: "main"}, fleet.Device{ID: "careless", Tenant: "main"})
	b.stop()
	b.stop = func() {}
	began := time.Now().Add(-48 * time.Hour).Truncate(time.Hour)
	want := derived(t, b.Store, "in-order", away("in-order", began))

	mix := func(id fleet.DeviceID, ahead bool) (out []record) {
		all := away(id, began)
		cut := len(all) - perRun/2 // the session begins in the last run
		var events, backlog, live []record
		for n, r := range all {
			switch {
			case r.event:
				events = append(events, r)
			case n < cut:
				backlog = append(backlog, r)
			default:
				r.intake.Ahead = ahead
				live = append(live, r)
			}
		}
		last := live[len(live)-1] // with the backlog sent, what is measured next is in order
		last.intake.Ahead = false
		out = append(out, live[0]) // the newest run is heard of first
		out = append(out, events...)
		for n, r := range backlog {
			if out = append(out, r); n%5 == 0 && n/5+1 < len(live)-1 {
				out = append(out, live[n/5+1])
			}
		}
		for n := len(backlog)/5 + 2; n < len(live)-1; n++ {
			out = append(out, live[n])
		}
		return append(out, last)
	}
	if got := derived(t, b.Store, "lanes", mix("lanes", true)); got != want {
		t.Errorf("live first:\ngot  %s\nwant %s", got, want)
	}
	// Without the mark it would be wrong: the comparison can fail.
	if got := derived(t, b.Store, "careless", mix("careless", false)); got == want {
		t.Error("the order made no difference: nothing was tested")
	}
}
