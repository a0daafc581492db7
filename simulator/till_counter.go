package simulator

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/tillward/tillward/simulator/emulator"
)

// CounterRoll is the roll of a till with a whole counter, in line feeds.
const CounterRoll = 5400

const feedPitch = 3750 // micrometres of a line feed: 1/6 inch less the gap, as a T80 has

// Counter is what stands around a till that was opened with Options.Counter.
type Counter struct {
	Printer *emulator.Printer
	Card    *emulator.Card
	Scanner *emulator.Scanner
	Proof   string      // unix socket that takes a job and says what became of it
	Raw     string      // unix socket that speaks as the printer does
	Roll    int         // line feeds of a full roll, as the till is configured
	Daemon  interface { // of the card reader
		Halt()
		Restart(ctx context.Context) error
	}
}

// Counter returns it.
func (t *Till) Counter() Counter {
	return Counter{
		Printer: t.printer, Card: t.reader.Card, Scanner: t.scanner, Proof: filepath.Join(t.dir, "proof.sock"), Raw: filepath.Join(t.dir, "print.sock"),
		Roll: CounterRoll, Daemon: t.readers,
	}
}

// printing is how the till's printer is set up, in the agent's file.
func (t *Till) printing() string {
	if t.scanner == nil {
		return `options = { drawer_open_level = "high" }`
	}
	c := t.Counter()
	return fmt.Sprintf("print = %q\nprint_proof = %q\noptions = { drawer_open_level = \"high\", drawer = \"drawer\", left_open = \"800ms\", timeout = \"1s\", roll_length_m = \"%.3f\", feed_pitch_um = \"%d\" }",
		"unix:"+c.Raw, "unix:"+c.Proof, float64(c.Roll)*feedPitch/1e6, feedPitch)
}

// furnish gives the till a scanner.
func (t *Till) furnish() (err error) {
	if t.scanner, err = emulator.NewScanner(filepath.Join(t.dir, "usb"), 0); err != nil {
		return fmt.Errorf("%s: %w", t.Name, err)
	}
	t.more += fmt.Sprintf("[[device]]\nid = \"scanner\"\ndriver = \"scanner\"\naddress = %q\n\n", filepath.Join(t.scanner.Root(), "dev", "input", "event0"))
	return nil
}

// Find returns the id of a till's device, when the service knows it and trusts
// it.
func (w *World) Find(ctx context.Context, t *Till) (id string, known bool, err error) {
	fleet, err := w.devices(ctx)
	if err != nil {
		return "", false, err
	}
	d, ok := fleet[t.Name]
	return d.ID, ok && d.Trust == "attested" && d.Online, nil
}
