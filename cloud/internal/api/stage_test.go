package api_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/api"
	"github.com/tillward/tillward/cloud/internal/fleet"
)

// operator adds an operator to tenant main and returns his token.
func (s *site) operator(t *testing.T, name string) string {
	t.Helper()
	token, _, err := s.accounts.Issue(t.Context(), "main", name, fleet.Operator, 0, "test")
	must(t, err)
	return token
}

// drafted makes a draft as somebody and returns its path.
func (s *site) drafted(t *testing.T, token string, spec object) string {
	t.Helper()
	got := into[struct{ ID, State string }](t, s.do(t, token, "POST", "/v1/rollouts", object{"release": "agent/1.0.0", "spec": spec, "draft": true}))
	if got.State != "DRAFT" {
		t.Fatalf("got %+v", got)
	}
	return "/v1/rollouts/" + got.ID
}

// full is a spec with all there is.
var full = object{
	"filter": object{"group": "canary", "model": "", "devices": []string{"d1", "d2"}},
	"waves": []object{
		{"name": "first", "filter": object{"devices": []string{"d1"}}, "soak_s": 3600},
		{"name": "tenth", "percent": 10.5, "soak_s": 60, "gate": object{"success": 99.5, "bad_cap": 3}},
		{"name": "rest"},
	},
	"gate": object{"success": 90, "bad": 4, "min_sample": 5, "bad_cap": 7, "site_bad": 2, "health": 2.5},
	"rate": object{"base": 50, "factor": 2, "every": 1000, "max": 400}, "per_site": 1, "in_flight": 200,
	"download": "22:00-05:00", "install": "mon-fri 01:00-04:00", "deadline_s": 86400, "steps_s": object{"INSTALLING": 1800}, "attempts": 2, "unreachable_s": 7200,
	"joiners": true, "rate_kib": 256, "repair": true,
}

// TestSpec: what was composed is shown as it was written, and kept in the domain's terms.
func TestSpec(t *testing.T) {
	s := newSite(t)
	s.released(t, "agent/1.0.0")
	path := s.drafted(t, s.token[fleet.Operator], full)
	got := into[object](t, s.as(t, fleet.Viewer, "GET", path, nil))
	spec := got["spec"].(object)
	for k := range full {
		if _, ok := spec[k]; !ok {
			t.Errorf("%s is not shown: %v", k, spec)
		}
	}
	if fmt.Sprint(spec["steps_s"]) != "map[INSTALLING:1800]" || fmt.Sprint(spec["waves"].([]any)[1]) != "map[gate:map[bad_cap:3 success:99.5] name:tenth percent:10.5 soak_s:60]" {
		t.Errorf("got %v", spec)
	}
	r, err := s.store.Rollout(t.Context(), "main", fleet.RolloutID(got["id"].(string)))
	must(t, err)
	if sp := r.Spec; sp.Waves[0].Soak != time.Hour || sp.Steps[fleet.ExecInstalling] != 30*time.Minute || sp.Unreachable != 2*time.Hour || sp.Deadline != 24*time.Hour || sp.Rate.Every != 1000 || !sp.Joiners || sp.Filter.Devices[1] != "d2" {
		t.Errorf("kept: got %+v", sp)
	}
	if w := got["waves"].([]any); len(w) != 3 || w[0].(object)["state"] != "PENDING" || w[0].(object)["soak_s"] != 3600.0 {
		t.Errorf("waves: got %v", w)
	}

	for name, bad := range map[string]object{
		"hours":        {"download": "late"},
		"a wave twice": {"waves": []object{{"name": "a"}, {"name": "a"}}},
		"a share":      {"waves": []object{{"name": "a", "percent": 101}}},
		"no name":      {"waves": []object{{"name": ""}}},
		"a step":       {"steps_s": object{"DANCING": 1}},
		"a rate":       {"rate": object{"base": -1}},
		"unknown":      {"colour": "red"},
	} {
		problem(t, s.as(t, fleet.Operator, "POST", "/v1/rollouts", object{"release": "agent/1.0.0", "spec": bad}), http.StatusUnprocessableEntity)
		problem(t, s.as(t, fleet.Operator, "PUT", path, object{"release": "agent/1.0.0", "spec": bad}), http.StatusUnprocessableEntity)
		if r := s.as(t, fleet.Operator, "POST", "/v1/rollouts/preview", object{"release": "agent/1.0.0", "spec": bad}); r.status != http.StatusUnprocessableEntity {
			t.Errorf("%s: preview got %s", name, r)
		}
	}
	problem(t, s.as(t, fleet.Operator, "POST", "/v1/rollouts", object{"release": "agent/1.0.0", "spec": object{}, "group": "canary"}), http.StatusUnprocessableEntity)
	if l, _ := items(t, s.as(t, fleet.Viewer, "GET", "/v1/rollouts", nil)); len(l) != 1 {
		t.Errorf("what was refused left %d rollouts", len(l)-1)
	}
}

