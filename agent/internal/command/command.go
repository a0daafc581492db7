// Package command does what a signed order asks of the device, once.
//
// It owns the way from a received order to its result: verify, look it up in
// the journal, run the verb's handler with a deadline, store the result. It
// promises that nothing unsigned, expired, replayed or meant for another device
// runs; that an order is in the journal before it runs, so that a crash in the
// middle never makes it run twice; that the result of an order which comes
// again is sent again; and that every step is audited. It knows no verb: the
// table of handlers is handed in.
package command

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tillward/tillward/cloud/wire"
)

// Handler does what a verb says. The output goes to the operator.
type Handler func(ctx context.Context, args map[string]string) (output []byte, err error)

// Verb is one row of the table of handlers.
type Verb struct {
	Run        Handler
	Timeout    time.Duration             // 1 min when zero
	Idempotent bool                      // may run again when a crash left open whether it ran
	Risky      bool                      // must not run when it cannot be audited
	Final      bool                      // its success is the last that is heard of this device, and on record by then: nothing is audited after it
	After      func(ctx context.Context) // runs when the result is stored: reboot, restart
}

// Options are what a Runner stands on.
type Options struct {
	Tenant, Device string
	// Verify checks a signature over kind and payload (provisioning/trust).
	Verify  func(kind string, payload []byte, keyID string, signature []byte) error
	Journal Journal
	// Record adds to the audit trail (agent/internal/audit).
	Record func(ctx context.Context, kind, severity, subject string, detail map[string]string) error
	Next   func() wire.Head // numbers results
	Verbs  map[string]Verb
	// Text and Output are the last to see what a result says; nil: it is told as it is.
	Text   func(string) string
	Output func([]byte) []byte
	Now    func() time.Time // the box's wall clock; nil: the system's
	Full   func() bool      // whether there is hardly room left to audit; nil means never
	Log    *slog.Logger
}

// States of a command in its result, as fleet.CommandState has them.
const (
	succeeded = "SUCCEEDED"
	failed    = "FAILED"
	rejected  = "REJECTED"
	expired   = "EXPIRED"
)

const (
	queued       = 16              // orders that may wait
	grace        = 2 * time.Second // a handler has after its deadline to give up
	refusalsHour = 30              // refusals that are audited in an hour; more would let a flood fill the spool
	owedPause    = 5 * time.Second // between attempts at what the journal did not take
)

// Runner runs orders one after the other.
type Runner struct {
	o     Options
	queue chan []byte
	owed  []func(context.Context) error // what the journal did not take: a full medium gets room again, and the connection stays

	refusals   int // in the hour since refusedAt
	suppressed int
	refusedAt  time.Time
}

