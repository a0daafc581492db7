package spool

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mattn/go-sqlite3"

	"github.com/tillward/tillward/provisioning/durable"
)

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

const damageEnd = ".damaged" // a file beside the spool: it is to be set aside

// condemn notes damage that is found while the spool is used: the next Open sets
// the file aside, even if it finds nothing.
func (s *Spool) condemn(err error) error {
	if !broken(err) || s.condemned {
		return err
	}
	s.condemned = true
	s.log.Error("spool is damaged; it is set aside at the next start", "error", err)
	f, e := os.Create(s.path + damageEnd) // #nosec G304 -- beside the spool
	if e == nil {
		e = f.Close()
	}
	return errors.Join(err, e)
}

// Damaged reports whether damage was found since the spool was opened. It is to be
// opened anew, which puts right what can be.
func (s *Spool) Damaged() bool {
	s.lock <- struct{}{}
	defer func() { <-s.lock }()
	return s.condemned
}

// found reports whether damage was found when the spool was used last.
func found(path string) error {
	if _, err := os.Stat(path + damageEnd); err != nil {
		return nil //nolint:nilerr // it was not
	}
	return damaged("found while it was used")
}

const (
	newEnd     = ".new"          // a file that is being made to take the place of the spool; of a damaged one with the moment
	brokenEnd  = ".broken-"      // a damaged one, with the moment
	rebuiltKey = "spool.rebuilt" // the value that says what the damaged file is kept as
)

// another makes a file beside the spool's, which is closed, and has fill fill it.
// It is complete and safe when there is no error, and not there when there is one.
func (s *Spool) another(end string, fill func(n *Spool) error) error {
	n := &Spool{path: s.path + end, max: s.max, o: s.o, log: s.log, safe: s.safe}
	n.o.Copied = nil
	if err := remove(n.path); err != nil {
		return err
	}
	err := n.open()
	if err == nil {
		err = fill(n)
	}
	if err == nil {
		err = n.checkpoint() // to close it would not tell that this failed
	}
	if err = errors.Join(err, n.shut()); err == nil {
		err = errors.Join(remove(n.path, "-wal"), durable.SyncDir(filepath.Dir(n.path)))
	}
	if err != nil {
		return errors.Join(err, remove(n.path))
	}
	return nil
}

// rebuild puts a new file in the place of a damaged one, filled with what can
// still be read, and keeps the newest damaged one. Until the new one is complete
// the damaged one is where it was: an end in between costs nothing.
func (s *Spool) rebuild(damage error) error {
	locked := s.safe.locked
	s.shut() //nolint:errcheck // it is damaged
	moment := time.Now().UTC().Format("20060102T150405.000Z")
	aside, end := s.path+brokenEnd+moment, newEnd+"-"+moment
	fill := func(n *Spool) error {
		err := n.salvage(s.path, locked)
		if err == nil {
			err = n.recall(s.path, s.o.Copied, filepath.Base(aside))
		}
		return err
	}
	err := s.another(end, fill)
	if errors.Is(err, ErrDisk) { // what is set aside for such times is needed now
		if e := remove(s.path, reserveEnd); e == nil {
			err = s.another(end, fill)
		}
	}
	if err == nil {
		err = setAside(s.path, aside)
	}
	if err == nil {
		err = settleNames(s.path)
	}
	if err != nil {
		return fmt.Errorf("rebuild damaged spool: %w", err)
	}
	s.log.Error("spool was damaged and is rebuilt", "error", damage, "kept_as", aside)
	return nil
}

// settleNames ends what a power cut may have torn off: a new file takes the place
// of the damaged one that has been set aside for it. Else what lies beside a file
// that is not there is of another life.
func settleNames(path string) error {
	_, gone := os.Stat(path)
	if gone != nil && !errors.Is(gone, os.ErrNotExist) {
		return gone
	}
	made, err := filepath.Glob(globSafe(path) + newEnd + "*")
	if err != nil {
		return err
	}
	complete := ""
	for _, name := range made {
		moment, ok := strings.CutPrefix(name, path+newEnd+"-")
		if ok = ok && gone != nil && !strings.Contains(moment, "-"); ok {
			_, err := os.Stat(path + brokenEnd + moment)
			ok = err == nil
		}
		if ok {
			complete = name
		} else if err := os.Remove(name); err != nil {
			return err
		}
	}
	switch {
	case gone == nil:
		return nil
	case complete == "":
		return remove(path)
	}
	// The log of the damaged file must not be found beside the new one.
	if err := errors.Join(remove(path, "-wal", "-shm", damageEnd), durable.SyncDir(filepath.Dir(path))); err != nil {
		return err
	}
	if err := os.Rename(complete, path); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}

// remember says what a spool was rebuilt from, until it is told.
func (s *Spool) remember() error {
	v, err := s.load(rebuiltKey)
	if err != nil || len(v) < 2 {
		return err
	}
	s.rebuilt, s.recalled, s.untold = filepath.Join(filepath.Dir(s.path), string(v[1:])), v[0] == '1', true
	return nil
}

// setAside renames the files of a damaged spool and keeps the newest such set only.
func setAside(path, aside string) error {
	old, err := filepath.Glob(globSafe(path) + brokenEnd + "*")
	if err != nil {
		return err
	}
	if err := os.Rename(path, aside); err != nil {
		return err
	}
	if err := os.Rename(path+"-wal", aside+"-wal"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, f := range old {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
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
	{
		"SELECT class, messages, thinned, samples, since, until FROM loss",
		"INSERT OR REPLACE INTO loss (class, messages, thinned, samples, since, until) VALUES (?, ?, ?, ?, ?, ?)",
		func([]any) (string, *any) { return "", nil },
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
			payload, ok := change(bound, []byte(text(*secret)))
			if !ok && all {
				return fmt.Errorf("%s cannot be taken over: %w", strings.ReplaceAll(bound, "\x00", " "), ErrKey)
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
