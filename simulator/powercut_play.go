package simulator

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tillward/tillward/simulator/emulator"
)

// set turns a point into a trap, by the way that the till went in peace: right
// before something is opened, or some time after.
func (v *life) set(p point) *trap {
	way := v.ways[p.release.component]
	from, to := 0, len(way)
	if p.release.fate != good { // as a good one up to the trial, and then another way
		from = slices.IndexFunc(way, func(o opened) bool {
			return filepath.Base(o.path) == "trial.json.new" || strings.HasSuffix(o.path, "bin/stop")
		})
		from, to = max(0, from-3), to+to/8
	}
	c := &trap{at: from + 1 + int(p.at*float64(to-from)), shut: make(chan struct{})}
	switch {
	case !p.timed:
	case p.release.fate != good:
		c.after = time.Duration(p.at * float64(100*time.Millisecond))
	default:
		moment := time.Duration(p.at * float64(way[len(way)-1].at))
		for c.at = len(way); c.at > 1 && way[c.at-1].at > moment; c.at-- {
		}
		c.after = max(time.Microsecond, moment-way[c.at-1].at)
	}
	return c
}

// play makes one cut, and finds out what became of the till.
func (v *life) play(ctx context.Context, p point) (Cut, error) {
	began := time.Now()
	s := p.release
	if err := s.publish(ctx); err != nil {
		return Cut{}, err
	}
	f := facts{component: s.component, old: v.truth(s.component).Version, new: s.version, fate: s.fate}
	for _, other := range []string{"agent", posComponent} {
		if other != s.component {
			f.beside = v.truth(other)
		}
	}
	c := Cut{Number: p.number, Till: v.t.Name, Component: s.component, Fate: s.fate, From: f.old, To: f.new}
	v.mu.Lock()
	v.unplug = s.component == "agent" && s.fate == sick
	v.mu.Unlock()

	hole := v.set(p)
	v.watch(hole)
	rollout, err := v.offer(ctx, s)
	if err != nil {
		return c, err
	}
	execution := ""
	_, err = within(ctx, endWithin, func(ctx context.Context) (bool, error) {
		select {
		case <-hole.shut:
			return true, nil
		default:
		}
		n, err := v.now(ctx)
		id, state, _ := n.execution(rollout)
		execution = id
		return ended(state), err // then the cut falls after the end
	})
	if err != nil {
		return c, err
	}
	if execution == "" { // the offer was on its way
		n, err := v.now(ctx)
		if err != nil {
			return c, err
		}
		execution, _, _ = n.execution(rollout)
	}
	if c.At, err = v.outage(ctx, p.number, p.lost, execution); err != nil {
		return c, err
	}
	if p.again > 0 {
		hole := &trap{at: p.again, shut: make(chan struct{})}
		v.watch(hole)
		booted, err := v.boot(ctx)
		if err != nil {
			return c, err
		}
		_, err = within(ctx, backWithin, func(ctx context.Context) (bool, error) {
			select {
			case <-hole.shut:
				return true, nil
			default:
			}
			n, err := v.now(ctx)
			return n.Online && !n.State.StartedAt.Before(booted), err
		})
		if err != nil {
			return c, err
		}
		m, err := v.outage(ctx, p.number, p.lost, execution)
		if err != nil {
			return c, err
		}
		c.Again = &m
	}
	if err := v.recover(ctx, &f, rollout); err != nil {
		return c, err
	}
	c.Back, c.End, c.Runs = of(f.said, s.component).Version, f.state, of(f.truth, s.component).Version
	if f.reason != "" {
		c.End += " " + f.reason
	}
	c.Problems, c.Seconds = f.judge(), time.Since(began).Seconds()
	return c, v.mend(ctx, s)
}

