//go:build halvm

package halvm_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/escpos"
	"github.com/tillward/tillward/hal/haltest"
	"github.com/tillward/tillward/simulator/emulator"
)

// play lets the emulator be the firmware of the gadget's printer.
func play(t *testing.T) (*emulator.Printer, *emulator.Gadget) {
	t.Helper()
	p, err := emulator.NewPrinter("127.0.0.1:0")
	must(t, err)
	g := thePrinter(t, "dummy_udc.0")
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil { // pulling the plug ends a connection
			f, err := os.OpenFile("/dev/g_printer0", os.O_RDWR|syscall.O_NONBLOCK, 0)
			switch {
			case err == nil:
				stop := context.AfterFunc(ctx, func() { _ = f.Close() })
				_ = p.Serve(f)
				stop()
				_ = f.Close()
			case !errors.Is(err, syscall.ENODEV): // nobody is at the other end
				t.Errorf("the gadget's side: %v", err)
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	t.Cleanup(func() { // before the gadget is taken apart
		if u := p.Unknown(); len(u) > 0 {
			t.Errorf("the driver sent commands that the printer does not know: %v", u)
		}
		cancel()
		_ = p.Close()
		wg.Wait()
	})
	return p, g
}

// TestPrinter runs the suite over a printer that usblp serves.
func TestPrinter(t *testing.T) {
	haltest.Run(t, func(t *testing.T) haltest.Bench {
		p, g := play(t)
		fault := func(f emulator.Fault) func(bool) { return func(on bool) { p.Set(f, on) } }
		openAs := func(t *testing.T, claim hal.Claim, options ...string) hal.Device {
			cfg := hal.Config{ID: "receipt", Address: "usb:04b8:0e15:LANE0001", Claim: claim, Options: map[string]string{}}
			for i := 0; i < len(options); i += 2 {
				cfg.Options[options[i]] = options[i+1]
			}
			return open(t, escpos.Driver{}, cfg)
		}
		return haltest.Bench{
			Open: func(t *testing.T) hal.Device { return openAs(t, hal.Own, "drawer_open_level", "high") },
			Faults: []haltest.Fault{
				{Name: "cover", Set: fault(emulator.CoverOpen), Sensor: "CoverOpen", On: "COVER_OPEN", Off: "COVER_OK"},
				{Name: "paper low", Set: fault(emulator.NearEnd), Sensor: "RecNearEnd", On: "REC_NEAREMPTY", Off: "REC_PAPEROK"},
				{Name: "paper out", Set: fault(emulator.PaperEnd), Sensor: "RecEmpty", On: "REC_EMPTY", Off: "REC_PAPEROK"},
				{Name: "cutter", Set: fault(emulator.CutterJam), Sensor: "M_CutterError", On: "M_CUTTER_ERROR", Off: "M_CUTTER_OK"},
				{Name: "head", Set: fault(emulator.HeadHot), Sensor: "M_HeadTooHot", On: "M_HEAD_TOO_HOT", Off: "M_HEAD_OK"},
				{Name: "unrecoverable", Set: fault(emulator.Unrecoverable), Sensor: "M_UnrecoverableError", On: "M_UNRECOVERABLE_ERROR", Off: "M_RECOVERED"},
				{Name: "off-line", Set: fault(emulator.Offline), On: "POWER_OFFLINE", Off: "POWER_ONLINE"},
				{Name: "drawer", Set: fault(emulator.DrawerOpen), Sensor: "DrawerOpened", On: "DRAWEROPEN", Off: "DRAWERCLOSED"},
			},
			Unplug: func(on bool) { must(t, g.Plug(!on)) },
			Mute:   fault(emulator.Mute),
			Noise:  fault(emulator.Garbage),
			Reset: func() { // a new printer of the same number
				must(t, g.Plug(false))
				p.Renew()
				must(t, g.Plug(true))
			},
			Blind: func(t *testing.T) hal.Device {
				p.Set(emulator.NoStatusBack, true)
				return openAs(t, hal.Own, "queries", "1")
			},
			Unseen: []string{"CoverOpen", "RecEmpty", "RecNearEnd", "DrawerOpened", "M_CutterError"},
			Output: func() int { return len(p.Jobs()) + int(p.Counter(148)) },
			Feed: func(t *testing.T, d hal.Device, number string) {
				if _, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader("Card "+number+"\n\x1dV\x00")); err != nil {
					t.Errorf("print: %v", err)
				}
			},
			Observe: func(t *testing.T) hal.Device { return openAs(t, hal.Observe) },
			Compete: func(ctx context.Context) error {
				f, err := os.OpenFile("/dev/usb/lp0", os.O_RDWR|syscall.O_NONBLOCK, 0)
				if err != nil {
					return err
				}
				defer f.Close()
				deadline, _ := ctx.Deadline()
				_ = f.SetDeadline(deadline)
				if _, err := f.Write([]byte{0x10, 0x04, 0x01}); err != nil {
					return err
				}
				_, err = f.Read(make([]byte, 1))
				return err
			},
		}
	})
}

// TestTill tells what a till does from what is broken: a node of usblp has one
// owner at a time.
func TestTill(t *testing.T) {
	t.Run("the till holds the printer", func(t *testing.T) {
		_, _ = play(t)
		d := open(t, escpos.Driver{}, hal.Config{ID: "receipt", Address: "usb:04b8:0e15", Claim: hal.Observe, Options: map[string]string{"ask": "true"}})
		within(t, "the printer to answer", func() bool { return status(t, d).Sensors["RecEmpty"] == hal.No })
		till, err := os.OpenFile("/dev/usb/lp0", os.O_RDWR|syscall.O_NONBLOCK, 0)
		must(t, err)
		if s := status(t, d); s.Reason != "M_IN_USE" || s.Power != hal.PowerOnline || s.Health == hal.OK {
			t.Errorf("while the till prints: got %+v, want on-line and in use", s)
		}
		must(t, till.Close())
		within(t, "the printer to answer again", func() bool { return status(t, d).Sensors["RecEmpty"] == hal.No })
	})
	t.Run("we hold the printer", func(t *testing.T) {
		_, _ = play(t)
		d := open(t, escpos.Driver{}, hal.Config{ID: "receipt", Address: "/dev/usb/lp0", Claim: hal.Own})
		within(t, "the printer to answer", func() bool { return status(t, d).Health == hal.OK })
		till, err := os.OpenFile("/dev/usb/lp0", os.O_RDWR|syscall.O_NONBLOCK, 0)
		if !errors.Is(err, syscall.EBUSY) {
			t.Errorf("a second owner: got %v, want EBUSY", err)
		}
		_ = till.Close()
	})
	t.Run("a printer that answers nothing but LPGETSTATUS", func(t *testing.T) {
		thePrinter(t, "dummy_udc.0")
		f, err := os.OpenFile("/dev/g_printer0", os.O_RDWR|syscall.O_NONBLOCK, 0)
		must(t, err)
		t.Cleanup(func() { _ = f.Close() })
		const setStatus, selected, paperOut, noError = 0xc0016722, 0x10, 0x20, 0x08 // GADGET_SET_PRINTER_STATUS [linux/usb/g_printer.h]
		tell := func(pins int) {
			t.Helper()
			raw, err := f.SyscallConn()
			must(t, err)
			must(t, raw.Control(func(fd uintptr) { err = unix.IoctlSetInt(int(fd), setStatus, pins) }))
			must(t, err)
		}
		d := open(t, escpos.Driver{}, hal.Config{ID: "receipt", Address: "usb:04b8:0e15", Claim: hal.Own, Options: map[string]string{"queries": "none"}})
		nudge := func(want hal.Tri) func() bool {
			return func() bool {
				d.(hal.Nudger).Nudge()
				return status(t, d).Sensors["RecEmpty"] == want
			}
		}
		tell(selected | noError)
		within(t, "nothing to be known of the paper", func() bool {
			s := status(t, d)
			return s.Power == hal.PowerOnline && s.Sensors["RecEmpty"] == hal.Unknown
		})
		tell(selected | noError | paperOut)
		within(t, "the paper to be out", nudge(hal.Yes))
		tell(selected | noError)
		within(t, "the paper to be in again", nudge(hal.No))
	})
	t.Run("a long job over usblp", func(t *testing.T) {
		p, g := play(t)
		d := open(t, escpos.Driver{}, hal.Config{ID: "receipt", Address: "usb:04b8:0e15", Claim: hal.Own})
		within(t, "the printer to answer", func() bool { return status(t, d).Health == hal.OK })
		p.LoadRoll(1 << 20)
		picture := "\x1dv0\x00\x48\x00\x00\x01" + strings.Repeat("\x1dV\x00", 72*256/3)
		job := strings.Repeat("a line with much to say for itself\n", 3000)
		made, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader(job+picture+"\x1dV\x00"))
		if err != nil || !made.Confirmed || made.Cuts != 1 || made.Bytes != int64(len(job)+len(picture)+3) {
			t.Errorf("got %+v, %v", made, err)
		}
		if jobs := p.Jobs(); len(jobs) != 1 || jobs[0] != job {
			t.Errorf("%d jobs came out, want the one, whole", len(jobs))
		}
		p.LoadRoll(50)
		if made, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader(job+"\x1dV\x00")); !errors.Is(err, &hal.Error{Code: "E_OFFLINE"}) || made.Confirmed {
			t.Errorf("without paper: got %+v, %v; want E_OFFLINE", made, err)
		}
		if s := status(t, d); s.Reason != "REC_EMPTY" {
			t.Errorf("got %+v", s)
		}
		p.LoadRoll(1 << 20)
		within(t, "the printer to be well again", func() bool { return status(t, d).Health == hal.OK })
		pulled := make(chan error, 1)
		p.SetPace(time.Millisecond)
		go func() {
			_, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader(job+"\x1dV\x00"))
			pulled <- err
		}()
		within(t, "the job to have begun", func() bool { return p.Paper() < 1<<20-100 })
		must(t, g.Plug(false))
		if err := <-pulled; err == nil {
			t.Error("a plug that was pulled in the middle of a job: got no error")
		}
		must(t, g.Plug(true))
	})
	t.Run("an application asks through us", func(t *testing.T) {
		p, _ := play(t)
		d := open(t, escpos.Driver{}, hal.Config{ID: "receipt", Address: "usb:04b8:0e15", Claim: hal.Own})
		within(t, "the printer to answer", func() bool { return status(t, d).Health == hal.OK })
		app, far := net.Pipe()
		ended := make(chan error, 1)
		go func() { ended <- d.(hal.Tunneler).Tunnel(t.Context(), far) }()
		must(t, app.SetDeadline(time.Now().Add(20*time.Second)))
		_, err := app.Write([]byte("\x1b@tea\n\x1dV\x00\x1dI\x43\x10\x04\x04"))
		must(t, err)
		answer := make([]byte, 10)
		if _, err := io.ReadFull(app, answer); err != nil || !strings.Contains(string(answer), "_EMU-T80\x00") || !strings.Contains(string(answer), "\x12") {
			t.Errorf("got %q, %v", answer, err)
		}
		must(t, app.Close())
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if jobs := p.Jobs(); len(jobs) != 1 || jobs[0] != "tea\n" {
			t.Errorf("got %q", jobs)
		}
	})
}
