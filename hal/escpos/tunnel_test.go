package escpos_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/simulator/emulator"
)

// app is an application at the other end of a tunnel.
type app struct {
	net.Conn
	t     *testing.T
	ended chan error
}

func tunnel(t *testing.T, d hal.Device) *app {
	t.Helper()
	near, far := net.Pipe()
	a := &app{Conn: near, t: t, ended: make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer far.Close()
		a.ended <- d.(hal.Tunneler).Tunnel(ctx, far)
	}()
	t.Cleanup(func() {
		cancel()
		_ = near.Close()
		<-done
	})
	return a
}

// say writes, and fails the test when nobody takes it.
func (a *app) say(s string) {
	a.t.Helper()
	_ = a.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if _, err := a.Write([]byte(s)); err != nil {
		a.t.Fatalf("saying %.20q: %v", s, err)
	}
}

// hear waits for so many bytes.
func (a *app) hear(n int) string {
	a.t.Helper()
	_ = a.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, n)
	m, err := io.ReadFull(a, b)
	if err != nil {
		a.t.Fatalf("heard %x and no more: %v", b[:m], err)
	}
	return string(b)
}

// hush expects silence.
func (a *app) hush() {
	a.t.Helper()
	_ = a.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	b := make([]byte, 16)
	if n, err := a.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
		a.t.Errorf("heard %x, %v; want nothing", b[:n], err)
	}
}

func (a *app) end() error {
	a.t.Helper()
	late := time.NewTimer(10 * time.Second)
	defer late.Stop()
	select {
	case err := <-a.ended:
		return err
	case <-late.C:
		a.t.Fatal("the tunnel does not end")
	}
	return nil
}

// An application that is told of the status by the tunnel prints and asks as
// over a cable of its own, whatever cable there is.
func TestTunnel(t *testing.T) {
	for name, lay := range cables {
		t.Run(name, func(t *testing.T) {
			c := lay(t)
			d := c.open(t, hal.Own)
			status(t, d, healthy)
			a := tunnel(t, d)
			a.say("\x1b@\x10\x04\x01")
			if got := a.hear(1); got != "\x12" {
				t.Errorf("DLE EOT 1: got %x, want 12", got)
			}
			a.say("Two teas\n" + picture(300) + "\x10\x04\x04\x1dr\x01\x1dI\x43Thank you\n\x1dV\x00\x1dg2\x00\xb2\x00")
			answers := a.hear(1 + 1 + len("_EMU-T80\x00_1\x00"))
			if want := "\x12\x00_EMU-T80\x00_1\x00"; answers != want {
				t.Errorf("got %q, want %q", answers, want)
			}
			if jobs := c.Jobs(); len(jobs) != 1 || jobs[0] != "Two teas\nThank you\n" {
				t.Errorf("got %q", jobs)
			}
			c.Set(emulator.CoverOpen, true)
			status(t, d, func(s hal.Status) bool { return s.Sensors["CoverOpen"] == hal.Yes })
			a.say("\x10\x04\x01\x10\x04\x02\x10\x04\x03\x10\x04\x04")
			if got := a.hear(4); got != "\x1a\x16\x12\x12" {
				t.Errorf("with the cover open: got %x", got)
			}
			_ = a.Close()
			if err := a.end(); err != nil {
				t.Errorf("an application that hangs up: %v", err)
			}
			list, err := d.(hal.Statistics).Statistics(t.Context())
			if n := value(list, "CommunicationErrorCount"); err != nil || n != 0 {
				t.Errorf("%v answers went astray, %v", n, err)
			}
		})
	}
}

// What an application subscribes to is its own: it is told what it asked for,
// and whatever it switches off, the driver is told on.
func TestTunnelStatusBack(t *testing.T) {
	c := cables["tcp"](t)
	d := c.open(t, hal.Own, "drawer_open_level", "high")
	status(t, d, healthy)
	a := tunnel(t, d)
	until(t, "a frame", func() bool { // the first that the driver was told
		a.say("\x1da\x08")
		_ = a.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		b := make([]byte, 4)
		_, err := io.ReadFull(a, b)
		return err == nil && string(b) == "\x10\x00\x00\x00"
	})
	c.Set(emulator.DrawerOpen, true) // it did not ask for that
	status(t, d, func(s hal.Status) bool { return s.Sensors["DrawerOpened"] == hal.Yes })
	a.hush()
	c.Set(emulator.NearEnd, true)
	if got := a.hear(4); got != "\x14\x00\x03\x00" {
		t.Errorf("got %x", got)
	}
	a.say("\x1b@\x1da\x00") // all off, by both ways there are
	a.say("\x10\x04\x01")
	a.hear(1)
	heard := make(chan string, 64)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for e, err := range d.(hal.Notifier).Events(ctx) {
			if err == nil {
				heard <- e.Code
			}
		}
	}()
	c.Set(emulator.CoverOpen, true)
	late := time.NewTimer(10 * time.Second)
	defer late.Stop()
	for code := ""; code != "COVER_OPEN"; {
		select {
		case code = <-heard:
		case <-late.C:
			t.Fatal("the driver was not told")
		}
	}
	a.hush()
}

