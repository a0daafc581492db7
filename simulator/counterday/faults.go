package counterday

import (
	"context"
	"time"

	"github.com/tillward/tillward/simulator/emulator"
)

// fault is one thing that goes wrong, and what must be told of it.
type fault struct {
	name       string
	peripheral string
	on, off    string // events
	lane       string // faults of a lane come one after the other; empty: it comes by itself, from use
	set        func(ctx context.Context, on bool) error
	held       time.Duration // 0: as long as its lane has room for
	sudden     bool          // it is over as soon as it has come: what ends it may be told at once

	begun, ended time.Time
}

// Peripherals of the till, as it is configured.
const (
	printer = "receipt"
	drawer  = "drawer"
	reader  = "reader"
	scanner = "scanner"
)

// faults is all that goes wrong on this day, in the order of each lane.
func (d *day) faults() []*fault {
	c := d.till.Counter()
	of := func(f emulator.Fault) func(context.Context, bool) error {
		return func(_ context.Context, on bool) error {
			c.Printer.Set(f, on)
			return nil
		}
	}
	at := func(name string, f emulator.Fault, on, off string) *fault {
		return &fault{name: name, peripheral: printer, lane: printer, on: on, off: off, set: of(f)}
	}
	inDrawer := func(name string, on, off string, set func(context.Context, bool) error) *fault {
		return &fault{name: name, peripheral: drawer, lane: printer, on: on, off: off, set: set}
	}
	list := []*fault{
		at("cover left open", emulator.CoverOpen, "COVER_OPEN", "COVER_OK"),
		at("cover open again", emulator.CoverOpen, "COVER_OPEN", "COVER_OK"),
		at("paper jammed at the cutter", emulator.CutterJam, "M_CUTTER_ERROR", "M_CUTTER_OK"),
		at("paper jammed again", emulator.CutterJam, "M_CUTTER_ERROR", "M_CUTTER_OK"),
		at("print head too hot", emulator.HeadHot, "M_HEAD_TOO_HOT", "M_HEAD_OK"),
		at("mechanical error", emulator.Mechanical, "M_MECHANICAL_ERROR", "M_MECHANICAL_OK"),
		at("error that only a restart ends", emulator.Unrecoverable, "M_UNRECOVERABLE_ERROR", "M_RECOVERED"),
		at("switched off-line at its panel", emulator.Offline, "POWER_OFFLINE", "POWER_ONLINE"),
		at("printer loses power", emulator.Unplugged, "POWER_OFF_OFFLINE", "POWER_ONLINE"),
		at("printer unplugged by the cleaner", emulator.Unplugged, "POWER_OFF_OFFLINE", "POWER_ONLINE"),
		inDrawer("drawer opened by hand", "M_DRAWER_UNEXPECTED_OPEN", "M_DRAWER_SECURE", of(emulator.DrawerOpen)),
		inDrawer("drawer opened with a key", "M_DRAWER_UNEXPECTED_OPEN", "M_DRAWER_SECURE", of(emulator.DrawerOpen)),
		inDrawer("drawer does not open", "M_DRAWER_STUCK", "M_DRAWER_FREE", d.stick),
	}
	mute := at("printer says nothing any more", emulator.Mute, "POWER_OFF_OFFLINE", "POWER_ONLINE")
	mute.held = 1700 * time.Millisecond // it is asked every quarter of a second, and has a second to answer
	left := inDrawer("drawer left open", "M_DRAWER_LEFT_OPEN", "M_DRAWER_SHUT", d.leaveOpen)
	left.held, d.left = leftOpen/2, left
	stuck := list[len(list)-1]
	stuck.held = 1300 * time.Millisecond // the drawer has a second
	list = append(list, left, mute)
	d.rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	morning := &fault{name: "no paper in the morning", peripheral: printer, lane: printer, on: "REC_EMPTY", off: "REC_PAPEROK", set: d.morning}
	list = append([]*fault{morning}, list...)
	card := func(name, on, off string, set func(context.Context, bool) error) *fault {
		return &fault{name: name, peripheral: reader, lane: reader, on: on, off: off, set: set}
	}
	torn := card("card pulled out too early", "M_CARD_TORN", "NO_CARD", d.torn)
	torn.sudden = true
	return append(list,
		card("worn card", "M_CARD_MUTE", "M_CARD_OK", d.worn),
		torn,
		card("pcscd restarted by an update", "M_PCSCD_GONE", "M_PCSCD_BACK", d.daemon),
		card("card the wrong way round", "M_CARD_MUTE", "M_CARD_OK", d.worn),
		card("pcscd ends", "M_PCSCD_GONE", "M_PCSCD_BACK", d.daemon),
		&fault{name: "scanner unplugged", peripheral: scanner, lane: scanner, on: "POWER_OFF_OFFLINE", off: "POWER_ONLINE", set: d.scannerOff},
		&fault{name: "scanner unplugged again", peripheral: scanner, lane: scanner, on: "POWER_OFF_OFFLINE", off: "POWER_ONLINE", set: d.scannerOff},
		&fault{name: "paper runs low", peripheral: printer, on: "REC_NEAREMPTY", off: "REC_PAPEROK"},
		&fault{name: "paper runs out", peripheral: printer, on: "REC_EMPTY", off: "REC_PAPEROK"},
	)
}

func named(list []*fault, name string) *fault {
	for _, f := range list {
		if f.name == name {
			return f
		}
	}
	panic("counterday: no fault " + name)
}

// suffer lets the faults of a lane come and go, spread over the day.
func (d *day) suffer(ctx context.Context, list []*fault) error {
	for i, f := range list {
		room := 0.96 / float64(len(list))
		begin := 0.01 + room*(float64(i)+0.15+0.35*d.random())
		if i == 0 && f.lane == printer {
			begin = 0.01
		}
		if err := d.at(ctx, begin); err != nil {
			return err
		}
		if err := d.happen(ctx, f, time.Duration(room*0.35*float64(d.o.Day))); err != nil {
			return err
		}
	}
	return nil
}

func (d *day) random() float64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rand.Float64()
}

// settling is how long after its end nothing else happens there.
func (f *fault) settling() time.Duration {
	if f.lane == reader {
		return readerHeld
	}
	return heldAtMost / 2
}

// happen is one fault from its beginning to its end. Nobody sells meanwhile,
// where it is the printer's or the drawer's.
func (d *day) happen(ctx context.Context, f *fault, held time.Duration) error {
	switch f.lane {
	case printer:
		d.counter.Lock()
		defer d.counter.Unlock()
	case reader:
		d.reader.Lock()
		defer d.reader.Unlock()
	}
	f.begun = time.Now()
	if err := f.set(ctx, true); err != nil {
		return err
	}
	d.say("%s", f.name)
	switch {
	case f.held > 0:
	case f.lane == reader:
		f.held = min(held, readerHeld)
	default:
		f.held = min(held, heldAtMost)
	}
	if err := wait(ctx, f.held); err != nil {
		return err
	}
	f.ended = time.Now()
	if err := f.set(ctx, false); err != nil {
		return err
	}
	return wait(ctx, f.settling()) // until it has been seen
}
