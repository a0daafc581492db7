package rollout

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"slices"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
)

// carryOut does what a plan says. What is decided is written first: when
// somebody else was faster, nothing of the plan is done and another is made.
func (r *Runner) carryOut(ctx context.Context, run *run, p Plan, sites map[string]fleet.Site) error {
	now := time.Now()
	assigned := map[fleet.ExecutionID]int{}
	for i, w := range p.Assign {
		if u := &run.units[i]; u.Wave < 0 && w >= 0 {
			assigned[u.ID] = int(w)
		}
	}
	if len(assigned) > 0 {
		if err := r.o.Store.AssignWaves(ctx, run.ro.ID, assigned); err != nil {
			return err
		}
	}
	if len(p.Decisions) > 0 || len(run.ro.Waves) > 0 && !slices.Equal(run.ro.Waves, p.Waves) {
		if saved, err := r.decide(ctx, run.ro, p, now); errors.Is(err, fleet.ErrConflict) {
			r.Wake()
			return nil
		} else if err != nil {
			return err
		} else {
			r.mu.Lock()
			run.ro = saved
			r.mu.Unlock()
		}
	}
	changed := len(assigned)+len(p.Decisions) > 0
	steps := make([]fleet.ExecutionStep, len(p.Moves))
	for i, m := range p.Moves {
		steps[i] = fleet.ExecutionStep{ID: m.Unit.ID, State: m.To, Reason: m.Reason, Text: m.Text, Version: m.Unit.Version}
	}
	moved, err := r.o.Store.MoveExecutions(ctx, steps, now)
	if err != nil {
		return err
	}
	changed = changed || moved > 0
	for _, u := range p.Retry {
		switch err := r.o.Store.RetryExecution(ctx, u.ID, u.Version, now); {
		case errors.Is(err, fleet.ErrConflict): // the device has spoken meanwhile
		case err != nil:
			return err
		default:
			changed = true
		}
	}
	for _, u := range p.Recall {
		if err := r.recall(run, u); err != nil {
			return err
		}
	}
	offers := &offers{r: r, run: run, sites: sites, now: now, hours: map[string]timetable{}, peers: map[string][]string{}}
	for _, u := range p.Offer {
		moved, err := offers.send(ctx, u)
		if err != nil {
			return err
		}
		changed = changed || moved
	}
	r.mu.Lock()
	run.offered = p.To == fleet.RolloutRunning || p.To == fleet.RolloutCompleted
	clear(run.back)
	r.mu.Unlock()
	if changed {
		r.o.Changed(run.ro.Tenant, run.ro.ID)
		r.Wake() // one thing may lead to the next
	}
	return nil
}

// decide writes where the rollout stands by a plan, and why.
func (r *Runner) decide(ctx context.Context, ro fleet.Rollout, p Plan, now time.Time) (fleet.Rollout, error) {
	if ro.State != p.To {
		ro.Auto = p.To == fleet.RolloutPaused
		if p.To.Ended() {
			ro.EndedAt = now
		}
	}
	ro.State, ro.Reason, ro.Waves, ro.Holds = p.To, p.Reason, p.Waves, p.Holds
	if ro.StartedAt.IsZero() {
		ro.StartedAt = now
	}
	var events []fleet.AuditEvent
	for _, d := range p.Decisions {
		events = append(events, fleet.AuditEvent{At: now, Kind: d.Kind, Severity: d.Severity, Actor: "rollout", Subject: string(ro.ID), Detail: d.Detail})
	}
	return r.o.Store.SaveRollout(ctx, ro, events...)
}

// recall tells a device once, and once more when it comes back, to drop an
// offer: the same offer with a life that is over.
func (r *Runner) recall(run *run, u fleet.Unit) error {
	if n, done := run.recalled[u.ID]; done && n == u.Attempt && !run.back[u.Device] {
		return nil
	}
	at := u.OfferedAt.UnixMilli()
	b, err := r.o.Sign(wire.OrderOffer, &wire.OfferOrder{
		V: wire.Version, Execution: string(u.ID), Tenant: string(run.ro.Tenant), Device: string(u.Device), Class: run.release.Class, Version: run.release.Version,
		Target: string(run.ro.Release), IssuedAt: at, NotAfter: at + 1, By: run.ro.CreatedBy, Attempt: unsigned(u.Attempt), Rollout: string(run.ro.ID),
	})
	if err != nil {
		return err
	}
	if err := r.o.Link.Send(u.Device, wire.DownOffer, b); err != nil {
		r.o.Log.Debug("recall waits", slog.String("device", string(u.Device)), slog.Any("err", err))
		return nil
	}
	run.recalled[u.ID] = u.Attempt
	return nil
}

// unsigned is a count on the wire.
func unsigned(n int) uint32 { return uint32(max(n, 0)) }

