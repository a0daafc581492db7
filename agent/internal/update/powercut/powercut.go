// Package powercut shows what a power cut leaves, for the tests of whatever
// must bear one. It runs code on a file system of its own, a small ext4, and
// keeps a copy of the block device as it is at each step: what was written and
// not synced is lost, as on a till. The mount options take away what ext4 does
// for careless programs.
//
// It needs root, as loop devices do. For anybody else copies of the folder
// have to do; then nothing is lost, but a cut still falls at each step.
package powercut

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

const (
	size    = 24 << 20
	options = "loop,data=writeback,noauto_da_alloc,commit=600,noatime"
)

// Run calls prepare and work with a folder, and after with what the folder
// held at each step of work and at its end. What prepare did is synced. Twice:
// once all that was not synced is lost, once all is kept. It returns how many
// cuts there were.
func Run(t *testing.T, prepare func(dir string), work func(dir string, step func(name string)), after func(t *testing.T, dir string)) int {
	t.Helper()
	cuts := 0
	for _, lost := range []bool{true, false} {
		if os.Getuid() != 0 && lost {
			continue
		}
		cuts += run(t, lost, prepare, work, after)
	}
	return cuts
}

func run(t *testing.T, lost bool, prepare func(string), work func(string, func(string)), after func(*testing.T, string)) int {
	t.Helper()
	base := t.TempDir()
	if err := os.Chmod(filepath.Dir(base), 0o755); err != nil { // #nosec G302 -- an unprivileged user of the test goes through
		t.Fatal(err)
	}
	d := disk{image: filepath.Join(base, "image"), dir: filepath.Join(base, "disk")}
	if err := os.Mkdir(d.dir, 0o755); err != nil { // #nosec G301 -- as above
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		format(t, d.image)
		d.mount(t)
	}
	prepare(d.dir)
	command(t, "sync", "-f", d.dir)
	var names []string
	step := func(name string) {
		if !lost {
			command(t, "sync", "-f", d.dir)
		}
		d.copy(t, fmt.Sprintf("%s.%d", base, len(names)))
		names = append(names, name)
	}
	work(d.dir, step)
	step("the end")
	d.unmount(t)
	for i, name := range names {
		at := fmt.Sprintf("%s.%d", base, i)
		t.Run(fmt.Sprintf("lost=%t/%02d %s", lost, i, name), func(t *testing.T) {
			c := disk{image: filepath.Join(at, "image"), dir: filepath.Join(at, "disk")}
			if os.Getuid() == 0 {
				c.mount(t)
			}
			defer func() {
				c.unmount(t)
				_ = os.RemoveAll(at)
			}()
			after(t, c.dir)
		})
	}
	return len(names)
}

func format(t *testing.T, image string) {
	t.Helper()
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	command(t, "mkfs.ext4", "-q", "-O", "^resize_inode", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
}

// disk is a file system in a file, or for an ordinary user just a folder.
type disk struct{ image, dir string }

func (d disk) mount(t *testing.T) {
	t.Helper()
	command(t, "mount", "-o", options, d.image, d.dir)
	if err := os.Chmod(d.dir, 0o755); err != nil { // #nosec G302 -- as above
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-q", d.dir).Run() }) // of a test that ended early
}

func (d disk) unmount(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		command(t, "umount", d.dir)
	}
}

// copy keeps the disk as it is now below at.
func (d disk) copy(t *testing.T, at string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(at, "disk"), 0o755); err != nil { // #nosec G301 -- as above
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(at) })
	if os.Getuid() == 0 {
		command(t, "cp", "--sparse=always", d.image, filepath.Join(at, "image"))
		return
	}
	command(t, "cp", "-a", d.dir, at)
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s (tests of power cuts need loop devices, ext4 and e2fsprogs)", name, args, err, out)
	}
}
