package firmware

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tillward/tillward/simulator/guest"
)

// Rebuild makes the image that was given once more in dir, of its own root and
// for its own vendor, by the scripts of this checkout. It returns what came out
// otherwise, in words: nothing when the image is of this checkout, and when what
// other images are made of it by is what has made it.
func (k *Kit) Rebuild(ctx context.Context, dir string) (changed []string, err error) {
	g, root := k.Given, filepath.Join(dir, "root")
	if err := os.MkdirAll(dir, 0o755); err != nil { // #nosec G301 -- nothing secret in it
		return nil, err
	}
	if err := os.RemoveAll(root); err != nil {
		return nil, err
	}
	if err := g.unpack(ctx, root); err != nil {
		return nil, err
	}
	defer os.RemoveAll(root)
	env, err := k.env(Spec{Version: g.Version, Model: g.Model, Console: g.Console}, root, dir)
	if err != nil {
		return nil, err
	}
	// What was finished once is not changed by finishing it again.
	before, err := inventory(root)
	if err != nil {
		return nil, err
	}
	if err := k.script(ctx, env, "post-build.sh", root); err != nil {
		return nil, err
	}
	after, err := inventory(root)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(before)) {
		// Below these Buildroot makes homes for users and sets modes after
		// post-build.sh; on a till memory lies over both.
		hidden := name == "tmp" || strings.HasPrefix(name, "var/")
		if before[name] != after[name] && !hidden {
			changed = append(changed, fmt.Sprintf("post-build.sh changes %s", name))
		}
		delete(after, name)
	}
	for _, name := range slices.Sorted(maps.Keys(after)) {
		changed = append(changed, fmt.Sprintf("post-build.sh brings %s", name))
	}
	// The scripts of the till, none of which is a vendor's to change.
	const scripts = "usr/libexec/tillward"
	ours, err := inventory(filepath.Join(k.board(), "overlay", scripts))
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(ours)) {
		if ours[name].sum != before[filepath.Join(scripts, name)].sum {
			changed = append(changed, fmt.Sprintf("%s/%s is another one here", scripts, name))
		}
	}
	// The initrd, which is packed by whatever zstd there is.
	modules := ""
	if _, err := os.Stat(filepath.Join(root, "lib", "modules")); err == nil {
		modules = root
	}
	if err := k.script(ctx, env, "mkinitrd.sh", root, modules, filepath.Join(dir, "initrd.again")); err != nil {
		return nil, err
	}
	was, err1 := guest.Command(ctx, "", "zstd", "-dc", g.file("initrd.img"))
	now, err2 := guest.Command(ctx, "", "zstd", "-dc", filepath.Join(dir, "initrd.again"))
	if err1 != nil || err2 != nil || !bytes.Equal(was, now) {
		changed = append(changed, fmt.Sprintf("the initrd: mkinitrd.sh makes another one of the root: %d bytes, it has %d", len(now), len(was)))
	}
	if err := k.script(ctx, append(env, "SQUASHFS="+g.file("rootfs.squashfs")), "image.sh"); err != nil {
		return nil, err
	}
	for _, name := range []string{"rootfs.img", "uki.efi"} {
		sum, _, err := digest(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		if sum != g.sums[name] {
			changed = append(changed, fmt.Sprintf("%s: image.sh makes another one of the same parts", name))
		}
	}
	return changed, nil
}

// entry is what a file of a tree is, but for its times.
type entry struct {
	mode fs.FileMode
	sum  string // of what it holds, or where a link leads
}

// inventory lists a tree, its folders included.
func inventory(root string) (map[string]entry, error) {
	all := map[string]entry{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		e := entry{mode: info.Mode()}
		switch {
		case e.mode&fs.ModeSymlink != 0:
			e.sum, err = os.Readlink(path)
		case e.mode.IsRegular():
			e.sum, _, err = digest(path)
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		all[name] = e
		return err
	})
	return all, err
}
