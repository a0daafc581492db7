package escpos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/tillward/tillward/hal"
)

const (
	confirmWithin = 10 * time.Second // for the last line to come out
	drawerWithin  = time.Second      // for the drawer to spring open
	lookEvery     = 50 * time.Millisecond
)

// owned returns the connection of a printer that can print now.
func (p *printer) owned(ctx context.Context, op string) (*session, error) {
	if p.Info().Claim != hal.Own {
		return nil, &hal.Error{Code: "E_ILLEGAL", Op: op, Err: errors.New("the till owns this printer; claim it with own")}
	}
	st, err := p.Status(ctx)
	if err != nil {
		return nil, err
	}
	s := p.session()
	if s == nil || st.Power != hal.PowerOnline {
		return nil, stopped(op, st)
	}
	return s, nil
}

// stopped is the error of a printer that cannot go on.
func stopped(op string, st hal.Status) error {
	return &hal.Error{Code: "E_OFFLINE", Op: op, Err: fmt.Errorf("%s: %s", st.Reason, st.Advice)}
}

// Print implements hal.Passthrough. A printer that cannot print now gets
// nothing, so that nothing comes out later when nobody expects it.
func (p *printer) Print(ctx context.Context, job io.Reader) (hal.Job, error) {
	var made hal.Job
	s, err := p.owned(ctx, "print")
	if err != nil {
		return made, err
	}
	// A job may come before the connection was armed: what stops it would not be
	// told.
	if err := s.arm(ctx); err != nil {
		return made, &hal.Error{Code: "E_FAILURE", Op: "print", Err: err}
	}
	if err := s.pour(ctx, job, &made); err != nil {
		return made, &hal.Error{Code: "E_FAILURE", Op: "print", Err: err}
	}
	if made.Confirmed, err = p.confirm(ctx, s); err != nil {
		return made, err
	}
	if err := s.arm(ctx); err != nil { // the job may have switched it off
		return made, &hal.Error{Code: "E_FAILURE", Op: "print", Err: err}
	}
	return made, nil
}

// pour writes the whole job without a question in between.
func (s *session) pour(ctx context.Context, job io.Reader, made *hal.Job) error {
	if err := s.acquire(ctx); err != nil {
		return err
	}
	defer func() { <-s.turn }()
	b := make([]byte, 1024)
	for ctx.Err() == nil {
		n, err := job.Read(b)
		if n > 0 {
			if err := s.write(b[:n]); err != nil {
				return err
			}
			made.Bytes += int64(n)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// confirm asks something that the printer answers in its turn, behind the
// job: with the answer the job is out. It reports whether the answer came.
func (p *printer) confirm(ctx context.Context, s *session) (bool, error) {
	out := make(chan error, 1)
	if !s.start(func() {
		_, err := s.ask(ctx, blockAnswer, confirmWithin, 0x1d, 'I', 65)
		out <- err
	}) {
		out <- net.ErrClosed
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case err := <-out:
			if errors.Is(err, errNoBlock) { // a printer that stopped says nothing either
				if _, err := s.poll(ctx, p.queries); err != nil {
					return false, &hal.Error{Code: "E_FAILURE", Op: "print", Err: err}
				}
			}
			if st := p.track.Status(); st.Power != hal.PowerOnline {
				return false, stopped("print", st)
			}
			if err == nil || errors.Is(err, errNoBlock) {
				return err == nil, nil
			}
			return false, &hal.Error{Code: "E_FAILURE", Op: "print", Err: err}
		case <-tick.C:
			if st := p.track.Status(); st.Power != hal.PowerOnline {
				return false, stopped("print", st)
			}
		case <-ctx.Done():
			return false, &hal.Error{Code: "E_TIMEOUT", Op: "print", Err: ctx.Err()}
		}
	}
}

// CheckHealth implements hal.HealthChecker. External prints a test page.
func (p *printer) CheckHealth(ctx context.Context, level hal.Level) (hal.Report, error) {
	switch level {
	case hal.Internal:
		began := time.Now()
		st, err := p.Status(ctx)
		if err != nil {
			return hal.Report{}, err
		}
		good := st.Health == hal.OK || st.Health == hal.Attention
		return hal.Report{
			OK: good, Text: strings.TrimSpace(fmt.Sprintf("%s %s %s", st.Health, st.Reason, st.Advice)),
			Checks: []hal.Check{{ID: "status", OK: good, Code: st.Reason, Took: time.Since(began)}},
		}, nil
	case hal.External:
		if _, err := p.Print(ctx, strings.NewReader(p.testPage(time.Now()))); err != nil {
			return hal.Report{Text: err.Error()}, err
		}
		return hal.Report{OK: true, Text: "The test page has been printed."}, nil
	}
	return hal.Report{}, &hal.Error{Code: "E_ILLEGAL", Op: "check health", Err: errors.New("a printer has no interactive check; use external")}
}

func (p *printer) testPage(now time.Time) string {
	return "\x1b@\x1ba\x01\x1bE\x01Tillward test page\n\x1bE\x00" + p.Info().ID + "\n" + now.UTC().Format("2006-01-02 15:04 MST") +
		"\nThe quick brown fox jumps over the lazy dog\n\x1bd\x04\x1dV\x00"
}

// OpenDrawer implements hal.DrawerKicker. Where the drawer's state is known it
// returns after the drawer has opened, or E_FAILURE.
func (p *printer) OpenDrawer(ctx context.Context) error {
	s, err := p.owned(ctx, "open drawer")
	if err != nil {
		return err
	}
	was := p.track.Status().Sensors["DrawerOpened"]
	if err := s.send(ctx, 0x1b, 'p', 0, 25, 250); err != nil {
		return &hal.Error{Code: "E_FAILURE", Op: "open drawer", Err: err}
	}
	if was != hal.No {
		return nil // unknown, or open already
	}
	late := time.NewTimer(drawerWithin)
	defer late.Stop()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if st, err := s.poll(ctx, p.queries); err == nil && st.Sensors["DrawerOpened"] == hal.Yes {
				p.track.Count("DrawerGoodOpenCount", 1)
				return nil
			}
		case <-late.C:
			p.track.Count("DrawerFailedOpenCount", 1)
			return &hal.Error{Code: "E_FAILURE", Op: "open drawer", Err: errors.New("the drawer did not open; is it locked?")}
		case <-ctx.Done():
			return &hal.Error{Code: "E_TIMEOUT", Op: "open drawer", Err: ctx.Err()}
		}
	}
}
