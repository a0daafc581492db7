package fetch_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/agent/internal/fetch"
	"github.com/tillward/tillward/provisioning/trust"
)

type cut struct{}

// life is one power-on of a box: it fetches until it is done or, before the
// step with that number, the power is cut.
func (s *service) life(t *testing.T, dir string, target trust.Target, r fetch.Request, daily int64, cutAt int) (path string, steps []string) {
	t.Helper()
	ctx, off := context.WithCancel(context.Background())
	defer off()
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(cut); !ok {
				panic(p)
			}
			path = ""
		}
	}()
	f := s.box(fetch.Options{Dir: dir, Daily: daily, Keep: 1 << 30, Step: func(name string) {
		if steps = append(steps, name); len(steps) == cutAt {
			panic(cut{})
		}
	}})
	path, err := f.Get(ctx, target, r)
	if err != nil {
		t.Fatalf("cut at step %d: %v", cutAt, err)
	}
	return path, steps
}

// forget does to the staging file what a disk may do that lost its power: what
// was not synced is there, or zeros, or something else, or not part of the file.
func forget(t *testing.T, dir string, steps []string, rng *rand.Rand) {
	t.Helper()
	for i, step := range slices.Backward(steps) {
		if step == "verify staging" || step == "sync pieces" && i < len(steps)-1 {
			return // all that was written is on the disk
		}
		if strings.HasPrefix(step, "write ") {
			break
		}
	}
	files, _ := filepath.Glob(filepath.Join(dir, "staging-*"))
	for _, p := range files {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at+4096 <= len(b); at += 4096 {
			switch rng.IntN(6) {
			case 0:
				clear(b[at : at+4096])
			case 1:
				b[at+rng.IntN(4096)] ^= 0x40
			}
		}
		if rng.IntN(3) == 0 {
			b = b[:rng.IntN(len(b)+1)]
		}
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// A file that was being replaced may be anything.
	left, _ := filepath.Glob(filepath.Join(dir, "*", "*.new"))
	for _, p := range append(left, filepath.Join(dir, "budget.json.new")) {
		if _, err := os.Stat(p); err == nil {
			if err := os.WriteFile(p, []byte("torn"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// The power is cut before each step in turn, and the disk loses what was not
// synced. Nothing but the right content is ever returned, and in the next life
// the fetch goes on and ends.
func TestPowerCutAtEachStep(t *testing.T) {
	old := noise(1, 256<<10)
	content := bytes.Clone(old)
	copy(content[100<<10:], noise(2, 60<<10))
	for _, index := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			s := newService(t)
			target := s.release("1.0.0", content, index)
			rng := rand.New(rand.NewPCG(1, 2)) // #nosec G404 -- a test that can be repeated
			n := 1
			for ; ; n++ {
				dir := t.TempDir()
				r := full(nil)
				r.Seed = seed(old)
				path, steps := s.life(t, dir, target, r, 100<<20, n)
				whole, _ := filepath.Glob(filepath.Join(dir, "content", target.SHA256))
				if len(whole) > 0 && target.CheckFile(whole[0]) != nil {
					t.Fatalf("index %v, cut at step %d %q: a wrong file is called whole", index, n, steps[len(steps)-1])
				}
				if path == "" {
					forget(t, dir, steps, rng)
					// And again, a little further on, before it is left alone.
					var more []string
					if path, more = s.life(t, dir, target, r, 100<<20, 1+rng.IntN(len(steps)+3)); path == "" {
						forget(t, dir, more, rng)
						path, _ = s.life(t, dir, target, r, 100<<20, 0)
					}
				}
				if err := target.CheckFile(path); err != nil {
					t.Fatalf("index %v, cut at step %d: %v", index, n, err)
				}
				if left, _ := filepath.Glob(filepath.Join(dir, "staging-*")); len(left) != 0 {
					t.Errorf("index %v, cut at step %d: left %q", index, n, left)
				}
				if len(steps) < n {
					break
				}
			}
			t.Logf("index %v: cut at %d steps", index, n-1)
			if n < 15 {
				t.Errorf("index %v: only %d steps were tried", index, n)
			}
		})
	}
}

// A cut grants no bytes: what was put down as spent before it stays so.
func TestPowerCutGrantsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService(t)
		target := s.release("1.0.0", noise(1, 6<<20), true)
		dir := t.TempDir()
		const daily = 3 << 20
		for n := 20; ; n += 17 {
			done := func() (done bool) {
				ctx, off := context.WithCancel(context.Background())
				defer off()
				defer func() {
					if p := recover(); p != nil && p != (cut{}) {
						panic(p)
					}
				}()
				steps := 0
				f := s.box(fetch.Options{Dir: dir, Daily: daily, Step: func(string) {
					if steps++; steps == n {
						panic(cut{})
					}
				}})
				_, err := f.Get(ctx, target, full(nil))
				if err == nil {
					t.Fatal("all of it came in a day")
				}
				return true
			}()
			if done {
				break
			}
		}
		if over := s.sent() - daily; over > 20*64<<10 {
			t.Errorf("%d bytes more than the budget were sent", over)
		}
	})
}

// What is kept for other tills is bounded, and the oldest goes first.
func TestKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService(t)
		o := fetch.Options{Dir: t.TempDir(), Keep: 250 << 10}
		f := s.box(o)
		there := func() string {
			var names []string
			for i := range 4 {
				if _, err := os.Stat(filepath.Join(o.Dir, "content", sum(noise(byte(i), 100<<10)))); err == nil {
					names = append(names, fmt.Sprint(i))
				}
			}
			return strings.Join(names, " ")
		}
		for i := range 4 {
			target := s.release(fmt.Sprintf("1.0.%d", i), noise(byte(i), 100<<10), false)
			mustGet(t, f, target, full(nil))
			at := filepath.Join(o.Dir, "content", target.SHA256)
			old := time.Now().AddDate(0, 0, i)
			if err := os.Chtimes(at, old, old); err != nil {
				t.Fatal(err)
			}
		}
		if got := there(); got != "1 2 3" {
			t.Errorf("with the last one in use: got %q", got)
		}
		if err := f.Done(); err != nil {
			t.Fatal(err)
		}
		if got := there(); got != "2 3" {
			t.Errorf("after it: got %q", got)
		}
		o.Keep = 0
		if err := s.box(o).Done(); err != nil {
			t.Fatal(err)
		}
		if got := there(); got != "" {
			t.Errorf("with nothing to keep: got %q", got)
		}
	})
}
