package update

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/tillward/tillward/provisioning/trust"
)

const (
	maxReboots = 3 // that a system on trial gets to prove itself
	maxStarts  = 8 // and the agent on it, without a word on it
	stageFor   = time.Hour
	checkFor   = 15 * time.Minute
	lookPause  = 200 * time.Millisecond // between two looks at what does not hold yet, growing
	lookMax    = 5 * time.Second

	healthy = "OK"
)

// job is what a handler is told.
func (j *journal) job() Job {
	o := *j.Offer
	job := Job{Execution: o.Execution, Component: o.component(), Version: o.Version}
	if j.Target != nil {
		job.Target = *j.Target
	}
	return job
}

// stage has the content written beside what runs.
func (m *Machine) stage(ctx context.Context, j *journal) error {
	h := m.o.Handlers[j.Offer.class()]
	if j.State == waiting { // it was held up
		if err := m.advance(ctx, j, Progress{State: installing}); err != nil {
			return err
		}
	}
	told, done := m.count(ctx, j)
	err := m.timed(ctx, j, func(ctx context.Context) error {
		job := j.job()
		if s, ok := h.(Streamer); ok && s.Streams(job.Target) {
			content, err := m.o.Content.Open(ctx, m.order(ctx, j, h, told))
			if err != nil {
				return err
			}
			job.Content = content
		} else {
			if j.file == "" { // started anew since it was fetched
				file, err := m.o.Content.Get(ctx, m.order(ctx, j, h, told))
				if err != nil {
					return err
				}
				j.file = file
			}
			job.File = j.file
		}
		m.o.Step("stage")
		return h.Stage(ctx, job)
	})
	done()
	if err != nil {
		j.file = "" // the disk may have lost it: it is looked at again
		return err
	}
	j.Part = partTry
	if err := m.advance(ctx, j, Progress{State: installed}); err != nil {
		return err
	}
	m.o.Content.Drop(*j.Target)
	return nil
}

// try makes what was staged the one that runs.
func (m *Machine) try(ctx context.Context, j *journal) error {
	if err := m.wait(ctx, j, Touch); err != nil {
		return err
	}
	if j.Tries >= maxTries {
		return m.giveUp(ctx, j, m.lost(j, fmt.Sprintf("tried %d times, and it never ran", j.Tries)))
	}
	if m.o.Health != nil {
		now, err := m.o.Health(ctx, time.Time{})
		if err != nil {
			return fmt.Errorf("how the box is before the update: %w", err)
		}
		j.Baseline = now
	}
	if err := m.o.Record(ctx, "update.trial", "info", j.Offer.Execution, map[string]string{"component": j.Offer.component(), "version": j.Offer.Version}); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	j.Tries++
	if err := m.keep(j); err != nil {
		return err
	}
	m.o.Step("try")
	effect, err := m.o.Handlers[j.Offer.class()].Move(ctx, j.job(), Try)
	if err != nil {
		return err
	}
	if effect == None {
		j.Part = partProve
		return m.keep(j)
	}
	if err := m.advance(ctx, j, Progress{State: rebooting}); err != nil {
		return err
	}
	return after(effect)
}

// after is how Run ends for an effect.
func after(e Effect) error {
	switch e {
	case Restart:
		return ErrRestart
	case Reboot:
		return ErrReboot
	}
	return nil
}

