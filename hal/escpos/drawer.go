package escpos

import (
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	"github.com/tillward/tillward/hal"
)

const (
	drawerWithin = time.Second      // for the drawer to spring open
	kickWithin   = 3 * time.Second  // for a kick that is part of a job
	kickFor      = 2 * time.Minute  // that a job with a kick may be on its way
	behindJob    = 30 * time.Second // that a kick of our own may wait for a job
)

// drawer is the cash drawer behind a printer, as a device of its own.
type drawer struct {
	p     *printer
	id    string
	state *hal.Drawer

	mu     sync.Mutex
	stands bool      // the printer does, and comes to nothing
	owed   int       // kicks in jobs that have not opened it yet
	newest time.Time // of them
	out    bool      // the job with them is printed, as far as is known
	opened hal.Tri   // when it was last known
	stuck  hal.Tri   // at the last look
	last   time.Time // when a job with kicks was given up
}

func newDrawer(p *printer, id string, leftOpen time.Duration) *drawer {
	return &drawer{p: p, id: id, state: hal.NewDrawer(p.claim == hal.Own, drawerWithin, leftOpen)}
}

// kicked notes kicks in a job: they open the drawer when the printer comes to
// them.
func (d *drawer) kicked(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n > 0 {
		d.expire()
		d.owed, d.newest, d.out = d.owed+n, time.Now(), false
	}
}

// settled notes that the job with the kicks is out.
func (d *drawer) settled() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.opened == hal.Yes { // of a drawer that is open a kick means nothing
		d.owed = 0
	}
	if d.owed > 0 && !d.out {
		d.newest, d.out = time.Now(), true
		d.state.Ask() // from now on it is late
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

// expire forgets kicks that would have opened it by now.
func (d *drawer) expire() {
	within := kickFor
	if d.out {
		within = kickWithin
	}
	if time.Since(d.newest) > within {
		d.owed = 0
	}
}

// expected takes one of the kicks that may have opened the drawer now.
func (d *drawer) expected() bool {
	late := time.Since(d.last) < kickWithin
	d.last = time.Time{}
	if d.expire(); d.owed > 0 {
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
	if d.stands && !d.out {
		d.newest = time.Now()
	}
	d.stands = power == hal.PowerOffline
	if opened == hal.Yes && d.opened == hal.No && d.expected() {
		d.state.Ask()
	}
	if opened != hal.Unknown {
		d.opened = opened
	}
	switch power {
	case hal.PowerOffline:
		power = hal.PowerOnline
	case hal.PowerOff, hal.PowerOffOffline:
		d.owed = 0 // and with its power what it had not got to
	}
	stuck := d.state.Look(power, opened).Sensors["M_DrawerStuck"]
	if stuck == hal.Yes && d.stuck != hal.Yes {
		d.owed = 0 // they did not open it, and will not
	}
	d.stuck = stuck
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
	caps := []string{"CapPowerReporting", "CapStatisticsReporting"}
	if d.p.openLevel != hal.Unknown && d.p.queries() != "" {
		caps = []string{"CapPowerReporting", "CapStatisticsReporting", "CapStatus"}
	}
	return hal.Info{ID: d.id, Category: hal.CashDrawer, Driver: i.Driver, Claim: i.Claim, Key: i.Key, Interface: i.Interface, Caps: caps}
}

// Status implements hal.StatusReader with a fresh look at the printer.
func (d *drawer) Status(ctx context.Context) (hal.Status, error) {
	if _, err := d.p.Status(ctx); err != nil {
		return hal.Status{}, err
	}
	return d.p.told(d.state.Status()), nil
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
	began := time.Now()
	st, err := d.Status(ctx)
	if err != nil {
		return hal.Report{}, err
	}
	r := checked(st, time.Since(began))
	if level == hal.Internal {
		return r, nil
	}
	began = time.Now()
	err = d.OpenDrawer(ctx)
	kick := hal.Check{ID: "kick", OK: err == nil, Took: time.Since(began)}
	if err != nil {
		kick.Code = codeOf(err)
		r.OK, r.Text, r.Checks = false, err.Error(), append(r.Checks, kick)
		return r, err
	}
	r.OK, r.Text, r.Checks = true, "The drawer was kicked.", append(r.Checks, kick)
	return r, nil
}

// OpenDrawer implements hal.DrawerKicker. Where the drawer's state is known it
// returns after the drawer has opened, or E_FAILURE.
func (d *drawer) OpenDrawer(ctx context.Context) error {
	return d.p.kick(ctx, func(s *session, send func(context.Context) error) error {
		looking, cancel := context.WithCancel(ctx)
		defer cancel()
		s.start(func() { d.p.stare(looking, s) })
		return d.state.Kick(ctx, send)
	})
}

// OpenDrawer implements hal.DrawerKicker, as that of the drawer.
func (p *printer) OpenDrawer(ctx context.Context) error {
	if p.part != nil {
		return p.part.OpenDrawer(ctx)
	}
	return p.kick(ctx, func(s *session, send func(context.Context) error) error {
		was := p.track.Status().Sensors["DrawerOpened"]
		if err := send(ctx); err != nil || was != hal.No {
			return err // unknown, or open already
		}
		looking, cancel := context.WithTimeout(ctx, drawerWithin)
		defer cancel()
		if p.stare(looking, s) {
			p.track.Count("DrawerGoodOpenCount", 1)
			return nil
		}
		if ctx.Err() != nil {
			return failed("open drawer", ctx.Err())
		}
		p.track.Count("DrawerFailedOpenCount", 1)
		return &hal.Error{Code: "E_FAILURE", Op: "open drawer", Err: errors.New("the drawer did not open; is it locked?")}
	})
}

// kick lets do send the pulse: behind what is being printed or, of a printer
// that stands, at once. Somebody without paper still has to give change.
func (p *printer) kick(ctx context.Context, do func(s *session, send func(context.Context) error) error) error {
	const op = "open drawer"
	if p.claim != hal.Own {
		return &hal.Error{Code: "E_ILLEGAL", Op: op, Err: errors.New("the till owns this printer; claim it with own")}
	}
	st, err := p.Status(ctx)
	if err != nil {
		return err
	}
	s := p.session()
	if s == nil || st.Power != hal.PowerOnline && st.Power != hal.PowerOffline {
		return stopped(op, st)
	}
	pulse := []byte{esc, 'p', 0, 25, 250}
	if st.Power == hal.PowerOffline {
		pulse = []byte{dle, 0x14, 1, 0, 1}
	}
	return do(s, func(ctx context.Context) error {
		if err := s.tell(ctx, pulse...); err != nil {
			return failed(op, err)
		}
		if st.Power == hal.PowerOnline && p.unproven() && p.answers.Load() {
			p.reach(ctx, s)
		}
		return nil
	})
}

// reach waits until the printer has come to what it was told last: the drawer
// is not late before that.
func (p *printer) reach(ctx context.Context, s *session) {
	ctx, cancel := context.WithTimeout(ctx, behindJob)
	defer cancel()
	q := p.proving()
	_, _ = s.ask(ctx, q.kind, proofWithin, q.cmd...)
}

// stare looks until the drawer is open or ctx ends.
func (p *printer) stare(ctx context.Context, s *session) bool {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if st, err := s.poll(ctx, p.queries()); err == nil && st.Sensors["DrawerOpened"] == hal.Yes {
				return true
			}
		case <-s.lost:
			return false
		case <-ctx.Done():
			return false
		}
	}
}
