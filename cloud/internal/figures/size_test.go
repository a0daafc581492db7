package figures_test

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/cloud/internal/figures"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
)

var year = flag.Bool("year", false, "fill a database with 13 months of figures of a busy service and tell its size")

// TestYear measures what a busy service keeps: 30 routes that are asked in every
// span of five minutes, and 20 other things.
func TestYear(t *testing.T) {
	if !*year {
		t.Skip("it takes its time: -year")
	}
	dir, quiet := t.TempDir(), slog.New(slog.DiscardHandler)
	st, err := store.Open(t.Context(), dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	// What a busy span looks like is taken from a book that counted one.
	shelf := newShelf()
	synctest.Test(t, func(t *testing.T) {
		b, end := life(t, shelf)
		for i := range 30 {
			op := b.Op("api", fmt.Sprintf("GET /v1/devices/{id}/thing-%d", i))
			for range 500 {
				op.Done(figures.OK, time.Duration(rand.ExpFloat64()*float64(20*time.Millisecond)), 4000)
			}
		}
		for i := range 20 {
			op := b.Op([]string{"mqtt-up", "store", "export", "device", "dispatch", "rollout", "verifier", "mqtt-connect", "mqtt-down", "console"}[i%10], fmt.Sprintf("op-%d", i))
			for range 5000 {
				op.Done(figures.OK, time.Duration(rand.ExpFloat64()*float64(5*time.Millisecond)), 400)
			}
		}
		end()
	})
	now := time.Now().Truncate(5 * time.Minute)
	var rows []fleet.FigureRow
	put := func() {
		if err := st.PutFigures(context.Background(), rows); err != nil {
			t.Fatal(err)
		}
		rows = rows[:0]
	}
	n := 0
	fill := func(step time.Duration, from, to time.Time) {
		for at := from; at.Before(to); at = at.Add(step) {
			for _, r := range shelf.rows {
				r.At, r.Step = at, step
				rows = append(rows, r)
				n++
			}
			if len(rows) > 20_000 {
				put()
			}
		}
		put()
	}
	month := now.Add(-35 * 24 * time.Hour)
	fill(5*time.Minute, month, now)
	fill(time.Hour, now.Add(-396*24*time.Hour).Truncate(time.Hour), month)
	info, err := os.Stat(filepath.Join(dir, "tillward.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d rows, %d MiB", n, info.Size()>>20)
	b := figures.New(figures.Options{Store: st, Log: quiet})
	for name, q := range map[string]fleet.FigureQuery{
		"13 months, all": {From: now.Add(-396 * 24 * time.Hour)}, "13 months, api": {Part: "api", From: now.Add(-396 * 24 * time.Hour)},
		"30 days, all": {From: now.Add(-30 * 24 * time.Hour)}, "7 days, all": {From: now.Add(-7 * 24 * time.Hour)}, "24 hours, all": {From: now.Add(-24 * time.Hour)},
	} {
		began := time.Now()
		parts, _ := query(t, b, q)
		t.Logf("%s: %s, %d parts", name, time.Since(began).Round(time.Millisecond), len(parts))
	}
}
