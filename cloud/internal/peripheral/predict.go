package peripheral

import (
	"math"
	"slices"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const (
	fourInFive  = 1.2816              // standard deviations
	furthest    = 60 * 24 * time.Hour // beyond nobody wants to know
	lump        = 0.003               // of a roll: receipts come in lumps
	dayVaries   = 0.15                // a day is more or less busy than it should be
	leastSure   = 0.05
	configured  = "configured"
	learned     = "learned"
	nearEnd     = "near_end"
	sureLength  = 0.03 // standard deviation of what a maker promises, of the whole
	chunks      = 8    // into which the past is cut to see how even it was
	leastMarks  = 3
	rollsBeat   = 2    // that were measured, and say the same, count more than the configuration
	rollsDiffer = 0.06 // by less they say the same
	unseen      = 0.8  // of the confidence is left while nobody knows when the shop is closed
)

// roll is how many lines a whole roll has, how sure that is, and where it is
// known from. What was measured again and again counts more than what somebody
// configured.
func (p *Printer) roll() (n, sd float64, basis string) {
	if len(p.Rolls) > 0 {
		n = median(p.Rolls)
		sd = max(spread(p.Rolls, n), 0.01*n, 0.05*n/float64(len(p.Rolls)))
		if p.RollLines == 0 || len(p.Rolls) >= rollsBeat && sd < rollsDiffer*n {
			return n, sd, learned
		}
	}
	return p.RollLines, sureLength * p.RollLines, configured
}

func spread(list []float64, mid float64) float64 {
	sum := 0.0
	for _, v := range list {
		sum += (v - mid) * (v - mid)
	}
	return math.Sqrt(sum / float64(len(list)))
}

// left is how many lines are left on the roll, how sure that is, and where it is
// known from.
func (p *Printer) left() (n, sd float64, basis string) {
	if p.Empty {
		return 0, 0, ""
	}
	if p.Near && len(p.Left) > 0 {
		l := median(p.Left)
		return l - (p.Used - p.Nears), max(spread(p.Left, l), 0.1*l/math.Sqrt(float64(len(p.Left)))), nearEnd
	}
	l, sd, basis := p.roll()
	if !p.Known || p.Beyond || l == 0 {
		return 0, 0, ""
	}
	return l - p.Used, sd, basis
}

// Predict says when the roll will be at its end, as far as its samples go; nil
// when that cannot be known.
func (p *Printer) Predict(place *time.Location) *fleet.Paper {
	n, sd, basis := p.left()
	if basis == "" {
		return nil
	}
	whole := n + p.Used
	n = max(n, 0.005*whole, 1) // it is not at its end yet, whatever is said of its length
	ahead, noise := p.pace(n, place)
	if ahead == nil {
		return nil
	}
	sd = math.Hypot(sd, max(noise, p.missed()*whole*math.Sqrt(2*n/whole)))
	end, ok := ahead(n)
	if !ok {
		return nil
	}
	early, _ := ahead(max(n-fourInFive*sd, 0))
	late, _ := ahead(n + fourInFive*sd)
	paper := &fleet.Paper{
		RunOutAt: time.UnixMilli(p.At + end).UTC(), Earliest: time.UnixMilli(p.At + early).UTC(), Latest: time.UnixMilli(p.At + late).UTC(),
		LinesLeft: math.Round(n), LinesPerHour: n / (float64(max(end, 1)) / float64(hour)), Basis: basis,
		// How likely it is that this is off by less than a tenth of the roll.
		Confidence: math.Erf(0.1 * whole / (max(sd, 1e-9) * math.Sqrt2)),
	}
	if p.Week.profile(p.At) == nil {
		paper.Confidence *= unseen
	}
	if paper.Confidence < leastSure {
		return nil
	}
	paper.Confidence = math.Round(paper.Confidence*100) / 100
	return paper
}

// missed is how far off earlier predictions from the half of a roll were, of the
// whole, as a standard deviation: four in five were closer.
func (p *Printer) missed() float64 {
	if len(p.Off) < 3 {
		return 0
	}
	off := slices.Sorted(slices.Values(p.Off))
	return off[(len(off)*4+2)/5-1] / fourInFive
}

// pace returns in how many milliseconds so many lines will be printed, false when
// that is too far away, and by how many lines the next n may differ from that.
func (p *Printer) pace(n float64, place *time.Location) (ahead func(lines float64) (int64, bool), sd float64) {
	if profile := p.Week.profile(p.At); profile != nil {
		return p.weekly(profile, n, place)
	}
	from, got, sd := p.lately(n)
	took := float64(p.At - from)
	if got <= 0 || took <= 0 || len(p.Trace) < leastMarks {
		return nil, 0
	}
	rate := got / took
	return func(lines float64) (int64, bool) {
		at := lines / rate
		return int64(min(at, float64(ms(furthest)))), at < float64(ms(furthest))
	}, sd
}

// lately returns since when and how many lines tell how fast the next n will be
// printed, and by how many they may differ from that. It looks back over the roll
// so far, at least as far as ahead: hours are busier and less busy, and over many
// that evens out. It looks further as long as that says the same.
func (p *Printer) lately(n float64) (from int64, got, sd float64) {
	var rates, errs []float64
	for _, more := range []float64{1, 1.5, 2.25, 3.4} {
		want := max(n, p.Used) * more
		at, some := p.back(want)
		if some <= got || at >= p.At {
			break
		}
		rate, part := some/float64(p.At-at), p.uneven(at, some)
		for i, r := range rates {
			if math.Abs(rate-r) > errs[i] {
				return from, got, sd
			}
		}
		m := n / (some / chunks) // parts ahead
		from, got, sd = at, some, part*math.Sqrt(m+m*m/chunks)
		rates, errs = append(rates, rate), append(errs, rate*part/(some/chunks)/math.Sqrt(chunks))
		if some < want {
			break
		}
	}
	return from, got, sd
}

// uneven is by how many lines the eight parts of the last got differ from what
// their mean rate says: the standard deviation of one.
func (p *Printer) uneven(from int64, got float64) float64 {
	rate := got / float64(p.At-from)
	prev, sum := from, 0.0
	for i := chunks - 1; i >= 0; i-- {
		at, _ := p.back(got * float64(i) / chunks)
		if i == 0 {
			at = p.At
		}
		d := rate*float64(at-prev) - got/chunks // how many lines more should have been printed in that time
		sum += d * d
		prev = at
	}
	return math.Sqrt(sum / (chunks - 1))
}

// weekly is pace by the hours of the week, and by how busy it was lately.
func (p *Printer) weekly(profile []float64, n float64, place *time.Location) (func(float64) (int64, bool), float64) {
	busy := p.busy(profile, n, place)
	ahead := func(lines float64) (int64, bool) {
		at := p.At
		for at-p.At < ms(furthest) {
			h := at / hour
			end := (h + 1) * hour
			r := profile[slot(h, place)] * busy / float64(hour)
			if in := r * float64(end-at); in < lines {
				lines -= in
				at = end
				continue
			}
			return at - p.At + int64(lines/r), true
		}
		return ms(furthest), false
	}
	end, ok := ahead(n)
	if !ok {
		return nil, 0
	}
	days := max(float64(end)/float64(24*hour), 1)
	return ahead, math.Hypot(math.Sqrt(lump*p.length()*n), dayVaries*n/math.Sqrt(days))
}

// busy is how many times more than its hours say was printed of late: over as
// many lines as are ahead, at most a week.
func (p *Printer) busy(profile []float64, n float64, place *time.Location) float64 {
	from, got := p.back(n)
	from = max(from, p.At-ms(profiled))
	expected := 0.0
	for at := from; at < p.At; {
		h := at / hour
		end := min((h+1)*hour, p.At)
		expected += profile[slot(h, place)] * float64(end-at) / float64(hour)
		at = end
	}
	if m := p.since(from); m < got {
		got = m
	}
	prior := max(lump*p.length()/(dayVaries*dayVaries), 1)
	return (got + prior) / (expected + prior)
}

// since is how many lines were printed since a moment.
func (p *Printer) since(at int64) float64 {
	for i := len(p.Trace) - 1; i > 0; i-- {
		a, b := p.Trace[i-1], p.Trace[i]
		if a.at() > at {
			continue
		}
		if b.at() <= at || b.at() <= a.at() {
			return p.Total - b.total()
		}
		return p.Total - a.total() - (b.total()-a.total())*(float64(at)-a[0])/(b[0]-a[0])
	}
	if len(p.Trace) == 0 {
		return 0
	}
	return p.Total - p.Trace[0].total()
}
