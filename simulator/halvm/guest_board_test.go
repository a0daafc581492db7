//go:build halvm

package halvm_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/board"
	"github.com/tillward/tillward/hal/haltest"
)

const gpioSim = "/sys/kernel/config/gpio-sim/lid"

// chip puts a chip with named lines into the machine. Line returns what the
// kernel lets see of one: pull moves an input, value is what an output is.
func chip(t *testing.T, lines map[int]string) (line func(n int, what string) string) {
	t.Helper()
	folders := []string{"", "bank0"}
	for n := range lines {
		folders = append(folders, fmt.Sprintf("bank0/line%d", n))
	}
	for _, d := range folders {
		must(t, os.Mkdir(filepath.Join(gpioSim, d), 0o755))
	}
	put(t, "8", gpioSim, "bank0/num_lines")
	for n, name := range lines {
		put(t, name, gpioSim, fmt.Sprintf("bank0/line%d/name", n))
	}
	put(t, "1", gpioSim, "live")
	t.Cleanup(func() {
		_ = os.WriteFile(filepath.Join(gpioSim, "live"), []byte("0"), 0o600)
		for _, d := range slices.Backward(folders) {
			must(t, os.Remove(filepath.Join(gpioSim, d)))
		}
	})
	return func(n int, what string) string {
		return filepath.Join("/sys/devices/platform", get(t, gpioSim, "dev_name"), get(t, gpioSim, "bank0/chip_name"), fmt.Sprintf("sim_gpio%d", n), what)
	}
}

func pull(t *testing.T, file string, up bool) {
	t.Helper()
	how := "pull-down"
	if up {
		how = "pull-up"
	}
	put(t, how, file)
}

// lid puts a chip with one named line into the machine.
func lid(t *testing.T) (move func(up bool), unplug func(on bool)) {
	t.Helper()
	line := chip(t, map[int]string{3: "TAMPER_SW"})
	move = func(up bool) { pull(t, line(3, "pull"), up) }
	move(false)
	return move, func(on bool) {
		live := "1"
		if on {
			live = "0"
		}
		put(t, live, gpioSim, "live")
	}
}

// TestDrawer kicks a drawer by its line, and opens it by its key.
func TestDrawer(t *testing.T) {
	line := chip(t, map[int]string{2: "DRAWER_SW", 5: "DRAWER_KICK"})
	sensor := line(2, "pull")
	pull(t, sensor, false)
	d := open(t, board.Switch{}, hal.Config{ID: "drawer", Address: "gpio:DRAWER_SW", Options: map[string]string{
		"kind": "drawer", "kick_line": "DRAWER_KICK", "pulse": "400ms",
	}})
	within(t, "the drawer to be closed", func() bool { return status(t, d).Sensors["DrawerOpened"] == hal.No })
	opened := make(chan error, 1)
	go func() { opened <- d.(hal.DrawerKicker).OpenDrawer(t.Context()) }()
	within(t, "the coil to be on", func() bool { return get(t, line(5, "value")) == "1" })
	pull(t, sensor, true)
	must(t, <-opened)
	if v := get(t, line(5, "value")); v != "0" {
		t.Errorf("after the kick the coil is %s, want 0", v)
	}
	within(t, "the drawer to be open", func() bool { return status(t, d).Sensors["DrawerOpened"] == hal.Yes })
	if s := status(t, d); s.Sensors["M_UnexpectedOpen"] != hal.No {
		t.Errorf("kicked open: %+v", s)
	}
	pull(t, sensor, false)
	within(t, "the drawer to be closed", func() bool { return status(t, d).Sensors["DrawerOpened"] == hal.No })
	pull(t, sensor, true)
	within(t, "an opening that nobody asked for", func() bool { return status(t, d).Reason == "M_DRAWER_UNEXPECTED_OPEN" })
}

// TestTamper runs the suite over a switch on gpio-sim.
func TestTamper(t *testing.T) {
	cfg := hal.Config{ID: "lid", Address: "gpio:TAMPER_SW", Options: map[string]string{"kind": "tamper"}}
	haltest.Run(t, func(t *testing.T) haltest.Bench {
		move, unplug := lid(t)
		return haltest.Bench{
			Open:   func(t *testing.T) hal.Device { return open(t, board.Switch{}, cfg) },
			Faults: []haltest.Fault{{Name: "open", Set: move, Sensor: "M_Tampered", On: "M_TAMPERED", Off: "M_TAMPER_OK"}},
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
