package fetch_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/agent/internal/fetch"
)

// spend fetches until the budget is spent, and returns how many bytes came.
func spend(t *testing.T, s *service, f *fetch.Fetcher, version string, n int) int64 {
	t.Helper()
	before := s.sent()
	_, err := f.Get(t.Context(), s.release(version, noise(7, n), true), full(nil))
	if !errors.Is(err, fetch.ErrBudget) {
		t.Fatalf("got %v, want ErrBudget", err)
	}
	return s.sent() - before
}

func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService(t)
		o := fetch.Options{Dir: t.TempDir(), Daily: 1 << 20}
		begin := time.Now()
		// What the service sends and we do not read any more is in the buffers of the line.
		const line = 64 << 10
		if n := spend(t, s, s.box(o), "1.0.0", 3<<20); n > o.Daily+line || n < o.Daily/2 {
			t.Fatalf("first day: %d bytes", n)
		}
		f := s.box(o)
		if n, again := f.Left(); n != 0 || !again.Equal(begin.Add(24*time.Hour)) {
			t.Errorf("left: got %d until %s, want none until a day after %s", n, again, begin)
		}
		// A restart grants nothing, nor does an hour before the time.
		time.Sleep(23 * time.Hour)
		if n := spend(t, s, s.box(o), "1.0.0", 3<<20); n != 0 {
			t.Errorf("the same day: %d bytes", n)
		}
		time.Sleep(time.Hour)
		f = s.box(o)
		if n, _ := f.Left(); n != o.Daily {
			t.Errorf("left the next day: %d", n)
		}
		spend(t, s, f, "1.0.0", 3<<20)
		for i := 0; ; i++ {
			time.Sleep(24 * time.Hour)
			_, err := f.Get(t.Context(), s.release("1.0.0", noise(7, 3<<20), true), full(nil))
			if err == nil {
				break
			}
			if i > 3 {
				t.Fatalf("not whole after %d days: %v", i+2, err)
			}
		}
		// The days together cost no more than the content.
		if s.sent() > 3<<20+6*line {
			t.Errorf("%d bytes in all", s.sent())
		}
	})
}

// Exactly what came is spent, once the fetch has ended.
func TestBudgetSettles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService(t)
		o := fetch.Options{Dir: t.TempDir(), Daily: 10 << 20}
		mustGet(t, s.box(o), s.release("1.0.0", noise(1, 300_000), false), full(nil))
		if n, _ := s.box(o).Left(); n != o.Daily-300_000 {
			t.Errorf("left: %d", n)
		}
		if n, _ := s.box(fetch.Options{}).Left(); n != -1 {
			t.Errorf("without a limit: got %d, want -1", n)
		}
	})
}

// ledger rewrites what the budget has kept.
func ledger(t *testing.T, dir string, edit func(m map[string]any)) {
	t.Helper()
	p := filepath.Join(dir, "budget.json")
	b, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	edit(m)
	if b, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// The clock was years ahead when the budget was spent, and has been set right:
// nothing more is granted for it, and no more than a day is waited.
func TestClockSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService(t)
		o := fetch.Options{Dir: t.TempDir(), Daily: 1 << 20}
		spend(t, s, s.box(o), "1.0.0", 3<<20)
		ledger(t, o.Dir, func(m map[string]any) { m["since"] = time.Now().AddDate(10, 0, 0) })
		f := s.box(o)
		if n, again := f.Left(); n != 0 || again.After(time.Now().Add(24*time.Hour)) {
			t.Errorf("left: got %d until %s", n, again)
		}
		if n := spend(t, s, f, "1.0.0", 3<<20); n != 0 {
			t.Errorf("%d bytes were granted for setting the clock back", n)
		}
		time.Sleep(24 * time.Hour)
		if n, _ := f.Left(); n != o.Daily {
			t.Errorf("after a day that was seen to pass: %d bytes are left", n)
		}
	})
}

// A till that is switched off each night never sees a day pass in one piece.
// Neither a clock that was far ahead nor a ledger that cannot be read may keep
// it from its bytes for longer than a day by the clock that is right.
func TestBudgetOfATillThatSleeps(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, dir string){
		"clock": func(t *testing.T, dir string) {
			ledger(t, dir, func(m map[string]any) { m["since"] = time.Now().AddDate(10, 0, 0) })
		},
		"ledger": func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "budget.json"), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newService(t)
				o := fetch.Options{Dir: t.TempDir(), Daily: 1 << 20}
				spend(t, s, s.box(o), "1.0.0", 3<<20)
				spoil(t, o.Dir)
				for _, off := range []time.Duration{0, 12 * time.Hour, 11 * time.Hour} {
					time.Sleep(off)
					if n, _ := s.box(o).Left(); n != 0 {
						t.Fatalf("%d bytes are left on the same day", n)
					}
				}
				time.Sleep(2 * time.Hour)
				if n, _ := s.box(o).Left(); n != o.Daily {
					t.Errorf("on the next day: %d bytes are left", n)
				}
			})
		})
	}
}

