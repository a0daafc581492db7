package spool_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	_ "github.com/mattn/go-sqlite3"

	"github.com/tillward/tillward/agent/internal/spool"
)

const marker = "SAFFRON-AND-ROSES" // a secret that no file may hold

func newKey() []byte {
	k := make([]byte, 32)
	_, _ = rand.Read(k)
	return k
}

// found returns the files beside path that hold the marker.
func found(t *testing.T, path string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(path + "*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte(marker)) {
			names = append(names, filepath.Base(f))
		}
	}
	return names
}

func save(t testing.TB, s *spool.Spool, key, value string) {
	t.Helper()
	if err := s.Save(t.Context(), key, []byte(value), "", nil); err != nil {
		t.Fatal(err)
	}
}

func load(t testing.TB, s *spool.Spool, key string) string {
	t.Helper()
	b, err := s.Load(t.Context(), key)
	if err != nil {
		t.Fatalf("load %s: %v", key, err)
	}
	return string(b)
}

// secrets fills a spool with what nobody may read.
func secrets(t testing.TB, s *spool.Spool) {
	t.Helper()
	for i := range 20 {
		put(t, s, spool.Audit, "audit", fmt.Sprintf("%s %d", marker, i))
	}
	put(t, s, spool.Telemetry, "telemetry", "sample "+marker)
	put(t, s, spool.State, "state", "old "+marker)
	put(t, s, spool.State, "state", "new "+marker)
	save(t, s, "identity", marker)
	err := s.Compose(t.Context(), spool.Audit, "audit", func() ([]byte, error) { return []byte(marker), nil }, map[string]uint64{"samples": 3})
	if err != nil {
		t.Fatal(err)
	}
}

// TestLocked shows that what lies in a locked file cannot be read without the
// key, while it is open and after, and can be with it.
func TestLocked(t *testing.T) {
	path, key := file(t), newKey()
	o := spool.Options{Key: key, Plain: []string{"audit.head"}}
	s := open(t, path, o)
	secrets(t, s)
	save(t, s, "audit.head", "12")
	if got := found(t, path); got != nil {
		t.Errorf("readable in %q while the spool is open", got)
	}
	before := payloads(all(t, s))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := found(t, path); got != nil {
		t.Errorf("readable in %q after an orderly end", got)
	}
	again := open(t, path, o)
	if got := payloads(all(t, again)); !slices.Equal(got, before) || len(got) != 23 || !strings.Contains(got[20], marker) {
		t.Errorf("after a restart: got %q, want %q", got, before)
	}
	if got := load(t, again, "identity"); got != marker {
		t.Errorf("value: got %q, want %q", got, marker)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]spool.Options{"another key": {Key: newKey()}, "no key": {}} {
		if _, err := spool.Open(path, o); !errors.Is(err, spool.ErrKey) {
			t.Errorf("%s: got %v, want ErrKey", name, err)
		}
	}
	if _, err := spool.Open(path, spool.Options{Key: key[:16]}); err == nil {
		t.Error("a key of 16 bytes was taken")
	}
	if names, _ := filepath.Glob(path + ".broken*"); names != nil {
		t.Errorf("a wrong key set the file aside: %q", names)
	}
}

// TestPlainHoldsTheMarker is the twin: without a key the marker is there.
func TestPlainHoldsTheMarker(t *testing.T) {
	path := file(t)
	secrets(t, open(t, path, spool.Options{}))
	if found(t, path) == nil {
		t.Error("the marker is not in a plain file: the test above looks in the wrong place")
	}
}

// TestBlind reads from a locked file what needs no key, and nothing else.
func TestBlind(t *testing.T) {
	path, plain := file(t), []string{"audit.head"}
	s := open(t, path, spool.Options{Key: newKey(), Plain: plain})
	secrets(t, s)
	save(t, s, "audit.head", "12")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b := open(t, path, spool.Options{Blind: true, Plain: plain})
	if got := load(t, b, "audit.head"); got != "12" {
		t.Errorf("plain value: got %q, want 12", got)
	}
	if n, err := b.Counter(t.Context(), "samples"); n != 3 || err != nil || b.Depth() != 23 {
		t.Errorf("got counter %d, %v and depth %d, want 3 and 23", n, err, b.Depth())
	}
	if keys, err := b.Keys(t.Context(), "ident"); err != nil || !slices.Equal(keys, []string{"identity"}) {
		t.Errorf("keys: got %q, %v", keys, err)
	}
	_, loaded := b.Load(t.Context(), "identity")
	next := b.Next(t.Context(), 0, 10, nil, func(uint64, string, []byte) { t.Error("a message was handed out") })
	for name, err := range map[string]error{
		"load": loaded, "next": next, "put": b.Put(t.Context(), spool.Audit, "audit", []byte("x")),
		"save": b.Save(t.Context(), "other", []byte("x"), "", nil),
	} {
		if !errors.Is(err, spool.ErrKey) {
			t.Errorf("%s: got %v, want ErrKey", name, err)
		}
	}
}

// TestTakeOver locks a plain spool of before: nothing is lost, nothing stays
// readable, and what a power cut left half done is begun again.
func TestTakeOver(t *testing.T) {
	path, key := file(t), newKey()
	s := open(t, path, spool.Options{})
	secrets(t, s)
	before := all(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", []byte(marker), 0o600); err != nil { // of a power cut
		t.Fatal(err)
	}
	l := open(t, path, spool.Options{Key: key})
	if got := all(t, l); len(got) != len(before) || got[0].id != before[0].id || !slices.Equal(payloads(got), payloads(before)) {
		t.Errorf("got %v, want %v", got, before)
	}
	if n, err := l.Counter(t.Context(), "samples"); n != 3 || err != nil || load(t, l, "identity") != marker {
		t.Errorf("counter %d, %v, identity %q", n, err, load(t, l, "identity"))
	}
	if got := found(t, path); got != nil {
		t.Errorf("still readable in %q", got)
	}
	put(t, l, spool.Audit, "audit", "more")
}

