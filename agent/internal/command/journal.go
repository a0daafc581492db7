package command

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	"github.com/tillward/tillward/cloud/wire"
)

// Journal keeps values and results through power cuts; the spool does.
type Journal interface {
	Load(ctx context.Context, key string) ([]byte, error)
	// Save stores a value and, when compose is not nil, the message it makes,
	// in one step.
	Save(ctx context.Context, key string, value []byte, channel string, compose func() ([]byte, error)) error
	Keys(ctx context.Context, prefix string) ([]string, error)
	Drop(ctx context.Context, keys ...string) error
}

const (
	prefix   = "command/"
	floorKey = "command.floor" // counters up to it have been dropped from the journal
	remember = 128             // commands the journal keeps
)

// record is one command in the journal.
type record struct {
	Order   wire.CommandOrder
	Running bool               `json:",omitempty"` // it has begun, and how it ended is not known
	Unsent  bool               `json:",omitempty"` // the result could not be queued
	Result  *wire.ResultReport `json:",omitempty"` // without its head
}

func key(counter uint64) string { return fmt.Sprintf("%s%020d", prefix, counter) }

// look returns the command that used the counter, and the floor.
func (r *Runner) look(ctx context.Context, counter uint64) (old *record, floor uint64, err error) {
	b, err := r.o.Journal.Load(ctx, floorKey)
	if err != nil {
		return nil, 0, err
	}
	if b != nil {
		if floor, err = strconv.ParseUint(string(b), 10, 64); err != nil {
			return nil, 0, fmt.Errorf("floor of the command journal: %w", err)
		}
	}
	old, err = r.load(ctx, key(counter))
	return old, floor, err
}

func (r *Runner) load(ctx context.Context, key string) (*record, error) {
	return load(ctx, r.o.Journal, key)
}

// Succeeded returns the newest command with this verb whose success is on its
// way to the service; nil when there is none.
func Succeeded(ctx context.Context, j Journal, verb string) (*wire.CommandOrder, error) {
	keys, err := j.Keys(ctx, prefix)
	if err != nil {
		return nil, err
	}
	for _, k := range slices.Backward(keys) {
		rec, err := load(ctx, j, k)
		if err != nil {
			continue // nobody can say what it was; settle logs it
		}
		if rec != nil && rec.Order.Verb == verb && rec.Result != nil && rec.Result.State == succeeded {
			return &rec.Order, nil
		}
	}
	return nil, nil
}

func load(ctx context.Context, j Journal, key string) (*record, error) {
	b, err := j.Load(ctx, key)
	if err != nil || b == nil {
		return nil, err
	}
	var rec record
	if err := json.Unmarshal(b, &rec); err != nil {
		return nil, fmt.Errorf("journal entry %s: %w", key, err)
	}
	return &rec, nil
}

func (r *Runner) save(ctx context.Context, rec record) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return r.o.Journal.Save(ctx, key(rec.Order.Counter), b, "", nil)
}

// close stores how a command ended and queues its result, in one step. When
// the queue has no room, the end alone is stored and the result follows.
func (r *Runner) close(ctx context.Context, rec record, out outcome) error {
	result := r.report(rec.Order, out)
	rec.Running, rec.Result = false, &result
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	if err := r.o.Journal.Save(ctx, key(rec.Order.Counter), b, string(wire.Result), r.compose(result)); err != nil {
		rec.Unsent = true
		if err := r.save(ctx, rec); err != nil {
			return err
		}
		r.owe(func(ctx context.Context) error { return r.again(ctx, rec) }, err)
	}
	if !r.o.Verbs[rec.Order.Verb].Final || out.state != succeeded {
		r.audit(ctx, rec, out)
	}
	if err := r.prune(ctx); err != nil {
		r.o.Log.Warn("old commands stay in the journal until the next one", "error", err)
	}
	return nil
}

// audit records how a command ended.
func (r *Runner) audit(ctx context.Context, rec record, out outcome) {
	kind, severity := "command.done", "info"
	if out.state != succeeded {
		kind, severity = "command."+lower(out.state), "warn"
	}
	detail := r.detail(rec.Order)
	if out.text != "" {
		r.o.Log.Warn("command ended", "command", rec.Order.ID, "state", out.state, "reason", out.reason, "text", r.o.Text(out.text))
	}
	if out.reason != "" {
		detail["reason"] = out.reason
	}
	if err := r.o.Record(ctx, kind, severity, rec.Order.ID, detail); err != nil {
		r.o.Log.Error("command not audited", "command", rec.Order.ID, "error", err)
	}
}

func lower(state string) string {
	return map[string]string{failed: "failed", rejected: "rejected", expired: "expired"}[state]
}

func (r *Runner) compose(result wire.ResultReport) func() ([]byte, error) {
	return func() ([]byte, error) {
		result.Head = r.o.Next()
		return wire.Encode(&result)
	}
}

// send queues a result that is not of the journal.
func (r *Runner) send(ctx context.Context, result wire.ResultReport) error {
	return r.o.Journal.Save(ctx, "command.refused", []byte(result.ID), string(wire.Result), r.compose(result))
}

// again answers a command that came before: with its result, when it has one.
func (r *Runner) again(ctx context.Context, rec record) error {
	if rec.Result == nil {
		return nil // settle has not run or it runs now: the result will come
	}
	rec.Unsent = false
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return r.o.Journal.Save(ctx, key(rec.Order.Counter), b, string(wire.Result), r.compose(*rec.Result))
}

// settle closes what a crash left open: an idempotent verb runs again if it is
// still valid, any other has failed, whether it ran or not.
func (r *Runner) settle(ctx context.Context) error {
	keys, err := r.o.Journal.Keys(ctx, prefix)
	if err != nil {
		return err
	}
	for _, k := range keys {
		rec, err := r.load(ctx, k)
		if err != nil {
			// One entry that cannot be read must not stop all commands; its counter stays used.
			r.o.Log.Error("journal entry cannot be read", "key", k, "error", err)
			continue
		}
		switch {
		case rec == nil:
		case rec.Running && r.o.Verbs[rec.Order.Verb].Idempotent:
			err = r.decide(ctx, rec.Order)
		case rec.Running:
			err = r.close(ctx, *rec, outcome{failed, "interrupted", "the agent ended while it ran; whether it had its effect is not known", nil})
		case rec.Unsent:
			err = r.again(ctx, *rec)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// prune drops the oldest commands. The floor moves first: a counter is refused
// as used before it can be forgotten.
func (r *Runner) prune(ctx context.Context) error {
	keys, err := r.o.Journal.Keys(ctx, prefix)
	if err != nil || len(keys) <= remember {
		return err
	}
	old := keys[:len(keys)-remember]
	counter, err := strconv.ParseUint(old[len(old)-1][len(prefix):], 10, 64)
	if err != nil {
		return fmt.Errorf("journal key: %w", err)
	}
	if err := r.o.Journal.Save(ctx, floorKey, strconv.AppendUint(nil, counter, 10), "", nil); err != nil {
		return err
	}
	return r.o.Journal.Drop(ctx, old...)
}
