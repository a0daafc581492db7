//go:build halvm

package halvm_test

import (
	"bufio"
	"encoding/json"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/board"
	"github.com/tillward/tillward/hal/escpos"
	"github.com/tillward/tillward/hal/hotplug"
	"github.com/tillward/tillward/hal/input"
	"github.com/tillward/tillward/simulator/emulator"
)

// seen is what a user without rights sees of the hardware.
type seen struct {
	UID      int
	Caps     string // effective capabilities
	Bus      []string
	Printer  hal.Health
	Tampered string
	Scanner  hal.Power
	Scans    float64
}

const asUser = "HALVM_USER"

// TestUser drives everything at once as the agent does: by a user of its own
// who is in the groups of the devices, and has no capability.
func TestUser(t *testing.T) {
	if os.Getenv(asUser) != "" {
		watchAsUser(t)
		return
	}
	_, printer := play(t)
	scanner, err := emulator.NewUSBScanner("dummy_udc.1", "LANE0002")
	must(t, err)
	t.Cleanup(func() { must(t, scanner.Close()) })
	pull, _ := lid(t)
	const user, lp, inputs, gpio = 990, 7, 104, 986
	give := func() { // as udev does
		for pattern, group := range map[string]int{"/dev/usb/lp*": lp, "/dev/input/event*": inputs, "/dev/gpiochip*": gpio} {
			for _, node := range glob(t, pattern) {
				must(t, os.Chown(node, 0, group))
				must(t, os.Chmod(node, 0o660))
			}
		}
	}
	c := exec.CommandContext(t.Context(), "/lane.test", "-test.run=^TestUser$")
	c.Env = append(os.Environ(), asUser+"=1")
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user, Groups: []uint32{lp, inputs, gpio}}}
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	must(t, err)
	out, err := c.StdoutPipe()
	must(t, err)
	must(t, c.Start())
	var mu sync.Mutex
	var last seen
	var wg sync.WaitGroup
	wg.Go(func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var s seen
			if json.Unmarshal(lines.Bytes(), &s) == nil {
				mu.Lock()
				last = s
				mu.Unlock()
			}
		}
	})
	defer func() {
		_ = in.Close()
		wg.Wait()
		must(t, c.Wait())
		t.Logf("last seen: %+v", last)
	}()
	until := func(what string, ok func(s seen) bool) {
		t.Helper()
		within(t, what, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return ok(last)
		})
	}
	until("a user to look", func(s seen) bool { return s.UID == user && strings.Trim(s.Caps, "0") == "" && s.Caps != "" })
	until("nothing without the right to it", func(s seen) bool {
		return s.Printer == hal.NoSensor && s.Scanner == hal.PowerUnknown && s.Tampered == "Unknown" && len(s.Bus) == 2
	})
	give()
	until("all of it with the right to it", func(s seen) bool {
		return s.Printer == hal.OK && s.Scanner == hal.PowerOnline && s.Tampered == "No"
	})
	pull(true)
	must(t, scanner.Scan("4006381333931"))
	until("a lid and a code", func(s seen) bool { return s.Tampered == "Yes" && s.Scans == 1 })
	must(t, printer.Plug(false))
	until("the printer to be gone, from driver and bus", func(s seen) bool { return s.Printer == hal.Offline && len(s.Bus) == 1 })
	must(t, printer.Plug(true))
	within(t, "the kernel to serve the printer", func() bool { return len(glob(t, "/dev/usb/lp*")) == 1 })
	give()
	until("the printer again", func(s seen) bool { return s.Printer == hal.OK && len(s.Bus) == 2 })
}

// watchAsUser tells what it sees, until standard input ends.
func watchAsUser(t *testing.T) {
	var mu sync.Mutex
	bus := map[string]bool{}
	go func() {
		must(t, hotplug.Bus{}.Watch(t.Context(), func(c hal.Change) {
			mu.Lock()
			defer mu.Unlock()
			if bus[c.Key] = true; c.Gone {
				delete(bus, c.Key)
			}
		}))
	}()
	printer := open(t, escpos.Driver{}, hal.Config{ID: "receipt", Address: "usb:04b8:0e15", Claim: hal.Own})
	scanner := open(t, input.Driver{}, hal.Config{ID: "scanner", Address: "usb:05e0:1200"})
	lid := open(t, board.Switch{}, hal.Config{ID: "lid", Address: "gpio:TAMPER_SW", Options: map[string]string{"kind": "tamper"}})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	_, caps, _ := strings.Cut(get(t, "/proc/self/status"), "CapEff:")
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		mu.Lock()
		s := seen{
			UID: os.Getuid(), Caps: strings.Fields(caps)[0], Bus: slices.Sorted(maps.Keys(bus)), Printer: status(t, printer).Health,
			Tampered: status(t, lid).Sensors["M_Tampered"].String(), Scanner: status(t, scanner).Power, Scans: count(t, scanner, "GoodScanCount"),
		}
		mu.Unlock()
		must(t, json.NewEncoder(os.Stdout).Encode(s))
		select {
		case <-ended:
			return
		case <-tick.C:
		}
	}
}
