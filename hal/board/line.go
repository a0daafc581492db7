package board

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"periph.io/x/conn/v3/gpio"
)

// Lines is where GPIO lines are had from: the kernel, or a fake of it.
type Lines interface {
	// Take takes a line, for as long as it is not closed: by its name
	// (TAMPER_SW), or by chip and offset (gpiochip0:3). A line that somebody else
	// has is syscall.EBUSY, one that is not there fs.ErrNotExist.
	Take(line string, how How) (Line, error)
}

// How a line is taken: as an input whose edges are told, or as an output that
// is not active. Levels are true for active.
type How struct {
	Output    bool
	ActiveLow bool
	Debounce  time.Duration // of an input
	Bias      gpio.Pull     // of an input
}

// Line is a line that was taken. Close may be called at any time, and ends a
// Next that waits.
type Line interface {
	Level() (bool, error)
	// Next waits for an edge that has not been told yet. When there is none until
	// then, the error is os.ErrDeadlineExceeded; any other means that the line is
	// lost.
	Next(until time.Time) (Edge, error)
	Set(active bool) error // of an output
	io.Closer
}

// Edge is a change of level.
type Edge struct {
	At     time.Time // when it happened, as the kernel says; zero: nobody knows
	Active bool      // what it changed to
	Seq    uint32    // one more than that of the edge before, from 1; 0: they are not numbered
}

// errTwice is a line that cannot be told from another.
var errTwice = errors.New("more than one line has this name; use gpiochipN:OFFSET")

// address splits gpio:TAMPER_SW or gpio:gpiochip0:3.
func address(s string) (line string, err error) {
	line, ok := strings.CutPrefix(s, "gpio:")
	_, _, placed := place(line)
	if !ok || line == "" || strings.HasPrefix(line, "gpiochip") && strings.Contains(line, ":") && !placed {
		return "", fmt.Errorf("address %q: write gpio:LINENAME or gpio:gpiochip0:OFFSET", s)
	}
	return line, nil
}

// place splits gpiochip0:3; a name of a line is no place.
func place(line string) (chip string, offset uint32, ok bool) {
	chip, number, found := strings.Cut(line, ":")
	if rest, is := strings.CutPrefix(chip, "gpiochip"); !found || !is || rest == "" || strings.Trim(rest, "0123456789") != "" {
		return "", 0, false
	}
	n, err := strconv.ParseUint(number, 10, 16)
	return chip, uint32(n), err == nil
}

// edges follows a line from one edge to the next, and finds out what happened in
// between. Levels alternate: an edge that says the same as the one before it
// hides another.
type edges struct {
	active bool
	began  time.Time // of the first level
	any    bool      // there was an edge
	seq    uint32    // of the last edge
	seen   int       // turns that were seen by reading the level, before their edges came
}

// level takes in what the line was read to be.
func (e *edges) level(active bool, at time.Time) {
	switch {
	case e.began.IsZero():
		e.began = at
	case active != e.active:
		e.seen++
	}
	e.active = active
}

// quiet takes in that no edge waits to be told: readings are not ahead any more.
func (e *edges) quiet() { e.seen = 0 }

// next takes in an edge. It returns the levels that the line went through and
// that nobody knew of yet, how many edges before it were lost, and how often
// the line became active without being among the levels.
func (e *edges) next(edge Edge) (levels []bool, lost uint32, more int) {
	if edge.Seq != 0 {
		if lost = edge.Seq - e.seq - 1; lost > 1<<31 { // it began to count anew
			lost = 0
		}
		e.seq = edge.Seq
	}
	first := !e.any
	e.any = true
	turns := int(lost) + 1 - e.seen
	if edge.Seq != 0 && turns <= 0 && (turns < 0 || edge.Active == e.active) { // readings were ahead of it
		e.seen = -turns
		return nil, lost, 0
	}
	e.seen = 0
	if edge.Active != e.active {
		e.active = edge.Active
		levels = []bool{edge.Active}
		more = (max(turns, 1) - 1) / 2 // of each two turns before it one made it active
		return levels, lost, more
	}
	switch {
	case edge.Seq == 0: // that is what was read
	case first && lost == 0 && !edge.At.After(e.began): // so was that
	default:
		levels = []bool{!edge.Active, edge.Active}
		more = max(turns/2-1, 0)
	}
	return levels, lost, more
}
