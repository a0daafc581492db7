package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// aloneMark says that this process has a network and mounts of its own.
const aloneMark = "TILLWARD_CHAOS_ALONE"

// Alone runs this program again in a network and with mounts of its own, which
// go with it whatever happens, and waits for it. ran is false where that is so
// already or cannot be: the caller goes on then.
func Alone(ctx context.Context) (ran bool, err error) {
	if os.Getenv(aloneMark) != "" {
		if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
			return false, fmt.Errorf("mounts of its own: %w", err)
		}
		if out, err := exec.CommandContext(ctx, "ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			return false, fmt.Errorf("a network of its own: %w: %s", err, out)
		}
		return false, nil
	}
	if os.Getuid() != 0 {
		return false, nil
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return false, nil //nolint:nilerr // it runs without
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...) // #nosec G204 -- this program
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), aloneMark+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if err := cmd.Start(); err != nil {
		return false, nil //nolint:nilerr // a container may not
	}
	if err := cmd.Wait(); err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			return true, Exit(exit.ExitCode())
		}
		return true, err
	}
	return true, nil
}

// Exit is how the other run ended; it has said why.
type Exit int

// Error implements error.
func (e Exit) Error() string { return fmt.Sprintf("it ended with exit code %d", int(e)) }
