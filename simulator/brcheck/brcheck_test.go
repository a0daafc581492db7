package brcheck_test

import (
	"iter"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/tillward/tillward/agent"
	"github.com/tillward/tillward/simulator/brcheck"
)

const tree = "../../buildroot"

// TestAlone holds the tree to every check that needs no Buildroot.
func TestAlone(t *testing.T) {
	for r, err := range brcheck.Alone(t.Context(), tree) {
		if err != nil {
			t.Fatal(err)
		}
		t.Run(r.Name, func(t *testing.T) {
			t.Log(r.Note)
			for _, w := range r.Wrong {
				t.Error(w)
			}
			if r.Skipped {
				t.Error("skipped")
			}
		})
	}
}

// TestAloneCanFail breaks a copy of the tree, once for each thing that a check
// is there to see.
func TestAloneCanFail(t *testing.T) {
	const (
		image = "configs/fragments/image.config"
		mk    = "package/tillward-agent/tillward-agent.mk"

		layout = "board/tillward/genimage.cfg.in"
	)
	for _, b := range []struct{ check, file, from, to, want string }{
		{"description", "external.desc", "name: TILLWARD", "name: tillward", `name "tillward"`},
		{"description", "external.mk", "package/*/*.mk", "package/x/*.mk", "does not include"},
		{"menus", "Config.in", "package/tillward-agent/Config.in", "package/tillward/Config.in", "is not there"},
		{"menus", "package/tillward-agent/Config.in", "\tbool \"tillward-agent\"\n", "", "is of no kind"},
		{"menus", "Config.in", "\thelp\n\t  For the workbench. A production image has none: whoever opens\n\t  a box would find a prompt.\n", "", "has no help"},
		{"menus", "Config.in", "config BR2_TILLWARD_MODEL", "config BR2_TILLWARD_VERSION", "is defined twice"},
		{"menus", "Config.in", "config BR2_TILLWARD_MODEL", "config BR2_MODEL", "may be somebody else's"},
		{"menus", "Config.in", "endmenu", "", "wants endmenu"},
		{"menus", "package/tillward-agent/Config.in", "BR2_PACKAGE_UTIL_LINUX_SETPRIV", "BR2_PACKAGE_UTIL_LINUX_SETPRIVS", "on no list"},
		{"menus", mk, "$(BR2_TILLWARD_VERSION)", "$(BR2_TILLWARD_VERSIONS)", "is in no menu"},
		{"packages", "Config.in", "source", "# source", "nobody sources it"},
		{"packages", mk, "TILLWARD_AGENT_TAGS", "AGENT_TAGS", "does not begin with"},
		{"packages", mk, "TILLWARD_AGENT_LICENSE_FILES = LICENSE\n", "", "does not say"},
		{"packages", mk, "$(eval $(golang-package))", "", "no infrastructure"},
		{"hashes", "package/tillward-agent/tillward-agent.hash", "sha256  c", "sha256  d", "does not say that LICENSE is"},
		{"hashes", "package/tillward-agent/tillward-agent.hash", "sha256  ", "sha256 ", "not a hash"},
		{"hashes", "board/tillward/patches/linux/linux.hash", "6.12.91", "6.12.90", "no hash of linux"},
		{"defconfigs made of fragments", image, "BR2_PACKAGE_RAUC=y", "", "is not what its fragments make"},
		{"defconfigs made of fragments", image, "BR2_PACKAGE_RAUC=y", "BR2_x86_64=y", "and so does"},
		{"defconfigs made of fragments", image, "BR2_PACKAGE_RAUC=y", "BR2_PACKAGE_RAUC", "neither a setting"},
		{"defconfig names", "configs/tillward_pc_x86_64_defconfig", "BR2_PACKAGE_RAUC=y", "BR2_PACKAGE_RUAC=y", "on no list"},
		{"defconfig names", "configs/tillward_pc_x86_64_defconfig", "BR2_PACKAGE_RAUC=y", "BR2_PACKAGE_RAUC=m", "is bool"},
		{"defconfig names", "configs/tillward_pc_x86_64_defconfig", "BR2_PACKAGE_RAUC=y", "BR2_PACKAGE_CCID=y", "twice"},
		{"files named", "configs/tillward_pc_x86_64_defconfig", "linux.fragment", "linus.fragment", "is not there"},
		{"kernel names", "board/tillward/linux.fragment", "CONFIG_DM_VERITY=y", "CONFIG_DM_VERIFY=y", "on no list"},
		{"kernel names", "board/tillward/linux-pc.fragment", "CONFIG_IGC=y", "CONFIG_USB_PRINTER=y", "and so does"},
		{"busybox names", "board/tillward/busybox.fragment", "CONFIG_KLOGD=y", "CONFIG_KLOGS=y", "on no list"},
		{"busybox names", "board/tillward/busybox.fragment", "CONFIG_PIDOF=y", "# CONFIG_PIDOF is not set", "scripts call pidof"},
		{"busybox features", "board/tillward/busybox.fragment", "CONFIG_DESKTOP=y", "", `"od -", and board/tillward/busybox.fragment does not say CONFIG_DESKTOP=y`},
		{"busybox features", "board/tillward/busybox.fragment", "CONFIG_FEATURE_DD_IBS_OBS=y", "# CONFIG_FEATURE_DD_IBS_OBS is not set", "rc.d/47-reset: \"dd if=/dev/zero of=$data bs=1M count=17 conv=\""},
		{"boards", "board/tillward/boards/imx8mp_evk/overlay/etc/rauc/system.conf", "bundle-formats=-plain", "", "in more than the boot loader"},
		{"scripts", "image.sh", "set -eu", "set -eu; echo $undefined", "SC2154"},
		{"disk and bundle", layout, "partition esp-b", "partition espb", `"espb", want "esp-b"`},
		{"disk and bundle", layout, "partition data {", "partition spare {\n\t\tsize = 1M\n\t}\n\tpartition data {", "7 partitions"},
		{"disk and bundle", layout, "b3c42b", "b3c42c", `ends in "B"`},
		{"disk and bundle", layout, "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "0fc63daf-8483-4772-8e79-3d69d8477de4", "esp-a is of type"},
		{"disk and bundle", layout, `align = "1M"`, `align = "512"`, "want a whole MiB"},
		{"disk and bundle", "board/tillward/pack.sh", "${DATA_MIB:=160}", "${DATA_MIB:=64}", "data has 64 MiB"},
		{"disk and bundle", "board/tillward/manifest.raucm.in", "format=verity", "format=plain", "format is not verity"},
		{"disk and bundle", "board/tillward/manifest.raucm.in", "[image.efi]", "[image.boot]", `does not say "efi"`},
		{"disk and bundle", "board/tillward/pack.sh", "set -eu", "set -eu; exit 3", "exit status 3"},
		{"disk and bundle", "board/tillward/overlay/etc/rauc/system.conf", "by-partlabel/rootfs-b", "by-partlabel/rootfs-c", "no partition"},
		{"disk and bundle", "board/tillward/overlay/etc/rauc/system.conf", "activate-installed=false", "", "does not say activate-installed"},
	} {
		t.Run(b.check+" "+b.want, func(t *testing.T) {
			dir := copied(t)
			edit(t, filepath.Join(dir, b.file), b.from, b.to)
			r := only(t, brcheck.Alone(t.Context(), dir, b.check), 1)
			if got := strings.Join(r.Wrong, "\n"); !strings.Contains(got, b.want) {
				t.Errorf("got %q, want %q", got, b.want)
			}
		})
	}
}

// only is the last of n results.
func only(t *testing.T, results iter.Seq2[brcheck.Result, error], n int) (last brcheck.Result) {
	t.Helper()
	got := 0
	for r, err := range results {
		if err != nil {
			t.Fatal(err)
		}
		last = r
		got++
	}
	if got != n {
		t.Fatalf("got %d results, want %d", got, n)
	}
	return last
}

// copied is a copy of the tree that may be broken, with the licence beside it.
func copied(t *testing.T) string {
	t.Helper()
	top := t.TempDir()
	dir := filepath.Join(top, "buildroot")
	if err := os.CopyFS(dir, os.DirFS(tree)); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(tree, "../LICENSE"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(top, "LICENSE"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func edit(t *testing.T, file, from, to string) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(raw), from, to, 1)
	if text == string(raw) {
		t.Fatalf("%s does not say %q", file, from)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestGuide holds docs/vendor.md to what there is: its boards, the words of
// make, and names of Buildroot.
func TestGuide(t *testing.T) {
	read := func(file string) string {
		raw, err := os.ReadFile(filepath.Join(tree, "..", file))
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	guide, makefile := read("docs/vendor.md"), read("Makefile")
	if wrong := guideWrong(guide, makefile, boards(t)); len(wrong) > 0 {
		t.Error(strings.Join(wrong, "\n"))
	}
	for _, broken := range []struct{ from, to string }{
		{"BOARD=pc_x86_64", "BOARD=pc_x64"}, {"`imx8mp_evk`", "`imx8mm_evk`"}, {"make sbom", "make bom"}, {"VENDOR=", "VENDORS="},
	} {
		if wrong := guideWrong(strings.ReplaceAll(guide, broken.from, broken.to), makefile, boards(t)); len(wrong) == 0 {
			t.Errorf("with %s: got nothing wrong", broken.to)
		}
	}
}

// TestGuideAgent hands the agent the configuration that the guide begins with.
func TestGuideAgent(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(tree, "../docs/vendor.md"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)\n```toml\n(.*?)```\n").FindSubmatch(raw)
	if m == nil {
		t.Fatal("the guide has no configuration")
	}
	file := filepath.Join(t.TempDir(), "agent.toml")
	for text, good := range map[string]bool{string(m[1]): true, strings.Replace(string(m[1]), "state_dir", "state_folder", 1): false} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := agent.LoadConfig(file); (err == nil) != good {
			t.Errorf("got %v, want good %t", err, good)
		}
	}
}

func boards(t *testing.T) (list []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(tree, "configs/*_defconfig"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d boards, %v", len(files), err)
	}
	for _, f := range files {
		list = append(list, strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), "tillward_"), "_defconfig"))
	}
	return list
}

func guideWrong(guide, makefile string, boards []string) (wrong []string) {
	for _, b := range boards {
		if !strings.Contains(guide, "`"+b+"`") {
			wrong = append(wrong, "does not speak of board "+b)
		}
	}
	for _, m := range regexp.MustCompile(`BOARD=([a-z0-9_]+)`).FindAllStringSubmatch(guide, -1) {
		if !slices.Contains(boards, m[1]) {
			wrong = append(wrong, "there is no board "+m[1])
		}
	}
	for _, m := range regexp.MustCompile("(?:`|\n)make ([a-z-]+)(.*)").FindAllStringSubmatch(guide, -1) {
		if !strings.Contains(makefile, "\n"+m[1]+":") {
			wrong = append(wrong, "there is no make "+m[1])
		}
		for _, word := range regexp.MustCompile(`\b([A-Z_]+)=`).FindAllStringSubmatch(m[2], -1) {
			if !strings.Contains(makefile, "$("+word[1]+")") {
				wrong = append(wrong, "make takes no "+word[1])
			}
		}
	}
	return wrong
}
