package port

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Found is what the system says of a USB printer without touching it.
type Found struct {
	Key      string // longer than Address.Key where that left something out
	Node     string // device file, below / even for an Address under another root; empty: none now
	Maker    string
	Model    string
	Serial   string
	Firmware string // bcdDevice
	OneWay   bool   // its interface cannot say anything back
	Speaks   string // command sets of its IEEE 1284 device id, e.g. ESC/POS

	plugged string // its socket
}

// Find looks for the device from outside. Of a network printer nothing can be
// known that way: errors.ErrUnsupported; of a serial line only that it is there.
// The error is ErrAbsent when there is none, and says how to tell two apart.
func (a Address) Find() (Found, error) {
	switch a.kind {
	case socket:
		return Found{}, fmt.Errorf("find %s: %w", a.Key(), errors.ErrUnsupported)
	case serialLine:
		if _, err := os.Stat(filepath.Join("/", a.root, a.target)); err != nil {
			return Found{}, fmt.Errorf("find %s: %w", a.Key(), ErrAbsent)
		}
		return Found{Key: a.Key(), Node: a.target}, nil
	}
	devices, _ := filepath.Glob(filepath.Join("/", a.root, "sys/bus/usb/devices/*/idVendor"))
	var fit []Found
	units := map[string]int{} // by key: some makers give each unit the same number
	for _, file := range devices {
		f, ok := a.look(filepath.Dir(file))
		if units[f.Key]++; ok {
			fit = append(fit, f)
		}
	}
	for i, f := range fit {
		if units[f.Key] > 1 {
			fit[i].Key = USBKey(f.Key[4:8], f.Key[9:13], "", f.plugged)
		}
	}
	switch {
	case len(fit) == 1:
		return fit[0], nil
	case len(fit) > 1:
		var keys []string
		for _, f := range fit {
			keys = append(keys, f.Key)
		}
		slices.Sort(keys)
		return Found{}, fmt.Errorf("find %s: %d devices fit; write which: %s", a.Key(), len(fit), strings.Join(keys, " or "))
	}
	if _, err := os.Stat(filepath.Join("/", a.root, a.target)); a.target != "" && err == nil {
		return Found{Key: a.Key(), Node: a.target}, nil
	}
	return Found{}, fmt.Errorf("find %s: %w", a.Key(), ErrAbsent)
}

// look reads one device of sysfs, and reports whether the address means it.
func (a Address) look(dir string) (Found, bool) {
	text := func(path ...string) string {
		b, err := os.ReadFile(filepath.Join(append([]string{dir}, path...)...))
		if err != nil {
			return ""
		}
		return clean(string(b))
	}
	plugged := filepath.Base(dir)
	vid, pid, serial := text("idVendor"), text("idProduct"), text("serial")
	if len(vid) != 4 || len(pid) != 4 {
		return Found{}, false // it went while it was looked at
	}
	f := Found{
		plugged: plugged, Key: USBKey(vid, pid, serial, plugged),
		Maker: text("manufacturer"), Model: text("product"), Serial: serial, Firmware: text("bcdDevice"),
	}
	printer := false
	interfaces, _ := filepath.Glob(filepath.Join(dir, "*:*", "bInterfaceClass"))
	for _, file := range interfaces {
		at := filepath.Base(filepath.Dir(file))
		if text(at, "bInterfaceClass") != "07" || printer && f.Node != "" {
			continue
		}
		printer = true
		f.OneWay = text(at, "bInterfaceProtocol") == "01"
		id := parseIdentity(text(at, "ieee1284_id"))
		f.Speaks = id["COMMAND SET"]
		if f.Maker == "" {
			f.Maker = id["MANUFACTURER"]
		}
		if f.Model == "" {
			f.Model = id["MODEL"]
		}
		if f.Serial == "" {
			f.Serial = id["SERIALNUMBER"]
		}
		if nodes, _ := filepath.Glob(filepath.Join(filepath.Dir(file), "usbmisc", "lp*")); len(nodes) > 0 {
			f.Node = "/dev/usb/" + filepath.Base(nodes[0])
		}
	}
	if a.target != "" {
		return f, f.Node == a.target
	}
	return f, printer && vid == a.vid && pid == a.pid && (a.serial == "" || serial == a.serial) && (a.socket == "" || plugged == a.socket)
}

// clean makes text of a device fit to be shown.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, strings.TrimSpace(s))
	return strings.TrimSpace(s[:min(len(s), maxID)])
}

const maxID = 1024 // bytes of an IEEE 1284 device id; one field of it is never told longer than 64

