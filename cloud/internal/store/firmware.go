package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// References returns the reference values of a model, in the order in which
// they came.
func (s *Store) References(ctx context.Context, model string) ([]fleet.BootReference, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT model, "release", body, published_at FROM boot_reference WHERE model = ? ORDER BY n`, model)
	items, err := list(rows, err, func(r scanner) (b fleet.BootReference, err error) {
		var published int64
		err = r.Scan(&b.Model, &b.Release, &b.Body, &published)
		b.PublishedAt = at(published)
		return b, err
	})
	if err != nil {
		return nil, fmt.Errorf("reference values of model %s: %w", model, err)
	}
	return items, nil
}

// PutReferences keeps reference values; those that are there already are
// nothing to do. Other values for the same model and release are
// fleet.ErrConflict, and nothing is kept.
func (s *Store) PutReferences(ctx context.Context, refs []fleet.BootReference) error {
	err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		for _, b := range refs {
			published := ms(b.PublishedAt)
			if published == 0 {
				published = ms(w.now)
			}
			n, err := w.changed(ctx, `INSERT INTO boot_reference (model, "release", body, published_at) VALUES (?, ?, ?, ?)
				ON CONFLICT (model, "release") DO NOTHING`, b.Model, b.Release, blob(b.Body), published)
			if err != nil {
				return err
			}
			if n == 1 {
				continue
			}
			var have []byte
			if err := w.row(ctx, `SELECT body FROM boot_reference WHERE model = ? AND "release" = ?`, b.Model, b.Release).Scan(&have); err != nil {
				return err
			}
			if !bytes.Equal(have, b.Body) {
				return fmt.Errorf("release %s has other values for model %s: %w", b.Release, b.Model, fleet.ErrConflict)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("keep reference values: %w", err)
	}
	return nil
}

// What devices can put before the people of one tenant for one model is
// bounded: nobody decides more, a till gone mad shall not fill the disk, nor one
// alone keep what the others show from being noted. One appraisal tells of 32.
const (
	maxUndecided = 1000
	maxOfOne     = 100
)

// SeeFirmware notes that a device of tenant t has shown firmware events that no
// reference values know. An event waits for a decision from the first time it
// is seen. When 1000 of a model wait, or 100 that this device was the first to
// show, further ones are not noted.
func (s *Store) SeeFirmware(ctx context.Context, t fleet.TenantID, model string, device fleet.DeviceID, events []fleet.FirmwareEvent) error {
	if len(events) == 0 {
		return nil
	}
	err := s.shared(ctx, func(ctx context.Context, w *writer) error {
		var one int
		if err := w.row(ctx, `SELECT 1 FROM device WHERE id = ? AND tenant = ?`, device, t).Scan(&one); err != nil {
			return found(err)
		}
		for _, e := range events {
			if err := w.seeFirmware(ctx, t, model, device, e); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("note firmware events of device %s: %w", device, err)
	}
	return nil
}

func (w *writer) seeFirmware(ctx context.Context, t fleet.TenantID, model string, device fleet.DeviceID, e fleet.FirmwareEvent) error {
	const which = ` FROM firmware_event WHERE tenant = ? AND model = ? AND pcr = ? AND digest = ?`
	var n int64
	err := found(w.row(ctx, `SELECT n`+which, t, model, e.PCR, e.Digest).Scan(&n))
	if errors.Is(err, fleet.ErrNotFound) {
		var undecided, ofOne int
		if err := w.row(ctx, `SELECT COUNT(*), COUNT(CASE WHEN first_device = ? THEN 1 END) FROM firmware_event WHERE tenant = ? AND model = ? AND state = 'open'`,
			device, t, model).Scan(&undecided, &ofOne); err != nil {
			return err
		}
		if undecided >= maxUndecided || ofOne >= maxOfOne {
			return nil
		}
		err = w.row(ctx, `INSERT INTO firmware_event (tenant, model, pcr, digest, what, first_device, first_at, state) VALUES (?, ?, ?, ?, ?, ?, ?, 'open') RETURNING n`,
			t, model, e.PCR, e.Digest, text(e.What), device, ms(w.now)).Scan(&n)
	}
	if err != nil {
		return err
	}
	added, err := w.changed(ctx, `INSERT INTO firmware_sighting (event, device) VALUES (?, ?) ON CONFLICT DO NOTHING`, n, device)
	if err != nil || added == 0 {
		return err
	}
	return w.exec(ctx, `UPDATE firmware_event SET devices = devices + 1 WHERE n = ?`, n)
}

// FirmwareEvents lists the firmware events of tenant t, newest first; an empty
// model or state is all of them.
func (s *Store) FirmwareEvents(ctx context.Context, t fleet.TenantID, model string, state fleet.Approval, p fleet.Page) (items []fleet.FirmwareEvent, next string, err error) {
	start, err := after(p, newest)
	if err != nil {
		return nil, "", err
	}
	query, args := `SELECT n, tenant, model, pcr, digest, what, devices, first_at, first_device, state, decided_by, decided_at
		FROM firmware_event WHERE tenant = ? AND n < ?`, []any{t, start}
	if model != "" {
		query, args = query+` AND model = ?`, append(args, model)
	}
	if state != "" {
		query, args = query+` AND state = ?`, append(args, state)
	}
	limit := p.Bounded()
	rows, err := s.read.QueryContext(ctx, query+` ORDER BY n DESC LIMIT ?`, append(args, limit+1)...)
	found, err := list(rows, err, func(r scanner) (numbered[fleet.FirmwareEvent], error) {
		var e numbered[fleet.FirmwareEvent]
		var first, decided int64
		err := r.Scan(&e.n, &e.v.Tenant, &e.v.Model, &e.v.PCR, &e.v.Digest, &e.v.What, &e.v.Devices, &first, &e.v.First, &e.v.State, &e.v.By, &decided)
		e.v.FirstAt, e.v.At = at(first), at(decided)
		return e, err
	})
	if err != nil {
		return nil, "", fmt.Errorf("list firmware events: %w", err)
	}
	items, next = values(found, limit)
	return items, next, nil
}

// FirmwareDecisions returns what tenant t has decided about the firmware
// events of a model, by "pcr:digest" with the digest in hex. An event that
// waits is not among them.
func (s *Store) FirmwareDecisions(ctx context.Context, t fleet.TenantID, model string) (map[string]fleet.Approval, error) {
	decisions := map[string]fleet.Approval{}
	rows, err := s.read.QueryContext(ctx, `SELECT pcr, digest, state FROM firmware_event WHERE tenant = ? AND model = ? AND state <> 'open'`, t, model)
	_, err = list(rows, err, func(r scanner) (struct{}, error) {
		var pcr int
		var digest string
		var state fleet.Approval
		err := r.Scan(&pcr, &digest, &state)
		decisions[key(pcr, digest)] = state
		return struct{}{}, err
	})
	if err != nil {
		return nil, fmt.Errorf("decisions on firmware events of model %s: %w", model, err)
	}
	return decisions, nil
}

// DecideFirmware decides a firmware event for all devices of that model of
// tenant t; fleet.ApprovalOpen takes a decision back. The devices that have
// shown it are judged in full the next time.
func (s *Store) DecideFirmware(ctx context.Context, t fleet.TenantID, model string, pcr int, digest string, to fleet.Approval, ev fleet.AuditEvent) error {
	err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		var by string
		var when time.Time
		switch to {
		case fleet.ApprovalGranted, fleet.ApprovalRejected:
			by, when = ev.Actor, w.now
		case fleet.ApprovalOpen:
		default:
			return fmt.Errorf("%.40q is no decision: %w", to, fleet.ErrInvalid)
		}
		var n int64
		if err := w.row(ctx, `UPDATE firmware_event SET state = ?, decided_by = ?, decided_at = ?
			WHERE tenant = ? AND model = ? AND pcr = ? AND digest = ? RETURNING n`, to, by, ms(when), t, model, pcr, digest).Scan(&n); err != nil {
			return found(err)
		}
		if err := w.exec(ctx, `UPDATE device SET boot_digest = X'' WHERE id IN (SELECT device FROM firmware_sighting WHERE event = ?)
			OR ? <> 0 AND tenant = ? AND model = ?`, n, to != fleet.ApprovalGranted, t, model); err != nil {
			return err
		}
		return w.audit(ctx, t, ev)
	})
	if err != nil {
		return fmt.Errorf("decide firmware event %s of model %s: %w", key(pcr, digest), model, err)
	}
	return nil
}