// prove lets what is on trial show that it does its work, and keeps it or goes
// back.
func (m *Machine) prove(ctx context.Context, j *journal) error {
	if j.State != checking {
		if err := m.advance(ctx, j, Progress{State: checking}); err != nil {
			return err
		}
	}
	// A commit is final: what kept it from being told is no reason to judge again.
	if t, err := m.running(ctx, j.Offer.class(), j.Offer.component()); err == nil && t.Version == j.Offer.Version && !t.Trial && t.Failed == "" {
		return m.end(ctx, j, Progress{State: succeeded})
	}
	// Each start gets its time: what the clock says after a boot is not certain.
	limit := m.o.CheckFor
	if d := j.Offer.Steps[checking]; d > 0 {
		limit = min(limit, d)
	}
	left, _ := m.limit(j)
	reason, why := m.checks(ctx, j, limit)
	if ctx.Err() != nil {
		return ctx.Err() // stopped, not failed: whoever counts starts counts this one
	}
	if why == nil {
		err := m.commit(ctx, j)
		if err == nil || left > 0 || errors.Is(err, ErrRestart) || errors.Is(err, ErrReboot) {
			return err
		}
		reason, why = "unproven", err
	}
	if j.Offer.class() == trust.ClassOS && j.Reboots < maxReboots && left > m.o.CheckFor && m.lasts(ctx, j) {
		j.Reboots++
		m.o.Step("reboot again")
		if err := m.keep(j); err != nil {
			return err
		}
		m.alarm(ctx, "update.reboot", "warn", j.Offer.Execution, why.Error(), map[string]string{"version": j.Offer.Version, "reason": reason, "reboot": fmt.Sprint(j.Reboots)})
		return ErrReboot
	}
	return m.giveUp(ctx, j, Progress{State: rolledBack, Reason: reason, Text: why.Error()})
}

// lasting is a Handler of which a trial may not outlive a restart of the box.
type lasting interface {
	Lasts(ctx context.Context) bool
}

// lasts reports whether what is on trial would be started once more; else it is
// taken back now, as long as somebody knows why.
func (m *Machine) lasts(ctx context.Context, j *journal) bool {
	h, ok := m.o.Handlers[j.Offer.class()].(lasting)
	return !ok || h.Lasts(ctx)
}

// commit keeps what has proved itself, and says so only when it is what runs.
func (m *Machine) commit(ctx context.Context, j *journal) error {
	o := *j.Offer
	t, err := m.running(ctx, o.class(), o.component())
	if err != nil {
		return err
	}
	if t.Version != o.Version {
		return m.giveUp(ctx, j, m.lost(j, fmt.Sprintf("%s does not run, but %s", o.Version, cmp.Or(t.Version, "nothing"))))
	}
	m.o.Step("commit")
	effect, err := m.o.Handlers[o.class()].Move(ctx, j.job(), Keep)
	if err != nil {
		return fmt.Errorf("keep %s: %w", o.Version, err)
	}
	if t, err = m.running(ctx, o.class(), o.component()); err != nil {
		return err
	}
	if t.Version != o.Version || t.Trial {
		return fmt.Errorf("%s was to be kept, and %s runs, on trial: %v", o.Version, cmp.Or(t.Version, "nothing"), t.Trial)
	}
	return cmp.Or(m.end(ctx, j, Progress{State: succeeded}), after(effect))
}

// checks runs the checks until each has held, or the time is up.
func (m *Machine) checks(ctx context.Context, j *journal, limit time.Duration) (reason string, why error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	class := j.Offer.class()
	for _, c := range m.o.Checks {
		if len(c.Classes) > 0 && !slices.Contains(c.Classes, class) || c.Of != "" && j.Baseline != nil && j.Baseline[c.Of] != healthy {
			continue
		}
		if err := until(ctx, c.Run); err != nil {
			return "unproven", fmt.Errorf("%s within %s: %w", c.Name, limit.Round(time.Millisecond), err)
		}
	}
	h := m.o.Handlers[class]
	if err := until(ctx, func(ctx context.Context) error { _, err := h.Move(ctx, j.job(), Prove); return err }); err != nil {
		return "unhealthy", err
	}
	proved := time.Now() // what was seen before says nothing of what runs now
	if err := until(ctx, func(ctx context.Context) error { return m.asBefore(ctx, j, proved) }); err != nil {
		return "unhealthy", err
	}
	return "", nil
}

