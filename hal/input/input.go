// Package input counts what a barcode scanner reads, when it is one that types
// like a keyboard. Counts only, never a character: of each key it looks whether
// it is the one that ends a code, and remembers nothing but that some key came
// before. Which keys, how many and when is neither kept nor told nor logged.
//
// It shares the scanner: the till gets every key, and what the till reads it
// gets untouched. A program that grabs the scanner for itself leaves nothing to
// count. A whole keyboard is somebody's typing, so nothing is ever opened that
// is not configured; configure the scanner and not the keyboard beside it.
//
// Apart from scanners it knows whether a button of the box is held: one key, now.
//
// Addresses: usb:VID:PID, usb:VID:PID:SERIAL, usb:VID:PID@PORTPATH, which are
// found wherever they are plugged in, or a device file such as
// /dev/input/by-id/usb-...-event-kbd. A FIFO that carries the same records is a
// stand-in, and says that it is simulated. Option: end = "enter" or "tab", the
// key that the scanner sends after each code.
//
// It reads the kernel's records itself because the libraries for it hand out
// every key, and because a read has to end when the device is closed.
package input

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/tillward/tillward/hal"
)

const (
	backoffMin = 100 * time.Millisecond
	backoffMax = 10 * time.Second
)

// Driver is the driver "scanner".
type Driver struct {
	Root string // where dev and sys are; empty for the box itself
}

// Name implements hal.Driver.
func (Driver) Name() string { return "scanner" }

// Open implements hal.Driver. The scanner need not be there; what is there and
// has no key that ends a code is refused.
func (d Driver) Open(_ context.Context, cfg hal.Config) (hal.Device, error) {
	s, err := d.configure(cfg)
	if err != nil {
		return nil, err
	}
	if _, err := s.where.find(s.end); err != nil && !errors.Is(err, errGone) && !errors.Is(err, fs.ErrPermission) {
		return nil, &hal.Error{Code: "E_ILLEGAL", Op: "open " + cfg.ID, Err: err}
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	s.wg.Go(func() { s.track.Supervise(func() { s.run(ctx) }) })
	return s, nil
}

// Check implements hal.Checker.
func (d Driver) Check(cfg hal.Config) ([]hal.Info, error) {
	s, err := d.configure(cfg)
	if err != nil {
		return nil, err
	}
	i := s.info
	i.Key = cmp.Or(s.where.usb, s.where.node)
	return []hal.Info{i}, nil
}

func (d Driver) configure(cfg hal.Config) (*scanner, error) {
	o := hal.ReadOptions(cfg, "end")
	where, err := parsePlace(cmp.Or(d.Root, "/"), cfg.Address)
	o.Check(err)
	s := &scanner{
		where: where, end: isEnter, address: cfg.Address,
		first: make(chan struct{}), nudged: make(chan struct{}, 1), scanned: make(chan struct{}),
		base: hal.Info{
			ID: cfg.ID, Category: hal.Scanner, Driver: "scanner", Caps: []string{"CapPowerReporting", "CapStatisticsReporting"},
			Claim: o.Claim("a scanner that is held types nothing into the till; share it", hal.Share, hal.Observe),
		},
		track: hal.NewTracker(hal.Scanner, "GoodScanCount", "CommunicationErrorCount"),
	}
	if o.Word("end", "enter", "enter", "tab") == "tab" {
		s.end = isTab
	}
	s.info = s.base
	return s, o.Err()
}

// scanner is an open scanner.
type scanner struct {
	where   place
	end     func(uint16) bool
	address string
	base    hal.Info // what is known without it
	track   *hal.Tracker
	first   chan struct{} // closed after the first look
	nudged  chan struct{}
	stop    context.CancelFunc
	wg      sync.WaitGroup

	mu      sync.Mutex
	info    hal.Info
	scanned chan struct{} // closed with the next code that is read
	trouble error         // why it cannot be read, though it is there
}

// String implements conn.Resource.
func (s *scanner) String() string { return "scanner(" + s.address + ")" }

// Halt implements conn.Resource.
func (s *scanner) Halt() error { return s.Close() }

// Close implements io.Closer.
func (s *scanner) Close() error {
	s.stop()
	s.wg.Wait()
	s.track.Close()
	return nil
}

// Info implements hal.Device. What the scanner says of itself is there once it
// was seen.
func (s *scanner) Info() hal.Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.info
}

// Events implements hal.Notifier.
func (s *scanner) Events(ctx context.Context) iter.Seq2[hal.Event, error] { return s.track.Events(ctx) }

// Statistics implements hal.Statistics.
func (s *scanner) Statistics(context.Context) ([]hal.Stat, error) { return s.track.Stats(), nil }

// Nudge implements hal.Nudger.
func (s *scanner) Nudge() {
	select {
	case s.nudged <- struct{}{}:
	default:
	}
}

