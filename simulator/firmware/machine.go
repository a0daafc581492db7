package firmware

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// MachineOptions are the parts of a machine.
type MachineOptions struct {
	Disk     string    // image file, written to
	Seed     uint64    // of what is lost at a power cut
	TPM      string    // state folder of its TPM, as tpmfarm makes them; empty: "tpm" in the machine's, a new one
	Stick    string    // image file of a USB stick, read-only; or empty
	CCID     string    // unix socket that QEMU listens on for a card reader's card; or empty
	Printer  string    // unix socket that QEMU listens on for a serial printer; or empty
	Serial   io.Writer // what the console says; may be nil
	Keyboard *os.File  // what is typed there; may be nil
	Memory   int       // MiB; 0 is 512
	Restrict bool      // it reaches nothing on the host or beyond
}

// Machine is a till of QEMU. Its folder is the till: the EFI variables and what
// else outlives a power cut are in it.
type Machine struct {
	kit     *Kit
	dir     string
	options MachineOptions
	events  chan Event

	mu     sync.Mutex
	now    *run // nil: off
	starts uint64
	spent  time.Duration // by runs that are over
}

// run is a machine that is on.
type run struct {
	qemu    *child
	tpm     *child
	disk    *disk
	monitor *monitor
	over    chan struct{} // everything has ended
	lost    error         // of the disk, at the end
}

// Machine returns a machine with its own things in dir; nothing is started.
func (k *Kit) Machine(dir string, o MachineOptions) *Machine {
	if o.Memory == 0 {
		o.Memory = 512
	}
	if o.TPM == "" {
		o.TPM = filepath.Join(dir, "tpm")
	}
	return &Machine{kit: k, dir: dir, options: o, events: make(chan Event, 1000)}
}

// Vars is the file of the EFI variables. It is there after the first start.
func (m *Machine) Vars() string { return filepath.Join(m.dir, "vars.fd") }

// Disk is the file of the disk.
func (m *Machine) Disk() string { return m.options.Disk }

// TPM is the folder of the TPM's state.
func (m *Machine) TPM() string { return m.options.TPM }

// Events are what happens to the machine, over all its starts. Those that nobody
// has taken when a thousand wait are lost.
func (m *Machine) Events() <-chan Event { return m.events }

// Start switches the machine on. When ctx ends the power goes.
func (m *Machine) Start(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.now != nil {
		return errors.New("the machine is on")
	}
	for _, d := range []string{m.dir, m.options.TPM} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	if _, err := os.Stat(m.Vars()); errors.Is(err, fs.ErrNotExist) {
		b, err := os.ReadFile(m.kit.file("vars.fd"))
		if err != nil {
			return err
		}
		if err := os.WriteFile(m.Vars(), b, 0o600); err != nil {
			return err
		}
	}
	// A socket's path has 108 bytes at most [unix(7)].
	sockets, err := os.MkdirTemp("", "till")
	if err != nil {
		return err
	}
	m.starts++
	r, err := m.on(ctx, sockets)
	if err != nil {
		return errors.Join(err, os.RemoveAll(sockets))
	}
	m.now = r
	stop := context.AfterFunc(ctx, r.cut)
	go func() {
		<-r.qemu.done
		stop()
		r.end(coin(m.options.Seed, m.starts))
		_ = os.RemoveAll(sockets)
		m.mu.Lock()
		defer m.mu.Unlock()
		m.now = nil
		m.spent += r.qemu.cpu()
		close(r.over)
	}()
	return nil
}

// on starts all that a machine is made of.
func (m *Machine) on(ctx context.Context, sockets string) (_ *run, err error) {
	r := &run{over: make(chan struct{})}
	defer func() {
		if err != nil {
			r.cut()
			r.end(coin(m.options.Seed, m.starts))
		}
	}()
	state, err := filepath.Abs(m.options.TPM)
	if err != nil {
		return nil, err
	}
	at := func(name string) string { return filepath.Join(sockets, name) }
	if r.disk, err = openDisk(m.options.Disk); err != nil {
		return nil, err
	}
	r.disk.cut = r.cut
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", at("disk"))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = listener.Close()
		}
	}()
	go r.disk.serve(listener)
	if r.tpm, err = spawn(exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+state, // #nosec G204 -- fixed program
		"--ctrl", "type=unixio,path="+at("tpm"), "--flags", "startup-clear", "--terminate"), nil, nil); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // for QEMU to answer, on a busy machine
	defer cancel()
	if err := r.tpm.until(ctx, func() error { _, err := os.Stat(at("tpm")); return err }); err != nil {
		return nil, err
	}
	if r.qemu, err = spawn(exec.Command("qemu-system-x86_64", m.arguments(at)...), m.options.Keyboard, m.options.Serial); err != nil { // #nosec G204 -- fixed program
		return nil, err
	}
	var conn net.Conn
	if err := r.qemu.until(ctx, func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, "unix", at("qmp"))
		return err
	}); err != nil {
		return nil, err
	}
	r.monitor, err = newMonitor(ctx, conn, func(e Event) {
		select {
		case m.events <- e:
		default:
		}
	})
	if err != nil {
		return nil, err
	}
	_, err = r.monitor.execute(ctx, "cont", nil)
	return r, err
}

