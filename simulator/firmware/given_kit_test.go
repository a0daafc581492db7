//go:build firmware

package firmware_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tillward/tillward/provisioning/uki"
	"github.com/tillward/tillward/simulator/firmware"
)

// vendorOf makes the folder of a vendor whose keys are words.
func vendorOf(t *testing.T, who string) string {
	dir := t.TempDir()
	for _, name := range []string{"agent.toml", "service-roots.pem", "root.json", "seal.pub", "rauc-keyring.pem"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(name+" of "+who+"\n"), 0o644))
	}
	return dir
}

// standIn is an image of the kit's, as make image would leave it: with a kernel
// that has modules, which Buildroot's have not.
func standIn(t *testing.T) (o firmware.Options, s firmware.Spec, dir string) {
	dir = filepath.Join(t.TempDir(), "images")
	o = firmware.Options{Source: "../..", Bin: *binFlag, Cache: *cacheFlag, Say: os.Stderr}
	k, err := firmware.Open(t.Context(), o)
	must(t, err)
	list, err := filepath.Abs("../../buildroot/board/tillward/initrd/modules")
	must(t, err)
	s = firmware.Spec{
		Version: "1.2.3", Model: "Stand In", Compatible: "stand-in", Vendor: vendorOf(t, "one"),
		Env: []string{"SOURCE_DATE_EPOCH=1710000000", "INITRD_MODULES=" + list, "ROOT_MIB=40"},
	}
	i, err := k.Build(t.Context(), s, dir)
	must(t, err)
	copyFile(t, k.Kernel(), filepath.Join(i.Dir, "bzImage"))
	return o, s, dir
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to, b, 0o644))
}

// tree is the content of a squashfs, by name: what a file holds and where a link
// leads, with its mode.
func tree(t *testing.T, squashfs string) map[string]string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	if out, err := exec.Command("unsquashfs", "-quiet", "-no-progress", "-d", root, squashfs).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	all := map[string]string{}
	must(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text := []byte{}
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			to, rerr := os.Readlink(path)
			text, err = []byte(to), rerr
		case d.Type().IsRegular():
			text, err = os.ReadFile(path)
		}
		name, _ := filepath.Rel(root, path)
		all[name] = fmt.Sprintf("%v %s", info.Mode(), text)
		return err
	}))
	return all
}

// TestFirmwareGiven has images made of an image that was built elsewhere. The
// same version for the same vendor is the same image, byte for byte; for another
// vendor it differs in what is a vendor's.
func TestFirmwareGiven(t *testing.T) {
	needsQEMU(t)
	o, s, dir := standIn(t)
	o.Image = filepath.Dir(dir)
	k, err := firmware.Open(t.Context(), o)
	must(t, err)
	if g := k.Given; g.Kernel != k.ABI || !strings.HasPrefix(g.Stub, "systemd-stub ") {
		t.Errorf("kernel %q and stub %q, want %q", g.Kernel, g.Stub, k.ABI)
	}
	if g := k.Given; g.Version != s.Version || g.Model != s.Model || g.Compatible != s.Compatible || g.Console || len(g.Foreign) > 0 {
		t.Errorf("got %+v of %+v", k.Given, s)
	}
	changed, err := k.Rebuild(t.Context(), t.TempDir())
	must(t, err)
	if len(changed) > 0 {
		t.Errorf("made once more: %q", changed)
	}

	same, err := k.Build(t.Context(), firmware.Spec{Version: s.Version, Model: s.Model, Vendor: s.Vendor}, t.TempDir())
	must(t, err)
	for _, name := range []string{"rootfs.squashfs", "rootfs.img", "initrd.img", "uki.efi", "esp.img"} {
		a, b, err := sums([2]string{filepath.Join(dir, name), filepath.Join(same.Dir, name)})
		if err != nil || a != b {
			t.Errorf("%s of the same version for the same vendor differs: %v", name, err)
		}
	}

	other, err := k.Build(t.Context(), firmware.Spec{
		Version: "2.0.0", Model: "Other", Compatible: "other", Vendor: vendorOf(t, "two"), Overlay: map[string]string{"sbin/init": "#!/bin/sh\n"},
	}, t.TempDir())
	must(t, err)
	was, now := tree(t, filepath.Join(dir, "rootfs.squashfs")), tree(t, other.SquashFS)
	var differ []string
	for name := range was {
		if was[name] != now[name] {
			differ = append(differ, name)
		}
	}
	slices.Sort(differ)
	want := []string{
		"etc/rauc/keyring.pem", "etc/tillward/agent.toml", "etc/tillward/root.json", "etc/tillward/seal.pub", "etc/tillward/service-roots.pem",
		"usr/lib/os-release", "usr/sbin/init",
	}
	if !slices.Equal(differ, want) || len(was) != len(now) {
		t.Errorf("for another vendor %q differ, want %q; %d files, were %d", differ, want, len(now), len(was))
	}
	if got := now["usr/sbin/init"]; got != "-rwxr-xr-x #!/bin/sh\n" {
		t.Errorf("a link that was replaced: %.50q", got)
	}
	if text := now["etc/rauc/system.conf"]; !strings.Contains(text, "\ncompatible=stand-in\n") {
		t.Errorf("system.conf is for another box: %s", text)
	}
	one, two := parsed(t, filepath.Join(dir, "uki.efi")), parsed(t, other.UKI)
	if !one.SameStub(two) || !bytes.Equal(one.Section(".linux"), two.Section(".linux")) || !bytes.Equal(one.Section(".initrd"), two.Section(".initrd")) {
		t.Error("stub, kernel or initrd is not that of the image")
	}
	if one.Cmdline() == two.Cmdline() || one.PE == two.PE {
		t.Error("another root has the same hash")
	}

	t.Run("of another checkout", func(t *testing.T) {
		elsewhere := t.TempDir()
		if out, err := exec.Command("cp", "-a", "../../buildroot", "../../agent", elsewhere).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		board := filepath.Join(elsewhere, "buildroot", "board", "tillward")
		for name, text := range map[string]string{
			"overlay/usr/libexec/tillward/rc.d/99-new": "#!/bin/sh\n", "initrd/init": "#!/bin/sh\n", "applets": "/bin cat\n=/bin new\n",
		} {
			must(t, os.WriteFile(filepath.Join(board, name), []byte(text), 0o755))
		}
		script, err := os.ReadFile(filepath.Join(board, "image.sh"))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(board, "image.sh"), bytes.Replace(script, []byte("panic=10"), []byte("panic=11"), 1), 0o755))
		o := o
		o.Source = elsewhere
		k, err := firmware.Open(t.Context(), o)
		must(t, err)
		changed, err := k.Rebuild(t.Context(), t.TempDir())
		must(t, err)
		for _, want := range []string{"post-build.sh brings usr/bin/new", "rc.d/99-new is another one here", "the initrd: mkinitrd.sh makes another one", "uki.efi: image.sh makes another one"} {
			if !slices.ContainsFunc(changed, func(s string) bool { return strings.Contains(s, want) }) {
				t.Errorf("got %q, want %q", changed, want)
			}
		}
	})
}

func parsed(t *testing.T, name string) uki.Image {
	t.Helper()
	b, err := os.ReadFile(name)
	must(t, err)
	i, err := uki.Parse(b)
	must(t, err)
	return i
}
