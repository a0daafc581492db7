package simulator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// RunOptions say what `tillward-sim run` shows.
type RunOptions struct {
	Options
	ExitAfter time.Duration // 0: until the context ends
	Report    string        // file for the Report; empty: none
}

// Run boots a fleet, gives it a busy day, updates it, sends each till a
// command and, when it is told to end, writes what was proved. It returns an
// error when the run shows something that must not be.
func Run(ctx context.Context, opt RunOptions) error {
	began := time.Now()
	say := func(format string, args ...any) {
		fmt.Fprintf(opt.Out, "%6.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	say("starting the fleet service, %d TPMs, printers and readers in %s", opt.Tills, opt.Dir)
	w, err := Open(ctx, opt.Options)
	if err != nil {
		return err
	}
	defer w.Close()
	say("console  %s", w.service.url())
	say("token    %s", w.service.tokenFile())
	if opt.Receipts != "" {
		say("receipts %s, a picture of each", opt.Receipts)
	}

	end := ctx
	if opt.ExitAfter > 0 {
		var cancel context.CancelFunc
		end, cancel = context.WithTimeout(ctx, opt.ExitAfter-time.Since(began))
		defer cancel()
	}
	play, stop := context.WithCancel(end)
	var day sync.WaitGroup
	storyErr := w.story(play, &day, say)
	if storyErr == nil {
		say("every till has been updated and has run its command; the day goes on")
		if opt.ExitAfter == 0 {
			say("open %s and sign in with the token in %s", w.service.url(), w.service.tokenFile())
			say("Ctrl-C ends everything")
		}
		<-end.Done()
	}
	stop()
	day.Wait()
	if ctx.Err() != nil && opt.Report == "" {
		say("stopping")
		return nil
	}
	return errors.Join(storyErr, w.finish(context.WithoutCancel(ctx), began, opt.Report, say))
}

// story is what happens to every till, in order.
func (w *World) story(ctx context.Context, day *sync.WaitGroup, say func(string, ...any)) error {
	for _, t := range w.Tills {
		t.Boot(ctx)
	}
	if err := w.eachDevice(ctx, "attested", func(t *Till, d device) bool {
		if d.Trust != "attested" || !d.Online || d.AgentVersion == "" {
			return false
		}
		t.firstVersion = d.AgentVersion
		return true
	}, func(t *Till, d device) {
		say("%s  %s attested, tier %s, agent %s", t.Name, d.ID, d.Tier, d.AgentVersion)
	}); err != nil {
		return err
	}
	for i, t := range w.Tills {
		day.Go(func() { t.playDay(ctx, w.opt.Seed+uint64(i), w.opt.Day, say) }) // #nosec G115 -- a small index
	}
	if err := w.eachDevice(ctx, "telemetry", func(_ *Till, d device) bool {
		return d.Samples > 0 && len(d.Peripherals) > 0
	}, nil); err != nil {
		return err
	}
	say("samples arrive; peripherals are known")
	if w.opt.UpdateTo != "" {
		if err := w.Release(ctx, w.opt.UpdateTo, w.opt.Next); err != nil {
			return err
		}
		id, err := w.Rollout(ctx, "agent/"+w.opt.UpdateTo)
		if err != nil {
			return err
		}
		say("release agent/%s signed and published, rollout %s started", w.opt.UpdateTo, id)
		if err := w.eachDevice(ctx, "updated", func(_ *Till, d device) bool {
			return d.AgentVersion == w.opt.UpdateTo && d.Trust == "attested" && d.Online
		}, func(t *Till, d device) { say("%s  runs agent %s from slot %s", t.Name, d.AgentVersion, d.Slot) }); err != nil {
			return err
		}
		if err := w.WaitRollout(ctx, id, "COMPLETED"); err != nil {
			return err
		}
	}
	for _, t := range w.Tills {
		if err := t.calm(ctx, func() error { return w.Command(ctx, t, "print-test", "peripheral=receipt") }); err != nil {
			return err
		}
		say("%s  ran print-test", t.Name)
	}
	return nil
}

// finish stops the agents, lets the service take in what they said last, and
// reports.
func (w *World) finish(ctx context.Context, began time.Time, path string, say func(string, ...any)) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for _, t := range w.Tills {
		wg.Go(t.Stop)
	}
	wg.Wait()
	r, err := w.report(ctx, began)
	if err != nil {
		return err
	}
	if path != "" {
		if err := WriteReport(os.Stdout, path, r); err != nil {
			return err
		}
		say("report   %s", path)
	}
	for _, p := range r.Problems {
		say("problem  %s", p)
	}
	if !r.OK {
		return fmt.Errorf("%d problems in this run; the agents' logs are below %s", len(r.Problems), w.opt.Dir)
	}
	return nil
}

// eachDevice waits until ok holds for every till, calling once for each till
// when it first does.
func (w *World) eachDevice(ctx context.Context, what string, ok func(*Till, device) bool, once func(*Till, device)) error {
	done := make(map[string]bool)
	return w.Until(ctx, what, func(ctx context.Context) (bool, error) {
		fleet, err := w.devices(ctx)
		if err != nil {
			return false, err
		}
		for _, t := range w.Tills {
			d, known := fleet[t.Name]
			if done[t.Name] || !known || !ok(t, d) {
				continue
			}
			done[t.Name] = true
			if once != nil {
				once(t, d)
			}
		}
		return len(done) == len(w.Tills), nil
	})
}

// Until asks again and again until ok is true. When ctx ends first, the error
// names what was waited for.
func (w *World) Until(ctx context.Context, what string, ok func(context.Context) (bool, error)) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		done, err := ok(ctx)
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("wait until %s: %w", what, err)
		}
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w", what, ctx.Err())
		case <-tick.C:
		}
	}
}

