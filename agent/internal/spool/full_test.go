package spool_test

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tillward/tillward/agent/internal/spool"
)

// small is a medium that others can fill.
type small struct {
	dir         string
	fill, clear func()
	reserve     bool // what was set aside can be used
}

// tmpfs is a small file system; it needs root.
func tmpfs(t *testing.T) small {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=10m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	other := filepath.Join(dir, "other")
	return small{dir: dir, reserve: true, fill: func() {
		f, err := os.Create(other)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for size := 64 << 10; size > 0; { // to the last byte
			if _, err := f.Write(make([]byte, size)); err != nil {
				size /= 2
			}
		}
	}, clear: func() {
		if err := os.Remove(other); err != nil {
			t.Fatal(err)
		}
	}}
}

// limited lets no file grow: what the kernel does for who is not root.
func limited(t *testing.T) small {
	dir := t.TempDir()
	signal.Ignore(syscall.SIGXFSZ)
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	clear := func() {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(clear)
	return small{dir: dir, clear: clear, fill: func() {
		var largest int64
		names, _ := filepath.Glob(dir + "/*")
		for _, n := range names {
			if fi, err := os.Stat(n); err == nil {
				largest = max(largest, fi.Size())
			}
		}
		now := was
		now.Cur = uint64(largest) // #nosec G115 -- a size
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &now); err != nil {
			t.Fatal(err)
		}
	}}
}

// TestMediumIsFull fills the medium beside the spool: what was acknowledged stays,
// audit goes on in the place of telemetry and events and then in its reserve, and
// everything goes on when there is room again.
func TestMediumIsFull(t *testing.T) {
	media := map[string]func(*testing.T) small{"limit": limited}
	if os.Geteuid() == 0 {
		media["tmpfs"] = tmpfs
	} else {
		t.Log("not root: no file system of its own, a limit on the size of files instead")
	}
	for name, medium := range media {
		t.Run(name, func(t *testing.T) {
			m := medium(t)
			path := filepath.Join(m.dir, "spool.db")
			o := spool.Options{Thin: halve, Tally: dots}
			s := open(t, path, o)
			body := strings.Repeat(".", 600)
			entries, samples := uint64(0), 0
			entry := func() error {
				err := s.Append(t.Context(), "chain", "audit", func(head []byte) ([]byte, []byte, error) {
					payload, next, err := grow(head)
					return append(payload, body...), next, err
				})
				if err == nil {
					entries++
				}
				return err
			}
			sample := func() error {
				err := s.Put(t.Context(), spool.Telemetry, "telemetry", fmt.Appendf(nil, "%04d%s", samples%10000, body))
				samples++
				return err
			}
			check := func(when string) {
				t.Helper()
				if got := uint64(len(all(t, s, "audit"))); got != entries {
					t.Errorf("%s: %d entries are there, %d were acknowledged", when, got, entries)
				}
				left := len(all(t, s, "telemetry"))
				losses, err := s.Losses(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				for _, l := range losses {
					left += int(l.Messages) // #nosec G115 -- a few
				}
				if left > samples || left < samples-1 { // the last may wait for the next to be booked
					t.Errorf("%s: %d samples are there or told as lost, %d were put", when, left, samples)
				}
			}
			for range 400 {
				if err := errors.Join(entry(), sample()); err != nil {
					t.Fatal(err)
				}
			}
			m.fill()
			for range 200 { // telemetry takes the place of telemetry
				if err := sample(); err != nil && !errors.Is(err, spool.ErrDisk) {
					t.Fatal(err)
				}
			}
			check("full")
			before, full := entries, uint64(0)
			var err error
			for err == nil && entries < 10000 {
				if err = entry(); s.Full() && full == 0 {
					full = entries
				}
			}
			if !errors.Is(err, spool.ErrDisk) {
				t.Fatalf("after %d entries: got %v, want %v", entries-before, err, spool.ErrDisk)
			}
			t.Logf("%d entries on a full medium, risky actions were refused after %d", entries-before, full-before)
			if m.reserve && (entries-before < 1000 || full == 0 || entries-full < 500) {
				t.Errorf("%d entries on a full medium, Full after %d: the reserve is not used", entries-before, full-before)
			}
			check("no reserve")
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, path, o)
			if s.Rebuilt() != "" || s.Full() != m.reserve {
				t.Errorf("on a full medium: rebuilt %q, full %v", s.Rebuilt(), s.Full())
			}
			check("opened on a full medium")
			if err := s.Done(t.Context(), all(t, s, "audit")[0].id); err != nil && m.reserve { // the service takes one
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			m.clear()
			s = open(t, path, o)
			if m.reserve {
				entries--
			}
			if s.Full() {
				t.Error("full, with room on the medium")
			}
			if err := errors.Join(entry(), sample()); err != nil {
				t.Fatal(err)
			}
			check("room again")
		})
	}
}

// TestNotSynced has the medium refuse to sync: whoever wanted to be sure is told,
// and nothing is stored twice because it was tried again.
func TestNotSynced(t *testing.T) {
	path := file(t)
	s := open(t, path, spool.Options{})
	if err := s.Append(t.Context(), "chain", "audit", grow); err != nil {
		t.Fatal(err)
	}
	spool.BreakSync(s)
	for name, err := range map[string]error{
		"append": s.Append(t.Context(), "chain", "audit", grow),
		"save":   s.Save(t.Context(), "command/1", []byte("running"), "", nil),
		"result": s.Put(t.Context(), spool.Result, "result", []byte("r")),
	} {
		if !errors.Is(err, spool.ErrDisk) {
			t.Errorf("%s: got %v, want %v", name, err, spool.ErrDisk)
		}
	}
	put(t, s, spool.Telemetry, "telemetry", "waits for the window")
	if err := s.Sync(); err == nil {
		t.Error("synced without a medium")
	}
	s.Close()
	s = open(t, path, spool.Options{})
	if got := payloads(all(t, s, "audit")); len(got) < 1 || len(got) > 2 || got[0] != "1" || len(got) == 2 && got[1] != "2" {
		t.Errorf("entries %q: tried again", got)
	}
	if got := len(all(t, s, "result")); got > 1 {
		t.Errorf("%d results", got)
	}
}

// TestNoReserve has a file system that sets no room aside: that is no full medium,
// on which nothing risky may be done. Nor is a signal.
func TestNoReserve(t *testing.T) {
	for _, c := range []struct {
		answers []error
		full    bool
	}{
		{[]error{unix.EOPNOTSUPP}, false},
		{[]error{unix.ENOSYS}, false},
		{[]error{unix.EINTR, unix.EINTR}, false},
		{[]error{unix.ENOSPC, unix.ENOSPC}, true},
	} {
		spool.Fallocate(t, c.answers...)
		s := open(t, file(t), spool.Options{})
		if err := s.Append(t.Context(), "chain", "audit", grow); err != nil || s.Full() != c.full {
			t.Errorf("%v: full %v (%v), want %v", c.answers, s.Full(), err, c.full)
		}
	}
}
