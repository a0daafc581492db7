package owner

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	deed "github.com/tillward/tillward/provisioning/owner"
)

// holding is the voucher that is kept of a device, read.
type holding struct {
	fleet.Ownership

	voucher deed.Voucher
	vendor  ed25519.PublicKey // the key that the chain begins with
	state   deed.State
}

// stands says where a device stands, as it was noted; zero without a voucher.
func (r *Registry) stands(ctx context.Context, device fleet.DeviceID) (fleet.Ownership, error) {
	o, err := r.o.Store.Ownership(ctx, device)
	if errors.Is(err, fleet.ErrNotFound) {
		err = nil
	}
	return o, err
}

// held reads the voucher of a device; nil when there is none.
func (r *Registry) held(ctx context.Context, device fleet.DeviceID) (*holding, error) {
	o, err := r.stands(ctx, device)
	if err != nil || o.State == "" {
		return nil, err
	}
	v, err := deed.DecodeVoucher(o.Voucher)
	if err != nil {
		return nil, fmt.Errorf("voucher on file of %s: %w", device, err)
	}
	h := &holding{Ownership: o, voucher: v}
	h.vendor, h.state, err = r.check(v, latest(v, time.Now()), deed.Mark{}) // it was good then, whatever became of our clock
	if err != nil {
		return nil, fmt.Errorf("voucher on file: %w", err)
	}
	return h, nil
}

// verify checks a chain from the key of its vendor on.
func (r *Registry) verify(v deed.Voucher, seen deed.Mark) (vendor ed25519.PublicKey, s deed.State, err error) {
	return r.check(v, r.now(v), seen)
}

func (r *Registry) check(v deed.Voucher, now time.Time, seen deed.Mark) (vendor ed25519.PublicKey, s deed.State, err error) {
	err = fmt.Errorf("vendor %q is not known here; add his name and public key to enrol.vendors of the configuration: %w", v.Vendor, fleet.ErrForbidden)
	for _, known := range r.o.Vendors {
		if known.Name != v.Vendor {
			continue
		}
		if s, err = v.Verify(known.Key, now, seen); err == nil {
			return known.Key, s, nil
		}
		err = fault(err)
		if !errors.Is(err, deed.ErrSignature) {
			break
		}
	}
	return nil, deed.State{}, err
}

// latest is now, or the time of the last statement of a chain when that is
// later.
func latest(v deed.Voucher, now time.Time) time.Time {
	last := time.Unix(v.MadeAt, 0)
	if n := len(v.Entries); n > 0 {
		last = time.Unix(v.Entries[n-1].At, 0)
	}
	if last.After(now) {
		return last
	}
	return now
}

// now is the time for a chain: ours, or that of its last statement when the
// clock of who made it is a little ahead.
func (r *Registry) now(v deed.Voucher) time.Time {
	now := time.Now()
	if t := latest(v, now); t.Sub(now) <= skew {
		return t
	}
	return now
}

// owned is what is kept of a voucher by which the device is the tenant's.
func (r *Registry) owned(v deed.Voucher) fleet.Ownership {
	return fleet.Ownership{
		Device: fleet.DeviceID(v.Device), Voucher: v.Bytes(), Entries: len(v.Entries), Owner: r.o.Name, State: fleet.Owned,
	}
}

// ImportVouchers takes in an order file, or vouchers that come back: it accepts
// what is offered to the tenant, lets go of what its next owner has accepted,
// and keeps what has grown. Each voucher stands for itself; when all are
// refused the first refusal is the error.
func (r *Registry) ImportVouchers(ctx context.Context, t fleet.TenantID, file []byte, by string) ([]fleet.Import, error) {
	if err := r.serves(t); err != nil {
		return nil, err
	}
	vouchers, err := deed.DecodeOrder(file)
	if err != nil {
		return nil, fault(err)
	}
	var out []fleet.Import
	var first error
	refused := 0
	for _, v := range vouchers {
		outcome, text, err := r.take(ctx, v, by)
		if err != nil && !refusal(err) {
			return nil, err
		}
		if err != nil {
			severity := "warn"
			if errors.Is(err, deed.ErrStale) || errors.Is(err, deed.ErrSignature) {
				severity = "alarm"
			}
			r.note(ctx, r.event("ownership.refused", severity, by, fleet.DeviceID(v.Device), map[string]string{"serial": v.Serial, "reason": fmt.Sprintf("%.300v", err)}))
			outcome, text = "refused", err.Error()
			if refused++; first == nil {
				first = err
			}
		}
		out = append(out, fleet.Import{Device: fleet.DeviceID(v.Device), Serial: v.Serial, Outcome: outcome, Text: text})
	}
	if refused == len(vouchers) {
		return nil, first
	}
	return out, nil
}

