//go:build halvm

package halvm_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/board"
	"github.com/tillward/tillward/hal/haltest"
)

const gpioSim = "/sys/kernel/config/gpio-sim/lid"

// lid puts a chip with one named line into the machine.
func lid(t *testing.T) (pull func(up bool), unplug func(on bool)) {
	t.Helper()
	for _, d := range []string{"", "bank0", "bank0/line3"} {
		must(t, os.Mkdir(filepath.Join(gpioSim, d), 0o755))
	}
	put(t, "8", gpioSim, "bank0/num_lines")
	put(t, "TAMPER_SW", gpioSim, "bank0/line3/name")
	put(t, "1", gpioSim, "live")
	t.Cleanup(func() {
		_ = os.WriteFile(filepath.Join(gpioSim, "live"), []byte("0"), 0o600)
		for _, d := range []string{"bank0/line3", "bank0", ""} {
			must(t, os.Remove(filepath.Join(gpioSim, d)))
		}
	})
	pull = func(up bool) {
		how := "pull-down"
		if up {
			how = "pull-up"
		}
		put(t, how, "/sys/devices/platform", get(t, gpioSim, "dev_name"), get(t, gpioSim, "bank0/chip_name"), "sim_gpio3/pull")
	}
	pull(false)
	return pull, func(on bool) {
		live := "1"
		if on {
			live = "0"
		}
		put(t, live, gpioSim, "live")
	}
}

// TestTamper runs the suite over a switch on gpio-sim.
func TestTamper(t *testing.T) {
	cfg := hal.Config{ID: "lid", Address: "gpio:TAMPER_SW", Options: map[string]string{"kind": "tamper"}}
	haltest.Run(t, func(t *testing.T) haltest.Bench {
		pull, unplug := lid(t)
		return haltest.Bench{
			Open:   func(t *testing.T) hal.Device { return open(t, board.Switch{}, cfg) },
			Faults: []haltest.Fault{{Name: "open", Set: pull, Sensor: "M_Tampered", On: "M_TAMPERED", Off: "M_TAMPER_OK"}},
			Unplug: unplug,
			Blind: func(t *testing.T) hal.Device {
				within(t, "another program to take the line", func() bool { return status(t, open(t, board.Switch{}, cfg)).Health == hal.OK })
				return open(t, board.Switch{}, cfg)
			},
			Unseen: []string{"M_Tampered"},
			NotApplicable: map[int]string{
				2:  "the kernel answers",
				5:  "a line has two levels, and both mean something",
				7:  "a line is taken by one alone",
				10: "a line has two levels: it meets no digits",
				11: "an input puts nothing out",
			},
		}
	})
}
