package firmware

import (
	"context"
	"encoding/json"
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
	TPM      string    // state folder of its TPM, as tpmfarm makes them; empty: "tpm" in the machine's, a new one
	Stick    string    // image file of a USB stick, read-only; or empty
	CCID     string    // unix socket that QEMU listens on for a card reader's card; or empty
	Printer  string    // unix socket that QEMU listens on for a serial printer; or empty
	Serial   io.Writer // what the console says; may be nil
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

	mu      sync.Mutex
	qemu    *child
	tpm     *child
	monitor *monitor
	spent   time.Duration // by processes that have ended
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
	if m.qemu != nil && m.qemu.running() {
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
	run, err := os.MkdirTemp("", "till")
	if err != nil {
		return err
	}
	if err := m.start(ctx, run); err != nil {
		m.off()
		return errors.Join(err, os.RemoveAll(run))
	}
	q := m.qemu
	context.AfterFunc(ctx, func() { q.kill() })
	go func() {
		<-q.done
		_ = os.RemoveAll(run)
	}()
	return nil
}

func (m *Machine) start(ctx context.Context, run string) (err error) {
	state, err := filepath.Abs(m.options.TPM)
	if err != nil {
		return err
	}
	chip, qmp := filepath.Join(run, "tpm"), filepath.Join(run, "qmp")
	if m.tpm, err = spawn(exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+state, // #nosec G204 -- fixed program
		"--ctrl", "type=unixio,path="+chip, "--flags", "startup-clear", "--terminate"), nil); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // for QEMU to answer, on a busy machine
	defer cancel()
	if err := m.tpm.until(ctx, func() error { _, err := os.Stat(chip); return err }); err != nil {
		return err
	}
	if m.qemu, err = spawn(exec.Command("qemu-system-x86_64", m.arguments(chip, qmp)...), m.options.Serial); err != nil { // #nosec G204 -- fixed program
		return err
	}
	var conn net.Conn
	if err := m.qemu.until(ctx, func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, "unix", qmp)
		return err
	}); err != nil {
		return err
	}
	m.monitor, err = newMonitor(ctx, conn, func(e Event) {
		select {
		case m.events <- e:
		default:
		}
	})
	if err == nil {
		_, err = m.monitor.execute(ctx, "cont", nil)
	}
	return err
}

// arguments are QEMU's. There is no boot order on the command line: it would
// change the EFI variables.
func (m *Machine) arguments(chip, qmp string) []string {
	o := m.options
	args := []string{
		"-machine", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", strconv.Itoa(o.Memory),
		"-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-S",
		"-qmp", "unix:" + qmp + ",server=on,wait=off", "-serial", "stdio",
		"-drive", "if=pflash,format=raw,readonly=on,file=" + m.kit.file("code.fd"),
		"-drive", "if=pflash,format=raw,file=" + m.Vars(),
		"-drive", "if=none,id=disk,format=raw,cache=writeback,file=" + o.Disk, "-device", "virtio-blk-pci,drive=disk",
		"-chardev", "socket,id=tpm,path=" + chip, "-tpmdev", "emulator,id=tpm,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm",
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

// Kill is a power cut: QEMU and the TPM end at once. What the till wrote to the
// file of the disk stays, flushed or not: this computer's memory keeps it.
func (m *Machine) Kill() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.off()
	return nil
}

func (m *Machine) off() {
	for _, c := range []*child{m.qemu, m.tpm} {
		if c == nil {
			continue
		}
		c.kill()
		<-c.done
	}
	if m.monitor != nil {
		_ = m.monitor.conn.Close()
		m.monitor = nil
	}
	if m.qemu != nil {
		m.spent += m.qemu.cpu()
	}
	m.qemu, m.tpm = nil, nil
}

// Wait waits until the machine is off, and says if QEMU ended by itself with an
// error.
func (m *Machine) Wait() error {
	m.mu.Lock()
	q := m.qemu
	m.mu.Unlock()
	if q == nil {
		return nil
	}
	<-q.done
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.qemu == q {
		m.off()
	}
	if q.killed.Load() {
		return nil
	}
	return q.err()
}

// Shutdown presses the power button and waits for the machine to be off.
func (m *Machine) Shutdown(ctx context.Context) error {
	m.mu.Lock()
	mon, q := m.monitor, m.qemu
	m.mu.Unlock()
	if mon == nil {
		return nil
	}
	if _, err := mon.execute(ctx, "system_powerdown", nil); err != nil {
		return err
	}
	select {
	case <-q.done:
		return m.Wait()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Written is how many bytes the till has written to its disk since the last
// start.
func (m *Machine) Written(ctx context.Context) (int64, error) {
	m.mu.Lock()
	mon := m.monitor
	m.mu.Unlock()
	if mon == nil {
		return 0, errors.New("the machine is off")
	}
	b, err := mon.execute(ctx, "query-blockstats", nil)
	if err != nil {
		return 0, err
	}
	var all []struct {
		Device string `json:"device"`
		Stats  struct {
			Written int64 `json:"wr_bytes"`
		} `json:"stats"`
	}
	if err := json.Unmarshal(b, &all); err != nil {
		return 0, err
	}
	for _, d := range all {
		if d.Device == "disk" {
			return d.Stats.Written, nil
		}
	}
	return 0, errors.New("QEMU knows no disk")
}

// CPU is the time that QEMU has taken in all starts so far.
func (m *Machine) CPU() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.qemu == nil {
		return m.spent
	}
	return m.spent + m.qemu.cpu()
}
