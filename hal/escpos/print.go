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
	proofWithin   = time.Minute      // for the last line to come out
	confirmWithin = 10 * time.Second // the same of a printer that may not tell
	waitWithin    = 30 * time.Second // for another job to be over
	stuckWithin   = time.Minute      // for a printer that takes nothing and gives no reason
	recoverWithin = 3 * time.Second  // for the cutter to find its place
	lookEvery     = 50 * time.Millisecond
)

// clearAll empties the printer's buffers at once, whatever it is doing [Epson
// ESC/POS reference: DLE DC4, function 8].
var clearAll = []byte{dle, 0x14, 8, 1, 3, 20, 1, 6, 2, 8}

// owned returns the connection of a printer that can print now.
func (p *printer) owned(ctx context.Context, op string) (*session, error) {
	if p.claim != hal.Own {
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

func failed(op string, err error) error {
	code := "E_FAILURE"
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		code = "E_TIMEOUT"
	}
	return &hal.Error{Code: code, Op: op, Err: err}
}

// alone waits until no other job is printed. The caller gives back what it got.
func (p *printer) alone(ctx context.Context, op string) (func(), error) {
	late := time.NewTimer(waitWithin)
	defer late.Stop()
	select {
	case p.jobs <- struct{}{}:
		return func() { <-p.jobs }, nil
	case <-ctx.Done():
		return nil, &hal.Error{Code: "E_BUSY", Op: op, Err: fmt.Errorf("another job is being printed: %w", ctx.Err())}
	case <-late.C:
		return nil, &hal.Error{Code: "E_BUSY", Op: op, Err: errors.New("another job is being printed")}
	}
}

// Print implements hal.Passthrough. A printer that cannot print now gets
// nothing, and one that stops half way is made to forget the rest, so that
// nothing comes out later when nobody expects it. Questions in the job are left
// out, because nobody waits for the answers.
func (p *printer) Print(ctx context.Context, job io.Reader) (hal.Job, error) {
	if p.claim != hal.Own || p.last().Power != hal.PowerOnline { // else it is asked when its turn comes
		if _, err := p.owned(ctx, "print"); err != nil {
			return hal.Job{}, err
		}
	}
	give, err := p.alone(ctx, "print")
	if err != nil {
		return hal.Job{}, err
	}
	defer give()
	s, err := p.owned(ctx, "print")
	if err != nil {
		return hal.Job{}, err
	}
	// A job may come before the connection was armed: what stops it would not be
	// told. And what a till has sent before is not to be forgotten with this job.
	if p.queries() != "" {
		if err := s.arm(ctx); err != nil {
			return hal.Job{}, failed("print", err)
		}
	}
	if p.unproven() {
		if _, err := p.confirm(ctx, s); err != nil {
			return hal.Job{}, err
		}
	}
	j := &stream{p: p, s: s}
	j.meet = func(_ context.Context, k kind, _ []byte) (bool, error) { return k == reset || k == urgent, nil }
	j.goOn = func() error {
		if st := p.track.Status(); st.Power != hal.PowerOnline {
			return stopped("print", st)
		}
		return nil
	}
	j.stuck = p.impatience()
	err = j.pour(ctx, job)
	made := hal.Job{Bytes: j.bytes, Cuts: j.w.cuts, Kicks: j.w.kicks}
	if err == nil {
		made.Confirmed, err = p.confirm(ctx, s)
		made.Confirmed = made.Confirmed && !j.w.clears
	} else if st := p.track.Status(); st.Power == hal.PowerOffline && ctx.Err() == nil {
		err = stopped("print", st)
	} else {
		err = failed("print", err)
	}
	if err != nil {
		p.breakOff(s, j)
		if p.part != nil {
			p.part.broken()
		}
		return made, err
	}
	return made, nil
}

// impatience gives up a printer that takes nothing and gives no reason.
func (p *printer) impatience() func() error {
	var since time.Time
	return func() error {
		if since.IsZero() {
			since = time.Now()
		}
		if time.Since(since) > stuckWithin {
			return errBusy
		}
		return nil
	}
}

// pour passes the whole job on.
func (j *stream) pour(ctx context.Context, job io.Reader) error {
	b := make([]byte, 1024)
	for {
		n, err := job.Read(b)
		if n > 0 {
			if err := j.pass(ctx, b[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return j.finish(ctx)
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
	}
}

// breakOff makes the printer forget a job that has stopped half way. While its
// buffer is full it cannot be told, and what is in it comes out yet; it is told
// as soon as it takes something again.
func (p *printer) breakOff(s *session, j *stream) {
	if j.bytes == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), p.timeout)
	defer cancel()
	if !j.turn {
		if s.acquire(ctx) != nil {
			return
		}
		j.turn = true
	}
	done := make(chan struct{})
	err := s.pushTail()
	full := errors.Is(err, errBusy)
	if err == nil {
		err = s.send(&question{kind: otherAnswer, to: func(unit) { close(done) }}, clearAll...)
		full = errors.Is(err, errBusy) && len(s.tail) == 0
	}
	if full {
		s.tail = append(s.tail, clearAll...)
		s.expect(&question{kind: otherAnswer})
	}
	j.give()
	if err == nil && p.queries() != "" {
		select { // some models do not tell
		case <-done:
		case <-s.lost:
		case <-ctx.Done():
		}
	}
}

// spoil gives a connection up whose printer has something half done.
func (p *printer) spoil(s *session) {
	p.dirty.Store(true)
	s.drop()
}

// confirm asks something that the printer answers in its turn, behind the
// job: with the answer the job is out. It reports whether the answer came.
func (p *printer) confirm(ctx context.Context, s *session) (bool, error) {
	handed := p.handed()
	if p.queries() == "" {
		p.settled(handed, false)
		return false, nil
	}
	type result struct{ err error }
	out := make(chan result, 1)
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	if !s.start(func() { out <- result{p.proof(waiting, s)} }) {
		return false, failed("print", net.ErrClosed)
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case r := <-out:
			if errors.Is(r.err, errNoBlock) { // a printer that stopped says nothing either
				if _, err := s.poll(ctx, p.queries()); err != nil && !errors.Is(err, errBusy) {
					return false, failed("print", err)
				}
			}
			if st := p.track.Status(); st.Power != hal.PowerOnline {
				return false, stopped("print", st)
			}
			if r.err != nil && !errors.Is(r.err, errNoBlock) {
				return false, failed("print", r.err)
			}
			p.settled(handed, r.err == nil)
			return r.err == nil, nil
		case <-tick.C:
			if st := p.track.Status(); st.Power != hal.PowerOnline {
				return false, stopped("print", st)
			}
		case <-ctx.Done():
			return false, failed("print", ctx.Err())
		}
	}
}

// proof asks by what the printer answers: GS I, or GS r of one that does not
// say who it is.
func (p *printer) proof(ctx context.Context, s *session) error {
	if p.answers.Load() {
		q := p.proving()
		_, err := s.ask(ctx, q.kind, proofWithin, q.cmd...)
		return err
	}
	u, err := s.askAny(ctx, confirmWithin, version, paper)
	if err == nil {
		p.plain.Store(u.kind == plainAnswer)
		p.answers.Store(true)
	}
	return err
}

// Questions that are answered behind what is printed.
var (
	version = asking{blockAnswer, []byte{gs, 'I', 65}}
	paper   = asking{plainAnswer, []byte{gs, 'r', 1}}
)

// proving is the question that this printer answers.
func (p *printer) proving() asking {
	if p.plain.Load() {
		return paper
	}
	return version
}

// CheckHealth implements hal.HealthChecker. External prints a test page, and
// before that has a printer go on that stands because of an error that somebody
// has removed: what it was printing then comes out.
func (p *printer) CheckHealth(ctx context.Context, level hal.Level) (hal.Report, error) {
	if level == hal.Interactive {
		return hal.Report{}, &hal.Error{Code: "E_ILLEGAL", Op: "check health", Err: errors.New("a printer has no interactive check; use external")}
	}
	began := time.Now()
	st, err := p.Status(ctx)
	if err != nil {
		return hal.Report{}, err
	}
	r := checked(st, time.Since(began))
	if level == hal.Internal {
		return r, nil
	}
	if p.claim == hal.Own && recoverable(st) {
		began = time.Now()
		check := hal.Check{ID: "recover", OK: p.recover(ctx), Took: time.Since(began)}
		if !check.OK {
			check.Code = st.Reason
		}
		r.Checks = append(r.Checks, check)
	}
	began = time.Now()
	made, err := p.Print(ctx, strings.NewReader(p.testPage(began)))
	page := hal.Check{ID: "page", OK: err == nil, Took: time.Since(began)}
	if err != nil {
		page.Code = codeOf(err)
		r.OK, r.Text, r.Checks = false, err.Error(), append(r.Checks, page)
		return r, err
	}
	r.OK, r.Text, r.Checks = true, "The test page has been printed.", append(r.Checks, page)
	if !made.Confirmed {
		r.Text = "The test page has been sent; this printer cannot say whether it came out."
	}
	return r, nil
}

// recoverable reports whether a printer stands because of an error that DLE ENQ
// ends, once its cause is removed.
func recoverable(st hal.Status) bool {
	return st.Power == hal.PowerOffline && st.Sensors["M_UnrecoverableError"] != hal.Yes &&
		(st.Sensors["M_CutterError"] == hal.Yes || st.Sensors["M_MechanicalError"] == hal.Yes)
}

// recover has the printer go on from the line where it stopped.
func (p *printer) recover(ctx context.Context) bool {
	s := p.session()
	if s == nil || s.tell(ctx, dle, 0x05, 1) != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, recoverWithin)
	defer cancel()
	for {
		if st, err := s.poll(ctx, p.queries()); err != nil || !recoverable(st) {
			return err == nil
		}
		if !hal.Pause(ctx, lookEvery, nil) || ctx.Err() != nil {
			return false
		}
	}
}

