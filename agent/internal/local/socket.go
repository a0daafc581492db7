package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// maxPath is what a path of a unix socket may have: what Linux takes, and room
// for the folder in which it is made.
const maxPath = 84

// CheckAddress says what is wrong with the address of a socket. proof takes
// unix:PATH only.
func CheckAddress(at string, proof bool) error {
	if path, ok := strings.CutPrefix(at, "unix:"); ok {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path || len(path) > maxPath || strings.Count(path, "/") < 2 {
			return fmt.Errorf("%q: give unix: and an absolute path of at most %d bytes, in a folder of its own", at, maxPath)
		}
		return nil
	}
	if proof {
		return fmt.Errorf("%q: give unix:PATH", at)
	}
	host, port, err := net.SplitHostPort(strings.TrimPrefix(at, "tcp:"))
	n, perr := strconv.ParseUint(port, 10, 16)
	if !strings.HasPrefix(at, "tcp:") || err != nil || perr != nil || n != 0 && n < 1024 {
		return fmt.Errorf("%q: give unix:PATH, or tcp:127.0.0.1:PORT from 1024 on", at)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("%q: a printer is open to this box alone; use 127.0.0.1", at)
	}
	return nil
}

// listen opens a socket. The address was checked.
func listen(ctx context.Context, at string, mode fs.FileMode, group string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(at, "unix:"); ok {
		return listenUnix(ctx, path, mode, group)
	}
	return (&net.ListenConfig{}).Listen(ctx, "tcp", strings.TrimPrefix(at, "tcp:"))
}

// socket is a unix socket whose file goes with it.
type socket struct {
	*net.UnixListener
	path string
	made fs.FileInfo
}

// Close implements net.Listener.
func (s *socket) Close() error {
	s.hide()
	return s.UnixListener.Close()
}

// hide removes the file when it is still ours: nobody else comes.
func (s *socket) hide() {
	if is, err := os.Lstat(s.path); err == nil && os.SameFile(is, s.made) {
		_ = os.Remove(s.path)
	}
}

// listenUnix makes the socket in a folder that nobody else can enter, and moves
// it into its place when its rights are as they should be. What a dead process
// has left there is replaced; what somebody answers on, or is no socket, is not.
func listenUnix(ctx context.Context, path string, mode fs.FileMode, group string) (net.Listener, error) {
	gid := -1
	if group != "" {
		g, err := user.LookupGroup(group)
		if err != nil {
			return nil, err
		}
		if gid, err = strconv.Atoi(g.Gid); err != nil {
			return nil, fmt.Errorf("group %s: %w", group, err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { // #nosec G301 -- applications of other users come here
		return nil, err
	}
	if err := vacant(ctx, path); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".print")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	at := filepath.Join(dir, "s")
	nl, err := (&net.ListenConfig{}).Listen(ctx, "unix", at)
	if err != nil {
		return nil, err
	}
	l := nl.(*net.UnixListener)
	l.SetUnlinkOnClose(false)
	s := &socket{l, path, nil}
	err = os.Chmod(at, mode)
	if err == nil && gid >= 0 {
		err = os.Chown(at, -1, gid)
	}
	if err == nil {
		s.made, err = os.Lstat(at)
	}
	if err == nil {
		err = os.Rename(at, path)
	}
	if err != nil {
		_ = l.Close()
		return nil, err
	}
	return s, nil
}

// vacant reports whether path may be taken.
func vacant(ctx context.Context, path string) error {
	is, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case is.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there and is no socket", path)
	}
	c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		_ = c.Close()
		return fmt.Errorf("%s is in use by another program", path)
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return err
}
