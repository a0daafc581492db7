package store_test

import (
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/simulator/postgres"
)

func command(t *testing.T, s *store.Store, d fleet.DeviceID, id fleet.CommandID) fleet.Command {
	t.Helper()
	c, err := s.AddCommand(t.Context(), fleet.Command{
		ID: id, Device: d, Tenant: "main", Verb: "identify", Args: map[string]string{"seconds": "5"}, By: "anna", Reason: "find it",
		IssuedAt: noon, NotAfter: noon.Add(time.Hour),
	}, event("command.add"))
	must(t, err)
	return c
}

func end(s *store.Store, t *testing.T, d fleet.DeviceID, e store.CommandEnd) *fleet.Command {
	t.Helper()
	out, err := s.Commit(t.Context(), []store.Intake{{Device: d, Tenant: "main", At: noon, CommandEnd: &e}})
	must(t, err)
	return out[0].Command
}

func TestCommandLife(t *testing.T) {
	s, ds := enrolled(t, 2)
	ctx, id := t.Context(), ds[0].ID
	a, b, c := command(t, s, id, "a"), command(t, s, id, "b"), command(t, s, id, "")
	if a.Counter != 1 || b.Counter != 2 || c.Counter != 3 || c.ID == "" || a.State != fleet.CommandQueued {
		t.Errorf("got %+v %+v %+v, want counters 1 2 3", a, b, c)
	}
	if other := command(t, s, ds[1].ID, "o"); other.Counter != 1 {
		t.Errorf("another device's counter: got %d, want 1", other.Counter)
	}
	_, err := s.AddCommand(ctx, fleet.Command{ID: "a", Device: id, Tenant: "main", Verb: "reboot"}, event("command.add"))
	wantErr(t, "the same id", err, fleet.ErrExists)

	must(t, s.MarkSent(ctx, "a"))
	open, err := s.OpenCommands(ctx, id, noon)
	if err != nil || len(open) != 3 || open[0].ID != "a" || open[0].State != fleet.CommandSent || open[0].Args["seconds"] != "5" {
		t.Errorf("open: got %+v, %v", open, err)
	}
	if open, err = s.OpenCommands(ctx, id, noon.Add(time.Hour)); err != nil || len(open) != 0 {
		t.Errorf("open after the end of life: got %+v, %v", open, err)
	}

	// Another device cannot end it; its own can, once.
	done := store.CommandEnd{ID: "a", State: fleet.CommandSucceeded, Text: "blinked", Output: []byte("ok")}
	if got := end(s, t, ds[1].ID, done); got != nil {
		t.Errorf("ended by another device: got %+v", got)
	}
	if got := end(s, t, id, store.CommandEnd{ID: "a", State: fleet.CommandQueued}); got != nil {
		t.Errorf("ended without an end: got %+v", got)
	}
	if got := end(s, t, id, done); got == nil || got.State != fleet.CommandSucceeded || string(got.Output) != "ok" || got.EndedAt.IsZero() {
		t.Errorf("ended: got %+v", got)
	}
	if got := end(s, t, id, store.CommandEnd{ID: "a", State: fleet.CommandFailed}); got != nil {
		t.Errorf("ended twice: got %+v", got)
	}
	must(t, s.MarkSent(ctx, "a"))
	if got, err := s.Command(ctx, "main", "a"); err != nil || got.State != fleet.CommandSucceeded {
		t.Errorf("sent after its end: got %+v, %v", got, err)
	}

	// The service's clock ends what got no answer; a late answer is the truth.
	expired, err := s.ExpireCommands(ctx, noon.Add(2*time.Hour))
	if err != nil || len(expired) != 3 {
		t.Fatalf("expired: got %+v, %v, want b, c and o", expired, err)
	}
	if again, err := s.ExpireCommands(ctx, noon.Add(2*time.Hour)); err != nil || len(again) != 0 {
		t.Errorf("expired again: got %+v, %v", again, err)
	}
	if got := end(s, t, id, store.CommandEnd{ID: "b", State: fleet.CommandExpired}); got != nil {
		t.Errorf("expired by both: got %+v", got)
	}
	if got := end(s, t, id, store.CommandEnd{ID: "b", State: fleet.CommandFailed, Code: "lamp"}); got == nil || got.State != fleet.CommandFailed || got.Code != "lamp" {
		t.Errorf("late answer: got %+v", got)
	}
	kinds := map[string]int{}
	trail, _, err := s.AuditTrail(ctx, "main", "", false, fleet.Page{})
	must(t, err)
	for _, ev := range trail {
		kinds[ev.Kind]++
	}
	if kinds["command.add"] != 4 || kinds["command.expired"] != 3 {
		t.Errorf("service trail: got %v", kinds)
	}
	page, next, err := s.Commands(ctx, "main", store.CommandFilter{Device: id}, fleet.Page{Limit: 2})
	if err != nil || len(page) != 2 || page[0].ID != c.ID || next == "" {
		t.Errorf("first page: got %+v %q, %v", page, next, err)
	}
	if page, next, err = s.Commands(ctx, "main", store.CommandFilter{Device: id}, fleet.Page{Limit: 2, After: next}); err != nil || len(page) != 1 || page[0].ID != "a" || next != "" {
		t.Errorf("second page: got %+v %q, %v", page, next, err)
	}
	if page, _, err = s.Commands(ctx, "main", store.CommandFilter{State: fleet.CommandFailed}, fleet.Page{}); err != nil || len(page) != 1 || page[0].ID != "b" {
		t.Errorf("failed ones: got %+v, %v", page, err)
	}
}

