package board_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"periph.io/x/conn/v3/gpio"
	"periph.io/x/conn/v3/gpio/gpiotest"
	"periph.io/x/conn/v3/pin"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/board"
	"github.com/tillward/tillward/hal/haltest"
	"github.com/tillward/tillward/simulator/emulator"
)

func openSwitch(t *testing.T, lines board.Lines, o map[string]string) hal.Device {
	t.Helper()
	d, err := board.Switch{Lines: lines}.Open(t.Context(), hal.Config{ID: "lid", Address: "gpio:LID", Options: o})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// heard returns the codes that a device has told so far. Everything has to be
// told already, as it is after synctest.Wait.
func heard(t *testing.T, d hal.Device) (codes []string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for e, err := range d.(hal.Notifier).Events(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		codes = append(codes, e.Code)
	}
	return codes
}

func look(t *testing.T, d hal.Device) hal.Status {
	t.Helper()
	s, err := d.(hal.StatusReader).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func counted(t *testing.T, d hal.Device, name string) float64 {
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

// TestSwitchConformance runs every kind of switch through the suite, on the
// fake chip.
func TestSwitchConformance(t *testing.T) {
	for _, kind := range []struct {
		name, sensor, on, off string
		options               map[string]string
		low                   bool // level of what is closed is high
	}{
		{"tamper", "M_Tampered", "M_TAMPERED", "M_TAMPER_OK", map[string]string{"kind": "tamper"}, false},
		{"door", "M_DoorOpen", "M_DOOR_OPEN", "M_DOOR_CLOSED", map[string]string{"kind": "door", "active": "low"}, true},
		{"drawer", "DrawerOpened", "DRAWEROPEN", "DRAWERCLOSED", map[string]string{"kind": "drawer"}, false},
		{"drawer with kick line", "M_UnexpectedOpen", "M_DRAWER_UNEXPECTED_OPEN", "M_DRAWER_SECURE", map[string]string{"kind": "drawer", "kick_line": "KICK"}, false},
	} {
		t.Run(kind.name, func(t *testing.T) {
			haltest.Run(t, func(t *testing.T) haltest.Bench {
				g := emulator.NewGPIO("LID", "KICK")
				g.Set("LID", kind.low)
				var kicks int
				var mu sync.Mutex
				g.Wire("KICK", func(bool) {
					mu.Lock()
					defer mu.Unlock()
					kicks++
				})
				return haltest.Bench{
					Apart:  true,
					Open:   func(t *testing.T) hal.Device { return openSwitch(t, g, kind.options) },
					Faults: []haltest.Fault{{Name: "open", Set: func(on bool) { g.Set("LID", on != kind.low) }, Sensor: kind.sensor, On: kind.on, Off: kind.off}},
					Unplug: g.Unplug,
					Mute:   g.Hang,
					Blind: func(t *testing.T) hal.Device {
						g.Hold("LID", true)
						return openSwitch(t, g, kind.options)
					},
					Unseen: []string{kind.sensor},
					Output: func() int {
						mu.Lock()
						defer mu.Unlock()
						return kicks
					},
					NotApplicable: map[int]string{
						5:  "a line has two levels, and both mean something",
						7:  "a line is taken by one alone",
						10: "a line has two levels: it meets no digits",
					},
				}
			})
		})
	}
}

// onPin is a board.Lines of pins of periph, which neither time nor number
// their edges.
type onPin map[string]*gpiotest.Pin

func (p onPin) Take(line string, how board.How) (board.Line, error) {
	pin := p[line]
	if pin == nil {
		return nil, fs.ErrNotExist
	}
	return &pinLine{pin: pin, low: how.ActiveLow, closed: make(chan struct{})}, pin.In(gpio.PullNoChange, gpio.BothEdges)
}

type pinLine struct {
	pin    *gpiotest.Pin
	low    bool
	once   sync.Once
	closed chan struct{}
}

func (l *pinLine) Level() (bool, error) { return bool(l.pin.Read()) != l.low, nil }
func (l *pinLine) Set(bool) error       { return errors.ErrUnsupported }

func (l *pinLine) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pinLine) Next(until time.Time) (board.Edge, error) {
	for time.Now().Before(until) {
		select {
		case <-l.closed:
			return board.Edge{}, os.ErrClosed
		default:
		}
		if l.pin.WaitForEdge(10 * time.Millisecond) {
			return board.Edge{Active: bool(l.pin.Read()) != l.low}, nil
		}
	}
	return board.Edge{}, os.ErrDeadlineExceeded
}

// TestSwitchOnPin runs it on a pin of periph's own fake.
func TestSwitchOnPin(t *testing.T) {
	haltest.Run(t, func(t *testing.T) haltest.Bench {
		pin := &gpiotest.Pin{N: "LID", EdgesChan: make(chan gpio.Level, 16)}
		return haltest.Bench{
			Open: func(t *testing.T) hal.Device {
				return openSwitch(t, onPin{"LID": pin}, map[string]string{"kind": "tamper"})
			},
			Faults: []haltest.Fault{{
				Name: "open", Set: func(on bool) { pin.EdgesChan <- gpio.Level(on) }, Sensor: "M_Tampered", On: "M_TAMPERED", Off: "M_TAMPER_OK",
			}},
			Blind: func(t *testing.T) hal.Device {
				return openSwitch(t, forbidden{}, map[string]string{"kind": "tamper"})
			},
			Unseen: []string{"M_Tampered"},
			NotApplicable: map[int]string{
				2:  "a pin of periph answers at once",
				4:  "a pin of periph cannot tell that it is gone",
				5:  "a line has two levels, and both mean something",
				7:  "a line is taken by one alone",
				10: "a line has two levels: it meets no digits",
				11: "an input puts nothing out",
			},
		}
	})
}

// TestTamper opens the lid in every way that could go unnoticed.
func TestTamper(t *testing.T) {
	const opened, closed, lost = "M_TAMPERED", "M_TAMPER_OK", "M_EDGES_LOST"
	for _, test := range []struct {
		name  string
		do    func(g *emulator.GPIO)
		want  []string // nil: it depends
		count float64
	}{
		{"for a moment", func(g *emulator.GPIO) {
			g.Set("LID", true)
			g.Set("LID", false)
		}, []string{opened, closed}, 1},
		{"and the edge is lost", func(g *emulator.GPIO) {
			g.Lose("LID", 1)
			g.Set("LID", true)
		}, []string{opened}, 1},
		{"for a moment, and one edge is lost", func(g *emulator.GPIO) {
			g.Lose("LID", 1)
			g.Set("LID", true)
			g.Set("LID", false)
		}, []string{opened, closed, lost}, 1},
		{"three times, and only the last edge is seen", func(g *emulator.GPIO) {
			g.Lose("LID", 5)
			for range 3 {
				g.Set("LID", true)
				g.Set("LID", false)
			}
		}, []string{opened, closed, lost}, 3},
		{"thirty times before anybody could look", func(g *emulator.GPIO) {
			for range 30 {
				g.Set("LID", true)
				g.Set("LID", false)
			}
		}, nil, 30},
		{"for an hour", func(g *emulator.GPIO) {
			g.Set("LID", true)
			time.Sleep(time.Hour)
			g.Set("LID", false)
		}, []string{opened, closed}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := emulator.NewGPIO("LID")
				d := openSwitch(t, g, map[string]string{"kind": "tamper"})
				synctest.Wait()
				test.do(g)
				time.Sleep(2 * time.Second)
				synctest.Wait()
				got := heard(t, d)
				slices.Sort(got)
				slices.Sort(test.want)
				if test.want != nil && !slices.Equal(got, test.want) {
					t.Errorf("told %v, want %v", got, test.want)
				}
				if n := counted(t, d, "M_TamperedCount"); n != test.count {
					t.Errorf("counted %v openings, want %v", n, test.count)
				}
				_ = d.Close()
			})
		})
	}
}

