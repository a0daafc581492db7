package brcheck

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// kernel merges the fragments of a board over the configuration that Buildroot
// keeps, as its build would, and asks the kernel's own Kconfig what is left.
func (b board) kernel(ctx context.Context, x *external) (string, []string, error) {
	if b.Linux == "" {
		return "no source of a kernel given", nil, errSkip
	}
	linux, err := filepath.Abs(b.Linux)
	if err != nil {
		return "", nil, err
	}
	c := x.defconfigs[b.name]
	arch := "x86_64"
	if c.value("BR2_aarch64") == "y" {
		arch = "arm64"
	}
	base, err := os.ReadFile(filepath.Join(b.Buildroot, c.value("BR2_LINUX_KERNEL_CUSTOM_CONFIG_FILE")))
	if err != nil {
		return "", nil, err
	}
	all := parseConfig("base", string(base)).lines
	var ours []setting
	for _, s := range c.lines {
		if s.name != "BR2_LINUX_KERNEL_CONFIG_FRAGMENT_FILES" {
			continue
		}
		for _, file := range s.ours() {
			f, err := x.config(file)
			if err != nil {
				return "", nil, err
			}
			ours = append(ours, f.lines...)
		}
	}
	out := filepath.Join(b.out, "linux")
	if err := os.MkdirAll(out, 0o755); err != nil { //nolint:gosec // a cache like the others
		return "", nil, err
	}
	var text strings.Builder
	for _, s := range append(all, ours...) { // the last one wins, as in Buildroot's merging
		text.WriteString(s.String() + "\n")
	}
	if err := os.WriteFile(filepath.Join(out, ".config"), []byte(text.String()), 0o600); err != nil {
		return "", nil, err
	}
	m := exec.CommandContext(ctx, "make", "-s", "-C", linux, "ARCH="+arch, "O="+out, "olddefconfig")
	m.Env = append(os.Environ(), "LC_ALL=C", "MAKEFLAGS=", "MAKELEVEL=")
	if said, err := m.CombinedOutput(); err != nil {
		return "", nil, fmt.Errorf("configure the kernel: %w: %s", err, last(string(said)))
	}
	got, err := os.ReadFile(filepath.Join(out, ".config"))
	if err != nil {
		return "", nil, err
	}
	config := parseConfig(".config", string(got))
	wrong := lost(ours, config)
	for _, s := range config.lines {
		if s.value == "m" {
			wrong = append(wrong, s.String()+": a module, and there are none")
		}
	}
	release := regexp.MustCompile(`(?m)^# Linux/\S+ (\S+)`).FindStringSubmatch(string(got))
	if release == nil {
		return "", nil, fmt.Errorf("%s is of no kernel", filepath.Join(out, ".config"))
	}
	return fmt.Sprintf("Linux %s: %d lines of ours", release[1], len(ours)), wrong, nil
}
