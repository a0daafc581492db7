// Package star drives receipt printers of Star Micronics, and the cash drawers
// behind them, in two ways: driver "star" holds a printer that speaks Star Line
// Mode by its cable, driver "cloudprnt" answers a network printer that comes
// and asks for work.
//
// Driver "star" takes an address of hal/port. In claim mode own it holds the
// printer's one connection, is told of changes at once, counts what goes
// through and prints what it is handed; that a job came out is proved by the
// printer's own counter of ETB. In claim mode observe it opens nothing unless
// the option ask = "true" allows a short look; while that is open the till has
// to wait. Automatic status and questions are never mixed: a printer is asked
// (ESC ACK SOH) only as long as it does not tell by itself.
//
// Options of "star": ask = "true" (observe only); drawer = "ID" of the cash
// drawer behind the printer, which is then a device of its own;
// drawer_open_level = "high" (the compulsion switch is closed when the drawer
// is open) or "low", without which the drawer's state is Unknown; left_open =
// "5m"; near_end = "false" for a model without that sensor, which would always
// say that there is enough; roll_length_m and feed_pitch_um, from which the
// line feeds of a roll follow; timeout = "2s" of each answer. Those of
// "cloudprnt" are described at CloudPRNT.
//
// What a job holds is neither kept nor logged. The package does not find
// printers, and no more than one process can own one.
package star

import (
	"context"
	"iter"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/port"
)

const (
	pollEvery  = 5 * time.Second
	askEvery   = 250 * time.Millisecond // of a printer that does not tell by itself
	backoffMin = 200 * time.Millisecond // some interfaces need that long between two connections
	backoffMax = 15 * time.Second
)

// Driver is the driver "star".
type Driver struct {
	// Dial opens the cable; nil does as hal/port says. Tests bring their own.
	Dial func(context.Context, port.Address) (port.Conn, error)
	// Root is where /sys and /dev lie; empty is /.
	Root string
}

// Name implements hal.Driver.
func (Driver) Name() string { return "star" }

// Open implements hal.Driver. The printer need not be there.
func (d Driver) Open(_ context.Context, cfg hal.Config) (hal.Device, error) {
	p, err := d.configure(cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	if p.info.Claim == hal.Own {
		p.wg.Go(func() { p.track.Supervise(func() { p.run(ctx) }) })
	} else {
		p.wg.Go(func() { p.track.Supervise(func() { p.watch(ctx) }) })
	}
	return p, nil
}

// counters begin at zero with every printer.
var counters = []string{
	"CommunicationErrorCount", "ReceiptCoverOpenCount", "FailedPaperCutCount", "MaximumTempReachedCount", "PrinterFaultCount", "M_PaperEmptyCount",
}

// Check implements hal.Checker.
func (d Driver) Check(cfg hal.Config) ([]hal.Info, error) {
	p, err := d.configure(cfg)
	if err != nil {
		return nil, err
	}
	infos := []hal.Info{p.Info()}
	for _, part := range p.Parts() {
		infos = append(infos, part.Info())
	}
	return infos, nil
}

func (d Driver) configure(cfg hal.Config) (*printer, error) {
	o := hal.ReadOptions(cfg, "ask", "drawer", "drawer_open_level", "left_open", "near_end", "roll_length_m", "feed_pitch_um", "timeout")
	at, err := port.Parse(cfg.Address)
	o.Check(err)
	at = at.Under(d.Root)
	dial := at.Open
	if d.Dial != nil {
		dial = func(ctx context.Context) (port.Conn, error) { return d.Dial(ctx, at) }
	}
	p := &printer{
		at: at, dial: dial, first: make(chan struct{}), nudged: make(chan struct{}, 1),
		track:   hal.NewTracker(hal.POSPrinter, counters...),
		asks:    o.Truth("ask", false),
		nearEnd: o.Truth("near_end", true),
		timeout: o.Duration("timeout", 2*time.Second, 10*time.Millisecond, time.Minute),
		level:   map[string]hal.Tri{"high": hal.Yes, "low": hal.No}[o.Word("drawer_open_level", "", "high", "low")],
		info: hal.Info{
			ID: cfg.ID, Category: hal.POSPrinter, Driver: "star", Maker: "Star", Key: at.Key(), Interface: at.Interface(), RollLines: o.RollLines(),
			Claim: o.Claim("a printer has one connection; own or observe it", hal.Own, hal.Observe),
		},
	}
	own := p.info.Claim == hal.Own
	id, leftOpen := o.Drawer()
	p.drawer = newDrawer(p, id, own, leftOpen)
	if own || p.asks {
		p.info.Caps = []string{"CapCoverSensor", "CapPowerReporting", "CapRecEmptySensor", "CapRecPapercut", "CapStatisticsReporting"}
		if p.nearEnd {
			p.info.Caps = append(p.info.Caps, "CapRecNearEndSensor")
		}
		if p.asks && !own {
			p.info.Caps = append(p.info.Caps, "M_CapAskWhileInUse")
		}
		slices.Sort(p.info.Caps)
	}
	return p, o.Err()
}

// printer is an open printer.
type printer struct {
	at      port.Address
	dial    func(context.Context) (port.Conn, error)
	timeout time.Duration
	level   hal.Tri // Yes: a closed switch is an open drawer
	nearEnd bool    // has that sensor
	asks    bool
	track   *hal.Tracker
	drawer  *drawer
	first   chan struct{} // closed after the first attempt to reach it
	nudged  chan struct{}
	stop    context.CancelFunc
	wg      sync.WaitGroup

	mu     sync.Mutex
	info   hal.Info
	held   *session
	reason string // why nothing is known, when nothing is
	advice string
}

// String implements conn.Resource.
func (p *printer) String() string { return "star(" + p.at.Key() + ")" }

// Halt implements conn.Resource: it gives the printer free.
func (p *printer) Halt() error { return p.Close() }

// Close implements io.Closer.
func (p *printer) Close() error {
	p.stop()
	p.wg.Wait()
	p.track.Close()
	p.drawer.state.Close()
	return nil
}

// Info implements hal.Device. Model and firmware are known once the printer
// has told them.
func (p *printer) Info() hal.Info {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := p.info
	i.Caps = slices.Clone(i.Caps)
	return i
}

// Parts implements hal.Parent.
func (p *printer) Parts() []hal.Device {
	if p.drawer.id == "" {
		return nil
	}
	return []hal.Device{p.drawer}
}

// Nudge implements hal.Nudger.
func (p *printer) Nudge() {
	select {
	case p.nudged <- struct{}{}:
	default:
	}
}

// Events implements hal.Notifier. In claim mode observe they are what looks find.
func (p *printer) Events(ctx context.Context) iter.Seq2[hal.Event, error] { return p.track.Events(ctx) }

// Statistics implements hal.Statistics.
func (p *printer) Statistics(context.Context) ([]hal.Stat, error) {
	s := p.track.Stats()
	if p.drawer.id == "" && p.level != hal.Unknown {
		for _, d := range p.drawer.state.Stats() {
			if strings.HasPrefix(d.Name, "Drawer") {
				s = append(s, d)
			}
		}
	}
	return s, nil
}

func (p *printer) session() *session {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held
}

func (p *printer) hold(s *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = s
}

// told takes in a frame.
func (p *printer) told(r reading) {
	power, sensors := r.look(p.nearEnd)
	opened := hal.Unknown
	if p.level != hal.Unknown {
		opened = hal.TriOf(r.switched == (p.level == hal.Yes))
	}
	p.drawer.look(power, opened)
	if p.drawer.id == "" {
		sensors["DrawerOpened"] = opened
	}
	if r.overflow {
		p.failed(1)
	}
	p.track.Update(power, sensors)
}

func (p *printer) failed(n int) { p.track.Count("CommunicationErrorCount", float64(n)) }

// watch looks, from outside alone, when something has changed on the bus.
func (p *printer) watch(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.nudged:
			p.outside()
		}
	}
}

