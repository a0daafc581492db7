package update

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/semver"

	"github.com/tillward/tillward/provisioning/trust"
)

const (
	pauseMin   = time.Second
	pauseMax   = 5 * time.Minute
	gateEvery  = time.Second     // a gate is looked at
	hoursEvery = time.Minute     // and while it is open
	tellEvery  = 5 * time.Second // how far a download is, at most
	tellLate   = time.Minute     // and at least
	trustFor   = time.Hour       // a target may wait so long without being asked for again
	maxTries   = 3               // to make a release the one that runs, and to go back
	maxLoops   = 3               // a release may be taken back so often before it is refused
)

// errClosed says that the time to fetch is over for now.
var errClosed = errors.New("the download window has closed")

// work brings the execution a good way further: to its end, or until an offer
// comes in. What is only a matter of time - network, disk - is tried again with
// a growing pause.
func (m *Machine) work(ctx context.Context, j *journal) error {
	pause := pauseMin
	for {
		err := m.answer(ctx, j, m.forward(ctx, j))
		if err == nil || errors.Is(err, errMail) {
			return nil
		}
		if errors.Is(err, ErrRestart) || errors.Is(err, ErrReboot) || ctx.Err() != nil {
			return err
		}
		m.o.Log.Warn("update will be tried again", slog.String("component", j.Offer.component()), slog.String("version", j.Offer.Version),
			slog.Duration("in", pause), slog.Any("err", err))
		held, _ := errors.AsType[*hold](err)
		err = m.rest(ctx, j, pause, held)
		if _, refused := errors.AsType[*refusal](err); refused {
			err = m.answer(ctx, j, err)
			if err == nil || errors.Is(err, ErrRestart) || errors.Is(err, ErrReboot) {
				return err
			}
		} else if errors.Is(err, errMail) {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		pause = min(2*pause, pauseMax)
	}
}

// answer ends the execution, or the trial, for an error that trying again does
// not change, and returns any other. The way back may refuse as well, once.
func (m *Machine) answer(ctx context.Context, j *journal, err error) error {
	for {
		r, ok := errors.AsType[*refusal](err)
		if !ok || j.Offer == nil {
			return err
		}
		err = m.refuse(ctx, j, r)
	}
}

// rest waits before the next try, or for what the handler is held up by.
func (m *Machine) rest(ctx context.Context, j *journal, pause time.Duration, held *hold) error {
	sleep := func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
			return nil
		}
	}
	switch j.Part {
	case partFetch:
		return m.timed(ctx, j, func(ctx context.Context) error { return m.interruptible(ctx, sleep) })
	case partStage, partTry:
		if held != nil {
			return m.linger(ctx, j, held)
		}
		if time.Now().After(j.Offer.NotAfter) {
			return Fail("timeout", "the offer of %s expired in %s", j.Offer.Version, j.State)
		}
		return m.timed(ctx, j, sleep)
	}
	return sleep(ctx)
}

// refuse ends the execution, or the trial.
func (m *Machine) refuse(ctx context.Context, j *journal, r *refusal) error {
	p := Progress{State: r.state, Reason: r.reason, Text: r.Error()}
	switch j.Part {
	case partTry, partProve:
		return m.giveUp(ctx, j, p)
	case partBack:
		return m.stuck(ctx, j, r)
	}
	return m.end(ctx, j, p)
}

// timed runs f for no longer than the present state may take.
func (m *Machine) timed(ctx context.Context, j *journal, f func(context.Context) error) error {
	limit, ok := m.limit(j)
	if !ok {
		return f(ctx)
	}
	inner, stop := context.WithTimeoutCause(ctx, limit, Fail("timeout", "%s took longer than %s", j.State, m.whole(j)))
	defer stop()
	return cause(ctx, inner, f(inner))
}

