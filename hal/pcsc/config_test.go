package pcsc_test

import (
	"path/filepath"
	"testing"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/haltest"
	"github.com/tillward/tillward/hal/pcsc"
)

func FuzzConfig(f *testing.F) {
	nowhere := filepath.Join(f.TempDir(), "s")
	haltest.Config(f, pcsc.Driver{Root: f.TempDir()},
		hal.Config{ID: "x", Claim: hal.Share, Options: map[string]string{"socket": nowhere, "reader": "ACME", "probe": "insert", "timeout": "10ms"}},
	)
}

func TestCheck(t *testing.T) {
	haltest.Check(t, func(trap haltest.Trap) (hal.Driver, []hal.Config) {
		return pcsc.Driver{Root: trap.Root}, []hal.Config{{ID: "x"}, {ID: "x", Options: map[string]string{"socket": trap.Unix}}}
	}, map[string]hal.Config{
		`claim "own": card readers are shared`: {ID: "x", Claim: hal.Own},
		`unknown option "colour"`:              {ID: "x", Options: map[string]string{"colour": "red"}},
		`probe = "always": write insert`:       {ID: "x", Options: map[string]string{"probe": "always"}},
		`timeout = "1h"`:                       {ID: "x", Options: map[string]string{"timeout": "1h"}},
		`write it as the option reader`:        {ID: "x", Address: "usb:08e6:3437"},
	})
}