var shortNames = map[string]string{"MFG": "MANUFACTURER", "MDL": "MODEL", "CMD": "COMMAND SET", "SN": "SERIALNUMBER", "SERN": "SERIALNUMBER"}

// parseIdentity reads an IEEE 1284 device id, KEY:value; and so on [IEEE
// 1284-2000, 7.6], whose keys may be shortened.
func parseIdentity(s string) map[string]string {
	id := map[string]string{}
	for pair := range strings.SplitSeq(s[:min(len(s), maxID)], ";") {
		k, v, ok := strings.Cut(pair, ":")
		k, v = strings.ToUpper(clean(k)), clean(v)
		if !ok || k == "" || v == "" {
			continue
		}
		if long := shortNames[k]; long != "" {
			k = long
		}
		if id[k] == "" {
			id[k] = v[:min(len(v), 64)]
		}
	}
	return id
}

// lp is a node of the usblp driver.
type lp struct {
	*os.File
	raw  syscall.RawConn
	calm calm
	real bool // usblp itself, and nothing that stands in for it
}

const (
	usbMajor    = 180  // character devices of USB [Linux, admin-guide/devices.txt]
	lpChunk     = 8192 // usblp sends no more in one piece
	lpGetStatus = 0x060b
)

func (a Address) openLP() (Conn, error) {
	f, err := a.Find()
	if err != nil {
		return nil, err
	}
	if f.Node == "" {
		return nil, fmt.Errorf("open %s: %w; is it in use by CUPS, or usblp on a block list?", f.Key, ErrNoNode)
	}
	file, err := openNode(filepath.Join("/", a.root, f.Node), 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", f.Key, err)
	}
	c := &lp{File: file}
	if c.raw, err = file.SyscallConn(); err != nil {
		_ = file.Close()
		return nil, err
	}
	if st, err := file.Stat(); err == nil {
		sys, ok := st.Sys().(*syscall.Stat_t)
		c.real = ok && st.Mode()&fs.ModeCharDevice != 0 && unix.Major(uint64(sys.Rdev)) == usbMajor
	}
	return c, nil
}

// openNode opens a device file so that deadlines work on it, and says in our
// words why it could not.
func openNode(node string, flags int) (*os.File, error) {
	file, err := os.OpenFile(node, os.O_RDWR|syscall.O_NONBLOCK|syscall.O_NOCTTY|flags, 0)
	if err != nil {
		return nil, openError(node, err)
	}
	return file, nil
}

func openError(node string, err error) error {
	switch {
	case errors.Is(err, syscall.EBUSY):
		return ErrInUse
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
		return ErrAbsent
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %s; put the agent's user into the group that owns it (lp, dialout)", ErrNoAccess, node)
	}
	return err
}

// Read implements Conn. A printer that sends an empty packet has not gone away.
func (c *lp) Read(b []byte) (int, error) {
	for {
		n, err := c.File.Read(b)
		c.calm.heard(n)
		switch {
		case n == 0 && errors.Is(err, io.EOF) && c.real:
			time.Sleep(20 * time.Millisecond) // some do nothing else; the next read sees deadline and closing
		case errors.Is(err, syscall.EINVAL):
			return n, ErrOneWay
		default:
			return n, err
		}
	}
}

// Write implements Conn. It returns when the printer has taken the bytes:
// usblp gives up what is still on its way when the node is closed.
func (c *lp) Write(b []byte) (int, error) {
	for n := 0; n < len(b); {
		m, err := c.File.Write(b[n:min(len(b), n+lpChunk)])
		n += m
		if err == nil && c.real {
			err = c.raw.Write(taken)
		}
		if err != nil {
			return n, err
		}
	}
	return len(b), nil
}

// taken reports whether the printer has taken what was written last.
func taken(fd uintptr) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents != 0
}

// Pins are three lines of the old parallel cable, which USB printers emulate.
// Many low-cost ones always say that all is well.
type Pins struct {
	PaperOut bool
	Selected bool
	Failed   bool
}

// AskPins asks a USB printer that says nothing else; any other connection is
// errors.ErrUnsupported. It may take as long as the kernel is patient, 5 s.
func AskPins(c Conn) (Pins, error) {
	l, ok := c.(*lp)
	if !ok || !l.real {
		return Pins{}, errors.ErrUnsupported
	}
	var bits uint32
	var err error
	if e := l.raw.Control(func(fd uintptr) { bits, err = unix.IoctlGetUint32(int(fd), lpGetStatus) }); e != nil {
		return Pins{}, e
	}
	return Pins{PaperOut: bits&0x20 != 0, Selected: bits&0x10 != 0, Failed: bits&0x08 == 0}, err
}
