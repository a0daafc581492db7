package emulator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// The faults that only a Star printer has.
const (
	ShortFrames Fault = "a model without counter"   // frames of 7 bytes
	Overflow    Fault = "receive buffer ran over"   // until it is told
	LosesJobs   Fault = "loses what it is handed"   // takes all and prints nothing
	NoVersion   Fault = "does not tell its version" // ESC # * is taken and not answered
)

// StarModel is how a Star printer is connected and set up.
type StarModel struct {
	Ethernet bool // two bytes of length follow each frame; automatic status is always on
	Status   bool // automatic status is on when a connection begins (memory switch)
	Fixed    bool // ESC RS a is ignored, as over USB printer class
}

// Star is a printer in Star Line Mode. It tells its status in frames by
// itself, when ESC RS a 1 or its model says so, and when ESC ACK SOH asks. As
// with Printer, the first connection has it and others wait.
type Star struct {
	model    StarModel
	listener net.Listener // nil: other lines alone
	turn     chan struct{}
	done     chan struct{}
	wg       sync.WaitGroup

	mu      sync.Mutex
	work    *sync.Cond // the state or the queue has changed
	closed  bool
	line    *line
	faults  map[Fault]bool
	paper   int
	stopped bool      // XOFF was said last
	auto    bool      // automatic status is on
	since   time.Time // of the first frame that has told so; zero: nobody can know yet
	etb     byte      // the counter, 5 bits
	etbDone bool      // an ETB was met since the last frame
	sent    []byte
	queue   [][]byte // commands not yet obeyed; an off-line printer keeps them
	job     []byte
	jobs    []string
	lines   int
	cuts    int
	unknown []string
	mixed   int
	version string
	noise   *rand.Rand

	onChange func() // of a printer that polls; nil: none
}

// NewStar listens on addr, e.g. 127.0.0.1:0, with a fresh roll. Without an
// address it is reached by OpenPTY and Serve alone.
func NewStar(addr string, model StarModel) (*Star, error) {
	p := &Star{
		model: model, turn: make(chan struct{}, 1), done: make(chan struct{}), faults: map[Fault]bool{}, paper: rollLines,
		version: "EMU-S650Ver1.2", noise: rand.New(rand.NewPCG(1, 2)),
	}
	p.work = sync.NewCond(&p.mu)
	if addr != "" {
		l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("star emulator: %w", err)
		}
		p.listener = l
		p.wg.Go(p.accept)
	}
	p.wg.Go(p.obey)
	return p, nil
}

// Addr is the host:port it listens on; empty when it does not.
func (p *Star) Addr() string {
	if p.listener == nil {
		return ""
	}
	return p.listener.Addr().String()
}

// Close ends it and all its lines, and waits.
func (p *Star) Close() error {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		close(p.done)
		if p.listener != nil {
			_ = p.listener.Close()
		}
		if p.line != nil {
			p.line.end()
		}
		p.work.Broadcast()
	}
	p.mu.Unlock()
	p.wg.Wait()
	return nil
}

// Set makes a fault come or go.
func (p *Star) Set(f Fault, on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults[f] = on
	if f == Unplugged && on {
		p.queue, p.auto = nil, p.model.Ethernet || p.model.Status
		p.dropLocked()
	}
	p.changedLocked()
}

// Has reports whether a fault is there, by hand or by use.
func (p *Star) Has(f Fault) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hasLocked(f)
}

func (p *Star) hasLocked(f Fault) bool {
	switch f {
	case PaperEnd:
		return p.faults[f] || p.paper <= 0
	case NearEnd:
		return p.faults[f] || p.paper <= nearEndLines
	}
	return p.faults[f]
}

// Drop cuts the connection that is there; the next one is accepted.
func (p *Star) Drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropLocked()
}

func (p *Star) dropLocked() {
	if p.line != nil && !p.line.stays {
		p.line.end()
		p.line = nil
	}
	p.work.Broadcast()
}

