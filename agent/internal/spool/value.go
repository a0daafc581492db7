package spool

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
)

// Append adds one link to the chain whose head is the value of key. It hands
// link the present head (nil for the first) and stores the payload that link
// returns as an Audit message together with the new head: the two never part.
// link runs inside the transaction; it may run again and must not call the
// spool. Losses that ctx carries from Telling are settled with it.
func (s *Spool) Append(ctx context.Context, key, channel string, link func(head []byte) (payload, newHead []byte, err error)) error {
	return s.write(ctx, audit, func(t *tx) error {
		head, err := t.s.load(key)
		if err == nil && s.untold {
			t.tells = true
			err = t.do("DELETE FROM value WHERE key = ?", rebuiltKey)
		}
		if err != nil {
			return err
		}
		payload, head, err := link(head)
		if err != nil {
			return err
		}
		if err := t.settle(ctx); err != nil {
			return err
		}
		if err := t.put(Audit, channel, payload); err != nil {
			return err
		}
		return t.set(key, head)
	})
}

// Save stores value under key. When compose is not nil the message that it
// makes is put into channel as Result in the same transaction; the rules of
// Compose hold for it.
func (s *Spool) Save(ctx context.Context, key string, value []byte, channel string, compose func() ([]byte, error)) error {
	return s.write(ctx, firm, func(t *tx) error {
		if compose != nil {
			payload, err := compose()
			if err != nil {
				return err
			}
			if err := t.put(Result, channel, payload); err != nil {
				return err
			}
		}
		return t.set(key, value)
	})
}

// Load returns the value of key, nil when there is none.
func (s *Spool) Load(ctx context.Context, key string) (value []byte, err error) {
	err = s.read(ctx, func(*sql.Conn) error {
		value, err = s.load(key)
		return err
	})
	return value, err
}

// Keys returns the keys that begin with prefix, in order.
func (s *Spool) Keys(ctx context.Context, prefix string) (keys []string, err error) {
	err = s.read(ctx, func(c *sql.Conn) error {
		rows, err := c.QueryContext(context.Background(),
			"SELECT key FROM value WHERE key >= ? AND substr(key, 1, length(?)) = ? ORDER BY key", prefix, prefix, prefix)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var key string
			if err := rows.Scan(&key); err != nil {
				return err
			}
			keys = append(keys, key)
		}
		return rows.Err()
	})
	return keys, err
}

// Drop removes values. Keys that are not there are no error.
func (s *Spool) Drop(ctx context.Context, keys ...string) error {
	return s.write(ctx, firm, func(t *tx) error {
		for _, key := range keys {
			if _, err := t.s.conn.ExecContext(context.Background(), "DELETE FROM value WHERE key = ?", key); err != nil {
				return err
			}
		}
		return nil
	})
}

// Counter returns what Compose has added to the counter since provisioning.
func (s *Spool) Counter(ctx context.Context, name string) (n uint64, err error) {
	err = s.read(ctx, func(c *sql.Conn) error {
		err := c.QueryRowContext(context.Background(), "SELECT n FROM counter WHERE name = ?", name).Scan(&n)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		return err
	})
	return n, err
}

// load is for who holds the lock.
func (s *Spool) load(key string) ([]byte, error) {
	var value []byte
	err := s.conn.QueryRowContext(context.Background(), "SELECT value FROM value WHERE key = ?", key).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err == nil {
		value, err = s.safe.unpack(ofValue(key), value)
	}
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", key, err)
	}
	if value == nil {
		value = []byte{} // there, and empty
	}
	return value, nil
}

func (t *tx) set(key string, value []byte) error {
	if value == nil {
		value = []byte{}
	}
	value, err := t.s.safe.pack(ofValue(key), value)
	if err != nil {
		return err
	}
	if slices.Contains(t.s.o.Copied, key) {
		if t.heads == nil {
			t.heads = map[string][]byte{}
		}
		t.heads[key] = value
	}
	_, err = t.s.conn.ExecContext(context.Background(),
		"INSERT INTO value (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", key, value)
	return err
}

func (t *tx) count(name string, n uint64) error {
	_, err := t.s.conn.ExecContext(context.Background(),
		"INSERT INTO counter (name, n) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET n = n + excluded.n", name, n)
	return err
}
