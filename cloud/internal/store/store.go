// Package store keeps what the fleet service knows: all SQL, the migrations
// and the transactions, one for each use case. Domain types go in and come
// out.
//
// The database is a file of SQLite in a folder, or one of PostgreSQL, which a
// URL names. Queries and migrations are written once, for SQLite; dialect.go
// says what PostgreSQL takes instead. On either, one connection writes, and no
// other service does meanwhile. On PostgreSQL it works as a role that may add to
// the audit trails and not change them.
//
// It promises that what a method acknowledged survives a power cut, that each
// sample, event and audit entry of a device is held exactly once, that an
// audit entry is never changed, and that nobody reads or moves what belongs to
// another tenant: another tenant's things are not found. It decides nothing
// that is not about its rows: who may do something, what an order means and
// when a rollout ends is known elsewhere.
//
// The package exports more names than other rooms: its users state the few
// methods they need as interfaces of their own, and the types here are what
// those methods take and return.
package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	_ "github.com/mattn/go-sqlite3" // the driver named "sqlite3"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Store is an open store. Its methods may be called from any goroutine.
type Store struct {
	log   *slog.Logger
	read  *sql.DB
	write *sql.DB
	stmts prepared
	w     chan *writer // holds the one writer when nobody writes

	mu      sync.Mutex
	jobs    []*job                   // that wait for the next shared commit
	touched map[fleet.DeviceID]int64 // steady verdicts that wait for theirs, and their time
	soon    *time.Timer              // writes them

	enlisted map[fleet.RolloutID]enlisted
	history  history
	asked    func()
	observe  func(rows int64, took time.Duration, err error)

	pg *server // nil on SQLite
}

func newStore(log *slog.Logger) *Store {
	return &Store{log: log, w: make(chan *writer, 1), touched: map[fleet.DeviceID]int64{}, enlisted: map[fleet.RolloutID]enlisted{}}
}

// Open opens the database at where. A folder holds one in SQLite, which is
// made when it is not there and whose schema is brought up to date. A URL
// (postgres://) names one in PostgreSQL, which Setup has made. Open refuses a
// schema that is newer than the code, and a database that another service
// writes to.
func Open(ctx context.Context, where string, log *slog.Logger) (*Store, error) {
	if IsURL(where) {
		return openPostgres(ctx, where, log)
	}
	return openSQLite(ctx, where, log)
}

func openSQLite(ctx context.Context, dir string, log *slog.Logger) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	path := filepath.Join(dir, "tillward.db")
	// SQLite gives the log beside the file the same rights.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := newStore(log)
	if s.write, err = sql.Open("sqlite3", dsn(path, "&_synchronous=FULL")); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s.write.SetMaxOpenConns(1)
	s.read = sql.OpenDB(&reader{s, dsn(path, "&_query_only=true")})
	s.read.SetMaxOpenConns(4)
	s.read.SetMaxIdleConns(4)
	conn, err := s.write.Conn(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", path, err), s.read.Close(), s.write.Close())
	}
	w := &writer{conn: conn, stmts: map[string]*sql.Stmt{}}
	w.forget()
	s.w <- w
	if err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		return s.migrate(ctx, w, func(migration string) string { return migration })
	}); err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", path, err), s.Close())
	}
	if err := s.prepare(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", path, err), s.Close())
	}
	return s, nil
}

func dsn(path, more string) string {
	return "file:" + (&url.URL{Path: path}).EscapedPath() + "?_journal_mode=WAL&_busy_timeout=5000&_foreign_keys=true" + more
}

// Close writes what waits and closes the database. A second Close does nothing.
func (s *Store) Close() error {
	last := s.flush(context.Background())
	w := <-s.w
	if w == nil {
		return nil
	}
	errs := []error{last, s.stmts.close()}
	if s.pg != nil {
		w.drop()
	} else {
		for _, stmt := range w.stmts {
			errs = append(errs, stmt.Close())
		}
		errs = append(errs, w.conn.Close())
	}
	errs = append(errs, s.read.Close(), s.write.Close())
	close(s.w)
	return errors.Join(errs...)
}

