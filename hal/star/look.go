package star

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/port"
)

// Status implements hal.StatusReader with a fresh look.
func (p *printer) Status(ctx context.Context) (hal.Status, error) {
	if p.Info().Claim == hal.Observe {
		return p.glance(ctx)
	}
	select {
	case <-p.first:
	case <-ctx.Done():
		return hal.Status{}, &hal.Error{Code: "E_TIMEOUT", Op: "status", Err: ctx.Err()}
	}
	if s := p.session(); s != nil {
		within, cancel := context.WithTimeout(ctx, p.timeout)
		defer cancel()
		err := s.poll(within)
		switch {
		case err == nil:
			return p.last(), nil
		case ctx.Err() != nil:
			return hal.Status{}, &hal.Error{Code: "E_TIMEOUT", Op: "status", Err: ctx.Err()}
		case within.Err() != nil: // somebody is about to print; frames keep the last look fresh
			return p.last(), nil
		}
		return hal.Judge(hal.POSPrinter, hal.PowerOffOffline, nil), nil // run tells the event
	}
	return p.last(), nil
}

// outside looks without opening anything.
func (p *printer) outside() hal.Status {
	power, err := p.present()
	if err != nil && power == hal.PowerUnknown && !errors.Is(err, errors.ErrUnsupported) {
		return p.missing(err)
	}
	return p.gone(power, "M_NOT_ASKED", "The till owns this printer; allow asking to see more.")
}

// glance looks at a printer that the till owns.
func (p *printer) glance(ctx context.Context) (hal.Status, error) {
	if !p.asks {
		return p.outside(), nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	conn, err := p.dial(ctx)
	if err == nil {
		s := begin(conn, min(p.timeout, 300*time.Millisecond), p.told, p.failed, p.track.Contain)
		defer s.end()
		err = s.hello(ctx)
	}
	switch {
	case err == nil:
		return p.last(), nil
	case errors.Is(ctx.Err(), context.Canceled):
		return hal.Status{}, &hal.Error{Code: "E_TIMEOUT", Op: "status", Err: err}
	case errors.Is(err, port.ErrInUse):
		there, _ := p.present()
		return p.gone(there, "M_IN_USE", "The till is using the printer."), nil
	case errors.Is(err, errMute):
		there, _ := p.present()
		return p.gone(there, "M_IN_USE", "The till is using the printer, or it does not answer."), nil
	}
	return p.missing(err), nil
}

// gone notes that nothing is known of the printer any more, and why.
func (p *printer) gone(power hal.Power, reason, advice string) hal.Status {
	p.mu.Lock()
	p.reason, p.advice = reason, advice
	p.mu.Unlock()
	p.drawer.look(power, hal.Unknown)
	return p.explained(p.track.Update(power, nil))
}

// explained adds why nothing is known.
func (p *printer) explained(st hal.Status) hal.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	if st.Health == hal.NoSensor && p.reason != "" {
		st.Reason, st.Advice = p.reason, p.advice
	}
	return st
}

// last is the last look.
func (p *printer) last() hal.Status { return p.explained(p.track.Status()) }

// missing concludes from an error, and from what the system says, whether a
// printer is there and why nothing more is known.
func (p *printer) missing(err error) hal.Status {
	there, found := p.present()
	switch {
	case errors.Is(err, port.ErrInUse):
		return p.gone(there, "M_IN_USE", "Another program on the box holds this printer.")
	case errors.Is(err, port.ErrNoNode):
		return p.gone(hal.PowerOnline, "M_NO_DRIVER", "Load usblp on the box, or give the printer back to it; CUPS may have taken it.")
	case errors.Is(err, port.ErrNoAccess):
		return p.gone(there, "M_NO_ACCESS", "Put the agent's user into the group that owns the device file: lp or dialout.")
	case errors.Is(found, port.ErrAbsent), errors.Is(err, net.ErrClosed):
	case found == nil && p.at.Interface() == "USB": // it draws its cable's power and does not answer
		return p.gone(hal.PowerOffline, "", "")
	case found != nil && !errors.Is(found, errors.ErrUnsupported):
		return p.gone(hal.PowerUnknown, "M_NO_DRIVER", "More than one printer fits the address; write which.")
	}
	return p.gone(hal.PowerOffOffline, "", "")
}

// present looks from outside. Only of a USB printer that says more than
// whether its cable is there.
func (p *printer) present() (hal.Power, error) {
	f, err := p.at.Find()
	switch {
	case errors.Is(err, port.ErrAbsent):
		return hal.PowerOffOffline, err
	case err != nil || p.at.Interface() != "USB":
		return hal.PowerUnknown, err
	}
	p.found(f)
	return hal.PowerOnline, nil
}
