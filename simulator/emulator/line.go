package emulator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	xon  = 0x11
	xoff = 0x13

	maxAnswers  = 1024 // that a peer may leave unread
	answerLate  = 250 * time.Millisecond
	writeWithin = 5 * time.Second
)

// line is a connection to a printer.
type line struct {
	c     io.ReadWriteCloser
	stays bool // a cable, not a connection: it cannot be dropped
	out   chan []byte
	gone  chan struct{}
	once  sync.Once
}

func newLine(c io.ReadWriteCloser, stays bool) *line {
	return &line{c: c, stays: stays, out: make(chan []byte, maxAnswers), gone: make(chan struct{})}
}

func (l *line) end() {
	l.once.Do(func() {
		close(l.gone)
		_ = l.c.Close()
	})
}

// reserve takes an address for as long as the printer is there. A printer
// without power refuses connections; nobody else may have its address meanwhile.
func (p *Printer) reserve(addr string) error {
	where, err := net.ResolveTCPAddr("tcp4", addr)
	if err != nil {
		return err
	}
	p.place, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	at := &unix.SockaddrInet4{Port: where.Port}
	copy(at.Addr[:], where.IP.To4())
	if err = unix.SetsockoptInt(p.place, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err == nil {
		err = unix.Bind(p.place, at)
	}
	var bound unix.Sockaddr
	if err == nil {
		bound, err = unix.Getsockname(p.place)
	}
	if err == nil {
		in := bound.(*unix.SockaddrInet4)
		p.addr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port))).String() // #nosec G115 -- a port
		err = p.listenLocked()
	}
	if err != nil {
		_ = unix.Close(p.place)
	}
	return err
}

func (p *Printer) listenLocked() error {
	if p.addr == "" || p.closed || p.listener != nil {
		return nil
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp4", p.addr)
	if err != nil {
		return err
	}
	p.listener = l
	p.wg.Go(func() { p.accept(l) })
	return nil
}

func (p *Printer) unlistenLocked() {
	if p.listener != nil {
		_ = p.listener.Close()
		p.listener = nil
	}
}

// accept takes one connection after the other.
func (p *Printer) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		refuse := p.closed || p.faults[Unplugged] || p.faults[RefusesSecond] && p.line != p.cable
		p.mu.Unlock()
		if refuse {
			_ = conn.Close()
			continue
		}
		before, after := p.queue()
		p.wg.Go(func() {
			defer close(after)
			_ = p.serve(newLine(conn, false), before)
		})
	}
}

// Serve lets the printer be reached over c, for instance one end of a net.Pipe
// or the device of a USB gadget, until c or the printer ends. It waits until no
// other line is there. Closing c has to end a Read of it.
func (p *Printer) Serve(c io.ReadWriteCloser) error {
	before, after := p.queue()
	defer close(after)
	return p.serve(newLine(c, false), before)
}

// queue returns what to wait for until it is one's turn, and what to close when
// it is over.
func (p *Printer) queue() (before <-chan struct{}, after chan<- struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	mine := make(chan struct{})
	before, p.turn = p.turn, mine
	return before, mine
}

