package telemetry_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/agent/internal/telemetry"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
)

// whole is a thing with others behind it.
type whole struct {
	*thing
	parts []hal.Device
}

func (d whole) Parts() []hal.Device { return d.parts }

// tester is a thing that tests itself and can be nudged.
type tester struct {
	*thing
	check  func(context.Context, hal.Level) (hal.Report, error)
	nudged atomic.Int32
}

func (d *tester) Nudge() { d.nudged.Add(1) }

func (d *tester) CheckHealth(ctx context.Context, l hal.Level) (hal.Report, error) {
	return d.check(ctx, l)
}

// deaf is a thing whose events never end, whatever its context says.
type deaf struct {
	*thing
	release chan struct{}
}

func (d deaf) Events(context.Context) iter.Seq2[hal.Event, error] {
	return func(func(hal.Event, error) bool) { <-d.release }
}

func drawer() *thing {
	d := printer()
	d.info = hal.Info{ID: "drawer-1", Category: hal.CashDrawer, Driver: "escpos"}
	d.does(func(context.Context) (hal.Status, error) {
		return hal.Status{Health: hal.OK, Power: hal.PowerOnline, Sensors: map[string]hal.Tri{"DrawerOpened": hal.No}}, nil
	})
	d.stats = func(context.Context) ([]hal.Stat, error) {
		return []hal.Stat{{Name: "DrawerGoodOpenCount", Value: 7, Epoch: 1700000000, Kept: true}, {Name: "temp_mc", Value: 1, Kept: true}}, nil
	}
	return d
}

// TestPartsAndWhoTheyAre holds that a drawer behind a printer is a peripheral of
// its own, and that the report says who, where and what each is.
func TestPartsAndWhoTheyAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, p := &desk{t: t}, whole{printer(), []hal.Device{drawer()}}
		p.info.Claim, p.info.Key, p.info.Interface, p.info.RollLines = hal.Own, "usb:04b8:0e15:P7", "USB", 18876
		p.info.Caps = []string{"CapRecEmptySensor", "CapCoverSensor", "CapCoverSensor", ""}
		watch(t, d.options(p), func(_ *telemetry.Monitor, after func(time.Duration)) { after(2 * time.Minute) })
		samples, _, states, _ := d.got()
		ps := states[len(states)-1].Peripherals
		if len(ps) != 2 || ps[0].ID != "drawer-1" || ps[0].Health != "OK" || ps[0].Sensors["DrawerOpened"] != "No" {
			t.Fatalf("peripherals %+v", ps)
		}
		if p := ps[1]; p.Claim != "own" || p.Key != "usb:04b8:0e15:P7" || p.Interface != "USB" || p.RollLines != 18876 ||
			!slices.Equal(p.Caps, []string{"CapCoverSensor", "CapRecEmptySensor"}) || p.Advice != "" {
			t.Errorf("printer %+v", p)
		}
		kept := slices.IndexFunc(samples, func(s wire.Sample) bool { return s.Name == "DrawerGoodOpenCount" })
		if kept < 0 || samples[kept].Epoch != 1700000000 || !samples[kept].Kept || samples[kept].Peripheral != "drawer-1" {
			t.Errorf("samples %+v", samples)
		}
		if slices.ContainsFunc(samples, func(s wire.Sample) bool { return s.Epoch == 0 && s.Kept }) {
			t.Error("a measurement that is kept as a count")
		}
	})
}

