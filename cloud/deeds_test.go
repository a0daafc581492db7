package cloud

import (
	"context"
	"testing"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// TestServiceTellsOfItself: a start, an end, what of the configuration has
// changed, and that the last run was cut off.
func TestServiceTellsOfItself(t *testing.T) {
	s := newService(t)
	s.cfg.DataDir = t.TempDir()
	said := func() (all []fleet.AuditEvent) {
		t.Helper()
		f, err := s.store.SearchTrails(t.Context(), s.tenant, fleet.TrailQuery{What: "service."}, fleet.Page{})
		must(t, err)
		for _, e := range f.Items {
			all = append(all, e.AuditEvent)
		}
		return all
	}
	s.begun(t.Context())
	if got := said(); len(got) != 1 || got[0].Kind != "service.started" || got[0].Severity != "info" || got[0].Outcome != fleet.Success || got[0].Actor != "service" {
		t.Fatalf("first start: got %+v", got)
	}
	s.ended(nil)
	s.cfg.Attest.Unjudged, s.cfg.Export = "quarantined", []ExportConfig{{Name: "siem", Kind: "file", Path: "/var/log/trail"}}
	s.begun(t.Context())
	got := said()
	if len(got) != 4 || got[0].Kind != "service.configured" || got[1].Severity != "info" || got[2].Kind != "service.stopped" {
		t.Fatalf("second start: got %+v", got)
	}
	if keys := got[0].Detail["keys"]; got[0].Detail["count"] == "1" || keys[:len("attest.unjudged export.0.")] != "attest.unjudged export.0." {
		t.Errorf("changed: got %v", got[0].Detail)
	}
	s.begun(t.Context())
	if got := said(); len(got) != 5 || got[0].Severity != "warn" || got[0].Detail["before"] != "cut off" {
		t.Errorf("third start: got %+v", got[0])
	}
	s.ended(context.DeadlineExceeded)
	if got := said(); got[0].Severity != "alarm" || got[0].Detail["reason"] == "" {
		t.Errorf("bad end: got %+v", got[0])
	}
}
