//go:build halvm

package halvm_test

import (
	"context"
	"os"
	"sync"
	"testing"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/hotplug"
	"github.com/tillward/tillward/simulator/emulator"
)

// thePrinter plugs a USB printer in, on the controller of that number.
func thePrinter(t *testing.T, udc string) *emulator.Gadget {
	t.Helper()
	g, err := emulator.NewGadget(udc, "printer.0",
		map[string]string{
			"idVendor": "0x04b8", "idProduct": "0x0e15", "bcdDevice": "0x0100",
			"strings/0x409/manufacturer": "EPSON", "strings/0x409/product": "TM-T20II", "strings/0x409/serialnumber": "LANE0001",
		},
		map[string]string{"pnp_string": "MFG:EPSON;CMD:ESC/POS;MDL:TM-T20II;CLS:PRINTER;DES:EPSON TM-T20II;"})
	must(t, err)
	t.Cleanup(func() { must(t, g.Close()) })
	within(t, "the kernel to serve the printer", func() bool {
		_, err := os.Stat("/dev/usb/lp0")
		return err == nil
	})
	return g
}

// TestHotplug sees a printer come, go, and come back, by what the kernel says.
func TestHotplug(t *testing.T) {
	var mu sync.Mutex
	var told []hal.Change
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- hotplug.Bus{}.Watch(ctx, func(c hal.Change) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, c)
		})
	}()
	heard := func(n int) hal.Change {
		t.Helper()
		within(t, "the bus to tell", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(told) >= n
		})
		mu.Lock()
		defer mu.Unlock()
		if len(told) != n {
			t.Fatalf("told %+v, want %d", told, n)
		}
		return told[n-1]
	}
	want := hal.Candidate{
		Key: "usb:04b8:0e15:LANE0001", Interface: "USB", Category: hal.POSPrinter, Maker: "EPSON", Model: "TM-T20II",
		Serial: "LANE0001", Firmware: "1.00", Node: "/dev/usb/lp0",
	}
	g := thePrinter(t, "dummy_udc.0")
	if c := heard(1); c.Gone || c.Candidate != want {
		t.Errorf("plugged in: told %+v, want %+v", c, want)
	}
	must(t, g.Plug(false))
	if c := heard(2); !c.Gone || c.Key != want.Key {
		t.Errorf("pulled out: told %+v", c)
	}
	must(t, g.Plug(true))
	if c := heard(3); c.Gone || c.Candidate != want {
		t.Errorf("plugged in again: told %+v, want %+v", c, want)
	}
	cancel()
	must(t, <-done)
}
