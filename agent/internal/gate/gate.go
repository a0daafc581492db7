// Package gate looks at what an update must not disturb or depend on: the lock
// of the point-of-sale application, and the mains.
//
// It only looks. What follows from it is decided by whoever asks.
package gate

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Lock is a file with which the point-of-sale application says that it must not
// be disturbed. It holds while a process has it locked [flock(2)], while the
// process whose number stands in it lives, or, when no number stands in it, as
// long as it is there. A process number means nothing after a boot: the place
// for the file is /run.
type Lock struct{ File string }

// Held says who holds the lock, in words; empty: nobody. Of a lock whose process
// is gone, stale says so.
func (l Lock) Held() (by, stale string) {
	f, err := os.OpenFile(l.File, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe must not hold us up
	if errors.Is(err, fs.ErrNotExist) {
		return "", ""
	}
	if err != nil { // there is something, and it cannot be told what
		return err.Error(), ""
	}
	defer f.Close()
	switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); { // #nosec G115 -- a file descriptor
	case errors.Is(err, syscall.EWOULDBLOCK):
		return "a process has locked " + l.File, ""
	case err == nil:
		_ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN) // #nosec G115 -- as above
	}
	b, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return fmt.Sprintf("read %s: %v", l.File, err), ""
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 0 {
		return l.File + " is there", ""
	}
	if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
		return "", fmt.Sprintf("%s names process %d, which is gone", l.File, pid)
	}
	return fmt.Sprintf("process %d holds %s", pid, l.File), ""
}

// What a box runs on.
const (
	Mains   = "mains"
	Battery = "battery"
)

// Supply says what the box runs on, as the folder of the kernel's power supplies
// tells; empty when it does not [sysfs-class-power].
func Supply(dir string) string {
	names, _ := filepath.Glob(filepath.Join(dir, "*", "type")) // a pattern that is none finds nothing
	var mains, online, battery, draining bool
	for _, n := range names {
		at := filepath.Dir(n)
		switch read(n) {
		case "Mains", "USB":
			mains = true
			online = online || read(filepath.Join(at, "online")) == "1"
		case "Battery", "UPS":
			if read(filepath.Join(at, "scope")) != "Device" { // not that of a wireless scanner
				battery = true
				draining = draining || read(filepath.Join(at, "status")) == "Discharging"
			}
		}
	}
	switch {
	case online:
		return Mains
	case draining:
		return Battery
	case mains && battery: // one that is full, or says nothing, and no mains
		return Battery
	}
	return ""
}

func read(path string) string {
	b, err := os.ReadFile(path) // #nosec G304 -- below the folder of the power supplies
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
