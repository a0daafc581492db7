package port_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tillward/tillward/hal/port"
)

// pty returns the far end of a line, and its device file.
func pty(t *testing.T) (*os.File, string) {
	t.Helper()
	far, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })
	raw, err := far.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if e := raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	}); e != nil || err != nil {
		t.Fatal(e, err)
	}
	return far, "/dev/pts/" + strconv.Itoa(n)
}

func parse(t *testing.T, s string) port.Address {
	t.Helper()
	a, err := port.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func open(t *testing.T, a port.Address) port.Conn {
	t.Helper()
	c, err := a.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// node puts a stand-in into the place of a USB node; usblp itself is not there
// on a machine without a printer.
func node(t *testing.T, root, name, standIn string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(root, "dev/usb"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(standIn, filepath.Join(root, "dev/usb", name)); err != nil {
		t.Fatal(err)
	}
}

// raw makes a line that stands in for a node pass every byte as it is.
func raw(t *testing.T, file *os.File) {
	t.Helper()
	c, err := file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if e := c.Control(func(fd uintptr) {
		var m *unix.Termios
		if m, err = unix.IoctlGetTermios(int(fd), unix.TCGETS); err == nil {
			m.Iflag, m.Oflag, m.Lflag = 0, 0, 0
			err = unix.IoctlSetTermios(int(fd), unix.TCSETS, m)
		}
	}); e != nil || err != nil {
		t.Fatal(e, err)
	}
}

// cables are the three kinds, each with its far end.
func cables(t *testing.T) map[string]func(t *testing.T) (port.Conn, io.ReadWriteCloser) {
	t.Helper()
	return map[string]func(t *testing.T) (port.Conn, io.ReadWriteCloser){
		"tcp": func(t *testing.T) (port.Conn, io.ReadWriteCloser) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			c := open(t, parse(t, "tcp:"+l.Addr().String()))
			far, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = far.Close() })
			return c, far
		},
		"serial": func(t *testing.T) (port.Conn, io.ReadWriteCloser) {
			far, name := pty(t)
			return open(t, parse(t, "serial:"+name+"?baud=38400")), far
		},
		"usb stand-in": func(t *testing.T) (port.Conn, io.ReadWriteCloser) {
			far, name := pty(t)
			raw(t, far)
			root := t.TempDir()
			node(t, root, "lp0", name)
			return open(t, parse(t, "/dev/usb/lp0").Under(root)), far
		},
	}
}

func TestCables(t *testing.T) {
	for name, cable := range cables(t) {
		t.Run(name, func(t *testing.T) {
			near, far := cable(t)
			all := make([]byte, 256) // each sign there is: a cable that eats one breaks a picture
			for i := range all {
				all[i] = byte(i)
			}
			if n, err := near.Write(all); n != len(all) || err != nil {
				t.Fatalf("write: %d, %v", n, err)
			}
			got := make([]byte, len(all))
			if _, err := io.ReadFull(far, got); err != nil || string(got) != string(all) {
				t.Errorf("the far end got %x, %v", got, err)
			}
			if _, err := far.Write(all); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(near, got); err != nil || string(got) != string(all) {
				t.Errorf("we got %x, %v", got, err)
			}

			if err := near.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			if _, err := near.Read(got); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a read of nothing: got %v, want ErrDeadlineExceeded", err)
			}
			if err := near.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			for n := 0; ; n++ { // nobody reads at the far end
				if _, err := near.Write(make([]byte, 64<<10)); err != nil {
					if !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Errorf("a write that nobody takes: got %v, want ErrDeadlineExceeded", err)
					}
					break
				}
				if n > 1000 {
					t.Fatal("writing never stops")
				}
			}
		})
	}
}

// Closing ends a read that waits.
func TestCloseEndsRead(t *testing.T) {
	for name, cable := range cables(t) {
		t.Run(name, func(t *testing.T) {
			near, _ := cable(t)
			done := make(chan error, 1)
			go func() {
				_, err := near.Read(make([]byte, 1))
				done <- err
			}()
			if err := near.Close(); err != nil {
				t.Error(err)
			}
			if err := <-done; err == nil {
				t.Error("a read of a closed cable returned no error")
			}
		})
	}
}

