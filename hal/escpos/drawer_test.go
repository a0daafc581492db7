package escpos_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/simulator/emulator"
)

// counter opens a printer with a drawer of its own.
func counter(t *testing.T, c cable, claim hal.Claim, options ...string) (printer, drawer hal.Device) {
	t.Helper()
	printer = c.open(t, claim, append([]string{"drawer", "till", "drawer_open_level", "high"}, options...)...)
	parts := printer.(hal.Parent).Parts()
	if len(parts) != 1 {
		t.Fatalf("got %d parts, want the drawer", len(parts))
	}
	return printer, parts[0]
}

func closed(s hal.Status) bool {
	return s.Power == hal.PowerOnline && s.Sensors["DrawerOpened"] == hal.No
}

func opened(s hal.Status) bool { return s.Sensors["DrawerOpened"] == hal.Yes }

func stat(t *testing.T, d hal.Device, name string) float64 {
	t.Helper()
	list, err := d.(hal.Statistics).Statistics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return value(list, name)
}

func TestDrawerOpens(t *testing.T) {
	for name, open := range map[string]func(t *testing.T, printer, drawer hal.Device){
		"by its driver": func(t *testing.T, _, drawer hal.Device) {
			if err := drawer.(hal.DrawerKicker).OpenDrawer(t.Context()); err != nil {
				t.Error(err)
			}
		},
		"by a check": func(t *testing.T, _, drawer hal.Device) {
			if r, err := drawer.(hal.HealthChecker).CheckHealth(t.Context(), hal.External); err != nil || !r.OK || len(r.Checks) != 3 {
				t.Errorf("got %+v, %v", r, err)
			}
		},
		"by a job": func(t *testing.T, printer, _ hal.Device) {
			if made, err := print(t, printer, "tea\n\x1bp\x00\x19\xfa\x1dV\x00"); err != nil || made.Kicks != 1 {
				t.Errorf("got %+v, %v", made, err)
			}
		},
		"by an application": func(t *testing.T, printer, _ hal.Device) {
			tunnel(t, printer).say("tea\n\x1dV\x00\x1bp\x00\x19\xfa")
		},
		"at once, by an application": func(t *testing.T, printer, _ hal.Device) {
			tunnel(t, printer).say("tea\n\x10\x14\x01\x00\x01\n")
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := cables["tcp"](t)
			printer, drawer := counter(t, c, hal.Own)
			status(t, drawer, closed)
			open(t, printer, drawer)
			if s := status(t, drawer, opened); s.Sensors["M_UnexpectedOpen"] != hal.No || s.Health != hal.OK {
				t.Errorf("got %+v; want that it was asked for", s)
			}
			if n := stat(t, drawer, "DrawerGoodOpenCount"); n != 1 {
				t.Errorf("%v good openings, want 1", n)
			}
			c.Set(emulator.DrawerOpen, false)
			status(t, drawer, closed)
			c.Set(emulator.DrawerOpen, true) // by its key
			if s := status(t, drawer, opened); s.Sensors["M_UnexpectedOpen"] != hal.Yes || s.Reason != "M_DRAWER_UNEXPECTED_OPEN" {
				t.Errorf("got %+v; want that nobody asked", s)
			}
			if _, ok := status(t, printer, healthy).Sensors["DrawerOpened"]; ok {
				t.Error("the printer tells of the drawer too")
			}
		})
	}
}

// A job takes its time, and the drawer opens when the printer comes to it.
func TestDrawerOpensBehindALongJob(t *testing.T) {
	t.Parallel() // the printer takes its time
	c := cables["tcp"](t)
	printer, drawer := counter(t, c, hal.Own)
	status(t, drawer, closed)
	c.SetPace(40 * time.Millisecond)
	if made, err := print(t, printer, strings.Repeat("tea\n", 100)+"\x1bp\x00\x19\xfa"); err != nil || !made.Confirmed {
		t.Errorf("got %+v, %v", made, err)
	}
	if s := status(t, drawer, opened); s.Sensors["M_UnexpectedOpen"] != hal.No || stat(t, drawer, "DrawerGoodOpenCount") != 1 {
		t.Errorf("got %+v", s)
	}
}

