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
