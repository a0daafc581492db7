// Package owner knows whose devices are, for one tenant: it reads manifests of
// vendors, takes claims, keeps the ownership voucher of each device, and lets a
// device go when its next owner has accepted it.
//
// It promises that a device becomes the tenant's on the word of a vendor's
// list, of the code on its label, of a voucher, or of an administrator where
// the configuration allows that; that a chain of statements that was seen here
// only grows; that the vendor's way around a lost owner waits from the day this
// service heard of it; and that a device is only let go when it says that its
// audit trail is handed over and what it held of this owner is gone.
//
// It knows no TPM and no wire, and reaches devices by the functions it is given.
package owner

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	deed "github.com/tillward/tillward/provisioning/owner"
)

// skew is how far the clock of another service may be ahead of ours. It bears
// on nothing but the order of statements: the wait of an override is counted
// here.
const skew = 5 * time.Minute

// retry is how soon a device that could not be let go, because the store did
// not answer, is tried again.
const retry = 5 * time.Second

// pause is how long a device that has not given up, and said so, is left alone:
// each attempt is a command and an alarm in the trail.
const (
	pause     = 30 * time.Second
	maxPauses = 4096 // devices remembered
)

// Vendor is a maker of devices whose word counts here. One that changes his
// key is listed twice.
type Vendor struct {
	Name string
	Key  ed25519.PublicKey
}

// Store keeps lists, claims and vouchers; cloud/internal/store fits.
type Store interface {
	lists
	chains
	Audit(ctx context.Context, ev fleet.AuditEvent) error
}

type lists interface {
	ListedEK(ctx context.Context, ekHash string) (fleet.Listing, error)
	ListedDevice(ctx context.Context, id fleet.DeviceID) (fleet.Listing, error)
	ImportManifest(ctx context.Context, lines []fleet.Listing, ev fleet.AuditEvent) (int, error)
	Claim(ctx context.Context, t fleet.TenantID, device fleet.DeviceID, claimHash, site, group string, ev fleet.AuditEvent) error
	Assign(ctx context.Context, t fleet.TenantID, lines []fleet.Listing, ev fleet.AuditEvent) (int, error)
	ClaimOrder(ctx context.Context, t fleet.TenantID, vendor, order string, ev fleet.AuditEvent) (int, error)
	Waiting(ctx context.Context, t fleet.TenantID, p fleet.Page) ([]fleet.Waiting, string, error)
}

type chains interface {
	Ownership(ctx context.Context, device fleet.DeviceID) (fleet.Ownership, error)
	PutOwnership(ctx context.Context, o fleet.Ownership, ev fleet.AuditEvent) error
	Leaving(ctx context.Context) ([]fleet.Ownership, error)
	Commands(ctx context.Context, t fleet.TenantID, f fleet.CommandFilter, p fleet.Page) ([]fleet.Command, string, error)
	DeviceByID(ctx context.Context, id fleet.DeviceID) (fleet.Device, error)
	Reset(ctx context.Context, device fleet.DeviceID, ev fleet.AuditEvent) error
}

// Options of a Registry. All must be set but Vendors and Waiting.
type Options struct {
	Store   Store
	Tenant  fleet.TenantID
	Name    string             // of the tenant in vouchers
	Key     ed25519.PrivateKey // of the tenant; signs acceptances, offers and objections
	Vendors []Vendor
	Waiting bool // an administrator may claim a device that waits, without a code

	// Relinquish has a device give up what it holds of this owner; mark names
	// the voucher.
	Relinquish func(ctx context.Context, t fleet.TenantID, device fleet.DeviceID, mark, reason string) error
	Cut        func(device fleet.DeviceID, why string) // ends its connection
	Changed    func(device fleet.DeviceID)
	Log        *slog.Logger
}

// Registry knows whose devices are.
type Registry struct {
	o    Options
	wake chan struct{}

	chain sync.Mutex // one change of a chain at a time

	mu     sync.Mutex
	ended  []fleet.Command // of verb Relinquish, not looked at yet
	paused map[fleet.DeviceID]time.Time
}