// TestPace holds how often a device is asked: its own pace first, then that of
// all, then by how it is held; and that a change of pace forgets nothing.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &desk{t: t}
		named := func(id string, c hal.Claim) *thing {
			p := printer()
			p.info.ID, p.info.Claim = id, c
			return p
		}
		own, observed, shared, special := named("own", hal.Own), named("observed", hal.Observe), named("shared", hal.Share), named("special", hal.Own)
		part := drawer()
		o := d.options(own, observed, shared, whole{special, []hal.Device{part}})
		o.Pace.Of = map[string]time.Duration{"special": time.Second}
		all := []*thing{own, observed, shared, special, part}
		looks := func() (out []int) {
			for _, p := range all {
				out = append(out, p.looked())
			}
			return out
		}
		watch(t, o, func(m *telemetry.Monitor, after func(time.Duration)) {
			after(10*time.Minute + 500*time.Millisecond)
			if got := looks(); !slices.Equal(got, []int{121, 21, 61, 601, 601}) {
				t.Errorf("looks in ten minutes: %d", got)
			}
			since := m.Snapshot()[0].Since
			m.SetPace(telemetry.Pace{Poll: time.Minute, Of: o.Pace.Of})
			after(0)
			before := looks()
			after(10*time.Minute + 500*time.Millisecond)
			for i, want := range []int{10, 10, 10, 600, 600} {
				if got := looks()[i] - before[i]; got != want {
					t.Errorf("%s was asked %d times in ten minutes after the pace was set, want %d", all[i].info.ID, got, want)
				}
			}
			if got := m.Snapshot()[0].Since; got != since {
				t.Errorf("the state holds since %d, and since %d after the pace was set", since, got)
			}
		})
	})
}

// TestSince holds that it is since health and reason hold, both.
func TestSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, p := &desk{t: t}, printer()
		says := func(reason string, cover hal.Tri) {
			p.does(func(context.Context) (hal.Status, error) {
				return hal.Status{Health: hal.Fault, Power: hal.PowerOnline, Reason: reason, Sensors: map[string]hal.Tri{"CoverOpen": cover}}, nil
			})
		}
		says("COVER_OPEN", hal.Yes)
		watch(t, d.options(p), func(m *telemetry.Monitor, after func(time.Duration)) {
			after(30 * time.Second)
			first := m.Snapshot()[0]
			says("COVER_OPEN", hal.No)
			after(30 * time.Second)
			if is := m.Snapshot()[0]; is.Since != first.Since || is.Sensors["CoverOpen"] != "No" {
				t.Errorf("another sensor: since %d, was %d", is.Since, first.Since)
			}
			says("REC_EMPTY", hal.No)
			after(30 * time.Second)
			if is := m.Snapshot()[0]; is.Since <= first.Since || is.Reason != "REC_EMPTY" {
				t.Errorf("another reason: %+v, since %d before", is, first.Since)
			}
		})
	})
}

// TestMuteDeviceDelaysNobody holds the rule by how it is made, not by a clock:
// while one device hangs in every call there is, the others are looked at as
// often as ever, what they say arrives without any time passing, and neither
// Snapshot nor Asked nor the end waits for it.
func TestMuteDeviceDelaysNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		defer close(release)
		d, good := &desk{t: t}, printer()
		bad := deaf{printer(), release}
		bad.info.ID = "printer-2"
		bad.does(func(context.Context) (hal.Status, error) { <-release; return hal.Status{}, nil })
		bad.stats = func(context.Context) ([]hal.Stat, error) { <-release; return nil, nil }
		loud := bell{printer(), make(chan hal.Event)}
		loud.info.ID = "printer-3"
		began := time.Now()
		watch(t, d.options(bad, good, loud), func(m *telemetry.Monitor, after func(time.Duration)) {
			for range 20 {
				after(10 * time.Second)
				before := good.looked()
				good.says(hal.Fault, hal.Yes)
				now := time.Now()
				m.Asked(now) // asks all, the mute one too
				synctest.Wait()
				if s := m.Snapshot(); s[0].Health != "Fault" || good.looked() == before {
					t.Fatalf("a fault did not arrive at once: %+v", s[0])
				}
				loud.events <- hal.Event{Code: "COVER_OPEN"}
				synctest.Wait()
				if !time.Now().Equal(now) {
					t.Fatalf("it took %s", time.Since(now))
				}
				good.says(hal.OK, hal.No)
			}
			if s := m.Snapshot(); s[1].Reason != "M_TIMEOUT" || bad.looked() != 1 {
				t.Errorf("the mute one: %+v, asked %d times", s[1], bad.looked())
			}
			if n := good.looked(); n < 30 {
				t.Errorf("the good one was asked %d times in %s", n, time.Since(began))
			}
		})
	})
}

