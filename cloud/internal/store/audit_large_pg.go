package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/jackc/pgx/v5"
)

// FillPostgres is FillTrails for a PostgreSQL database without a fleet service;
// where is its address for an administrator. The service reads it afterwards as
// tillward_service.
func FillPostgres(ctx context.Context, where string, l *LargeTrails, told func(what string, done int64)) error {
	if err := Setup(ctx, where, "", slog.New(slog.DiscardHandler)); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, where)
	if err != nil {
		return fmt.Errorf("fill the trails: %w", err)
	}
	if err := l.copyTo(ctx, conn, told); err != nil {
		return errors.Join(fmt.Errorf("fill the trails: %w", err), conn.Close(ctx))
	}
	return conn.Close(ctx)
}

func (l *LargeTrails) copyTo(ctx context.Context, conn *pgx.Conn, told func(what string, done int64)) error {
	exec := func(query string, args ...any) error {
		_, err := conn.Exec(ctx, query, args...)
		return err
	}
	for _, query := range []string{
		`SET search_path = tillward`, `SET maintenance_work_mem = '1GB'`, `SET synchronous_commit = off`, `SET jit = off`,
	} {
		if err := exec(query); err != nil {
			return err
		}
	}
	for i, f := range l.mix {
		own := 0
		if f.own {
			own = 1
		}
		if err := exec(`INSERT INTO facet (id, tenant, own, kind, severity, outcome) VALUES ($1, 'main', $2, $3, $4, $5)`, i+1, own, f.kind, f.severity, f.outcome); err != nil {
			return err
		}
	}
	if err := exec(`SELECT setval(pg_get_serial_sequence('facet', 'id'), $1), setval(pg_get_serial_sequence('audit', 'n'), $2)`, len(l.mix), l.Rows); err != nil {
		return err
	}
	rows, err := conn.Query(ctx, `SELECT indexdef FROM pg_indexes WHERE schemaname = 'tillward' AND tablename = 'audit' ORDER BY indexname`)
	if err != nil {
		return err
	}
	indexes, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	rows, err = conn.Query(ctx, `SELECT 'ALTER TABLE audit DROP CONSTRAINT ' || quote_ident(conname) FROM pg_constraint WHERE conrelid = 'audit'::regclass AND contype IN ('p', 'u')
		UNION ALL SELECT 'DROP INDEX IF EXISTS ' || quote_ident(indexname) FROM pg_indexes WHERE schemaname = 'tillward' AND tablename = 'audit'`)
	if err != nil {
		return err
	}
	drops, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, query := range drops {
		if err := exec(query); err != nil {
			return err
		}
	}
	if err := l.copyRows(ctx, conn, told); err != nil {
		return err
	}
	for _, query := range indexes {
		name, _, _ := strings.Cut(query, " ON ")
		told(strings.ToLower(strings.TrimPrefix(name, "CREATE ")), l.Rows)
		if err := exec(query); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	told("vacuum", l.Rows) // as the server does by itself after so many rows
	return exec(`VACUUM (ANALYZE) audit`)
}

// copyRows writes the rows in one transaction with an empty table, which a
// server that keeps no log for others does not log.
func (l *LargeTrails) copyRows(ctx context.Context, conn *pgx.Conn, told func(what string, done int64)) error {
	devices := make([]string, largeDevices)
	for i := range devices {
		devices[i] = l.Device(i)
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(ctx) }()
	if _, err := tx.Exec(ctx, `TRUNCATE audit`); err != nil {
		return err
	}
	var n int64
	values, body, hash, prev := make([]any, 17), make([]byte, 24), make([]byte, 32), make([]byte, 32)
	fill := func(b []byte, seed uint64) []byte {
		for i := range b {
			if i%8 == 0 {
				seed = scatter(seed)
			}
			b[i] = byte(seed >> (i % 8 * 8))
		}
		return b
	}
	_, err = tx.CopyFrom(ctx, pgx.Identifier{"audit"}, []string{
		"n", "device", "seq", "tenant", "at", "stored_at", "kind", "severity", "actor", "subject", "outcome", "site", "detail", "body", "hash", "prev", "facet",
	}, pgx.CopyFromFunc(func() ([]any, error) {
		if n == l.Rows {
			return nil, nil
		}
		if n++; n%1_000_000 == 0 {
			told("rows", n)
		}
		r, seed := l.row(n, devices), uint64(n)<<3 // #nosec G115 -- any number will do
		copy(values, []any{
			r.n, r.device, r.n, "main", r.at, r.storedAt, r.kind, r.severity, r.actor, r.subject, r.outcome, r.site, "{}", fill(body, seed), fill(hash, seed+1), fill(prev, seed+2), int32(r.facet), // #nosec G115 -- some hundred
		})
		return values, nil
	}))
	if err != nil {
		return err
	}
	return tx.Commit(ctx)
}
