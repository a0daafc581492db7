package hotplug_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/hotplug"
)

// box is a sysfs of files.
type box struct {
	t    *testing.T
	root string
}

func newBox(t *testing.T) box {
	b := box{t, t.TempDir()}
	b.plug("usb1", map[string]string{"idVendor": "1d6b", "idProduct": "0002", "bDeviceClass": "09", "serial": "0000:00:14.0"})
	return b
}

func (b box) dir(port string) string { return filepath.Join(b.root, "sys/bus/usb/devices", port) }

// plug writes the files of a device or an interface.
func (b box) plug(port string, files map[string]string) {
	b.t.Helper()
	for name, text := range files {
		name = filepath.Join(b.dir(port), name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			b.t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text+"\n"), 0o600); err != nil {
			b.t.Fatal(err)
		}
	}
}

// pull takes away a device and its interfaces.
func (b box) pull(port string) {
	b.t.Helper()
	if err := os.RemoveAll(b.dir(port)); err != nil {
		b.t.Fatal(err)
	}
}

func (b box) printer(port, serial, lp string) {
	b.t.Helper()
	b.plug(port, map[string]string{"idVendor": "04b8", "idProduct": "0e15", "manufacturer": "EPSON", "product": "TM-T20II", "serial": serial, "bcdDevice": "0100", "bDeviceClass": "00"})
	b.plug(port+"/"+port+":1.0", map[string]string{"bInterfaceClass": "07", "bInterfaceSubClass": "01", "bInterfaceProtocol": "02"})
	if lp != "" {
		b.plug(port+"/"+port+":1.0", map[string]string{"usbmisc/" + lp + "/dev": "180:0"})
	}
}

// told collects what a bus tells.
type told struct {
	mu   sync.Mutex
	list []string
	last map[string]hal.Candidate
}

func (l *told) tell(c hal.Change) {
	sign := "+"
	if c.Gone {
		sign = "-"
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, sign+c.Key)
	l.last[c.Key] = c.Candidate
}

// next returns what was told since it was last asked, once the bus has had time.
func (l *told) next() string {
	time.Sleep(1500 * time.Millisecond) // of the bubble
	return l.now()
}

func (l *told) now() string {
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	s := strings.Join(l.list, " ")
	l.list = nil
	return s
}

// watch runs a test in a bubble of its own time with a bus that is listened to.
func watch(t *testing.T, b box, do func(w *hotplug.Wire, l *told)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w, l := hotplug.NewWire(), &told{last: map[string]hal.Candidate{}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.On(hotplug.Bus{Root: b.root}).Watch(ctx, l.tell) }()
		synctest.Wait() // it has had its first look
		do(w, l)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("watching ended with %v", err)
		}
		if !w.Gone() {
			t.Error("the bus still listens")
		}
	})
}

const (
	added   = "add@/devices/pci0000:00/usb1/1-1\x00ACTION=add\x00DEVPATH=/devices/pci0000:00/usb1/1-1\x00SUBSYSTEM=usb\x00DEVTYPE=usb_device\x00SEQNUM=1\x00"
	removed = "remove@/devices/pci0000:00/usb1/1-1\x00ACTION=remove\x00DEVPATH=/devices/pci0000:00/usb1/1-1\x00SUBSYSTEM=usb\x00SEQNUM=2\x00"
)

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: told %q, want %q", what, got, want)
	}
}

func TestFirstLook(t *testing.T) {
	b := newBox(t)
	b.printer("1-1", "J5ZK01", "lp0")
	b.plug("1-2", map[string]string{"idVendor": "05e3", "idProduct": "0608", "bDeviceClass": "09"})                                                                                    // a hub
	b.plug("1-2.1", map[string]string{"idVendor": "08e6", "idProduct": "3437", "serial": "two words", "product": "Card\x01 Reader", "bcdDevice": "2010"})                              // no serial number to call it by
	b.plug("1-2.1/1-2.1:1.0", map[string]string{"bInterfaceClass": "0b"})                                                                                                              // CCID
	b.plug("1-2.2", map[string]string{"idVendor": "046d", "idProduct": "c31c", "serial": "4111111111111111", "product": "Model 4111 1111 1111 1111", "manufacturer": "Käse & Söhne"})  // a keyboard that lies
	b.plug("1-2.2/1-2.2:1.0", map[string]string{"bInterfaceClass": "03", "bInterfaceSubClass": "01", "bInterfaceProtocol": "01", "0003:046D:C31C.0001/input/input7/event5/dev": "13"}) //
	b.plug("1-2.3", map[string]string{"idVendor": "05e0", "idProduct": "1300", "serial": "S1", "product": strings.Repeat("long ", 100)})
	b.plug("1-2.3/1-2.3:1.0", map[string]string{"bInterfaceClass": "03", "0003:05E0:1300.0002/report_descriptor": "\x05\x8c\x09\x02"})
	b.plug("1-2.4", map[string]string{"product": "half of one"})
	watch(t, b, func(_ *hotplug.Wire, l *told) {
		expect(t, "at first", l.next(), "+usb:046d:c31c@1-2.2 +usb:04b8:0e15:J5ZK01 +usb:05e0:1300:S1 +usb:08e6:3437@1-2.1")
		for _, want := range []hal.Candidate{
			{Key: "usb:04b8:0e15:J5ZK01", Interface: "USB", Category: hal.POSPrinter, Maker: "EPSON", Model: "TM-T20II", Serial: "J5ZK01", Firmware: "1.00", Node: "/dev/usb/lp0"},
			{Key: "usb:08e6:3437@1-2.1", Interface: "USB", Category: hal.SmartCardRW, Model: "Card Reader", Serial: "two words", Firmware: "20.10"},
			{Key: "usb:046d:c31c@1-2.2", Interface: "USB", Category: hal.Other, Maker: "Käse & Söhne", Node: "/dev/input/event5"},
			{Key: "usb:05e0:1300:S1", Interface: "USB", Category: hal.Scanner, Serial: "S1", Model: strings.Repeat("long ", 100)[:64]},
		} {
			if got := l.last[want.Key]; got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		}
	})
}

