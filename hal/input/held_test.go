package input_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/hal/input"
)

// TestHeld: only a key that is down all the time was held, on a device of the
// box itself.
func TestHeld(t *testing.T) {
	root := t.TempDir()
	for name, at := range map[string]string{"event0": "devices/pci0000:00/usb1/1-1", "event1": "devices/platform/gpio-keys"} {
		dir := filepath.Join(root, "sys", at, name)
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.MkdirAll(filepath.Join(root, "sys/class/input"), 0o700), os.MkdirAll(filepath.Join(root, "dev/input"), 0o700),
			os.Symlink(dir, filepath.Join(root, "sys/class/input", name)), os.WriteFile(filepath.Join(root, "dev/input", name), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	const restart = 408
	for name, tt := range map[string]struct {
		key, device string
		on          string        // where it is down
		until       time.Duration // and how long
		want        error
		took        time.Duration
	}{
		"held":                 {"KEY_RESTART", "", "event1", time.Hour, nil, 10 * time.Second},
		"by its number":        {"408", "", "event1", time.Hour, nil, 10 * time.Second},
		"on the one named":     {"KEY_RESTART", "dev/input/event0", "event0", time.Hour, nil, 10 * time.Second},
		"on a keyboard on USB": {"KEY_RESTART", "", "event0", time.Hour, input.ErrNotHeld, 0},
		"not pressed":          {"KEY_RESTART", "", "", 0, input.ErrNotHeld, 0},
		"another key":          {"KEY_POWER", "", "event1", time.Hour, input.ErrNotHeld, 0},
		"let go":               {"KEY_RESTART", "", "event1", 9 * time.Second, input.ErrNotHeld, 9 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				err := input.HeldBelow(t.Context(), root, tt.key, tt.device, 10*time.Second, func(f *os.File) ([]byte, error) {
					keys := make([]byte, 96)
					if filepath.Base(f.Name()) == tt.on && time.Since(began) < tt.until {
						keys[restart/8] |= 1 << (restart % 8)
					}
					return keys, nil
				})
				if !errors.Is(err, tt.want) || err != nil && tt.want == nil || time.Since(began) != tt.took {
					t.Errorf("got %v after %s, want %v after %s", err, time.Since(began), tt.want, tt.took)
				}
			})
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	down := func(*os.File) ([]byte, error) { return []byte{2}, nil }
	for name, err := range map[string]error{
		"unknown key":    input.HeldBelow(t.Context(), root, "KEY_ANY", "", time.Second, down),
		"no such key":    input.HeldBelow(t.Context(), root, "768", "", time.Second, down),
		"no such device": input.HeldBelow(t.Context(), root, "KEY_ESC", "dev/input/event9", time.Second, down),
		"no device":      input.HeldBelow(t.Context(), t.TempDir(), "KEY_ESC", "", time.Second, down),
		"told to end":    input.HeldBelow(ctx, root, "KEY_ESC", "", time.Second, down),
		"not an input":   input.Held(t.Context(), "KEY_ESC", "/dev/null", time.Second),
	} {
		if err == nil || errors.Is(err, input.ErrNotHeld) {
			t.Errorf("%s: got %v, want that nobody can say", name, err)
		}
	}
}
