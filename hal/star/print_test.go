package star_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/haltest"
	"github.com/tillward/tillward/hal/port"
	"github.com/tillward/tillward/hal/star"
	"github.com/tillward/tillward/simulator/emulator"
)

// A page that runs out of paper half way is no success, and what is left of it
// is known to be.
func TestPrintRunsOutOfPaper(t *testing.T) {
	for _, c := range cables {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := printer(t, c)
			d := open(t, p, hal.Own)
			status(t, d, healthy)
			p.LoadRoll(405)
			job, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader(strings.Repeat("line\n", 500)+"\x1bd3"))
			if job.Confirmed || !errors.Is(err, &hal.Error{Code: "E_OFFLINE"}) || !strings.Contains(err.Error(), "REC_EMPTY") {
				t.Errorf("got %+v, %v; want E_OFFLINE with REC_EMPTY", job, err)
			}
		})
	}
}

// A sale that ran out of paper comes out never, and not a second time when it is
// printed again. Its kick that the printer did not come to says nothing about
// the drawer.
func TestBrokenOffIsForgotten(t *testing.T) {
	for _, c := range cables {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := printer(t, c)
			d := open(t, p, hal.Own, "drawer_open_level", "high", "drawer", "till")
			drawer := d.(hal.Parent).Parts()[0]
			status(t, d, healthy)
			status(t, drawer, healthy)
			p.LoadRoll(100)
			sale := strings.Repeat("line\n", 150) + "\x07\x1bd3"
			if job, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader(sale)); err == nil || job.Confirmed || job.Bytes == 0 {
				t.Fatalf("got %+v, %v; want an error, and what was handed over", job, err)
			}
			until := time.Now().Add(1500 * time.Millisecond) // longer than the drawer may take
			if s := status(t, drawer, func(s hal.Status) bool { return s.Health != hal.OK || time.Now().After(until) }); s.Health != hal.OK {
				t.Errorf("the drawer is %+v, and nobody kicked it", s)
			}
			p.LoadRoll(0)
			status(t, d, healthy)
			if job, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader(sale)); err != nil || !job.Confirmed {
				t.Errorf("again: got %+v, %v", job, err)
			}
			if s := status(t, drawer, func(s hal.Status) bool { return s.Sensors["DrawerOpened"] == hal.Yes }); s.Sensors["M_UnexpectedOpen"] != hal.No {
				t.Errorf("opened by the second sale: %+v", s)
			}
			if jobs := p.Jobs(); len(jobs) != 1 || strings.Count(jobs[0], "line") != 150 {
				t.Errorf("%d receipts came out, want the second and no rest of the first", len(jobs))
			}
		})
	}
}

// Must fail: a printer that takes everything and prints nothing has proved
// nothing, however healthy it looks.
func TestLostJobIsNotConfirmed(t *testing.T) {
	p := printer(t, cables[0])
	d := open(t, p, hal.Own, "timeout", "100ms")
	status(t, d, healthy)
	p.Set(emulator.LosesJobs, true)
	if job, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader("x\n\x1bd3")); err == nil || job.Confirmed {
		t.Errorf("got %+v, %v; want an error", job, err)
	}
}

// Must fail: a job that plays with the counter itself proves nothing.
func TestJobThatSetsTheCounterIsNotConfirmed(t *testing.T) {
	p := printer(t, cables[0])
	d := open(t, p, hal.Own)
	status(t, d, healthy)
	for _, job := range []string{"x\n\x1b\x1eE\x00\x17", "x\n\x18\x17", "x\n\x1b\x06\x18y\n", "x\n" + strings.Repeat("\x17", 40)} {
		made, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader(job))
		if err != nil || made.Confirmed {
			t.Errorf("%q: got %+v, %v; want one that is not confirmed", job, made, err)
		}
	}
	for range 70 { // through every value that the counter may have before
		made, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader("x\n\x17\x1bd3"))
		if err != nil || !made.Confirmed {
			t.Fatalf("a job with an ETB of its own: got %+v, %v; want it confirmed", made, err)
		}
		status(t, d, healthy)
	}
}

// A model without counter prints, and nobody says that it is proved.
func TestModelWithoutCounter(t *testing.T) {
	for _, c := range cables {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := printer(t, c)
			p.Set(emulator.ShortFrames, true)
			d := open(t, p, hal.Own)
			status(t, d, healthy)
			made, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader("x\n\x1bd3"))
			if err != nil || made.Confirmed {
				t.Errorf("got %+v, %v; want one job that is not confirmed", made, err)
			}
			waitFor(t, "the job", func() bool { return len(p.Jobs()) == 1 }) // without proof it may be on its way
			r, err := d.(hal.HealthChecker).CheckHealth(t.Context(), hal.External)
			if err != nil || !r.OK || len(r.Checks) != 1 || r.Checks[0].Code != "M_NO_SENSOR" {
				t.Errorf("test page: got %+v, %v; want one that somebody has to look at", r, err)
			}
		})
	}
}

