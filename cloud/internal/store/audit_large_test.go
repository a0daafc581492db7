package store_test

import (
	"os"
	"testing"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/simulator/postgres"
)

// TestFillTrails: what is made up to be measured is found as what devices and
// operators make would be.
func TestFillTrails(t *testing.T) {
	l, where := store.NewLargeTrails(20_037), ""
	if postgres.On() {
		dir, err := os.MkdirTemp("", "tillward-pg-")
		must(t, err)
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		c, err := postgres.Start(t.Context(), dir, false)
		must(t, err)
		t.Cleanup(c.Kill)
		must(t, store.FillPostgres(t.Context(), c.URL("postgres", "postgres"), l, func(string, int64) {}))
		where = c.URL("tillward_service", "postgres")
	} else {
		where = t.TempDir()
		must(t, store.FillTrails(t.Context(), where, l, func(string, int64) {}))
	}
	s := open(t, where)
	all, err := s.Trails(t.Context(), 0, 30_000)
	must(t, err)
	if len(all) != 20_037 {
		t.Fatalf("got %d rows", len(all))
	}
	for _, q := range []fleet.TrailQuery{
		{},
		{Device: fleet.DeviceID(l.Device(3))},
		{Who: l.Operator(0)},
		{What: l.Kind(0)},
		{What: "access."},
		{Site: l.Site(1), Severity: "warn"},
		{Subject: "receipt", Outcome: "refused"},
		{Who: l.Operator(1), What: l.Kind(3)},
		{From: l.Begin.AddDate(0, 1, 0), To: l.Begin.AddDate(0, 1, 3)},
	} {
		got, _ := read(t.Context(), t, s, "main", q, 100)
		if want := naive(all, "main", q); len(got) == 0 || len(got) != len(want) || got[0] != want[0] {
			t.Errorf("%+v: got %d, want %d", q, len(got), len(want))
		}
	}
	// And written to as if it had grown by itself.
	must(t, s.Audit(t.Context(), fleet.AuditEvent{Tenant: "main", Kind: "token.issued", Actor: "anna"}))
}
