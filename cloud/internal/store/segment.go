package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// Segments lists the sealed files with parts of trails: those of one device of
// tenant t, or with an empty id all that t may see, in the order they were made.
func (s *Store) Segments(ctx context.Context, t fleet.TenantID, id fleet.DeviceID, p fleet.Page) (items []fleet.Segment, next string, err error) {
	start, err := after(p, 0) // they grow at the end
	if err != nil {
		return nil, "", err
	}
	limit := p.Bounded()
	rows, err := s.read.QueryContext(ctx, segmentQuery+` AND n > ? AND (? = '' OR trail = ?) ORDER BY n LIMIT ?`, t, start, id, id, limit+1)
	if items, err = list(rows, err, scanSegment); err != nil {
		return nil, "", fmt.Errorf("list segments: %w", err)
	}
	items, next = page(items, limit, func(g fleet.Segment) string { return strconv.FormatInt(g.N, 10) })
	return items, next, nil
}

const segmentQuery = `SELECT n, trail, first, last, hash, entries, file, sha256, bytes, at FROM segment
	WHERE (trail = '' OR trail IN (SELECT id FROM device WHERE tenant = ?))`

func scanSegment(r scanner) (fleet.Segment, error) {
	var g fleet.Segment
	var hash, sum []byte
	var when int64
	err := r.Scan(&g.N, &g.Trail, &g.First, &g.Last, &hash, &g.Entries, &g.File, &sum, &g.Bytes, &when)
	copy(g.Hash[:], hash)
	copy(g.SHA256[:], sum)
	g.At = at(when)
	return g, found(err)
}

// Segment returns a segment that tenant t may see.
func (s *Store) Segment(ctx context.Context, t fleet.TenantID, n int64) (fleet.Segment, error) {
	g, err := scanSegment(s.read.QueryRowContext(ctx, segmentQuery+` AND n = ?`, t, n))
	if err != nil {
		return g, fmt.Errorf("segment %d: %w", n, err)
	}
	return g, nil
}

// Ripe finds, among the trails behind the one named, up to limit that have
// entries to put away: stored before due, and then all that were stored before
// until, without those behind row held of all trails, which a sink has not sent yet.
// The second result is where to go on; empty at the end.
func (s *Store) Ripe(ctx context.Context, from string, due, until time.Time, held int64, limit int) ([]fleet.RipeTrail, string, error) {
	type trailRow struct {
		ripe fleet.RipeTrail
		head uint64
	}
	rows, err := s.read.QueryContext(ctx, `SELECT t.device, COALESCE(d.tenant, ''), COALESCE(d.former_of, ''), t.base, t.base_hash, t.head FROM trail t
		LEFT JOIN device d ON d.id = t.device WHERE t.device >= ? ORDER BY t.device LIMIT ?`, from, limit+1)
	all, err := list(rows, err, func(r scanner) (t trailRow, err error) {
		var hash []byte
		err = r.Scan(&t.ripe.Device, &t.ripe.Tenant, &t.ripe.FormerOf, &t.ripe.From.Seq, &hash, &t.head)
		copy(t.ripe.From.Hash[:], hash)
		return t, err
	})
	if err != nil {
		return nil, "", fmt.Errorf("trails to put away: %w", err)
	}
	next := ""
	if len(all) > limit {
		next = string(all[limit].ripe.Device)
		all = all[:limit]
	}
	newest, err := s.TrailsEnd(ctx)
	if err != nil {
		return nil, "", err
	}
	var out []fleet.RipeTrail
	for _, t := range all {
		var n, stored int64
		err := found(s.read.QueryRowContext(ctx, `SELECT n, stored_at FROM audit WHERE device = ? AND seq > ? ORDER BY seq LIMIT 1`, t.ripe.Device, t.ripe.From.Seq).Scan(&n, &stored))
		if errors.Is(err, fleet.ErrNotFound) || err == nil && stored >= ms(due) {
			continue
		}
		if err == nil {
			// The last of those before the first that stays.
			err = s.read.QueryRowContext(ctx, `SELECT COALESCE(MAX(seq), 0) FROM audit WHERE device = ? AND seq > ? AND seq < COALESCE((SELECT seq FROM audit
				WHERE device = ? AND seq > ? AND (stored_at >= ? OR n > ? OR n >= ?) ORDER BY seq LIMIT 1), ?)`, t.ripe.Device, t.ripe.From.Seq, t.ripe.Device, t.ripe.From.Seq,
				ms(until), held, newest, t.head+1).Scan(&t.ripe.Last)
		}
		if err != nil {
			return nil, "", fmt.Errorf("entries of %s to put away: %w", t.ripe.Device, err)
		}
		if t.ripe.Held = n > held; t.ripe.Last > 0 || t.ripe.Held {
			out = append(out, t.ripe)
		}
	}
	return out, next, nil
}

