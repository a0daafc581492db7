package board

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"periph.io/x/conn/v3/i2c"

	"github.com/tillward/tillward/hal"
)

// I2C is the driver "i2c": a chip on the board that measures temperature or
// supply voltage. Address i2c:BUS:ADDRESS, where BUS is a number as in
// /dev/i2c-1, or the name of an adapter, and ADDRESS is as in 0x48.
//
// It reads and never writes: a chip that was put to sleep is left asleep, and
// what it would measure is unknown.
//
// Options: chip = "lm75", "tmp102" or "ina219". Of temperature: temp_high_mc =
// "65000" in 1/1000 degree Celsius is too hot, until it is cooler than that by
// hysteresis_mc = "3000". Of voltage: supply_low_mv in millivolts, which has to
// be given, is too low, until it is higher than that by hysteresis_mv = "200".
type I2C struct {
	Bus   func(bus string) (i2c.BusCloser, error) // nil: those of the kernel
	Every time.Duration                           // between two looks; 0: 2 s
}

// Name implements hal.Driver.
func (I2C) Name() string { return "i2c" }

// Open implements hal.Driver. Neither bus nor chip need be there.
func (d I2C) Open(_ context.Context, cfg hal.Config) (hal.Device, error) {
	m, err := d.configure(cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	m.wg.Go(func() { m.track.Supervise(func() { m.run(ctx, cmp.Or(d.Every, 2*time.Second)) }) })
	return m, nil
}

// Check implements hal.Checker.
func (d I2C) Check(cfg hal.Config) ([]hal.Info, error) {
	m, err := d.configure(cfg)
	if err != nil {
		return nil, err
	}
	return []hal.Info{m.info}, nil
}

func (d I2C) configure(cfg hal.Config) (*meter, error) {
	o := hal.ReadOptions(cfg, "chip", "temp_high_mc", "hysteresis_mc", "supply_low_mv", "hysteresis_mv")
	name := o.Word("chip", "", chipNames()...)
	if _, ok := cfg.Options["chip"]; !ok {
		o.Refuse("chip is missing: write %s", strings.Join(chipNames(), " or "))
	}
	c := chips[name]
	bus, addr, err := busAddress(cfg.Address)
	o.Check(err)
	m := &meter{
		bus: bus, addr: addr, chip: c, open: d.Bus, first: make(chan struct{}), nudged: make(chan struct{}, 1),
		info: hal.Info{
			ID: cfg.ID, Category: hal.Environment, Driver: "i2c", Claim: o.Claim("a bus is shared", hal.Share), Model: strings.ToUpper(name), Interface: "I2C",
			Key: fmt.Sprintf("i2c:%s:%#x", bus, addr),
		},
		track: hal.NewTracker(hal.Environment, "CommunicationErrorCount"),
	}
	hot := above(o.Whole("temp_high_mc", 65_000, -55_000, 150_000), o.Whole("hysteresis_mc", 3_000, 0, 50_000))
	weak := below(o.Whole("supply_low_mv", 0, 1, 32_000), o.Whole("hysteresis_mv", 200, 0, 10_000))
	others := []string{"supply_low_mv", "hysteresis_mv"}
	if m.limit = hot; c.low {
		m.limit, others = weak, []string{"temp_high_mc", "hysteresis_mc"}
		if _, ok := cfg.Options["supply_low_mv"]; !ok {
			o.Refuse("supply_low_mv is missing: the voltage in millivolts below which the supply is too low")
		}
	}
	for _, other := range others {
		if _, ok := cfg.Options[other]; ok && c.stat != "" {
			o.Refuse("%s does not measure what %s is about", name, other)
		}
	}
	if m.open == nil {
		m.open = openBus
	}
	return m, o.Err()
}

// busAddress splits i2c:1:0x48. The name of an adapter may have colons.
func busAddress(s string) (bus string, addr uint16, err error) {
	rest, ok := strings.CutPrefix(s, "i2c:")
	if i := strings.LastIndexByte(rest, ':'); ok && i > 0 {
		if n, err := strconv.ParseUint(rest[i+1:], 0, 16); err == nil && n >= 0x08 && n <= 0x77 {
			return rest[:i], uint16(n), nil
		}
	}
	return "", 0, fmt.Errorf("address %q: write i2c:BUS:ADDRESS with an address from 0x08 to 0x77", s)
}

// limit is a threshold with hysteresis: a value at the edge does not flap.
type limit struct {
	at, by float64
	low    bool // what is below is bad
}

func above(at, by int) limit { return limit{at: float64(at), by: float64(by)} }

func below(at, by int) limit { return limit{at: float64(at), by: float64(by), low: true} }

// over says whether v is bad, given what it was.
func (l limit) over(v float64, was hal.Tri) hal.Tri {
	at, by := l.at, l.by
	if l.low {
		v, at = -v, -at
	}
	return hal.TriOf(v >= at || was == hal.Yes && v > at-by)
}

// meter is a chip that measures.
type meter struct {
	bus    string
	addr   uint16
	chip   chip
	limit  limit
	open   func(string) (i2c.BusCloser, error)
	info   hal.Info
	track  *hal.Tracker
	first  chan struct{} // closed after the first look
	nudged chan struct{}
	stop   context.CancelFunc
	wg     sync.WaitGroup

	mu   sync.Mutex
	here bool       // the last look found it
	why  hal.Status // reason and advice of a chip that cannot be asked

	stuck stuck // of run alone
}

// String implements conn.Resource.
func (m *meter) String() string { return "i2c(" + m.info.ID + ")" }

// Halt implements conn.Resource.
func (m *meter) Halt() error { return m.Close() }

// Close implements io.Closer. A look that hangs in the kernel is left behind;
// it ends when the kernel lets it.
func (m *meter) Close() error {
	m.stop()
	m.wg.Wait()
	m.track.Close()
	return nil
}

// Info implements hal.Device.
func (m *meter) Info() hal.Info { return m.info }

// Events implements hal.Notifier.
func (m *meter) Events(ctx context.Context) iter.Seq2[hal.Event, error] { return m.track.Events(ctx) }

// Nudge implements hal.Nudger.
func (m *meter) Nudge() {
	select {
	case m.nudged <- struct{}{}:
	default:
	}
}

// Statistics implements hal.Statistics: temp_mc or supply_mv, while the chip
// tells it.
func (m *meter) Statistics(context.Context) ([]hal.Stat, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.DeleteFunc(m.track.Stats(), func(s hal.Stat) bool { return !m.here && s.Name == m.chip.stat }), nil
}

// Status implements hal.StatusReader: what the last look found.
func (m *meter) Status(ctx context.Context) (hal.Status, error) {
	select {
	case <-m.first:
	case <-ctx.Done():
		return hal.Status{}, &hal.Error{Code: "E_TIMEOUT", Op: "status", Err: ctx.Err()}
	}
	st := m.track.Status()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.why.Reason != "" && st.Power == hal.PowerUnknown {
		st.Reason, st.Advice = m.why.Reason, m.why.Advice
	}
	return st, nil
}

// run looks for as long as the device is open.
func (m *meter) run(ctx context.Context, every time.Duration) {
	looked := sync.OnceFunc(func() { close(m.first) })
	defer looked()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		v, err := m.look(ctx)
		if ctx.Err() != nil {
			return
		}
		m.take(v, err)
		looked()
		select {
		case <-ctx.Done():
			return
		case <-m.nudged:
		case <-tick.C:
		}
	}
}

