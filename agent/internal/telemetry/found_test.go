package telemetry_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/agent/internal/telemetry"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
)

// bus is a fake: it tells what is in it at first, and then what comes.
type bus struct {
	there   []hal.Candidate
	changes chan hal.Change
	broken  chan error
}

func newBus(there ...hal.Candidate) *bus {
	return &bus{there, make(chan hal.Change), make(chan error)}
}

func (b *bus) Watch(ctx context.Context, tell func(hal.Change)) error {
	for _, c := range b.there {
		tell(hal.Change{Candidate: c})
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case c := <-b.changes:
			tell(c)
		case err := <-b.broken:
			if err == nil {
				panic("the bus")
			}
			return err
		}
	}
}

func usb(key string) hal.Candidate {
	return hal.Candidate{Key: key, Interface: "USB", Category: hal.Other, Maker: "Acme", Model: "Thing"}
}

func ids(r wire.StateReport) (out []string) {
	for _, p := range r.Peripherals {
		out = append(out, p.ID)
	}
	return out
}

// TestFound holds that what is plugged in and nobody is configured for is told
// as present, that it is told when it goes and not after, and that what is
// configured is not doubled.
func TestFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, b := &desk{t: t}, newBus(usb("usb:04b8:0e15:P7"), usb("usb:04b8:0e15:P8"), usb("usb:1d6b:0002@1"), usb("usb:0403:6001:A/1"), usb("usb:076b:3031@1-2"),
			hal.Candidate{Key: "usb:08e6:3437@1-3", Category: hal.SmartCardRW, Maker: "Gemalto", Model: "USB SmartCard Reader", Interface: "USB"})
		p, byAddress, reader := &tester{thing: printer()}, &tester{thing: printer()}, printer()
		p.info.Key = "usb:04b8:0e15:P7"
		byAddress.info.ID = "scanner-1"
		reader.info = hal.Info{ID: "reader-1", Category: hal.SmartCardRW, Key: "pcsc:Gemalto PC Twin Reader 00"}
		o := d.options(p, byAddress, reader)
		o.Bus, o.Ignore, o.Addresses = b, []string{"usb:1d6b:0002"}, map[string]string{"scanner-1": "usb:076b:3031", "printer-1": "usb:04b8:0e15"}
		last := func() wire.StateReport {
			_, _, states, _ := d.got()
			return states[len(states)-1]
		}
		watch(t, o, func(m *telemetry.Monitor, after func(time.Duration)) {
			after(10 * time.Second)
			got := ids(last())
			if len(got) != 5 || !slices.Equal(got[:3], []string{"printer-1", "reader-1", "scanner-1"}) || got[4] != "usb-04b8-0e15-P8" || !strings.HasPrefix(got[3], "usb-0403-6001-A_1-") {
				t.Fatalf("told %q", got)
			}
			if f := last().Peripherals[4]; f.Driver != "none" || f.Health != "Unknown" || f.Reason != "M_NO_DRIVER" || f.Power != "PS_ONLINE" ||
				f.Key != "usb:04b8:0e15:P8" || f.Category != "M_Other" || f.Maker != "Acme" || f.Since == 0 {
				t.Errorf("found %+v", f)
			}
			if len(m.Snapshot()) != 3 {
				t.Error("what nobody watches is in the snapshot")
			}
			if _, events, _, _ := d.got(); len(events) != 0 {
				t.Errorf("what was there before was told as coming: %+v", events)
			}
			if p.nudged.Load() == 0 || byAddress.nudged.Load() == 0 {
				t.Error("configured devices were not told that they are there")
			}
			looks := p.looked()
			b.changes <- hal.Change{Candidate: usb("usb:04b8:0e15:P7"), Gone: true}
			b.changes <- hal.Change{Candidate: usb("usb:04b8:0e15:P8"), Gone: true}
			b.changes <- hal.Change{Candidate: usb("usb:0bda:8153:N1")}
			synctest.Wait()
			if p.nudged.Load() != 2 || p.looked() == looks {
				t.Errorf("pulled out: told %d times, looked %d times", p.nudged.Load(), p.looked()-looks)
			}
			after(2 * time.Second)
			_, events, states, _ := d.got()
			if len(events) != 2 || events[0].Code != "POWER_OFF_OFFLINE" || events[0].Peripheral != "usb-04b8-0e15-P8" || events[1].Code != "POWER_ONLINE" || events[1].Peripheral != "usb-0bda-8153-N1" {
				t.Errorf("events %+v", events)
			}
			i := slices.IndexFunc(states, func(s wire.StateReport) bool { return slices.Contains(ids(s), "usb-0bda-8153-N1") })
			if i < 0 || states[i].Peripherals[4].Health != "Offline" || states[i].Peripherals[4].ID != "usb-04b8-0e15-P8" {
				t.Errorf("that it went was not told: %+v", states[len(states)-1])
			}
			after(2 * time.Minute)
			if got := ids(last()); len(got) != 5 || slices.Contains(got, "usb-04b8-0e15-P8") {
				t.Errorf("told %q after it was gone", got)
			}
			for range 40 {
				b.changes <- hal.Change{Candidate: usb("usb:0bda:8153:N1"), Gone: true}
				b.changes <- hal.Change{Candidate: usb("usb:0bda:8153:N1")}
			}
			after(2 * time.Minute)
			if _, events, _, _ = d.got(); len(events) != 2+12 || events[13].Count != 40 {
				t.Errorf("%d events of a plug that is loose, the last %+v", len(events)-2, events[len(events)-1])
			}
		})
	})
}

