package firmware

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// libraries are where Debian has them, below the merged /usr.
var libraries = []string{"usr/lib/x86_64-linux-gnu", "usr/lib", "usr/lib/x86_64-linux-gnu/systemd"}

// assembleRoot makes of unpacked packages a root with what keep names and the
// libraries that it needs, by what the programs say themselves. It has no
// device nodes, no users and no configuration of its own: those are the
// overlay's.
func assembleRoot(from, to string) error {
	for _, dir := range []string{"usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc"} {
		if err := os.MkdirAll(filepath.Join(to, dir), 0o755); err != nil { // #nosec G301 -- a root that all may read
			return err
		}
	}
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+dir, filepath.Join(to, dir)); err != nil {
			return err
		}
	}
	a := assembly{from: from, to: to, done: map[string]bool{}}
	for _, p := range keep {
		for _, path := range p.paths {
			found := false
			err := filepath.WalkDir(filepath.Join(from, path), func(file string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				found = true
				name, err := filepath.Rel(from, file)
				return errors.Join(err, a.take(name))
			})
			if err == nil && !found {
				err = errors.New("nothing there")
			}
			if err != nil {
				return fmt.Errorf("%s: %s: %w", p.name, path, err)
			}
		}
	}
	return os.Symlink("busybox", filepath.Join(to, "usr/bin/sh"))
}

type assembly struct {
	from, to string
	done     map[string]bool
}

// take copies a file, what a link leads to, and the libraries that a program
// needs. Paths are of the merged /usr.
func (a assembly) take(name string) error {
	if a.done[name] {
		return nil
	}
	a.done[name] = true
	from, to := filepath.Join(a.from, name), filepath.Join(a.to, name)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil { // #nosec G301 -- a root that all may read
		return err
	}
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		next := strings.TrimPrefix(target, "/")
		if !filepath.IsAbs(target) {
			next = filepath.Join(filepath.Dir(name), target)
		}
		if err := os.Symlink(target, to); err != nil {
			return err
		}
		return a.take(merged(next))
	}
	b, err := os.ReadFile(from) // #nosec G304 -- of the kit
	if err != nil {
		return err
	}
	if err := os.WriteFile(to, b, info.Mode().Perm()); err != nil {
		return err
	}
	return a.needs(name)
}

// needs takes the dynamic linker and the libraries of a program or library.
func (a assembly) needs(name string) error {
	f, err := elf.Open(filepath.Join(a.from, name))
	if err != nil {
		return nil //nolint:nilerr // not a program
	}
	defer f.Close()
	list, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			b := make([]byte, p.Filesz)
			if _, err := p.ReadAt(b, 0); err != nil {
				return err
			}
			if err := a.take(merged(strings.TrimPrefix(strings.TrimRight(string(b), "\x00"), "/"))); err != nil {
				return err
			}
		}
	}
	for _, lib := range list {
		if err := a.library(lib); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func (a assembly) library(lib string) error {
	for _, dir := range libraries {
		name := filepath.Join(dir, lib)
		if _, err := os.Lstat(filepath.Join(a.from, name)); err == nil {
			return a.take(name)
		}
	}
	return fmt.Errorf("no package has the library %s", lib)
}

// merged is the name below the merged /usr of what may be called by its old one.
func merged(name string) string {
	for _, dir := range []string{"bin/", "sbin/", "lib/", "lib64/"} {
		if strings.HasPrefix(name, dir) {
			return "usr/" + name
		}
	}
	return name
}
