package api_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
)

// report stores what a device says: its state, a sample, an event, an audit entry.
func (s *site) report(t *testing.T, id fleet.DeviceID, tenant fleet.TenantID) {
	t.Helper()
	now := time.Now().Truncate(time.Millisecond)
	boot := wire.Boot{1}
	must(t, s.store.SetPresence(t.Context(), id, true, now))
	state := wire.StateReport{
		Head: wire.Head{V: wire.Version, Boot: boot, Seq: 1, Sent: now.UnixMilli()}, AgentVersion: "0.1.0", Slot: "a", StartedAt: now.UnixMilli(), Label: "Lane 7",
		SpoolDepth: 3, Samples: 9, AuditHead: 4,
		Peripherals: []wire.Peripheral{
			{ID: "receipt", Category: "POSPrinter", Driver: "escpos", Model: "P1", Power: "PS_ONLINE", Health: "Attention", Reason: "REC_NEAREMPTY", Since: now.UnixMilli(), Sensors: map[string]string{"CoverOpen": "No"}},
			{ID: "reader", Category: "SmartCardRW", Driver: "pcsc", Power: "PS_ONLINE", Health: "OK", Since: now.UnixMilli(), Simulated: true, Sensors: map[string]string{"SCPresentSensor": "No"}},
		},
	}
	raw, err := wire.Encode(&state)
	must(t, err)
	peripherals := make([]fleet.Peripheral, 0, len(state.Peripherals))
	for _, p := range state.Peripherals {
		peripherals = append(peripherals, fleet.Peripheral{
			ID: p.ID, Category: p.Category, Driver: p.Driver, Model: p.Model, Power: p.Power, Simulated: p.Simulated, Sensors: p.Sensors,
			Said: fleet.Light{Health: p.Health, Reason: p.Reason, Since: time.UnixMilli(p.Since)},
		})
	}
	sealed, err := wire.SealAudit(wire.AuditRecord{Seq: 1, At: now.UnixMilli(), Boot: boot, Kind: "agent.started", Severity: "info", Subject: string(id)})
	must(t, err)
	_, err = s.store.Commit(t.Context(), []fleet.Intake{
		{Device: id, Tenant: tenant, At: now, Report: &fleet.Report{Boot: boot, Seq: 1, Sent: now, AgentVersion: "0.1.0", Slot: "a", Raw: raw, Peripherals: peripherals}},
		{Device: id, Tenant: tenant, At: now, Samples: []fleet.Sample{
			{Device: id, Boot: boot, Seq: 2, At: now.Add(-time.Minute), Peripheral: "receipt", Name: "Lines", Value: 40},
			{Device: id, Boot: boot, Seq: 2, Index: 1, At: now, Peripheral: "receipt", Name: "Lines", Value: 42},
		}},
		{Device: id, Tenant: tenant, At: now, Events: []fleet.PeripheralEvent{
			{Device: id, Boot: boot, Seq: 3, At: now, Peripheral: "receipt", Category: "printer", Code: "PaperLow", From: "No", To: "Yes"},
			{Device: id, Boot: boot, Seq: 3, Index: 1, At: now, Peripheral: "receipt", Category: "printer", Code: "CoverOpen", From: "No", To: "Yes"},
		}},
		{Device: id, Tenant: tenant, At: now, Audit: []fleet.AuditEvent{{
			Device: id, Tenant: tenant, Seq: 1, At: now, Kind: "agent.started", Severity: "info", Subject: string(id), Body: sealed.Body, Hash: sealed.Hash,
		}}},
	})
	must(t, err)
}

