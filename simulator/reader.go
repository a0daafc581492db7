package simulator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/tillward/tillward/simulator/emulator"
)

// readers are the card readers of all tills: on a real pcscd, or on one that
// the simulator plays where there is none.
type readers interface {
	Reader(i int) emulator.Reader
	Halt()
	Restart(ctx context.Context) error
	Stop()
}

// openReaders starts what there can be.
func openReaders(ctx context.Context, dir string, n int, out io.Writer) (readers, error) {
	p, err := emulator.StartPCSCD(ctx, dir, n)
	if err == nil {
		return p, nil
	}
	if !errors.Is(err, emulator.ErrNoPCSCD) {
		return nil, err
	}
	fmt.Fprintf(out, "no pcscd here (%v): the simulator plays one\n", err)
	v, err := emulator.StartVirtualPCSCD(dir, n)
	if err != nil {
		return nil, err
	}
	return v, nil
}

// readerFile is a reader's part of the agent's file.
func readerFile(r emulator.Reader) string {
	return fmt.Sprintf("[[device]]\nid = \"reader\"\ndriver = \"pcsc\"\noptions = { socket = %q, reader = %q, probe = \"insert\" }\n", r.Socket, r.Name)
}

// calm does something while nothing happens at the counter and the printer can
// print.
func (t *Till) calm(ctx context.Context, do func() error) error {
	for {
		t.counter.Lock()
		if !slices.ContainsFunc([]emulator.Fault{emulator.CoverOpen, emulator.CutterJam, emulator.PaperEnd, emulator.Unplugged}, t.printer.Has) {
			defer t.counter.Unlock()
			return do()
		}
		t.counter.Unlock() // the day puts it right
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return fmt.Errorf("%s: wait for the printer: %w", t.Name, err)
		}
	}
}

// playDay lets a shop's day pass at the till, again and again until ctx ends.
func (t *Till) playDay(ctx context.Context, seed uint64, length time.Duration, say func(string, ...any)) {
	for ctx.Err() == nil {
		day, truth := emulator.Desk.Day(seed)
		err := emulator.Play(ctx, day, truth.Length.Seconds()/length.Seconds(), t.printer, t.reader.Card, func(s emulator.Step, do func()) {
			t.counter.Lock()
			do()
			t.counter.Unlock()
			switch s.Act {
			case emulator.Sale, emulator.InsertCard, emulator.RemoveCard, emulator.OpenDrawer, emulator.CloseDrawer:
				// what happens all day is not worth a line
			default:
				say("%s  %s", t.Name, s.Act)
			}
		})
		if err != nil {
			return
		}
		seed++
	}
}
