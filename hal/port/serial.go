package port

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var speeds = map[uint32]uint32{
	1200: unix.B1200, 2400: unix.B2400, 4800: unix.B4800, 9600: unix.B9600, 19200: unix.B19200, 38400: unix.B38400,
	57600: unix.B57600, 115200: unix.B115200, 230400: unix.B230400, 460800: unix.B460800, 921600: unix.B921600,
}

// linger is how long Close waits for what the line has not sent yet. The
// kernel alone would wait half a minute for a device that holds it up.
const linger = 300 * time.Millisecond

// pace is how much goes onto a line at once whose reader obeys XOFF: devices
// say it with more room left than that.
const pace = 32

// tty is an open serial line.
type tty struct {
	*os.File
	raw  syscall.RawConn
	flow string
	calm calm

	given atomic.Bool // XON and XOFF are the reader's
	until atomic.Int64
}

// Read implements Conn.
func (c *tty) Read(b []byte) (int, error) {
	n, err := c.File.Read(b)
	c.calm.heard(n)
	return n, err
}

// SetWriteDeadline implements Conn.
func (c *tty) SetWriteDeadline(t time.Time) error {
	c.until.Store(0)
	if !t.IsZero() {
		c.until.Store(t.UnixNano())
	}
	return c.File.SetWriteDeadline(t)
}

// Write implements Conn. Where XOFF is for the reader to obey, little is on the
// line at a time, so that it stops soon.
func (c *tty) Write(b []byte) (int, error) {
	if !c.given.Load() {
		return c.File.Write(b)
	}
	n := 0
	for n < len(b) {
		m, err := c.File.Write(b[n:min(len(b), n+pace)])
		n += m
		if err == nil {
			err = c.sent()
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// sent waits until the line has sent what it was given.
func (c *tty) sent() error {
	for {
		left := 0
		err := c.control(func(fd int) (err error) {
			left, err = unix.IoctlGetInt(fd, unix.TIOCOUTQ)
			return err
		})
		if err != nil || left == 0 {
			return err
		}
		if end := c.until.Load(); end != 0 && time.Now().UnixNano() > end {
			return os.ErrDeadlineExceeded
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (a Address) openSerial() (Conn, error) {
	file, err := openNode(filepath.Join("/", a.root, a.target), 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", a.Key(), err)
	}
	c := &tty{File: file, flow: a.line.flow}
	if c.raw, err = file.SyscallConn(); err == nil {
		err = c.control(func(fd int) error { return a.line.set(fd) })
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("open %s: %w", a.Key(), err)
	}
	return c, nil
}

func (c *tty) control(do func(fd int) error) error {
	var err error
	if e := c.raw.Control(func(fd uintptr) { err = do(int(fd)) }); e != nil {
		return e
	}
	return err
}

// set takes the line for us alone and sets it up. The kernel's own word for
// that does not bind root, so it is asked for, and the lock that other
// programs use is taken too.
func (l line) set(fd int) error {
	if taken, err := unix.IoctlGetInt(fd, unix.TIOCGEXCL); err == nil && taken != 0 {
		return ErrInUse
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
		return ErrInUse
	}
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return fmt.Errorf("is it a serial line? %w", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TIOCEXCL, 0); err != nil {
		return err
	}
	t.Iflag, t.Oflag, t.Lflag = unix.IGNBRK|unix.IGNPAR, 0, 0
	t.Cflag = unix.CREAD | unix.CLOCAL | unix.CS8 | speeds[l.baud]
	t.Ispeed, t.Ospeed = l.baud, l.baud
	if l.bits == 7 {
		t.Cflag = t.Cflag&^unix.CSIZE | unix.CS7
	}
	if l.stop == 2 {
		t.Cflag |= unix.CSTOPB
	}
	switch l.parity {
	case "odd":
		t.Cflag |= unix.PARENB | unix.PARODD
	case "even":
		t.Cflag |= unix.PARENB
	}
	switch l.flow {
	case "xonxoff":
		t.Iflag |= unix.IXON
		t.Cc[unix.VSTART], t.Cc[unix.VSTOP] = 0x11, 0x13
	case "rtscts":
		t.Cflag |= unix.CRTSCTS
	}
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return err
	}
	is, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	if is.Cflag&unix.CBAUD != speeds[l.baud] {
		return fmt.Errorf("the line cannot do %d baud", l.baud)
	}
	return unix.IoctlSetInt(fd, unix.TCFLSH, unix.TCIFLUSH) // what was said to whoever had it before
}

// GiveFlow hands XON and XOFF of a serial line with flow=xonxoff to its reader
// instead of obeying them, and reports whether c is such a line. The reader
// then keeps data back by itself and can still ask a device that is busy.
func GiveFlow(c Conn) (bool, error) {
	l, ok := c.(*tty)
	if !ok || l.flow != "xonxoff" {
		return false, nil
	}
	l.given.Store(true)
	return true, l.control(func(fd int) error {
		t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil {
			return err
		}
		t.Iflag &^= unix.IXON
		return unix.IoctlSetTermios(fd, unix.TCSETS, t)
	})
}

// Close implements Conn.
func (c *tty) Close() error {
	_ = c.control(func(fd int) error {
		for end := time.Now().Add(linger); ; {
			left, err := unix.IoctlGetInt(fd, unix.TIOCOUTQ)
			if err != nil || left == 0 {
				return err
			}
			if time.Now().After(end) {
				return unix.IoctlSetInt(fd, unix.TCFLSH, unix.TCOFLUSH)
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
	_ = c.control(func(fd int) error { return unix.IoctlSetInt(fd, unix.TIOCNXCL, 0) }) // of a pseudo terminal it would stay
	return c.File.Close()
}
