// Package spool is the device's memory of what the service has not stored yet:
// a durable queue of messages in one SQLite file on the state partition, and
// beside it the few values that must never part from a message (the head of
// the audit chain, the journal of commands, counters since provisioning).
//
// It owns the file, its quotas and what may be given up when space runs out. It
// promises that what was acknowledged is there once, in order, after the end of
// the agent at any moment; after a power cut as well at once for audit, results
// and values, and for events, state and telemetry when Options.Window has passed
// - then it may cost the last window of these, never one out of the middle. A
// damaged file costs what cannot be read and never the start of the agent; what
// the copy of the chain's head knows is put back. Nothing depends on a clock.
//
// When space runs out, telemetry loses points, then messages, then events go,
// oldest first; a ledger in the file holds what went until an entry of the trail
// tells it. Audit, results and values are never given up. Audit has a part of
// the quota to itself, and a reserve on the medium for when others have filled it.
//
// It knows bytes, not meaning: channels and keys are names to it, and what a
// sample is its options say.
//
// With a key the file is locked: each payload and each value is encrypted and
// authenticated (AES-256-GCM), bound to its class and channel or its key. What
// stays readable is which channels and keys there are, how much waits, the
// counters, the ledger of what was given up, and the values that the caller
// names as plain. A plain file is taken over; its old blocks stay on the medium
// until they are overwritten.
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
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/mattn/go-sqlite3"
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
	MaxBytes int64         // quota of waiting messages; 64 MiB when zero
	Shares   Shares        // of the quota; those that are zero have their defaults
	Window   time.Duration // a power cut costs at most so much of what is not audit, result or value; 10 s when zero
	Log      *slog.Logger  // nothing is logged when nil
	Key      []byte        // 32 bytes; the file is plain when nil
	Plain    []string      // keys of values without a secret: they can be read when the file is locked
	Copied   []string      // keys of values that only grow, of which there is a copy beside the file
	// Blind opens a locked file without its key. Counts, counters and plain values
	// can be read; whatever needs the key is ErrKey.
	Blind bool

	// Thin returns what is left of each message of a run of telemetry when of the
	// samples of a series every second goes: the message itself when it is as it
	// was, nil when nothing is left. When it is nil, nothing can be thinned.
	Thin func(run [][]byte) [][]byte
	// Tally tells how many samples a message holds, and when they were measured, in
	// Unix milliseconds. When it is nil, losses are told without.
	Tally func(channel string, payload []byte) (samples uint64, from, to int64)
}

// Spool is an open spool. Its methods may be called from any goroutine.
type Spool struct {
	path    string
	max     int64
	shares  Shares
	o       Options
	log     *slog.Logger
	rebuilt string
	wake    chan struct{}
	safe    safe

	recalled bool // a head comes from its copy
	untold   bool // no entry has been stored since the file was rebuilt

	lock   chan struct{} // held by whoever uses what follows
	db     *sql.DB
	conn   *sql.Conn
	used   totals
	next   uint64              // id of the next message
	gone   map[uint64]struct{} // messages that Done has named and that are still in the file
	owed   map[string]*Loss    // not in the ledger yet: the medium was full
	fine   fine
	flash  flash
	heads  *os.File
	turn   int
	late   bool // the copies of heads are not synced
	drawn  bool // of the reserve
	refill time.Time

	condemned bool // damage was found
}

// totals is what waits in the queue, by class.
type totals struct {
	rows  map[string]int64
	bytes map[string]int64
	shed  uint64
}

// fine is for each level of thinning the id before which no telemetry is finer.
type fine [coarsest + 1]uint64

// sum is what all classes have.
type sum struct{ rows, bytes int64 }

func (t totals) total() (s sum) {
	for c := range t.bytes {
		s.rows, s.bytes = s.rows+t.rows[c], s.bytes+t.bytes[c]
	}
	return s
}

func (t totals) clone() totals {
	return totals{rows: maps.Clone(t.rows), bytes: maps.Clone(t.bytes), shed: t.shed}
}

const (
	window     = 10 * time.Second
	persistWAL = 10 // SQLITE_FCNTL_PERSIST_WAL
)

// synchronous has SQLite sync what it writes back; what is to be safe at once, flash
// syncs.
var synchronous = "NORMAL"

const schema = `
CREATE TABLE IF NOT EXISTS message (
	id      INTEGER PRIMARY KEY,
	class   TEXT NOT NULL,
	channel TEXT NOT NULL,
	size    INTEGER NOT NULL,
	thinned INTEGER NOT NULL DEFAULT 0,
	payload BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS message_class ON message (class, id);
CREATE TABLE IF NOT EXISTS value (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS loss (
	class    TEXT PRIMARY KEY,
	messages INTEGER NOT NULL,
	thinned  INTEGER NOT NULL,
	samples  INTEGER NOT NULL,
	since    INTEGER NOT NULL,
	until    INTEGER NOT NULL
) WITHOUT ROWID;
`

