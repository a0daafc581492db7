package display_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/display"
	"github.com/tillward/tillward/hal/haltest"
	"github.com/tillward/tillward/hal/port"
	"github.com/tillward/tillward/simulator/emulator"
)

// bed is a display with its cable: a pty, a socket, or a pipe within the
// process.
type bed struct {
	*emulator.Display
	kind    string
	address string
}

func newBed(t *testing.T, kind string) bed {
	t.Helper()
	d := emulator.NewDisplay()
	b := bed{Display: d, kind: kind, address: "tcp:display.invalid:9100"}
	t.Cleanup(func() {
		if u := d.Unknown(); len(u) > 0 {
			t.Errorf("the driver sent commands that the display does not know: %v", u)
		}
		_ = d.Close()
	})
	switch kind {
	case "pty":
		path, err := d.OpenPTY()
		if err != nil {
			t.Fatal(err)
		}
		b.address = "serial:" + path + "?baud=9600"
	case "tcp":
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan struct{})
		go func() {
			defer close(served)
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() { _ = d.Serve(conn) }() // ends with the connection
			}
		}()
		t.Cleanup(func() {
			_ = l.Close()
			<-served
		})
		b.address = l.Addr().String()
	}
	return b
}

func (b bed) open(t *testing.T, claim hal.Claim, pairs ...string) hal.Device {
	t.Helper()
	cfg := hal.Config{ID: "customer", Address: b.address, Claim: claim, Options: map[string]string{"timeout": "300ms", "test_for": "50ms"}}
	for i := 0; i < len(pairs); i += 2 {
		cfg.Options[pairs[i]] = pairs[i+1]
	}
	drv := display.Driver{}
	if b.kind == "pipe" {
		drv.Dial = func(context.Context, port.Address) (port.Conn, error) {
			near, far := net.Pipe()
			go func() { _ = b.Serve(far) }() // ends with near or with the display
			return near, nil
		}
	}
	d, err := drv.Open(t.Context(), cfg)
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
	for _, kind := range []string{"pty", "tcp", "pipe"} {
		t.Run(kind, func(t *testing.T) {
			haltest.Run(t, func(t *testing.T) haltest.Bench {
				b := newBed(t, kind)
				fault := func(f emulator.Fault) func(bool) { return func(on bool) { b.Set(f, on) } }
				bench := haltest.Bench{
					Apart:  true,
					Open:   func(t *testing.T) hal.Device { return b.open(t, hal.Own, "asks", "dle-eot") },
					Unplug: fault(emulator.Unplugged),
					Mute:   fault(emulator.Mute),
					Noise:  fault(emulator.Garbage),
					Blind:  func(t *testing.T) hal.Device { return b.open(t, hal.Own) },
					Unseen: []string{"CoverOpen", "RecEmpty"},
					Output: b.Output,
					Feed: func(t *testing.T, d hal.Device, number string) {
						b.Say(number)
						if _, err := d.(hal.HealthChecker).CheckHealth(t.Context(), hal.External); err != nil {
							t.Errorf("check: %v", err)
						}
					},
					Observe: func(t *testing.T) hal.Device { return b.open(t, hal.Observe) },
					Compete: func(ctx context.Context) error {
						at, err := port.Parse(b.address)
						if err != nil {
							return err
						}
						conn, err := at.Open(ctx)
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
					},
					NotApplicable: map[int]string{
						3:  "a display has no sensor but whether it answers, which law 4 takes away",
						13: "a display has no sensor but whether it answers, which law 4 takes away",
					},
				}
				if kind == "pipe" {
					bench.Observe, bench.Compete = nil, nil
					bench.NotApplicable[7] = "a pipe within the process has one end"
				}
				return bench
			})
		})
	}
}

// Most displays say nothing: that is unknown and not well, and not broken.
func TestDisplayThatSaysNothing(t *testing.T) {
	b := newBed(t, "pty")
	b.Set(emulator.Mute, true)
	for _, claim := range []hal.Claim{hal.Observe, hal.Own} {
		d := b.open(t, claim)
		s := status(t, d, func(s hal.Status) bool { return s.Reason == "M_NO_SENSOR" })
		if s.Health != hal.NoSensor || s.Power != hal.PowerUnknown || s.Advice == "" {
			t.Errorf("%s: got %+v, want Unknown", claim, s)
		}
		if i := d.Info(); slices.Contains(i.Caps, "CapPowerReporting") || i.Interface != "RS232" || i.Claim != claim {
			t.Errorf("%s: got %+v", claim, i)
		}
		_ = d.Close()
	}
}

