package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
)

const (
	panicsAllowed = 3 // within panicWindow; then the driver is left alone until the agent starts again
	panicWindow   = 10 * time.Minute
	heed          = time.Second // a driver may take to heed its context
)

var errStuck = errors.New("driver does not answer")

// watcher looks after one device.
type watcher struct {
	m      *Monitor
	d      hal.Device
	status hal.StatusReader // nil: it cannot be asked
	tells  bool             // of changes, by itself
	id     string           // as told
	named  string           // as configured
	under  string           // whose part it is, as configured; its own name where it is none
	kick   chan struct{}    // look now
	moved  atomic.Bool      // its place on the bus has changed
	due    atomic.Bool      // count at the next look

	once sync.Once
	left chan struct{} // closed when it is watched no more

	asking  line // of poll
	tests   line // of health checks, by who is in testing
	testing chan struct{}

	info hal.Info // poll's, as last told

	mu     sync.Mutex
	panics []time.Time
	key    string // where it is, as last told
	holds  hal.Claim
	is     hal.Category
}

func newWatcher(m *Monitor, d hal.Device, under string) *watcher {
	w := &watcher{m: m, d: d, under: under, kick: make(chan struct{}, 1), left: make(chan struct{}), testing: make(chan struct{}, 1)}
	w.status, _ = d.(hal.StatusReader)
	_, w.tells = d.(hal.Notifier)
	w.learn(d.Info())
	w.named, w.id = w.info.ID, nameOf(w.info.ID)
	return w
}

// learn keeps who the device is.
func (w *watcher) learn(i hal.Info) {
	w.info = i
	w.mu.Lock()
	defer w.mu.Unlock()
	w.key, w.holds, w.is = i.Key, i.Claim, i.Category
}

// known is what others than poll may want of who the device is.
func (w *watcher) known() (key string, holds hal.Claim, is hal.Category) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.key, w.holds, w.is
}

// leave ends the watching.
func (w *watcher) leave() { w.once.Do(func() { close(w.left) }) }

// every is the time between two looks.
func (w *watcher) every() time.Duration {
	w.m.mu.Lock()
	p := w.m.pace
	w.m.mu.Unlock()
	for _, id := range []string{w.named, w.under} {
		if d := p.Of[id]; d > 0 {
			return d
		}
	}
	_, holds, _ := w.known()
	switch {
	case p.Poll > 0:
		return p.Poll
	case holds == hal.Own:
		return 5 * time.Second
	case holds == hal.Observe:
		return 30 * time.Second
	}
	return 10 * time.Second
}

// countsEvery is the time between two samples of the statistics.
func (w *watcher) countsEvery() time.Duration {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	return w.m.pace.Stats
}

