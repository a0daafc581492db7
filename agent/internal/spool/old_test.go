package spool_test

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/tillward/tillward/agent/internal/spool"
)

// oldSchema is that of the spools in the field, with pages of 4 KiB.
const oldSchema = `
PRAGMA page_size=4096;
CREATE TABLE message (
	id      INTEGER PRIMARY KEY AUTOINCREMENT,
	class   TEXT NOT NULL,
	channel TEXT NOT NULL,
	size    INTEGER NOT NULL,
	thinned INTEGER NOT NULL DEFAULT 0,
	payload BLOB NOT NULL
);
CREATE INDEX message_class ON message (class, id);
CREATE TABLE value (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE counter (name TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counter VALUES ('spool.shed', 7), ('telemetry.samples', 3);
`

// oldSpool makes a file as the agents of before left it, locked when there is a key.
func oldSpool(t *testing.T, path string, key []byte) (want []string) {
	t.Helper()
	seal := func(_ string, b []byte) []byte { return b }
	if key != nil {
		block, err := aes.NewCipher(key)
		if err != nil {
			t.Fatal(err)
		}
		gcm, err := cipher.NewGCM(block)
		if err != nil {
			t.Fatal(err)
		}
		seal = func(bound string, b []byte) []byte {
			nonce := make([]byte, 12)
			_, _ = rand.Read(nonce)
			return gcm.Seal(nonce, nonce, b, []byte(bound))
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	exec := func(q string, args ...any) {
		if _, err := db.ExecContext(t.Context(), q, args...); err != nil {
			t.Fatal(err)
		}
	}
	exec(oldSchema)
	exec("BEGIN")
	if key != nil {
		exec("INSERT INTO value VALUES ('spool.lock', ?)", seal("value\x00spool.lock", nil))
	}
	exec("INSERT INTO value VALUES ('identity', ?)", seal("value\x00identity", []byte(marker)))
	exec("INSERT INTO value VALUES ('audit.head', '300')")
	for i := range 1000 { // more than are done in one step
		class, channel := "telemetry", "up/telemetry"
		switch i % 4 {
		case 1:
			class, channel = "keep", "up/audit"
		case 2:
			channel = "up/event"
		case 3:
			class, channel = "keep", "up/result"
		}
		if i == 500 {
			class, channel = "latest", "up/state"
		}
		m := fmt.Sprint(marker, i)
		want = append(want, m)
		exec("INSERT INTO message (class, channel, size, payload) VALUES (?, ?, ?, ?)", class, channel, len(m)+len(channel)+64,
			seal("message\x00"+class+"\x00"+channel, []byte(m)))
	}
	exec("COMMIT")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return want
}

// TestOldFiles opens spools of before: each message gets its class of today where
// it is, in its order, and under the lock. What an agent writes that was put back
// to before is taken in as well, and such an agent finds what it knows.
func TestOldFiles(t *testing.T) {
	for name, key := range map[string][]byte{"plain": nil, "locked": newKey()} {
		t.Run(name, func(t *testing.T) {
			path := file(t)
			want := oldSpool(t, path, key)
			o := spool.Options{Key: key, Plain: []string{"audit.head"}}
			for range 2 {
				blind := open(t, path, spool.Options{Blind: true, Plain: o.Plain})
				if got := load(t, blind, "audit.head"); got != "300" || blind.Depth() != 1000 {
					t.Errorf("blind: head %q and depth %d", got, blind.Depth())
				}
				if err := blind.Close(); err != nil {
					t.Fatal(err)
				}
				s := open(t, path, o)
				if got := payloads(all(t, s)); !slices.Equal(got, want) || s.Rebuilt() != "" || s.Shed() != 7 {
					t.Fatalf("%d of %d messages, %d shed, rebuilt %q", len(got), len(want), s.Shed(), s.Rebuilt())
				}
				if load(t, s, "identity") != marker {
					t.Error("the identity is another")
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if key != nil && found(t, path) != nil {
				t.Errorf("readable in %q", found(t, path))
			}
			classes := map[string]int{}
			db, err := sql.Open("sqlite3", path)
			if err != nil {
				t.Fatal(err)
			}
			var page int
			if err := db.QueryRowContext(t.Context(), "PRAGMA page_size").Scan(&page); err != nil || page != 1024 {
				t.Errorf("pages of %d bytes (%v), want small ones", page, err)
			}
			rows, err := db.QueryContext(t.Context(), "SELECT class, channel, count(*) FROM message GROUP BY 1, 2")
			if err != nil {
				t.Fatal(err)
			}
			defer rows.Close()
			for rows.Next() {
				var class, channel string
				var n int
				if err := rows.Scan(&class, &channel, &n); err != nil {
					t.Fatal(err)
				}
				classes[class+" "+channel] = n
			}
			if err := errors.Join(rows.Err(), db.Close()); err != nil {
				t.Fatal(err)
			}
			for k, n := range map[string]int{
				"audit up/audit": 250, "result up/result": 250, "event up/event": 250, "telemetry up/telemetry": 249, "state up/state": 1,
			} {
				if classes[k] != n {
					t.Errorf("%s: %d messages, want %d; all: %v", k, classes[k], n, classes)
				}
			}
			if key != nil {
				return
			}
			alter(t, path, "INSERT INTO message (class, channel, size, payload) VALUES ('keep', 'up/audit', 80, x'31')")
			s := open(t, path, o)
			put(t, s, spool.Audit, "up/audit", "2")
			if got := payloads(all(t, s)); !slices.Equal(got[len(got)-2:], []string{"1", "2"}) {
				t.Errorf("of an agent put back: got %q", got[len(got)-2:])
			}
		})
	}
}

// TestOldFileIsLocked takes a plain file of before over under a key.
func TestOldFileIsLocked(t *testing.T) {
	path, key := file(t), newKey()
	want := oldSpool(t, path, nil)
	s := open(t, path, spool.Options{Key: key})
	if got := payloads(all(t, s)); !slices.Equal(got, want) {
		t.Errorf("%d of %d messages", len(got), len(want))
	}
	if got := found(t, path); got != nil {
		t.Errorf("readable in %q", got)
	}
}
