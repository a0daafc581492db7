package board

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/warthog618/go-gpiocdev/uapi"
	"golang.org/x/sys/unix"
	"periph.io/x/conn/v3/gpio"
)

// polling is how often a line is looked at whose chip has no interrupts. What
// it is twice in a row counts.
const polling = 25 * time.Millisecond

// kernel has the lines of the GPIO character devices below dev, by the second
// version of their interface (Linux 5.10). It uses the calls of go-gpiocdev
// without its watcher: that one holds a thread for each line, and spins when
// the chip is unplugged.
type kernel struct{ dev string }

// Take implements Lines.
func (k kernel) Take(line string, how How) (Line, error) {
	chip, offset, err := k.find(line)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(k.dev, chip)) // #nosec G304 -- a device of that folder
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := uapi.LineRequest{Lines: 1, EventBufferSize: 64, Config: configuration(how, !how.Output)}
	r.Offsets[0] = offset
	copy(r.Consumer[:], "tillward")
	err = control(f, func(fd uintptr) error { return uapi.GetLine(fd, &r) })
	edges := err == nil && !how.Output
	if errors.Is(err, unix.ENXIO) && !how.Output { // no interrupts
		r.Config = configuration(how, false)
		err = control(f, func(fd uintptr) error { return uapi.GetLine(fd, &r) })
	}
	if err != nil {
		return nil, fmt.Errorf("take %s, line %d: %w", chip, offset, err)
	}
	if err := unix.SetNonblock(int(r.Fd), true); err != nil {
		return nil, errors.Join(err, unix.Close(int(r.Fd)))
	}
	return newTaken(os.NewFile(uintptr(r.Fd), line), edges), nil // #nosec G115 -- a descriptor is not negative
}

// find returns where a line is.
func (k kernel) find(line string) (string, uint32, error) {
	if chip, offset, ok := place(line); ok {
		return chip, offset, nil
	}
	chips, err := filepath.Glob(filepath.Join(k.dev, "gpiochip*"))
	if err != nil {
		return "", 0, err
	}
	slices.Sort(chips)
	var found []string
	var at uint32
	var failed error
	for _, path := range chips {
		offsets, err := named(path, line)
		if err != nil {
			failed = errors.Join(failed, err)
		}
		for _, offset := range offsets {
			found, at = append(found, filepath.Base(path)), offset
		}
	}
	switch {
	case len(found) == 1:
		return found[0], at, nil
	case len(found) > 1:
		return "", 0, fmt.Errorf("line %s: %w", line, errTwice)
	case failed != nil: // it may be there
		return "", 0, failed
	}
	return "", 0, fmt.Errorf("line %s: %w", line, fs.ErrNotExist)
}

// named returns the lines of a chip that have that name.
func named(path, line string) (offsets []uint32, err error) {
	f, err := os.Open(path) // #nosec G304 -- a device
	if err != nil {
		return nil, err
	}
	defer f.Close()
	err = control(f, func(fd uintptr) error {
		info, err := uapi.GetChipInfo(fd)
		for i := uint32(0); err == nil && i < info.Lines; i++ {
			var l uapi.LineInfoV2
			if l, err = uapi.GetLineInfoV2(fd, int(i)); err == nil && uapi.BytesToString(l.Name[:]) == line {
				offsets = append(offsets, i)
			}
		}
		return err
	})
	return offsets, err
}

func configuration(how How, edges bool) (c uapi.LineConfig) {
	if how.ActiveLow {
		c.Flags |= uapi.LineFlagV2ActiveLow
	}
	if how.Output { // not active until it is set
		c.Flags |= uapi.LineFlagV2Output
		return c
	}
	c.Flags |= uapi.LineFlagV2Input
	switch how.Bias {
	case gpio.PullUp:
		c.Flags |= uapi.LineFlagV2BiasPullUp
	case gpio.PullDown:
		c.Flags |= uapi.LineFlagV2BiasPullDown
	case gpio.Float:
		c.Flags |= uapi.LineFlagV2BiasDisabled
	}
	if edges {
		c.Flags |= uapi.LineFlagV2EdgeBoth
		c.AddAttribute(uapi.LineConfigAttribute{Attr: uapi.DebouncePeriod(how.Debounce).Encode(), Mask: 1})
	}
	return c
}

// taken is a line of a GPIO character device.
type taken struct {
	f      *os.File
	edges  bool // the kernel tells them
	closed context.Context
	close  func() error

	// Of Next alone, where there are no edges.
	last   *bool
	before *bool
}

func newTaken(f *os.File, edges bool) *taken {
	ctx, cancel := context.WithCancel(context.Background())
	return &taken{f: f, edges: edges, closed: ctx, close: sync.OnceValue(func() error {
		cancel()
		return f.Close()
	})}
}

// Close implements Line.
func (t *taken) Close() error { return t.close() }

// Level implements Line.
func (t *taken) Level() (bool, error) {
	v := uapi.LineValues{Mask: 1}
	err := control(t.f, func(fd uintptr) error { return uapi.GetLineValuesV2(fd, &v) })
	return v.Get(0) == 1, err
}

// Set implements Line.
func (t *taken) Set(active bool) error {
	v := uapi.LineValues{Mask: 1}
	if active {
		v.Bits = 1
	}
	return control(t.f, func(fd uintptr) error { return uapi.SetLineValuesV2(fd, v) })
}

// Next implements Line.
func (t *taken) Next(until time.Time) (Edge, error) {
	if !t.edges {
		return t.poll(until)
	}
	if err := t.f.SetReadDeadline(until); err != nil {
		return Edge{}, err
	}
	var b [unsafe.Sizeof(uapi.LineEvent{})]byte
	if n, err := t.f.Read(b[:]); err != nil {
		return Edge{}, err
	} else if n != len(b) {
		return Edge{}, fmt.Errorf("an edge of %d bytes", n)
	}
	return decode(b[:])
}

// decode reads what the kernel says of an edge.
func decode(b []byte) (Edge, error) {
	var e uapi.LineEvent
	if err := binary.Read(bytes.NewReader(b), binary.NativeEndian, &e); err != nil {
		return Edge{}, err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return Edge{}, err
	}
	if e.ID != uapi.LineEventRisingEdge && e.ID != uapi.LineEventFallingEdge {
		return Edge{}, fmt.Errorf("an edge of kind %d", e.ID)
	}
	ago := max(0, time.Duration(now.Nano()-int64(e.Timestamp))) // #nosec G115 -- nanoseconds of centuries
	return Edge{At: time.Now().Add(-ago), Active: e.ID == uapi.LineEventRisingEdge, Seq: e.LineSeqno}, nil
}

// poll makes edges of levels.
func (t *taken) poll(until time.Time) (Edge, error) {
	tick := time.NewTicker(polling)
	defer tick.Stop()
	for {
		is, err := t.Level()
		if err != nil {
			return Edge{}, err
		}
		steady := t.before != nil && *t.before == is
		t.before = &is
		if steady && (t.last == nil || *t.last != is) {
			first := t.last == nil
			t.last = &is
			if !first {
				return Edge{Active: is}, nil
			}
		}
		if !time.Now().Before(until) {
			return Edge{}, os.ErrDeadlineExceeded
		}
		select {
		case <-t.closed.Done():
			return Edge{}, os.ErrClosed
		case <-tick.C:
		}
	}
}

// control calls do with the descriptor, which stays as it is.
func control(f syscall.Conn, do func(fd uintptr) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(conn.Control(func(fd uintptr) { err = do(fd) }), err)
}
