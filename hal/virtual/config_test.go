package virtual_test

import (
	"path/filepath"
	"testing"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/haltest"
	"github.com/tillward/tillward/hal/virtual"
)

func FuzzConfig(f *testing.F) {
	haltest.Config(f, virtual.Driver{},
		hal.Config{ID: "x", Options: map[string]string{"category": "CashDrawer", "control": "unix:" + filepath.Join(f.TempDir(), "s")}},
		hal.Config{ID: "x", Claim: hal.Own},
	)
}

func TestCheck(t *testing.T) {
	haltest.Check(t, func(trap haltest.Trap) (hal.Driver, []hal.Config) {
		return virtual.Driver{}, []hal.Config{{ID: "x"}, {ID: "x", Options: map[string]string{"control": "unix:" + trap.Unix}}}
	}, map[string]hal.Config{
		`unknown option "colour"`:            {ID: "x", Options: map[string]string{"colour": "red"}},
		`category = "Toaster": write one of`: {ID: "x", Options: map[string]string{"category": "Toaster"}},
		`control = "/tmp/x": write unix:`:    {ID: "x", Options: map[string]string{"control": "/tmp/x"}},
		`control = "unix:x"`:                 {ID: "x", Options: map[string]string{"control": "unix:x"}},
	})
}
