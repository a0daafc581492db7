package emulator_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/escpos"
	"github.com/tillward/tillward/hal/pcsc"
	"github.com/tillward/tillward/simulator/emulator"
)

func TestDayIsRepeatable(t *testing.T) {
	a, truth := emulator.Cafe.Day(7)
	b, again := emulator.Cafe.Day(7)
	if !slices.Equal(a, b) || fmt.Sprint(truth) != fmt.Sprint(again) {
		t.Error("the same seed gave two different days")
	}
	if b, _ := emulator.Cafe.Day(8); slices.Equal(a, b) {
		t.Error("two seeds gave the same day")
	}
}

// A day keeps what its duty promises, whatever the seed.
func TestDayKeepsItsDuty(t *testing.T) {
	for name, duty := range map[string]emulator.Duty{"cafe": emulator.Cafe, "grocer": emulator.Grocer, "desk": emulator.Desk} {
		receipts, worn, days := 0, 0, 200
		for seed := range uint64(days) {
			steps, truth := duty.Day(seed)
			open := map[emulator.Act]int{}
			for i, s := range steps {
				if s.At < 0 || s.At >= truth.Length || i > 0 && s.At < steps[i-1].At {
					t.Fatalf("%s, seed %d: step %d is at %v of %v", name, seed, i, s.At, truth.Length)
				}
				open[s.Act]++
				for begin, end := range map[emulator.Act]emulator.Act{
					emulator.OpenDrawer: emulator.CloseDrawer, emulator.JamCutter: emulator.ClearCutter, emulator.PullPlug: emulator.PutPlug,
				} {
					if n := open[begin] - open[end]; n < 0 || n > 1 {
						t.Fatalf("%s, seed %d: %d times more %q than %q at %v", name, seed, n, begin, end, s.At)
					}
				}
				if n := open[emulator.InsertCard] + open[emulator.WornCard] + open[emulator.TearCard] - open[emulator.RemoveCard]; n < 0 || n > 1 {
					t.Fatalf("%s, seed %d: %d cards in the reader at %v", name, seed, n, s.At)
				}
			}
			for begin, end := range map[emulator.Act]emulator.Act{
				emulator.OpenCover: emulator.CloseCover, emulator.OpenDrawer: emulator.CloseDrawer, emulator.JamCutter: emulator.ClearCutter, emulator.PullPlug: emulator.PutPlug,
			} {
				if open[begin] != open[end] {
					t.Errorf("%s, seed %d: the day ends with %q", name, seed, begin)
				}
			}
			receipts += truth.Receipts + truth.Refused
			worn += truth.Worn
		}
		mean := 0.0
		for _, n := range duty.PerHour {
			mean += n
		}
		if got := float64(receipts) / float64(days); got < mean*0.98 || got > mean*1.02 {
			t.Errorf("%s: %.1f receipts a day, want %.1f", name, got, mean)
		}
		if got := float64(worn) / float64(days); got < duty.Worn*0.9-0.05 || got > duty.Worn*1.1+0.05 {
			t.Errorf("%s: %.2f worn cards a day, want %.2f", name, got, duty.Worn)
		}
	}
	for seed := range uint64(50) {
		_, truth := emulator.Desk.Day(seed)
		if len(truth.RunOut) == 0 || len(truth.Rolls) != 2 || truth.Jams != 1 || truth.Pulls != 1 || truth.Covers != 2 || truth.Worn != 1 || truth.Torn != 1 {
			t.Errorf("desk, seed %d: not all happens: %+v", seed, truth)
		}
	}
}

