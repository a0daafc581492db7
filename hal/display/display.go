// Package display drives customer displays: two lines of text on a serial
// line, or on whatever hal/port opens, that speak ESC/POS.
//
// Most of them cannot say anything. Of those is known only that their cable is
// there, and that never reads as healthy: their health is Unknown, because
// there is no sensor. The option asks = "dle-eot" is for those that answer.
//
// In claim mode observe, which is the default, the till owns the display and
// nothing is opened: whether its port is there the system says. In claim mode
// own the driver holds the line, and the external check shows a test text for
// a while and clears it; what was on the display before is not known and does
// not come back. What a display says is never kept, and nothing that others
// show on it is read.
//
// Options: asks = "dle-eot" (own only); columns = "20" of a line; brightness =
// "1" to "4" of the test text; test_for = "3s" that it stays; timeout = "1s" of
// an answer.
package display

import (
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/port"
)

const (
	pollEvery  = 30 * time.Second
	backoffMin = 200 * time.Millisecond
	backoffMax = 15 * time.Second
)

// Driver is the driver "display".
type Driver struct {
	// Dial opens the cable; nil does as hal/port says. Tests bring their own.
	Dial func(context.Context, port.Address) (port.Conn, error)
	// Root is where /sys and /dev lie; empty is /.
	Root string
}

// Name implements hal.Driver.
func (Driver) Name() string { return "display" }

