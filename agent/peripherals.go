package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tillward/tillward/agent/internal/local"
	"github.com/tillward/tillward/agent/internal/telemetry"
	"github.com/tillward/tillward/hal"
)

const (
	openWithin  = 5 * time.Second // a driver may take to open its device before it is told as one that does not
	openAgain   = 5 * time.Minute // at most, between two tries
	openPanics  = 3               // of a driver that opens; then it is left alone
	closeWithin = 3 * time.Second // all devices may take to close
)

// peripherals are the devices of the configuration. Each is opened by itself: a
// driver that hangs or fails holds nobody up, and is tried again.
type peripherals struct {
	doors    map[string]*local.Server // print sockets, by ID
	patience time.Duration            // with a driver that opens

	mu     sync.Mutex
	opened map[string]hal.Device // by ID, as configured
	tried  map[string]bool       // a first try has come to an end
	news   chan struct{}         // closed when another try has
	wg     sync.WaitGroup
}

// all are the open devices and their parts, by ID.
func (p *peripherals) all() []hal.Device {
	var out []hal.Device
	p.mu.Lock()
	for _, d := range p.opened {
		out = append(out, d)
	}
	p.mu.Unlock()
	for _, d := range out {
		if whole, ok := d.(hal.Parent); ok {
			out = append(out, whole.Parts()...)
		}
	}
	slices.SortFunc(out, func(x, y hal.Device) int { return strings.Compare(x.Info().ID, y.Info().ID) })
	return out
}

// settled reports whether each of n devices has been tried once.
func (p *peripherals) settled(n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.tried) >= n
}

func (p *peripherals) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.opened)
}

// took notes how a try came out. It is false for a device that comes when the
// others are being closed: who has opened it closes it.
func (p *peripherals) took(id string, d hal.Device) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	late := d != nil && p.opened == nil
	if p.tried[id] = true; d != nil && !late {
		p.opened[id] = d
	}
	close(p.news)
	p.news = make(chan struct{})
	return !late
}

// get is an open device. It waits for one that is being opened; nil means that
// it is not open.
func (p *peripherals) get(ctx context.Context, id string) hal.Device {
	for {
		p.mu.Lock()
		d, tried, news := p.opened[id], p.tried[id], p.news
		p.mu.Unlock()
		if d != nil || tried {
			return d
		}
		select {
		case <-ctx.Done():
			return nil
		case <-news:
		}
	}
}

// counts are what the print sockets of a device count.
func (p *peripherals) counts(id string) []hal.Stat {
	if s := p.doors[id]; s != nil {
		return s.Stats()
	}
	return nil
}

// close closes all at once. What does not close in time is left to the end of
// the process: a driver that hangs must not keep the till from starting anew.
func (p *peripherals) close(log *slog.Logger) {
	p.mu.Lock()
	opened := p.opened
	p.opened = nil
	p.mu.Unlock()
	var wg sync.WaitGroup
	for id, d := range opened {
		wg.Go(func() {
			if err := contained(func() error { return d.Close() }); err != nil {
				log.Warn("close device", slog.String("device", id), slog.Any("err", err))
			}
		})
	}
	wg.Go(p.wg.Wait)
	closed := make(chan struct{})
	go func() { wg.Wait(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(closeWithin):
		log.Error("a driver does not close its device and is left behind")
	}
}

// contained turns a driver's panic into an error.
func contained(do func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%w: %v", errPanicked, v)
		}
	}()
	return do()
}

var errPanicked = errors.New("the driver panicked")

// openDevices begins to open every configured peripheral.
func (a *Agent) openDevices(ctx context.Context) {
	for _, c := range a.cfg.Devices {
		a.devices.wg.Go(func() { a.openDevice(ctx, c) })
	}
}

// openDevice opens one, until it is open or cannot ever be. Meanwhile something
// stands in its place that says why it is not there.
func (a *Agent) openDevice(ctx context.Context, c DeviceConfig) {
	said := ""
	for failures := 0; ctx.Err() == nil; failures++ {
		d, err := a.try(ctx, c)
		if ctx.Err() != nil {
			if d != nil && !a.devices.took(c.ID, d) { // else it is closed with the others
				_ = contained(d.Close)
			}
			return
		}
		if err == nil {
			a.devices.took(c.ID, d)
			a.monitor.Watch(d)
			return
		}
		a.devices.took(c.ID, nil)
		a.monitor.Watch(absent{c, err})
		if err.Error() != said {
			said = err.Error()
			a.log.Error("open device", slog.String("device", c.ID), slog.Any("err", err))
			s, _ := absent{c, err}.Status(ctx)
			a.record(ctx, "peripheral.unusable", "warn", c.ID, map[string]string{"reason": s.Reason})
		}
		e := &hal.Error{}
		if errors.As(err, &e) && (e.Code == "E_ILLEGAL" || e.Code == "E_NOSERVICE") || errors.Is(err, errPanicked) && failures+1 >= openPanics {
			return // nothing but another configuration, or another agent, changes that
		}
		wait := min(openAgain, time.Second<<min(failures, 10))
		select {
		case <-ctx.Done():
		case <-time.After(wait/2 + rand.N(wait/2)): //nolint:gosec // spreads load, guards nothing
		}
	}
}