// Open opens the spool at path and makes it when it is not there. A file that
// is damaged is moved aside and a new one is filled with what could still be
// read; Rebuilt tells. Open fails only when the medium cannot be used or
// another agent holds the spool.
func Open(path string, o Options) (*Spool, error) {
	s := &Spool{
		path: path, max: o.MaxBytes, shares: o.Shares.defaults(), o: o, log: o.Log, wake: make(chan struct{}, 1), lock: make(chan struct{}, 1),
		gone: map[uint64]struct{}{},
	}
	if s.flash.window = o.Window; s.flash.window <= 0 {
		s.flash.window = window
	}
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
	if err := settleNames(path); err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	err = s.open()
	if errors.Is(err, errPlain) {
		err = s.takeOver()
	}
	if err == nil && !s.safe.blind {
		err = found(path)
	}
	if broken(err) {
		if err = s.rebuild(err); err == nil {
			err = s.open()
		}
	}
	if err == nil {
		err = s.remember()
	}
	if err == nil {
		err = s.prepare()
	}
	if err != nil {
		return nil, fmt.Errorf("open spool %s: %w", path, errors.Join(err, s.shut()))
	}
	if s.used.total().rows > 0 {
		s.notify()
	}
	if s.flash.settle = s.pass; s.flash.dirty || s.late {
		s.flash.arm()
	}
	return s, nil
}

// prepare makes a file that can be read one that can be written.
func (s *Spool) prepare() error {
	if s.safe.blind {
		return nil
	}
	if err := s.reclass(); err != nil {
		return err
	}
	if err := s.renew(); err != nil {
		return err
	}
	if err := s.fillReserve(); err != nil {
		s.log.Error("nothing can be set aside for when the medium is full", "error", err)
	}
	return s.tally()
}

// Rebuilt returns where the damaged file was put when a new one had to be started,
// and "" otherwise. Each Open says so until an entry of the trail is stored: the
// caller makes it the one that tells.
func (s *Spool) Rebuilt() string { return s.rebuilt }

// Recalled reports whether a head that Rebuilt goes on from comes from its copy:
// after a power cut more may have been stored than that says.
func (s *Spool) Recalled() bool { return s.recalled }

// Locked reports whether the file is encrypted.
func (s *Spool) Locked() bool {
	s.lock <- struct{}{}
	defer func() { <-s.lock }()
	return s.safe.locked
}

// Close waits for the operation under way and closes the file.
func (s *Spool) Close() error {
	s.lock <- struct{}{}
	defer func() { <-s.lock }()
	if s.conn != nil && len(s.gone)+len(s.owed) > 0 {
		if err := s.attempt(loose, func(*tx) error { return nil }); err != nil {
			s.log.Warn("messages that the service has will be sent again", "error", err)
		}
	}
	return s.shut()
}

func (s *Spool) shut() error {
	if s.db == nil {
		return nil
	}
	var err error
	s.flash.close()
	if s.heads != nil {
		err = errors.Join(s.syncHeads(), s.heads.Close())
		s.heads, s.late = nil, false
	}
	if s.conn != nil {
		err = errors.Join(err, s.conn.Close())
	}
	err = errors.Join(err, s.db.Close())
	s.db, s.conn = nil, nil
	return err
}

func (s *Spool) open() error {
	s.shut()                                                        //nolint:errcheck // what is closed here was damaged or never opened
	db, conn, err := connect(s.path, "rwc&_locking_mode=EXCLUSIVE") // one agent, and no shared-memory file
	if err != nil {
		return err
	}
	s.db, s.conn = db, conn
	for _, p := range []string{
		fmt.Sprintf("PRAGMA page_size=%d", pageSize), // of a new file
		"PRAGMA locking_mode=EXCLUSIVE",              // one agent, and no shared-memory file
		"PRAGMA journal_mode=WAL",
		"PRAGMA synchronous=" + synchronous,
		"PRAGMA cache_size=-512", // KiB: the whole agent has 20 MiB
		"PRAGMA temp_store=MEMORY",
		"PRAGMA wal_autocheckpoint=0", // flash does
		// A fence behind the quota: indexes, journal of commands and free pages included.
		fmt.Sprintf("PRAGMA max_page_count=%d", 2*s.max/pageSize+256),
	} {
		var ignored any
		if err := conn.QueryRowContext(context.Background(), p).Scan(&ignored); err != nil && !errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	// The log keeps its room over a restart: it is needed when the medium is full.
	if err := conn.Raw(func(c any) error { return c.(*sqlite3.SQLiteConn).SetFileControlInt("main", persistWAL, 1) }); err != nil {
		return err
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
	var newest sql.NullInt64
	if err := s.conn.QueryRowContext(context.Background(), "SELECT max(id) FROM message").Scan(&newest); err != nil {
		return err
	}
	s.next = max(s.next, uint64(newest.Int64)+1) // #nosec G115 -- counts from 1
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

// typed gives err the sentinel that a caller decides on.
func typed(err error) error {
	var e sqlite3.Error
	if errors.As(err, &e) && (e.Code == sqlite3.ErrFull || e.Code == sqlite3.ErrIoErr) {
		return fmt.Errorf("%w: %w", ErrDisk, err)
	}
	return err
}