func TestIdentity(t *testing.T) {
	for _, c := range cables {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := printer(t, c)
			d := open(t, p, hal.Own, "roll_length_m", "80", "feed_pitch_um", "4000")
			waitFor(t, "the model", func() bool { return d.Info().Model != "" })
			i := d.Info()
			if i.Maker != "Star" || i.Model != "EMU-S650" || i.Firmware != "1.2" || i.RollLines != 20000 || i.Claim != hal.Own {
				t.Errorf("got %+v", i)
			}
			if want := map[string]string{"tcp": "Ethernet", "pty": "RS232", "pipe": "USB"}[c.kind]; i.Interface != want || i.Key == "" {
				t.Errorf("got interface %q, key %q; want %s", i.Interface, i.Key, want)
			}
			if !slices.IsSorted(i.Caps) || !slices.Contains(i.Caps, "CapRecNearEndSensor") {
				t.Errorf("capabilities %v", i.Caps)
			}
		})
	}
}

// A version that could hold a card number is not told.
func TestIdentityIsGuarded(t *testing.T) {
	p := printer(t, cables[0])
	p.SetVersion("4111111111111111Ver1")
	d := open(t, p, hal.Own)
	waitFor(t, "the drop", func() bool { return value(t, d, "M_PanGuardDropCount") > 0 })
	if i := d.Info(); i.Model != "" || i.Firmware != "" {
		t.Errorf("got %+v", i)
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("%s never came", what)
		case <-tick.C:
		}
	}
}

// A model without near-end sensor always says that there is enough.
func TestNoNearEndSensor(t *testing.T) {
	p := printer(t, cables[0])
	d := open(t, p, hal.Own, "near_end", "false")
	if s := status(t, d, healthy); s.Sensors["RecNearEnd"] != hal.Unknown {
		t.Errorf("got %v, want Unknown", s.Sensors["RecNearEnd"])
	}
	if slices.Contains(d.Info().Caps, "CapRecNearEndSensor") {
		t.Errorf("capabilities %v", d.Info().Caps)
	}
}

func TestOverflowIsCounted(t *testing.T) {
	p := printer(t, cables[0])
	d := open(t, p, hal.Own)
	status(t, d, healthy)
	before := value(t, d, "CommunicationErrorCount")
	p.Set(emulator.Overflow, true)
	waitFor(t, "the count", func() bool { return value(t, d, "CommunicationErrorCount") > before })
}

// A printer that was off-line from the start answers when it is asked, and
// tells by itself from when it can obey.
func TestOffLineFromTheStart(t *testing.T) {
	p := printer(t, cables[1])
	p.Set(emulator.CoverOpen, true)
	d := open(t, p, hal.Own)
	status(t, d, func(s hal.Status) bool { return s.Reason == "COVER_OPEN" })
	p.Set(emulator.CoverOpen, false)
	status(t, d, healthy)
	p.Set(emulator.NearEnd, true)
	status(t, d, func(s hal.Status) bool { return s.Reason == "REC_NEAREMPTY" })
}

// An off-line printer that falls silent obeys nothing that could show that it
// lives: after a while its connection is doubted.
func TestSilentOffLinePrinterIsDoubted(t *testing.T) {
	p := printer(t, cables[0])
	p.Set(emulator.CoverOpen, true)
	d := open(t, p, hal.Own, "timeout", "50ms")
	status(t, d, func(s hal.Status) bool { return s.Reason == "COVER_OPEN" })
	p.Set(emulator.Mute, true)
	status(t, d, func(s hal.Status) bool { return s.Power == hal.PowerOffOffline })
	p.Set(emulator.Mute, false)
	status(t, d, func(s hal.Status) bool { return s.Reason == "COVER_OPEN" })
}

// A printer that says XOFF is not fed, and asked all the same.
func TestFlowControl(t *testing.T) {
	p := printer(t, cables[1])
	p.tty += "?flow=xonxoff"
	p.Set(emulator.SpeaksXonXoff, true)
	d := open(t, p, hal.Own)
	status(t, d, healthy)
	for range 3 {
		p.Set(emulator.CoverOpen, true)
		status(t, d, func(s hal.Status) bool { return s.Reason == "COVER_OPEN" })
		p.Set(emulator.CoverOpen, false)
		status(t, d, healthy)
	}
	if job, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader(strings.Repeat("line\n", 3000)+"\x1bd3")); err != nil || !job.Confirmed {
		t.Errorf("print: %+v, %v", job, err)
	}
	if n := value(t, d, "CommunicationErrorCount"); n != 0 {
		t.Errorf("XON and XOFF are counted as %v errors", n)
	}
	off := printer(t, cables[1]) // and one that is off-line from the start
	off.tty += "?flow=xonxoff"
	off.Set(emulator.SpeaksXonXoff, true)
	off.Set(emulator.CoverOpen, true)
	status(t, open(t, off, hal.Own), func(s hal.Status) bool { return s.Reason == "COVER_OPEN" })
}