// poll looks at the device again and again. A device that fails is looked at
// soon, and then less and less often.
func (w *watcher) poll(ctx context.Context) {
	failures := 0
	counted := time.Time{}
	for {
		err := w.nudge(ctx)
		if err == nil {
			err = w.look(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		if err == nil && (w.due.Swap(false) || time.Since(counted) >= w.countsEvery()) {
			counted = time.Now()
			err = w.count(ctx)
		}
		wait := w.every()
		switch {
		case w.given(ctx, err):
			return
		case err != nil:
			wait = hal.Backoff(failures, backoffMin, backoffMax)
			failures++
			w.m.o.Log.Debug("peripheral does not answer", "peripheral", w.id, "error", err, "again_in", wait)
		default:
			failures = 0
		}
		select {
		case <-ctx.Done():
			return
		case <-w.kick:
		case <-w.asking.back(): // the driver has come back from where it hung
		case <-time.After(wait):
		}
	}
}

// nudge tells the driver when the place of its device on the bus has changed.
func (w *watcher) nudge(ctx context.Context) error {
	n, ok := w.d.(hal.Nudger)
	if !w.moved.Swap(false) || !ok {
		return nil
	}
	return w.asking.call(ctx, w.m.o.Deadline, func(context.Context) error { n.Nudge(); return nil })
}

// look asks for the status once and tells it.
func (w *watcher) look(ctx context.Context) error {
	if w.status == nil {
		return nil
	}
	type answer struct {
		status hal.Status
		info   hal.Info
	}
	began, answers := time.Now(), make(chan answer, 1)
	err := w.asking.call(ctx, w.m.o.Deadline, func(ctx context.Context) error {
		s, err := w.status.Status(ctx)
		answers <- answer{s, w.d.Info()} // after the look: a printer tells its model when it is reached
		return err
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var got answer
	select {
	case got = <-answers:
		w.learn(got.info)
	default:
	}
	p := describe(w.info)
	if err != nil {
		p.Power, p.Health, p.Reason = unanswered(err)
	} else {
		s := got.status
		p.Power, p.Health, p.Reason = string(s.Power), string(s.Health), s.Reason
		p.Sensors = make(map[string]string, len(s.Sensors))
		for name, is := range s.Sensors {
			p.Sensors[name] = is.String()
		}
	}
	w.m.post(ctx, func(ctx context.Context) { w.m.status(ctx, w, p, began) })
	return err
}

// unanswered is the state of a device that could not be asked. One that somebody
// else holds, or that is not for the agent, is no fault.
func unanswered(err error) (power, health, reason string) {
	power, health, reason = string(hal.PowerOffOffline), string(hal.Offline), "POWER_OFF_OFFLINE"
	var e *hal.Error
	switch {
	case errors.As(err, new(panicked)):
		power, reason = string(hal.PowerUnknown), "M_DRIVER_PANIC"
	case errors.Is(err, errStuck), errors.Is(err, context.DeadlineExceeded):
		reason = "M_TIMEOUT"
	case errors.As(err, &e) && e.Code == "E_TIMEOUT":
		reason = "M_TIMEOUT"
	case errors.Is(err, fs.ErrPermission):
		power, health, reason = string(hal.PowerUnknown), string(hal.NoSensor), "M_NO_ACCESS"
	case errors.As(err, &e) && e.Code == "E_BUSY":
		power, health, reason = string(hal.PowerUnknown), string(hal.NoSensor), "M_IN_USE"
	}
	return power, health, reason
}

// count asks for the statistics once and tells them.
func (w *watcher) count(ctx context.Context) error {
	counter, ok := w.d.(hal.Statistics)
	answers := make(chan []hal.Stat, 1)
	if ok {
		err := w.asking.call(ctx, w.m.o.Deadline, func(ctx context.Context) error {
			s, err := counter.Statistics(ctx)
			answers <- s
			return err
		})
		if err != nil {
			return err
		}
	} else {
		answers <- nil
	}
	stats := <-answers
	of := w.id
	if w.info.Category == hal.Host {
		of = ""
	} else if w.m.o.Counts != nil {
		stats = append(slices.Clip(stats), w.m.o.Counts(w.named)...)
	}
	now := w.m.o.Now().UnixMilli()
	w.m.post(ctx, func(ctx context.Context) {
		for _, s := range stats {
			w.m.sample(ctx, wire.Sample{At: now, Peripheral: of, Name: s.Name, Value: s.Value, Epoch: max(s.Epoch, 0), Kept: s.Kept && s.Epoch > 0})
		}
	})
	return nil
}

// listen hands on events until the device is lost, and begins again.
func (w *watcher) listen(ctx context.Context, n hal.Notifier) {
	failures := 0
	for ctx.Err() == nil {
		began := time.Now()
		ended := make(chan error, 1)
		go func() { ended <- safely(func() error { return w.hear(ctx, n) }) }()
		var err error
		select {
		case err = <-ended:
		case <-ctx.Done():
			select {
			case <-ended: //nolint:errcheck // it was told to end
			case <-time.After(heed): // left behind
			}
			return
		}
		if w.given(ctx, err) {
			return
		}
		if time.Since(began) > time.Minute {
			failures = 0
		}
		wait := hal.Backoff(failures, backoffMin, backoffMax)
		failures++
		if err != nil && ctx.Err() == nil {
			w.m.o.Log.Debug("events of a peripheral ended", "peripheral", w.id, "error", err, "again_in", wait)
			nudge(w.kick)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

func (w *watcher) hear(ctx context.Context, n hal.Notifier) error {
	looked := time.Time{} // when the last look was brought about, or will be
	for e, err := range n.Events(ctx) {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		at, mono := w.m.when(e.At)
		_, _, is := w.known()
		told := wire.PeripheralEvent{At: at, Mono: mono, Peripheral: w.id, Category: string(is), Code: e.Code, From: e.From, To: e.To}
		w.m.post(ctx, func(ctx context.Context) { w.m.event(ctx, told) })
		switch since := time.Since(looked); {
		case since >= calm:
			looked = time.Now()
			nudge(w.kick)
		case since >= 0: // the last of many brings about a look as well
			looked = looked.Add(calm)
			time.AfterFunc(calm-since, func() { nudge(w.kick) })
		}
	}
	return nil
}

// nudge has somebody look now.
func nudge(kick chan<- struct{}) {
	select {
	case kick <- struct{}{}:
	default:
	}
}

// line is one way to call a driver, by one caller at a time.
type line struct{ stuck chan struct{} } // closed when a call that overran its deadline comes back

// back is closed when a call that was left behind has come back; nil: none was.
func (l *line) back() <-chan struct{} { return l.stuck }

// call runs do with the deadline. A driver that does not heed it is left
// behind, and not called again before it has come back.
func (l *line) call(ctx context.Context, deadline time.Duration, do func(context.Context) error) error {
	if l.stuck != nil {
		select {
		case <-l.stuck:
			l.stuck = nil
		default:
			return errStuck
		}
	}
	within, cancel := context.WithTimeout(ctx, deadline)
	ended := make(chan error, 1)
	back := make(chan struct{})
	go func() {
		defer close(back)
		defer cancel()
		ended <- safely(func() error { return do(within) })
	}()
	select {
	case err := <-ended:
		return err
	case <-within.Done():
	}
	select { // a moment to heed the context
	case err := <-ended:
		return err
	case <-time.After(heed):
		l.stuck = back
		return fmt.Errorf("%w: %w", errStuck, within.Err())
	}
}

// panicked is a driver's panic.
type panicked struct{ value any }

func (p panicked) Error() string { return fmt.Sprintf("driver panicked: %v", p.value) }

func safely(do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = panicked{p}
		}
	}()
	return do()
}

// given reports whether the driver is given up: it has panicked too often.
func (w *watcher) given(ctx context.Context, err error) bool {
	if !errors.As(err, new(panicked)) {
		return false
	}
	w.m.o.Log.Error("driver panicked", "peripheral", w.id, "error", err)
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	w.panics = append(w.panics, now)
	for now.Sub(w.panics[0]) > panicWindow {
		w.panics = w.panics[1:]
	}
	if len(w.panics) < panicsAllowed {
		return false
	}
	if len(w.panics) == panicsAllowed {
		w.m.post(ctx, func(ctx context.Context) { w.m.giveUp(ctx, w) })
	}
	w.leave()
	return true
}
