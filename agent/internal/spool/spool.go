// Package spool is the device's memory of what the service has not stored yet:
// a durable queue of messages in one SQLite file on the state partition, and
// beside it the few values that must never part from a message (the head of
// the audit chain, the journal of commands, counters since provisioning).
//
// It owns the file, its quota and what may be given up when space runs out. It
// promises that what Put, Compose, Append or Save acknowledged is there once,
// in order, after a power cut at any moment, and that a damaged file costs what
// cannot be read and never the start of the agent. It knows bytes, not
// meaning: channels and keys are names to it.
//
// With a key the file is locked: each payload and each value is encrypted and
// authenticated (AES-256-GCM), bound to its channel or key. What stays readable
// is which channels and keys there are, how much waits, the counters, and the
// values that the caller names as plain. A plain file is taken over; its old
// blocks stay on the medium until they are overwritten.
//
// Its methods take and return plain values, because the rooms that use them
// state the two or three they need as interfaces of their own.
package spool

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mattn/go-sqlite3"
)

// The classes of a message: what may happen to it when space runs out.
const (
	Keep      = "keep"      // never given up: audit, results
	Telemetry = "telemetry" // thinned, then given up oldest first
	Latest    = "latest"    // only the newest of its channel is kept: state
)

var (
	// ErrFull means that the quota is used up by what must be kept. Whoever
	// wanted to do something risky must not do it now.
	ErrFull = errors.New("spool is full")
	// ErrDisk means that the file could not be written: no space, or the medium
	// fails. Nothing that was acknowledged before is lost.
	ErrDisk = errors.New("spool cannot be written")
	// ErrClosed means that the spool has been closed.
	ErrClosed = errors.New("spool is closed")
	// ErrKey means that the file is locked, and not with the key that was given.
	ErrKey = errors.New("spool is locked with another key")
)

// Options set the limits of a spool. The zero value is fit for a till.
type Options struct {
	MaxBytes int64        // quota of waiting messages; 64 MiB when zero
	Log      *slog.Logger // nothing is logged when nil
	Key      []byte       // 32 bytes; the file is plain when nil
	Plain    []string     // keys of values without a secret: they can be read when the file is locked
	// Blind opens a locked file without its key. Counts, counters and plain values
	// can be read; whatever needs the key is ErrKey.
	Blind bool
}

// Spool is an open spool. Its methods may be called from any goroutine.
type Spool struct {
	path    string
	max     int64
	log     *slog.Logger
	rebuilt string
	wake    chan struct{}
	safe    safe

	lock chan struct{} // held by whoever uses what follows
	db   *sql.DB
	conn *sql.Conn
	sync string // the present PRAGMA synchronous
	used totals
}

// totals is what waits in the queue, by class.
type totals struct {
	rows  map[string]int64
	bytes map[string]int64
	shed  uint64
}

func (t totals) total() (rows, bytes int64) {
	for c := range t.bytes {
		rows, bytes = rows+t.rows[c], bytes+t.bytes[c]
	}
	return rows, bytes
}

const schema = `
CREATE TABLE IF NOT EXISTS message (
	id      INTEGER PRIMARY KEY AUTOINCREMENT,
	class   TEXT NOT NULL,
	channel TEXT NOT NULL,
	size    INTEGER NOT NULL,
	thinned INTEGER NOT NULL DEFAULT 0,
	payload BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS message_class ON message (class, id);
CREATE TABLE IF NOT EXISTS value (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID;
`

const pageSize = 4096

