package store_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/simulator/postgres"
)

// searched is a store with entries of two tenants in all trails, and what is in
// it as row numbers go.
func searched(t *testing.T) (*store.Store, []fleet.TrailEntry) {
	t.Helper()
	dir := postgres.Place(t)
	s := open(t, dir)
	ctx, r := t.Context(), rand.New(rand.NewPCG(1, 2))
	one := func(of ...string) string { return of[r.IntN(len(of))] }
	var ds []fleet.Device
	for n, tenant := range []fleet.TenantID{"main", "main", "main", "other", "other"} {
		d := device(tenant, n)
		d.Site = fmt.Sprintf("site-%d", n%2) // both tenants have a site of that name
		must(t, s.Enrol(ctx, d))
		ds = append(ds, d)
	}
	seq := map[fleet.DeviceID]uint64{}
	var in []store.Intake
	for n := range 600 {
		kind := one("update.offered", "update.failed", "updates.odd", "command.done", "link.up", "link.up", "link.up")
		severity, outcome := one("info", "info", "info", "warn", "alarm"), one("success", "success", "failure", "refused", "")
		d := ds[r.IntN(len(ds))]
		when := noon.Add(time.Duration(n) * time.Minute)
		if n%3 == 0 {
			ev := fleet.AuditEvent{Tenant: d.Tenant, At: when, Kind: kind, Severity: severity, Outcome: outcome, Actor: one("anna", "bert", "service"), Subject: one(string(d.ID), "ro_1", "")}
			in = append(in, store.Intake{Device: d.ID, Tenant: d.Tenant, At: when, Service: &ev})
			if n%30 == 0 {
				ev.Tenant = "" // everybody's
				must(t, s.Audit(ctx, ev))
			}
			continue
		}
		seq[d.ID]++
		ev := fleet.AuditEvent{
			Device: d.ID, Seq: seq[d.ID], At: when.Add(-time.Hour * time.Duration(r.IntN(30))), Kind: kind, Severity: severity, Outcome: outcome,
			Actor: one("", "", "anna"), Subject: one("printer", "till", ""), Body: fmt.Append(nil, n), Hash: [32]byte{byte(n)},
		}
		in = append(in, store.Intake{Device: d.ID, Tenant: d.Tenant, At: when, Audit: []fleet.AuditEvent{ev}})
	}
	_, err := s.Commit(ctx, in)
	must(t, err)
	// A minute apart, and some waited in a queue.
	tamper(t, dir, `UPDATE audit SET stored_at = ? + n * 60000 - (n * 7919 % 2) * 60000`, noon.UnixMilli())
	all, err := s.Trails(ctx, 0, 10_000)
	must(t, err)
	return s, all
}

// naive is a search as one would do it by hand.
func naive(all []fleet.TrailEntry, t fleet.TenantID, q fleet.TrailQuery) (out []int64) {
	for _, e := range all {
		when := e.StoredAt
		if q.Happened {
			when = e.At
		}
		what := q.What == "" || e.Kind == q.What || strings.HasSuffix(q.What, ".") && strings.HasPrefix(e.Kind, q.What)
		if (e.Tenant == t || e.Tenant == "") && what && (q.Who == "" || e.Actor == q.Who) && (q.Site == "" || e.Site == q.Site) &&
			(q.Subject == "" || e.Subject == q.Subject) && (q.Severity == "" || e.Severity == q.Severity) && (q.Outcome == "" || e.Outcome == q.Outcome) &&
			(q.Device == "" || e.Device == q.Device || e.Device == "" && e.Subject == string(q.Device)) &&
			(q.Trail == "" || (q.Trail == fleet.TrailService) == (e.Device == "")) &&
			(q.From.IsZero() || !when.Before(q.From)) && (q.To.IsZero() || when.Before(q.To)) {
			out = append(out, e.N)
		}
	}
	if !q.OldestFirst {
		slices.Reverse(out)
	}
	return out
}

// read reads a search to its end, page by page.
func read(ctx context.Context, t *testing.T, s *store.Store, tenant fleet.TenantID, q fleet.TrailQuery, limit int) (out []int64, pages int) {
	t.Helper()
	for p := (fleet.Page{Limit: limit}); ; pages++ {
		f, err := s.SearchTrails(ctx, tenant, q, p)
		must(t, err)
		if len(f.Items) > limit {
			t.Fatalf("%+v: a page of %d", q, len(f.Items))
		}
		for _, e := range f.Items {
			out = append(out, e.N)
		}
		if p.After = f.Next; f.Next == "" {
			return out, pages
		}
	}
}

