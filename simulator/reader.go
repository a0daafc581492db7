package simulator

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/tillward/tillward/simulator/emulator"
)

// reader is a till's card reader: on a real pcscd, or in hal/virtual where
// there is none.
type reader struct {
	card emulator.Slot
	file string // its part of the agent's file
}

func newReader(p *emulator.PCSCD, i int, dir string) reader {
	if p == nil {
		sock := filepath.Join(dir, "reader.sock")
		return reader{
			card: &emulator.VirtualCard{Socket: sock},
			file: fmt.Sprintf("[[device]]\nid = \"reader\"\ndriver = \"virtual\"\noptions = { control = %q }\n", "unix:"+sock),
		}
	}
	r := p.Reader(i)
	return reader{
		card: r.Card,
		file: fmt.Sprintf("[[device]]\nid = \"reader\"\ndriver = \"pcsc\"\noptions = { socket = %q, reader = %q, probe = \"insert\" }\n", r.Socket, r.Name),
	}
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
		err := emulator.Play(ctx, emulator.Day(seed, length), t.printer, t.reader.card, func(s emulator.Step, do func()) {
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