// TestEventsThatPanic holds that a driver which panics while it tells is given
// up as one that panics while it is asked, and that this is told without its words.
func TestEventsThatPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, good, bad := &desk{t: t}, printer(), bursting{printer()}
		bad.info.ID = "printer-2"
		watch(t, d.options(good, bad), func(m *telemetry.Monitor, after func(time.Duration)) {
			after(time.Minute)
			looks := bad.looked()
			after(time.Hour)
			if n := bad.looked() - looks; n != 0 {
				t.Errorf("looked at %d times after it was given up", n)
			}
			if s := m.Snapshot(); s[0].Health != "OK" || s[1].Reason != "M_DRIVER_PANIC" || s[1].Health != "Offline" {
				t.Errorf("snapshot %+v", s)
			}
			_, events, _, audit := d.got()
			if len(events) != 1 || events[0].Code != "M_DRIVER_PANIC" || events[0].Peripheral != "printer-2" || events[0].To != "PS_UNKNOWN" {
				t.Errorf("events %+v", events)
			}
			if !slices.Contains(audit, "peripheral.quarantined alarm printer-2 M_DRIVER_PANIC") || strings.Contains(strings.Join(audit, " "), "secret") {
				t.Errorf("audited %q", audit)
			}
		})
	})
}

// bursting panics when it is listened to.
type bursting struct{ *thing }

func (bursting) Events(context.Context) iter.Seq2[hal.Event, error] {
	return func(func(hal.Event, error) bool) { panic("secret") }
}

// TestNotOurs holds that a device which somebody else holds, or which the agent
// may not open, is not called broken.
func TestNotOurs(t *testing.T) {
	for want, err := range map[string]error{
		"M_IN_USE":    &hal.Error{Code: "E_BUSY", Op: "status"},
		"M_NO_ACCESS": &hal.Error{Code: "E_FAILURE", Op: "status", Err: fs.ErrPermission},
	} {
		synctest.Test(t, func(t *testing.T) {
			d, p := &desk{t: t}, printer()
			p.does(func(context.Context) (hal.Status, error) { return hal.Status{}, err })
			watch(t, d.options(p), func(m *telemetry.Monitor, after func(time.Duration)) {
				after(3 * time.Second)
				if s := m.Snapshot()[0]; s.Reason != want || s.Health != "Unknown" || s.Power != "PS_UNKNOWN" {
					t.Errorf("want %s: %+v", want, s)
				}
				if _, _, _, audit := d.got(); len(audit) != 0 {
					t.Errorf("audited %q", audit)
				}
			})
		})
	}
}

// TestOddNames holds that a device is told and paced whatever it is called, and
// that an ID which could be a card number stays.
func TestOddNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, spaced, card, none := &desk{t: t}, printer(), printer(), printer()
		spaced.info.ID, card.info.ID, none.info.ID = "front printer", "4111 1111 1111 1111", ""
		o := d.options(spaced, card, none)
		o.Pace.Of = map[string]time.Duration{"front printer": time.Second}
		o.Counts = func(id string) []hal.Stat {
			return []hal.Stat{{Name: "M_PrintJobCount", Value: float64(len(id)), Epoch: 1}}
		}
		watch(t, o, func(_ *telemetry.Monitor, after func(time.Duration)) { after(time.Minute) })
		samples, _, states, _ := d.got()
		if got := ids(states[0]); len(got) != 3 || got[0] != "front_printer" || !strings.HasPrefix(got[1], "unnamed-") || got[1] == got[2] {
			t.Errorf("told as %q", got)
		}
		if spaced.looked() < 55 || card.looked() > 10 {
			t.Errorf("looked at %d and %d times", spaced.looked(), card.looked())
		}
		if all := fmt.Sprint(samples, states); strings.Contains(all, "1111") {
			t.Errorf("a card number left the device: %s", all)
		}
		if !slices.ContainsFunc(samples, func(s wire.Sample) bool {
			return s.Name == "M_PrintJobCount" && s.Peripheral == "front_printer" && s.Value == 13
		}) {
			t.Errorf("samples %+v", samples)
		}
	})
}