// take takes in one voucher.
func (r *Registry) take(ctx context.Context, v deed.Voucher, by string) (outcome, text string, err error) {
	r.chain.Lock()
	defer r.chain.Unlock()
	h, err := r.held(ctx, fleet.DeviceID(v.Device))
	if err != nil {
		return "", "", err
	}
	var seen deed.Mark
	if h != nil {
		seen = h.state.Mark
	}
	vendor, s, err := r.verify(v, seen)
	if errors.Is(err, deed.ErrStale) && r.taken(h, v) {
		return "known", "accepted before", nil
	}
	if err != nil {
		return "", "", err
	}
	if h == nil {
		return r.takeNew(ctx, vendor, v, s, by)
	}
	if s.Pending != nil && r.mine(s.Pending.To) && !r.mine(s.Owner) {
		return r.accept(ctx, vendor, v, by)
	}
	if s.Mark.Count == seen.Count {
		return "known", "nothing new", nil
	}
	return r.grow(ctx, h, v, by)
}

// taken reports whether v is the offer that the tenant has accepted, as when an
// order file is imported once more.
func (r *Registry) taken(h *holding, v deed.Voucher) bool {
	n := len(v.Entries)
	if n == 0 || len(h.voucher.Entries) <= n || h.voucher.Entries[n].Kind != deed.Accept {
		return false
	}
	offer := h.voucher
	offer.Entries = offer.Entries[:n]
	return v.Entries[n-1].To != nil && r.mine(*v.Entries[n-1].To) && bytes.Equal(offer.Bytes(), v.Bytes())
}

// takeNew takes in the first voucher that is seen of a device.
func (r *Registry) takeNew(ctx context.Context, vendor ed25519.PublicKey, v deed.Voucher, s deed.State, by string) (outcome, text string, err error) {
	switch {
	case r.mine(s.Owner):
		// Ours before this service had it: it was restored, or accepted by hand.
		o := r.owned(v)
		if s.Pending != nil {
			o.State, o.Deadline = fleet.Offered, r.deadline(s)
		}
		if err := r.join(ctx, v, o, by); err != nil || s.Pending == nil || !s.Pending.Override {
			return "accepted", "it is this tenant's", err
		}
		return r.overridden(ctx, o, s, by)
	case s.Pending != nil && r.mine(s.Pending.To):
		return r.accept(ctx, vendor, v, by)
	case s.Pending != nil && s.Pending.To.Name == bearer && s.Pending.To.Tenant == "":
		o := fleet.Ownership{Device: fleet.DeviceID(v.Device), Voucher: v.Bytes(), Entries: s.Mark.Count, Owner: s.Owner.Name, State: fleet.Offered}
		ev := r.event("ownership.held", "info", by, o.Device, map[string]string{"serial": v.Serial, "vendor": v.Vendor, "mark": Mark(s.Mark)})
		return "held", "waits for the code on its label", r.o.Store.PutOwnership(ctx, o, ev)
	case s.Pending != nil:
		return "", "", fmt.Errorf("serial %s is offered to %s, not to this tenant: %w", v.Serial, s.Pending.To.Name, fleet.ErrForbidden)
	}
	return "", "", fmt.Errorf("serial %s is of %s, who has to offer it to this tenant; send him what tenant show prints: %w", v.Serial, s.Owner.Name, fleet.ErrForbidden)
}

