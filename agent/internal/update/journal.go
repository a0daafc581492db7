package update

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/tillward/tillward/provisioning/trust"
)

// Parts of the way, as the journal has them. A state is for the service; a part
// says what the next start has to go on with.
const (
	partFetch = ""      // up to STAGED; may be given up
	partStage = "stage" // writing beside what runs
	partTry   = "try"   // making it the one that runs
	partProve = "prove" // it runs on trial
	partBack  = "back"  // what ran before it is to run again
)

// journal is journal.json: the offer in work, those that wait for it, and how
// the last ones ended. Agents of before know some of the names, and are gone back
// to: names stay.
type journal struct {
	Offer    *Offer            `json:"offer,omitempty"`
	State    string            `json:"state,omitempty"` // of Offer
	From     string            `json:"from,omitempty"`
	Part     string            `json:"part,omitempty"`
	Target   *trust.Target     `json:"target,omitempty"`   // as TUF vouched for it
	Entered  time.Time         `json:"entered,omitzero"`   // State
	Last     Progress          `json:"last,omitzero"`      // as reported
	Baseline map[string]string `json:"baseline,omitempty"` // how everything was before the trial
	Tries    int               `json:"tries,omitempty"`
	Reboots  int               `json:"reboots,omitempty"` // that the trial asked for by itself
	Starts   int               `json:"starts,omitempty"`  // of the agent, since a trial of the system began
	Backs    int               `json:"backs,omitempty"`
	Why      *Progress         `json:"why,omitempty"` // the trial is over: how that will be reported
	Queue    []queued          `json:"queue,omitempty"`
	Ended    []Progress        `json:"ended,omitempty"`
	Untold   bool              `json:"untold,omitempty"` // the last of Ended may not have been reported

	file    string // the content, since this start
	streams bool   // it is fetched as it is installed
}

// queued is an offer of another component, which waits its turn.
type queued struct {
	Offer Offer    `json:"offer"`
	Last  Progress `json:"last"`
}

const (
	remembered = 64 // ended executions in the journal
	maxQueue   = 8
)

func (m *Machine) journal() journal {
	var j journal
	if err := load(filepath.Join(m.o.Dir, "journal.json"), &j); err != nil && !errors.Is(err, os.ErrNotExist) {
		m.o.Log.Error("update journal is unreadable and begins anew", slog.Any("err", err))
		return journal{}
	}
	if j.Offer != nil && j.Part == partFetch && slices.Contains([]string{installed, rebooting, checking}, j.State) {
		j.Part = partTry // an agent of before wrote it
	}
	return j
}

func (m *Machine) keep(j *journal) error {
	m.mu.Lock()
	m.current, m.queued, m.before, m.ended = "", nil, j.Baseline, slices.Clone(j.Ended)
	for _, q := range j.Queue {
		m.queued = append(m.queued, q.Offer.Execution)
	}
	if j.Offer != nil {
		m.current = j.Offer.Execution
	}
	m.mu.Unlock()
	return save(filepath.Join(m.o.Dir, "journal.json"), j)
}

// begin makes an offer the one in work.
func (j *journal) begin(q queued) {
	*j = journal{
		Offer: &q.Offer, State: q.Last.State, From: q.Last.From, Last: q.Last, Entered: time.Now(), Queue: j.Queue, Ended: j.Ended, Untold: j.Untold,
	}
}

// enter puts the state that the execution is in into the journal, with the next
// number.
func (j *journal) enter(p Progress) {
	if p.State != j.State {
		j.Entered = time.Now()
	}
	p.Execution, p.Component, p.Attempt, p.From, p.To = j.Offer.Execution, j.Offer.component(), j.Offer.Attempt, j.From, j.Offer.Version
	p.Step, p.Medium = j.Last.Step+1, j.Offer.Medium
	if p.Bytes == (Bytes{}) {
		p.Bytes = j.Last.Bytes
	}
	j.State, j.Last = p.State, p
}

