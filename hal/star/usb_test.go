package star_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/star"
)

// plug puts a USB printer into a tree that stands for /sys.
func plug(t *testing.T, root, serial string) {
	t.Helper()
	for file, text := range map[string]string{
		"idVendor": "0519", "idProduct": "0003", "manufacturer": "Star", "product": "Star TSP143IIIU", "serial": serial, "bcdDevice": "0100",
		"1-1:1.0/bInterfaceClass": "07", "1-1:1.0/bInterfaceProtocol": "02", "1-1:1.0/usbmisc/lp0/dev": "180:0",
	} {
		path := filepath.Join(root, "sys/bus/usb/devices/1-1", file)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Of a USB printer that the till holds the system says that it is there, and
// what it is; that is no health.
func TestObserveUSB(t *testing.T) {
	root := t.TempDir()
	d, err := star.Driver{Root: root}.Open(t.Context(), hal.Config{ID: "receipt", Address: "usb:0519:0003", Claim: hal.Observe})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if s := status(t, d, func(hal.Status) bool { return true }); s.Health != hal.Offline {
		t.Errorf("unplugged: got %+v", s)
	}
	plug(t, root, "2590117080600001")
	d.(hal.Nudger).Nudge()
	s := status(t, d, func(s hal.Status) bool { return s.Power == hal.PowerOnline })
	if s.Health != hal.NoSensor || s.Reason != "M_NOT_ASKED" || s.Advice == "" {
		t.Errorf("plugged in: got %+v", s)
	}
	i := d.Info()
	if i.Model != "Star TSP143IIIU" || !strings.HasPrefix(i.Key, "usb:0519:0003") || i.Interface != "USB" || len(i.Caps) != 0 {
		t.Errorf("got %+v", i)
	}
	if hal.MayHoldPAN(i.Serial) || hal.MayHoldPAN(i.Key) {
		t.Errorf("got %+v", i)
	}
	if err := os.RemoveAll(filepath.Join(root, "sys")); err != nil {
		t.Fatal(err)
	}
	status(t, d, func(s hal.Status) bool { return s.Health == hal.Offline })
}

// Must fail: a serial number that could be a card's is not told.
func TestUSBSerialIsGuarded(t *testing.T) {
	root := t.TempDir()
	plug(t, root, "4111111111111111")
	d, err := star.Driver{Root: root}.Open(t.Context(), hal.Config{ID: "receipt", Address: "usb:0519:0003", Claim: hal.Observe})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	status(t, d, func(s hal.Status) bool { return s.Power == hal.PowerOnline })
	if i := d.Info(); i.Serial != "" || i.Model == "" || strings.Contains(i.Key, "4111") {
		t.Errorf("got %+v", i)
	}
}
