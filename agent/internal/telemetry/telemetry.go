// Package telemetry watches the peripherals and the box itself: it asks for
// status and statistics, listens to events, has the peripherals test themselves,
// and puts samples, events, outcomes and the state of the whole into the spool.
//
// It owns the pace of measuring and the form of what is told. It promises that
// a driver which hangs, fails or panics costs its own peripheral only, because
// no lock is held and nobody else waits while a driver is asked; that a
// peripheral which flaps is told as a count and not as a flood; that what is
// plugged in and has no driver is told as well; that nothing which looks like a
// card number leaves the device; and that what it puts is within the limits of
// the contract, so that no message is ever refused. It judges nothing: health is
// the driver's, and what to do about it the service says.
package telemetry

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
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
	// Devices are watched from the beginning, as by Watch.
	Devices []hal.Device
	// Bus tells what is plugged in; nil: nobody does. What no device stands for is
	// told as present, but for what Ignore names: usb:VID:PID and what may follow.
	Bus    hal.Bus
	Ignore []string
	// Addresses are where the devices were configured to be, by ID.
	Addresses map[string]string

	Spool Spool
	Next  func() wire.Head // numbers messages
	Now   func() time.Time // the box's wall clock; nil: the system's
	// Record adds to the audit trail: faults and recoveries.
	Record func(ctx context.Context, kind, severity, subject string, detail map[string]string) error
	// Fill adds to a state report what other rooms know: version, slot, settings,
	// audit head. While they do not know it yet, which is false, the report waits.
	Fill func(*wire.StateReport) bool
	// Counts are what other rooms count of a peripheral; may be nil.
	Counts func(id string) []hal.Stat
	// Dropped is how many texts other rooms have kept back because they could
	// hold a card number; may be nil.
	Dropped func() uint64

	Pace      Pace
	Flaps     int           // of one code of one peripheral are told one by one in a minute, more as a count; 5
	Check     time.Duration // between two internal health checks of a peripheral; 0: none but those asked for
	Batch     time.Duration // samples wait at most this long for company; 10 s
	Heartbeat time.Duration // the state is told at least this often; 60 s
	Deadline  time.Duration // of one call to a driver; 10 s
	Log       *slog.Logger
}

// Pace is how often peripherals are looked at.
type Pace struct {
	Poll  time.Duration            // between two looks; zero: by how it is held: own 5 s, observe 30 s, else 10 s
	Of    map[string]time.Duration // the same of single devices and their parts, by ID
	Stats time.Duration            // between two samples of statistics; 60 s
}

const (
	together   = 50 * time.Millisecond  // an event waits for those that come with it
	settle     = time.Second            // and so does a change of state,
	restless   = 10 * time.Second       // which waits longer when there were
	changesMin = 12                     // so many in a minute
	calm       = 200 * time.Millisecond // between two looks that events bring about
	backoffMin = time.Second
	backoffMax = 5 * time.Minute
	farewell   = 2 * time.Second // what watches may take to end

	// Classes of the spool.
	classTelemetry = "telemetry"
	classEvent     = "event"
	classState     = "state"

	samplesCounter = "telemetry.samples" // samples recorded since provisioning
	panDropped     = "M_PanGuardDropCount"
)

// Monitor watches. Make it with New and start it with Run.
type Monitor struct {
	o       Options
	began   time.Time
	inbox   chan func(context.Context) // what Run does next
	touch   chan struct{}
	fresh   chan struct{} // somebody waits to be watched
	dropped atomic.Uint64

	mu       sync.Mutex
	pace     Pace
	seen     map[string]wire.Peripheral
	asked    map[string]time.Time // when the look began that seen is of; not of those whom nobody asks
	watchers map[string]*watcher
	waiting  []*watcher // to be started

	// Run's own.
	samples    []wire.Sample
	sampleSize int
	events     []wire.PeripheralEvent
	checks     []wire.HealthCheck
	eventSize  int
	flaps      flaps
	faults     flaps
	was        map[string]before // by ID
	found      map[string]*find  // by key
	toldDrop   uint64
	lastLost   time.Time
	crowded    bool
	looked     bool // each was looked at once, or had the time
}

