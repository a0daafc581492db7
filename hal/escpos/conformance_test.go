package escpos_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/escpos"
	"github.com/tillward/tillward/hal/haltest"
	"github.com/tillward/tillward/hal/port"
	"github.com/tillward/tillward/simulator/emulator"
)

// cable is a way to a printer.
type cable struct {
	*emulator.Printer
	driver  escpos.Driver
	address string
	plug    func(on bool)
}

func (c cable) open(t *testing.T, claim hal.Claim, options ...string) hal.Device {
	t.Helper()
	cfg := hal.Config{ID: "receipt", Address: c.address, Claim: claim, Options: map[string]string{"timeout": "500ms"}}
	for i := 0; i < len(options); i += 2 {
		cfg.Options[options[i]] = options[i+1]
	}
	d, err := c.driver.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// cables are all the ways to a printer. What stands in for the USB node is a
// pseudo terminal: the usblp driver itself runs in the lane with a real kernel.
var cables = map[string]func(t *testing.T) cable{
	"tcp": func(t *testing.T) cable {
		p := printer(t)
		return cable{Printer: p, address: p.Addr(), plug: func(bool) {}}
	},
	"serial": func(t *testing.T) cable {
		p := printer(t)
		path, err := p.OpenPTY()
		if err != nil {
			t.Fatal(err)
		}
		return cable{Printer: p, address: "serial:" + path + "?baud=115200", plug: func(bool) {}}
	},
	"serial with XON and XOFF": func(t *testing.T) cable {
		p := printer(t)
		p.Set(emulator.SpeaksXonXoff, true)
		path, err := p.OpenPTY()
		if err != nil {
			t.Fatal(err)
		}
		return cable{Printer: p, address: "serial:" + path + "?baud=115200&flow=xonxoff", plug: func(bool) {}}
	},
	"usb stand-in": func(t *testing.T) cable {
		p := printer(t)
		path, err := p.OpenPTY()
		if err != nil {
			t.Fatal(err)
		}
		root := t.TempDir()
		plug := usb(t, root, path, "02")
		plug(true)
		return cable{Printer: p, driver: escpos.Driver{Root: root}, address: "usb:04b8:0e15", plug: plug}
	},
	"in process": func(t *testing.T) cable {
		p := printer(t)
		dial := func(context.Context, port.Address) (port.Conn, error) {
			near, far := net.Pipe()
			go func() { _ = p.Serve(far) }()
			return near, nil
		}
		return cable{Printer: p, driver: escpos.Driver{Dial: dial}, address: "tcp:in.process:9100", plug: func(bool) {}}
	},
}

// usb plugs a printer into a sysfs as the kernel lays it out, with path in the
// place of its node.
func usb(t *testing.T, root, path, protocol string) func(on bool) {
	device := filepath.Join(root, "sys/bus/usb/devices/1-1")
	node := filepath.Join(root, "dev/usb/lp0")
	must := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	return func(on bool) {
		if !on {
			must(os.Remove(node))
			must(os.RemoveAll(device))
			return
		}
		for name, v := range map[string]string{
			"1-1:1.0/bInterfaceClass": "07", "1-1:1.0/bInterfaceProtocol": protocol, "1-1:1.0/usbmisc/lp0/dev": "180:0",
			"idProduct": "0e15", "manufacturer": "TILLWARD", "serial": "EMU0000001", "bcdDevice": "0104", "idVendor": "04b8",
		} {
			write(t, filepath.Join(device, name), v)
		}
		must(os.MkdirAll(filepath.Dir(node), 0o700))
		must(os.Symlink(path, node))
	}
}

func write(t *testing.T, file, v string) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(file), 0o700)
	if err == nil {
		err = os.WriteFile(file, []byte(v+"\n"), 0o600)
	}
	if err != nil {
		t.Error(err)
	}
}

