package store

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const listingColumns = `l.ek_hash, l.tenant, l.device, l.model, l.serial, l.site, l."group", l.vendor, l.batch, l.order_number, l.claim_hash, l.claimed_at FROM listing l`

func scanListing(r scanner) (l Listing, err error) {
	var claimed int64
	err = r.Scan(&l.EKHash, &l.Tenant, &l.Device, &l.Model, &l.Serial, &l.Site, &l.Group, &l.Vendor, &l.Batch, &l.Order, &l.ClaimHash, &claimed)
	l.ClaimedAt = at(claimed)
	return l, found(err)
}

// ImportEKs adds the lines that are not there yet to the list of tenant t and
// says how many. A key on another tenant's list, or on a vendor's that nobody
// has claimed, is fleet.ErrConflict, and nothing is added.
func (s *Store) ImportEKs(ctx context.Context, t fleet.TenantID, lines []Listing, ev fleet.AuditEvent) (added int, err error) {
	err = s.tx(ctx, func(ctx context.Context, w *writer) error {
		for _, l := range lines {
			l.Tenant, l.Vendor, l.Batch, l.Order, l.ClaimHash = t, "", "", "", ""
			n, err := w.insertListing(ctx, l, time.Time{})
			if err != nil {
				return err
			}
			var owner fleet.TenantID
			if err := w.row(ctx, `SELECT tenant FROM listing WHERE ek_hash = ?`, l.EKHash).Scan(&owner); err != nil {
				return err
			}
			switch owner {
			case t:
			case "":
				return fmt.Errorf("key %s is on a vendor's list and has to be claimed: %w", l.EKHash, fleet.ErrConflict)
			default:
				return fmt.Errorf("key %s is on another tenant's list: %w", l.EKHash, fleet.ErrConflict)
			}
			added += int(n)
		}
		return w.audit(ctx, t, ev)
	})
	if err != nil {
		return 0, fmt.Errorf("import EK list: %w", err)
	}
	return added, nil
}

func (w *writer) insertListing(ctx context.Context, l Listing, claimed time.Time) (int64, error) {
	return w.changed(ctx, `INSERT INTO listing (ek_hash, tenant, device, model, serial, site, "group", vendor, batch, order_number, claim_hash, claimed_at, added_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (ek_hash) DO NOTHING`,
		l.EKHash, l.Tenant, l.Device, l.Model, l.Serial, l.Site, l.Group, l.Vendor, l.Batch, l.Order, l.ClaimHash, ms(claimed), ms(w.now))
}

// ListedEK returns the line of that key on any list. It is for enrolment, which
// learns the tenant from it; without one, nobody has claimed the device.
func (s *Store) ListedEK(ctx context.Context, ekHash string) (Listing, error) {
	l, err := scanListing(s.read.QueryRowContext(ctx, `SELECT `+listingColumns+` WHERE l.ek_hash = ?`, ekHash))
	if err != nil {
		return Listing{}, fmt.Errorf("listed EK %s: %w", ekHash, err)
	}
	return l, nil
}

// ListedDevice is ListedEK for who knows the device by its id.
func (s *Store) ListedDevice(ctx context.Context, id fleet.DeviceID) (Listing, error) {
	l, err := scanListing(s.read.QueryRowContext(ctx, `SELECT `+listingColumns+` WHERE l.device = ? AND l.device <> ''`, id))
	if err != nil {
		return Listing{}, fmt.Errorf("listed device %s: %w", id, err)
	}
	return l, nil
}

// ListedClaim returns the line whose label has the code with that hash, for
// somebody who typed the code and nothing else. A code that is on no label, or
// was used before, is fleet.ErrClaim.
func (s *Store) ListedClaim(ctx context.Context, claimHash string) (Listing, error) {
	l, err := scanListing(s.read.QueryRowContext(ctx, `SELECT `+listingColumns+` WHERE l.claim_hash = ? AND l.claim_hash <> ''`, claimHash))
	if errors.Is(err, fleet.ErrNotFound) {
		err = fleet.ErrClaim
	}
	if err != nil {
		return Listing{}, fmt.Errorf("listed claim code: %w", err)
	}
	return l, nil
}