// New returns a Registry; Run lets devices go.
func New(o Options) *Registry { return &Registry{o: o, wake: make(chan struct{}, 1)} }

// self is this tenant as vouchers name him.
func (r *Registry) self() deed.Party {
	return deed.Party{Key: r.o.Key.Public().(ed25519.PublicKey), Name: r.o.Name, Tenant: string(r.o.Tenant)}
}

func (r *Registry) mine(p deed.Party) bool { return bytes.Equal(p.Key, r.self().Key) }

// serves refuses tenants other than the one whose key this service holds.
func (r *Registry) serves(t fleet.TenantID) error {
	if t != r.o.Tenant {
		return fmt.Errorf("this service keeps vouchers of tenant %s: %w", r.o.Tenant, fleet.ErrForbidden)
	}
	return nil
}

// Party is whom vouchers name as the tenant.
func (r *Registry) Party(_ context.Context, t fleet.TenantID) (fleet.Party, error) {
	return view(r.self()), r.serves(t)
}

func view(p deed.Party) fleet.Party {
	return fleet.Party{Name: p.Name, Tenant: fleet.TenantID(p.Tenant), Key: p.Key}
}

// event makes an entry of the trail about a device.
func (r *Registry) event(kind, severity, by string, device fleet.DeviceID, detail map[string]string) fleet.AuditEvent {
	return fleet.AuditEvent{Tenant: r.o.Tenant, At: time.Now(), Kind: kind, Severity: severity, Actor: by, Subject: string(device), Detail: detail}
}

// note writes down what was refused. A trail that cannot be written is logged;
// the refusal stands all the same.
func (r *Registry) note(ctx context.Context, ev fleet.AuditEvent) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := r.o.Store.Audit(ctx, ev); err != nil {
		r.o.Log.Error("audit", slog.String("kind", ev.Kind), slog.Any("err", err))
	}
}

// fault gives an error of a document its place in the domain.
func fault(err error) error {
	for _, k := range []struct{ err, as error }{
		{deed.ErrMalformed, fleet.ErrInvalid},
		{deed.ErrVersion, fleet.ErrInvalid},
		{deed.ErrLimit, fleet.ErrInvalid},
		{deed.ErrDuplicate, fleet.ErrInvalid},
		{deed.ErrSignature, fleet.ErrForbidden},
		{deed.ErrSealed, fleet.ErrForbidden},
		{deed.ErrState, fleet.ErrConflict},
		{deed.ErrEarly, fleet.ErrConflict},
		{deed.ErrStale, fleet.ErrConflict},
	} {
		if errors.Is(err, k.err) {
			return fmt.Errorf("%w: %w", err, k.as)
		}
	}
	return err
}