// TestFourEyes: nobody starts what nobody else has approved, and who composed it last cannot approve it.
func TestFourEyes(t *testing.T) {
	s := siteWith(t, func(d *api.Deps) { d.FourEyes = true })
	s.released(t, "agent/1.0.0")
	anna, ben := s.operator(t, "anna"), s.operator(t, "ben")
	act := func(token, path, verb string) reply {
		t.Helper()
		return s.do(t, token, "POST", path+"/"+verb, object{"reason": "because"})
	}
	state := func(path string) string {
		t.Helper()
		return into[struct{ State string }](t, s.as(t, fleet.Viewer, "GET", path, nil)).State
	}

	now := into[struct{ ID, State string }](t, s.do(t, anna, "POST", "/v1/rollouts", object{"release": "agent/1.0.0"}))
	if now.State != "AWAITING_APPROVAL" {
		t.Errorf("started at once: got %s", now.State)
	}
	direct := "/v1/rollouts/" + now.ID
	for _, verb := range []string{"start", "resume", "pause", "complete", "submit"} {
		problem(t, act(anna, direct, verb), http.StatusConflict)
	}
	path := s.drafted(t, anna, object{})
	problem(t, act(anna, path, "start"), http.StatusConflict)
	problem(t, act(ben, path, "approve"), http.StatusConflict) // nobody handed it in
	into[object](t, act(anna, path, "submit"))
	d := problem(t, act(anna, path, "approve"), http.StatusForbidden)
	if ev := s.trail(t)["access.refused"]; !strings.Contains(d, "somebody else than anna") || ev.Actor != "anna" || ev.Detail["what"] != "rollout.approve" {
		t.Errorf("got %q, audited as %+v", d, ev)
	}
	problem(t, act(anna, path, "start"), http.StatusConflict)
	got := into[struct {
		State string
		By    string    `json:"approved_by"`
		At    time.Time `json:"approved_at"`
	}](t, act(ben, path, "approve"))
	if got.State != "READY" || got.By != "ben" || got.At.IsZero() {
		t.Errorf("approved: got %+v", got)
	}
	into[object](t, act(anna, path, "start"))
	if state(path) != "RUNNING" {
		t.Errorf("started: got %s", state(path))
	}

	// Ben composes anna's draft anew: it is his now, and anna may approve it.
	path = s.drafted(t, anna, object{})
	into[object](t, s.do(t, ben, "PUT", path, object{"release": "agent/1.0.0", "spec": object{"per_site": 1}}))
	into[object](t, act(anna, path, "submit"))
	problem(t, s.do(t, ben, "PUT", path, object{"release": "agent/1.0.0", "spec": object{}}), http.StatusConflict)
	problem(t, act(ben, path, "approve"), http.StatusForbidden)
	into[object](t, act(anna, path, "approve"))

	path = s.drafted(t, anna, object{})
	into[object](t, act(anna, path, "submit"))
	if got := into[object](t, act(ben, path, "deny")); got["state"] != "DENIED" || got["reason"] != "because" || got["ended_at"] == nil {
		t.Errorf("denied: got %v", got)
	}
	problem(t, act(ben, path, "approve"), http.StatusConflict)
	// What became ready before four eyes were asked for is not started by one pair.
	must(t, s.store.AddRollout(t.Context(), fleet.Rollout{ID: "ro_old", Tenant: "main", Release: "agent/1.0.0", State: fleet.RolloutReady, CreatedBy: "anna"}, fleet.AuditEvent{Kind: "rollout.add"}))
	if d := problem(t, act(anna, "/v1/rollouts/ro_old", "start"), http.StatusForbidden); !strings.Contains(d, "nobody else than anna") || state("/v1/rollouts/ro_old") != "READY" {
		t.Errorf("got %q and %s", d, state("/v1/rollouts/ro_old"))
	}
	for _, kind := range []string{"rollout.drafted", "rollout.submitted", "rollout.submit", "rollout.approve", "rollout.deny", "rollout.start", "rollout.changed"} {
		if ev := s.trail(t)[kind]; ev.Actor == "" || ev.Tenant != "main" {
			t.Errorf("%s is not audited", kind)
		}
	}
}

