package escpos

import (
	"context"
	"errors"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/port"
)

// glanceFor is how long an answer may take while we are in the till's way.
const glanceFor = 300 * time.Millisecond

// watch looks, from outside alone, whenever something has changed on the bus.
func (p *printer) watch(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.nudge:
			if p.addr.Interface() == "USB" {
				p.outside()
			}
		}
	}
}

// outside tells what the system says.
func (p *printer) outside() hal.Status {
	power, err := p.present()
	reason, advice := "M_NOT_ASKED", "The till owns this printer; allow asking to see more."
	if p.asks { // it has nothing to say
		reason, advice = "", ""
	}
	if err != nil && power == hal.PowerUnknown && !errors.Is(err, errors.ErrUnsupported) {
		_, reason, advice = p.from(err)
	}
	return p.show(power, nil, hal.Unknown, reason, advice)
}

// glance looks at a printer that the till owns.
func (p *printer) glance(ctx context.Context) (hal.Status, error) {
	if err := ctx.Err(); err != nil {
		return hal.Status{}, &hal.Error{Code: "E_TIMEOUT", Op: "status", Err: err}
	}
	p.oneWay.Store(false) // it may be another one
	_, _ = p.present()
	if !p.asks || p.queries() == "" {
		return p.outside(), nil
	}
	within, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	s, err := p.begin(within, min(p.timeout, glanceFor))
	if err == nil {
		_, err = s.poll(within, p.queries())
		s.end()
	}
	switch {
	case err == nil:
		return p.last(), nil
	case errors.Is(ctx.Err(), context.Canceled):
		return hal.Status{}, &hal.Error{Code: "E_TIMEOUT", Op: "status", Err: err}
	case errors.Is(err, port.ErrInUse):
		power, _ := p.present()
		return p.show(power, nil, hal.Unknown, "M_IN_USE", "The till is using the printer."), nil
	case errors.Is(err, errMute):
		power, _ := p.present()
		return p.show(power, nil, hal.Unknown, "M_IN_USE", "The till is using the printer, or it does not answer."), nil
	}
	return p.missing(err), nil
}