// New makes a monitor.
func New(o Options) *Monitor {
	for _, d := range []struct {
		v *time.Duration
		s int
	}{{&o.Pace.Stats, 60}, {&o.Batch, 10}, {&o.Heartbeat, 60}, {&o.Deadline, 10}} {
		if *d.v <= 0 {
			*d.v = time.Duration(d.s) * time.Second
		}
	}
	if o.Flaps <= 0 {
		o.Flaps = 5
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Fill == nil {
		o.Fill = func(*wire.StateReport) bool { return true }
	}
	m := &Monitor{
		o: o, began: time.Now(), inbox: make(chan func(context.Context), 64), touch: make(chan struct{}, 1), fresh: make(chan struct{}, 1),
		pace: o.Pace, seen: map[string]wire.Peripheral{}, asked: map[string]time.Time{}, watchers: map[string]*watcher{},
		flaps: flaps{}, faults: flaps{}, was: map[string]before{}, found: map[string]*find{},
	}
	for _, d := range o.Devices {
		m.Watch(d)
	}
	return m
}

// Watch adds a device and its parts, with what they offer of hal.StatusReader,
// hal.Statistics, hal.Notifier and hal.HealthChecker. It takes the place of one
// with the same ID. Samples of a hal.Host are those of the box itself.
func (m *Monitor) Watch(d hal.Device) {
	id := d.Info().ID
	m.watch(d, id)
	if p, ok := d.(hal.Parent); ok {
		for _, part := range p.Parts() {
			m.watch(part, id)
		}
	}
}

func (m *Monitor) watch(d hal.Device, under string) {
	w := newWatcher(m, d, under)
	p := m.clean(describe(w.info))
	if w.status == nil {
		p.Reason = "M_NO_SENSOR"
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := m.watchers[w.id]; old != nil {
		old.leave()
	}
	m.watchers[w.id] = w
	if m.asked[w.id] = (time.Time{}); w.status == nil {
		delete(m.asked, w.id)
	}
	if listed(w) {
		if was, ok := m.seen[w.id]; ok { // until the first look: who it is may have changed, how it is has not
			p.Power, p.Health, p.Reason, p.Sensors, p.Since = was.Power, was.Health, was.Reason, was.Sensors, was.Since
		} else {
			p.Since = m.o.Now().UnixMilli()
		}
		m.seen[w.id] = p
	}
	m.waiting = append(m.waiting, w)
	nudge(m.fresh)
}

// SetPace changes how often peripherals are looked at, from now on.
func (m *Monitor) SetPace(p Pace) {
	if p.Stats <= 0 {
		p.Stats = time.Minute
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pace = p
	for _, w := range m.watchers {
		nudge(w.kick)
	}
}

// Touch asks for a state report soon: something that Fill tells has changed.
func (m *Monitor) Touch() { nudge(m.touch) }

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
		for _, w := range m.watchers {
			nudge(w.kick)
		}
		return false
	}
	return true
}

// Snapshot returns how the peripherals are that are watched, by ID. One that has
// not answered yet is Unknown.
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

// Run watches until ctx ends, tells what it still holds and waits a little for
// its drivers; one that does not heed its context is left behind.
func (m *Monitor) Run(ctx context.Context) error {
	var watchers sync.WaitGroup
	if m.o.Bus != nil {
		watchers.Go(func() { m.hunt(ctx) })
	}
	m.loop(ctx, &watchers)
	gone := make(chan struct{})
	go func() { watchers.Wait(); close(gone) }()
	last := context.WithoutCancel(ctx)
	for late, waits := time.After(farewell), true; waits; {
		select {
		case do := <-m.inbox:
			do(last)
		case <-gone:
			waits = false
		case <-late:
			m.o.Log.Warn("a driver does not end and is left behind")
			waits = false
		}
	}
	for len(m.inbox) > 0 {
		(<-m.inbox)(last)
	}
	m.collapse(last) // nobody counts on
	m.flush(last)
	_ = m.tell(last)
	return ctx.Err()
}

// start begins to watch those that wait for it.
func (m *Monitor) start(ctx context.Context, watchers *sync.WaitGroup) {
	m.mu.Lock()
	waiting := m.waiting
	m.waiting = nil
	m.mu.Unlock()
	for _, w := range waiting {
		ctx, stop := context.WithCancel(ctx)
		watchers.Go(func() {
			defer stop()
			select {
			case <-w.left:
			case <-ctx.Done():
			}
		})
		watchers.Go(func() { w.poll(ctx) })
		if n, ok := w.d.(hal.Notifier); ok {
			watchers.Go(func() { w.listen(ctx, n) })
		}
		if _, ok := w.d.(hal.HealthChecker); ok && m.o.Check > 0 {
			watchers.Go(func() { w.test(ctx) })
		}
	}
}

// loop is the only place that touches what is gathered.
func (m *Monitor) loop(ctx context.Context, watchers *sync.WaitGroup) {
	batch := time.NewTicker(m.o.Batch)
	defer batch.Stop()
	minute := time.NewTicker(time.Minute)
	defer minute.Stop()
	state, soon := time.NewTimer(settle), true
	defer state.Stop()
	events, gathers := time.NewTimer(together), false
	defer events.Stop()
	told := 0 // changes of state in this minute
	for {
		if !gathers && len(m.events)+len(m.checks) > 0 {
			events.Reset(together)
			gathers = true
		}
		select {
		case <-ctx.Done():
			return
		case <-m.fresh:
			m.start(ctx, watchers)
			m.Touch()
		case do := <-m.inbox:
			do(ctx)
		case <-m.touch:
			if !soon { // once: a stream of changes must not put it off for ever
				wait := settle
				if told++; told > changesMin {
					wait = restless
				}
				state.Reset(wait)
				soon = true
			}
		case <-events.C:
			gathers = false
			m.flushEvents(ctx)
		case <-batch.C:
			m.flush(ctx)
		case <-minute.C:
			m.collapse(ctx)
			told = 0
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
