package cloud

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// diskOf says how much room a folder's disk has for us.
func diskOf(dir string) (disk, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return disk{}, fmt.Errorf("look at %s: %w", dir, err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return disk{}, fmt.Errorf("look at the disk of %s: %w", dir, err)
	}
	block := uint64(fs.Bsize)                                                              // #nosec G115 -- a size
	return disk{id: uint64(st.Dev), free: fs.Bavail * block, size: fs.Blocks * block}, nil //nolint:unconvert // of another type on other machines
}

// timeError is what adjtimex answers when nothing keeps the clock right.
const timeError = 5

// clockSynched reports whether something keeps the clock of the machine right
// [adjtimex(2)].
func clockSynched() (bool, error) {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return false, fmt.Errorf("look at the clock: %w", err)
	}
	return state != timeError && t.Status&unix.STA_UNSYNC == 0, nil
}
