package firmware

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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

// Build makes an image in dir, by the scripts that make those of vendors.
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
	board, err := filepath.Abs(filepath.Join(k.options.Source, "buildroot", "board", "tillward"))
	if err != nil {
		return Image{}, err
	}
	provision, err := filepath.Abs(filepath.Join(k.options.Bin, "tillward-provision"))
	if err != nil {
		return Image{}, err
	}
	list := at("initrd.modules")
	if err := os.WriteFile(list, []byte(strings.Join(early, "\n")+"\n"), 0o644); err != nil { // #nosec G306 -- nothing secret in it
		return Image{}, err
	}
	env := append([]string{
		"VERSION=" + s.Version, "MODEL=" + s.Model, "COMPATIBLE=" + s.Compatible, "VENDOR=" + s.Vendor, "CONSOLE=" + yesNo(s.Console),
		"ROOT=" + root, "KERNEL=" + k.file("kernel"), "MODULES=" + k.file("modules"), "STUB=" + k.Stub(), "PROVISION=" + provision,
		"OUT=" + dir, "SOURCE_DATE_EPOCH=1700000000", "SQUASHFS_LEVEL=3", "INITRD_MODULES=" + list, "PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin",
	}, s.Env...)
	if s.BaseLog != "" {
		env = append(env, "BASE_LOG="+s.BaseLog, "BASE_UKI="+s.BaseUKI)
		i.Reference = at("boot.json")
	}
	script := func(name string, more []string, args ...string) error {
		c := append(append([]string{}, env...), more...)
		_, err := guest.Command(ctx, "", "env", append(append(c, filepath.Join(board, name)), args...)...)
		return err
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"tree", func() error { return k.tree(ctx, root, board) }},
		{"post-build", func() error { return script("post-build.sh", nil, root) }},
		{"overlay", func() error { return overlay(root, s.Overlay) }},
		{"image", func() error { return script("image.sh", nil) }},
		{"pack", func() error {
			var more []string
			if s.Reference != nil {
				file, err := s.Reference(ctx, i)
				if err != nil {
					return err
				}
				i.Reference = file
			}
			if i.Reference != "" {
				more = append(more, "BOOT_JSON="+i.Reference)
			}
			if s.RAUCCert != "" {
				i.Bundle = at("update.raucb")
				more = append(more, "RAUC_CERT="+s.RAUCCert, "RAUC_KEY="+s.RAUCKey)
			}
			return script("pack.sh", more)
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

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// tree makes of the kit's root a target tree as Buildroot hands it to
// post-build.sh: with the overlay, the agent, users and modules.
func (k *Kit) tree(ctx context.Context, root, board string) error {
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
// is a program when it begins as one.
func overlay(root string, files map[string]string) error {
	var errs []error
	for name, content := range files {
		path := filepath.Join(root, filepath.Clean("/"+name))
		mode := os.FileMode(0o644)
		if len(content) > 2 && content[:2] == "#!" {
			mode = 0o755
		}
		errs = append(errs, os.MkdirAll(filepath.Dir(path), 0o755))    // #nosec G301 -- a root that all may read
		errs = append(errs, os.WriteFile(path, []byte(content), mode)) // #nosec G306 -- a root that all may read
	}
	return errors.Join(errs...)
}
