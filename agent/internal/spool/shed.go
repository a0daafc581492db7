package spool

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
)

const (
	shedCounter = "spool.shed"
	coarsest    = 3         // thinned so often, a message has one sample of eight
	thinnedRun  = 32        // messages that are thinned together
	shedAtOnce  = 8         // messages that are given up together
	squeezed    = 128 << 10 // bytes that are given up when the file cannot grow
)

// Loss is what was given up of a class since it was last told.
type Loss struct {
	Class    string
	Messages uint64 // given up whole
	Thinned  uint64 // of which some samples are left
	Samples  uint64 // given up with them; of events: events
	From, To int64  // when they were measured, Unix milliseconds; 0: not known
}

func (l *Loss) add(m Loss) {
	l.Messages, l.Thinned, l.Samples = l.Messages+m.Messages, l.Thinned+m.Thinned, l.Samples+m.Samples
	if m.From != 0 && (l.From == 0 || m.From < l.From) {
		l.From = m.From
	}
	l.To = max(l.To, m.To)
}

// makeRoom makes size bytes of class fit: within its share, within what all
// have, and out of the reserve unless it is audit. What it may take is
// telemetry, thinned and then given up, and then events.
func (t *tx) makeRoom(class string, size int64) error {
	if class == Event { // more events than their share cost events
		if err := t.giveUp(Event, func() int64 { return t.used.bytes[Event] + size - t.s.limit(Event) }); err != nil {
			return err
		}
	}
	short := func() int64 {
		total := t.used.total()
		over := total.bytes + size - t.s.max
		if class != Audit {
			over = max(over, total.bytes-t.used.bytes[Audit]+size-(t.s.max-t.s.max/100*int64(t.s.shares.Audit)))
		}
		return max(over, t.used.bytes[class]+size-t.s.limit(class))
	}
	own := t.used.bytes[class] + size - t.s.limit(class)
	if short() > 0 && (own <= 0 || class == Telemetry) {
		if err := t.thin(max(short(), t.s.max/256)); err != nil {
			return err
		}
		if err := t.giveUp(Telemetry, short); err != nil {
			return err
		}
		if class != Telemetry {
			if err := t.giveUp(Event, short); err != nil {
				return err
			}
		}
	}
	if over := short(); over > 0 {
		return fmt.Errorf("%d bytes over the quota of %s: %w", over, class, ErrFull)
	}
	return nil
}