func TestRolloutLife(t *testing.T) {
	s, ds := enrolled(t, 3)
	ctx := t.Context()
	r := fleet.Rollout{ID: "r1", Tenant: "main", Release: "agent/1.0.0", State: fleet.RolloutRunning, CreatedAt: noon, Spec: fleet.Spec{Filter: fleet.Filter{Group: "canary"}, Deadline: time.Hour}}
	wantErr(t, "without its release", s.AddRollout(ctx, r, event("rollout.add")), fleet.ErrNotFound)
	rel := fleet.Release{ID: "agent/1.0.0", Class: "agent", Version: "1.0.0", Targets: []fleet.Target{{Path: "agent/1.0.0/x", SHA256: "ab", Length: 7}}, PublishedAt: noon}
	must(t, s.AddRelease(ctx, rel, event("release.add")))
	wantErr(t, "release twice", s.AddRelease(ctx, rel, event("release.add")), fleet.ErrExists)
	if got, err := s.Release(ctx, rel.ID); err != nil || len(got.Targets) != 1 || got.Targets[0] != rel.Targets[0] || !got.PublishedAt.Equal(noon) {
		t.Errorf("release: got %+v, %v", got, err)
	}
	if got, next, err := s.Releases(ctx, fleet.Page{}); err != nil || len(got) != 1 || next != "" {
		t.Errorf("releases: got %+v %q, %v", got, next, err)
	}
	must(t, s.AddRollout(ctx, r, event("rollout.add")))
	wantErr(t, "rollout twice", s.AddRollout(ctx, r, event("rollout.add")), fleet.ErrExists)
	if got, err := s.Rollout(ctx, "main", "r1"); err != nil || got.Spec.Deadline != time.Hour || got.Spec.Filter.Group != "canary" {
		t.Errorf("rollout: got %+v, %v", got, err)
	}

	// Members are those of the group; who joins later is taken in; nobody twice.
	group := "later"
	must(t, s.SetDevice(ctx, "main", ds[2].ID, store.DevicePatch{Group: &group}, event("device.set")))
	for _, want := range []int{2, 0} {
		if n, err := s.Enlist(ctx, "r1"); err != nil || n != want {
			t.Errorf("enlist: got %d, %v, want %d", n, err, want)
		}
	}
	group = "canary"
	must(t, s.SetDevice(ctx, "main", ds[2].ID, store.DevicePatch{Group: &group}, event("device.set")))
	n, err := s.Enlist(ctx, "r1")
	for range 10_000 { // when the first one took long, it rests
		if n > 0 || err != nil {
			break
		}
		n, err = s.Enlist(ctx, "r1")
	}
	if err != nil || n != 1 {
		t.Errorf("enlist a late member: got %d, %v, want 1", n, err)
	}
	es, next, err := s.RolloutUnits(ctx, "main", "r1", fleet.ExecutionFilter{}, fleet.Page{Limit: 2})
	if err != nil || len(es) != 2 || next == "" {
		t.Fatalf("executions: got %+v %q, %v", es, next, err)
	}

	x := es[0].ID
	move := func(state fleet.ExecutionState, done uint64) *fleet.Execution {
		t.Helper()
		e, err := s.MoveExecution(ctx, store.ExecutionStep{ID: x, State: state, Done: done, Total: 100, To: "1.0.0"}, noon)
		must(t, err)
		return e
	}
	if e := move(fleet.ExecOffered, 0); e == nil || e.OfferedAt.IsZero() {
		t.Errorf("offered: got %+v", e)
	}
	if e := move(fleet.ExecOffered, 0); e != nil {
		t.Errorf("offered again: got %+v", e)
	}
	if e := move(fleet.ExecDownloading, 10); e == nil || e.Done != 10 {
		t.Errorf("downloading: got %+v", e)
	}
	if e := move(fleet.ExecDownloading, 60); e == nil || e.Done != 60 {
		t.Errorf("further: got %+v", e)
	}
	if e := move(fleet.ExecDownloading, 60); e != nil {
		t.Errorf("no further: got %+v", e)
	}
	if e := move(fleet.ExecWaiting, 0); e != nil {
		t.Errorf("back: got %+v", e)
	}
	// What devices say moves only their own.
	step := &store.ExecutionStep{ID: x, State: fleet.ExecSucceeded, To: "1.0.0"}
	out, err := s.Commit(ctx, []store.Intake{{Device: es[1].Device, Tenant: "main", At: noon, Step: step}, {Device: es[0].Device, Tenant: "main", At: noon, Step: step}})
	if err != nil || out[0].Execution != nil || out[1].Execution == nil || out[1].Execution.State != fleet.ExecSucceeded {
		t.Errorf("succeeded: got %+v, %v", out, err)
	}
	if l, _, err := s.DeviceUnits(ctx, "main", es[1].Device, fleet.Page{}); err != nil || len(l) != 1 || l[0].State != fleet.ExecQueued || l[0].Model != "vend-1" {
		t.Errorf("executions of a device: got %+v, %v", l, err)
	}
	if e, err := s.MoveExecution(ctx, store.ExecutionStep{ID: "nothing", State: fleet.ExecOffered}, noon); e != nil || err != nil {
		t.Errorf("unknown execution: got %+v, %v", e, err)
	}
	if n, err := s.Counts(ctx, "r1"); err != nil || n[fleet.ExecQueued] != 2 || n[fleet.ExecSucceeded] != 1 || len(n) != 2 {
		t.Errorf("counts: got %v, %v", n, err)
	}

	if rs, err := s.RunningRollouts(ctx); err != nil || len(rs) != 1 {
		t.Errorf("running: got %+v, %v", rs, err)
	}
	got, err := s.Rollout(ctx, "main", "r1")
	must(t, err)
	got.State, got.Reason, got.EndedAt = fleet.RolloutAborted, "bad", noon
	got, err = s.SaveRollout(ctx, got, event("rollout.abort"))
	if err != nil || got.State != fleet.RolloutAborted || got.EndedAt.IsZero() || got.Reason != "bad" {
		t.Errorf("aborted: got %+v, %v", got, err)
	}
	if n, err := s.Counts(ctx, "r1"); err != nil || n[fleet.ExecCanceled] != 2 || n[fleet.ExecSucceeded] != 1 || len(n) != 2 {
		t.Errorf("counts after abort: got %v, %v", n, err)
	}
	if n, err := s.Enlist(ctx, "r1"); err != nil || n != 0 {
		t.Errorf("enlist after abort: got %d, %v", n, err)
	}
	if rep, err := s.VerifyAudit(ctx, "main", ""); err != nil || !rep.OK {
		t.Errorf("service trail: got %+v, %v", rep, err)
	}
}