// look measures once.
func (m *meter) look(ctx context.Context) (float64, error) {
	return patiently(ctx, &m.stuck, m.measure, func(float64) {})
}

func (m *meter) measure() (v float64, err error) {
	bus, err := m.open(m.bus)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, bus.Close()) }()
	return m.chip.read(&i2c.Dev{Bus: bus, Addr: m.addr})
}

// take takes in what a look found.
func (m *meter) take(v float64, err error) {
	was := m.track.Status()
	why := hal.Status{}
	switch {
	case errors.Is(err, syscall.EBUSY):
		why.Reason, why.Advice = "M_IN_USE", "A driver of the kernel holds this chip; take it out of the configuration, or unbind the driver."
	case errors.Is(err, os.ErrPermission):
		why.Reason, why.Advice = "M_NO_ACCESS", "Put the agent's user into the group that owns the bus: i2c."
	}
	m.mu.Lock()
	m.here, m.why = err == nil, why
	m.mu.Unlock()
	switch {
	case err == nil:
		m.track.Measure(m.chip.stat, v)
		m.track.Update(hal.PowerOnline, map[string]hal.Tri{m.chip.sensor: m.limit.over(v, was.Sensors[m.chip.sensor])})
	case errors.Is(err, errAsleep):
		m.track.Update(hal.PowerOnline, nil)
	case why.Reason != "":
		m.track.Update(hal.PowerUnknown, nil)
	default:
		if was.Power == hal.PowerOnline {
			m.track.Count("CommunicationErrorCount", 1)
		}
		m.track.Update(hal.PowerOffOffline, nil)
	}
}

// CheckHealth implements hal.HealthChecker.
func (m *meter) CheckHealth(ctx context.Context, level hal.Level) (hal.Report, error) {
	if level != hal.Internal {
		return hal.Report{}, &hal.Error{Code: "E_ILLEGAL", Op: "check health", Err: errors.New("a sensor on the board has an internal check only")}
	}
	began := time.Now()
	st, err := m.Status(ctx)
	if err != nil {
		return hal.Report{}, err
	}
	c := hal.Check{ID: "measure", OK: st.Sensors[m.chip.sensor] != hal.Unknown, Took: time.Since(began)}
	text := "The chip measures."
	if !c.OK {
		c.Code, text = st.Reason, "The chip does not measure. "+st.Advice
	}
	return hal.Report{OK: c.OK, Text: text, Checks: []hal.Check{c}}, nil
}
