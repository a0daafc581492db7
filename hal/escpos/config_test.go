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

func TestCheck(t *testing.T) {
	with := func(options ...string) hal.Config {
		cfg := hal.Config{ID: "x", Address: "h:1", Options: map[string]string{}}
		for i := 0; i < len(options); i += 2 {
			cfg.Options[options[i]] = options[i+1]
		}
		return cfg
	}
	haltest.Check(t, func(trap haltest.Trap) (hal.Driver, []hal.Config) {
		return escpos.Driver{Root: trap.Root}, []hal.Config{
			{ID: "x", Address: trap.TCP, Options: map[string]string{"drawer": "till"}},
			{ID: "x", Address: "/dev/usb/lp0"},
			{ID: "x", Address: "usb:04b8:0e15"},
			{ID: "x", Address: "serial:/dev/ttyS9", Claim: hal.Observe, Options: map[string]string{"ask": "true"}},
		}
	}, map[string]hal.Config{
		`address "nowhere": write host:port`: {ID: "x", Address: "nowhere"},
		`address "h": write`:                 {ID: "x", Address: "h"},
		`"usb:4b8:e15": write usb:`:          {ID: "x", Address: "usb:4b8:e15"},
		"baud is one of":                     {ID: "x", Address: "serial:/dev/ttyS0?baud=1"},
		`claim "share": a printer`:           {ID: "x", Address: "h:1", Claim: hal.Share},
		`claim "grab"`:                       {ID: "x", Address: "h:1", Claim: "grab"},
		`unknown option "drawr"`:             with("drawr", "d"),
		`ask = "maybe": write true or false`: with("ask", "maybe"),
		`drawer_open_level = "up"`:           with("drawer_open_level", "up"),
		`queries = "15": write some of 1234`: with("queries", "15"),
		`timeout = "2": write a time`:        with("timeout", "2"),
		`drawer = "": the drawer needs`:      with("drawer", ""),
		`drawer = "x": the drawer needs`:     with("drawer", "x"),
		"left_open is of a drawer":           with("left_open", "5m"),
		`left_open = "-5m"`:                  with("drawer", "d", "left_open", "-5m"),
		"go together":                        with("roll_length_m", "80"),
		`roll_length_m = "NaN"`:              with("roll_length_m", "NaN", "feed_pitch_um", "3750"),
		`feed_pitch_um = "0"`:                with("roll_length_m", "80", "feed_pitch_um", "0"),
		`unknown option "colour"; known are: ask, drawer, drawer_open_level, feed_pitch_um, left_open, queries, roll_length_m, timeout; ask = "1"`: with("colour", "red", "ask", "1"),
	})
}
