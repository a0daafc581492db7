package star_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/haltest"
	"github.com/tillward/tillward/hal/star"
)

func FuzzConfig(f *testing.F) {
	haltest.Config(f, star.Driver{},
		hal.Config{ID: "x", Address: "127.0.0.1:1", Claim: hal.Own, Options: map[string]string{
			"drawer": "x.drawer", "drawer_open_level": "high", "near_end": "false", "feed_pitch_um": "125", "left_open": "5m", "roll_length_m": "80", "timeout": "50ms",
		}},
		hal.Config{ID: "x", Address: "usb:0519:0003:NONE", Claim: hal.Observe, Options: map[string]string{"ask": "true"}},
	)
}

func FuzzCloudConfig(f *testing.F) {
	token := filepath.Join(f.TempDir(), "token")
	if err := os.WriteFile(token, []byte("secret"), 0o600); err != nil {
		f.Fatal(err)
	}
	haltest.Config(f, star.CloudPRNT{},
		hal.Config{ID: "x", Address: "127.0.0.1:0", Options: map[string]string{
			"mac": "00:11:62:01:02:03", "user": "till", "password_file": token, "poll": "5s", "media": "text/plain", "near_end": "true", "roll_length_m": "80", "feed_pitch_um": "125",
		}},
		hal.Config{ID: "x", Address: "127.0.0.1:0", Claim: hal.Observe, Options: map[string]string{"mac": "00:11:62:01:02:03", "token_file": token}},
	)
}
