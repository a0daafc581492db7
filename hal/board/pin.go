package board

import (
	"fmt"
	"time"

	"periph.io/x/conn/v3/gpio"
	"periph.io/x/conn/v3/pin"
)

// A switch is a gpio.PinIn too, for programs that know periph: they see what
// the driver sees, debounced, and share the line with it.
var (
	_ gpio.PinIn  = (*sw)(nil)
	_ pin.PinFunc = (*sw)(nil)
)

// Name implements pin.Pin.
func (s *sw) Name() string { return s.line }

// Number implements pin.Pin.
func (s *sw) Number() int {
	if _, offset, ok := place(s.line); ok {
		return int(offset)
	}
	return -1
}

// Function implements pin.Pin.
func (s *sw) Function() string { return string(s.Func()) }

// Func implements pin.PinFunc.
func (s *sw) Func() pin.Func {
	if s.Read() == gpio.High {
		return gpio.IN_HIGH
	}
	return gpio.IN_LOW
}

// SupportedFuncs implements pin.PinFunc.
func (*sw) SupportedFuncs() []pin.Func { return []pin.Func{gpio.IN} }

// SetFunc implements pin.PinFunc. An input it stays.
func (s *sw) SetFunc(f pin.Func) error {
	if f != gpio.IN && f != s.Func() {
		return fmt.Errorf("%s: is an input by configuration, not %s", s.line, f)
	}
	return nil
}

// In implements gpio.PinIn. The line is an input already; its bias is that of
// the configuration. Edges from before are forgotten.
func (s *sw) In(pull gpio.Pull, edge gpio.Edge) error {
	if pull != gpio.PullNoChange && pull != s.how.Bias {
		return fmt.Errorf("%s: bias is %s by configuration, not %s", s.line, s.how.Bias, pull)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked, s.waited = edge, s.turns
	return nil
}

// Read implements gpio.PinIn.
func (s *sw) Read() gpio.Level {
	s.mu.Lock()
	defer s.mu.Unlock()
	return gpio.Level(s.active != s.how.ActiveLow)
}

// WaitForEdge implements gpio.PinIn. It also ends, with false, when the device
// is closed.
func (s *sw) WaitForEdge(timeout time.Duration) bool {
	var late <-chan time.Time // never, for a negative timeout
	if timeout >= 0 {
		t := time.NewTimer(timeout)
		defer t.Stop()
		late = t.C
	}
	for {
		s.mu.Lock()
		turned, news, level := s.turned, s.turns != s.waited, gpio.Level(s.active != s.how.ActiveLow)
		s.waited = s.turns
		wanted := s.asked == gpio.BothEdges || s.asked == gpio.RisingEdge && level == gpio.High || s.asked == gpio.FallingEdge && level == gpio.Low
		s.mu.Unlock()
		if news && wanted {
			return true
		}
		select {
		case <-turned:
		case <-late:
			return false
		case <-s.done:
			return false
		}
	}
}

// Pull implements gpio.PinIn.
func (s *sw) Pull() gpio.Pull { return s.how.Bias }

// DefaultPull implements gpio.PinIn.
func (s *sw) DefaultPull() gpio.Pull { return gpio.PullNoChange }
