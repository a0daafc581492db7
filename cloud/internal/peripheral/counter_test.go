package peripheral_test

import (
	"math"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/peripheral"
	"github.com/tillward/tillward/simulator/emulator"
)

// TestFirstDay predicts the end of the first roll of a shop of which nothing is
// known, its day played in a minute: no prediction from half of the roll on is
// off by more than a tenth.
func TestFirstDay(t *testing.T) {
	const roll = 5400
	shop := emulator.Duty{PerHour: []float64{18, 23, 25, 28, 32, 30, 23, 23, 25, 28, 27, 20}, MinLines: 14, MaxLines: 34, Roll: 1 << 20, Left: 1 << 20}
	for seed := range uint64(200) {
		steps, truth := shop.Day(seed)
		p := &peripheral.Printer{RollLines: roll}
		now, used, worst := monday, 0.0, 0.0
		tell := func(events ...fleet.PeripheralEvent) {
			p.Fold([]fleet.Sample{{At: now, Name: "ReceiptLineFeedCount", Value: 1000 + used, Epoch: 1, Kept: true}}, events, time.UTC)
		}
		tell()
		put := now.Add(time.Second)
		now = put
		tell(fleet.PeripheralEvent{At: put, Code: "REC_EMPTY"}, fleet.PeripheralEvent{At: put, Code: "REC_PAPEROK"})
		var guesses []time.Time
		for _, s := range steps {
			at := put.Add(time.Duration(s.At.Seconds() / truth.Length.Seconds() * float64(time.Minute)))
			for next := now.Add(time.Second); next.Before(at); next = now.Add(time.Second) {
				now = next
				tell()
				if v := p.Predict(time.UTC); v != nil && used > roll/2 {
					guesses = append(guesses, v.RunOutAt)
				}
			}
			if s.Act != emulator.Sale {
				continue
			}
			if used += float64(s.Lines); used < roll {
				continue
			}
			for _, g := range guesses {
				worst = max(worst, math.Abs(g.Sub(at).Seconds())/at.Sub(put).Seconds())
			}
			break
		}
		if len(guesses) == 0 || worst > 0.1 || used < roll {
			t.Errorf("seed %d: the worst of %d predictions is off by %.3f", seed, len(guesses), worst)
		}
	}
}
