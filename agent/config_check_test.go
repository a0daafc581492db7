package agent

import (
	"strings"
	"testing"

	"github.com/tillward/tillward/hal"
)

// asked is a driver that says what the test says.
type asked struct {
	driver
	check func(hal.Config) ([]hal.Info, error)
}

func (a asked) Check(c hal.Config) ([]hal.Info, error) { return a.check(c) }

// TestCheckDevices asks drivers that know themselves better than the file does,
// that cannot be asked, and that panic.
func TestCheckDevices(t *testing.T) {
	drivers := hal.NewRegistry(
		driver{name: "mute"},
		asked{driver{name: "panics"}, func(hal.Config) ([]hal.Info, error) { panic("no") }},
		asked{driver{name: "owns"}, func(c hal.Config) ([]hal.Info, error) {
			return []hal.Info{{ID: c.ID, Claim: hal.Own, Key: "usb:04b8:0e15:" + c.Options["serial"]}}, nil
		}},
	)
	cfg := Config{Devices: []DeviceConfig{
		{ID: "a", Driver: "mute", Address: "192.0.2.7:9100", Claim: "own"},
		{ID: "b", Driver: "mute", Address: "tcp:192.0.2.7:09100", Claim: "own"},
		{ID: "c", Driver: "panics"},
		{ID: "d", Driver: "owns", Options: map[string]string{"serial": "1"}},
		{ID: "e", Driver: "owns", Options: map[string]string{"serial": "2"}},
		{ID: "f", Driver: "owns", Options: map[string]string{"serial": "1"}},
		{ID: "g", Driver: "none"},
		{ID: "h"}, // validate tells
	}}
	var got []string
	for _, err := range cfg.checkDevices(drivers) {
		got = append(got, err.Error())
	}
	want := []string{
		`device "b": address "tcp:192.0.2.7:09100" is that of device "a" too; only one can own it`,
		`device "c": the driver panicked: no`,
		`device "f": address "" is that of device "d" too; only one can own it`,
		`device "g": no driver "none"; there are: mute, owns, panics`,
	}
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("got\n%s\nwant\n%s", g, w)
	}
}

func TestPlaces(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.7:9100", "tcp:192.0.2.7:09100", true},
		{"Printer.example:9100", "printer.example:9100", true},
		{"[::1]:9100", "tcp:[0:0:0:0:0:0:0:1]:9100", true},
		{"[::ffff:127.0.0.1]:9100", "127.0.0.1:9100", true},
		{"127.0.0.1:9100", "127.0.0.2:9100", false},
		{"127.0.0.1:9100", "127.0.0.1:9101", false},
		{"usb:04b8:0e15", "usb:04b8:0e15:J8C1", true},
		{"usb:04b8:0e15@1-2", "usb:04b8:0e15", true},
		{"usb:04b8:0e15:J8C1", "usb:04b8:0e15:J8C2", false},
		{"usb:04b8:0e1", "usb:04b8:0e15", false},
		{"gpio:LID", "gpio:LID:2", false},
		{"serial:/dev/ttyS0", "serial:/dev/ttyS1", false},
		{"", "", false},
	} {
		a, b := place{at: spell(c.a)}, place{at: spell(c.b)}
		if a.fits(b) != c.same || b.fits(a) != c.same {
			t.Errorf("%q and %q: got %v, want %v", c.a, c.b, a.fits(b), c.same)
		}
	}
}
