package simulator_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tillward/tillward/simulator"
)

// cuts runs tills through power cuts, and returns the report and the last line
// of what was printed.
func cuts(t *testing.T, tills, n int, spoil func(cut int, disk string) error) (simulator.PowercutReport, string, error) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("power cuts need root, for loop devices")
	}
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil { // #nosec G302 -- the POS application's user passes
		t.Fatal(err)
	}
	opt, err := desk(dir, tills, simulator.Pace{Poll: "1s", Stats: "30s", Batch: "5s", Heartbeat: "5s"})
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	opt.Next, opt.UpdateTo, opt.Out = filepath.Join(opt.Bin, "powercut", "tillward-agent"), counted, &said
	file := filepath.Join(dir, "report.json")
	runErr := simulator.Powercut(t.Context(), simulator.PowercutOptions{Options: opt, Cuts: n, Report: file, Spoil: spoil})
	t.Log(said.String())
	if runErr != nil {
		tell(t, dir)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r simulator.PowercutReport
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("a disk is left mounted: %v", err)
	}
	lines := strings.Split(strings.TrimSpace(said.String()), "\n")
	return r, lines[len(lines)-1], runErr
}

// TestPowercuts is the short form of the 200.
func TestPowercuts(t *testing.T) {
	r, last, err := cuts(t, 5, 20, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := "20 of 20 come back working on old or new, and say so truthfully"; last != want || !r.OK || r.Working != 20 {
		t.Errorf("got %q, ok %v, want %q", last, r.OK, want)
	}
	agents := 0
	for i, c := range r.Points {
		if c.Number != i+1 || c.At.State == "" || c.Runs != c.From && c.Runs != c.To {
			t.Errorf("cut %d: %+v", i+1, c)
		}
		if c.Component == "agent" {
			agents++
		}
	}
	if agents != 10 || len(r.Points) != 20 || len(r.States) < 8 {
		t.Errorf("%d of %d cuts in updates of the agent, in states %v; want 10 of 20, in many", agents, len(r.Points), r.States)
	}
}

// An agent that wrote into a slot in place would leave this: a till that runs
// another version than it should. It is counted as harm.
func TestPowercutHarm(t *testing.T) {
	r, last, err := cuts(t, 1, 3, func(cut int, disk string) error {
		if cut != 2 {
			return nil
		}
		slots := filepath.Join(disk, "state", "agent")
		current, err := os.Readlink(filepath.Join(slots, "current"))
		if err != nil {
			return err
		}
		f, err := os.OpenFile(filepath.Join(slots, current, "tillward-agent"), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteAt(make([]byte, 1<<20), 1<<20)
		return err
	})
	if want := "2 of 3 come back working on old or new, and say so truthfully"; err == nil || last != want || r.OK || len(r.Points[1].Problems) == 0 {
		t.Errorf("got %q, error %v, want %q and an error", last, err, want)
	}
}
