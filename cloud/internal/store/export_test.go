package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/simulator/postgres"
)

// TestTrails reads what all tenants recorded in the order it was stored, and
// sees what was deleted as a number that is missing.
func TestTrails(t *testing.T) {
	dir := postgres.Place(t)
	s := open(t, dir)
	ctx := t.Context()
	if n, err := s.TrailsEnd(ctx); err != nil || n != 0 {
		t.Fatalf("end of nothing: %d, %v", n, err)
	}
	for _, tenant := range []fleet.TenantID{"main", "other", "main"} {
		must(t, s.Audit(ctx, fleet.AuditEvent{Tenant: tenant, Kind: "device.changed", Actor: "anna", Detail: map[string]string{"k": "v"}}))
	}
	got, err := s.Trails(ctx, 0, 10)
	must(t, err)
	if len(got) != 3 || got[0].N != 1 || got[1].N != 2 || got[1].Tenant != "other" || got[2].Seq != 3 || got[2].Detail["k"] != "v" {
		t.Errorf("got %+v", got)
	}
	if got, err := s.Trails(ctx, 1, 1); err != nil || len(got) != 1 || got[0].N != 2 {
		t.Errorf("a part: got %+v, %v", got, err)
	}
	tamper(t, dir, `DELETE FROM audit WHERE n = 2`)
	must(t, s.Audit(ctx, fleet.AuditEvent{Kind: "device.changed"}))
	got, err = s.Trails(ctx, 1, 10)
	must(t, err)
	if n, err := s.TrailsEnd(ctx); err != nil || n != 4 || len(got) != 2 || got[0].N != 3 || got[1].N != 4 {
		t.Errorf("got %+v, end %d, %v", got, n, err)
	}
}

// TestExportCursor: it is there when it was set, goes only forward, and moves
// together with the events that tell of it.
func TestExportCursor(t *testing.T) {
	dir := postgres.Place(t)
	s := open(t, dir)
	ctx := t.Context()
	if _, err := s.Cursor(ctx, "siem"); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("a new sink: got %v", err)
	}
	at := time.UnixMilli(1790000000000).UTC()
	must(t, s.SetCursor(ctx, "siem", fleet.ExportCursor{}))
	must(t, s.SetCursor(ctx, "siem", fleet.ExportCursor{N: 7, Sent: 5, Lost: 2, At: at, Last: 6, Skipped: 3, StalledAt: at}, fleet.AuditEvent{Tenant: "main", Kind: "export.lost", Severity: "alarm"}))
	if err := s.SetCursor(ctx, "siem", fleet.ExportCursor{N: 6, Sent: 9}, fleet.AuditEvent{Tenant: "main", Kind: "export.lost"}); err == nil {
		t.Error("it went back")
	}
	if err := s.SetCursor(ctx, "siem", fleet.ExportCursor{N: 8}, fleet.AuditEvent{Tenant: "main"}); err == nil {
		t.Error("it moved without its event")
	}
	must(t, s.Close())
	s = open(t, dir)
	if c, err := s.Cursor(ctx, "siem"); err != nil || c != (fleet.ExportCursor{N: 7, Sent: 5, Lost: 2, At: at, Last: 6, Skipped: 3, StalledAt: at}) {
		t.Errorf("got %+v, %v", c, err)
	}
	if got, err := s.Trails(ctx, 0, 10); err != nil || len(got) != 1 || got[0].Kind != "export.lost" {
		t.Errorf("got %+v, %v", got, err)
	}
}
