// Package rollout brings a release to the devices of a group: it enlists them,
// offers the release to those that can be reached and are trusted, a bounded
// number at a time, and stops by itself when too many end badly.
//
// Next is pure: it looks at where a rollout stands and says what to do. Run is
// the small loop around it. What a device does with an offer is the device's
// business; a device that cannot be offered anything is waited for, one that
// was has until the deadline.
package rollout

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
)

const (
	offerLife = 24 * time.Hour
	inFlight  = 50 // executions of one rollout under way at once
)

// Store keeps rollouts; cloud/internal/store fits.
type Store interface {
	RunningRollouts(ctx context.Context) ([]fleet.Rollout, error)
	Enlist(ctx context.Context, id fleet.RolloutID) (int, error)
	Executions(ctx context.Context, t fleet.TenantID, id fleet.RolloutID, p fleet.Page) ([]fleet.Execution, string, error)
	MoveExecution(ctx context.Context, step fleet.ExecutionStep, at time.Time) (*fleet.Execution, error)
	SetRollout(ctx context.Context, t fleet.TenantID, id fleet.RolloutID, from []fleet.RolloutState, to fleet.RolloutState, reason string, ev fleet.AuditEvent) (fleet.Rollout, error)
}

// Link reaches devices; cloud/internal/broker fits.
type Link interface {
	Send(device fleet.DeviceID, channel wire.Channel, payload []byte) error
	Connected() map[fleet.DeviceID]fleet.Trust
}

// Options of a Runner.
type Options struct {
	Store Store
	Link  Link
	// Open sends what is not for quarantined devices, which one may have become
	// since Connected was asked; nil: Link does.
	Open    func(device fleet.DeviceID, channel wire.Channel, payload []byte) error
	Sign    func(kind string, m wire.Message) ([]byte, error)
	Changed func(t fleet.TenantID, id fleet.RolloutID)
	Log     *slog.Logger
}

// Runner carries plans out.
type Runner struct {
	o    Options
	wake chan struct{}
	came chan fleet.DeviceID

	back map[fleet.DeviceID]bool  // connected again since the last round
	ran  map[fleet.RolloutID]bool // in the last round; offers of others may have been missed
}

// New returns a Runner; Run works.
func New(o Options) *Runner {
	return &Runner{o: o, wake: make(chan struct{}, 1), back: make(map[fleet.DeviceID]bool), ran: make(map[fleet.RolloutID]bool), came: make(chan fleet.DeviceID, 1024)}
}

// Wake asks for a round soon: something changed.
func (r *Runner) Wake() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Deliver notes that a device is ready again: its open offer is sent once
// more, and the device answers it or goes on.
func (r *Runner) Deliver(device fleet.DeviceID) {
	select {
	case r.came <- device:
	default: // the next offer is by the deadline
	}
	r.Wake()
}

// Plan says what a round does with one rollout.
type Plan struct {
	Offer   []fleet.Execution // to be offered now, or again
	Timeout []fleet.Execution // past their deadline
	To      fleet.RolloutState
	Reason  string // of To
}

// Next plans a round. online says which devices can be offered something;
// again, which of them have reconnected and may have missed an offer.
func Next(now time.Time, ro fleet.Rollout, execs []fleet.Execution, online, again func(fleet.DeviceID) bool) Plan {
	p := Plan{To: ro.State}
	if ro.State != fleet.RolloutRunning {
		return p
	}
	bad, open, flying := 0, 0, 0
	for _, e := range execs {
		switch {
		case e.State.Ended():
			if !e.State.Good() {
				bad++
			}
			continue
		case e.State != fleet.ExecQueued && now.Sub(e.OfferedAt) > ro.Deadline:
			p.Timeout = append(p.Timeout, e)
			bad++
			continue
		case e.State != fleet.ExecQueued:
			flying++
		}
		open++
	}
	if limit := max(ro.MaxFailed, 1); bad > limit {
		p.To, p.Reason = fleet.RolloutPaused, fmt.Sprintf("%d devices ended badly, at most %d may", bad, limit)
		return p
	}
	if open == 0 && len(execs) > 0 {
		p.To = fleet.RolloutCompleted
		return p
	}
	for _, e := range execs {
		switch {
		case e.State.Ended() || !online(e.Device):
		case e.State == fleet.ExecQueued && flying < inFlight:
			p.Offer = append(p.Offer, e)
			flying++
		case e.State != fleet.ExecQueued && again(e.Device) && now.Sub(e.OfferedAt) <= ro.Deadline:
			p.Offer = append(p.Offer, e)
		}
	}
	return p
}

// Run makes a round every second and whenever Wake is called.
func (r *Runner) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-r.wake:
		}
		for more := true; more; {
			select {
			case d := <-r.came:
				r.back[d] = true
			default:
				more = false
			}
		}
		if err := r.round(ctx); err != nil && ctx.Err() == nil {
			r.o.Log.Error("rollout round", slog.Any("err", err))
			continue
		}
		clear(r.back)
	}
}

