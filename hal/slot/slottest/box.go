// Package slottest sets up a box with two boot slots for tests: a bus of its
// own, the real RAUC service on it, a boot loader that counts tries or one that
// is as UEFI's, slots that are files, and bundles that RAUC's own tool makes and
// signs.
//
// It promises that the box is gone after the test and that nothing of the
// machine is touched: RAUC mounts in a mount namespace of its own. That takes
// root, a kernel with loop devices and squashfs, and the packages rauc,
// dbus-daemon and squashfs-tools; what is missing fails the test and is named.
// TILLWARD_RAUC names another rauc than the one in PATH. It never ships.
package slottest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/godbus/dbus/v5"
)

const (
	service = "de.pengutronix.rauc"

	// Compatible is what bundles for a Box are made for.
	Compatible = "tillward-test"

	tries = 3 // of a slot that was made primary, before the boot loader takes the other one
)

// Box is a box with the slots rootfs.0 (A) and rootfs.1 (B).
type Box struct {
	Address string // of its bus
	Dir     string

	t      testing.TB
	keys   *keys
	rauc   *process
	mock   *Mock
	states map[string]map[string]dbus.Variant // of slots, as the mock keeps them
	bootID string
}

// Options of a Box.
type Options struct {
	Devices  bool // slots are block devices, not files
	EFI      bool // the boot loader is as UEFI firmware with RAUC's backend for it
	Activate bool // RAUC makes what it wrote the one to start next, as it does unless told otherwise
}

// New sets up a box that runs slot A, with RAUC serving.
func New(t testing.TB, o Options) *Box {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("RAUC mounts bundles, which takes root: run this test as root")
	}
	for _, tool := range []string{raucCommand(), "dbus-daemon", "mksquashfs", "unsquashfs", "openssl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v: install the packages rauc, dbus-daemon, squashfs-tools and openssl", err)
		}
	}
	if fs, err := os.ReadFile("/proc/filesystems"); err != nil || !bytes.Contains(fs, []byte("squashfs")) {
		t.Fatalf("the kernel has no squashfs, which bundles are made of (%v)", err)
	}
	dir, err := os.MkdirTemp("", "slot") // t.TempDir is too long a name for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	b := &Box{Dir: dir, t: t, keys: newKeys(t), states: map[string]map[string]dbus.Variant{}}
	for name, boot := range map[string]string{"rootfs.0": "A", "rootfs.1": "B"} {
		b.states[name] = map[string]dbus.Variant{"installed.count": dbus.MakeVariant(uint32(0))}
		for key, value := range map[string]string{"class": "rootfs", "bootname": boot, "type": "raw", "device": b.path(name)} {
			b.states[name][key] = dbus.MakeVariant(value)
		}
	}
	for _, d := range []string{"boot", "mnt", "data", "tmp"} {
		b.must(os.MkdirAll(b.path(d), 0o700))
	}
	b.write("rootfs.0", bytes.Repeat([]byte{0}, 1<<20), 0o600)
	b.write("rootfs.1", bytes.Repeat([]byte{0}, 1<<20), 0o600)
	b.write("ca.pem", b.keys.ca, 0o600)
	loader := bootloader
	if o.EFI {
		loader = efi
		b.set("order", "A B")
	}
	b.write("bootloader", []byte(strings.ReplaceAll(loader, "DIR", b.path("boot"))), 0o700)
	conf := system
	if o.Activate {
		conf = strings.ReplaceAll(conf, "activate-installed=false\n", "")
	}
	for _, name := range []string{"rootfs.0", "rootfs.1"} {
		if o.Devices {
			loop := strings.TrimSpace(b.output("losetup", "--find", "--show", b.path(name)))
			t.Cleanup(func() { b.output("losetup", "--detach", loop) })
			conf = strings.ReplaceAll(conf, "device=DIR/"+name, "device="+loop)
		}
	}
	b.write("system.conf", []byte(strings.ReplaceAll(conf, "DIR", dir)), 0o600)
	b.write("bus.conf", []byte(strings.ReplaceAll(bus, "DIR", dir)), 0o600)
	if !o.EFI {
		b.SetPrimary("A")
	}
	b.set("current", "A")
	b.bus()
	b.turn()
	b.Serve()
	return b
}

const system = `[system]
compatible=` + Compatible + `
bootloader=custom
mountprefix=DIR/mnt
data-directory=DIR/data
activate-installed=false
bundle-formats=plain verity

[handlers]
bootloader-custom-backend=DIR/bootloader

[keyring]
path=DIR/ca.pem
check-purpose=codesign

[slot.rootfs.0]
device=DIR/rootfs.0
type=raw
bootname=A

[slot.rootfs.1]
device=DIR/rootfs.1
type=raw
bootname=B
`

