package star_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/simulator/emulator"
)

// app is an application at the end of a tunnel.
type app struct {
	net.Conn
	t     *testing.T
	ended chan error
	got   []byte
}

func tunnel(t *testing.T, d hal.Device) *app {
	t.Helper()
	near, far := net.Pipe()
	a := &app{Conn: near, t: t, ended: make(chan error, 1)}
	go func() { a.ended <- d.(hal.Tunneler).Tunnel(context.Background(), far) }()
	t.Cleanup(func() { _ = near.Close() })
	_ = near.SetDeadline(time.Now().Add(10 * time.Second))
	return a
}

func (a *app) say(s string) {
	a.t.Helper()
	if _, err := a.Write([]byte(s)); err != nil {
		select {
		case end := <-a.ended:
			a.t.Fatalf("say %q: %v; the tunnel has ended: %v", s, err, end)
		default:
			a.t.Fatalf("say %q: %v", s, err)
		}
	}
}

// frame reads the next frame, with what is behind it.
func (a *app) frame() (frame, data []byte) {
	a.t.Helper()
	b := make([]byte, 256)
	for {
		if len(a.got) >= 11 {
			if n := 11 + int(a.got[9])<<8 + int(a.got[10]); len(a.got) >= n {
				frame, data = a.got[:9:9], a.got[11:n:n]
				a.got = a.got[n:]
				if frame[0] != 0x23 || frame[1] != 0x86 {
					a.t.Fatalf("got %x, which is no frame of a network printer", frame)
				}
				return frame, data
			}
		}
		n, err := a.Read(b)
		if err != nil {
			a.t.Fatalf("waiting for a frame: %v; so far %x", err, a.got)
		}
		a.got = append(a.got, b[:n]...)
	}
}

// until reads frames until one is as wanted.
func (a *app) until(ok func(frame []byte) bool) []byte {
	a.t.Helper()
	for {
		if f, _ := a.frame(); ok(f) {
			return f
		}
	}
}

func etb(f []byte) int { return int(f[7]>>1&7 | f[7]>>2&0x18) }

func (a *app) hangUp() error {
	a.t.Helper()
	_ = a.Close()
	select {
	case err := <-a.ended:
		return err
	case <-time.After(10 * time.Second):
		a.t.Fatal("the tunnel does not end with the application")
		return nil
	}
}