func (r *Runner) round(ctx context.Context) error {
	running, err := r.o.Store.RunningRollouts(ctx)
	if err != nil {
		return err
	}
	if len(running) == 0 {
		clear(r.ran)
		return nil
	}
	connected := r.o.Link.Connected()
	ran := make(map[fleet.RolloutID]bool, len(running))
	defer func() { r.ran = ran }()
	var errs []error
	for _, ro := range running {
		// While a rollout is paused nobody is offered anything, not even who comes back then.
		again := func(d fleet.DeviceID) bool { return r.back[d] || !r.ran[ro.ID] }
		online := func(d fleet.DeviceID) bool { return eligible(ro, connected[d]) }
		if _, err := r.o.Store.Enlist(ctx, ro.ID); err != nil {
			errs = append(errs, err)
			continue
		}
		execs, err := r.executions(ctx, ro)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		err = r.carryOut(ctx, ro, Next(time.Now(), ro, execs, online, again))
		ran[ro.ID] = err == nil
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// eligible says whether a connected device of this trust is offered something.
func eligible(ro fleet.Rollout, t fleet.Trust) bool {
	return t == fleet.Attested || t == fleet.Degraded || ro.Repair && t == fleet.Quarantined
}

func (r *Runner) executions(ctx context.Context, ro fleet.Rollout) ([]fleet.Execution, error) {
	var all []fleet.Execution
	page := fleet.Page{Limit: 1000}
	for {
		items, next, err := r.o.Store.Executions(ctx, ro.Tenant, ro.ID, page)
		if err != nil {
			return nil, err
		}
		if all = append(all, items...); next == "" {
			return all, nil
		}
		page.After = next
	}
}

func (r *Runner) carryOut(ctx context.Context, ro fleet.Rollout, p Plan) error {
	now := time.Now()
	changed := false
	for _, e := range p.Timeout {
		step := fleet.ExecutionStep{ID: e.ID, State: fleet.ExecTimedOut, Reason: "deadline", Text: "no end within " + ro.Deadline.String()}
		if _, err := r.o.Store.MoveExecution(ctx, step, now); err != nil {
			return err
		}
		changed = true
	}
	for _, e := range p.Offer {
		moved, err := r.offer(ctx, ro, e, now)
		if err != nil {
			return err
		}
		changed = changed || moved
	}
	if p.To != ro.State {
		ev := fleet.AuditEvent{At: now, Kind: "rollout." + lower(p.To), Severity: "info", Actor: "rollout", Subject: string(ro.ID)}
		if p.To == fleet.RolloutPaused {
			ev.Severity, ev.Detail = "alarm", map[string]string{"reason": p.Reason}
		}
		_, err := r.o.Store.SetRollout(ctx, ro.Tenant, ro.ID, []fleet.RolloutState{ro.State}, p.To, p.Reason, ev)
		if err != nil && !errors.Is(err, fleet.ErrConflict) { // an operator was faster
			return err
		}
		changed = true
	}
	if changed {
		r.o.Changed(ro.Tenant, ro.ID)
	}
	return nil
}

func lower(s fleet.RolloutState) string {
	switch s {
	case fleet.RolloutPaused:
		return "paused"
	case fleet.RolloutCompleted:
		return "completed"
	}
	return "changed"
}

// offer sends the offer first: OFFERED is written only of what was handed to
// the broker. A device that is gone keeps its place. It reports whether the
// execution moved.
func (r *Runner) offer(ctx context.Context, ro fleet.Rollout, e fleet.Execution, now time.Time) (bool, error) {
	class, version, _ := strings.Cut(string(ro.Release), "/")
	b, err := r.o.Sign(wire.OrderOffer, &wire.OfferOrder{
		V: wire.Version, Execution: string(e.ID), Tenant: string(ro.Tenant), Device: string(e.Device), Class: class, Version: version,
		Target: string(ro.Release), IssuedAt: now.UnixMilli(), NotAfter: now.Add(offerLife).UnixMilli(), By: ro.CreatedBy,
	})
	if err != nil {
		return false, err
	}
	send := r.o.Link.Send
	if r.o.Open != nil && !ro.Repair {
		send = r.o.Open
	}
	if err := send(e.Device, wire.DownOffer, b); err != nil {
		r.o.Log.Debug("offer waits", slog.String("device", string(e.Device)), slog.Any("err", err))
		return false, nil
	}
	if e.State != fleet.ExecQueued {
		return false, nil
	}
	moved, err := r.o.Store.MoveExecution(ctx, fleet.ExecutionStep{ID: e.ID, State: fleet.ExecOffered, To: version}, now)
	return moved != nil, err
}
