package peripheral_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/peripheral"
)

// duty is a shop whose paper consumption is known: the ground truth.
type duty struct {
	length   float64 // of its rolls, in lines
	lengths  float64 // standard deviation, of the whole
	perHour  float64 // receipts
	receipt  float64 // lines, mean
	open     func(local time.Time) float64
	days     float64       // standard deviation of how busy a day is
	step     time.Duration // between two samples
	rolls    int
	config   float64 // roll length as it is configured; 0: not
	nearEnd  float64 // lines left when that sensor speaks; 0: it has none
	restarts int     // samples between two restarts of the agent that keeps the count; 0: none, the printer keeps it
	place    *time.Location
	even     bool    // receipts come one after another, and not as they like
	shut     float64 // probability that it stays closed for a day
}

// day12 is a shop that is open from 8 to 20, with a rush at noon and one after work.
func day12(t time.Time) float64 {
	if h := t.Hour(); t.Weekday() != time.Sunday && h >= 8 && h < 20 {
		return []float64{0.4, 0.6, 0.8, 1.2, 1.8, 1.4, 0.8, 0.8, 1, 1.6, 1.4, 0.6}[h-8]
	}
	return 0
}

func always(time.Time) float64 { return 1 }

// guess is one prediction beside the truth.
type guess struct {
	used       float64 // of the roll
	off        float64 // of the time from one roll to the next
	inside     bool    // the truth lies between earliest and latest
	confidence float64
	basis      string
}

// play runs a shop and returns what was predicted of each roll, every twentieth
// of it from the half on.
func (d duty) play(t testing.TB, seed uint64) (all []guess, unpredicted int) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 0xda7))
	if d.place == nil {
		d.place = time.UTC
	}
	p := &peripheral.Printer{RollLines: d.config}
	now := time.Date(2026, 3, 2, 0, 0, 0, 0, d.place)
	whole := func() float64 { return d.length * (1 + d.lengths*r.NormFloat64()) }
	left, roll, near := whole(), 0.0, false
	roll = left
	total, epoch, base := 5000.0, now.Unix(), 0.0
	busy, weekday, due := 1.0, -1, 0.0
	put := now
	type open struct {
		paper *fleet.Paper
		used  float64
	}
	var asked []open
	step := 0.5
	var events []fleet.PeripheralEvent
	happen := func(at time.Time, code string) { events = append(events, fleet.PeripheralEvent{At: at, Code: code}) }
	for n, rolls := 0, 0; rolls < d.rolls; n++ {
		if n > 3_000_000 {
			t.Fatal("this shop prints nothing")
		}
		if day := now.YearDay(); day != weekday {
			weekday, busy = day, max(1+d.days*r.NormFloat64(), 0.2)
			if r.Float64() < d.shut {
				busy = 0
			}
		}
		mean := d.perHour * d.step.Hours() * d.open(now) * busy
		due += mean
		count := int(due)
		if !d.even {
			count = poisson(r, mean)
		}
		due -= float64(int(due))
		for range count {
			lines := math.Round(d.receipt * (0.4 + 1.2*r.Float64()))
			total, left = total+lines, left-lines
			at := now.Add(time.Duration(r.Int64N(int64(d.step))))
			if d.nearEnd > 0 && left < d.nearEnd*(0.9+0.2*r.Float64()) && !near {
				near = true
				happen(at, "REC_NEAREMPTY")
			}
			if left > 0 {
				continue
			}
			happen(at, "REC_EMPTY")
			for _, o := range asked {
				g := guess{used: o.used, basis: ""}
				took := at.Sub(put).Seconds()
				if o.paper == nil {
					unpredicted++
					continue
				}
				g.off = math.Abs(o.paper.RunOutAt.Sub(at).Seconds()) / took
				g.inside = !o.paper.Earliest.After(at) && !o.paper.Latest.Before(at)
				g.confidence, g.basis = o.paper.Confidence, o.paper.Basis
				all = append(all, g)
			}
			rolls++
			asked, step = nil, 0.5
			happen(at.Add(d.step/4), "COVER_OPEN")
			happen(at.Add(d.step/2), "REC_PAPEROK")
			happen(at.Add(d.step/2), "COVER_OK")
			put, left, near = at.Add(d.step/2), whole(), false
			roll = left
			break
		}
		now = now.Add(d.step)
		s := fleet.Sample{At: now, Name: "ReceiptLineFeedCount", Value: total, Epoch: epoch, Kept: true}
		if d.restarts > 0 {
			if n%d.restarts == d.restarts-1 {
				epoch, base = now.Unix()-int64(d.step.Seconds()), total
			}
			s.Value, s.Epoch, s.Kept = total-base, epoch, false
		}
		p.Fold([]fleet.Sample{s}, events, d.place)
		events = nil
		if used := 1 - left/roll; used >= step && used < 0.96 {
			asked = append(asked, open{p.Predict(d.place), used})
			step += 0.05
		}
	}
	return all, unpredicted
}