func TestPlugAndUnplug(t *testing.T) {
	b := newBox(t)
	watch(t, b, func(w *hotplug.Wire, l *told) {
		expect(t, "an empty bus", l.next(), "")
		b.printer("1-1", "J5ZK01", "lp0")
		w.Say(added)
		expect(t, "plugged in", l.next(), "+usb:04b8:0e15:J5ZK01")
		b.pull("1-1")
		w.Say(removed)
		expect(t, "pulled out", l.next(), "-usb:04b8:0e15:J5ZK01")
		b.printer("1-3", "J5ZK01", "lp1")
		w.Say(added)
		expect(t, "at another port", l.next(), "+usb:04b8:0e15:J5ZK01")
		w.Say(added)
		expect(t, "said twice", l.next(), "")
		b.printer("1-3", "J5ZK01", "lp2")
		b.pull("1-3/1-3:1.0/usbmisc/lp1")
		w.Say(added)
		expect(t, "another device file", l.next(), "+usb:04b8:0e15:J5ZK01")
		if n := l.last["usb:04b8:0e15:J5ZK01"].Node; n != "/dev/usb/lp2" {
			t.Errorf("its device file is %q", n)
		}
	})
}

func TestReplugIsNothing(t *testing.T) {
	b := newBox(t)
	b.printer("1-1", "J5ZK01", "lp0")
	watch(t, b, func(w *hotplug.Wire, l *told) {
		expect(t, "at first", l.next(), "+usb:04b8:0e15:J5ZK01")
		b.pull("1-1")
		w.Say(removed)
		time.Sleep(900 * time.Millisecond) // of the bubble
		b.plug("1-1", map[string]string{"idVendor": "04b8", "idProduct": "0e15", "serial": "J5ZK01"})
		w.Say(added)
		time.Sleep(200 * time.Millisecond) // it says bit by bit what it is
		b.printer("1-1", "J5ZK01", "lp0")
		w.Say(added)
		expect(t, "replugged", l.next(), "")

		// Its twin: a little longer is away.
		b.pull("1-1")
		w.Say(removed)
		time.Sleep(1100 * time.Millisecond)
		b.printer("1-1", "J5ZK01", "lp0")
		w.Say(added)
		expect(t, "away and back", l.next(), "-usb:04b8:0e15:J5ZK01 +usb:04b8:0e15:J5ZK01")
	})
}

func TestRestlessBus(t *testing.T) {
	b := newBox(t)
	watch(t, b, func(w *hotplug.Wire, l *told) {
		b.printer("1-1", "J5ZK01", "lp0")
		for range 30 {
			w.Say(added)
			time.Sleep(500 * time.Millisecond)
		}
		expect(t, "after 15 s of a loose contact", l.now(), "+usb:04b8:0e15:J5ZK01")
	})
}

func TestLostMessages(t *testing.T) {
	b := newBox(t)
	watch(t, b, func(w *hotplug.Wire, l *told) {
		b.printer("1-1", "J5ZK01", "lp0")
		expect(t, "without a message", l.next(), "")
		w.Lose()
		expect(t, "messages were lost", l.next(), "+usb:04b8:0e15:J5ZK01")
		b.pull("1-1")
		time.Sleep(2 * time.Minute)
		expect(t, "nothing was heard for long", l.next(), "-usb:04b8:0e15:J5ZK01")
	})
}

