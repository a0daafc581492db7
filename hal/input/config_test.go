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
