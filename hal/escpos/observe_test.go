package escpos_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/escpos"
	"github.com/tillward/tillward/hal/port"
)

// A USB printer that the till owns is looked at from outside: nothing is
// opened, and it is told at once when it goes.
func TestObserveUSBFromOutside(t *testing.T) {
	root := t.TempDir()
	plug := usb(t, root, "/nowhere", "02")
	plug(true)
	never := func(context.Context, port.Address) (port.Conn, error) {
		t.Error("it was opened")
		return nil, errors.New("no")
	}
	c := cable{driver: escpos.Driver{Root: root, Dial: never}, address: "usb:04b8:0e15"}
	d := c.open(t, hal.Observe)
	s := status(t, d, func(s hal.Status) bool { return s.Power == hal.PowerOnline })
	if s.Health != hal.NoSensor || s.Reason != "M_NOT_ASKED" || s.Advice == "" {
		t.Errorf("got %+v; want there, and Unknown", s)
	}
	if i := d.Info(); i.Key != "usb:04b8:0e15:EMU0000001" || i.Maker != "TILLWARD" || i.Firmware != "0104" {
		t.Errorf("got %+v", i)
	}
	heard := make(chan string, 8)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for e, err := range d.(hal.Notifier).Events(ctx) {
			if err == nil {
				heard <- e.Code
			}
		}
	}()
	for _, want := range []string{"POWER_OFF_OFFLINE", "POWER_ONLINE"} {
		plug(want == "POWER_ONLINE")
		d.(hal.Nudger).Nudge()
		if got := <-heard; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// What the system says of why a node does not open is told apart.
func TestWhyItDoesNotOpen(t *testing.T) {
	for name, test := range map[string]struct {
		err    error
		power  hal.Power
		reason string
	}{
		"the till holds it":  {port.ErrInUse, hal.PowerOnline, "M_IN_USE"},
		"no usblp":           {port.ErrNoNode, hal.PowerOnline, "M_NO_DRIVER"},
		"no right":           {port.ErrNoAccess, hal.PowerOnline, "M_NO_ACCESS"},
		"plugged in, broken": {errors.New("input/output error"), hal.PowerOffline, "POWER_OFFLINE"},
	} {
		for _, claim := range []hal.Claim{hal.Own, hal.Observe} {
			t.Run(name+", "+string(claim), func(t *testing.T) {
				p := printer(t)
				path, err := p.OpenPTY()
				if err != nil {
					t.Fatal(err)
				}
				root := t.TempDir()
				usb(t, root, path, "02")(true)
				var free atomic.Bool
				dial := func(ctx context.Context, a port.Address) (port.Conn, error) {
					if free.Load() {
						return a.Open(ctx)
					}
					return nil, test.err
				}
				c := cable{Printer: p, driver: escpos.Driver{Root: root, Dial: dial}, address: "usb:04b8:0e15"}
				var options []string
				if claim == hal.Observe {
					options = []string{"ask", "true"}
				}
				d := c.open(t, claim, options...)
				s := status(t, d, func(hal.Status) bool { return true })
				if s.Power != test.power || s.Reason != test.reason || s.Health == hal.OK || s.Advice == "" {
					t.Errorf("got %+v, want %s because %s", s, test.power, test.reason)
				}
				free.Store(true)
				d.(hal.Nudger).Nudge()
				status(t, d, healthy)
			})
		}
	}
}

// An address that fits two printers is no address.
func TestTwoPrintersFit(t *testing.T) {
	root := t.TempDir()
	usb(t, root, "/nowhere", "02")(true)
	second := root + "/sys/bus/usb/devices/1-2"
	for name, v := range map[string]string{"idVendor": "04b8", "idProduct": "0e15", "serial": "OTHER", "1-2:1.0/bInterfaceClass": "07"} {
		write(t, second+"/"+name, v)
	}
	for _, claim := range []hal.Claim{hal.Own, hal.Observe} {
		d := cable{driver: escpos.Driver{Root: root}, address: "usb:04b8:0e15"}.open(t, claim)
		if s := status(t, d, func(hal.Status) bool { return true }); s.Power != hal.PowerUnknown || s.Reason != "M_NO_DRIVER" {
			t.Errorf("%s: got %+v", claim, s)
		}
	}
}

// One that has nothing to say is not asked, though it might be.
func TestObserveOneWay(t *testing.T) {
	root := t.TempDir()
	usb(t, root, "/nowhere", "01")(true)
	d := cable{driver: escpos.Driver{Root: root}, address: "usb:04b8:0e15"}.open(t, hal.Observe, "ask", "true")
	if s := status(t, d, func(hal.Status) bool { return true }); s.Power != hal.PowerOnline || s.Reason != "M_NO_SENSOR" || s.Health != hal.NoSensor {
		t.Errorf("got %+v", s)
	}
}
