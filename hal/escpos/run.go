package escpos

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/port"
)

const (
	pollEvery  = 5 * time.Second
	backoffMin = 200 * time.Millisecond // some interfaces need that long between two connections
	backoffMax = 15 * time.Second
)

// run keeps one connection, for as long as the device is open.
func (p *printer) run(ctx context.Context) {
	attempted := sync.OnceFunc(func() { close(p.first) })
	defer attempted()
	for failures := 0; ctx.Err() == nil && !p.track.Broken(); failures++ {
		s, err := p.connect(ctx)
		if err == nil {
			p.hold(s)
			attempted()
			err = p.keep(ctx, s)
			s.silence()
			failures = 0
		}
		if ctx.Err() == nil {
			p.missing(err)
		}
		p.hold(nil) // from now on the last look is what is known
		if s != nil {
			s.end()
		}
		attempted()
		if !hal.Pause(ctx, hal.Backoff(failures, backoffMin, backoffMax), p.nudge) {
			failures = 0
		}
	}
}

// missing tells why a printer that is ours is not held.
func (p *printer) missing(err error) hal.Status {
	power, reason, advice := p.from(err)
	return p.show(power, nil, hal.Unknown, reason, advice)
}

// from concludes from an error and from what the system says whether a printer
// is there, and why nothing more is known.
func (p *printer) from(err error) (power hal.Power, reason, advice string) {
	there, found := p.present()
	switch {
	case errors.Is(err, port.ErrInUse):
		return there, "M_IN_USE", "Another program on the box holds this printer."
	case errors.Is(err, port.ErrNoNode):
		return hal.PowerOnline, "M_NO_DRIVER", "Load usblp on the box, or give the printer back to it; CUPS may have taken it."
	case errors.Is(err, port.ErrNoAccess):
		return there, "M_NO_ACCESS", "Put the agent's user into the group that owns the device file: lp or dialout."
	case errors.Is(found, port.ErrAbsent), errors.Is(err, net.ErrClosed):
	case found == nil && p.addr.Interface() == "USB": // it draws its cable's power and does not answer
		return hal.PowerOffline, "", ""
	case found != nil && !errors.Is(found, errors.ErrUnsupported):
		return hal.PowerUnknown, "M_NO_DRIVER", "More than one printer fits the address; write which."
	}
	return hal.PowerOffOffline, "", ""
}

// present looks from outside. Only of a USB printer that says more than whether
// its cable is there.
func (p *printer) present() (hal.Power, error) {
	f, err := p.addr.Find()
	switch {
	case errors.Is(err, port.ErrAbsent):
		return hal.PowerOffOffline, err
	case err != nil || p.addr.Interface() != "USB":
		return hal.PowerUnknown, err
	}
	if f.OneWay {
		p.oneWay.Store(true)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.info.Key != f.Key { // another one is plugged in there
		p.info.Maker, p.info.Model, p.info.Serial, p.info.Firmware = "", "", "", ""
	}
	p.info.Key = f.Key
	for told, to := range map[*string]*string{&f.Maker: &p.info.Maker, &f.Model: &p.info.Model, &f.Serial: &p.info.Serial, &f.Firmware: &p.info.Firmware} {
		if *to == "" {
			*to = p.guard(*told)
		}
	}
	return hal.PowerOnline, nil
}

// guard makes what a device says of itself fit to be told.
func (p *printer) guard(s string) string {
	if s = strings.TrimSpace(s[:min(len(s), 64)]); hal.MayHoldPAN(s) {
		p.track.Count("M_PanGuardDropCount", 1)
		return ""
	}
	return s
}

// begin opens the cable and starts to read.
func (p *printer) begin(ctx context.Context, timeout time.Duration) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	conn, err := p.dial(ctx, p.addr)
	if err != nil {
		return nil, err
	}
	s := &session{
		conn: conn, timeout: timeout, learn: p.learn, noise: func(n int) { p.track.Count("CommunicationErrorCount", float64(n)) }, contain: p.track.Contain,
		turn: make(chan struct{}, 1), lost: make(chan struct{}), oneWay: make(chan struct{}),
	}
	if s.flow, err = port.GiveFlow(conn); err != nil {
		_ = conn.Close()
		return nil, err
	}
	s.start(s.listen)
	return s, nil
}