func TestUnplugged(t *testing.T) {
	for name, cable := range cables(t) {
		t.Run(name, func(t *testing.T) {
			near, far := cable(t)
			_ = far.Close()
			if _, err := near.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("got %v, want that it is gone", err)
			}
		})
	}
}

// A serial line has one owner, even among programs of root.
func TestSerialInUse(t *testing.T) {
	_, name := pty(t)
	a := parse(t, "serial:"+name)
	c := open(t, a)
	if _, err := a.Open(t.Context()); !errors.Is(err, port.ErrInUse) {
		t.Errorf("a second opening: got %v, want ErrInUse", err)
	}
	_ = c.Close()
	open(t, a)
	if _, err := parse(t, "serial:/dev/null").Open(t.Context()); err == nil {
		t.Error("/dev/null opened as a serial line")
	}
	if _, err := parse(t, "serial:/dev/ttyNone").Open(t.Context()); !errors.Is(err, port.ErrAbsent) {
		t.Errorf("got %v, want ErrAbsent", err)
	}
}

// XOFF holds a line up, unless its reader wants to do that itself.
func TestGiveFlow(t *testing.T) {
	far, name := pty(t)
	c := open(t, parse(t, "serial:"+name+"?flow=xonxoff"))
	if _, err := far.Write([]byte{0x13, 'a'}); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 8)
	if n, err := c.Read(b); err != nil || string(b[:n]) != "a" {
		t.Fatalf("got %q, %v; want XOFF obeyed and not told", b[:n], err)
	}
	_ = c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := c.Write([]byte("job")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a line that was stopped: got %v, want ErrDeadlineExceeded", err)
	}
	if _, err := far.Write([]byte{0x11, 'b'}); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(b); err != nil || string(b[:n]) != "b" {
		t.Fatalf("got %q, %v", b[:n], err)
	}
	if ok, err := port.GiveFlow(c); !ok || err != nil {
		t.Fatalf("give flow: %v, %v", ok, err)
	}
	if _, err := far.Write([]byte{0x13}); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(b); err != nil || string(b[:n]) != "\x13" {
		t.Fatalf("got %q, %v; want XOFF told", b[:n], err)
	}
	_ = c.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write([]byte("?")); err != nil {
		t.Errorf("a question while stopped: %v", err)
	}
	other, name := pty(t)
	_ = other
	if ok, err := port.GiveFlow(open(t, parse(t, "serial:"+name))); ok || err != nil {
		t.Errorf("a line without XON and XOFF: got %v, %v", ok, err)
	}
}

func TestOpenError(t *testing.T) {
	for err, want := range map[error]error{
		syscall.EBUSY: port.ErrInUse, syscall.ENOENT: port.ErrAbsent, syscall.ENODEV: port.ErrAbsent, syscall.ENXIO: port.ErrAbsent,
		syscall.EACCES: port.ErrNoAccess, syscall.EMFILE: syscall.EMFILE,
	} {
		if got := port.OpenError("/dev/usb/lp0", &os.PathError{Op: "open", Path: "x", Err: err}); !errors.Is(got, want) {
			t.Errorf("%v: got %v, want %v", err, got, want)
		}
	}
}

// Some USB printers send empty packets when they have nothing to say. A FIFO
// that nobody writes to reads so too, and stands in for usblp.
func TestEmptyPackets(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "dev/usb"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(root, "dev/usb/lp1"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := open(t, parse(t, "/dev/usb/lp1").Under(root))
	port.Real(c)
	if n, err := c.Write([]byte("x")); n != 1 || err != nil { // a FIFO tells us what we say
		t.Fatalf("write: %d, %v", n, err)
	}
	b := make([]byte, 4)
	if n, err := c.Read(b); n != 1 || err != nil {
		t.Fatalf("read: %d, %v", n, err)
	}
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := c.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, want ErrDeadlineExceeded", err)
	}
	if _, err := port.AskPins(c); err == nil {
		t.Error("a FIFO has no pins")
	}
}
