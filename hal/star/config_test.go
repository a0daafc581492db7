package star_test

import (
	"errors"
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

func TestCheck(t *testing.T) {
	with := func(options ...string) hal.Config {
		cfg := hal.Config{ID: "x", Address: "h:1", Options: map[string]string{}}
		for i := 0; i < len(options); i += 2 {
			cfg.Options[options[i]] = options[i+1]
		}
		return cfg
	}
	haltest.Check(t, func(trap haltest.Trap) (hal.Driver, []hal.Config) {
		return star.Driver{Root: trap.Root}, []hal.Config{
			{ID: "x", Address: trap.TCP, Options: map[string]string{"drawer": "till"}},
			{ID: "x", Address: "usb:0519:0003"},
			{ID: "x", Address: "serial:/dev/ttyS9", Claim: hal.Observe, Options: map[string]string{"ask": "true"}},
		}
	}, map[string]hal.Config{
		`address "nowhere": write host:port`: {ID: "x", Address: "nowhere"},
		`claim "share": a printer`:           {ID: "x", Address: "h:1", Claim: hal.Share},
		`unknown option "colour"`:            with("colour", "red"),
		`ask = "maybe"`:                      with("ask", "maybe"),
		`near_end = "no"`:                    with("near_end", "no"),
		`drawer_open_level = "up"`:           with("drawer_open_level", "up"),
		`drawer = "": the drawer needs`:      with("drawer", ""),
		`drawer = "x": the drawer needs`:     with("drawer", "x"),
		"left_open is of a drawer":           with("left_open", "5m"),
		`left_open = "ever"`:                 with("drawer", "y", "left_open", "ever"),
		"go together":                        with("roll_length_m", "80"),
		`roll_length_m = "NaN"`:              with("roll_length_m", "NaN", "feed_pitch_um", "4000"),
		`timeout = "never"`:                  with("timeout", "never"),
	})
}

func TestCloudCheck(t *testing.T) {
	const mac = "00:11:62:01:02:03"
	with := func(address string, options ...string) hal.Config {
		cfg := hal.Config{ID: "x", Address: address, Options: map[string]string{"mac": mac}}
		for i := 0; i < len(options); i += 2 {
			cfg.Options[options[i]] = options[i+1]
		}
		return cfg
	}
	const here = "127.0.0.1:0"
	share := with(here)
	share.Claim = hal.Share
	haltest.Check(t, func(trap haltest.Trap) (hal.Driver, []hal.Config) {
		return star.CloudPRNT{}, []hal.Config{with(trap.TCP, "token_file", trap.Secret), with(here, "user", "till", "password_file", trap.Secret)}
	}, map[string]hal.Config{
		`mac = "": write the printer's`:                 with(here, "mac", ""),
		`mac = "00:11:62"`:                              with(here, "mac", "00:11:62"),
		`poll = "never"`:                                with(here, "poll", "never"),
		`media = "image/png": write application/`:       with(here, "media", "image/png"),
		"user and password_file go together":            with(here, "user", "till"),
		`E_ILLEGAL: user and password_file go together`: with(here, "password_file", "/nonexistent"),
		"neither user nor password_file":                with(here, "token_file", "/nonexistent", "user", "till", "password_file", "/nonexistent"),
		"name the file":                                 with(here, "token_file", ""),
		`unknown option "colour"`:                       with(here, "colour", "red"),
		`address "127.0.0.1": write`:                    with("127.0.0.1"),
		`address "0.0.0.0:8080"`:                        with("0.0.0.0:8080"),
		`address "printer.example:80"`:                  with("printer.example:80"),
		`claim "share"`:                                 share,
	})
	// What lies on the box is not known when the file is written: it fails later.
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{empty, filepath.Join(t.TempDir(), "nothing")} {
		cfg := with(here, "token_file", secret)
		if _, err := (star.CloudPRNT{}).Check(cfg); err != nil {
			t.Errorf("%s: checking says %v", secret, err)
		}
		d, err := star.CloudPRNT{}.Open(t.Context(), cfg)
		if err == nil {
			_ = d.Close()
		}
		if !errors.Is(err, &hal.Error{Code: "E_FAILURE"}) {
			t.Errorf("%s: got %v, want E_FAILURE", secret, err)
		}
	}
}