// The till holds the printer: that is "in use", not "broken".
func TestObserveInUse(t *testing.T) {
	for _, c := range cables[:2] {
		t.Run(c.name, func(t *testing.T) {
			p := printer(t, c)
			d := open(t, p, hal.Observe, "ask", "true")
			status(t, d, healthy)
			till, err := p.dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if c.kind == "tcp" {
				_, _ = till.Read(make([]byte, 1)) // now it has the printer
			}
			if s := status(t, d, func(s hal.Status) bool { return s.Health != hal.OK }); s.Reason != "M_IN_USE" || s.Health != hal.NoSensor {
				t.Errorf("got %+v, want Unknown because M_IN_USE", s)
			}
			_ = till.Close()
			status(t, d, healthy)
			if _, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader("x\n")); !errors.Is(err, &hal.Error{Code: "E_ILLEGAL"}) {
				t.Errorf("printing on a printer that is only observed: got %v, want E_ILLEGAL", err)
			}
			if err := d.(hal.DrawerKicker).OpenDrawer(t.Context()); !errors.Is(err, &hal.Error{Code: "E_ILLEGAL"}) {
				t.Errorf("kicking the drawer of one: got %v, want E_ILLEGAL", err)
			}
		})
	}
}

func TestObserveWithoutAskingConnectsNever(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d, err := star.Driver{}.Open(t.Context(), hal.Config{ID: "x", Address: l.Addr().String(), Claim: hal.Observe})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if s, err := d.(hal.StatusReader).Status(t.Context()); err != nil || s.Health != hal.NoSensor || s.Power != hal.PowerUnknown {
		t.Errorf("got %+v, %v; want nothing known", s, err)
	}
	_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(50 * time.Millisecond))
	if c, err := l.Accept(); err == nil {
		_ = c.Close()
		t.Error("it connected without being allowed to")
	}
}

// Why a printer that is ours cannot be had is told, and what to do.
func TestNotToBeHad(t *testing.T) {
	for why, reason := range map[error]string{port.ErrInUse: "M_IN_USE", port.ErrNoAccess: "M_NO_ACCESS", port.ErrNoNode: "M_NO_DRIVER"} {
		drv := star.Driver{Dial: func(context.Context, port.Address) (port.Conn, error) { return nil, why }}
		d, err := drv.Open(t.Context(), hal.Config{ID: "x", Address: "serial:/dev/null"})
		if err != nil {
			t.Fatal(err)
		}
		s := status(t, d, func(s hal.Status) bool { return s.Reason == reason })
		if s.Health != hal.NoSensor || s.Advice == "" {
			t.Errorf("%v: got %+v", why, s)
		}
		_ = d.Close()
	}
}

// A nudge ends the patience after a loss.
func TestNudge(t *testing.T) {
	p := printer(t, cables[3])
	p.Set(emulator.Unplugged, true)
	d := open(t, p, hal.Own)
	gone := func(s hal.Status) bool { return s.Power == hal.PowerOffOffline }
	status(t, d, gone)
	for range 20 { // so often that the patience has grown long
		d.(hal.Nudger).Nudge()
		status(t, d, gone)
	}
	p.Set(emulator.Unplugged, false)
	d.(hal.Nudger).Nudge()
	status(t, d, healthy)
}

