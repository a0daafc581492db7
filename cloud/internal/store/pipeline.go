package store

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// To PostgreSQL each statement is a way there and back. Those of a transaction
// whose result nobody waits for are sent together, in their order, with the
// next one whose result somebody does, or before the commit. An error of one of
// them is told there.

// unsent is a statement that was not sent yet.
type unsent struct {
	query string
	args  []any
}

// later keeps a statement for the next way to the database.
func (w *writer) later(query string, args []any) error {
	args, err := converted(args)
	if err == nil {
		w.queue = append(w.queue, unsent{query, args})
	}
	return err
}

// converted is arguments as database/sql gives them to a driver, and nobody
// else's: whoever made them may write something else there.
func converted(args []any) ([]any, error) {
	out := make([]any, len(args))
	for i, a := range args {
		v, err := convert(a)
		if err != nil {
			return nil, fmt.Errorf("argument %d: %w", i+1, err)
		}
		if b, ok := v.([]byte); ok {
			v = bytes.Clone(b)
		}
		out[i] = v
	}
	return out, nil
}

// manyRows is from when on a COPY, which goes there and back three times, is
// worth it.
const manyRows = 32

var auditRow = strings.Split(auditRowColumns, ", ")

// sync sends what waits.
func (w *writer) sync(ctx context.Context) error {
	if len(w.queue) == 0 && len(w.trail) == 0 {
		return nil
	}
	queue, trail := w.queue, w.trail
	w.queue, w.trail = nil, nil
	return w.raw(func(d *dialect) error {
		if len(trail) >= manyRows {
			if _, err := d.copy(ctx, "audit", auditRow, trail); err != nil {
				return fmt.Errorf("audit entries: %w", err)
			}
			w.changes += int64(len(trail))
		} else {
			for _, row := range trail {
				queue = append(queue, unsent{insertAuditRow, row})
			}
		}
		return d.send(ctx, queue, &w.changes)
	})
}

// raw lends the connection below database/sql.
func (w *writer) raw(f func(*dialect) error) error {
	if w.conn == nil {
		return errNoConnection
	}
	var err error
	lent := w.conn.Raw(func(conn any) error {
		d, ok := conn.(*dialect)
		if !ok {
			return fmt.Errorf("the driver gave a %T", conn)
		}
		err = f(d) // not the result of Raw, which would take the connection away
		return nil
	})
	return errors.Join(err, lent)
}

// send executes statements in one way there and back, and adds up how many rows
// they changed.
func (d *dialect) send(ctx context.Context, queue []unsent, changed *int64) error {
	if len(queue) == 0 {
		return nil
	}
	var b pgx.Batch
	for _, q := range queue {
		named := make([]driver.NamedValue, len(q.args))
		for i, v := range q.args {
			named[i].Value = v
		}
		b.Queue(d.queries.of(q.query, named), q.args...)
	}
	results := d.Conn.Conn().SendBatch(ctx, &b)
	for _, q := range queue {
		tag, err := results.Exec()
		if err != nil {
			verb, _, _ := strings.Cut(q.query, "(")
			return errors.Join(fmt.Errorf("%.60s: %w", verb, err), results.Close())
		}
		*changed += tag.RowsAffected()
	}
	return results.Close()
}

// copy adds rows to a table, of which none may be there.
func (d *dialect) copy(ctx context.Context, table string, columns []string, rows [][]any) (int64, error) {
	return d.Conn.Conn().CopyFrom(ctx, pgx.Identifier{table}, columns, pgx.CopyFromRows(rows))
}

// isThere reports whether a row that was to be added is there already.
func isThere(err error) bool {
	e := (*pgconn.PgError)(nil)
	return errors.As(err, &e) && e.Code == "23505"
}