// bench puts a printer on the bench.
func (c cable) bench() haltest.Bench {
	fault := func(f emulator.Fault) func(bool) { return func(on bool) { c.Set(f, on) } }
	b := haltest.Bench{
		Apart: true,
		Open:  func(t *testing.T) hal.Device { return c.open(t, hal.Own, "drawer_open_level", "high") },
		Faults: []haltest.Fault{
			{Name: "cover", Set: fault(emulator.CoverOpen), Sensor: "CoverOpen", On: "COVER_OPEN", Off: "COVER_OK"},
			{Name: "paper low", Set: fault(emulator.NearEnd), Sensor: "RecNearEnd", On: "REC_NEAREMPTY", Off: "REC_PAPEROK"},
			{Name: "paper out", Set: fault(emulator.PaperEnd), Sensor: "RecEmpty", On: "REC_EMPTY", Off: "REC_PAPEROK"},
			{Name: "cutter", Set: fault(emulator.CutterJam), Sensor: "M_CutterError", On: "M_CUTTER_ERROR", Off: "M_CUTTER_OK"},
			{Name: "mechanism", Set: fault(emulator.Mechanical), Sensor: "M_MechanicalError", On: "M_MECHANICAL_ERROR", Off: "M_MECHANICAL_OK"},
			{Name: "head", Set: fault(emulator.HeadHot), Sensor: "M_HeadTooHot", On: "M_HEAD_TOO_HOT", Off: "M_HEAD_OK"},
			{Name: "unrecoverable", Set: fault(emulator.Unrecoverable), Sensor: "M_UnrecoverableError", On: "M_UNRECOVERABLE_ERROR", Off: "M_RECOVERED"},
			{Name: "off-line", Set: fault(emulator.Offline), On: "POWER_OFFLINE", Off: "POWER_ONLINE"},
			{Name: "drawer", Set: fault(emulator.DrawerOpen), Sensor: "DrawerOpened", On: "DRAWEROPEN", Off: "DRAWERCLOSED"},
		},
		Unplug: func(on bool) {
			if c.plug(!on); on {
				c.Set(emulator.Unplugged, true)
			} else {
				c.Set(emulator.Unplugged, false)
			}
		},
		Mute:  fault(emulator.Mute),
		Noise: fault(emulator.Garbage),
		Reset: c.Renew,
		Blind: func(t *testing.T) hal.Device {
			c.Set(emulator.NoStatusBack, true)
			return c.open(t, hal.Own, "queries", "1")
		},
		Unseen: []string{"CoverOpen", "RecEmpty", "RecNearEnd", "DrawerOpened", "M_CutterError"},
		Output: func() int { return len(c.Jobs()) + int(c.Counter(148)) },
		Feed: func(t *testing.T, d hal.Device, number string) {
			if _, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader("Card "+number+"\n\x1dV\x00")); err != nil {
				t.Errorf("print: %v", err)
			}
		},
		Observe: func(t *testing.T) hal.Device { return c.open(t, hal.Observe) },
		Compete: c.compete,
	}
	if strings.HasPrefix(c.address, "127.") { // a serial line is not to be asked while another has it
		b.Observe = func(t *testing.T) hal.Device { return c.open(t, hal.Observe, "ask", "true") }
	}
	return b
}

// compete is what a till does with its printer.
func (c cable) compete(ctx context.Context) error {
	dial := c.driver.Dial
	a, err := port.Parse(c.address)
	if err != nil {
		return err
	}
	if dial == nil {
		dial = func(ctx context.Context, a port.Address) (port.Conn, error) { return a.Under(c.driver.Root).Open(ctx) }
	}
	conn, err := dial(ctx, a)
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetReadDeadline(deadline)
	if _, err := conn.Write([]byte{0x10, 0x04, 0x01}); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

func TestConformance(t *testing.T) {
	for name, lay := range cables {
		t.Run(name, func(t *testing.T) {
			haltest.Run(t, func(t *testing.T) haltest.Bench { return lay(t).bench() })
		})
	}
}

// The drawer behind a printer is a device of its own, and the same laws hold.
func TestDrawerConformance(t *testing.T) {
	haltest.Run(t, func(t *testing.T) haltest.Bench {
		c := cables["tcp"](t)
		parents := map[hal.Device]hal.Device{}
		open := func(t *testing.T, claim hal.Claim, options ...string) hal.Device {
			printer := c.open(t, claim, append(options, "drawer", "till", "left_open", "1h")...)
			part := printer.(hal.Parent).Parts()[0]
			parents[part] = printer
			return part
		}
		b := c.bench()
		b.Open = func(t *testing.T) hal.Device { return open(t, hal.Own, "drawer_open_level", "high") }
		b.Close = func(d hal.Device) error { return parents[d].Close() }
		b.Faults = []haltest.Fault{
			{Name: "drawer", Set: func(on bool) { c.Set(emulator.DrawerOpen, on) }, Sensor: "DrawerOpened", On: "DRAWEROPEN", Off: "DRAWERCLOSED"},
			{Name: "nobody asked", Set: func(on bool) { c.Set(emulator.DrawerOpen, on) }, Sensor: "M_UnexpectedOpen", On: "M_DRAWER_UNEXPECTED_OPEN", Off: "M_DRAWER_SECURE"},
		}
		b.Blind = func(t *testing.T) hal.Device { return open(t, hal.Own) }
		b.Unseen = []string{"DrawerOpened", "M_UnexpectedOpen", "M_LeftOpen", "M_DrawerStuck"}
		b.Observe = func(t *testing.T) hal.Device { return open(t, hal.Observe, "drawer_open_level", "high", "ask", "true") }
		b.Feed = func(t *testing.T, d hal.Device, number string) {
			if _, err := parents[d].(hal.Passthrough).Print(t.Context(), strings.NewReader(number+"\n\x1bp\x00\x19\xfa")); err != nil {
				t.Errorf("print: %v", err)
			}
			if err := d.(hal.DrawerKicker).OpenDrawer(t.Context()); err != nil {
				t.Errorf("open drawer: %v", err)
			}
		}
		b.Noise = nil
		b.Reset = nil
		b.NotApplicable = map[int]string{5: "the printer counts what it does not understand"}
		return b
	})
}
