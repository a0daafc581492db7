package store_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/simulator/postgres"
)

func onlyPostgres(t *testing.T) {
	t.Helper()
	if !postgres.On() {
		t.Skip("of PostgreSQL")
	}
}

// TestServer has a server of its own, that keeps what it says it keeps.
func TestServer(t *testing.T) {
	onlyPostgres(t)
	dir, err := os.MkdirTemp("", "tillward-pg-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c, err := postgres.Start(t.Context(), dir, true)
	must(t, err)
	t.Cleanup(c.Kill)
	must(t, store.Setup(t.Context(), c.URL("postgres", "postgres"), "richtig", quiet))
	t.Run("goes and comes back", func(t *testing.T) { databaseGoes(t, c) })
	t.Run("another wrote", func(t *testing.T) { anotherWrote(t, c) })
	t.Run("another version", func(t *testing.T) { anotherVersion(t, c) })
	t.Run("password", func(t *testing.T) { password(t, c) })
}

// TestOneWriter opens the database that another service writes to: it is refused, and free when that one ends.
func TestOneWriter(t *testing.T) {
	onlyPostgres(t)
	where := postgres.Place(t)
	s := open(t, where)
	must(t, s.Audit(t.Context(), event("service.start")))
	_, err := store.Open(t.Context(), where, quiet)
	if err == nil || !strings.Contains(err.Error(), "another fleet service writes to this database (from this machine, backend ") {
		t.Errorf("second service: got %v, want a refusal that says who is there", err)
	}
	must(t, s.Audit(t.Context(), event("service.stop"))) // the first one was not troubled
	must(t, s.Close())
	must(t, open(t, where).Audit(t.Context(), event("service.start")))
}

// TestRoleMayNot tries, as the service's own role, what would change what is on record. The twin of each is
// what the role has to be able to do.
func TestRoleMayNot(t *testing.T) {
	onlyPostgres(t)
	where := postgres.Place(t)
	s := open(t, where)
	ctx := t.Context()
	must(t, s.Enrol(ctx, device("main", 1)))
	_, err := s.Commit(ctx, []store.Intake{{Device: "main-d01", Tenant: "main", At: noon, Audit: chain(t, 1, [32]byte{}, 5, "link.up")}})
	must(t, err)
	must(t, s.Close())
	db, err := store.BehindAsService(where)
	must(t, err)
	defer db.Close()
	_, _ = db.ExecContext(ctx, `GRANT ALL ON audit TO tillward_service`) // a warning, and nothing granted
	for _, query := range []string{
		`UPDATE audit SET kind = 'x'`,
		`UPDATE audit SET device = 'x'`,
		`DELETE FROM audit`,
		`TRUNCATE audit`,
		`DROP TABLE audit`,
		`ALTER TABLE audit DISABLE TRIGGER ALL`,
		`DELETE FROM countersign`,
		`UPDATE facet SET kind = 'x'`,
		`DELETE FROM facet`,
		`UPDATE countersign SET seq = 1`,
		`UPDATE segment SET last = 1000`,
		`DELETE FROM segment`,
		`UPDATE schema_version SET version = 1`,
		`SET ROLE tillward_owner`,
		`SET ROLE tillward_keeper`,
		`CREATE TABLE tillward.mine (n INT)`,
		`CREATE OR REPLACE FUNCTION tillward.audit_drop(gone text, up_to bigint) RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'`,
		`SELECT audit_leave('main-d01', 'main-d01.1')`, // it has not left its owner
		`SELECT audit_leave('', 'main-d01.1')`,
	} {
		_, err := db.ExecContext(ctx, query)
		if refused := (*pgconn.PgError)(nil); !errors.As(err, &refused) || refused.Code != "42501" {
			t.Errorf("%s: got %v, want it refused for want of rights", query, err)
		}
	}
	var n int64
	if err := db.QueryRowContext(ctx, `SELECT audit_drop('main-d01', 5)`).Scan(&n); err != nil || n != 0 {
		t.Errorf("entries that no segment holds: got %d dropped, %v, want none", n, err)
	}
	for _, query := range []string{
		`SELECT n FROM audit FOR SHARE`, // asks for UPDATE in PostgreSQL
	} {
		if _, err := db.ExecContext(ctx, query); err == nil {
			t.Errorf("%s: got no error", query)
		}
	}
	if got := count(t, where, `SELECT COUNT(*) FROM audit WHERE device = 'main-d01' AND kind = 'link.up'`); got != 5 {
		t.Errorf("got %d entries, want the 5 there were", got)
	}
	for _, query := range []string{ // the twins
		`UPDATE device SET label = 'front'`,
		`INSERT INTO segment (trail, first, last, hash, entries, file, sha256, bytes, at) VALUES ('main-d01', 1, 3, X'', 3, 'f', X'', 1, 1)`,
		`INSERT INTO audit SELECT n + 100, device, seq + 100, tenant, at, stored_at, kind, severity, actor, subject, detail, body, hash, prev, outcome, site, facet FROM audit WHERE seq = 5 AND device = 'main-d01'`,
	} {
		if _, err := db.ExecContext(ctx, query); err != nil {
			t.Errorf("%s: %v", query, err)
		}
	}
	if err := db.QueryRowContext(ctx, `SELECT audit_drop('main-d01', 5)`).Scan(&n); err != nil || n != 3 {
		t.Errorf("entries of which a segment holds three: got %d dropped, %v", n, err)
	}
}

// TestRefusesRole opens the database as who may change the trails, and as who may nothing.
func TestRefusesRole(t *testing.T) {
	onlyPostgres(t)
	where := postgres.Place(t)
	_, err := store.Open(t.Context(), administrator(where), quiet)
	if err == nil || !strings.Contains(err.Error(), "its role postgres may change the audit trails") {
		t.Errorf("administrator: got %v, want a refusal", err)
	}
	sql1(t, where, `CREATE ROLE mixed LOGIN IN ROLE tillward_service, tillward_owner NOINHERIT`)
	defer sql1(t, where, `DROP ROLE mixed`)
	sql1(t, where, `GRANT USAGE ON SCHEMA tillward TO mixed`)
	sql1(t, where, `GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA tillward TO mixed`)
	defer sql1(t, where, `DROP OWNED BY mixed`)
	_, err = store.Open(t.Context(), strings.Replace(where, "tillward_service@", "mixed@", 1), quiet)
	if err == nil || !strings.Contains(err.Error(), "may change the audit trails") {
		t.Errorf("a role that can become the owner: got %v, want a refusal", err)
	}
}

// TestNotSetUp opens databases that are empty, older and newer.
func TestNotSetUp(t *testing.T) {
	onlyPostgres(t)
	where := postgres.Place(t)
	sql1(t, where, `UPDATE schema_version SET version = version - 100`)
	if _, err := store.Open(t.Context(), where, quiet); err == nil || !strings.Contains(err.Error(), "bring it up to date with tillward store setup") {
		t.Errorf("older: got %v, want what to do", err)
	}
	sql1(t, where, `DROP SCHEMA tillward CASCADE`)
	if _, err := store.Open(t.Context(), where, quiet); err == nil || !strings.Contains(err.Error(), "make it with tillward store setup") {
		t.Errorf("empty: got %v, want what to do", err)
	}
	for range 2 { // a second time changes nothing
		must(t, store.Setup(t.Context(), administrator(where), "", quiet))
	}
	must(t, open(t, where).Audit(t.Context(), event("service.start")))
}

// databaseGoes stops, kills and starts the database under a store that writes: what was acknowledged is there, in
// whole, the rest was refused, and it goes on by itself.
func databaseGoes(t *testing.T, c *postgres.Cluster) {
	where := c.URL("tillward_service", "postgres")
	s := open(t, where)
	ctx := t.Context()
	must(t, s.Enrol(ctx, device("main", 1)))
	var seq uint64
	var hash [32]byte
	write := func() error { // what was not acknowledged comes again, as from a device
		ev := chain(t, seq+1, hash, 1, "link.up")[0]
		_, err := s.Commit(ctx, []store.Intake{{
			Device: "main-d01", Tenant: "main", At: noon, Samples: samples(seq+1, 20), Audit: []fleet.AuditEvent{ev}, Service: &fleet.AuditEvent{Kind: "ingest.noted", Actor: "ingest"},
		}})
		if err == nil {
			seq, hash = ev.Seq, ev.Hash
		}
		return err
	}
	for round := range 6 {
		for range 5 {
			must(t, write())
		}
		var wg sync.WaitGroup
		wg.Go(func() { // in the middle of something, perhaps
			if round%2 == 0 {
				c.Kill()
			} else {
				c.Stop()
			}
		})
		var failed error
		for n := 0; failed == nil && n < 100_000; n++ {
			failed = write()
		}
		wg.Wait()
		if failed == nil {
			t.Fatal("commits went on without a database")
		}
		if err := s.Ping(ctx); err == nil {
			t.Error("a database that is away: ping got no error")
		}
		must(t, c.Start(ctx))
		if err := write(); err != nil {
			t.Fatalf("round %d: first commit after the database is back: %v", round, err)
		}
		must(t, s.Ping(ctx))
		rep, err := s.VerifyAudit(ctx, "main", "main-d01")
		if err != nil || !rep.OK || rep.Entries != seq {
			t.Errorf("round %d: device's trail: got %+v, %v, want %d entries", round, rep, err, seq)
		}
		// A commit whose answer was lost may have happened; then it came again, and the service's entry with it.
		own, err := s.VerifyAudit(ctx, "main", "")
		if err != nil || !own.OK || own.Entries < seq || own.Entries > seq+uint64(round)+1 {
			t.Errorf("round %d: own trail: got %+v, %v, want %d entries and at most one more for each round", round, own, err, seq)
		}
		all, err := s.TrailsEnd(ctx)
		rows := count(t, where, `SELECT COUNT(*) FROM audit`)
		if err != nil || uint64(all) != rows {
			t.Errorf("round %d: numbers up to %d for %d rows, %v: some are left out", round, all, rows, err)
		}
		if got := count(t, where, `SELECT COUNT(*) FROM sample`); got != 20*seq {
			t.Errorf("round %d: got %d samples, want %d", round, got, 20*seq)
		}
	}
}

// anotherWrote has another service write while the database was away for the first: that one does not go on.
func anotherWrote(t *testing.T, c *postgres.Cluster) {
	where := c.URL("tillward_service", "postgres")
	s := open(t, where)
	must(t, s.Audit(t.Context(), event("service.start")))
	c.Kill()
	if err := s.Audit(t.Context(), event("late")); err == nil {
		t.Fatal("audit without a database: got no error")
	}
	must(t, c.Start(t.Context()))
	other, err := store.Open(t.Context(), where, quiet)
	must(t, err)
	must(t, other.Audit(t.Context(), event("other.start")))
	must(t, other.Close())
	for range 2 {
		if err := s.Audit(t.Context(), event("late")); err == nil || !strings.Contains(err.Error(), "another fleet service has written to this database since") {
			t.Errorf("got %v, want a refusal", err)
		}
	}
}

// anotherVersion has the database set up for a newer program while it was away: the older one does not write to it.
func anotherVersion(t *testing.T, c *postgres.Cluster) {
	s := open(t, c.URL("tillward_service", "postgres"))
	must(t, s.Audit(t.Context(), event("service.start")))
	c.Kill()
	must(t, c.Start(t.Context()))
	db, err := store.Behind(c.URL("tillward_service", "postgres"))
	must(t, err)
	defer db.Close()
	_, err = db.ExecContext(t.Context(), `INSERT INTO schema_version (version, applied_at) VALUES (9999, 0)`)
	must(t, err)
	if err := s.Audit(t.Context(), event("late")); err == nil || !strings.Contains(err.Error(), "its schema has version 9999") {
		t.Errorf("got %v, want a refusal", err)
	}
	_, err = db.ExecContext(t.Context(), `DELETE FROM schema_version WHERE version = 9999`)
	must(t, err)
	must(t, s.Audit(t.Context(), event("late")))
}

// TestWithoutSync warns when the server does not sync.
func TestWithoutSync(t *testing.T) {
	onlyPostgres(t)
	var said strings.Builder
	s, err := store.Open(t.Context(), postgres.Place(t), slog.New(slog.NewTextHandler(&said, nil)))
	must(t, err)
	must(t, s.Close())
	if !strings.Contains(said.String(), "setting=fsync") || strings.Contains(said.String(), "synchronous_commit") {
		t.Errorf("said %q, want a warning about fsync", said.String())
	}
}

// TestCheckURL: the way to a database is encrypted and its name checked, or it does not leave the machine.
func TestCheckURL(t *testing.T) {
	for url, wrong := range map[string]string{
		"postgres://tillward_service@/tillward?host=/run/postgresql":               "",
		"postgres://tillward_service@localhost/tillward":                           "",
		"postgres://tillward_service@127.0.0.1:5433/tillward?sslmode=disable":      "",
		"postgres://tillward_service@[::1]/tillward":                               "",
		"postgresql://tillward_service@db.example/tillward":                        "",
		"postgres://tillward_service@db.example/tillward?sslmode=verify-full":      "",
		"postgres://tillward_service@a.example,b.example/tillward":                 "",
		"postgres://tillward_service@db.example/tillward?sslmode=disable":          "the way to db.example needs sslmode=verify-full",
		"postgres://tillward_service@db.example/tillward?sslmode=prefer":           "the way to db.example needs sslmode=verify-full",
		"postgres://tillward_service@db.example/tillward?sslmode=require":          "the way to db.example needs sslmode=verify-full",
		"postgres://tillward_service@db.example/tillward?sslmode=verify-ca":        "the way to db.example needs sslmode=verify-full",
		"postgres://tillward_service@localhost,b.example/tillward?sslmode=disable": "the way to b.example needs sslmode=verify-full",
		"postgres://tillward_service@192.0.2.7/tillward?sslmode=allow":             "the way to 192.0.2.7 needs sslmode=verify-full",
		"mysql://x/y": "does not begin with postgres://",
		"postgres://tillward_service:geheim@db.example:port/tillward": "invalid",
	} {
		err := store.CheckURL(url)
		if wrong == "" && err != nil {
			t.Errorf("%s: got %v", url, err)
		}
		if wrong != "" && (err == nil || !strings.Contains(err.Error(), wrong)) {
			t.Errorf("%s: got %v, want %q", url, err, wrong)
		}
		if err != nil && strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: the error shows the password: %v", url, err)
		}
	}
}

