package telemetry_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/agent/internal/telemetry"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
)

// thing is a device that does what the test says. It reads its status and
// counts; bell tells events as well.
type thing struct {
	mu     sync.Mutex
	info   hal.Info
	status func(context.Context) (hal.Status, error)
	stats  func(context.Context) ([]hal.Stat, error)
	looks  int
}

// bell is a thing that is a hal.Notifier.
type bell struct {
	*thing
	events chan hal.Event
}

// box only counts.
type box struct{ stats []hal.Stat }

func (box) String() string                                   { return "box" }
func (box) Halt() error                                      { return nil }
func (box) Close() error                                     { return nil }
func (box) Info() hal.Info                                   { return hal.Info{ID: "host", Category: hal.Host} }
func (b box) Statistics(context.Context) ([]hal.Stat, error) { return b.stats, nil }

func printer() *thing {
	t := &thing{info: hal.Info{ID: "printer-1", Category: hal.POSPrinter, Driver: "escpos", Model: "T-1"}}
	t.says(hal.OK, hal.No)
	t.stats = func(context.Context) ([]hal.Stat, error) {
		return []hal.Stat{{Name: "ReceiptLineFeedCount", Value: 42}}, nil
	}
	return t
}

func (d *thing) says(health hal.Health, cover hal.Tri) {
	d.does(func(context.Context) (hal.Status, error) {
		return hal.Status{Health: health, Power: hal.PowerOnline, Sensors: map[string]hal.Tri{"CoverOpen": cover}}, nil
	})
}

func (d *thing) does(status func(context.Context) (hal.Status, error)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.status = status
}

func (d *thing) String() string { return d.info.ID }
func (d *thing) Halt() error    { return nil }
func (d *thing) Close() error   { return nil }
func (d *thing) Info() hal.Info { return d.info }

func (d *thing) Status(ctx context.Context) (hal.Status, error) {
	d.mu.Lock()
	status := d.status
	d.looks++
	d.mu.Unlock()
	return status(ctx)
}

func (d *thing) looked() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.looks
}

func (d *thing) Statistics(ctx context.Context) ([]hal.Stat, error) { return d.stats(ctx) }

