package firmware

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// child is a process that dies with this one.
type child struct {
	cmd    *exec.Cmd
	said   bytes.Buffer // on standard error
	done   chan struct{}
	exit   error // once done
	killed atomic.Bool
}

// spawn starts a program; in may be nil, out takes its standard output.
func spawn(cmd *exec.Cmd, in *os.File, out io.Writer) (*child, error) {
	c := &child{cmd: cmd, done: make(chan struct{})}
	if in != nil {
		cmd.Stdin = in
	}
	cmd.Stdout, cmd.Stderr = out, &c.said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The death signal comes with the end of the thread that forked, not of the
		// process: this one has to live as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			c.exit = cmd.Wait()
		}
		close(c.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(cmd.Path), err)
	}
	return c, nil
}

func (c *child) name() string { return filepath.Base(c.cmd.Path) }

func (c *child) running() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

func (c *child) kill() {
	c.killed.Store(true)
	_ = c.cmd.Process.Kill()
}

// err is how it ended; it has ended.
func (c *child) err() error {
	if c.exit == nil {
		return nil
	}
	return fmt.Errorf("%s: %w: %s", c.name(), c.exit, bytes.TrimSpace(c.said.Bytes()))
}

// ticks a second, of times in /proc; it is so on every Linux that Go runs on
// [proc(5), sysconf(3)].
const ticks = 100

// cpu is the time of the processor that it has had.
func (c *child) cpu() time.Duration {
	if !c.running() {
		return c.cmd.ProcessState.UserTime() + c.cmd.ProcessState.SystemTime()
	}
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(c.cmd.Process.Pid), "stat"))
	if err != nil {
		return 0
	}
	// The name in brackets may hold spaces.
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * time.Second / ticks
}

var errEnded = errors.New("it ended at once")

// glance is the time between looks at what another process will do soon.
const glance = 5 * time.Millisecond

// until calls try until it returns no error, as long as the process lives.
func (c *child) until(ctx context.Context, try func() error) error {
	tick := time.NewTicker(glance)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-c.done:
			return fmt.Errorf("start %s: %w", c.name(), cmp.Or(c.err(), errEnded))
		case <-ctx.Done():
			return fmt.Errorf("start %s: %w (%w)", c.name(), ctx.Err(), err)
		case <-tick.C:
		}
	}
}
