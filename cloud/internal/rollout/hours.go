package rollout

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // sites name their zones; a container may have none

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
)

// Hours are hours of a week by the clock on the wall, such as
// "mon-fri 22:00-05:00, sun 00:00-24:00". A time without days is of every day;
// one that ends before it begins ends on the next day.
type Hours struct{ parts []hours }

type hours struct {
	days     [7]bool // in which it begins, by time.Weekday
	from, to int     // minutes of the day; to lies after from, and past 24:00 on the next day
}

const (
	dayMinutes = 24 * 60
	maxHours   = 512 // bytes of a text
)

var dayNames = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// ParseHours reads hours. The empty text is the zero Hours: any time.
func ParseHours(text string) (Hours, error) {
	var h Hours
	if len(text) > maxHours {
		return h, fmt.Errorf("hours of %d bytes, at most %d: %w", len(text), maxHours, fleet.ErrInvalid)
	}
	if strings.TrimSpace(text) == "" {
		return h, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		p, err := parsePart(strings.Fields(strings.ToLower(part)))
		if err != nil {
			return Hours{}, fmt.Errorf("hours %q: %w; write them like \"mon-fri 22:00-05:00, sun 00:00-24:00\": %w", strings.TrimSpace(part), err, fleet.ErrInvalid)
		}
		h.parts = append(h.parts, p)
	}
	return h, nil
}

func parsePart(words []string) (p hours, err error) {
	if len(words) == 0 {
		return p, fmt.Errorf("nothing between two commas")
	}
	last := len(words) - 1
	for _, w := range words[:last] {
		from, to, isRange := strings.Cut(w, "-")
		a, b := slices.Index(dayNames, from), slices.Index(dayNames, to)
		if !isRange {
			b = a
		}
		if a < 0 || b < 0 {
			return p, fmt.Errorf("%q is no day; days are mon tue wed thu fri sat sun", w)
		}
		for d := a; ; d = (d + 1) % 7 {
			p.days[d] = true
			if d == b {
				break
			}
		}
	}
	if last == 0 {
		p.days = [7]bool{true, true, true, true, true, true, true}
	}
	from, to, ok := strings.Cut(words[last], "-")
	if !ok {
		return p, fmt.Errorf("%q has no end", words[last])
	}
	if p.from, err = parseClock(from); err != nil {
		return p, err
	}
	if p.to, err = parseClock(to); err != nil {
		return p, err
	}
	switch {
	case p.from == p.to:
		return p, fmt.Errorf("it ends when it begins; a whole day is 00:00-24:00")
	case p.from == dayMinutes:
		return p, fmt.Errorf("24:00 is an end; a beginning is 00:00 of the next day")
	case p.to < p.from:
		p.to += dayMinutes
	}
	return p, nil
}

func parseClock(s string) (int, error) {
	if s == "24:00" {
		return dayMinutes, nil
	}
	t, err := time.Parse("15:04", s)
	if err != nil {
		return 0, fmt.Errorf("%q is no time of day", s)
	}
	return t.Hour()*60 + t.Minute(), nil
}

// Any reports whether every time is within h.
func (h Hours) Any() bool { return len(h.parts) == 0 }

// Spans are the times of h between two moments, in order, at most as many as an
// offer may carry: past the last nothing is open. It goes by what the clock on
// the wall of the zone shows: an hour that the clock skips is in none, one that
// it shows twice is in both times.
func (h Hours) Spans(from, to time.Time, zone *time.Location) []wire.Span {
	var spans []wire.Span
	for at := from; at.Before(to); {
		local := at.In(zone)
		_, offset := local.Zone()
		end := to // of the time in which the clock keeps its offset
		if _, e := local.ZoneBounds(); !e.IsZero() && e.Before(to) {
			end = e
		}
		spans = append(spans, h.spans(at, end, time.Duration(offset)*time.Second)...)
		at = end
	}
	return merge(spans)
}

// spans are the times between two moments with a clock that does not jump.
func (h Hours) spans(from, to time.Time, offset time.Duration) (spans []wire.Span) {
	// The wall's clock as if it were UTC; the day before may reach into this one.
	day := from.Add(offset).UTC().Truncate(24 * time.Hour).Add(-24 * time.Hour)
	for ; day.Add(-offset).Before(to); day = day.Add(24 * time.Hour) {
		for _, p := range h.parts {
			if !p.days[day.Weekday()] {
				continue
			}
			a := day.Add(time.Duration(p.from)*time.Minute - offset)
			b := day.Add(time.Duration(p.to)*time.Minute - offset)
			s := wire.Span{From: max(a.UnixMilli(), from.UnixMilli()), To: min(b.UnixMilli(), to.UnixMilli())}
			if s.From < s.To {
				spans = append(spans, s)
			}
		}
	}
	return spans
}

// merge sorts spans and joins those that touch.
func merge(spans []wire.Span) []wire.Span {
	slices.SortFunc(spans, func(a, b wire.Span) int { return cmp.Compare(a.From, b.From) })
	var out []wire.Span
	for _, s := range spans {
		if n := len(out); n > 0 && s.From <= out[n-1].To {
			out[n-1].To = max(out[n-1].To, s.To)
			continue
		}
		out = append(out, s)
	}
	return out[:min(len(out), wire.MaxSpans)]
}

// timetable is when a site may be worked on while an offer lives.
type timetable struct {
	download, install []wire.Span // nil: at any time
	err               error       // somebody wrote hours that nobody can read
}

// opens reports whether there is a time for everything.
func (t *timetable) opens() bool {
	return t.err == nil && (t.download == nil || len(t.download) > 0) && (t.install == nil || len(t.install) > 0)
}

// openNow reports whether a device could begin at once.
func (t *timetable) openNow(now time.Time) bool {
	return t.opens() && (t.download == nil || t.download[0].From <= now.UnixMilli() && now.UnixMilli() < t.download[0].To)
}

// timetableOf works out the hours of a site for an offer that lives until end;
// those of the rollout go before those of the site.
func timetableOf(spec fleet.Spec, site fleet.Site, now, end time.Time) (t timetable) {
	zone := time.UTC
	if site.Zone != "" {
		if zone, t.err = time.LoadLocation(site.Zone); t.err != nil {
			t.err = fmt.Errorf("time zone of the site: %w: %w", t.err, fleet.ErrInvalid)
			return t
		}
	}
	for _, h := range []struct {
		text, own string
		to        *[]wire.Span
	}{{spec.Download, site.Download, &t.download}, {spec.Install, site.Install, &t.install}} {
		if h.text == "" {
			h.text = h.own
		}
		hours, err := ParseHours(h.text)
		if err != nil {
			t.err = err
			return t
		}
		if !hours.Any() {
			// Never nil: that would be any time.
			*h.to = append([]wire.Span{}, hours.Spans(now, end, zone)...)
		}
	}
	return t
}
