package store_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// TestFigures keeps figures, replaces them, and rolls them up.
func TestFigures(t *testing.T) {
	s, _ := enrolled(t, 1)
	ctx, five := t.Context(), 5*time.Minute
	var changed int64
	read := 0
	row := func(part string, step time.Duration, at time.Time, body string) fleet.FigureRow {
		return fleet.FigureRow{Part: part, Step: step, At: at, Body: []byte(body)}
	}
	s.Observe(func(rows int64, _ time.Duration, err error) { changed += rows; must(t, err) }, func() { read++ })
	must(t, s.PutFigures(ctx, []fleet.FigureRow{row("api", five, noon, "a"), row("store", five, noon, "b"), row("api", five, noon.Add(five), "c")}))
	must(t, s.PutFigures(ctx, []fleet.FigureRow{row("api", five, noon, "d")}))
	if changed != 4 {
		t.Errorf("told of %d rows, want 4", changed)
	}
	bodies := func(part string, step time.Duration, from, to time.Time) (out string) {
		rows, err := s.Figures(ctx, part, step, from, to)
		must(t, err)
		if !slices.IsSortedFunc(rows, func(a, b fleet.FigureRow) int { return a.At.Compare(b.At) }) {
			t.Error("rows are not by time")
		}
		for _, r := range rows {
			out += string(r.Body)
		}
		return out
	}
	for _, c := range []struct {
		part     string
		from, to time.Time
		want     string
	}{
		{"", noon, noon.Add(time.Hour), "dbc"},
		{"api", noon, noon.Add(time.Hour), "dc"},
		{"api", noon, noon.Add(five), "d"},
		{"", noon.Add(time.Second), noon.Add(time.Hour), "c"},
		{"none", noon, noon.Add(time.Hour), ""},
	} {
		if got := bodies(c.part, five, c.from, c.to); got != c.want {
			t.Errorf("%s from %s to %s: got %q, want %q", c.part, c.from, c.to, got, c.want)
		}
	}
	must(t, s.RollFigures(ctx, []fleet.FigureRow{row("api", time.Hour, noon, "H")}, five, noon.Add(five), noon.Add(-time.Hour)))
	if got := bodies("", five, time.Time{}, noon.Add(time.Hour)); got != "c" {
		t.Errorf("of five minutes %q are left, want c", got)
	}
	if got := bodies("", time.Hour, time.Time{}, noon.Add(time.Hour)); got != "H" {
		t.Errorf("of hours there are %q, want H", got)
	}
	if read < 7 {
		t.Errorf("told of %d queries, want each", read)
	}
	must(t, s.RollFigures(ctx, nil, five, noon, noon.Add(time.Hour)))
	if got := bodies("", time.Hour, time.Time{}, noon.Add(time.Hour)); got != "" {
		t.Errorf("old hours are left: %q", got)
	}
}

// TestObserveFailure tells of what could not be written.
func TestObserveFailure(t *testing.T) {
	s, ds := enrolled(t, 1)
	var failed error
	s.Observe(func(_ int64, _ time.Duration, err error) { failed = err }, nil)
	if err := s.Enrol(t.Context(), ds[0]); err == nil || failed == nil {
		_, err := s.Commit(t.Context(), []fleet.Intake{{Device: "nobody", Tenant: "main", At: noon}})
		if !errors.Is(err, fleet.ErrNotFound) || failed == nil {
			t.Errorf("got %v and told of %v, want a failure twice", err, failed)
		}
	}
}
