// Package telemetry watches the peripherals and the box itself: it asks for
// status and statistics, listens to events, and puts samples, events and the
// state of the whole into the spool.
//
// It owns the pace of measuring and the form of what is told. It promises that
// a driver which hangs, fails or panics costs its own peripheral only; that a
// peripheral which flaps is told as a count and not as a flood; that nothing
// which looks like a card number leaves the device; and that what it puts is
// within the limits of the contract, so that no message is ever refused. It
// judges nothing: health and advice are the driver's.
package telemetry

import (
	"context"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
)

// Spool takes what is told.
type Spool interface {
	Compose(ctx context.Context, class, channel string, compose func() ([]byte, error), counts map[string]uint64) error
	Counter(ctx context.Context, name string) (uint64, error)
	Depth() uint64
	Shed() uint64
}

// Options are what a Monitor stands on. Zero durations mean their defaults.
type Options struct {
	// Devices are watched with what they offer of hal.StatusReader, hal.Statistics
	// and hal.Notifier. Samples of a hal.Host are those of the box itself.
	Devices []hal.Device
	Spool   Spool
	Next    func() wire.Head // numbers messages
	// Record adds to the audit trail: faults and recoveries.
	Record func(ctx context.Context, kind, severity, subject string, detail map[string]string) error
	// Fill adds to a state report what other rooms know: version, slot, settings,
	// audit head. While they do not know it yet, which is false, the report waits.
	Fill func(*wire.StateReport) bool

	Poll      time.Duration // between two looks at a peripheral; 10 s
	Stats     time.Duration // between two samples of statistics; 60 s
	Batch     time.Duration // samples wait at most this long for company; 10 s
	Heartbeat time.Duration // the state is told at least this often; 60 s
	Deadline  time.Duration // of one call to a driver; 10 s
	Log       *slog.Logger
}

const (
	settle     = time.Second // a change of state waits for those that come with it
	backoffMin = time.Second
	backoffMax = 5 * time.Minute

	// Classes of the spool.
	classTelemetry = "telemetry"
	classLatest    = "latest"

	samplesCounter = "telemetry.samples" // samples recorded since provisioning
	panDropped     = "M_PanGuardDropCount"
)

// Monitor watches. Make it with New and start it with Run.
type Monitor struct {
	o     Options
	inbox chan func(context.Context) // what Run does next
	touch chan struct{}

	silent map[string]bool // tell no events by themselves

	mu    sync.Mutex
	seen  map[string]wire.Peripheral
	asked map[string]time.Time // when the look began that seen is of; not of those whom nobody asks
	kicks []chan struct{}      // of those who look

	// Run's own.
	samples    []wire.Sample
	sampleSize int
	events     []wire.PeripheralEvent
	eventSize  int
	flaps      flaps
	faults     flaps
	dropped    uint64
	toldDrop   uint64
	lastLost   time.Time
}

// New makes a monitor.
func New(o Options) *Monitor {
	for _, d := range []struct {
		v *time.Duration
		s int
	}{{&o.Poll, 10}, {&o.Stats, 60}, {&o.Batch, 10}, {&o.Heartbeat, 60}, {&o.Deadline, 10}} {
		if *d.v <= 0 {
			*d.v = time.Duration(d.s) * time.Second
		}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Fill == nil {
		o.Fill = func(*wire.StateReport) bool { return true }
	}
	m := &Monitor{
		o: o, inbox: make(chan func(context.Context), 64), touch: make(chan struct{}, 1),
		seen: map[string]wire.Peripheral{}, asked: map[string]time.Time{}, flaps: flaps{}, faults: flaps{},
		silent: map[string]bool{},
	}
	for _, d := range o.Devices {
		if listed(d) {
			p := m.clean(describe(d.Info()))
			p.Since = time.Now().UnixMilli()
			m.seen[p.ID] = p
			if _, ok := d.(hal.StatusReader); ok {
				m.asked[p.ID] = time.Time{}
			}
			_, tells := d.(hal.Notifier)
			m.silent[p.ID] = !tells
		}
	}
	return m
}

// Touch asks for a state report soon: something that Fill tells has changed.
func (m *Monitor) Touch() {
	select {
	case m.touch <- struct{}{}:
	default:
	}
}

// Asked reports whether Snapshot holds what each peripheral that can be asked
// was found to be at or after t. Those of which it does not are asked at once;
// what a driver does not say before its deadline counts as an answer.
func (m *Monitor) Asked(t time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, at := range m.asked {
		if !at.Before(t) {
			continue
		}
		for _, k := range m.kicks {
			nudge(k)
		}
		return false
	}
	return true
}

// Snapshot returns how the peripherals are, by ID. One that has not answered
// yet is Unknown.
func (m *Monitor) Snapshot() []wire.Peripheral {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]wire.Peripheral, 0, len(m.seen))
	for _, id := range slices.Sorted(maps.Keys(m.seen)) {
		p := m.seen[id]
		p.Sensors = maps.Clone(p.Sensors)
		out = append(out, p)
	}
	return out
}

