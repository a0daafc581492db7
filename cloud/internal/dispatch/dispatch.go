// Package dispatch brings commands to devices: checks them, writes them down
// with who asked, signs them, hands them to the broker, and lets them expire.
//
// It promises that a command is in the table and in the audit trail before a
// byte of it is signed, and that what a device could not be told waits until
// it is back, or ends as EXPIRED. That a command runs at most once is the
// device's promise: what is sent again here is answered there.
package dispatch

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
)

// Limits of a command's life.
const (
	defaultLife = time.Hour
	maxLife     = 7 * 24 * time.Hour
)

// relinquish has a device give up what it holds of its owner. Only the service
// itself sends it, when the next owner has accepted the device.
const relinquish = "relinquish"

// behindBars are the verbs that a restricted device gets.
var behindBars = []string{"diagnose", "collect-logs", "reboot", relinquish}

// Store keeps commands; cloud/internal/store fits.
type Store interface {
	AddCommand(ctx context.Context, c fleet.Command, ev fleet.AuditEvent) (fleet.Command, error)
	OpenCommands(ctx context.Context, device fleet.DeviceID, now time.Time) ([]fleet.Command, error)
	MarkSent(ctx context.Context, id fleet.CommandID) error
	ExpireCommands(ctx context.Context, now time.Time) ([]fleet.Command, error)
	// Unanswered lists the devices with an open command that was issued before then; queued: only those that were handed none of it.
	Unanswered(ctx context.Context, before time.Time, queued bool) ([]fleet.DeviceID, error)
}

// Signer signs orders; provisioning/trust.OrderSigner fits.
type Signer interface {
	SignOrder(kind string, payload []byte) (keyID string, signature []byte, err error)
}

// Sender reaches devices; cloud/internal/broker fits.
type Sender interface {
	Send(device fleet.DeviceID, channel wire.Channel, payload []byte) error
}

// Options of a Dispatch.
type Options struct {
	Store   Store
	Signer  Signer
	Sender  Sender
	Changed func(c fleet.Command)
	Log     *slog.Logger

	// Open sends what is not for a restricted device, which the device may have
	// become since Restricted was asked; nil: Sender does.
	Open func(device fleet.DeviceID, channel wire.Channel, payload []byte) error
	// Restricted reports whether the device's connection has only the q door;
	// nil means never.
	Restricted func(device fleet.DeviceID) bool
	// Present reports whether a device is connected: it is handed what waits
	// without a word of it, and again what it has not answered; nil means never.
	Present func(device fleet.DeviceID) bool
}

// Dispatch sends commands.
type Dispatch struct {
	o     Options
	order [64]sync.Mutex // of devices by hash: what one is sent goes out in the order of its counter
}

// New returns a Dispatch; Run lets commands expire.
func New(o Options) *Dispatch { return &Dispatch{o: o} }

func (d *Dispatch) lock(device fleet.DeviceID) (unlock func()) {
	h := fnv.New32a()
	_, _ = h.Write([]byte(device))
	m := &d.order[h.Sum32()%uint32(len(d.order))]
	m.Lock()
	return m.Unlock
}

// arguments says what each verb takes, and checks a value.
var arguments = map[string]map[string]func(string) error{
	"identify":     {},
	"reboot":       {},
	"collect-logs": {"lines": number(1, 2000)},
	"diagnose":     {},
	"print-test":   {"peripheral": text(wire.MaxName)},
	"check-health": {"peripheral": text(wire.MaxName), "level": oneOf("internal", "external", "interactive")},
	"set-config": {
		"label": text(64), "poll_s": number(5, 3600), "telemetry_s": number(1, 3600), "log_level": oneOf("debug", "info", "warn", "error"),
	},
	fleet.FactoryReset: {"device": text(wire.MaxName)},
}

func number(low, high int) func(string) error {
	return func(s string) error {
		if n, err := strconv.Atoi(s); err != nil || n < low || n > high {
			return fmt.Errorf("must be a whole number from %d to %d", low, high)
		}
		return nil
	}
}

func text(limit int) func(string) error {
	return func(s string) error {
		if len(s) > limit || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
			return fmt.Errorf("must be at most %d bytes of printable text", limit)
		}
		return nil
	}
}

