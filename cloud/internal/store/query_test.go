package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mattn/go-sqlite3"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// recorder is the database of a store with a list of what it was asked.
type recorder struct {
	driver.Connector
	path string

	mu    sync.Mutex
	asked []asked
}

type asked struct {
	query string
	args  []any
}

func (r *recorder) Connect(context.Context) (driver.Conn, error) {
	c, err := r.Driver().Open(r.path)
	if err != nil {
		return nil, err
	}
	return &recorded{c.(*sqlite3.SQLiteConn), r}, nil
}

func (r *recorder) Driver() driver.Driver { return &sqlite3.SQLiteDriver{} }

type recorded struct {
	*sqlite3.SQLiteConn
	r *recorder
}

func (c *recorded) note(query string, args []driver.NamedValue) {
	a := asked{query: query}
	for _, v := range args {
		a.args = append(a.args, v.Value)
	}
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	c.r.asked = append(c.r.asked, a)
}

func (c *recorded) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	c.note(query, args)
	return c.SQLiteConn.QueryContext(ctx, query, args)
}

func (c *recorded) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	c.note(query, nil)
	return c.SQLiteConn.PrepareContext(ctx, query)
}

// plans tells how each query goes about its work.
func (r *recorder) plans(t *testing.T, db *sql.DB) map[string][]string {
	t.Helper()
	r.mu.Lock()
	all := slices.Clone(r.asked)
	r.asked = nil
	r.mu.Unlock()
	out := map[string][]string{}
	for _, a := range all {
		if verb, _, _ := strings.Cut(strings.TrimSpace(a.query), " "); !slices.Contains([]string{"SELECT", "UPDATE", "INSERT", "DELETE"}, verb) {
			continue
		}
		for len(a.args) < strings.Count(a.query, "?") { // prepared: any will do
			a.args = append(a.args, "")
		}
		rows, err := db.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+a.query, a.args...)
		steps, err := list(rows, err, func(row scanner) (s string, err error) {
			var n int
			return s, row.Scan(&n, &n, &n, &s)
		})
		if err != nil {
			t.Fatalf("%s: %v", a.query, err)
		}
		out[a.query] = steps
	}
	return out
}