func (d bell) Events(ctx context.Context) iter.Seq2[hal.Event, error] {
	return func(yield func(hal.Event, error) bool) {
		for {
			select {
			case <-ctx.Done():
				return
			case e := <-d.events:
				if e.Code == "lost" {
					yield(hal.Event{}, errors.New("device lost"))
					return
				}
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

// desk is a spool and an audit trail in memory that decode all they are given.
type desk struct {
	t *testing.T

	mu      sync.Mutex
	samples []wire.Sample
	batches []int
	events  []wire.PeripheralEvent
	checks  []wire.HealthCheck
	states  []wire.StateReport
	audit   []string
	counter uint64
	seq     uint64
	fail    error
}

func (d *desk) Compose(_ context.Context, class, channel string, compose func() ([]byte, error), counts map[string]uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		return d.fail
	}
	b, err := compose()
	if err != nil {
		d.t.Errorf("%s: %v", channel, err)
		return err
	}
	want := spool.Telemetry
	switch wire.Channel(channel) {
	case wire.Telemetry:
		m, err := wire.Decode[wire.TelemetryBatch](b)
		if err != nil {
			d.t.Error(err)
		}
		d.samples, d.batches = append(d.samples, m.Samples...), append(d.batches, len(m.Samples))
	case wire.Event:
		m, err := wire.Decode[wire.EventBatch](b)
		if err != nil {
			d.t.Error(err)
		}
		d.events, d.checks = append(d.events, m.Events...), append(d.checks, m.Checks...)
		want = spool.Event
	case wire.State:
		m, err := wire.Decode[wire.StateReport](b)
		if err != nil {
			d.t.Error(err)
		}
		d.states = append(d.states, m)
		want = spool.State
	}
	if class != want {
		d.t.Errorf("%s put as %s, want %s", channel, class, want)
	}
	for _, n := range counts {
		d.counter += n
	}
	return nil
}

func (d *desk) Counter(context.Context, string) (uint64, error) { return d.counter, nil }
func (d *desk) Depth() uint64                                   { return 3 }
func (d *desk) Shed() uint64                                    { return 4 }

func (d *desk) record(_ context.Context, kind, severity, subject string, detail map[string]string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.audit = append(d.audit, strings.Join([]string{kind, severity, subject, detail["reason"] + detail["flapping"]}, " "))
	return nil
}

func (d *desk) next() wire.Head {
	d.seq++
	return wire.Head{V: 1, Boot: wire.Boot{1}, Seq: d.seq}
}

func (d *desk) options(devices ...hal.Device) telemetry.Options {
	return telemetry.Options{
		Devices: devices, Spool: d, Next: d.next, Record: d.record,
		Fill: func(r *wire.StateReport) bool { r.AgentVersion, r.Slot = "1.2.3", "a"; return true },
	}
}

// got is what the desk holds by now.
func (d *desk) got() (samples []wire.Sample, events []wire.PeripheralEvent, states []wire.StateReport, audit []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.samples), slices.Clone(d.events), slices.Clone(d.states), slices.Clone(d.audit)
}

func (d *desk) told() []wire.HealthCheck {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.checks)
}

// watch runs a monitor in a bubble; after lets time pass in it.
func watch(t *testing.T, o telemetry.Options, body func(m *telemetry.Monitor, after func(time.Duration))) {
	ctx, cancel := context.WithCancel(t.Context())
	m := telemetry.New(o)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := m.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("run ended with %v", err)
		}
	})
	body(m, func(d time.Duration) {
		<-time.After(d)
		synctest.Wait()
	})
	cancel()
	wg.Wait()
}

// What is not known yet is not told, and is told soon once it is.
func TestStateWaitsForTheTruth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, began := &desk{t: t}, time.Now()
		o := d.options(printer())
		o.Fill = func(r *wire.StateReport) bool { r.AgentVersion = "1.2.3"; return time.Since(began) > 20*time.Second }
		watch(t, o, func(_ *telemetry.Monitor, after func(time.Duration)) {
			after(19 * time.Second)
			if _, _, states, _ := d.got(); len(states) != 0 {
				t.Errorf("told before it was known: %+v", states)
			}
			after(5 * time.Second)
			if _, _, states, _ := d.got(); len(states) != 1 {
				t.Errorf("told %d times once it was known", len(states))
			}
		})
	})
}

func TestSamplesAndState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, p := &desk{t: t}, printer()
		host := box{[]hal.Stat{{Name: "temp_mc", Value: 45000}, {Name: "bad", Value: math.NaN()}}}
		if s := telemetry.New(d.options(p, host)).Snapshot(); len(s) != 1 || s[0].Health != "Unknown" || s[0].Power != "PS_UNKNOWN" {
			t.Errorf("before the first look: %+v", s)
		}
		watch(t, d.options(p, host), func(m *telemetry.Monitor, after func(time.Duration)) {
			after(2 * time.Second)
			if s := m.Snapshot(); len(s) != 1 || s[0].Health != "OK" || s[0].Sensors["CoverOpen"] != "No" || s[0].Since == 0 {
				t.Errorf("after the first look: %+v", s)
			}
			_, _, states, _ := d.got()
			if len(states) == 0 {
				t.Fatal("no state within two seconds of the start")
			}
			if s := states[len(states)-1]; s.AgentVersion != "1.2.3" || s.SpoolDepth != 3 || s.SpoolShed != 4 || len(s.Peripherals) != 1 || s.Peripherals[0].Health != "OK" {
				t.Errorf("state %+v", s)
			}
			before := len(states)
			after(10 * time.Minute)
			samples, _, states, audit := d.got()
			// Every minute one of the printer and one of the box.
			if n := len(samples); n < 20 || n > 24 {
				t.Errorf("%d samples in ten minutes", n)
			}
			for _, s := range samples {
				if (s.Name != "ReceiptLineFeedCount" || s.Peripheral != "printer-1" || s.Value != 42) && (s.Name != "temp_mc" || s.Peripheral != "") || s.At == 0 {
					t.Errorf("sample %+v", s)
				}
			}
			if n := len(states) - before; n < 9 || n > 11 {
				t.Errorf("%d states in ten quiet minutes, want a heartbeat each", n)
			}
			if s := states[len(states)-1]; s.Samples == 0 {
				t.Error("the state does not count samples")
			}
			if len(audit) != 0 {
				t.Errorf("audited %q", audit)
			}
		})
	})
}

