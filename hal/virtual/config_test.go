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