// LoadRoll puts in a fresh roll of so many line feeds; 0 means the usual.
func (p *Star) LoadRoll(lines int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if lines == 0 {
		lines = rollLines
	}
	p.paper = lines
	p.faults[PaperEnd], p.faults[NearEnd] = false, false
	p.changedLocked()
}

// SetVersion changes what it answers to ESC # *.
func (p *Star) SetVersion(v string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.version = v
}

// Jobs returns the text of what was printed, one string for each cut.
func (p *Star) Jobs() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.jobs)
}

// Output counts what came out: line feeds and cuts.
func (p *Star) Output() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lines + p.cuts
}

// ETB is the counter that proves a job.
func (p *Star) ETB() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return int(p.etb)
}

// Unknown returns the commands it did not understand, in hexadecimal.
func (p *Star) Unknown() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.unknown)
}

// Mixed counts the real-time questions that came while automatic status was
// on, which the manual forbids. One that crosses the first frame on the line is
// nobody's fault.
func (p *Star) Mixed() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mixed
}

// accept takes one connection after the other.
func (p *Star) accept() {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { _ = p.Serve(conn) })
	}
}

// Serve lets the printer be reached over c until c or the printer ends. It
// waits until no other line is there. Closing c has to end a Read of it.
func (p *Star) Serve(c io.ReadWriteCloser) error { return p.serve(c, false) }

// OpenPTY gives the printer a serial line and returns the path of the other
// end. The line stays until the printer is closed.
func (p *Star) OpenPTY() (string, error) {
	cable, path, err := newPTY()
	if err != nil {
		return "", fmt.Errorf("star emulator: pty: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return "", errors.Join(net.ErrClosed, cable.Close())
	}
	p.wg.Go(func() { _ = p.serve(cable, true) })
	return path, nil
}

func (p *Star) serve(c io.ReadWriteCloser, stays bool) error {
	l := &line{c: c, stays: stays, out: make(chan []byte, maxAnswers), gone: make(chan struct{})}
	defer l.end()
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-p.done:
		return net.ErrClosed
	}
	p.mu.Lock()
	if p.closed || p.faults[Unplugged] && !stays {
		p.mu.Unlock()
		return net.ErrClosed
	}
	p.line, p.queue, p.stopped = l, nil, false
	p.since = time.Time{}
	if p.auto = p.model.Ethernet || p.model.Status; p.auto {
		p.tellLocked()
	}
	p.mu.Unlock()
	var writer sync.WaitGroup
	writer.Go(func() { p.answer(l) })
	err := p.hear(l)
	p.mu.Lock()
	if p.line == l {
		p.line = nil
	}
	p.work.Broadcast()
	p.mu.Unlock()
	l.end()
	writer.Wait()
	return err
}