func TestDevice(t *testing.T) {
	s := newSite(t)
	fresh := into[object](t, s.as(t, fleet.Viewer, "GET", "/v1/devices/d2", nil))
	if fresh["health"] != "Unknown" || fresh["last_seen"] != nil || fresh["audit_ok"] != true || fmt.Sprint(fresh["peripherals"]) != "[]" {
		t.Errorf("device that has said nothing: %v", fresh)
	}
	s.report(t, "d1", "main")
	d := into[struct {
		ID, Tenant, Label, Health, Slot string
		Version                         string `json:"agent_version"`
		Samples                         int
		Head                            int `json:"audit_head"`
		Peripherals                     []struct {
			ID, Health, Reason string
			Simulated          bool
			Sensors            map[string]string
		}
		State struct {
			Started time.Time `json:"started_at"`
			Depth   int       `json:"spool_depth"`
			Audit   int       `json:"audit_recorded"`
			Samples int       `json:"samples_recorded"`
		}
	}](t, s.as(t, fleet.Viewer, "GET", "/v1/devices/d1", nil))
	if d.ID != "d1" || d.Tenant != "main" || d.Label != "Lane 7" || d.Health != "Attention" || d.Slot != "a" || d.Version != "0.1.0" || d.Samples != 2 || d.Head != 1 {
		t.Errorf("got %+v", d)
	}
	if len(d.Peripherals) != 2 || d.Peripherals[1].Reason != "REC_NEAREMPTY" || d.Peripherals[1].Sensors["CoverOpen"] != "No" || !d.Peripherals[0].Simulated {
		t.Errorf("peripherals: %+v", d.Peripherals)
	}
	if d.State.Depth != 3 || d.State.Audit != 4 || d.State.Samples != 9 || d.State.Started.IsZero() {
		t.Errorf("state: %+v", d.State)
	}
	sum := into[struct {
		Devices, Online, Samples int
		Entries                  int            `json:"audit_events"`
		ByTrust                  map[string]int `json:"by_trust"`
		ByVersion                map[string]int `json:"by_version"`
		ByHealth                 map[string]int `json:"by_health"`
	}](t, s.as(t, fleet.Viewer, "GET", "/v1/summary", nil))
	if sum.Devices != 3 || sum.Samples != 2 || sum.Entries != 1 || sum.ByTrust["pending"] != 3 || sum.ByVersion["0.1.0"] != 1 || sum.ByHealth["Attention"] != 1 || sum.ByHealth["Unknown"] != 2 {
		t.Errorf("summary: %+v", sum)
	}

	series, _ := items(t, s.as(t, fleet.Viewer, "GET", "/v1/devices/d1/series", nil))
	if len(series) != 1 || series[0]["name"] != "Lines" || series[0]["last"] != 42.0 || series[0]["count"] != 2.0 {
		t.Errorf("series: %v", series)
	}
	type points struct{ Points [][2]float64 }
	pts := into[points](t, s.as(t, fleet.Viewer, "GET", "/v1/devices/d1/points?peripheral=receipt&name=Lines", nil)).Points
	if len(pts) == 0 || pts[0][1] != 40 {
		t.Errorf("points: %v", pts)
	}
	later := url.QueryEscape(time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	if p := into[points](t, s.as(t, fleet.Viewer, "GET", "/v1/devices/d1/points?peripheral=receipt&name=Lines&to="+later, nil)).Points; len(p) != 2 || p[1][1] != 42 {
		t.Errorf("points up to an hour from now: %v", p)
	}
	if p := into[points](t, s.as(t, fleet.Viewer, "GET", "/v1/devices/d1/points?peripheral=receipt&name=Lines&from="+later, nil)).Points; len(p) != 0 {
		t.Errorf("points from an hour from now: %v", p)
	}
	problem(t, s.as(t, fleet.Viewer, "GET", "/v1/devices/d1/points", nil), http.StatusUnprocessableEntity)
	problem(t, s.as(t, fleet.Viewer, "GET", "/v1/devices/d1/points?name=Lines&from=yesterday", nil), http.StatusUnprocessableEntity)

	events, next := items(t, s.as(t, fleet.Viewer, "GET", "/v1/devices/d1/events?limit=1", nil))
	if len(events) != 1 || events[0]["code"] != "CoverOpen" || next == "" {
		t.Fatalf("newest event: %v, next %q", events, next)
	}
	if events, next = items(t, s.as(t, fleet.Viewer, "GET", "/v1/devices/d1/events?limit=1&after="+next, nil)); len(events) != 1 || events[0]["code"] != "PaperLow" || next != "" {
		t.Errorf("the one before: %v, next %q", events, next)
	}
	trail, _ := items(t, s.as(t, fleet.Viewer, "GET", "/v1/devices/d1/audit", nil))
	if len(trail) != 1 || trail[0]["kind"] != "agent.started" || trail[0]["seq"] != 1.0 || len(fmt.Sprint(trail[0]["hash"])) != 64 {
		t.Errorf("trail: %v", trail)
	}
	if v := into[object](t, s.as(t, fleet.Viewer, "GET", "/v1/devices/d1/audit/verify", nil)); v["ok"] != true || v["entries"] != 1.0 {
		t.Errorf("verify: %v", v)
	}
}

func TestSetDevice(t *testing.T) {
	s := newSite(t)
	d := into[object](t, s.as(t, fleet.Operator, "PATCH", "/v1/devices/d1", object{"label": "Lane 1", "site": ""}))
	if d["label"] != "Lane 1" || d["site"] != "" || d["group"] != "canary" {
		t.Errorf("got %v, want label set, site emptied, group left", d)
	}
	ev := s.trail(t)["device.changed"]
	if ev.Actor != "operator" || ev.Subject != "d1" || ev.Tenant != "main" || ev.Detail["label"] != "Lane 1" {
		t.Errorf("audited as %+v", ev)
	}
	for _, bad := range []object{{"label": strings.Repeat("x", 65)}, {"id": "d9"}, {"label": 1}} {
		problem(t, s.as(t, fleet.Operator, "PATCH", "/v1/devices/d1", bad), http.StatusUnprocessableEntity)
	}
}

// TestOtherTenant asks for a device, a command and a rollout of another tenant:
// they are not there.
func TestOtherTenant(t *testing.T) {
	s := newSite(t)
	s.report(t, "x1", "other")
	s.released(t, "agent/1.0.0")
	cmds, _ := items(t, s.do(t, s.other, "POST", "/v1/commands", object{"device": "x1", "verb": "identify"}))
	ro := into[struct{ ID string }](t, s.do(t, s.other, "POST", "/v1/rollouts", object{"release": "agent/1.0.0"}))
	for _, op := range []struct {
		method, path string
		body         any
	}{
		{"GET", "/v1/devices/x1", nil},
		{"PATCH", "/v1/devices/x1", object{"label": "mine"}},
		{"GET", "/v1/devices/x1/series", nil},
		{"GET", "/v1/devices/x1/peripherals/receipt", nil},
		{"GET", "/v1/devices/x1/peripherals/receipt/statistics.xml", nil},
		{"GET", "/v1/devices/x1/points?peripheral=receipt&name=Lines", nil},
		{"GET", "/v1/devices/x1/events", nil},
		{"GET", "/v1/devices/x1/audit", nil},
		{"GET", "/v1/devices/x1/audit/verify", nil},
		{"GET", "/v1/devices/x1/audit/export", nil},
		{"POST", "/v1/commands", object{"device": "x1", "verb": "reboot"}},
		{"GET", "/v1/commands/" + fmt.Sprint(cmds[0]["id"]), nil},
		{"GET", "/v1/rollouts/" + ro.ID, nil},
		{"GET", "/v1/rollouts/" + ro.ID + "/executions", nil},
		{"POST", "/v1/rollouts/" + ro.ID + "/pause", object{}},
		{"POST", "/v1/rollouts/" + ro.ID + "/abort", object{}},
	} {
		if r := s.do(t, s.other, op.method, op.path, op.body); r.status/100 != 2 && !strings.HasSuffix(op.path, "/abort") {
			t.Errorf("%s %s by its owner: got %s, want success", op.method, op.path, r)
		}
		problem(t, s.as(t, fleet.Admin, op.method, op.path, op.body), http.StatusNotFound)
	}
	for _, path := range []string{"/v1/commands", "/v1/commands?device=x1", "/v1/rollouts", "/v1/devices?q=x1", "/v1/peripherals", "/v1/peripherals?q=x1"} {
		if got, _ := items(t, s.as(t, fleet.Admin, "GET", path, nil)); len(got) != 0 {
			t.Errorf("%s shows %v of another tenant", path, got)
		}
	}
	for _, ev := range s.trail(t) {
		if ev.Tenant == "other" || ev.Actor == "olga" {
			t.Errorf("the trail shows %+v of another tenant", ev)
		}
	}
	problem(t, s.as(t, fleet.Operator, "POST", "/v1/commands", object{"group": "nowhere", "verb": "reboot"}), http.StatusUnprocessableEntity)
}

// TestPages reads lists one item at a time and filters them.
func TestPages(t *testing.T) {
	s := newSite(t)
	for path, want := range map[string]string{
		"/v1/devices?":                "d1 d2 d3",
		"/v1/devices?site=berlin&":    "d1 d2",
		"/v1/devices?group=rest&":     "d3",
		"/v1/devices?q=s3&":           "d3",
		"/v1/devices?trust=pending&":  "d1 d2 d3",
		"/v1/devices?trust=attested&": "",
		"/v1/devices?online=true&":    "",
		"/v1/devices?online=false&":   "d1 d2 d3",
	} {
		var got []string
		after := ""
		for {
			page, next := items(t, s.as(t, fleet.Viewer, "GET", path+"limit=1&after="+after, nil))
			if len(page) > 1 {
				t.Fatalf("%s: a page of %d, want 1", path, len(page))
			}
			for _, d := range page {
				got = append(got, fmt.Sprint(d["id"]))
			}
			if after = url.QueryEscape(next); next == "" {
				break
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: got %v, want %s", path, got, want)
		}
	}
	up, _ := items(t, s.as(t, fleet.Viewer, "GET", "/v1/audit?order=asc&limit=1", nil))
	down, _ := items(t, s.as(t, fleet.Viewer, "GET", "/v1/audit?limit=1", nil))
	if up[0]["seq"].(float64) >= down[0]["seq"].(float64) {
		t.Errorf("asc begins with %v, desc with %v", up[0]["seq"], down[0]["seq"])
	}
	for _, bad := range []string{"/v1/devices?limit=1001", "/v1/devices?limit=-1", "/v1/devices?trust=maybe", "/v1/devices?online=1", "/v1/commands?after=x", "/v1/commands?state=NO", "/v1/audit?order=up"} {
		problem(t, s.as(t, fleet.Viewer, "GET", bad, nil), http.StatusUnprocessableEntity)
	}
}