func TestDrawer(t *testing.T) {
	for _, c := range cables {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := printer(t, c)
			d := open(t, p, hal.Own, "drawer_open_level", "high", "drawer", "till", "left_open", "30s")
			drawer := d.(hal.Parent).Parts()[0]
			if i := drawer.Info(); i.ID != "till" || i.Category != hal.CashDrawer || !slices.Contains(i.Caps, "CapStatus") {
				t.Errorf("the part is %+v", i)
			}
			if s := status(t, d, healthy); s.Sensors["DrawerOpened"] != hal.Unknown {
				t.Error("the printer tells of the drawer too")
			}
			status(t, drawer, healthy)
			kick := drawer.(hal.DrawerKicker)
			if err := kick.OpenDrawer(t.Context()); err != nil || !p.Has(emulator.DrawerOpen) {
				t.Errorf("open: %v; drawer open: %v", err, p.Has(emulator.DrawerOpen))
			}
			p.Set(emulator.DrawerOpen, false)
			status(t, drawer, func(s hal.Status) bool { return s.Sensors["DrawerOpened"] == hal.No })
			p.Set(emulator.PaperEnd, true) // change is given without paper too
			status(t, d, func(s hal.Status) bool { return s.Reason == "REC_EMPTY" })
			if err := kick.OpenDrawer(t.Context()); err != nil {
				t.Errorf("open without paper: %v", err)
			}
			p.Set(emulator.PaperEnd, false)
			p.Set(emulator.DrawerOpen, false)
			status(t, d, healthy)
			status(t, drawer, healthy)
			if _, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader("x\n\x07\x1bd3")); err != nil {
				t.Fatal(err)
			}
			s := status(t, drawer, func(s hal.Status) bool { return s.Sensors["DrawerOpened"] == hal.Yes })
			if s.Sensors["M_UnexpectedOpen"] != hal.No {
				t.Errorf("opened by a job: %+v", s)
			}
			p.Set(emulator.DrawerOpen, false)
			status(t, drawer, healthy)
			p.Set(emulator.DrawerStuck, true)
			r, err := drawer.(hal.HealthChecker).CheckHealth(t.Context(), hal.External)
			if !errors.Is(err, &hal.Error{Code: "E_FAILURE"}) || r.OK {
				t.Errorf("a stuck drawer: got %+v, %v; want E_FAILURE", r, err)
			}
			status(t, drawer, func(s hal.Status) bool { return s.Reason == "M_DRAWER_STUCK" })
			p.Set(emulator.DrawerStuck, false)
			if g, f := value(t, drawer, "DrawerGoodOpenCount"), value(t, drawer, "DrawerFailedOpenCount"); g != 3 || f != 1 {
				t.Errorf("counted %v good and %v failed, want 3 and 1", g, f)
			}
		})
	}
}

// A drawer has to pass the laws too.
func TestDrawerConformance(t *testing.T) {
	haltest.Run(t, func(t *testing.T) haltest.Bench {
		p := printer(t, cables[0])
		parents := map[hal.Device]hal.Device{}
		return haltest.Bench{
			Apart: true,
			Open: func(t *testing.T) hal.Device {
				d := open(t, p, hal.Own, "drawer_open_level", "high", "drawer", "till")
				part := d.(hal.Parent).Parts()[0]
				parents[part] = d
				return part
			},
			Close: func(d hal.Device) error { return parents[d].Close() },
			Faults: []haltest.Fault{
				{Name: "opened by nobody", Set: func(on bool) { p.Set(emulator.DrawerOpen, on) }, Sensor: "M_UnexpectedOpen", On: "M_DRAWER_UNEXPECTED_OPEN", Off: "M_DRAWER_SECURE"},
			},
			Unplug: func(on bool) { p.Set(emulator.Unplugged, on) },
			Mute:   func(on bool) { p.Set(emulator.Mute, on) },
			Blind: func(t *testing.T) hal.Device {
				d := open(t, p, hal.Own, "drawer", "till")
				part := d.(hal.Parent).Parts()[0]
				parents[part] = d
				return part
			},
			Unseen: []string{"DrawerOpened", "M_UnexpectedOpen"},
			Output: p.Output,
			Feed: func(t *testing.T, d hal.Device, number string) {
				if _, err := parents[d].(hal.Passthrough).Print(t.Context(), strings.NewReader("Card "+number+"\n\x1bd3")); err != nil {
					t.Errorf("print: %v", err)
				}
			},
			NotApplicable: map[int]string{
				5: "noise is counted by the printer whose cable it is",
				7: "the drawer has no cable of its own",
			},
		}
	})
}

// Without a word on the cable nobody knows what the pin means.
func TestDrawerUnknownWithoutLevel(t *testing.T) {
	p := printer(t, cables[0])
	p.Set(emulator.DrawerOpen, true)
	d := open(t, p, hal.Own)
	if s := status(t, d, healthy); s.Sensors["DrawerOpened"] != hal.Unknown {
		t.Errorf("got %v, want Unknown", s.Sensors["DrawerOpened"])
	}
	if err := d.(hal.DrawerKicker).OpenDrawer(t.Context()); err != nil {
		t.Errorf("open: %v", err)
	}
	low := open(t, printer(t, cables[0]), hal.Own, "drawer_open_level", "low")
	if s := status(t, low, healthy); s.Sensors["DrawerOpened"] != hal.Yes {
		t.Errorf("low is open: got %v, want Yes", s.Sensors["DrawerOpened"])
	}
}