// bearer is the name of whoever holds a label.
var bearer = deed.Claim{}.Bearer().Name

// accept makes the tenant the owner.
func (r *Registry) accept(ctx context.Context, vendor ed25519.PublicKey, v deed.Voucher, by string) (outcome, text string, err error) {
	from := v.Vendor
	if _, s, err := r.verify(v, deed.Mark{}); err == nil {
		from = s.Owner.Name
	}
	v, err = v.Accept(vendor, r.o.Key, r.now(v))
	if err != nil {
		return "", "", fault(err)
	}
	return "accepted", "from " + from, r.join(ctx, v, r.owned(v), by)
}

// join keeps the voucher of a device that is the tenant's, and lists the device
// so that it may enrol.
func (r *Registry) join(ctx context.Context, v deed.Voucher, o fleet.Ownership, by string) error {
	detail := map[string]string{"serial": v.Serial, "vendor": v.Vendor, "order": v.Order, "entries": fmt.Sprint(o.Entries)}
	if _, err := r.o.Store.Assign(ctx, r.o.Tenant, []fleet.Listing{listing(v)}, r.event("device.claimed", "info", by, o.Device, map[string]string{"by": "voucher"})); err != nil {
		return err
	}
	if err := r.o.Store.PutOwnership(ctx, o, r.event("ownership.accepted", "info", by, o.Device, detail)); err != nil {
		return err
	}
	r.o.Changed(o.Device)
	return nil
}

// deadline is until when the owner can object to an override that is first
// heard of now. What the vendor says of the day of issue does not count: he
// could date it back.
func (r *Registry) deadline(s deed.State) time.Time {
	if s.Pending == nil || !s.Pending.Override {
		return time.Time{}
	}
	wait := time.Now().Add(deed.MinWait)
	if s.Pending.NotBefore.After(wait) {
		return s.Pending.NotBefore
	}
	return wait
}

// grow takes in what is new in a chain. While the device is the tenant's, an
// override that nobody here has heard of is taken in alone, be it accepted or
// not: its wait begins now.
func (r *Registry) grow(ctx context.Context, h *holding, v deed.Voucher, by string) (outcome, text string, err error) {
	before, deadline := h.state, h.Deadline
	for n := h.state.Mark.Count + 1; n <= len(v.Entries); n++ {
		p := v
		p.Entries = v.Entries[:n]
		_, s, err := r.verify(p, deed.Mark{})
		if err != nil {
			return "", "", err
		}
		switch kept := r.mine(before.Owner); {
		case !kept:
		case r.mine(s.Owner) && s.Pending != nil && s.Pending.Override:
			deadline = r.deadline(s)
		case r.mine(s.Owner):
			deadline = time.Time{}
		case before.Pending.Override && time.Now().Before(deadline):
			return r.early(ctx, h, p, before, deadline, by)
		}
		before = s
	}
	o := h.Ownership
	o.Voucher, o.Entries, o.Owner, o.Deadline = v.Bytes(), before.Mark.Count, before.Owner.Name, deadline
	detail := map[string]string{"serial": v.Serial, "owner": before.Owner.Name, "mark": Mark(before.Mark)}
	switch {
	case r.mine(before.Owner) && before.Pending != nil && before.Pending.Override:
		return r.overridden(ctx, o, before, by)
	case r.mine(before.Owner):
		o.State = fleet.Owned
		if before.Pending != nil {
			o.State = fleet.Offered
		}
		return "known", "the chain has grown", r.o.Store.PutOwnership(ctx, o, r.event("ownership.grown", "info", by, o.Device, detail))
	case h.State == fleet.Owned || h.State == fleet.Offered && r.mine(h.state.Owner):
		o.Deadline = time.Time{}
		return r.leave(ctx, o, before, by)
	}
	return "known", "another owner's chain has grown", r.o.Store.PutOwnership(ctx, o, r.event("ownership.grown", "info", by, o.Device, detail))
}