// New makes a runner; Run starts it.
func New(o Options) *Runner {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Full == nil {
		o.Full = func() bool { return false }
	}
	if o.Text == nil {
		o.Text = func(s string) string { return s }
	}
	if o.Output == nil {
		o.Output = func(b []byte) []byte { return b }
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Runner{o: o, queue: make(chan []byte, queued)}
}

// Submit hands over an encoded wire.Order. It never blocks; false means that
// too many wait and the order has not been taken.
func (r *Runner) Submit(payload []byte) bool {
	select {
	case r.queue <- slices.Clone(payload):
		return true
	default:
		return false
	}
}

// Run settles what a crash left open, then runs orders until ctx ends. An
// order under way is given its grace to end and its result is stored.
func (r *Runner) Run(ctx context.Context) error {
	if err := r.settle(ctx); err != nil {
		return fmt.Errorf("settle commands of the last run: %w", err)
	}
	for {
		var later <-chan time.Time
		if len(r.owed) > 0 {
			later = time.After(owedPause)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case payload := <-r.queue:
			do := func(ctx context.Context) error { return r.handle(ctx, payload) }
			if err := do(ctx); err != nil {
				r.owe(do, err)
			}
		case <-later:
			owed := r.owed
			r.owed = nil
			for _, do := range owed {
				if do(ctx) != nil {
					r.owed = append(r.owed, do)
				}
			}
		}
	}
}

// owe puts off what the journal did not take. What comes on top of much is the
// service's to send again, at the next connection.
func (r *Runner) owe(do func(context.Context) error, err error) {
	if len(r.owed) >= queued {
		r.o.Log.Error("command could not be journaled; the service sends it again", "error", err)
		return
	}
	r.o.Log.Error("command could not be journaled; it is tried again", "error", err)
	r.owed = append(r.owed, do)
}

// handle takes one order. Its error means that the order has left no trace, and
// may be handled again.
func (r *Runner) handle(ctx context.Context, payload []byte) error {
	order, err := wire.Decode[wire.Order](payload)
	if err != nil {
		return r.refuse(ctx, wire.CommandOrder{}, "malformed", err)
	}
	if order.Kind != wire.OrderCommand {
		return r.refuse(ctx, wire.CommandOrder{}, "kind", fmt.Errorf("order of kind %s where a command is expected", order.Kind))
	}
	if err := r.o.Verify(order.Kind, order.Payload, order.KeyID, order.Signature); err != nil {
		claimed, _ := wire.Decode[wire.CommandOrder](order.Payload)
		return r.refuse(ctx, claimed, "signature", err)
	}
	c, err := wire.Decode[wire.CommandOrder](order.Payload)
	if err != nil {
		return r.refuse(ctx, wire.CommandOrder{}, "malformed", err)
	}
	if c.Tenant != r.o.Tenant || c.Device != r.o.Device {
		return r.refuse(ctx, c, "device", fmt.Errorf("command for device %s of tenant %s", c.Device, c.Tenant))
	}
	old, floor, err := r.look(ctx, c.Counter)
	switch {
	case err != nil:
		return err
	case old != nil && old.Order.ID == c.ID:
		return r.again(ctx, *old)
	case old != nil || c.Counter <= floor:
		return r.refuse(ctx, c, "replay", fmt.Errorf("counter %d has been used", c.Counter))
	}
	return r.decide(ctx, c)
}

// decide runs a command that is genuine and new, or says why not. Either way
// it is in the journal from here on.
func (r *Runner) decide(ctx context.Context, c wire.CommandOrder) error {
	verb, known := r.o.Verbs[c.Verb]
	switch {
	case r.o.Now().UnixMilli() > c.NotAfter:
		return r.close(ctx, record{Order: c}, outcome{expired, "expired", "it was valid until " + time.UnixMilli(c.NotAfter).UTC().Format(time.RFC3339), nil})
	case !known:
		return r.close(ctx, record{Order: c}, outcome{rejected, "verb", "this agent knows " + strings.Join(slices.Sorted(maps.Keys(r.o.Verbs)), ", "), nil})
	case verb.Risky && r.o.Full():
		return r.close(ctx, record{Order: c}, unaudited)
	}
	if err := r.o.Record(ctx, "command.start", "info", c.ID, r.detail(c)); err != nil {
		r.o.Log.Error("command not audited", "error", err)
		if verb.Risky {
			return r.close(ctx, record{Order: c}, unaudited)
		}
	}
	return r.run(ctx, c, verb)
}

var unaudited = outcome{rejected, "audit-full", "the audit trail is full: connect the device until it is stored", nil}

// outcome is the end of a command.
type outcome struct {
	state, reason, text string
	output              []byte
}

func (r *Runner) run(ctx context.Context, c wire.CommandOrder, verb Verb) error {
	if err := r.save(ctx, record{Order: c, Running: true}); err != nil {
		return err
	}
	out := perform(ctx, verb, c.Args)
	if verb.Idempotent && ctx.Err() != nil && out.state != succeeded {
		return nil // it stays open, and runs again at the next start
	}
	end := func(ctx context.Context) error {
		if err := r.close(ctx, record{Order: c}, out); err != nil {
			return err
		}
		if verb.After != nil && out.state == succeeded {
			verb.After(ctx)
		}
		return nil
	}
	if err := end(context.WithoutCancel(ctx)); err != nil { // what has run is told
		r.owe(end, err)
	}
	return nil
}

// perform runs the handler with its deadline. A handler that does not heed it
// is left behind.
func perform(ctx context.Context, verb Verb, args map[string]string) outcome {
	timeout := verb.Timeout
	if timeout <= 0 {
		timeout = time.Minute
	}
	within, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	ended := make(chan outcome, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				ended <- outcome{failed, "panic", fmt.Sprintf("%v at %s", p, debug.Stack()), nil}
			}
		}()
		output, err := verb.Run(within, args)
		ended <- judge(within, output, err)
	}()
	select {
	case out := <-ended:
		return out
	case <-within.Done():
	}
	select {
	case out := <-ended:
		return out
	case <-time.After(grace):
		return judge(within, nil, within.Err())
	}
}

