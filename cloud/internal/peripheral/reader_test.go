package peripheral_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/peripheral"
)

var monday = time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)

func read(at time.Time, epoch int64, inserted, failed float64) []fleet.Sample {
	return []fleet.Sample{
		{At: at, Name: "M_CardInsertedCount", Value: inserted, Epoch: epoch},
		{At: at, Name: "M_CardResetFailedCount", Value: failed, Epoch: epoch},
		{At: at, Name: "HoursPoweredCount", Value: 7, Epoch: epoch},
	}
}

// after is a reader that has read so often.
func after(reads, failures float64) *peripheral.Reader {
	var r peripheral.Reader
	r.Fold(read(monday, 1, 0, 0))
	r.Fold(read(monday.Add(time.Hour), 1, reads, failures))
	return &r
}

func TestReadErrors(t *testing.T) {
	fleetOf := peripheral.Day{Reads: 100_000, Failures: 1000}
	for _, c := range []struct {
		name            string
		reads, failures float64
		all             peripheral.Day
		worse           bool
	}{
		{"as the others", 500, 5, fleetOf, false},
		{"a little unlucky", 500, 12, fleetOf, false},
		{"twice is chance", 100, 3, fleetOf, false},
		{"bad", 500, 30, fleetOf, true},
		{"very bad, few reads", 20, 6, fleetOf, true},
		{"one read too few", 19, 19, fleetOf, false},
		{"all fail", 40, 40, fleetOf, true},
		{"more failures than cards", 40, 90, fleetOf, true},
		{"better", 5000, 0, fleetOf, false},
		{"nobody to compare with", 500, 100, peripheral.Day{Reads: 500, Failures: 100}, false},
		{"too few others", 500, 100, peripheral.Day{Reads: 510, Failures: 100}, false},
		{"a bad model", 500, 30, peripheral.Day{Reads: 100_000, Failures: 5000}, false},
	} {
		v := after(c.reads, c.failures).Judge(c.all, monday.Add(2*time.Hour))
		if v == nil || v.Worse != c.worse || v.Reads != uint64(c.reads) {
			t.Errorf("%s: got %+v, want worse %v", c.name, v, c.worse)
		}
	}
	var none peripheral.Reader
	if v := none.Judge(fleetOf, monday); v != nil {
		t.Errorf("a reader that never read: got %+v, want nothing", v)
	}
}

// TestFewFalseAlarms lets ten thousand readers be as good as each other.
func TestFewFalseAlarms(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const rate, readers = 0.01, 10_000
	worse := 0
	for range readers {
		reads, failures := 20+r.IntN(2000), 0
		for range reads {
			if r.Float64() < rate {
				failures++
			}
		}
		if after(float64(reads), float64(failures)).Judge(peripheral.Day{Reads: 10_000_000, Failures: 100_000}, monday).Worse {
			worse++
		}
	}
	if worse > 3 {
		t.Errorf("%d of %d good readers are called worse", worse, readers)
	}
}

func TestReaderCalmsDown(t *testing.T) {
	all := peripheral.Day{Reads: 100_000, Failures: 1000}
	r := after(100, 8)
	if !r.Judge(all, monday).Worse {
		t.Fatal("8 of 100 are not worse than 1 of 100")
	}
	r.Fold(read(monday.Add(2*time.Hour), 1, 180, 8))
	if !r.Judge(all, monday).Worse {
		t.Error("8 of 180 calmed it down: a light that goes on and off is worth nothing")
	}
	r.Fold(read(monday.Add(3*time.Hour), 1, 2000, 9))
	if r.Judge(all, monday).Worse {
		t.Error("9 of 2000 are still worse than 1 of 100")
	}
	later := monday.Add(8 * 24 * time.Hour)
	if v := r.Judge(all, later); v != nil {
		t.Errorf("after a week without a card: got %+v, want nothing", v)
	}
}

// TestReaderFolds shows that a restart of the agent, a late batch and a week do
// no harm.
func TestReaderFolds(t *testing.T) {
	var r peripheral.Reader
	sum := peripheral.Day{}
	fold := func(s []fleet.Sample) {
		for _, d := range r.Fold(s) {
			sum.Reads += d.Reads
			sum.Failures += d.Failures
		}
	}
	day := 24 * time.Hour
	fold(read(monday, 100, 50, 5)) // from before anybody looked
	fold(read(monday.Add(time.Hour), 100, 60, 6))
	fold(read(monday.Add(day), 200, 7, 1))  // restarted
	fold(read(monday.Add(day), 100, 61, 6)) // late
	fold(read(monday.Add(2*day), 200, 10, 1))
	if sum != (peripheral.Day{Reads: 20, Failures: 2}) {
		t.Errorf("got %+v, want 20 reads and 2 failures", sum)
	}
	if v := r.Judge(peripheral.Day{}, monday.Add(2*day)); v.Reads != 20 || v.Failures != 2 {
		t.Errorf("got %+v", v)
	}
	if v := r.Judge(peripheral.Day{}, monday.Add(7*day)); v.Reads != 10 || v.Failures != 1 {
		t.Errorf("a week after the first day: got %+v, want what came since", v)
	}
	for n := range 20 {
		fold(read(monday.Add(time.Duration(n+3)*day), 200, float64(10+n), 1))
	}
	if len(r.Days) > 7 {
		t.Errorf("%d days are remembered, want 7", len(r.Days))
	}
}

// TestWrongClocks has boxes that do not know the time when they start.
func TestWrongClocks(t *testing.T) {
	var r peripheral.Reader
	fold := func(boot byte, at time.Time, epoch int64, inserted float64) (sum uint64) {
		for _, d := range r.Fold([]fleet.Sample{{Boot: [16]byte{boot}, At: at, Name: "M_CardInsertedCount", Value: inserted, Epoch: epoch}}) {
			sum += d.Reads
		}
		return sum
	}
	long := time.Date(2020, 1, 1, 0, 0, 12, 0, time.UTC)
	fold(1, monday, long.Unix(), 0)
	for _, c := range []struct {
		what     string
		boot     byte
		at       time.Time
		epoch    int64
		inserted float64
		want     uint64
	}{
		{"goes on", 1, monday.Add(time.Minute), long.Unix(), 10, 10},
		{"starts, and does not know the time yet", 2, long.Add(time.Second), long.Unix() - 1, 1, 0},
		{"and then does", 2, monday.Add(time.Hour), long.Unix() - 1, 6, 6},
		{"goes on again", 2, monday.Add(2 * time.Hour), long.Unix() - 1, 9, 3},
		{"starts in the same second", 3, monday.Add(3 * time.Hour), long.Unix() - 1, 4, 4},
		{"its time ran ahead", 4, monday.Add(4 * time.Hour), monday.Unix() + 1e6, 5, 5},
		{"and was put right", 5, monday.Add(5 * time.Hour), monday.Unix(), 2, 2},
		{"falls within its epoch", 5, monday.Add(6 * time.Hour), monday.Unix(), 1, 0},
	} {
		if got := fold(c.boot, c.at, c.epoch, c.inserted); got != c.want {
			t.Errorf("%s: got %d more reads, want %d", c.what, got, c.want)
		}
	}
}
