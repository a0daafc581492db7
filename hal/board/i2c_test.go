package board_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"periph.io/x/conn/v3/i2c"
	"periph.io/x/conn/v3/i2c/i2ctest"
	"periph.io/x/conn/v3/physic"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/board"
	"github.com/tillward/tillward/hal/haltest"
)

// rail is a bus made of software, with one chip on it.
type rail struct {
	mu        sync.Mutex
	registers map[byte]uint16
	gone      bool
	noise     bool
	hold      chan struct{} // not nil: transfers wait for it
	open      int
	writes    int // of more than the number of a register
}

func (r *rail) set(do func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	do()
}

func (r *rail) Open(string) (i2c.BusCloser, error) {
	r.set(func() { r.open++ })
	return r, nil
}

func (r *rail) String() string                  { return "rail" }
func (r *rail) SetSpeed(physic.Frequency) error { return nil }
func (r *rail) Close() error                    { r.set(func() { r.open-- }); return nil }

func (r *rail) Tx(addr uint16, w, b []byte) error {
	r.mu.Lock()
	hold := r.hold
	r.mu.Unlock()
	if hold != nil {
		<-hold
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(w) > 1 {
		r.writes++
	}
	if r.gone || addr != 0x48 || len(w) != 1 || len(b) != 2 {
		return syscall.ENXIO
	}
	v := r.registers[w[0]]
	if r.noise {
		v = 0xffff
	}
	b[0], b[1] = byte(v>>8), byte(v)
	return nil
}

func openMeter(t *testing.T, r *rail, o map[string]string) hal.Device {
	t.Helper()
	return openEvery(t, r, 0, o)
}

func openEvery(t *testing.T, r *rail, every time.Duration, o map[string]string) hal.Device {
	t.Helper()
	return openOn(t, r.Open, every, o)
}

func openOn(t *testing.T, bus func(string) (i2c.BusCloser, error), every time.Duration, o map[string]string) hal.Device {
	t.Helper()
	d, err := board.I2C{Bus: bus, Every: every}.Open(t.Context(), hal.Config{ID: "box", Address: "i2c:1:0x48", Options: o})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func TestI2CConformance(t *testing.T) {
	for _, kind := range []struct {
		name     string
		sensor   string
		on, off  string
		register byte
		good     uint16
		bad      uint16
		options  map[string]string
	}{
		{"lm75", "M_TempHigh", "M_TEMP_HIGH", "M_TEMP_OK", 0, 0x1980, 0x4600, map[string]string{"chip": "lm75"}},
		{"tmp102", "M_TempHigh", "M_TEMP_HIGH", "M_TEMP_OK", 0, 0x1990, 0x4600, map[string]string{"chip": "tmp102"}},
		{"ina219", "M_SupplyLow", "M_SUPPLY_LOW", "M_SUPPLY_OK", 2, 0x5dc0, 0x4e20, map[string]string{"chip": "ina219", "supply_low_mv": "11000"}},
	} {
		t.Run(kind.name, func(t *testing.T) {
			haltest.Run(t, func(t *testing.T) haltest.Bench {
				r := &rail{registers: map[byte]uint16{0: 0x399f, kind.register: kind.good}}
				return haltest.Bench{
					Apart: true,
					Open:  func(t *testing.T) hal.Device { return openEvery(t, r, 20*time.Millisecond, kind.options) },
					Faults: []haltest.Fault{{
						Name: "limit", Sensor: kind.sensor, On: kind.on, Off: kind.off,
						Set: func(on bool) {
							r.set(func() {
								r.registers[kind.register] = kind.good
								if on {
									r.registers[kind.register] = kind.bad
								}
							})
						},
					}},
					Unplug: func(on bool) { r.set(func() { r.gone = on }) },
					Noise:  func(on bool) { r.set(func() { r.noise = on }) },
					Blind: func(t *testing.T) hal.Device {
						return openOn(t, func(string) (i2c.BusCloser, error) { return nil, os.ErrPermission }, 0, kind.options)
					},
					Unseen:  []string{kind.sensor},
					Observe: func(t *testing.T) hal.Device { return openEvery(t, r, time.Millisecond, kind.options) },
					Compete: func(context.Context) error { return r.Tx(0x48, []byte{0}, make([]byte, 2)) },
					Output: func() (n int) {
						r.set(func() { n = r.writes })
						return n
					},
					Feed: func(t *testing.T, d hal.Device, number string) {
						for i := range len(number) - 1 {
							r.set(func() { r.registers[kind.register] = uint16(number[i])<<8 | uint16(number[i+1]) })
							d.(hal.Nudger).Nudge()
						}
					},
					Mute: func(on bool) {
						r.set(func() {
							if on {
								r.hold = make(chan struct{})
							} else if r.hold != nil {
								close(r.hold)
								r.hold = nil
							}
						})
					},
				}
			})
		})
	}
}

// TestChips reads chips as their data sheets have it, from periph's playback.
func TestChips(t *testing.T) {
	type ops = []i2ctest.IO
	reg := func(n byte, v uint16) i2ctest.IO {
		return i2ctest.IO{Addr: 0x48, W: []byte{n}, R: []byte{byte(v >> 8), byte(v)}}
	}
	unexpected := errors.New("any")
	for _, test := range []struct {
		chip string
		ops  ops
		want float64
		err  error
	}{
		{"lm75", ops{reg(0, 0x1980)}, 25_500, nil},
		{"lm75", ops{reg(0, 0x19ff)}, 25_500, nil}, // the last bits are not defined
		{"lm75", ops{reg(0, 0x0000)}, 0, nil},
		{"lm75", ops{reg(0, 0xff80)}, -500, nil},
		{"lm75", ops{reg(0, 0xe700)}, -25_000, nil},
		{"lm75", ops{reg(0, 0x7d00)}, 125_000, nil},
		{"lm75", ops{reg(0, 0xffff)}, 0, unexpected},
		{"lm75", ops{reg(0, 0x8000)}, 0, unexpected}, // -128 degrees
		{"tmp102", ops{reg(0, 0x1910)}, 25_062, nil},
		{"tmp102", ops{reg(0, 0xfff0)}, -62, nil},
		{"tmp102", ops{reg(0, 0x4b01)}, 150_000, nil}, // 13 bits
		{"ina219", ops{reg(0, 0x399f), reg(2, 0x5dc0)}, 12_000, nil},
		{"ina219", ops{reg(0, 0x399f), reg(2, 0x0000)}, 0, nil},
		{"ina219", ops{reg(0, 0x3998)}, 0, board.ErrAsleep},
		{"ina219", ops{reg(0, 0x399b)}, 0, board.ErrAsleep}, // measures when told to
		{"ina219", ops{reg(0, 0xffff)}, 0, unexpected},
	} {
		play := &i2ctest.Playback{Ops: test.ops, DontPanic: true}
		v, err := board.ReadChip(test.chip, &i2c.Dev{Bus: play, Addr: 0x48})
		switch {
		case errors.Is(test.err, unexpected):
			if err == nil {
				t.Errorf("%s %x: got %v, want an error", test.chip, test.ops[0].R, v)
			}
		case v != test.want || !errors.Is(err, test.err):
			t.Errorf("%s %x: got %v, %v; want %v, %v", test.chip, test.ops[0].R, v, err, test.want, test.err)
		}
		if err := play.Close(); err != nil {
			t.Errorf("%s %x: %v", test.chip, test.ops[0].R, err)
		}
	}
}

// TestHysteresis holds that a value at the edge does not flap.
func TestHysteresis(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &rail{registers: map[byte]uint16{}}
		d := openMeter(t, r, map[string]string{"chip": "lm75", "temp_high_mc": "40000", "hysteresis_mc": "2000"})
		for _, step := range []struct {
			degrees uint16
			want    hal.Tri
		}{{39, hal.No}, {40, hal.Yes}, {39, hal.Yes}, {38, hal.No}, {39, hal.No}, {41, hal.Yes}} {
			r.set(func() { r.registers[0] = step.degrees << 8 })
			time.Sleep(3 * time.Second)
			synctest.Wait()
			if s := look(t, d); s.Sensors["M_TempHigh"] != step.want {
				t.Errorf("at %d degrees: got %v, want %v", step.degrees, s.Sensors["M_TempHigh"], step.want)
			}
			if v := counted(t, d, "temp_mc"); v != float64(step.degrees)*1000 {
				t.Errorf("at %d degrees: told %v", step.degrees, v)
			}
		}
		r.set(func() { r.gone = true })
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if v := counted(t, d, "temp_mc"); v != -1 {
			t.Errorf("a chip that is gone measures %v", v)
		}
		if n := counted(t, d, "CommunicationErrorCount"); n != 1 {
			t.Errorf("%v communication errors, want 1", n)
		}
		_ = d.Close()
	})
}