// hear takes in what comes over a line. What is obeyed at once does not wait
// for the rest, which is obeyed in order while the printer is on-line.
func (p *Star) hear(l *line) error {
	var t starTokens
	b := make([]byte, 4096)
	for {
		n, err := l.c.Read(b)
		p.mu.Lock()
		if p.faults[Unplugged] {
			n = 0
		}
		for _, cmd := range t.feed(b[:n]) {
			if !p.realtimeLocked(cmd) {
				p.queue = append(p.queue, cmd)
			}
		}
		p.flowLocked()
		p.work.Broadcast()
		for len(p.queue) > maxBuffered && p.line == l && !p.closed && err == nil {
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

// answer writes what the printer says, in order.
func (p *Star) answer(l *line) {
	deadline, _ := l.c.(interface{ SetWriteDeadline(time.Time) error })
	for {
		select {
		case <-l.gone:
			return
		case b := <-l.out:
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

// obey works off the queue while the printer is on-line.
func (p *Star) obey() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed {
		if len(p.queue) == 0 || p.faults[Unplugged] || p.offlineLocked() {
			p.work.Wait()
			continue
		}
		cmd := p.queue[0]
		p.queue = p.queue[1:]
		p.work.Broadcast()
		p.commandLocked(cmd)
		p.flowLocked()
	}
}

func (p *Star) offlineLocked() bool {
	return slices.ContainsFunc([]Fault{CoverOpen, PaperEnd, CutterJam, Mechanical, HeadHot, Unrecoverable, Offline}, p.hasLocked)
}

// frameLocked is the status as it is now [Star Line Mode specification,
// appendix 2, automatic status].
func (p *Star) frameLocked() []byte {
	has := p.hasLocked
	f := []byte{
		0x23, 0x06,
		bits(0, map[byte]bool{0x02: p.etbDone, 0x04: has(DrawerOpen), 0x08: p.offlineLocked(), 0x20: has(CoverOpen)}),
		bits(0, map[byte]bool{0x04: has(Mechanical), 0x08: has(CutterJam), 0x20: has(Unrecoverable), 0x40: has(HeadHot)}),
		bits(0, map[byte]bool{0x40: has(Overflow)}),
		bits(0, map[byte]bool{0x04: has(NearEnd), 0x08: has(PaperEnd)}),
		0,
		p.etb<<1&0x0e | p.etb<<2&0x60,
		0,
	}
	if has(ShortFrames) {
		f = f[:7]
		f[0], f[1] = 0x0f, 0x02
	}
	if p.model.Ethernet {
		f[1] |= 0x80
		f = append(f, 0, 0)
	}
	return f
}

// flowLocked stops the till, and lets it go on.
func (p *Star) flowLocked() {
	if !p.faults[SpeaksXonXoff] {
		return
	}
	full := p.offlineLocked() || len(p.queue) > 1000 || p.stopped && len(p.queue) > 100
	if full != p.stopped && p.line != nil {
		p.stopped = full
		p.sendLocked([]byte{map[bool]byte{true: xoff, false: xon}[full]})
	}
}

// changedLocked tells of a change by itself.
func (p *Star) changedLocked() {
	p.flowLocked()
	p.work.Broadcast()
	if p.onChange != nil {
		p.onChange()
	}
	if p.auto && p.line != nil && !slices.Equal(p.frameLocked(), p.sent) {
		p.tellLocked()
	}
}

// tellLocked sends the status; what is told once is forgotten with it.
func (p *Star) tellLocked() {
	f := p.frameLocked()
	if p.faults[HalfFrames] {
		f = f[:4]
	}
	if p.sendLocked(f) && p.auto && p.since.IsZero() {
		p.since = time.Now()
	}
	p.etbDone, p.faults[Overflow] = false, false
	p.sent = p.frameLocked()
}

// answerLocked sends what is no status: over Ethernet behind a frame.
func (p *Star) answerLocked(kind string, b []byte) {
	if !p.model.Ethernet {
		p.sendLocked(b)
		return
	}
	data := append([]byte(kind+":B"), byte(len(b)>>8), byte(len(b)))
	data = append(append(data, b...), ';')
	f := p.frameLocked()
	f[len(f)-2], f[len(f)-1] = byte(len(data)>>8), byte(len(data))
	p.sendLocked(append(f, data...))
}

// sendLocked never blocks: a peer that does not read loses the connection.
// False when nothing was sent.
func (p *Star) sendLocked(b []byte) bool {
	if p.line == nil || p.faults[Mute] || p.faults[Unplugged] {
		return false
	}
	if p.faults[Garbage] {
		junk := make([]byte, 1+p.noise.IntN(4))
		for i := range junk {
			junk[i] = 0x80 | byte(p.noise.IntN(128)) // no frame begins so
		}
		b = append(junk, b...)
	}
	select {
	case p.line.out <- slices.Clone(b):
		return true
	default:
		p.dropLocked()
		return false
	}
}
