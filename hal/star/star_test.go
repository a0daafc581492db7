package star_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/haltest"
	"github.com/tillward/tillward/hal/port"
	"github.com/tillward/tillward/hal/star"
	"github.com/tillward/tillward/simulator/emulator"
)

// cable is a way to reach a printer of the emulator.
type cable struct {
	name    string
	kind    string // tcp, pty, or a pipe within the process
	model   emulator.StarModel
	timeout string
}

// bed is a printer with its cable.
type bed struct {
	*emulator.Star
	cable
	tty string
}

func (p bed) open(t *testing.T, cfg hal.Config) (hal.Device, error) {
	switch p.kind {
	case "tcp":
		cfg.Address = p.Addr()
	case "pty":
		cfg.Address = "serial:" + p.tty
	default:
		cfg.Address = "/dev/usb/lp99"
		return usb(p.Star).Open(t.Context(), cfg)
	}
	return star.Driver{}.Open(t.Context(), cfg)
}

// usb is the driver of a printer that somebody has at the end of a pipe.
func usb(p *emulator.Star) star.Driver {
	return star.Driver{Dial: func(context.Context, port.Address) (port.Conn, error) {
		if p.Has(emulator.Unplugged) {
			return nil, port.ErrAbsent
		}
		near, far := net.Pipe()
		go func() { _ = p.Serve(far) }() // ends with near or with the printer
		return near, nil
	}}
}

// cables are the ways a Star printer is connected: a network card, which tells
// its status always; a serial line, which tells when it is asked to; USB
// printer class, where nobody can change what the memory switch says.
var cables = []cable{
	{"network", "tcp", emulator.StarModel{Ethernet: true}, "2s"},
	{"serial line", "pty", emulator.StarModel{}, "2s"},
	{"USB that tells", "pipe", emulator.StarModel{Status: true, Fixed: true}, "2s"},
	{"USB that has to be asked", "pipe", emulator.StarModel{Fixed: true}, "500ms"},
}

func printer(t *testing.T, c cable) bed {
	t.Helper()
	addr := ""
	if c.kind == "tcp" {
		addr = "127.0.0.1:0"
	}
	p, err := emulator.NewStar(addr, c.model)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if u := p.Unknown(); len(u) > 0 {
			t.Errorf("the driver sent commands that the printer does not know: %v", u)
		}
		if n := p.Mixed(); n > 0 {
			t.Errorf("the driver asked %d times a printer that tells by itself", n)
		}
		_ = p.Close()
	})
	tty := ""
	if c.kind == "pty" {
		if tty, err = p.OpenPTY(); err != nil {
			t.Fatal(err)
		}
	}
	return bed{p, c, tty}
}

func open(t *testing.T, p bed, claim hal.Claim, pairs ...string) hal.Device {
	t.Helper()
	cfg := hal.Config{ID: "receipt", Claim: claim, Options: map[string]string{"timeout": p.timeout}}
	for i := 0; i < len(pairs); i += 2 {
		cfg.Options[pairs[i]] = pairs[i+1]
	}
	d, err := p.open(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func status(t *testing.T, d hal.Device, ok func(hal.Status) bool) hal.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		s, err := d.(hal.StatusReader).Status(ctx)
		if err == nil && ok(s) {
			return s
		}
		if ctx.Err() != nil {
			t.Fatalf("last status %+v, %v", s, err)
		}
	}
}

func healthy(s hal.Status) bool { return s.Health == hal.OK }

// value returns a statistic, or -1.
func value(t *testing.T, d hal.Device, name string) float64 {
	t.Helper()
	list, err := d.(hal.Statistics).Statistics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if s.Name == name {
			return s.Value
		}
	}
	return -1
}

func TestConformance(t *testing.T) {
	for _, c := range cables {
		t.Run(c.name, func(t *testing.T) {
			haltest.Run(t, func(t *testing.T) haltest.Bench { return bench(t, c) })
		})
	}
}

