package api_test

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"github.com/tillward/tillward/cloud/internal/archive"
	"github.com/tillward/tillward/cloud/internal/fleet"
)

// TestExportTrail takes a device's trail away, and leaves one.
func TestExportTrail(t *testing.T) {
	s := newSite(t)
	s.report(t, "d1", "main")
	r := s.as(t, fleet.Admin, "GET", "/v1/devices/d1/audit/export", nil)
	if r.status != http.StatusOK || r.header.Get("Content-Type") != "application/x-ndjson" || r.header.Get("Tillward-Entries") != "1" || !strings.Contains(r.header.Get("Content-Disposition"), `"d1.trail"`) {
		t.Fatalf("got %s, %v", r, r.header)
	}
	rep, err := archive.Verify(bytes.NewReader(r.body), archive.Trust{})
	if err != nil || rep.Verdict != archive.Whole || rep.Entries != 1 || rep.Device != "d1" || rep.MadeBy != "admin" {
		t.Errorf("got %+v, %v", rep, err)
	}
	if ev := s.trail(t)["audit.exported"]; ev.Actor != "admin" || ev.Subject != "d1" || ev.Detail["entries"] != "1" {
		t.Errorf("audited as %+v", ev)
	}
	if d := problem(t, s.as(t, fleet.Admin, "GET", "/v1/devices/d1/audit/export?from=7", nil), http.StatusUnprocessableEntity); !strings.Contains(d, "the trail ends with entry 1") {
		t.Errorf("beyond the end: %s", d)
	}
	// The trail of a service with two tenants is nobody's to take away.
	if d := problem(t, s.as(t, fleet.Admin, "GET", "/v1/audit/export", nil), http.StatusForbidden); !strings.Contains(d, "other tenants") {
		t.Errorf("the service's: %s", d)
	}
	problem(t, s.as(t, fleet.Operator, "GET", "/v1/audit/segments/7/verify", nil), http.StatusNotFound)
	key := into[struct{ ID, Key string }](t, s.as(t, fleet.Viewer, "GET", "/v1/audit/key", nil))
	if key.ID != rep.KeyID || !strings.HasPrefix(key.Key, "-----BEGIN PUBLIC KEY-----") {
		t.Errorf("key %+v, sealed by %s", key, rep.KeyID)
	}
	d := into[struct {
		Audit struct {
			Head            uint64
			Broken          bool
			AnchoredTo      uint64 `json:"anchored_to"`
			CountersignedTo uint64 `json:"countersigned_to"`
		}
	}](t, s.as(t, fleet.Viewer, "GET", "/v1/devices/d1", nil))
	if d.Audit.Head != 1 || d.Audit.Broken || d.Audit.AnchoredTo != 0 || d.Audit.CountersignedTo != 0 {
		t.Errorf("got %+v", d)
	}
}