func codeOf(err error) string {
	if e, ok := errors.AsType[*hal.Error](err); ok {
		return e.Code
	}
	return "E_FAILURE"
}

// checked tells a look in the steps of a health check.
func checked(st hal.Status, took time.Duration) hal.Report {
	good := st.Health == hal.OK || st.Health == hal.Attention
	reached := st.Power == hal.PowerOnline || st.Power == hal.PowerOffline
	r := hal.Report{OK: good, Text: strings.TrimSpace(fmt.Sprintf("%s %s %s", st.Health, st.Reason, st.Advice))}
	reach := hal.Check{ID: "reachable", OK: reached, Took: took}
	if !reached {
		reach.Code = st.Reason
	}
	r.Checks = append(r.Checks, reach)
	if reached {
		status := hal.Check{ID: "status", OK: good}
		if !good {
			status.Code = st.Reason
		}
		r.Checks = append(r.Checks, status)
	}
	return r
}

func (p *printer) testPage(now time.Time) string {
	return "\x1b@\x1ba\x01\x1bE\x01Tillward test page\n\x1bE\x00" + p.info.ID + "\n" + now.UTC().Format("2006-01-02 15:04 MST") +
		"\nThe quick brown fox jumps over the lazy dog\n\x1bd\x04\x1dV\x00"
}
