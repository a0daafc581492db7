package port_test

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tillward/tillward/hal/port"
)

// plug writes a device into a sysfs as the kernel lays it out.
func plug(t *testing.T, root, plugged string, device, printer map[string]string, lp string) {
	t.Helper()
	dir := filepath.Join(root, "sys/bus/usb/devices", plugged)
	write := func(dir string, attrs map[string]string) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, v := range attrs {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(v+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(dir, device)
	write(filepath.Join(dir, plugged+":1.0"), printer)
	if lp != "" {
		write(filepath.Join(dir, plugged+":1.0", "usbmisc", lp), nil)
	}
}

var (
	epson = map[string]string{"idVendor": "04b8", "idProduct": "0e15", "manufacturer": "EPSON", "product": "TM-T20II", "serial": "J5ZK01", "bcdDevice": "0100"}
	bare  = map[string]string{"idVendor": "0416", "idProduct": "5011"}
	class = map[string]string{"bInterfaceClass": "07", "bInterfaceProtocol": "02"}
)

func TestFind(t *testing.T) {
	root := t.TempDir()
	plug(t, root, "1-1", epson, class, "lp0")
	cheap := maps.Clone(class)
	cheap["bInterfaceProtocol"], cheap["ieee1284_id"] = "01", "MFG:ZJ;MDL:POS58;CMD:ESC/POS;"
	plug(t, root, "1-1.2", bare, cheap, "lp3")
	plug(t, root, "1-1.3", bare, class, "")
	plug(t, root, "2-1", map[string]string{"idVendor": "046d", "idProduct": "c31c"}, map[string]string{"bInterfaceClass": "03"}, "")
	for address, want := range map[string]port.Found{
		"usb:04b8:0e15":        {Key: "usb:04b8:0e15:J5ZK01", Node: "/dev/usb/lp0", Maker: "EPSON", Model: "TM-T20II", Serial: "J5ZK01", Firmware: "0100"},
		"usb:04b8:0e15:J5ZK01": {Key: "usb:04b8:0e15:J5ZK01", Node: "/dev/usb/lp0", Maker: "EPSON", Model: "TM-T20II", Serial: "J5ZK01", Firmware: "0100"},
		"/dev/usb/lp0":         {Key: "usb:04b8:0e15:J5ZK01", Node: "/dev/usb/lp0", Maker: "EPSON", Model: "TM-T20II", Serial: "J5ZK01", Firmware: "0100"},
		"usb:0416:5011@1-1.2":  {Key: "usb:0416:5011@1-1.2", Node: "/dev/usb/lp3", Maker: "ZJ", Model: "POS58", OneWay: true, Speaks: "ESC/POS"},
		"usb:0416:5011@1-1.3":  {Key: "usb:0416:5011@1-1.3"},
	} {
		if got, err := parse(t, address).Under(root).Find(); !port.Same(got, want) || err != nil {
			t.Errorf("%s: got %+v, %v; want %+v", address, got, err, want)
		}
	}
	for address, want := range map[string]string{
		"usb:0416:5011":       "write which: usb:0416:5011@1-1.2 or usb:0416:5011@1-1.3",
		"usb:046d:c31c":       port.ErrAbsent.Error(), // a keyboard is no printer, whoever names it
		"usb:04b8:0e15:OTHER": port.ErrAbsent.Error(),
		"usb:04b8:0e15@1-9":   port.ErrAbsent.Error(),
		"/dev/usb/lp9":        port.ErrAbsent.Error(),
		"serial:/dev/ttyS0":   port.ErrAbsent.Error(),
		"h:9100":              errors.ErrUnsupported.Error(),
	} {
		if got, err := parse(t, address).Under(root).Find(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %+v, %v; want %q", address, got, err, want)
		}
	}
	if _, err := parse(t, "usb:0416:5011@1-1.3").Under(root).Open(t.Context()); !errors.Is(err, port.ErrNoNode) {
		t.Errorf("a printer without a node: got %v, want ErrNoNode", err)
	}
	plug(t, root, "1-4", epson, class, "lp4")
	if _, err := parse(t, "usb:04b8:0e15:J5ZK01").Under(root).Find(); err == nil || !strings.Contains(err.Error(), "write which: usb:04b8:0e15@1-1 or usb:04b8:0e15@1-4") {
		t.Errorf("two of one serial number: got %v, want to be told of the sockets", err)
	}
	if f, err := parse(t, "usb:04b8:0e15@1-4").Under(root).Find(); err != nil || f.Key != "usb:04b8:0e15@1-4" || f.Node != "/dev/usb/lp4" {
		t.Errorf("got %+v, %v; want the one in that socket", f, err)
	}
}

// A printer that comes back under another node is found there.
func TestOpenFollowsTheDevice(t *testing.T) {
	root := t.TempDir()
	a := parse(t, "usb:04b8:0e15").Under(root)
	if _, err := a.Open(t.Context()); !errors.Is(err, port.ErrAbsent) {
		t.Fatalf("got %v, want ErrAbsent", err)
	}
	for _, lp := range []string{"lp0", "lp1"} {
		far, name := pty(t)
		raw(t, far)
		node(t, root, lp, name)
		plug(t, root, "1-1", epson, class, lp)
		c := open(t, a)
		if _, err := c.Write([]byte(lp)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 8)
		if n, err := far.Read(b); string(b[:n]) != lp || err != nil {
			t.Errorf("got %q, %v; want %q", b[:n], err, lp)
		}
		_ = c.Close()
		if err := os.RemoveAll(filepath.Join(root, "sys/bus/usb/devices/1-1")); err != nil {
			t.Fatal(err)
		}
	}
}