// TestTakesThePlace holds that a device which is watched under an ID that is
// taken is watched in its place.
func TestTakesThePlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, old, next := &desk{t: t}, printer(), printer()
		next.says(hal.Attention, hal.No)
		watch(t, d.options(old), func(m *telemetry.Monitor, after func(time.Duration)) {
			after(time.Minute)
			m.Watch(next)
			after(time.Second)
			looks := old.looked()
			after(time.Minute)
			if s := m.Snapshot(); len(s) != 1 || s[0].Health != "Attention" || old.looked() != looks || next.looked() == 0 {
				t.Errorf("%+v; the old one was looked at %d times more, the new one %d times", s, old.looked()-looks, next.looked())
			}
		})
	})
}

// TestChecks holds that a test of a peripheral is told in codes, by itself once
// a day and when it is asked for, and that one that hangs holds nobody up.
func TestChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, p := &desk{t: t}, &tester{thing: printer()}
		p.check = func(_ context.Context, l hal.Level) (hal.Report, error) {
			switch l {
			case hal.Internal:
				return hal.Report{OK: true, Text: "words", Checks: []hal.Check{{ID: "reachable", OK: true, Took: 12 * time.Millisecond}}}, nil
			case hal.External:
				return hal.Report{Text: "words", Checks: []hal.Check{{ID: "page", Code: "REC_EMPTY"}, {ID: "4111 1111 1111 1111", Code: "4111111111111111"}}},
					&hal.Error{Code: "E_OFFLINE", Err: errors.New("words")}
			}
			return hal.Report{}, &hal.Error{Code: "E_ILLEGAL"}
		}
		hangs := &tester{thing: printer()}
		hangs.info.ID = "printer-2"
		release := make(chan struct{})
		defer close(release)
		hangs.check = func(context.Context, hal.Level) (hal.Report, error) { <-release; return hal.Report{OK: true}, nil }
		o := d.options(p, hangs, box{})
		o.Check, o.Pace.Stats = 24*time.Hour, 1000*time.Hour
		watch(t, o, func(m *telemetry.Monitor, after func(time.Duration)) {
			after(time.Minute)
			samples, _, _, _ := d.got()
			c, err := m.Check(t.Context(), "printer-1", hal.External)
			if err != nil || c.OK || c.Level != "external" || len(c.Checks) != 3 || c.Checks[0].Code != "REC_EMPTY" || c.Checks[1].ID != "check" || c.Checks[1].Code != "" || c.Checks[2].Code != "E_OFFLINE" {
				t.Errorf("external check: %+v, %v", c, err)
			}
			for id, level := range map[string]hal.Level{"printer-1": hal.Interactive, "nobody": hal.Internal, "host": hal.Internal} {
				if c, err := m.Check(t.Context(), id, level); err == nil {
					t.Errorf("check of %s: %+v, want an error", id, c)
				}
			}
			after(11 * time.Second)
			if now, _, _, _ := d.got(); len(now) <= len(samples) {
				t.Error("a check does not bring the counts with it")
			}
			go func() { _, _ = m.Check(t.Context(), "printer-2", hal.Internal) }()
			after(time.Second)
			if _, err := m.Check(t.Context(), "printer-2", hal.Internal); err == nil || !strings.Contains(err.Error(), "under way") {
				t.Errorf("two checks at once: %v", err)
			}
			after(72 * time.Hour)
			by := map[string]int{}
			for _, c := range d.told() {
				by[c.Peripheral+" "+c.Level]++
				if c.At == 0 || len(c.Checks) == 0 {
					t.Errorf("check %+v", c)
				}
			}
			if by["printer-1 external"] != 1 || by["printer-1 internal"] < 3 || by["printer-1 internal"] > 5 || by["printer-2 internal"] < 3 {
				t.Errorf("checks %v", by)
			}
			if s := m.Snapshot(); s[0].Health != "OK" || s[1].Health != "OK" {
				t.Errorf("a check that hangs: %+v", s)
			}
		})
	})
}