// early refuses an override that was accepted before its wait is over here, and
// keeps the override itself when it is new.
func (r *Registry) early(ctx context.Context, h *holding, accepted deed.Voucher, before deed.State, deadline time.Time, by string) (outcome, text string, err error) {
	refused := fmt.Errorf("accepted by %s before %s, until when this owner may object: %w",
		before.Pending.To.Name, deadline.UTC().Format(time.RFC3339), fleet.ErrConflict)
	if before.Mark.Count == h.state.Mark.Count {
		return "", "", refused
	}
	accepted.Entries = accepted.Entries[:before.Mark.Count]
	o := h.Ownership
	o.Voucher, o.Entries, o.Owner, o.Deadline = accepted.Bytes(), before.Mark.Count, before.Owner.Name, deadline
	if _, _, err := r.overridden(ctx, o, before, by); err != nil {
		return "", "", err
	}
	return "", "", refused
}

// overridden raises the alarm: the vendor gives the device to somebody else.
func (r *Registry) overridden(ctx context.Context, o fleet.Ownership, s deed.State, by string) (outcome, text string, err error) {
	until := o.Deadline.UTC().Format(time.RFC3339)
	o.State = fleet.Offered
	ev := r.event("ownership.override", "alarm", by, o.Device, map[string]string{
		"to": s.Pending.To.Name, "object_until": until, "issued": s.Pending.IssuedAt.Format(time.RFC3339), "mark": Mark(s.Mark),
	})
	if err := r.o.Store.PutOwnership(ctx, o, ev); err != nil {
		return "", "", err
	}
	r.o.Changed(o.Device)
	return "override", fmt.Sprintf("the vendor gives it to %s; object until %s if you are not lost", s.Pending.To.Name, until), nil
}

// leave restricts a device to the q door and has it give up this owner; one
// that is not a member goes at once.
func (r *Registry) leave(ctx context.Context, o fleet.Ownership, s deed.State, by string) (outcome, text string, err error) {
	o.State = fleet.Releasing
	ev := r.event("ownership.releasing", "warn", by, o.Device, map[string]string{"to": s.Owner.Name, "mark": Mark(s.Mark)})
	if err := r.o.Store.PutOwnership(ctx, o, ev); err != nil {
		return "", "", err
	}
	h, err := r.held(ctx, o.Device)
	if err != nil {
		return "", "", err
	}
	text = "to " + s.Owner.Name
	d, err := r.o.Store.DeviceByID(ctx, o.Device)
	if errors.Is(err, fleet.ErrNotFound) || err == nil && d.Tenant != r.o.Tenant {
		return "releasing", text, r.letGo(ctx, h, by)
	}
	if err != nil {
		return "", "", err
	}
	// The connection ends so that the next one has only the q door; what waits
	// there for the device is the command that lets it go.
	if err := r.relinquish(ctx, h); err != nil {
		return "", "", err
	}
	r.o.Cut(o.Device, "given to its next owner: only to give up this one")
	r.o.Changed(o.Device)
	return "releasing", text, nil
}

// Title returns what the voucher of a device says.
func (r *Registry) Title(ctx context.Context, t fleet.TenantID, device fleet.DeviceID) (fleet.Title, error) {
	h, err := r.held(ctx, device)
	if err == nil && (h == nil || t != r.o.Tenant) {
		err = fmt.Errorf("voucher of %s: %w", device, fleet.ErrNotFound)
	}
	if err != nil {
		return fleet.Title{}, err
	}
	return h.title(), nil
}

func (h *holding) title() fleet.Title {
	t := fleet.Title{
		Ownership: h.Ownership, Vendor: h.voucher.Vendor, Model: h.voucher.Model, Serial: h.voucher.Serial, Order: h.voucher.Order,
		Holder: view(h.state.Owner), Since: h.state.Since, MayTransfer: h.state.MayTransfer,
	}
	if p := h.state.Pending; p != nil {
		next := view(p.To)
		t.Next, t.Override, t.NotBefore = &next, p.Override, p.NotBefore
	}
	return t
}

