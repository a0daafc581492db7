package halvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// kernel is a Debian kernel that lies unpacked in the cache.
type kernel struct {
	root string // of the packages
	abi  string // 6.1.0-56-amd64
	gpio string // gpio-sim, which Debian leaves out
}

func (k kernel) image() string   { return filepath.Join(k.root, "boot", "vmlinuz-"+k.abi) }
func (k kernel) modules() string { return filepath.Join(k.root, "lib", "modules", k.abi) }

var imagePackage = regexp.MustCompile(`(?m)^Depends: linux-image-(\S+) \(= (\S+)\)$`)

// kernel brings the newest kernel of this Debian, and gpio-sim for it.
func (l Lane) kernel(ctx context.Context) (kernel, error) {
	out, err := command(ctx, "", "apt-cache", "show", "--no-all-versions", "linux-image-amd64")
	if err != nil {
		return kernel{}, fmt.Errorf("%w; the lane is for amd64 machines with Debian", err)
	}
	m := imagePackage.FindSubmatch(out)
	if m == nil {
		return kernel{}, errors.New("linux-image-amd64 does not say which kernel it is")
	}
	abi, version := string(m[1]), string(m[2])
	major := strings.Join(strings.SplitN(abi, ".", 3)[:2], ".")
	dir := filepath.Join(l.Cache, "linux-"+version)
	k := kernel{root: filepath.Join(dir, "root"), abi: abi, gpio: filepath.Join(dir, "gpio", "halvm_gpio.ko")}
	if _, err := os.Stat(k.gpio); err == nil {
		return k, nil
	}
	debs := filepath.Join(dir, "debs")
	for _, d := range []string{debs, k.root, filepath.Dir(k.gpio)} {
		if err := os.MkdirAll(d, 0o755); err != nil { // #nosec G301 -- nothing secret in it
			return kernel{}, err
		}
	}
	get := []string{"download"}
	for _, name := range []string{"linux-image-" + abi, "linux-headers-" + abi, "linux-headers-" + strings.TrimSuffix(abi, "-amd64") + "-common", "linux-kbuild-" + major, "linux-source-" + major} {
		get = append(get, name+"="+version)
	}
	if _, err := command(ctx, debs, "apt-get", get...); err != nil {
		return kernel{}, err
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return kernel{}, err
	}
	for _, f := range files {
		if _, err := command(ctx, "", "dpkg-deb", "-x", f, k.root); err != nil {
			return kernel{}, err
		}
	}
	if err := k.buildGPIO(ctx, major); err != nil {
		return kernel{}, fmt.Errorf("build gpio-sim: %w", err)
	}
	return k, errors.Join(os.RemoveAll(debs), os.RemoveAll(filepath.Join(k.root, "usr"))) // most of it
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
	if _, err := command(ctx, dir, "tar", tar...); err != nil {
		return err
	}
	if err := replace(filepath.Join(dir, "irq_sim.c"), "handle_simple_irq(irq_to_desc(irqnum))", "generic_handle_irq(irqnum)"); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "Makefile"), []byte("obj-m := halvm_gpio.o\nhalvm_gpio-objs := gpio-sim.o irq_sim.o\n"), 0o644); err != nil { // #nosec G306 -- as any source
		return err
	}
	_, err := command(ctx, dir, "make", "-C", headers, "M="+dir, "modules")
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

// command runs a program; what it says is part of the error.
func command(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	var out, said bytes.Buffer
	c := exec.CommandContext(ctx, name, args...) // #nosec G204 -- Debian's own tools
	c.Dir, c.Stdout, c.Stderr = dir, &out, &said
	c.Env = append(os.Environ(), "LC_ALL=C")
	if err := c.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w\n%s%s", name, err, tail(out.Bytes()), tail(said.Bytes()))
	}
	return out.Bytes(), nil
}

func tail(b []byte) []byte { return b[max(0, len(b)-2000):] }
