package port

import (
	"fmt"
	"net"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/tillward/tillward/hal"
)

const (
	socket = iota
	usbNode
	serialLine
)

// Address is where a peripheral is. Two of the same text are equal.
type Address struct {
	kind   int
	target string // host:port, or a device file; empty: by what follows
	vid    string
	pid    string
	serial string
	socket string // where it is plugged in, as sysfs says it: 1-1.2
	line   line
	root   string
}

// line is how a serial line is set up.
type line struct {
	baud   uint32
	parity string
	bits   int
	stop   int
	flow   string
}

var (
	usbForm    = regexp.MustCompile(`^usb:([0-9a-fA-F]{4}):([0-9a-fA-F]{4})(?::([A-Za-z0-9._-]{1,64}))?(?:@(\d{1,3}-\d{1,3}(?:\.\d{1,3})*))?$`)
	lpForm     = regexp.MustCompile(`^/dev/usb/lp\d{1,3}$`)
	serialForm = regexp.MustCompile(`^/dev/[A-Za-z0-9._/:@-]{1,200}$`)
)

// Parse reads an address. The error says what to write instead.
func Parse(s string) (Address, error) {
	switch {
	case strings.HasPrefix(s, "usb:"):
		m := usbForm.FindStringSubmatch(s)
		if m == nil {
			return Address{}, fmt.Errorf("address %q: write usb:VENDOR:PRODUCT as lsusb shows them, e.g. usb:04b8:0e15, and behind it :SERIAL or @SOCKET if there are two of a kind", s)
		}
		return Address{kind: usbNode, vid: strings.ToLower(m[1]), pid: strings.ToLower(m[2]), serial: m[3], socket: m[4]}, nil
	case lpForm.MatchString(s):
		return Address{kind: usbNode, target: s}, nil
	case strings.HasPrefix(s, "serial:"):
		return parseSerial(s)
	case strings.HasPrefix(s, "/"):
		return Address{}, fmt.Errorf("address %q: write /dev/usb/lp0 for a USB printer or serial:%s?baud=9600 for a serial line", s, s)
	}
	hostport := strings.TrimPrefix(s, "tcp:")
	host, port, err := net.SplitHostPort(hostport)
	if err != nil || host == "" || len(host) > 255 || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' || r == '?' }) {
		return Address{}, fmt.Errorf("address %q: write host:port, e.g. 192.0.2.10:9100, or usb:VENDOR:PRODUCT, or serial:/dev/ttyS0?baud=9600", s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return Address{}, fmt.Errorf("address %q: the port is a number from 1 to 65535; printers listen on 9100", s)
	}
	return Address{target: net.JoinHostPort(host, port)}, nil
}

func parseSerial(s string) (Address, error) {
	file, query, _ := strings.Cut(strings.TrimPrefix(s, "serial:"), "?")
	if !serialForm.MatchString(file) || path.Clean(file) != file {
		return Address{}, fmt.Errorf("address %q: write serial:/dev/ttyS0?baud=9600, with the device file of the line", s)
	}
	a := Address{kind: serialLine, target: file, line: line{9600, "none", 8, 1, "none"}}
	for pair := range strings.SplitSeq(query, "&") {
		if pair == "" {
			continue
		}
		name, v, _ := strings.Cut(pair, "=")
		n, _ := strconv.Atoi(v)
		good, want := false, ""
		switch name {
		case "baud":
			a.line.baud, good = uint32(n), speeds[uint32(n)] != 0
			want = "one of 1200, 2400, 4800, 9600, 19200, 38400, 57600, 115200, 230400, 460800, 921600"
		case "parity":
			a.line.parity, good, want = v, v == "none" || v == "even" || v == "odd", "none, even or odd"
		case "bits":
			a.line.bits, good, want = n, n == 7 || n == 8, "7 or 8"
		case "stop":
			a.line.stop, good, want = n, n == 1 || n == 2, "1 or 2"
		case "flow":
			a.line.flow, good, want = v, v == "none" || v == "xonxoff" || v == "rtscts", "none, xonxoff or rtscts"
		default:
			return Address{}, fmt.Errorf("address %q: a line has no %q; there are: baud, parity, bits, stop, flow", s, name)
		}
		if !good {
			return Address{}, fmt.Errorf("address %q: %s is %s", s, name, want)
		}
	}
	return a, nil
}

// Under returns the address as seen below another folder than /: what is
// sought in /sys and /dev is sought in root/sys and root/dev.
func (a Address) Under(root string) Address {
	a.root = root
	return a
}

// String returns the address in full; Parse reads it again.
func (a Address) String() string {
	if a.kind != serialLine {
		return a.Key()
	}
	l := a.line
	return fmt.Sprintf("%s?baud=%d&parity=%s&bits=%d&stop=%d&flow=%s", a.Key(), l.baud, l.parity, l.bits, l.stop, l.flow)
}

// Key returns where the peripheral is, in the one spelling that everything
// else uses. That of a USB device may be longer once it is found: see Find.
func (a Address) Key() string {
	switch {
	case a.kind == socket:
		return "tcp:" + a.target
	case a.kind == serialLine:
		return "serial:" + a.target
	case a.target != "":
		return a.target
	}
	key := "usb:" + a.vid + ":" + a.pid
	if a.serial != "" {
		key += ":" + a.serial
	}
	if a.socket != "" {
		key += "@" + a.socket
	}
	return key
}

// Interface is the UnifiedPOS name of the kind of cable.
func (a Address) Interface() string {
	return [...]string{socket: "Ethernet", usbNode: "USB", serialLine: "RS232"}[a.kind]
}

// USBKey is the key of a USB device: by its serial number, or by where it is
// plugged in when it has none that is fit to be told. What the device says of
// itself is not trusted: a serial number of other signs, or one that could be
// a card's, is none.
func USBKey(vid, pid, serial, plugged string) string {
	key := "usb:" + strings.ToLower(vid) + ":" + strings.ToLower(pid)
	serial = strings.TrimSpace(serial)
	if usbForm.MatchString(key+":"+serial) && !hal.MayHoldPAN(key+":"+serial) {
		return key + ":" + serial
	}
	return key + "@" + plugged
}
