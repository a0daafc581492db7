package escpos_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/escpos"
	"github.com/tillward/tillward/simulator/emulator"
)

// picture is a raster image of so many rows of one byte, which look like cuts.
func picture(rows int) string {
	return "\x1dv0\x00\x01\x00" + string([]byte{byte(rows), byte(rows >> 8)}) + data(rows)
}

func print(t *testing.T, d hal.Device, job string) (hal.Job, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return d.(hal.Passthrough).Print(ctx, strings.NewReader(job))
}

// until waits for something that no status tells.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waiting for %s", what)
		}
	}
}

func TestPrint(t *testing.T) {
	for name, lay := range cables {
		t.Run(name, func(t *testing.T) {
			c := lay(t)
			d := c.open(t, hal.Own)
			status(t, d, healthy)
			questions := "\x10\x04\x01\x1da\x00\x1dI\x43\x1dr\x01"
			job := "\x1b@Two teas\n" + picture(90) + "\x1bp\x00\x19\xfaThank you\n\x1dV\x00"
			made, err := print(t, d, job[:20]+job[20:40]+job[40:]+questions)
			if want := (hal.Job{Bytes: int64(len(job)), Cuts: 1, Kicks: 1, Confirmed: true}); err != nil || made != want {
				t.Errorf("got %+v, %v; want %+v", made, err, want)
			}
			if jobs := c.Jobs(); len(jobs) != 1 || jobs[0] != "Two teas\nThank you\n" {
				t.Errorf("got %q", jobs)
			}
			if !c.Has(emulator.DrawerOpen) {
				t.Error("the drawer was not kicked")
			}
			status(t, d, healthy)
		})
	}
}

// A job that stops half way is never confirmed, and does not come out later.
func TestPrintHalfWay(t *testing.T) {
	for name, lay := range cables {
		t.Run(name, func(t *testing.T) {
			c := lay(t)
			d := c.open(t, hal.Own)
			status(t, d, healthy)
			c.LoadRoll(405)
			made, err := print(t, d, strings.Repeat("line\n", 500)+"\x1dV\x00")
			if !errors.Is(err, &hal.Error{Code: "E_OFFLINE"}) || !strings.Contains(err.Error(), "REC_EMPTY") || made.Confirmed {
				t.Errorf("got %+v, %v; want E_OFFLINE with REC_EMPTY", made, err)
			}
			c.LoadRoll(0)
			status(t, d, healthy)
			if made, err := print(t, d, "again\n\x1dV\x00"); err != nil || !made.Confirmed {
				t.Errorf("the next: got %+v, %v", made, err)
			}
			if jobs := c.Jobs(); len(jobs) != 1 || jobs[0] != "again\n" {
				t.Errorf("%d came out: %.40q; want the next alone", len(jobs), jobs)
			}
		})
	}
}

// Of a printer whose buffer is full it is found out all the same, and it
// forgets the job after a new connection.
func TestPrintIntoFullBuffer(t *testing.T) {
	for _, name := range []string{"tcp", "serial", "serial with XON and XOFF", "usb stand-in", "in process"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it waits until nothing more is taken
			c := cables[name](t)
			d := c.open(t, hal.Own)
			status(t, d, healthy)
			c.LoadRoll(5)
			made, err := print(t, d, strings.Repeat("a line with much to say for itself\n", 1<<18)+"\x1dV\x00")
			if !errors.Is(err, &hal.Error{Code: "E_OFFLINE"}) || !strings.Contains(err.Error(), "REC_EMPTY") || made.Confirmed {
				t.Errorf("got %+v, %v; want E_OFFLINE with REC_EMPTY", made, err)
			}
			if s := status(t, d, func(s hal.Status) bool { return s.Power == hal.PowerOffline }); s.Reason != "REC_EMPTY" {
				t.Errorf("got %+v, want no paper", s)
			}
			c.LoadRoll(0)
			status(t, d, healthy)
			if made, err := print(t, d, "again\n\x1dV\x00"); err != nil || !made.Confirmed {
				t.Errorf("the next: got %+v, %v", made, err)
			}
			if jobs := c.Jobs(); len(jobs) != 1 || jobs[0] != "again\n" {
				t.Errorf("%d came out: %.40q; want the next alone", len(jobs), jobs)
			}
		})
	}
}

// The data of a job that ends within a command is not taken from the next job.
func TestPrintUnfinished(t *testing.T) {
	c := cables["tcp"](t)
	d := c.open(t, hal.Own)
	if made, err := print(t, d, "first\n"+picture(200)[:100]); err != nil || !made.Confirmed {
		t.Errorf("got %+v, %v", made, err)
	}
	if made, err := print(t, d, "second\n\x1dV\x00"); err != nil || !made.Confirmed {
		t.Errorf("got %+v, %v", made, err)
	}
	if jobs := c.Jobs(); len(jobs) != 1 || jobs[0] != "first\nsecond\n" {
		t.Errorf("got %q", jobs)
	}
}

