package peripheral

import (
	"math"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const (
	readDays   = 7  // over which reads are counted
	leastReads = 20 // before anything is said
	// A reader is worse when chance explains what it shows once in 10,000 readers, and when it fails twice as often:
	// one in a hundred thousand shall not be sent out for nothing. It is so until chance explains it once in 100.
	alarming  = 1e-4
	calming   = 1e-2
	timesMore = 2
	sureFleet = 1.645 // standard deviations by which the others may be worse than they look
)

// Reader is what is remembered of the reads of one card reader. Its zero value
// is a reader of which nothing is known. It is kept as JSON.
type Reader struct {
	Of       string  `json:"of,omitempty"` // model
	Inserted counter `json:"inserted"`
	Failed   counter `json:"failed"`
	Days     []Day   `json:"days,omitempty"` // oldest first
	Worse    bool    `json:"worse,omitempty"`
}

// Day is what was read on one day since 1970.
type Day struct {
	Day      int64  `json:"day"`
	Reads    uint64 `json:"reads"`
	Failures uint64 `json:"failures"`
}

// Fold takes in what a reader has counted, in any order, each once, and returns
// what came to which day.
func (r *Reader) Fold(samples []fleet.Sample) []Day {
	before := r.Days
	r.Days = append([]Day{}, before...)
	for _, s := range byTime(samples, inserted, resetFails) {
		c := &r.Inserted
		if s.Name == resetFails {
			c = &r.Failed
		}
		by, _ := c.grew(s)
		if by <= 0 || by > 1e6 {
			continue
		}
		d := r.day(s.At.UnixMilli() / (24 * hour))
		if s.Name == inserted {
			d.Reads += uint64(by)
		} else {
			d.Failures += uint64(by)
		}
	}
	var more []Day
	for _, d := range r.Days {
		for _, b := range before {
			if b.Day == d.Day {
				d.Reads, d.Failures = d.Reads-b.Reads, d.Failures-b.Failures
			}
		}
		if d.Reads > 0 || d.Failures > 0 {
			more = append(more, d)
		}
	}
	return more
}

// day returns a day, which is one of the newest.
func (r *Reader) day(n int64) *Day {
	i := len(r.Days)
	for i > 0 && r.Days[i-1].Day >= n {
		i--
	}
	if i == len(r.Days) || r.Days[i].Day != n {
		r.Days = append(r.Days[:i], append([]Day{{Day: n}}, r.Days[i:]...)...)
	}
	if drop := len(r.Days) - readDays; drop > 0 {
		r.Days = r.Days[drop:]
		i = max(i-drop, 0)
	}
	return &r.Days[i]
}

// Since is the first day that counts at a moment.
func Since(now time.Time) int64 { return now.UnixMilli()/(24*hour) - readDays + 1 }

// Judge says how the reader reads beside all of its model, itself among them;
// nil when it has not read. It is worse only by more than chance.
func (r *Reader) Judge(all Day, now time.Time) *fleet.Reads {
	var own Day
	for _, d := range r.Days {
		if d.Day >= Since(now) {
			own.Reads += d.Reads
			own.Failures += d.Failures
		}
	}
	if own.Reads == 0 {
		r.Worse = false
		return nil
	}
	own.Failures = min(own.Failures, own.Reads)
	others := Day{Reads: all.Reads - min(own.Reads, all.Reads), Failures: all.Failures - min(own.Failures, all.Failures)}
	others.Failures = min(others.Failures, others.Reads)
	v := &fleet.Reads{Reads: own.Reads, Failures: own.Failures, Rate: float64(own.Failures) / float64(own.Reads)}
	if others.Reads > 0 {
		v.FleetRate = float64(others.Failures) / float64(others.Reads)
	}
	level := alarming
	if r.Worse {
		level = calming
	}
	r.Worse = own.Reads >= leastReads && others.Reads >= leastReads && v.Rate >= timesMore*v.FleetRate &&
		tail(own.Reads, own.Failures, wilson(others.Failures, others.Reads)) < level
	v.Worse = r.Worse
	return v
}

// wilson is the upper bound of a rate [E. B. Wilson, 1927].
func wilson(k, n uint64) float64 {
	const z = sureFleet
	p, m := float64(k)/float64(n), float64(n)
	return (p + z*z/(2*m) + z*math.Sqrt(p*(1-p)/m+z*z/(4*m*m))) / (1 + z*z/m)
}

// tail is the probability that at least k of n fail when each does with
// probability p.
func tail(n, k uint64, p float64) float64 {
	switch {
	case k == 0 || p >= 1:
		return 1
	case p <= 0:
		return 0
	}
	if mean := float64(n) * p; float64(k) <= mean {
		return 1 // more or less: it is not worse
	}
	lg := func(v float64) float64 { l, _ := math.Lgamma(v + 1); return l }
	m, sum := float64(n), 0.0
	term := math.Exp(lg(m) - lg(float64(k)) - lg(m-float64(k)) + float64(k)*math.Log(p) + (m-float64(k))*math.Log1p(-p))
	for i := float64(k); i <= m && term > sum*1e-9; i++ {
		sum += term
		term *= (m - i) / (i + 1) * p / (1 - p)
	}
	return min(sum, 1)
}
