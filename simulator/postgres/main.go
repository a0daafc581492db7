package postgres

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
)

const (
	hereEnv  = "TILLWARD_TEST_POSTGRES" // folder of the cluster that a test process works on
	whichEnv = "TILLWARD_TEST_STORE"    // sqlite or postgres: only on that one

	template = "tillward_template"
)

// Main is m.Run on SQLite, and then again on PostgreSQL, in a process of its
// own: one private server for all tests, one database for each that asks for a
// Place. setup makes the database that all of them begin as, by the URL of an
// administrator.
func Main(m *testing.M, setup func(ctx context.Context, url string) error) int {
	if os.Getenv(hereEnv) != "" {
		return m.Run()
	}
	code, which := 0, os.Getenv(whichEnv)
	if which != "postgres" {
		code = m.Run()
	}
	alone := slices.ContainsFunc(os.Args, func(arg string) bool {
		return strings.HasPrefix(arg, "-test.fuzz=") || strings.HasPrefix(arg, "-test.list=") || strings.HasPrefix(arg, "-test.fuzzworker")
	})
	if which == "sqlite" || alone || code != 0 {
		return code
	}
	if err := again(setup); err != nil {
		fmt.Fprintln(os.Stderr, "on PostgreSQL:", err)
		return 1
	}
	return code
}

// again runs this test binary on PostgreSQL.
func again(setup func(context.Context, string) error) error {
	runtime.LockOSThread() // the processes below live as long as this thread
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "tillward-pg-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c, err := Start(ctx, dir, false, "autovacuum=off", "max_wal_size=4GB", "checkpoint_timeout=1h")
	if err != nil {
		return fmt.Errorf("%w (%s=sqlite runs the tests without it)", err, whichEnv)
	}
	defer c.Kill()
	if err := admin(ctx, dir, "postgres", "CREATE DATABASE "+template); err != nil {
		return err
	}
	if err := setup(ctx, c.URL("postgres", template)); err != nil {
		return err
	}
	if err := admin(ctx, dir, template, seeds); err != nil {
		return err
	}
	args := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(arg string) bool {
		return slices.ContainsFunc([]string{"-test.coverprofile=", "-test.testlogfile=", "-test.gocoverdir=", "-test.cpuprofile=", "-test.memprofile="},
			func(prefix string) bool { return strings.HasPrefix(arg, prefix) })
	})
	cmd := exec.Command(os.Args[0], args...) // #nosec G204 -- this very program
	cmd.Env = append(os.Environ(), hereEnv+"="+dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT}
	return cmd.Run()
}

// admin runs a command in a database of the cluster in dir.
func admin(ctx context.Context, dir, database, query string) error {
	conn, err := pgx.Connect(ctx, address(dir, "postgres", database))
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, query)
	_ = conn.Close(ctx)
	return err
}

// seeds keeps in a database what it begins as, with a function that brings it
// back to that: emptying tables costs a tenth of another database. What other
// tables a test made would stay, so a database whose tables are not the first
// ones any more says no.
//
// Two functions are SQLite's, for tests that fill tables.
const seeds = `
CREATE SCHEMA seed;
CREATE FUNCTION seed.zeroblob(n int8) RETURNS bytea LANGUAGE sql AS $$ SELECT decode(repeat('00', n::int), 'hex') $$;
CREATE FUNCTION seed.randomblob(n int8) RETURNS bytea LANGUAGE sql AS $$ SELECT decode(string_agg(md5(random()::text), ''), 'hex') FROM generate_series(1, n / 16 + 1) $$;
CREATE TABLE seed.first AS SELECT 'tillward.device'::regclass::oid AS device;
DO $$
DECLARE t record;
BEGIN
  FOR t IN SELECT tablename FROM pg_tables WHERE schemaname = 'tillward' LOOP
    EXECUTE format('CREATE TABLE seed.%I AS TABLE tillward.%I', t.tablename, t.tablename);
  END LOOP;
END $$;
CREATE FUNCTION seed.again() RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE t record; bytes bigint;
BEGIN
  PERFORM pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid();
  IF NOT EXISTS (SELECT 1 FROM seed.first WHERE device = to_regclass('tillward.device')::oid) THEN
    RETURN false;
  END IF;
  SET LOCAL session_replication_role = replica;
  FOR t IN SELECT tablename FROM pg_tables WHERE schemaname = 'tillward' LOOP
    bytes := pg_relation_size(format('tillward.%I', t.tablename)::regclass);
    IF bytes > 65536 THEN
      EXECUTE format('TRUNCATE tillward.%I CASCADE', t.tablename);
    ELSIF bytes > 0 THEN
      EXECUTE format('DELETE FROM tillward.%I', t.tablename);
    END IF;
  END LOOP;
  FOR t IN SELECT tablename FROM pg_tables WHERE schemaname = 'seed' AND tablename <> 'first' LOOP
    IF pg_relation_size(format('seed.%I', t.tablename)::regclass) > 0 THEN
      EXECUTE format('INSERT INTO tillward.%I SELECT * FROM seed.%I', t.tablename, t.tablename);
    END IF;
  END LOOP;
  PERFORM setval(format('%I.%I', schemaname, sequencename)::regclass, 1, false) FROM pg_sequences WHERE schemaname = 'tillward' AND last_value IS NOT NULL;
  RETURN true;
END $$;
`

// On reports whether the tests run on PostgreSQL at present.
func On() bool { return os.Getenv(hereEnv) != "" }

var pool struct {
	mu   sync.Mutex
	made int
	free []string // databases that were used
}

// Place is where a test may open a store: a new folder, or on PostgreSQL the
// URL of a database for the service's role that holds nothing yet.
func Place(t testing.TB) string {
	t.Helper()
	dir := os.Getenv(hereEnv)
	if dir == "" {
		return t.TempDir()
	}
	name, err := take(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		pool.mu.Lock()
		defer pool.mu.Unlock()
		pool.free = append(pool.free, name)
	})
	return address(dir, "tillward_service", name)
}

// take empties a database that was used, or makes one.
func take(ctx context.Context, dir string) (string, error) {
	for {
		pool.mu.Lock()
		if len(pool.free) == 0 {
			break
		}
		name := pool.free[0]
		pool.free = pool.free[1:]
		pool.mu.Unlock()
		conn, err := pgx.Connect(ctx, address(dir, "postgres", name))
		if err != nil {
			return "", err
		}
		var again bool
		err = conn.QueryRow(ctx, `SELECT seed.again()`).Scan(&again)
		_ = conn.Close(ctx)
		if again || err != nil {
			return name, err
		}
		if err := admin(ctx, dir, "postgres", "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			return "", err
		}
	}
	pool.made++
	name := fmt.Sprintf("t%d_%d", os.Getpid(), pool.made)
	pool.mu.Unlock()
	return name, admin(ctx, dir, "postgres", "CREATE DATABASE "+name+" TEMPLATE "+template)
}