func TestTunnel(t *testing.T) {
	for _, c := range cables {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := printer(t, c)
			d := open(t, p, hal.Own, "drawer_open_level", "high", "drawer", "till")
			status(t, d, healthy)
			drawer := d.(hal.Parent).Parts()[0]
			a := tunnel(t, d)
			first, _ := a.frame() // as a network card begins
			before := etb(first)
			a.say("\x1b\x06\x01")
			if f, _ := a.frame(); !bytes.Equal(f, first) {
				t.Errorf("asked: got %x, want %x", f, first)
			}
			a.say("\x1b\x1ea\x01\x05") // frames by themselves are on already: no frame for that, as from a network card
			if _, data := a.frame(); !bytes.Equal(data, []byte("01:B\x00\x01\x20;")) {
				t.Errorf("ENQ: got %q", data)
			}
			for range 5 { // the driver's own questions move the printer's counter
				status(t, d, healthy)
			}
			a.say("Hello\n\x07\x1bd3\x17")
			f := a.until(func(f []byte) bool { return etb(f) == (before+1)&31 })
			if f[2]&0x02 == 0 {
				t.Errorf("frame of the ETB: got %x, want it marked", f)
			}
			if jobs := p.Jobs(); !slices.Equal(jobs, []string{"Hello\n"}) {
				t.Errorf("printed %q", jobs)
			}
			if s := status(t, drawer, func(s hal.Status) bool { return s.Sensors["DrawerOpened"] == hal.Yes }); s.Sensors["M_UnexpectedOpen"] == hal.Yes {
				t.Errorf("an opening that the application asked for: %+v", s)
			}
			// Another job waits until this one is over, and is no news for the application.
			if job, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader("Ours\n\x1bd3")); err != nil || !job.Confirmed {
				t.Errorf("print beside the tunnel: %+v, %v", job, err)
			}
			a.say("\x1b\x06\x01")
			if f := a.until(func([]byte) bool { return true }); etb(f) != (before+1)&31 {
				t.Errorf("after somebody else's job the counter is %d, want %d", etb(f), (before+1)&31)
			}
			p.Set(emulator.CoverOpen, true)
			a.until(func(f []byte) bool { return f[2]&0x20 != 0 })
			p.Set(emulator.CoverOpen, false)
			a.until(func(f []byte) bool { return f[2]&0x20 == 0 })
			a.say("\x1b\x1ea\x00World\n\x1bd3\x17")
			a.say("\x1b\x06\x01")
			for etb(a.until(func([]byte) bool { return true })) != (before+2)&31 { // now it has to ask
				a.say("\x1b\x06\x01")
			}
			if l, n := value(t, d, "ReceiptLineFeedCount"), value(t, d, "PaperCutCount"); l != 3 || n != 3 {
				t.Errorf("counted %v lines and %v cuts, want 3 and 3", l, n)
			}
			if err := a.hangUp(); err != nil {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

// An application that vanishes in the middle of an image leaves the printer
// fit for the next.
func TestTunnelBreaksOff(t *testing.T) {
	p := printer(t, cables[1])
	d := open(t, p, hal.Own)
	status(t, d, healthy)
	a := tunnel(t, d)
	a.frame()
	a.say("\x1b\x1dS\x01\x10\x00\x10\x00\x00abc")
	if err := a.hangUp(); err != nil {
		t.Errorf("ended with %v", err)
	}
	if job, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader("next\n\x1bd3")); err != nil || !job.Confirmed {
		t.Errorf("the next job: %+v, %v", job, err)
	}
	if jobs := p.Jobs(); !slices.Equal(jobs, []string{"next\n"}) {
		t.Errorf("printed %q", jobs)
	}
}

// A printer that stands takes no more, and goes on where it was.
func TestTunnelWaitsForPaper(t *testing.T) {
	p := printer(t, cables[0])
	d := open(t, p, hal.Own)
	status(t, d, healthy)
	p.LoadRoll(405)
	a := tunnel(t, d)
	go func() { _, _ = a.Write([]byte(strings.Repeat("line\n", 500) + "\x1bd3")) }()
	a.until(func(f []byte) bool { return f[5]&0x08 != 0 })
	p.LoadRoll(0)
	a.until(func(f []byte) bool { return f[5]&0x08 == 0 })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for len(p.Jobs()) == 0 && ctx.Err() == nil {
		status(t, d, func(hal.Status) bool { return true })
	}
	if jobs := p.Jobs(); len(jobs) != 1 || jobs[0] != strings.Repeat("line\n", 500) {
		t.Errorf("%d jobs came out; want one, whole", len(jobs))
	}
}

func TestTunnelEndsWithThePrinter(t *testing.T) {
	p := printer(t, cables[0])
	d := open(t, p, hal.Own)
	status(t, d, healthy)
	a := tunnel(t, d)
	a.frame()
	p.Set(emulator.Unplugged, true)
	select {
	case err := <-a.ended:
		if !errors.Is(err, &hal.Error{Code: "E_OFFLINE"}) {
			t.Errorf("got %v, want E_OFFLINE", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the tunnel does not end with the printer")
	}
}

func TestTunnelOfAnObservedPrinter(t *testing.T) {
	p := printer(t, cables[0])
	d := open(t, p, hal.Observe)
	near, far := net.Pipe()
	defer near.Close()
	if err := d.(hal.Tunneler).Tunnel(t.Context(), far); !errors.Is(err, &hal.Error{Code: "E_ILLEGAL"}) {
		t.Errorf("got %v, want E_ILLEGAL", err)
	}
}