// try has the driver open the device. One that takes long is told as one that
// does not answer, and waited for.
func (a *Agent) try(ctx context.Context, c DeviceConfig) (hal.Device, error) {
	type outcome struct {
		d   hal.Device
		err error
	}
	ended := make(chan outcome, 1)
	go func() {
		var o outcome
		o.err = contained(func() (err error) {
			o.d, err = a.o.Drivers.Open(ctx, c.Driver, hal.Config{ID: c.ID, Address: c.Address, Claim: hal.Claim(c.Claim), Options: c.Options})
			return err
		})
		ended <- o
	}()
	select {
	case o := <-ended:
		return o.d, o.err
	case <-ctx.Done():
	case <-time.After(a.devices.patience):
		a.devices.took(c.ID, nil)
		a.monitor.Watch(absent{c, &hal.Error{Code: "E_TIMEOUT", Op: "open " + c.ID}})
		select {
		case o := <-ended:
			return o.d, o.err
		case <-ctx.Done():
		}
	}
	select { // a moment to heed the context
	case o := <-ended:
		return o.d, o.err
	case <-time.After(time.Second):
		return nil, ctx.Err()
	}
}

// driversLoaded compares with the configuration: whether a device is there is
// another question, and so is how it is.
func (a *Agent) driversLoaded() error {
	if n := a.devices.count(); n < len(a.cfg.Devices) {
		return fmt.Errorf("%d of %d drivers opened", n, len(a.cfg.Devices))
	}
	return nil
}

// absent stands for a device that could not be opened.
type absent struct {
	c   DeviceConfig
	err error
}

// String implements conn.Resource.
func (d absent) String() string { return d.c.ID + " (not open)" }

// Halt implements conn.Resource.
func (absent) Halt() error { return nil }

// Close implements io.Closer.
func (absent) Close() error { return nil }

// Info implements hal.Device.
func (d absent) Info() hal.Info {
	return hal.Info{ID: d.c.ID, Category: hal.Other, Driver: d.c.Driver, Claim: hal.Claim(d.c.Claim), Key: d.c.Address}
}

// Status implements hal.StatusReader.
func (d absent) Status(context.Context) (hal.Status, error) {
	s := hal.Status{Power: hal.PowerUnknown, Health: hal.Offline}
	e := &hal.Error{}
	switch errors.As(d.err, &e); {
	case errors.Is(d.err, errPanicked):
		s.Reason = "M_DRIVER_PANIC"
	case e.Code == "E_NOSERVICE":
		s.Health, s.Reason = hal.NoSensor, "M_NO_DRIVER"
	case errors.Is(d.err, fs.ErrPermission):
		s.Health, s.Reason = hal.NoSensor, "M_NO_ACCESS"
	case e.Code == "E_BUSY":
		s.Health, s.Reason = hal.NoSensor, "M_IN_USE"
	case e.Code == "E_TIMEOUT":
		s.Reason = "M_TIMEOUT"
	default:
		s.Reason = cmp.Or(e.Code, "E_FAILURE")
	}
	return s, nil
}

// newPeripherals makes what keeps the devices of the configuration.
func newPeripherals(cfg Config, log *slog.Logger) *peripherals {
	p := &peripherals{patience: openWithin, opened: map[string]hal.Device{}, tried: map[string]bool{}, news: make(chan struct{}), doors: map[string]*local.Server{}}
	for _, c := range cfg.Devices {
		if c.Print+c.PrintProof == "" {
			continue
		}
		mode, err := c.printMode()
		if err != nil {
			mode = 0 // validated before; the usual one
		}
		p.doors[c.ID] = local.New(local.Options{
			ID: c.ID, Print: c.Print, Proof: c.PrintProof, Mode: mode, Group: c.PrintGroup,
			Printer: func(ctx context.Context) hal.Device { return p.get(ctx, c.ID) }, Log: log,
		})
	}
	return p
}

// sell serves the print sockets: a till must go on selling, whatever else the
// agent does.
func (a *Agent) sell(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, door := range a.devices.doors {
		g.Go(func() error { return door.Run(ctx) })
	}
	return g.Wait()
}

// newMonitor makes what watches the devices.
func (a *Agent) newMonitor() *telemetry.Monitor {
	t := a.cfg.Telemetry
	at := make(map[string]string, len(a.cfg.Devices))
	for _, c := range a.cfg.Devices {
		at[c.ID] = c.Address
	}
	o := telemetry.Options{
		Devices: []hal.Device{chip{a}}, Addresses: at, Ignore: a.cfg.Peripherals.Ignore,
		Spool: a.books(), Now: a.o.Now, Next: a.heads.Next, Record: a.note, Fill: a.fill, Counts: a.devices.counts, Dropped: a.o.Guard.Dropped,
		Pace: a.pace(), Flaps: t.Flaps, Check: t.Check.Duration, Batch: t.Batch.Duration, Heartbeat: t.Heartbeat.Duration, Log: a.log,
	}
	if a.cfg.Peripherals.USB {
		o.Bus = a.o.Bus
	}
	return telemetry.New(o)
}

// pace is how often things are measured: what the file says of a single device
// counts first, then what was set from afar.
func (a *Agent) pace() telemetry.Pace {
	t := a.cfg.Telemetry
	p := telemetry.Pace{
		Poll: a.settings.period("poll_s", t.Poll.Duration), Stats: a.settings.period("telemetry_s", t.Stats.Duration),
		Of: map[string]time.Duration{},
	}
	for _, c := range a.cfg.Devices {
		p.Of[c.ID] = c.Poll.Duration
	}
	return p
}

// watch opens the devices and runs the telemetry, in another pace whenever its
// settings change.
func (a *Agent) watch(ctx context.Context) error {
	a.openDevices(ctx)
	done := make(chan error, 1)
	go func() { done <- a.monitor.Run(ctx) }()
	for {
		select {
		case <-a.again:
			a.monitor.SetPace(a.pace())
		case err := <-done:
			if ctx.Err() == nil {
				a.log.Error("telemetry", slog.Any("err", err))
				return err
			}
			return nil
		}
	}
}
