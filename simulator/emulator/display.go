package emulator

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	displayColumns = 20
	displayRows    = 2
	us             = 0x1f
)

// Display is a customer display of two lines of 20 characters that speaks
// ESC/POS on a serial line. It keeps what it shows, and answers DLE EOT, which
// many do not: see Mute.
type Display struct {
	wg sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	lines   []*line
	faults  map[Fault]bool
	shown   [displayRows][displayColumns]byte
	at      int // cursor
	bright  int
	written int // characters shown so far
	tests   int
	seen    []string // each full picture that was taken off
	unknown []string
	noise   *rand.Rand
}

// NewDisplay makes one that is reached by OpenPTY and Serve.
func NewDisplay() *Display {
	d := &Display{faults: map[Fault]bool{}, bright: 4, noise: rand.New(rand.NewPCG(1, 2))}
	d.clearLocked()
	return d
}

// Close ends it and all its lines, and waits.
func (d *Display) Close() error {
	d.mu.Lock()
	d.closed = true
	for _, l := range d.lines {
		l.end()
	}
	d.mu.Unlock()
	d.wg.Wait()
	return nil
}

// Set makes a fault come or go: Mute, Garbage, Unplugged.
func (d *Display) Set(f Fault, on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults[f] = on
	if f == Unplugged && on {
		d.clearLocked()
	}
}

// Shown returns what it shows, a string for each line, without the spaces
// behind it.
func (d *Display) Shown() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Split(d.pictureLocked(), "\n")
}

// Seen returns what it has shown before it was cleared.
func (d *Display) Seen() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.seen)
}

// Output counts the characters that it has shown, and its self tests.
func (d *Display) Output() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.written + d.tests
}

// Brightness is from 1 to 4.
func (d *Display) Brightness() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.bright
}

// Unknown returns the commands it did not understand, in hexadecimal.
func (d *Display) Unknown() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.unknown)
}

// Say lets it say something that nobody asked for.
func (d *Display) Say(text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sendLocked([]byte(text))
}

// OpenPTY gives it a serial line and returns the path of the other end. The
// line stays until the display is closed.
func (d *Display) OpenPTY() (string, error) {
	cable, path, err := newPTY()
	if err != nil {
		return "", fmt.Errorf("display emulator: pty: %w", err)
	}
	d.wg.Go(func() { _ = d.serve(cable, true) })
	return path, nil
}

// Serve lets it be reached over c until c or the display ends.
func (d *Display) Serve(c io.ReadWriteCloser) error { return d.serve(c, false) }

func (d *Display) serve(c io.ReadWriteCloser, stays bool) error {
	l := &line{c: c, stays: stays, out: make(chan []byte, maxAnswers), gone: make(chan struct{})}
	defer l.end()
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return net.ErrClosed
	}
	d.lines = append(d.lines, l)
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		d.lines = slices.DeleteFunc(d.lines, func(o *line) bool { return o == l })
		d.mu.Unlock()
	}()
	var writer sync.WaitGroup
	writer.Go(func() { d.answer(l) })
	defer writer.Wait()
	defer l.end()
	var held []byte
	b := make([]byte, 256)
	for {
		n, err := c.Read(b)
		d.mu.Lock()
		if !d.faults[Unplugged] {
			held = append(held, b[:n]...)
			for len(held) > 0 {
				n := d.commandLocked(held)
				if n == 0 {
					break
				}
				held = held[n:]
			}
		}
		d.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

func (d *Display) answer(l *line) {
	for {
		select {
		case <-l.gone:
			return
		case b := <-l.out:
			if w, ok := l.c.(interface{ SetWriteDeadline(time.Time) error }); ok {
				_ = w.SetWriteDeadline(time.Now().Add(writeWithin))
			}
			if _, err := l.c.Write(b); err != nil && (!l.stays || !errors.Is(err, os.ErrDeadlineExceeded)) {
				l.end()
				return
			}
		}
	}
}

func (d *Display) sendLocked(b []byte) {
	if d.faults[Mute] || d.faults[Unplugged] {
		return
	}
	if d.faults[Garbage] {
		junk := make([]byte, 1+d.noise.IntN(4))
		for i := range junk {
			junk[i] = 0x80 | byte(d.noise.IntN(128))
		}
		b = append(junk, b...)
	}
	for _, l := range d.lines {
		select {
		case l.out <- slices.Clone(b):
		default:
		}
	}
}

func (d *Display) pictureLocked() string {
	var rows []string
	for _, r := range d.shown {
		rows = append(rows, strings.TrimRight(string(r[:]), " "))
	}
	return strings.Join(rows, "\n")
}

func (d *Display) clearLocked() {
	if p := d.pictureLocked(); strings.Trim(p, "\n\x00") != "" {
		d.seen = append(d.seen, p)
	}
	for i := range d.shown {
		for j := range d.shown[i] {
			d.shown[i][j] = ' '
		}
	}
	d.at = 0
}

// displayUS are the commands US c with so many parameters.
var displayUS = map[byte]int{'@': 0, 'X': 1, '$': 2, 'C': 1, 'E': 1, 'r': 1, 0x01: 0, 0x02: 0, 0x03: 0}

// commandLocked obeys the first command of b and returns its length, or 0 when
// it is not complete [Epson ESC/POS for customer displays: CLR, HOM, US].
func (d *Display) commandLocked(b []byte) int {
	size := func(n int) int {
		if len(b) < n {
			return 0
		}
		return n
	}
	c := b[0]
	switch {
	case c == dle:
		if size(3) == 0 {
			return 0
		}
		if b[1] == 0x04 {
			d.sendLocked([]byte{0x12})
			return 3
		}
	case c == esc:
		if size(2) == 0 {
			return 0
		}
		switch b[1] {
		case '@':
			d.clearLocked()
			d.bright = 4
			return 2
		case 'R', 't':
			return size(3)
		}
	case c == us:
		if size(2) == 0 {
			return 0
		}
		if n, ok := displayUS[b[1]]; ok {
			return d.usLocked(b, size(2+n))
		}
	case c == 0x0c:
		d.clearLocked()
		return 1
	case c == 0x0b:
		d.at = 0
		return 1
	case c == '\r':
		d.at -= d.at % displayColumns
		return 1
	case c == '\n':
		d.at = (d.at + displayColumns) % (displayRows * displayColumns)
		return 1
	case c >= 0x20:
		d.shown[d.at/displayColumns][d.at%displayColumns] = c
		d.at = (d.at + 1) % (displayRows * displayColumns)
		d.written++
		return 1
	}
	n := min(len(b), map[bool]int{true: 2, false: 1}[c == esc || c == us || c == dle])
	d.unknown = append(d.unknown, fmt.Sprintf("%x", b[:n]))
	return n
}

func (d *Display) usLocked(b []byte, n int) int {
	if n == 0 {
		return 0
	}
	switch b[1] {
	case '@':
		d.tests++
	case 'X':
		d.bright = int(b[2])
	case '$':
		if x, y := int(b[2])-1, int(b[3])-1; x >= 0 && x < displayColumns && y >= 0 && y < displayRows {
			d.at = y*displayColumns + x
		} else {
			d.unknown = append(d.unknown, fmt.Sprintf("%x", b[:n]))
		}
	}
	return n
}