// TestLineInUse holds that a line of another program is no switch that is
// broken, and is taken as soon as it is free.
func TestLineInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := emulator.NewGPIO("LID")
		g.Hold("LID", true)
		d := openSwitch(t, g, map[string]string{"kind": "door"})
		if s := look(t, d); s.Reason != "M_IN_USE" || s.Health != hal.NoSensor || s.Sensors["M_DoorOpen"] != hal.Unknown {
			t.Errorf("in use: %+v", s)
		}
		r, err := d.(hal.HealthChecker).CheckHealth(t.Context(), hal.Internal)
		if err != nil || r.OK || len(r.Checks) != 1 || r.Checks[0].Code != "M_IN_USE" {
			t.Errorf("checked: %+v, %v", r, err)
		}
		g.Hold("LID", false)
		d.(hal.Nudger).Nudge()
		synctest.Wait()
		if s := look(t, d); s.Health != hal.OK || s.Reason != "" {
			t.Errorf("free again: %+v", s)
		}
		if codes := heard(t, d); len(codes) != 0 {
			t.Errorf("told %v of a switch that never was away", codes)
		}
		_ = d.Close()
	})
}

// forbidden is a chip that the agent may not open.
type forbidden struct{}

func (forbidden) Take(string, board.How) (board.Line, error) { return nil, syscall.EACCES }

