package api_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// released notes a release as publishing does.
func (s *site) released(t *testing.T, ids ...fleet.ReleaseID) {
	t.Helper()
	for _, id := range ids {
		class, version, _ := strings.Cut(string(id), "/")
		r := fleet.Release{ID: id, Class: class, Version: version, PublishedAt: time.Now(), PublishedBy: "test", Targets: []fleet.Target{{Path: string(id) + "/bin", SHA256: "aa", Length: 1}}}
		must(t, s.store.AddRelease(t.Context(), r, fleet.AuditEvent{Kind: "release.published", Tenant: "main"}))
	}
}

func TestCommands(t *testing.T) {
	s := newSite(t)
	one, _ := items(t, s.as(t, fleet.Operator, "POST", "/v1/commands", object{
		"device": "d1", "verb": "set-config", "args": object{"label": "Lane 1"}, "reason": "new lane", "expires_in_s": 60,
	}))
	if len(one) != 1 || one[0]["state"] != "QUEUED" || one[0]["counter"] != 1.0 || one[0]["by"] != "operator" || one[0]["reason"] != "new lane" {
		t.Fatalf("got %v", one)
	}
	issued, err := time.Parse(time.RFC3339, fmt.Sprint(one[0]["issued_at"]))
	must(t, err)
	notAfter, err := time.Parse(time.RFC3339, fmt.Sprint(one[0]["not_after"]))
	must(t, err)
	if life := notAfter.Sub(issued); life != time.Minute {
		t.Errorf("lives for %s, want a minute", life)
	}
	if ev := s.trail(t)["command.issued"]; ev.Actor != "operator" || ev.Subject != "d1" || ev.Tenant != "main" || ev.Detail["reason"] != "new lane" {
		t.Errorf("audited as %+v", ev)
	}
	group, _ := items(t, s.as(t, fleet.Operator, "POST", "/v1/commands", object{"group": "canary", "verb": "identify"}))
	if len(group) != 2 || group[0]["device"] != "d1" || group[0]["counter"] != 2.0 || group[1]["device"] != "d2" || group[1]["counter"] != 1.0 {
		t.Errorf("to the group: %v", group)
	}
	path := "/v1/commands/" + fmt.Sprint(one[0]["id"])
	_, err = s.store.Commit(t.Context(), []fleet.Intake{{Device: "d1", Tenant: "main", At: time.Now(), CommandEnd: &fleet.CommandEnd{
		ID: fleet.CommandID(fmt.Sprint(one[0]["id"])), State: fleet.CommandSucceeded, Text: "done", Output: []byte{0xff, 0xfe},
	}}})
	must(t, err)
	if got := into[object](t, s.as(t, fleet.Viewer, "GET", path, nil)); got["state"] != "SUCCEEDED" || got["output"] != "//4=" || got["output_encoding"] != "base64" || got["ended_at"] == nil {
		t.Errorf("result that is no text: %v", got)
	}
	if got, _ := items(t, s.as(t, fleet.Viewer, "GET", "/v1/commands?state=QUEUED&device=d1", nil)); len(got) != 1 || got[0]["verb"] != "identify" {
		t.Errorf("queued for d1: %v", got)
	}
	problem(t, s.as(t, fleet.Viewer, "GET", "/v1/commands/none", nil), http.StatusNotFound)
	before := s.entries(t)
	for _, bad := range []object{
		{"verb": "reboot"},
		{"device": "d1", "group": "canary", "verb": "reboot"},
		{"device": "d1", "verb": "explode"},
		{"device": "d1", "verb": "reboot", "args": object{"hard": "yes"}},
		{"device": "d1", "verb": "collect-logs", "args": object{"lines": "many"}},
		{"device": "d1", "verb": "reboot", "expires_in_s": -1},
		{"device": "d1", "verb": "reboot", "expires_in_s": 604801},
		{"group": "nowhere", "verb": "reboot"},
	} {
		problem(t, s.as(t, fleet.Operator, "POST", "/v1/commands", bad), http.StatusUnprocessableEntity)
	}
	if got, _ := items(t, s.as(t, fleet.Viewer, "GET", "/v1/commands", nil)); len(got) != 3 || s.entries(t) != before+8 { // each is told as failed
		t.Errorf("bad commands left %d commands and %d entries", len(got)-3, s.entries(t)-before)
	}
	problem(t, s.do(t, s.token[fleet.Operator], "POST", "/v1/commands", bytes.NewReader(nil), func(r *http.Request) { r.Header.Set("Content-Type", "application/json") }), http.StatusBadRequest)
}

