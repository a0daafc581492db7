// Package peripheral derives what no sensor says from what peripherals count:
// when a printer's roll will be at its end, and whether a card reader reads
// worse than others.
//
// It owns the models and the pace at which they are brought up to date. It
// promises that what it says follows from stored samples and events alone, each
// taken in once, whatever was restarted in between; that a count which begins
// anew is no consumption; and that it says nothing where it knows nothing. It
// knows no SQL, no HTTP and no wire form; Worker asks for what it needs and hands
// back what it found.
package peripheral

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// counter follows one count over the epochs in which it is told.
type counter struct {
	Value float64 `json:"v"`
	Epoch int64   `json:"e,omitempty"` // Unix seconds
	Boot  uint64  `json:"b,omitempty"` // a part of its name
	At    int64   `json:"a,omitempty"` // of the newest sample
	Seen  bool    `json:"s,omitempty"`
}

// grew returns by how much a count grew, and since when if it was begun anew.
//
// A later epoch is a new beginning. An earlier one came late, and so did a
// lower value of the same; unless it is told of a later moment: some boxes
// do not know the time when they start, and an epoch is what they took it for.
func (c *counter) grew(s fleet.Sample) (by float64, since int64) {
	was := *c
	now := counter{s.Value, s.Epoch, binary.BigEndian.Uint64(s.Boot[:]), max(s.At.UnixMilli(), was.At), true}
	late := now.At == was.At
	switch {
	case !was.Seen:
		*c = now
		return 0, 0
	case s.Epoch == was.Epoch && s.Value >= was.Value:
		*c = now
		return s.Value - was.Value, 0
	case s.Epoch == was.Epoch && s.Epoch != 0 && (late || now.Boot == was.Boot), s.Epoch != 0 && s.Epoch < was.Epoch && late:
		return 0, 0 // it came late
	case s.Kept && s.Value >= was.Value: // only the agent began anew
		*c = now
		return s.Value - was.Value, 0
	}
	*c = now
	return s.Value, s.Epoch * 1000
}

// names of the counts that are read, the first one that a printer tells counts.
const (
	lineFeeds  = "ReceiptLineFeedCount"
	lines      = "ReceiptLinePrintedCount"
	inserted   = "M_CardInsertedCount"
	resetFails = "M_CardResetFailedCount"
)

// byTime returns the samples of these names, and their order.
func byTime(samples []fleet.Sample, names ...string) []fleet.Sample {
	var out []fleet.Sample
	for _, s := range samples {
		if slices.Contains(names, s.Name) {
			out = append(out, s)
		}
	}
	slices.SortStableFunc(out, func(a, b fleet.Sample) int { return a.At.Compare(b.At) })
	return out
}

func ms(d time.Duration) int64 { return d.Milliseconds() }

// median of a list that is not empty.
func median(list []float64) float64 {
	s := slices.Sorted(slices.Values(list))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// keep adds to a list of the newest nine.
func keep(list []float64, v float64) []float64 {
	list = append(list, v)
	return list[max(len(list)-9, 0):]
}