// thin gives up samples until so many bytes are free, if it can. The newest half
// of telemetry stays as it is; of the quarter before it one sample of two is
// left, of the eighth before that one of four, and of the oldest one of eight:
// the curve of last week loses points before the one of today loses its beginning.
func (t *tx) thin(bytes int64) error {
	if t.s.o.Thin == nil {
		return nil
	}
	goal := t.used.bytes[Telemetry] - bytes
	n := t.used.rows[Telemetry]
	for level := int64(coarsest); level > 0; level-- {
		var until uint64
		err := t.s.conn.QueryRowContext(context.Background(), "SELECT id FROM message WHERE class = ? ORDER BY id LIMIT 1 OFFSET ?",
			Telemetry, n>>level).Scan(&until)
		if errors.Is(err, sql.ErrNoRows) {
			continue
		}
		for err == nil && t.used.bytes[Telemetry] > goal {
			var more bool
			if more, err = t.thinRun(level, until); !more {
				break
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// thinRun thins the oldest messages before one with the ID until that are finer
// than level, by half; false when there are none. It begins where it came to the
// last time: to look through all that are coarse takes minutes.
func (t *tx) thinRun(level int64, until uint64) (more bool, err error) {
	run, err := t.fetch("SELECT id, class, channel, size, payload FROM message WHERE class = ? AND id >= ? AND id < ? AND thinned < ? ORDER BY id LIMIT ?",
		Telemetry, t.fine[level], until, level, thinnedRun)
	if err != nil {
		return false, err
	}
	if len(run) == 0 {
		t.fine[level] = max(t.fine[level], until)
		return false, nil
	}
	t.fine[level] = run[0].id
	before := make([][]byte, len(run))
	for i, m := range run {
		before[i] = m.payload
	}
	for i, after := range t.s.o.Thin(before) {
		m := run[i]
		loss := t.tally(m.channel, m.payload)
		left := t.tally(m.channel, after)
		switch {
		case m.payload != nil && len(after) == 0:
			loss.Messages = 1
			if _, err := t.remove("DELETE FROM message WHERE id = ? RETURNING class, size", m.id); err != nil {
				return false, err
			}
			if err := t.count(shedCounter, 1); err != nil {
				return false, err
			}
			t.used.shed++
			t.lose(Telemetry, loss)
			continue
		case len(after) < len(m.payload):
			blob, err := t.s.safe.pack(ofMessage(Telemetry, m.channel), after)
			if err != nil {
				return false, err
			}
			size := t.size(m.channel, after)
			if err := t.do("UPDATE message SET thinned = thinned + 1, size = ?, payload = ? WHERE id = ?", size, blob, m.id); err != nil {
				return false, err
			}
			t.used.bytes[Telemetry] -= m.size - size
			loss.Thinned, loss.Samples = 1, loss.Samples-min(left.Samples, loss.Samples)
			t.lose(Telemetry, loss)
		default: // nothing to be had of it
			if err := t.do("UPDATE message SET thinned = thinned + 1 WHERE id = ?", m.id); err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// giveUp gives up the oldest of a class while over is more than nothing.
func (t *tx) giveUp(class string, over func() int64) error {
	for over() > 0 {
		oldest, err := t.fetch("SELECT id, class, channel, size, payload FROM message WHERE class = ? ORDER BY id LIMIT ?", class, shedAtOnce)
		if err != nil || len(oldest) == 0 {
			return err
		}
		for _, m := range oldest {
			if _, err := t.remove("DELETE FROM message WHERE id = ? RETURNING class, size", m.id); err != nil {
				return err
			}
			if err := t.shed(class, m.channel, m.payload); err != nil {
				return err
			}
		}
	}
	return nil
}

// squeeze gives up so much that the file need not grow for what comes.
func (t *tx) squeeze() error {
	left := t.used.bytes[Telemetry] + t.used.bytes[Event]
	over := func() int64 { return t.used.bytes[Telemetry] + t.used.bytes[Event] - max(0, left-squeezed) }
	if left == 0 {
		return ErrDisk
	}
	return errors.Join(t.giveUp(Telemetry, over), t.giveUp(Event, over))
}

// shed notes that a message is given up whole.
func (t *tx) shed(class, channel string, payload []byte) error {
	loss := t.tally(channel, payload)
	loss.Messages = 1
	t.used.shed++
	t.lose(class, loss)
	return t.count(shedCounter, 1)
}

func (t *tx) lose(class string, loss Loss) {
	if t.losses == nil {
		t.losses = map[string]*Loss{}
	}
	if t.losses[class] == nil {
		t.losses[class] = &Loss{Class: class}
	}
	t.losses[class].add(loss)
}

func (t *tx) tally(channel string, payload []byte) (l Loss) {
	if t.s.o.Tally != nil && len(payload) > 0 {
		l.Samples, l.From, l.To = t.s.o.Tally(channel, payload)
	}
	return l
}

// book writes the losses of a transaction into the ledger, in it.
func (t *tx) book() error {
	for _, l := range t.losses {
		err := t.do(`INSERT INTO loss (class, messages, thinned, samples, since, until) VALUES (?, ?, ?, ?, ?, ?)
			ON CONFLICT (class) DO UPDATE SET messages = messages + excluded.messages, thinned = thinned + excluded.thinned,
				samples = samples + excluded.samples, until = max(until, excluded.until),
				since = CASE WHEN since = 0 OR excluded.since <> 0 AND excluded.since < since THEN excluded.since ELSE since END`,
			l.Class, int64(l.Messages), int64(l.Thinned), int64(l.Samples), l.From, l.To) // #nosec G115 -- counts
		if err != nil {
			return err
		}
	}
	return nil
}

// Losses returns what was given up and has not been told yet, by class. It
// outlives a restart.
func (s *Spool) Losses(ctx context.Context) (out []Loss, err error) {
	err = s.read(ctx, func(c *sql.Conn) error {
		rows, err := c.QueryContext(context.Background(), "SELECT class, messages, thinned, samples, since, until FROM loss ORDER BY class")
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var l Loss
			if err := rows.Scan(&l.Class, &l.Messages, &l.Thinned, &l.Samples, &l.From, &l.To); err != nil {
				return err
			}
			out = append(out, l)
		}
		return rows.Err()
	})
	return out, err
}

type telling struct{}

// Telling returns a context in which Append also takes the losses out of the
// ledger, in the step that stores the entry which tells them: none is told
// twice or never. The journal stands in between and need not know.
func Telling(ctx context.Context, told ...Loss) context.Context {
	return context.WithValue(ctx, telling{}, slices.Clone(told))
}

// settle takes what is told out of the ledger; what came since stays.
func (t *tx) settle(ctx context.Context) error {
	told, _ := ctx.Value(telling{}).([]Loss)
	for _, l := range told {
		err := t.do("UPDATE loss SET messages = messages - ?, thinned = thinned - ?, samples = samples - ?, since = max(since, ?) WHERE class = ?",
			int64(l.Messages), int64(l.Thinned), int64(l.Samples), l.To, l.Class) // #nosec G115 -- counts
		if err == nil {
			err = t.do("DELETE FROM loss WHERE class = ? AND messages <= 0 AND thinned <= 0", l.Class)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// stored is a message as it lies in the file, opened.
type stored struct {
	id             uint64
	class, channel string
	size           int64
	payload        []byte // nil: it was changed from outside
}

// fetch reads messages: some, and fewer when they are large.
func (t *tx) fetch(query string, args ...any) (out []stored, err error) {
	rows, err := t.s.conn.QueryContext(context.Background(), query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for size := 0; size < maxFetched && rows.Next(); {
		var m stored
		if err := rows.Scan(&m.id, &m.class, &m.channel, &m.size, &m.payload); err != nil {
			return nil, err
		}
		m.payload, err = t.s.safe.unpack(ofMessage(m.class, m.channel), m.payload)
		if errors.Is(err, ErrKey) {
			return nil, err
		}
		out, size = append(out, m), size+len(m.payload)
	}
	return out, rows.Err()
}

func (t *tx) do(statement string, args ...any) error {
	_, err := t.s.conn.ExecContext(context.Background(), statement, args...)
	return err
}