// Open implements hal.Driver. The display need not be there.
func (drv Driver) Open(_ context.Context, cfg hal.Config) (hal.Device, error) {
	d, err := drv.configure(cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	d.stop = cancel
	if d.info.Claim == hal.Own {
		d.wg.Go(func() { d.track.Supervise(func() { d.run(ctx) }) })
	} else {
		d.wg.Go(func() { d.track.Supervise(func() { d.watch(ctx) }) })
	}
	return d, nil
}

// Check implements hal.Checker.
func (drv Driver) Check(cfg hal.Config) ([]hal.Info, error) {
	d, err := drv.configure(cfg)
	if err != nil {
		return nil, err
	}
	return []hal.Info{d.info}, nil
}

func (drv Driver) configure(cfg hal.Config) (*display, error) {
	o := hal.ReadOptions(cfg, "asks", "brightness", "columns", "test_for", "timeout")
	at, err := port.Parse(cfg.Address)
	o.Check(err)
	d := &display{
		at: at.Under(drv.Root), dial: drv.Dial, columns: o.Whole("columns", 20, 8, 40), brightness: o.Whole("brightness", 0, 1, 4),
		testFor: o.Duration("test_for", 3*time.Second, 10*time.Millisecond, time.Minute), timeout: o.Duration("timeout", time.Second, 10*time.Millisecond, time.Minute),
		first: make(chan struct{}), nudged: make(chan struct{}, 1),
		track: hal.NewTracker(hal.LineDisplay, "CommunicationErrorCount", "OnlineTransitionCount"),
		info: hal.Info{
			ID: cfg.ID, Category: hal.LineDisplay, Driver: "display", Key: at.Key(), Interface: at.Interface(),
			Claim: o.Claim("a line has one end; own or observe it", hal.Observe, hal.Own),
			Caps:  []string{"CapStatisticsReporting"},
		},
	}
	if d.dial == nil {
		d.dial = func(ctx context.Context, a port.Address) (port.Conn, error) { return a.Open(ctx) }
	}
	if d.asks = o.Word("asks", "", "dle-eot") != ""; d.asks {
		d.info.Caps = []string{"CapPowerReporting", "CapStatisticsReporting"}
		if d.info.Claim == hal.Observe {
			o.Refuse("asks: the till owns this display; claim it with own")
		}
	}
	return d, o.Err()
}

// display is an open display.
type display struct {
	at         port.Address
	dial       func(context.Context, port.Address) (port.Conn, error)
	asks       bool
	columns    int
	brightness int // 0: as it is
	testFor    time.Duration
	timeout    time.Duration
	track      *hal.Tracker
	first      chan struct{} // closed after the first attempt to reach it
	nudged     chan struct{}
	stop       context.CancelFunc
	wg         sync.WaitGroup

	mu   sync.Mutex
	info hal.Info
	held *session
	here bool       // it was there at the last look
	why  hal.Status // reason and advice of a line that cannot be had
}

// String implements conn.Resource.
func (d *display) String() string { return "display(" + d.at.Key() + ")" }

// Halt implements conn.Resource: it gives the line free.
func (d *display) Halt() error { return d.Close() }

// Close implements io.Closer.
func (d *display) Close() error {
	d.stop()
	d.wg.Wait()
	d.track.Close()
	return nil
}

// Info implements hal.Device.
func (d *display) Info() hal.Info {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.info
}

// Events implements hal.Notifier.
func (d *display) Events(ctx context.Context) iter.Seq2[hal.Event, error] { return d.track.Events(ctx) }

// Statistics implements hal.Statistics.
func (d *display) Statistics(context.Context) ([]hal.Stat, error) { return d.track.Stats(), nil }

// Nudge implements hal.Nudger.
func (d *display) Nudge() {
	select {
	case d.nudged <- struct{}{}:
	default:
	}
}

// show takes in whether the display is there, as far as can be known: one that
// does not answer may be switched off.
func (d *display) show(here bool) hal.Status {
	power := hal.PowerOffOffline
	switch {
	case here && d.asks:
		power = hal.PowerOnline
	case here:
		power = hal.PowerUnknown
	}
	d.mu.Lock()
	if here && !d.here {
		d.track.Count("OnlineTransitionCount", 1)
	}
	d.here, d.why = here, hal.Status{}
	d.mu.Unlock()
	return d.told(d.track.Update(power, nil))
}

// lost takes in that the line cannot be had. One that somebody else holds, or
// that is not for us, is not gone.
func (d *display) lost(err error) {
	why := hal.Status{}
	switch {
	case errors.Is(err, port.ErrInUse):
		why.Reason, why.Advice = "M_IN_USE", "Another program on the box holds this display; observe it, or stop that."
	case errors.Is(err, port.ErrNoAccess):
		why.Reason, why.Advice = "M_NO_ACCESS", "Put the agent's user into the group that owns the device file: dialout."
	default:
		d.show(false)
		return
	}
	d.mu.Lock()
	d.here, d.why = false, why
	d.mu.Unlock()
	d.track.Update(hal.PowerUnknown, nil)
}

// told says why nothing is known.
func (d *display) told(s hal.Status) hal.Status {
	if s.Power != hal.PowerUnknown || s.Health != hal.NoSensor {
		return s
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if s.Reason, s.Advice = d.why.Reason, d.why.Advice; s.Reason == "" {
		s.Reason, s.Advice = "M_NO_SENSOR", "This display cannot tell how it is; look at it now and then."
	}
	return s
}

// present looks from outside.
func (d *display) present() (bool, error) {
	f, err := d.at.Find()
	if errors.Is(err, port.ErrAbsent) {
		return false, err
	}
	if err == nil && f.Maker != "" && !hal.MayHoldPAN(f.Maker+" "+f.Model+" "+f.Serial) {
		d.mu.Lock()
		d.info.Key, d.info.Maker, d.info.Model, d.info.Serial = f.Key, f.Maker, f.Model, f.Serial
		d.mu.Unlock()
	}
	return true, nil
}

// watch looks from outside alone.
func (d *display) watch(ctx context.Context) {
	for {
		here, _ := d.present()
		d.show(here)
		wait := time.NewTimer(pollEvery)
		select {
		case <-ctx.Done():
			wait.Stop()
			return
		case <-d.nudged:
		case <-wait.C:
		}
		wait.Stop()
	}
}

// run keeps the line, for as long as the device is open.
func (d *display) run(ctx context.Context) {
	attempted := sync.OnceFunc(func() { close(d.first) })
	defer attempted()
	for failures := 0; ctx.Err() == nil && !d.track.Broken(); failures++ {
		s, err := d.connect(ctx)
		if err == nil {
			d.hold(s)
			d.show(true)
			attempted()
			d.keep(ctx, s)
			s.end()
			failures = 0
		}
		if ctx.Err() == nil {
			d.lost(err)
		}
		d.hold(nil) // not before: what is known without a line is the last look
		attempted()
		if ctx.Err() != nil {
			return
		}
		hal.Pause(ctx, hal.Backoff(failures, backoffMin, backoffMax), d.nudged)
	}
}

func (d *display) hold(s *session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held = s
}

func (d *display) session() *session {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.held
}

func (d *display) connect(ctx context.Context) (*session, error) {
	limit, cancel := context.WithTimeout(ctx, d.timeout)
	conn, err := d.dial(limit, d.at)
	cancel()
	if err != nil {
		return nil, err
	}
	s := begin(conn, d.timeout, func() { d.track.Count("CommunicationErrorCount", 1) }, d.track.Contain)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := d.look(ctx, s); err != nil {
		s.end()
		return nil, err
	}
	return s, nil
}

// keep looks again and again until the line or ctx ends.
func (d *display) keep(ctx context.Context, s *session) {
	stop := context.AfterFunc(ctx, func() { _ = s.conn.Close() })
	defer stop()
	for {
		wait := time.NewTimer(pollEvery)
		select {
		case <-s.lost:
			wait.Stop()
			return
		case <-d.nudged:
		case <-wait.C:
		}
		wait.Stop()
		if err := d.look(ctx, s); err != nil {
			return
		}
	}
}

// look looks whether the display is there, and asks it if it answers.
func (d *display) look(ctx context.Context, s *session) error {
	if here, err := d.present(); !here {
		_ = s.conn.Close()
		return err
	}
	if !d.asks {
		return nil
	}
	return s.ask(ctx)
}

// Status implements hal.StatusReader with a fresh look.
func (d *display) Status(ctx context.Context) (hal.Status, error) {
	timeout := func() (hal.Status, error) {
		return hal.Status{}, &hal.Error{Code: "E_TIMEOUT", Op: "status", Err: ctx.Err()}
	}
	if ctx.Err() != nil {
		return timeout()
	}
	if d.Info().Claim == hal.Observe {
		here, _ := d.present()
		return d.show(here), nil
	}
	select {
	case <-d.first:
	case <-ctx.Done():
		return timeout()
	}
	s := d.session()
	if s == nil {
		return d.told(d.track.Status()), nil
	}
	err := d.look(ctx, s)
	switch {
	case err == nil:
		return d.told(d.track.Status()), nil
	case ctx.Err() != nil:
		return timeout()
	}
	return hal.Judge(hal.LineDisplay, hal.PowerOffOffline, nil), nil // run tells the event
}

// CheckHealth implements hal.HealthChecker. External shows a test text for a
// while, and clears it.
func (d *display) CheckHealth(ctx context.Context, level hal.Level) (hal.Report, error) {
	if level == hal.Interactive {
		return hal.Report{}, &hal.Error{Code: "E_ILLEGAL", Op: "check health", Err: errors.New("a display has no interactive check; use external and look at it")}
	}
	began := time.Now()
	st, err := d.Status(ctx)
	if err != nil {
		return hal.Report{}, err
	}
	gone := st.Health == hal.Offline
	r := hal.Report{
		OK: st.Health == hal.OK, Text: string(st.Health) + " " + st.Reason + " " + st.Advice,
		Checks: []hal.Check{{ID: "reachable", OK: !gone, Code: st.Reason, Took: time.Since(began)}},
	}
	if level == hal.Internal || gone {
		return r, nil
	}
	began = time.Now()
	err = d.test(ctx)
	page := hal.Check{ID: "text", OK: err == nil, Took: time.Since(began)}
	if err != nil {
		page.Code = "E_FAILURE"
		if e, ok := errors.AsType[*hal.Error](err); ok {
			page.Code = e.Code
		}
		r.OK, r.Text = false, err.Error()
	} else {
		r.OK, r.Text = true, "The test text was shown; only somebody who looked knows whether it could be read."
	}
	r.Checks = append(r.Checks, page)
	return r, err
}

// test shows the test text and clears it, also when nobody waits any more.
func (d *display) test(ctx context.Context) error {
	const op = "check health"
	s := d.session()
	switch {
	case d.Info().Claim != hal.Own:
		return &hal.Error{Code: "E_ILLEGAL", Op: op, Err: errors.New("the till owns this display; claim it with own")}
	case s == nil && d.told(d.track.Status()).Reason == "M_IN_USE":
		return &hal.Error{Code: "E_BUSY", Op: op, Err: errors.New("another program holds the display")}
	case s == nil:
		return &hal.Error{Code: "E_OFFLINE", Op: op, Err: errors.New("the display is gone")}
	}
	if err := s.send(ctx, text(d.columns, d.brightness, "Tillward test", d.Info().ID)); err != nil {
		return &hal.Error{Code: "E_FAILURE", Op: op, Err: err}
	}
	wait := time.NewTimer(d.testFor)
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-s.lost:
		return &hal.Error{Code: "E_OFFLINE", Op: op, Err: errors.New("the display went")}
	case <-ctx.Done():
	}
	if err := s.send(context.WithoutCancel(ctx), []byte{clearAll}); err != nil {
		return &hal.Error{Code: "E_FAILURE", Op: op, Err: err}
	}
	if ctx.Err() != nil {
		return &hal.Error{Code: "E_TIMEOUT", Op: op, Err: ctx.Err()}
	}
	return nil
}
