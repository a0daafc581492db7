package star

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/tillward/tillward/hal"
)

const confirmWithin = 15 // times the patience for an answer, for the last line to come out

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
// nothing, and one that stops half way is reset, so that nothing comes out
// later when nobody expects it, or a second time.
//
// The printer counts an ETB when all before it is printed. Before the job its
// counter is brought to 2 or 3, whichever it is not, and after the job to 1,
// which no job reaches that does not set it back itself.
func (p *printer) Print(ctx context.Context, job io.Reader) (hal.Job, error) {
	var made hal.Job
	s, err := p.owned(ctx, "print")
	if err != nil {
		return made, err
	}
	if err := s.acquire(ctx); err != nil {
		return made, &hal.Error{Code: "E_BUSY", Op: "print", Err: err}
	}
	defer s.release()
	s.occupy(true)
	defer s.occupy(false)
	counter := s.counter()
	if counter >= 0 {
		if err := p.bring(ctx, s, map[bool]int{true: 3, false: 2}[counter == 2]); err != nil {
			return made, err
		}
	}
	err = p.hand(ctx, s, job, counter, &made)
	if err != nil && made.Bytes > 0 {
		p.breakOff(s)
	}
	if err != nil {
		p.drawer.broken()
	} else {
		p.drawer.settled()
	}
	return made, err
}

// hand writes the job and finds out whether it came out. The caller has the
// turn.
func (p *printer) hand(ctx context.Context, s *session, job io.Reader, counter int, made *hal.Job) error {
	var f filter
	if err := p.pour(ctx, s, &f, job, made); err != nil {
		return err
	}
	s.mu.Lock()
	seen := s.frames
	s.mu.Unlock()
	if err := s.write(resetCount, tellStatus, countUp); err != nil {
		return failed("print", err)
	}
	if counter < 0 {
		return p.stands(ctx, s, seen)
	}
	err := p.count(ctx, s, 1, confirmWithin*p.timeout)
	made.Confirmed = err == nil && !f.resets && f.counted < 29
	return err
}

// breakOff makes the printer forget a job that has stopped half way. The caller
// has the turn. A printer whose cable is full does not get to know it.
func (p *printer) breakOff(s *session) {
	_ = s.write(resetNow, tellStatus)
}

// bring brings the printer's counter of ETB to n, which it is not. The caller
// has the turn.
func (p *printer) bring(ctx context.Context, s *session, n int) error {
	ups := n
	if n == 0 {
		ups = 32 // setting it back alone is not told
	}
	if err := s.write(resetCount, bytes.Repeat(countUp, ups)); err != nil {
		return failed("print", err)
	}
	return p.count(ctx, s, n, s.timeout)
}

func failed(op string, err error) error { return &hal.Error{Code: "E_FAILURE", Op: op, Err: err} }

// counter is that of ETB; -1: this model has none.
func (s *session) counter() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last.etb
}

// noted counts what went through a filter since was.
func (p *printer) noted(was, is counts) {
	p.track.Count("ReceiptLineFeedCount", float64(is.lines-was.lines+is.dots/dotsPerLine-was.dots/dotsPerLine))
	p.track.Count("PaperCutCount", float64(is.cuts-was.cuts))
	p.drawer.kicked(is.kicks - was.kicks)
}

// pour writes the whole job without a question in between, until the printer
// stops.
func (p *printer) pour(ctx context.Context, s *session, f *filter, job io.Reader, made *hal.Job) error {
	b := make([]byte, 1024)
	for ctx.Err() == nil {
		n, readErr := job.Read(b)
		was := f.counts
		out := f.pass(b[:n])
		if errors.Is(readErr, io.EOF) {
			out = append(out, f.rest()...)
		}
		p.noted(was, f.counts)
		made.Cuts, made.Kicks = f.cuts, f.kicks
		if len(out) > 0 {
			err := s.feed(ctx, out)
			if err == nil {
				made.Bytes += int64(len(out))
			}
			if st := p.track.Status(); st.Power == hal.PowerOffline {
				return stopped("print", st)
			}
			if err != nil {
				return failed("print", err)
			}
		}
		if errors.Is(readErr, io.EOF) {
			return nil
		}
		if readErr != nil {
			return failed("print", readErr)
		}
	}
	return &hal.Error{Code: "E_TIMEOUT", Op: "print", Err: ctx.Err()}
}

