package figures

import (
	"context"
	"fmt"
	"sort"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const (
	maxPoints  = 2000
	wantPoints = 180
)

var steps = []time.Duration{fineStep, 30 * time.Second, time.Minute, longStep, 15 * time.Minute, hourStep, 6 * time.Hour, 24 * time.Hour}

// bins collect points of one part or Op.
type bins struct {
	total sum
	at    map[int64]*bin
}

type bin struct {
	span time.Duration
	sum  sum
}

func (b *bins) add(at time.Time, span time.Duration, s *sum) {
	b.total.add(s)
	k := at.UnixNano()
	have := b.at[k]
	if have == nil {
		have = &bin{}
		b.at[k] = have
	}
	have.span = max(have.span, span)
	have.sum.add(s)
}

// answer is what a query collects.
type answer struct {
	q     fleet.FigureQuery
	now   time.Time
	parts map[[2]string]*bins
	spans map[int64]time.Duration // in which the service ran
}

// put adds a sum of a span to the bins of its part and Op.
func (a *answer) put(part, op string, at time.Time, span time.Duration, s *sum) {
	if a.q.Part != "" && part != a.q.Part || a.q.Op != "" && op != a.q.Op {
		return
	}
	at, span = a.slot(at, span)
	a.of(part, "").add(at, span, s)
	if one := a.of(part, op); a.q.Op != "" {
		one.add(at, span, s)
	} else {
		one.total.add(s) // nobody asked for its points
	}
}

// of returns the bins of a part or an Op.
func (a *answer) of(part, op string) *bins {
	b := a.parts[[2]string{part, op}]
	if b == nil {
		b = &bins{at: map[int64]*bin{}}
		a.parts[[2]string{part, op}] = b
	}
	return b
}

// slot is the bin of a span; one that is longer than a step is its own.
func (a *answer) slot(at time.Time, span time.Duration) (time.Time, time.Duration) {
	if span < a.q.Step {
		at, span = at.Truncate(a.q.Step), a.q.Step
	}
	span = max(min(span, a.now.Sub(at)), time.Second)
	a.spans[at.UnixNano()] = max(a.spans[at.UnixNano()], span)
	return at, span
}

// Query returns the figures of each part, and of each Op without points - or,
// asked for one, with them - the parts first.
func (b *Book) Query(ctx context.Context, q fleet.FigureQuery) ([]fleet.PartFigures, fleet.FigureQuery, error) {
	now := time.Now()
	res, err := bound(&q, now)
	if err != nil {
		return nil, q, err
	}
	a := &answer{q: q, now: now, parts: map[[2]string]*bins{}, spans: map[int64]time.Duration{}}
	kept, known := b.recent(a, res)
	if err := b.stored(ctx, a, kept, known); err != nil {
		return nil, q, err
	}
	var ran time.Duration
	for _, span := range a.spans {
		ran += span
	}
	out := make([]fleet.PartFigures, 0, len(a.parts))
	for k, p := range a.parts {
		f := fleet.PartFigures{Part: k[0], Op: k[1], Total: p.total.figure(q.From, ran)}
		if k[1] == "" && q.Op == "" || k[1] != "" && k[1] == q.Op {
			f.Points = a.points(p)
		}
		if k[1] == "" && q.Op != "" {
			continue
		}
		out = append(out, f)
	}
	sort.Slice(out, func(i, j int) bool {
		if (out[i].Op == "") != (out[j].Op == "") {
			return out[i].Op == ""
		}
		return out[i].Part < out[j].Part || out[i].Part == out[j].Part && out[i].Op < out[j].Op
	})
	return out, q, nil
}

// bound fills in what a query leaves open and says how fine the answer can be.
func bound(q *fleet.FigureQuery, now time.Time) (res time.Duration, err error) {
	if q.To.IsZero() || q.To.After(now) {
		q.To = now
	}
	if q.From.IsZero() {
		q.From = q.To.Add(-time.Hour)
	}
	span := q.To.Sub(q.From)
	if span <= 0 {
		return 0, fmt.Errorf("from %s is not before to %s: %w", q.From.Format(time.RFC3339), q.To.Format(time.RFC3339), fleet.ErrInvalid)
	}
	if q.Step == 0 {
		for _, q.Step = range steps {
			if span/q.Step <= wantPoints {
				break
			}
		}
	}
	if q.Step < time.Second || span/q.Step > maxPoints {
		return 0, fmt.Errorf("a step of %s in %s: give one of at least %s, for at most %d points: %w", q.Step, span.Round(time.Second), max(span/maxPoints, fineStep).Round(time.Second), maxPoints, fleet.ErrInvalid)
	}
	switch age := now.Sub(q.From); {
	case q.Step < time.Minute && age <= time.Hour+time.Minute:
		res = fineStep
	case q.Step < longStep && age <= 24*time.Hour+longStep:
		res = time.Minute
	default:
		res = longStep
	}
	q.Step = max(q.Step, res)
	return res, nil
}

// recent adds what is in memory. kept is the end of what is asked of the store,
// and known the spans that memory knows better.
func (b *Book) recent(a *answer, res time.Duration) (kept time.Time, known map[int64]bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gather(a.now)
	add := func(f *frame, span time.Duration) {
		if f.at.Add(span).After(a.q.From) && f.at.Before(a.q.To) {
			a.slot(f.at, span)
			f.each(func(o *Op, s *sum) { a.put(o.part, o.name, f.at, span, s) })
		}
	}
	known = map[int64]bool{}
	if res == longStep {
		for i := range b.unkept {
			known[b.unkept[i].at.Unix()] = true
			add(&b.unkept[i], longStep)
		}
		open := b.present()
		known[open.at.Unix()] = true
		add(&open, longStep)
		return a.q.To, known
	}
	s := &b.fine
	if res == time.Minute {
		s = &b.minutes
	}
	for i := range s.frames {
		add(&s.frames[i], s.step)
	}
	add(&s.open, s.step)
	// What was before us: whole spans in the store, and the one in which we
	// began, which the store may have with ours in it.
	begun := b.started.Truncate(longStep)
	if len(b.prior.packed) > 0 {
		add(&b.prior, max(b.started.Sub(b.prior.at), time.Second))
	}
	return begun, known
}

// stored adds what only the store has.
func (b *Book) stored(ctx context.Context, a *answer, end time.Time, known map[int64]bool) error {
	if b.o.Store == nil || !a.q.From.Before(end) {
		return nil
	}
	select { // a year of rows keeps a processor busy for a second: one at a time
	case b.reading <- struct{}{}:
		defer func() { <-b.reading }()
	case <-ctx.Done():
		return ctx.Err()
	}
	var names words
	for _, step := range []time.Duration{longStep, hourStep} {
		if step == hourStep && a.now.Sub(a.q.From) < keptLong-24*time.Hour {
			continue
		}
		rows, err := b.o.Store.Figures(ctx, a.q.Part, step, a.q.From.Add(1-step), end)
		if err != nil {
			return err
		}
		for _, r := range rows {
			if step == longStep && known[r.At.Unix()] {
				continue
			}
			if err := names.parse(r.Body, func(name string, s *sum) { a.put(r.Part, name, r.At, step, s) }); err != nil {
				return fmt.Errorf("%s at %s: %w", r.Part, r.At.Format(time.RFC3339), err)
			}
		}
	}
	return nil
}

// points are the bins of p by time, with empty ones where the service ran and
// nothing of p was asked.
func (a *answer) points(p *bins) []fleet.Figure {
	out := make([]fleet.Figure, 0, len(a.spans))
	for k, span := range a.spans {
		at := time.Unix(0, k).UTC()
		if b := p.at[k]; b != nil {
			out = append(out, b.sum.figure(at, max(span, b.span)))
		} else {
			out = append(out, fleet.Figure{At: at, Span: span})
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].At.Before(out[j].At) })
	return out
}
