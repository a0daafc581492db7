package board

import (
	"encoding/binary"
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

// Calls and flags of linux/i2c-dev.h and linux/i2c.h.
const (
	i2cSlave = 0x0703
	i2cFuncs = 0x0705
	i2cRDWR  = 0x0707
	i2cSMBus = 0x0720

	funcI2C      = 0x00000001 // of what i2cFuncs tells
	funcReadWord = 0x00400000
	messageRead  = 0x0001
	smbusRead    = 1
	smbusWord    = 3
)

// bus is an I2C bus of the kernel. It is not the one of periph's host library:
// that one hands the kernel addresses which the runtime may move meanwhile,
// keeps no error number, so that a chip which is gone could not be told from a
// bus that may not be opened, and cannot use the SMBus of a PC.
type bus struct {
	f     *os.File
	smbus bool // and no more than that
}

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
	var can uint                                                             // unsigned long
	if err := (bus{f: f}).call(i2cFuncs, unsafe.Pointer(&can)); err != nil { // #nosec G103 -- the kernel wants an address
		return nil, errors.Join(err, f.Close())
	}
	return bus{f: f, smbus: can&funcI2C == 0 && can&funcReadWord != 0}, nil
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
// On an SMBus it can read a register of two bytes.
func (b bus) Tx(addr uint16, w, r []byte) error {
	if b.smbus {
		return b.word(addr, w, r)
	}
	var m []message
	for _, part := range []struct {
		data  []byte
		flags uint16
	}{{w, 0}, {r, messageRead}} {
		switch n := len(part.data); {
		case n > math.MaxUint16:
			return fmt.Errorf("transfer of %d bytes", n)
		case n > 0:
			m = append(m, message{addr, part.flags, uint16(n), unsafe.Pointer(&part.data[0])}) // #nosec G103 -- the kernel wants an address
		}
	}
	if len(m) == 0 {
		return nil
	}
	all := struct {
		messages unsafe.Pointer
		count    uint32
	}{unsafe.Pointer(&m[0]), uint32(len(m))} // #nosec G103 G115 -- as above; one or two
	if err := b.call(i2cRDWR, unsafe.Pointer(&all)); err != nil { // #nosec G103 -- as above
		return fmt.Errorf("chip %#x: %w", addr, err)
	}
	return nil
}

// word reads a register by the SMBus. A chip that a driver of the kernel has is
// EBUSY.
func (b bus) word(addr uint16, w, r []byte) error {
	if len(w) != 1 || len(r) != 2 {
		return fmt.Errorf("write %d bytes and read %d by SMBus: %w", len(w), len(r), errors.ErrUnsupported)
	}
	var data [34]byte // union i2c_smbus_data
	ask := struct {
		direction, register byte
		size                uint32
		data                unsafe.Pointer
	}{smbusRead, w[0], smbusWord, unsafe.Pointer(&data)} // #nosec G103 -- the kernel wants an address
	err := control(b.f, func(fd uintptr) error { return unix.IoctlSetInt(int(fd), i2cSlave, int(addr)) })
	if err == nil {
		err = b.call(i2cSMBus, unsafe.Pointer(&ask)) // #nosec G103 -- as above
	}
	if err != nil {
		return fmt.Errorf("chip %#x: %w", addr, err)
	}
	v := binary.NativeEndian.Uint16(data[:])
	r[0], r[1] = byte(v), byte(v>>8) // in the order of the wire
	return nil
}

func (b bus) call(what uintptr, with unsafe.Pointer) error {
	return control(b.f, func(fd uintptr) error {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, what, uintptr(with)); errno != 0 {
			return errno
		}
		return nil
	})
}