const bus = `<busconfig>
<type>custom</type>
<listen>unix:path=DIR/bus</listen>
<auth>EXTERNAL</auth>
<policy context="default">
<allow user="*"/><allow own="*"/><allow send_type="*"/><allow receive_type="*"/>
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/>
</policy>
</busconfig>
`

// bootloader keeps what a boot loader keeps in its environment: which slot
// comes first, whether each is good, how many tries it has left.
const bootloader = `#!/bin/sh
cd DIR || exit 1
bootable() { [ "$(cat $1.state)" = good ] && [ "$(cat $1.left)" -gt 0 ]; }
other() { [ "$1" = A ] && echo B || echo A; }
case $1 in
get-current) cat current ;;
get-primary)
	p=$(cat primary)
	bootable $p && echo $p && exit
	p=$(other $p)
	bootable $p && echo $p ;;
set-primary) echo $2 >primary; echo good >$2.state; echo 3 >$2.left ;;
get-state) bootable $2 && echo good || echo bad ;;
set-state)
	echo $3 >$2.state
	[ $3 = good ] && echo 3 >$2.left || echo 0 >$2.left ;;
*) exit 1 ;;
esac
`

// efi is RAUC's backend for UEFI with the firmware's variables [RAUC 1.13,
// src/bootloaders/efi.c]: what is to be started next is so once (BootNext), a
// slot that is good comes first in BootOrder, one that is bad is not in it.
const efi = `#!/bin/sh
cd DIR || exit 1
without() { for s in $(cat order); do [ $s = $1 ] || printf '%s ' $s; done; }
case $1 in
get-current) cat current ;;
get-primary) set -- $(cat next 2>/dev/null) $(cat order); [ -n "$1" ] && echo $1 ;;
set-primary) echo $2 >next ;;
get-state) case " $(cat order) " in *" $2 "*) echo good ;; *) echo bad ;; esac ;;
set-state)
	order=$(without $2)
	[ $3 != good ] || order="$2 $order"
	echo $order >order ;;
*) exit 1 ;;
esac
`

// Serve starts RAUC's service, which must not run.
func (b *Box) Serve() {
	b.t.Helper()
	b.watch(func() <-chan struct{} {
		b.rauc = b.start(raucCommand(), "--conf="+b.path("system.conf"), "service", "--override-boot-slot="+b.Current())
		return b.rauc.done
	})
}

// Kill ends RAUC's service as a crash would, whatever it does.
func (b *Box) Kill() {
	if b.rauc != nil {
		b.rauc.kill()
		b.rauc = nil
	}
	if b.mock != nil {
		_ = b.mock.conn.Close()
	}
}

// Reboot ends everything at once and starts what the boot loader takes. A slot
// that was given to Break does not come up: it is tried again until it has no
// try left.
func (b *Box) Reboot() {
	b.t.Helper()
	b.Kill()
	b.turn()
	for range 2*tries + 1 {
		next := strings.TrimSpace(b.output(b.path("bootloader"), "get-primary"))
		_ = os.Remove(b.path("boot/next"))
		left, _ := strconv.Atoi(b.get(next + ".left"))
		b.set(next+".left", strconv.Itoa(left-1))
		if b.get(next+".broken") == "" {
			b.set("current", next)
			if b.mock != nil {
				b.ServeMock()
			} else {
				b.Serve()
			}
			return
		}
	}
	b.t.Fatal("no slot of the box comes up")
}

// Break makes what is in a slot one that does not come up.
func (b *Box) Break(bootname string) { b.set(bootname+".broken", "yes") }

// SetPrimary makes a slot the first one, with all tries; with EFI for one start.
func (b *Box) SetPrimary(bootname string) {
	b.output(b.path("bootloader"), "set-primary", bootname)
	if b.get("order") != "" {
		return
	}
	if b.get("A.state") == "" || b.get("B.state") == "" {
		b.output(b.path("bootloader"), "set-state", "A", "good")
		b.output(b.path("bootloader"), "set-state", "B", "good")
	}
}

// Current is the boot name of the slot that runs.
func (b *Box) Current() string { return b.get("current") }

// Good reports what the boot loader thinks of a slot.
func (b *Box) Good(bootname string) bool {
	return strings.TrimSpace(b.output(b.path("bootloader"), "get-state", bootname)) == "good"
}

// Primary is the boot name of the slot that is started next.
func (b *Box) Primary() string {
	return strings.TrimSpace(b.output(b.path("bootloader"), "get-primary"))
}

// BootID is another one after each Reboot.
func (b *Box) BootID() string { return b.bootID }

// Slot is what lies in a slot, e.g. rootfs.1.
func (b *Box) Slot(name string) []byte {
	b.t.Helper()
	content, err := os.ReadFile(b.path(name))
	b.must(err)
	return content
}

func (b *Box) turn() {
	id := make([]byte, 8)
	_, _ = rand.Read(id)
	b.bootID = hex.EncodeToString(id)
}

