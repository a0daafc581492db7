//go:build halvm

package halvm_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/board"
	"github.com/tillward/tillward/hal/haltest"
)

const (
	stub      = "SMBus stub driver" // the adapter that i2c-stub brings; it has a chip at 0x48
	lm75Model = "lm75 0x48"
)

// adapter is the number of the bus, as long as it is there.
func adapter(t *testing.T) string {
	t.Helper()
	names, err := filepath.Glob("/sys/bus/i2c/devices/i2c-*/name")
	must(t, err)
	for _, n := range names {
		if b, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(b)) == stub {
			return strings.TrimPrefix(filepath.Base(filepath.Dir(n)), "i2c-")
		}
	}
	return ""
}

// registers writes register 0 of the chip, as if it had measured.
func register(t *testing.T, value uint16) {
	t.Helper()
	within(t, "the bus", func() bool { return adapter(t) != "" })
	f, err := os.OpenFile("/dev/i2c-"+adapter(t), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	data := [34]byte{byte(value >> 8), byte(value)}
	ask := struct {
		direction, register byte
		size                uint32
		data                unsafe.Pointer
	}{0, 0, 3, unsafe.Pointer(&data)}
	const slaveByForce, smbus = 0x0706, 0x0720
	must(t, unix.IoctlSetInt(int(f.Fd()), slaveByForce, 0x48))
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), smbus, uintptr(unsafe.Pointer(&ask))); errno != 0 {
		t.Fatal(errno)
	}
}

// plug takes the bus away, and brings it back with a chip that is cool.
func plug(t *testing.T, in bool) {
	t.Helper()
	if !in {
		within(t, "the bus to go", func() bool {
			err := unix.DeleteModule("i2c_stub", unix.O_NONBLOCK)
			return err == nil || errors.Is(err, unix.ENOENT)
		})
		return
	}
	f, err := os.Open("/modules/i2c_stub.ko")
	must(t, err)
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "chip_addr=0x48", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		t.Fatal(err)
	}
	register(t, 0x1900)
}

// TestChips runs the suite over a thermometer on an SMBus of the kernel.
func TestChips(t *testing.T) {
	cfg := hal.Config{ID: "inside", Address: fmt.Sprintf("i2c:%s:0x48", stub), Options: map[string]string{"chip": "lm75"}}
	driver := board.I2C{Every: 50 * time.Millisecond}
	haltest.Run(t, func(t *testing.T) haltest.Bench {
		plug(t, true)
		return haltest.Bench{
			Open: func(t *testing.T) hal.Device { return open(t, driver, cfg) },
			Faults: []haltest.Fault{{Name: "hot", Sensor: "M_TempHigh", On: "M_TEMP_HIGH", Off: "M_TEMP_OK", Set: func(on bool) {
				value := uint16(0x1900)
				if on {
					value = 0x4b00
				}
				register(t, value)
			}}},
			Unplug: func(on bool) { plug(t, !on) },
			Noise: func(on bool) {
				value := uint16(0x1900)
				if on {
					value = 0xffff
				}
				register(t, value)
			},
			Blind: func(t *testing.T) hal.Device { // the kernel has a driver for it
				bus := "/sys/bus/i2c/devices/i2c-" + adapter(t)
				put(t, lm75Model, bus, "new_device")
				t.Cleanup(func() { put(t, "0x48", bus, "delete_device") })
				d := open(t, driver, cfg)
				if s := status(t, d); s.Reason != "M_IN_USE" {
					t.Errorf("a chip that the kernel has reads %s %s", s.Health, s.Reason)
				}
				return d
			},
			Unseen:  []string{"M_TempHigh"},
			Observe: func(t *testing.T) hal.Device { return open(t, driver, cfg) },
			Compete: func(context.Context) error {
				register(t, 0x1900)
				return nil
			},
			NotApplicable: map[int]string{
				2:  "the stub answers at once",
				10: "the chip has registers of two bytes: it meets no digits",
				11: "nothing moves, and that nothing is written shows only to a chip",
			},
		}
	})
}
