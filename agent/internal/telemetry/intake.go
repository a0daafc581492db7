package telemetry

import (
	"context"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
)

// when tells a time by the wall clock and by the one that counts from when the
// box was switched on, both in milliseconds. A time that is not given is now.
func (m *Monitor) when(t time.Time) (at, mono int64) {
	ago := time.Since(t)
	if t.IsZero() || ago < 0 || ago > time.Hour { // a driver's clock is not believed
		ago = 0
	}
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err == nil {
		mono = max(1, (ts.Nano()-ago.Nanoseconds())/1e6)
	}
	return m.o.Now().Add(-ago).UnixMilli(), mono
}

// tooMuch is what nothing on a counter lives to count; a card number has more
// digits.
const tooMuch = 1e12

// sample takes one value in. Values that are no numbers are dropped.
func (m *Monitor) sample(ctx context.Context, s wire.Sample) {
	s.Name = identifier(s.Name)
	if hal.MayHoldPAN(s.Name) || hal.MayHoldPAN(s.Peripheral) || s.Epoch != 0 && math.Abs(s.Value) >= tooMuch {
		m.dropped.Add(1)
		return
	}
	if s.Name == "" || math.IsNaN(s.Value) || math.IsInf(s.Value, 0) {
		return
	}
	m.samples = append(m.samples, s)
	m.sampleSize += len(s.Name) + len(s.Peripheral) + 48
	if len(m.samples) == wire.MaxBatch || m.sampleSize > wire.MaxSpooled-1024 {
		m.flush(ctx)
	}
}

// event takes one event in, unless its code flaps.
func (m *Monitor) event(ctx context.Context, e wire.PeripheralEvent) {
	for _, s := range []*string{&e.Peripheral, &e.Category, &e.Code, &e.From, &e.To} {
		*s = identifier(*s)
	}
	if slices.ContainsFunc([]string{e.Peripheral, e.Category, e.Code, e.From, e.To}, hal.MayHoldPAN) {
		m.dropped.Add(1)
		return
	}
	if e.Category == "" {
		e.Category = string(hal.Other)
	}
	if e.Peripheral == "" || e.Code == "" || !m.flaps.pass(e, m.o.Flaps) {
		return
	}
	m.addEvent(ctx, e)
}

func (m *Monitor) addEvent(ctx context.Context, e wire.PeripheralEvent) {
	m.events = append(m.events, e)
	m.grown(ctx, len(e.Peripheral)+len(e.Category)+len(e.Code)+len(e.From)+len(e.To)+48)
	m.Touch()
}

// grown notes that an event or a check came in.
func (m *Monitor) grown(ctx context.Context, by int) {
	m.eventSize += by
	if len(m.events) == wire.MaxBatch || len(m.checks) == wire.MaxBatch || m.eventSize > wire.MaxSpooled-4096 {
		m.flush(ctx)
	}
}

// status takes in how a peripheral is, and audits when it fails or recovers.
func (m *Monitor) status(ctx context.Context, w *watcher, p wire.Peripheral, began time.Time) {
	p = m.clean(p)
	m.mu.Lock()
	if m.watchers[w.id] != w { // another has taken its place
		m.mu.Unlock()
		return
	}
	if _, ok := m.asked[w.id]; ok {
		m.asked[w.id] = began
	}
	old := m.seen[w.id]
	p.ID, p.Since = w.id, old.Since
	if old.Health != p.Health || old.Reason != p.Reason {
		p.Since = m.o.Now().UnixMilli()
	}
	changed := !same(old, p)
	m.seen[w.id] = p
	m.mu.Unlock()
	if changed {
		m.Touch()
	}
	was := m.was[w.id] // what is not known meanwhile changes nothing
	if is, ok := strings.CutPrefix(p.Power, "PS_"); ok && known(p.Power) {
		if !w.tells && was.power != p.Power && was.power != "" {
			m.tellPower(ctx, p, is, was.power)
		}
		was.power = p.Power
	}
	failed := was.failed
	if !undecided(p) {
		was.failed = faulty(p.Health)
	}
	m.was[w.id] = was
	if was.failed == failed {
		return
	}
	kind, severity := "peripheral.recovered", "info"
	if faulty(p.Health) {
		kind, severity = "peripheral.fault", "warn"
	}
	if !m.faults.pass(wire.PeripheralEvent{Peripheral: p.ID, Category: p.Category, Code: kind}, m.o.Flaps) {
		return
	}
	m.record(ctx, kind, severity, p.ID, map[string]string{
		"category": p.Category, "health": p.Health, "was": old.Health, "reason": p.Reason, "power": p.Power,
	})
}

