package store

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// Series lists what a device of tenant t measures, by peripheral and name.
func (s *Store) Series(ctx context.Context, t fleet.TenantID, id fleet.DeviceID) ([]SeriesInfo, error) {
	if err := s.owns(ctx, t, id); err != nil {
		return nil, fmt.Errorf("series: %w", err)
	}
	rows, err := s.read.QueryContext(ctx, `SELECT peripheral, name, last, last_at, count FROM series WHERE device = ? ORDER BY peripheral, name`, id)
	items, err := list(rows, err, scanSeries)
	if err != nil {
		return nil, fmt.Errorf("series of %s: %w", id, err)
	}
	return items, nil
}

func scanSeries(r scanner) (i SeriesInfo, err error) {
	var when int64
	err = r.Scan(&i.Peripheral, &i.Name, &i.Last, &when, &i.Count)
	i.At = at(when)
	return i, err
}

// Points returns one series of a device of tenant t from from up to to, by
// time; a zero time leaves that side open. When there are more than limit (at
// most 10,000, 0 means 500) the span is cut into limit equal parts, and each
// part that holds something gives the mean of its times and values.
func (s *Store) Points(ctx context.Context, t fleet.TenantID, id fleet.DeviceID, peripheral, name string, from, to time.Time, limit int) ([]Point, error) {
	if err := s.owns(ctx, t, id); err != nil {
		return nil, fmt.Errorf("points: %w", err)
	}
	if limit <= 0 {
		limit = 500
	}
	limit = min(limit, 10_000)
	lo, hi := ms(from), int64(math.MaxInt64)
	if !to.IsZero() {
		hi = ms(to)
	}
	items, err := s.points(ctx, id, peripheral, name, lo, hi, limit)
	if err != nil {
		return nil, fmt.Errorf("points of %s: %w", id, err)
	}
	return items, nil
}

func (s *Store) points(ctx context.Context, id fleet.DeviceID, peripheral, name string, lo, hi int64, limit int) ([]Point, error) {
	var series int64
	err := found(s.read.QueryRowContext(ctx, `SELECT id FROM series WHERE device = ? AND peripheral = ? AND name = ?`, id, peripheral, name).Scan(&series))
	if err != nil {
		return nil, fmt.Errorf("series %s %s: %w", peripheral, name, err)
	}
	var n, first, last int64
	if err := s.read.QueryRowContext(ctx, `SELECT COUNT(*), COALESCE(MIN(at), 0), COALESCE(MAX(at), 0) FROM sample WHERE series = ? AND at >= ? AND at < ?`,
		series, lo, hi).Scan(&n, &first, &last); err != nil {
		return nil, err
	}
	query, args := `SELECT at, value FROM sample WHERE series = ? AND at >= ? AND at < ? ORDER BY at`, []any{series, lo, hi}
	if n > int64(limit) {
		width := (last-first)/int64(limit) + 1
		query, args = `SELECT CAST(AVG(at) AS BIGINT), AVG(value) FROM sample WHERE series = ? AND at >= ? AND at < ?
			GROUP BY (at - ?) / ? ORDER BY 1`, append(args, first, width)
	}
	rows, err := s.read.QueryContext(ctx, query, args...)
	return list(rows, err, func(r scanner) (Point, error) {
		var p Point
		var when int64
		err := r.Scan(&when, &p.Value)
		p.At = at(when)
		return p, err
	})
}

// Events lists what happened on the peripherals of a device of tenant t, as it
// was stored, newest first.
func (s *Store) Events(ctx context.Context, t fleet.TenantID, id fleet.DeviceID, p fleet.Page) (items []fleet.PeripheralEvent, next string, err error) {
	if err := s.owns(ctx, t, id); err != nil {
		return nil, "", fmt.Errorf("events: %w", err)
	}
	start, err := after(p, newest)
	if err != nil {
		return nil, "", err
	}
	limit := p.Bounded()
	rows, err := s.read.QueryContext(ctx, `SELECT e.n, e.device, b.name, e.seq, e.idx, e.at, e.peripheral, e.category, e.code, e.from_value, e.to_value, e.mono, e.count
		FROM event e JOIN boot b ON b.id = e.boot WHERE e.device = ? AND e.n < ? ORDER BY e.n DESC LIMIT ?`, id, start, limit+1)
	found, err := list(rows, err, func(r scanner) (numbered[fleet.PeripheralEvent], error) {
		var e numbered[fleet.PeripheralEvent]
		var boot []byte
		var when int64
		err := r.Scan(&e.n, &e.v.Device, &boot, &e.v.Seq, &e.v.Index, &when, &e.v.Peripheral, &e.v.Category, &e.v.Code, &e.v.From, &e.v.To, &e.v.Mono, &e.v.Count)
		copy(e.v.Boot[:], boot)
		e.v.At = at(when)
		return e, err
	})
	if err != nil {
		return nil, "", fmt.Errorf("events of %s: %w", id, err)
	}
	items, next = values(found, limit)
	return items, next, nil
}

// numbered is a row with the number that orders it.
type numbered[T any] struct {
	n int64
	v T
}

func (n numbered[T]) key() string { return strconv.FormatInt(n.n, 10) }

// values cuts the list to the page and drops the numbers.
func values[T any](items []numbered[T], limit int) ([]T, string) {
	items, next := page(items, limit, numbered[T].key)
	out := make([]T, len(items))
	for i, it := range items {
		out[i] = it.v
	}
	return out, next
}