// TestRecordsAreBound shows that a record which was changed or moved from
// outside is not believed: a message is given up, a value is damage.
func TestRecordsAreBound(t *testing.T) {
	path, key := file(t), newKey()
	s := open(t, path, spool.Options{Key: key})
	put(t, s, spool.Audit, "audit", "first")
	put(t, s, spool.Result, "result", "second")
	save(t, s, "a", "of a")
	save(t, s, "b", "of b")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	alter(t, path, "UPDATE message SET channel = 'audit' WHERE channel = 'result'")
	s = open(t, path, spool.Options{Key: key})
	if got := payloads(all(t, s)); !slices.Equal(got, []string{"first"}) || s.Depth() != 1 {
		t.Errorf("moved message: got %q and depth %d, want the first alone", got, s.Depth())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	alter(t, path, "UPDATE value SET value = (SELECT value FROM value WHERE key = 'a') WHERE key = 'b'")
	s = open(t, path, spool.Options{Key: key})
	if s.Rebuilt() == "" {
		t.Error("a value that was moved is no damage")
	}
	if a, b := load(t, s, "a"), load(t, s, "b"); a != "of a" || b != "" {
		t.Errorf("after the rebuild: got %q and %q, want what was genuine", a, b)
	}
	if got := payloads(all(t, s)); !slices.Equal(got, []string{"first"}) {
		t.Errorf("after the rebuild: got %q", got)
	}
}

// TestBeside goes on in a plain spool while the key is away, and loses nothing
// when it comes back, wherever the power is cut.
func TestBeside(t *testing.T) {
	path, key := file(t), newKey()
	o := spool.Options{Key: key, Plain: []string{"audit.head"}, MaxBytes: 4 << 20}
	s := open(t, path, o)
	secrets(t, s)
	save(t, s, "audit.head", "22")
	save(t, s, "settings", "old")
	before := payloads(all(t, s))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	side := path + ".side"
	for range 2 { // the second start goes on with the same one
		blind := open(t, path, spool.Options{Blind: true, Plain: o.Plain})
		b, err := spool.Beside(t.Context(), side, blind, map[string][]byte{"floor": []byte("7")}, o)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := b.Counter(t.Context(), "samples"); n < 3 || err != nil {
			t.Errorf("counter: got %d, %v, want it to go on", n, err)
		}
		if got := load(t, b, "floor"); got != "7" {
			t.Errorf("floor: got %q", got)
		}
		head := load(t, b, "audit.head")
		err = b.Append(t.Context(), "audit.head", "audit", func(h []byte) ([]byte, []byte, error) {
			return append([]byte("behind "), h...), append(h, '+'), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if head != "22" && head != "22+" {
			t.Errorf("head: got %q", head)
		}
		save(t, b, "settings", "of who wrote on the disk")
		err = b.Compose(t.Context(), spool.State, "state", func() ([]byte, error) { return []byte("side"), nil }, map[string]uint64{"samples": 1})
		if err != nil {
			t.Fatal(err)
		}
		big := make([]byte, 4<<20) // more than there is room for
		if err := b.Put(t.Context(), spool.Telemetry, "telemetry", big); !errors.Is(err, spool.ErrFull) {
			t.Errorf("got %v", err)
		}
		if err := errors.Join(b.Close(), blind.Close()); err != nil {
			t.Fatal(err)
		}
	}

	kept, err := os.ReadFile(side)
	if err != nil {
		t.Fatal(err)
	}
	want := slices.DeleteFunc(before, func(p string) bool { return strings.HasPrefix(p, "new ") }) // the state is told anew
	want = append(want, "behind 22", "behind 22+", "side")
	for range 2 { // the second time as after a power cut before the file was removed
		s = open(t, path, o)
		if err := s.Absorb(t.Context(), side, isHead); err != nil {
			t.Fatal(err)
		}
		if got := payloads(all(t, s)); !slices.Equal(dedupe(got), want) {
			t.Errorf("got %q, want %q", got, want)
		}
		if l, err := s.Losses(t.Context()); err != nil || len(l) != 1 || l[0].Messages != 2 && l[0].Messages != 4 {
			t.Errorf("losses %v (%v), want the two of the plain spool", l, err)
		}
		if n, _ := s.Counter(t.Context(), "samples"); n != 5 || load(t, s, "audit.head") != "22++" || load(t, s, "settings") != "old" {
			t.Errorf("counter %d, head %q, settings %q", n, load(t, s, "audit.head"), load(t, s, "settings"))
		}
		if _, err := os.Stat(side); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the plain spool is still there: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(side, kept, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := found(t, path); got != nil {
		t.Errorf("readable in %q", got)
	}
	if err := open(t, path, o).Absorb(context.Background(), side+".none", isHead); err != nil {
		t.Errorf("nothing to take over: %v", err)
	}
}

func isHead(key string) bool { return key == "audit.head" }

func dedupe(s []string) (out []string) {
	for i, p := range s {
		if !slices.Contains(s[i+1:], p) {
			out = append(out, p)
		}
	}
	return out
}

// alter changes the file as whoever has the disk can.
func alter(t *testing.T, path, statement string) {
	t.Helper()
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.ExecContext(t.Context(), statement)
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}