// TestSeenVersion: what somebody has looked at and another has changed since is neither handed in, approved nor
// overwritten by who says what he saw.
func TestSeenVersion(t *testing.T) {
	s := siteWith(t, func(d *api.Deps) { d.FourEyes = true })
	s.released(t, "agent/1.0.0")
	anna, ben := s.operator(t, "anna"), s.operator(t, "ben")
	path := s.drafted(t, anna, object{})
	seen := into[struct{ Version int64 }](t, s.do(t, anna, "GET", path, nil)).Version
	into[object](t, s.do(t, ben, "PUT", path, object{"release": "agent/1.0.0", "spec": object{"per_site": 9}, "version": seen}))
	d := problem(t, s.do(t, anna, "POST", path+"/submit", object{"version": seen}), http.StatusConflict)
	if !strings.Contains(d, "has changed since you looked: it is version 2 now and was 1") {
		t.Errorf("got %q", d)
	}
	problem(t, s.do(t, anna, "PUT", path, object{"release": "agent/1.0.0", "spec": object{}, "version": seen}), http.StatusConflict)
	if got := into[struct {
		Spec struct {
			PerSite int `json:"per_site"`
		}
	}](t, s.do(t, anna, "GET", path, nil)); got.Spec.PerSite != 9 {
		t.Errorf("what ben wrote is lost: got %+v", got)
	}
	into[object](t, s.do(t, anna, "POST", path+"/submit", object{"version": seen + 1}))
	problem(t, s.do(t, anna, "POST", path+"/approve", object{"version": seen}), http.StatusConflict)
	into[object](t, s.do(t, anna, "POST", path+"/approve", object{"version": seen + 2}))
}

// TestWithoutFourEyes is the twin: where no approval is asked for, the one who composed it starts it.
func TestWithoutFourEyes(t *testing.T) {
	s := newSite(t)
	s.released(t, "agent/1.0.0")
	path := s.drafted(t, s.token[fleet.Operator], object{})
	if got := into[object](t, s.as(t, fleet.Operator, "POST", path+"/submit", object{})); got["state"] != "READY" {
		t.Errorf("got %v", got["state"])
	}
	if got := into[object](t, s.as(t, fleet.Operator, "POST", path+"/start", object{})); got["state"] != "RUNNING" || got["started_at"] == nil {
		t.Errorf("got %v", got)
	}
	path = s.drafted(t, s.token[fleet.Operator], object{})
	into[object](t, s.as(t, fleet.Operator, "POST", path+"/start", object{}))
	path = s.drafted(t, s.token[fleet.Operator], object{})
	if got := into[object](t, s.as(t, fleet.Operator, "POST", path+"/abort", object{})); got["state"] != "ABORTED" {
		t.Errorf("a draft that nobody wants: got %v", got["state"])
	}
}

