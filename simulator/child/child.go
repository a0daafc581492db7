// Package child starts processes that die with the one that started them, as
// machines, TPMs and services of the simulator do: nothing is left running
// however a test ends.
package child

import (
	"context"
	"fmt"
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

// Child is a process that dies with this one.
type Child struct {
	cmd    *exec.Cmd
	done   chan struct{}
	exit   error // once done
	killed atomic.Bool
}

// Start starts a program in a process group of its own. Other attributes that
// cmd has stay.
func Start(cmd *exec.Cmd) (*Child, error) {
	c := &Child{cmd: cmd, done: make(chan struct{})}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Pdeathsig = true, syscall.SIGKILL
	started := make(chan error)
	go func() {
		// The death signal comes with the end of the thread that forked, not of the
		// process: this one has to live as long as the child - and longer, for it may
		// have started others' children before.
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
		return nil, fmt.Errorf("start %s: %w", c.name(), err)
	}
	return c, nil
}

func (c *Child) name() string { return filepath.Base(c.cmd.Path) }

// PID is the number of the process.
func (c *Child) PID() int { return c.cmd.Process.Pid }

// Done is closed when the process has ended.
func (c *Child) Done() <-chan struct{} { return c.done }

// Running reports whether the process has not ended.
func (c *Child) Running() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// Kill ends the process at once. It does not wait.
func (c *Child) Kill() {
	c.killed.Store(true)
	_ = c.cmd.Process.Kill()
}

// Killed reports whether Kill was called.
func (c *Child) Killed() bool { return c.killed.Load() }

// Signal sends one to the process.
func (c *Child) Signal(s os.Signal) error { return c.cmd.Process.Signal(s) }

// Wait waits for the process and returns how it ended, as exec.Cmd does.
func (c *Child) Wait() error {
	<-c.done
	return c.exit
}

// CPU is the time of the processor that the process has had.
func (c *Child) CPU() time.Duration {
	if !c.Running() {
		return c.cmd.ProcessState.UserTime() + c.cmd.ProcessState.SystemTime()
	}
	return CPU(c.PID())
}

// ticks a second, of times in /proc; it is so on every Linux that Go runs on
// [proc(5), sysconf(3)].
const ticks = 100

// CPU is the time of the processor that a process has had, whoever started it; 0
// when there is none.
func CPU(pid int) time.Duration {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
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

// glance is the time between looks at what another process will do soon.
const glance = 5 * time.Millisecond

// Until calls try until it returns no error, as long as the process lives and
// ctx lasts: a program answers a while after it was started.
func (c *Child) Until(ctx context.Context, try func() error) error {
	tick := time.NewTicker(glance)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-c.done:
			if c.exit == nil {
				return fmt.Errorf("start %s: it ended at once", c.name())
			}
			return fmt.Errorf("start %s: it ended at once: %w", c.name(), c.exit)
		case <-ctx.Done():
			return fmt.Errorf("start %s: %w (%w)", c.name(), ctx.Err(), err)
		case <-tick.C:
		}
	}
}
