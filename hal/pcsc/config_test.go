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
