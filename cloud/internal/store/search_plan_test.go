package store

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// TestSearchUsesIndexes: each filter is answered out of its index alone, in
// order; rows are read by their numbers.
func TestSearchUsesIndexes(t *testing.T) {
	s, err := Open(t.Context(), t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	for _, tenant := range []fleet.TenantID{"main", "other", "main"} {
		for range 20 {
			if err := s.Audit(t.Context(), fleet.AuditEvent{Tenant: tenant, Kind: "link.up", Actor: "anna", Subject: "d1", Site: "s1"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	r, plain := watch(t, s)
	for index, q := range map[string]fleet.TrailQuery{
		"audit_device": {Device: "d1"}, "audit_actor": {Who: "anna"}, "audit_site": {Site: "s1", Severity: "info"}, "audit_subject": {Subject: "d1", Outcome: "success"},
		"audit_facet": {What: "link.up"}, "INTEGER PRIMARY KEY": {From: time.Now().Add(-time.Hour), To: time.Now().Add(time.Hour)},
	} {
		for _, q.OldestFirst = range []bool{false, true} {
			if _, err := s.SearchTrails(t.Context(), "main", q, fleet.Page{Limit: 30}); err != nil {
				t.Fatal(err)
			}
			used := false
			for query, steps := range r.plans(t, plain) {
				for _, step := range steps {
					byIndex := strings.Contains(step, "USING COVERING INDEX audit_")
					if byNumber := strings.HasPrefix(query, "SELECT n,") && strings.Contains(step, "INTEGER PRIMARY KEY"); strings.Contains(step, " a ") && !byIndex && !byNumber || strings.Contains(step, "TEMP B-TREE") {
						t.Errorf("%+v: %s in\n%s\n%s", q, step, query, strings.Join(steps, "\n"))
					}
					used = used || strings.Contains(step, index)
				}
			}
			if !used {
				t.Errorf("%+v: does not use %s", q, index)
			}
		}
	}
}
