package rollout_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/rollout"
	"github.com/tillward/tillward/cloud/wire"
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	z, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// TestHours works spans out, also over the two nights of the year in which the clock jumps.
func TestHours(t *testing.T) {
	for _, c := range []struct{ hours, zone, from, to, want string }{
		{"22:00-05:00", "UTC", "2026-11-24 12:00", "2026-11-26 12:00", "11-24 22:00 11-25 05:00, 11-25 22:00 11-26 05:00"},
		{"22:00-05:00", "UTC", "2026-11-24 23:00", "2026-11-25 01:00", "11-24 23:00 11-25 01:00"}, // clipped
		{"22:00-05:00", "Europe/Berlin", "2026-11-24 12:00", "2026-11-25 12:00", "11-24 21:00 11-25 04:00"},
		{"00:00-24:00", "Europe/Berlin", "2026-11-24 00:00", "2026-12-01 00:00", "11-24 00:00 12-01 00:00"},                                                                  // one span
		{"mon-fri 22:00-05:00, sun 00:00-24:00", "UTC", "2026-11-27 12:00", "2026-11-30 23:00", "11-27 22:00 11-28 05:00, 11-29 00:00 11-30 00:00, 11-30 22:00 11-30 23:00"}, // Friday
		{"fri-mon 01:00-02:00", "UTC", "2026-11-26 00:00", "2026-12-02 00:00", "11-27 01:00 11-27 02:00, 11-28 01:00 11-28 02:00, 11-29 01:00 11-29 02:00, 11-30 01:00 11-30 02:00"},
		{"Tue Thu 01:00-02:00", "UTC", "2026-11-24 00:00", "2026-11-27 00:00", "11-24 01:00 11-24 02:00, 11-26 01:00 11-26 02:00"},
		{"01:00-04:00", "Europe/Berlin", "2026-03-28 20:00", "2026-03-29 12:00", "03-29 00:00 03-29 02:00"}, // 2:00 to 3:00 is not
		{"02:00-03:00", "Europe/Berlin", "2026-03-28 20:00", "2026-03-29 12:00", ""},
		{"02:30-04:00", "Europe/Berlin", "2026-03-28 20:00", "2026-03-29 12:00", "03-29 01:00 03-29 02:00"},
		{"02:00-03:00", "Europe/Berlin", "2026-10-24 20:00", "2026-10-25 12:00", "10-25 00:00 10-25 02:00"}, // is twice
		{"01:00-02:30", "Europe/Berlin", "2026-10-24 20:00", "2026-10-25 12:00", "10-24 23:00 10-25 00:30, 10-25 01:00 10-25 01:30"},
		{"sun 01:00-02:00", "UTC", "2026-11-23 00:00", "2026-11-28 00:00", ""},
	} {
		h, err := rollout.ParseHours(c.hours)
		if err != nil {
			t.Errorf("%s: %v", c.hours, err)
			continue
		}
		at := func(s string) time.Time {
			when, err := time.Parse("2006-01-02 15:04", s)
			if err != nil {
				t.Fatal(err)
			}
			return when
		}
		var got []string
		for _, s := range h.Spans(at(c.from), at(c.to), zone(t, c.zone)) {
			got = append(got, time.UnixMilli(s.From).UTC().Format("01-02 15:04 ")+time.UnixMilli(s.To).UTC().Format("01-02 15:04"))
		}
		if g := strings.Join(got, ", "); g != c.want {
			t.Errorf("%s in %s: got %s, want %s", c.hours, c.zone, g, c.want)
		}
	}
}

func TestHoursRefused(t *testing.T) {
	for _, s := range []string{
		"22:00", "22:00-", "-05:00", "25:00-26:00", "22:00-22:00", "24:00-05:00", "mon", "mon-22:00-05:00", "mo 22:00-05:00", "mon-fry 1:00-2:00",
		"22:00-05:00,", ",", "22:00-05:00 mon", "22:00 - 05:00", "22.00-05.00", strings.Repeat("01:00-02:00,", 100) + "01:00-02:00",
	} {
		if h, err := rollout.ParseHours(s); !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("%q: got %+v, %v, want an error", s, h, err)
		}
	}
	for _, s := range []string{"", "  "} {
		if h, err := rollout.ParseHours(s); err != nil || !h.Any() {
			t.Errorf("%q: got %+v, %v, want any time", s, h, err)
		}
	}
}

