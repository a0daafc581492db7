package spool

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tillward/tillward/provisioning/durable"
)

// lockKey is the value that tells a locked file, and the right key from
// another: it opens with the key or not at all.
const lockKey = "spool.lock"

var errPlain = errors.New("the file is plain and a key was given")

// safe encrypts what lies in the file. Each record has a random nonce of 96
// bits before it; a till writes far fewer than the 2^32 that one key is good
// for [NIST SP 800-38D, 8.3].
type safe struct {
	aead  cipher.AEAD // nil: no key
	plain []string
	blind bool

	locked bool // the file is
}

func newSafe(o Options) (safe, error) {
	s := safe{plain: o.Plain, blind: o.Blind}
	if o.Key == nil {
		return s, nil
	}
	if len(o.Key) != 32 {
		return s, fmt.Errorf("the key has %d bytes, not 32", len(o.Key))
	}
	block, err := aes.NewCipher(o.Key)
	if err != nil {
		return s, err
	}
	s.aead, err = cipher.NewGCM(block)
	return s, err
}

// ofValue and ofMessage are what a payload is bound to: it cannot be moved to
// another key or channel.
func ofValue(key string) string              { return "value\x00" + key }
func ofMessage(class, channel string) string { return "message\x00" + class + "\x00" + channel }

func (s *safe) isPlain(bound string) bool {
	return bound == ofValue(rebuiltKey) || slices.ContainsFunc(s.plain, func(key string) bool { return ofValue(key) == bound })
}

// pack makes of a payload what lies in the file.
func (s *safe) pack(bound string, payload []byte) ([]byte, error) {
	switch {
	case s.isPlain(bound):
		return payload, nil
	case s.aead != nil:
		return s.seal(bound, payload), nil
	case s.locked:
		return nil, ErrKey
	}
	return payload, nil
}

func (s *safe) seal(bound string, payload []byte) []byte {
	nonce := make([]byte, s.aead.NonceSize(), s.aead.NonceSize()+len(payload)+s.aead.Overhead())
	_, _ = rand.Read(nonce) // never fails [crypto/rand]
	return s.aead.Seal(nonce, nonce, payload, []byte(bound))
}

// unpack is the way back. An error beside ErrKey means that the record was
// changed from outside.
func (s *safe) unpack(bound string, blob []byte) ([]byte, error) {
	switch {
	case s.isPlain(bound):
		return blob, nil
	case s.aead == nil && s.locked:
		return nil, ErrKey
	case s.aead == nil:
		return blob, nil
	case len(blob) < s.aead.NonceSize():
		return nil, errors.New("record is cut off")
	}
	return s.aead.Open(nil, blob[:s.aead.NonceSize()], blob[s.aead.NonceSize():], []byte(bound))
}

// mend returns what to do with a row of a damaged file. When the lock itself
// could not be read, what does not open was plain.
func (s *safe) mend(locked bool) func(bound string, payload []byte) ([]byte, bool) {
	return func(bound string, payload []byte) ([]byte, bool) {
		if s.aead == nil || s.isPlain(bound) {
			return payload, true
		}
		if _, err := s.unpack(bound, payload); err == nil {
			return payload, true
		}
		if locked {
			return nil, false
		}
		return s.seal(bound, payload), true
	}
}

// knock finds out whether the file is locked, and whether the key fits.
func (s *Spool) knock() error {
	var mark []byte
	err := s.conn.QueryRowContext(context.Background(), "SELECT value FROM value WHERE key = ?", lockKey).Scan(&mark)
	s.safe.locked = err == nil
	switch {
	case err != nil:
		return nil //nolint:nilerr // no lock, or no table, or damage that shows next
	case s.safe.aead == nil && s.safe.blind:
		return nil
	case s.safe.aead == nil:
		return fmt.Errorf("no key was given: %w", ErrKey)
	}
	if _, err := s.safe.unpack(ofValue(lockKey), mark); err != nil {
		return ErrKey
	}
	return nil
}

