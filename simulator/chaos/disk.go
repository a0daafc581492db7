package chaos

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	diskSize = 32 << 20 // of a till: what it keeps, and nothing else
	page     = 4096
)

// disk is what outlives a boot of a till: a file system of its own, or without
// the right to mount one a folder.
type disk struct {
	dir     string
	mounted bool
}

// newDisk makes the disk of a till.
func newDisk(dir string) (*disk, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil { // #nosec G301 -- as the till's other folders
		return nil, err
	}
	if os.Getuid() != 0 {
		return &disk{dir: dir}, nil
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=711", diskSize)); err != nil {
		return &disk{dir: dir}, nil //nolint:nilerr // in a container that may not: a limit serves
	}
	return &disk{dir: dir, mounted: true}, nil
}

func (d *disk) filler() string { return filepath.Join(d.dir, "filler") }

// fill takes all space, but for so many pages. Where there is no disk it is the
// process that may not make files larger.
func (d *disk) fill(pid, spare int) (err error) {
	if !d.mounted {
		return d.limit(pid, spare)
	}
	f, err := os.OpenFile(d.filler(), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	size := int64(0)
	for _, step := range []int{1 << 20, page} {
		b := make([]byte, step)
		for err = nil; err == nil; {
			n := 0
			n, err = f.Write(b)
			size += int64(n)
		}
	}
	if !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	return f.Truncate(max(0, size-int64(spare*page)))
}

// limit lets the process make its journal larger by so many pages, and no more.
func (d *disk) limit(pid, spare int) error {
	if pid == 0 { // it would be this process
		return errNoAgent
	}
	size := int64(0)
	if fi, err := os.Stat(filepath.Join(d.dir, "state", "spool.db-wal")); err == nil && spare > 0 {
		size = fi.Size() + int64(spare*page)/2
	}
	var was unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_FSIZE, nil, &was); err != nil {
		return err
	}
	return unix.Prlimit(pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: uint64(size), Max: was.Max}, nil) // #nosec G115 -- a size
}

// unlimit takes the limit away.
func (d *disk) unlimit(pid int) error {
	var was unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_FSIZE, nil, &was); err != nil {
		return nil //nolint:nilerr // it is gone, and the next one has no limit
	}
	return unix.Prlimit(pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: was.Max, Max: was.Max}, nil)
}

// empty gives the space back.
func (d *disk) empty(pid int) error {
	if d.mounted {
		if err := os.Remove(d.filler()); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	return d.unlimit(pid)
}

// close takes the disk away; what used it has ended, and may take a moment to be
// gone.
func (d *disk) close(ctx context.Context) error {
	for d.mounted {
		err := syscall.Unmount(d.dir, 0)
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, syscall.Unmount(d.dir, unix.MNT_DETACH))
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}
