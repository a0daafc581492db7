package escpos_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/escpos"
	"github.com/tillward/tillward/simulator/emulator"
)

func printer(t *testing.T) *emulator.Printer {
	t.Helper()
	p, err := emulator.NewPrinter("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if u := p.Unknown(); len(u) > 0 {
			t.Errorf("the driver sent commands that the printer does not know: %v", u)
		}
		_ = p.Close()
	})
	return p
}

func open(t *testing.T, p *emulator.Printer, claim hal.Claim, options ...string) hal.Device {
	t.Helper()
	cfg := hal.Config{ID: "receipt", Address: p.Addr(), Claim: claim, Options: map[string]string{"timeout": "500ms"}}
	for i := 0; i < len(options); i += 2 {
		cfg.Options[options[i]] = options[i+1]
	}
	d, err := escpos.Driver{}.Open(t.Context(), cfg)
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

func TestTestPage(t *testing.T) {
	p := printer(t)
	d := open(t, p, hal.Own)
	h := d.(hal.HealthChecker)
	if r, err := h.CheckHealth(t.Context(), hal.External); err != nil || !r.OK {
		t.Fatalf("got %+v, %v", r, err)
	}
	if jobs := p.Jobs(); len(jobs) != 1 || !strings.Contains(jobs[0], "Tillward test page") || !strings.Contains(jobs[0], "receipt") {
		t.Errorf("got %q, want one test page", jobs)
	}
	p.Set(emulator.CoverOpen, true) // the test page's ESC @ must not have made the printer silent for good
	status(t, d, func(s hal.Status) bool { return s.Sensors["CoverOpen"] == hal.Yes })
	r, err := h.CheckHealth(t.Context(), hal.External)
	if !errors.Is(err, &hal.Error{Code: "E_OFFLINE"}) || r.OK || !strings.Contains(err.Error(), "COVER_OPEN") {
		t.Errorf("with the cover open: got %+v, %v; want E_OFFLINE that says why", r, err)
	}
	p.Set(emulator.CoverOpen, false)
	status(t, d, healthy)
	if n := len(p.Jobs()); n != 1 {
		t.Errorf("%d pages came out, want 1: what was refused must not come out later", n)
	}
}

// A page that runs out of paper half way is no success.
func TestPrintRunsOutOfPaper(t *testing.T) {
	p := printer(t)
	d := open(t, p, hal.Own)
	status(t, d, healthy)
	p.LoadRoll(405)
	_, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader(strings.Repeat("line\n", 500)+"\x1dV\x00"))
	if !errors.Is(err, &hal.Error{Code: "E_OFFLINE"}) || !strings.Contains(err.Error(), "REC_EMPTY") {
		t.Errorf("got %v, want E_OFFLINE with REC_EMPTY", err)
	}
}

// Nor is one that switched the printer's own word off before.
func TestPrintRunsOutOfPaperInSilence(t *testing.T) {
	t.Parallel() // it waits for an answer that does not come
	p := printer(t)
	d := open(t, p, hal.Own)
	status(t, d, healthy)
	p.LoadRoll(405)
	_, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader("\x1b@"+strings.Repeat("line\n", 500)+"\x1dV\x00"))
	if !errors.Is(err, &hal.Error{Code: "E_OFFLINE"}) || !strings.Contains(err.Error(), "REC_EMPTY") {
		t.Errorf("got %v, want E_OFFLINE with REC_EMPTY", err)
	}
}

func TestCountersAndIdentity(t *testing.T) {
	p := printer(t)
	d := open(t, p, hal.Own)
	p.Receipt(30)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for d.Info().Model == "" && ctx.Err() == nil {
		status(t, d, healthy)
	}
	if i := d.Info(); i.Maker != "TILLWARD" || i.Model != "EMU-T80" || i.Serial != "EMU0000001" || i.Firmware != "1.04 ESC/POS" {
		t.Errorf("identity: %+v", i)
	}
	list, err := d.(hal.Statistics).Statistics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{"ReceiptLineFeedCount": 30, "PaperCutCount": 1, "HoursPoweredCount": 1200, "M_HeadEnergizedCount": 30} {
		if value(list, name) != want {
			t.Errorf("%s is not %v in %v", name, want, list)
		}
	}
}

