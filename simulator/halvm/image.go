package halvm

import (
	"compress/gzip"
	"debug/elf"
	_ "embed"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

//go:embed init.sh
var initScript []byte

// wanted are the modules that the tests need; what those need comes along.
var wanted = []string{"configfs", "usblp", "usbhid", "hid_generic", "evdev", "uinput", "libcomposite", "dummy_hcd", "usb_f_printer", "usb_f_hid", "i2c_dev", "i2c_stub", "lm75"}

// busybox is the one program of the machine that is not ours.
const busybox = "/bin/busybox"

// pack writes the file system that the machine starts with.
func (l Lane) pack(k kernel, test, image string) error {
	modules, err := collect(k.modules(), append(wanted, "halvm_gpio"), map[string]string{"halvm_gpio": k.gpio})
	if err != nil {
		return err
	}
	f, err := os.Create(image) // #nosec G304 -- of the cache
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		return err
	}
	a := &archive{w: z}
	for _, dir := range []string{"bin", "dev", "etc", "modules", "proc", "sys", "tmp"} {
		a.add(dir, 0o040755, nil)
	}
	a.add("init", 0o100755, initScript)
	a.file("bin/busybox", busybox)
	a.file("lane.test", test)
	var names []string
	for _, m := range modules {
		a.file("modules/"+m.name+".ko", m.file)
		names = append(names, m.name)
	}
	a.add("modules.list", 0o100644, []byte(strings.Join(names, "\n")+"\n"))
	a.add("suites.list", 0o100644, []byte(strings.Join(l.Suites, "\n")+"\n"))
	a.add("TRAILER!!!", 0, nil)
	if a.err != nil {
		return a.err
	}
	if err := z.Close(); err != nil {
		return err
	}
	return f.Close()
}

// archive writes a cpio archive of the kind that the kernel unpacks [Linux,
// driver-api/early-userspace/buffer-format].
type archive struct {
	w   io.Writer
	n   int // files so far
	err error
}

func (a *archive) add(name string, mode uint32, data []byte) {
	a.n++
	a.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.n, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name))
	a.write(data)
}

// write pads to four bytes.
func (a *archive) write(b []byte) {
	if a.err == nil {
		_, a.err = a.w.Write(append(slices.Clip(b), make([]byte, -len(b)&3)...))
	}
}

func (a *archive) file(name, from string) {
	b, err := os.ReadFile(from) // #nosec G304 -- what we built, or Debian's
	if err != nil && a.err == nil {
		a.err = err
	}
	a.add(name, 0o100755, b)
}

// module is a module of the kernel and where it lies.
type module struct{ name, file string }

// collect returns the modules and all that they stand on, in an order in which
// they can be loaded. Those that are built in are left out.
func collect(dir string, names []string, extra map[string]string) (order []module, err error) {
	files := map[string]string{}
	err = filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(p), ".ko"); ok {
			files[strings.ReplaceAll(name, "-", "_")] = p
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
		inside[strings.ReplaceAll(strings.TrimSuffix(filepath.Base(strings.TrimSpace(line)), ".ko"), "-", "_")] = true
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
		needs, err := depends(file)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, n := range needs {
			if err := visit(n); err != nil {
				return err
			}
		}
		order = append(order, module{name, file})
		return nil
	}
	for _, n := range names {
		if err := visit(n); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// depends reads which modules a module needs.
func depends(file string) ([]string, error) {
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
