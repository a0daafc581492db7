package spool

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"strings"
)

const (
	shedCounter = "spool.shed"
	rowOverhead = 64        // bytes a message costs beside its payload and channel
	maxFetched  = 256 << 10 // bytes that one Next hands out
	keptTenth   = 10        // the last tenth of the quota is for what has happened already
)

// Put stores one message. It returns when the message survives a power cut.
func (s *Spool) Put(ctx context.Context, class, channel string, payload []byte) error {
	return s.Compose(ctx, class, channel, func() ([]byte, error) { return payload, nil }, nil)
}

// Compose stores the message that compose makes and adds counts to counters,
// all or nothing. compose runs inside the transaction, so messages that it
// numbers are queued in the order of their numbers; it may run twice and must
// not call the spool. With no room left it returns ErrFull; telemetry that is
// refused so counts as shed.
func (s *Spool) Compose(ctx context.Context, class, channel string, compose func() ([]byte, error), counts map[string]uint64) error {
	switch class {
	case Keep, Telemetry, Latest:
	default:
		return fmt.Errorf("spool class %q is not known", class)
	}
	err := s.write(ctx, "FULL", func(t *tx) error {
		payload, err := compose()
		if err != nil {
			return err
		}
		if err := t.put(class, channel, payload); err != nil {
			return err
		}
		for name, n := range counts {
			if err := t.count(name, n); err != nil {
				return err
			}
		}
		return nil
	})
	if class == Telemetry && errors.Is(err, ErrFull) {
		lost := s.write(ctx, "NORMAL", func(t *tx) error { return t.shed(1) })
		return errors.Join(err, lost)
	}
	return err
}

