package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// Trails lists entries of all trails behind row n, in the order they were
// stored. It is for the export, which is the service's and no tenant's.
func (s *Store) Trails(ctx context.Context, n int64, limit int) ([]fleet.TrailEntry, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT n, `+auditColumns+` FROM audit WHERE n > ? ORDER BY n LIMIT ?`, n, limit)
	out, err := list(rows, err, scanTrail)
	if err != nil {
		return nil, fmt.Errorf("trails behind row %d: %w", n, err)
	}
	return out, nil
}

func scanTrail(r scanner) (e fleet.TrailEntry, err error) {
	e.AuditEvent, err = scanAudit(behind{&e.N, r})
	return e, err
}

// behind reads a row's number before what is read of it.
type behind struct {
	n *int64
	r scanner
}

func (b behind) Scan(dest ...any) error { return b.r.Scan(append([]any{b.n}, dest...)...) }

// TrailsEnd returns the newest row of all trails; 0 before the first.
func (s *Store) TrailsEnd(ctx context.Context) (n int64, err error) {
	if err := s.read.QueryRowContext(ctx, `SELECT COALESCE(MAX(n), 0) FROM audit`).Scan(&n); err != nil {
		return 0, fmt.Errorf("end of the trails: %w", err)
	}
	return n, nil
}

// Cursor returns how far a sink has come; fleet.ErrNotFound when it is new.
func (s *Store) Cursor(ctx context.Context, sink string) (c fleet.ExportCursor, err error) {
	var when, stalled int64
	err = s.read.QueryRowContext(ctx, `SELECT n, sent, lost, at, last, skipped, stalled_at FROM export WHERE sink = ?`, sink).Scan(&c.N, &c.Sent, &c.Lost, &when, &c.Last, &c.Skipped, &stalled)
	if err != nil {
		return c, fmt.Errorf("cursor of sink %s: %w", sink, found(err))
	}
	c.At, c.StalledAt = at(when), at(stalled)
	return c, nil
}

// SetCursor moves the cursor of a sink, and never back, in one transaction
// with the events that tell of it.
func (s *Store) SetCursor(ctx context.Context, sink string, c fleet.ExportCursor, events ...fleet.AuditEvent) error {
	err := s.shared(ctx, func(ctx context.Context, w *writer) error {
		n, err := w.changed(ctx, `INSERT INTO export (sink, n, sent, lost, at, last, skipped, stalled_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (sink) DO UPDATE SET n = excluded.n, sent = excluded.sent, lost = excluded.lost, at = excluded.at, last = excluded.last,
			skipped = excluded.skipped, stalled_at = excluded.stalled_at WHERE excluded.n >= export.n`,
			sink, c.N, c.Sent, c.Lost, ms(c.At), c.Last, c.Skipped, ms(c.StalledAt))
		if err == nil && n == 0 {
			err = errBack
		}
		if err != nil {
			return err
		}
		for _, ev := range events {
			if err := w.audit(ctx, ev.Tenant, ev); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("cursor of sink %s: %w", sink, err)
	}
	return nil
}

var errBack = errors.New("it does not go back")