// TestBusThatFails holds that it costs nothing but the sight of the bus, and
// that what went meanwhile is noticed when it is watched again.
func TestBusThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, b := &desk{t: t}, newBus(usb("usb:04b8:0e15:P7"), usb("usb:04b8:0e15:P8"))
		o := d.options(printer())
		o.Bus = b
		watch(t, o, func(_ *telemetry.Monitor, after func(time.Duration)) {
			after(time.Minute)
			b.there = b.there[:1]
			b.broken <- errors.New("no buffer space")
			after(time.Minute)
			b.broken <- nil
			after(time.Minute)
			_, events, states, _ := d.got()
			if len(events) != 1 || events[0].Code != "POWER_OFF_OFFLINE" || events[0].Peripheral != "usb-04b8-0e15-P8" {
				t.Errorf("events %+v", events)
			}
			if got := ids(states[len(states)-1]); !slices.Equal(got, []string{"printer-1", "usb-04b8-0e15-P7"}) {
				t.Errorf("told %q", got)
			}
		})
	})
}

// TestCrowdedBus holds that what is configured comes first, and that what a
// device says of itself is kept within bounds.
func TestCrowdedBus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, b := &desk{t: t}, newBus()
		for i := range 300 {
			b.there = append(b.there, usb(fmt.Sprintf("usb:04b8:0e15:%03d", i)))
		}
		b.there = append(b.there[:200], append([]hal.Candidate{usb("usb:0001:0002:4111111111111111"), usb("usb:0001:0003:" + strings.Repeat("ä", 200))}, b.there[200:]...)...)
		p := printer()
		p.info.ID = "z"
		o := d.options(p)
		o.Bus = b
		watch(t, o, func(_ *telemetry.Monitor, after func(time.Duration)) { after(time.Minute) })
		_, _, states, _ := d.got()
		r := states[len(states)-1]
		if len(r.Peripherals) != wire.MaxPeripherals || r.Peripherals[0].ID != "z" || strings.Contains(fmt.Sprintf("%+v", states), "4111") {
			t.Errorf("%d peripherals, the first %s", len(r.Peripherals), r.Peripherals[0].ID)
		}
		seen := map[string]bool{}
		for _, id := range ids(r) {
			if seen[id] || len(id) > wire.MaxName {
				t.Errorf("id %q", id)
			}
			seen[id] = true
		}
	})
}
