package firmware

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/pe"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/tillward/tillward/provisioning/uki"
	"github.com/tillward/tillward/simulator/guest"
)

// Given is an image that was built elsewhere, as make image leaves it. Its
// kernel, initrd and EFI stub are taken as they are, its root with another
// vendor's files: the image trusts the fleet of whom it was built for.
type Given struct {
	Dir                        string
	Version, Model, Compatible string
	Console                    bool
	Kernel, Stub               string   // what they call themselves
	RootMiB                    float64  // of the root as it was built, packed
	Foreign                    []string // files of the root that are not root's, or that make whoever runs them so; they lose that here

	epoch string // when it was built, for the times of what is in it
	parts uki.Parts
	stub  []byte
	sums  map[string]string // of its files
}

// again is what to do about a folder that is not whole.
const again = "build the image again (make image)"

// ReadImage checks an image that was built elsewhere: that all its files are
// those that were built, fit each other, and are for the machine of this room.
// dir is the folder that make image leaves them in, or that above it.
func ReadImage(ctx context.Context, dir string) (*Given, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	g := &Given{Dir: dir, sums: map[string]string{}}
	if _, err := os.Stat(g.file("image.json")); errors.Is(err, fs.ErrNotExist) {
		g.Dir = filepath.Join(dir, "images")
		if _, err := os.Stat(g.file("image.json")); err != nil {
			return nil, fmt.Errorf("%s holds no image: it has no image.json, nor has %s. Give the folder that make image leaves its files in, .cache/buildroot/BOARD/images, or the one above", dir, g.Dir)
		}
	}
	for _, step := range []func() error{g.whole, g.unified, g.verified, func() error { return g.root(ctx) }} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("image %s: %w", g.Dir, err)
		}
	}
	return g, nil
}

func (g *Given) file(name string) string { return filepath.Join(g.Dir, name) }

// whole holds the files against image.json, which the build wrote last.
func (g *Given) whole() error {
	b, err := os.ReadFile(g.file("image.json"))
	if err != nil {
		return err
	}
	var said struct {
		Version, Model, Compatible string
		Files                      map[string]struct {
			Bytes  int64
			SHA256 string
		}
	}
	if err := json.Unmarshal(b, &said); err != nil {
		return fmt.Errorf("image.json: %w; %s", err, again)
	}
	g.Version, g.Model, g.Compatible = said.Version, said.Model, said.Compatible
	if g.Version == "" || g.Model == "" || g.Compatible == "" {
		return fmt.Errorf("image.json says version %q, model %q, compatible %q: none may be empty; %s", g.Version, g.Model, g.Compatible, again)
	}
	for _, name := range []string{"rootfs.squashfs", "rootfs.img", "initrd.img", "uki.efi"} {
		want, ok := said.Files[name]
		if !ok {
			return fmt.Errorf("image.json does not know %s; %s", name, again)
		}
		sum, n, err := digest(g.file(name))
		if err != nil {
			return fmt.Errorf("%w; %s", err, again)
		}
		if n != want.Bytes || sum != want.SHA256 {
			return fmt.Errorf("%s is not what image.json says: %d bytes with SHA-256 %.16s, it says %d with %.16s: one of the two was changed after the build, or a build was cut off; %s",
				name, n, sum, want.Bytes, want.SHA256, again)
		}
		g.sums[name] = sum
		if name == "rootfs.squashfs" {
			g.RootMiB = float64(n) / (1 << 20)
		}
	}
	return nil
}

func digest(name string) (sum string, size int64, err error) {
	f, err := os.Open(name) // #nosec G304 -- of the image
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	size, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), size, err
}

// unified takes the unified kernel image apart: it must be made of what lies
// beside it.
func (g *Given) unified() error {
	b, err := os.ReadFile(g.file("uki.efi"))
	if err != nil {
		return err
	}
	i, err := uki.Parse(b)
	if err != nil {
		return fmt.Errorf("uki.efi: %w; %s", err, again)
	}
	if i.Machine != pe.IMAGE_FILE_MACHINE_AMD64 {
		return fmt.Errorf("uki.efi is for machine %#x: what is emulated here is a PC (%#x); build the board qemu_x86_64 or pc_x86_64", i.Machine, pe.IMAGE_FILE_MACHINE_AMD64)
	}
	if g.stub, g.parts, err = uki.Split(b); err != nil {
		return fmt.Errorf("uki.efi: %w; give the image as make image leaves it", err)
	}
	for _, part := range []struct {
		name string
		data []byte
	}{{"bzImage", g.parts.Kernel}, {"initrd.img", g.parts.Initrd}, {"cmdline", []byte(g.parts.Cmdline)}, {"os-release", g.parts.OSRelease}} {
		beside, err := os.ReadFile(g.file(part.name))
		if err != nil {
			return fmt.Errorf("%w; %s", err, again)
		}
		if rest, ok := bytes.CutPrefix(part.data, beside); !ok || len(bytes.Trim(rest, "\x00")) > 0 || len(rest) > 3 {
			return fmt.Errorf("the %s in uki.efi is not the one beside it: they are of two builds; %s", part.name, again)
		}
	}
	g.sums["kernel"], g.sums["stub"] = hexSum(g.parts.Kernel), hexSum(g.stub)
	g.Kernel, g.Stub = kernelVersion(g.parts.Kernel), i.Stub
	g.Console = strings.Contains(" "+g.parts.Cmdline+" ", " console=ttyS0 ")
	return nil
}