// AddSegment notes that a sealed file holds a part of a trail, which begins
// behind it from now on. The rows go later, by DropArchived. Another
// segment than one that follows the last, with all that is there, is
// fleet.ErrConflict.
func (s *Store) AddSegment(ctx context.Context, t fleet.TenantID, g fleet.Segment, ev fleet.AuditEvent) error {
	err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		var base uint64
		var hash []byte
		if err := w.row(ctx, `SELECT base FROM trail WHERE device = ?`, g.Trail).Scan(&base); err != nil {
			return found(err)
		}
		if err := w.row(ctx, `SELECT hash FROM audit WHERE device = ? AND seq = ?`, g.Trail, g.Last).Scan(&hash); err != nil {
			return found(err)
		}
		if g.First <= base || g.Last < g.First || !bytes.Equal(hash, g.Hash[:]) {
			return fmt.Errorf("it is not what follows entry %d: %w", base, fleet.ErrConflict)
		}
		// What came late while the file was written is not in it, and would go with the rows that are.
		var entries uint64
		if err := w.row(ctx, `SELECT COUNT(*) FROM audit WHERE device = ? AND seq > ? AND seq <= ?`, g.Trail, base, g.Last).Scan(&entries); err != nil {
			return err
		}
		if entries != g.Entries {
			return fmt.Errorf("it holds %d entries, and by now there are %d: %w", g.Entries, entries, fleet.ErrConflict)
		}
		if err := w.exec(ctx, `INSERT INTO segment (trail, first, last, hash, entries, file, sha256, bytes, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			g.Trail, g.First, g.Last, g.Hash[:], g.Entries, g.File, g.SHA256[:], g.Bytes, ms(w.now)); err != nil {
			return err
		}
		if err := w.exec(ctx, `UPDATE trail SET base = ?, base_hash = ? WHERE device = ?`, g.Last, g.Hash[:], g.Trail); err != nil {
			return err
		}
		if err := w.exec(ctx, `DELETE FROM lost_range WHERE device = ? AND last <= ?`, g.Trail, g.Last); err != nil { // what is missing there excuses nothing behind
			return err
		}
		return w.audit(ctx, t, ev)
	})
	if err != nil {
		return fmt.Errorf("segment of the trail of %s: %w", g.Trail, err)
	}
	return nil
}

// DropArchived deletes up to limit rows of a trail that are in a segment, and
// says how many it deleted.
func (s *Store) DropArchived(ctx context.Context, id fleet.DeviceID, limit int) (n int64, err error) {
	err = s.tx(ctx, func(ctx context.Context, w *writer) error {
		var last uint64 // of the rows that go
		if err := w.row(ctx, `SELECT COALESCE(MAX(seq), 0) FROM (SELECT seq FROM audit WHERE device = ? AND seq <= (SELECT base FROM trail WHERE device = ?)
			AND n < (SELECT MAX(n) FROM audit) ORDER BY seq LIMIT ?) AS old`, id, id, limit).Scan(&last); err != nil {
			return err
		}
		n, err = w.dropTrail(ctx, id, last)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("delete what is archived of %s: %w", id, err)
	}
	return n, nil
}

// Undropped lists trails that still have rows that a segment holds.
func (s *Store) Undropped(ctx context.Context) ([]fleet.DeviceID, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT t.device FROM trail t WHERE t.base > 0 AND EXISTS (SELECT 1 FROM audit a WHERE a.device = t.device AND a.seq <= t.base)`)
	out, err := list(rows, err, func(r scanner) (id fleet.DeviceID, err error) { return id, r.Scan(&id) })
	if err != nil {
		return nil, fmt.Errorf("trails with rows that are archived: %w", err)
	}
	return out, nil
}