// unlock makes a new file a locked one when there is a key, and looks at the
// values of an old one: what was changed from outside is damage.
func (s *Spool) unlock() error {
	if s.safe.aead == nil {
		return nil
	}
	if s.safe.locked {
		return s.checkValues()
	}
	var used bool
	err := s.conn.QueryRowContext(context.Background(),
		"SELECT EXISTS (SELECT 1 FROM message) OR EXISTS (SELECT 1 FROM value) OR EXISTS (SELECT 1 FROM counter)").Scan(&used)
	if err != nil {
		return err
	}
	if used {
		return errPlain
	}
	_, err = s.conn.ExecContext(context.Background(), "INSERT INTO value (key, value) VALUES (?, ?)", lockKey, s.safe.seal(ofValue(lockKey), nil))
	s.safe.locked = err == nil
	return err
}

func (s *Spool) checkValues() error {
	rows, err := s.conn.QueryContext(context.Background(), "SELECT key, value FROM value")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var key string
		var blob []byte
		if err := rows.Scan(&key, &blob); err != nil {
			return err
		}
		if _, err := s.safe.unpack(ofValue(key), blob); err != nil {
			return damaged("value " + key + " is not what was stored")
		}
	}
	return rows.Err()
}

// takeOver makes a locked file of a plain one.
func (s *Spool) takeOver() error {
	if err := s.rewrite(); err != nil {
		return fmt.Errorf("lock the spool: %w", err)
	}
	s.log.Info("spool is locked from now on")
	return s.open()
}

// rewrite makes another file of the one that is there, beside it, and puts it in
// its place in one step. A power cut leaves the one or the other. It leaves the
// spool closed.
func (s *Spool) rewrite() error {
	if s.conn != nil {
		if err := s.checkpoint(); err != nil { // to close it would not tell that this failed
			return err
		}
	}
	if err := s.shut(); err != nil {
		return err
	}
	if err := s.another(newEnd, func(n *Spool) error { return n.fillFrom(s.path) }); err != nil {
		return err
	}
	// The log of the old file must not be found beside the new one.
	if err := errors.Join(remove(s.path, "-wal"), durable.SyncDir(filepath.Dir(s.path))); err != nil {
		return err
	}
	if err := os.Rename(s.path+newEnd, s.path); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(s.path))
}

const smallFile = 32 << 20 // bytes of messages; a larger file is made anew when it has emptied

// renew gives a file of before the pages of today, which cost less flash: when
// there is not much in it, and room for another.
func (s *Spool) renew() error {
	var page int64
	if err := s.conn.QueryRowContext(context.Background(), "PRAGMA page_size").Scan(&page); err != nil {
		return err
	}
	held := s.used.total().bytes
	var fs unix.Statfs_t
	if page == pageSize || held > smallFile || unix.Statfs(s.path, &fs) != nil || int64(fs.Bavail)*fs.Bsize < 4*held+8<<20 { // #nosec G115 -- sizes
		return nil
	}
	if err := s.rewrite(); err != nil {
		s.log.Warn("spool keeps its large pages", "error", err)
	}
	return s.open()
}

// fillFrom copies everything of a file that is plain, or locked with the same key,
// or nothing.
func (s *Spool) fillFrom(path string) error {
	db, conn, err := connect(path, "rw")
	if err != nil {
		return err
	}
	defer db.Close()
	defer conn.Close()
	var locked bool
	if err := conn.QueryRowContext(context.Background(), "SELECT EXISTS (SELECT 1 FROM value WHERE key = ?)", lockKey).Scan(&locked); err != nil {
		return err
	}
	if err := s.exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	for _, t := range tables {
		if there, err := has(conn, t); err != nil || !there {
			if err != nil {
				s.rollback()
				return err
			}
			continue // the file is of before
		}
		err := s.copy(conn, t, true, func(bound string, payload []byte) ([]byte, bool) {
			if locked {
				return payload, true
			}
			out, err := s.safe.pack(bound, payload)
			return out, err == nil
		})
		if err != nil {
			s.rollback()
			return err
		}
	}
	return typed(s.exec("COMMIT"))
}

// has reports whether a file has a table.
func has(conn *sql.Conn, t table) (there bool, err error) {
	rows, err := conn.QueryContext(context.Background(), t.read+" LIMIT 0")
	if err != nil {
		if strings.Contains(err.Error(), "no such table") {
			return false, nil
		}
		return false, err
	}
	defer rows.Close()
	return true, rows.Err()
}

// remove removes a database file and what belongs to it, or what it names of it.
func remove(path string, ends ...string) error {
	if len(ends) == 0 {
		ends = []string{"", "-wal", "-shm", "-journal", copyEnd, reserveEnd, damageEnd}
	}
	for _, end := range ends {
		if err := os.Remove(path + end); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