// TestEventsAreToldAtOnce holds that an event is on its way before the state is,
// and that a device which flaps costs few looks, events and reports, the last of
// which is right.
func TestEventsAreToldAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, p := &desk{t: t}, bell{printer(), make(chan hal.Event)}
		watch(t, d.options(p), func(m *telemetry.Monitor, after func(time.Duration)) {
			after(10 * time.Second)
			p.events <- hal.Event{Code: "COVER_OPEN"}
			after(60 * time.Millisecond)
			_, events, states, _ := d.got()
			if len(events) != 1 {
				t.Errorf("%d events within 60 ms", len(events))
			}
			before, looks := len(states), p.looked()
			for range 2 * 60 * 50 { // two minutes, fifty times a second
				p.says(hal.Fault, hal.Yes)
				p.events <- hal.Event{Code: "COVER_OPEN"}
				after(10 * time.Millisecond)
				p.says(hal.OK, hal.No)
				p.events <- hal.Event{Code: "COVER_OK"}
				after(10 * time.Millisecond)
			}
			p.says(hal.Fault, hal.Yes)
			p.events <- hal.Event{Code: "COVER_OPEN"}
			after(time.Second)
			if s := m.Snapshot()[0]; s.Health != "Fault" {
				t.Errorf("in the end it is %+v", s)
			}
			_, events, states, _ = d.got()
			if n := len(states) - before; n > 2*18 {
				t.Errorf("%d reports in two minutes", n)
			}
			if n := len(events); n > 3*12+12 {
				t.Errorf("%d events in two minutes", n)
			}
			if n := p.looked() - looks; n > 2*60*6 {
				t.Errorf("%d looks in two minutes", n)
			}
		})
	})
}

// TestFirstReport holds that an agent which starts anew does not tell that it
// knows nothing: it waits for the first look, and not for a mute device.
func TestFirstReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		defer close(release)
		d, slow, async, mute := &desk{t: t}, printer(), printer(), printer()
		slow.does(func(ctx context.Context) (hal.Status, error) {
			select {
			case <-time.After(4 * time.Second):
			case <-ctx.Done():
			}
			return hal.Status{Health: hal.Fault, Reason: "COVER_OPEN", Power: hal.PowerOnline}, ctx.Err()
		})
		async.info.ID, mute.info.ID = "printer-2", "printer-3"
		async.does(func(context.Context) (hal.Status, error) {
			if async.looked() < 2 {
				return hal.Status{Health: hal.NoSensor, Reason: "M_NOT_ASKED"}, nil
			}
			return hal.Status{Health: hal.OK, Power: hal.PowerOnline}, nil
		})
		watch(t, d.options(slow, async), func(_ *telemetry.Monitor, after func(time.Duration)) { after(12 * time.Second) })
		_, _, states, _ := d.got()
		if p := states[0].Peripherals; p[0].Reason != "COVER_OPEN" || p[1].Health != "OK" {
			t.Errorf("the first report: %+v", p)
		}
		mute.does(func(context.Context) (hal.Status, error) { <-release; return hal.Status{}, nil })
		d = &desk{t: t}
		watch(t, d.options(slow, mute), func(_ *telemetry.Monitor, after func(time.Duration)) {
			after(14 * time.Second)
			_, _, states, _ := d.got()
			if len(states) == 0 || states[0].Peripherals[1].Reason != "M_TIMEOUT" {
				t.Errorf("with a mute device: %+v", states)
			}
		})
	})
}
