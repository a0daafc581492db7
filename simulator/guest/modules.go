package guest

import (
	"context"
	"debug/elf"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
)

// Module is a module of a kernel and where it lies.
type Module struct{ Name, File string }

// Modules returns modules of the kernel whose folder is dir, and all that they
// stand on, in an order in which they can be loaded. Those that are built in are
// left out; extra are modules that lie elsewhere, by their names. What is
// compressed is unpacked in its place.
func Modules(ctx context.Context, dir string, names []string, extra map[string]string) (order []Module, err error) {
	files := map[string]string{}
	err = filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if f := strings.TrimSuffix(p, ".xz"); strings.HasSuffix(f, ".ko") {
			files[plain(f)] = p
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	maps.Copy(files, extra)
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin")) // #nosec G304 -- of the cache
	if err != nil {
		return nil, err
	}
	inside := map[string]bool{}
	for line := range strings.Lines(string(builtin)) {
		inside[plain(strings.TrimSpace(line))] = true
	}
	done := map[string]bool{}
	var visit func(name string) error
	visit = func(name string) error {
		if name = strings.ReplaceAll(name, "-", "_"); done[name] || inside[name] {
			return nil
		}
		done[name] = true
		file := files[name]
		if file == "" {
			return fmt.Errorf("this kernel has no module %s", name)
		}
		if f, packed := strings.CutSuffix(file, ".xz"); packed {
			if _, err := Command(ctx, "", "xz", "-d", file); err != nil {
				return err
			}
			file = f
		}
		needs, err := modinfo(file)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, n := range needs {
			if err := visit(n); err != nil {
				return err
			}
		}
		order = append(order, Module{name, file})
		return nil
	}
	for _, n := range names {
		if err := visit(n); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// plain is a module's name: the kernel says _ where a file may say -.
func plain(path string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(path), ".ko"), "-", "_")
}

// modinfo reads which modules a module needs.
func modinfo(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("%s says nothing of itself", file)
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for field := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(field, "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