func poisson(r *rand.Rand, mean float64) int {
	n, at := 0, r.ExpFloat64()
	for at < mean {
		n, at = n+1, at+r.ExpFloat64()
	}
	return n
}

// quantile of how far off guesses are.
func quantile(all []guess, q float64) float64 {
	off := make([]float64, len(all))
	for i, g := range all {
		off[i] = g.off
	}
	slices.Sort(off)
	return off[min(int(q*float64(len(off))), len(off)-1)]
}

// TestRunOut plays shops whose truth is known. What is asked of a prediction:
// most are within a tenth of the time from one roll to the next, and four in
// five lie between the earliest and the latest time.
func TestRunOut(t *testing.T) {
	shop := duty{length: 18876, lengths: 0.01, perHour: 30, receipt: 45, open: day12, days: 0.1, step: time.Minute, rolls: 25}
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		change  func(*duty)
		good    float64 // share of guesses within a tenth
		typical float64 // median
	}{
		{"a shop that is closed at night and on Sundays", func(d *duty) { d.config, d.place = 18876, berlin }, 0.85, 0.02},
		{"roll length not known", func(*duty) {}, 0.85, 0.02},
		{"near-end sensor", func(d *duty) { d.nearEnd = 1500 }, 0.9, 0.02},
		{"agent restarts", func(d *duty) { d.config, d.restarts = 18876, 1000 }, 0.85, 0.02},
		{"another paper than configured", func(d *duty) { d.config = 15000 }, 0.8, 0.03},
		{"a shop of irregular hours", func(d *duty) { d.config, d.days, d.shut = 18876, 0.4, 0.1 }, 0.65, 0.06},
		{"little to do", func(d *duty) { d.config, d.perHour, d.nearEnd, d.rolls = 18876, 4, 1500, 10 }, 0.9, 0.03},
		{"a roll in a few hours", func(d *duty) { d.config, d.perHour = 18876, 120 }, 0.8, 0.04},
		{"round the clock", func(d *duty) { d.config, d.open = 18876, always }, 0.95, 0.04},
		{"twelve hours in a minute", func(d *duty) {
			d.config, d.open, d.step, d.length, d.perHour, d.days, d.lengths, d.rolls, d.even = 1300, always, time.Second, 1300, 3600, 0, 0, 20, true
		}, 0.9, 0.04},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := shop
			c.change(&d)
			var all []guess
			none, inside, good := 0, 0.0, 0.0
			for seed := range uint64(4) {
				g, n := d.play(t, seed)
				all, none = append(all, g...), none+n
			}
			for _, g := range all {
				if g.inside {
					inside++
				}
				if g.off < 0.1 {
					good++
				}
			}
			inside, good = inside/float64(len(all)), good/float64(len(all))
			t.Logf("%d predictions, %d times none: off by %.3f in the middle, by %.3f with nine in ten; %.2f within a tenth, %.2f between earliest and latest",
				len(all), none, quantile(all, .5), quantile(all, .9), good, inside)
			if good < c.good || quantile(all, .5) > c.typical || inside < 0.75 {
				t.Error("which is not good enough")
			}
			if none > 2*4*10 { // at most the first two rolls of each shop
				t.Errorf("nothing was said %d times", none)
			}
		})
	}
}