// TestSearchTrails compares what is found by any combination of filters with what a look at every entry finds, in
// both orders and in pages of any length; another tenant's entries are not among it.
func TestSearchTrails(t *testing.T) {
	s, all := searched(t)
	r := rand.New(rand.NewPCG(3, 4))
	maybe := func(of ...string) string {
		if r.IntN(3) > 0 {
			return ""
		}
		return of[r.IntN(len(of))]
	}
	found, byTenant := 0, map[fleet.TenantID]int{}
	for range 400 {
		q := fleet.TrailQuery{
			Who: maybe("anna", "bert", "service", "main-d00", "nobody"), What: maybe("update.", "update.failed", "link.up", "no.such", "no."),
			Device: fleet.DeviceID(maybe("main-d00", "main-d01", "other-d03")), Site: maybe("site-0", "site-1", "nowhere"), Subject: maybe("printer", "ro_1", "main-d01"),
			Severity: maybe("alarm", "warn", "info"), Outcome: maybe("failure", "success", "refused"), Trail: maybe("service", "devices"),
			OldestFirst: r.IntN(2) == 0,
		}
		if r.IntN(4) == 0 {
			q.From, q.Happened = noon.Add(time.Duration(r.IntN(600))*time.Minute), r.IntN(2) == 0
		}
		if r.IntN(4) == 0 {
			q.To = noon.Add(time.Duration(r.IntN(700)) * time.Minute)
		}
		tenant := fleet.TenantID([]string{"main", "other", "third"}[r.IntN(3)])
		got, _ := read(t.Context(), t, s, tenant, q, 1+r.IntN(40))
		if want := naive(all, tenant, q); !slices.Equal(got, want) {
			t.Fatalf("tenant %s, %+v:\ngot  %v\nwant %v", tenant, q, got, want)
		}
		found += len(got)
		byTenant[tenant] += len(got)
	}
	if found < 1000 || byTenant["main"] == 0 || byTenant["other"] == 0 {
		t.Errorf("only %d entries were found: the test does not search", found)
	}
}