// Next hands waiting messages with an id above after to yield, oldest first:
// at most limit of them, and fewer when they are large. With channels it keeps
// to those. Nothing is removed: that is Done's.
func (s *Spool) Next(ctx context.Context, after uint64, limit int, channels []string, yield func(id uint64, channel string, payload []byte)) error {
	type item struct {
		id      uint64
		channel string
		payload []byte
	}
	query := "SELECT id, class, channel, payload FROM message WHERE id > ?"
	args := []any{after}
	if len(channels) > 0 {
		query += " AND channel IN (?" + strings.Repeat(", ?", len(channels)-1) + ")"
		for _, c := range channels {
			args = append(args, c)
		}
	}
	var items []item
	var foreign []uint64
	err := s.read(ctx, func(c *sql.Conn) error {
		rows, err := c.QueryContext(context.Background(), query+" ORDER BY id LIMIT ?", append(args, limit)...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for size := 0; size < maxFetched && rows.Next(); {
			var i item
			var class string
			if err := rows.Scan(&i.id, &class, &i.channel, &i.payload); err != nil {
				return err
			}
			i.payload, err = s.safe.unpack(ofMessage(class, i.channel), i.payload)
			switch {
			case errors.Is(err, ErrKey):
				return err
			case err != nil: // nobody can read it again; it shows as a gap at the service
				foreign = append(foreign, i.id)
				continue
			}
			items, size = append(items, i), size+len(i.payload)
		}
		return rows.Err()
	})
	if err != nil {
		return fmt.Errorf("read spool: %w", err)
	}
	if len(foreign) > 0 {
		s.log.Error("messages in the spool were changed from outside and are given up", "count", len(foreign))
		if err := s.Done(ctx, foreign...); err != nil {
			return err
		}
		if len(items) == 0 {
			return s.Next(ctx, after, limit, channels, yield)
		}
	}
	for _, i := range items {
		yield(i.id, i.channel, i.payload)
	}
	return nil
}

// Done forgets messages that the service has stored. A power cut right after
// may bring them back; they are then sent again and dropped as duplicates.
func (s *Spool) Done(ctx context.Context, ids ...uint64) error {
	if len(ids) == 0 {
		return nil
	}
	return s.write(ctx, "NORMAL", func(t *tx) error {
		for _, id := range ids {
			if _, err := t.remove("DELETE FROM message WHERE id = ? RETURNING class, size", id); err != nil {
				return err
			}
		}
		return nil
	})
}

// Wake is signalled when messages have been put. It holds at most one signal,
// so it has one reader.
func (s *Spool) Wake() <-chan struct{} { return s.wake }

// Depth returns how many messages wait.
func (s *Spool) Depth() uint64 {
	s.lock <- struct{}{}
	defer func() { <-s.lock }()
	rows, _ := s.used.total()
	return uint64(rows)
}

// Waiting returns how many messages of the channels wait.
func (s *Spool) Waiting(ctx context.Context, channels ...string) (n int, err error) {
	args := make([]any, len(channels))
	for i, c := range channels {
		args[i] = c
	}
	err = s.read(ctx, func(c *sql.Conn) error {
		return c.QueryRowContext(context.Background(),
			"SELECT count(*) FROM message WHERE channel IN (''"+strings.Repeat(", ?", len(channels))+")", args...).Scan(&n)
	})
	return n, err
}

// Shed returns how many telemetry messages were given up for lack of space
// since provisioning.
func (s *Spool) Shed() uint64 {
	s.lock <- struct{}{}
	defer func() { <-s.lock }()
	return s.used.shed
}

// Full reports whether only the last tenth of the quota is left for what must
// be kept. Risky actions are refused from here on, so that there is room left
// to record what happens anyway.
func (s *Spool) Full() bool {
	s.lock <- struct{}{}
	defer func() { <-s.lock }()
	return s.used.bytes[Keep]+s.used.bytes[Latest] > s.max-s.max/keptTenth
}

func (s *Spool) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// tx is one transaction under way. It counts for itself; the spool takes its
// numbers over when it is committed.
type tx struct {
	s     *Spool
	used  totals
	added bool
}

// write runs do in one transaction. A context that ends while it waits for its
// turn ends it; once begun, a transaction is not torn off half-way. When the
// file cannot grow, the log is written back into pages that are there, and do
// runs once more.
func (s *Spool) write(ctx context.Context, sync string, do func(*tx) error) error {
	select {
	case s.lock <- struct{}{}:
		defer func() { <-s.lock }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if s.conn == nil {
		return ErrClosed
	}
	err := typed(s.attempt(sync, do))
	if errors.Is(err, ErrDisk) {
		if _, err := s.conn.ExecContext(context.Background(), "PRAGMA wal_checkpoint(RESTART)"); err != nil {
			s.log.Warn("spool log could not be written back", "error", err)
		}
		err = typed(s.attempt(sync, do))
	}
	return err
}

func (s *Spool) attempt(sync string, do func(*tx) error) error {
	if s.sync != sync {
		if err := s.exec("PRAGMA synchronous=" + sync); err != nil {
			return err
		}
		s.sync = sync
	}
	if err := s.exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	t := &tx{s: s, used: totals{rows: maps.Clone(s.used.rows), bytes: maps.Clone(s.used.bytes), shed: s.used.shed}}
	if err := do(t); err != nil {
		s.rollback()
		return err
	}
	if err := s.exec("COMMIT"); err != nil {
		s.rollback()
		return err
	}
	s.used = t.used
	if t.added {
		s.notify()
	}
	return nil
}

func (s *Spool) read(ctx context.Context, do func(*sql.Conn) error) error {
	select {
	case s.lock <- struct{}{}:
		defer func() { <-s.lock }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if s.conn == nil {
		return ErrClosed
	}
	return do(s.conn)
}

func (s *Spool) exec(statement string) error {
	_, err := s.conn.ExecContext(context.Background(), statement)
	return err
}

// rollback ends a transaction that failed; SQLite may have ended it by itself.
func (s *Spool) rollback() {
	_, _ = s.conn.ExecContext(context.Background(), "ROLLBACK")
}

func (t *tx) put(class, channel string, payload []byte) error {
	if err := t.supersede(class, channel); err != nil {
		return err
	}
	if err := t.makeRoom(class, t.size(channel, payload)); err != nil {
		return err
	}
	return t.insert(class, channel, payload)
}

// supersede makes way for the newest of a channel.
func (t *tx) supersede(class, channel string) error {
	if class != Latest {
		return nil
	}
	_, err := t.remove("DELETE FROM message WHERE class = ? AND channel = ? RETURNING class, size", Latest, channel)
	return err
}

// size is what a message counts for, whether the file is locked or not.
func (t *tx) size(channel string, payload []byte) int64 {
	return int64(len(payload) + len(channel) + rowOverhead)
}

func (t *tx) insert(class, channel string, payload []byte) error {
	size := t.size(channel, payload)
	if payload == nil {
		payload = []byte{}
	}
	payload, err := t.s.safe.pack(ofMessage(class, channel), payload)
	if err != nil {
		return err
	}
	_, err = t.s.conn.ExecContext(context.Background(),
		"INSERT INTO message (class, channel, size, payload) VALUES (?, ?, ?, ?)", class, channel, size, payload)
	if err != nil {
		return err
	}
	t.used.rows[class]++
	t.used.bytes[class] += size
	t.added = true
	return nil
}

// makeRoom sheds telemetry until size bytes of class fit. Telemetry itself
// stays within three quarters of the quota.
func (t *tx) makeRoom(class string, size int64) error {
	short := func() int64 {
		_, total := t.used.total()
		over := total + size - t.s.max
		if class == Telemetry {
			over = max(over, t.used.bytes[Telemetry]+size-t.s.max/4*3)
		}
		return over
	}
	if short() > 0 {
		if err := t.thin(); err != nil {
			return err
		}
	}
	for short() > 0 {
		n, err := t.remove(`DELETE FROM message WHERE id IN
			(SELECT id FROM message WHERE class = ? ORDER BY id LIMIT 8) RETURNING class, size`, Telemetry)
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("%d bytes over the quota of %d: %w", short(), t.s.max, ErrFull)
		}
		if err := t.shed(n); err != nil {
			return err
		}
	}
	return nil
}

// thin gives up every second message of the older half of telemetry: the curve
// of last week loses points before the one of today loses its beginning. Each
// message is thinned at most once.
func (t *tx) thin() error {
	half := t.used.rows[Telemetry] / 2
	n, err := t.remove(`DELETE FROM message WHERE id IN (
		SELECT id FROM (
			SELECT id, row_number() OVER (ORDER BY id) AS nth FROM (
				SELECT id, thinned FROM message WHERE class = ? ORDER BY id LIMIT ?
			) WHERE thinned = 0
		) WHERE nth % 2 = 0) RETURNING class, size`, Telemetry, half)
	if err != nil || n == 0 {
		return err
	}
	_, err = t.s.conn.ExecContext(context.Background(),
		"UPDATE message SET thinned = 1 WHERE id IN (SELECT id FROM message WHERE class = ? ORDER BY id LIMIT ?)", Telemetry, half-n)
	if err != nil {
		return err
	}
	return t.shed(n)
}

// remove runs a DELETE ... RETURNING class, size and returns how many went.
func (t *tx) remove(query string, args ...any) (int64, error) {
	rows, err := t.s.conn.QueryContext(context.Background(), query, args...)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	var n int64
	for rows.Next() {
		var class string
		var size int64
		if err := rows.Scan(&class, &size); err != nil {
			return 0, err
		}
		t.used.rows[class]--
		t.used.bytes[class] -= size
		n++
	}
	return n, rows.Err()
}

func (t *tx) shed(n int64) error {
	t.used.shed += uint64(n)
	return t.count(shedCounter, uint64(n))
}
