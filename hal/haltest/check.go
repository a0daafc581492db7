package haltest

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tillward/tillward/hal"
)

// Trap is all that a driver could touch while it is only asked about a
// configuration. Whatever it touches is seen.
type Trap struct {
	Root   string // of a file system with dev, sys and proc, and some in them
	Secret string // path of a file
	TCP    string // host:port where somebody listens
	Unix   string // path of a socket where somebody listens
}

// Check tests hal.Checker, beside the laws: that a driver says of a
// configuration what Open would, and touches nothing for that. lay makes the
// driver, and configurations in order that name what is in the trap. Each of
// bad is one that is not to be taken, by what has to be said of it.
func Check(t *testing.T, lay func(Trap) (hal.Driver, []hal.Config), bad map[string]hal.Config) {
	trap, sprung := newTrap(t)
	driver, good := lay(trap)
	checker, ok := driver.(hal.Checker)
	if !ok || len(good) == 0 || len(bad) == 0 {
		t.Fatalf("%s: no hal.Checker, or nothing to check", driver.Name())
	}
	for _, cfg := range good {
		if infos, err := checker.Check(cfg); err != nil || len(infos) == 0 || infos[0].ID != cfg.ID || infos[0].Driver != driver.Name() {
			t.Errorf("%+v: got %+v, %v; want what it is", cfg, infos, err)
		}
	}
	said := map[string]error{}
	for want, cfg := range bad {
		infos, err := checker.Check(cfg)
		if infos != nil || !errors.Is(err, &hal.Error{Code: "E_ILLEGAL"}) || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got %+v, %v; want an E_ILLEGAL with %q", cfg, infos, err, want)
		}
		said[want] = err
	}
	if what := sprung(); len(what) > 0 {
		t.Errorf("to check a configuration, %s touches %v", driver.Name(), what)
	}
	for want, cfg := range bad {
		d, err := driver.Open(t.Context(), cfg)
		if err == nil {
			_ = d.Close()
		}
		if err == nil || said[want] == nil || err.Error() != said[want].Error() {
			t.Errorf("%+v: opening it gives %v, checking it %v", cfg, err, said[want])
		}
	}
}

// newTrap lays a trap. sprung says what has been touched since.
func newTrap(t *testing.T) (trap Trap, sprung func() []string) {
	t.Helper()
	dir := t.TempDir()
	trap = Trap{Root: filepath.Join(dir, "root"), Secret: filepath.Join(dir, "root", "secret"), Unix: filepath.Join(dir, "s")}
	for _, file := range []string{"secret", "dev/ttyS9", "dev/usb/lp0", "dev/input/event0", "proc/meminfo", "sys/class/input/event0/device/name", "sys/bus/usb/devices/1-1/idVendor"} {
		file = filepath.Join(trap.Root, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte("1\n"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	tcp, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tcp.Close() })
	trap.TCP = tcp.Addr().String()
	local, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", trap.Unix)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = local.Close() })
	touched := watch(t, trap.Root)
	return trap, func() []string {
		what := touched()
		for _, l := range []net.Listener{tcp, local} {
			if !alone(t, l) {
				what = append(what, l.Addr().String())
			}
		}
		return what
	}
}

// watch tells of what is opened, read, made or removed below root.
func watch(t *testing.T, root string) func() []string {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	var dirs []string
	if err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	at := map[int]string{} // only now: the walk itself would be seen
	for _, dir := range dirs {
		n, err := unix.InotifyAddWatch(fd, dir, unix.IN_OPEN|unix.IN_ACCESS|unix.IN_CREATE|unix.IN_DELETE)
		if err != nil {
			t.Fatal(err)
		}
		at[n] = dir
	}
	return func() (what []string) {
		b := make([]byte, 64<<10)
		n, err := unix.Read(fd, b)
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			t.Fatal(err)
		}
		for b = b[:max(n, 0)]; len(b) >= unix.SizeofInotifyEvent; {
			named := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
			what = append(what, filepath.Join(at[int(binary.NativeEndian.Uint32(b))], strings.TrimRight(string(b[unix.SizeofInotifyEvent:named]), "\x00")))
			b = b[named:]
		}
		return what
	}
}

// alone reports whether nobody has called at l. Who calls later comes behind.
func alone(t *testing.T, l net.Listener) bool {
	t.Helper()
	const word = "it is me"
	mine, err := (&net.Dialer{}).DialContext(t.Context(), l.Addr().Network(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	if _, err := mine.Write([]byte(word)); err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, len(word))
	n, _ := c.Read(b)
	return string(b[:n]) == word
}