// password signs in by a password that setup gave the role, and by another one.
func password(t *testing.T, c *postgres.Cluster) {
	must(t, c.Demand("tillward_service", "scram-sha-256"))
	where := func(password string) string {
		return strings.Replace(c.URL("tillward_service", "postgres"), "tillward_service@", "tillward_service:"+password+"@", 1)
	}
	s, err := store.Open(t.Context(), where("richtig"), quiet)
	must(t, err)
	must(t, s.Close())
	if _, err = store.Open(t.Context(), where("falsch"), quiet); err == nil || strings.Contains(err.Error(), "falsch") || !strings.Contains(err.Error(), "password authentication failed") {
		t.Errorf("another password: got %v", err)
	}
	if err := store.Setup(t.Context(), c.URL("postgres", "postgres"), "zwei Wörter", quiet); err == nil {
		t.Error("a password that not every program writes alike: got no error")
	}
}

// TestOddLetters stores what PostgreSQL keeps in no text.
func TestOddLetters(t *testing.T) {
	s, ds := enrolled(t, 1)
	ctx := context.Background()
	odd := "a\x00b\xffc"
	_, err := s.Commit(ctx, []store.Intake{{
		Device: ds[0].ID, Tenant: "main", At: noon,
		Samples: []fleet.Sample{{Boot: [16]byte{1}, Seq: 1, At: noon, Peripheral: odd, Name: odd, Value: 1}},
		Events:  []fleet.PeripheralEvent{{Boot: [16]byte{1}, Seq: 2, At: noon, Peripheral: odd, Category: odd, Code: odd, From: odd, To: odd}},
		Service: &fleet.AuditEvent{Kind: "ingest.noted", Subject: odd, Detail: map[string]string{"what": odd}},
		Report:  &store.Report{Boot: [16]byte{1}, Seq: 3, Sent: noon, AgentVersion: odd, Raw: []byte(odd)},
	}})
	must(t, err)
	must(t, s.Audit(ctx, fleet.AuditEvent{Kind: "x.y", Actor: odd, Subject: odd, Outcome: odd, Site: odd}))
	if rep, err := s.VerifyAudit(ctx, "main", ""); err != nil || !rep.OK {
		t.Errorf("trail: got %+v, %v", rep, err)
	}
	if l, err := s.Series(ctx, "main", ds[0].ID); err != nil || len(l) != 1 {
		t.Errorf("series: got %+v, %v", l, err)
	}
}