// count waits until the printer's counter of ETB is n, or says why the printer
// has stopped. The caller has the turn.
func (p *printer) count(ctx context.Context, s *session, n int, patience time.Duration) error {
	end := time.Now().Add(patience)
	for time.Now().Before(end) {
		err := s.within(ctx, lookEvery, func() bool { return s.last.etb == n || s.last.offline })
		if err == nil {
			break
		}
		if errors.Is(err, errMute) {
			err = s.ask(ctx) // does nothing where status comes by itself
		}
		switch {
		case ctx.Err() != nil:
			return &hal.Error{Code: "E_TIMEOUT", Op: "print", Err: ctx.Err()}
		case err != nil:
			return failed("print", err)
		}
	}
	if st := p.track.Status(); st.Power != hal.PowerOnline {
		return stopped("print", st)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last.etb != n {
		return &hal.Error{Code: "E_TIMEOUT", Op: "print", Err: errors.New("the printer does not say that it has printed all that it took")}
	}
	return nil
}

// stands looks whether a printer without counter has stopped; seen frames came
// before the end of the job. The caller has the turn.
func (p *printer) stands(ctx context.Context, s *session, seen int) error {
	var err error
	if s.tellsItself() { // the status was asked for behind the job
		err = s.within(ctx, confirmWithin*p.timeout, func() bool { return s.frames > seen })
	} else {
		err = s.ask(ctx)
	}
	if err != nil && !errors.Is(err, errMute) {
		return failed("print", err)
	}
	if st := p.track.Status(); st.Power != hal.PowerOnline {
		return stopped("print", st)
	}
	return nil
}

// CheckHealth implements hal.HealthChecker. External prints a test page.
func (p *printer) CheckHealth(ctx context.Context, level hal.Level) (hal.Report, error) {
	return checkHealth(ctx, level, p, testPage(p.Info().ID, time.Now()))
}

// checked is what both drivers' printers can do.
type checked interface {
	hal.StatusReader
	hal.Passthrough
}

func checkHealth(ctx context.Context, level hal.Level, p checked, page string) (hal.Report, error) {
	switch level {
	case hal.Internal:
		return looked(ctx, p)
	case hal.External:
		began := time.Now()
		job, err := p.Print(ctx, strings.NewReader(page))
		took := time.Since(began)
		if err != nil {
			return hal.Report{Text: err.Error(), Checks: []hal.Check{check("page", false, codeOf(err), took)}}, err
		}
		r := hal.Report{OK: true, Text: "The test page has been printed.", Checks: []hal.Check{{ID: "page", OK: true, Took: took}}}
		if !job.Confirmed {
			r.Text = "The printer took the test page and shows no fault; look whether it came out."
			r.Checks[0].Code = "M_NO_SENSOR"
		}
		return r, nil
	}
	return hal.Report{}, &hal.Error{Code: "E_ILLEGAL", Op: "check health", Err: errors.New("a printer has no interactive check; use external")}
}

// looked is the internal check: what the device says.
func looked(ctx context.Context, d hal.StatusReader) (hal.Report, error) {
	began := time.Now()
	st, err := d.Status(ctx)
	if err != nil {
		return hal.Report{}, err
	}
	took := time.Since(began)
	reached := st.Power == hal.PowerOnline || st.Power == hal.PowerOffline
	good := st.Health == hal.OK || st.Health == hal.Attention
	return hal.Report{
		OK: good, Text: strings.TrimSpace(fmt.Sprintf("%s %s %s", st.Health, st.Reason, st.Advice)),
		Checks: []hal.Check{check("reachable", reached, st.Reason, took), check("status", good, st.Reason, took)},
	}, nil
}

// codeOf returns the code of an error.
func codeOf(err error) string {
	if e, ok := errors.AsType[*hal.Error](err); ok {
		return e.Code
	}
	return "E_FAILURE"
}

func check(id string, ok bool, code string, took time.Duration) hal.Check {
	if ok {
		code = ""
	}
	return hal.Check{ID: id, OK: ok, Code: code, Took: took}
}

func testPage(id string, now time.Time) string {
	return "\x1b@\x1b\x1da\x01\x1bETillward test page\n\x1bF" + id + "\n" + now.UTC().Format("2006-01-02 15:04 MST") +
		"\nThe quick brown fox jumps over the lazy dog\n\x1b\x1da\x00\x1bd\x03"
}

// OpenDrawer implements hal.DrawerKicker: behind what is being printed or, of a
// printer that stands, at once. Somebody without paper still has to give
// change. Where the drawer's state is known it returns after the drawer has
// opened, or E_FAILURE.
func (p *printer) OpenDrawer(ctx context.Context) error {
	const op = "open drawer"
	if p.Info().Claim != hal.Own {
		return &hal.Error{Code: "E_ILLEGAL", Op: op, Err: errors.New("the till owns this printer; claim it with own")}
	}
	st, err := p.Status(ctx)
	if err != nil {
		return err
	}
	s := p.session()
	pulse := kickDrawer
	switch {
	case s == nil, st.Power != hal.PowerOnline && st.Power != hal.PowerOffline:
		return stopped(op, st)
	case st.Power == hal.PowerOffline:
		pulse = kickNow
	}
	looks, cancel := context.WithCancel(ctx)
	defer cancel()
	err = p.drawer.state.Kick(ctx, func(ctx context.Context) error {
		if err := s.acquire(ctx); err != nil {
			return &hal.Error{Code: "E_BUSY", Op: op, Err: err}
		}
		defer s.release()
		if err := s.write(pulse); err != nil {
			return failed(op, err)
		}
		s.start(func() { p.stare(looks, s) })
		return nil
	})
	p.drawer.again()
	return err
}

// stare looks often, so that a drawer behind a printer that does not tell by
// itself is seen to open.
func (p *printer) stare(ctx context.Context, s *session) {
	if s.tellsItself() {
		return
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.lost:
			return
		case <-tick.C:
			_ = s.poll(ctx)
		}
	}
}
