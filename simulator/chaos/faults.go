package chaos

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/tillward/tillward/simulator"
)

var errNoAgent = errors.New("no agent runs")

// play lets the plan happen, with a shop's day and an operator's commands
// beside it.
func (h *harness) play(ctx context.Context) error {
	faults := plan(h.opt.Seed, len(h.tills), h.opt.Faults, h.ofService(), h.opt.For)
	h.say("%d tills are attested; %d faults in %s, seed %d", len(h.tills), len(faults), h.opt.For, h.opt.Seed)
	h.report.NotRun = packetsOnWire(ctx)
	began := time.Now()
	day, end := context.WithTimeout(ctx, h.opt.For)
	defer end()
	var all sync.WaitGroup
	all.Go(func() { h.progress(day, began) })
	for i, x := range h.tills {
		all.Go(func() { x.Live(day, h.opt.Seed+uint64(i)) }) // #nosec G115 -- a small index
		all.Go(func() { x.operate(day) })
	}
	type lane struct {
		till int
		name string
	}
	lanes := make(map[lane][]fault)
	for _, f := range faults {
		l := lane{f.till, f.lane}
		lanes[l] = append(lanes[l], f)
	}
	var mu sync.Mutex
	var broken error
	for _, list := range lanes {
		all.Go(func() {
			for _, f := range list {
				if wait(day, time.Until(began.Add(f.at))) != nil {
					return
				}
				if err := h.do(day, f); err != nil {
					mu.Lock()
					broken = errors.Join(broken, fmt.Errorf("%s: %w", f.name, err))
					mu.Unlock()
					end()
				}
			}
		})
	}
	all.Wait()
	h.report.Seconds = time.Since(began).Seconds()
	return errors.Join(broken, ctx.Err())
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// do makes a fault happen and takes it away again; it is counted when it has
// happened. Its error ends the run: the harness could not do it.
func (h *harness) do(ctx context.Context, f fault) error {
	if f.till < 0 {
		return h.doService(ctx, f)
	}
	x := h.tills[f.till]
	happened, err := x.do(ctx, f)
	if happened {
		h.count(f.name, 1, "", 0)
	}
	x.healed(f.name)
	return err
}

// ofService are the faults of this run's service.
func (h *harness) ofService() []kind {
	if h.cluster == nil {
		return ofService
	}
	return append(slices.Clone(ofService), ofStore)
}

func (h *harness) doService(ctx context.Context, f fault) error {
	if f.name == storeKilled {
		h.cluster.Kill()
		h.count(f.name, 1, "", 0)
		_ = wait(ctx, f.long)
		return h.cluster.Start(context.WithoutCancel(ctx))
	}
	end := h.w.KillService
	if f.name == serviceEnded {
		end = h.w.EndService
	}
	if err := end(); err != nil {
		return err
	}
	h.count(f.name, 1, "", 0)
	_ = wait(ctx, f.long)
	err := h.w.StartService(context.WithoutCancel(ctx))
	for _, x := range h.tills {
		x.healed(f.name)
	}
	return err
}

// pid is the agent that runs, 0 when none does.
func (x *till) pid() int {
	x.box.Lock()
	defer x.box.Unlock()
	return x.PID()
}

// signal sends one to the agent, if one runs.
func (x *till) signal(sig syscall.Signal) bool {
	x.box.Lock()
	defer x.box.Unlock()
	return x.Signal(sig) == nil
}

func (x *till) carry(w simulator.Weather) {
	for _, l := range x.Lines() {
		l.Carry(w)
	}
}

// do is a fault of one till.
func (x *till) do(ctx context.Context, f fault) (happened bool, err error) {
	switch f.name {
	case agentKilled: // its supervisor may not have started the next one yet
		return x.signal(syscall.SIGKILL), nil
	case agentEnded:
		return x.signal(syscall.SIGTERM), nil
	case powerCut:
		x.box.Lock()
		defer x.box.Unlock()
		return true, x.Unplug(context.WithoutCancel(ctx))
	case networkCut:
		x.CutNetwork()
		_ = wait(ctx, f.long)
		x.HealNetwork()
		return true, nil
	case publishCut:
		return x.cutPublish(ctx, f.long), nil
	case halfService, halfTill:
		for _, l := range x.Lines() {
			l.Half(f.name == halfTill)
		}
	case blackHole:
		x.carry(simulator.Weather{Hole: true})
	case latency:
		x.carry(simulator.Weather{Latency: time.Duration(50+f.draw%450) * time.Millisecond}) // #nosec G115 -- below 500
	case bandwidth:
		x.carry(simulator.Weather{Rate: int(800 + f.draw%4000)}) // #nosec G115 -- bytes a second
	case duplicates:
		x.order(func(o *orders) { o.Twice = 0.3 })
	case diskFull, diskFullMid, diskRefuses:
		return x.fill(ctx, f)
	case clockDead, clockFar, clockBack, clockAhead, clockFast, clockSlow:
		x.order(func(o *orders) { o.Clock = wrong(f.name, o.Clock) })
	case tpmBusy:
		x.chip.set(false, rcRetry)
	case tpmFailing:
		x.chip.set(false, failing[f.draw%uint64(len(failing))], failing[(f.draw>>8)%uint64(len(failing))])
	case tpmGone:
		x.chip.set(true)
	}
	before := x.chip.refused()
	_ = wait(ctx, f.long)
	switch f.lane {
	case "network":
		x.carry(simulator.Weather{})
	case "packets":
		x.order(func(o *orders) { o.Twice = 0 })
	case "clock":
		x.order(func(o *orders) { o.Clock = clock{} }) // somebody puts it right: it jumps again
	case "TPM":
		x.chip.set(false)
		x.h.count(f.name, 0, "commands not done", x.chip.refused()-before)
	}
	return true, nil
}

// wrong is a clock that goes as a fault says, from where it stands.
func wrong(name string, was clock) clock {
	now := was.now()
	c := clock{At: time.Now().UnixNano(), Rate: 1}
	switch name {
	case clockDead:
		now = now.AddDate(-10, 0, 0)
	case clockFar:
		now = now.AddDate(5, 0, 0)
	case clockBack:
		now = now.Add(-time.Hour)
	case clockAhead:
		now = now.Add(26 * time.Hour)
	case clockFast:
		c.Rate = 1.05
	case clockSlow:
		c.Rate = 0.95
	}
	c.Says = now.UnixNano()
	return c
}

// cutPublish waits for the till to cut itself off in the middle of a PUBLISH.
func (x *till) cutPublish(ctx context.Context, most time.Duration) bool {
	select {
	case <-x.cuts:
	default:
	}
	x.order(func(o *orders) { o.Cut = true })
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	select {
	case <-x.cuts:
		return true
	case <-ctx.Done():
		x.order(func(o *orders) { o.Cut = false })
		return false
	}
}

// fill takes the till's disk space for a while.
func (x *till) fill(ctx context.Context, f fault) (bool, error) {
	pid := x.pid()
	spare := 0
	if f.name == diskFullMid {
		spare = 1 + int(f.draw%6) // #nosec G115 -- below 6
	}
	if f.name == diskRefuses {
		for x.disk.limit(pid, 0) != nil { // no agent at this moment
			if wait(ctx, 50*time.Millisecond) != nil {
				return false, nil
			}
			pid = x.pid()
		}
		_ = wait(ctx, f.long)
		return true, x.disk.unlimit(pid)
	}
	err := x.disk.fill(pid, spare)
	if !x.disk.mounted && err != nil {
		return false, nil // no agent at this moment
	}
	if err != nil {
		return false, errors.Join(err, x.disk.empty(pid))
	}
	_ = wait(ctx, f.long)
	return true, x.disk.empty(pid)
}

// operate sends the till commands that change nothing, as an operator does.
func (x *till) operate(ctx context.Context) {
	verbs := []struct {
		name string
		args map[string]string
	}{
		{"identify", nil},
		{"diagnose", nil},
		{"check-health", map[string]string{"peripheral": "receipt"}},
		{"set-config", map[string]string{"label": x.Name}},
		{"collect-logs", nil},
	}
	pace := max(x.h.opt.For/40, 3*time.Second)
	for i := x.n; ; i++ {
		if wait(ctx, pace) != nil {
			return
		}
		v := verbs[i%len(verbs)]
		var sent struct {
			Items []struct {
				ID string `json:"id"`
			} `json:"items"`
		}
		err := x.h.w.Operator.Post(ctx, "/v1/commands", map[string]any{"device": x.device, "verb": v.name, "args": v.args, "reason": "chaos"}, &sent)
		if err != nil {
			continue // the service is down
		}
		x.mu.Lock()
		for _, c := range sent.Items {
			x.commands[c.ID] = true
		}
		x.mu.Unlock()
	}
}

// progress tells how far the run is.
func (h *harness) progress(ctx context.Context, began time.Time) {
	for step := 1; step <= 10; step++ {
		if wait(ctx, time.Until(began.Add(h.opt.For*time.Duration(step)/10))) != nil && step < 10 {
			return
		}
		rows := 0
		for _, x := range h.tills {
			for _, c := range []string{audit, telemetry, event} {
				rows += x.book.recorded(c)
			}
		}
		h.say("[%-10s] %3d %%  %d faults, %d rows recorded", "##########"[:step], step*10, h.total(), rows)
	}
}
