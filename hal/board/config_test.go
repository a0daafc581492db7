package board_test

import (
	"errors"
	"os"
	"testing"

	"periph.io/x/conn/v3/i2c"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/board"
	"github.com/tillward/tillward/hal/haltest"
	"github.com/tillward/tillward/simulator/emulator"
)

func FuzzConfig(f *testing.F) {
	haltest.Config(f, board.Driver{Root: f.TempDir()},
		hal.Config{ID: "x", Options: map[string]string{
			"disk": "/", "disk_low_percent": "5", "memory_low_percent": "5", "hysteresis_percent": "2", "hot_mc": "85000", "hysteresis_mc": "3000",
		}},
		hal.Config{ID: "x", Claim: hal.Observe},
	)
}

func FuzzI2CConfig(f *testing.F) {
	none := func(string) (i2c.BusCloser, error) { return nil, os.ErrNotExist }
	haltest.Config(f, board.I2C{Bus: none},
		hal.Config{ID: "x", Address: "i2c:1:0x48", Options: map[string]string{"chip": "lm75", "temp_high_mc": "65000", "hysteresis_mc": "3000"}},
	)
}

func FuzzSwitchConfig(f *testing.F) {
	haltest.Config(f, board.Switch{Lines: emulator.NewGPIO("LID", "KICK")},
		hal.Config{ID: "x", Address: "gpio:LID", Options: map[string]string{"kind": "tamper", "active": "low", "debounce": "20ms", "bias": "pull-up"}},
		hal.Config{ID: "x", Address: "gpio:LID", Options: map[string]string{
			"kind": "drawer", "kick_line": "KICK", "kick_active": "high", "pulse": "100ms", "left_open": "5m",
		}},
	)
}

func TestCheck(t *testing.T) {
	with := func(name, value string) hal.Config {
		return hal.Config{ID: "box", Options: map[string]string{name: value}}
	}
	haltest.Check(t, func(trap haltest.Trap) (hal.Driver, []hal.Config) {
		return board.Driver{Root: trap.Root, Bus: "unix:path=" + trap.Unix}, []hal.Config{{ID: "box"}, with("disk", trap.Root)}
	}, map[string]hal.Config{
		`unknown option "colour"`:             with("colour", "red"),
		`disk = "data": write the absolute`:   with("disk", "data"),
		`disk_low_percent = "0": write a who`: with("disk_low_percent", "0"),
		`memory_low_percent = "half"`:         with("memory_low_percent", "half"),
		`hot_mc = "1000000"`:                  with("hot_mc", "1000000"),
		`smart = "on": write off`:             with("smart", "on"),
	})
	// Whether a disk is there is another question, which is asked again later.
	if _, err := (board.Driver{}).Check(with("disk", "/nonexistent")); err != nil {
		t.Errorf("checking says %v", err)
	}
	if _, err := (board.Driver{}).Open(t.Context(), with("disk", "/nonexistent")); !errors.Is(err, &hal.Error{Code: "E_NOEXIST"}) {
		t.Errorf("got %v, want E_NOEXIST", err)
	}
}