// The truth is what the printer does: its own counters and sensors say the same
// at every step, though they were not asked when the truth was written.
func TestTruthIsTrue(t *testing.T) {
	for name, duty := range map[string]emulator.Duty{"cafe": emulator.Cafe, "grocer": emulator.Grocer, "desk": emulator.Desk} {
		for seed := range uint64(20) {
			p := bare(t)
			steps, truth := duty.Day(seed)
			var nearEnd, runOut []time.Duration
			low, out := false, false
			err := emulator.Play(t.Context(), steps, 1e12, p, nil, func(s emulator.Step, do func()) {
				do()
				if now := p.Has(emulator.NearEnd); now != low {
					if low = now; low {
						nearEnd = append(nearEnd, s.At)
					}
				}
				if now := p.Has(emulator.PaperEnd); now != out {
					if out = now; out {
						runOut = append(runOut, s.At)
					}
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(nearEnd, truth.NearEnd) || !slices.Equal(runOut, truth.RunOut) {
				t.Errorf("%s, seed %d: low at %v, out at %v; the truth says %v and %v", name, seed, nearEnd, runOut, truth.NearEnd, truth.RunOut)
			}
			if p.Counter(148) != uint64(truth.Lines) || p.Counter(178) != uint64(truth.Receipts) {
				t.Errorf("%s, seed %d: %d lines and %d cuts; the truth says %d and %d", name, seed, p.Counter(148), p.Counter(178), truth.Lines, truth.Receipts)
			}
			if got := truth.Left(truth.Length); got != max(0, p.Paper()) {
				t.Errorf("%s, seed %d: %d lines left; the truth says %d", name, seed, p.Paper(), got)
			}
			for i, at := range truth.RunOut {
				if truth.Left(at) != 0 || truth.Left(at-1) == 0 {
					t.Errorf("%s, seed %d: run out %d at %v, but %d lines were left before and %d after", name, seed, i, at, truth.Left(at-1), truth.Left(at))
				}
			}
			_ = p.Close()
		}
	}
}

// An empty roll stays in when nobody cares.
func TestNobodyRestocks(t *testing.T) {
	duty := emulator.Cafe
	duty.Left, duty.Restock = 2000, 0
	_, truth := duty.Day(1)
	if len(truth.RunOut) != 1 || len(truth.Rolls) != 1 || truth.Refused == 0 || truth.Left(truth.Length) != 0 {
		t.Errorf("got %+v", truth)
	}
}

// Each incident is told by the driver with its codes, when it comes and when it
// is over.
func TestIncidentsAreTold(t *testing.T) {
	p := printer(t)
	readers := virtualPCSCD(t, 1)
	paper, err := escpos.Driver{}.Open(t.Context(), hal.Config{
		ID: "receipt", Address: p.Addr(), Claim: hal.Own, Options: map[string]string{"drawer": "drawer", "drawer_open_level": "high", "left_open": "300ms"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer paper.Close()
	r := readers.Reader(0)
	reader, err := pcsc.Driver{}.Open(t.Context(), hal.Config{ID: "reader", Options: map[string]string{"socket": r.Socket, "reader": r.Name, "probe": "insert"}})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	heard := map[string]chan string{}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	devices := append([]hal.Device{paper, reader}, paper.(hal.Parent).Parts()...)
	for _, d := range devices {
		codes := make(chan string, 1000)
		heard[string(d.Info().Category)] = codes
		go func() {
			for e, err := range d.(hal.Notifier).Events(ctx) {
				if err == nil {
					codes <- e.Code
				}
			}
		}()
		seen(t, d, "start", func(s hal.Status) bool { return s.Power == hal.PowerOnline })
	}
	await := func(i emulator.Incident, code string) {
		t.Helper()
		for code != "" {
			select {
			case got := <-heard[i.Peripheral]:
				if got == code {
					return
				}
			case <-ctx.Done():
				t.Fatalf("%s: waiting for %s", i.Name, code)
			}
		}
	}
	for _, i := range append(p.Incidents(), readers.Incidents(0)...) {
		for _, on := range []bool{true, false} {
			if err := i.Set(on); err != nil {
				t.Fatalf("%s: %v", i.Name, err)
			}
			if i.Asked {
				err := devices[2].(hal.DrawerKicker).OpenDrawer(ctx)
				if (err != nil) != on {
					t.Errorf("%s, %v: open the drawer: %v", i.Name, on, err)
				}
			}
			await(i, map[bool]string{true: i.On, false: i.Off}[on])
		}
		p.Set(emulator.DrawerOpen, false)
		for _, d := range devices {
			seen(t, d, "after "+i.Name, func(s hal.Status) bool {
				return s.Power == hal.PowerOnline && s.Health == hal.OK && (d != devices[2] || s.Sensors["DrawerOpened"] == hal.No)
			})
		}
	}
}