// Status implements hal.StatusReader. The kernel tells at once when a scanner
// goes, so what is known is what is.
func (s *scanner) Status(ctx context.Context) (hal.Status, error) {
	select {
	case <-s.first:
		return s.track.Status(), nil
	case <-ctx.Done():
		return hal.Status{}, &hal.Error{Code: "E_TIMEOUT", Op: "status", Err: ctx.Err()}
	}
}

// run counts for as long as the device is open.
func (s *scanner) run(ctx context.Context) {
	looked := sync.OnceFunc(func() { close(s.first) })
	defer looked()
	for failures := 0; ctx.Err() == nil && !s.track.Broken(); failures++ {
		f, err := s.open()
		power := hal.PowerOffOffline
		switch {
		case err == nil:
			failures = 0
			s.tell(nil)
			s.track.Update(hal.PowerOnline, nil)
			looked()
			s.track.Contain(func() { s.count(ctx, f) })
			s.tell(errGone)
		case errors.Is(err, errGone):
			s.tell(err)
		default:
			s.tell(err)
			power = hal.PowerUnknown // it is there, and what it reads cannot be seen
		}
		if ctx.Err() != nil {
			return
		}
		s.track.Update(power, nil)
		looked()
		if !hal.Pause(ctx, hal.Backoff(failures, backoffMin, backoffMax), s.nudged) {
			failures = 0
		}
	}
}

func (s *scanner) tell(trouble error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trouble = trouble
}

// open finds the scanner and opens its device file, without waiting for it.
func (s *scanner) open() (*os.File, error) {
	at, err := s.where.find(s.end)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(at.node, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
		return nil, errGone
	case err != nil:
		return nil, err
	}
	if err := f.SetReadDeadline(time.Time{}); err != nil { // it could not be closed while it is read
		_ = f.Close()
		return nil, fmt.Errorf("%s is no device: %w", at.node, err)
	}
	at.info.ID, at.info.Category, at.info.Driver, at.info.Claim, at.info.Caps = s.base.ID, s.base.Category, s.base.Driver, s.base.Claim, s.base.Caps
	s.mu.Lock()
	s.info = at.info
	s.mu.Unlock()
	return f, nil
}

// count reads until the scanner goes or ctx ends.
func (s *scanner) count(ctx context.Context, f *os.File) {
	stop := context.AfterFunc(ctx, func() { _ = f.Close() })
	defer f.Close()
	defer stop()
	c := counter{end: s.end}
	b := make([]byte, 64*recordSize)
	for rest := 0; ; {
		n, err := f.Read(b[rest:])
		n += rest
		whole := n - n%recordSize
		scans, errs := c.take(b[:whole])
		rest = copy(b, b[whole:n])
		clear(b[rest:])
		if err != nil && rest > 0 {
			errs++ // it went in the middle
		}
		if errs > 0 {
			s.track.Count("CommunicationErrorCount", float64(errs))
		}
		if scans > 0 {
			s.track.Count("GoodScanCount", float64(scans))
			s.mu.Lock()
			close(s.scanned)
			s.scanned = make(chan struct{})
			s.mu.Unlock()
		}
		if err != nil {
			return
		}
	}
}

// CheckHealth implements hal.HealthChecker. Interactive waits until somebody
// has scanned a code, or ctx ends.
func (s *scanner) CheckHealth(ctx context.Context, level hal.Level) (hal.Report, error) {
	if level != hal.Internal && level != hal.Interactive {
		return hal.Report{}, &hal.Error{Code: "E_ILLEGAL", Op: "check health", Err: errors.New("a scanner has no external check; use interactive")}
	}
	began := time.Now()
	st, err := s.Status(ctx)
	if err != nil {
		return hal.Report{}, err
	}
	s.mu.Lock()
	trouble, scanned := s.trouble, s.scanned
	s.mu.Unlock()
	step := hal.Check{ID: "reachable", OK: st.Power == hal.PowerOnline && trouble == nil, Took: time.Since(began)}
	r := hal.Report{OK: step.OK, Text: "The scanner is there and can be counted."}
	switch {
	case errors.Is(trouble, fs.ErrPermission):
		step.Code, r.Text = "E_ILLEGAL", "The scanner is there, but this program may not read it; add its user to the group input."
	case st.Power == hal.PowerUnknown:
		step.Code, r.Text = "E_FAILURE", "The scanner is there, but it cannot be read."
	case !step.OK:
		step.Code, r.Text = "POWER_OFF_OFFLINE", "The scanner is not there. Check its cable."
	}
	r.Checks = []hal.Check{step}
	if !r.OK || level == hal.Internal {
		return r, nil
	}
	began = time.Now()
	select {
	case <-scanned:
	case <-ctx.Done():
		return hal.Report{}, &hal.Error{Code: "E_TIMEOUT", Op: "check health", Err: errors.New("no code was scanned")}
	}
	r.Text = "A code was scanned and counted."
	r.Checks = append(r.Checks, hal.Check{ID: "scan", OK: true, Took: time.Since(began)})
	return r, nil
}