// ImportManifest adds the lines of a vendor's manifest that are not there yet,
// and says how many. A line without tenant waits to be claimed. A key on a
// tenant's list stays with the tenant and learns its vendor. A key that is on
// file by another vendor, for another tenant, as another device or with another
// claim code is fleet.ErrConflict, and nothing is added: an old manifest brings
// no old code back.
func (s *Store) ImportManifest(ctx context.Context, lines []Listing, ev fleet.AuditEvent) (added int, err error) {
	err = s.tx(ctx, func(ctx context.Context, w *writer) error {
		for _, l := range lines {
			if l.Vendor == "" {
				return fmt.Errorf("key %s has no vendor: %w", l.EKHash, fleet.ErrInvalid)
			}
			if l.Tenant != "" {
				l.ClaimHash = ""
			}
			n, err := w.insertListing(ctx, l, time.Time{})
			if err != nil {
				return err
			}
			if n == 0 {
				if err := w.matchListing(ctx, l); err != nil {
					return fmt.Errorf("key %s: %w", l.EKHash, err)
				}
			}
			added += int(n)
		}
		return w.audit(ctx, ev.Tenant, ev)
	})
	if err != nil {
		return 0, fmt.Errorf("import manifest: %w", err)
	}
	return added, nil
}

// matchListing compares a vendor's line with the one on file.
func (w *writer) matchListing(ctx context.Context, l Listing) error {
	have, err := scanListing(w.row(ctx, `SELECT `+listingColumns+` WHERE l.ek_hash = ?`, l.EKHash))
	switch {
	case err != nil:
		return err
	case have.Vendor != "" && have.Vendor != l.Vendor:
		return fmt.Errorf("it is on the list of vendor %s: %w", have.Vendor, fleet.ErrConflict)
	case l.Tenant != "" && have.Tenant != l.Tenant:
		return fmt.Errorf("it is not listed for tenant %s: %w", l.Tenant, fleet.ErrConflict)
	case have.Device != "" && have.Device != l.Device:
		return fmt.Errorf("it is listed as device %s: %w", have.Device, fleet.ErrConflict)
	case have.Serial != "" && have.Serial != l.Serial:
		return fmt.Errorf("it is listed in the box with serial number %s: %w", have.Serial, fleet.ErrConflict)
	case have.Tenant == "" && have.ClaimedAt.IsZero() && have.ClaimHash != l.ClaimHash:
		return fmt.Errorf("its label has another claim code: %w", fleet.ErrConflict)
	case have.Vendor != "":
		return nil
	}
	return w.exec(ctx, `UPDATE listing SET device = ?, vendor = ?, batch = ?, order_number = ?, serial = ? WHERE ek_hash = ?`,
		l.Device, l.Vendor, l.Batch, l.Order, l.Serial, l.EKHash)
}

// ClaimOrder gives the devices of a vendor's order that nobody has claimed to
// tenant t, on the caller's word that the order is his, and says how many.
// Devices that another tenant has claimed are fleet.ErrConflict, and none is
// given; an order nobody has heard of is fleet.ErrNotFound.
func (s *Store) ClaimOrder(ctx context.Context, t fleet.TenantID, vendor, order string, ev fleet.AuditEvent) (n int, err error) {
	err = s.tx(ctx, func(ctx context.Context, w *writer) error {
		if vendor == "" || order == "" {
			return fmt.Errorf("an order has a vendor and a number: %w", fleet.ErrInvalid)
		}
		rows, err := w.rows(ctx, `SELECT `+listingColumns+` WHERE l.vendor = ? AND l.order_number = ?`, vendor, order)
		lines, err := list(rows, err, scanListing)
		if err != nil {
			return err
		}
		if len(lines) == 0 {
			return fleet.ErrNotFound
		}
		n, err = w.assign(ctx, t, lines)
		if err != nil {
			return err
		}
		return w.audit(ctx, t, ev)
	})
	if err != nil {
		return 0, fmt.Errorf("claim order %s of %s: %w", order, vendor, err)
	}
	return n, nil
}

// Assign gives devices to tenant t on the caller's word: a voucher that names
// him, or a rule that lets him claim a waiting device. A line that is on no
// list is added. It says how many are new to him. One that another tenant holds
// is fleet.ErrConflict, and none is given.
func (s *Store) Assign(ctx context.Context, t fleet.TenantID, lines []Listing, ev fleet.AuditEvent) (n int, err error) {
	err = s.tx(ctx, func(ctx context.Context, w *writer) error {
		if n, err = w.assign(ctx, t, lines); err != nil {
			return err
		}
		return w.audit(ctx, t, ev)
	})
	if err != nil {
		return 0, fmt.Errorf("assign devices: %w", err)
	}
	return n, nil
}

