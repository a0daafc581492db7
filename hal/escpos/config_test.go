package escpos_test

import (
	"testing"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/escpos"
	"github.com/tillward/tillward/hal/haltest"
)

func FuzzConfig(f *testing.F) {
	haltest.Config(f, escpos.Driver{},
		hal.Config{ID: "x", Address: "127.0.0.1:1", Claim: hal.Own, Options: map[string]string{
			"drawer": "x.drawer", "drawer_open_level": "high", "feed_pitch_um": "125", "left_open": "5m", "queries": "1234", "roll_length_m": "80", "timeout": "10ms",
		}},
		hal.Config{ID: "x", Address: "usb:04b8:0e15:NONE", Claim: hal.Observe, Options: map[string]string{"ask": "true"}},
		hal.Config{ID: "x", Address: "serial:/dev/nosuchline?baud=9600"},
	)
}
