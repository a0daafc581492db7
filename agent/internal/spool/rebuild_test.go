package spool_test

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tillward/tillward/agent/internal/spool"
)

// damagedSpool makes a spool in which damage was found while it was used, and
// returns what can be read of it.
func damagedSpool(t *testing.T, path string, o spool.Options) (want []string) {
	t.Helper()
	s := open(t, path, o)
	save(t, s, "identity", marker)
	for range 12 {
		if err := s.Append(t.Context(), "chain", "audit", grow); err != nil {
			t.Fatal(err)
		}
		put(t, s, spool.Result, "result", strings.Repeat("r", 900))
	}
	want = payloads(all(t, s))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".damaged", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return want
}

// TestPowerCutWhileRebuilding cuts the power at each call of an Open that has to
// make a new file: what can be read is still there, and that there was damage is
// said until an entry has told it.
func TestPowerCutWhileRebuilding(t *testing.T) {
	for _, word := range []string{"", "word"} {
		t.Run("key"+word, func(t *testing.T) {
			t.Parallel()
			dir, scratch := t.TempDir(), scratchDir(t)
			path := filepath.Join(dir, "spool.db")
			o := cutOptions("rebuild", keyOf(word))
			want := damagedSpool(t, path, o)
			d := newDisk(t, dir)
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), childOf+"="+path, childKey+"="+word, childWork+"=rebuild")
			told, cuts := false, 0
			for i, c := range record(t, dir, cmd) {
				if told = told || c.said == "entry"; c.name != "says" {
					d.do(t, c)
				}
				if i%2 == 1 {
					continue
				}
				d.cut(t, dir, scratch, rand.New(rand.NewPCG(uint64(i), 0)))
				cuts++
				s, err := spool.Open(filepath.Join(scratch, "spool.db"), o)
				if err != nil {
					t.Fatalf("cut %d (%s): %v", i, c.name, err)
				}
				got, id := payloads(all(t, s)), load(t, s, "identity")
				if n := len(want); len(got) < n || !slices.Equal(got[:n], want) || len(got) > n+1 || id != marker {
					t.Errorf("cut %d (%s): %d of %d messages are there, identity %q", i, c.name, len(got), n, id)
				}
				if stored := len(got) > len(want); (s.Rebuilt() == "") != stored || told && !stored {
					t.Errorf("cut %d (%s): rebuilt %q, an entry that tells it is there: %v, was acknowledged: %v", i, c.name, s.Rebuilt(), stored, told)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				if left, _ := filepath.Glob(scratch + "/*.new*"); left != nil {
					t.Errorf("cut %d: left over are %q", i, left)
				}
			}
			if !told || cuts < 20 {
				t.Errorf("the power was cut %d times only", cuts)
			}
		})
	}
}

// TestRebuildWithoutRoom fills the medium before a damaged file is opened: what
// cannot be made anew stays as it is until it can.
func TestRebuildWithoutRoom(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a file system of its own needs root")
	}
	m := tmpfs(t)
	path := filepath.Join(m.dir, "spool.db")
	want := damagedSpool(t, path, spool.Options{})
	if err := os.Truncate(path+".reserve", 0); err != nil { // it has been used up
		t.Fatal(err)
	}
	m.fill()
	if s, err := spool.Open(path, spool.Options{}); err == nil {
		s.Close()
		t.Fatal("made anew on a full medium: the test fills nothing")
	}
	m.clear()
	s := open(t, path, spool.Options{})
	if got := payloads(all(t, s)); s.Rebuilt() == "" || !slices.Equal(got, want) || load(t, s, "identity") != marker {
		t.Errorf("rebuilt %q, %d of %d messages are there", s.Rebuilt(), len(got), len(want))
	}
}

// TestLockWithoutRoom has a plain file locked where there is room for the log of
// the new file and not for the file.
func TestLockWithoutRoom(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a file system of its own needs root")
	}
	m := tmpfs(t)
	path := filepath.Join(m.dir, "spool.db")
	s := open(t, path, spool.Options{})
	for range 100 {
		put(t, s, spool.Result, "result", strings.Repeat("r", 10_000))
	}
	want := payloads(all(t, s))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	m.fill()
	for _, free := range []int64{1 << 20, 1200 << 10, 1400 << 10, 1600 << 10, 2 << 20} {
		if err := os.Truncate(filepath.Join(m.dir, "other"), sizeOf(t, filepath.Join(m.dir, "other"))-free); err != nil {
			t.Fatal(err)
		}
		s, err := spool.Open(path, spool.Options{Key: newKey()})
		if err != nil {
			s, err = spool.Open(path, spool.Options{}) // it is as it was
		}
		if err != nil {
			t.Fatalf("with %d bytes: %v", free, err)
		}
		if got := payloads(all(t, s)); !slices.Equal(got, want) || s.Rebuilt() != "" {
			t.Fatalf("with %d bytes: %d of %d messages are there, rebuilt %q", free, len(got), len(want), s.Rebuilt())
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		m.fill()
	}
}

// TestNewFileOfAnotherLife moves a spool away beside which the power cut has left a
// new file, complete or not: it is not taken for the spool.
func TestNewFileOfAnotherLife(t *testing.T) {
	for _, end := range []string{".new", ".new-20261126T120000.000Z", ".new-20261126T120000.000Z-wal"} {
		path := file(t)
		damagedSpool(t, path, spool.Options{Key: newKey()})
		for from, to := range map[string]string{path: path + end, path + "-wal": path + end + "-wal"} {
			if err := os.Rename(from, to); err != nil {
				t.Fatal(err)
			}
		}
		s := open(t, path, spool.Options{Key: newKey()})
		if n := len(all(t, s)); n != 0 || s.Rebuilt() != "" {
			t.Errorf("%s: %d messages of another life, rebuilt %q", end, n, s.Rebuilt())
		}
		if left, _ := filepath.Glob(path + ".new*"); left != nil {
			t.Errorf("left over are %q", left)
		}
	}
}

func sizeOf(t *testing.T, file string) int64 {
	t.Helper()
	fi, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Size()
}

// scratchDir is a folder for what is judged: it need not be safe.
func scratchDir(t *testing.T) string {
	t.Helper()
	if fi, err := os.Stat("/dev/shm"); err != nil || !fi.IsDir() {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp("/dev/shm", "spool")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