func (w *writer) assign(ctx context.Context, t fleet.TenantID, lines []Listing) (n int, err error) {
	if t == "" {
		return 0, fmt.Errorf("assign to nobody: %w", fleet.ErrInvalid)
	}
	for _, l := range lines {
		have, err := scanListing(w.row(ctx, `SELECT `+listingColumns+` WHERE l.ek_hash = ?`, l.EKHash))
		switch {
		case errors.Is(err, fleet.ErrNotFound):
			l.Tenant, l.ClaimHash = t, ""
			if _, err := w.insertListing(ctx, l, w.now); err != nil {
				return 0, err
			}
		case err != nil:
			return 0, err
		case have.Tenant == t:
			continue
		case have.Tenant != "":
			return 0, fmt.Errorf("key %s is claimed by another tenant: %w", l.EKHash, fleet.ErrConflict)
		default:
			if err := w.setClaimed(ctx, l.EKHash, t, l.Site, l.Group); err != nil {
				return 0, err
			}
		}
		if err := w.elsewhere(ctx, t, l.EKHash); err != nil {
			return 0, err
		}
		n++
	}
	return n, nil
}

// elsewhere refuses a key that enrolled for another tenant.
func (w *writer) elsewhere(ctx context.Context, t fleet.TenantID, ekHash string) error {
	var tenant fleet.TenantID
	err := found(w.row(ctx, `SELECT tenant FROM device WHERE ek_hash = ?`, ekHash).Scan(&tenant))
	if errors.Is(err, fleet.ErrNotFound) || err == nil && tenant == t {
		return nil
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("key %s enrolled for another tenant: %w", ekHash, fleet.ErrConflict)
}

// setClaimed gives a listed device to t. Its code has done its work.
func (w *writer) setClaimed(ctx context.Context, ekHash string, t fleet.TenantID, site, group string) error {
	return w.exec(ctx, `UPDATE listing SET tenant = ?, site = ?, "group" = ?, claim_hash = '', claimed_at = ?, wrong_claims = 0, wrong_at = 0 WHERE ek_hash = ?`,
		t, site, group, ms(w.now), ekHash)
}

const (
	maxWrong  = 5                // claim codes in a row
	wrongLock = 10 * time.Minute // in which no code is looked at
)

// Claim gives a device that nobody owns to tenant t, whose people hold the code
// on its label. A code works once. A wrong or used one is fleet.ErrClaim and is
// counted: after five, no code is looked at for ten minutes. A device somebody
// has claimed is fleet.ErrConflict, one that no vendor has listed
// fleet.ErrNotFound.
//
// The count survives a power cut as the claim does, so cutting the power buys
// no guesses.
func (s *Store) Claim(ctx context.Context, t fleet.TenantID, device fleet.DeviceID, claimHash, site, group string, ev fleet.AuditEvent) error {
	var refused error
	err := s.tx(ctx, func(ctx context.Context, w *writer) (err error) {
		refused, err = w.claim(ctx, t, device, claimHash, site, group)
		if err != nil || refused != nil {
			return err
		}
		return w.audit(ctx, t, ev)
	})
	if err := errors.Join(refused, err); err != nil {
		return fmt.Errorf("claim device %s: %w", device, err)
	}
	return nil
}

func (w *writer) claim(ctx context.Context, t fleet.TenantID, device fleet.DeviceID, claimHash, site, group string) (refused, err error) {
	if t == "" || device == "" {
		return nil, fmt.Errorf("a claim has a tenant and a device: %w", fleet.ErrInvalid)
	}
	var ek, code string
	var tenant fleet.TenantID
	var wrong, wrongAt int64
	if err := w.row(ctx, `SELECT ek_hash, tenant, claim_hash, wrong_claims, wrong_at FROM listing WHERE device = ?`, device).
		Scan(&ek, &tenant, &code, &wrong, &wrongAt); err != nil {
		return nil, found(err)
	}
	if tenant != "" {
		return nil, fmt.Errorf("somebody has claimed it: %w", fleet.ErrConflict)
	}
	if err := w.elsewhere(ctx, "", ek); err != nil {
		return nil, err
	}
	if wrong >= maxWrong {
		if w.now.Before(at(wrongAt).Add(wrongLock)) {
			return nil, fmt.Errorf("too many wrong codes, wait %s: %w", wrongLock, fleet.ErrClaim)
		}
		wrong = 0
	}
	if code == "" || subtle.ConstantTimeCompare([]byte(code), []byte(claimHash)) != 1 {
		return fleet.ErrClaim, w.exec(ctx, `UPDATE listing SET wrong_claims = ?, wrong_at = ? WHERE ek_hash = ?`, wrong+1, ms(w.now), ek)
	}
	return nil, w.setClaimed(ctx, ek, t, site, group)
}
