package input

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/port"
)

// place is where a scanner is looked for: a file, or a USB device wherever it
// is plugged in.
type place struct {
	root string // of the file system
	node string // device file; empty: look for the USB device
	usb  string // its key, of hal/port
}

func parsePlace(root, address string) (place, error) {
	if filepath.IsAbs(address) {
		return place{root: root, node: filepath.Clean(address)}, nil
	}
	if !strings.HasPrefix(address, "usb:") {
		return place{}, fmt.Errorf("address %q: write usb:VENDOR:PRODUCT as lsusb shows them, or the device file, /dev/input/by-id/...-event-kbd", address)
	}
	a, err := port.Parse(address)
	return place{root: root, usb: a.Key()}, err
}

var (
	errGone  = errors.New("the scanner is not there")
	errNoKey = errors.New("it has no key that ends a code: it is no keyboard")
)

// found is a scanner that is there now.
type found struct {
	node string
	usb  string   // its folder in sysfs, if it is on USB
	info hal.Info // what it says of itself
}

// find looks for the scanner.
func (p place) find(end func(uint16) bool) (found, error) {
	if p.node != "" {
		return p.describe(p.node, end)
	}
	nodes, _ := filepath.Glob(filepath.Join(p.root, "sys/class/input/event*"))
	var fit found
	for _, n := range nodes {
		f, err := p.describe("/dev/input/"+filepath.Base(n), end)
		switch {
		case err != nil || f.usb == "":
		case fit.usb == "":
			fit = f
		case fit.usb != f.usb:
			return found{}, fmt.Errorf("%s: two scanners fit, at %s and %s; write %s@%[2]s for the first", p.usb, filepath.Base(fit.usb), filepath.Base(f.usb), p.usb)
		}
	}
	if fit.usb == "" {
		return found{}, errGone
	}
	return fit, nil
}

// describe reads what the kernel knows of an input device. One without an
// entry in sysfs is a stand-in, e.g. a FIFO.
func (p place) describe(node string, end func(uint16) bool) (found, error) {
	file := filepath.Join(p.root, node)
	st, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return found{}, errGone
	} else if err != nil {
		return found{}, err
	}
	f := found{node: file, info: hal.Info{Simulated: st.Mode()&fs.ModeCharDevice == 0}}
	real, err := filepath.EvalSymlinks(file) // /dev/input/by-id/... is a link
	if err != nil {
		return found{}, err
	}
	name := filepath.Base(real)
	dir, err := filepath.EvalSymlinks(filepath.Join(p.root, "sys/class/input", name, "device"))
	if err != nil {
		if !f.info.Simulated {
			return found{}, fmt.Errorf("%s is no input device", node)
		}
		f.info.Key = "evdev:" + name
		return f, nil
	}
	if !hasKey(line(dir, "capabilities/key"), end) {
		return found{}, errNoKey
	}
	f.info.Model, f.info.Serial, f.info.Key = line(dir, "name"), line(dir, "uniq"), "evdev:"+name
	f.info.Simulated = f.info.Simulated || strings.Contains(dir, "/devices/virtual/")
	for up := dir; len(up) > len(p.root) && up != "/"; up = filepath.Dir(up) {
		if line(up, "idVendor") != "" {
			return p.ofUSB(f, up)
		}
	}
	if p.usb != "" {
		return found{}, errGone
	}
	return f, nil
}

// ofUSB adds what the USB device says, if it is the one that is meant.
func (p place) ofUSB(f found, dir string) (found, error) {
	kind, plugged, serial := "usb:"+line(dir, "idVendor")+":"+line(dir, "idProduct"), "@"+filepath.Base(dir), line(dir, "serial")
	switch p.usb {
	case "", kind, kind + plugged, kind + ":" + serial, kind + ":" + serial + plugged:
	default:
		return found{}, errGone
	}
	f.usb = dir
	f.info.Interface, f.info.Maker, f.info.Serial = "USB", line(dir, "manufacturer"), serial
	if model := line(dir, "product"); model != "" {
		f.info.Model = model
	}
	if v := line(dir, "bcdDevice"); len(v) == 4 {
		f.info.Firmware = strings.TrimLeft(v[:1], "0") + v[1:2] + "." + v[2:]
	}
	if f.info.Key = port.USBKey(kind[4:8], kind[9:], serial, plugged[1:]); strings.HasSuffix(p.usb, plugged) {
		f.info.Key = kind + plugged // it shares its serial number with others
	}
	return f, nil
}

// hasKey reads the bitmap of keys that sysfs shows: words of the size of a
// long in hexadecimal, the highest first.
func hasKey(bitmap string, end func(uint16) bool) bool {
	words := strings.Fields(bitmap)
	for code := range uint16(128) {
		i := len(words) - 1 - int(code)/strconv.IntSize
		if i < 0 {
			return false
		}
		if w, err := strconv.ParseUint(words[i], 16, strconv.IntSize); err == nil && w>>(code%strconv.IntSize)&1 == 1 && end(code) {
			return true
		}
	}
	return false
}

// line reads a short text that a device tells of itself. One that could hold a
// card number counts as not told.
func line(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name)) // #nosec G304 -- below sysfs
	if err != nil {
		return ""
	}
	s := strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.TrimSpace(string(b)))
	if !strings.HasPrefix(name, "capabilities") {
		if s = s[:min(len(s), 64)]; hal.MayHoldPAN(s) {
			return ""
		}
	}
	return strings.ToValidUTF8(s, "")
}