// A serial number that could be a card's is not told.
func TestIdentityIsGuarded(t *testing.T) {
	p := printer(t)
	p.SetSerial("4111111111111111")
	d := open(t, p, hal.Own)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for d.Info().Model == "" && ctx.Err() == nil {
		status(t, d, healthy)
	}
	if i := d.Info(); i.Serial != "" || i.Model != "EMU-T80" {
		t.Errorf("identity: %+v; want no serial number", i)
	}
	list, _ := d.(hal.Statistics).Statistics(t.Context())
	if value(list, "M_PanGuardDropCount") != 1 {
		t.Errorf("the drop is not counted: %v", list)
	}
}

// value returns a statistic, or -1.
func value(list []hal.Stat, name string) float64 {
	for _, s := range list {
		if s.Name == name {
			return s.Value
		}
	}
	return -1
}

func TestDrawer(t *testing.T) {
	p := printer(t)
	d := open(t, p, hal.Own, "drawer_open_level", "high")
	status(t, d, healthy)
	kick := d.(hal.DrawerKicker)
	if err := kick.OpenDrawer(t.Context()); err != nil || !p.Has(emulator.DrawerOpen) {
		t.Errorf("open: %v; drawer open: %v", err, p.Has(emulator.DrawerOpen))
	}
	p.Set(emulator.DrawerOpen, false)
	p.Set(emulator.DrawerStuck, true)
	status(t, d, func(s hal.Status) bool { return s.Sensors["DrawerOpened"] == hal.No })
	if err := kick.OpenDrawer(t.Context()); !errors.Is(err, &hal.Error{Code: "E_FAILURE"}) {
		t.Errorf("a stuck drawer: got %v, want E_FAILURE", err)
	}
	list, _ := d.(hal.Statistics).Statistics(t.Context())
	for _, name := range []string{"DrawerGoodOpenCount", "DrawerFailedOpenCount"} {
		if value(list, name) != 1 {
			t.Errorf("%s is not 1 in %v", name, list)
		}
	}
}

// Without a word on the cable nobody knows what the pin means.
func TestDrawerUnknownWithoutPolarity(t *testing.T) {
	p := printer(t)
	p.Set(emulator.DrawerOpen, true)
	d := open(t, p, hal.Own)
	if s := status(t, d, healthy); s.Sensors["DrawerOpened"] != hal.Unknown {
		t.Errorf("got %v, want Unknown", s.Sensors["DrawerOpened"])
	}
}

func TestHalfFrames(t *testing.T) {
	p := printer(t)
	d := open(t, p, hal.Own)
	status(t, d, healthy)
	p.Set(emulator.HalfFrames, true)
	// Two halves may arrive as one on a busy machine, again and again, so it is tried until they do not.
	var list []hal.Stat
	for began := time.Now(); time.Since(began) < 20*time.Second; {
		p.Set(emulator.CoverOpen, true)
		status(t, d, func(s hal.Status) bool { return s.Sensors["CoverOpen"] == hal.Yes })
		p.Set(emulator.CoverOpen, false)
		status(t, d, healthy)
		list, _ = d.(hal.Statistics).Statistics(t.Context())
		if value(list, "CommunicationErrorCount") > 0 {
			return
		}
	}
	t.Errorf("half frames were not counted: %v", list)
}

// The till holds the printer: that is "in use", not "broken".
func TestObserveInUse(t *testing.T) {
	p := printer(t)
	d := open(t, p, hal.Observe, "ask", "true")
	status(t, d, healthy)
	till, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = till.Write([]byte{0x10, 0x04, 0x01})
	_, _ = till.Read(make([]byte, 1)) // now it has the printer
	if s := status(t, d, func(s hal.Status) bool { return s.Health != hal.OK }); s.Reason != "M_IN_USE" || s.Health != hal.NoSensor {
		t.Errorf("got %+v, want Unknown because M_IN_USE", s)
	}
	_ = till.Close()
	status(t, d, healthy)
	if _, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader("x\n")); !errors.Is(err, &hal.Error{Code: "E_ILLEGAL"}) {
		t.Errorf("printing on a printer that is only observed: got %v, want E_ILLEGAL", err)
	}
}

func TestObserveWithoutAskingConnectsNever(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d, err := escpos.Driver{}.Open(t.Context(), hal.Config{ID: "x", Address: l.Addr().String(), Claim: hal.Observe})
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
