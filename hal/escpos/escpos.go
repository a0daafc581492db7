// Package escpos drives receipt printers that speak ESC/POS over TCP, USB or a
// serial line, and the cash drawers behind them; hal/port says how an address
// is written.
//
// In claim mode own it holds the printer's one connection: it is told of
// changes at once, asks again every few seconds, prints what it is handed, and
// lets an application print and ask through it as if it held the cable. In
// claim mode observe it opens nothing at all: whether a USB printer is there
// the system says. The option ask = "true" allows a short look each time; while
// that lasts a real printer makes the till wait, and a USB printer that the
// till holds is told as in use, not as broken.
//
// What a job holds is neither kept nor logged. The package does not find
// printers, and no more than one process can own one.
//
// Options: ask = "true" (observe only); queries = "1234", those of the DLE EOT
// questions that the model answers, or "none" for one that tells nothing and
// of which is only known that its cable is there; timeout = "2s" of each
// answer; drawer_open_level = "high" or "low", without which the drawer's state
// is Unknown; drawer = ID, which makes the drawer a device of its own;
// left_open = "5m", after which such a drawer was left open; roll_length_m and
// feed_pitch_um, the length of a full roll and of one line feed.
package escpos

import (
	"context"
	"iter"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/port"
)

// Driver is the driver "escpos".
type Driver struct {
	// Dial opens the cable; nil does as hal/port says. Tests bring their own.
	Dial func(context.Context, port.Address) (port.Conn, error)
	// Root is where /sys and /dev lie; empty is /.
	Root string
}

// Name implements hal.Driver.
func (Driver) Name() string { return "escpos" }

// Open implements hal.Driver. The printer need not be there.
func (d Driver) Open(_ context.Context, cfg hal.Config) (hal.Device, error) {
	p, err := d.configure(cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	if p.claim == hal.Own {
		p.wg.Go(func() { p.track.Supervise(func() { p.run(ctx) }) })
	} else {
		p.wg.Go(func() { p.track.Supervise(func() { p.watch(ctx) }) })
	}
	return p, nil
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
	o := hal.ReadOptions(cfg, "ask", "drawer", "drawer_open_level", "feed_pitch_um", "left_open", "queries", "roll_length_m", "timeout")
	addr, err := port.Parse(cfg.Address)
	o.Check(err)
	p := &printer{
		addr: addr.Under(d.Root), dial: d.Dial, asking: "1234",
		first: make(chan struct{}), nudge: make(chan struct{}, 1), jobs: make(chan struct{}, 1),
		track:     hal.NewTracker(hal.POSPrinter, "CommunicationErrorCount", "ReceiptCoverOpenCount", "FailedPaperCutCount", "MaximumTempReachedCount", "PrinterFaultCount", "M_PaperEmptyCount"),
		claim:     o.Claim("a printer has one connection; own or observe it", hal.Own, hal.Observe),
		asks:      o.Truth("ask", false),
		openLevel: map[string]hal.Tri{"high": hal.Yes, "low": hal.No}[o.Word("drawer_open_level", "", "high", "low")],
		timeout:   o.Duration("timeout", 2*time.Second, 10*time.Millisecond, time.Minute),
	}
	if p.dial == nil {
		p.dial = func(ctx context.Context, a port.Address) (port.Conn, error) { return a.Open(ctx) }
	}
	p.info = hal.Info{
		ID: cfg.ID, Category: hal.POSPrinter, Driver: "escpos", Claim: p.claim, Key: addr.Key(), Interface: addr.Interface(), RollLines: o.RollLines(),
	}
	if v, ok := cfg.Options["queries"]; ok {
		if p.asking = v; v == "none" {
			p.asking = ""
		}
		if strings.Trim(p.asking, "1234") != "" {
			o.Refuse("queries = %q: write some of 1234, or none", v)
		}
	}
	if id, leftOpen := o.Drawer(); id != "" {
		p.part = newDrawer(p, id, leftOpen)
	}
	return p, o.Err()
}

// printer is an open printer.
type printer struct {
	addr      port.Address
	dial      func(context.Context, port.Address) (port.Conn, error)
	claim     hal.Claim
	timeout   time.Duration
	asking    string
	openLevel hal.Tri // Yes: a high pin is an open drawer
	asks      bool
	track     *hal.Tracker
	part      *drawer
	first     chan struct{} // closed after the first attempt to reach it
	nudge     chan struct{}
	jobs      chan struct{} // held by whose job is being printed
	stop      context.CancelFunc
	wg        sync.WaitGroup

	oneWay  atomic.Bool // it cannot tell anything
	answers atomic.Bool // it has answered in its turn
	plain   atomic.Bool // GS I it does not answer
	dirty   atomic.Bool // it may hold a part of a job

	mu     sync.Mutex
	info   hal.Info
	held   *session
	reason string // why nothing is known, if not for the reasons of hal.Judge
	advice string
	kept   map[string]bool // counters that it keeps itself
	feeds  books           // of jobs that went through us
}

// books are what jobs asked for.
type books struct {
	dots, cuts int
	handed     int // to the printer, in pieces
	proven     int // of them that are known to be out
}

// String implements conn.Resource.
func (p *printer) String() string { return "escpos(" + p.addr.Key() + ")" }

// Halt implements conn.Resource: it gives the printer free.
func (p *printer) Halt() error { return p.Close() }

// Close implements io.Closer. It closes the drawer too.
func (p *printer) Close() error {
	p.stop()
	p.wg.Wait()
	p.track.Close()
	if p.part != nil {
		p.part.state.Close()
	}
	return nil
}

// Nudge implements hal.Nudger.
func (p *printer) Nudge() {
	select {
	case p.nudge <- struct{}{}:
	default:
	}
}

// Parts implements hal.Parent: the drawer, if the configuration names one.
func (p *printer) Parts() []hal.Device {
	if p.part == nil {
		return nil
	}
	return []hal.Device{p.part}
}

// Info implements hal.Device. Maker, model, serial, firmware and capabilities
// are known once the printer has been reached.
func (p *printer) Info() hal.Info {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := p.info
	i.Caps = p.caps()
	return i
}

// caps tells, with p.mu held, what is known to be there.
func (p *printer) caps() []string {
	caps := []string{"CapStatisticsReporting"}
	add := func(is bool, name string) {
		if is {
			caps = append(caps, name)
		}
	}
	st := p.track.Status()
	tells := p.queries() != "" && (p.claim == hal.Own || p.asks)
	add(tells || p.info.Interface == "USB", "CapPowerReporting")
	add(st.Sensors["CoverOpen"] != hal.Unknown || tells && strings.Contains(p.asking, "2"), "CapCoverSensor")
	add(st.Sensors["RecEmpty"] != hal.Unknown || tells && strings.Contains(p.asking, "4"), "CapRecEmptySensor")
	add(st.Sensors["RecNearEnd"] != hal.Unknown || tells && strings.Contains(p.asking, "4"), "CapRecNearEndSensor")
	add(p.kept["PaperCutCount"], "CapRecPapercut")
	slices.Sort(caps)
	return caps
}

// queries are the questions that the printer answers; none of one that cannot.
func (p *printer) queries() string {
	if p.oneWay.Load() {
		return ""
	}
	return p.asking
}

// Events implements hal.Notifier. In claim mode observe they are what looks find.
func (p *printer) Events(ctx context.Context) iter.Seq2[hal.Event, error] { return p.track.Events(ctx) }

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

// learn takes in what the printer says.
func (p *printer) learn(r reading) hal.Status {
	power, sensors, opened := r.look(p.openLevel)
	if power == "" && p.queries() == "" {
		power = hal.PowerOnline // its cable is there, and more nobody can know
	}
	return p.show(power, sensors, opened, "", "")
}

// show takes in a look. reason and advice, if any, say why nothing is known.
func (p *printer) show(power hal.Power, sensors map[string]hal.Tri, opened hal.Tri, reason, advice string) hal.Status {
	p.mu.Lock()
	p.reason, p.advice = reason, advice
	p.mu.Unlock()
	if p.part != nil {
		p.part.look(power, opened)
	} else if sensors != nil {
		sensors["DrawerOpened"] = opened
	}
	return p.told(p.track.Update(power, sensors))
}

// told adds why nothing is known.
func (p *printer) told(st hal.Status) hal.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	if st.Health == hal.NoSensor && p.reason != "" {
		st.Reason, st.Advice = p.reason, p.advice
	}
	return st
}

