package brcheck_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tillward/tillward/simulator/brcheck"
)

// TestAgainstCanFail breaks a copy of the tree where only a Buildroot can see
// it. That the tree itself passes is `make check-buildroot`; both want a
// checkout, which the one who has it names.
func TestAgainstCanFail(t *testing.T) {
	at := brcheck.Tree{Buildroot: os.Getenv("BUILDROOT"), Linux: os.Getenv("KERNEL")}
	if at.Buildroot == "" {
		t.Skip("BUILDROOT names no checkout")
	}
	const (
		defconfig = "configs/tillward_pc_x86_64_defconfig"
		pc        = "tillward_pc_x86_64 "
	)
	for _, b := range []struct {
		checks         []string
		file, from, to string
		want           string
	}{
		{[]string{pc + "loads"}, defconfig, "BR2_PACKAGE_RAUC=y", "BR2_PACKAGE_RUAC=y", "lost: BR2_PACKAGE_RUAC=y"},
		{[]string{pc + "loads"}, defconfig, "BR2_PACKAGE_RAUC_NETWORK=y\n", "", "lost: BR2_PACKAGE_RAUC_STREAMING=y"},
		{[]string{pc + "loads"}, "package/tillward-agent/Config.in", "depends on BR2_TOOLCHAIN_USES_GLIBC", "depends on BR2_TOOLCHAIN_USES_MUSL", "lost: BR2_PACKAGE_TILLWARD_AGENT=y"},
		{[]string{pc + "loads"}, "Config.in", "endmenu", "", "make tillward_pc_x86_64_defconfig"},
		{[]string{pc + "loads", pc + "packages"}, "package/tillward-agent/tillward-agent.mk", "\tosusergo \\\n", "", "is not built with -tags"},
		{[]string{pc + "loads", pc + "packages"}, defconfig, "BR2_PACKAGE_CHRONY=y\n", "", "no package chrony"},
		{[]string{pc + "loads", pc + "packages"}, "external.mk", "export TILLWARD_MODEL", "export TILLWARD_MODELS", "do not get TILLWARD_MODEL"},
		{[]string{pc + "loads", pc + "users"}, "board/tillward/users.table", ",tss Till", " Till", "etc/group has no line"},
		{[]string{pc + "loads", pc + "users"}, "board/tillward/users.table", " 900 * - ", " 900 - - ", "etc/shadow has no line"},
		{[]string{pc + "kernel"}, "board/tillward/linux.fragment", "CONFIG_NF_TABLES=y\n", "", "lost: CONFIG_NFT_CT=y"},
		{[]string{pc + "kernel"}, "board/tillward/linux.fragment", "# CONFIG_MODULES is not set\n", "", "a module, and there are none"},
		{[]string{"check-package"}, defconfig, "BR2_DOWNLOAD_FORCE_CHECK_HASHES=y\n", "", "BR2_DOWNLOAD_FORCE_CHECK_HASHES"},
	} {
		t.Run(b.want, func(t *testing.T) {
			dir := copied(t)
			edit(t, filepath.Join(dir, b.file), b.from, b.to)
			at.Out = filepath.Join(t.TempDir(), "out")
			r := only(t, at.Check(t.Context(), dir, b.checks...), len(b.checks))
			if r.Skipped {
				t.Skip(r.Note)
			}
			if got := strings.Join(r.Wrong, "\n"); !strings.Contains(got, b.want) || got == "" {
				t.Errorf("got %q, want %q", got, b.want)
			}
		})
	}
}
