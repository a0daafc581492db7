package api_test

import (
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// TestTrustOfADevice shows why a device is what it is, and how it became that.
func TestTrustOfADevice(t *testing.T) {
	s := newSite(t)
	now := time.Now()
	found := []fleet.Finding{{Check: "boot.unknown-event", PCR: "4", Event: "boot manager", Release: "os/1.2.3", Text: "an unknown boot manager"}}
	for _, a := range []fleet.Attestation{
		{At: now, Trust: fleet.Attested, Release: "os/1.2.3", ResetCount: 4, Digest: []byte{1, 2}},
		{At: now.Add(time.Minute), Trust: fleet.Quarantined, ResetCount: 5, Digest: []byte{3, 4}, Findings: found},
	} {
		a.Device = "d1"
		must(t, s.store.Appraised(t.Context(), a, false))
	}
	d := into[object](t, s.as(t, fleet.Viewer, "GET", "/v1/devices/d1", nil))
	f, _ := d["findings"].([]any)
	if len(f) != 1 || f[0].(object)["check"] != "boot.unknown-event" || f[0].(object)["pcr"] != "4" || d["boot_release"] != "os/1.2.3" ||
		d["reset_count"] != 4.0 || d["waiver"] != nil || d["revoked_at"] != nil || d["ownership"] != nil {
		t.Errorf("got %v", d)
	}
	all, next := items(t, s.as(t, fleet.Viewer, "GET", "/v1/devices/d1/attestations?limit=1", nil))
	if len(all) != 1 || all[0]["trust"] != "quarantined" || next == "" {
		t.Errorf("newest appraisal: %v, next %q", all, next)
	}
	all, next = items(t, s.as(t, fleet.Viewer, "GET", "/v1/devices/d1/attestations?limit=1&after="+next, nil))
	if len(all) != 1 || all[0]["trust"] != "attested" || all[0]["release"] != "os/1.2.3" || all[0]["digest"] != "0102" || next != "" {
		t.Errorf("oldest appraisal: %v, next %q", all, next)
	}
	problem(t, s.do(t, s.other, "GET", "/v1/devices/d1/attestations", nil), http.StatusNotFound)
}

func TestAttestNow(t *testing.T) {
	s := newSite(t)
	if d := problem(t, s.as(t, fleet.Operator, "POST", "/v1/devices/d1/attest", nil), http.StatusConflict); !strings.Contains(d, "not connected") {
		t.Errorf("got %q", d)
	}
	must(t, s.store.SetPresence(t.Context(), "d1", true, time.Now()))
	must(t, s.store.SetPresence(t.Context(), "x1", true, time.Now()))
	if r := s.as(t, fleet.Operator, "POST", "/v1/devices/d1/attest", nil); r.status != http.StatusAccepted {
		t.Errorf("got %s", r)
	}
	problem(t, s.as(t, fleet.Operator, "POST", "/v1/devices/x1/attest", nil), http.StatusNotFound)
	if got := s.acted(); got != "challenge d1" {
		t.Errorf("asked for %q", got)
	}
	if ev := s.trail(t)["attest.requested"]; ev.Actor != "operator" || ev.Subject != "d1" {
		t.Errorf("audited as %+v", ev)
	}
}

// TestWaiver lets a device in for an hour, and takes it back; for ever, for
// the past and without a reason it does not.
func TestWaiver(t *testing.T) {
	s := newSite(t)
	until := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	d := into[struct {
		Waiver *struct{ Until, By, Reason string }
	}](t, s.as(t, fleet.Admin, "PUT", "/v1/devices/d1/waiver", object{"until": until, "reason": "new boot manager"}))
	if d.Waiver == nil || d.Waiver.Until != until.Format(time.RFC3339) || d.Waiver.By != "admin" || d.Waiver.Reason != "new boot manager" {
		t.Errorf("got %+v", d.Waiver)
	}
	if ev := s.trail(t)["device.waived"]; ev.Severity != "warn" || ev.Detail["reason"] != "new boot manager" {
		t.Errorf("audited as %+v", ev)
	}
	if got := into[object](t, s.as(t, fleet.Admin, "DELETE", "/v1/devices/d1/waiver", nil)); got["waiver"] != nil {
		t.Errorf("taken back, and %v", got["waiver"])
	}
	if got := s.acted(); got != "challenge d1, disconnect d1: its waiver was taken back" {
		t.Errorf("did %q, want evidence to be appraised anew, and nothing to stay open by silence", got)
	}
	for _, hours := range []time.Duration{2, 3, 1} {
		s.as(t, fleet.Admin, "PUT", "/v1/devices/d1/waiver", object{"until": time.Now().Add(hours * time.Hour), "reason": "r"})
	}
	if got := s.acted(); got != "challenge d1, challenge d1, disconnect d1: its waiver ends sooner" {
		t.Errorf("did %q", got)
	}
	before := s.entries(t)
	for _, bad := range []object{
		{"until": time.Now().Add(31 * 24 * time.Hour), "reason": "r"},
		{"until": time.Now().Add(-time.Minute), "reason": "r"},
		{"until": until, "reason": ""},
		{"until": until},
		{"reason": "r"},
	} {
		problem(t, s.as(t, fleet.Admin, "PUT", "/v1/devices/d1/waiver", bad), http.StatusUnprocessableEntity)
	}
	problem(t, s.as(t, fleet.Admin, "PUT", "/v1/devices/x1/waiver", object{"until": until, "reason": "r"}), http.StatusNotFound)
	if got := s.acted(); got != "" || s.entries(t) != before+6 { // each is told as failed
		t.Errorf("refused waivers did %q", got)
	}
}

// TestRevocation cuts a device off and takes it back.
func TestRevocation(t *testing.T) {
	s := newSite(t)
	problem(t, s.as(t, fleet.Admin, "POST", "/v1/devices/d1/revoke", object{}), http.StatusUnprocessableEntity)
	problem(t, s.as(t, fleet.Admin, "POST", "/v1/devices/x1/revoke", object{"reason": "stolen"}), http.StatusNotFound)
	problem(t, s.as(t, fleet.Admin, "POST", "/v1/devices/d1/readmit", object{"reason": "found"}), http.StatusConflict)
	if got := s.acted(); got != "" {
		t.Errorf("refused, and did %q", got)
	}
	d := into[object](t, s.as(t, fleet.Admin, "POST", "/v1/devices/d1/revoke", object{"reason": "stolen"}))
	if d["revoked_at"] == nil || d["revoked_why"] != "stolen" || d["trust"] != "quarantined" {
		t.Errorf("got %v", d)
	}
	if got := s.acted(); got != "disconnect d1: revoked" {
		t.Errorf("did %q", got)
	}
	if ev := s.trail(t)["device.revoked"]; ev.Severity != "alarm" || ev.Actor != "admin" || ev.Detail["reason"] != "stolen" {
		t.Errorf("audited as %+v", ev)
	}
	problem(t, s.as(t, fleet.Admin, "POST", "/v1/devices/d1/revoke", object{"reason": "again"}), http.StatusConflict)
	if d := into[object](t, s.as(t, fleet.Admin, "POST", "/v1/devices/d1/readmit", object{"reason": "found"})); d["revoked_at"] != nil || d["trust"] != "pending" {
		t.Errorf("got %v", d)
	}
	if ev := s.trail(t)["device.readmitted"]; ev.Detail["reason"] != "found" {
		t.Errorf("audited as %+v", ev)
	}
}

// TestFirmware decides an event once for a model, for one's own devices.
func TestFirmware(t *testing.T) {
	s := newSite(t)
	digest := strings.Repeat("ab", 32)
	must(t, s.store.SeeFirmware(t.Context(), "main", "vend-1", "d1", []fleet.FirmwareEvent{{PCR: 4, Digest: digest, What: "boot manager", FirstAt: time.Now()}}))
	open, _ := items(t, s.as(t, fleet.Viewer, "GET", "/v1/firmware?model=vend-1&state=open", nil))
	if len(open) != 1 || open[0]["digest"] != digest || open[0]["what"] != "boot manager" || open[0]["devices"] != 1.0 || open[0]["first"] != "d1" || open[0]["pcr"] != 4.0 {
		t.Fatalf("got %v", open)
	}
	decision := object{"model": "vend-1", "pcr": 4, "digest": digest, "decision": "approved", "reason": "BIOS 1.7"}
	problem(t, s.do(t, s.other, "POST", "/v1/firmware/decision", decision), http.StatusNotFound)
	if r := s.as(t, fleet.Admin, "POST", "/v1/firmware/decision", decision); r.status != http.StatusNoContent {
		t.Fatalf("got %s", r)
	}
	if got := s.acted(); got != "reappraise vend-1" {
		t.Errorf("did %q", got)
	}
	if all, _ := items(t, s.as(t, fleet.Viewer, "GET", "/v1/firmware?state=approved", nil)); len(all) != 1 || all[0]["by"] != "admin" || all[0]["at"] == nil {
		t.Errorf("got %v", all)
	}
	if ev := s.trail(t)["firmware.decided"]; ev.Subject != "vend-1" || ev.Detail["decision"] != "approved" || ev.Detail["event"] != digest || ev.Detail["pcr"] != "4" {
		t.Errorf("audited as %+v", ev)
	}
	for k, v := range map[string]any{"digest": "ab", "decision": "maybe", "pcr": 24, "reason": "", "model": ""} {
		bad := object{}
		maps.Copy(bad, decision)
		bad[k] = v
		problem(t, s.as(t, fleet.Admin, "POST", "/v1/firmware/decision", bad), http.StatusUnprocessableEntity)
	}
}

func TestReferences(t *testing.T) {
	s := newSite(t)
	must(t, s.store.PutReferences(t.Context(), []fleet.BootReference{{Model: "vend-1", Release: "os/1.0.0", Body: []byte(`{"version":1}`), PublishedAt: time.Now()}}))
	all, _ := items(t, s.as(t, fleet.Viewer, "GET", "/v1/references?model=vend-1", nil))
	if len(all) != 1 || all[0]["release"] != "os/1.0.0" || all[0]["body"].(object)["version"] != 1.0 {
		t.Errorf("got %v", all)
	}
	problem(t, s.as(t, fleet.Viewer, "GET", "/v1/references", nil), http.StatusUnprocessableEntity)
}

func TestAuthority(t *testing.T) {
	s := newSite(t)
	all, _ := items(t, s.as(t, fleet.Viewer, "GET", "/v1/authority", nil))
	if len(all) != 2 || all[0]["serial"] != "0a" || all[0]["current"] != true || all[1]["current"] != false {
		t.Errorf("got %v", all)
	}
	problem(t, s.as(t, fleet.Admin, "POST", "/v1/authority/rotate", object{}), http.StatusUnprocessableEntity)
	problem(t, s.as(t, fleet.Admin, "POST", "/v1/authority/retire", object{"serial": "aa"}), http.StatusUnprocessableEntity)
	problem(t, s.as(t, fleet.Admin, "POST", "/v1/authority/retire", object{"serial": "none", "reason": "stolen"}), http.StatusNotFound)
	if got := s.acted(); got != "" {
		t.Errorf("without a reason it did %q", got)
	}
	if all, _ := items(t, s.as(t, fleet.Admin, "POST", "/v1/authority/rotate", object{"reason": "yearly"})); len(all) != 2 || s.acted() != "rotate" {
		t.Errorf("got %v", all)
	}
	if ev := s.trail(t)["authority.rotated"]; ev.Subject != "0a" || ev.Detail["reason"] != "yearly" {
		t.Errorf("audited as %+v", ev)
	}
}

// TestAuditBySeverity finds the alarms among other entries, page by page.
func TestAuditBySeverity(t *testing.T) {
	s := newSite(t)
	for i := range 30 {
		severity := "info"
		if i%10 == 9 {
			severity = "alarm"
		}
		must(t, s.store.Audit(t.Context(), fleet.AuditEvent{Tenant: "main", At: time.Now(), Kind: "test.entry", Severity: severity, Subject: string(rune('a' + i))}))
	}
	for _, order := range []string{"asc", "desc"} {
		var got []string
		for next, pages := "", 0; ; pages++ {
			all, more := items(t, s.as(t, fleet.Viewer, "GET", "/v1/audit?severity=alarm&limit=2&order="+order+"&after="+next, nil))
			for _, e := range all {
				got = append(got, e["subject"].(string))
			}
			if next = more; next == "" {
				if pages != 1 {
					t.Errorf("%s: %d pages, want 2", order, pages+1)
				}
				break
			}
		}
		if want := map[string]string{"asc": "j t ~", "desc": "~ t j"}[order]; strings.ReplaceAll(strings.Join(got, " "), string(rune('a'+29)), "~") != want {
			t.Errorf("%s: got %q, want %q", order, got, want)
		}
	}
	problem(t, s.as(t, fleet.Viewer, "GET", "/v1/audit?severity=loud", nil), http.StatusUnprocessableEntity)
}