func TestFaultAndRecovery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, p := &desk{t: t}, printer()
		watch(t, d.options(p), func(m *telemetry.Monitor, after func(time.Duration)) {
			after(3 * time.Second)
			_, _, before, _ := d.got()
			p.does(func(context.Context) (hal.Status, error) { return hal.Status{}, errors.New("connection refused") })
			after(12 * time.Second)
			s := m.Snapshot()[0]
			if s.Health != "Offline" || s.Power != "PS_OFF_OFFLINE" || s.Reason != "POWER_OFF_OFFLINE" || s.Advice != "" {
				t.Errorf("lost printer: %+v", s)
			}
			_, _, states, _ := d.got()
			if len(states) <= len(before) || states[len(states)-1].Peripherals[0].Health != "Offline" {
				t.Errorf("%d states after %d; the loss was not told", len(states), len(before))
			}
			n := p.looked()
			after(2 * time.Hour)
			if looks := p.looked() - n; looks < 20 || looks > 80 {
				t.Errorf("%d looks at a lost printer in two hours", looks)
			}
			p.does(func(context.Context) (hal.Status, error) {
				return hal.Status{}, &hal.Error{Code: "E_BUSY", Op: "status"}
			})
			after(6 * time.Minute) // by whom it is used nobody can say what it is
			p.says(hal.Attention, hal.Yes)
			after(6 * time.Minute)
			p.says(hal.Fault, hal.Yes)
			after(time.Minute)
			p.says(hal.OK, hal.No)
			after(time.Minute)
			_, events, _, audit := d.got()
			if len(events) != 2 || events[0].Code != "POWER_OFF_OFFLINE" || events[1].Code != "POWER_ONLINE" || events[1].From != "PS_OFF_OFFLINE" {
				t.Errorf("events of a printer that tells none by itself: %+v", events)
			}
			want := []string{
				"peripheral.fault warn printer-1 POWER_OFF_OFFLINE", "peripheral.recovered info printer-1 ",
				"peripheral.fault warn printer-1 ", "peripheral.recovered info printer-1 ",
			}
			if !slices.Equal(audit, want) {
				t.Errorf("audited %q, want %q", audit, want)
			}
		})
	})
}

