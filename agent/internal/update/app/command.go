package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// nobody is who commands run as when an agent with all rights is not told.
const nobody = 65534

// credential finds the user that commands run as; nil is the agent's own.
func credential(name string) (*syscall.Credential, error) {
	own := os.Getuid()
	if name == "" {
		if own != 0 {
			return nil, nil
		}
		return &syscall.Credential{Uid: nobody, Gid: nobody}, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("user of the applications: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	gid, gerr := strconv.ParseUint(u.Gid, 10, 32)
	switch {
	case err != nil || gerr != nil:
		return nil, fmt.Errorf("user of the applications %s: %w", name, errors.Join(err, gerr))
	case uid == 0:
		return nil, fmt.Errorf("user of the applications %s: an application must not have all rights, name another user", name)
	case int(uid) == own:
		return nil, nil
	case own != 0:
		return nil, fmt.Errorf("user of the applications %s: this agent has no right to run commands as another user", name)
	}
	c := &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	ids, err := u.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("groups of %s: %w", name, err)
	}
	for _, id := range ids {
		if g, err := strconv.ParseUint(id, 10, 32); err == nil {
			c.Groups = append(c.Groups, uint32(g))
		}
	}
	return c, nil
}

// tail keeps the last bytes of what is written.
type tail struct{ b []byte }

const maxTail = 400

// Write implements io.Writer.
func (t *tail) Write(b []byte) (int, error) {
	t.b = append(t.b, b[max(0, len(b)-maxTail):]...)
	if n := len(t.b) - maxTail; n > 0 {
		t.b = t.b[:copy(t.b, t.b[n:])]
	}
	return len(b), nil
}

// listen reads what is written to w until the function it returns is called,
// which returns the end of it. Who has left the group and holds w is not waited
// for.
func listen(r, w *os.File) func() string {
	var out tail
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(&out, r)
	}()
	return func() string {
		_ = w.Close()
		_ = r.SetReadDeadline(time.Now().Add(time.Second))
		<-done
		return strings.TrimSpace(strings.ToValidUTF8(string(out.b), "?"))
	}
}

// command is one call of a program of an application.
type command struct {
	what    string // for errors
	args    []string
	dir     string
	env     []string
	as      *syscall.Credential
	timeout time.Duration
	lasting bool // what it leaves running is meant to run on
}

// run calls it, in a process group of its own that is killed when the time is
// up. What a lasting command writes goes nowhere: the program it starts has
// its output for as long as it lives.
func (c command) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.args[0], c.args[1:]...)
	cmd.Dir, cmd.Env = c.dir, c.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: c.as}
	kill := func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Cancel = kill
	said := func() string { return "" }
	if !c.lasting {
		r, w, err := os.Pipe()
		if err != nil {
			return fmt.Errorf("%s: %w", c.what, err)
		}
		defer r.Close()
		defer w.Close()
		cmd.Stdout, cmd.Stderr = w, w
		said = listen(r, w)
	}
	err := cmd.Run()
	if cmd.Process != nil && (!c.lasting || err != nil) {
		_ = kill() // whoever is left of the group
	}
	text := said()
	switch {
	case err == nil:
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%s: not done within %s", c.what, c.timeout)
	case ctx.Err() != nil:
		return ctx.Err()
	}
	if text != "" {
		return fmt.Errorf("%s: %w: %s", c.what, err, text)
	}
	return fmt.Errorf("%s: %w", c.what, err)
}
