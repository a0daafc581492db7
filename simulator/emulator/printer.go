package emulator

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Fault is something that can be wrong with a Printer.
type Fault string

// The faults. Those after DrawerOpen are of the interface, not of the
// mechanism.
const (
	CoverOpen     Fault = "cover open"
	NearEnd       Fault = "paper low"
	PaperEnd      Fault = "paper out"
	CutterJam     Fault = "cutter jammed"
	HeadHot       Fault = "head too hot"
	Unrecoverable Fault = "unrecoverable error"
	Offline       Fault = "switched off-line at its panel"
	DrawerOpen    Fault = "drawer open"
	DrawerStuck   Fault = "drawer does not open"

	Mute       Fault = "answers nothing"
	Garbage    Fault = "garbage before each answer"
	HalfFrames Fault = "status frames cut in half"
	Unplugged  Fault = "unplugged"

	NoStatusBack Fault = "a cheap model without GS a"
)

const (
	rollLines    = 4000 // line feeds of a fresh roll
	nearEndLines = 400  // the sensor sees the end coming
	maxBuffered  = 64 << 10
)

// Printer is an ESC/POS printer on TCP. As with the network cards of real
// ones, the first connection has it and others wait until that closes.
type Printer struct {
	listener net.Listener
	wg       sync.WaitGroup

	mu       sync.Mutex
	work     *sync.Cond // the state or the buffer has changed
	closed   bool
	conn     net.Conn
	faults   map[Fault]bool
	paper    int  // line feeds left on the roll
	asb      byte // what GS a has enabled
	sent     [4]byte
	buffer   []byte // not yet processed; an off-line printer keeps it
	job      []byte // printed since the last cut
	jobs     []string
	unknown  []string
	counters map[int]uint64
	noise    *rand.Rand
	serial   string
}

// NewPrinter listens on addr, e.g. 127.0.0.1:0, with a fresh roll.
func NewPrinter(addr string) (*Printer, error) {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("printer emulator: %w", err)
	}
	p := &Printer{
		listener: l, faults: map[Fault]bool{}, paper: rollLines, serial: "EMU0000001",
		counters: map[int]uint64{20: 0, 21: 0, 50: 0, 70: 0, 148: 0, 149: 0, 178: 0, 198: 1200},
		noise:    rand.New(rand.NewPCG(1, 2)),
	}
	p.work = sync.NewCond(&p.mu)
	p.wg.Go(p.accept)
	return p, nil
}

// Addr is the host:port it listens on.
func (p *Printer) Addr() string { return p.listener.Addr().String() }

// Close ends it and waits.
func (p *Printer) Close() error {
	err := p.listener.Close()
	p.mu.Lock()
	p.closed = true
	p.dropLocked()
	p.mu.Unlock()
	p.wg.Wait()
	return err
}

// SetSerial gives it another serial number; it is told when it is asked next.
func (p *Printer) SetSerial(serial string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serial = serial
}

// Set makes a fault come or go. NearEnd and PaperEnd also come by themselves
// as paper is used; setting PaperEnd to false does not add paper, see LoadRoll.
func (p *Printer) Set(f Fault, on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults[f] = on
	if f == Unplugged && on {
		p.dropLocked()
	}
	p.changedLocked()
}

// Has reports whether a fault is there, by hand or by use.
func (p *Printer) Has(f Fault) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hasLocked(f)
}

func (p *Printer) hasLocked(f Fault) bool {
	switch f {
	case PaperEnd:
		return p.faults[f] || p.paper <= 0
	case NearEnd:
		return p.faults[f] || p.paper <= nearEndLines
	}
	return p.faults[f]
}

// Drop cuts the connection that is there; the next one is accepted.
func (p *Printer) Drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropLocked()
}

func (p *Printer) dropLocked() {
	if p.conn != nil {
		_ = p.conn.Close()
		p.conn = nil
	}
	p.work.Broadcast()
}

// LoadRoll puts in a fresh roll of so many line feeds; 0 means the usual.
func (p *Printer) LoadRoll(lines int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if lines == 0 {
		lines = rollLines
	}
	p.paper = lines
	p.faults[PaperEnd], p.faults[NearEnd] = false, false
	p.changedLocked()
}

// Paper returns the line feeds left on the roll.
func (p *Printer) Paper() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.paper
}

// Receipt prints so many lines and cuts, as if the till had sent them by its
// own cable. It reports whether the printer could.
func (p *Printer) Receipt(lines int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.offlineLocked() {
		return false
	}
	for range lines {
		p.feedLocked(1)
	}
	p.cutLocked()
	p.changedLocked()
	return true
}

// Jobs returns the text of what was printed over the connection, one string
// for each cut.
func (p *Printer) Jobs() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.jobs...)
}

// Unknown returns the commands it did not understand, in hexadecimal.
func (p *Printer) Unknown() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.unknown...)
}

// Counter returns a maintenance counter by its GS g number: 148 line feeds,
// 149 head energised, 178 cuts, 198 hours powered; 20, 21, 50, 70 the same,
// resettable.
func (p *Printer) Counter(n int) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counters[n]
}

// accept serves one connection after the other.
func (p *Printer) accept() {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		if p.closed || p.faults[Unplugged] {
			p.mu.Unlock()
			_ = conn.Close()
			continue
		}
		p.conn, p.asb, p.buffer, p.sent = conn, 0, nil, [4]byte{}
		p.mu.Unlock()
		p.serve(conn)
	}
}

// serve reads one connection to its end; real-time commands are obeyed as they
// arrive, the rest is processed in order while the printer is on-line.
func (p *Printer) serve(conn net.Conn) {
	gone := make(chan struct{})
	p.wg.Go(func() {
		defer close(gone)
		p.process(conn)
	})
	var rt realtime
	b := make([]byte, 4096)
	for {
		n, err := conn.Read(b)
		p.mu.Lock()
		for _, c := range b[:n] {
			p.buffer = append(p.buffer, rt.take(c, p.answerLocked)...)
		}
		p.work.Broadcast()
		for len(p.buffer) > maxBuffered && p.conn == conn && !p.closed && err == nil && p.offlineLocked() {
			p.work.Wait()
		}
		if err != nil {
			p.conn = nil
			p.work.Broadcast()
			p.mu.Unlock()
			_ = conn.Close()
			<-gone
			return
		}
		p.mu.Unlock()
	}
}

// process works off the buffer.
func (p *Printer) process(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		for p.conn == conn && !p.closed {
			if !p.offlineLocked() {
				if n := p.command(p.buffer); n > 0 {
					p.buffer = p.buffer[n:]
					continue
				}
			}
			p.work.Wait()
		}
		if p.conn != conn || p.closed {
			return
		}
	}
}

// send answers. It never blocks for long: a peer that does not read loses the
// connection.
func (p *Printer) sendLocked(b ...byte) {
	if p.conn == nil || p.faults[Mute] {
		return
	}
	if p.faults[Garbage] {
		junk := make([]byte, 1+p.noise.IntN(4))
		for i := range junk {
			junk[i] = 0x80 | byte(p.noise.IntN(128)) // no answer of a printer has this bit set
		}
		b = append(junk, b...)
	}
	_ = p.conn.SetWriteDeadline(time.Now().Add(time.Second))
	if _, err := p.conn.Write(b); err != nil {
		_ = p.conn.Close()
	}
}