func judge(ctx context.Context, output []byte, err error) outcome {
	switch {
	case err == nil:
		return outcome{succeeded, "", "", output}
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return outcome{failed, "timeout", err.Error(), output}
	case ctx.Err() != nil:
		return outcome{failed, "interrupted", "the agent ended while it ran", output}
	}
	return outcome{failed, "error", err.Error(), output}
}

// refuse audits an order that was not genuine, new or for this device. What
// claims to be for this device is answered, so that the operator does not wait.
func (r *Runner) refuse(ctx context.Context, c wire.CommandOrder, reason string, cause error) error {
	if now := time.Now(); now.Sub(r.refusedAt) > time.Hour {
		r.refusals, r.refusedAt = 0, now
	}
	if r.refusals++; r.refusals > refusalsHour {
		r.suppressed++
		return nil
	}
	detail := map[string]string{"reason": reason}
	if c.Verb != "" {
		maps.Copy(detail, r.detail(c))
		detail["reason"] = reason
	}
	if r.suppressed > 0 {
		detail["suppressed"] = fmt.Sprint(r.suppressed)
		r.suppressed = 0
	}
	r.o.Log.Warn("command refused", "reason", reason, "error", cause)
	if err := r.o.Record(ctx, "command.refused", "alarm", c.ID, detail); err != nil {
		r.o.Log.Error("refusal not audited", "error", err)
	}
	if c.ID == "" || c.Tenant != r.o.Tenant || c.Device != r.o.Device {
		return nil
	}
	return r.send(ctx, r.report(c, outcome{rejected, reason, cause.Error(), nil}))
}

func (r *Runner) detail(c wire.CommandOrder) map[string]string {
	return map[string]string{
		"verb": c.Verb, "counter": fmt.Sprint(c.Counter), "by": c.By,
		"args": strings.Join(slices.Sorted(maps.Keys(c.Args)), " "), // names: a value may be a secret
	}
}

// report makes the result message, within the limits of the contract.
func (r *Runner) report(c wire.CommandOrder, out outcome) wire.ResultReport {
	return wire.ResultReport{
		Kind: wire.OrderCommand, ID: c.ID, State: out.state, Reason: out.reason,
		Text: cutText(r.o.Text(out.text)), Output: cutOutput(r.o.Output(out.output)), Counter: c.Counter,
	}
}

func cutText(s string) string {
	const mark = "..."
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= wire.MaxText {
		return s
	}
	end := wire.MaxText - len(mark)
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + mark
}

// cutOutput keeps the beginning and says how much is missing.
func cutOutput(b []byte) []byte {
	if len(b) <= wire.MaxOutput {
		return b
	}
	mark := fmt.Sprintf("\n[cut here: the output has %d bytes, %d are the most a result carries]\n", len(b), wire.MaxOutput)
	return append(slices.Clone(b[:wire.MaxOutput-len(mark)]), mark...)
}
