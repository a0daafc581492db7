package star

import (
	"context"
	"errors"
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
			return p.track.Status(), nil
		case ctx.Err() != nil:
			return hal.Status{}, &hal.Error{Code: "E_TIMEOUT", Op: "status", Err: ctx.Err()}
		case within.Err() != nil: // somebody is about to print; frames keep the last look fresh
			return p.track.Status(), nil
		}
		return hal.Judge(hal.POSPrinter, hal.PowerOffOffline, nil), nil // run tells the event
	}
	return p.track.Status(), nil
}

// outside looks without opening anything.
func (p *printer) outside() hal.Status {
	f, err := p.at.Find()
	switch {
	case err == nil:
		p.found(f)
	case errors.Is(err, port.ErrAbsent):
		return p.gone(hal.PowerOffOffline)
	}
	st := p.gone(hal.PowerUnknown)
	st.Advice = "The till owns this printer; allow asking to see more."
	return st
}

// glance looks at a printer that the till owns.
func (p *printer) glance(ctx context.Context) (hal.Status, error) {
	if !p.asks {
		return p.outside(), nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	inUse := func() (hal.Status, error) {
		st := p.gone(hal.PowerUnknown)
		st.Reason, st.Advice = "M_IN_USE", "The till is using the printer, or it does not answer."
		return st, nil
	}
	conn, err := p.dial(ctx)
	switch {
	case errors.Is(err, port.ErrInUse):
		return inUse()
	case err != nil && errors.Is(ctx.Err(), context.Canceled):
		return hal.Status{}, &hal.Error{Code: "E_TIMEOUT", Op: "status", Err: err}
	case err != nil:
		return p.gone(hal.PowerOffOffline), nil
	}
	s := begin(conn, min(p.timeout, 300*time.Millisecond), p.told, p.failed)
	defer s.end()
	err = s.hello(ctx)
	switch {
	case errors.Is(err, errMute):
		return inUse()
	case err != nil && errors.Is(ctx.Err(), context.Canceled):
		return hal.Status{}, &hal.Error{Code: "E_TIMEOUT", Op: "status", Err: err}
	case err != nil:
		return p.gone(hal.PowerOffOffline), nil
	}
	return p.track.Status(), nil
}
