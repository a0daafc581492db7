package halvm

import (
	"compress/gzip"
	"context"
	_ "embed"
	"os"
	"strings"

	"github.com/tillward/tillward/simulator/guest"
)

//go:embed init.sh
var initScript []byte

// wanted are the modules that the tests need; what those need comes along.
var wanted = []string{"configfs", "usblp", "usbhid", "hid_generic", "evdev", "uinput", "libcomposite", "dummy_hcd", "usb_f_printer", "usb_f_hid", "i2c_dev", "i2c_stub", "lm75"}

// busybox is the one program of the machine that is not ours.
const busybox = "/bin/busybox"

// pack writes the file system that the machine starts with.
func (l Lane) pack(ctx context.Context, k kernel, test, image string) error {
	modules, err := guest.Modules(ctx, k.modules(), append(wanted, "halvm_gpio"), map[string]string{"halvm_gpio": k.gpio})
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
	a := guest.NewInitrd(z)
	for _, dir := range []string{"bin", "dev", "etc", "modules", "proc", "sys", "tmp"} {
		a.Add(dir, 0o040755, nil)
	}
	a.Add("init", 0o100755, initScript)
	a.Copy("bin/busybox", busybox)
	a.Copy("lane.test", test)
	var names []string
	for _, m := range modules {
		a.Copy("modules/"+m.Name+".ko", m.File)
		names = append(names, m.Name)
	}
	a.Add("modules.list", 0o100644, []byte(strings.Join(names, "\n")+"\n"))
	a.Add("suites.list", 0o100644, []byte(strings.Join(l.Suites, "\n")+"\n"))
	if err := a.Close(); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	return f.Close()
}
