package owner

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/tillward/tillward/cloud/internal/fleet"
	deed "github.com/tillward/tillward/provisioning/owner"
)

// ImportManifest lists the devices of a vendor's signed batch: they are
// genuine, and wait for whoever shows the code of their label. Errors:
// fleet.ErrForbidden for a vendor that is not known here, fleet.ErrInvalid.
func (r *Registry) ImportManifest(ctx context.Context, t fleet.TenantID, file []byte, by string) (fleet.Batch, error) {
	if err := r.serves(t); err != nil {
		return fleet.Batch{}, err
	}
	b, err := r.list(ctx, file, by)
	if err != nil && refusal(err) {
		r.note(ctx, r.event("manifest.refused", "alarm", by, "", map[string]string{"reason": fmt.Sprintf("%.300v", err)}))
	}
	return b, err
}

func (r *Registry) list(ctx context.Context, file []byte, by string) (fleet.Batch, error) {
	m, err := r.open(file)
	if err != nil {
		return fleet.Batch{}, err
	}
	lines := make([]fleet.Listing, 0, len(m.Entries))
	for _, e := range m.Entries {
		lines = append(lines, fleet.Listing{
			EKHash: e.EKHash, Device: fleet.DeviceID(e.Device), Model: e.Model, Serial: e.Serial, Vendor: m.Vendor, Batch: m.Batch, Order: m.Order, ClaimHash: e.ClaimHash,
		})
	}
	ev := r.event("manifest.imported", "info", by, "", map[string]string{"vendor": m.Vendor, "batch": m.Batch, "order": m.Order, "devices": fmt.Sprint(len(lines))})
	ev.Subject = "batch " + m.Batch
	added, err := r.o.Store.ImportManifest(ctx, lines, ev)
	if err != nil {
		return fleet.Batch{}, err
	}
	return fleet.Batch{Vendor: m.Vendor, Batch: m.Batch, Order: m.Order, Devices: len(lines), Added: added}, nil
}

// open finds the vendor whose key opens a manifest. Nobody signs for another.
func (r *Registry) open(file []byte) (deed.Manifest, error) {
	if len(r.o.Vendors) == 0 {
		return deed.Manifest{}, errNoVendor
	}
	var last error
	for _, v := range r.o.Vendors {
		m, err := deed.OpenManifest(v.Key, file)
		switch {
		case err == nil && m.Vendor != v.Name:
			return deed.Manifest{}, fmt.Errorf("manifest of vendor %.64q, signed with the key of %q: %w", m.Vendor, v.Name, fleet.ErrForbidden)
		case err == nil:
			return m, nil
		case !errors.Is(err, deed.ErrSignature):
			return deed.Manifest{}, fault(err)
		}
		last = err
	}
	return deed.Manifest{}, fmt.Errorf("no vendor of enrol.vendors signed it: %w", fault(last))
}

var errNoVendor = fmt.Errorf("no vendor is known here; add his name and public key to enrol.vendors of the configuration: %w", fleet.ErrForbidden)

// Claim makes a device the tenant's by the code of its label, once. A voucher
// that is made out to the bearer of the label is passed on to the tenant. A code
// alone is tried on every device that waits.
//
// Errors: fleet.ErrClaim for a code that is wrong or was used,
// fleet.ErrConflict for a device that is claimed, fleet.ErrInvalid.
func (r *Registry) Claim(ctx context.Context, c fleet.Claim) (fleet.DeviceID, error) {
	device, err := r.claim(ctx, c)
	if err != nil && refusal(err) {
		r.note(ctx, r.event("claim.refused", "alarm", c.By, device, map[string]string{"check": "enrol.claim", "reason": fmt.Sprintf("%.300v", err)}))
	}
	if err == nil {
		r.o.Changed(device)
	}
	return device, err
}

func (r *Registry) claim(ctx context.Context, c fleet.Claim) (fleet.DeviceID, error) {
	if err := r.serves(c.Tenant); err != nil {
		return c.Device, err
	}
	code, err := deed.ParseClaim(c.Code)
	switch {
	case err != nil:
		return c.Device, fault(err)
	case code.Device == "" && c.Device == "":
		if code.Device, err = r.find(ctx, code); err != nil {
			return "", err
		}
	case code.Device == "":
		code.Device = string(c.Device)
	case c.Device != "" && code.Device != string(c.Device):
		return c.Device, fmt.Errorf("the label is that of device %s: %w", code.Device, fleet.ErrInvalid)
	}
	device := fleet.DeviceID(code.Device)
	r.chain.Lock()
	defer r.chain.Unlock()
	title, err := r.inherit(ctx, device, code)
	if err != nil {
		return device, err
	}
	err = r.o.Store.Claim(ctx, c.Tenant, device, code.Hash(), c.Site, c.Group, r.event("device.claimed", "info", c.By, device, map[string]string{"by": "code"}))
	if errors.Is(err, fleet.ErrConflict) && title != nil {
		// Claimed before by order, or the service stopped before it had the voucher.
		// Only this code yields the key that the voucher is offered to.
		if l, lerr := r.o.Store.ListedDevice(ctx, device); lerr == nil && l.Tenant == c.Tenant {
			err = nil
		}
	}
	if err != nil || title == nil {
		return device, err
	}
	return device, r.o.Store.PutOwnership(ctx, *title, r.event("ownership.accepted", "info", c.By, device, map[string]string{"from": "the bearer of the label"}))
}

