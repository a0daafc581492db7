package pcsc

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/port"
)

// slotNumbers end the name that pcscd gives a reader.
var slotNumbers = regexp.MustCompile(` [0-9A-F]{2} [0-9A-F]{2}$`)

// modelOf is what pcscd calls a reader without the numbers of its slot.
func modelOf(name string) string {
	model := strings.TrimSpace(slotNumbers.ReplaceAllString(name, ""))
	return model[:min(len(model), 64)]
}

// keyOf is where a reader is when no USB device can be told to be it.
func keyOf(name string) string {
	key := strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '-'
		}
		return r
	}, "pcsc:"+name[:min(len(name), 100)])
	if hal.MayHoldPAN(key) {
		return ""
	}
	return key
}

// usbReader is a smart card reader on the USB bus [USB CCID 1.1, 4.8].
type usbReader struct {
	key, maker, model, serial, firmware string
}

// findUSB returns the USB device that the reader of that name is, if that can
// be told for certain: by the serial number that pcscd puts into the name, or
// by maker and model of which there is one. alone is whether pcscd has no
// other reader: then the only one on the bus is meant.
func findUSB(root, name string, alone bool) (usbReader, bool) {
	all := readers(root)
	for _, fits := range []func(usbReader) bool{
		func(u usbReader) bool { return u.serial != "" && strings.Contains(name, "("+u.serial+")") },
		func(u usbReader) bool {
			return u.model != "" && strings.HasPrefix(name, strings.TrimSpace(u.maker+" "+u.model))
		},
		func(u usbReader) bool { return u.model != "" && strings.Contains(name, u.model) },
		func(usbReader) bool { return alone },
	} {
		some := slices.DeleteFunc(slices.Clone(all), func(u usbReader) bool { return !fits(u) })
		if len(some) == 1 {
			return some[0], true
		}
	}
	return usbReader{}, false
}

// readers lists what is on the bus below root and of the class of card readers.
func readers(root string) []usbReader {
	interfaces, _ := filepath.Glob(filepath.Join(root, "sys/bus/usb/devices/*-*:*/bInterfaceClass"))
	found := map[string]usbReader{} // by where it is plugged in
	keys := map[string]int{}
	for _, i := range interfaces {
		if text(i) != "0b" {
			continue
		}
		plugged, _, _ := strings.Cut(filepath.Base(filepath.Dir(i)), ":")
		dir := filepath.Join(root, "sys/bus/usb/devices", plugged)
		vid, pid := text(dir+"/idVendor"), text(dir+"/idProduct")
		if _, twice := found[plugged]; twice || vid == "" || pid == "" {
			continue
		}
		u := usbReader{maker: text(dir + "/manufacturer"), model: text(dir + "/product"), serial: text(dir + "/serial"), firmware: text(dir + "/bcdDevice")}
		u.key = port.USBKey(vid, pid, u.serial, plugged)
		found[plugged] = u
		keys[u.key]++
	}
	var list []usbReader
	for plugged, u := range found {
		if keys[u.key] > 1 { // makers who give each unit the same number
			u.key = port.USBKey(u.key[4:8], u.key[9:13], "", plugged)
		}
		list = append(list, u)
	}
	return list
}

// text reads what a device says of itself: printable, short, and nothing if it
// could be a card number.
func text(file string) string {
	b, err := os.ReadFile(file) // #nosec G304 -- below sysfs
	if err != nil {
		return ""
	}
	s := strings.TrimSpace(printable([]byte(strings.TrimSpace(string(b)))))
	if s = s[:min(len(s), 64)]; hal.MayHoldPAN(s) {
		return ""
	}
	return s
}