// Open opens the spool at path and makes it when it is not there. A file that
// is damaged is moved aside and a new one is filled with what could still be
// read; Rebuilt tells. Open fails only when the medium cannot be used or
// another agent holds the spool.
func Open(path string, o Options) (*Spool, error) {
	s := &Spool{path: path, max: o.MaxBytes, log: o.Log, wake: make(chan struct{}, 1), lock: make(chan struct{}, 1)}
	if s.max <= 0 {
		s.max = 64 << 20
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if s.safe, err = newSafe(o); err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	err = s.open()
	if errors.Is(err, errPlain) {
		err = s.takeOver()
	}
	if broken(err) {
		damage := err
		locked := s.safe.locked
		if s.rebuilt, err = setAside(path, time.Now()); err != nil {
			return nil, fmt.Errorf("set damaged spool aside: %w", err)
		}
		s.log.Error("spool was damaged and is rebuilt", "error", damage, "kept_as", s.rebuilt)
		if err = s.open(); err == nil {
			err = s.salvage(s.rebuilt, locked)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open spool %s: %w", path, errors.Join(err, s.shut()))
	}
	if n, _ := s.used.total(); n > 0 {
		s.notify()
	}
	return s, nil
}

// Rebuilt returns where the damaged file was put when Open had to start a new
// one, and "" otherwise. The caller records it in the audit trail.
func (s *Spool) Rebuilt() string { return s.rebuilt }

// Close waits for the operation under way and closes the file.
func (s *Spool) Close() error {
	s.lock <- struct{}{}
	defer func() { <-s.lock }()
	return s.shut()
}

func (s *Spool) shut() error {
	if s.db == nil {
		return nil
	}
	var err error
	if s.conn != nil {
		err = s.conn.Close()
	}
	err = errors.Join(err, s.db.Close())
	s.db, s.conn = nil, nil
	return err
}

func (s *Spool) open() error {
	s.shut() //nolint:errcheck // what is closed here was damaged or never opened
	db, conn, err := connect(s.path, "rwc")
	if err != nil {
		return err
	}
	s.db, s.conn, s.sync = db, conn, "FULL"
	for _, p := range []string{
		"PRAGMA locking_mode=EXCLUSIVE", // one agent, and no shared-memory file
		"PRAGMA journal_mode=WAL",
		"PRAGMA synchronous=FULL",
		"PRAGMA cache_size=-512", // KiB: the whole agent has 20 MiB
		"PRAGMA temp_store=MEMORY",
		"PRAGMA wal_autocheckpoint=256",
		"PRAGMA journal_size_limit=2097152",
		// A fence behind the quota: indexes, journal of commands and free pages included.
		fmt.Sprintf("PRAGMA max_page_count=%d", 2*s.max/pageSize+256),
	} {
		var ignored any
		if err := conn.QueryRowContext(context.Background(), p).Scan(&ignored); err != nil && !errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	// Before anything is called damaged: a file that is locked is not set aside.
	if err := s.knock(); err != nil {
		return err
	}
	var verdict string
	if err := conn.QueryRowContext(context.Background(), "PRAGMA quick_check(1)").Scan(&verdict); err != nil {
		return err
	}
	if verdict != "ok" {
		return damaged(verdict)
	}
	if _, err := conn.ExecContext(context.Background(), schema); err != nil {
		return err
	}
	if err := s.unlock(); err != nil {
		return err
	}
	return s.tally()
}

// tally counts what is in the file.
func (s *Spool) tally() error {
	s.used = totals{rows: map[string]int64{}, bytes: map[string]int64{}}
	rows, err := s.conn.QueryContext(context.Background(), "SELECT class, count(*), sum(size) FROM message GROUP BY class")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var class string
		var n, size int64
		if err := rows.Scan(&class, &n, &size); err != nil {
			return err
		}
		s.used.rows[class], s.used.bytes[class] = n, size
	}
	if err := rows.Err(); err != nil {
		return err
	}
	err = s.conn.QueryRowContext(context.Background(), "SELECT n FROM counter WHERE name = ?", shedCounter).Scan(&s.used.shed)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	return err
}

// connect opens one connection in the given mode. The driver takes the path as
// a URI, so every odd character in it must be escaped.
func connect(path, mode string) (*sql.DB, *sql.Conn, error) {
	u := url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: "mode=" + mode + "&_busy_timeout=2000"}
	db, err := sql.Open("sqlite3", u.String())
	if err != nil {
		return nil, nil, err
	}
	db.SetMaxOpenConns(1)
	conn, err := db.Conn(context.Background())
	if err != nil {
		db.Close()
		return nil, nil, err
	}
	return db, conn, nil
}

// damaged is the finding of a check of the whole file.
type damaged string

func (d damaged) Error() string { return "damaged: " + string(d) }

// broken reports whether err says that the file is not a sound database, as
// opposed to a medium that cannot be used.
func broken(err error) bool {
	if _, ok := errors.AsType[damaged](err); ok {
		return true
	}
	var e sqlite3.Error
	return errors.As(err, &e) && (e.Code == sqlite3.ErrCorrupt || e.Code == sqlite3.ErrNotADB)
}

// typed gives err the sentinel that a caller decides on.
func typed(err error) error {
	var e sqlite3.Error
	if errors.As(err, &e) && (e.Code == sqlite3.ErrFull || e.Code == sqlite3.ErrIoErr) {
		return fmt.Errorf("%w: %w", ErrDisk, err)
	}
	return err
}

// setAside renames the files of a damaged spool, keeps the newest such set only
// and returns the new name.
func setAside(path string, now time.Time) (string, error) {
	old, err := filepath.Glob(globSafe(path) + ".broken-*")
	if err != nil {
		return "", err
	}
	aside := path + ".broken-" + now.UTC().Format("20060102T150405.000Z")
	if err := os.Rename(path, aside); err != nil {
		return "", err
	}
	if err := os.Rename(path+"-wal", aside+"-wal"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	for _, f := range append(old, path+"-shm") {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
	}
	return aside, nil
}

func globSafe(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// salvage copies what can be read from a damaged file into the new one, values
// before messages: a lost message shows as a gap at the service, a lost chain
// head would start a second chain. What cannot be read is given up.
func (s *Spool) salvage(from string, locked bool) error {
	db, conn, err := connect(from, "ro")
	if err != nil {
		return nil //nolint:nilerr // nothing can be read: the new spool starts empty
	}
	defer db.Close()
	defer conn.Close()
	if _, err := s.conn.ExecContext(context.Background(), "BEGIN IMMEDIATE"); err != nil {
		return err
	}
	for _, t := range tables {
		if err := s.copy(conn, t, false, s.safe.mend(locked)); err != nil {
			s.rollback()
			return err
		}
	}
	if _, err := s.conn.ExecContext(context.Background(), "COMMIT"); err != nil {
		s.rollback()
		return typed(err)
	}
	return s.tally()
}

// table is how the rows of one table go from one file to another.
type table struct {
	read, write string
	row         func(cells []any) (bound string, secret *any) // what the payload is bound to, and where it is; nil: none
}

const counters = 1 // index of tables

var tables = []table{
	{
		"SELECT key, value FROM value", "INSERT OR REPLACE INTO value (key, value) VALUES (?, ?)",
		func(c []any) (string, *any) { return ofValue(text(c[0])), &c[1] },
	},
	{
		"SELECT name, n FROM counter", "INSERT OR REPLACE INTO counter (name, n) VALUES (?, ?)",
		func([]any) (string, *any) { return "", nil },
	},
	{
		"SELECT id, class, channel, size, thinned, payload FROM message NOT INDEXED ORDER BY id",
		"INSERT OR IGNORE INTO message (id, class, channel, size, thinned, payload) VALUES (?, ?, ?, ?, ?, ?)",
		func(c []any) (string, *any) { return ofMessage(text(c[1]), text(c[2])), &c[5] },
	},
}

func text(cell any) string {
	switch v := cell.(type) {
	case string:
		return v
	case []byte:
		return string(v)
	}
	return ""
}

// copy copies the rows of a table. change makes the payload of a row fit for
// the new file. Unless all is needed, rows that cannot be read are left out and
// only errors of the new file are returned.
func (s *Spool) copy(from *sql.Conn, t table, all bool, change func(bound string, payload []byte) ([]byte, bool)) error {
	forgive := func(err error) error {
		if all {
			return err
		}
		return nil
	}
	rows, err := from.QueryContext(context.Background(), t.read)
	if err != nil {
		return forgive(err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return forgive(err)
	}
	for rows.Next() {
		cells := make([]any, len(columns))
		if err := rows.Scan(pointers(cells)...); err != nil || slices.Contains(cells, nil) {
			if err := forgive(err); err != nil {
				return err
			}
			continue
		}
		if bound, secret := t.row(cells); secret != nil {
			payload, ok := (*secret).([]byte)
			if ok {
				payload, ok = change(bound, payload)
			}
			if !ok {
				continue
			}
			*secret = payload
		}
		if _, err := s.conn.ExecContext(context.Background(), t.write, cells...); err != nil {
			return typed(err)
		}
	}
	return forgive(rows.Err())
}

func pointers(cells []any) []any {
	out := make([]any, len(cells))
	for i := range cells {
		out[i] = &cells[i]
	}
	return out
}