// advance journals and reports a state that the execution enters.
func (m *Machine) advance(ctx context.Context, j *journal, p Progress) error {
	ctx = context.WithoutCancel(ctx) // an offer that comes in must not tear this
	m.o.Step("state " + p.State)
	if p.State != j.State && (p.State == staged || p.State == installed || p.State == checking) {
		if err := m.o.Record(ctx, "update."+strings.ToLower(p.State), "info", j.Offer.Execution, map[string]string{"version": j.Offer.Version}); err != nil {
			return fmt.Errorf("audit: %w", err)
		}
	}
	j.enter(p)
	if err := m.keep(j); err != nil {
		return err
	}
	m.o.Step("report " + p.State)
	if err := m.o.Report(ctx, j.Last); err != nil {
		m.o.Log.Warn("a state is not told; the next one tells more", slog.String("state", p.State), slog.Any("err", err))
	}
	return nil
}

// end closes the execution: audit first, then the journal, then the report,
// so that what the service hears is on record here.
func (m *Machine) end(ctx context.Context, j *journal, p Progress) error {
	ctx = context.WithoutCancel(ctx)
	if p.State == succeeded || p.State == already {
		if err := m.raise(*j.Offer); err != nil {
			return err
		}
	}
	if t := j.Target; t != nil {
		m.o.Content.Drop(*t)
	}
	o := *j.Offer
	last := *j // what cannot be recorded is not said, either
	last.enter(p)
	p = last.Last
	if err := m.record(ctx, p); err != nil {
		return err
	}
	m.o.Step("journal " + p.State)
	*j = journal{Queue: j.Queue, Ended: j.Ended, Untold: true}
	j.remember(p)
	if err := m.keep(j); err != nil {
		return err
	}
	m.look(ctx)
	m.o.Log.Info("update ended", slog.String("component", o.component()), slog.String("state", p.State), slog.String("reason", p.Reason), slog.String("text", p.Text), slog.String("to", p.To))
	if err := m.tellEnd(ctx, j); err != nil {
		m.o.Log.Warn("an end is told later", slog.Any("err", err))
	}
	return nil
}

// tellEnd reports the last end, unless that is known to be done.
func (m *Machine) tellEnd(ctx context.Context, j *journal) error {
	if !j.Untold || len(j.Ended) == 0 {
		return nil
	}
	if err := m.o.Report(ctx, j.Ended[len(j.Ended)-1]); err != nil {
		return err
	}
	m.o.Step("told")
	j.Untold = false
	return m.keep(j)
}

// record puts an end into the audit trail.
func (m *Machine) record(ctx context.Context, p Progress) error {
	severity := "info"
	switch {
	case p.State == failed && (p.Reason == "superseded" || p.Reason == "canceled"): // on purpose
	case p.State != succeeded && p.State != already:
		severity = "alarm"
	}
	detail := map[string]string{"state": p.State, "from": p.From, "to": p.To}
	if p.Reason != "" {
		detail["reason"] = p.Reason
	}
	kind := "update." + strings.ToLower(strings.ReplaceAll(p.State, "_", "-"))
	if err := m.o.Record(ctx, kind, severity, p.Execution, detail); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}

// remember forgets the oldest for it, and what was taken back last of all: who
// sends other offers in between must not get a release tried for ever.
func (j *journal) remember(p Progress) {
	j.Ended = append(j.Ended, p)
	for len(j.Ended) > remembered {
		oldest := slices.IndexFunc(j.Ended[:remembered], func(p Progress) bool { return p.State != rolledBack })
		j.Ended = slices.Delete(j.Ended, max(oldest, 0), max(oldest, 0)+1)
	}
}

// known returns how an execution ended, when this attempt of it or a later one
// did.
func (j *journal) known(o Offer) (Progress, bool) {
	for _, p := range slices.Backward(j.Ended) {
		if p.Execution == o.Execution && p.Attempt >= o.Attempt {
			return p, true
		}
	}
	return Progress{}, false
}

// sort takes the offers that have come, and makes the next the one in work.
func (m *Machine) sort(ctx context.Context, j *journal) error {
	if err := m.open(ctx, j); err != nil {
		return err
	}
	if j.Offer != nil || len(j.Queue) == 0 {
		return nil
	}
	next := j.Queue[0]
	j.Queue = slices.Clone(j.Queue[1:])
	j.begin(next)
	return m.keep(j)
}