// bigRollouts makes a fleet with rollouts that run, and many that are history.
func bigRollouts(t testing.TB, s *Store, devices, running, past int) {
	t.Helper()
	const numbers = ` WITH RECURSIVE c(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM c WHERE n < ? - 1) `
	err := s.tx(t.Context(), func(ctx context.Context, w *writer) error {
		for _, q := range []struct {
			query string
			args  []any
		}{
			{`INSERT INTO device (id, tenant, tier, model, serial, site, "group", label, ek_hash, ak_public, cert_serial, cert_not_after, trust, trust_reasons, attested_at, reset_count, enrolled_at, last_seen)` +
				numbers + `SELECT 'd' || n, 'main', 'C', 'm' || (n % 20), 'S' || n, 's' || (n / 5), 'g' || (n % ?), '', 'ek' || n, X'', 'ab', 1, 'attested', '[]', 1, 8, 1, 1 FROM c`, []any{devices, running}},
			{`INSERT INTO trail (device, head, hash, entries, broken)` + numbers + `SELECT 'd' || n, 0, zeroblob(32), 0, 0 FROM c`, []any{devices}},
			{`INSERT INTO "release" (id, class, version, targets, published_at, published_by, component) VALUES ('agent/1.0.0', 'agent', '1.0.0', '[]', 1, '', 'agent')`, nil},
			{`INSERT INTO rollout (id, tenant, "release", state, reason, created_at, created_by, ended_at, started_at, spec)` + numbers +
				`SELECT 'r' || n, 'main', 'agent/1.0.0', 'RUNNING', '', 1, '', 0, 1, '{"filter":{"group":"g' || n || '"}}' FROM c`, []any{running}},
			{`INSERT INTO rollout (id, tenant, "release", state, reason, created_at, created_by, ended_at, started_at, spec, joiners)` + numbers +
				`SELECT 'p' || n, 'main', 'agent/1.0.0', 'COMPLETED', '', 1, '', 1, 1, '{"filter":{"group":"g' || n || '"}}', n % 2 FROM c`, []any{past}},
			{`INSERT INTO execution (id, rollout, device, state, reason, from_value, to_value, done, total, updated_at, entered_at, changed)` + numbers +
				`SELECT 'x' || n, 'r' || (n % ?), 'd' || n, CASE WHEN n % 10 < 6 THEN 'SUCCEEDED' WHEN n % 10 = 7 THEN 'WAITING' ELSE 'QUEUED' END, '', '', '', 0, 0, 1, 1, n FROM c`, []any{devices, running}},
			{`INSERT INTO execution (id, rollout, device, state, reason, from_value, to_value, done, total, updated_at, entered_at, changed)` + numbers +
				`SELECT 'y' || n, 'p' || (n % ?), 'd' || (n % ?), 'SUCCEEDED', '', '', '', 0, 0, 1, 1, n FROM c`, []any{devices, max(past, 1), devices}},
		} {
			if err := w.exec(ctx, q.query, q.args...); err != nil {
				return fmt.Errorf("%s: %w", q.query, err)
			}
		}
		return w.exec(ctx, `UPDATE counter SET n = ?`, devices)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// watch has a store ask its database through a recorder.
func watch(t *testing.T, s *Store) (r *recorder, plain *sql.DB) {
	t.Helper()
	var file string
	if err := s.read.QueryRow(`SELECT file FROM pragma_database_list`).Scan(&file); err != nil {
		t.Fatal(err)
	}
	plain = s.read
	t.Cleanup(func() { _ = plain.Close() })
	r = &recorder{path: dsn(file, "&_query_only=true")}
	s.read = sql.OpenDB(r)
	// What is written is in the same list.
	writes := &alike{r, dsn(file, "&_synchronous=FULL")}
	old := <-s.w
	for _, stmt := range old.stmts {
		_ = stmt.Close()
	}
	if err := errors.Join(old.conn.Close(), s.write.Close()); err != nil {
		t.Fatal(err)
	}
	s.write = sql.OpenDB(writes)
	conn, err := s.write.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w := &writer{conn: conn, stmts: map[string]*sql.Stmt{}}
	w.forget()
	s.w <- w
	return r, plain
}

// alike records into the list of another.
type alike struct {
	*recorder
	path string
}

func (a *alike) Connect(context.Context) (driver.Conn, error) {
	c, err := a.Driver().Open(a.path)
	if err != nil {
		return nil, err
	}
	return &recorded{c.(*sqlite3.SQLiteConn), a.recorder}, nil
}

// TestQueriesUseIndexes: what the rollout loop, devices and boards ask again and again finds its rows by an index, and
// goes through what went wrong once, not once for each device.
func TestQueriesUseIndexes(t *testing.T) {
	s, err := Open(t.Context(), t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	bigRollouts(t, s, 2000, 4, 20)
	r, plain := watch(t, s)
	now, ctx, seen := time.Now(), t.Context(), 0
	ev := fleet.AuditEvent{Kind: "x", At: now}
	for name, ask := range map[string]func() error{
		"RunningRollouts": func() error { _, err := s.RunningRollouts(ctx); return err },
		"Units":           func() error { _, _, err := s.Units(ctx, "r1", 10); return err },
		"Enlist":          func() error { _, err := s.Enlist(ctx, "r1"); return err },
		"Reach":           func() error { _, err := s.Reach(ctx, "main", fleet.Filter{Site: "s1"}); return err },
		"Peers":           func() error { _, err := s.Peers(ctx, "main", "s1", "agent/1.0.0"); return err },
		"RolloutHealth":   func() error { _, err := s.RolloutHealth(ctx, "r1"); return err },
		"Counts":          func() error { _, err := s.Counts(ctx, "r1"); return err },
		"Neutral":         func() error { _, err := s.Neutral(ctx, "r1"); return err },
		"Progress":        func() error { _, err := s.Progress(ctx, "r1", now); return err },
		"RolloutUnits": func() error {
			_, _, err := s.RolloutUnits(ctx, "main", "r1", fleet.ExecutionFilter{State: fleet.ExecQueued}, fleet.Page{})
			return err
		},
		"DeviceUnits": func() error { _, _, err := s.DeviceUnits(ctx, "main", "d1", fleet.Page{}); return err },
		"Rollouts":    func() error { _, _, err := s.Rollouts(ctx, "main", fleet.Page{}); return err },
		"Sites":       func() error { _, err := s.Sites(ctx, "main"); return err },
		"SetPresence": func() error { return s.SetPresence(ctx, "d7", false, now) },
		"MoveExecution": func() error {
			_, err := s.MoveExecution(ctx, ExecutionStep{ID: "x8", State: fleet.ExecFailed, Attempt: 1}, now)
			return err
		},
		"RetryRollout": func() error {
			_, err := s.RetryRollout(ctx, "main", "r1", "d1", ev)
			return only(err, fleet.ErrConflict)
		},
		"AssignWaves": func() error { return s.AssignWaves(ctx, "r1", map[fleet.ExecutionID]int{"x9": 1}) },
		"SaveRollout": func() error {
			ro, err := s.Rollout(ctx, "main", "r2")
			if err == nil {
				ro.State = fleet.RolloutAborting
				_, err = s.SaveRollout(ctx, ro, ev)
			}
			return err
		},
		"Commit": func() error {
			_, err := s.Commit(ctx, []Intake{{Device: "d17", Tenant: "main", At: now, Report: &Report{Seq: 1, Sent: now, Installed: []fleet.Installed{{Component: "agent", Version: "1.0.0"}}}}})
			return err
		},
	} {
		if err := ask(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for query, steps := range r.plans(t, plain) {
			seen++
			for n, step := range steps {
				// A trouble is looked up by slot; below another table that would be for each of its rows.
				inner := strings.HasPrefix(step, "SEARCH t USING") && !strings.HasPrefix(steps[0], "SEARCH t ") && n > 1
				if whole := regexp.MustCompile(`^SCAN (e|d|r|t|execution|device|rollout|trouble|audit)\b`).MatchString(step); whole || inner {
					t.Errorf("%s: %s in\n%s\n%s", name, step, query, strings.Join(steps, "\n"))
				}
			}
		}
	}
	if seen < 20 {
		t.Errorf("only %d queries were looked at", seen)
	}
}

// only passes over an error that is expected.
func only(err, expected error) error {
	if errors.Is(err, expected) {
		return nil
	}
	return err
}
