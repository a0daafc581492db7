//go:build firmware

package firmware_test

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/simulator/firmware"
)

// machineParent tells this test to start a machine in the folder, to say which
// processes it has, and to wait until it is killed.
const machineParent = "TILLWARD_TEST_MACHINE_PARENT"

// empty is a machine with nothing on its disk: the firmware comes up, and no
// more.
func empty(ctx context.Context, dir string) (*firmware.Machine, error) {
	cache := "../../.cache/firmware"
	if f := flag.Lookup("cache"); f != nil {
		cache = f.Value.String()
	}
	k, err := firmware.Open(ctx, firmware.Options{Source: "../..", Cache: cache, Say: os.Stderr})
	if err != nil {
		return nil, err
	}
	disk := filepath.Join(dir, "disk.img")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		return nil, err
	}
	m := k.Machine(dir, firmware.MachineOptions{Disk: disk, Restrict: true})
	return m, m.Start(ctx)
}

// alive reports whether a process runs; one that has ended and that nobody has
// asked for does not.
func alive(pid int) bool {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(state, "Z")
}

// TestFirmwareMachineEnds ends a machine in every way there is, and looks for
// what is left of it.
func TestFirmwareMachineEnds(t *testing.T) {
	needsQEMU(t)
	for name, end := range map[string]func(m *firmware.Machine, cancel func()) error{
		"power cut":           func(m *firmware.Machine, _ func()) error { return m.Kill() },
		"in order":            func(m *firmware.Machine, _ func()) error { return m.Shutdown(t.Context()) },
		"the end of its time": func(m *firmware.Machine, cancel func()) error { cancel(); return m.Wait() },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			m, err := empty(ctx, t.TempDir())
			must(t, err)
			pids := m.Processes()
			if len(pids) != 2 || !alive(pids[0]) || !alive(pids[1]) {
				t.Fatalf("processes %v, want two that live", pids)
			}
			if err := m.Start(ctx); err == nil {
				t.Error("switch it on twice: got no error")
			}
			must(t, end(m, cancel))
			for _, pid := range pids {
				if alive(pid) {
					t.Errorf("process %d lives", pid)
				}
			}
			before := m.CPU()
			if before <= 0 || before > time.Minute {
				t.Errorf("it took %v of the processor", before)
			}
			if name == "the end of its time" {
				return
			}
			must(t, m.Start(ctx)) // the same till again
			must(t, m.Kill())
			if m.CPU() <= before {
				t.Error("the second start took nothing")
			}
		})
	}
}

// TestFirmwareMachineDiesWithUs kills the process that started a machine.
func TestFirmwareMachineDiesWithUs(t *testing.T) {
	needsQEMU(t)
	if dir := os.Getenv(machineParent); dir != "" {
		m, err := empty(t.Context(), dir)
		must(t, err)
		fmt.Println("processes:", m.Processes())
		select {}
	}
	self := exec.Command(os.Args[0], append(os.Args[1:], "-test.run=^"+t.Name()+"$")...) // of two flags the last counts
	self.Env = append(os.Environ(), machineParent+"="+t.TempDir())
	self.Stderr = os.Stderr
	out, err := self.StdoutPipe()
	must(t, err)
	must(t, self.Start())
	t.Cleanup(func() { _ = self.Process.Kill(); _ = self.Wait() })
	var pids []int
	for lines := bufio.NewScanner(out); len(pids) == 0 && lines.Scan(); {
		var a, b int
		if n, _ := fmt.Sscanf(lines.Text(), "processes: [%d %d]", &a, &b); n == 2 {
			pids = []int{a, b}
		}
	}
	if len(pids) != 2 {
		t.Fatal("it started no machine")
	}
	must(t, self.Process.Kill())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for alive(pids[0]) || alive(pids[1]) {
		select {
		case <-ctx.Done():
			t.Fatalf("of %v some live on", pids)
		case <-tick.C:
		}
	}
}