// Voucher returns the voucher of a device that is the tenant's, for the device;
// nil when there is none.
func (r *Registry) Voucher(ctx context.Context, device fleet.DeviceID) ([]byte, error) {
	o, err := r.stands(ctx, device)
	if err != nil || o.State == fleet.Owned {
		return o.Voucher, err
	}
	if o.State != fleet.Offered { // not at all, or not any more
		return nil, nil
	}
	h, err := r.held(ctx, device) // by the tenant, or by the vendor to the bearer of the label
	if err != nil || h == nil || !r.mine(h.state.Owner) {
		return nil, err
	}
	return h.Ownership.Voucher, nil
}

// Left reports whether a device that was the tenant's is another owner's now,
// and whose.
func (r *Registry) Left(ctx context.Context, device fleet.DeviceID) (to string, left bool, err error) {
	o, err := r.stands(ctx, device)
	if err != nil || o.State != fleet.Releasing && o.State != fleet.Released {
		return "", false, err
	}
	return o.Owner, true, nil
}

// Transfer offers a device to its next owner. Errors: fleet.ErrConflict when
// there is no voucher or an offer is open, fleet.ErrForbidden when the tenant
// may not pass it on, fleet.ErrInvalid.
func (r *Registry) Transfer(ctx context.Context, q fleet.Transfer) (fleet.Title, error) {
	to := deed.Party{Key: q.To.Key, Name: q.To.Name, Tenant: string(q.To.Tenant)}
	if r.mine(to) {
		return fleet.Title{}, fmt.Errorf("the device is offered to who has it: %w", fleet.ErrInvalid)
	}
	detail := map[string]string{"to": to.Name, "key": fmt.Sprintf("%x", to.Key[:min(8, len(to.Key))])}
	return r.extend(ctx, q.Tenant, q.Device, fleet.Offered, r.event("ownership.offered", "warn", q.By, q.Device, detail),
		func(h *holding, now time.Time) (deed.Voucher, error) {
			return h.voucher.Transfer(h.vendor, r.o.Key, to, deed.Terms{NotBefore: q.NotBefore, MayTransfer: q.MayTransfer}, now)
		})
}

// Object voids the open offer, or the vendor's override: the owner is not lost.
// Errors: fleet.ErrConflict when nothing is open.
func (r *Registry) Object(ctx context.Context, t fleet.TenantID, device fleet.DeviceID, by, reason string) (fleet.Title, error) {
	return r.extend(ctx, t, device, fleet.Owned, r.event("ownership.objected", "warn", by, device, map[string]string{"reason": reason}),
		func(h *holding, now time.Time) (deed.Voucher, error) { return h.voucher.Object(h.vendor, r.o.Key, now) })
}

// extend adds a statement of the tenant to a chain.
func (r *Registry) extend(ctx context.Context, t fleet.TenantID, device fleet.DeviceID, to fleet.OwnershipState, ev fleet.AuditEvent,
	add func(h *holding, now time.Time) (deed.Voucher, error),
) (fleet.Title, error) {
	r.chain.Lock()
	defer r.chain.Unlock()
	h, err := r.held(ctx, device)
	if err == nil && t != r.o.Tenant {
		err = fmt.Errorf("voucher of %s: %w", device, fleet.ErrNotFound)
	}
	if err != nil {
		return fleet.Title{}, err
	}
	switch {
	case h == nil:
		return fleet.Title{}, fmt.Errorf("device %s has no voucher; its vendor makes one, import it first: %w", device, fleet.ErrConflict)
	case !r.mine(h.state.Owner):
		return fleet.Title{}, fmt.Errorf("device %s is of %s: %w", device, h.state.Owner.Name, fleet.ErrConflict)
	}
	v, err := add(h, r.now(h.voucher))
	if err != nil {
		return fleet.Title{}, fault(err)
	}
	o := r.owned(v)
	o.State = to
	if err := r.o.Store.PutOwnership(ctx, o, ev); err != nil {
		return fleet.Title{}, err
	}
	if h, err = r.held(ctx, device); err != nil {
		return fleet.Title{}, err
	}
	return h.title(), nil
}