// refusal reports whether err says that something may not be, and not that it
// could not be done.
func refusal(err error) bool {
	for _, e := range []error{fleet.ErrInvalid, fleet.ErrForbidden, fleet.ErrConflict, fleet.ErrNotFound, fleet.ErrExists, fleet.ErrExpired} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Mark names how far a chain was seen, as the command Relinquish does.
func Mark(m deed.Mark) string { return fmt.Sprintf("%d:%s", m.Count, hex.EncodeToString(m.Head)) }

// Ready has a device that is connected give up this owner, when it has to.
func (r *Registry) Ready(ctx context.Context, device fleet.DeviceID) error {
	o, err := r.stands(ctx, device)
	if err != nil || o.State != fleet.Releasing || r.pauses(device) {
		return err
	}
	h, err := r.held(ctx, device)
	if err != nil || h == nil {
		return err
	}
	return r.relinquish(ctx, h)
}

func (r *Registry) pauses(device fleet.DeviceID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Since(r.paused[device]) < pause
}

func (r *Registry) leaveAlone(device fleet.DeviceID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.paused == nil || len(r.paused) >= maxPauses {
		r.paused = make(map[fleet.DeviceID]time.Time)
	}
	r.paused[device] = time.Now()
}

func (r *Registry) relinquish(ctx context.Context, h *holding) error {
	return r.o.Relinquish(ctx, r.o.Tenant, h.Device, Mark(h.state.Mark), "accepted by "+h.state.Owner.Name)
}

// Relinquish is the verb of the command that has a device give up its owner.
const Relinquish = "relinquish"

// Ended takes how a command ended; Run does what follows when it was
// Relinquish. It never blocks.
func (r *Registry) Ended(c fleet.Command) {
	if c.Verb != Relinquish {
		return
	}
	r.mu.Lock()
	r.ended = append(r.ended, c)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run lets devices go that have given up this owner, until ctx ends.
func (r *Registry) Run(ctx context.Context) error {
	tick := time.NewTicker(retry)
	defer tick.Stop()
	resumed := false
	for {
		if !resumed {
			if err := r.resume(ctx); err == nil {
				resumed = true
			} else if ctx.Err() == nil {
				r.o.Log.Error("look for devices that were let go", slog.Any("err", err))
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-tick.C:
		}
		r.mu.Lock()
		ended := r.ended
		r.ended = nil
		r.mu.Unlock()
		for _, c := range ended {
			if err := r.release(ctx, c); err != nil {
				r.o.Log.Error("let device go", slog.String("device", string(c.Device)), slog.Any("err", err))
				r.mu.Lock()
				r.ended = append(r.ended, c)
				r.mu.Unlock()
			}
		}
	}
}

// resume finishes what the service stopped in the middle of: a device may have
// said that it is done, and be gone, before it was let go.
func (r *Registry) resume(ctx context.Context) error {
	all, err := r.o.Store.Leaving(ctx)
	if err != nil {
		return err
	}
	for _, o := range all {
		done, _, err := r.o.Store.Commands(ctx, r.o.Tenant, fleet.CommandFilter{Device: o.Device, State: fleet.CommandSucceeded}, fleet.Page{})
		if err != nil {
			return err
		}
		for _, c := range done {
			if c.Verb == Relinquish {
				r.Ended(c)
			}
		}
	}
	return nil
}

// release lets a device go that has done what it was told, or says that it has
// not. What was done before changes nothing.
func (r *Registry) release(ctx context.Context, c fleet.Command) error {
	r.chain.Lock()
	defer r.chain.Unlock()
	h, err := r.held(ctx, c.Device)
	if err != nil || h == nil || h.State != fleet.Releasing && h.State != fleet.Released || c.Args["mark"] != Mark(h.state.Mark) {
		return err
	}
	if c.State != fleet.CommandSucceeded {
		r.leaveAlone(c.Device)
		r.note(ctx, r.event("ownership.not-released", "alarm", "service", c.Device, map[string]string{
			"command": string(c.ID), "state": string(c.State), "code": c.Code, "text": c.Text, "to": h.state.Owner.Name,
		}))
		return nil // it is told again when it connects, after a while
	}
	return r.letGo(ctx, h, "service")
}

// letGo ends what this service has with a device: its row leaves the tenant, so
// that no certificate of it opens anything, and its connection ends.
func (r *Registry) letGo(ctx context.Context, h *holding, by string) error {
	detail := map[string]string{"to": h.state.Owner.Name, "mark": Mark(h.state.Mark)}
	if h.State != fleet.Released {
		h.State = fleet.Released
		if err := r.o.Store.PutOwnership(ctx, h.Ownership, r.event("ownership.released", "warn", by, h.Device, detail)); err != nil {
			return err
		}
	}
	if err := r.o.Store.Reset(ctx, h.Device, r.event("device.left", "info", by, h.Device, detail)); err != nil && !errors.Is(err, fleet.ErrNotFound) {
		return err
	}
	r.o.Cut(h.Device, "given to its next owner")
	r.o.Changed(h.Device)
	return nil
}
