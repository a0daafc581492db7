package board

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
	"periph.io/x/conn/v3/i2c"
	"periph.io/x/conn/v3/physic"
)

const (
	i2cRDWR = 0x0707 // linux/i2c-dev.h
	i2cRead = 0x0001 // linux/i2c.h, I2C_M_RD
)

// bus is an I2C bus of the kernel. It is not the one of periph's host library:
// that one hands the kernel addresses which the runtime may move meanwhile, and
// keeps no error number, so that a chip which is gone could not be told from a
// bus that may not be opened.
type bus struct{ f *os.File }

var _ i2c.BusCloser = bus{}

// openBus opens a bus by its number or by the name of its adapter.
func openBus(name string) (i2c.BusCloser, error) {
	n, err := busNumber("/sys/bus/i2c/devices", name)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile("/dev/i2c-"+strconv.Itoa(n), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return bus{f}, nil
}

func busNumber(dir, name string) (int, error) {
	if n, err := strconv.ParseUint(name, 10, 16); err == nil {
		return int(n), nil
	}
	files, err := filepath.Glob(filepath.Join(dir, "i2c-*", "name"))
	if err != nil {
		return 0, err
	}
	found := -1
	for _, file := range files {
		text, err := os.ReadFile(file) // #nosec G304 -- below sys
		if err != nil || strings.TrimSpace(string(text)) != name {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimPrefix(filepath.Base(filepath.Dir(file)), "i2c-"), 10, 16)
		if err != nil {
			continue
		}
		if found >= 0 {
			return 0, fmt.Errorf("bus %q: more than one adapter has this name; use its number", name)
		}
		found = int(n)
	}
	if found < 0 {
		return 0, fmt.Errorf("bus %q: %w", name, fs.ErrNotExist)
	}
	return found, nil
}

// String implements i2c.Bus.
func (b bus) String() string { return b.f.Name() }

// Close implements i2c.BusCloser.
func (b bus) Close() error { return b.f.Close() }

// SetSpeed implements i2c.Bus. The speed is the board's.
func (bus) SetSpeed(physic.Frequency) error { return errors.ErrUnsupported }

type message struct {
	addr, flags, length uint16
	data                unsafe.Pointer
}

// Tx implements i2c.Bus: it writes w and reads r without letting go of the bus.
func (b bus) Tx(addr uint16, w, r []byte) error {
	var m []message
	for _, part := range []struct {
		data  []byte
		flags uint16
	}{{w, 0}, {r, i2cRead}} {
		switch n := len(part.data); {
		case n > math.MaxUint16:
			return fmt.Errorf("transfer of %d bytes", n)
		case n > 0:
			m = append(m, message{addr, part.flags, uint16(n), unsafe.Pointer(&part.data[0])})
		}
	}
	if len(m) == 0 {
		return nil
	}
	all := struct {
		messages unsafe.Pointer
		count    uint32
	}{unsafe.Pointer(&m[0]), uint32(len(m))} // #nosec G115 -- one or two
	return control(b.f, func(fd uintptr) error {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, i2cRDWR, uintptr(unsafe.Pointer(&all))); errno != 0 { // #nosec G103 -- the kernel wants an address
			return fmt.Errorf("chip %#x: %w", addr, errno)
		}
		return nil
	})
}
