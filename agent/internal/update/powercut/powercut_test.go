package powercut_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/tillward/tillward/agent/internal/update/powercut"
)

// What was synced is there after a cut. What was not synced must have been
// lost at least once, or the disk of this package is kinder than a till's.
func TestRun(t *testing.T) {
	want, lost := 6, 0
	if os.Getuid() != 0 { // no loop device
		want, lost = 3, 3
	}
	cuts := powercut.Run(t, func(dir string) { put(t, dir, "before", true) }, func(dir string, step func(string)) {
		put(t, dir, "careful", true)
		step("written carefully")
		put(t, dir, "careless", false)
		step("written carelessly")
		put(t, dir, "careful2", true) // commits the journal, and with it the name of the careless file
	}, func(t *testing.T, dir string) {
		for _, name := range []string{"before", "careful"} {
			if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || len(b) != 5000 {
				t.Errorf("%s: %d bytes, %v", name, len(b), err)
			}
		}
		b, err := os.ReadFile(filepath.Join(dir, "careless"))
		if errors.Is(err, os.ErrNotExist) || len(b) != 5000 || b[4999] != 7 {
			lost++
		}
	})
	if cuts != want {
		t.Errorf("%d cuts, want %d", cuts, want)
	}
	if lost < 4 { // before it is written in both passes, and both times after that in the first
		t.Errorf("what was not synced was lost %d times, want at least 4", lost)
	}
}

// put replaces a file as programs do, with or without care.
func put(t *testing.T, dir, name string, sync bool) {
	t.Helper()
	b := make([]byte, 5000)
	for i := range b {
		b[i] = 7
	}
	f, err := os.Create(filepath.Join(dir, name+".new"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err = f.Write(b); err == nil && sync {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close(), os.Rename(f.Name(), filepath.Join(dir, name)))
	if err == nil && sync {
		d, e := os.Open(dir)
		if e != nil {
			t.Fatal(e)
		}
		err = errors.Join(d.Sync(), d.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}