// Ping reports whether the database can be read.
func (s *Store) Ping(ctx context.Context) error {
	var n int
	if err := s.read.QueryRowContext(ctx, `SELECT 1`).Scan(&n); err != nil {
		return fmt.Errorf("ping store: %w", err)
	}
	return nil
}

// writer is the one connection that writes, with its prepared statements and
// the ids that the up stream needs again and again.
type writer struct {
	conn    *sql.Conn
	pg      bool // on PostgreSQL
	stmts   map[string]*sql.Stmt
	now     time.Time // of the present transaction
	slot    int64     // of the newest trouble
	changes int64     // rows, in the present transaction
	newest  int64     // number of the newest row of audit, once it was read in the present transaction; else -1
	open    bool      // in a transaction
	careful bool      // nothing is taken for new without looking
	queue   []unsent  // statements to be sent, on PostgreSQL
	bulk    bool      // rows for audit may wait, too
	trail   [][]any   // those that do
	boots   map[bootKey]int64
	series  map[seriesKey]int64
	facets  map[facetKey]int64
}

var (
	errClosed       = errors.New("store is closed")
	errNoConnection = errors.New("no connection to the database")
)

// tx runs f in one transaction. What f did is there when tx returns nil and
// nowhere when it returns an error.
func (s *Store) tx(ctx context.Context, f func(context.Context, *writer) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var w *writer
	select {
	case <-ctx.Done():
		return ctx.Err()
	case w = <-s.w:
		if w == nil {
			return errClosed
		}
	}
	defer func() { s.w <- w }()
	return s.with(ctx, w, f)
}

// with is tx for who holds the writer.
func (s *Store) with(ctx context.Context, w *writer, f func(context.Context, *writer) error) (err error) {
	// A statement under a context that can end costs a goroutine, and a transaction half-way is best finished.
	ctx = context.WithoutCancel(ctx)
	w.now, w.changes, w.newest = time.Now(), 0, -1
	if s.observe != nil {
		defer func() { s.observe(w.changes, time.Since(w.now), err) }()
	}
	err = w.exec(ctx, `BEGIN IMMEDIATE`)
	if err != nil && s.pg != nil {
		if err = s.pg.reconnect(ctx, s, w); err == nil {
			err = w.exec(ctx, `BEGIN IMMEDIATE`)
		}
	}
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	w.open = w.pg
	defer func() {
		w.open, w.bulk, w.careful, w.queue, w.trail = false, false, false, nil, nil
		if err == nil {
			return
		}
		w.forget()
		if _, back := w.conn.ExecContext(ctx, `ROLLBACK`); back != nil && !strings.Contains(back.Error(), "no transaction is active") {
			err = errors.Join(err, fmt.Errorf("roll back: %w", back))
			if s.pg != nil {
				w.drop()
			}
		}
	}()
	if err := f(ctx, w); err != nil {
		return err
	}
	if err := w.sync(ctx); err != nil {
		return err
	}
	if _, err := w.changed(ctx, `COMMIT`); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// forget drops remembered ids: those given in a transaction that did not
// happen, or too many of them.
func (w *writer) forget() {
	w.boots, w.series, w.facets = map[bootKey]int64{}, map[seriesKey]int64{}, map[facetKey]int64{}
}

func (w *writer) stmt(ctx context.Context, query string) (*sql.Stmt, error) {
	if stmt := w.stmts[query]; stmt != nil {
		return stmt, nil
	}
	if w.conn == nil {
		return nil, errNoConnection
	}
	stmt, err := w.conn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	w.stmts[query] = stmt
	return stmt, nil
}

func (w *writer) exec(ctx context.Context, query string, args ...any) error {
	if w.open {
		return w.later(query, args)
	}
	_, err := w.changed(ctx, query, args...)
	return err
}

// changed executes query and says how many rows it changed.
func (w *writer) changed(ctx context.Context, query string, args ...any) (int64, error) {
	if err := w.sync(ctx); err != nil {
		return 0, err
	}
	stmt, err := w.stmt(ctx, query) //nolint:sqlclosecheck // kept for the next time; Close closes it
	if err != nil {
		return 0, err
	}
	r, err := stmt.ExecContext(ctx, args...)
	if err != nil {
		return 0, err
	}
	n, err := r.RowsAffected()
	if verb := query[0]; verb == 'I' || verb == 'U' || verb == 'D' { // SQLite answers anything else with the count of before
		w.changes += n
	}
	return n, err
}

// row queries one row.
func (w *writer) row(ctx context.Context, query string, args ...any) scanner {
	if err := w.sync(ctx); err != nil {
		return failed{err}
	}
	stmt, err := w.stmt(ctx, query) //nolint:sqlclosecheck // kept for the next time; Close closes it
	if err != nil {
		return failed{err}
	}
	return stmt.QueryRowContext(ctx, args...)
}

func (w *writer) rows(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if err := w.sync(ctx); err != nil {
		return nil, err
	}
	stmt, err := w.stmt(ctx, query) //nolint:sqlclosecheck // kept for the next time; Close closes it
	if err != nil {
		return nil, err
	}
	return stmt.QueryContext(ctx, args...)
}

// scanner is a row.
type scanner interface{ Scan(dest ...any) error }

type failed struct{ err error }

func (f failed) Scan(...any) error { return f.err }

// found turns a missing row into fleet.ErrNotFound.
func found(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return fleet.ErrNotFound
	}
	return err
}

