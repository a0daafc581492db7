package store_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/simulator/postgres"
)

// TestAuditTrailOf: the few of one severity are found among the many, page by page and in both orders, in the trail of
// the service and in that of a device, and by an index.
func TestAuditTrailOf(t *testing.T) {
	dir := postgres.Place(t)
	s := open(t, dir)
	must(t, s.Enrol(t.Context(), device("main", 1)))
	id := device("main", 1).ID
	var entries []fleet.AuditEvent
	severity := func(n int) string {
		switch {
		case n%7 == 0:
			return "alarm"
		case n%5 == 0:
			return "warn"
		}
		return "info"
	}
	for n := 1; n <= 30; n++ {
		ev := event("test.entry")
		ev.Tenant, ev.Severity = "main", severity(n)
		if n == 14 {
			ev.Tenant = "other"
		}
		must(t, s.Audit(t.Context(), ev))
		entries = append(entries, fleet.AuditEvent{
			Device: id, Tenant: "main", Seq: uint64(n), At: noon, Kind: "test.entry", Severity: severity(n), Body: []byte{byte(n)}, Hash: [32]byte{byte(n)}, Prev: [32]byte{byte(n - 1)},
		})
	}
	_, err := s.Commit(t.Context(), []store.Intake{{Device: id, Tenant: "main", At: noon, Audit: entries}})
	must(t, err)
	for _, c := range []struct {
		trail fleet.DeviceID
		sev   string
		want  []uint64
	}{
		{"", "alarm", []uint64{7, 21, 28}}, // 14 is another tenant's
		{id, "alarm", []uint64{7, 14, 21, 28}},
		{"", "warn", []uint64{5, 10, 15, 20, 25, 30}},
		{id, "loud", nil},
	} {
		for _, newestFirst := range []bool{false, true} {
			var got []uint64
			for p := (fleet.Page{Limit: 2}); ; {
				l, next, err := s.AuditTrailOf(t.Context(), "main", c.trail, c.sev, newestFirst, p)
				must(t, err)
				for _, ev := range l {
					got = append(got, ev.Seq)
				}
				if p.After = next; next == "" {
					break
				}
			}
			if newestFirst {
				slices.Reverse(got)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("trail %q, %s, newest first %v: got %v, want %v", c.trail, c.sev, newestFirst, got, c.want)
			}
		}
	}
	if l, _, err := s.AuditTrailOf(t.Context(), "main", id, "info", true, fleet.Page{}); err != nil || len(l) != 30-4-6 {
		t.Errorf("info: got %d, %v", len(l), err)
	}
	wantErr(t, "trail of another tenant's device", func() error {
		_, _, err := s.AuditTrailOf(t.Context(), "other", id, "alarm", true, fleet.Page{})
		return err
	}(), fleet.ErrNotFound)

	if postgres.On() {
		return // its plans depend on how much there is
	}
	db, err := store.Behind(dir)
	must(t, err)
	defer db.Close()
	for _, order := range []string{`> 0 ORDER BY seq`, `< 9 ORDER BY seq DESC`} {
		var a, b, c int
		var plan string
		must(t, db.QueryRowContext(context.Background(), `EXPLAIN QUERY PLAN SELECT * FROM audit WHERE device = ? AND tenant IN (?, '') AND severity <> 'info' AND severity = ? AND seq `+order, "", "main", "alarm").
			Scan(&a, &b, &c, &plan))
		if !strings.Contains(plan, "audit_severe (device=? AND severity=? AND seq") {
			t.Errorf("seq %s: got plan %q", order, plan)
		}
	}
}