// A port that is not there is gone, and its return is counted.
func TestPortComesAndGoes(t *testing.T) {
	b := newBed(t, "pty")
	root := t.TempDir()
	node := filepath.Join(root, "dev", "ttyVFD")
	if err := os.MkdirAll(filepath.Dir(node), 0o700); err != nil {
		t.Fatal(err)
	}
	target := strings.TrimSuffix(strings.TrimPrefix(b.address, "serial:"), "?baud=9600")
	for _, claim := range []hal.Claim{hal.Observe, hal.Own} {
		d, err := display.Driver{Root: root}.Open(t.Context(), hal.Config{ID: "customer", Address: "serial:/dev/ttyVFD", Claim: claim})
		if err != nil {
			t.Fatal(err)
		}
		status(t, d, func(s hal.Status) bool { return s.Health == hal.Offline })
		if err := os.Symlink(target, node); err != nil {
			t.Fatal(err)
		}
		d.(hal.Nudger).Nudge()
		status(t, d, func(s hal.Status) bool { return s.Health == hal.NoSensor })
		if err := os.Remove(node); err != nil {
			t.Fatal(err)
		}
		d.(hal.Nudger).Nudge()
		status(t, d, func(s hal.Status) bool { return s.Health == hal.Offline })
		if n := value(t, d, "OnlineTransitionCount"); n != 1 {
			t.Errorf("%s: it came %v times, want once", claim, n)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A display that the till holds is in use and not gone, and one that is not for
// us is neither; both are had as soon as they can be.
func TestDisplayOfOthers(t *testing.T) {
	for want, err := range map[string]error{"M_IN_USE": port.ErrInUse, "M_NO_ACCESS": port.ErrNoAccess} {
		var free atomic.Bool
		drv := display.Driver{Dial: func(context.Context, port.Address) (port.Conn, error) {
			if !free.Load() {
				return nil, fmt.Errorf("open it: %w", err)
			}
			near, far := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, far) }()
			return near, nil
		}}
		d, err := drv.Open(t.Context(), hal.Config{ID: "customer", Address: "127.0.0.1:9", Claim: hal.Own})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Close() })
		if s := status(t, d, func(hal.Status) bool { return true }); s.Health != hal.NoSensor || s.Power != hal.PowerUnknown || s.Reason != want || s.Advice == "" {
			t.Errorf("got %+v, want %s", s, want)
		}
		_, err = d.(hal.HealthChecker).CheckHealth(t.Context(), hal.External)
		if busy := errors.Is(err, &hal.Error{Code: "E_BUSY"}); err == nil || busy != (want == "M_IN_USE") {
			t.Errorf("%s: the check says %v", want, err)
		}
		free.Store(true)
		d.(hal.Nudger).Nudge()
		status(t, d, func(s hal.Status) bool { return s.Reason == "M_NO_SENSOR" })
	}
}

func TestExternalCheckShowsAndClears(t *testing.T) {
	b := newBed(t, "pty")
	d := b.open(t, hal.Own, "brightness", "2")
	status(t, d, func(s hal.Status) bool { return s.Power == hal.PowerUnknown })
	r, err := d.(hal.HealthChecker).CheckHealth(t.Context(), hal.External)
	if err != nil || !r.OK || len(r.Checks) != 2 || !r.Checks[1].OK {
		t.Errorf("got %+v, %v", r, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for len(b.Seen()) == 0 && ctx.Err() == nil {
		status(t, d, func(hal.Status) bool { return true })
	}
	if got := b.Seen(); !slices.Equal(got, []string{"Tillward test\ncustomer"}) || b.Brightness() != 2 {
		t.Errorf("it has shown %q at brightness %d", got, b.Brightness())
	}
	if now := strings.Join(b.Shown(), ""); now != "" {
		t.Errorf("it still shows %q", now)
	}
	if _, err := d.(hal.HealthChecker).CheckHealth(t.Context(), hal.Interactive); !errors.Is(err, &hal.Error{Code: "E_ILLEGAL"}) {
		t.Errorf("interactive: got %v, want E_ILLEGAL", err)
	}
}

// Who gives up waiting leaves no test text behind.
func TestCancelledCheckClears(t *testing.T) {
	b := newBed(t, "pty")
	d := b.open(t, hal.Own, "test_for", "1m")
	status(t, d, func(s hal.Status) bool { return s.Power == hal.PowerUnknown })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := d.(hal.HealthChecker).CheckHealth(ctx, hal.External)
		done <- err
	}()
	wait, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	for strings.Join(b.Shown(), "") == "" && wait.Err() == nil {
		status(t, d, func(hal.Status) bool { return true })
	}
	cancel()
	if err := <-done; !errors.Is(err, &hal.Error{Code: "E_TIMEOUT"}) {
		t.Errorf("got %v, want E_TIMEOUT", err)
	}
	for strings.Join(b.Shown(), "") != "" && wait.Err() == nil {
		status(t, d, func(hal.Status) bool { return true })
	}
	if now := strings.Join(b.Shown(), ""); now != "" {
		t.Errorf("it still shows %q", now)
	}
}

// Must fail: writing on a display that the till owns.
func TestObservedDisplayIsLeftAlone(t *testing.T) {
	b := newBed(t, "pty")
	d := b.open(t, hal.Observe)
	if r, err := d.(hal.HealthChecker).CheckHealth(t.Context(), hal.External); !errors.Is(err, &hal.Error{Code: "E_ILLEGAL"}) || r.OK {
		t.Errorf("got %+v, %v; want E_ILLEGAL", r, err)
	}
	if n := b.Output(); n != 0 {
		t.Errorf("%d characters were shown", n)
	}
}

func TestText(t *testing.T) {
	got := display.Text(8, 3, "longer than it is", "é\x1b")
	want := []byte("\x1f\x01\x0c\x1fX\x03\x1f$\x01\x01longer t\x1f$\x01\x02???")
	if !bytes.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzHeard(f *testing.F) {
	f.Add([]byte{0x12})
	f.Add([]byte{0xff, 0x13, 0x11, 0x80, 0x1a})
	f.Add([]byte("4111111111111111"))
	f.Fuzz(func(t *testing.T, b []byte) {
		answers, junk := display.Heard(b)
		if answers < 0 || junk < 0 || answers+junk > len(b) {
			t.Errorf("%x: %d answers and %d runs of junk in %d bytes", b, answers, junk, len(b))
		}
	})
}