// last is the last look.
func (p *printer) last() hal.Status { return p.told(p.track.Status()) }

// passed notes what has just been handed to the printer.
func (p *printer) passed(kicks, cuts, dots int) {
	p.mu.Lock()
	p.feeds.cuts += cuts
	p.feeds.dots += dots
	p.feeds.handed++
	p.mu.Unlock()
	if p.part != nil {
		p.part.kicked(kicks)
	}
}

// handed is a mark of all that the printer has got so far.
func (p *printer) handed() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.feeds.handed
}

func (p *printer) unproven() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.feeds.proven != p.feeds.handed
}

// settled notes that what was handed to the printer up to the mark is out, or
// that it cannot be known better.
func (p *printer) settled(mark int, proven bool) {
	p.mu.Lock()
	all := mark == p.feeds.handed
	if proven {
		p.feeds.proven = max(p.feeds.proven, mark)
	}
	p.mu.Unlock()
	if p.part != nil && all {
		p.part.settled()
	}
}

// Statistics implements hal.Statistics. What the printer counts itself is
// asked while it is on-line, and kept from the last time otherwise. Of a
// printer that does not count, the jobs that went through the driver are.
func (p *printer) Statistics(ctx context.Context) ([]hal.Stat, error) {
	if s := p.session(); s != nil && p.queries() != "" && p.track.Status().Power == hal.PowerOnline {
		for _, c := range []struct {
			n    byte
			name string
		}{{148, "ReceiptLineFeedCount"}, {149, "M_HeadEnergizedCount"}, {178, "PaperCutCount"}, {198, "HoursPoweredCount"}} {
			v, err := s.counter(ctx, c.n)
			if err != nil {
				break
			}
			p.track.Set(c.name, float64(v))
			p.mu.Lock()
			if p.kept == nil {
				p.kept = map[string]bool{}
			}
			p.kept[c.name] = true
			p.mu.Unlock()
		}
	}
	if p.claim == hal.Own {
		p.book()
	}
	return p.track.Stats(), nil
}

// book counts what the printer does not.
func (p *printer) book() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.kept["ReceiptLineFeedCount"] {
		p.track.Count("ReceiptLineFeedCount", float64(p.feeds.dots/dotsPerLine))
		p.feeds.dots %= dotsPerLine
	}
	if !p.kept["PaperCutCount"] {
		p.track.Count("PaperCutCount", float64(p.feeds.cuts))
		p.feeds.cuts = 0
	}
}
