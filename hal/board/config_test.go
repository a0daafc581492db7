package board_test

import (
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