func TestEventsAndFlapping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, p := &desk{t: t}, bell{printer(), make(chan hal.Event)}
		watch(t, d.options(p), func(_ *telemetry.Monitor, after func(time.Duration)) {
			after(3 * time.Second)
			looks := p.looked()
			p.events <- hal.Event{Code: "COVER_OPEN", From: "No", To: "Yes"}
			after(1500 * time.Millisecond)
			_, events, _, _ := d.got()
			if len(events) != 1 || events[0].Code != "COVER_OPEN" || events[0].Peripheral != "printer-1" || events[0].Category != "POSPrinter" || events[0].At == 0 {
				t.Fatalf("events %+v, want one within two seconds", events)
			}
			if p.looked() == looks {
				t.Error("an event did not make the monitor look at the printer")
			}
			for range 100 {
				p.events <- hal.Event{Code: "DRAWEROPEN", From: "No", To: "Yes"}
			}
			after(2 * time.Minute)
			_, events, _, _ = d.got()
			if len(events) != 7 {
				t.Fatalf("100 events of one code became %d, want 5 and a count", len(events)-1)
			}
			if e := events[6]; e.Code != "DRAWEROPEN" || e.Count != 100 || e.From != "No" || e.To != "Yes" || e.Mono == 0 {
				t.Errorf("count %+v", e)
			}
			p.events <- hal.Event{Code: "DRAWEROPEN"}
			after(2 * time.Second)
			if _, events, _, _ = d.got(); len(events) != 8 {
				t.Error("a calm minute did not end the flapping")
			}
			p.events <- hal.Event{Code: "lost"} // the driver loses its device; the monitor listens again
			p.events <- hal.Event{Code: "COVER_OK"}
			after(2 * time.Second)
			if _, events, _, _ = d.got(); len(events) != 9 || events[8].Code != "COVER_OK" {
				t.Errorf("after the device was lost: %+v", events[8:])
			}
			for range 50 {
				p.events <- hal.Event{Code: "COVER_OPEN", From: "No", To: "Yes"}
			}
			after(time.Second)
		})
		_, events, _, _ := d.got()
		if e := events[len(events)-1]; e.Code != "COVER_OPEN" || e.Count != 50 {
			t.Errorf("the last word is %+v, want the count of what flapped until then", e)
		}
	})
}

// TestAsked holds that whoever wants to know how things are now does not wait
// for the next look, and not for a driver that never says.
func TestAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, good, hangs, panics := &desk{t: t}, printer(), printer(), printer()
		hangs.info.ID, panics.info.ID = "printer-2", "printer-3"
		panics.does(func(context.Context) (hal.Status, error) { panic("nil pointer") })
		release := make(chan struct{})
		defer close(release)
		watch(t, d.options(good, box{}, hangs, panics), func(m *telemetry.Monitor, after func(time.Duration)) {
			after(30 * time.Minute)
			hangs.does(func(context.Context) (hal.Status, error) {
				<-release
				return hal.Status{}, nil
			})
			good.says(hal.Fault, hal.Yes)
			now := time.Now().Add(time.Nanosecond) // some have just been asked
			if m.Asked(now) {
				t.Error("what was seen before counts as seen after")
			}
			after(time.Millisecond)
			if s := m.Snapshot(); s[0].Health != "Fault" {
				t.Errorf("a moment later it is %s", s[0].Health)
			}
			for n := 0; !m.Asked(now); n++ {
				if n > 60 {
					t.Fatal("a driver that hangs is waited for")
				}
				after(time.Second)
			}
			if s := m.Snapshot(); s[1].Reason != "M_TIMEOUT" {
				t.Errorf("the one that hangs: %+v", s[1])
			}
		})
	})
}

// TestDriverThatHangs holds that it costs its own peripheral only and that the monitor ends nevertheless.
func TestDriverThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, good, bad := &desk{t: t}, printer(), printer()
		bad.info.ID = "printer-2"
		release := make(chan struct{})
		bad.does(func(context.Context) (hal.Status, error) {
			<-release
			return hal.Status{Health: hal.OK}, nil
		})
		watch(t, d.options(good, bad), func(m *telemetry.Monitor, after func(time.Duration)) {
			after(30 * time.Minute)
			s := m.Snapshot()
			if s[0].Health != "OK" || s[1].Health != "Offline" || s[1].Reason != "M_TIMEOUT" {
				t.Errorf("good %s, bad %s %s", s[0].Health, s[1].Health, s[1].Reason)
			}
			if n := bad.looked(); n != 1 {
				t.Errorf("a driver that hangs was called %d times", n)
			}
			close(release)
			bad.says(hal.OK, hal.No)
			after(6 * time.Minute)
			if s := m.Snapshot(); s[1].Health != "OK" {
				t.Errorf("the driver came back and the printer is %s", s[1].Health)
			}
		})
	})
}

func TestDriverThatPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, good, bad := &desk{t: t}, printer(), printer()
		bad.info.ID = "printer-2"
		bad.does(func(context.Context) (hal.Status, error) { panic("nil pointer") })
		watch(t, d.options(good, bad), func(m *telemetry.Monitor, after func(time.Duration)) {
			after(time.Hour)
			if n := bad.looked(); n != 3 {
				t.Errorf("a driver that panics was called %d times, want 3", n)
			}
			if s := m.Snapshot(); s[0].Health != "OK" || s[1].Reason != "M_DRIVER_PANIC" {
				t.Errorf("good %s, bad %s", s[0].Health, s[1].Reason)
			}
			if _, _, _, audit := d.got(); !slices.ContainsFunc(audit, func(s string) bool { return strings.HasPrefix(s, "peripheral.quarantined alarm printer-2") }) {
				t.Errorf("audited %q", audit)
			}
		})
	})
}

// TestCardNumbersStay feeds what looks like a card number through every text a driver can set.
func TestCardNumbersStay(t *testing.T) {
	const pan = "4111111111111111"
	synctest.Test(t, func(t *testing.T) {
		d, p := &desk{t: t}, bell{printer(), make(chan hal.Event, 10)}
		const apart = "4111\x1b1111\x1b1111\x1b1111" // which no person reads as anything else
		p.info.Serial, p.info.Firmware, p.info.Maker, p.info.Model, p.info.Key = pan, "1.0", "x"+pan, apart, apart
		p.does(func(context.Context) (hal.Status, error) {
			return hal.Status{
				Health: hal.OK, Power: hal.PowerOnline, Reason: pan, Advice: "read 4111-1111 1111.1111",
				Sensors: map[string]hal.Tri{"CoverOpen": hal.No, pan: hal.Yes},
			}, nil
		})
		p.stats = func(context.Context) ([]hal.Stat, error) {
			return []hal.Stat{{Name: pan, Value: 1}, {Name: apart, Value: 1}, {Name: "GoodReadCount", Value: 2}, {Name: "FailedReadCount", Value: 4111111111111111, Epoch: 1}}, nil
		}
		for _, e := range []hal.Event{{Code: pan}, {Code: "C", From: pan}, {Code: "C", To: ";" + pan + "=2512"}, {Code: apart}, {Code: "C", From: apart}, {Code: "GOOD"}} {
			p.events <- e
		}
		watch(t, d.options(p), func(_ *telemetry.Monitor, after func(time.Duration)) { after(2 * time.Minute) })
		samples, events, states, audit := d.got()
		if slices.ContainsFunc(samples, func(s wire.Sample) bool { return s.Name == "FailedReadCount" }) {
			t.Error("a card number left the device as a count")
		}
		if all := fmt.Sprintf("%+v %+v %+v %q", samples, events, states, audit); strings.Contains(all, "1111") {
			t.Errorf("a card number left the device: %s", all)
		}
		if all := fmt.Sprintf("%+v", states); strings.ContainsRune(all, 0x1b) {
			t.Errorf("what a terminal obeys left the device: %q", all)
		}
		if len(events) != 1 || events[0].Code != "GOOD" {
			t.Errorf("events %+v, want the harmless one", events)
		}
		if !slices.ContainsFunc(samples, func(s wire.Sample) bool { return s.Name == "M_PanGuardDropCount" && s.Value >= 5 }) {
			t.Errorf("samples %+v, want a count of what was dropped", samples)
		}
		if s := states[len(states)-1].Peripherals[0]; s.Firmware != "1.0" || s.Sensors["CoverOpen"] != "No" {
			t.Errorf("harmless fields are gone: %+v", s)
		}
	})
}