// TestAsleep holds that a chip which does not measure is not well.
func TestAsleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &rail{registers: map[byte]uint16{0: 0x3998, 2: 0x5dc0}}
		d := openMeter(t, r, map[string]string{"chip": "ina219", "supply_low_mv": "11000"})
		if s := look(t, d); s.Health != hal.NoSensor || s.Reason != "M_NO_SENSOR" || s.Power != hal.PowerOnline {
			t.Errorf("asleep: %+v", s)
		}
		if v := counted(t, d, "supply_mv"); v != -1 {
			t.Errorf("asleep it measures %v", v)
		}
		_ = d.Close()
	})
}

// TestStuckBus holds that a bus which hangs costs one goroutine and no more.
func TestStuckBus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &rail{registers: map[byte]uint16{0: 0x1900}}
		d := openMeter(t, r, map[string]string{"chip": "lm75"})
		synctest.Wait()
		hold := make(chan struct{})
		r.set(func() { r.hold = hold })
		time.Sleep(time.Hour)
		synctest.Wait()
		if s := look(t, d); s.Power != hal.PowerOffOffline {
			t.Errorf("a bus that hangs: %+v", s)
		}
		r.set(func() {
			if r.open != 1 {
				t.Errorf("%d transfers hang, want 1", r.open)
			}
			r.hold = nil
		})
		close(hold)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if s := look(t, d); s.Health != hal.OK {
			t.Errorf("the bus is back: %+v", s)
		}
		_ = d.Close()
	})
}