// list scans rows and closes them.
func list[T any](rows *sql.Rows, err error, scan func(scanner) (T, error)) ([]T, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := []T{}
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

// page cuts a list that was read with one item more than asked for, and says
// the key of the next page.
func page[T any](items []T, limit int, key func(T) string) ([]T, string) {
	if len(items) <= limit {
		return items, ""
	}
	return items[:limit], key(items[limit-1])
}

// after parses a key made of a number; none means the given start.
func after(p fleet.Page, start int64) (int64, error) {
	if p.After == "" {
		return start, nil
	}
	n, err := strconv.ParseInt(p.After, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("page after %.40q is not a key of this list: %w", p.After, fleet.ErrInvalid)
	}
	return n, nil
}

// newest is the start of a list that goes down.
const newest = 1<<63 - 1

func ms(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// deviceMS is ms for the clock of a device, which can stand anywhere: what lies
// before 1970 or after 9999 is moved to that edge, so that it can be shown.
func deviceMS(t time.Time) int64 {
	const last = 253402300799999 // 9999-12-31T23:59:59.999Z
	return min(max(t.UnixMilli(), 1), last)
}

func at(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

func toJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only maps of strings and lists of plain structs come here
	}
	return string(b)
}

// newID returns a random id with a prefix that says what it names.
func newID(prefix string) string { return prefix + strings.ToLower(rand.Text()[:20]) }

// migrate applies the migrations that the database has not seen, as its kind
// of database takes them.
func (s *Store) migrate(ctx context.Context, w *writer, as func(string) string) error {
	names, err := migrationNames()
	if err != nil {
		return err
	}
	if _, err := w.conn.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS schema_version (version BIGINT PRIMARY KEY, applied_at BIGINT NOT NULL)`); err != nil {
		return err
	}
	var have int
	if err := w.conn.QueryRowContext(ctx, `SELECT COALESCE(MAX(version), 0) FROM schema_version`).Scan(&have); err != nil {
		return err
	}
	if have > len(names) {
		return newerSchema(have, len(names))
	}
	for i, name := range names[have:] {
		version := have + i + 1
		if !strings.HasPrefix(filepath.Base(name), fmt.Sprintf("%04d_", version)) {
			return fmt.Errorf("migration %s does not have number %04d", name, version)
		}
		text, err := migrations.ReadFile(name)
		if err != nil {
			return err
		}
		if _, err := w.conn.ExecContext(ctx, as(string(text))); err != nil {
			return fmt.Errorf("migration %s: %w", name, err)
		}
		if _, err := w.conn.ExecContext(ctx, `INSERT INTO schema_version (version, applied_at) VALUES (?, ?)`, version, ms(w.now)); err != nil {
			return err
		}
		s.log.Info("schema migrated", "version", version)
	}
	return nil
}

func migrationNames() ([]string, error) {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	slices.Sort(names)
	return names, err
}

func newerSchema(have, know int) error {
	return fmt.Errorf("its schema has version %d and this program knows up to %d: start the program that wrote it, or a newer one", have, know)
}