// TestGarbageFromHardware holds that nothing a driver says makes a message that the contract refuses.
func TestGarbageFromHardware(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		long := strings.Repeat("ä", 5000) + "\xff"
		d := &desk{t: t}
		o := d.options()
		for i := range 70 {
			p := bell{printer(), make(chan hal.Event, 1)}
			p.info = hal.Info{ID: fmt.Sprintf("p %d", i), Driver: long, Serial: long, Maker: "a\xffb", Model: long}
			p.does(func(context.Context) (hal.Status, error) {
				s := hal.Status{Health: "so so", Reason: long, Advice: long, Sensors: map[string]hal.Tri{}}
				for j := range 50 {
					s.Sensors[fmt.Sprintf("%s%d", strings.Repeat("s", 58), j)] = hal.Yes
				}
				s.Sensors["odd"] = 77
				return s, nil
			})
			p.stats = func(context.Context) (out []hal.Stat, _ error) {
				for j := range 20 {
					out = append(out, hal.Stat{Name: fmt.Sprintf("%d%s", j, long), Value: math.MaxFloat64})
				}
				return append(out, hal.Stat{}), nil
			}
			p.events <- hal.Event{Code: long, From: long, To: "\xfe"}
			o.Devices = append(o.Devices, p)
		}
		watch(t, o, func(_ *telemetry.Monitor, after func(time.Duration)) { after(3 * time.Minute) })
		samples, events, states, _ := d.got() // the desk has decoded all of it
		if len(samples) < 70*20 || len(events) != 70 || len(states) == 0 || len(states[0].Peripherals) != wire.MaxPeripherals {
			t.Errorf("%d samples, %d events, %d states", len(samples), len(events), len(states))
		}
		if slices.Max(d.batches) > wire.MaxBatch {
			t.Errorf("batch of %d", slices.Max(d.batches))
		}
	})
}

func TestFullSpoolDoesNotStopMeasuring(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, p := &desk{t: t, fail: spool.ErrFull}, printer()
		watch(t, d.options(p), func(m *telemetry.Monitor, after func(time.Duration)) {
			after(5 * time.Minute)
			d.mu.Lock()
			d.fail = nil
			d.mu.Unlock()
			after(2 * time.Minute)
			if samples, _, states, _ := d.got(); len(samples) == 0 || len(states) == 0 {
				t.Errorf("%d samples and %d states after there was room again", len(samples), len(states))
			}
		})
	})
}

// TestLastWords uses the real spool: what was gathered is there after Run.
func TestLastWords(t *testing.T) {
	s, err := spool.Open(filepath.Join(t.TempDir(), "spool.db"), spool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	d := &desk{t: t}
	p := printer()
	counted := make(chan struct{}, 10)
	p.stats = func(context.Context) ([]hal.Stat, error) {
		counted <- struct{}{}
		return []hal.Stat{{Name: "GoodReadCount", Value: 1}}, nil
	}
	o := d.options(p)
	o.Spool, o.Batch, o.Pace = s, time.Hour, telemetry.Pace{Poll: time.Millisecond, Stats: time.Millisecond}
	m := telemetry.New(o)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = m.Run(ctx) })
	for range 3 {
		<-counted
	}
	cancel()
	wg.Wait()
	n, err := s.Counter(t.Context(), "telemetry.samples")
	if err != nil || n < 2 {
		t.Errorf("%d samples counted (%v), want at least those of the first two rounds", n, err)
	}
	got := map[string]int{}
	err = s.Next(t.Context(), 0, 100, nil, func(_ uint64, channel string, payload []byte) {
		got[channel]++
		if channel == string(wire.Telemetry) {
			b, err := wire.Decode[wire.TelemetryBatch](payload)
			if err != nil || uint64(len(b.Samples)) != n {
				t.Errorf("%d samples are there (%v), %d are counted", len(b.Samples), err, n)
			}
		}
	})
	if err != nil || got[string(wire.Telemetry)] != 1 || got[string(wire.State)] != 1 {
		t.Errorf("spooled %v (%v)", got, err)
	}
}