// interruptible runs f until an offer comes in.
func (m *Machine) interruptible(ctx context.Context, f func(context.Context) error) error {
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	m.mu.Lock()
	m.interrupt = cancel
	if len(m.mail) > 0 {
		cancel(errMail)
	}
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		m.interrupt = nil
		m.mu.Unlock()
	}()
	return cause(ctx, inner, f(inner))
}

// cause is why f failed: when its own context ended, what ended it.
func cause(ctx, inner context.Context, err error) error {
	if err != nil && inner.Err() != nil && ctx.Err() == nil {
		return context.Cause(inner)
	}
	return err
}

// whole is how long the present state may take; 0: as long as the offer lives.
func (m *Machine) whole(j *journal) time.Duration {
	if d := j.Offer.Steps[j.State]; d > 0 {
		return d
	}
	switch j.State {
	case installing:
		return stageFor
	case checking:
		return max(checkFor, 2*m.o.CheckFor)
	}
	return 0
}

// limit is how much longer the present state may take. A clock that jumped
// never makes it longer than the whole.
func (m *Machine) limit(j *journal) (left time.Duration, ok bool) {
	whole := m.whole(j)
	if whole == 0 || j.State == waiting {
		return 0, false
	}
	return min(whole, time.Until(j.Entered.Add(whole))), true
}

// forward goes the way from the part that the execution is in.
func (m *Machine) forward(ctx context.Context, j *journal) error {
	if j.Part == partFetch {
		if err := m.obtain(ctx, j); err != nil {
			return err
		}
	}
	if j.Part == partStage {
		if err := m.stage(ctx, j); err != nil {
			return err
		}
	}
	if j.Part == partTry {
		if err := m.try(ctx, j); err != nil {
			return err
		}
	}
	switch j.Part {
	case partProve:
		return m.prove(ctx, j)
	case partBack:
		return m.back(ctx, j)
	}
	return nil
}

// obtain is the way from an offer to its verified content.
func (m *Machine) obtain(ctx context.Context, j *journal) error {
	o := *j.Offer
	if time.Now().After(o.NotAfter) {
		if j.State == offered {
			return Refuse("expired", "the offer of %s has expired", o.Version)
		}
		return Fail("expired", "the offer of %s expired in %s", o.Version, j.State)
	}
	return m.interruptible(ctx, func(ctx context.Context) error {
		var t trust.Target
		err := m.timed(ctx, j, func(ctx context.Context) (err error) { t, err = m.accept(ctx, j); return err })
		if err != nil {
			return err
		}
		j.Target = &t
		h := m.o.Handlers[o.class()]
		phases := []Phase{Fetch, Touch} // a stream is fetched while the till is touched
		s, ok := h.(Streamer)
		if j.streams = ok && s.Streams(t); !j.streams {
			phases = phases[1:]
			if err := m.download(ctx, j, h); err != nil {
				return err
			}
			if err := m.advance(ctx, j, Progress{State: staged, Done: t.Length, Total: t.Length}); err != nil {
				return err
			}
		}
		began := time.Now()
		if err := m.wait(ctx, j, phases...); err != nil {
			return err
		}
		if time.Since(began) > trustFor {
			if err := m.again(ctx, j); err != nil {
				return err
			}
		}
		j.Part, j.Tries, j.Reboots, j.Starts, j.Backs, j.Why = partStage, 0, 0, 0, 0, nil
		return m.advance(ctx, j, Progress{State: installing})
	})
}

