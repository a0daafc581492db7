package attack

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tillward/tillward/simulator"
)

// options of a desk below dir, with the binaries that `make build` has left.
func options(t *testing.T) Options {
	t.Helper()
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "tillward-agent")); err != nil {
		t.Fatalf("%v: make build makes it", err)
	}
	dir := t.TempDir()
	return Options{
		Options: simulator.Options{
			Dir: filepath.Join(dir, "desk"), Bin: bin, Seed: 1, Pace: simulator.DeskPace, Out: io.Discard, Log: slog.New(slog.DiscardHandler),
		},
		Report: filepath.Join(dir, "report.json"),
	}
}

// TestAttacks plays every attack against the service that ships.
func TestAttacks(t *testing.T) {
	o := options(t)
	var told strings.Builder
	o.Out = &told
	if err := Run(t.Context(), o); err != nil {
		t.Fatalf("%v\n%s", err, told.String())
	}
	b, err := os.ReadFile(o.Report)
	if err != nil {
		t.Fatal(err)
	}
	var r Report
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Attacks) != len(attacks) || !r.OK {
		t.Errorf("got %d attacks, ok %v, want %d, true", len(r.Attacks), r.OK, len(attacks))
	}
	for _, a := range r.Attacks {
		if !a.Refused || a.Check == "" || !a.Honest {
			t.Errorf("%s: got %+v", a.Name, a)
		}
	}
}

// TestHonestyIsNoAttack plays things that must not be refused; the run has to
// notice. Without it a desk that refuses everything would look safe.
func TestHonestyIsNoAttack(t *testing.T) {
	kept := attacks
	defer func() { attacks = kept }()
	attacks = []attack{{"honest-evidence", "what every till does", []string{"quote.signature"}, func(ctx context.Context, d *desk) (outcome, error) {
		b, err := d.member(ctx, firmware())
		if err != nil {
			return outcome{}, err
		}
		return b.show(ctx, nil)
	}}}
	err := Run(t.Context(), options(t))
	if err == nil || !strings.Contains(err.Error(), "NOT REFUSED") {
		t.Errorf("got %v, want the run to fail", err)
	}
}
