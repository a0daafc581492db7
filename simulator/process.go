package simulator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/tillward/tillward/simulator/child"
)

// Exit codes of the agent that its supervisor acts on.
const (
	exitRestart = 75 // a new slot is to be started
	exitReboot  = 76 // the box is to be restarted
)

// process keeps one agent running, as the service manager of a box would: it
// starts it again after every exit, and asks for a power cycle when the agent
// wants one.
type process struct {
	path   string
	args   []string
	log    io.Writer
	reboot func(context.Context) error
	alone  bool // in a world of processes of its own, which ends with it

	mu       sync.Mutex
	now      *child.Child // the agent that runs, or ran last
	starts   int
	dead     bool // the power is off
	stop     context.CancelFunc
	finished chan struct{}
}

// start begins to supervise; stop ends it.
func (p *process) start(ctx context.Context) {
	ctx, p.stop = context.WithCancel(ctx)
	p.finished = make(chan struct{})
	go func() {
		defer close(p.finished)
		for ctx.Err() == nil {
			code := p.once(ctx)
			if ctx.Err() != nil || p.off() {
				return
			}
			pause := time.Second
			switch code {
			case exitRestart:
				pause = 0
			case exitReboot:
				pause = 0
				if err := p.reboot(ctx); err != nil {
					fmt.Fprintf(p.log, "simulator: power cycle: %v\n", err)
				}
			}
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	}()
}

// once runs the agent until it exits. When ctx ends it is asked to stop, and
// killed when it has not after ten seconds.
func (p *process) once(ctx context.Context) int {
	cmd := exec.CommandContext(ctx, p.path, p.args...) // #nosec G204 -- the simulator's own binary
	cmd.Stdout, cmd.Stderr = p.log, p.log
	if p.alone {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	p.mu.Lock()
	if p.dead {
		p.mu.Unlock()
		return -1
	}
	c, err := child.Start(cmd)
	if err == nil {
		p.now = c
		p.starts++
	}
	p.mu.Unlock()
	if err != nil {
		fmt.Fprintf(p.log, "simulator: start agent: %v\n", err)
		return -1
	}
	err = c.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	return 0
}

// kill is kill -9: the agent has no chance to tidy up. The supervisor starts
// it again.
func (p *process) kill() error { return p.signal(syscall.SIGKILL) }

// signal sends one to the agent, if one runs.
func (p *process) signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now == nil {
		return errors.New("agent has not been started")
	}
	return p.now.Signal(sig)
}

// cut is kill -9 at all that runs of the till, and nothing is started any
// more: the power is off. It does not wait.
func (p *process) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = true
	if p.now != nil {
		p.now.Kill()
	}
}

func (p *process) off() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dead
}

// pid of the agent that runs now, or 0.
func (p *process) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now == nil {
		return 0
	}
	return p.now.PID()
}

// end stops the agent in an orderly way and waits for it.
func (p *process) end() {
	if p.stop == nil {
		return
	}
	p.stop()
	<-p.finished
}

// logFile opens the till's log for appending.
func logFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600) // #nosec G304 -- below the simulator's folder
	if err != nil {
		return nil, fmt.Errorf("open till log: %w", err)
	}
	return f, nil
}