// OpenPTY gives the printer a serial line and returns the path of the other
// end. The line stays until the printer is closed; while a connection is there
// it waits.
func (p *Printer) OpenPTY() (string, error) {
	cable, path, err := newPTY()
	if err != nil {
		return "", fmt.Errorf("printer emulator: pty: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.cable != nil {
		return "", errors.Join(fmt.Errorf("printer emulator: pty: %w", net.ErrClosed), cable.Close())
	}
	p.cable = newLine(cable, true)
	free := make(chan struct{})
	close(free)
	p.wg.Go(func() { _ = p.serve(p.cable, free) })
	return path, nil
}

func (p *Printer) serve(l *line, before <-chan struct{}) error {
	defer l.end()
	select {
	case <-before:
	case <-p.done:
		return net.ErrClosed
	}
	p.mu.Lock()
	if p.closed || p.faults[Unplugged] && !l.stays {
		p.mu.Unlock()
		return net.ErrClosed
	}
	p.wg.Add(1) // the processor is still one of it, so that Close waits
	defer p.wg.Done()
	if p.line == nil || !l.stays {
		p.takeLocked(l)
	}
	p.mu.Unlock()
	var writer sync.WaitGroup
	writer.Go(func() { p.answer(l) })
	err := p.hear(l)
	p.mu.Lock()
	if p.line == l {
		p.takeLocked(p.cable)
	}
	p.work.Broadcast()
	p.mu.Unlock()
	l.end()
	writer.Wait()
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// takeLocked makes l the line that is answered on; nil is none.
func (p *Printer) takeLocked(l *line) {
	p.line, p.asb, p.sent, p.stopped, p.tail = l, 0, [4]byte{}, false, nil
}

// hear takes in what comes over a line. Real-time commands are obeyed as they
// arrive, the rest is obeyed in order while the printer is on-line.
func (p *Printer) hear(l *line) error {
	var rt realtime
	b := make([]byte, 4096)
	for {
		n, err := l.c.Read(b)
		p.mu.Lock()
		for l.stays && p.line != l && !p.closed {
			p.work.Wait()
		}
		if p.faults[Unplugged] {
			n = 0
		}
		for _, c := range b[:n] {
			p.arrivedLocked(&rt, c)
		}
		p.flowLocked()
		p.work.Broadcast()
		for len(p.buffer) > maxBuffered && p.line == l && !p.closed && err == nil {
			p.work.Wait()
		}
		if p.line != l {
			err = net.ErrClosed
		}
		p.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// arrivedLocked takes a byte. A real-time command that stands in the middle of
// another, as picture data may, is obeyed and is data as well.
func (p *Printer) arrivedLocked(rt *realtime, c byte) {
	held, urgent := rt.take(c)
	if urgent {
		p.answerLocked(held...)
		if len(p.tail) == 0 {
			return
		}
	}
	for _, c := range held {
		p.tail = append(p.tail, c)
		if n, _ := size(p.tail); n > 0 {
			p.buffer = append(p.buffer, p.tail[:n]...)
			p.tail = append(p.tail[:0], p.tail[n:]...)
		}
	}
}

// process obeys what is buffered, whoever sent it.
func (p *Printer) process() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed {
		if len(p.buffer) == 0 || p.faults[Unplugged] || p.offlineLocked() {
			p.work.Wait()
			continue
		}
		n, known := size(p.buffer)
		if n == 0 { // cannot be: only whole commands come here
			p.buffer = nil
			continue
		}
		cmd := p.buffer[:n]
		p.buffer = p.buffer[n:]
		if known {
			p.obeyLocked(cmd)
		} else {
			p.unknownLocked(cmd)
		}
		p.flowLocked()
		p.work.Broadcast()
		if busy := p.busy; busy > 0 {
			p.busy = 0
			p.mu.Unlock()
			wait := time.NewTimer(busy)
			select {
			case <-wait.C:
			case <-p.done:
				wait.Stop()
			}
			p.mu.Lock()
		}
	}
}

// flowLocked stops the till, and lets it go on.
func (p *Printer) flowLocked() {
	if !p.faults[SpeaksXonXoff] {
		return
	}
	full := p.offlineLocked() || len(p.buffer) > maxBuffered*3/4 || p.stopped && len(p.buffer) > maxBuffered/4
	if full != p.stopped && p.line != nil {
		p.stopped = full
		p.putLocked([]byte{map[bool]byte{true: xoff, false: xon}[full]})
	}
}

// sendLocked answers.
func (p *Printer) sendLocked(b ...byte) {
	if p.faults[Mute] || p.faults[Unplugged] {
		return
	}
	if p.faults[Garbage] {
		junk := make([]byte, 1+p.noise.IntN(4))
		for i := range junk {
			junk[i] = 0x80 | byte(p.noise.IntN(128)) // no answer of a printer has this bit set
		}
		b = append(junk, b...)
	}
	if p.faults[HangsUp] {
		p.dropLocked()
	}
	p.putLocked(b)
}

// putLocked never blocks: a peer that does not read loses the connection.
func (p *Printer) putLocked(b []byte) {
	if p.line == nil {
		return
	}
	select {
	case p.line.out <- append([]byte(nil), b...):
	default:
		p.dropLocked()
	}
}

// answer writes what the printer says, in order.
func (p *Printer) answer(l *line) {
	deadline, _ := l.c.(interface{ SetWriteDeadline(time.Time) error })
	for {
		select {
		case <-l.gone:
			return
		case b := <-l.out:
			p.mu.Lock()
			slow := p.faults[Slow]
			p.mu.Unlock()
			if slow && !pause(answerLate, l.gone) {
				return
			}
			if deadline != nil {
				_ = deadline.SetWriteDeadline(time.Now().Add(writeWithin))
			}
			if _, err := l.c.Write(b); err != nil && (!l.stays || !errors.Is(err, os.ErrDeadlineExceeded)) {
				l.end()
				return
			}
		}
	}
}

// pause waits; false when stop comes first.
func pause(d time.Duration, stop <-chan struct{}) bool {
	wait := time.NewTimer(d)
	defer wait.Stop()
	select {
	case <-wait.C:
		return true
	case <-stop:
		return false
	}
}

// pty is the near end of a serial line. It holds the far end open too, so that
// the line lives on when the till closes it.
type pty struct {
	*os.File
	far int
}

// Close implements io.Closer.
func (t pty) Close() error { return errors.Join(t.File.Close(), unix.Close(t.far)) }

// newPTY opens a pseudo terminal that changes no byte [pts(4)].
func newPTY() (pty, string, error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return pty{}, "", err
	}
	far := -1
	var path string
	err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	if err == nil {
		var n uint32
		if n, err = unix.IoctlGetUint32(fd, unix.TIOCGPTN); err == nil {
			path = fmt.Sprintf("/dev/pts/%d", n)
			far, err = unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		}
	}
	if err == nil {
		var t *unix.Termios
		if t, err = unix.IoctlGetTermios(far, unix.TCGETS); err == nil {
			t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
			t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
			t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
			err = unix.IoctlSetTermios(far, unix.TCSETS, t)
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		if far >= 0 {
			_ = unix.Close(far)
		}
		return pty{}, "", err
	}
	return pty{File: os.NewFile(uintptr(fd), "/dev/ptmx"), far: far}, path, nil // #nosec G115 -- a file descriptor
}