// A printer that does not say who it is confirms by its paper sensor.
func TestPrintConfirmedPlainly(t *testing.T) {
	c := cables["tcp"](t)
	c.Set(emulator.NoIdentity, true)
	c.Set(emulator.NoCounters, true)
	d := c.open(t, hal.Own)
	status(t, d, healthy)
	until(t, "a confirmed job", func() bool {
		made, err := print(t, d, "tea\n\n\x1dV\x00")
		return err == nil && made.Confirmed
	})
	c.LoadRoll(1)
	if made, err := print(t, d, "tea\ntea\ntea\n\x1dV\x00"); err == nil || made.Confirmed {
		t.Errorf("without paper: got %+v, %v", made, err)
	}
}

// What the printer does not count itself is counted of the jobs.
func TestBooks(t *testing.T) {
	c := cables["tcp"](t)
	c.Set(emulator.NoCounters, true)
	d := c.open(t, hal.Own)
	for range 2 {
		if _, err := print(t, d, "tea\n\x1bd\x04"+picture(60)+"\x1dV\x00"); err != nil {
			t.Fatal(err)
		}
	}
	list, err := d.(hal.Statistics).Statistics(t.Context())
	if err != nil || value(list, "ReceiptLineFeedCount") != 14 || value(list, "PaperCutCount") != 2 {
		t.Errorf("got %v, %v; want 14 line feeds and 2 cuts", list, err)
	}
	for _, s := range list {
		if s.Kept {
			t.Errorf("%s is not kept by the printer", s.Name)
		}
	}
}

// A printer that tells nothing is never healthy, prints, and confirms nothing.
func TestTellsNothing(t *testing.T) {
	for name, lay := range map[string]func(t *testing.T) (cable, []string){
		"by configuration": func(t *testing.T) (cable, []string) { return cables["tcp"](t), []string{"queries", "none"} },
		"by an empty list": func(t *testing.T) (cable, []string) { return cables["serial"](t), []string{"queries", ""} },
		"by its USB interface": func(t *testing.T) (cable, []string) {
			p := printer(t)
			path, err := p.OpenPTY()
			if err != nil {
				t.Fatal(err)
			}
			root := t.TempDir()
			plug := usb(t, root, path, "01")
			plug(true)
			return cable{Printer: p, driver: escpos.Driver{Root: root}, address: "/dev/usb/lp0", plug: plug}, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, options := lay(t)
			d := c.open(t, hal.Own, options...)
			s := status(t, d, func(s hal.Status) bool { return s.Power == hal.PowerOnline })
			if s.Health != hal.NoSensor || s.Reason != "M_NO_SENSOR" || s.Sensors["RecEmpty"] != hal.Unknown {
				t.Errorf("got %+v; want Unknown", s)
			}
			made, err := print(t, d, "tea\n\x1dV\x00")
			if err != nil || made.Confirmed || made.Cuts != 1 {
				t.Errorf("got %+v, %v; want it printed and not confirmed", made, err)
			}
			until(t, "the job", func() bool { return len(c.Jobs()) == 1 })
			if err := d.(hal.DrawerKicker).OpenDrawer(t.Context()); err != nil {
				t.Errorf("open drawer: %v", err)
			}
			until(t, "the drawer", func() bool { return c.Has(emulator.DrawerOpen) })
		})
	}
}

// Two jobs do not mix, and who waits is told so.
// Must fail: a job that makes the printer forget what it has got proves nothing,
// though the printer answers behind it.
func TestPrintThatClearsIsNotConfirmed(t *testing.T) {
	c := cables["tcp"](t)
	d := c.open(t, hal.Own)
	status(t, d, healthy)
	for job, want := range map[string]bool{
		"tea\n\x1dV\x00": true,
		strings.Repeat("tea\n", 50) + "\x10\x14\x08\x01\x03\x14\x01\x06\x02\x08": false,
		strings.Repeat("tea\n", 50) + "\x10\x05\x02":                             false,
	} {
		if made, err := print(t, d, job); err != nil || made.Confirmed != want {
			t.Errorf("%.20q: got %+v, %v; want confirmed %v", job, made, err, want)
		}
	}
}