func TestLineForbidden(t *testing.T) {
	d := openSwitch(t, forbidden{}, map[string]string{"kind": "tamper"})
	if s := look(t, d); s.Health != hal.NoSensor || s.Power != hal.PowerUnknown || s.Reason != "M_NO_ACCESS" {
		t.Errorf("a lid that may not be looked at: %+v", s)
	}
}

func TestSwitchInteractiveCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := emulator.NewGPIO("LID")
		d := openSwitch(t, g, map[string]string{"kind": "door"})
		synctest.Wait()
		go func() {
			for _, open := range []bool{true, false} {
				time.Sleep(time.Minute)
				g.Set("LID", open)
			}
		}()
		if r, err := d.(hal.HealthChecker).CheckHealth(t.Context(), hal.Interactive); err != nil || !r.OK {
			t.Errorf("got %+v, %v", r, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := d.(hal.HealthChecker).CheckHealth(ctx, hal.Interactive); !errors.Is(err, &hal.Error{Code: "E_TIMEOUT"}) {
			t.Errorf("nobody came: got %v, want E_TIMEOUT", err)
		}
		if _, err := d.(hal.HealthChecker).CheckHealth(ctx, hal.External); !errors.Is(err, &hal.Error{Code: "E_ILLEGAL"}) {
			t.Errorf("external: got %v, want E_ILLEGAL", err)
		}
		_ = d.Close()
	})
}

// TestDrawerKick opens a drawer by its line.
func TestDrawerKick(t *testing.T) {
	for _, low := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			g := emulator.NewGPIO("LID", "KICK")
			g.Set("KICK", low)
			stuck := false
			var on time.Time
			var pulse time.Duration
			g.Wire("KICK", func(high bool) {
				if high == low {
					pulse = time.Since(on)
					return
				}
				if on = time.Now(); !stuck {
					g.Set("LID", true)
				}
			})
			o := map[string]string{"kind": "drawer", "kick_line": "KICK", "pulse": "150ms", "left_open": "1m", "kick_active": "high"}
			if low {
				o["kick_active"] = "low"
			}
			d := openSwitch(t, g, o)
			synctest.Wait()
			if err := d.(hal.DrawerKicker).OpenDrawer(t.Context()); err != nil {
				t.Errorf("kick: %v", err)
			}
			synctest.Wait()
			if s := look(t, d); s.Sensors["DrawerOpened"] != hal.Yes || s.Sensors["M_UnexpectedOpen"] != hal.No || s.Health != hal.OK {
				t.Errorf("kicked open: %+v", s)
			}
			if pulse != 150*time.Millisecond || g.High("KICK") != low {
				t.Errorf("the coil was on for %v and is %v", pulse, g.High("KICK"))
			}
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			if s := look(t, d); s.Reason != "M_DRAWER_LEFT_OPEN" {
				t.Errorf("left open: %+v", s)
			}
			g.Set("LID", false)
			stuck = true
			synctest.Wait()
			r, err := d.(hal.HealthChecker).CheckHealth(t.Context(), hal.External)
			if err != nil || r.OK || r.Checks[0].Code != "E_FAILURE" {
				t.Errorf("stuck: %+v, %v", r, err)
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if s := look(t, d); s.Reason != "M_DRAWER_STUCK" || s.Health != hal.Fault {
				t.Errorf("stuck: %+v", s)
			}
			stuck = false
			if r, err := d.(hal.HealthChecker).CheckHealth(t.Context(), hal.External); err != nil || !r.OK {
				t.Errorf("free: %+v, %v", r, err)
			}
			g.Set("LID", false)
			synctest.Wait()
			g.Set("LID", true)
			synctest.Wait()
			if s := look(t, d); s.Reason != "M_DRAWER_UNEXPECTED_OPEN" {
				t.Errorf("nobody asked: %+v", s)
			}
			if good, failed := counted(t, d, "DrawerGoodOpenCount"), counted(t, d, "DrawerFailedOpenCount"); good != 2 || failed != 1 {
				t.Errorf("%v good and %v failed, want 2 and 1", good, failed)
			}
			g.Hold("KICK", true)
			g.Set("LID", false)
			synctest.Wait()
			if err := d.(hal.DrawerKicker).OpenDrawer(t.Context()); !errors.Is(err, syscall.EBUSY) {
				t.Errorf("kick line in use: %v", err)
			}
			_ = d.Close()
		})
	}
}

