package firmware_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tillward/tillward/provisioning/uki"
	"github.com/tillward/tillward/simulator/firmware"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

var salt = []byte("\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff")

// hashed puts the tree of dm-verity behind blocks of data.
func hashed(data []byte) (all, root []byte) {
	var levels []byte
	for level := data; ; {
		var sums []byte
		for b := range slices.Chunk(level, 4096) {
			sum := sha256.Sum256(slices.Concat(salt, b))
			sums = append(sums, sum[:]...)
		}
		if len(level) == 4096 {
			return slices.Concat(data, levels), sums
		}
		level = append(sums, make([]byte, (4096-len(sums)%4096)%4096)...)
		levels = slices.Concat(level, levels)
	}
}

// TestVerity reads what veritysetup has written: 2.6.1 of this data, with format
// 1, SHA-256, blocks of 4096 and no superblock.
func TestVerity(t *testing.T) {
	for blocks, want := range map[int64]string{
		130:   "b7f58faa66e4fc2713ecc692997ce714b8847ef26d194509863212ecc93c0314",
		16385: "4a769b051aba12ad6c7ce26c98a3910bb7a41a1ddcf9f20090e004f0799a1083", // three levels of hashes
	} {
		var data []byte
		for n := range blocks {
			data = append(data, bytes.Repeat([]byte{byte(n % 251)}, 4096)...)
		}
		all, root := hashed(data)
		if got := hex.EncodeToString(root); got != want {
			t.Fatalf("%d blocks: root hash %s, want %s", blocks, got, want)
		}
		if sum := sha256.Sum256(all); blocks == 130 && hex.EncodeToString(sum[:]) != "6f3ad254ecf9809247682780ceb25983dbfd63ce6d13ac5520669369de5f3a04" {
			t.Fatalf("the tree is not veritysetup's: %x", sum)
		}
		check := func(b []byte) error {
			return firmware.CheckVerity(bytes.NewReader(b), int64(len(b)), blocks, salt, root)
		}
		must(t, check(all))
		for at, what := range map[int]string{
			5: "block 0, in the data", 129*4096 + 7: "block 129, in the data",
			len(data): fmt.Sprintf("block %d, in the hash tree", blocks), len(all) - 4096: fmt.Sprintf("block %d, in the hash tree", len(all)/4096-1),
		} {
			all[at] ^= 1
			if err := check(all); err == nil || !strings.Contains(err.Error(), what) {
				t.Errorf("%d blocks, byte %d flipped: got %v, want %q", blocks, at, err, what)
			}
			all[at] ^= 1
		}
		for _, b := range [][]byte{all[:len(all)-4096], append(slices.Clone(all), make([]byte, 4096)...), data, nil} {
			if err := check(b); err == nil {
				t.Errorf("%d blocks: %d bytes: got no error", blocks, len(b))
			}
		}
	}
}

// outside is an image as make image leaves it, as far as it is read before it is
// built anew. Nothing can run it.
type outside struct {
	dir, model, version string
	machine             []byte // the kernel; and what stub and command line are made with
	cmdline             func(root []byte, blocks int) string
	tree                map[string]string
	squash              []string // options for mksquashfs, in place of -all-root
}

// write makes the folder, all files of which fit each other.
func (o outside) write(t *testing.T) {
	t.Helper()
	tree := t.TempDir()
	for name, text := range o.tree {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(tree, name)), 0o755))
		must(t, os.WriteFile(filepath.Join(tree, name), []byte(text), 0o644))
	}
	must(t, os.MkdirAll(o.dir, 0o755))
	squashfs := filepath.Join(o.dir, "rootfs.squashfs")
	out, err := exec.Command("mksquashfs", append([]string{tree, squashfs, "-noappend", "-quiet", "-no-progress"}, o.squash...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	plain, err := os.ReadFile(squashfs)
	must(t, err)
	data := append(plain, make([]byte, (4096-len(plain)%4096)%4096)...)
	data = append(data, make([]byte, max(0, 2*4096-len(data)))...)
	all, root := hashed(data)
	stub := tpmfarm.Program(uki.Section{Name: ".text", Data: []byte("stub")}, uki.Section{Name: ".sdmagic", Data: []byte("#### LoaderInfo: systemd-stub 257.9 ####")})
	p := uki.Parts{Kernel: o.machine, Initrd: []byte("an initrd"), Cmdline: o.cmdline(root, len(data)/4096), OSRelease: []byte("ID=tillward\n")}
	image, err := uki.Build(stub, p)
	must(t, err)
	for name, b := range map[string][]byte{
		"rootfs.img": all, "bzImage": p.Kernel, "initrd.img": p.Initrd, "cmdline": []byte(p.Cmdline), "os-release": p.OSRelease, "uki.efi": image,
	} {
		must(t, os.WriteFile(filepath.Join(o.dir, name), b, 0o644))
	}
	o.say(t, nil)
}

// say writes image.json, of the files as they are; and otherwise what instead
// says.
func (o outside) say(t *testing.T, instead map[string]string) {
	t.Helper()
	files := map[string]any{}
	for _, name := range []string{"rootfs.squashfs", "rootfs.img", "initrd.img", "uki.efi"} {
		b, err := os.ReadFile(filepath.Join(o.dir, name))
		must(t, err)
		files[name] = map[string]any{"bytes": len(b), "sha256": fmt.Sprintf("%x", sha256.Sum256(b))}
	}
	all := map[string]any{"version": o.version, "model": o.model, "compatible": "vend-500", "files": files}
	for k, v := range instead {
		all[k] = v
	}
	b, err := json.Marshal(all)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(o.dir, "image.json"), b, 0o644))
}

