// Package halvm runs the conformance suite of the drivers on a real kernel: a
// stock Debian one, in a machine that QEMU emulates in software, with hardware
// that the kernel itself plays. A USB printer and a scanner are gadgets on a
// virtual USB bus, so that the drivers meet usblp, usbhid and evdev as they do
// in a shop; the tamper switch hangs on gpio-sim, a thermometer on i2c-stub.
//
// It needs no right, no network beyond Debian's archive and no hardware, and
// leaves nothing behind but a cache. Parts of the kernel that Debian does not
// build are compiled from Debian's source at hand, beside the product and never
// in it: they are under the GPL. What it proves is what drivers and kernel make
// of each other, not what a maker's firmware does.
package halvm

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Lane is one run.
type Lane struct {
	Source  string        // the folder of this module
	Cache   string        // folder for what is downloaded and built
	Suites  []string      // names of the tests in the machine, Test left off; empty: all
	Timeout time.Duration // of the machine
	Out     io.Writer     // what the tests say
	Shell   bool          // give a shell in place of the tests, on standard input and Out
}

// Suites are the tests in the machine.
var Suites = []string{"Printer", "Till", "USBScanner", "Scanner", "Tamper", "Drawer", "Chips", "Hotplug", "User"}

// Run prepares the machine, starts it, and returns how the suites went. The
// error is about the machine: a suite that failed is no error of Run.
func (l Lane) Run(ctx context.Context) ([]Result, error) {
	if len(l.Suites) == 0 {
		l.Suites = Suites
	}
	if err := os.MkdirAll(l.Cache, 0o755); err != nil { // #nosec G301 -- nothing secret in it
		return nil, err
	}
	k, err := l.kernel(ctx)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	test := filepath.Join(l.Cache, "lane.test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-trimpath", "-tags", "halvm netgo osusergo", "-o", test, "./simulator/halvm") // #nosec G204 -- our own tests
	build.Dir, build.Env, build.Stderr = l.Source, append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64"), os.Stderr
	if err := build.Run(); err != nil {
		return nil, fmt.Errorf("build the tests: %w", err)
	}
	image := filepath.Join(l.Cache, "initrd.gz")
	if err := l.pack(ctx, k, test, image); err != nil {
		return nil, fmt.Errorf("pack the machine: %w", err)
	}
	return l.boot(ctx, k, image)
}