// TestNoKickLine holds that a drawer which others open proves nothing.
func TestNoKickLine(t *testing.T) {
	g := emulator.NewGPIO("LID")
	d := openSwitch(t, g, map[string]string{"kind": "drawer"})
	if _, ok := d.(hal.DrawerKicker); ok {
		t.Error("a drawer without kick line can be kicked")
	}
	look(t, d)
	g.Set("LID", true)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for e, err := range d.(hal.Notifier).Events(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Code == "DRAWEROPEN" {
			break
		}
	}
	if s := look(t, d); s.Sensors["M_UnexpectedOpen"] != hal.Unknown || s.Health != hal.OK {
		t.Errorf("opened by somebody: %+v", s)
	}
}

// TestCoilRests holds that a coil which a killed agent left on is switched off.
func TestCoilRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := emulator.NewGPIO("LID", "KICK")
		g.Set("KICK", true)
		d := openSwitch(t, g, map[string]string{"kind": "drawer", "kick_line": "KICK"})
		synctest.Wait()
		if g.High("KICK") {
			t.Error("the coil burns")
		}
		_ = d.Close()
	})
}

// TestSwitchAsPin looks at a switch as a program that knows periph does.
func TestSwitchAsPin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := emulator.NewGPIO("LID")
		g.Set("LID", true)
		d := openSwitch(t, g, map[string]string{"kind": "tamper", "active": "low", "bias": "pull-up"})
		synctest.Wait()
		p := d.(gpio.PinIn)
		if p.Name() != "LID" || p.Number() != -1 || p.Pull() != gpio.PullUp || p.Read() != gpio.High || p.(pin.PinFunc).Func() != gpio.IN_HIGH {
			t.Errorf("%s %d %s %s %s", p.Name(), p.Number(), p.Pull(), p.Read(), p.(pin.PinFunc).Func())
		}
		if err := p.In(gpio.PullDown, gpio.BothEdges); err == nil {
			t.Error("the bias of a line that is configured was changed")
		}
		if err := p.In(gpio.PullUp, gpio.FallingEdge); err != nil {
			t.Error(err)
		}
		if p.WaitForEdge(time.Second) {
			t.Error("an edge that was not")
		}
		g.Set("LID", false)
		synctest.Wait()
		if !p.WaitForEdge(0) {
			t.Error("an edge from before was not told")
		}
		go func() {
			time.Sleep(time.Minute)
			g.Set("LID", true) // not asked for
			time.Sleep(time.Minute)
			g.Set("LID", false)
		}()
		began := time.Now()
		if !p.WaitForEdge(-1) || time.Since(began) != 2*time.Minute {
			t.Errorf("the falling edge came after %v", time.Since(began))
		}
		go func() {
			time.Sleep(time.Hour)
			_ = d.Close()
		}()
		if p.WaitForEdge(-1) {
			t.Error("an edge of a line that was closed")
		}
	})
}
