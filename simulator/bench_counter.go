package simulator

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tillward/tillward/simulator/emulator"
)

const (
	benchPeripherals = 32 // beside the box itself
	muteDelay        = 50 // milliseconds that one mute device may cost another
)

// benchCounter looks at one real agent that owns 32 printers at the pace of a
// shop: what it costs, and how long it takes to tell a change of one of them,
// while all are well and while one answers nothing at all.
func benchCounter(ctx context.Context, o BenchOptions) ([]Figure, error) {
	printers := make([]*emulator.Printer, benchPeripherals)
	defer func() {
		for _, p := range printers {
			if p != nil {
				_ = p.Close()
			}
		}
	}()
	var file strings.Builder
	for i := range printers {
		p, err := emulator.NewPrinter("127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		printers[i] = p
		fmt.Fprintf(&file, "[[device]]\nid = %q\ndriver = \"escpos\"\naddress = %q\nclaim = \"own\"\n\n", peripheralName(i), p.Addr())
	}
	w, err := Open(ctx, Options{
		Dir: filepath.Join(o.Dir, "counter"), Bin: o.Bin, Tills: 1, Seed: 1, Devices: file.String(),
		Pace: Pace{Poll: "5s", Stats: "1m", Batch: "1s", Heartbeat: "5m"}, Out: io.Discard, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	defer w.Close()
	t := w.Tills[0]
	t.Boot(ctx)
	if err := w.eachDevice(ctx, "all peripherals", func(_ *Till, d device) bool {
		well := 0
		for _, p := range d.Peripherals {
			if p.Health == "OK" && p.Category == "POSPrinter" {
				well++
			}
		}
		return well > benchPeripherals
	}, nil); err != nil {
		return nil, err
	}
	if err := pause(ctx, 10*time.Second); err != nil { // settled
		return nil, err
	}
	pid := t.proc.pid()
	var rss, shares []float64
	total := 0.0
	for range benchRuns {
		before, began := processCPU(pid), time.Now()
		if err := pause(ctx, 10*time.Second); err != nil {
			return nil, err
		}
		used := processCPU(pid) - before
		total += used
		shares = append(shares, used/time.Since(began).Seconds())
		kib, err := resident(pid)
		if err != nil {
			return nil, err
		}
		rss = append(rss, kib*1024)
	}
	memory, share := figure("agent_32_peripherals_resident_memory_bytes", "bytes", rss), figure("agent_32_peripherals_cpu_share", "of a core", shares)
	memory.Limit, share.Limit, share.CPU = 30<<20, 0.01, total

	well, err := w.seen(ctx, t, printers)
	if err != nil {
		return nil, err
	}
	printers[0].Set(emulator.Mute, true)
	beside, err := w.seen(ctx, t, printers)
	if err != nil {
		return nil, err
	}
	healthy := figure("change_seen_all_well_ms", "ms", well)
	mute := figure("change_seen_beside_a_mute_device_ms", "ms", beside)
	mute.Beside, mute.Limit = &healthy, slices.Max(well)+muteDelay
	cost := figure("mute_device_delays_others_by_ms", "ms", []float64{slices.Max(beside) - slices.Max(well)})
	cost.Limit = muteDelay
	return []Figure{memory, share, mute, cost}, nil
}

func peripheralName(i int) string { return fmt.Sprintf("printer-%02d", i) }

// seen opens and closes the covers of all printers but the first, at moments
// spread over the pace at which they are asked, and returns for each how many
// milliseconds later the agent knew.
func (w *World) seen(ctx context.Context, t *Till, printers []*emulator.Printer) ([]float64, error) {
	opened := make(map[string]time.Time)
	for i, p := range printers[1:] {
		opened[peripheralName(i+1)] = time.Now()
		p.Set(emulator.CoverOpen, true)
		if err := pause(ctx, 170*time.Millisecond); err != nil {
			return nil, err
		}
		p.Set(emulator.CoverOpen, false)
	}
	id, _, err := w.Find(ctx, t)
	if err != nil {
		return nil, err
	}
	took := map[string]float64{}
	err = w.Until(ctx, "all covers are told", func(ctx context.Context) (bool, error) {
		var told list[struct {
			At         time.Time `json:"at"`
			Peripheral string    `json:"peripheral"`
			Code       string    `json:"code"`
		}]
		if err := w.Operator.Get(ctx, "/v1/devices/"+id+"/events?limit=1000", &told); err != nil {
			return false, err
		}
		for _, e := range told.Items {
			if at, ok := opened[e.Peripheral]; ok && e.Code == "COVER_OPEN" && !e.At.Before(at.Truncate(time.Millisecond)) {
				took[e.Peripheral] = float64(e.At.Sub(at).Microseconds()) / 1000
			}
		}
		return len(took) == len(opened), nil
	})
	out := make([]float64, 0, len(took))
	for _, ms := range took {
		out = append(out, max(0, ms))
	}
	return out, err
}