// recover boots the till and gathers what it will be judged by.
func (v *life) recover(ctx context.Context, f *facts, rollout string) error {
	v.watch(nil)
	booted, err := v.boot(ctx)
	if err != nil {
		return err
	}
	f.back, err = within(ctx, backWithin, func(ctx context.Context) (bool, error) {
		n, err := v.now(ctx)
		f.said, f.trust = n.update.Installed, n.Trust
		return n.Online && n.Trust == "attested" && !n.State.StartedAt.Before(booted), err
	})
	if err != nil || !f.back {
		return err
	}
	_, err = within(ctx, tellWithin, func(context.Context) (bool, error) {
		v.mu.Lock()
		defer v.mu.Unlock()
		f.ran = slices.Clone(v.runs)
		return slices.Contains(f.ran, of(f.said, f.component).Version), nil
	})
	if err != nil {
		return err
	}
	execution := ""
	f.ended, err = within(ctx, endWithin, func(ctx context.Context) (bool, error) {
		n, err := v.now(ctx)
		execution, f.state, f.reason = n.execution(rollout)
		return ended(f.state), err
	})
	if err != nil || !f.ended {
		return err
	}
	// What is told becomes what is within moments; what does not is a lie.
	_, err = within(ctx, tellWithin, func(ctx context.Context) (bool, error) {
		f.truth = nil
		for _, component := range []string{"agent", posComponent} {
			f.truth = append(f.truth, v.truth(component))
		}
		n, err := v.now(ctx)
		f.told, f.trust, f.sells = n.update.Installed, n.Trust, v.sells()
		f.behind, f.chain = n.AuditHead < n.State.AuditRecorded, n.AuditOK
		_, f.state, f.reason = n.execution(rollout)
		return n.Online && n.Trust == "attested" && !f.behind && !slices.ContainsFunc(f.truth, func(r running) bool {
			return r.Trial || of(f.told, r.Component) != r
		}), err
	})
	if err != nil {
		return err
	}
	return v.look(ctx, f, execution)
}

// look asks the till for a sign of life, and reads its trail.
func (v *life) look(ctx context.Context, f *facts, execution string) error {
	var sent list[struct {
		ID string `json:"id"`
	}]
	if err := v.w.Operator.Post(ctx, "/v1/commands", map[string]string{"device": v.device, "verb": "identify", "reason": "after a power cut"}, &sent); err != nil {
		return err
	}
	var err error
	f.answers, err = within(ctx, tellWithin, func(ctx context.Context) (bool, error) {
		var c struct {
			State string `json:"state"`
		}
		err := v.w.Operator.Get(ctx, "/v1/commands/"+sent.Items[0].ID, &c)
		return c.State == "SUCCEEDED", err
	})
	if err != nil {
		return err
	}
	var chain struct {
		OK bool `json:"ok"`
	}
	path := "/v1/devices/" + url.PathEscape(v.device) + "/audit"
	if err := v.w.Operator.Get(ctx, path+"/verify", &chain); err != nil {
		return err
	}
	f.chain = f.chain && chain.OK
	var trail list[trailed]
	if err := v.w.Operator.Get(ctx, path+"?order=desc&limit=500", &trail); err != nil {
		return err
	}
	for _, e := range slices.Backward(trail.Items) {
		if e.Subject == execution {
			f.trail = append(f.trail, e)
		}
	}
	return nil
}

// sells is the version that the application runs.
func (v *life) sells() string {
	b, err := os.ReadFile(filepath.Join(v.t.disk, "runs", "pos"))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b))
}

// mend plugs in again what was unplugged.
func (v *life) mend(ctx context.Context, s *shipment) error {
	v.mu.Lock()
	v.unplug = false
	v.mu.Unlock()
	if s.component != "agent" || s.fate != sick {
		return nil
	}
	v.t.printer.Set(emulator.Unplugged, false)
	ok, err := within(ctx, backWithin, func(ctx context.Context) (bool, error) {
		n, err := v.now(ctx)
		return healthy(n.device), err
	})
	if err == nil && !ok {
		err = fmt.Errorf("the printer of %s stays away", v.t.Name)
	}
	return err
}