// TestHoursThatNeverCome: without hours an offer is for any time, and hours that do not come while it lives must not
// turn into that.
func TestHoursThatNeverCome(t *testing.T) {
	if got := rollout.Closed(nil); got != nil {
		t.Errorf("any time is %v", got)
	}
	if got := rollout.Closed([]wire.Span{}); len(got) != 1 || got[0].To <= got[0].From || got[0].To > noon.UnixMilli() {
		t.Errorf("never is %v", got)
	}
	some := []wire.Span{{From: 7, To: 9}}
	if got := rollout.Closed(some); len(got) != 1 || got[0] != some[0] {
		t.Errorf("some hours are %v", got)
	}
}

// within says by the clock on the wall whether a moment is in hours: what Spans must come to.
func within(text string, at time.Time) bool {
	days := []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}
	now := at.Hour()*60 + at.Minute()
	for part := range strings.SplitSeq(text, ",") {
		words := strings.Fields(part)
		var fh, fm, th, tm int
		_, _ = fmt.Sscanf(words[len(words)-1], "%d:%d-%d:%d", &fh, &fm, &th, &tm)
		from, to := fh*60+fm, th*60+tm
		on := func(d time.Weekday) bool { return len(words) == 1 || strings.Contains(part, days[d]) }
		switch {
		case from < to && on(at.Weekday()) && from <= now && now < to:
			return true
		case from > to && (on(at.Weekday()) && now >= from || on((at.Weekday()+6)%7) && now < to):
			return true
		}
	}
	return false
}

// TestSpansAreTheWallsClock asks of any minute of a week around any jump of the clock.
func TestSpansAreTheWallsClock(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		z, err := time.LoadLocation(rapid.SampledFrom([]string{"UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "Africa/Casablanca", "Pacific/Apia"}).Draw(t, "zone"))
		if err != nil {
			t.Fatal(err)
		}
		clock := func(name string) string {
			return fmt.Sprintf("%02d:%02d", rapid.IntRange(0, 23).Draw(t, name), rapid.SampledFrom([]int{0, 15, 30}).Draw(t, name))
		}
		var parts []string
		for range rapid.IntRange(1, 3).Draw(t, "parts") {
			from, to := clock("from"), clock("to")
			if from == to {
				to = "24:00"
			}
			day := rapid.SampledFrom([]string{"", "sun ", "sat sun ", "mon wed fri "}).Draw(t, "days")
			parts = append(parts, day+from+"-"+to)
		}
		text := strings.Join(parts, ", ")
		h, err := rollout.ParseHours(text)
		if err != nil {
			t.Fatal(err)
		}
		from := time.Date(2026, time.Month(rapid.IntRange(1, 12).Draw(t, "month")), rapid.IntRange(1, 28).Draw(t, "day"), rapid.IntRange(0, 23).Draw(t, "hour"), 7, 0, 0, time.UTC)
		to := from.Add(7 * 24 * time.Hour)
		spans := h.Spans(from, to, z)
		for i, s := range spans {
			if s.To <= s.From || i > 0 && s.From <= spans[i-1].To {
				t.Fatalf("%s: spans %v are out of order", text, spans)
			}
		}
		for m := from; m.Before(to); m = m.Add(5 * time.Minute) {
			in := false
			for _, s := range spans {
				in = in || s.From <= m.UnixMilli() && m.UnixMilli() < s.To
			}
			if want := within(text, m.In(z)); in != want {
				t.Fatalf("%s in %s: %s is %v, want %v", text, z, m.In(z), in, want)
			}
		}
	})
}

func FuzzParseHours(f *testing.F) {
	for _, s := range []string{"", "mon-fri 22:00-05:00, sun 00:00-24:00", "sat sun 01:15-02:45", "24:00-00:00", "fri-mon 23:59-00:01,,"} {
		f.Add(s)
	}
	berlin := zone(f, "Europe/Berlin")
	f.Fuzz(func(t *testing.T, s string) {
		h, err := rollout.ParseHours(s)
		if err != nil {
			if !errors.Is(err, fleet.ErrInvalid) {
				t.Errorf("%q: %v is no refusal", s, err)
			}
			return
		}
		from := noon.Add(-36 * time.Hour)
		spans := h.Spans(from, from.Add(7*24*time.Hour), berlin)
		if len(spans) > wire.MaxSpans || h.Any() != (strings.TrimSpace(s) == "") || !h.Any() && len(spans) == 0 {
			t.Errorf("%q: got %d spans", s, len(spans))
		}
	})
}