// Run watches until ctx ends, tells what it still holds and waits for its
// drivers; one that does not heed its context is left behind.
func (m *Monitor) Run(ctx context.Context) error {
	var watchers sync.WaitGroup
	for _, d := range m.o.Devices {
		w := &watcher{m: m, d: d, id: identifier(d.Info().ID), kick: make(chan struct{}, 1)}
		m.mu.Lock()
		m.kicks = append(m.kicks, w.kick)
		m.mu.Unlock()
		watchers.Go(func() { w.poll(ctx) })
		if n, ok := d.(hal.Notifier); ok {
			watchers.Go(func() { w.listen(ctx, n) })
		}
	}
	m.loop(ctx)
	watchers.Wait()
	last := context.WithoutCancel(ctx)
	for len(m.inbox) > 0 {
		(<-m.inbox)(last)
	}
	m.flush(last)
	_ = m.tell(last)
	return ctx.Err()
}

// loop is the only place that touches what is gathered.
func (m *Monitor) loop(ctx context.Context) {
	batch := time.NewTicker(m.o.Batch)
	defer batch.Stop()
	minute := time.NewTicker(time.Minute)
	defer minute.Stop()
	state, soon := time.NewTimer(settle), true
	defer state.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case do := <-m.inbox:
			do(ctx)
		case <-m.touch:
			if !soon { // once: a stream of changes must not put it off for ever
				state.Reset(settle)
				soon = true
			}
		case <-batch.C:
			m.flush(ctx)
		case <-minute.C:
			m.collapse(ctx)
		case <-state.C:
			m.flush(ctx) // so that the state never runs ahead of its events
			if soon = !m.tell(ctx); soon {
				state.Reset(settle)
			} else {
				state.Reset(m.o.Heartbeat)
			}
		}
	}
}

// post hands work to loop. It gives up when the monitor ends.
func (m *Monitor) post(ctx context.Context, do func(context.Context)) {
	select {
	case m.inbox <- do:
	case <-ctx.Done():
		select {
		case m.inbox <- do:
		default:
		}
	}
}

// sample takes one value in. Values that are no numbers are dropped.
func (m *Monitor) sample(ctx context.Context, s wire.Sample) {
	if hal.MayHoldPAN(s.Name) || hal.MayHoldPAN(s.Peripheral) {
		m.dropped++
		return
	}
	if s.Name = identifier(s.Name); s.Name == "" || math.IsNaN(s.Value) || math.IsInf(s.Value, 0) {
		return
	}
	m.samples = append(m.samples, s)
	m.sampleSize += len(s.Name) + len(s.Peripheral) + 32
	if len(m.samples) == wire.MaxBatch || m.sampleSize > wire.MaxSpooled-1024 {
		m.flush(ctx)
	}
}

// event takes one event in, unless its code flaps.
func (m *Monitor) event(ctx context.Context, e wire.PeripheralEvent) {
	if slices.ContainsFunc([]string{e.Peripheral, e.Category, e.Code, e.From, e.To}, hal.MayHoldPAN) {
		m.dropped++
		return
	}
	e.Peripheral, e.Category, e.Code = identifier(e.Peripheral), identifier(e.Category), identifier(e.Code)
	if e.Category == "" {
		e.Category = "Unknown"
	}
	e.From, e.To = cut(e.From, wire.MaxName), cut(e.To, wire.MaxName)
	if e.Peripheral == "" || e.Code == "" || !m.flaps.pass(e) {
		return
	}
	m.addEvent(ctx, e)
}

