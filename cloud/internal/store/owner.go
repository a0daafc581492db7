package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const ownershipQuery = `SELECT device, voucher, entries, owner, state, deadline FROM ownership`

// Ownership says where a device stands between two owners. One without a
// voucher is fleet.ErrNotFound. It is for enrolment and for whoever has read
// the device by its tenant.
func (s *Store) Ownership(ctx context.Context, device fleet.DeviceID) (fleet.Ownership, error) {
	o, err := scanOwnership(s.read.QueryRowContext(ctx, ownershipQuery+` WHERE device = ?`, device))
	if err != nil {
		return fleet.Ownership{}, fmt.Errorf("ownership of device %s: %w", device, err)
	}
	return o, nil
}

// Leaving lists the devices that give up their owner, or have and are still
// his. It is for the service, which finishes what it was stopped in.
func (s *Store) Leaving(ctx context.Context) ([]fleet.Ownership, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT o.device, o.voucher, o.entries, o.owner, o.state, o.deadline FROM ownership o
		JOIN device d ON d.id = o.device WHERE o.state IN ('releasing', 'released') ORDER BY o.device`)
	items, err := list(rows, err, scanOwnership)
	if err != nil {
		return nil, fmt.Errorf("list leaving devices: %w", err)
	}
	return items, nil
}

func scanOwnership(r scanner) (o fleet.Ownership, err error) {
	var deadline int64
	err = r.Scan(&o.Device, &o.Voucher, &o.Entries, &o.Owner, &o.State, &deadline)
	o.Deadline = at(deadline)
	return o, found(err)
}

// PutOwnership keeps where a device stands. Its voucher may only grow: a
// shorter one, and another one of the same length, is fleet.ErrConflict, also
// after the device has moved on. The entry of the trail is of the tenant that
// ev names.
func (s *Store) PutOwnership(ctx context.Context, o fleet.Ownership, ev fleet.AuditEvent) error {
	err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		have, err := scanOwnership(w.row(ctx, ownershipQuery+` WHERE device = ?`, o.Device))
		switch {
		case errors.Is(err, fleet.ErrNotFound):
		case err != nil:
			return err
		case o.Entries < have.Entries:
			return fmt.Errorf("its voucher has %d entries and %d were seen: %w", o.Entries, have.Entries, fleet.ErrConflict)
		case o.Entries == have.Entries && !bytes.Equal(o.Voucher, have.Voucher):
			return fmt.Errorf("its voucher has another entry %d than was seen: %w", o.Entries, fleet.ErrConflict)
		}
		if err := w.exec(ctx, `INSERT INTO ownership (device, voucher, entries, owner, state, deadline) VALUES (?, ?, ?, ?, ?, ?)
			ON CONFLICT (device) DO UPDATE SET voucher = excluded.voucher, entries = excluded.entries, owner = excluded.owner,
			state = excluded.state, deadline = excluded.deadline`,
			o.Device, blob(o.Voucher), o.Entries, o.Owner, o.State, ms(o.Deadline)); err != nil {
			return err
		}
		return w.audit(ctx, ev.Tenant, ev)
	})
	if err != nil {
		return fmt.Errorf("set ownership of device %s: %w", o.Device, err)
	}
	return nil
}

// Reset takes a device that was given up (fleet.Released) out of its tenant, so
// that another owner may enrol it; one that was not is fleet.ErrConflict, and
// one that is nobody's fleet.ErrNotFound.
//
// Its past stays with the tenant, as a device of its own that FormerOf leads
// back to the device: series, events, peripherals, commands, executions, appraisals and the
// audit trail, whose entries and hashes are as they were. The next owner
// begins with nothing of it. What is kept for him is what guards the device
// itself: its voucher, its tier and serial number, the release it has committed
// to and the counter of its commands.
//
// All of it happens at once: after a power cut the device is the old owner's or
// nobody's.
func (s *Store) Reset(ctx context.Context, device fleet.DeviceID, ev fleet.AuditEvent) error {
	err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		o, err := scanOwnership(w.row(ctx, ownershipQuery+` WHERE device = ?`, device))
		if err != nil && !errors.Is(err, fleet.ErrNotFound) {
			return err
		}
		tenant, err := w.unlist(ctx, device)
		if err != nil {
			return err
		}
		if o.State != fleet.Released {
			return fmt.Errorf("its owner has not given it up: %w", fleet.ErrConflict)
		}
		return w.audit(ctx, tenant, ev)
	})
	if err != nil {
		return fmt.Errorf("reset device %s: %w", device, err)
	}
	return nil
}

// unlist takes a device and its claim away from its tenant, whom it returns. One
// that never enrolled has no past to leave.
func (w *writer) unlist(ctx context.Context, device fleet.DeviceID) (tenant fleet.TenantID, err error) {
	var ek string
	err = found(w.row(ctx, `SELECT tenant, ek_hash FROM device WHERE id = ? AND former_of = ''`, device).Scan(&tenant, &ek))
	switch {
	case err == nil:
		err = w.leave(ctx, device)
	case errors.Is(err, fleet.ErrNotFound):
		err = found(w.row(ctx, `SELECT tenant, ek_hash FROM listing WHERE device = ? AND tenant <> ''`, device).Scan(&tenant, &ek))
	}
	if err != nil {
		return "", err
	}
	// The code on the label has done its work before; the next owner comes by the voucher.
	if err := w.exec(ctx, `UPDATE listing SET tenant = '', site = '', "group" = '', claimed_at = ? WHERE ek_hash = ? AND vendor <> ''`, ms(w.now), ek); err != nil {
		return "", err
	}
	return tenant, w.exec(ctx, `DELETE FROM listing WHERE ek_hash = ? AND vendor = ''`, ek)
}

// leave gives the past of a device a name of its own and removes the device.
func (w *writer) leave(ctx context.Context, device fleet.DeviceID) error {
	var n int
	if err := w.row(ctx, `SELECT COUNT(*) FROM device WHERE former_of = ?`, device).Scan(&n); err != nil {
		return err
	}
	former, now := fmt.Sprintf("%s.%d", device, n+1), ms(w.now)
	type step struct {
		query string
		args  []any
	}
	steps := []step{
		{`UPDATE command SET state = 'EXPIRED', code = 'released', ended_at = ? WHERE device = ? AND state IN ('QUEUED', 'SENT')`, []any{now, device}},
		{`UPDATE execution SET state = 'CANCELED', reason = 'released', entered_at = ?, updated_at = ?, version = version + 1,
			changed = (SELECT n FROM counter WHERE name = 'execution') WHERE device = ? AND state NOT IN ` + ended, []any{now, now, device}},
		{`INSERT INTO device (id, tenant, tier, model, serial, site, "group", label, ek_hash, ak_public, cert_serial, cert_not_after, trust, trust_reasons,
			attested_at, reset_count, online, enrolled_at, last_seen, samples, command_counter, findings, boot_release, revoked_at, revoked_why, installed, former_of, left_at)
			SELECT ?, tenant, tier, model, serial, site, "group", label, ?, ak_public, cert_serial, cert_not_after, 'stale', '["it was given up"]',
			attested_at, reset_count, 0, enrolled_at, last_seen, samples, command_counter, findings, boot_release, revoked_at, revoked_why, installed, id, ?
			FROM device WHERE id = ?`, []any{former, "former:" + former, now, device}},
		{`UPDATE firmware_event SET first_device = ? WHERE first_device = ?`, []any{former, device}},
	}
	for _, table := range []string{"state", "boot", "series", "event", "command", "execution", "attestation", "firmware_sighting", "trail", "lost_range", "attestation_key", "peripheral", "peripheral_span", "health_check", "usage"} {
		steps = append(steps, step{`UPDATE ` + table + ` SET device = ? WHERE device = ?`, []any{former, device}})
	}
	if _, err := w.count(ctx, "execution"); err != nil {
		return err
	}
	for _, step := range steps {
		if err := w.exec(ctx, step.query, step.args...); err != nil {
			return err
		}
	}
	if err := w.renameTrail(ctx, device, former); err != nil {
		return err
	}
	if err := w.exec(ctx, `DELETE FROM device WHERE id = ?`, device); err != nil {
		return err
	}
	w.forget() // the ids of its boots and series are of the past
	return w.moved(ctx)
}
