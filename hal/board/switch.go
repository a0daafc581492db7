package board

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"sync"
	"syscall"
	"time"

	"periph.io/x/conn/v3/gpio"

	"github.com/tillward/tillward/hal"
)

const (
	reread     = time.Second // a line is read at least this often, whatever edges it tells
	backoffMin = 100 * time.Millisecond
	backoffMax = 10 * time.Second
	kickWithin = time.Second // a drawer that was kicked opens within
)

// Switch is the driver "switch": a tamper, door or drawer switch on a GPIO
// line. Address gpio:LINENAME or gpio:gpiochip0:OFFSET.
//
// Edges are told by the kernel with their time and number, so that a lid that
// was opened for a moment is told, and so is that edges were lost. What
// happened while the box was switched off is not proven by a switch: it says
// what is and what was since the agent began to look.
//
// Options: kind = "tamper", "door" or "drawer"; active = "high" (default) or
// "low" is the level of a lid that is open; debounce = "20ms"; bias =
// "pull-up", "pull-down" or "off" (default: as the board has it). Of a drawer:
// kick_line = "DRAWER_KICK" is the line that opens it, and makes any other
// opening an unexpected one; kick_active = "high" or "low"; pulse = "100ms";
// left_open = "5m".
type Switch struct {
	Lines Lines // nil: those of the kernel
}

// Name implements hal.Driver.
func (Switch) Name() string { return "switch" }

// kinds are what a switch may be: category, sensor, counter of what is open.
var kinds = map[string]struct {
	category hal.Category
	sensor   string
	count    string
}{
	"tamper": {hal.Tamper, "M_Tampered", "M_TamperedCount"},
	"door":   {hal.Door, "M_DoorOpen", "M_DoorOpenedCount"},
	"drawer": {hal.CashDrawer, "DrawerOpened", "M_DrawerOpenedCount"},
}