func bench(t *testing.T, c cable) haltest.Bench {
	p := printer(t, c)
	fault := func(f emulator.Fault) func(bool) { return func(on bool) { p.Set(f, on) } }
	b := haltest.Bench{
		Apart: true,
		Open:  func(t *testing.T) hal.Device { return open(t, p, hal.Own, "drawer_open_level", "high") },
		Faults: []haltest.Fault{
			{Name: "cover", Set: fault(emulator.CoverOpen), Sensor: "CoverOpen", On: "COVER_OPEN", Off: "COVER_OK"},
			{Name: "paper low", Set: fault(emulator.NearEnd), Sensor: "RecNearEnd", On: "REC_NEAREMPTY", Off: "REC_PAPEROK"},
			{Name: "paper out", Set: fault(emulator.PaperEnd), Sensor: "RecEmpty", On: "REC_EMPTY", Off: "REC_PAPEROK"},
			{Name: "cutter", Set: fault(emulator.CutterJam), Sensor: "M_CutterError", On: "M_CUTTER_ERROR", Off: "M_CUTTER_OK"},
			{Name: "head", Set: fault(emulator.HeadHot), Sensor: "M_HeadTooHot", On: "M_HEAD_TOO_HOT", Off: "M_HEAD_OK"},
			{Name: "jam", Set: fault(emulator.Mechanical), Sensor: "M_MechanicalError", On: "M_MECHANICAL_ERROR", Off: "M_MECHANICAL_OK"},
			{Name: "unrecoverable", Set: fault(emulator.Unrecoverable), Sensor: "M_UnrecoverableError", On: "M_UNRECOVERABLE_ERROR", Off: "M_RECOVERED"},
			{Name: "off-line", Set: fault(emulator.Offline), On: "POWER_OFFLINE", Off: "POWER_ONLINE"},
			{Name: "drawer", Set: fault(emulator.DrawerOpen), Sensor: "DrawerOpened", On: "DRAWEROPEN", Off: "DRAWERCLOSED"},
		},
		Unplug: fault(emulator.Unplugged),
		Mute:   fault(emulator.Mute),
		Noise:  fault(emulator.Garbage),
		Blind:  func(t *testing.T) hal.Device { return open(t, p, hal.Observe) },
		Unseen: []string{"CoverOpen", "RecEmpty", "RecNearEnd", "DrawerOpened", "M_CutterError"},
		Output: p.Output,
		Feed: func(t *testing.T, d hal.Device, number string) {
			p.SetVersion(number + "Ver" + number)
			if _, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader("Card "+number+"\n\x1bd3")); err != nil {
				t.Errorf("print: %v", err)
			}
		},
	}
	b.Observe = func(t *testing.T) hal.Device { return open(t, p, hal.Observe) }
	if c.kind == "tcp" {
		b.Observe = func(t *testing.T) hal.Device { return open(t, p, hal.Observe, "ask", "true") }
	}
	b.Compete = func(ctx context.Context) error {
		conn, err := p.dial(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		deadline, _ := ctx.Deadline()
		_ = conn.SetReadDeadline(deadline)
		if !c.model.Ethernet && !c.model.Status {
			if _, err := conn.Write([]byte{0x1b, 0x06, 0x01}); err != nil {
				return err
			}
		}
		_, err = conn.Read(make([]byte, 1))
		return err
	}
	return b
}

// dial opens the cable as a till does.
func (p bed) dial(ctx context.Context) (port.Conn, error) {
	if p.kind == "pipe" {
		near, far := net.Pipe()
		go func() { _ = p.Serve(far) }()
		return near, nil
	}
	address := p.Addr()
	if p.kind == "pty" {
		address = "serial:" + p.tty
	}
	at, err := port.Parse(address)
	if err != nil {
		return nil, err
	}
	return at.Open(ctx)
}

func TestPrint(t *testing.T) {
	for _, c := range cables {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := printer(t, c)
			d := open(t, p, hal.Own)
			status(t, d, healthy)
			// As receiptline begins and ends its jobs: automatic status off, and a question.
			job, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader("\x1b@\x1b\x1ea\x00Hello\nWorld\n\x07\x1bd3\x1b\x1d\x03\x01\x00\x00\x04"))
			if err != nil || !job.Confirmed || job.Cuts != 1 || job.Kicks != 1 || job.Bytes == 0 {
				t.Errorf("got %+v, %v; want one that the printer confirms, with a cut and a kick", job, err)
			}
			if jobs := p.Jobs(); len(jobs) != 1 || jobs[0] != "Hello\nWorld\n" {
				t.Errorf("printed %q", jobs)
			}
			if l, n := value(t, d, "ReceiptLineFeedCount"), value(t, d, "PaperCutCount"); l != 2 || n != 1 {
				t.Errorf("counted %v lines and %v cuts, want 2 and 1", l, n)
			}
			p.Set(emulator.CoverOpen, true) // the job must not have made the printer silent
			status(t, d, func(s hal.Status) bool { return s.Sensors["CoverOpen"] == hal.Yes })
			if _, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader("x\n")); !errors.Is(err, &hal.Error{Code: "E_OFFLINE"}) || !strings.Contains(err.Error(), "COVER_OPEN") {
				t.Errorf("with the cover open: got %v, want E_OFFLINE that says why", err)
			}
			p.Set(emulator.CoverOpen, false)
			status(t, d, healthy)
			if n := len(p.Jobs()); n != 1 {
				t.Errorf("%d pages came out, want 1: what was refused must not come out later", n)
			}
		})
	}
}
