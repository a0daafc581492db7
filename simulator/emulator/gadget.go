package emulator

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Gadget is a USB device that this machine plays for itself, with the kernel's
// dummy_hcd: real drivers serve it. It needs configfs and root.
type Gadget struct {
	dir, udc, function string
}

// NewGadget plugs in a device with one function, e.g. printer.0, on a
// controller, e.g. dummy_udc.0. About it and of the function are attributes by
// the names that configfs gives them.
func NewGadget(udc, function string, about, of map[string]string) (*Gadget, error) {
	g := &Gadget{dir: filepath.Join("/sys/kernel/config/usb_gadget", udc), udc: udc, function: function}
	for _, d := range []string{"", "strings/0x409", "configs/c.1", "functions/" + function} {
		if err := os.Mkdir(filepath.Join(g.dir, d), 0o755); err != nil && !errors.Is(err, fs.ErrExist) { // #nosec G301 -- of configfs
			return nil, err
		}
	}
	for name, v := range about {
		if err := g.write(name, v); err != nil {
			return nil, err
		}
	}
	for name, v := range of {
		if err := g.write(filepath.Join("functions", function, name), v); err != nil {
			return nil, err
		}
	}
	if err := os.Symlink(filepath.Join(g.dir, "functions", function), filepath.Join(g.dir, "configs/c.1", function)); err != nil {
		return nil, err
	}
	return g, g.write("UDC", udc)
}

func (g *Gadget) write(name, v string) error {
	if err := os.WriteFile(filepath.Join(g.dir, name), []byte(v), 0o600); err != nil {
		return fmt.Errorf("gadget %s: %w", g.udc, err)
	}
	return nil
}

// Plug pulls the plug or puts it in, at the socket that it is in: whoever plays
// the device does not notice but for the silence.
func (g *Gadget) Plug(in bool) error {
	sockets, err := filepath.Glob(filepath.Join("/sys/devices/platform", strings.Replace(g.udc, "udc", "hcd", 1), "usb*/*-0:1.0/usb*-port1/disable"))
	if err != nil || len(sockets) != 1 {
		return fmt.Errorf("gadget %s: sockets %q, %w", g.udc, sockets, err)
	}
	off := "1"
	if in {
		off = "0"
	}
	return os.WriteFile(sockets[0], []byte(off), 0o600)
}

// Close takes the device apart. What plays it has to be closed before.
func (g *Gadget) Close() error {
	return errors.Join(
		g.write("UDC", "\n"),
		os.Remove(filepath.Join(g.dir, "configs/c.1", g.function)),
		os.Remove(filepath.Join(g.dir, "configs/c.1")),
		os.Remove(filepath.Join(g.dir, "functions", g.function)),
		os.Remove(filepath.Join(g.dir, "strings/0x409")),
		os.Remove(g.dir),
	)
}