// TestNumbersWithoutHoles fails transactions between others: no number of an audit row is left out.
func TestNumbersWithoutHoles(t *testing.T) {
	where := postgres.Place(t)
	s := open(t, where)
	ctx := t.Context()
	must(t, s.Enrol(ctx, device("main", 1)))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 20 {
				switch (i + n) % 3 {
				case 0:
					must(t, s.Audit(ctx, event("shared.one")))
				case 1: // takes its number back
					_, err := s.Commit(ctx, []store.Intake{
						{Device: "main-d01", Tenant: "main", At: noon, Service: &fleet.AuditEvent{Kind: "ingest.noted"}}, {Device: "nobody", Tenant: "main", At: noon},
					})
					wantErr(t, "device that is not there", err, fleet.ErrNotFound)
				default:
					wantErr(t, "an event without a kind behind another", s.SetCursor(ctx, "siem", fleet.ExportCursor{}, event("export.moved"), fleet.AuditEvent{}), fleet.ErrInvalid)
				}
			}
		})
	}
	wg.Wait()
	end, err := s.TrailsEnd(ctx)
	if rows := count(t, where, `SELECT COUNT(*) FROM audit`); err != nil || uint64(end) != rows {
		t.Errorf("numbers up to %d for %d rows, %v", end, rows, err)
	}
	l, err := s.Trails(ctx, 0, 1000)
	must(t, err)
	for i, e := range l {
		if e.N != int64(i+1) {
			t.Fatalf("row %d has number %d", i, e.N)
		}
	}
}

// TestGrants: what is printed for people is what Setup does.
func TestGrants(t *testing.T) {
	for _, want := range []string{"CREATE ROLE tillward_owner NOLOGIN", "GRANT SELECT, INSERT ON tillward.audit", "SECURITY DEFINER"} {
		if !strings.Contains(store.Grants(), want) {
			t.Errorf("grants do not say %q", want)
		}
	}
	if postgres.On() {
		sql1(t, postgres.Place(t), store.Grants()) // again, by hand
	}
}