// names is a command line that names a root.
func names(root []byte, blocks int) string {
	return fmt.Sprintf("tillward.root=%x,%x,%d rdinit=/init ro", root, salt, blocks)
}

// fine is an image with nothing wrong in it.
func fine(dir string) outside {
	return outside{
		dir: dir, model: "POS 500", version: "1.2.3", machine: tpmfarm.Program(uki.Section{Name: ".text", Data: []byte("kernel")}), cmdline: names,
		squash: []string{"-all-root"}, tree: map[string]string{"usr/lib/os-release": "ID=tillward\nVERSION_ID=1.2.3\nIMAGE_ID=vend-500\n", "etc/tillward/built": "1700000000\n"},
	}
}

// TestReadImage takes an image that is whole, and none that is not; the words say
// what is wrong and what to do.
func TestReadImage(t *testing.T) {
	read := func(dir string) (*firmware.Given, error) { return firmware.ReadImage(t.Context(), dir) }
	dir := t.TempDir()
	o := fine(filepath.Join(dir, "images"))
	o.write(t)
	for _, path := range []string{dir, o.dir} {
		g, err := read(path)
		must(t, err)
		if g.Dir != o.dir || g.Version != "1.2.3" || g.Model != "POS 500" || g.Compatible != "vend-500" || g.Console || len(g.Foreign) > 0 {
			t.Errorf("%s: got %+v", path, g)
		}
	}
	edit := func(name string, change func(b []byte) []byte) func(*testing.T, outside) {
		return func(t *testing.T, o outside) {
			b, err := os.ReadFile(filepath.Join(o.dir, name))
			must(t, err)
			must(t, os.WriteFile(filepath.Join(o.dir, name), change(b), 0o644))
		}
	}
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	longer := func(b []byte) []byte { return append(b, " and more"...) }
	andSay := func(change func(*testing.T, outside)) func(*testing.T, outside) {
		return func(t *testing.T, o outside) { change(t, o); o.say(t, nil) }
	}
	for _, c := range []struct {
		name   string
		made   func(*outside)
		change func(*testing.T, outside)
		want   []string
	}{
		{name: "no folder", change: func(t *testing.T, o outside) { must(t, os.RemoveAll(o.dir)) }, want: []string{"holds no image", "make image", "or the one above"}},
		{name: "not one of ours", change: func(t *testing.T, o outside) { must(t, os.Remove(filepath.Join(o.dir, "image.json"))) }, want: []string{"holds no image", "image.json"}},
		{name: "half an image.json", change: edit("image.json", func(b []byte) []byte { return b[:len(b)/2] }), want: []string{"image.json: unexpected end", "build the image again"}},
		{name: "of no version", made: func(o *outside) { o.version = "" }, want: []string{`version ""`}},
		{name: "of no model", made: func(o *outside) { o.model = "" }, want: []string{`model ""`}},
		{name: "image.json lacks a file", change: func(t *testing.T, o outside) { o.say(t, map[string]string{"files": ""}) }, want: []string{"image.json"}},
		{name: "a file is gone", change: func(t *testing.T, o outside) { must(t, os.Remove(filepath.Join(o.dir, "initrd.img"))) }, want: []string{"initrd.img", "no such file", "build the image again"}},
		{name: "a byte of the root", change: edit("rootfs.img", flip), want: []string{"rootfs.img is not what image.json says", "changed after the build", "build the image again"}},
		{name: "a byte of the root, and image.json lies", change: andSay(edit("rootfs.img", flip)), want: []string{"rootfs.img is not the root that uki.efi names", "block", "no till would start it"}},
		{name: "a byte of the squashfs, and image.json lies", change: andSay(edit("rootfs.squashfs", flip)), want: []string{"rootfs.img does not begin with rootfs.squashfs"}},
		{name: "a byte of the image", change: edit("uki.efi", flip), want: []string{"uki.efi is not what image.json says"}},
		{name: "image.json lies of its size", change: edit("image.json", func(b []byte) []byte { return bytes.Replace(b, []byte(`"bytes":`), []byte(`"bytes":1`), 1) }), want: []string{"is not what image.json says"}},
		{name: "another kernel", change: edit("bzImage", longer), want: []string{"the bzImage in uki.efi is not the one beside it", "two builds"}},
		{name: "no kernel", change: func(t *testing.T, o outside) { must(t, os.Remove(filepath.Join(o.dir, "bzImage"))) }, want: []string{"bzImage", "no such file"}},
		{name: "another initrd", change: andSay(edit("initrd.img", longer)), want: []string{"the initrd.img in uki.efi is not the one beside it"}},
		{name: "another command line", change: edit("cmdline", longer), want: []string{"the cmdline in uki.efi is not the one beside it"}},
		{name: "another os-release", change: edit("os-release", longer), want: []string{"the os-release in uki.efi is not the one beside it"}},
		{name: "no unified image", change: andSay(edit("uki.efi", func([]byte) []byte { return []byte("MZ") })), want: []string{"uki.efi: not a PE file"}},
		{
			name: "signed", want: []string{"uki.efi: ", "another tool", "as make image leaves it"},
			change: andSay(edit("uki.efi", func(b []byte) []byte { return append(b, make([]byte, 8)...) })),
		},
		{
			name: "another hash", want: []string{"rootfs.img is not the root that uki.efi names", "in the hash tree"},
			made: func(o *outside) {
				o.cmdline = func(root []byte, blocks int) string { return names(slices.Repeat(root[:1], 32), blocks) }
			},
		},
		{
			name: "another size", want: []string{"rootfs.img is not the root that uki.efi names"},
			made: func(o *outside) { o.cmdline = func(root []byte, blocks int) string { return names(root, blocks+1) } },
		},
		{name: "no hash", made: func(o *outside) { o.cmdline = func([]byte, int) string { return "root=/dev/sda1" } }, want: []string{"names no root"}},
		{name: "another version", made: func(o *outside) { o.version = "1.2.4" }, want: []string{"the root calls itself vend-500 1.2.3, image.json vend-500 1.2.4"}},
		{name: "a root of somebody else's", made: func(o *outside) { o.tree = map[string]string{"etc/passwd": "root"} }, want: []string{"no root of ours"}},
		{name: "a device node", made: func(o *outside) { o.squash = []string{"-all-root", "-p", "console c 600 0 0 5 1"} }, want: []string{"device node, /console"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := fine(filepath.Join(t.TempDir(), "images"))
			if c.made != nil {
				c.made(&o)
			}
			o.write(t)
			if c.change != nil {
				c.change(t, o)
			}
			_, err := read(o.dir)
			for _, want := range c.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %q", err, want)
				}
			}
		})
	}
	t.Run("for an Arm board", func(t *testing.T) {
		o := fine(t.TempDir())
		o.write(t)
		// The machine is behind "PE\0\0", of the image and of the kernel in it.
		b, err := os.ReadFile(filepath.Join(o.dir, "uki.efi"))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(o.dir, "uki.efi"), bytes.ReplaceAll(b, []byte("PE\x00\x00\x64\x86"), []byte("PE\x00\x00\x64\xaa")), 0o644))
		o.say(t, nil)
		if _, err := read(o.dir); err == nil || !strings.Contains(err.Error(), "machine 0xaa64") || !strings.Contains(err.Error(), "qemu_x86_64") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("others' files", func(t *testing.T) {
		o := fine(t.TempDir())
		o.squash = []string{"-root-uid", "0", "-root-gid", "0", "-force-uid", "7", "-force-gid", "0"}
		o.cmdline = func(root []byte, blocks int) string { return names(root, blocks) + " console=ttyS0 loglevel=6" }
		o.write(t)
		g, err := read(o.dir)
		must(t, err)
		if !slices.Contains(g.Foreign, "/etc/tillward/built") || !g.Console {
			t.Errorf("got %q, console %v", g.Foreign, g.Console)
		}
	})
}