func TestTokens(t *testing.T) {
	s := open(t, postgres.Place(t))
	ctx := t.Context()
	tok := fleet.Token{ID: "t1", Name: "anna", Tenant: "main", Role: fleet.Operator, Hash: [32]byte{1}, CreatedAt: noon}
	must(t, s.AddToken(ctx, tok, event("token.add")))
	wantErr(t, "the same id", s.AddToken(ctx, tok, event("token.add")), fleet.ErrExists)
	got, err := s.TokenByHash(ctx, tok.Hash)
	if err != nil || got != (fleet.Token{ID: "t1", Name: "anna", Tenant: "main", Role: fleet.Operator, Hash: tok.Hash, CreatedAt: noon}) {
		t.Errorf("got %+v, %v", got, err)
	}
	_, err = s.TokenByHash(ctx, [32]byte{2})
	wantErr(t, "unknown token", err, fleet.ErrNotFound)

	now := time.Now()
	must(t, s.AddToken(ctx, fleet.Token{ID: "t2", Tenant: "main", Role: fleet.Viewer, Hash: [32]byte{3}, ExpiresAt: now.Add(-time.Minute)}, event("token.add")))
	_, err = s.TokenByHash(ctx, [32]byte{3})
	wantErr(t, "token past its life", err, fleet.ErrExpired)

	session, short := [32]byte{9}, [32]byte{8}
	must(t, s.AddSession(ctx, session, "t1", now.Add(time.Hour)))
	must(t, s.AddSession(ctx, short, "t1", now.Add(time.Minute)))
	if got, err := s.SessionToken(ctx, session, now); err != nil || got.ID != "t1" {
		t.Errorf("session: got %+v, %v", got, err)
	}
	_, err = s.SessionToken(ctx, short, now.Add(time.Minute))
	wantErr(t, "session past its life", err, fleet.ErrExpired)
	_, err = s.SessionToken(ctx, [32]byte{7}, now)
	wantErr(t, "unknown session", err, fleet.ErrNotFound)
	must(t, s.DropSession(ctx, short))
	_, err = s.SessionToken(ctx, short, now)
	wantErr(t, "dropped session", err, fleet.ErrNotFound)

	must(t, s.RevokeToken(ctx, "main", "t1", event("token.revoke")))
	_, err = s.TokenByHash(ctx, tok.Hash)
	wantErr(t, "revoked token", err, fleet.ErrExpired)
	_, err = s.SessionToken(ctx, session, now)
	wantErr(t, "session of a revoked token", err, fleet.ErrNotFound)
	wantErr(t, "revoked twice", s.RevokeToken(ctx, "main", "t1", event("token.revoke")), fleet.ErrConflict)
	if l, err := s.Tokens(ctx, "main"); err != nil || len(l) != 2 || l[0].RevokedAt.IsZero() {
		t.Errorf("tokens: got %+v, %v", l, err)
	}
}

