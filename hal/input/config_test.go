package input_test

import (
	"testing"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/haltest"
	"github.com/tillward/tillward/hal/input"
)

func FuzzConfig(f *testing.F) {
	haltest.Config(f, input.Driver{Root: f.TempDir()},
		hal.Config{ID: "x", Address: "usb:05e0:1200", Options: map[string]string{"end": "tab"}},
		hal.Config{ID: "x", Address: "/dev/input/event99", Claim: hal.Share},
	)
}

func TestCheck(t *testing.T) {
	haltest.Check(t, func(trap haltest.Trap) (hal.Driver, []hal.Config) {
		return input.Driver{Root: trap.Root}, []hal.Config{{ID: "x", Address: "/dev/input/event0"}, {ID: "x", Address: "usb:05e0:1200", Options: map[string]string{"end": "tab"}}}
	}, map[string]hal.Config{
		`claim "own": a scanner that is held`:   {ID: "x", Address: "usb:05e0:1200", Claim: hal.Own},
		`unknown option "grab"; known are: end`: {ID: "x", Address: "usb:05e0:1200", Options: map[string]string{"grab": "true"}},
		`end = "space": write enter or tab`:     {ID: "x", Address: "usb:05e0:1200", Options: map[string]string{"end": "space"}},
		`address "event0": write usb:`:          {ID: "x", Address: "event0"},
		`address "": write usb:`:                {ID: "x"},
		`address "usb:5e0:1200": write`:         {ID: "x", Address: "usb:5e0:1200"},
		`address "usb:05e0:1200@../.."`:         {ID: "x", Address: "usb:05e0:1200@../.."},
		`address "tcp:192.0.2.1:9100"`:          {ID: "x", Address: "tcp:192.0.2.1:9100"},
	})
}