// kernelVersion is how a kernel calls itself [Linux, arch/x86/boot, kernel_version].
func kernelVersion(b []byte) string {
	const at, from = 0x20e, 0x200
	if len(b) < at+2 {
		return ""
	}
	b = b[min(len(b), from+int(binary.LittleEndian.Uint16(b[at:]))):]
	version, _, _ := strings.Cut(string(b[:min(len(b), 64)]), " ")
	return version
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

var rootWord = regexp.MustCompile(`(?:^| )tillward\.root=([0-9a-f]{64}),([0-9a-f]+),([0-9]+)(?: |$)`)

// verified checks the root against the hash on the command line, which is what
// the till trusts it by.
func (g *Given) verified() error {
	words := rootWord.FindStringSubmatch(g.parts.Cmdline)
	if words == nil {
		return fmt.Errorf("the command line in uki.efi names no root: %q; %s", g.parts.Cmdline, again)
	}
	var v verity
	var err1, err2, err3 error
	v.root, err1 = hex.DecodeString(words[1])
	v.salt, err2 = hex.DecodeString(words[2])
	v.blocks, err3 = strconv.ParseInt(words[3], 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil {
		return fmt.Errorf("the command line in uki.efi: %w", err)
	}
	f, err := os.Open(g.file("rootfs.img"))
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := v.check(f, info.Size()); err != nil {
		return fmt.Errorf("rootfs.img is not the root that uki.efi names, with the hash %.16s: %w; no till would start it: %s", words[1], err, again)
	}
	plain, err := os.ReadFile(g.file("rootfs.squashfs"))
	if err != nil {
		return err
	}
	data := make([]byte, v.blocks*block)
	if _, err := f.ReadAt(data, 0); err != nil {
		return err
	}
	if rest, ok := bytes.CutPrefix(data, plain); !ok || len(bytes.Trim(rest, "\x00")) > 0 {
		return fmt.Errorf("rootfs.img does not begin with rootfs.squashfs: they are of two builds; %s", again)
	}
	return nil
}

// root looks into the root: it must be the one that image.json speaks of, and
// such that it can be unpacked and packed again by anybody.
func (g *Given) root(ctx context.Context) error {
	list, err := guest.Command(ctx, "", "unsquashfs", "-lln", g.file("rootfs.squashfs"))
	if err != nil {
		return fmt.Errorf("rootfs.squashfs: %w", err)
	}
	for line := range strings.Lines(string(list)) {
		// drwxr-xr-x 0/0   42 2026-11-27 09:00 squashfs-root/bin
		mode, rest, _ := strings.Cut(line, " ")
		_, name, ok := strings.Cut(rest, "squashfs-root")
		if !ok || len(mode) != 10 || mode[0] == 'l' {
			continue
		}
		name = strings.TrimSpace(name)
		switch owner, _, _ := strings.Cut(strings.TrimSpace(rest), " "); {
		case mode[0] == 'b' || mode[0] == 'c':
			return fmt.Errorf("the root has a device node, %s: only root could unpack it, and no till needs it, the kernel makes them (BR2_ROOTFS_DEVICE_CREATION_DYNAMIC_MDEV)", name)
		case owner != "0/0" || strings.ContainsAny(mode, "sS"):
			g.Foreign = append(g.Foreign, name)
		}
	}
	said := map[string]string{}
	release, err1 := guest.Command(ctx, "", "unsquashfs", "-cat", g.file("rootfs.squashfs"), "usr/lib/os-release")
	built, err2 := guest.Command(ctx, "", "unsquashfs", "-cat", g.file("rootfs.squashfs"), "etc/tillward/built")
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("rootfs.squashfs is no root of ours: %w", err)
	}
	g.epoch = strings.TrimSpace(string(built))
	for line := range strings.Lines(string(release)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		said[k] = v
	}
	if said["VERSION_ID"] != g.Version || said["IMAGE_ID"] != g.Compatible {
		return fmt.Errorf("the root calls itself %s %s, image.json %s %s: they are of two builds; %s", said["IMAGE_ID"], said["VERSION_ID"], g.Compatible, g.Version, again)
	}
	return nil
}

// unpack makes the root a tree again, as post-build.sh left it; it is the same
// whoever does it.
func (g *Given) unpack(ctx context.Context, root string) error {
	if _, err := guest.Command(ctx, "", "unsquashfs", "-no-progress", "-quiet", "-no-xattrs", "-d", root, g.file("rootfs.squashfs")); err != nil {
		return err
	}
	for _, name := range g.Foreign {
		info, err := os.Lstat(filepath.Join(root, name))
		if err != nil {
			return err
		}
		if info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
			if err := os.Chmod(filepath.Join(root, name), info.Mode().Perm()); err != nil { // #nosec G302 -- of the image
				return err
			}
		}
	}
	return nil
}

// env is what the scripts have to know to make another image of this one.
func (g *Given) env() []string {
	return []string{"COMPATIBLE=" + g.Compatible, "INITRD=" + g.file("initrd.img"), "SOURCE_DATE_EPOCH=" + g.epoch, fmt.Sprintf("ROOT_MIB=%d", g.slot())}
}

// slot is a size for the slots, in MiB: RAUC reads all of both, so it is less
// than on a disk that is sold, where the root is.
func (g *Given) slot() int { return min(80, max(36, int(g.RootMiB*1.25)+4)) }
