package escpos_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/escpos"
	"github.com/tillward/tillward/hal/port"
	"github.com/tillward/tillward/simulator/emulator"
)

// Models differ in what they answer, and all of them are read right and prove
// their prints.
func TestModels(t *testing.T) {
	for _, model := range []emulator.Fault{emulator.NoStatusBack, emulator.KeepsStatusBack, emulator.RefusesSecond, emulator.NoIdentity, emulator.NoCounters} {
		t.Run(string(model), func(t *testing.T) {
			t.Parallel() // some wait for the next look
			c := cables["tcp"](t)
			c.Set(model, true)
			d := c.open(t, hal.Own, "drawer_open_level", "high", "timeout", "1s")
			status(t, d, healthy)
			if made, err := print(t, d, "tea\n\x1dV\x00"); err != nil || !made.Confirmed {
				t.Errorf("got %+v, %v", made, err)
			}
			c.Set(emulator.DrawerOpen, true)
			c.Set(emulator.CoverOpen, true)
			status(t, d, func(s hal.Status) bool {
				return s.Sensors["CoverOpen"] == hal.Yes && s.Sensors["DrawerOpened"] == hal.Yes && s.Power == hal.PowerOffline
			})
			c.Set(emulator.CoverOpen, false)
			status(t, d, healthy)
			c.LoadRoll(5)
			if made, err := print(t, d, strings.Repeat("tea\n", 50)+"\x1dV\x00"); !errors.Is(err, &hal.Error{Code: "E_OFFLINE"}) || made.Confirmed {
				t.Errorf("without paper: got %+v, %v", made, err)
			}
			c.LoadRoll(0)
			status(t, d, healthy)
			if made, err := print(t, d, "coffee\n\x1dV\x00"); err != nil || !made.Confirmed {
				t.Errorf("with new paper: got %+v, %v", made, err)
			}
			if jobs := c.Jobs(); len(jobs) != 2 || jobs[1] != "coffee\n" {
				t.Errorf("got %q", jobs)
			}
		})
	}
}

// Whatever a printer says, the driver neither panics nor hangs, and passes on
// nothing that could be a card's number.
func FuzzPrinterTalks(f *testing.F) {
	f.Add([]byte("\x12\x12\x12\x12_TILLWARD\x00_EMU-T80\x00_EMU0000001\x00_1.04\x00_30\x00_30\x00_1\x00_1200\x00"), uint8(16))
	f.Add([]byte("\x12\x12\x12\x12_4111111111111111\x00_5555 5555 5555 4444\x00_;4111111111111111=\x00_%B\x00"), uint8(4))
	f.Add([]byte("\x10\x00\x00\x00\x13\x1a\x16\x72\x37\x25\x00\x5f\x11\x00\x0f\xff"), uint8(1))
	f.Fuzz(func(t *testing.T, says []byte, piece uint8) {
		var far sync.WaitGroup
		defer far.Wait()
		dial := func(context.Context, port.Address) (port.Conn, error) {
			near, away := net.Pipe()
			far.Go(func() { _, _ = io.Copy(io.Discard, away) })
			far.Go(func() {
				defer away.Close()
				for rest := says; len(rest) > 0; {
					n := min(len(rest), 1+int(piece))
					if _, err := away.Write(rest[:n]); err != nil {
						return
					}
					rest = rest[n:]
				}
			})
			return near, nil
		}
		d, err := escpos.Driver{Dial: dial}.Open(t.Context(), hal.Config{
			ID: "x", Address: "h:1", Options: map[string]string{"timeout": "10ms", "drawer": "till", "drawer_open_level": "low"},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		s, _ := d.(hal.StatusReader).Status(ctx)
		list, _ := d.(hal.Statistics).Statistics(ctx)
		i := d.Info()
		for _, said := range append([]string{i.Maker, i.Model, i.Serial, i.Firmware, i.Key, s.Reason, s.Advice}, fmt.Sprint(s.Sensors)) {
			if hal.MayHoldPAN(said) {
				t.Errorf("a card number came out: %q", said)
			}
		}
		for _, stat := range list {
			if stat.Value >= 1e12 {
				t.Errorf("%s is %v", stat.Name, stat.Value)
			}
		}
	})
}