// Open implements hal.Driver. The line need not be there.
func (d Switch) Open(_ context.Context, cfg hal.Config) (hal.Device, error) {
	s, kick, err := d.configure(cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stop, s.done = cancel, ctx.Done()
	var device hal.Device = s
	if kick != nil {
		device, s.begin = kick, kick.rest
	}
	s.wg.Go(func() { s.track.Supervise(func() { s.run(ctx) }) })
	return device, nil
}

// Check implements hal.Checker.
func (d Switch) Check(cfg hal.Config) ([]hal.Info, error) {
	s, _, err := d.configure(cfg)
	if err != nil {
		return nil, err
	}
	return []hal.Info{s.info}, nil
}

// configure returns the switch, and of a drawer what kicks it, if anything does.
func (d Switch) configure(cfg hal.Config) (*sw, *kicker, error) {
	o := hal.ReadOptions(cfg, "kind", "active", "debounce", "bias", "kick_line", "kick_active", "pulse", "left_open")
	line, err := address(cfg.Address)
	o.Check(err)
	lines := d.Lines
	if lines == nil {
		lines = kernel{"/dev"}
	}
	kind := o.Word("kind", "", "tamper", "door", "drawer")
	if _, ok := cfg.Options["kind"]; !ok {
		o.Refuse("kind is missing: write tamper or door or drawer")
	}
	k := kinds[kind]
	s := &sw{
		lines: lines, line: line, sensor: k.sensor, count: k.count, first: make(chan struct{}), nudged: make(chan struct{}, 1), turned: make(chan struct{}),
		how: How{
			ActiveLow: o.Word("active", "high", "high", "low") == "low", Debounce: o.Duration("debounce", 20*time.Millisecond, time.Millisecond, time.Second),
			Bias: biases[o.Word("bias", "", "pull-up", "pull-down", "off")],
		},
		info: hal.Info{
			ID: cfg.ID, Category: k.category, Driver: "switch", Key: "gpio:" + line, Interface: "GPIO",
			Claim: o.Claim("a line is held by one alone, use own", hal.Own),
		},
	}
	left := o.Duration("left_open", 5*time.Minute, time.Second, 24*time.Hour)
	kick := &kicker{
		sw: s, out: cfg.Options["kick_line"], pulse: o.Duration("pulse", 100*time.Millisecond, 10*time.Millisecond, 500*time.Millisecond),
		how: How{Output: true, ActiveLow: o.Word("kick_active", "high", "high", "low") == "low"},
	}
	if k.category != hal.CashDrawer {
		for _, name := range []string{"kick_line", "kick_active", "pulse", "left_open"} {
			if cfg.Options[name] != "" && k.sensor != "" {
				o.Refuse("option %s is of a drawer", name)
			}
		}
		s.track = hal.NewTracker(k.category, k.count, "M_EdgesLostCount")
		return s, nil, o.Err()
	}
	s.info.Caps = []string{"CapStatus"}
	s.drawer = hal.NewDrawer(kick.out != "", kickWithin, left)
	s.track = s.drawer.Tracker
	if kick.out == "" {
		kick = nil
	}
	return s, kick, o.Err()
}

var biases = map[string]gpio.Pull{"": gpio.PullNoChange, "off": gpio.Float, "pull-up": gpio.PullUp, "pull-down": gpio.PullDown}

// sw is an open switch.
type sw struct {
	track  *hal.Tracker
	drawer *hal.Drawer // of a drawer
	lines  Lines
	line   string
	how    How
	sensor string
	count  string
	info   hal.Info
	first  chan struct{} // closed after the first look
	nudged chan struct{}
	stop   context.CancelFunc
	done   <-chan struct{} // closed by stop
	begin  func()          // before the first look
	wg     sync.WaitGroup
	stuck  stuck // of run alone

	mu     sync.Mutex
	why    hal.Status    // reason and advice of a line that cannot be had
	active bool          // last that was known
	turned chan struct{} // closed when active changes
	turns  uint64
	waited uint64 // turns that WaitForEdge has told
	asked  gpio.Edge
}

// String implements conn.Resource.
func (s *sw) String() string { return "switch(" + s.info.ID + ")" }

// Halt implements conn.Resource.
func (s *sw) Halt() error { return s.Close() }

// Close implements io.Closer.
func (s *sw) Close() error {
	s.stop()
	s.wg.Wait()
	s.track.Close()
	return nil
}

// Info implements hal.Device.
func (s *sw) Info() hal.Info { return s.info }

// Events implements hal.Notifier.
func (s *sw) Events(ctx context.Context) iter.Seq2[hal.Event, error] { return s.track.Events(ctx) }

// Statistics implements hal.Statistics.
func (s *sw) Statistics(context.Context) ([]hal.Stat, error) { return s.track.Stats(), nil }

// Nudge implements hal.Nudger.
func (s *sw) Nudge() {
	select {
	case s.nudged <- struct{}{}:
	default:
	}
}

// Status implements hal.StatusReader. The line tells of changes by itself, so
// what is known is what is.
func (s *sw) Status(ctx context.Context) (hal.Status, error) {
	select {
	case <-s.first:
	case <-ctx.Done():
		return hal.Status{}, &hal.Error{Code: "E_TIMEOUT", Op: "status", Err: ctx.Err()}
	}
	st := s.track.Status()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why.Reason != "" && st.Power == hal.PowerUnknown {
		st.Reason, st.Advice = s.why.Reason, s.why.Advice
	}
	return st, nil
}

// run watches for as long as the device is open.
func (s *sw) run(ctx context.Context) {
	looked := sync.OnceFunc(func() { close(s.first) })
	defer looked()
	if s.begin != nil {
		s.begin()
	}
	for failures := 0; ctx.Err() == nil && !s.track.Broken(); failures++ {
		line, err := patiently(ctx, &s.stuck, func() (Line, error) { return s.lines.Take(s.line, s.how) }, release)
		if err == nil {
			stop := context.AfterFunc(ctx, func() { _ = line.Close() })
			err = s.follow(ctx, line, func() {
				looked()
				failures = 0
			})
			stop()
			_ = line.Close()
		}
		if ctx.Err() != nil {
			return
		}
		s.lost(err)
		looked()
		hal.Pause(ctx, hal.Backoff(failures, backoffMin, backoffMax), s.nudged)
	}
}

// lost takes in that the line cannot be had. Only one that is not there is a
// switch that is gone.
func (s *sw) lost(err error) {
	power, why := hal.PowerUnknown, hal.Status{}
	switch {
	case errors.Is(err, syscall.EBUSY):
		why.Reason, why.Advice = "M_IN_USE", "Another program holds this line; stop it, or take the switch out of the configuration."
	case errors.Is(err, os.ErrPermission):
		why.Reason, why.Advice = "M_NO_ACCESS", "Put the agent's user into the group that owns the chips: gpio."
	case errors.Is(err, errTwice):
		why.Reason, why.Advice = "M_NO_DRIVER", "More than one line has this name; write which: gpio:gpiochip0:OFFSET."
	default:
		power = hal.PowerOffOffline
	}
	s.mu.Lock()
	s.why = why
	s.mu.Unlock()
	s.look(power, hal.Unknown)
}

// follow takes in one edge after the other until the line is lost.
func (s *sw) follow(ctx context.Context, line Line, looked func()) error {
	var e edges
	read := func() error {
		at := time.Now()
		active, err := patiently(ctx, &s.stuck, line.Level, func(bool) {})
		if err == nil {
			e.level(active, at)
			s.set(active)
		}
		return err
	}
	for due := (time.Time{}); ; {
		if now := time.Now(); !now.Before(due) {
			if err := read(); err != nil {
				return err
			}
			due = now.Add(reread)
			looked()
		}
		edge, err := line.Next(due)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			e.quiet()
			continue
		}
		if err != nil {
			return err
		}
		levels, missed, more := e.next(edge)
		for _, active := range levels {
			s.set(active)
		}
		if missed > 0 {
			s.track.Post("M_EDGES_LOST", "", "")
			s.track.Count(s.count, float64(more))
			due = time.Time{}
		}
	}
}

