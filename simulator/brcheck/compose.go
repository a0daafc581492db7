package brcheck

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// recipes say which fragments make which configuration. Plain Buildroot takes
// only whole ones, so they are written out, and nobody edits them.
var recipes = map[string][]string{
	"tillward_qemu_x86_64":  {"image", "x86_64", "uefi", "qemu_x86_64"},
	"tillward_qemu_aarch64": {"image", "aarch64", "uefi", "qemu_aarch64"},
	"tillward_pc_x86_64":    {"image", "x86_64", "uefi", "pc_x86_64"},
	"tillward_imx8mp_evk":   {"image", "aarch64", "imx8mp_evk"},
}

// Write puts the configurations that the fragments make into dir/configs.
func Write(dir string) error {
	x, err := open(dir)
	if err != nil {
		return err
	}
	for name := range recipes {
		text, wrong := x.compose(name)
		if len(wrong) > 0 {
			return fmt.Errorf("make %s: %s", name, strings.Join(wrong, "; "))
		}
		if err := os.WriteFile(filepath.Join(dir, "configs", name+"_defconfig"), []byte(text), 0o644); err != nil { //nolint:gosec // a source file like the others
			return err
		}
	}
	return nil
}

// compose puts the fragments of a configuration together. No two may speak of
// one name: which of them won would depend on their order.
func (x *external) compose(name string) (text string, wrong []string) {
	parts := recipes[name]
	var b strings.Builder
	fmt.Fprintf(&b, "# Made by `make defconfigs` of fragments: %s. Change those.\n", strings.Join(parts, " "))
	said := map[string]string{}
	for _, part := range parts {
		c, ok := x.fragments[part]
		if !ok {
			wrong = append(wrong, "no fragment "+part)
		}
		wrong = append(wrong, c.wrong...)
		for _, s := range c.lines {
			if by, ok := said[s.name]; ok {
				wrong = append(wrong, fmt.Sprintf("%s says %s, and so does %s", part, s.name, by))
			}
			said[s.name] = part
			b.WriteString(s.String() + "\n")
		}
	}
	return b.String(), wrong
}

func checkComposed(_ context.Context, x *external) (string, []string, error) {
	var wrong []string
	used := map[string]bool{}
	for name, parts := range recipes {
		text, bad := x.compose(name)
		wrong = append(wrong, bad...)
		if x.defconfigs[name].text != text {
			wrong = append(wrong, name+"_defconfig is not what its fragments make: `make defconfigs`")
		}
		for _, p := range parts {
			used[p] = true
		}
	}
	for name := range x.defconfigs {
		if recipes[name] == nil {
			wrong = append(wrong, name+"_defconfig is made of nothing: write its recipe")
		}
	}
	for name := range x.fragments {
		if !used[name] {
			wrong = append(wrong, name+".config is part of no configuration")
		}
	}
	return fmt.Sprintf("%s", slices.Sorted(maps.Keys(x.defconfigs))), wrong, nil
}
