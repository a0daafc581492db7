package store

import (
	"context"
	"fmt"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// PutFigures keeps rows of figures, in one commit with whatever else waits; one
// of the same part, step and time is replaced.
func (s *Store) PutFigures(ctx context.Context, rows []fleet.FigureRow) error {
	if err := s.shared(ctx, func(ctx context.Context, w *writer) error { return w.putFigures(ctx, rows) }); err != nil {
		return fmt.Errorf("keep figures: %w", err)
	}
	return nil
}

func (w *writer) putFigures(ctx context.Context, rows []fleet.FigureRow) error {
	for _, r := range rows {
		if err := w.exec(ctx, `INSERT INTO figures (step, at, part, body) VALUES (?, ?, ?, ?)
			ON CONFLICT (step, at, part) DO UPDATE SET body = excluded.body`, r.Step.Milliseconds(), ms(r.At), r.Part, blob(r.Body)); err != nil {
			return err
		}
	}
	return nil
}

// Figures lists rows of a step from a time up to another, by time; of all parts
// when part is empty.
func (s *Store) Figures(ctx context.Context, part string, step time.Duration, from, to time.Time) ([]fleet.FigureRow, error) {
	query, args := `SELECT part, at, body FROM figures WHERE step = ? AND at >= ? AND at < ?`, []any{step.Milliseconds(), ms(from), ms(to)}
	if part != "" {
		query, args = query+` AND part = ?`, append(args, part)
	}
	rows, err := s.read.QueryContext(ctx, query+` ORDER BY at, part`, args...)
	out, err := list(rows, err, func(r scanner) (f fleet.FigureRow, err error) {
		var when int64
		err = r.Scan(&f.Part, &when, &f.Body)
		f.Step, f.At = step, at(when)
		return f, err
	})
	if err != nil {
		return nil, fmt.Errorf("figures: %w", err)
	}
	return out, nil
}

// RollFigures puts rows in the place of all of a step before a time, and drops
// hours that began before oldest.
func (s *Store) RollFigures(ctx context.Context, rows []fleet.FigureRow, step time.Duration, before, oldest time.Time) error {
	err := s.shared(ctx, func(ctx context.Context, w *writer) error {
		if err := w.putFigures(ctx, rows); err != nil {
			return err
		}
		if err := w.exec(ctx, `DELETE FROM figures WHERE step = ? AND at < ?`, step.Milliseconds(), ms(before)); err != nil {
			return err
		}
		return w.exec(ctx, `DELETE FROM figures WHERE step > ? AND at < ?`, step.Milliseconds(), ms(oldest))
	})
	if err != nil {
		return fmt.Errorf("roll figures up: %w", err)
	}
	return nil
}
