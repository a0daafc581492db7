package emulator

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// keyboardReports is the report descriptor of a boot keyboard [HID 1.11,
// appendix B.1]: eight bits of modifiers, a byte of nothing, six keys.
const keyboardReports = "\x05\x01\x09\x06\xa1\x01\x05\x07\x19\xe0\x29\xe7\x15\x00\x25\x01\x75\x01\x95\x08\x81\x02" +
	"\x95\x01\x75\x08\x81\x03\x95\x06\x75\x08\x15\x00\x25\x65\x05\x07\x19\x00\x29\x65\x81\x00\xc0"

// NewUSBScanner plugs in a scanner as a USB gadget on a controller, e.g.
// dummy_udc.1: usbhid serves it as any other. It needs configfs and root.
func NewUSBScanner(udc, serial string) (*Scanner, error) {
	g, err := NewGadget(udc, "hid.scanner",
		map[string]string{
			"idVendor": "0x05e0", "idProduct": "0x1200", "bcdDevice": "0x0110",
			"strings/0x409/manufacturer": "Emulated", "strings/0x409/product": "Bar Code Scanner", "strings/0x409/serialnumber": serial,
		},
		map[string]string{"protocol": "1", "subclass": "1", "report_length": "8", "report_desc": keyboardReports})
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile("/dev/hidg0", os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, errors.Join(err, g.Close())
	}
	s := &Scanner{root: "/", faults: map[Fault]bool{}}
	s.make = func() (io.WriteCloser, error) {
		return &hidKeys{File: f, plug: g.Plug}, errors.Join(g.Plug(true), served("Emulated Bar Code Scanner"))
	}
	s.end = func() error { return errors.Join(f.Close(), g.Close()) }
	return s, s.plug()
}

// hidKeys makes reports of a keyboard of the kernel's events.
type hidKeys struct {
	*os.File
	plug   func(in bool) error
	report [8]byte
}

// Close implements io.Closer: it pulls the plug.
func (h *hidKeys) Close() error { return h.plug(false) }

// Write implements io.Writer for whole events.
func (h *hidKeys) Write(b []byte) (int, error) {
	size := len(inputEvent(0, 0, 0))
	for rest := b; len(rest) >= size; rest = rest[size:] {
		e := rest[size-8:]
		kind, code, value := binary.NativeEndian.Uint16(e), binary.NativeEndian.Uint16(e[2:]), binary.NativeEndian.Uint32(e[4:])
		const modifiers, key, leftShift = 0, 2, 0x02
		switch {
		case kind == evKey && code == keyShift:
			h.report[modifiers] = leftShift * byte(value)
		case kind == evKey:
			h.report[key] = hidUsage(code) * byte(value)
		case kind == evSyn && code == 0:
			if _, err := h.File.Write(h.report[:]); err != nil {
				return 0, err
			}
		}
	}
	return len(b), nil
}

// hidUsage is the key of a USB keyboard [HID usage tables 1.12, 10].
func hidUsage(code uint16) byte {
	switch code {
	case keyEnter:
		return 0x28
	case 15: // Tab
		return 0x2b
	}
	const signs = "-=[]\\\x00;'`,./" // from 0x2d
	if int(code) < len(firstKeys) && firstKeys[code] != 0 {
		c := firstKeys[code]
		switch i := strings.IndexByte(signs, c); {
		case c >= 'a' && c <= 'z':
			return 0x04 + c - 'a'
		case c == '0':
			return 0x27
		case c >= '1' && c <= '9':
			return 0x1e + c - '1'
		case i >= 0:
			return 0x2d + byte(i)
		}
	}
	return 0x2c // space
}