// One application prints at a time; what the other asks is answered meanwhile.
func TestTunnelsTakeTurns(t *testing.T) {
	c := cables["tcp"](t)
	d := c.open(t, hal.Own)
	status(t, d, healthy)
	first, second := tunnel(t, d), tunnel(t, d)
	first.say("first ")
	first.say("\x10\x04\x01")
	first.hear(1) // it prints
	second.say("\x10\x04\x04\x1dI\x42")
	if got := second.hear(11); got != "\x12_TILLWARD\x00" {
		t.Errorf("got %q", got)
	}
	second.say("second\n\x1dV\x00")
	first.say("job\n\x1dV\x00")
	until(t, "both jobs", func() bool { return len(c.Jobs()) == 2 })
	if jobs := c.Jobs(); jobs[0] != "first job\n" || jobs[1] != "second\n" {
		t.Errorf("got %q", jobs)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if made, err := d.(hal.Passthrough).Print(ctx, strings.NewReader("third\n\x1dV\x00")); err != nil || !made.Confirmed {
		t.Errorf("got %+v, %v", made, err)
	}
}

// An application that stops within a picture keeps nobody from looking, and
// when it hangs up the next job is none of its data.
func TestTunnelStalled(t *testing.T) {
	c := cables["tcp"](t)
	d := c.open(t, hal.Own)
	status(t, d, healthy)
	a := tunnel(t, d)
	a.say("first\n\x10\x04\x01")
	a.hear(1) // it prints
	a.say(picture(5000)[:3000])
	other := tunnel(t, d)
	other.say("\x10\x04\x01\x10\x04\x02") // answered from what is known
	if got := other.hear(2); got != "\x12\x12" {
		t.Errorf("got %x", got)
	}
	status(t, d, healthy)
	c.Set(emulator.CoverOpen, true)
	status(t, d, func(s hal.Status) bool { return s.Sensors["CoverOpen"] == hal.Yes })
	c.Set(emulator.CoverOpen, false)
	status(t, d, healthy)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := d.(hal.Passthrough).Print(ctx, strings.NewReader("second\n\x1dV\x00")); !errors.Is(err, &hal.Error{Code: "E_BUSY"}) {
		t.Errorf("printing into a picture: got %v, want E_BUSY", err)
	}
	_ = a.Close()
	if err := a.end(); err != nil {
		t.Error(err)
	}
	if made, err := print(t, d, "second\n\x1dV\x00"); err != nil || !made.Confirmed {
		t.Errorf("got %+v, %v", made, err)
	}
	if jobs := c.Jobs(); len(jobs) != 1 || jobs[0] != "first\nsecond\n" {
		t.Errorf("got %q", jobs)
	}
}

// What waits for paper comes out, as of a printer that an application holds
// itself; and a look says what is missing.
func TestTunnelWaitsForPaper(t *testing.T) {
	c := cables["tcp"](t)
	d := c.open(t, hal.Own)
	status(t, d, healthy)
	c.LoadRoll(5)
	a := tunnel(t, d)
	job := strings.Repeat("a line with much to say for itself\n", 1<<13)
	go func() {
		_, _ = a.Write([]byte(job + "\x1dV\x00"))
		_ = a.Close()
	}()
	s := status(t, d, func(s hal.Status) bool { return s.Power == hal.PowerOffline })
	if s.Reason != "REC_EMPTY" {
		t.Errorf("got %+v", s)
	}
	c.LoadRoll(1 << 20)
	until(t, "the job", func() bool { return len(c.Jobs()) == 1 })
	if jobs := c.Jobs(); jobs[0] != job {
		t.Errorf("got %d bytes, want %d", len(jobs[0]), len(job))
	}
	if err := a.end(); err != nil {
		t.Error(err)
	}
	status(t, d, healthy)
}

func TestTunnelEnds(t *testing.T) {
	t.Run("the application does not read", func(t *testing.T) {
		c := cables["tcp"](t)
		d := c.open(t, hal.Own)
		status(t, d, healthy)
		a := tunnel(t, d)
		a.say("\x10\x04\x01")
		if err := a.end(); !errors.Is(err, &hal.Error{Code: "E_FAILURE"}) {
			t.Errorf("got %v, want E_FAILURE", err)
		}
		status(t, d, healthy)
	})
	t.Run("the printer is lost", func(t *testing.T) {
		c := cables["tcp"](t)
		d := c.open(t, hal.Own)
		status(t, d, healthy)
		a := tunnel(t, d)
		a.say("tea\n")
		c.Set(emulator.Unplugged, true)
		if err := a.end(); !errors.Is(err, &hal.Error{Code: "E_OFFLINE"}) {
			t.Errorf("got %v, want E_OFFLINE", err)
		}
		status(t, d, func(s hal.Status) bool { return s.Power == hal.PowerOffOffline })
		if err := tunnel(t, d).end(); !errors.Is(err, &hal.Error{Code: "E_OFFLINE"}) {
			t.Errorf("a tunnel to nowhere: got %v, want E_OFFLINE", err)
		}
	})
	t.Run("the driver is closed", func(t *testing.T) {
		c := cables["serial"](t)
		d := c.open(t, hal.Own)
		status(t, d, healthy)
		a := tunnel(t, d)
		a.say(picture(100)[:50])
		_ = d.Close()
		if err := a.end(); err == nil {
			t.Error("got no error")
		}
	})
	t.Run("its time is over", func(t *testing.T) {
		c := cables["tcp"](t)
		d := c.open(t, hal.Own)
		status(t, d, healthy)
		near, far := net.Pipe()
		defer near.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if err := d.(hal.Tunneler).Tunnel(ctx, far); !errors.Is(err, &hal.Error{Code: "E_TIMEOUT"}) {
			t.Errorf("got %v, want E_TIMEOUT", err)
		}
	})
	t.Run("the printer is not ours", func(t *testing.T) {
		d := cables["tcp"](t).open(t, hal.Observe)
		if err := d.(hal.Tunneler).Tunnel(t.Context(), &bytes.Buffer{}); !errors.Is(err, &hal.Error{Code: "E_ILLEGAL"}) {
			t.Errorf("got %v, want E_ILLEGAL", err)
		}
	})
}

// Status software that was written for a printer alone takes its answers from
// the tunnel whatever else goes on.
func TestTunnelWhileOthersAsk(t *testing.T) {
	c := cables["tcp"](t)
	d := c.open(t, hal.Own)
	status(t, d, healthy)
	a := tunnel(t, d)
	ctx, cancel := context.WithCancel(t.Context())
	others := make(chan struct{})
	go func() {
		defer close(others)
		for ctx.Err() == nil {
			_, _ = d.(hal.Statistics).Statistics(ctx)
			_, _ = d.(hal.StatusReader).Status(ctx)
		}
	}()
	for range 50 {
		a.say("\x1dI\x44")
		if got := a.hear(12); got != "_EMU0000001\x00" {
			t.Fatalf("GS I 68: got %q", got)
		}
		a.say("\x1dr\x02\x10\x04\x04")
		if got := a.hear(2); got != "\x12\x00" && got != "\x00\x12" {
			t.Fatalf("GS r 2 and DLE EOT 4: got %x", got)
		}
	}
	cancel()
	<-others
	list, _ := d.(hal.Statistics).Statistics(t.Context())
	if n := value(list, "CommunicationErrorCount"); n != 0 || value(list, "HoursPoweredCount") != 1200 {
		t.Errorf("answers went astray: %v", list)
	}
}

// Nothing is left behind by applications that come and go.
func TestTunnelsLeaveNothing(t *testing.T) {
	c := cables["tcp"](t)
	d := c.open(t, hal.Own)
	status(t, d, healthy)
	come := func() {
		near, far := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- d.(hal.Tunneler).Tunnel(t.Context(), far) }()
		_, _ = near.Write([]byte("\x1da\x0ftea\n\x10\x04\x01"))
		_ = near.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, _ = near.Read(make([]byte, 1))
		_ = near.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
		_ = far.Close()
	}
	come()
	before := runtime.NumGoroutine()
	for range 50 {
		come()
	}
	until(t, "everything to end", func() bool { return runtime.NumGoroutine() <= before+2 })
}

