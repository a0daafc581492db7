package fetch

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tillward/tillward/provisioning/durable"
	"github.com/tillward/tillward/provisioning/trust"
)

// errDisk marks errors of our own files: no source is to blame.
type errDisk struct{ error }

func (e errDisk) Unwrap() error { return e.error }

func disk(err error) error {
	if err == nil {
		return nil
	}
	return errDisk{err}
}

func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG) {
		return fmt.Errorf("%w: %w", ErrSpace, err)
	}
	return err
}

// reserve asks the disk for the room of the content. What is kept for other
// tills makes way.
func (j *job) reserve(f *os.File, grow bool) error {
	err := reserve(f, j.t.Length, grow)
	if !errors.Is(noSpace(err), ErrSpace) {
		return err
	}
	j.f.drop(j.t, 0)
	return reserve(f, j.t.Length, grow)
}

// reserve asks the disk for the room of the whole file before the first byte
// is fetched. With grow the file has its length from then on.
func reserve(f *os.File, length int64, grow bool) error {
	var st unix.Stat_t
	var disk unix.Statfs_t
	fd := int(f.Fd()) // #nosec G115 -- a descriptor
	if err := errors.Join(unix.Fstat(fd, &st), unix.Fstatfs(fd, &disk)); err != nil {
		return err
	}
	if length <= st.Blocks*512 {
		if grow {
			return f.Truncate(length)
		}
		return nil
	}
	// Looked at first: even to try would take the last room from whoever sells.
	if need := length - st.Blocks*512; uint64(need)/uint64(disk.Bsize) >= disk.Bavail { // #nosec G115 -- positive
		return fmt.Errorf("%d bytes are needed, %d are free: %w", need, disk.Bavail*uint64(disk.Bsize), syscall.ENOSPC) // #nosec G115 -- positive
	}
	mode := uint32(unix.FALLOC_FL_KEEP_SIZE)
	if grow {
		mode = 0
	}
	err := unix.Fallocate(fd, mode, 0, length)
	switch {
	case errors.Is(err, syscall.EOPNOTSUPP) && grow:
		return f.Truncate(length)
	case errors.Is(err, syscall.EOPNOTSUPP):
		return nil
	case err != nil:
		return errors.Join(err, f.Truncate(st.Size)) // what it got is given back
	}
	return nil
}

// syncCold brings the file to the disk and out of memory, so that whoever reads
// it next reads what the disk holds.
func syncCold(path string) error {
	f, err := os.Open(path) // #nosec G304 -- our own folder
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return err
	}
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // #nosec G115 -- a hint, for a descriptor
	return nil
}

// replace writes the file at path in one step that survives a power cut.
func replace(path string, b []byte, step func(string)) error {
	name := filepath.Base(path)
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, b) { // #nosec G304 -- our own folder
		return nil
	}
	step("write " + name)
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600) // #nosec G304 -- our own folder
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	step("name " + name)
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	step("sync " + name)
	return durable.SyncDir(filepath.Dir(path))
}

// tidy removes what other fetches left, and the oldest contents that there is
// no room for; never what belongs to t.
func (f *Fetcher) tidy(t trust.Target) {
	f.o.Step("tidy")
	staged, _ := filepath.Glob(filepath.Join(f.o.Dir, "staging-*")) // the pattern is well formed
	for _, p := range staged {
		if t.SHA256 == "" || p != f.staging(t.SHA256) {
			_ = os.Remove(p)
		}
	}
	f.drop(t, f.o.Keep)
}

// drop removes the oldest contents beyond so many bytes; never what belongs to
// t.
func (f *Fetcher) drop(t trust.Target, keep int64) {
	mine := map[string]bool{t.SHA256: true}
	if c := t.Custom.Chunks; c != nil {
		mine[c.SHA256] = true
	}
	entries, _ := os.ReadDir(filepath.Join(f.o.Dir, "content"))
	var files []os.FileInfo
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && !mine[e.Name()] {
			files = append(files, fi)
		}
	}
	slices.SortFunc(files, func(a, b os.FileInfo) int {
		return cmp.Or(b.ModTime().Compare(a.ModTime()), cmp.Compare(a.Name(), b.Name()))
	})
	left := keep
	for _, fi := range files {
		if left -= fi.Size(); left < 0 || !hexSum(fi.Name()) {
			_ = os.Remove(f.content(fi.Name()))
		}
	}
}

// hexSum reports whether s is a SHA-256 as we write it, and so a safe name.
func hexSum(s string) bool { return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == "" }