// accept decides whether the box may and should have what is offered, and
// returns the target.
func (m *Machine) accept(ctx context.Context, j *journal) (trust.Target, error) {
	o := *j.Offer
	var none trust.Target
	if !semver.IsValid("v" + o.Version) {
		return none, Refuse("incompatible", "%.40q is not a version", o.Version)
	}
	if !strings.HasSuffix(strings.TrimSuffix(o.Target, "/"), "/"+o.Version) {
		return none, Refuse("signature", "the offer calls %.80q version %s", o.Target, o.Version)
	}
	if text := m.misfit(o); text != "" {
		return none, Refuse("policy", "%s", text)
	}
	runs, err := m.running(ctx, o.class(), o.component())
	if err != nil {
		return none, err
	}
	j.From = runs.Version
	low := m.floors()[o.component()].Version
	switch {
	case o.Version == runs.Version:
		return none, &refusal{already, "", fmt.Errorf("%s runs already", o.Version)}
	case runs.Version != "" && older(o.Version, runs.Version):
		return none, Refuse("downgrade", "%s is older than %s, which runs", o.Version, runs.Version)
	case low != "" && older(o.Version, low):
		return none, Refuse("downgrade", "%s is older than %s, which this box has had", o.Version, low)
	case m.loops(j, o) >= maxLoops:
		return none, Refuse("loop", "%s was taken back %d times on this box: release a newer version", o.Version, maxLoops)
	}
	t, err := m.genuine(ctx, o)
	if err != nil {
		return none, err
	}
	if err := m.requires(t.Custom.Requires); err != nil {
		return none, err
	}
	if m.o.Permit != nil {
		reason, text, err := m.o.Permit(ctx, o, t)
		if err != nil {
			return none, err
		}
		if reason != "" {
			return none, Refuse(reason, "%s", text)
		}
	}
	return t, nil
}

// misfit says why what an offer calls a component cannot be one of its class
// here: what is said of one must not count for another.
func (m *Machine) misfit(o Offer) string {
	is, class := o.component(), o.class()
	if m.o.Handlers[class] == nil {
		return "" // said elsewhere
	}
	if f := m.floors()[is]; f.Class != "" && f.Class != class {
		return fmt.Sprintf("%s is of class %s on this box, not %s: give one of them another name", is, f.Class, class)
	}
	fixed := false
	for _, c := range m.o.Installed {
		if fixed = fixed || c.Class == class; c == (Component{is, class}) {
			return ""
		}
	}
	part := strings.Split(is, "/")
	if !fixed && len(part) == 3 && part[0] == "ops" && part[1] != "" && part[2] != "" {
		return ""
	}
	return fmt.Sprintf("%.80q is no component of class %s of this box", is, class)
}

// loops counts how often the box went back from a release.
func (m *Machine) loops(j *journal, o Offer) (n int) {
	for _, p := range j.Ended {
		if p.State == rolledBack && p.To == o.Version && p.Component == o.component() {
			n++
		}
	}
	return n
}

// genuine asks the release itself what the offer points at.
func (m *Machine) genuine(ctx context.Context, o Offer) (trust.Target, error) {
	releases := m.o.Releases
	if o.Medium != "" {
		var err error
		if releases, err = m.o.Medium(o.Medium); err != nil {
			return trust.Target{}, err
		}
	}
	path := m.o.Names(o)
	t, err := releases.Target(ctx, path)
	for _, k := range []struct {
		err    error
		reason string
	}{
		{trust.ErrExpired, "metadata-expired"},
		{trust.ErrSignature, "signature"},
		{trust.ErrRollback, "rollback"},
		{trust.ErrMismatch, "signature"},
		{trust.ErrNoTarget, "incompatible"},
	} {
		if errors.Is(err, k.err) {
			return t, &refusal{rejected, k.reason, err}
		}
	}
	switch {
	case err != nil:
		return t, err
	case t.Custom.Class != o.class():
		return t, Refuse("incompatible", "%s is of class %s, the offer says %s", path, t.Custom.Class, o.class())
	case t.Custom.Version != o.Version:
		return t, Refuse("signature", "the release calls %s version %s, the offer %s", path, t.Custom.Version, o.Version)
	case t.Custom.Withdrawn:
		return t, Refuse("withdrawn", "%s %s has been withdrawn", o.component(), o.Version)
	}
	return t, nil
}

