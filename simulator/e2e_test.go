package simulator_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/simulator"
)

// Versions of the agent that tests run.
const (
	shipped = "1.0.0"
	next    = "1.1.0"
	counted = "1.1.1000000" // power cuts count it up
)

// built is where the binaries of this test run are; TestMain removes it.
var built string

func TestMain(m *testing.M) {
	code := m.Run()
	if built != "" {
		_ = os.RemoveAll(built)
	}
	os.Exit(code)
}

// binaries builds, once, what a world runs: as the Makefile does, so that what
// is in the build cache is used, but linked dynamically.
var binaries = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "tillward-bin-")
	if err != nil {
		return "", err
	}
	built = dir
	for _, b := range []struct{ out, pkg, version string }{
		{"tillward-agent", "agent/cmd/tillward-agent", shipped},
		{"next/tillward-agent", "agent/cmd/tillward-agent", next},
		{"powercut/tillward-agent", "agent/cmd/tillward-agent", counted},
		{"tillward", "cloud/cmd/tillward", shipped},
		{"tillward-provision", "provisioning/cmd/tillward-provision", shipped},
	} {
		cmd := exec.Command("go", "build", "-trimpath", "-tags", "sqlite_omit_load_extension netgo osusergo",
			"-ldflags", "-s -w -X main.version="+b.version, "-o", filepath.Join(dir, b.out), "../"+b.pkg)
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w\n%s", b.pkg, err, out)
		}
	}
	return dir, nil
})

// desk is a world of n tills in dir.
func desk(dir string, n int, pace simulator.Pace) (simulator.Options, error) {
	bin, err := binaries()
	return simulator.Options{
		Dir: dir, Bin: bin, Next: filepath.Join(bin, "next", "tillward-agent"), Tills: n, Seed: 1,
		Day: 20 * time.Second, Pace: pace, Out: io.Discard, Log: slog.New(slog.DiscardHandler),
	}, err
}

// TestRun is the demonstration: two tills boot, are updated, run a command and
// end; its report proves what it should.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	opt, err := desk(dir, 2, simulator.DeskPace)
	if err != nil {
		t.Fatal(err)
	}
	opt.UpdateTo = next
	before := children(t)
	file := filepath.Join(dir, "report.json")
	if err := simulator.Run(t.Context(), simulator.RunOptions{Options: opt, ExitAfter: 25 * time.Second, Report: file}); err != nil {
		t.Error(err)
		tell(t, dir)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r simulator.Report
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	if !r.OK || r.Duplicates != 0 || len(r.Problems) != 0 || len(r.Tills) != 2 || r.Seed != 1 || r.Seconds < 25 {
		t.Errorf("got ok %v, %d duplicates, problems %q, %d tills, seed %d, %g s; want ok, 0, none, 2, 1, at least 25 s",
			r.OK, r.Duplicates, r.Problems, len(r.Tills), r.Seed, r.Seconds)
	}
	for i, till := range r.Tills {
		if want := fmt.Sprintf("till-%d", i+1); till.Till != want {
			t.Errorf("till %d is called %q, want %q", i, till.Till, want)
		}
		if len(till.DeviceID) != 24 || till.Tier != "C" || !till.Attested {
			t.Errorf("%s: got device %q, tier %q, attested %v", till.Till, till.DeviceID, till.Tier, till.Attested)
		}
		if till.Samples == 0 || till.Samples != till.Recorded {
			t.Errorf("%s: %d samples recorded, %d stored", till.Till, till.Recorded, till.Samples)
		}
		// Start, enrolment, connection, update, restart, command: more than ten.
		if a := till.Audit; a.Recorded < 10 || a.Recorded != a.Stored || !a.ChainOK {
			t.Errorf("%s: %d audit events recorded, %d stored, chain ok %v", till.Till, a.Recorded, a.Stored, a.ChainOK)
		}
		if v := till.AgentVersion; v.Before != shipped || v.After != next {
			t.Errorf("%s: agent was %s and is %s, want %s and %s", till.Till, v.Before, v.After, shipped, next)
		}
		if c := till.Commands; c.Sent != 1 || c.Succeeded != 1 {
			t.Errorf("%s: %d of %d commands succeeded, want 1 of 1", till.Till, c.Succeeded, c.Sent)
		}
		for _, want := range []simulator.PeripheralReport{{ID: "reader", Category: "SmartCardRW"}, {ID: "receipt", Category: "POSPrinter", Driver: "escpos"}} {
			if !slices.ContainsFunc(till.Peripherals, func(p simulator.PeripheralReport) bool {
				return p.ID == want.ID && p.Category == want.Category && (want.Driver == "" || p.Driver == want.Driver) && p.Health != ""
			}) {
				t.Errorf("%s: got peripherals %+v, want %+v among them", till.Till, till.Peripherals, want)
			}
		}
	}
	if r.Tills[0].DeviceID == r.Tills[1].DeviceID {
		t.Error("two tills are one device")
	}
	for _, left := range children(t) {
		if !slices.Contains(before, left) {
			t.Errorf("left running: %s", left)
		}
	}
}