func release(line Line) { _ = line.Close() }

// set takes in what the line is now.
func (s *sw) set(active bool) {
	s.mu.Lock()
	if active != s.active {
		s.active = active
		s.turns++
		close(s.turned)
		s.turned = make(chan struct{})
	}
	s.why = hal.Status{}
	s.mu.Unlock()
	s.look(hal.PowerOnline, hal.TriOf(active))
}

func (s *sw) look(power hal.Power, open hal.Tri) {
	switch {
	case s.drawer != nil:
		s.drawer.Look(power, open)
	case open == hal.Unknown:
		s.track.Update(power, nil)
	default:
		s.track.Update(power, map[string]hal.Tri{s.sensor: open})
	}
}

// CheckHealth implements hal.HealthChecker. Interactive waits until somebody
// has opened and closed what the switch is at.
func (s *sw) CheckHealth(ctx context.Context, level hal.Level) (hal.Report, error) {
	switch level {
	case hal.Internal:
		began := time.Now()
		st, err := s.Status(ctx)
		if err != nil {
			return hal.Report{}, err
		}
		c := hal.Check{ID: "reachable", OK: st.Power == hal.PowerOnline, Took: time.Since(began)}
		text := "The line is there and can be read."
		if !c.OK {
			c.Code, text = st.Reason, "The line cannot be read. "+st.Advice
		}
		return hal.Report{OK: c.OK, Text: text, Checks: []hal.Check{c}}, nil
	case hal.Interactive:
		began := time.Now()
		for n := range 2 {
			if !s.wait(ctx) {
				return hal.Report{}, &hal.Error{Code: "E_TIMEOUT", Op: "check health", Err: fmt.Errorf("the switch changed %d times of 2", n)}
			}
		}
		return hal.Report{OK: true, Text: "The switch was opened and closed.", Checks: []hal.Check{{ID: "switch", OK: true, Took: time.Since(began)}}}, nil
	}
	return hal.Report{}, &hal.Error{Code: "E_ILLEGAL", Op: "check health", Err: errors.New("a switch has no external check; use interactive")}
}

// wait returns true when the switch changes, and false when it has not.
func (s *sw) wait(ctx context.Context) bool {
	s.mu.Lock()
	turned := s.turned
	s.mu.Unlock()
	select {
	case <-turned:
		return true
	case <-ctx.Done():
		return false
	}
}