// connect opens the cable and looks once. Only a printer that answers is
// connected: one that somebody else holds takes the connection and stays mute.
func (p *printer) connect(ctx context.Context) (*session, error) {
	p.oneWay.Store(false) // it may be another one
	_, _ = p.present()    // who it is, and whether it can answer
	s, err := p.begin(ctx, p.timeout)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.conn.Close() })
	defer stop()
	if p.dirty.Load() { // what the last connection left behind
		if err = s.send(&question{kind: otherAnswer}, clearAll...); err == nil {
			p.dirty.Store(false)
		}
	}
	if err == nil {
		err = p.look(ctx, s)
	}
	if err != nil {
		s.end()
		return nil, err
	}
	return s, nil
}

// look asks all that the printer answers.
func (p *printer) look(ctx context.Context, s *session) error {
	if p.queries() != "" {
		_, err := s.poll(ctx, p.queries())
		if !errors.Is(err, port.ErrOneWay) {
			return err
		}
		p.oneWay.Store(true)
	}
	var r reading
	pins, err := s.pins(ctx)
	switch {
	case err == nil && (pins.PaperOut || p.track.Status().Sensors["RecEmpty"] != hal.Unknown):
		r.end = hal.TriOf(pins.PaperOut) // most say always that there is paper: only who once said no is believed
	case err != nil && !errors.Is(err, errors.ErrUnsupported):
		return err
	}
	if power, err := p.present(); power == hal.PowerOffOffline {
		return err
	}
	p.learn(r)
	return nil
}

// keep asks again and again until the connection or ctx ends.
func (p *printer) keep(ctx context.Context, s *session) error {
	stop := context.AfterFunc(ctx, func() { _ = s.conn.Close() })
	defer stop()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	known := p.queries() == ""
	for {
		if p.queries() != "" && p.track.Status().Power == hal.PowerOnline {
			err := p.briefly(ctx, s.arm)
			if err == nil && !known {
				known = p.identify(ctx, s)
			}
			if err != nil && !yields(err) {
				return err
			}
		}
		select {
		case <-s.lost:
			if s.mute.Load() {
				return errMute
			}
			return net.ErrClosed
		case <-p.nudge:
		case <-tick.C:
		}
		if err := p.briefly(ctx, func(ctx context.Context) error { return p.look(ctx, s) }); err != nil && !yields(err) {
			return err
		}
	}
}

// briefly gives a job that is being printed the way.
func (p *printer) briefly(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*p.timeout)
	defer cancel()
	return do(ctx)
}

// yields reports whether a look failed because of a job, and not because of
// the printer. Frames keep the last look fresh then.
func yields(err error) bool {
	return errors.Is(err, errBusy) || errors.Is(err, context.DeadlineExceeded)
}

// identify asks who the printer is.
func (p *printer) identify(ctx context.Context, s *session) bool {
	if !s.asks() {
		return false
	}
	var told [4]string
	for i, n := range []byte{66, 67, 68, 65} {
		v, err := s.identity(ctx, n)
		if err != nil {
			if errors.Is(err, errNoBlock) && i == 0 && p.askPlainly(ctx, s) {
				return true
			}
			return errors.Is(err, errNoBlock) && p.Info().Model != ""
		}
		told[i] = p.guard(v)
	}
	p.answers.Store(true)
	p.plain.Store(false)
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, to := range []*string{&p.info.Maker, &p.info.Model, &p.info.Serial, &p.info.Firmware} {
		if told[i] != "" || p.info.Interface != "USB" { // the cable's chip may have told more
			*to = told[i]
		}
	}
	return true
}

// askPlainly finds out whether a printer that does not say who it is answers
// in its turn at all.
func (p *printer) askPlainly(ctx context.Context, s *session) bool {
	s.forgive()
	_, err := s.ask(ctx, plainAnswer, p.timeout, gs, 'r', 1)
	if err == nil {
		p.plain.Store(true)
		p.answers.Store(true)
	}
	return err == nil
}

// Status implements hal.StatusReader with a fresh look.
func (p *printer) Status(ctx context.Context) (hal.Status, error) {
	if p.claim == hal.Observe {
		return p.glance(ctx)
	}
	select {
	case <-p.first:
	case <-ctx.Done():
		return hal.Status{}, &hal.Error{Code: "E_TIMEOUT", Op: "status", Err: ctx.Err()}
	}
	s := p.session()
	if s == nil {
		return p.last(), nil
	}
	within, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	err := p.look(within, s)
	switch {
	case err == nil:
		return p.last(), nil
	case ctx.Err() != nil:
		return hal.Status{}, &hal.Error{Code: "E_TIMEOUT", Op: "status", Err: ctx.Err()}
	case yields(err): // somebody prints; frames keep the last look fresh
		return p.last(), nil
	}
	s.silence()
	_ = s.conn.Close()
	if p.session() == s {
		return p.missing(err), nil
	}
	return p.last(), nil
}