func (b *Box) path(name string) string { return filepath.Join(b.Dir, name) }

func (b *Box) set(name, value string) {
	b.write(filepath.Join("boot", name), []byte(value+"\n"), 0o600)
}

func (b *Box) get(name string) string {
	content, _ := os.ReadFile(b.path(filepath.Join("boot", name)))
	return strings.TrimSpace(string(content))
}

func (b *Box) write(name string, content []byte, mode os.FileMode) {
	b.t.Helper()
	b.must(os.WriteFile(b.path(name), content, mode))
}

func (b *Box) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// output runs a command to its end.
func (b *Box) output(command string, args ...string) string {
	b.t.Helper()
	c := exec.Command(command, args...)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		b.t.Fatalf("%s %s: %v\n%s%s", command, strings.Join(args, " "), err, out, &stderr)
	}
	return string(out)
}

// bus starts the bus.
func (b *Box) bus() {
	b.t.Helper()
	b.Address = "unix:path=" + b.path("bus")
	ready := make(chan error, 1)
	r, w, err := os.Pipe()
	b.must(err)
	go func() {
		_, err := bufio.NewReader(r).ReadString('\n') // its address, once it listens
		ready <- err
		_ = r.Close()
	}()
	b.start("dbus-daemon", "--config-file="+b.path("bus.conf"), "--nofork", "--nopidfile", "--print-address=3", w)
	_ = w.Close()
	if err := <-ready; err != nil {
		b.t.Fatalf("dbus-daemon does not come up: %v", err)
	}
}

// watch calls start, which returns what is closed at the end of what it starts,
// and waits until RAUC has its name on the bus.
func (b *Box) watch(start func() <-chan struct{}) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	defer cancel()
	conn, err := dbus.Connect(b.Address, dbus.WithContext(ctx))
	b.must(err)
	owners := make(chan *dbus.Signal, 16)
	conn.Signal(owners)
	b.must(conn.AddMatchSignal(dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, service)))
	done := start()
	for {
		select {
		case <-done:
			b.t.Fatal("the RAUC service ended before it came up")
		case s, ok := <-owners:
			if !ok {
				b.t.Fatal("the bus ended before the RAUC service came up")
			}
			if s.Name == "org.freedesktop.DBus.NameOwnerChanged" && len(s.Body) == 3 && s.Body[0] == service && s.Body[2] != "" {
				return
			}
		}
	}
}

// process is a daemon of the box.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
}

func (p *process) kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // and whatever it started
	<-p.done
}

// start starts a daemon; an argument that is a file becomes its third one.
func (b *Box) start(command string, args ...any) *process {
	b.t.Helper()
	var words []string
	cmd := exec.Command(command)
	for _, a := range args {
		switch a := a.(type) {
		case string:
			words = append(words, a)
		case *os.File:
			cmd.ExtraFiles = append(cmd.ExtraFiles, a)
		}
	}
	cmd.Args = append(cmd.Args, words...)
	cmd.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS="+b.Address, "TMPDIR="+b.path("tmp"), "G_MESSAGES_DEBUG=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Unshareflags: syscall.CLONE_NEWNS}
	log := &lines{}
	cmd.Stdout, cmd.Stderr = log, log
	b.must(cmd.Start())
	p := &process{cmd, make(chan struct{})}
	go func() {
		defer close(p.done)
		if err := cmd.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
			fmt.Fprintln(log, err)
		}
	}()
	b.t.Cleanup(func() {
		p.kill()
		if b.t.Failed() {
			b.t.Logf("%s %s:\n%s", command, strings.Join(words, " "), log)
		}
	})
	return p
}

// lines keeps what a daemon says.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func raucCommand() string {
	if other := os.Getenv("TILLWARD_RAUC"); other != "" {
		return other
	}
	return "rauc"
}

// Main runs the tests of a package as root, by sudo where that asks nothing.
func Main(m *testing.M) {
	if os.Geteuid() != 0 && exec.Command("sudo", "-n", "true").Run() == nil {
		cmd := exec.Command("sudo", append([]string{"-n", "-E"}, os.Args...)...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// Completed returns a channel that is closed at the end of an installation that
// is under way.
func (b *Box) Completed() <-chan struct{} {
	b.t.Helper()
	conn, err := dbus.Connect(b.Address)
	b.must(err)
	signals := make(chan *dbus.Signal, 16)
	conn.Signal(signals)
	b.must(conn.AddMatchSignal(dbus.WithMatchInterface(iface), dbus.WithMatchMember("Completed")))
	done := make(chan struct{})
	b.t.Cleanup(func() { _ = conn.Close() })
	go func() {
		defer close(done)
		for s := range signals {
			if s.Name == iface+".Completed" {
				return
			}
		}
	}()
	return done
}
