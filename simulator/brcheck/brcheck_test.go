package brcheck_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tillward/tillward/simulator/brcheck"
)

const tree = "../../buildroot"

// TestAlone holds the tree to every check that needs no Buildroot.
func TestAlone(t *testing.T) {
	results, err := brcheck.Alone(t.Context(), tree)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
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
		{"busybox names", "board/tillward/busybox.fragment", "CONFIG_NTPD=y", "CONFIG_NTPS=y", "on no list"},
		{"scripts", "image.sh", "set -eu", "set -eu; echo $undefined", "SC2154"},
	} {
		t.Run(b.check+" "+b.want, func(t *testing.T) {
			dir := copied(t)
			edit(t, filepath.Join(dir, b.file), b.from, b.to)
			results, err := brcheck.Alone(t.Context(), dir, b.check)
			if err != nil {
				t.Fatal(err)
			}
			if len(results) != 1 {
				t.Fatalf("got %d results, want that of %s", len(results), b.check)
			}
			if got := strings.Join(results[0].Wrong, "\n"); !strings.Contains(got, b.want) {
				t.Errorf("got %q, want %q", got, b.want)
			}
		})
	}
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