// TestBoard watches a rollout: its waves, who is silent, whence the bytes came, and what may be done about what went badly.
func TestBoard(t *testing.T) {
	s := newSite(t)
	s.released(t, "agent/1.0.0")
	ctx := t.Context()
	ro := into[struct{ ID string }](t, s.as(t, fleet.Operator, "POST", "/v1/rollouts", object{"release": "agent/1.0.0", "spec": object{"waves": []object{{"name": "canary"}, {"name": "rest"}}}}))
	path, id := "/v1/rollouts/"+ro.ID, fleet.RolloutID(ro.ID)
	_, err := s.store.Enlist(ctx, id)
	must(t, err)
	us, _, err := s.store.Units(ctx, id, 0)
	must(t, err)
	slices.SortFunc(us, func(a, b fleet.Unit) int { return strings.Compare(string(a.Device), string(b.Device)) })
	must(t, s.store.AssignWaves(ctx, id, map[fleet.ExecutionID]int{us[0].ID: 0, us[1].ID: 0, us[2].ID: 1}))
	for n, end := range []fleet.ExecutionState{fleet.ExecSucceeded, fleet.ExecFailed} {
		for _, st := range []fleet.ExecutionStep{
			{ID: us[n].ID, State: fleet.ExecOffered, Attempt: 1, To: "1.0.0"},
			{ID: us[n].ID, State: end, Reason: "storage", Attempt: 1, Number: 4, Bytes: fleet.Bytes{Wire: 100, Peer: 10, Medium: 1, Reused: 1000}},
		} {
			_, err := s.store.MoveExecution(ctx, st, time.Now())
			must(t, err)
		}
	}
	r, err := s.store.Rollout(ctx, "main", id)
	must(t, err)
	r.Waves = []fleet.WaveStatus{{State: fleet.WaveSoaking, StartedAt: time.Now(), SoakedAt: time.Now()}, {State: fleet.WavePending}}
	r.Holds = []fleet.Hold{{Site: "paris", Reason: "2 ended badly", Since: time.Now()}}
	_, err = s.store.SaveRollout(ctx, r, fleet.AuditEvent{Kind: "rollout.held"})
	must(t, err)

	type wave struct {
		Name, State                   string
		Total, Good, Bad, Unreachable int
		Counts                        map[string]int
	}
	got := into[struct {
		Total, Good, Bad, Unreachable int
		Waves                         []wave
		Holds                         []struct {
			Site, Reason string
			ReleasedAt   *time.Time `json:"released_at"`
		}
		Bytes  struct{ Wire, Peer, Medium, Reused uint64 }
		Health struct{ Updated, Control struct{ Devices int } }
		ETA    *time.Time
	}](t, s.as(t, fleet.Viewer, "GET", path, nil))
	if got.Total != 3 || got.Good != 1 || got.Bad != 1 || got.Unreachable != 1 || got.Bytes.Wire != 200 || got.Bytes.Reused != 2000 || got.Health.Updated.Devices != 1 || got.Health.Control.Devices != 1 || got.ETA != nil {
		t.Errorf("got %+v", got)
	}
	if len(got.Waves) != 2 || got.Waves[0].State != "SOAKING" || got.Waves[0].Total != 2 || got.Waves[0].Bad != 1 || got.Waves[1].Unreachable != 1 || got.Waves[1].Counts["QUEUED"] != 1 {
		t.Errorf("waves: got %+v", got.Waves)
	}
	must(t, s.store.SetPresence(ctx, "d3", true, time.Now()))
	if got := into[object](t, s.as(t, fleet.Viewer, "GET", path, nil)); got["eta"] == nil || got["unreachable"] != 0.0 {
		t.Errorf("with all of them there: eta %v, %v unreachable", got["eta"], got["unreachable"])
	}

	for query, want := range map[string]string{"": "d1 d2 d3", "?wave=0": "d1 d2", "?wave=1": "d3", "?state=FAILED": "d2", "?site=paris": "d3", "?wave=0&site=paris": "", "?model=none": "", "?wave=-1": ""} {
		l, _ := items(t, s.as(t, fleet.Viewer, "GET", path+"/executions"+query, nil))
		var ids []string
		for _, e := range l {
			ids = append(ids, e["device"].(string))
		}
		if strings.Join(ids, " ") != want {
			t.Errorf("executions%s: got %v, want %q", query, ids, want)
		}
	}
	problem(t, s.as(t, fleet.Viewer, "GET", path+"/executions?wave=first", nil), http.StatusUnprocessableEntity)

	problem(t, s.as(t, fleet.Operator, "POST", path+"/holds/release", object{"model": "vend-1"}), http.StatusNotFound)
	problem(t, s.as(t, fleet.Operator, "POST", path+"/holds/release", object{"model": "vend-1", "site": "paris"}), http.StatusUnprocessableEntity)
	problem(t, s.as(t, fleet.Operator, "POST", path+"/holds/release", object{}), http.StatusUnprocessableEntity)
	problem(t, s.do(t, s.other, "POST", path+"/holds/release", object{"site": "paris"}), http.StatusNotFound)
	into[object](t, s.as(t, fleet.Operator, "POST", path+"/holds/release", object{"site": "paris", "reason": "repaired"}))
	if r, err := s.store.Rollout(ctx, "main", id); err != nil || r.Holds[0].ReleasedAt.IsZero() {
		t.Errorf("released: got %+v, %v", r.Holds, err)
	}
	if ev := s.trail(t)["rollout.hold_released"]; ev.Detail["site"] != "paris" || ev.Detail["reason"] != "repaired" || ev.Actor != "operator" {
		t.Errorf("audited as %+v", ev)
	}
	problem(t, s.as(t, fleet.Operator, "POST", path+"/holds/release", object{"site": "paris"}), http.StatusNotFound)

	problem(t, s.as(t, fleet.Operator, "POST", path+"/retry", object{"device": "d1"}), http.StatusConflict)
	if got := into[struct{ Counts map[string]int }](t, s.as(t, fleet.Operator, "POST", path+"/retry", object{"reason": "disk changed"})); got.Counts["QUEUED"] != 2 {
		t.Errorf("retried: got %v", got.Counts)
	}
	if ev := s.trail(t)["rollout.retry"]; ev.Detail["reason"] != "disk changed" {
		t.Errorf("audited as %+v", ev)
	}
	for _, st := range []fleet.ExecutionStep{{ID: us[2].ID, State: fleet.ExecOffered, Attempt: 1}, {ID: us[2].ID, State: fleet.ExecTimedOut, Reason: "unreachable"}} {
		_, err := s.store.MoveExecution(ctx, st, time.Now())
		must(t, err)
	}
	if got := into[object](t, s.as(t, fleet.Viewer, "GET", path, nil)); got["neutral"] != 1.0 || got["bad"] != 0.0 || got["waves"].([]any)[1].(object)["neutral"] != 1.0 {
		t.Errorf("one that fell silent: got %v", got)
	}
	if got := into[object](t, s.as(t, fleet.Operator, "POST", path+"/complete", object{})); got["state"] != "COMPLETED" || got["ended_at"] == nil || got["counts"].(object)["CANCELED"] != 1.0 {
		t.Errorf("completed: got %v", got)
	}
	problem(t, s.as(t, fleet.Operator, "POST", path+"/retry", object{}), http.StatusConflict)
	for _, verb := range []string{"pause", "resume", "abort", "complete", "submit", "approve", "deny", "start", "retry"} {
		problem(t, s.do(t, s.other, "POST", path+"/"+verb, object{}), http.StatusNotFound)
	}
	problem(t, s.do(t, s.other, "PUT", path, object{"release": "agent/1.0.0", "spec": object{}}), http.StatusNotFound)
}

