package emulator

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Requests of /dev/uinput [linux/uinput.h].
const (
	uinputCreate, uinputDestroy                   = 0x5501, 0x5502
	uinputEvent, uinputKey, uinputMisc            = 0x40045564, 0x40045565, 0x40045568
	uinputDevice, uinputName, uinputBus, uinputFF = 1116, 80, 3, 4 // sizes; USB
)

// NewInputScanner plugs in a scanner that the kernel makes of what it is told,
// through uinput: evdev serves it as any other. It needs /dev/uinput.
func NewInputScanner(name string) (*Scanner, error) {
	s := &Scanner{root: "/", faults: map[Fault]bool{}, make: func() (io.WriteCloser, error) { return createInput(name) }}
	return s, s.plug()
}

// InputNode returns the device file of an input device by its name.
func InputNode(name string) (string, error) {
	files, err := filepath.Glob("/sys/class/input/event*/device/name")
	if err != nil {
		return "", err
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(b)) == name { // #nosec G304 -- below sysfs
			return "/dev/input/" + filepath.Base(filepath.Dir(filepath.Dir(f))), nil
		}
	}
	return "", fmt.Errorf("no input device %q: %w", name, os.ErrNotExist)
}

// userInput is an input device that ends when it is closed.
type userInput struct{ *os.File }

func createInput(name string) (io.WriteCloser, error) {
	f, err := os.OpenFile("/dev/uinput", os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	u := userInput{f}
	device := make([]byte, uinputDevice)
	copy(device[:uinputName-1], name)
	for i, v := range []uint16{uinputBus, 0x05e0, 0x1200, 0x0110} {
		binary.NativeEndian.PutUint16(device[uinputName+2*i:], v)
	}
	err = u.control(func(fd int) error {
		for _, kind := range []int{evKey, evMisc} {
			if err := unix.IoctlSetInt(fd, uinputEvent, kind); err != nil {
				return err
			}
		}
		if err := unix.IoctlSetInt(fd, uinputMisc, mscScan); err != nil {
			return err
		}
		for key := 1; key < 128; key++ {
			if err := unix.IoctlSetInt(fd, uinputKey, key); err != nil {
				return err
			}
		}
		if _, err := unix.Write(fd, device); err != nil {
			return err
		}
		return unix.IoctlSetInt(fd, uinputCreate, 0)
	})
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("uinput: %w", err)
	}
	if err := served(name); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return u, nil
}

// served waits until evdev serves an input device of that name.
func served(name string) error {
	for end := time.Now().Add(10 * time.Second); ; {
		if node, err := InputNode(name); err == nil {
			if _, err := os.Stat(node); err == nil {
				return nil
			}
		}
		if time.Now().After(end) {
			return fmt.Errorf("evdev does not serve %q", name)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (u userInput) control(do func(fd int) error) error {
	raw, err := u.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) { err = do(int(fd)) }); e != nil {
		return e
	}
	return err
}

// Close implements io.Closer.
func (u userInput) Close() error {
	_ = u.control(func(fd int) error { return unix.IoctlSetInt(fd, uinputDestroy, 0) })
	return u.File.Close()
}