// find looks among the devices that wait for the one whose code this is.
func (r *Registry) find(ctx context.Context, code deed.Claim) (string, error) {
	for p := (fleet.Page{Limit: 1000}); ; {
		items, next, err := r.o.Store.Waiting(ctx, r.o.Tenant, p)
		if err != nil {
			return "", err
		}
		for _, w := range items {
			if !w.Listed || w.Claimed {
				continue
			}
			l, err := r.o.Store.ListedEK(ctx, w.EKHash)
			if err != nil {
				return "", err
			}
			if code.Device = string(w.Device); code.Matches(l.ClaimHash) {
				return code.Device, nil
			}
		}
		if p.After = next; next == "" {
			return "", fmt.Errorf("no device that waits has this code; give the device, too, or its label's URI: %w", fleet.ErrClaim)
		}
	}
}

// inherit is the voucher of a device after the bearer of its label has passed
// it on to the tenant; nil when none is made out to him.
func (r *Registry) inherit(ctx context.Context, device fleet.DeviceID, code deed.Claim) (*fleet.Ownership, error) {
	h, err := r.held(ctx, device)
	if err != nil || h == nil || h.state.Pending == nil || !h.state.Pending.To.Key.Equal(code.Bearer().Key) {
		return nil, err
	}
	now := r.now(h.voucher)
	v, err := h.voucher.Accept(h.vendor, code.Key(), now)
	if err == nil {
		v, err = v.Transfer(h.vendor, code.Key(), r.self(), deed.Terms{MayTransfer: true}, now)
	}
	if err == nil {
		v, err = v.Accept(h.vendor, r.o.Key, now)
	}
	if err != nil {
		return nil, fault(err)
	}
	o := r.owned(v)
	return &o, nil
}

// Shown reports whether code, which a device that is on a list shows of itself,
// is that of its label. Nothing is counted against the device: anybody may
// knock with its public key.
func (r *Registry) Shown(code string, l fleet.Listing) bool {
	c, err := deed.ParseClaim(code)
	if err != nil || c.Device != "" && c.Device != string(l.Device) {
		return false
	}
	c.Device = string(l.Device)
	return c.Matches(l.ClaimHash)
}

// ClaimWaiting makes a device the tenant's that waits, on an administrator's
// word: where the configuration allows it, and when the TPM's maker vouches for
// the device and there is no label that somebody else could hold.
func (r *Registry) ClaimWaiting(ctx context.Context, c fleet.Claim) error {
	if err := r.serves(c.Tenant); err != nil {
		return err
	}
	w, err := r.waits(ctx, c.Device)
	switch {
	case err != nil:
	case !r.o.Waiting:
		err = fmt.Errorf("this service takes no claim without a code; set enrol.claim_waiting to allow it: %w", fleet.ErrForbidden)
	case w.Listed:
		err = fmt.Errorf("device %s is on a vendor's manifest: claim it with the code on its label: %w", c.Device, fleet.ErrForbidden)
	case w.Tier != fleet.TierA:
		err = fmt.Errorf("device %s has tier %q; only a device whose TPM maker vouches for it is claimed without a list: %w", c.Device, w.Tier, fleet.ErrForbidden)
	}
	if err != nil {
		if refusal(err) {
			r.note(ctx, r.event("claim.refused", "warn", c.By, c.Device, map[string]string{"check": "enrol.claim", "reason": fmt.Sprintf("%.300v", err)}))
		}
		return err
	}
	line := fleet.Listing{EKHash: w.EKHash, Device: w.Device, Model: w.Model, Serial: w.Serial, Site: c.Site, Group: c.Group}
	n, err := r.o.Store.Assign(ctx, c.Tenant, []fleet.Listing{line}, r.event("device.claimed", "warn", c.By, c.Device, map[string]string{"by": "an administrator's word"}))
	if err == nil && n == 0 {
		err = fmt.Errorf("device %s: %w", c.Device, fleet.ErrExists)
	}
	if err == nil {
		r.o.Changed(c.Device)
	}
	return err
}

func (r *Registry) waits(ctx context.Context, device fleet.DeviceID) (fleet.Waiting, error) {
	for p := (fleet.Page{Limit: 1000}); ; {
		items, next, err := r.o.Store.Waiting(ctx, r.o.Tenant, p)
		if err != nil {
			return fleet.Waiting{}, err
		}
		for _, w := range items {
			if w.Device == device {
				return w, nil
			}
		}
		if p.After = next; next == "" {
			return fleet.Waiting{}, fmt.Errorf("device %s does not wait: %w", device, fleet.ErrNotFound)
		}
	}
}

// ClaimOrder makes all devices the tenant's that manifests of a vendor list for
// an order.
func (r *Registry) ClaimOrder(ctx context.Context, t fleet.TenantID, vendor, order, by string) (int, error) {
	if err := r.serves(t); err != nil {
		return 0, err
	}
	ev := r.event("order.claimed", "info", by, "", map[string]string{"vendor": vendor, "order": order})
	ev.Subject = "order " + order
	return r.o.Store.ClaimOrder(ctx, t, vendor, order, ev)
}

// listing is the line of a device that a voucher makes the tenant's.
func listing(v deed.Voucher) fleet.Listing {
	return fleet.Listing{
		EKHash: hex.EncodeToString(v.EKHash), Device: fleet.DeviceID(v.Device), Model: v.Model, Serial: v.Serial, Vendor: v.Vendor, Order: v.Order,
	}
}
