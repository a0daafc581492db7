package star

import (
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	"github.com/tillward/tillward/hal"
)

const (
	drawerWithin = time.Second     // for the drawer to spring open
	kickWithin   = 3 * time.Second // for a kick of a job that was given up
)

// drawer is the cash drawer behind a printer. Its pin is in the printer's
// status; it lives and is closed with the printer.
type drawer struct {
	p     *printer
	id    string // empty: it is no device of its own
	state *hal.Drawer

	mu     sync.Mutex
	owed   int       // kicks in jobs that the printer has not come to
	last   time.Time // when a job with kicks was given up
	opened hal.Tri
	power  hal.Power
}

func newDrawer(p *printer, id string, proves bool, leftOpen time.Duration) *drawer {
	return &drawer{p: p, id: id, state: hal.NewDrawer(proves, drawerWithin, leftOpen), power: hal.PowerUnknown}
}

// kicked notes kicks in a job: they open the drawer when the printer comes to
// them.
func (d *drawer) kicked(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.owed += n
}

// settled notes that the job is out: what has not opened the drawer by now is
// late.
func (d *drawer) settled() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.owed > 0 {
		d.owed = 0
		d.state.Ask()
	}
}

// broken notes that the job with the kicks was given up: what of it the printer
// has got to shows soon, and the rest never.
func (d *drawer) broken() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.owed > 0 {
		d.owed, d.last = 0, time.Now()
	}
}

// expected takes one of the kicks that may have opened the drawer now.
func (d *drawer) expected() bool {
	late := time.Since(d.last) < kickWithin
	d.last = time.Time{}
	if d.owed > 0 {
		d.owed--
		return true
	}
	return late
}

// look takes in what the printer says of the pin. A printer without paper is
// no fault of its drawer.
func (d *drawer) look(power hal.Power, opened hal.Tri) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if opened == hal.Yes && d.opened == hal.No && d.expected() {
		d.state.Ask()
	}
	if power == hal.PowerOffline {
		power = hal.PowerOnline
	}
	if d.power = power; opened != hal.Unknown {
		d.opened = opened
	}
	d.state.Look(power, opened)
}

// again looks without news: time is what leaves a drawer open.
func (d *drawer) again() {
	d.mu.Lock()
	defer d.mu.Unlock()
	opened := d.opened
	if d.power != hal.PowerOnline {
		opened = hal.Unknown
	}
	d.state.Look(d.power, opened)
}

// String implements conn.Resource.
func (d *drawer) String() string { return d.p.String() + " drawer" }

// Halt implements conn.Resource. The drawer is given free with its printer.
func (d *drawer) Halt() error { return nil }

// Close implements io.Closer. It is the printer that is closed.
func (d *drawer) Close() error { return nil }

// Info implements hal.Device.
func (d *drawer) Info() hal.Info {
	i := d.p.Info()
	out := hal.Info{
		ID: d.id, Category: hal.CashDrawer, Driver: i.Driver, Claim: i.Claim, Key: i.Key, Interface: i.Interface,
		Caps: []string{"CapPowerReporting", "CapStatisticsReporting"},
	}
	if d.p.level != hal.Unknown && (i.Claim == hal.Own || d.p.asks) {
		out.Caps = append(out.Caps, "CapStatus")
	}
	return out
}

// Status implements hal.StatusReader with a fresh look at the printer.
func (d *drawer) Status(ctx context.Context) (hal.Status, error) {
	st, err := d.p.Status(ctx)
	if err != nil {
		return hal.Status{}, err
	}
	if st.Power == hal.PowerOffOffline {
		return hal.Judge(hal.CashDrawer, st.Power, nil), nil
	}
	d.again()
	return d.p.explained(d.state.Status()), nil
}

// Events implements hal.Notifier.
func (d *drawer) Events(ctx context.Context) iter.Seq2[hal.Event, error] { return d.state.Events(ctx) }

// Statistics implements hal.Statistics.
func (d *drawer) Statistics(context.Context) ([]hal.Stat, error) { return d.state.Stats(), nil }

// CheckHealth implements hal.HealthChecker. External opens the drawer.
func (d *drawer) CheckHealth(ctx context.Context, level hal.Level) (hal.Report, error) {
	if level == hal.Interactive {
		return hal.Report{}, &hal.Error{Code: "E_ILLEGAL", Op: "check health", Err: errors.New("a drawer has no interactive check; use external")}
	}
	r, err := looked(ctx, d)
	if err != nil || level == hal.Internal {
		return r, err
	}
	began := time.Now()
	err = d.OpenDrawer(ctx)
	r.OK, r.Text = err == nil, "The drawer was kicked."
	r.Checks = append(r.Checks, check("kick", r.OK, codeOf(err), time.Since(began)))
	if err != nil {
		r.Text = err.Error()
	}
	return r, err
}

// OpenDrawer implements hal.DrawerKicker.
func (d *drawer) OpenDrawer(ctx context.Context) error { return d.p.OpenDrawer(ctx) }