// offers makes the offers of one plan.
type offers struct {
	r     *Runner
	run   *run
	sites map[string]fleet.Site
	now   time.Time
	hours map[string]timetable // by site
	peers map[string][]string
}

// send sends the offer first: OFFERED is written only of what was handed to
// the broker. A device that is gone keeps its place. It reports whether the
// execution moved.
func (o *offers) send(ctx context.Context, u fleet.Unit) (bool, error) {
	fresh := u.State == fleet.ExecQueued
	if fresh {
		u.Attempt, u.OfferedAt = u.Attempt+1, o.now
	}
	order, err := o.order(ctx, u)
	if err != nil {
		return false, err
	}
	b, err := o.r.o.Sign(wire.OrderOffer, order)
	if err != nil {
		return false, err
	}
	send := o.r.o.Link.Send
	if o.r.o.Open != nil && !o.run.ro.Spec.Repair {
		send = o.r.o.Open
	}
	if err := send(u.Device, wire.DownOffer, b); err != nil {
		o.r.o.Log.Debug("offer waits", slog.String("device", string(u.Device)), slog.Any("err", err))
		return false, nil
	}
	if !fresh {
		return false, nil
	}
	moved, err := o.r.o.Store.MoveExecution(ctx, fleet.ExecutionStep{ID: u.ID, State: fleet.ExecOffered, To: o.run.release.Version, Attempt: u.Attempt}, o.now)
	if err == nil && moved == nil {
		err = o.overruled(ctx, u)
	}
	return moved != nil, err
}

// overruled calls back an offer that could not be noted since somebody ended the
// execution while it was sent: nobody would know of it any more. If the device
// was the one who was faster, all is well.
func (o *offers) overruled(ctx context.Context, u fleet.Unit) error {
	units, _, err := o.r.o.Store.Units(ctx, o.run.ro.ID, o.run.cursor)
	if err != nil {
		return err
	}
	for _, now := range units {
		if now.ID == u.ID && (now.State == fleet.ExecCanceled || now.State == fleet.ExecRemoved) {
			return o.r.recall(o.run, u)
		}
	}
	return nil
}

// order is the offer of a release to one device, with all that it needs to know
// for as long as the offer lives.
func (o *offers) order(ctx context.Context, u fleet.Unit) (*wire.OfferOrder, error) {
	ro, spec := o.run.ro, withDefaults(o.run.ro.Spec)
	end := u.OfferedAt.Add(life(spec))
	hours, ok := o.hours[u.Site]
	if !ok {
		hours = timetableOf(spec, o.sites[u.Site], o.now, o.now.Add(maxLife))
		o.hours[u.Site] = hours
	}
	if hours.err != nil {
		return nil, fmt.Errorf("hours for device %s: %w", u.Device, hours.err)
	}
	order := &wire.OfferOrder{
		V: wire.Version, Execution: string(u.ID), Tenant: string(ro.Tenant), Device: string(u.Device), Class: o.run.release.Class, Version: o.run.release.Version,
		Target: string(ro.Release), IssuedAt: o.now.UnixMilli(), NotAfter: max(end.UnixMilli(), o.now.UnixMilli()+1), By: ro.CreatedBy,
		Attempt: unsigned(u.Attempt), Download: closed(hours.download), Install: closed(hours.install), Steps: map[string]uint32{}, RateKiB: unsigned(spec.RateKiB), Rollout: string(ro.ID),
	}
	for state, d := range spec.Steps {
		if d >= time.Second {
			order.Steps[string(state)] = uint32(min(d, maxLife) / time.Second)
		}
	}
	var err error
	order.Peers, err = o.peersOf(ctx, u)
	return order, err
}

// closed keeps hours that never come from being none, which is any time: they
// are long over.
func closed(spans []wire.Span) []wire.Span {
	if spans != nil && len(spans) == 0 {
		return []wire.Span{{From: 1, To: 2}}
	}
	return spans
}

// peersOf are tills of the site that have the release, another choice of them
// for each device.
func (o *offers) peersOf(ctx context.Context, u fleet.Unit) ([]string, error) {
	if u.Site == "" {
		return nil, nil
	}
	all, ok := o.peers[u.Site]
	if !ok {
		var err error
		if all, err = o.r.o.Store.Peers(ctx, o.run.ro.Tenant, u.Site, o.run.ro.Release); err != nil {
			return nil, err
		}
		o.peers[u.Site] = all
	}
	if len(all) <= wire.MaxPeers {
		return all, nil
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(u.Device))
	first := int(h.Sum32() % uint32(len(all)))
	var some []string
	for i := range wire.MaxPeers {
		some = append(some, all[(first+i)%len(all)])
	}
	return some, nil
}