func TestPreview(t *testing.T) {
	s := newSite(t)
	s.released(t, "agent/1.0.0")
	got := into[struct {
		Reaches, Sites int
		Waves          []struct {
			Name    string
			Devices int
		}
		Blocked []struct {
			Reason, Text string
			Devices      int
		}
		Text string
	}](t, s.as(t, fleet.Operator, "POST", "/v1/rollouts/preview", object{"release": "agent/1.0.0", "spec": object{"waves": []object{{"name": "paris", "filter": object{"site": "paris"}}, {"name": "rest"}}}}))
	if got.Reaches != 3 || got.Sites != 2 || len(got.Waves) != 2 || got.Waves[0].Devices != 1 || got.Waves[1].Devices != 2 || len(got.Blocked) != 1 || got.Blocked[0].Reason != "offline" || got.Blocked[0].Text == "" || !strings.Contains(got.Text, "3 devices in 2 sites") {
		t.Errorf("got %+v", got)
	}
	into[object](t, s.as(t, fleet.Operator, "POST", "/v1/rollouts/preview", object{"release": "agent/1.0.0"}))
	problem(t, s.as(t, fleet.Operator, "POST", "/v1/rollouts/preview", object{"release": "agent/9.0.0"}), http.StatusNotFound)
	if l, _ := items(t, s.as(t, fleet.Viewer, "GET", "/v1/rollouts", nil)); len(l) != 0 {
		t.Errorf("a preview left %v", l)
	}

	_, err := s.store.UpdateRelease(t.Context(), fleet.Release{ID: "agent/1.0.0", Withdrawn: true}, fleet.AuditEvent{Kind: "release.withdrawn"})
	must(t, err)
	for _, p := range []string{"/v1/rollouts", "/v1/rollouts/preview"} {
		if d := problem(t, s.as(t, fleet.Operator, "POST", p, object{"release": "agent/1.0.0"}), http.StatusConflict); !strings.Contains(d, "withdrawn") {
			t.Errorf("%s: got %q", p, d)
		}
	}
}