// TestConsole lets a browser walk through the console of a fleet of two.
func TestConsole(t *testing.T) {
	walk, err := filepath.Abs("../cloud/console/e2e/browse.mjs")
	if err != nil {
		t.Fatal(err)
	}
	for _, need := range []struct{ path, advice string }{
		{"../cloud/console/dist/index.html", "run make console"},
		{"../cloud/console/node_modules/playwright-core", "run make console"},
		{walk, "it belongs to the source"},
		{"/usr/bin/chromium", "install chromium"},
	} {
		if _, err := os.Stat(need.path); err != nil {
			t.Fatalf("%v: %s", err, need.advice)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	dir := t.TempDir()
	opt, err := desk(dir, 2, simulator.DeskPace)
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.MkdirTemp("", "tillward-pg-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(own)
	store, stop, err := simulator.PrivateStore(ctx, own, opt.Log) // TestRun is on SQLite
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	opt.Store = store
	w, err := simulator.Open(ctx, opt)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, till := range w.Tills {
		till.Boot(ctx)
	}
	err = w.Until(ctx, "both tills report", func(ctx context.Context) (bool, error) {
		var fleet struct{ Items []map[string]any }
		err := w.Operator.Get(ctx, "/v1/devices", &fleet)
		ready := 0
		for _, d := range fleet.Items {
			if p, _ := d["peripherals"].([]any); d["trust"] == "attested" && d["samples"] != 0.0 && len(p) == 3 {
				ready++
			}
		}
		return ready == 2, err
	})
	if err != nil {
		tell(t, dir)
		t.Fatal(err)
	}
	if err := w.Release(ctx, next, opt.Next); err != nil {
		t.Fatal(err)
	}
	if err := w.Command(ctx, w.Tills[0], "identify"); err != nil {
		t.Fatal(err)
	}
	shots, err := filepath.Abs("../.cache/screenshots")
	if err != nil {
		t.Fatal(err)
	}
	url, token := w.Console()
	cmd := exec.CommandContext(ctx, "node", walk)
	cmd.Env = append(os.Environ(), "TILLWARD_URL="+url, "TILLWARD_TOKEN_FILE="+token, "OUT="+shots)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it ends its browser
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("browse.mjs: %v\n%s", err, out)
	}
	if pictures, _ := filepath.Glob(filepath.Join(shots, "*.png")); len(pictures) == 0 {
		t.Errorf("no screenshots in %s; the browser said:\n%s", shots, out)
	}
}

// tell shows the ends of the agents' logs below dir.
func tell(t interface{ Log(args ...any) }, dir string) {
	logs, _ := filepath.Glob(filepath.Join(dir, "*", "agent.log"))
	for _, name := range logs {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		t.Log(filepath.Base(filepath.Dir(name)) + "\n" + string(b[max(0, len(b)-3000):]))
	}
}

// children lists the processes that this one started and that still run.
func children(t *testing.T) []string {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(tasks) == 0 {
		t.Fatalf("no list of child processes in /proc: %v", err)
	}
	var out []string
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if errors.Is(err, os.ErrNotExist) {
			continue // the thread has ended
		}
		if err != nil {
			t.Fatal(err)
		}
		for pid := range strings.FieldsSeq(string(b)) {
			name, _ := os.ReadFile("/proc/" + pid + "/cmdline")
			out = append(out, pid+" "+strings.ReplaceAll(string(name), "\x00", " "))
		}
	}
	return out
}
