package postgres

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
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
	if err := admin(ctx, dir, "CREATE DATABASE "+template); err != nil {
		return err
	}
	if err := setup(ctx, c.URL("postgres", template)); err != nil {
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

// admin runs a command in the maintenance database of the cluster in dir.
func admin(ctx context.Context, dir, query string) error {
	conn, err := pgx.Connect(ctx, address(dir, "postgres", "postgres"))
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, query)
	_ = conn.Close(ctx)
	return err
}

// On reports whether the tests run on PostgreSQL at present.
func On() bool { return os.Getenv(hereEnv) != "" }

var made atomic.Int64

// Place is where a test may open a store: a new folder, or on PostgreSQL the
// URL of a new database for the service's role.
func Place(t testing.TB) string {
	t.Helper()
	dir := os.Getenv(hereEnv)
	if dir == "" {
		return t.TempDir()
	}
	name := fmt.Sprintf("t%d_%d", os.Getpid(), made.Add(1))
	if err := admin(t.Context(), dir, "CREATE DATABASE "+name+" TEMPLATE "+template); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := admin(context.Background(), dir, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Error(err)
		}
	})
	return address(dir, "tillward_service", name)
}
