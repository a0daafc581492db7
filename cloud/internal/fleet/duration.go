package fleet

import (
	"cmp"
	"slices"
	"time"
)

// Durations sums up how long and how often each state held between two moments,
// longest first. While the till was lost the peripheral was in no other state
// than M_TILL_OFFLINE. Spans must not overlap each other; what no span tells of
// counts for nothing.
func Durations(spans, lost []Span, from, to time.Time) []Duration {
	type state struct{ health, reason string }
	sums := map[state]*Duration{}
	add := func(s Span, begun bool) {
		a, b := cut(s, from, to)
		if !b.After(a) {
			return
		}
		k := state{s.Health, s.Reason}
		if sums[k] == nil {
			sums[k] = &Duration{Health: s.Health, Reason: s.Reason}
		}
		sums[k].Time += b.Sub(a)
		if begun {
			sums[k].Times++
		}
	}
	holes := slices.Clone(lost)
	slices.SortFunc(holes, func(a, b Span) int { return a.From.Compare(b.From) })
	for _, h := range holes {
		add(h, true)
	}
	for _, s := range spans {
		begun := true // a state that goes on behind a hole is still the same
		for _, h := range holes {
			a, b := cut(s, from, to)
			ha, hb := cut(h, from, to)
			if !hb.After(a) || !ha.Before(b) {
				continue
			}
			if ha.After(a) {
				add(Span{s.Health, s.Reason, a, ha}, begun)
				begun = false
			}
			s.From, s.To = hb, b
		}
		add(s, begun)
	}
	out := make([]Duration, 0, len(sums))
	for _, d := range sums {
		out = append(out, *d)
	}
	slices.SortFunc(out, func(a, b Duration) int {
		return cmp.Or(cmp.Compare(b.Time, a.Time), cmp.Compare(a.Health, b.Health), cmp.Compare(a.Reason, b.Reason))
	})
	return out
}

// cut is the part of a span between two moments.
func cut(s Span, from, to time.Time) (a, b time.Time) {
	a, b = s.From, s.To
	if b.IsZero() || b.After(to) {
		b = to
	}
	if a.Before(from) {
		a = from
	}
	return a, b
}
