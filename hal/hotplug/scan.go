package hotplug

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/port"
)

const maxText = 64 // bytes of what a device says of itself

// scan lists what is on the USB bus below root now, by key. Hubs are no
// peripherals.
func scan(root string) map[string]hal.Candidate {
	dirs, _ := filepath.Glob(filepath.Join(root, "sys/bus/usb/devices/*-*"))
	found, twins := map[string]hal.Candidate{}, map[string][]string{}
	at := map[string]hal.Candidate{} // by port path
	for _, dir := range dirs {
		plugged := filepath.Base(dir)
		if strings.Contains(plugged, ":") || text(dir, "bDeviceClass") == "09" {
			continue
		}
		vendor, product := text(dir, "idVendor"), text(dir, "idProduct")
		if vendor == "" || product == "" {
			continue // it went while it was looked at
		}
		c := hal.Candidate{
			Interface: "USB", Category: hal.Other,
			Maker: text(dir, "manufacturer"), Model: text(dir, "product"), Serial: text(dir, "serial"), Firmware: version(text(dir, "bcdDevice")),
		}
		c.Key = port.USBKey(vendor, product, c.Serial, plugged)
		interfaces, _ := filepath.Glob(filepath.Join(dir, plugged+":*"))
		for _, i := range interfaces {
			if category := categoryOf(i); c.Category == hal.Other {
				c.Category = category
			}
			if c.Node == "" {
				c.Node = nodeOf(i)
			}
		}
		at[plugged] = c
		twins[c.Key] = append(twins[c.Key], plugged)
	}
	for plugged, c := range at {
		if len(twins[c.Key]) > 1 { // makers who give each unit the same number
			c.Key = port.USBKey(c.Key[4:8], c.Key[9:13], "", plugged)
		}
		found[c.Key] = c
	}
	return found
}

// categoryOf tells by its class what an interface is for [USB defined class
// codes; HID point of sale usage tables 1.02]. A HID keyboard may be a scanner
// or somebody's keyboard; it is neither before somebody says so.
func categoryOf(dir string) hal.Category {
	switch text(dir, "bInterfaceClass") {
	case "07":
		return hal.POSPrinter
	case "0b":
		return hal.SmartCardRW
	case "03":
		reports, _ := filepath.Glob(filepath.Join(dir, "*", "report_descriptor"))
		for _, r := range reports {
			b, err := os.ReadFile(r) // #nosec G304 -- below sysfs
			if err == nil && (bytes.HasPrefix(b, []byte{0x05, 0x8c}) || bytes.HasPrefix(b, []byte{0x06, 0x8c, 0x00})) {
				return hal.Scanner // it does not type, it says that it is one
			}
		}
	}
	return hal.Other
}

// nodeOf returns the device file that the kernel made of an interface.
func nodeOf(dir string) string {
	for _, n := range []struct{ pattern, dev string }{
		{"usbmisc/lp*", "/dev/usb/"},
		{"*/input/input*/event*", "/dev/input/"},
		{"input/input*/event*", "/dev/input/"},
		{"tty/tty*", "/dev/"},
		{"ttyUSB*", "/dev/"},
	} {
		if nodes, _ := filepath.Glob(filepath.Join(dir, n.pattern)); len(nodes) > 0 {
			return n.dev + filepath.Base(nodes[0])
		}
	}
	return ""
}

// version writes bcdDevice as people do.
func version(bcd string) string {
	if len(bcd) != 4 {
		return ""
	}
	return strings.TrimPrefix(bcd[:2], "0") + "." + bcd[2:]
}

// text reads what a device says of itself: printable, short, and nothing if it
// could be a card number.
func text(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name)) // #nosec G304 -- below sysfs
	if err != nil {
		return ""
	}
	s := strings.TrimSpace(strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) { // also what a terminal would obey
			return -1
		}
		return r
	}, string(b)))
	if s = strings.ToValidUTF8(s[:min(len(s), maxText)], ""); hal.MayHoldPAN(s) {
		return ""
	}
	return s
}
