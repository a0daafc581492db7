//go:build halvm

package halvm_test

import (
	"context"
	"os"
	"syscall"
	"testing"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/haltest"
	"github.com/tillward/tillward/hal/input"
	"github.com/tillward/tillward/simulator/emulator"
)

// TestScanner runs the suite over a scanner that evdev serves.
func TestScanner(t *testing.T) {
	haltest.Run(t, func(t *testing.T) haltest.Bench {
		s, err := emulator.NewInputScanner("Lane Scanner")
		must(t, err)
		t.Cleanup(func() { _ = s.Close() })
		node, err := emulator.InputNode("Lane Scanner")
		must(t, err)
		cfg := hal.Config{ID: "scanner", Address: node}
		return haltest.Bench{
			Open: func(t *testing.T) hal.Device {
				d, err := input.Driver{}.Open(t.Context(), cfg)
				must(t, err)
				return d
			},
			Unplug: func(on bool) { must(t, s.Set(emulator.Unplugged, on)) },
			Feed: func(t *testing.T, d hal.Device, number string) {
				before := count(t, d, "GoodScanCount")
				must(t, s.Scan(number))
				within(t, "the code to be counted", func() bool { return count(t, d, "GoodScanCount") == before+1 })
			},
			Observe: func(t *testing.T) hal.Device { return open(t, input.Driver{}, cfg) },
			Compete: func(context.Context) error {
				f, err := os.OpenFile(node, os.O_RDONLY|syscall.O_NONBLOCK, 0)
				if err != nil {
					return err
				}
				return f.Close()
			},
		}
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