func TestListing(t *testing.T) {
	s := open(t, postgres.Place(t))
	ctx := t.Context()
	lines := []store.Listing{{EKHash: "aa", Model: "vend-1", Serial: "1", Site: "berlin", Group: "canary"}, {EKHash: "bb"}}
	for _, want := range []int{2, 0} {
		if n, err := s.ImportEKs(ctx, "main", lines, event("ek.import")); err != nil || n != want {
			t.Errorf("import: got %d, %v, want %d", n, err, want)
		}
	}
	got, err := s.ListedEK(ctx, "aa")
	if err != nil || got.Tenant != "main" || got.Site != "berlin" || got.Group != "canary" || got.Serial != "1" {
		t.Errorf("got %+v, %v", got, err)
	}
	_, err = s.ImportEKs(ctx, "other", []store.Listing{{EKHash: "cc"}, {EKHash: "bb"}}, event("ek.import"))
	wantErr(t, "key on another list", err, fleet.ErrConflict)
	_, err = s.ListedEK(ctx, "cc")
	wantErr(t, "line of a refused import", err, fleet.ErrNotFound)
}

func TestStale(t *testing.T) {
	s, ds := enrolled(t, 3)
	ctx := t.Context()
	must(t, s.Appraised(ctx, good(ds[0].ID, "", "boot", noon), false))
	soft := good(ds[1].ID, "", "boot", noon.Add(time.Hour))
	soft.Trust = fleet.Degraded
	must(t, s.Appraised(ctx, soft, false))
	for _, want := range []int{1, 0} {
		got, err := s.MarkStale(ctx, noon.Add(time.Minute))
		if err != nil || len(got) != want || (want == 1 && (got[0].ID != ds[0].ID || got[0].Trust != fleet.Stale || len(got[0].TrustReasons) != 1)) {
			t.Errorf("got %+v, %v, want %d", got, err, want)
		}
	}
	if d, err := s.DeviceByID(ctx, ds[2].ID); err != nil || d.Trust != fleet.Pending {
		t.Errorf("a device that never proved itself: got %s, %v, want pending", d.Trust, err)
	}
	must(t, s.Appraised(ctx, good(ds[0].ID, "", "boot", noon.Add(time.Hour)), false))
	if d, err := s.DeviceByID(ctx, ds[0].ID); err != nil || d.Trust != fleet.Attested {
		t.Errorf("after new evidence: got %s, %v", d.Trust, err)
	}
}

