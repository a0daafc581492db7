package agent

import (
	"fmt"
	"log/slog"
	"slices"
	"testing"

	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/cloud/wire"
)

func batch(t *testing.T, seq uint64, samples ...wire.Sample) []byte {
	t.Helper()
	b, err := wire.Encode(&wire.TelemetryBatch{Head: wire.Head{V: wire.Version, Boot: wire.Boot{7}, Seq: seq}, Samples: samples})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestThin thins minutes of samples again and again.
func TestThin(t *testing.T) {
	const minutes = 32
	var run [][]byte
	for i := range int64(minutes) {
		s := []wire.Sample{
			{At: 1000 * (i + 1), Name: "temp_mc", Value: float64(i)},
			{At: 1000 * (i + 1), Peripheral: "printer", Name: "ReceiptLines", Value: float64(i), Epoch: 1 + i/20},
		}
		if i == 5 {
			s = append(s, wire.Sample{At: 1000*(i+1) + 1, Name: "temp_mc", Value: 5.5}, wire.Sample{At: 1, Name: "rare", Value: 1})
		}
		run = append(run, batch(t, uint64(i+1), s...)) // #nosec G115 -- counts up
	}
	whole := slices.Clone(run)
	for _, want := range []int{17, 9, 5} { // of 33
		run = thin(run)
		temps, rare, at := 0, 0, int64(0)
		last := map[int64]float64{}
		for i, b := range run {
			if b == nil {
				continue
			}
			m, err := wire.Decode[wire.TelemetryBatch](b)
			if err != nil {
				t.Fatal(err)
			}
			if m.Head.Seq != uint64(i+1) || m.Head.Boot != (wire.Boot{7}) { // #nosec G115 -- counts up
				t.Errorf("message %d is now %d", i+1, m.Head.Seq)
			}
			for _, s := range m.Samples {
				switch s.Name {
				case "temp_mc":
					if temps++; s.At < at {
						t.Error("out of order")
					}
					at = s.At
				case "rare":
					rare++
				default:
					last[s.Epoch] = s.Value
				}
			}
		}
		if temps != want || rare != 1 {
			t.Errorf("%d samples of a measurement and %d of a rare one are left, want %d and 1", temps, rare, want)
		}
		if last[1] != 19 || last[2] != minutes-1 {
			t.Errorf("counts end at %v, want 19 and %d: what was counted is lost", last, minutes-1)
		}
	}
	samples, from, to := uint64(0), int64(0), int64(0)
	for _, b := range whole {
		n, f, l := tally(string(wire.Telemetry), b)
		if samples += n; from == 0 || f < from {
			from = f
		}
		to = max(to, l)
	}
	if samples != 2*minutes+2 || from != 1 || to != 1000*minutes {
		t.Errorf("tally: got %d from %d to %d", samples, from, to)
	}
	if got := thin([][]byte{[]byte("no batch"), nil}); string(got[0]) != "no batch" || got[1] != nil {
		t.Errorf("what cannot be read became %q", got)
	}
}

// TestShedIsTold sheds telemetry in real books, and tells it once.
func TestShedIsTold(t *testing.T) {
	cfg := DefaultConfig()
	cfg.StateDir, cfg.Spool.MaxMiB = t.TempDir(), 1
	b, err := OpenBooks(t.Context(), cfg, Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	put := func(n int) {
		for i := range n {
			if err := b.put(t.Context(), spool.Telemetry, wire.Telemetry, telemetryOf(60, i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(2000)
	if b.a.spool.Shed() == 0 {
		t.Fatal("nothing was shed")
	}
	losses, err := b.a.spool.Losses(t.Context())
	if err != nil || len(losses) != 1 {
		t.Fatalf("losses %v (%v)", losses, err)
	}
	// A power cut before it is told, or the end of the agent, changes nothing.
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err = OpenBooks(t.Context(), cfg, Options{Log: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for i, want := range []int{1, 0} {
		if n, err := b.a.recordShed(t.Context()); n != want || err != nil {
			t.Errorf("told %d losses the %d. time (%v), want %d", n, i+1, err, want)
		}
	}
	put(200)
	if n, err := b.a.recordShed(t.Context()); n != 1 || err != nil {
		t.Errorf("told %d losses of what came after (%v)", n, err)
	}
	var entries []wire.AuditRecord
	err = b.a.spool.Next(t.Context(), 0, 10, []string{string(wire.Audit)}, func(_ uint64, _ string, payload []byte) {
		m, err := wire.Decode[wire.AuditBatch](payload)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range m.Entries {
			r, err := e.Open()
			if err != nil {
				t.Fatal(err)
			}
			entries = append(entries, r)
		}
	})
	if err != nil || len(entries) != 2 {
		t.Fatalf("%d entries (%v)", len(entries), err)
	}
	first := entries[0]
	if first.Kind != "spool.shed" || first.Detail["class"] != "telemetry" || first.Detail["messages"] != fmt.Sprint(losses[0].Messages) ||
		first.Detail["samples"] != fmt.Sprint(losses[0].Samples) || first.Detail["from"] == "" || first.Detail["to"] < first.Detail["from"] {
		t.Errorf("the trail says %v of %+v", first, losses[0])
	}
}