func TestBudgetUnreadable(t *testing.T) {
	for _, content := range []string{"", "{", `{"since":"2000-01-01T00:00:00Z","spent":-1000000}`, "\x00\x00\x00"} {
		synctest.Test(t, func(t *testing.T) {
			s := newService(t)
			o := fetch.Options{Dir: t.TempDir(), Daily: 1 << 20}
			if err := os.WriteFile(filepath.Join(o.Dir, "budget.json"), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			f := s.box(o)
			if n := spend(t, s, f, "1.0.0", 3<<20); n != 0 {
				t.Errorf("%q: granted %d bytes", content, n)
			}
			time.Sleep(24 * time.Hour)
			if n, _ := f.Left(); n != o.Daily {
				t.Errorf("%q: left after a day: %d", content, n)
			}
		})
	}
}

// What other tills and a medium give costs nothing of it.
func TestMediumIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService(t)
		o := fetch.Options{Dir: t.TempDir(), Daily: 1}
		target := s.release("1.0.0", noise(1, 1<<20), true)
		r := full(nil)
		r.Medium = stick(t, s)
		mustGet(t, s.box(o), target, r)
		if n, _ := s.box(o).Left(); n != 1 || len(s.asked()) != 0 {
			t.Errorf("left: %d, asked %q", n, s.asked())
		}
	})
}

// stick writes all that is published onto a medium.
func stick(t *testing.T, s *service) string {
	t.Helper()
	dir := t.TempDir()
	for name, b := range s.files {
		p := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestMedium(t *testing.T) {
	offline := func() string { return "" }
	for _, index := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			s := newService(t)
			content := noise(1, 2<<20)
			target := s.release("1.0.0", content, index)
			dir := stick(t, s)
			var last fetch.Progress
			r := fetch.Request{Medium: dir, Progress: full(&last).Progress} // nothing from the service
			mustGet(t, s.box(fetch.Options{URL: offline}), target, r)
			if last.Bytes.Medium < int64(len(content)) || last.Bytes.Wire != 0 {
				t.Errorf("bytes: %+v", last.Bytes)
			}
			file := filepath.Join(dir, filepath.FromSlash(target.File()))
			for name, spoil := range map[string]func() error{
				"flipped": func() error {
					b := append([]byte(nil), content...)
					b[1<<20] ^= 1
					return os.WriteFile(file, b, 0o600)
				},
				"short": func() error { return os.Truncate(file, 1<<20) },
				"link away": func() error {
					other := filepath.Join(t.TempDir(), "x")
					return errors.Join(os.WriteFile(other, content, 0o600), os.Remove(file), os.Symlink(other, file))
				},
				"pipe":                        func() error { return errors.Join(os.Remove(file), syscall.Mkfifo(file, 0o600)) },
				"pipe in place of the folder": func() error { return errors.Join(os.Rename(dir, dir+".away"), syscall.Mkfifo(dir, 0o600)) },
				"gone":                        func() error { return os.Remove(file) },
			} {
				if err := errors.Join(os.RemoveAll(file), os.WriteFile(file, content, 0o600), spoil()); err != nil {
					t.Fatal(err)
				}
				if _, err := s.box(fetch.Options{URL: offline}).Get(t.Context(), target, full(nil)); err == nil {
					t.Errorf("%s, offline: got the content", name)
				}
				// The service has what is missing.
				r := full(&last)
				r.Medium = dir
				mustGet(t, s.box(fetch.Options{}), target, r)
				if strings.HasSuffix(name, "folder") {
					if err := errors.Join(os.Remove(dir), os.Rename(dir+".away", dir)); err != nil {
						t.Fatal(err)
					}
				}
				if name == "flipped" && index && last.Bytes.Wire > int64(len(content))/2+100<<10 {
					t.Errorf("%s: %+v", name, last.Bytes)
				}
			}
		})
	}
}

// An index that is on the medium is used; that it is missing holds up nobody
// who has no network.
func TestMediumWithoutIndex(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService(t)
		target := s.release("1.0.0", noise(1, 2<<20), true)
		dir := stick(t, s)
		if err := os.Remove(filepath.Join(dir, filepath.FromSlash(indexFile(target)))); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		var last fetch.Progress
		r := full(&last)
		r.Medium = dir
		mustGet(t, s.box(fetch.Options{URL: func() string { return "" }}), target, r)
		if took := time.Since(begin); took > time.Second || !strings.Contains(last.Full, "index") {
			t.Errorf("took %s, said %q", took, last.Full)
		}
	})
}
