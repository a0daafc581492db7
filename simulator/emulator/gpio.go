package emulator

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/tillward/tillward/hal/board"
)

// fifo is how many edges wait for who does not read them; then the oldest go,
// as in the kernel.
const fifo = 16

// GPIO is a chip whose lines are moved by hand, for the driver "switch". Edges
// are told as they come: it debounces nothing. A line that nobody has moved is
// low.
type GPIO struct {
	mu    sync.Mutex
	gone  bool
	hangs chan struct{} // not nil: levels cannot be read until it is closed
	lines map[string]*gpioLine
}

type gpioLine struct {
	high  bool
	held  bool // by another program
	lose  int  // edges that will get lost
	taken *takenLine
	wired func(high bool)
}

// NewGPIO makes a chip with lines of these names.
func NewGPIO(names ...string) *GPIO {
	g := &GPIO{lines: map[string]*gpioLine{}}
	for _, name := range names {
		g.lines[name] = &gpioLine{}
	}
	return g
}

// Set moves a line.
func (g *GPIO) Set(line string, high bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.lines[line]
	if l.high == high {
		return
	}
	l.high = high
	if l.taken == nil || l.taken.how.Output || g.gone || g.hangs != nil {
		return
	}
	l.taken.seq++
	if l.lose > 0 {
		l.lose--
		return
	}
	l.taken.edges = append(l.taken.edges, board.Edge{At: time.Now(), Active: high != l.taken.how.ActiveLow, Seq: l.taken.seq})
	if n := len(l.taken.edges); n > fifo {
		l.taken.edges = l.taken.edges[n-fifo:]
	}
	l.taken.wake()
}

// Lose lets the next n edges of a line get lost.
func (g *GPIO) Lose(line string, n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lines[line].lose = n
}

// Unplug takes the chip away and brings it back, and with it whoever had lines
// of it has them no more.
func (g *GPIO) Unplug(on bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gone = on
	for _, l := range g.lines {
		if on && l.taken != nil {
			l.taken.lost = true
			l.taken.wake()
			l.taken = nil
		}
	}
}

// Hang lets whoever reads a level wait, as behind an expander on a bus that
// hangs. Edges do not come either.
func (g *GPIO) Hang(on bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case on && g.hangs == nil:
		g.hangs = make(chan struct{})
	case !on && g.hangs != nil:
		close(g.hangs)
		g.hangs = nil
	}
}

// Hold lets another program have a line that nobody has, or give it back.
func (g *GPIO) Hold(line string, on bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lines[line].held = on
}

// Wire tells what an output is set to, as whatever is wired to it would notice.
func (g *GPIO) Wire(line string, to func(high bool)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lines[line].wired = to
}

// High is the level of a line.
func (g *GPIO) High(line string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.lines[line].high
}

// Take implements board.Lines.
func (g *GPIO) Take(line string, how board.How) (board.Line, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.lines[line]
	switch {
	case l == nil || g.gone:
		return nil, fmt.Errorf("line %s: %w", line, os.ErrNotExist)
	case l.held || l.taken != nil:
		return nil, fmt.Errorf("line %s: %w", line, syscall.EBUSY)
	}
	t := &takenLine{g: g, of: l, how: how, woken: make(chan struct{}, 1)}
	l.taken = t
	if how.Output {
		l.high = how.ActiveLow
	}
	return t, nil
}

// takenLine is a line that a driver has.
type takenLine struct {
	g     *GPIO
	of    *gpioLine
	how   board.How
	woken chan struct{}

	// With g.mu held.
	seq    uint32
	edges  []board.Edge
	lost   bool
	closed bool
}

func (t *takenLine) wake() {
	select {
	case t.woken <- struct{}{}:
	default:
	}
}

// state is why nothing can be done with the line, with g.mu held.
func (t *takenLine) state() error {
	switch {
	case t.closed:
		return os.ErrClosed
	case t.lost:
		return syscall.ENODEV
	}
	return nil
}

// Level implements board.Line.
func (t *takenLine) Level() (bool, error) {
	t.g.mu.Lock()
	hangs := t.g.hangs
	t.g.mu.Unlock()
	if hangs != nil {
		<-hangs
	}
	t.g.mu.Lock()
	defer t.g.mu.Unlock()
	return t.of.high != t.how.ActiveLow, t.state()
}

// Set implements board.Line.
func (t *takenLine) Set(active bool) error {
	t.g.mu.Lock()
	if err := t.state(); err != nil || !t.how.Output {
		t.g.mu.Unlock()
		if err == nil {
			err = syscall.EPERM
		}
		return err
	}
	high := active != t.how.ActiveLow
	changed, wired := high != t.of.high, t.of.wired
	t.of.high = high
	t.g.mu.Unlock()
	if changed && wired != nil {
		wired(high)
	}
	return nil
}

// Next implements board.Line.
func (t *takenLine) Next(until time.Time) (board.Edge, error) {
	late := time.NewTimer(time.Until(until))
	defer late.Stop()
	for {
		t.g.mu.Lock()
		err := t.state()
		if err == nil && len(t.edges) > 0 {
			e := t.edges[0]
			t.edges = t.edges[1:]
			t.g.mu.Unlock()
			return e, nil
		}
		t.g.mu.Unlock()
		if err != nil {
			return board.Edge{}, err
		}
		select {
		case <-t.woken:
		case <-late.C:
			return board.Edge{}, os.ErrDeadlineExceeded
		}
	}
}

// Close implements board.Line.
func (t *takenLine) Close() error {
	t.g.mu.Lock()
	defer t.g.mu.Unlock()
	if t.of.taken == t {
		t.of.taken = nil
	}
	t.closed = true
	t.wake()
	return nil
}