// cut takes the power away.
func (r *run) cut() {
	for _, c := range []*child{r.qemu, r.tpm} {
		if c != nil {
			c.kill()
		}
	}
}

// end waits for what is left to end.
func (r *run) end(keep func() bool) {
	if r.tpm != nil {
		r.tpm.kill()
		<-r.tpm.done
	}
	if r.qemu != nil {
		<-r.qemu.done
	}
	if r.monitor != nil {
		_ = r.monitor.conn.Close()
	}
	if r.disk != nil {
		r.lost = r.disk.powerOff(keep)
	}
}

// arguments are QEMU's. There is no boot order on the command line: it would
// change the EFI variables.
func (m *Machine) arguments(at func(string) string) []string {
	o := m.options
	args := []string{
		"-machine", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", strconv.Itoa(o.Memory),
		"-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-S",
		"-qmp", "unix:" + at("qmp") + ",server=on,wait=off", "-serial", "stdio",
		"-drive", "if=pflash,format=raw,readonly=on,file=" + m.kit.file("code.fd"),
		"-drive", "if=pflash,format=raw,file=" + m.Vars(),
		"-drive", "if=none,id=disk,format=raw,cache=writeback,file=nbd:unix:" + at("disk"), "-device", "virtio-blk-pci,drive=disk",
		"-chardev", "socket,id=tpm,path=" + at("tpm"), "-tpmdev", "emulator,id=tpm,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm",
		"-device", "i6300esb", "-action", "watchdog=reset",
		"-device", "virtio-rng-pci",
		"-netdev", "user,id=net,ipv6=off,restrict=" + onOff(o.Restrict), "-device", "virtio-net-pci,netdev=net,romfile=",
		"-device", "qemu-xhci,id=usb",
	}
	if o.CCID != "" {
		args = append(args, "-chardev", "socket,id=card,server=on,wait=off,path="+o.CCID, "-device", "usb-ccid,bus=usb.0", "-device", "ccid-card-passthru,chardev=card")
	}
	if o.Printer != "" {
		args = append(args, "-chardev", "socket,id=printer,server=on,wait=off,path="+o.Printer, "-device", "usb-serial,bus=usb.0,chardev=printer")
	}
	if o.Stick != "" {
		args = append(args, "-drive", "if=none,id=stick,format=raw,readonly=on,file="+o.Stick, "-device", "usb-storage,bus=usb.0,drive=stick")
	}
	return args
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// current is the run that is on, or nil.
func (m *Machine) current() *run {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

// Kill is a power cut: QEMU and the TPM end at once. Of what the till wrote to
// its disk and did not flush, each block of 4 KiB is lost or not, by chance.
func (m *Machine) Kill() error {
	r := m.current()
	if r == nil {
		return nil
	}
	r.cut()
	<-r.over
	return r.lost
}

// KillAfter is a power cut at the moment when the till has written so many bytes
// more to its disk. Wait tells when it came.
func (m *Machine) KillAfter(written int64) error {
	r := m.current()
	if r == nil {
		return errors.New("the machine is off")
	}
	r.disk.cutAfter(written)
	return nil
}

// Written is how many bytes the till has written to its disk since the last
// start; 0 when it is off.
func (m *Machine) Written() int64 {
	if r := m.current(); r != nil {
		return r.disk.total()
	}
	return 0
}

// Wait waits until the machine is off, and says if QEMU ended by itself with an
// error.
func (m *Machine) Wait() error {
	r := m.current()
	if r == nil {
		return nil
	}
	<-r.over
	if r.qemu.killed.Load() {
		return r.lost
	}
	return errors.Join(r.qemu.err(), r.lost)
}

// Shutdown ends QEMU in order: the disk's cache is written, and the till is not
// asked. It is a power cut at a moment at which nothing is lost.
func (m *Machine) Shutdown(ctx context.Context) error {
	r := m.current()
	if r == nil {
		return nil
	}
	if _, err := r.monitor.execute(ctx, "quit", nil); err != nil {
		return err
	}
	select {
	case <-r.over:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// CPU is the time that QEMU has taken in all starts so far.
func (m *Machine) CPU() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.now == nil {
		return m.spent
	}
	return m.spent + m.now.qemu.cpu()
}