// An application may ask what the printer does not answer. The driver's own
// questions are still answered, and nobody takes the printer for lost.
func TestTunnelAsksWhatIsNotAnswered(t *testing.T) {
	c := cables["tcp"](t)
	d := c.open(t, hal.Own, "timeout", "300ms")
	status(t, d, healthy)
	a := tunnel(t, d)
	a.say("\x10\x04\x05\x10\x04\x07\x01\x10\x04\x09")
	a.hush()
	for range 3 {
		if s, err := d.(hal.StatusReader).Status(t.Context()); err != nil || s.Health != hal.OK {
			t.Fatalf("got %+v, %v", s, err)
		}
	}
	a.say("\x10\x04\x01")
	if got := a.hear(1); got != "\x12" {
		t.Errorf("got %x, want 12", got)
	}
	if n := stat(t, d, "CommunicationErrorCount"); n != 0 {
		t.Errorf("%v errors, want none", n)
	}
}

// A job that comes before the driver has armed the connection is watched all the
// same: nobody can ask in the middle of a picture.
func TestTunnelIsWatchedFromTheStart(t *testing.T) {
	c := cables["tcp"](t)
	c.Set(emulator.CoverOpen, true) // off-line it obeys nothing
	d := c.open(t, hal.Own)
	status(t, d, func(s hal.Status) bool { return s.Sensors["CoverOpen"] == hal.Yes })
	c.Set(emulator.CoverOpen, false)
	status(t, d, healthy)
	a := tunnel(t, d)
	a.say("first\n")
	until(t, "it to print", func() bool { return c.Counter(148) > 0 })
	a.say(picture(5000)[:3000])
	c.Set(emulator.PaperEnd, true)
	if s := status(t, d, func(s hal.Status) bool { return s.Sensors["RecEmpty"] == hal.Yes }); s.Health != hal.Fault {
		t.Errorf("got %+v", s)
	}
}
