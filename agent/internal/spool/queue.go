package spool

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
)

const (
	rowOverhead = 64        // bytes a message costs beside its payload and channel
	maxFetched  = 256 << 10 // bytes that one Next hands out
	keptTenth   = 10        // the last tenth of the quota is for what has happened already
	doneAtOnce  = 64        // messages that are forgotten together
)

// Put stores one message. When it returns, the message survives the end of the
// agent at any moment; audit and results survive a power cut, the others once
// the window has passed.
func (s *Spool) Put(ctx context.Context, class, channel string, payload []byte) error {
	return s.Compose(ctx, class, channel, func() ([]byte, error) { return payload, nil }, nil)
}

// Compose stores the message that compose makes and adds counts to counters,
// all or nothing. compose runs inside the transaction, so messages that it
// numbers are queued in the order of their numbers; it may run again and must
// not call the spool. With no room left it returns ErrFull; telemetry and events
// that are refused so count as shed.
func (s *Spool) Compose(ctx context.Context, class, channel string, compose func() ([]byte, error), counts map[string]uint64) error {
	if err := known(class); err != nil {
		return err
	}
	var payload []byte
	err := s.write(ctx, careOf(class), func(t *tx) (err error) {
		if payload, err = compose(); err != nil {
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
	if (class == Telemetry || class == Event) && errors.Is(err, ErrFull) {
		lost := s.write(ctx, loose, func(t *tx) error { return t.shed(class, channel, payload) })
		return errors.Join(err, lost)
	}
	if (class == Telemetry || class == Event) && errors.Is(err, ErrDisk) {
		s.owe(class, channel, payload)
	}
	return err
}

// owe notes the loss of a message that the medium did not take. It is booked
// with the next that it takes.
func (s *Spool) owe(class, channel string, payload []byte) {
	s.lock <- struct{}{}
	defer func() { <-s.lock }()
	t := tx{s: s, losses: s.owed}
	loss := t.tally(channel, payload)
	loss.Messages = 1
	t.lose(class, loss)
	s.owed = t.losses
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
		rows, err := c.QueryContext(context.Background(), query+" ORDER BY id LIMIT ?", append(args, limit+len(s.gone))...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for size := 0; size < maxFetched && len(items) < limit && rows.Next(); {
			var i item
			var class string
			if err := rows.Scan(&i.id, &class, &i.channel, &i.payload); err != nil {
				return err
			}
			if _, ok := s.gone[i.id]; ok {
				continue
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

// Done forgets messages that the service has stored. What is not kept for its
// own sake goes with the next that is written. The end of the agent in between,
// or a power cut a while after, may bring messages back; they are then sent again
// and dropped as duplicates.
func (s *Spool) Done(ctx context.Context, ids ...uint64) error {
	if len(ids) == 0 {
		return nil
	}
	now := false
	err := s.read(ctx, func(c *sql.Conn) error {
		for _, id := range ids {
			var class string
			err := c.QueryRowContext(context.Background(), "SELECT class FROM message WHERE id = ?", id).Scan(&class)
			if errors.Is(err, sql.ErrNoRows) {
				continue
			}
			if err != nil {
				return err
			}
			s.gone[id] = struct{}{}
			now = now || kept(class)
		}
		now = now || len(s.gone) >= doneAtOnce
		return nil
	})
	if err != nil || !now {
		return err
	}
	return s.write(ctx, forgets, func(*tx) error { return nil }) // each takes along what is gone
}

// Wake is signalled when messages have been put. It holds at most one signal,
// so it has one reader.
func (s *Spool) Wake() <-chan struct{} { return s.wake }

// Depth returns how many messages wait.
func (s *Spool) Depth() uint64 {
	s.lock <- struct{}{}
	defer func() { <-s.lock }()
	return uint64(s.used.total().rows) - uint64(len(s.gone))
}

// Waiting returns how many messages of the channels wait.
func (s *Spool) Waiting(ctx context.Context, channels ...string) (n int, err error) {
	args := make([]any, len(channels))
	for i, c := range channels {
		args[i] = c
	}
	s.lock <- struct{}{}
	gone := len(s.gone) > 0
	<-s.lock
	if gone {
		if err := s.write(ctx, forgets, func(*tx) error { return nil }); err != nil {
			return 0, err
		}
	}
	err = s.read(ctx, func(c *sql.Conn) error {
		return c.QueryRowContext(context.Background(),
			"SELECT count(*) FROM message WHERE channel IN (''"+strings.Repeat(", ?", len(channels))+")", args...).Scan(&n)
	})
	return n, err
}

// Shed returns how many messages were given up whole for lack of space since
// provisioning.
func (s *Spool) Shed() uint64 {
	s.lock <- struct{}{}
	defer func() { <-s.lock }()
	return s.used.shed
}

// Full reports whether only the last tenth of the quota is left for what must
// be kept, or the reserve in the file is being used because the medium is full.
// Risky actions are refused from here on, so that there is room left to record
// what happens anyway; selling is not asked.
func (s *Spool) Full() bool {
	s.lock <- struct{}{}
	defer func() { <-s.lock }()
	return s.drawn || s.used.bytes[Audit]+s.used.bytes[Result]+s.used.bytes[State] > s.max-s.max/keptTenth
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
	s      *Spool
	used   totals
	next   uint64 // id of the next message
	added  uint64 // messages
	losses map[string]*Loss
	heads  map[string][]byte // values with a copy beside the file
	tells  bool              // of a file that was rebuilt
	fine   fine
}

// care is what a transaction is worth.
type care int

const (
	loose   care = iota // survives the end of the agent, and a power cut once the window has passed
	forgets             // the same, and makes room
	firm                // survives a power cut when it returns
	audit               // and may use the reserve
)

func careOf(class string) care {
	switch class {
	case Audit:
		return audit
	case Result:
		return firm
	}
	return loose
}

// write runs do in one transaction. A context that ends while it waits for its
// turn ends it; once begun, a transaction is not torn off half-way. When the
// file cannot grow, the log is written back into pages that are there; if that
// does not help, what may be given up makes room, and then the reserve. do runs
// again each time.
func (s *Spool) write(ctx context.Context, c care, do func(*tx) error) error {
	select {
	case s.lock <- struct{}{}:
		defer func() { <-s.lock }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if s.conn == nil {
		return ErrClosed
	}
	err := s.ready(c)
	if err == nil {
		err = typed(s.attempt(c, do))
	}
	if errors.Is(err, ErrDisk) {
		err = s.insist(c, do, err)
	}
	if u, ok := errors.AsType[unsynced](err); ok {
		return fmt.Errorf("%w: %w", ErrDisk, u)
	}
	if err == nil && s.drawn {
		s.replenish()
	}
	return s.condemn(err)
}

// insist tries again where the file cannot grow.
func (s *Spool) insist(c care, do func(*tx) error, err error) error {
	squeeze := func() error { return s.attempt(loose, (*tx).squeeze) }
	draw := func() error { return s.draw(c) }
	for _, help := range []func() error{s.checkpoint, draw, squeeze, draw, draw} {
		if help() != nil {
			continue
		}
		if e := s.checkpoint(); e != nil && c != forgets {
			continue
		}
		if err = typed(s.attempt(c, do)); !errors.Is(err, ErrDisk) {
			break
		}
	}
	return err
}

func (s *Spool) attempt(c care, do func(*tx) error) error {
	if err := s.exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	t := &tx{s: s, used: s.used.clone(), next: s.next, fine: s.fine}
	err := t.forget()
	for class, l := range s.owed {
		t.lose(class, *l)
		t.used.shed += l.Messages
		err = errors.Join(err, t.count(shedCounter, l.Messages))
	}
	if err == nil {
		err = do(t)
	}
	if err == nil {
		err = t.book()
	}
	if err == nil {
		err = s.exec("COMMIT")
	}
	if err != nil {
		s.rollback()
		return err
	}
	clear(s.gone)
	clear(s.owed)
	s.used, s.next, s.fine = t.used, t.next, t.fine
	s.flash.stored += t.added
	s.untold = s.untold && !t.tells
	if t.added > 0 {
		s.notify()
	}
	if err := s.wrote(c >= firm); err != nil {
		return unsynced{err}
	}
	for key, head := range t.heads { // behind what it is about
		s.keepHead(key, head)
	}
	return nil
}

// unsynced is the error of a transaction that is committed and could not be synced:
// it is not made again, and whoever wanted to be sure is told.
type unsynced struct{ err error }

func (u unsynced) Error() string { return "not synced: " + u.err.Error() }

// forget removes what Done has named.
func (t *tx) forget() error {
	for id := range t.s.gone {
		if _, err := t.remove("DELETE FROM message WHERE id = ? RETURNING class, size", id); err != nil {
			return err
		}
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
	return s.condemn(do(s.conn))
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
	if t.s.safe.aead == nil && t.s.safe.locked {
		return ErrKey
	}
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
	if class != State {
		return nil
	}
	_, err := t.remove("DELETE FROM message WHERE class = ? AND channel = ? RETURNING class, size", State, channel)
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
	err = t.do("INSERT INTO message (id, class, channel, size, payload) VALUES (?, ?, ?, ?, ?)", t.next, class, channel, size, payload)
	if err != nil {
		return err
	}
	t.next++
	t.used.rows[class]++
	t.used.bytes[class] += size
	t.added++
	return nil
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
