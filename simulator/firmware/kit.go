// Package firmware is the emulated till: the overlay, the agent and the scripts
// of the image, on a root of Debian packages in place of Buildroot's, booted by
// QEMU with UEFI, a TPM, a watchdog and USB, all in software.
//
// A Kit is what is downloaded, once: Debian packages made into a root, a kernel
// and a UEFI firmware. Build makes an image of it as a vendor's build would, by
// the scripts of buildroot/board/tillward. Machine runs one. Given an image of
// Buildroot's, the kit has that one's kernel, initrd, stub and root.
//
// Nothing here needs root, hardware or a fixed port, and nothing is left
// running: what is started dies with the process that started it. It exports more
// than eight names, for it is kit, image and machine in one. It proves our
// agent, scripts, policy and slot logic on a real boot chain; kernel and user
// land are Debian's where no image of a vendor's is given.
package firmware

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/tillward/tillward/simulator/guest"
)

// Options say where a kit finds what it needs.
type Options struct {
	Source string    // the folder of this module
	Cache  string    // for what is downloaded and made of it
	Bin    string    // with tillward-agent, static, and tillward-provision
	Debian string    // name of the release that its user land is of; empty: that of the kernel, trixie
	Image  string    // folder of an image that was built elsewhere, in place of the kit's root and kernel; or empty
	Say    io.Writer // a line for what takes long; may be nil
}

// Kit is what images are made of.
type Kit struct {
	options Options
	dir     string // of this kit in the cache
	stub    string // file of the EFI stub, if not the kit's own

	ABI      string            // of the kernel
	Versions map[string]string // of the packages
	Given    *Given            `json:"-"` // the image of Options.Image; or nil
}

// Open returns the kit, from the cache or freshly downloaded. A cached one is
// the same whatever Debian has published since: it is remade when the lists of
// packages.go change, or when the cache is removed.
func Open(ctx context.Context, o Options) (*Kit, error) {
	cache, err1 := filepath.Abs(o.Cache)
	source, err2 := filepath.Abs(o.Source)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	if o.Say == nil {
		o.Say = io.Discard
	}
	o.Cache, o.Source, o.Debian = cache, source, cmp.Or(o.Debian, trixie)
	recipe := sha256.Sum256(fmt.Append(nil, edition, o.Debian, kernelPackage, uefiPackage, stubPackage, keep, modules))
	k := &Kit{options: o, dir: filepath.Join(cache, fmt.Sprintf("kit-%x", recipe[:6]))}
	if err := os.MkdirAll(cache, 0o755); err != nil { // #nosec G301 -- nothing secret in it
		return nil, err
	}
	unlock, err := lock(ctx, filepath.Join(cache, "lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := os.Stat(k.dir); errors.Is(err, os.ErrNotExist) {
		if err := k.make(ctx); err != nil {
			return nil, fmt.Errorf("make the kit: %w", err)
		}
	}
	b, err := os.ReadFile(filepath.Join(k.dir, "kit.json"))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, k); err != nil || o.Image == "" {
		return k, err
	}
	return k, k.take(ctx, o.Image)
}

// take puts an image that was built elsewhere in the place of what the kit makes
// images of.
func (k *Kit) take(ctx context.Context, image string) (err error) {
	if k.Given, err = ReadImage(ctx, image); err != nil {
		return err
	}
	// What a boot is foretold from has this kernel and this stub.
	k.Versions["kernel of the image"], k.Versions["EFI stub of the image"] = k.Given.sums["kernel"], k.Given.sums["stub"]
	k.stub = filepath.Join(k.options.Cache, fmt.Sprintf("stub-%.12s.efi", k.Given.sums["stub"]))
	return os.WriteFile(k.stub, k.Given.stub, 0o644) // #nosec G306 -- nothing secret in it
}

// edition is to be raised when make does something else with the same lists.
const edition = 1

