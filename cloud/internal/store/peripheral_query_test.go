package store

import (
	"context"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// bigCounters gives each device of bigRollouts four peripherals.
func bigCounters(t testing.TB, s *Store) {
	t.Helper()
	err := s.tx(t.Context(), func(ctx context.Context, w *writer) error {
		return w.exec(ctx, `INSERT INTO peripheral (device, id, category, driver, maker, model, serial, firmware, simulated, claim, "key", interface, caps, roll_lines,
			power, sensors, said_health, said_reason, said_since, health, reason, since, first_at, seen_at, run_out_at, run_out_to, confidence, basis)
			SELECT d.id, 'p' || k.n, CASE k.n WHEN 0 THEN 'POSPrinter' WHEN 1 THEN 'CashDrawer' WHEN 2 THEN 'SmartCardRW' ELSE 'Scanner' END, 'escpos', 'M', 'P1', 's', '1', 0, 'own', 'usb:1', 'USB', '["CapCoverSensor"]', 18876,
			'PS_ONLINE', '{"CoverOpen":"No"}', 'OK', '', 1, CASE WHEN (d.rowid + k.n) % 100 = 0 THEN 'Fault' ELSE 'OK' END, CASE WHEN (d.rowid + k.n) % 100 = 0 THEN 'COVER_OPEN' ELSE '' END, 1, 1, 1,
			CASE k.n WHEN 0 THEN 1000 + d.rowid ELSE 0 END, 1 << 50, 0.9, CASE k.n WHEN 0 THEN 'configured' ELSE '' END
			FROM device d CROSS JOIN (SELECT 0 AS n UNION ALL SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3) k`)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestPeripheralQueriesUseIndexes: what heartbeats, the worker and boards ask again and again finds its rows by an index.
func TestPeripheralQueriesUseIndexes(t *testing.T) {
	s, err := Open(t.Context(), t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	bigRollouts(t, s, 500, 1, 0)
	bigCounters(t, s)
	for _, query := range []string{usageQuery, bootsQuery, samplesQuery, eventsQuery, countedQuery} { // prepared before anybody listens
		plan(t, s, query)
	}
	r, plain := watch(t, s)
	ctx, now, seen := t.Context(), time.Now(), 0
	filter := func(f fleet.PeripheralFilter) func() error {
		return func() error {
			_, _, err := s.Peripherals(ctx, "main", f, fleet.Page{After: "d17/p1", Limit: 10})
			return err
		}
	}
	for name, ask := range map[string]func() error{
		"Peripherals":           filter(fleet.PeripheralFilter{}),
		"Peripherals, faults":   filter(fleet.PeripheralFilter{Health: "Fault"}),
		"Peripherals, a reason": filter(fleet.PeripheralFilter{Reason: "COVER_OPEN"}),
		"PeripheralsOf":         func() error { _, err := s.PeripheralsOf(ctx, "main", "d1", "d2"); return err },
		"History":               func() error { _, err := s.History(ctx, "main", "d1", "p1", now); return err },
		"PeripheralSeries":      func() error { _, err := s.PeripheralSeries(ctx, "main", "d1", "p1"); return err },
		"Baseline":              func() error { _, err := s.Baseline(ctx, "main", "R1", 1); return err },
		"RunningOut":            func() error { _, err := s.RunningOut(ctx, time.UnixMilli(1200), 0.5, 10, now); return err },
		"SetPresence":           func() error { return s.SetPresence(ctx, "d7", true, now) },
		"Derive": func() error {
			_, err := s.Derive(ctx, []fleet.Derived{{Device: "d9", Tenant: "main", Reads: []fleet.ReadDay{{Model: "R1", Day: 1, Reads: 1}}, Peripherals: []fleet.DerivedPeripheral{{ID: "p0"}}}}, now)
			return err
		},
		"Commit": func() error {
			_, err := s.Commit(ctx, []Intake{{Device: "d17", Tenant: "main", At: now, Report: &Report{Seq: 1, Sent: now, Peripherals: []fleet.Peripheral{{ID: "p0"}}}, Checks: []fleet.HealthCheck{{Peripheral: "p0", At: now}}}})
			return err
		},
	} {
		if err := ask(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for query, steps := range r.plans(t, plain) {
			seen++
			for _, step := range steps {
				if whole.MatchString(step) {
					t.Errorf("%s: %s in\n%s\n%s", name, step, query, strings.Join(steps, "\n"))
				}
			}
		}
	}
	if seen < 20 {
		t.Errorf("only %d queries were looked at", seen)
	}
}

var whole = regexp.MustCompile(`^SCAN (p|d|s|r|e|u|peripheral|peripheral_span|device|sample|series|event|health_check|read_baseline)\b`)

func plan(t *testing.T, s *Store, query string) {
	t.Helper()
	args := make([]any, strings.Count(query, "?"))
	for i := range args {
		args[i] = 1
	}
	rows, err := s.read.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+query, args...)
	steps, err := list(rows, err, func(row scanner) (step string, err error) {
		var n int
		return step, row.Scan(&n, &n, &n, &step)
	})
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	for _, step := range steps {
		if whole.MatchString(step) {
			t.Errorf("%s in\n%s\n%s", step, query, strings.Join(steps, "\n"))
		}
	}
}

// BenchmarkPeripherals is what lists of a hundred thousand tills with four peripherals each cost.
func BenchmarkPeripherals(b *testing.B) {
	s, err := Open(b.Context(), b.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	bigRollouts(b, s, 100_000, 1, 0)
	bigCounters(b, s)
	if err := s.tx(b.Context(), func(ctx context.Context, w *writer) error { return w.exec(ctx, `UPDATE device SET online = 1`) }); err != nil {
		b.Fatal(err)
	}
	for name, f := range map[string]fleet.PeripheralFilter{
		"all": {}, "OK": {Health: "OK"}, "Fault": {Health: "Fault"}, "Unknown, none": {Health: "Unknown"}, "reason": {Reason: "COVER_OPEN"}, "paper": {RunOutBefore: time.UnixMilli(1500)},
		"site": {Site: "s700"}, "query": {Query: "d77777"},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, _, err := s.Peripherals(b.Context(), "main", f, fleet.Page{Limit: 50}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("summary", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.Summary(b.Context(), "main"); err != nil {
				b.Fatal(err)
			}
		}
	})
}
