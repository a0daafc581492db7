package firmware

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tillward/tillward/simulator/guest"
)

// Spec is what differs between images.
type Spec struct {
	Version    string
	Model      string
	Compatible string
	Vendor     string                                                 // the vendor folder
	Console    bool                                                   // a shell on the serial line; never in an image that is sold
	Overlay    map[string]string                                      // path in the root to content, put over everything: for broken images
	Reference  func(ctx context.Context, image Image) (string, error) // makes the boot reference with approvals; may be nil
	BaseLog    string                                                 // observed boot, for the boot reference
	BaseUKI    string
	RAUCCert   string // for the bundle; without it none is made
	RAUCKey    string
	Env        []string // for the scripts, beside the above
}

// Image is what a build gives.
type Image struct {
	Dir       string
	UKI       string // what a slot's EFI partition starts
	RootFS    string // squashfs with its verity tree
	SquashFS  string // without
	ESP       string // EFI partition of a slot
	Bundle    string // RAUC's; empty when there are no keys
	Disk      string // for a new box; sparse
	Reference string // boot reference; empty without an observed boot
	Seconds   map[string]float64
}

// Build makes an image in dir, by the scripts that make those of vendors. Of an
// image that was given it changes what the spec says, and keeps the rest; which
// boxes it is for stays as well.
func (k *Kit) Build(ctx context.Context, s Spec, dir string) (Image, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Image{}, err
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	i := Image{
		Dir: dir, UKI: at("uki.efi"), RootFS: at("rootfs.img"), SquashFS: at("rootfs.squashfs"), ESP: at("esp.img"), Disk: at("disk.img"),
		Seconds: map[string]float64{},
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { // #nosec G301 -- nothing secret in it
		return Image{}, err
	}
	root := at("root")
	if err := os.RemoveAll(root); err != nil {
		return Image{}, err
	}
	defer os.RemoveAll(root)
	env, err := k.env(s, root, dir)
	if err != nil {
		return Image{}, err
	}
	if s.BaseLog != "" {
		env = append(env, "BASE_LOG="+s.BaseLog, "BASE_UKI="+s.BaseUKI)
		i.Reference = at("boot.json")
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"tree", func() error {
			if k.Given != nil {
				return k.Given.unpack(ctx, root)
			}
			return k.tree(ctx, root)
		}},
		{"post-build", func() error { return k.script(ctx, env, "post-build.sh", root) }},
		{"overlay", func() error { return overlay(root, s.Overlay) }},
		{"image", func() error { return k.script(ctx, env, "image.sh") }},
		{"pack", func() error {
			if s.Reference != nil {
				file, err := s.Reference(ctx, i)
				if err != nil {
					return err
				}
				i.Reference = file
			}
			if i.Reference != "" {
				env = append(env, "BOOT_JSON="+i.Reference)
			}
			if s.RAUCCert != "" {
				i.Bundle = at("update.raucb")
				env = append(env, "RAUC_CERT="+s.RAUCCert, "RAUC_KEY="+s.RAUCKey)
			}
			return k.script(ctx, env, "pack.sh")
		}},
	} {
		began := time.Now()
		if err := step.do(); err != nil {
			return Image{}, fmt.Errorf("image %s: %s: %w", s.Version, step.name, err)
		}
		i.Seconds[step.name] = time.Since(began).Round(10 * time.Millisecond).Seconds()
	}
	return i, nil
}

// board is the folder of the scripts that make images.
func (k *Kit) board() string {
	return filepath.Join(k.options.Source, "buildroot", "board", "tillward")
}

// env is what the scripts have to know.
func (k *Kit) env(s Spec, root, dir string) ([]string, error) {
	provision, err := filepath.Abs(filepath.Join(k.options.Bin, "tillward-provision"))
	if err != nil {
		return nil, err
	}
	env := append([]string{
		"VERSION=" + s.Version, "MODEL=" + s.Model, "COMPATIBLE=" + s.Compatible, "VENDOR=" + s.Vendor, "CONSOLE=" + yesNo(s.Console),
		"ROOT=" + root, "KERNEL=" + k.kernel(), "STUB=" + k.Stub(), "PROVISION=" + provision, "OUT=" + dir, "SQUASHFS_LEVEL=3",
		"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin",
	}, s.Env...)
	if k.Given != nil {
		return append(env, k.Given.env()...), nil
	}
	list := filepath.Join(dir, "initrd.modules")
	if err := os.WriteFile(list, []byte(strings.Join(early, "\n")+"\n"), 0o644); err != nil { // #nosec G306 -- nothing secret in it
		return nil, err
	}
	return append([]string{"SOURCE_DATE_EPOCH=1700000000", "MODULES=" + k.file("modules"), "INITRD_MODULES=" + list}, env...), nil
}

// script runs one of those that make images.
func (k *Kit) script(ctx context.Context, env []string, name string, args ...string) error {
	_, err := guest.Command(ctx, "", "env", slices.Concat(env, []string{filepath.Join(k.board(), name)}, args)...)
	return err
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// tree makes of the kit's root a target tree as Buildroot hands it to
// post-build.sh: with the overlay, the agent, users and modules.
func (k *Kit) tree(ctx context.Context, root string) error {
	board := k.board()
	modules := filepath.Join("lib", "modules", k.ABI)
	for _, c := range [][]string{
		{"cp", "-a", k.file("root"), root},
		{"cp", "-a", filepath.Join(board, "overlay") + "/.", root},
		{"mkdir", "-p", filepath.Join(root, "lib", "modules")},
		{"cp", "-a", k.file(filepath.Join("modules", modules)), filepath.Join(root, modules)},
		{"install", "-m", "755", filepath.Join(k.options.Bin, "tillward-agent"), filepath.Join(root, "usr", "bin", "tillward-agent")},
		{"chmod", "-R", "u+rwX,go+rX,go-w", root}, // whatever the umask of the checkout was
	} {
		if _, err := guest.Command(ctx, "", c[0], c[1:]...); err != nil {
			return err
		}
	}
	table, err := os.ReadFile(filepath.Join(board, "users.table")) // #nosec G304 -- our own
	if err != nil {
		return err
	}
	passwd, group, err := users(string(table))
	if err != nil {
		return err
	}
	return overlay(root, map[string]string{"etc/passwd": passwd, "etc/group": group})
}

// overlay puts files over a tree. A file that was there keeps its mode; a new one
// is a program when it begins as one. A link is replaced: what it leads to may be
// of this machine.
func overlay(root string, files map[string]string) error {
	var errs []error
	for name, content := range files {
		path := filepath.Join(root, filepath.Clean("/"+name))
		if info, err := os.Lstat(path); err == nil && info.Mode()&os.ModeSymlink != 0 {
			errs = append(errs, os.Remove(path))
		}
		mode := os.FileMode(0o644)
		if len(content) > 2 && content[:2] == "#!" {
			mode = 0o755
		}
		errs = append(errs, os.MkdirAll(filepath.Dir(path), 0o755))    // #nosec G301 -- a root that all may read
		errs = append(errs, os.WriteFile(path, []byte(content), mode)) // #nosec G306 -- a root that all may read
	}
	return errors.Join(errs...)
}