// run keeps one connection, for as long as the device is open.
func (p *printer) run(ctx context.Context) {
	attempted := sync.OnceFunc(func() { close(p.first) })
	defer attempted()
	for failures := 0; ctx.Err() == nil && !p.track.Broken(); failures++ {
		s, err := p.connect(ctx)
		if err == nil {
			p.hold(s)
			attempted()
			p.keep(ctx, s)
			s.end()
			err, failures = net.ErrClosed, 0
		}
		if ctx.Err() == nil {
			p.missing(err)
		}
		p.hold(nil) // not before: what is known without a connection is the last look
		attempted()
		if ctx.Err() != nil {
			return
		}
		hal.Pause(ctx, hal.Backoff(failures, backoffMin, backoffMax), p.nudged)
	}
}

// connect opens the cable and looks once. Only a printer that answers is
// connected: one that somebody else holds takes the connection and stays mute.
func (p *printer) connect(ctx context.Context) (*session, error) {
	limit, cancel := context.WithTimeout(ctx, p.timeout)
	conn, err := p.dial(limit)
	cancel()
	if err != nil {
		return nil, err
	}
	s := begin(conn, p.timeout, p.told, p.failed, p.track.Contain)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := s.hello(ctx); err != nil {
		s.end()
		return nil, err
	}
	_, _ = p.present() // its name
	return s, nil
}

// found takes in what the bus says of a USB printer.
func (p *printer) found(f port.Found) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.info.Key != f.Key { // another one is plugged in there
		p.info.Model, p.info.Serial, p.info.Firmware = "", "", ""
	}
	p.info.Key = f.Key
	for to, v := range map[*string]string{&p.info.Serial: f.Serial, &p.info.Model: f.Model} {
		if *to == "" && v != "" && !hal.MayHoldPAN(v) {
			*to = v
		}
	}
}

// keep asks again and again until the connection or ctx ends.
func (p *printer) keep(ctx context.Context, s *session) {
	stop := context.AfterFunc(ctx, func() { _ = s.conn.Close() })
	defer stop()
	known := false
	for {
		if !known && p.track.Status().Power == hal.PowerOnline {
			known = p.identify(ctx, s)
		}
		every := pollEvery
		if !s.tellsItself() {
			every = askEvery
		}
		wait := time.NewTimer(every)
		select {
		case <-s.lost:
			wait.Stop()
			return
		case <-p.nudged:
		case <-wait.C:
		}
		wait.Stop()
		if err := s.poll(ctx); err != nil {
			return
		}
		p.drawer.again()
	}
}

// identify asks what the printer is. The answer is the model with its version
// behind it, e.g. HSP7000 Ver. 1.0.
func (p *printer) identify(ctx context.Context, s *session) bool {
	v, err := s.identity(ctx)
	if err != nil {
		return false
	}
	if hal.MayHoldPAN(v) {
		p.track.Count("M_PanGuardDropCount", 1)
		v = ""
	}
	if v == "" {
		return true
	}
	model, version, _ := strings.Cut(v, "Ver")
	p.mu.Lock()
	defer p.mu.Unlock()
	p.info.Model, p.info.Firmware = strings.TrimSpace(model), strings.Trim(version, " .")
	return true
}
