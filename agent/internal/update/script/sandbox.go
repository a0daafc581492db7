package script

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// errSandbox is returned when the kernel does not give what a sandbox is made
// of. Nothing has run then.
var errSandbox = errors.New("no sandbox for scripts: the kernel must allow user, mount, PID, network, IPC and UTS namespaces, seccomp filters and mount_setattr (Linux 5.12)")

const (
	maxOutput = 1 << 10               // bytes of what a script says that are kept
	lookEvery = 50 * time.Millisecond // at what it has written
	maxFiles  = 4096                  // in its work folder
	reserve   = 64 << 20              // of the disk, that is not for scripts
)

// output keeps the first bytes of what is written.
type output struct{ b []byte }

// Write implements io.Writer.
func (o *output) Write(b []byte) (int, error) {
	o.b = append(o.b, b[:min(len(b), maxOutput-len(o.b))]...)
	return len(b), nil
}

// text returns what was kept, for an error or a log.
func (o *output) text() string {
	return strings.TrimSpace(strings.ToValidUTF8(string(o.b), "?"))
}

// run starts a sandbox and waits for its end. With a host user of its own, 0
// for none, the script is user 1 of its namespace, else it is the agent's.
// Killing its first process ends all of them, and so does its end.
func (s spec) run(ctx context.Context, hostUID int) (stdout, stderr *output, code int, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.Time)
	defer cancel()
	stdout, stderr = &output{}, &output{}
	own, group := os.Getuid(), os.Getgid()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args, cmd.Env, cmd.Dir = []string{sandboxName}, []string{}, "/"
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = stdout, stderr, 2*time.Second
	attr := &syscall.SysProcAttr{
		Setsid: true, Pdeathsig: syscall.SIGKILL,
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		// The agent's user is there to build the view; the script is not it where it can be another.
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: own, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: group, Size: 1}},
	}
	if hostUID != 0 {
		s.UID = 1
		attr.UidMappings = append(attr.UidMappings, syscall.SysProcIDMap{ContainerID: 1, HostID: hostUID, Size: 1})
		attr.GidMappings = append(attr.GidMappings, syscall.SysProcIDMap{ContainerID: 1, HostID: hostUID, Size: 1})
		attr.GidMappingsEnableSetgroups = true
	}
	cmd.SysProcAttr = attr
	told, err := json.Marshal(s)
	if err != nil {
		return stdout, stderr, 0, fmt.Errorf("encode sandbox: %w", err)
	}
	specR, specW, err := os.Pipe()
	if err != nil {
		return stdout, stderr, 0, fmt.Errorf("start sandbox: %w", err)
	}
	defer specR.Close()
	defer specW.Close()
	statusR, statusW, err := os.Pipe()
	if err != nil {
		return stdout, stderr, 0, fmt.Errorf("start sandbox: %w", err)
	}
	defer statusR.Close()
	defer statusW.Close()
	cmd.ExtraFiles = []*os.File{specR, statusW}
	// The signal of a parent's death is that of the thread which started the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return stdout, stderr, 0, fmt.Errorf("%w: %w", errSandbox, err)
	}
	_, _ = specR.Close(), statusW.Close()
	_, werr := specW.Write(told)
	_ = specW.Close()
	over := s.watch(ctx, cancel)
	wrong, _ := io.ReadAll(io.LimitReader(statusR, maxOutput)) // ends when the script is executed
	err = cmd.Wait()
	ended := ctx.Err()
	cancel()
	if grown := <-over; grown != nil {
		return stdout, stderr, 0, grown
	}
	wrong, stood := bytes.CutPrefix(wrong, []byte(stands))
	switch {
	case stood && len(wrong) > 0:
		return stdout, stderr, 0, fmt.Errorf("execute run: %s", wrong)
	case ended != nil:
		return stdout, stderr, -1, nil
	case !stood: // whatever it was, it was not the script
		return stdout, stderr, 0, fmt.Errorf("%w: %s%s", errors.Join(errSandbox, err, werr), wrong, stderr.text())
	}
	return stdout, stderr, cmd.ProcessState.ExitCode(), nil
}

// watch ends the sandbox when it has written more than it may, and says so in
// the end. A file that has no name any more is not seen; it ends the sandbox
// when the disk gets full, and goes with it.
func (s spec) watch(ctx context.Context, stop func()) <-chan error {
	over := make(chan error, 1)
	low := min(available(s.Work)/2, reserve)
	look := func() error {
		n, err := usage(s.Work)
		switch {
		case err != nil:
			return fmt.Errorf("look at the work folder: %w", err)
		case n > s.Quota:
			return fmt.Errorf("wrote more than %d MiB", s.Quota>>20)
		case available(s.Work) < low:
			return fmt.Errorf("left less than %d MiB of the disk", low>>20)
		}
		return nil
	}
	go func() {
		t := time.NewTicker(lookEvery)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				over <- look()
				return
			case <-t.C:
				if err := look(); err != nil {
					stop()
					over <- err
					return
				}
			}
		}
	}()
	return over
}

// available returns how many bytes the disk below dir has left.
func available(dir string) int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0
	}
	return int64(st.Bavail) * int64(st.Bsize)
}

// usage returns what lies in dir; too many files are an error.
func usage(dir string) (int64, error) {
	var n int64
	files := 0
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone since
		}
		var st syscall.Stat_t
		if err == nil {
			err = syscall.Lstat(p, &st)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if files++; err == nil && files > maxFiles {
			err = fmt.Errorf("more than %d files", maxFiles)
		}
		n += st.Blocks * 512
		return err
	})
	return n, err
}

// clean empties dir.
func clean(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("empty work folder: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		// A folder without rights cannot be emptied by an ordinary user. The walk opens it after this.
		_ = filepath.WalkDir(path, func(p string, d fs.DirEntry, _ error) error {
			if d != nil && d.IsDir() {
				return os.Chmod(p, 0o700) // #nosec G122 G302 -- a folder, and everything that could have replaced it is dead
			}
			return nil
		})
		err = errors.Join(err, os.RemoveAll(path))
	}
	return err
}

// firstLine returns the first line of what a script said.
func firstLine(o *output) string {
	line, _, _ := bytes.Cut(o.b, []byte("\n"))
	return strings.TrimSpace(strings.ToValidUTF8(string(line), "?"))
}
