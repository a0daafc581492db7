package display_test

import (
	"testing"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/display"
	"github.com/tillward/tillward/hal/haltest"
)

func FuzzConfig(f *testing.F) {
	haltest.Config(f, display.Driver{},
		hal.Config{ID: "x", Address: "127.0.0.1:1", Claim: hal.Own, Options: map[string]string{
			"asks": "dle-eot", "brightness": "2", "columns": "20", "test_for": "1s", "timeout": "50ms",
		}},
		hal.Config{ID: "x", Address: "serial:/dev/nonexistent", Claim: hal.Observe},
	)
}

func TestCheck(t *testing.T) {
	const line = "serial:/dev/ttyS0"
	haltest.Check(t, func(trap haltest.Trap) (hal.Driver, []hal.Config) {
		return display.Driver{Root: trap.Root}, []hal.Config{
			{ID: "x", Address: "serial:/dev/ttyS9"}, {ID: "x", Address: trap.TCP, Claim: hal.Own, Options: map[string]string{"asks": "dle-eot"}},
		}
	}, map[string]hal.Config{
		`address "nowhere"`:                       {ID: "x", Address: "nowhere"},
		`claim "share": a line has one end`:       {ID: "x", Address: line, Claim: hal.Share},
		`unknown option "colour"`:                 {ID: "x", Address: line, Options: map[string]string{"colour": "red"}},
		"asks: the till owns this display":        {ID: "x", Address: line, Options: map[string]string{"asks": "dle-eot"}},
		`asks = "yes": write dle-eot`:             {ID: "x", Address: line, Claim: hal.Own, Options: map[string]string{"asks": "yes"}},
		`columns = "7": write a whole number`:     {ID: "x", Address: line, Options: map[string]string{"columns": "7"}},
		`brightness = "5"`:                        {ID: "x", Address: line, Options: map[string]string{"brightness": "5"}},
		`test_for = "3": write a time with its u`: {ID: "x", Address: line, Options: map[string]string{"test_for": "3"}},
		`timeout = "1ms"`:                         {ID: "x", Address: line, Options: map[string]string{"timeout": "1ms"}},
	})
}
