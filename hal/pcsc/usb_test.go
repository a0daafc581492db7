package pcsc_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/tillward/tillward/hal/pcsc"
)

// bus makes a sysfs with USB devices, each a map of file to text.
func bus(t *testing.T, devices map[string]map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for plugged, files := range devices {
		dir := filepath.Join(root, "sys/bus/usb/devices", plugged)
		if class := files["class"]; class != "" {
			i := filepath.Join(root, "sys/bus/usb/devices", plugged+":1.0")
			if err := os.MkdirAll(i, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(i, "bInterfaceClass"), []byte(class+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

func device(class, vid, pid, maker, model, serial string) map[string]string {
	return map[string]string{"class": class, "idVendor": vid, "idProduct": pid, "manufacturer": maker, "product": model, "serial": serial, "bcdDevice": "0200"}
}

func TestUSBDeviceOfReader(t *testing.T) {
	acme := device("0b", "08e6", "3437", "ACME", "Reader 5", "A1")
	twin := device("0b", "08e6", "3437", "ACME", "Reader 5", "A2")
	printer := device("07", "04b8", "0e15", "EPSON", "TM", "P1")
	for _, test := range []struct {
		what    string
		devices map[string]map[string]string
		name    string
		alone   bool
		key     string
	}{
		{"by maker and model", map[string]map[string]string{"1-1": acme, "1-2": printer}, "ACME Reader 5 00 00", false, "usb:08e6:3437:A1"},
		{"by serial number", map[string]map[string]string{"1-1": acme, "1-2": twin}, "ACME Reader 5 [CCID] (A2) 01 00", false, "usb:08e6:3437:A2"},
		{"two of a kind", map[string]map[string]string{"1-1": acme, "1-2": twin}, "ACME Reader 5 00 00", true, ""},
		{"the only one", map[string]map[string]string{"1-1": device("0b", "08e6", "3437", "", "", ""), "1-2": printer}, "Some Driver's Name 00 00", true, "usb:08e6:3437@1-1"},
		{"not the only reader", map[string]map[string]string{"1-1": device("0b", "08e6", "3437", "", "", "")}, "Virtual PCD 00 00", false, ""},
		{"the same number in each", map[string]map[string]string{"1-1": device("0b", "08e6", "3437", "ACME", "One", "1"), "1-2": device("0b", "08e6", "3437", "ACME", "Two", "1")}, "ACME Two 00 00", false, "usb:08e6:3437@1-2"},
		{"a serial number like a card's", map[string]map[string]string{"1-1": device("0b", "08e6", "3437", "ACME", "One", "4111111111111111")}, "ACME One 00 00", false, "usb:08e6:3437@1-1"},
		{"no bus", nil, "ACME Reader 5 00 00", true, ""},
	} {
		key, _, serial, ok := pcsc.USBOf(bus(t, test.devices), test.name, test.alone)
		if key != test.key || ok != (test.key != "") {
			t.Errorf("%s: got %q %v, want %q", test.what, key, ok, test.key)
		}
		if serial == "4111111111111111" {
			t.Errorf("%s: the number is told", test.what)
		}
	}
}