func TestDrawerStuck(t *testing.T) {
	for name, open := range map[string]func(t *testing.T, printer, drawer hal.Device){
		"kicked by its driver": func(t *testing.T, _, drawer hal.Device) {
			if err := drawer.(hal.DrawerKicker).OpenDrawer(t.Context()); !errors.Is(err, &hal.Error{Code: "E_FAILURE"}) {
				t.Errorf("got %v, want E_FAILURE", err)
			}
		},
		"kicked by a job": func(t *testing.T, printer, _ hal.Device) {
			if made, err := print(t, printer, "tea\n\x1bp\x00\x19\xfa\x1dV\x00"); err != nil || made.Kicks != 1 {
				t.Errorf("got %+v, %v", made, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := cables["tcp"](t)
			printer, drawer := counter(t, c, hal.Own)
			status(t, drawer, closed)
			c.Set(emulator.DrawerStuck, true)
			open(t, printer, drawer)
			if s := status(t, drawer, func(s hal.Status) bool { return s.Sensors["M_DrawerStuck"] == hal.Yes }); s.Health != hal.Fault || s.Reason != "M_DRAWER_STUCK" {
				t.Errorf("got %+v", s)
			}
			if n := stat(t, drawer, "DrawerFailedOpenCount"); n != 1 {
				t.Errorf("%v failed openings, want 1", n)
			}
			c.Set(emulator.DrawerStuck, false)
			if err := drawer.(hal.DrawerKicker).OpenDrawer(t.Context()); err != nil {
				t.Error(err)
			}
			status(t, drawer, func(s hal.Status) bool { return s.Sensors["M_DrawerStuck"] == hal.No && s.Health == hal.OK })
		})
	}
}

func TestDrawerLeftOpen(t *testing.T) {
	c := cables["tcp"](t)
	_, drawer := counter(t, c, hal.Own, "left_open", "50ms")
	status(t, drawer, closed)
	if err := drawer.(hal.DrawerKicker).OpenDrawer(t.Context()); err != nil {
		t.Error(err)
	}
	s := status(t, drawer, func(s hal.Status) bool { return s.Sensors["M_LeftOpen"] == hal.Yes })
	if s.Health != hal.Attention || s.Reason != "M_DRAWER_LEFT_OPEN" {
		t.Errorf("got %+v", s)
	}
	c.Set(emulator.DrawerOpen, false)
	status(t, drawer, func(s hal.Status) bool { return s.Health == hal.OK && s.Sensors["M_LeftOpen"] == hal.No })
}

// Change can be given by a till without paper, whose drawer is in order.
func TestDrawerWithoutPaper(t *testing.T) {
	c := cables["tcp"](t)
	printer, drawer := counter(t, c, hal.Own)
	status(t, drawer, closed)
	c.Set(emulator.PaperEnd, true)
	status(t, printer, func(s hal.Status) bool { return s.Sensors["RecEmpty"] == hal.Yes })
	if s := status(t, drawer, closed); s.Health != hal.OK {
		t.Errorf("got %+v", s)
	}
	if err := drawer.(hal.DrawerKicker).OpenDrawer(t.Context()); err != nil {
		t.Error(err)
	}
	if s := status(t, drawer, opened); s.Sensors["M_UnexpectedOpen"] != hal.No {
		t.Errorf("got %+v", s)
	}
}

// Who only looks cannot know who opened it.
func TestDrawerObserved(t *testing.T) {
	c := cables["tcp"](t)
	_, drawer := counter(t, c, hal.Observe, "ask", "true")
	status(t, drawer, closed)
	c.Set(emulator.DrawerOpen, true)
	if s := status(t, drawer, opened); s.Sensors["M_UnexpectedOpen"] != hal.Unknown {
		t.Errorf("got %+v; want M_UnexpectedOpen Unknown", s)
	}
	if err := drawer.(hal.DrawerKicker).OpenDrawer(t.Context()); !errors.Is(err, &hal.Error{Code: "E_ILLEGAL"}) {
		t.Errorf("got %v, want E_ILLEGAL", err)
	}
}

// Without a word on the cable the drawer has no sensor, and opens all the same.
func TestDrawerWithoutPolarity(t *testing.T) {
	c := cables["tcp"](t)
	printer := c.open(t, hal.Own, "drawer", "till")
	drawer := printer.(hal.Parent).Parts()[0]
	s := status(t, drawer, func(s hal.Status) bool { return s.Power == hal.PowerOnline })
	if s.Health != hal.NoSensor || s.Sensors["DrawerOpened"] != hal.Unknown {
		t.Errorf("got %+v", s)
	}
	i := drawer.Info()
	if i.ID != "till" || i.Category != hal.CashDrawer || strings.Contains(strings.Join(i.Caps, " "), "CapStatus") || i.Key != printer.Info().Key {
		t.Errorf("got %+v", i)
	}
	if err := drawer.(hal.DrawerKicker).OpenDrawer(t.Context()); err != nil {
		t.Error(err)
	}
	until(t, "the drawer", func() bool { return c.Has(emulator.DrawerOpen) })
	_, with := counter(t, cables["tcp"](t), hal.Own)
	if got := with.Info().Caps; strings.Join(got, " ") != "CapPowerReporting CapStatisticsReporting CapStatus" {
		t.Errorf("got %v", got)
	}
}

// A kick that waits for paper with its job is still one that was asked for.
func TestDrawerOpensWithNewPaper(t *testing.T) {
	c := cables["tcp"](t)
	printer, drawer := counter(t, c, hal.Own)
	status(t, drawer, closed)
	c.LoadRoll(2)
	tunnel(t, printer).say("tea\ntea\ntea\n\x1bp\x00\x19\xfa\x1dV\x00")
	status(t, printer, func(s hal.Status) bool { return s.Sensors["RecEmpty"] == hal.Yes })
	status(t, drawer, closed)
	c.LoadRoll(0)
	if s := status(t, drawer, opened); s.Sensors["M_UnexpectedOpen"] != hal.No {
		t.Errorf("got %+v", s)
	}
}

// A drawer that is kicked while a job is printed opens behind it, and is neither
// stuck nor opened by nobody.
func TestDrawerKickedDuringAJob(t *testing.T) {
	t.Parallel() // the printer takes its time
	for _, part := range []bool{true, false} {
		c := cables["tcp"](t)
		options := []string{"drawer_open_level", "high"}
		if part {
			options = append(options, "drawer", "till")
		}
		printer := c.open(t, hal.Own, options...)
		drawer := printer
		if part {
			drawer = printer.(hal.Parent).Parts()[0]
		}
		status(t, drawer, closed)
		until(t, "its model", func() bool { return printer.Info().Model != "" })
		c.SetPace(40 * time.Millisecond)
		tunnel(t, printer).say(strings.Repeat("tea\n", 60))
		until(t, "the job to begin", func() bool { return c.Counter(148) > 0 })
		if err := drawer.(hal.DrawerKicker).OpenDrawer(t.Context()); err != nil {
			t.Errorf("with a drawer of its own %v: got %v", part, err)
		}
		if s := status(t, drawer, opened); s.Health != hal.OK || s.Sensors["M_UnexpectedOpen"] == hal.Yes {
			t.Errorf("with a drawer of its own %v: got %+v", part, s)
		}
		if good, failed := stat(t, drawer, "DrawerGoodOpenCount"), stat(t, drawer, "DrawerFailedOpenCount"); good != 1 || failed > 0 {
			t.Errorf("with a drawer of its own %v: %v good openings and %v failed, want one good", part, good, failed)
		}
	}
}
