package halvm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/tillward/tillward/simulator/guest"
)

// kernel is a Debian kernel that lies unpacked in the cache.
type kernel struct {
	root string // of the packages
	abi  string // 6.1.0-56-amd64
	gpio string // gpio-sim, which Debian leaves out
}

func (k kernel) image() string   { return filepath.Join(k.root, "boot", "vmlinuz-"+k.abi) }
func (k kernel) modules() string { return filepath.Join(k.root, "lib", "modules", k.abi) }

// kernel brings the newest kernel of this Debian, and gpio-sim for it.
func (l Lane) kernel(ctx context.Context) (kernel, error) {
	debian, err := guest.Open(ctx, "", "") // this machine's
	if err != nil {
		return kernel{}, err
	}
	abi, version, err := debian.Kernel(ctx, "linux-image-amd64")
	if err != nil {
		return kernel{}, err
	}
	major := strings.Join(strings.SplitN(abi, ".", 3)[:2], ".")
	dir := filepath.Join(l.Cache, "linux-"+version)
	k := kernel{root: filepath.Join(dir, "root"), abi: abi, gpio: filepath.Join(dir, "gpio", "halvm_gpio.ko")}
	if _, err := os.Stat(k.gpio); err == nil {
		return k, nil
	}
	if err := os.MkdirAll(filepath.Dir(k.gpio), 0o755); err != nil { // #nosec G301 -- nothing secret in it
		return kernel{}, err
	}
	var packages []string
	for _, name := range []string{"linux-image-" + abi, "linux-headers-" + abi, "linux-headers-" + strings.TrimSuffix(abi, "-amd64") + "-common", "linux-kbuild-" + major, "linux-source-" + major} {
		packages = append(packages, name+"="+version)
	}
	if err := debian.Unpack(ctx, k.root, packages...); err != nil {
		return kernel{}, err
	}
	if err := k.buildGPIO(ctx, major); err != nil {
		return kernel{}, fmt.Errorf("build gpio-sim: %w", err)
	}
	return k, os.RemoveAll(filepath.Join(k.root, "usr")) // most of it
}

// buildGPIO builds gpio-sim and the simulated interrupts it stands on as one
// module. The one change: a module has no irq_to_desc, and hands the interrupt
// on by its number.
func (k kernel) buildGPIO(ctx context.Context, major string) error {
	headers := filepath.Join(k.root, "usr", "src", "linux-headers-"+k.abi)
	if err := replace(filepath.Join(headers, "Makefile"), "include /usr/", "include "+k.root+"/usr/"); err != nil {
		return err
	}
	dir, from := filepath.Dir(k.gpio), "linux-source-"+major
	sources := []string{"drivers/gpio/gpio-sim.c", "drivers/gpio/gpiolib.h", "kernel/irq/irq_sim.c"}
	tar := []string{"-xf", filepath.Join(k.root, "usr", "src", from+".tar.xz"), "--strip-components=3"}
	for _, s := range sources {
		tar = append(tar, from+"/"+s)
	}
	if _, err := guest.Command(ctx, dir, "tar", tar...); err != nil {
		return err
	}
	if err := replace(filepath.Join(dir, "irq_sim.c"), "handle_simple_irq(irq_to_desc(irqnum))", "generic_handle_irq(irqnum)"); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "Makefile"), []byte("obj-m := halvm_gpio.o\nhalvm_gpio-objs := gpio-sim.o irq_sim.o\n"), 0o644); err != nil { // #nosec G306 -- as any source
		return err
	}
	_, err := guest.Command(ctx, dir, "make", "-C", headers, "M="+dir, "modules")
	return err
}

// replace changes a text in a file; once it is changed it may stay.
func replace(file, old, new string) error {
	b, err := os.ReadFile(file) // #nosec G304 -- of the cache
	switch {
	case err != nil:
		return err
	case bytes.Contains(b, []byte(new)):
		return nil
	case !bytes.Contains(b, []byte(old)):
		return fmt.Errorf("%s no longer holds %q: the kernel has changed", file, old)
	}
	return os.WriteFile(file, bytes.ReplaceAll(b, []byte(old), []byte(new)), 0o644) // #nosec G306,G703 -- of the cache
}