// TestServiceTrail shows which entries of the service's own trail a tenant sees.
func TestServiceTrail(t *testing.T) {
	s := open(t, postgres.Place(t))
	ctx := t.Context()
	for _, ev := range []fleet.AuditEvent{{Kind: "service.start"}, {Kind: "a", Tenant: "main", At: noon}, {Kind: "b", Tenant: "other"}, {Kind: "c", Tenant: "main", Severity: "alarm"}} {
		must(t, s.Audit(ctx, ev))
	}
	wantErr(t, "event without kind", s.Audit(ctx, fleet.AuditEvent{}), fleet.ErrInvalid)
	got, _, err := s.AuditTrail(ctx, "main", "", false, fleet.Page{})
	if err != nil || len(got) != 3 || got[0].Kind != "service.start" || got[1].Kind != "a" || !got[1].At.Equal(noon) || got[2].Seq != 4 || got[2].Severity != "alarm" {
		t.Errorf("got %+v, %v", got, err)
	}
	if rep, err := s.VerifyAudit(ctx, "main", ""); err != nil || !rep.OK || rep.Entries != 4 {
		t.Errorf("got %+v, %v", rep, err)
	}
}

// TestAnyClock stores times from clocks that stand anywhere; all of them can be read and shown, and the
// trail still verifies.
func TestAnyClock(t *testing.T) {
	s, ds := enrolled(t, 1)
	var prev [32]byte
	for i, when := range []int64{-1 << 62, -1, 0, 1, 1 << 62} {
		ev := chain(t, uint64(i+1), prev, 1, "link.up")[0]
		ev = sealed(t, ev, when)
		prev = ev.Hash
		in := store.Intake{Device: ds[0].ID, Tenant: "main", At: noon, Audit: []fleet.AuditEvent{ev}, Samples: samples(uint64(i+1), 1)}
		in.Samples[0].At = time.UnixMilli(when)
		_, err := s.Commit(t.Context(), []store.Intake{in})
		must(t, err)
	}
	if rep, err := s.VerifyAudit(t.Context(), "main", ds[0].ID); err != nil || !rep.OK {
		t.Errorf("got %+v, %v", rep, err)
	}
	trail, _, err := s.AuditTrail(t.Context(), "main", ds[0].ID, false, fleet.Page{})
	must(t, err)
	points, err := s.Points(t.Context(), "main", ds[0].ID, "printer", "temp", time.Time{}, time.Time{}, 10)
	must(t, err)
	if len(points) != 5 || len(trail) != 5 {
		t.Fatalf("got %d points and %d entries, want 5", len(points), len(trail))
	}
	for i, p := range points {
		for _, when := range []time.Time{p.At, trail[i].At} {
			if _, err := when.MarshalJSON(); err != nil || when.IsZero() {
				t.Errorf("time %d: got %s, %v", i, when, err)
			}
		}
	}
}