func (m *Monitor) addEvent(ctx context.Context, e wire.PeripheralEvent) {
	m.events = append(m.events, e)
	m.eventSize += len(e.Peripheral) + len(e.Category) + len(e.Code) + len(e.From) + len(e.To) + 32
	if len(m.events) == wire.MaxBatch || m.eventSize > wire.MaxSpooled-1024 {
		m.flush(ctx)
	}
	m.Touch()
}

// status takes in how a peripheral is, and audits when it fails or recovers.
func (m *Monitor) status(ctx context.Context, p wire.Peripheral, began time.Time) {
	p = m.clean(p)
	m.mu.Lock()
	m.answered(p.ID, began)
	old := m.seen[p.ID]
	p.Since = old.Since
	if old.Health != p.Health {
		p.Since = time.Now().UnixMilli()
	}
	changed := !same(old, p)
	m.seen[p.ID] = p
	m.mu.Unlock()
	if changed {
		m.Touch()
	}
	if is, ok := strings.CutPrefix(p.Power, "PS_"); ok && m.silent[p.ID] && old.Power != p.Power && known(old.Power) && known(p.Power) {
		m.event(ctx, wire.PeripheralEvent{
			At: time.Now().UnixMilli(), Peripheral: p.ID, Category: p.Category, Code: "POWER_" + is, From: old.Power, To: p.Power,
		})
	}
	if faulty(old.Health) == faulty(p.Health) || (p.Health == string(hal.NoSensor) && !faulty(old.Health)) {
		return
	}
	kind, severity := "peripheral.recovered", "info"
	if faulty(p.Health) {
		kind, severity = "peripheral.fault", "warn"
	}
	if !m.faults.pass(wire.PeripheralEvent{Peripheral: p.ID, Category: p.Category, Code: kind}) {
		return
	}
	m.record(ctx, kind, severity, p.ID, map[string]string{
		"category": p.Category, "health": p.Health, "was": old.Health, "reason": p.Reason, "power": p.Power,
	})
}

// answered notes, with m.mu held, that a peripheral was asked.
func (m *Monitor) answered(id string, began time.Time) {
	if _, ok := m.asked[id]; ok {
		m.asked[id] = began
	}
}

func (m *Monitor) record(ctx context.Context, kind, severity, subject string, detail map[string]string) {
	if m.o.Record == nil {
		return
	}
	if err := m.o.Record(ctx, kind, severity, subject, detail); err != nil {
		m.o.Log.Error("peripheral not audited", "kind", kind, "peripheral", subject, "error", err)
	}
}

func known(power string) bool { return power != string(hal.PowerUnknown) }

func faulty(health string) bool {
	return health == string(hal.Fault) || health == string(hal.Offline)
}

func same(a, b wire.Peripheral) bool {
	return a.Health == b.Health && a.Power == b.Power && a.Reason == b.Reason && a.Advice == b.Advice &&
		a.Maker == b.Maker && a.Model == b.Model && a.Serial == b.Serial && a.Firmware == b.Firmware && maps.Equal(a.Sensors, b.Sensors)
}

// backoff draws from a range that doubles with each failure.
func backoff(failures int) time.Duration {
	ceiling := backoffMax
	if failures < 10 {
		ceiling = min(backoffMax, backoffMin<<failures)
	}
	return ceiling/2 + rand.N(ceiling/2) //nolint:gosec // spreads load, guards nothing
}

// listed reports whether the device shows as a peripheral: all do, but a box
// that only counts.
func listed(d hal.Device) bool {
	_, asked := d.(hal.StatusReader)
	return asked || d.Info().Category != hal.Host
}

// describe says who a device is; how it is remains unknown.
func describe(i hal.Info) wire.Peripheral {
	return wire.Peripheral{
		ID: i.ID, Category: string(i.Category), Driver: i.Driver, Maker: i.Maker, Model: i.Model, Serial: i.Serial,
		Firmware: i.Firmware, Simulated: i.Simulated, Power: string(hal.PowerUnknown), Health: string(hal.NoSensor),
	}
}
