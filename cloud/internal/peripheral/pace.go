package peripheral

import (
	"math"
	"slices"
	"time"
)

// mark says that by then, in Unix milliseconds, so many lines had been printed,
// ever.
type mark [2]float64

func (m mark) at() int64      { return int64(m[0]) }
func (m mark) total() float64 { return m[1] }

const (
	exact   = 0.06 // of how long ago it was, and how much was printed since
	mostAgo = 128  // marks
)

// thin drops marks that lie closer together than matters at their age, and what
// was more lines ago than anybody looks back; 0: nobody knows how many.
func thin(trace []mark, lines float64) []mark {
	n := len(trace)
	if n < 8 {
		return trace
	}
	now := trace[n-1]
	first := 0
	for lines > 0 && first < n-2 && now.total()-trace[first+1].total() > lines {
		first++
	}
	out := trace[:1]
	out[0] = trace[first]
	for i := first + 1; i < n-1; i++ {
		before, m, after := out[len(out)-1], trace[i], trace[i+1]
		even := math.Abs((m.total()-before.total())*(after[0]-before[0])-(after.total()-before.total())*(m[0]-before[0])) < 0.02*(now.total()-before.total())*(after[0]-before[0])
		if after.total()-before.total() > exact*(now.total()-m.total()) && after[0]-before[0] > 0 || !even {
			out = append(out, m)
		}
	}
	out = append(out, now)
	if len(out) > mostAgo {
		out = slices.Delete(out, 0, len(out)-mostAgo)
	}
	return out
}

// back returns when the last so many lines began to be printed, and how many
// those are: less, when nobody looked so long ago.
func (p *Printer) back(n float64) (at int64, got float64) {
	want := p.Total - n
	for i := len(p.Trace) - 1; i > 0; i-- {
		a, b := p.Trace[i-1], p.Trace[i]
		if a.total() > want {
			continue
		}
		if b.total() <= a.total() {
			return b.at(), p.Total - b.total()
		}
		return a.at() + int64((b[0]-a[0])*(want-a.total())/(b.total()-a.total())), n
	}
	if len(p.Trace) == 0 {
		return p.At, 0
	}
	return p.Trace[0].at(), p.Total - p.Trace[0].total()
}

const (
	hour     = int64(time.Hour / time.Millisecond)
	slots    = 7 * 24
	profiled = 7 * 24 * time.Hour // of history make a week
	daily    = 2 * 24 * time.Hour // and these a day
	blindFor = 2 * time.Hour      // lines of a longer time are of no hour
	longest  = 14 * 24 * time.Hour
	weeks    = 4 // that are remembered
)

// week is how much is printed in each hour of the week, at the place.
type week struct {
	From  int64     `json:"from,omitempty"` // since when somebody looks
	Rate  []float32 `json:"rate,omitempty"` // lines in the hour
	Weeks []uint8   `json:"weeks,omitempty"`
	Hour  int64     `json:"hour,omitempty"` // since 1970, that is under way
	Lines float64   `json:"lines,omitempty"`
	Seen  int64     `json:"seen,omitempty"` // milliseconds of it
}

// observe takes in that so many lines were printed between two moments.
func (w *week) observe(from, to int64, by float64, place *time.Location) {
	if to <= from {
		w.Lines += by
		return
	}
	if w.From == 0 || from < w.From { // or the clock was set back
		w.From = from
	}
	if gap := to - from; by > 0 && gap > ms(blindFor) || gap > ms(longest) {
		w.Hour, w.Lines, w.Seen = to/hour, 0, 0
		return
	}
	for at := from; at < to; {
		h := at / hour
		end := min((h+1)*hour, to)
		if h != w.Hour {
			w.close(place)
			w.Hour, w.Lines, w.Seen = h, 0, 0
		}
		w.Lines += by * float64(end-at) / float64(to-from)
		w.Seen += end - at
		at = end
	}
}

// close counts an hour of which most was seen.
func (w *week) close(place *time.Location) {
	if w.Seen < hour*3/4 {
		return
	}
	if len(w.Rate) != slots || len(w.Weeks) != slots {
		w.Rate, w.Weeks = make([]float32, slots), make([]uint8, slots)
	}
	i := slot(w.Hour, place)
	n := min(w.Weeks[i]+1, weeks)
	w.Weeks[i] = n
	r := float64(w.Rate[i])
	r += (w.Lines*float64(hour)/float64(w.Seen) - r) / float64(n)
	w.Rate[i] = float32(math.Round(r*10) / 10)
}

func slot(h int64, place *time.Location) int {
	t := time.UnixMilli(h * hour).In(place)
	return int(t.Weekday())*24 + t.Hour()
}

// profile returns the lines of each hour of the week as far as they are known
// at a moment; nil when too little is.
func (w *week) profile(now int64) []float64 {
	age := now - w.From
	if len(w.Rate) != slots || age < ms(daily) {
		return nil
	}
	var sum, n [24]float64
	all, some := 0.0, 0.0
	for i, r := range w.Rate {
		if w.Weeks[i] > 0 {
			sum[i%24], n[i%24], all, some = sum[i%24]+float64(r), n[i%24]+1, all+float64(r), some+1
		}
	}
	if some < 24 {
		return nil
	}
	out := make([]float64, slots)
	for i := range out {
		day := all / some // of an hour nobody has seen
		if n[i%24] > 0 {
			day = sum[i%24] / n[i%24]
		}
		out[i] = day
		if age >= ms(profiled) && w.Weeks[i] > 0 {
			k := float64(w.Weeks[i])
			out[i] = (k*float64(w.Rate[i]) + 0.25*day) / (k + 0.25)
		}
	}
	return out
}