// TestForgedMessages: only the kernel is believed, and of it only what is about
// the bus. The look that a message asks for is what shows it.
func TestForgedMessages(t *testing.T) {
	for name, c := range map[string]struct {
		say  func(*hotplug.Wire, string)
		text string
		want string
	}{
		"the kernel":            {(*hotplug.Wire).Say, added, "+usb:04b8:0e15:J5ZK01"},
		"another process":       {(*hotplug.Wire).Forge, added, ""},
		"about a disk":          {(*hotplug.Wire).Say, strings.ReplaceAll(added, "SUBSYSTEM=usb", "SUBSYSTEM=block"), ""},
		"a driver that came":    {(*hotplug.Wire).Say, strings.ReplaceAll(added, "SUBSYSTEM=usb", "SUBSYSTEM=drivers"), ""},
		"what udev says":        {(*hotplug.Wire).Say, "libudev\x00\xfe\xed\xca\xfe" + added, ""},
		"two actions":           {(*hotplug.Wire).Say, strings.Replace(added, "ACTION=add", "ACTION=remove", 1), ""},
		"cut off in the middle": {(*hotplug.Wire).Say, strings.TrimSuffix(added, "\x00"), ""},
		"nothing":               {(*hotplug.Wire).Say, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t)
			watch(t, b, func(w *hotplug.Wire, l *told) {
				expect(t, "before", l.next(), "")
				b.printer("1-1", "J5ZK01", "lp0")
				c.say(w, c.text)
				expect(t, "after", l.next(), c.want)
			})
		})
	}
}

func TestTwins(t *testing.T) {
	b := newBox(t)
	b.printer("1-1", "1", "lp0")
	watch(t, b, func(w *hotplug.Wire, l *told) {
		expect(t, "one", l.next(), "+usb:04b8:0e15:1")
		b.printer("1-2", "1", "lp1")
		w.Say(added)
		expect(t, "two that say the same of themselves", l.next(), "-usb:04b8:0e15:1 +usb:04b8:0e15@1-1 +usb:04b8:0e15@1-2")
	})
}

func TestSourceFails(t *testing.T) {
	b := newBox(t)
	synctest.Test(t, func(t *testing.T) {
		w, broken := hotplug.NewWire(), errors.New("broken")
		done := make(chan error, 1)
		go func() { done <- w.On(hotplug.Bus{Root: b.root}).Watch(t.Context(), func(hal.Change) {}) }()
		w.Break(broken)
		if err := <-done; !errors.Is(err, broken) {
			t.Errorf("got %v, want %v", err, broken)
		}
	})
}

// TestKernel listens to the real kernel, which says nothing of use here.
func TestKernel(t *testing.T) {
	before, _ := os.ReadDir("/proc/self/fd")
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		looked := make(chan struct{}, 1)
		b := newBox(t)
		b.printer("1-1", "J5ZK01", "lp0")
		go func() {
			done <- hotplug.Bus{Root: b.root}.Watch(ctx, func(hal.Change) { looked <- struct{}{} })
		}()
		<-looked
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if after, _ := os.ReadDir("/proc/self/fd"); len(after) > len(before)+2 {
		t.Errorf("%d files are open, before it were %d", len(after), len(before))
	}
}

// TestKernelNamesSenders sends a message to the socket from beside it: it
// arrives, where that is allowed at all, under the name of who sent it.
func TestKernelNamesSenders(t *testing.T) {
	s, next, err := hotplug.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	err = unix.Sendto(fd, []byte(added), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1})
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ECONNREFUSED) {
		t.Skipf("the kernel lets nobody send here: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	for {
		sender, text, err := next()
		if err != nil {
			t.Fatal(err)
		}
		if string(text) == added {
			if sender == 0 {
				t.Error("a forged message looks as if the kernel had sent it")
			}
			return
		}
	}
}

func FuzzUevent(f *testing.F) {
	for _, s := range []string{"", added, removed, "libudev\x00\xfe\xed\xca\xfe", "add@/x\x00SUBSYSTEM=usb", "@\x00\x00=\x00", "add@/x\x00SUBSYSTEM=\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		action, path, subsystem, ok := hotplug.Parse(b)
		if !ok {
			return
		}
		if action == "" || path == "" || path[0] != '/' || subsystem == "" {
			t.Errorf("half a message: %q %q %q", action, path, subsystem)
		}
		again := fmt.Sprintf("%s@%s\x00SUBSYSTEM=%s\x00", action, path, subsystem)
		if a, p, s, ok := hotplug.Parse([]byte(again)); !ok || a != action || p != path || s != subsystem {
			t.Errorf("%q reads as %q %q %q %v", again, a, p, s, ok)
		}
	})
}

// FuzzText lets a device say anything of itself.
func FuzzText(f *testing.F) {
	for _, s := range []string{"", "TM-T20II\n", "4111 1111 1111 1111", "K\xe4se", "\u009c\u202e", "\xff\xfe\x00", strings.Repeat("ä", 100), ";4111111111111111=2512", "%B4111111111111111^X"} {
		f.Add([]byte(s))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, "product"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		s := hotplug.Text(dir, "product")
		if len(s) > 64 || !utf8.ValidString(s) || hal.MayHoldPAN(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q is told as %q", b, s)
		}
		_ = hotplug.Version(s)
	})
}