func TestI2CCheck(t *testing.T) {
	with := func(options ...string) hal.Config {
		cfg := hal.Config{ID: "box", Address: "i2c:1:0x48", Options: map[string]string{}}
		for i := 0; i < len(options); i += 2 {
			cfg.Options[options[i]] = options[i+1]
		}
		return cfg
	}
	at := func(address string, claim hal.Claim) hal.Config {
		return hal.Config{ID: "box", Address: address, Claim: claim, Options: map[string]string{"chip": "lm75"}}
	}
	taken := func(string) (i2c.BusCloser, error) {
		t.Error("the bus is opened")
		return nil, os.ErrNotExist
	}
	haltest.Check(t, func(haltest.Trap) (hal.Driver, []hal.Config) {
		return board.I2C{Bus: taken}, []hal.Config{with("chip", "lm75"), with("chip", "ina219", "supply_low_mv", "4800")}
	}, map[string]hal.Config{
		`address "1:0x48": write i2c:BUS:ADDRESS`:            at("1:0x48", ""),
		`address "i2c:1"`:                                    at("i2c:1", ""),
		`address "i2c::0x48"`:                                at("i2c::0x48", ""),
		`address "i2c:1:0x03"`:                               at("i2c:1:0x03", ""),
		`address "i2c:1:0x78"`:                               at("i2c:1:0x78", ""),
		`address "i2c:1:x"`:                                  at("i2c:1:x", ""),
		`claim "own": a bus is shared`:                       at("i2c:1:0x48", hal.Own),
		`chip = "ds18b20": write ina219 or lm75 or`:          with("chip", "ds18b20"),
		`chip is missing`:                                    with(),
		`temp_high_mc = "hot"`:                               with("chip", "lm75", "temp_high_mc", "hot"),
		`temp_high_mc = "999999"`:                            with("chip", "lm75", "temp_high_mc", "999999"),
		`lm75 does not measure what supply_low_mv is about`:  with("chip", "lm75", "supply_low_mv", "5000"),
		`supply_low_mv is missing`:                           with("chip", "ina219"),
		`supply_low_mv = "0"`:                                with("chip", "ina219", "supply_low_mv", "0"),
		`ina219 does not measure what temp_high_mc is about`: with("chip", "ina219", "supply_low_mv", "5000", "temp_high_mc", "1"),
		`unknown option "colour"`:                            with("chip", "lm75", "colour", "red"),
	})
}

// untouched are lines of which none is to be taken.
type untouched struct{ t *testing.T }

func (u untouched) Take(line string, _ board.How) (board.Line, error) {
	u.t.Errorf("line %s is taken", line)
	return nil, os.ErrNotExist
}

func TestSwitchCheck(t *testing.T) {
	with := func(kind string, options ...string) hal.Config {
		cfg := hal.Config{ID: "lid", Address: "gpio:LID", Options: map[string]string{"kind": kind}}
		for i := 0; i < len(options); i += 2 {
			cfg.Options[options[i]] = options[i+1]
		}
		return cfg
	}
	at := func(address string, claim hal.Claim) hal.Config {
		return hal.Config{ID: "lid", Address: address, Claim: claim, Options: map[string]string{"kind": "tamper"}}
	}
	haltest.Check(t, func(haltest.Trap) (hal.Driver, []hal.Config) {
		return board.Switch{Lines: untouched{t}}, []hal.Config{with("tamper"), with("drawer", "kick_line", "KICK")}
	}, map[string]hal.Config{
		`address "LID": write gpio:`:                  at("LID", ""),
		`address "gpio:"`:                             at("gpio:", ""),
		`address "gpio:gpiochip0:x"`:                  at("gpio:gpiochip0:x", ""),
		`claim "share": a line is held by one`:        at("gpio:LID", hal.Share),
		`kind = "window": write tamper or door`:       with("window"),
		`kind = ""`:                                   with(""),
		`kind is missing`:                             {ID: "lid", Address: "gpio:LID"},
		`active = "yes": write high or low`:           with("tamper", "active", "yes"),
		`debounce = "20": write a time with its unit`: with("tamper", "debounce", "20"),
		`debounce = "0"`:                              with("tamper", "debounce", "0"),
		`debounce = "1h"`:                             with("tamper", "debounce", "1h"),
		`bias = "up": write pull-up or pull-down`:     with("tamper", "bias", "up"),
		`option kick_line is of a drawer`:             with("tamper", "kick_line", "KICK"),
		`option left_open is of a drawer`:             with("door", "left_open", "5m"),
		`pulse = "1m"`:                                with("drawer", "pulse", "1m", "kick_line", "KICK"),
		`unknown option "colour"`:                     with("drawer", "colour", "red"),
	})
}