// open takes the offers that have come. One that cannot be put on record is
// looked at again.
func (m *Machine) open(ctx context.Context, j *journal) error {
	for {
		m.mu.Lock()
		if len(m.mail) == 0 {
			m.mu.Unlock()
			return nil
		}
		o := m.mail[0]
		m.mu.Unlock()
		if err := m.take(ctx, j, o); err != nil {
			return err
		}
		m.mu.Lock()
		// A later word on the same may have come meanwhile.
		m.mail = slices.DeleteFunc(m.mail, func(other Offer) bool { return reflect.DeepEqual(other, o) })
		m.mu.Unlock()
	}
}

// take finds out what an offer means for what is in work and what waits.
func (m *Machine) take(ctx context.Context, j *journal, o Offer) error {
	if p, ok := j.known(o); ok {
		return m.o.Report(ctx, p) // redelivered: told again, never run again
	}
	if c := j.Offer; c != nil && c.Execution == o.Execution && c.Attempt >= o.Attempt {
		if c.Attempt == o.Attempt && j.Part == partFetch && time.Now().After(o.NotAfter) && time.Now().Before(c.NotAfter) {
			return m.end(ctx, j, Progress{State: failed, Reason: "canceled", Text: "the service took the offer back"})
		}
		return m.o.Report(ctx, j.Last) // in work
	}
	for i, q := range j.Queue {
		switch {
		case q.Offer.Execution == o.Execution && q.Offer.Attempt >= o.Attempt && !time.Now().After(o.NotAfter):
			return m.o.Report(ctx, q.Last)
		case q.Offer.Execution == o.Execution || q.Offer.component() == o.component():
			j.Queue = slices.Delete(slices.Clone(j.Queue), i, i+1)
			if err := m.drop(ctx, j, q); err != nil {
				return err
			}
			return m.take(ctx, j, o) // known now, when it was taken back
		}
	}
	if c := j.Offer; c != nil && j.Part == partFetch && (c.component() == o.component() || c.Execution == o.Execution) {
		m.o.Log.Warn("offer replaced by a newer one", slog.String("execution", c.Execution))
		if err := m.end(ctx, j, Progress{State: failed, Reason: "superseded", Text: "another offer came"}); err != nil {
			return err
		}
	}
	return m.queue(ctx, j, o)
}

// drop ends an offer that was waiting its turn.
func (m *Machine) drop(ctx context.Context, j *journal, q queued) error {
	p := q.Last
	p.State, p.Step, p.Reason, p.Text = failed, p.Step+1, "superseded", "another offer came"
	if err := m.record(ctx, p); err != nil {
		return err
	}
	j.remember(p)
	if err := m.keep(j); err != nil {
		return err
	}
	return m.o.Report(ctx, p)
}

// queue puts an offer on record as received.
func (m *Machine) queue(ctx context.Context, j *journal, o Offer) error {
	q := queued{Offer: o, Last: Progress{Execution: o.Execution, Component: o.component(), Attempt: o.Attempt, Step: 1, State: offered, To: o.Version, Medium: o.Medium}}
	if t, err := m.running(ctx, o.class(), o.component()); err == nil { // else it is asked again before anything is done
		q.Last.From = t.Version
	}
	if j.Offer != nil || len(j.Queue) > 0 {
		q.Last.State, q.Last.Reason, q.Last.Text = waiting, "busy", "another update is in work"
	}
	if len(j.Queue) >= maxQueue {
		q.Last.State, q.Last.Reason, q.Last.Text = failed, "busy", "too many offers wait already"
		if err := m.record(ctx, q.Last); err != nil {
			return err
		}
		j.remember(q.Last)
	} else {
		if err := m.o.Record(ctx, "update.offered", "info", o.Execution, map[string]string{"version": o.Version, "target": o.Target}); err != nil {
			return fmt.Errorf("audit: %w", err)
		}
		j.Queue = append(slices.Clone(j.Queue), q)
	}
	m.o.Step("journal offer")
	if err := m.keep(j); err != nil {
		return err
	}
	return m.o.Report(ctx, q.Last)
}
