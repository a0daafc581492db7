package child_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tillward/tillward/simulator/child"
)

// role tells this test to be one of the processes that it looks at: the parent,
// which starts a sleeper, says its number and waits; or a busy one.
const role = "TILLWARD_TEST_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "parent":
		cmd := exec.Command("sleep", "1000")
		cmd.Stdout = os.Stdout
		c, err := child.Start(cmd)
		fmt.Println(c.PID(), err)
		select {}
	case "busy":
		fmt.Println("up")
		for { //nolint:staticcheck // it is to take time
		}
	}
	os.Exit(m.Run())
}

func self(as string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), role+"="+as)
	return cmd
}

// TestDiesWithUs kills a process that has a child.
func TestDiesWithUs(t *testing.T) {
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	cmd := self("parent")
	cmd.Stdout = w
	parent, err := child.Start(cmd)
	must(t, errors.Join(err, w.Close()))
	var pid int
	_, err = fmt.Fscanf(r, "%d", &pid)
	must(t, err)
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("the child of the child: %v", err)
	}
	parent.Kill()
	if err := parent.Wait(); err == nil || !parent.Killed() || parent.Running() {
		t.Errorf("got %v, killed %v, running %v", err, parent.Killed(), parent.Running())
	}
	// Its child holds the other end of the pipe, so that its end is the pipe's.
	must(t, r.SetReadDeadline(time.Now().Add(time.Minute)))
	_, err = io.Copy(io.Discard, r)
	must(t, err)
}

func TestCPU(t *testing.T) {
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	cmd := self("busy")
	cmd.Stdout = w
	c, err := child.Start(cmd)
	must(t, errors.Join(err, w.Close()))
	defer c.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err = c.Until(ctx, func() error {
		if c.CPU() == 0 || child.CPU(c.PID()) == 0 {
			return errors.New("it has had no time")
		}
		return nil
	})
	must(t, err)
	c.Kill()
	_ = c.Wait()
	if c.CPU() == 0 {
		t.Error("it is forgotten with its end")
	}
	if got := child.CPU(c.PID()); got != 0 {
		t.Errorf("of a process that is no more: %v", got)
	}
}

// TestUntil: what ends does not answer, and says how it ended; so does what never
// was.
func TestUntil(t *testing.T) {
	never := func() error { return errors.New("no answer") }
	for name, want := range map[string]string{"false": "exit status 1", "true": "ended at once"} {
		c, err := child.Start(exec.Command(name))
		must(t, err)
		if err := c.Until(t.Context(), never); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", name, err, want)
		}
	}
	c, err := child.Start(exec.Command("sleep", "1000"))
	must(t, err)
	defer c.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Until(ctx, never); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("got %v", err)
	}
	if _, err := child.Start(exec.Command("/nowhere/at-all")); err == nil || !strings.Contains(err.Error(), "start at-all") {
		t.Errorf("got %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
