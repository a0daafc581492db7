package spool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/tillward/tillward/agent/internal/spool"
)

func open(t testing.TB, path string, o spool.Options) *spool.Spool {
	t.Helper()
	s, err := spool.Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func file(t testing.TB) string { return filepath.Join(t.TempDir(), "state", "spool.db") }

type item struct {
	id      uint64
	channel string
	payload string
}

func all(t testing.TB, s *spool.Spool, channels ...string) (items []item) {
	t.Helper()
	after := uint64(0)
	for {
		n := len(items)
		err := s.Next(context.Background(), after, 50, channels, func(id uint64, channel string, payload []byte) {
			items, after = append(items, item{id, channel, string(payload)}), id
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(items) == n {
			return items
		}
	}
}

func payloads(items []item) (out []string) {
	for _, i := range items {
		out = append(out, i.payload)
	}
	return out
}

func put(t testing.TB, s *spool.Spool, class, channel, payload string) {
	t.Helper()
	if err := s.Put(t.Context(), class, channel, []byte(payload)); err != nil {
		t.Fatal(err)
	}
}

func TestQueueInOrder(t *testing.T) {
	path := file(t)
	s := open(t, path, spool.Options{})
	if n := len(all(t, s)); n != 0 || s.Depth() != 0 {
		t.Fatalf("new spool holds %d messages", n)
	}
	put(t, s, spool.Audit, "audit", "a1")
	put(t, s, spool.Telemetry, "telemetry", "t1")
	put(t, s, spool.State, "state", "s1")
	put(t, s, spool.Audit, "audit", "a2")
	put(t, s, spool.State, "state", "s2")
	put(t, s, spool.Audit, "empty", "")
	select {
	case <-s.Wake():
	default:
		t.Error("puts did not signal Wake")
	}

	want := []string{"a1", "t1", "a2", "s2", ""}
	if got := payloads(all(t, s)); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q: only the newest state, the rest in order", got, want)
	}
	if got, want := payloads(all(t, s, "audit", "state")), []string{"a1", "a2", "s2"}; !slices.Equal(got, want) {
		t.Errorf("two channels: got %q, want %q", got, want)
	}
	items := all(t, s)
	if err := s.Done(t.Context(), items[0].id, items[2].id, 999); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = open(t, path, spool.Options{})
	want = []string{"t1", "s2", ""}
	if got := payloads(all(t, s)); !slices.Equal(got, want) || s.Depth() != 3 {
		t.Errorf("after reopening: got %q and depth %d, want %q", got, s.Depth(), want)
	}
	select {
	case <-s.Wake():
	default:
		t.Error("a spool that opens with messages did not signal Wake")
	}
	if s.Rebuilt() != "" {
		t.Errorf("a sound file was rebuilt as %s", s.Rebuilt())
	}
	last := items[len(items)-1].id
	if err := s.Done(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	put(t, s, spool.Audit, "audit", "a3")
	if got := all(t, s); got[len(got)-1].id <= last {
		t.Errorf("id %d was used again after %d", got[len(got)-1].id, last)
	}
}

func TestNextIsBounded(t *testing.T) {
	s := open(t, file(t), spool.Options{})
	big := strings.Repeat("x", 60<<10)
	for range 10 {
		put(t, s, spool.Audit, "audit", big)
	}
	n := 0
	if err := s.Next(t.Context(), 0, 100, nil, func(uint64, string, []byte) { n++ }); err != nil || n == 0 || n > 6 {
		t.Errorf("got %d messages of 60 KiB at once (%v), want a few", n, err)
	}
}

func TestComposeCountsAndRollsBack(t *testing.T) {
	path := file(t)
	s := open(t, path, spool.Options{})
	one := func() ([]byte, error) { return []byte("m"), nil }
	for range 3 {
		if err := s.Compose(t.Context(), spool.Telemetry, "telemetry", one, map[string]uint64{"samples": 10}); err != nil {
			t.Fatal(err)
		}
	}
	refused := errors.New("refused")
	err := s.Compose(t.Context(), spool.Telemetry, "telemetry", func() ([]byte, error) { return nil, refused }, map[string]uint64{"samples": 1})
	if !errors.Is(err, refused) {
		t.Errorf("got %v, want %v", err, refused)
	}
	if err := s.Put(t.Context(), "precious", "x", nil); err == nil {
		t.Error("a class that does not exist was taken")
	}
	s.Close()
	s = open(t, path, spool.Options{})
	if n, err := s.Counter(t.Context(), "samples"); err != nil || n != 30 {
		t.Errorf("counter is %d (%v), want 30", n, err)
	}
	if n, err := s.Counter(t.Context(), "nothing"); err != nil || n != 0 {
		t.Errorf("counter of nothing is %d (%v)", n, err)
	}
	if s.Depth() != 3 {
		t.Errorf("depth %d, want 3", s.Depth())
	}
}

// TestOrderOfNumbers holds what makes Compose worth having: numbers drawn inside
// it are queued in their order, however many goroutines put.
func TestOrderOfNumbers(t *testing.T) {
	s := open(t, file(t), spool.Options{})
	next := 0
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				err := s.Compose(t.Context(), spool.Result, "result", func() ([]byte, error) {
					next++
					return fmt.Appendf(nil, "%03d", next), nil
				}, nil)
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := payloads(all(t, s)); !slices.IsSorted(got) || len(got) != 80 {
		t.Errorf("%d messages, sorted %v", len(got), slices.IsSorted(got))
	}
}

func TestValues(t *testing.T) {
	path := file(t)
	s := open(t, path, spool.Options{})
	if v, err := s.Load(t.Context(), "command/1"); v != nil || err != nil {
		t.Errorf("value of nothing: %q (%v)", v, err)
	}
	if err := s.Save(t.Context(), "command/1", []byte("running"), "", nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(t.Context(), "command/1", []byte("done"), "result", func() ([]byte, error) { return []byte("r1"), nil }); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(t.Context(), "command/2", nil, "", nil); err != nil {
		t.Fatal(err)
	}
	refused := errors.New("refused")
	if err := s.Save(t.Context(), "command/1", []byte("lost"), "result", func() ([]byte, error) { return nil, refused }); !errors.Is(err, refused) {
		t.Errorf("got %v, want %v", err, refused)
	}
	s.Close()
	s = open(t, path, spool.Options{})
	if v, err := s.Load(t.Context(), "command/1"); string(v) != "done" || err != nil {
		t.Errorf("got %q (%v), want done", v, err)
	}
	if got := payloads(all(t, s)); !slices.Equal(got, []string{"r1"}) {
		t.Errorf("results %q, want r1", got)
	}
	if keys, err := s.Keys(t.Context(), "command/"); err != nil || !slices.Equal(keys, []string{"command/1", "command/2"}) {
		t.Errorf("keys %q (%v)", keys, err)
	}
	if err := s.Drop(t.Context(), "command/1", "nothing"); err != nil {
		t.Fatal(err)
	}
	if keys, err := s.Keys(t.Context(), "command/"); err != nil || !slices.Equal(keys, []string{"command/2"}) {
		t.Errorf("keys after Drop %q (%v)", keys, err)
	}
}

func TestKeepFillsUp(t *testing.T) {
	const size = 1 << 10
	s := open(t, file(t), spool.Options{MaxBytes: 64 * size})
	body := strings.Repeat("a", size)
	for range 20 {
		put(t, s, spool.Telemetry, "telemetry", body)
	}
	var err error
	n, full := 0, 0
	for ; n < 100; n++ {
		if s.Full() && full == 0 {
			full = n
		}
		if err = s.Put(t.Context(), spool.Audit, "audit", []byte(body)); err != nil {
			break
		}
	}
	if !errors.Is(err, spool.ErrFull) {
		t.Fatalf("after %d messages: got %v, want %v", n, err, spool.ErrFull)
	}
	if full == 0 || full >= n {
		t.Errorf("Full was first true at %d of %d messages, want it before the end", full, n)
	}
	if got := len(all(t, s, "audit")); got != n {
		t.Errorf("%d audit messages are there, %d were acknowledged", got, n)
	}
	if got := len(all(t, s, "telemetry")); got != 0 {
		t.Errorf("%d telemetry messages were kept while audit was refused", got)
	}
	before := s.Shed()
	if err := s.Put(t.Context(), spool.Telemetry, "telemetry", []byte(body)); !errors.Is(err, spool.ErrFull) || s.Shed() != before+1 {
		t.Errorf("telemetry into a full spool: got %v and %d shed, want %v and %d", err, s.Shed(), spool.ErrFull, before+1)
	}
	link := func([]byte) ([]byte, []byte, error) { return []byte(body), []byte("head"), nil }
	if err := s.Append(t.Context(), "chain", "audit", link); !errors.Is(err, spool.ErrFull) {
		t.Errorf("append: got %v, want %v", err, spool.ErrFull)
	}
	if head, err := s.Load(t.Context(), "chain"); head != nil || err != nil {
		t.Errorf("the head moved to %q (%v) without its entry", head, err)
	}
	// The service takes some: it goes on.
	if err := s.Done(t.Context(), all(t, s)[0].id, all(t, s)[1].id); err != nil {
		t.Fatal(err)
	}
	if err := s.Append(t.Context(), "chain", "audit", link); err != nil {
		t.Errorf("append after Done: %v", err)
	}
}

// TestFileCannotGrow fills the file itself, journal of commands included.
func TestFileCannotGrow(t *testing.T) {
	s := open(t, file(t), spool.Options{MaxBytes: 256 << 10})
	put(t, s, spool.Audit, "audit", "before")
	var err error
	n := 0
	for ; err == nil && n < 1000; n++ {
		err = s.Save(t.Context(), fmt.Sprintf("k%04d", n), bytes.Repeat([]byte{1}, 32<<10), "", nil)
	}
	if !errors.Is(err, spool.ErrDisk) {
		t.Fatalf("got %v after %d values, want %v", err, n, spool.ErrDisk)
	}
	keys, err := s.Keys(t.Context(), "k")
	if err != nil || len(keys) != n-1 {
		t.Errorf("%d values are there (%v), %d were acknowledged", len(keys), err, n-1)
	}
	if got := payloads(all(t, s)); !slices.Equal(got, []string{"before"}) {
		t.Errorf("got %q, want what was acknowledged before", got)
	}
	if err := s.Done(t.Context(), all(t, s)[0].id); err != nil {
		t.Errorf("forgetting on a full medium: %v", err)
	}
	if err := s.Drop(t.Context(), keys...); err != nil {
		t.Fatal(err)
	}
	put(t, s, spool.Audit, "audit", "after")
}

func TestDamagedFileIsSetAside(t *testing.T) {
	link := func(head []byte) ([]byte, []byte, error) {
		next := fmt.Appendf(nil, "%s+", head)
		return next, next, nil
	}
	for name, damage := range map[string]func(*testing.T, []byte) []byte{
		"garbage":   func(_ *testing.T, b []byte) []byte { return bytes.Repeat([]byte("no database "), len(b)/12) },
		"cut short": func(_ *testing.T, b []byte) []byte { return b[:len(b)/2] },
		"one page overwritten": func(_ *testing.T, b []byte) []byte {
			copy(b[len(b)-4096:], bytes.Repeat([]byte{0xff}, 4096))
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			path, o := file(t), spool.Options{Copied: []string{"chain"}}
			s := open(t, path, o)
			for range 20 {
				if err := s.Append(t.Context(), "chain", "audit", link); err != nil {
					t.Fatal(err)
				}
				put(t, s, spool.Telemetry, "telemetry", strings.Repeat("x", 3000))
			}
			s.Close()
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, damage(t, b), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(path + "-wal"); err != nil { // it would heal what it still holds
				t.Fatal(err)
			}
			s = open(t, path, o)
			if s.Rebuilt() == "" {
				t.Fatal("nobody was told of the damage")
			}
			if _, err := os.Stat(s.Rebuilt()); err != nil {
				t.Errorf("the damaged file is not kept: %v", err)
			}
			if err := s.Append(t.Context(), "chain", "audit", link); err != nil {
				t.Fatal(err)
			}
			items := all(t, s, "audit")
			head, err := s.Load(t.Context(), "chain")
			if err != nil || string(head) != items[len(items)-1].payload {
				t.Errorf("head %q (%v), last entry %q", head, err, items[len(items)-1].payload)
			}
			if len(head) != 21 {
				t.Errorf("the chain does not go on: head has length %d, want 21", len(head))
			}
			s.Close()
			if s = open(t, path, spool.Options{}); s.Rebuilt() != "" {
				t.Error("rebuilt twice")
			}
		})
	}
}

// TestDamageInUse overwrites a file that is open: what cannot be read is said, and
// the next start sets it aside, whether it finds the damage or not.
func TestDamageInUse(t *testing.T) {
	path, o := file(t), spool.Options{Copied: []string{"chain"}}
	s := open(t, path, o)
	for range 800 { // more than the cache and the log hold
		if err := s.Append(t.Context(), "chain", "audit", grow); err != nil {
			t.Fatal(err)
		}
		put(t, s, spool.Telemetry, "telemetry", strings.Repeat("x", 3000))
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	kept := make([]byte, 1<<20)
	if _, err := f.ReadAt(kept, 1<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xff}, len(kept)), 1<<20); err != nil {
		t.Fatal(err)
	}
	after, failed := uint64(0), false
	for n := 1; n > 0 && !failed; {
		n = 0
		failed = s.Next(t.Context(), after, 50, nil, func(id uint64, _ string, _ []byte) { n, after = n+1, id }) != nil
	}
	if !failed || !s.Damaged() {
		t.Fatalf("failed %v, damaged %v: nobody is told", failed, s.Damaged())
	}
	s.Close()
	if _, err := f.WriteAt(kept, 1<<20); err != nil { // and it is sound again
		t.Fatal(err)
	}
	f.Close()
	s = open(t, path, o)
	if s.Rebuilt() == "" || s.Damaged() {
		t.Errorf("rebuilt %q, damaged %v", s.Rebuilt(), s.Damaged())
	}
	if got := len(all(t, s, "audit")); got != 800 {
		t.Errorf("%d of 800 entries, of a file that can be read", got)
	}
	aside := s.Rebuilt()
	s.Close()
	if s = open(t, path, o); s.Rebuilt() != aside {
		t.Errorf("rebuilt %q, was %q: no entry has told it", s.Rebuilt(), aside)
	}
	if err := s.Append(t.Context(), "chain", "audit", grow); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if s = open(t, path, o); s.Rebuilt() != "" {
		t.Error("rebuilt twice")
	}
}

func TestOneAgentAtATime(t *testing.T) {
	t.Parallel() // it waits for the other
	path := file(t)
	open(t, path, spool.Options{})
	second, err := spool.Open(path, spool.Options{})
	if err == nil {
		second.Close()
		t.Fatal("two spools on one file")
	}
	if aside, _ := filepath.Glob(path + ".broken-*"); len(aside) != 0 {
		t.Errorf("a spool in use was taken for a damaged one: %v", err)
	}
}

func TestClosed(t *testing.T) {
	s := open(t, file(t), spool.Options{})
	s.Close()
	if err := s.Put(t.Context(), spool.Audit, "audit", nil); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("put: got %v, want %v", err, spool.ErrClosed)
	}
	if err := s.Next(t.Context(), 0, 1, nil, nil); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("next: got %v, want %v", err, spool.ErrClosed)
	}
	if err := s.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestContextEndsTheWait(t *testing.T) {
	s := open(t, file(t), spool.Options{})
	inside, leave := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		err := s.Compose(context.Background(), spool.Audit, "audit", func() ([]byte, error) {
			close(inside)
			<-leave
			return nil, nil
		}, nil)
		if err != nil {
			t.Error(err)
		}
	})
	<-inside
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Put(ctx, spool.Audit, "audit", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	close(leave)
	wg.Wait()
}
