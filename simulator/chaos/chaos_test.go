package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/simulator"
)

// TestMain gives the tests a network and mounts of their own, where that can be;
// and it is the agents of the tills.
func TestMain(m *testing.M) {
	if code, is := Till(os.Args); is {
		os.Exit(code)
	}
	ran, err := Alone(context.Background())
	if exit := Exit(0); errors.As(err, &exit) {
		os.Exit(int(exit))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if ran {
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestShort is the whole in little: each kind of fault, and nothing is lost.
func TestShort(t *testing.T) {
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "tillward-agent")); err != nil {
		t.Fatalf("%v: make build makes it", err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "report.json")
	out := io.Discard
	if testing.Verbose() {
		out = os.Stdout
	}
	err = Run(t.Context(), Options{
		Options: simulator.Options{
			Dir: filepath.Join(dir, "w"), Bin: bin, Tills: 3, Seed: 3, Day: 20 * time.Second, Out: out, Log: slog.New(slog.DiscardHandler),
			Pace: simulator.Pace{Poll: "1s", Stats: "2s", Batch: "1s", Heartbeat: "5s"},
		},
		For: 18 * time.Second, Faults: 40, Report: file,
	})
	if err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r Report
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	for _, p := range r.Problems {
		t.Error(p)
	}
	happened := 0
	for _, f := range r.Faults {
		happened += min(f.Count, 1)
	}
	if r.Total < 36 || happened < len(r.Faults)-3 || len(r.Tills) != 3 {
		t.Errorf("%d faults, %d of %d kinds, on %d tills; not run: %q", r.Total, happened, len(r.Faults), len(r.Tills), r.NotRun)
	}
	for _, c := range r.Classes {
		if c.Recorded == 0 {
			t.Errorf("nothing of class %s was recorded: the run shows nothing", c.Class)
		}
	}
	if t.Failed() {
		logs, _ := filepath.Glob(filepath.Join(dir, "w", "*", "agent.log"))
		for _, l := range append(logs, filepath.Join(dir, "w", "service.log")) {
			b, _ := os.ReadFile(l)
			t.Logf("%s:\n%s", l, b[max(0, len(b)-3000):])
		}
	}
}

// TestPlan: one seed draws one plan, with every kind in it.
func TestPlan(t *testing.T) {
	a, b, c := plan(1, 20, 900, ofService, 10*time.Minute), plan(1, 20, 900, ofService, 10*time.Minute), plan(2, 20, 900, ofService, 10*time.Minute)
	if !slices.Equal(a, b) {
		t.Error("the same seed drew two plans")
	}
	if slices.Equal(a, c) {
		t.Error("two seeds drew one plan")
	}
	for _, p := range [][]fault{a, plan(1, 3, len(kinds), ofService, 20*time.Second)} {
		seen := make(map[string]bool)
		for _, f := range p {
			seen[f.name] = true
			if (f.till < 0) != (f.lane == "service") || f.at < 0 || f.long < 0 || f.long > f.most {
				t.Errorf("fault %+v", f)
			}
		}
		if len(seen) != len(kinds)+len(ofService) {
			t.Errorf("%d kinds in a plan of %d faults, want %d", len(seen), len(p), len(kinds)+len(ofService))
		}
	}
	if len(a) < 900 {
		t.Errorf("%d faults, want at least 900", len(a))
	}
}

// TestClocks: each wrong clock is wrong as it says, and goes on from there.
func TestClocks(t *testing.T) {
	for name, by := range map[string]time.Duration{
		clockDead: -10 * 365 * 24 * time.Hour, clockFar: 5 * 365 * 24 * time.Hour, clockBack: -time.Hour, clockAhead: 26 * time.Hour,
	} {
		got := time.Until(wrong(name, clock{}).now())
		if d := (got - by).Abs(); d > 4*24*time.Hour || by.Abs() < 48*time.Hour && d > time.Minute {
			t.Errorf("%s: %s off, want %s", name, got, by)
		}
	}
	c := clock{At: time.Now().Add(-time.Hour).UnixNano(), Says: 0, Rate: 1.05}
	if got := c.now().Sub(time.Unix(0, 0)); got < 62*time.Minute || got > 65*time.Minute {
		t.Errorf("an hour of a fast clock took %s", got)
	}
	if got := time.Since((clock{}).now()).Abs(); got > time.Minute {
		t.Errorf("the clock that is right is %s off", got)
	}
}

func TestPrint(t *testing.T) {
	var b strings.Builder
	r := Report{
		Seed: 3, Seconds: 60, Total: 4, Faults: []faultCount{{agentKilled, 3, nil}, {duplicates, 1, map[string]int{"sent again": 7}}},
		Classes: []count{{Class: audit, Recorded: 5, Stored: 4, Lost: 1}}, Tills: []tillResult{{Till: "till-1", Counts: []count{{Stored: 4}}, Chain: "entry 5 is missing", Verified: "ok"}},
		Problems: []string{"till-1: audit 5 is lost"}, NotRun: []string{"nothing"},
	}
	r.print(&b)
	for _, want := range []string{"3  agent killed (kill -9)", "(7 sent again)", "4  in all", "entry 5 is missing", "problem: till-1: audit 5 is lost", "not run: nothing"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in\n%s", want, b.String())
		}
	}
}
