//go:build halvm

package halvm_test

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/haltest"
	"github.com/tillward/tillward/hal/input"
	"github.com/tillward/tillward/simulator/emulator"
)

// scannerBench is the suite's bench for a scanner at that address.
func scannerBench(t *testing.T, s *emulator.Scanner, address string) haltest.Bench {
	cfg := hal.Config{ID: "scanner", Address: address}
	unplug := func(on bool) { must(t, s.Set(emulator.Unplugged, on)) }
	return haltest.Bench{
		Open:   func(t *testing.T) hal.Device { return open(t, input.Driver{}, cfg) },
		Unplug: unplug,
		Faults: []haltest.Fault{{Name: "gone", Set: unplug, On: "POWER_OFF_OFFLINE", Off: "POWER_ONLINE"}},
		Feed: func(t *testing.T, d hal.Device, number string) {
			before := count(t, d, "GoodScanCount")
			must(t, s.Scan(number))
			within(t, "the code to be counted", func() bool { return count(t, d, "GoodScanCount") == before+1 })
		},
		Observe: func(t *testing.T) hal.Device { return open(t, input.Driver{}, cfg) },
		Compete: func(context.Context) error {
			nodes, err := filepath.Glob("/dev/input/event*")
			if err != nil {
				return err
			}
			for _, n := range nodes {
				f, err := os.OpenFile(n, os.O_RDONLY|syscall.O_NONBLOCK, 0)
				if err != nil {
					return err
				}
				if err := f.Close(); err != nil {
					return err
				}
			}
			return nil
		},
		NotApplicable: map[int]string{
			2:  "a scanner is asked nothing: silence is how it always is",
			5:  "the kernel passes on nothing that means nothing",
			8:  "a scanner has no sensors",
			11: "a scanner puts nothing out",
		},
	}
}

// TestUSBScanner runs the suite over a scanner that usbhid serves, wherever it
// is plugged in.
func TestUSBScanner(t *testing.T) {
	haltest.Run(t, func(t *testing.T) haltest.Bench {
		s, err := emulator.NewUSBScanner("dummy_udc.1", "LANE0002")
		must(t, err)
		t.Cleanup(func() { must(t, s.Close()) })
		return scannerBench(t, s, "usb:05e0:1200:LANE0002")
	})
}

// TestScanner runs the suite over a scanner that evdev serves, at its device
// file.
func TestScanner(t *testing.T) {
	haltest.Run(t, func(t *testing.T) haltest.Bench {
		s, err := emulator.NewInputScanner("Lane Scanner")
		must(t, err)
		t.Cleanup(func() { _ = s.Close() })
		node, err := emulator.InputNode("Lane Scanner")
		must(t, err)
		return scannerBench(t, s, node)
	})
	t.Run("the kernel's buffer runs over", func(t *testing.T) {
		s, err := emulator.NewInputScanner("Lane Scanner")
		must(t, err)
		t.Cleanup(func() { _ = s.Close() })
		node, err := emulator.InputNode("Lane Scanner")
		must(t, err)
		d := open(t, input.Driver{}, hal.Config{ID: "scanner", Address: node})
		_ = status(t, d) // it has looked
		if i := d.Info(); i.Model != "Lane Scanner" || !i.Simulated {
			t.Errorf("got %+v; a device of uinput has a name, and no hardware behind it", i)
		}
		within(t, "SYN_DROPPED", func() bool {
			must(t, s.Scan("0123456789012345678901234567890123456789012345678901234567890123456789"))
			return count(t, d, "CommunicationErrorCount") > 0
		})
		before := count(t, d, "GoodScanCount")
		within(t, "a code after it", func() bool {
			must(t, s.Scan("4006381333931"))
			return count(t, d, "GoodScanCount") > before
		})
	})
}