// makeRelease makes the release keys and the TUF repository.
func (w *World) makeRelease(ctx context.Context) error {
	if err := os.MkdirAll(w.keys(), 0o700); err != nil {
		return fmt.Errorf("release keys: %w", err)
	}
	threshold, err := w.makeSigners()
	if err != nil {
		return err
	}
	return w.provision(ctx, append([]string{"repo", "init", "--dir", w.repo(), "--keys", w.keys()}, threshold...)...)
}

// Release signs binary as agent/version and publishes it.
func (w *World) Release(ctx context.Context, version, binary string) error {
	boot, err := w.firstBoot(ctx, "agent/"+version)
	if err != nil {
		return err
	}
	return w.publish(ctx, version, binary, boot)
}

// Rollout starts a rollout of release to every till and returns its id; args
// are those of the command line.
func (w *World) Rollout(ctx context.Context, release string, args ...string) (string, error) {
	var r struct {
		ID string `json:"id"`
	}
	err := w.cli(ctx, &r, append([]string{"rollout", "start", release}, args...)...)
	return r.ID, err
}

// WaitRollout waits until rollout id is in state.
func (w *World) WaitRollout(ctx context.Context, id, state string) error {
	return w.Until(ctx, "rollout "+state, func(ctx context.Context) (bool, error) {
		var r struct {
			State string `json:"state"`
		}
		err := w.Operator.Get(ctx, "/v1/rollouts/"+id, &r)
		return r.State == state, err
	})
}

// Command sends till t a command and waits until it has succeeded.
func (w *World) Command(ctx context.Context, t *Till, verb string, args ...string) error {
	fleet, err := w.devices(ctx)
	if err != nil {
		return err
	}
	var sent list[struct {
		ID string `json:"id"`
	}]
	line := append([]string{"command", "send", fleet[t.Name].ID, verb, "--reason", "simulator"}, args...)
	if err := w.cli(ctx, &sent, line...); err != nil {
		return err
	}
	return w.Until(ctx, verb+" by "+t.Name, func(ctx context.Context) (bool, error) {
		var c struct {
			State string `json:"state"`
			Text  string `json:"text"`
		}
		if err := w.Operator.Get(ctx, "/v1/commands/"+sent.Items[0].ID, &c); err != nil {
			return false, err
		}
		switch c.State {
		case "SUCCEEDED":
			return true, nil
		case "FAILED", "REJECTED", "EXPIRED":
			return false, fmt.Errorf("%s: %s", c.State, c.Text)
		}
		return false, nil
	})
}
