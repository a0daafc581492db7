package emulator

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tillward/tillward/simulator/emulator/paper"
)

const (
	rollLines    = 4000 // line feeds of a fresh roll
	nearEndLines = 400  // the sensor sees the end coming
	maxBuffered  = 64 << 10
	dotsPerLine  = 30 // of the head: 3.75 mm
	cutterAway   = 96 // dots from the head
)

// Printer is an ESC/POS printer, on TCP or on any other line. As with the
// network cards of real ones, the first connection has it and others wait
// until that closes.
type Printer struct {
	addr  string // empty: other lines alone
	place int    // socket that keeps the address while nobody listens there
	done  chan struct{}
	wg    sync.WaitGroup

	mu       sync.Mutex
	listener net.Listener // nil: unplugged
	work     *sync.Cond   // the state or the buffer has changed
	closed   bool
	line     *line           // that is answered on
	cable    *line           // that stays
	turn     <-chan struct{} // closed when the last line that came is over
	faults   map[Fault]bool
	came     map[Fault]time.Time // by use
	paper    int                 // line feeds left on the roll
	dots     int                 // fed since the last whole line
	asb      byte                // what GS a has enabled
	sent     [4]byte
	stopped  bool          // XOFF was said last
	tail     []byte        // a command that has not arrived whole
	buffer   []byte        // whole commands, not yet obeyed; an off-line printer keeps them
	perLine  time.Duration // how long a line takes
	busy     time.Duration // what the last command takes
	press    *paper.Press
	columns  int    // of a line
	job      []byte // text since the last cut
	jobs     []string
	sheets   []*paper.Sheet // newest last
	folder   string         // for pictures of them
	pictures int
	lost     error // the first picture or counter that could not be written
	unknown  []string
	counters map[int]uint64
	state    string // file for the counters
	noise    *rand.Rand
	serial   string
}

// NewPrinter listens on addr, e.g. 127.0.0.1:0, with a fresh roll. Without an
// address it is reached by OpenPTY and Serve alone.
func NewPrinter(addr string) (*Printer, error) {
	free := make(chan struct{})
	close(free)
	p := &Printer{
		turn: free, done: make(chan struct{}),
		faults: map[Fault]bool{}, came: map[Fault]time.Time{}, paper: rollLines, serial: "EMU0000001",
		counters: map[int]uint64{20: 0, 21: 0, 50: 0, 70: 0, 148: 0, 149: 0, 178: 0, 198: 1200},
		noise:    rand.New(rand.NewPCG(1, 2)), press: paper.New(paper.Wide), columns: paper.Wide / 12,
	}
	p.work = sync.NewCond(&p.mu)
	if addr != "" {
		if err := p.reserve(addr); err != nil {
			return nil, fmt.Errorf("printer emulator: %w", err)
		}
	}
	p.wg.Go(p.process)
	return p, nil
}

// Addr is the host:port it listens on; empty when it does not.
func (p *Printer) Addr() string { return p.addr }

// Close ends it and all its lines, and waits. It tells of counters and pictures
// that could not be kept.
func (p *Printer) Close() error {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		close(p.done)
		p.unlistenLocked()
		if p.addr != "" {
			_ = unix.Close(p.place)
		}
		for _, l := range []*line{p.line, p.cable} {
			if l != nil {
				l.end()
			}
		}
		p.keepLocked()
		p.work.Broadcast()
	}
	p.mu.Unlock()
	p.wg.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lost
}

// SetSerial gives it another serial number; it is told when it is asked next.
func (p *Printer) SetSerial(serial string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serial = serial
}

// SetPace makes a line take so long to print. A printer is as fast as its
// computer without it.
func (p *Printer) SetPace(line time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.perLine = line
}

// Set makes a fault come or go. NearEnd and PaperEnd also come by themselves
// as paper is used; setting PaperEnd to false does not add paper, see LoadRoll.
// An unplugged printer forgets what it has not printed, and who asked to be
// told.
func (p *Printer) Set(f Fault, on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.faults[f]
	p.faults[f] = on
	switch {
	case f == Unplugged && on:
		p.buffer, p.tail, p.asb, p.busy, p.stopped = nil, nil, 0, 0, false
		p.press.Do([]byte{esc, '@'})
		p.dropLocked()
		p.unlistenLocked()
	case f == Unplugged && was:
		p.lost = cmp.Or(p.lost, p.listenLocked())
	case f == FeedButton && on && !was && !p.offlineForLocked(FeedButton):
		p.feedLocked(3 * dotsPerLine)
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

// dropLocked ends the line, unless it is a cable that stays.
func (p *Printer) dropLocked() {
	if p.line != nil && !p.line.stays {
		p.line.end()
		p.takeLocked(p.cable)
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
	p.paper, p.dots = lines, 0
	p.faults[PaperEnd], p.faults[NearEnd] = false, false
	p.changedLocked()
}

// Paper returns the line feeds left on the roll.
func (p *Printer) Paper() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.paper
}

// Jobs returns the text of what was printed over its lines, one string for
// each cut.
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

func (p *Printer) unknownLocked(cmd []byte) {
	p.unknown = append(p.unknown, fmt.Sprintf("%x", cmd))
}

// Counter returns a maintenance counter by its GS g number: 148 line feeds,
// 149 head energised, 178 cuts, 198 hours powered; 20, 21, 50, 70 the same,
// resettable.
func (p *Printer) Counter(n int) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counters[n]
}

// feedLocked moves the paper by so many dots.
func (p *Printer) feedLocked(dots int) {
	if dots <= 0 {
		return
	}
	p.dots += dots
	lines := p.dots / dotsPerLine
	p.dots %= dotsPerLine
	before := p.paper
	p.paper -= lines
	for at, f := range map[int]Fault{nearEndLines: NearEnd, 0: PaperEnd} {
		if before > at && p.paper <= at {
			p.came[f] = time.Now()
		}
	}
	for _, n := range []int{20, 21, 148, 149} {
		p.counters[n] += uint64(lines) // #nosec G115 -- not negative
	}
	p.busy += time.Duration(lines) * p.perLine
}

// Came is when NearEnd or PaperEnd last came by use; zero: never.
func (p *Printer) Came(f Fault) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.came[f]
}

func (p *Printer) kickLocked() {
	if !p.faults[DrawerStuck] {
		p.faults[DrawerOpen] = true
		p.changedLocked()
	}
}
