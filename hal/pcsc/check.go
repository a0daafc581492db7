package pcsc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tillward/tillward/hal"
)

var errTorn = errors.New("the card was pulled out while it was spoken to")

const lookEvery = 100 * time.Millisecond

// selectDirectory sends the one command to the card and counts how it went. A
// card that somebody else has for himself, or has reset meanwhile, is well.
func (r *reader) selectDirectory(ctx context.Context) (uint16, error) {
	c, err := dial(ctx, r.socket, r.timeout)
	if err != nil {
		return 0, err
	}
	defer c.close()
	stop := context.AfterFunc(ctx, c.close)
	defer stop()
	table, err := c.states()
	if err != nil {
		return 0, err
	}
	s, ok := r.pick(table)
	if !ok {
		return 0, failure(rvNoCard)
	}
	sw, reached, err := c.selectDirectory(s.name)
	var f failure
	switch {
	case err == nil:
		r.track.Count("M_TransmitCount", 1)
	case !reached || !errors.As(err, &f):
	case f == rvReset || f == rvSharing || f == rvUnpowered:
	case f == rvRemoved || f == rvNoCard || r.left(ctx, c):
		r.track.Post("M_CARD_TORN", "", f.Error())
		err = fmt.Errorf("%w: %w", errTorn, err)
	default:
		r.track.Count("M_TransmitErrorCount", 1)
	}
	return sw, err
}

// left reports whether the card leaves within the time that pcscd may take to
// see that: it looks a few times in a second.
func (r *reader) left(ctx context.Context, c *client) bool {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for range 10 {
		table, err := c.states()
		if err != nil {
			return false
		}
		if s, ok := r.pick(table); !ok || !s.present() {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return false
}

// CheckHealth implements hal.HealthChecker. Interactive needs a test card in
// the reader, or waits for one until ctx ends; what it tells of the card is the
// status word.
func (r *reader) CheckHealth(ctx context.Context, level hal.Level) (hal.Report, error) {
	if level != hal.Internal && level != hal.Interactive {
		return hal.Report{}, &hal.Error{Code: "E_ILLEGAL", Op: "check health", Err: errors.New("a card reader has no external check; use interactive")}
	}
	began := time.Now()
	st, err := r.Status(ctx)
	if err != nil {
		return hal.Report{}, err
	}
	var rep hal.Report
	step := func(id string, ok bool, code, text string) bool {
		rep.OK, rep.Text = ok, text
		rep.Checks = append(rep.Checks, hal.Check{ID: id, OK: ok, Code: code, Took: time.Since(began)})
		began = time.Now()
		return ok
	}
	if st.Sensors["M_DaemonGone"] == hal.Yes {
		step("daemon", false, st.Reason, "pcscd is not to be had. "+st.Advice)
		return rep, nil
	}
	step("daemon", true, "", "pcscd is there.")
	if st.Power != hal.PowerOnline {
		step("reachable", false, st.Reason, "The reader is not there. "+st.Advice)
		return rep, nil
	}
	if step("reachable", true, "", "pcscd is there and has the reader."); level == hal.Internal {
		return rep, nil
	}
	if !r.awaitCard(ctx) {
		err := &hal.Error{Code: "E_TIMEOUT", Op: "check health", Err: errors.New("no card was put in")}
		step("card", false, err.Code, "No card was put in.")
		return rep, err
	}
	step("card", true, "", "A card is in.")
	sw, err := r.selectDirectory(ctx)
	var f failure
	switch _ = errors.As(err, &f); {
	case err == nil:
		step("select", true, fmt.Sprintf("%04X", sw), fmt.Sprintf("The card answered with status word %04X.", sw))
	case ctx.Err() != nil:
		step("select", false, "E_TIMEOUT", "The card took too long.")
		return rep, &hal.Error{Code: "E_TIMEOUT", Op: "check health", Err: ctx.Err()}
	case f == rvSharing:
		step("select", false, "M_IN_USE", "The till has the card for itself at the moment; try again.")
		return rep, &hal.Error{Code: "E_BUSY", Op: "check health", Err: err}
	case f == rvSecurity, errors.Is(err, errRefused):
		step("select", false, refusal, "pcscd does not let the agent's user use cards.")
	case errors.Is(err, errTorn), f == rvRemoved, f == rvNoCard:
		step("select", false, "M_CARD_TORN", "The card was taken out too early.")
	case f == rvUnresponsive, f == rvUnpowered:
		step("select", false, "M_CARD_MUTE", "The card does not answer.")
	default:
		step("select", false, "E_FAILURE", "The card could not be asked.")
	}
	return rep, nil
}

// awaitCard waits until a card is in, or ctx ends.
func (r *reader) awaitCard(ctx context.Context) bool {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for r.track.Status().Sensors["SCPresentSensor"] != hal.Yes {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}