// TestNoBus opens a chip on a bus of this machine that is not there.
func TestNoBus(t *testing.T) {
	for _, bus := range []string{"65535", "no such adapter"} {
		d, err := board.I2C{}.Open(t.Context(), hal.Config{ID: "box", Address: "i2c:" + bus + ":0x48", Options: map[string]string{"chip": "lm75"}})
		if err != nil {
			t.Fatal(err)
		}
		if s := look(t, d); s.Health != hal.Offline {
			t.Errorf("a bus that is not there: %+v", s)
		}
		r, err := d.(hal.HealthChecker).CheckHealth(t.Context(), hal.Internal)
		if err != nil || r.OK || r.Checks[0].Code != "POWER_OFF_OFFLINE" {
			t.Errorf("checked: %+v, %v", r, err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestBusNumber(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"i2c-0/name": "SMBus I801 adapter at f000\n", "i2c-7/name": "board:1\n", "i2c-8/name": "twin\n", "i2c-9/name": "twin\n", "i2c-x/name": "odd\n",
	})
	for _, test := range []struct {
		name string
		want int
	}{{"3", 3}, {"SMBus I801 adapter at f000", 0}, {"board:1", 7}, {"twin", -1}, {"odd", -1}, {"none", -1}, {"99999999", -1}} {
		if n, err := board.BusNumber(dir, test.name); err == nil && n != test.want || err != nil && test.want >= 0 {
			t.Errorf("%s: got %d, %v, want %d", test.name, n, err, test.want)
		}
	}
	if _, err := board.BusNumber(filepath.Join(dir, "nothing"), "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no bus at all: got %v", err)
	}
}

// FuzzChips holds that whatever a chip says is a value within its range, or an
// error.
func FuzzChips(f *testing.F) {
	f.Add(uint16(0x399f), uint16(0x1980))
	f.Add(uint16(0), uint16(0xffff))
	f.Add(uint16(0x7fff), uint16(0x8001))
	f.Fuzz(func(t *testing.T, first, second uint16) {
		for chip, span := range map[string][2]float64{"lm75": {-55_000, 150_000}, "tmp102": {-55_000, 150_000}, "ina219": {0, 32_764}} {
			r := &rail{registers: map[byte]uint16{0: first, 2: second}}
			v, err := board.ReadChip(chip, &i2c.Dev{Bus: r, Addr: 0x48})
			if err == nil && (v < span[0] || v > span[1]) {
				t.Errorf("%s %04x %04x: got %v", chip, first, second, v)
			}
		}
	})
}
