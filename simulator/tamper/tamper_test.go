package tamper

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tillward/tillward/hal/slot/slottest"
	"github.com/tillward/tillward/simulator"
)

func TestMain(m *testing.M) { slottest.Main(m) }

// options of a siege below a folder of the test, with the binaries that `make
// build` has left.
func options(t *testing.T) Options {
	t.Helper()
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	next := filepath.Join(bin, "next", "tillward-agent")
	version, err := exec.CommandContext(t.Context(), next, "-version").Output()
	if err != nil {
		t.Fatalf("%v: make build makes it", err)
	}
	dir := t.TempDir()
	// Applications check themselves as nobody, who has to come by.
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o711); err != nil { // #nosec G302 -- nothing can be listed
			t.Fatal(err)
		}
	}
	return Options{
		Options: simulator.Options{
			Dir: filepath.Join(dir, "w"), Bin: bin, Next: next, UpdateTo: strings.TrimSpace(string(version)), Seed: 1, Pace: simulator.DeskPace,
			Out: io.Discard, Log: slog.New(slog.DiscardHandler),
		},
		Report: filepath.Join(dir, "report.json"),
	}
}

func report(t *testing.T, o Options) (r Report) {
	t.Helper()
	b, err := os.ReadFile(o.Report)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestAttacks plays every attack.
func TestAttacks(t *testing.T) {
	t.Parallel()
	o := options(t)
	var told strings.Builder
	o.Out = &told
	if err := Run(t.Context(), o); err != nil {
		t.Fatalf("%v\n%s", err, told.String())
	}
	r := report(t, o)
	got := map[string]Line{}
	for _, a := range r.Attacks {
		got[a.Name] = a
	}
	if !r.OK || len(got) != len(Names()) {
		t.Errorf("got %d attacks, ok %v, want %d, true", len(got), r.OK, len(Names()))
	}
	// Those of the TUF specification, 1.5.2, and what else is known to have hurt fleets.
	for _, name := range []string{
		"arbitrary-install", "endless-data", "extraneous-dependencies", "fast-forward", "freeze", "malicious-mirror", "mix-and-match", "rollback",
		"slow-retrieval", "key-compromise-below-threshold", "wrong-software", "withheld-root-after-revocation", "flipped-byte-in-resumed-range",
		"agent-never-connects", "image-breaks-printer", "fleet-service-compromised", "update-medium",
	} {
		if a := got[name]; !a.Refused || a.Check == "" || !a.Same || !a.Honest || len(a.Tries) == 0 {
			t.Errorf("%s: got %+v", name, a)
		}
	}
}

// TestNotices lets three things through that no attack may do. The run has to
// notice each: a harness that cannot fail shows nothing.
func TestNotices(t *testing.T) {
	t.Parallel()
	o := options(t)
	err := run(t.Context(), o, plan{lanes: [][]attack{{
		{"no-attack", "a release as it should be", func(ctx context.Context, l *lane) error {
			return l.serving(ctx, "a good release", usual, func(release) act { return nil }, "signature")
		}},
		{"other-check", "a release that is refused, by another check", func(ctx context.Context, l *lane) error {
			return l.serving(ctx, "another content", usual, func(r release) act { return l.mirror.instead(r.id, others) }, "rollback")
		}},
		{"refused-and-run", "a release that is refused, and another one that runs then", func(ctx context.Context, l *lane) error {
			if _, err := l.takes(ctx); err != nil {
				return err
			}
			return l.serving(ctx, "another content", usual, func(r release) act { return l.mirror.instead(r.id, others) }, "signature")
		}},
	}}})
	for name, want := range map[string]string{
		"no-attack": "NOT REFUSED", "other-check": `refused by "signature", want rollback`, "refused-and-run": "RUNS SOMETHING ELSE",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", name, err, want)
		}
	}
	r := report(t, o)
	if r.OK || len(r.Attacks) != 3 {
		t.Errorf("got %d attacks, ok %v, want 3, false", len(r.Attacks), r.OK)
	}
	for _, a := range r.Attacks {
		if a.Refused && a.Same {
			t.Errorf("%s: counts as refused without a trace", a.Name)
		}
	}
}