// tellPower tells that a peripheral came or went which does not tell by itself.
func (m *Monitor) tellPower(ctx context.Context, p wire.Peripheral, is, was string) {
	at, mono := m.when(time.Time{})
	m.event(ctx, wire.PeripheralEvent{
		At: at, Mono: mono, Peripheral: p.ID, Category: p.Category, Code: "POWER_" + is, From: was, To: p.Power,
	})
}

// giveUp notes that a driver is left alone for good.
func (m *Monitor) giveUp(ctx context.Context, w *watcher) {
	m.mu.Lock()
	delete(m.asked, w.id) // nobody asks it any more
	p := m.seen[w.id]
	m.mu.Unlock()
	at, mono := m.when(time.Time{})
	if p.ID != "" {
		was := p.Power
		p.Power, p.Health, p.Reason, p.Sensors = string(hal.PowerUnknown), string(hal.Offline), "M_DRIVER_PANIC", nil
		m.status(ctx, w, p, time.Now())
		m.event(ctx, wire.PeripheralEvent{At: at, Mono: mono, Peripheral: w.id, Category: p.Category, Code: "M_DRIVER_PANIC", From: was, To: p.Power})
	}
	m.record(ctx, "peripheral.quarantined", "alarm", w.id, map[string]string{"category": p.Category, "driver": p.Driver, "reason": "M_DRIVER_PANIC"})
}

// before is what was known of a peripheral last.
type before struct {
	power  string // empty: nothing was
	failed bool
}

func known(power string) bool { return power != string(hal.PowerUnknown) }

// undecided reports whether nobody knows how a peripheral is that could tell:
// somebody else uses it, or it was not asked.
func undecided(p wire.Peripheral) bool {
	return p.Health == string(hal.NoSensor) && !known(p.Power) && p.Reason != "M_NO_SENSOR"
}

func faulty(health string) bool {
	return health == string(hal.Fault) || health == string(hal.Offline)
}

func same(a, b wire.Peripheral) bool {
	return a.Health == b.Health && a.Power == b.Power && a.Reason == b.Reason && a.Category == b.Category && a.Driver == b.Driver &&
		a.Maker == b.Maker && a.Model == b.Model && a.Serial == b.Serial && a.Firmware == b.Firmware && a.Simulated == b.Simulated &&
		a.Claim == b.Claim && a.Key == b.Key && a.Interface == b.Interface && a.RollLines == b.RollLines &&
		slices.Equal(a.Caps, b.Caps) && maps.Equal(a.Sensors, b.Sensors)
}

// flaps counts how often a code came within the present minute.
type flaps map[flap]*row

type flap struct{ peripheral, category, code string }

type row struct {
	n    uint32
	last wire.PeripheralEvent
}

// pass reports whether e is to be told by itself: no more than limit of one
// code of one peripheral are in a minute.
func (f flaps) pass(e wire.PeripheralEvent, limit int) bool {
	k := flap{e.Peripheral, e.Category, e.Code}
	r := f[k]
	if r == nil {
		r = &row{}
		f[k] = r
	}
	r.n++
	r.last = e
	return int(r.n) <= limit
}

// over are the codes that came too often, in the order they came last.
func (f flaps) over(limit int) (out []*row) {
	for _, r := range f {
		if int(r.n) > limit {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b *row) int { return int(a.last.Mono - b.last.Mono) })
	return out
}

// collapse tells the counts of the minute that ends and begins the next.
func (m *Monitor) collapse(ctx context.Context) {
	for _, r := range m.flaps.over(m.o.Flaps) {
		e := r.last
		e.Count = r.n
		m.addEvent(ctx, e)
	}
	for _, r := range m.faults.over(m.o.Flaps) {
		e := r.last
		m.record(ctx, e.Code, "warn", e.Peripheral, map[string]string{"category": e.Category, "flapping": strconv.Itoa(int(r.n))})
	}
	clear(m.flaps)
	clear(m.faults)
}
