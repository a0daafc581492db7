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
	if !ok || line == "" {
		return "", fmt.Errorf("address %q: gpio:LINENAME or gpio:gpiochip0:OFFSET", s)
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

// edges follows a line from one edge to the next and finds out what happened
// in between.
type edges struct {
	active bool
	read   time.Time // when active was read from the line; zero: it is of an edge
	seq    uint32
}

// level takes in what the line was read to be.
func (e *edges) level(active bool, at time.Time) { e.active, e.read = active, at }

// next takes in an edge. It returns the levels that the line went through, and
// how many edges before it were lost.
func (e *edges) next(edge Edge) (levels []bool, lost uint32) {
	if edge.Seq != 0 {
		if lost = edge.Seq - e.seq - 1; lost > 1<<31 { // it began to count anew
			lost = 0
		}
		e.seq = edge.Seq
	}
	switch {
	case edge.Active != e.active:
		levels = []bool{edge.Active}
	case lost > 0 || edge.At.After(e.read): // it cannot turn to what it was without having been something else
		levels = []bool{!edge.Active, edge.Active}
	}
	e.active, e.read = edge.Active, time.Time{}
	return levels, lost
}