// TestSearchIsStable: what is stored while somebody reads a search changes none
// of its pages, and is what the newest cursor goes on with.
func TestSearchIsStable(t *testing.T) {
	s, all := searched(t)
	ctx, q := t.Context(), fleet.TrailQuery{What: "link.up"}
	want := naive(all, "main", q)
	f, err := s.SearchTrails(ctx, "main", q, fleet.Page{Limit: 7})
	must(t, err)
	var got []int64
	added := 0
	for first := f; ; added++ {
		for _, e := range f.Items {
			got = append(got, e.N)
		}
		must(t, s.Audit(ctx, fleet.AuditEvent{Tenant: "main", Kind: "link.up", Actor: "anna"}))
		if f.Next == "" {
			q.OldestFirst = true
			since, err := s.SearchTrails(ctx, "main", q, fleet.Page{After: first.Newest})
			must(t, err)
			if n := len(since.Items); n != added+1 || since.Items[0].N != all[len(all)-1].N+1 || since.Items[n-1].N != since.Items[0].N+int64(n)-1 {
				t.Errorf("since: got %d entries", n)
			}
			q.OldestFirst = false
			break
		}
		f, err = s.SearchTrails(ctx, "main", q, fleet.Page{Limit: 7, After: f.Next})
		must(t, err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

// TestSearchOfManyKinds: a device that makes up kinds fills the facets, and
// what came then is found all the same.
func TestSearchOfManyKinds(t *testing.T) {
	dir := postgres.Place(t)
	s := open(t, dir)
	ctx, d := t.Context(), device("main", 1)
	must(t, s.Enrol(ctx, d))
	sql1(t, dir, `WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 4094)
		INSERT INTO facet (tenant, own, kind, severity, outcome) SELECT 'third', 0, 'made.up' || n, 'info', '' FROM c`)
	var in []fleet.AuditEvent
	for n, kind := range []string{"odd.one", "odd.two", "odd.three", "odd.four", "odd.two"} {
		in = append(in, fleet.AuditEvent{Seq: uint64(n + 1), At: noon, Kind: kind, Severity: "info", Body: []byte{1}})
	}
	_, err := s.Commit(ctx, []store.Intake{{Device: d.ID, Tenant: "main", At: noon, Audit: in}})
	must(t, err)
	for what, want := range map[string]int{"odd.two": 2, "odd.four": 1, "odd.": 5, "odd.five": 0, "*": 5, "": 5, "od": 0} {
		f, err := s.SearchTrails(ctx, "main", fleet.TrailQuery{What: what}, fleet.Page{})
		must(t, err)
		if len(f.Items) != want {
			t.Errorf("%q: got %d entries, want %d", what, len(f.Items), want)
		}
	}
}

// TestSearchEndsEarly: where two common things never come together, a page is
// short, says how far it came, and the next goes on from there.
func TestSearchEndsEarly(t *testing.T) {
	dir := postgres.Place(t)
	s := open(t, dir)
	must(t, s.Audit(t.Context(), fleet.AuditEvent{Tenant: "main", Kind: "link.up", Actor: "anna"}))
	sql1(t, dir, `WITH RECURSIVE c(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM c WHERE n < 100000)
		INSERT INTO audit (n, device, seq, tenant, at, stored_at, kind, severity, actor, subject, outcome, site, detail, body, hash, prev, facet)
		SELECT c.n, '', c.n, tenant, at, stored_at, kind, severity, CASE c.n % 2 WHEN 0 THEN 'anna' ELSE 'bert' END, '', outcome,
			CASE WHEN c.n = 2 OR c.n % 2 = 1 THEN 'north' ELSE 'south' END, detail, body, hash, prev, facet FROM c, audit WHERE audit.n = 1`)
	q := fleet.TrailQuery{Who: "anna", Site: "north"}
	f, err := s.SearchTrails(t.Context(), "main", q, fleet.Page{})
	must(t, err)
	if len(f.Items) != 0 || f.Next == "" || f.Reached.IsZero() {
		t.Errorf("got %d entries, next %q, reached %s", len(f.Items), f.Next, f.Reached)
	}
	if got, pages := read(t.Context(), t, s, "main", q, 100); !slices.Equal(got, []int64{2}) || pages < 1 {
		t.Errorf("got %v on %d pages", got, pages)
	}
}

// TestSearchKnowsTheSite: an entry keeps the site that its device had, those of
// the service about a device, too, and the latter is part of what is hashed.
func TestSearchKnowsTheSite(t *testing.T) {
	dir := postgres.Place(t)
	s := open(t, dir)
	ctx, d := t.Context(), device("main", 1)
	must(t, s.Enrol(ctx, d))
	commit := func(n uint64) {
		_, err := s.Commit(ctx, []store.Intake{{Device: d.ID, Tenant: "main", At: noon, Audit: chain(t, n, [32]byte{}, 1, "link.up")}})
		must(t, err)
	}
	commit(1)
	must(t, s.Audit(ctx, fleet.AuditEvent{Tenant: "main", Kind: "command.issued", Subject: string(d.ID)}))
	must(t, s.Audit(ctx, fleet.AuditEvent{Tenant: "other", Kind: "command.issued", Subject: string(d.ID)}))
	moved := "site-2"
	must(t, s.SetDevice(ctx, "main", d.ID, store.DevicePatch{Site: &moved}, event("device.changed")))
	commit(2)
	must(t, s.Audit(ctx, fleet.AuditEvent{Tenant: "main", Kind: "command.issued", Subject: string(d.ID)}))
	for site, want := range map[string]int{"site-1": 2, "site-2": 2} {
		if got, _ := read(ctx, t, s, "main", fleet.TrailQuery{Site: site}, 100); len(got) != want {
			t.Errorf("%s: got %v, want %d", site, got, want)
		}
	}
	if got, _ := read(ctx, t, s, "other", fleet.TrailQuery{Site: "site-1"}, 100); len(got) != 0 {
		t.Errorf("another tenant's device gave its site: got %v", got)
	}
	if r, err := s.VerifyAudit(ctx, "main", ""); err != nil || !r.OK {
		t.Errorf("the trail: got %+v, %v", r, err)
	}
	tamper(t, dir, `UPDATE audit SET site = 'site-9' WHERE device = '' AND site = 'site-1'`)
	if r, err := s.VerifyAudit(ctx, "main", ""); err != nil || r.OK {
		t.Errorf("a trail with another site: got %+v, %v", r, err)
	}
}

// TestSearchRefusesCursors: a cursor is good for the search that gave it.
func TestSearchRefusesCursors(t *testing.T) {
	s, _ := searched(t)
	q := fleet.TrailQuery{What: "link."}
	f, err := s.SearchTrails(t.Context(), "main", q, fleet.Page{Limit: 1})
	must(t, err)
	search := func(tenant fleet.TenantID, q fleet.TrailQuery, after string) error {
		_, err := s.SearchTrails(t.Context(), tenant, q, fleet.Page{After: after})
		return err
	}
	must(t, search("main", q, f.Next))
	wantErr(t, "another tenant's", search("other", q, f.Next), fleet.ErrInvalid)
	wantErr(t, "another search's", search("main", fleet.TrailQuery{What: "link.up"}, f.Next), fleet.ErrInvalid)
	for _, after := range []string{"1", "x", f.Next[:8], f.Next + "AA", strings.Repeat("A", 18), "🙂"} {
		wantErr(t, after, search("main", q, after), fleet.ErrInvalid)
	}
}

// FuzzSearchCursor: whatever comes as a cursor, it is refused or finds nothing
// that is not the tenant's.
func FuzzSearchCursor(f *testing.F) {
	s, err := store.Open(f.Context(), f.TempDir(), quiet)
	must(f, err)
	f.Cleanup(func() { _ = s.Close() })
	for _, tenant := range []fleet.TenantID{"main", "other", "main"} {
		must(f, s.Audit(f.Context(), fleet.AuditEvent{Tenant: tenant, Kind: "link.up"}))
	}
	page, err := s.SearchTrails(f.Context(), "main", fleet.TrailQuery{}, fleet.Page{Limit: 1})
	must(f, err)
	f.Add(page.Next)
	f.Add(page.Newest)
	f.Add("AQAAAAAAAAAAAAAAAA")
	f.Fuzz(func(t *testing.T, after string) {
		for _, oldest := range []bool{false, true} {
			page, err := s.SearchTrails(context.Background(), "main", fleet.TrailQuery{OldestFirst: oldest}, fleet.Page{After: after})
			if err != nil {
				wantErr(t, after, err, fleet.ErrInvalid)
				continue
			}
			for _, e := range page.Items {
				if e.Tenant != "main" {
					t.Errorf("found %+v", e)
				}
			}
		}
	})
}

// TestPlannersEndsAreTold: what the planner ends or tries again by itself is in
// the trail under the device, and in one entry where it is many.
func TestPlannersEndsAreTold(t *testing.T) {
	s, _ := enrolled(t, 25)
	ctx := t.Context()
	staged(t, s, "r1", "1.0.0", fleet.Spec{})
	units, _, err := s.Units(ctx, "r1", 0)
	must(t, err)
	end := func(state fleet.ExecutionState, units ...fleet.Unit) {
		var steps []store.ExecutionStep
		for _, u := range units {
			steps = append(steps, store.ExecutionStep{ID: u.ID, State: state, Reason: "timeout"})
		}
		_, err := s.MoveExecutions(ctx, steps, noon)
		must(t, err)
	}
	end(fleet.ExecTimedOut, units[0])
	end(fleet.ExecCanceled, units[1:]...)
	end(fleet.ExecCanceled, units[1:]...) // moves nothing
	told := func(q fleet.TrailQuery) []fleet.TrailEntry {
		f, err := s.SearchTrails(ctx, "main", q, fleet.Page{})
		must(t, err)
		return f.Items
	}
	if got := told(fleet.TrailQuery{What: "rollout.ended", Device: units[0].Device}); len(got) != 1 || got[0].Outcome != fleet.Failure || got[0].Site != "site-1" || got[0].Detail["rollout"] != "r1" || got[0].Detail["reason"] != "timeout" {
		t.Errorf("one: got %+v", got)
	}
	if got := told(fleet.TrailQuery{What: "rollout.ended", Subject: "r1"}); len(got) != 1 || got[0].Detail["devices"] != "24" || got[0].Outcome != fleet.Success {
		t.Errorf("many: got %+v", got)
	}
	units, _, err = s.Units(ctx, "r1", 0)
	must(t, err)
	i := slices.IndexFunc(units, func(u fleet.Unit) bool { return u.State == fleet.ExecTimedOut })
	must(t, s.RetryExecution(ctx, units[i].ID, units[i].Version, noon))
	if got := told(fleet.TrailQuery{What: "rollout.retried"}); len(got) != 1 || got[0].Subject != string(units[i].Device) || got[0].Detail["was"] != "TIMED_OUT" {
		t.Errorf("again: got %+v", got)
	}
}

// TestOutcomesOfDevices: each outcome that devices make up does not cost every search a look.
func TestOutcomesOfDevices(t *testing.T) {
	dir := postgres.Place(t)
	s := open(t, dir)
	d := device("main", 1)
	must(t, s.Enrol(t.Context(), d))
	all := chain(t, 1, [32]byte{}, 50, "link.up")
	for n := range all {
		all[n].Outcome = fmt.Sprintf("made-up-%d", n)
	}
	all[7].Outcome = "refused"
	_, err := s.Commit(t.Context(), []store.Intake{{Device: d.ID, Tenant: "main", At: noon, Audit: all}})
	must(t, err)
	if n := count(t, dir, `SELECT COUNT(*) FROM facet WHERE kind = 'link.up'`); n != 2 {
		t.Errorf("got %d facets, want 2", n)
	}
	if got, _ := read(t.Context(), t, s, "main", fleet.TrailQuery{What: "link.up"}, 10); len(got) != 50 {
		t.Errorf("found %d, want all 50", len(got))
	}
	if got, _ := read(t.Context(), t, s, "main", fleet.TrailQuery{Outcome: "refused"}, 10); len(got) != 1 {
		t.Errorf("found %d that were refused, want 1", len(got))
	}
}