func TestDeviceUpdate(t *testing.T) {
	s := newSite(t)
	s.released(t, "agent/1.0.0")
	into[object](t, s.as(t, fleet.Operator, "POST", "/v1/rollouts", object{"release": "agent/1.0.0"}))
	rs, err := s.store.RunningRollouts(t.Context())
	must(t, err)
	_, err = s.store.Enlist(t.Context(), rs[0].ID)
	must(t, err)
	_, err = s.store.Commit(t.Context(), []fleet.Intake{{Device: "d1", Tenant: "main", At: time.Now(), Report: &fleet.Report{
		Boot: [16]byte{1}, Seq: 1, Sent: time.Now(), AgentVersion: "0.9.0", Installed: []fleet.Installed{{Component: "agent", Version: "0.9.0", Slot: "b", Trial: true}}, FreeMiB: 99, Supply: "mains",
	}}})
	must(t, err)
	s.delays = []fleet.Delay{{Rollout: rs[0].ID, Reason: "window", Text: "it waits for 22:00", Since: time.Now()}}
	got := into[struct {
		Installed []struct {
			Component, Version, Slot string
			Trial                    bool
		}
		FreeMiB    int `json:"free_mib"`
		Supply     string
		Executions []struct{ State, Device string }
		Waiting    []struct {
			Rollout, Reason, Text string
			Since                 *time.Time
		}
	}](t, s.as(t, fleet.Viewer, "GET", "/v1/devices/d1/update", nil))
	if len(got.Installed) != 1 || got.Installed[0].Slot != "b" || !got.Installed[0].Trial || got.FreeMiB != 99 || got.Supply != "mains" || len(got.Executions) != 1 || got.Executions[0].State != "QUEUED" ||
		len(got.Waiting) != 1 || got.Waiting[0].Reason != "window" || got.Waiting[0].Since == nil {
		t.Errorf("got %+v", got)
	}
	if a := s.acted(); a != "why main d1" {
		t.Errorf("asked %q", a)
	}
	problem(t, s.do(t, s.other, "GET", "/v1/devices/d1/update", nil), http.StatusNotFound)
	if a := s.acted(); a != "" {
		t.Errorf("another tenant: asked %q", a)
	}
}