// A factory reset takes an admin, a reason, one device, and that device's id once
// more.
func TestFactoryReset(t *testing.T) {
	s := newSite(t)
	good := object{"device": "d1", "verb": "factory-reset", "args": object{"device": "d1"}, "reason": "sold"}
	problem(t, s.as(t, fleet.Operator, "POST", "/v1/commands", good), http.StatusForbidden)
	for _, bad := range []object{
		{"group": "canary", "verb": "factory-reset", "args": object{"device": "d1"}, "reason": "sold"},
		{"device": "d1", "verb": "factory-reset", "args": object{"device": "d1"}},
		{"device": "d1", "verb": "factory-reset", "args": object{"device": "d2"}, "reason": "sold"},
		{"device": "d1", "verb": "factory-reset", "reason": "sold"},
	} {
		problem(t, s.as(t, fleet.Admin, "POST", "/v1/commands", bad), http.StatusUnprocessableEntity)
	}
	if got, _ := items(t, s.as(t, fleet.Admin, "POST", "/v1/commands", good)); len(got) != 1 || got[0]["verb"] != "factory-reset" {
		t.Errorf("got %v", got)
	}
	if ev := s.trail(t)["command.issued"]; ev.Actor != "admin" || ev.Detail["verb"] != "factory-reset" || ev.Detail["reason"] != "sold" {
		t.Errorf("audited as %+v", ev)
	}
}

func TestRollouts(t *testing.T) {
	s := newSite(t)
	problem(t, s.as(t, fleet.Operator, "POST", "/v1/rollouts", object{"release": "agent/1.0.0"}), http.StatusNotFound)
	s.released(t, "agent/1.0.0")
	ro := into[struct {
		ID, Release, Group, State string
		By                        string `json:"created_by"`
		Deadline                  int    `json:"deadline_s"`
		MaxFailed                 int    `json:"max_failed"`
	}](t, s.as(t, fleet.Operator, "POST", "/v1/rollouts", object{"release": "agent/1.0.0", "group": "canary"}))
	if ro.State != "RUNNING" || ro.Group != "canary" || ro.By != "operator" || ro.Deadline != 3600 || ro.MaxFailed != 1 {
		t.Fatalf("got %+v", ro)
	}
	select {
	case <-s.woken:
	default:
		t.Error("nobody was told of the rollout")
	}
	path := "/v1/rollouts/" + ro.ID
	_, err := s.store.Enlist(t.Context(), fleet.RolloutID(ro.ID))
	must(t, err)
	execs, next := items(t, s.as(t, fleet.Viewer, "GET", path+"/executions?limit=1", nil))
	if len(execs) != 1 || execs[0]["device"] != "d1" || execs[0]["state"] != "QUEUED" || next == "" {
		t.Errorf("first execution: %v, next %q", execs, next)
	}
	for _, step := range []struct {
		verb, reason, state string
		status              int
	}{
		{"resume", "", "", http.StatusConflict},
		{"pause", "lunch", "PAUSED", http.StatusOK},
		{"pause", "", "", http.StatusConflict},
		{"resume", "", "RUNNING", http.StatusOK},
		{"abort", "bad release", "ABORTING", http.StatusOK},
		{"resume", "", "", http.StatusConflict},
		{"abort", "", "", http.StatusConflict},
	} {
		r := s.as(t, fleet.Operator, "POST", path+"/"+step.verb, object{"reason": step.reason})
		if step.status != http.StatusOK {
			problem(t, r, step.status)
			continue
		}
		if got := into[object](t, r); got["state"] != step.state || got["reason"] != step.reason {
			t.Errorf("%s: got %v", step.verb, got)
		}
		if ev := s.trail(t)["rollout."+step.verb]; ev.Actor != "operator" || ev.Subject != ro.ID || ev.Tenant != "main" || ev.Detail["reason"] != step.reason {
			t.Errorf("%s is audited as %+v", step.verb, ev)
		}
	}
	got := into[struct {
		Counts map[string]int
		Total  int
	}](t, s.as(t, fleet.Viewer, "GET", path, nil))
	if got.Counts["CANCELED"] != 2 || got.Total != 2 {
		t.Errorf("in the end: %+v", got)
	}
	if l, _ := items(t, s.as(t, fleet.Viewer, "GET", "/v1/rollouts", nil)); len(l) != 1 {
		t.Errorf("list: %v", l)
	}
}