func oneOf(words ...string) func(string) error {
	return func(s string) error {
		if !slices.Contains(words, s) {
			return fmt.Errorf("must be one of %s", strings.Join(words, ", "))
		}
		return nil
	}
}

// check fills in the life and returns fleet.ErrInvalid with what to write instead.
func check(r *fleet.CommandRequest) error {
	known, ok := arguments[r.Verb]
	if !ok {
		return fmt.Errorf("verb %.40q: use one of %s: %w", r.Verb, strings.Join(fleet.Verbs(), ", "), fleet.ErrInvalid)
	}
	for k, v := range r.Args {
		f, ok := known[k]
		if !ok {
			names := slices.Sorted(func(yield func(string) bool) {
				for n := range known {
					if !yield(n) {
						return
					}
				}
			})
			return fmt.Errorf("%s has no argument %.40q; it takes: %s: %w", r.Verb, k, orNone(strings.Join(names, ", ")), fleet.ErrInvalid)
		}
		if err := f(v); err != nil {
			return fmt.Errorf("%s: argument %s %w: %w", r.Verb, k, err, fleet.ErrInvalid)
		}
	}
	if r.Verb == "set-config" && len(r.Args) == 0 {
		return fmt.Errorf("set-config needs at least one of label, poll_s, telemetry_s, log_level: %w", fleet.ErrInvalid)
	}
	if r.Verb == fleet.FactoryReset {
		switch {
		case r.Args["device"] != string(r.Device):
			return fmt.Errorf("factory-reset gives up what lies on the device: confirm it with its id, device=%s: %w", r.Device, fleet.ErrInvalid)
		case strings.TrimSpace(r.Reason) == "":
			return fmt.Errorf("factory-reset needs a reason: %w", fleet.ErrInvalid)
		}
	}
	if len(r.Reason) > wire.MaxText {
		return fmt.Errorf("reason has more than %d characters: %w", wire.MaxText, fleet.ErrInvalid)
	}
	if r.Life == 0 {
		r.Life = defaultLife
	}
	if r.Life < time.Second || r.Life > maxLife {
		return fmt.Errorf("a command may live from 1s to %s, not %s: %w", maxLife, r.Life, fleet.ErrInvalid)
	}
	return nil
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// Send records a command and sends it if its device can be reached.
func (d *Dispatch) Send(ctx context.Context, r fleet.CommandRequest) (fleet.Command, error) {
	if err := check(&r); err != nil {
		return fleet.Command{}, err
	}
	return d.send(ctx, r)
}

// Relinquish has a device give up its owner: it hands over its audit trail,
// wipes what is the owner's and forgets its identity. mark names the voucher
// that says so. A device that has one such command open gets no other.
func (d *Dispatch) Relinquish(ctx context.Context, t fleet.TenantID, device fleet.DeviceID, mark, reason string) error {
	open, err := d.o.Store.OpenCommands(ctx, device, time.Now())
	if err != nil {
		return fmt.Errorf("open commands of %s: %w", device, err)
	}
	if slices.ContainsFunc(open, func(c fleet.Command) bool { return c.Verb == relinquish && c.Args["mark"] == mark }) {
		return nil
	}
	_, err = d.send(ctx, fleet.CommandRequest{
		Device: device, Tenant: t, Verb: relinquish, Args: map[string]string{"mark": mark}, By: "service", Reason: reason, Life: maxLife,
	})
	return err
}

// send records a command that has been checked, and sends it.
func (d *Dispatch) send(ctx context.Context, r fleet.CommandRequest) (fleet.Command, error) {
	defer d.lock(r.Device)()
	now := time.Now()
	c, err := d.o.Store.AddCommand(ctx, fleet.Command{
		Device: r.Device, Tenant: r.Tenant, Verb: r.Verb, Args: r.Args, By: r.By, Reason: r.Reason,
		IssuedAt: now, NotAfter: now.Add(r.Life), State: fleet.CommandQueued,
	}, fleet.AuditEvent{
		At: now, Kind: "command.issued", Severity: "info", Actor: r.By, Subject: string(r.Device), Detail: map[string]string{"verb": r.Verb, "reason": r.Reason},
	})
	if err != nil {
		return fleet.Command{}, err
	}
	if d.hand(ctx, c) {
		c.State = fleet.CommandSent
	}
	d.o.Changed(c)
	return c, nil
}

// Deliver sends a device all its open commands, in order; those that were sent
// before, too, since nobody knows whether they arrived.
func (d *Dispatch) Deliver(ctx context.Context, device fleet.DeviceID) error {
	defer d.lock(device)()
	open, err := d.o.Store.OpenCommands(ctx, device, time.Now())
	if err != nil {
		return fmt.Errorf("open commands of %s: %w", device, err)
	}
	for _, c := range open {
		if d.barred(c) {
			continue // waits until the device is trusted again; counters need not come in order
		}
		if !d.hand(ctx, c) {
			return nil // gone again
		}
		if c.State == fleet.CommandQueued {
			c.State = fleet.CommandSent
			d.o.Changed(c)
		}
	}
	return nil
}

// Remind hands open commands that were issued before then to devices that are
// there; queued: only those of devices with some that were never handed over.
func (d *Dispatch) Remind(ctx context.Context, before time.Time, queued bool) {
	if d.o.Present == nil {
		return
	}
	devices, err := d.o.Store.Unanswered(ctx, before, queued)
	for _, id := range devices {
		if d.o.Present(id) && err == nil {
			err = d.Deliver(ctx, id)
		}
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		d.o.Log.Error("deliver commands", slog.Any("err", err))
	}
}

// barred reports whether the device may not get the command on the connection
// that it has.
func (d *Dispatch) barred(c fleet.Command) bool {
	return d.o.Restricted != nil && d.o.Restricted(c.Device) && !slices.Contains(behindBars, c.Verb)
}

// hand signs a command and gives it to the broker; false when it has to wait.
func (d *Dispatch) hand(ctx context.Context, c fleet.Command) bool {
	if d.barred(c) {
		d.o.Log.Info("command waits until the device is trusted", slog.String("command", string(c.ID)), slog.String("device", string(c.Device)))
		return false
	}
	payload, err := Order(d.o.Signer, wire.OrderCommand, &wire.CommandOrder{
		V: wire.Version, ID: string(c.ID), Tenant: string(c.Tenant), Device: string(c.Device), Counter: c.Counter,
		IssuedAt: c.IssuedAt.UnixMilli(), NotAfter: c.NotAfter.UnixMilli(), Verb: c.Verb, Args: c.Args, By: c.By, Reason: c.Reason,
	})
	if err == nil {
		send := d.o.Sender.Send
		if d.o.Open != nil && !slices.Contains(behindBars, c.Verb) {
			send = d.o.Open
		}
		err = send(c.Device, wire.DownCommand, payload)
	}
	if err == nil {
		err = d.o.Store.MarkSent(ctx, c.ID)
	}
	if err != nil {
		d.o.Log.Info("command waits", slog.String("command", string(c.ID)), slog.String("device", string(c.Device)), slog.Any("err", err))
		return false
	}
	return true
}

// Order encodes m, signs it and encodes the signed order.
func Order(s Signer, kind string, m wire.Message) ([]byte, error) {
	payload, err := wire.Encode(m)
	if err != nil {
		return nil, err
	}
	key, sig, err := s.SignOrder(kind, payload)
	if err != nil {
		return nil, err
	}
	return wire.Encode(&wire.Order{Kind: kind, Payload: payload, KeyID: key, Signature: sig})
}

// When what is open is looked at beside the moments at which a device comes.
const (
	queuedAfter = 5 * time.Second // it should have been handed over at once
	askAgain    = time.Minute     // what was handed over may have been lost on the way
)

// Run lets commands expire until ctx ends, and sees to it that none is
// forgotten while its device is there: a hand-over that fails, with the
// database away for one, must not have to wait for the next connection.
func (d *Dispatch) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for n := time.Duration(1); ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			switch {
			case n%(askAgain/time.Second) == 0:
				d.Remind(ctx, now.Add(-askAgain), false)
			case n%(queuedAfter/time.Second) == 0:
				d.Remind(ctx, now.Add(-queuedAfter), true)
			}
			expired, err := d.o.Store.ExpireCommands(ctx, now)
			if err != nil && !errors.Is(err, context.Canceled) {
				d.o.Log.Error("expire commands", slog.Any("err", err))
			}
			for _, c := range expired {
				d.o.Changed(c)
			}
		}
	}
}
