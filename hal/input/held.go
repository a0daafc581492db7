package input

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNotHeld means that a key is not pressed, or was let go.
var ErrNotHeld = errors.New("the key is not held")

// buttons are keys that a box may have as a button, by the kernel's names
// [linux/input-event-codes.h].
var buttons = map[string]uint16{
	"KEY_ESC": 1, "KEY_POWER": 116, "KEY_SETUP": 141, "KEY_PROG1": 148, "KEY_PROG2": 149, "KEY_RFKILL": 247, "KEY_VENDOR": 360,
	"KEY_RESTART": 408, "KEY_WPS_BUTTON": 529, "BTN_0": 256, "BTN_1": 257,
}

const (
	keyMax   = 0x2ff
	heldLook = 50 * time.Millisecond // between two looks
)

// Held returns nil when a key was pressed all the time for so long: a button of
// the box, e.g. for a factory reset. ErrNotHeld comes as soon as it is not. key
// is the kernel's name or number of it. Without a device each one of the box is
// looked at that has the key, but none on USB: everybody could plug one in.
func Held(ctx context.Context, key, device string, long time.Duration) error {
	return held(ctx, "/", key, device, long, pressedKeys)
}

func held(ctx context.Context, root, key, device string, long time.Duration, look func(*os.File) ([]byte, error)) error {
	code, ok := buttons[key]
	if n, err := strconv.ParseUint(key, 10, 16); err == nil && n <= keyMax {
		code, ok = uint16(n), true
	}
	if !ok {
		return fmt.Errorf("key %q: give its number, or one of the kernel's names for a button, e.g. KEY_RESTART", key)
	}
	nodes := []string{device}
	if device == "" {
		nodes = ofTheBox(root)
	}
	var wrong []error
	for _, node := range nodes {
		err := heldOn(ctx, filepath.Join(root, node), code, long, look)
		if err == nil {
			return nil
		}
		wrong = append(wrong, err)
	}
	if len(wrong) == 0 {
		return errors.New("this box has no button: there is no input device but on USB")
	}
	for _, err := range wrong {
		if errors.Is(err, ErrNotHeld) { // one that could be looked at says more than one that could not
			return err
		}
	}
	return errors.Join(wrong...)
}

// ofTheBox lists the input devices that are not on USB.
func ofTheBox(root string) (nodes []string) {
	names, _ := filepath.Glob(filepath.Join(root, "sys/class/input/event*")) // the pattern is well formed
	for _, name := range names {
		real, err := filepath.EvalSymlinks(name)
		if err != nil || strings.Contains(real, "/usb") {
			continue
		}
		nodes = append(nodes, filepath.Join("dev/input", filepath.Base(name)))
	}
	return nodes
}

func heldOn(ctx context.Context, node string, code uint16, long time.Duration, look func(*os.File) ([]byte, error)) error {
	f, err := os.Open(node) // #nosec G304 -- an input device
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	over := time.NewTimer(long)
	defer over.Stop()
	tick := time.NewTicker(heldLook)
	defer tick.Stop()
	for {
		keys, err := look(f)
		if err != nil {
			return fmt.Errorf("keys of %s: %w", node, err)
		}
		if at := int(code / 8); at >= len(keys) || keys[at]>>(code%8)&1 == 0 {
			return ErrNotHeld
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-over.C:
			return nil
		case <-tick.C:
		}
	}
}

// pressedKeys asks for the keys that are down, a bit each (EVIOCGKEY).
func pressedKeys(f *os.File) ([]byte, error) {
	keys := make([]byte, keyMax/8+1)
	request := uintptr(2)<<30 | uintptr(len(keys))<<16 | 'E'<<8 | 0x18
	_, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&keys[0]))) // #nosec G103 -- the kernel writes so many bytes
	if e != 0 {
		return nil, e
	}
	return keys, nil
}