// again asks once more for a target that has waited: it may have been withdrawn.
// Not being heard is no reason against what was verified.
func (m *Machine) again(ctx context.Context, j *journal) error {
	t, err := m.genuine(ctx, *j.Offer)
	if _, ok := errors.AsType[*refusal](err); ok {
		return err
	}
	if err != nil {
		m.o.Log.Warn("release is not asked for again before it is installed", slog.Any("err", err))
		return nil
	}
	if t.SHA256 != j.Target.SHA256 {
		return Refuse("signature", "%s is another file than before", t.Path)
	}
	return nil
}

// download waits for its time and gets the content.
func (m *Machine) download(ctx context.Context, j *journal, h Handler) error {
	t := *j.Target
	for {
		if j.Last.Done < t.Length || t.Length == 0 { // else it is there, and the time to fetch is of no matter
			if err := m.wait(ctx, j, Fetch); err != nil {
				return err
			}
		}
		if j.State != downloading {
			if err := m.advance(ctx, j, Progress{State: downloading, Done: j.Last.Done, Total: t.Length}); err != nil {
				return err
			}
		}
		err := m.get(ctx, j, h)
		held, ok := errors.AsType[*hold](err)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errClosed): // wait says so
		case ok:
			if err := m.linger(ctx, j, held); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

// get fetches as long as the window is open.
func (m *Machine) get(ctx context.Context, j *journal, h Handler) error {
	open := ctx
	if s, _, ok := spanAt(j.Offer.Download, time.Now()); ok && !s.To.IsZero() {
		var stop context.CancelFunc
		open, stop = context.WithDeadlineCause(ctx, s.To, errClosed)
		defer stop()
	}
	file := ""
	open, done := m.whileOpen(open)
	defer done()
	told, end := m.count(ctx, j)
	err := m.timed(open, j, func(ctx context.Context) (err error) {
		file, err = m.o.Content.Get(ctx, m.order(ctx, j, h, told))
		return err
	})
	end()
	if err == nil {
		j.file = file
	}
	return cause(ctx, open, err)
}

// whileOpen ends what is fetched when the hours of the box itself are over.
func (m *Machine) whileOpen(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(hoursEvery):
				if reason, _ := m.o.Gate(Fetch, 0); reason == windowDownload {
					cancel(errClosed)
				}
			}
		}
	}()
	return ctx, func() { cancel(nil); <-done }
}

// count returns what keeps the account of a download, and tells now and then;
// and what ends that: until then the journal is its own.
func (m *Machine) count(ctx context.Context, j *journal) (told func(done, total int64, b Bytes, note string), end func()) {
	var mu sync.Mutex
	before, last, said, ended := j.Last.Bytes, time.Now(), j.Last.Done, false
	told = func(done, total int64, b Bytes, note string) {
		mu.Lock()
		defer mu.Unlock()
		if ended {
			return
		}
		// Each time is a write of the flash.
		late, far := time.Since(last), done-said >= max(total/100, 1)
		if note == j.Last.Text && (late < tellEvery || late < tellLate && !far) {
			j.Last.Done, j.Last.Total, j.Last.Bytes = done, total, before.plus(b)
			return
		}
		last, said = time.Now(), done
		j.enter(Progress{State: j.State, Text: note, Done: done, Total: total, Bytes: before.plus(b)})
		if m.keep(j) == nil {
			_ = m.o.Report(ctx, j.Last) // the next one tells more
		}
	}
	return told, func() {
		mu.Lock()
		defer mu.Unlock()
		ended = true
	}
}

func (m *Machine) order(ctx context.Context, j *journal, h Handler, told func(int64, int64, Bytes, string)) Order {
	o := Order{
		Execution: j.Offer.Execution, Component: j.Offer.component(), Target: *j.Target,
		Peers: j.Offer.Peers, RateKiB: j.Offer.RateKiB, Medium: j.Offer.Medium, Told: told,
	}
	if s, ok := h.(Seeder); ok && j.From != "" {
		o.Seed = func() (io.ReadCloser, error) {
			if r := s.Seed(ctx, o.Component); r != nil {
				return r, nil
			}
			return nil, fmt.Errorf("nothing of %s is left to build on", o.Component)
		}
	}
	return o
}