// until asks until there is no error, a final one, or no time left.
func until(ctx context.Context, f func(context.Context) error) error {
	pause := lookPause
	for {
		err := f(ctx)
		if _, final := errors.AsType[*refusal](err); err == nil || final {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
		pause = min(2*pause, lookMax)
	}
}

// asBefore compares what is found after a time with the baseline: what was well
// must be. What was broken is not held against the update.
func (m *Machine) asBefore(ctx context.Context, j *journal, since time.Time) error {
	if m.o.Health == nil || len(j.Baseline) == 0 {
		return nil
	}
	now, err := m.o.Health(ctx, since)
	if err != nil {
		return err
	}
	for _, what := range slices.Sorted(maps.Keys(j.Baseline)) {
		if slices.ContainsFunc(m.o.Checks, func(c Check) bool { return c.Of == what }) {
			continue // that check decides, for the classes that it judges
		}
		if j.Baseline[what] == healthy && now[what] != healthy {
			return fmt.Errorf("%s was OK before the update and is %s", what, cmp.Or(now[what], "gone"))
		}
	}
	return nil
}

// lost is the end of a trial that others ended.
func (m *Machine) lost(j *journal, text string) Progress {
	reason := "unproven"
	switch j.Offer.class() {
	case trust.ClassAgent:
		reason = "crashed"
	case trust.ClassOS:
		reason = "boot"
	}
	return Progress{State: rolledBack, Reason: reason, Text: text}
}

// giveUp ends the trial: p is how that will be reported.
func (m *Machine) giveUp(ctx context.Context, j *journal, p Progress) error {
	if j.Tries == 0 && j.Part == partTry {
		return m.end(ctx, j, p) // nothing was touched
	}
	m.o.Step("give up")
	m.alarm(ctx, "update.fallback", "alarm", j.Offer.Execution, p.Text, map[string]string{"component": j.Offer.component(), "version": j.Offer.Version, "reason": p.Reason})
	j.Why, j.Part, j.Backs = &p, partBack, 0
	if err := m.keep(j); err != nil {
		return err
	}
	return m.back(ctx, j)
}

// alarm records what leads back to what ran before. A trail without room, which
// a broken system may be the reason of, must not keep the box on it; the end is
// recorded in any case.
func (m *Machine) alarm(ctx context.Context, kind, severity, execution, text string, detail map[string]string) {
	m.o.Log.Warn("an update did not prove itself", slog.String("kind", kind), slog.String("execution", execution), slog.String("text", text))
	if err := m.o.Record(ctx, kind, severity, execution, detail); err != nil {
		m.o.Log.Error("a fallback is not on record", slog.String("kind", kind), slog.String("execution", execution), slog.Any("err", err))
	}
}

// back has what ran before run again, and ends the execution when it does.
func (m *Machine) back(ctx context.Context, j *journal) error {
	class := j.Offer.class()
	if j.Backs >= maxTries {
		if t, err := m.running(ctx, class, j.Offer.component()); err == nil && !t.Trial && (t.Version != j.Offer.Version || t.Version == j.From) {
			return m.end(ctx, j, *j.Why) // done, and only not on record yet
		}
		return m.stuck(ctx, j, fmt.Errorf("it runs on after %d tries", j.Backs))
	}
	j.Backs++
	if err := m.keep(j); err != nil {
		return err
	}
	m.o.Step("back")
	effect, err := m.o.Handlers[class].Move(ctx, j.job(), Back)
	if err != nil {
		return fmt.Errorf("go back from %s: %w", j.Offer.Version, err)
	}
	if effect != None {
		return after(effect)
	}
	t, err := m.running(ctx, class, j.Offer.component())
	if err != nil {
		return err
	}
	if t.Version == j.Offer.Version && t.Version != j.From {
		return fmt.Errorf("%s runs on, though it was taken back", t.Version)
	}
	return m.end(ctx, j, *j.Why)
}

// stuck ends an execution that cannot be taken back: what runs is what was to
// be undone, and that is what is said.
func (m *Machine) stuck(ctx context.Context, j *journal, err error) error {
	return m.end(ctx, j, Progress{
		State: failed, Reason: cmp.Or(j.Why.Reason, "install"),
		Text: fmt.Sprintf("%s; it could not be taken back: %v", j.Why.Text, err),
	})
}

// settle finds out, at the start, what became of what was in work. What runs is
// what counts, whatever the journal hoped for.
func (m *Machine) settle(ctx context.Context, j *journal) error {
	m.look(ctx)
	if j.Offer == nil {
		return m.adopt(ctx, j)
	}
	if err := m.keep(j); err != nil {
		return err
	}
	if j.Last.State != "" { // perhaps not told before the power went
		if err := m.o.Report(ctx, j.Last); err != nil {
			m.o.Log.Warn("where the update stands is told later", slog.Any("err", err))
		}
	}
	o := *j.Offer
	t, err := m.await(ctx, o)
	if r, ok := errors.AsType[*refusal](err); ok {
		return m.end(ctx, j, Progress{State: r.state, Reason: r.reason, Text: r.Error()})
	}
	if err != nil {
		return err
	}
	switch {
	case j.Part == partBack: // goes on
		return nil
	case t.Failed != "" && (j.Part == partFetch || j.Part == partStage):
		return m.tidy(ctx, o, t)
	case t.Failed != "":
		return m.over(j, m.lost(j, t.Failed))
	case t.Version == o.Version && t.Trial:
		j.Part = partProve
		// The launcher counts the starts of an agent on trial. Those of the agent on
		// a system on trial nobody does, and the boot loader takes it for well.
		if j.Starts++; o.class() == trust.ClassOS && j.Starts > maxStarts+j.Reboots {
			p := Progress{State: rolledBack, Reason: "crashed", Text: fmt.Sprintf("the agent was started %d times on it and never came to judge it", j.Starts-1)}
			m.alarm(ctx, "update.fallback", "alarm", o.Execution, p.Text, map[string]string{"component": o.component(), "version": o.Version, "reason": p.Reason})
			return m.over(j, p)
		}
		return m.keep(j)
	case j.Part == partFetch || j.Part == partStage:
		return nil
	case t.Version == o.Version: // kept, and cut before the journal knew
		return m.end(ctx, j, Progress{State: succeeded})
	case t.Version != "" && older(o.Version, t.Version): // e.g. an image came with it
		return m.over(j, Progress{State: failed, Reason: "superseded", Text: t.Version + " runs, which is newer"})
	case j.Part == partProve:
		return m.over(j, m.lost(j, t.Version+" runs again"))
	case j.Target == nil: // an agent of before got so far: from the beginning
		j.Part = partFetch
		return m.keep(j)
	}
	return nil
}

// tidy puts in order what an earlier trial left, which ended without us and
// after the journal had closed it: a boot loader that falls back weeks later.
func (m *Machine) tidy(ctx context.Context, o Offer, t Truth) error {
	m.alarm(ctx, "update.fallback", "alarm", t.Execution, t.Failed, map[string]string{"component": o.component(), "reason": m.lost(&journal{Offer: &o}, "").Reason, "version": t.Version})
	effect, err := m.o.Handlers[o.class()].Move(ctx, Job{Execution: t.Execution, Component: o.component()}, Back)
	if err != nil {
		m.o.Log.Error("what an earlier trial left", slog.String("component", o.component()), slog.Any("err", err))
	}
	return after(effect)
}

// over notes that the trial is over, as p; what it left is still to be put in
// order.
func (m *Machine) over(j *journal, p Progress) error {
	j.Why, j.Part, j.Backs = &p, partBack, 0
	return m.keep(j)
}

// await asks what runs until there is an answer.
func (m *Machine) await(ctx context.Context, o Offer) (Truth, error) {
	pause := pauseMin
	for {
		t, err := m.running(ctx, o.class(), o.component())
		if _, final := errors.AsType[*refusal](err); err == nil || final {
			return t, err
		}
		m.o.Log.Warn("what runs is not known yet", slog.Any("err", err))
		select {
		case <-ctx.Done():
			return t, ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, pauseMax)
	}
}

// adopt takes on a trial that the journal knows nothing of: it was lost.
// Whatever runs has to prove itself, and what was given up is put in order.
func (m *Machine) adopt(ctx context.Context, j *journal) error {
	for _, r := range m.Truth() {
		if !r.Trial && r.Failed == "" {
			continue
		}
		j.begin(queued{Offer: Offer{
			Execution: cmp.Or(r.Execution, "unknown"), Class: r.Class, Version: r.Version, Target: r.Name + "/" + r.Version, NotAfter: time.Now().Add(checkFor),
		}})
		j.Part, j.Tries = partProve, 1
		if r.Failed != "" {
			j.From = r.Version // what failed has no name any more
			return m.over(j, m.lost(j, r.Failed))
		}
		return m.keep(j)
	}
	return nil
}
