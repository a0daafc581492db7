// Package postgres starts private PostgreSQL servers for tests, benchmarks and
// the simulator, from the programs of Debian's package: each in a folder of its
// own, on a unix socket there and on no port, as a user that is not root. They
// die with the process that started them. Main and Place let the tests of a
// package run on SQLite and then on PostgreSQL.
//
// Only the simulator and tests may import it.
package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrMissing means that PostgreSQL is not installed.
var ErrMissing = errors.New("PostgreSQL is not installed: apt-get install postgresql")

// Cluster is a PostgreSQL server.
type Cluster struct {
	bin, dir string
	settings []string
	as       *syscall.Credential // nil: as this process

	cmd   *exec.Cmd
	ended chan end
	log   *os.File
}

// end is how a server ended.
type end struct{ err error }

// programs is the folder of the newest PostgreSQL.
func programs() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil {
		return "", err
	}
	number := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		return n
	}
	slices.SortFunc(found, func(a, b string) int { return number(a) - number(b) })
	if len(found) > 0 {
		return filepath.Dir(found[len(found)-1]), nil
	}
	path, err := exec.LookPath("postgres")
	if err != nil {
		return "", ErrMissing
	}
	return filepath.Dir(path), nil
}

// servant is whom a server runs as when this process is root, as which it
// refuses to.
func servant() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, errU := strconv.ParseUint(u.Uid, 10, 32)
		gid, errG := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(errU, errG); err != nil {
			return nil, err
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), NoSetGroups: false}, nil
	}
	return nil, errors.New("PostgreSQL does not run as root, and there is neither a user postgres nor a user nobody")
}

// Start makes a cluster in dir, or takes the one that is there, and starts it.
// The folder's path has to be short, for the socket in it. A setting is
// "name=value". A cluster that syncs nothing is quick, and loses what it holds
// with the machine.
func Start(ctx context.Context, dir string, sync bool, settings ...string) (*Cluster, error) {
	bin, err := programs()
	if err != nil {
		return nil, err
	}
	as, err := servant()
	if err != nil {
		return nil, err
	}
	c := &Cluster{bin: bin, dir: dir, as: as, settings: append([]string{"listen_addresses=", "unix_socket_directories=" + dir, "max_connections=100", "shared_buffers=64MB"}, settings...)}
	if !sync {
		c.settings = append(c.settings, "fsync=off", "full_page_writes=off")
	}
	if len(c.socket()) > 100 {
		return nil, fmt.Errorf("start PostgreSQL: the path of %s is too long", dir)
	}
	if err := c.make(ctx); err != nil {
		return nil, fmt.Errorf("make PostgreSQL cluster: %w", err)
	}
	if err := c.Start(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Cluster) socket() string { return filepath.Join(c.dir, ".s.PGSQL.5432") }
func (c *Cluster) data() string   { return filepath.Join(c.dir, "data") }

func (c *Cluster) make(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(c.data(), "PG_VERSION")); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	if c.as != nil {
		if err := os.Chown(c.dir, int(c.as.Uid), int(c.as.Gid)); err != nil {
			return err
		}
	}
	out, err := c.command(ctx, "initdb", "-D", c.data(), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions").CombinedOutput()
	if err != nil {
		return fmt.Errorf("initdb: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

func (c *Cluster) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, name), args...) // #nosec G204 -- the programs of PostgreSQL
	cmd.Dir = c.dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.as}
	return cmd
}

// Start starts the server again that was stopped or killed, and returns when
// it answers.
func (c *Cluster) Start(ctx context.Context) error {
	var args []string
	for _, s := range c.settings {
		args = append(args, "-c", s)
	}
	log, err := os.OpenFile(filepath.Join(c.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	cmd := c.command(context.WithoutCancel(ctx), "postgres", append([]string{"-D", c.data()}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT // at once, without writing anything
	cmd.SysProcAttr.Setpgid = true              // Ctrl-C is for who started it
	began, ended := make(chan error), make(chan end, 1)
	go func() {
		runtime.LockOSThread() // the signal comes when the thread ends that started it
		err := cmd.Start()
		began <- err
		if err == nil {
			ended <- end{cmd.Wait()}
			_ = log.Close()
		}
	}()
	if err := <-began; err != nil {
		return fmt.Errorf("start PostgreSQL: %w", errors.Join(err, log.Close()))
	}
	c.cmd, c.ended, c.log = cmd, ended, log
	if err := c.answers(ctx); err != nil {
		c.Stop()
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	return nil
}

// answers waits until the server takes connections: it says so in the file of
// its process.
func (c *Cluster) answers(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		state, err := os.ReadFile(filepath.Join(c.data(), "postmaster.pid"))
		if lines := strings.Split(string(state), "\n"); err == nil && len(lines) > 7 && lines[0] == strconv.Itoa(c.cmd.Process.Pid) && strings.TrimSpace(lines[7]) == "ready" {
			conn, err := net.Dial("unix", c.socket())
			if err != nil {
				return err
			}
			return conn.Close()
		}
		select {
		case how := <-c.ended:
			c.ended <- how
			said, _ := os.ReadFile(filepath.Join(c.dir, "log"))
			return fmt.Errorf("it ended: %w: %s", how.err, bytes.TrimSpace(said[max(0, len(said)-2000):]))
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// URL is the address of a database of the cluster for a role.
func (c *Cluster) URL(role, database string) string {
	return address(c.dir, role, database)
}

func address(dir, role, database string) string {
	return (&url.URL{Scheme: "postgres", User: url.User(role), Path: "/" + database, RawQuery: url.Values{"host": {dir}}.Encode()}).String()
}

// Stop ends the server in order; Kill as a power cut does: what it has not
// written is lost, and the next start recovers.
func (c *Cluster) Stop() { c.end(syscall.SIGINT) }

// Kill is like Stop without any order.
func (c *Cluster) Kill() { c.end(syscall.SIGQUIT) }

func (c *Cluster) end(with syscall.Signal) {
	if c.cmd == nil {
		return
	}
	_ = c.cmd.Process.Signal(with)
	<-c.ended // how is no news
	c.cmd = nil
}

// Demand has the server ask a role for a proof of who it is, by a method of
// pg_hba.conf; the others are believed.
func (c *Cluster) Demand(role, method string) error {
	rules := "local all " + role + " " + method + "\nlocal all all trust\n"
	if err := os.WriteFile(filepath.Join(c.data(), "pg_hba.conf"), []byte(rules), 0o600); err != nil {
		return fmt.Errorf("demand a proof: %w", err)
	}
	return c.cmd.Process.Signal(syscall.SIGHUP)
}