func TestSites(t *testing.T) {
	s := newSite(t)
	hours := object{"zone": "Europe/Berlin", "download": "", "install": "mon-fri 22:00-05:00"}
	got := into[object](t, s.as(t, fleet.Operator, "PUT", "/v1/sites/berlin", hours))
	if got["zone"] != "Europe/Berlin" || got["install"] != "mon-fri 22:00-05:00" || got["devices"] != 2.0 {
		t.Errorf("got %v", got)
	}
	if ev := s.trail(t)["site.changed"]; ev.Actor != "operator" || ev.Subject != "berlin" || ev.Detail["zone"] != "Europe/Berlin" {
		t.Errorf("audited as %+v", ev)
	}
	into[object](t, s.as(t, fleet.Operator, "PUT", "/v1/sites/Alex%2FS-Bahn", hours))
	var names []any
	l, _ := items(t, s.as(t, fleet.Viewer, "GET", "/v1/sites", nil))
	for _, v := range l {
		names = append(names, v["name"], v["devices"])
	}
	if fmt.Sprint(names) != "[Alex/S-Bahn 0 berlin 2 paris 1]" {
		t.Errorf("got %v", names)
	}
	if got := into[object](t, s.as(t, fleet.Viewer, "GET", "/v1/sites/Alex%2FS-Bahn", nil)); got["zone"] != "Europe/Berlin" {
		t.Errorf("got %v", got)
	}
	problem(t, s.as(t, fleet.Viewer, "GET", "/v1/sites/nowhere", nil), http.StatusNotFound)
	if l, _ := items(t, s.do(t, s.other, "GET", "/v1/sites", nil)); len(l) != 1 || l[0]["name"] != "oslo" {
		t.Errorf("another tenant sees %v", l)
	}
	for _, bad := range []object{
		{"zone": "Berlin", "download": "", "install": ""},
		{"zone": "Local", "download": "", "install": ""},
		{"zone": "../etc/passwd", "download": "", "install": ""},
		{"zone": "", "download": "always", "install": ""},
		{"zone": "", "download": "", "install": "25:00-26:00"},
		{"zone": ""},
	} {
		problem(t, s.as(t, fleet.Operator, "PUT", "/v1/sites/berlin", bad), http.StatusUnprocessableEntity)
	}
	if got := into[object](t, s.as(t, fleet.Viewer, "GET", "/v1/sites/berlin", nil)); got["install"] != "mon-fri 22:00-05:00" {
		t.Errorf("after what was refused: got %v", got)
	}
}

// counting is a store that notes how often executions are counted.
type counting struct {
	api.Store
	n map[fleet.RolloutID]int
}

func (c *counting) Counts(ctx context.Context, id fleet.RolloutID) (map[fleet.ExecutionState]int, error) {
	c.n[id]++
	return c.Store.Counts(ctx, id)
}

// TestListOfTheEnded: what is history is not counted anew for whoever looks at the list.
func TestListOfTheEnded(t *testing.T) {
	c := &counting{n: map[fleet.RolloutID]int{}}
	s := siteWith(t, func(d *api.Deps) { c.Store, d.Store = d.Store, c })
	s.released(t, "agent/1.0.0")
	for id, state := range map[fleet.RolloutID]fleet.RolloutState{"ro_past": fleet.RolloutCompleted, "ro_now": fleet.RolloutRunning} {
		must(t, s.store.AddRollout(t.Context(), fleet.Rollout{ID: id, Tenant: "main", Release: "agent/1.0.0", State: state, EndedAt: time.Now().Add(-time.Hour)}, fleet.AuditEvent{Kind: "rollout.add"}))
	}
	for range 3 {
		if l, _ := items(t, s.as(t, fleet.Viewer, "GET", "/v1/rollouts", nil)); len(l) != 2 {
			t.Fatalf("got %v", l)
		}
	}
	if c.n["ro_past"] != 1 || c.n["ro_now"] != 3 {
		t.Errorf("counted %v times", c.n)
	}
}