// lock waits until no other process makes a kit in this cache.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644) // #nosec G302,G304 -- of the cache
	if err != nil {
		return nil, err
	}
	got := make(chan error, 1)
	go func() { got <- syscall.Flock(int(f.Fd()), syscall.LOCK_EX) }() // #nosec G115 -- a file descriptor
	select {
	case err = <-got:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// make downloads everything and leaves in k.dir:
//
//	root/ kernel modules/lib/modules/ABI code.fd vars.fd stub.efi kit.json
func (k *Kit) make(ctx context.Context) error {
	old, err := filepath.Glob(filepath.Join(k.options.Cache, "making-*")) // of one that was killed
	if err != nil {
		return err
	}
	for _, dir := range old {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	work, err := os.MkdirTemp(k.options.Cache, "making-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := os.Chmod(work, 0o755); err != nil { // #nosec G302 -- nothing secret in it
		return err
	}
	fmt.Fprintln(k.options.Say, "firmware: reading the lists of Debian", k.options.Debian)
	archive, err := guest.Open(ctx, filepath.Join(work, "apt"), trixie)
	if err != nil {
		return err
	}
	programs := archive
	if k.options.Debian != trixie {
		if programs, err = guest.Open(ctx, filepath.Join(work, "apt-programs"), k.options.Debian); err != nil {
			return err
		}
	}
	abi, version, err := archive.Kernel(ctx, kernelPackage)
	if err != nil {
		return err
	}
	var names []string
	for _, p := range keep {
		names = append(names, p.name)
	}
	packages, err := programs.Needs(ctx, names...)
	if err != nil {
		return err
	}
	system := []string{"linux-image-" + abi + "=" + version, uefiPackage, stubPackage}
	fmt.Fprintf(k.options.Say, "firmware: downloading %d packages and Linux %s, once\n", len(packages), abi)
	if err := programs.Unpack(ctx, filepath.Join(work, "packages"), packages...); err != nil {
		return err
	}
	if err := archive.Unpack(ctx, filepath.Join(work, "system"), system...); err != nil {
		return err
	}
	out := filepath.Join(work, "kit")
	if err := k.layOut(ctx, work, out, abi); err != nil {
		return err
	}
	if err := assembleRoot(filepath.Join(work, "packages"), filepath.Join(out, "root")); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	k.ABI, k.Versions = abi, map[string]string{"linux-image-" + abi: version}
	for _, p := range packages {
		name, version, _ := strings.Cut(p, "=")
		k.Versions[name] = version
	}
	b, err := json.MarshalIndent(k, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(out, "kit.json"), b, 0o644); err != nil { // #nosec G306 -- nothing secret in it
		return err
	}
	return os.Rename(out, k.dir)
}

// layOut puts kernel, its modules, the UEFI firmware and the EFI stub in place.
func (k *Kit) layOut(ctx context.Context, work, out, abi string) error {
	system := filepath.Join(work, "system")
	to := filepath.Join(out, "modules", "lib", "modules", abi)
	if err := os.MkdirAll(to, 0o755); err != nil { // #nosec G301 -- nothing secret in it
		return err
	}
	for name, from := range map[string]string{
		"kernel":   "boot/vmlinuz-" + abi,
		"code.fd":  "usr/share/OVMF/OVMF_CODE_4M.fd",
		"vars.fd":  "usr/share/OVMF/OVMF_VARS_4M.fd",
		"stub.efi": "usr/lib/systemd/boot/efi/linuxx64.efi.stub",
	} {
		if err := os.Rename(filepath.Join(system, from), filepath.Join(out, name)); err != nil {
			return err
		}
	}
	from := filepath.Join(system, "usr", "lib", "modules", abi)
	if _, err := os.Stat(from); err != nil {
		from = filepath.Join(system, "lib", "modules", abi) // before /usr was merged
	}
	list, err := guest.Modules(ctx, from, modules, nil)
	if err != nil {
		return err
	}
	for _, m := range list {
		name, err := filepath.Rel(from, m.File)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(to, name)), 0o755); err != nil { // #nosec G301 -- nothing secret in it
			return err
		}
		if err := os.Rename(m.File, filepath.Join(to, name)); err != nil {
			return err
		}
	}
	for _, index := range []string{"modules.order", "modules.builtin", "modules.builtin.modinfo"} {
		if err := os.Rename(filepath.Join(from, index), filepath.Join(to, index)); err != nil {
			return err
		}
	}
	_, err = guest.Command(ctx, "", "depmod", "-b", filepath.Join(out, "modules"), abi)
	return err
}

// file is a file or folder of the kit.
func (k *Kit) file(name string) string { return filepath.Join(k.dir, name) }

// Stub is the file of the EFI stub that images start with.
func (k *Kit) Stub() string { return cmp.Or(k.stub, k.file("stub.efi")) }

// kernel is the file of the kernel.
func (k *Kit) kernel() string {
	if k.Given != nil {
		return k.Given.file("bzImage")
	}
	return k.file("kernel")
}
