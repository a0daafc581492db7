package spool

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/tillward/tillward/provisioning/durable"
)

const begunKey = "spool.beside" // the plain spool has what it needs of the locked one

// Beside opens a plain spool at path for the time in which the locked one
// cannot be opened: locked is that one, opened blind. A new one goes on where
// the locked one stands, by its counters and the values o.Plain names, so that
// no number is given twice; more are values that it begins with beside them.
func Beside(ctx context.Context, path string, locked *Spool, more map[string][]byte, o Options) (*Spool, error) {
	plain := o.Plain
	o.Key, o.Blind, o.Plain = nil, false, nil
	s, err := Open(path, o)
	if err != nil {
		return nil, err
	}
	begun, err := s.Load(ctx, begunKey)
	if err == nil && begun == nil {
		err = s.begin(ctx, locked, plain, more)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("begin %s: %w", path, err), s.Close())
	}
	return s, nil
}

func (s *Spool) begin(ctx context.Context, locked *Spool, plain []string, more map[string][]byte) error {
	err := locked.read(ctx, func(from *sql.Conn) error {
		return s.write(ctx, firm, func(t *tx) error {
			for _, key := range plain {
				v, err := locked.load(key)
				if err == nil && v != nil {
					err = t.set(key, v)
				}
				if err != nil {
					return err
				}
			}
			for key, v := range more {
				if err := t.set(key, v); err != nil {
					return err
				}
			}
			if err := s.copy(from, tables[counters], true, nil); err != nil {
				return err
			}
			return t.set(begunKey, nil)
		})
	})
	if err != nil {
		return err
	}
	return s.read(ctx, func(*sql.Conn) error { return s.tally() }) // the counters are others now
}

// Absorb takes over what a spool of Beside has, and removes it: the messages
// behind those that wait, the values whose keys take wants in place of the own,
// the counters as far as they have come, the losses that were not told. A power
// cut in between does it once more: the service knows the messages by their
// numbers, of the losses it hears twice. No file is no error.
func (s *Spool) Absorb(ctx context.Context, path string, take func(key string) bool) error {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	from, err := Open(path, Options{MaxBytes: s.max, Log: s.log})
	if err != nil {
		return err
	}
	err = s.write(ctx, firm, func(t *tx) error { return t.absorb(from.conn, take) })
	if err := errors.Join(err, from.Close()); err != nil {
		return fmt.Errorf("take over %s: %w", path, err)
	}
	if err := remove(path); err != nil {
		return fmt.Errorf("take over %s: %w", path, err)
	}
	return durable.SyncDir(filepath.Dir(path))
}

// theirs is an error of another file than the spool's, which is not damaged by it.
func theirs(err error) error {
	if err == nil {
		return nil
	}
	return errors.New(err.Error())
}

func (t *tx) absorb(from *sql.Conn, take func(key string) bool) error {
	ctx := context.Background()
	each := func(query string, row func(*sql.Rows) error) error {
		rows, err := from.QueryContext(ctx, query)
		if err != nil {
			return theirs(err)
		}
		defer rows.Close()
		for rows.Next() {
			if err := row(rows); err != nil {
				return err
			}
		}
		return theirs(rows.Err())
	}
	err := each("SELECT class, channel, payload FROM message ORDER BY id", func(r *sql.Rows) error {
		var class, channel string
		var payload []byte
		if err := r.Scan(&class, &channel, &payload); err != nil {
			return err
		}
		if class = renamed(class, channel); known(class) != nil {
			return known(class)
		}
		if err := t.supersede(class, channel); err != nil {
			return err
		}
		return t.insert(class, channel, payload) // whatever the quota: it has been recorded
	})
	if err != nil {
		return err
	}
	err = each("SELECT class, messages, thinned, samples, since, until FROM loss", func(r *sql.Rows) error {
		var l Loss
		if err := r.Scan(&l.Class, &l.Messages, &l.Thinned, &l.Samples, &l.From, &l.To); err != nil {
			return err
		}
		t.lose(l.Class, l)
		return nil
	})
	if err != nil {
		return err
	}
	err = each("SELECT key, value FROM value", func(r *sql.Rows) error {
		var key string
		var value []byte
		if err := r.Scan(&key, &value); err != nil || !take(key) {
			return err
		}
		return t.set(key, value)
	})
	if err != nil {
		return err
	}
	return each("SELECT name, n FROM counter", func(r *sql.Rows) error {
		var name string
		var n int64
		if err := r.Scan(&name, &n); err != nil {
			return err
		}
		if name == shedCounter && n > 0 {
			t.used.shed = max(t.used.shed, uint64(n)) // #nosec G115 -- checked
		}
		_, err := t.s.conn.ExecContext(ctx,
			"INSERT INTO counter (name, n) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET n = max(n, excluded.n)", name, n)
		return err
	})
}
