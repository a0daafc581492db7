package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const (
	keptWaiting  = 30 * 24 * time.Hour // after a device asked last
	maxWaiting   = 10_000              // devices; anybody with a TPM can ask
	waitingPause = time.Minute         // between two notes that say the same
)

// NoteWaiting notes that a genuine device asked and that nobody owns it. What
// it says again within a minute is not written. Devices that have not asked
// for 30 days are dropped, and beyond 10,000 those first that nobody vouches
// for.
func (s *Store) NoteWaiting(ctx context.Context, d fleet.Waiting) error {
	when := d.LastAt
	if when.IsZero() {
		when = time.Now()
	}
	have, err := scanWaiting(s.read.QueryRowContext(ctx, `SELECT w.device, w.ek_hash, w.tier, w.model, w.serial, w.source, w.first_at, w.last_at, 0, 0 FROM waiting w WHERE w.device = ?`, d.Device))
	if err == nil && when.Before(have.LastAt.Add(waitingPause)) {
		d.FirstAt, d.LastAt, d.Listed, d.Claimed = have.FirstAt, have.LastAt, false, false
		if d == have {
			return nil
		}
	}
	if err == nil || errors.Is(err, fleet.ErrNotFound) {
		err = s.shared(ctx, func(ctx context.Context, w *writer) error { return w.noteWaiting(ctx, d, when) })
	}
	if err != nil {
		return fmt.Errorf("note waiting device %s: %w", d.Device, err)
	}
	return nil
}

func (w *writer) noteWaiting(ctx context.Context, d fleet.Waiting, when time.Time) error {
	if err := w.exec(ctx, `INSERT INTO waiting (device, ek_hash, tier, model, serial, source, first_at, last_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (device) DO UPDATE SET ek_hash = excluded.ek_hash, tier = excluded.tier, model = excluded.model, serial = excluded.serial,
		source = excluded.source, last_at = excluded.last_at`,
		d.Device, d.EKHash, d.Tier, d.Model, d.Serial, d.From, ms(when), ms(when)); err != nil {
		return err
	}
	if err := w.exec(ctx, `DELETE FROM waiting WHERE last_at < ?`, ms(when.Add(-keptWaiting))); err != nil {
		return err
	}
	var n int
	if err := w.row(ctx, `SELECT COUNT(*) FROM waiting`).Scan(&n); err != nil || n <= maxWaiting {
		return err
	}
	return w.exec(ctx, `DELETE FROM waiting WHERE device = (SELECT device FROM waiting WHERE device <> ? ORDER BY tier <> '', last_at LIMIT 1)`, d.Device)
}

func scanWaiting(r scanner) (d fleet.Waiting, err error) {
	var first, last int64
	err = r.Scan(&d.Device, &d.EKHash, &d.Tier, &d.Model, &d.Serial, &d.From, &first, &last, &d.Listed, &d.Claimed)
	d.FirstAt, d.LastAt = at(first), at(last)
	return d, found(err)
}

// Waiting lists the devices that asked and that nobody owns, and those that
// tenant t has claimed and that have not come back since, by id. What belongs
// to another tenant is not among them.
func (s *Store) Waiting(ctx context.Context, t fleet.TenantID, p fleet.Page) (items []fleet.Waiting, next string, err error) {
	limit := p.Bounded()
	rows, err := s.read.QueryContext(ctx, `SELECT w.device, w.ek_hash, w.tier, w.model, w.serial, w.source, w.first_at, w.last_at,
		COALESCE(l.vendor, '') <> '', COALESCE(l.tenant, '') <> ''
		FROM waiting w LEFT JOIN listing l ON l.ek_hash = w.ek_hash
		WHERE w.device > ? AND w.last_at >= ? AND COALESCE(l.tenant, '') IN ('', ?) AND NOT EXISTS (SELECT 1 FROM device d WHERE d.ek_hash = w.ek_hash)
		ORDER BY w.device LIMIT ?`, p.After, ms(time.Now().Add(-keptWaiting)), t, limit+1)
	items, err = list(rows, err, scanWaiting)
	if err != nil {
		return nil, "", fmt.Errorf("list waiting devices: %w", err)
	}
	items, next = page(items, limit, func(d fleet.Waiting) string { return string(d.Device) })
	return items, next, nil
}