func TestPrintWaitsItsTurn(t *testing.T) {
	c := cables["tcp"](t)
	d := c.open(t, hal.Own)
	status(t, d, healthy)
	slow, hand := io.Pipe()
	first := make(chan error, 1)
	go func() {
		_, err := d.(hal.Passthrough).Print(t.Context(), slow)
		first <- err
	}()
	if _, err := hand.Write([]byte("slow ")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := d.(hal.Passthrough).Print(ctx, strings.NewReader("quick\n\x1dV\x00")); !errors.Is(err, &hal.Error{Code: "E_BUSY"}) {
		t.Errorf("got %v, want E_BUSY", err)
	}
	second := make(chan error, 1)
	go func() {
		_, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader("quick\n\x1dV\x00"))
		second <- err
	}()
	status(t, d, healthy) // a job that dawdles keeps nobody from looking
	if _, err := hand.Write([]byte("job\n\x1dV\x00")); err != nil {
		t.Fatal(err)
	}
	_ = hand.Close()
	if err := errors.Join(<-first, <-second); err != nil {
		t.Error(err)
	}
	if jobs := c.Jobs(); len(jobs) != 2 || jobs[0] != "slow job\n" || jobs[1] != "quick\n" {
		t.Errorf("got %q", jobs)
	}
}

// What looks like a question within a picture is answered by the printer, and
// the answer is believed by nobody.
func TestPictureOfQuestions(t *testing.T) {
	c := cables["tcp"](t)
	d := c.open(t, hal.Own, "drawer_open_level", "high")
	status(t, d, healthy)
	rows := 300
	job := "\x1dv0\x00\x01\x00" + string([]byte{byte(rows & 255), byte(rows >> 8)}) + strings.Repeat("\x10\x04\x04", 100) + "\x1dV\x00"
	c.Set(emulator.NearEnd, true) // answers to DLE EOT 4 have bits that would be a drawer and a cover in the others
	status(t, d, func(s hal.Status) bool { return s.Sensors["RecNearEnd"] == hal.Yes })
	for range 3 {
		if made, err := print(t, d, job); err != nil || !made.Confirmed || made.Cuts != 1 {
			t.Errorf("got %+v, %v", made, err)
		}
		if s := status(t, d, func(hal.Status) bool { return true }); s.Sensors["CoverOpen"] != hal.No || s.Sensors["DrawerOpened"] != hal.No || s.Power != hal.PowerOnline {
			t.Errorf("got %+v", s)
		}
	}
}

// An external check has a printer go on whose jam somebody has removed; what it
// was printing comes out before the page.
func TestCheckRecovers(t *testing.T) {
	c := cables["tcp"](t)
	d := c.open(t, hal.Own)
	status(t, d, healthy)
	c.Set(emulator.CutterJam, true)
	status(t, d, func(s hal.Status) bool { return s.Sensors["M_CutterError"] == hal.Yes })
	a := tunnel(t, d)
	a.say("tea\n\x1dV\x00\x10\x04\x01")
	a.hear(1) // by now the printer has what was said before
	if r, err := d.(hal.HealthChecker).CheckHealth(t.Context(), hal.Internal); err != nil || r.OK || !c.Has(emulator.CutterJam) {
		t.Errorf("an internal check moves nothing: got %+v, %v", r, err)
	}
	r, err := d.(hal.HealthChecker).CheckHealth(t.Context(), hal.External)
	if err != nil || !r.OK {
		t.Errorf("got %+v, %v", r, err)
	}
	var steps []string
	for _, s := range r.Checks {
		steps = append(steps, fmt.Sprintf("%s %v %s", s.ID, s.OK, s.Code))
	}
	if want := "reachable true |status false M_CUTTER_ERROR|recover true |page true "; strings.Join(steps, "|") != want {
		t.Errorf("got %q, want %q", strings.Join(steps, "|"), want)
	}
	if jobs := c.Jobs(); len(jobs) != 2 || jobs[0] != "tea\n" || !strings.Contains(jobs[1], "test page") {
		t.Errorf("got %q", jobs)
	}
	c.Set(emulator.Unrecoverable, true)
	status(t, d, func(s hal.Status) bool { return s.Sensors["M_UnrecoverableError"] == hal.Yes })
	if r, err := d.(hal.HealthChecker).CheckHealth(t.Context(), hal.External); err == nil || r.OK || len(r.Checks) != 3 || r.Checks[2].Code != "E_OFFLINE" {
		t.Errorf("got %+v, %v", r, err)
	}
}

func TestCaps(t *testing.T) {
	c := cables["usb stand-in"](t)
	d := c.open(t, hal.Own, "roll_length_m", "80", "feed_pitch_um", "3750")
	status(t, d, healthy)
	if _, err := d.(hal.Statistics).Statistics(t.Context()); err != nil {
		t.Fatal(err)
	}
	i := d.Info()
	if want := "CapCoverSensor CapPowerReporting CapRecEmptySensor CapRecNearEndSensor CapRecPapercut CapStatisticsReporting"; strings.Join(i.Caps, " ") != want {
		t.Errorf("got %v, want %s", i.Caps, want)
	}
	if i.Key != "usb:04b8:0e15:EMU0000001" || i.Interface != "USB" || i.RollLines != 21333 || i.Serial != "EMU0000001" || i.Maker != "TILLWARD" {
		t.Errorf("got %+v", i)
	}
}
