package firmware

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tillward/tillward/simulator/child"
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
	Clock    time.Time // what the hardware clock says at each start; zero: the time that it is
	Restrict bool      // it reaches nothing on the host or beyond
}

// Machine is a till of QEMU. Its folder is the till: the EFI variables and what
// else outlives a power cut are in it.
//
// When the guest or its watchdog resets the machine, QEMU ends and another one
// goes on with the same disk, TPM and variables: OVMF takes ten times as long
// behind a reset within one QEMU as it does from the start.
type Machine struct {
	kit     *Kit
	dir     string
	options MachineOptions
	events  chan Event

	mu     sync.Mutex
	now    *run // nil: off
	starts uint64
	spent  time.Duration // by starts that are over
}

// run is a machine that is on, from power to power.
type run struct {
	disk *disk
	over chan struct{} // everything has ended
	err  error         // once over: why it ended, when nobody wanted it to, and what was lost of the disk

	mu  sync.Mutex
	off bool // the power was taken away
	now *start
}

// start is a QEMU with its TPM: from a reset to the next.
type start struct {
	qemu, tpm *child.Child
	said      bytes.Buffer // by QEMU, on standard error
	monitor   *monitor
	sockets   string
	reset     atomic.Bool // it ends because the machine was reset
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
	disk, err := openDisk(m.options.Disk)
	if err != nil {
		return err
	}
	m.starts++
	keep := coin(m.options.Seed, m.starts)
	r := &run{disk: disk, over: make(chan struct{})}
	disk.cut = r.cut
	first, err := m.start(ctx, r)
	if err != nil {
		return errors.Join(err, disk.powerOff(keep))
	}
	m.now = r
	stop := context.AfterFunc(ctx, r.cut)
	go func() {
		r.err = m.keepOn(ctx, r, first)
		stop()
		r.err = errors.Join(r.err, disk.powerOff(keep))
		m.mu.Lock()
		defer m.mu.Unlock()
		m.now = nil
		close(r.over)
	}()
	return nil
}

// keepOn starts the machine again after each reset, until it is off for another
// reason. The error is one that nobody wanted.
func (m *Machine) keepOn(ctx context.Context, r *run, s *start) error {
	for {
		_ = s.qemu.Wait()
		s.end()
		m.mu.Lock()
		m.spent += s.qemu.CPU()
		m.mu.Unlock()
		switch {
		case s.qemu.Killed():
			return nil
		case !s.reset.Load():
			return s.ended()
		}
		next, err := m.start(ctx, r)
		if err != nil {
			if r.isOff() {
				return nil
			}
			return fmt.Errorf("start the machine again after a reset: %w", err)
		}
		s = next
	}
}

// start starts all that a machine is made of, on a disk that is there.
func (m *Machine) start(ctx context.Context, r *run) (_ *start, err error) {
	s := &start{}
	// A socket's path has 108 bytes at most [unix(7)].
	if s.sockets, err = os.MkdirTemp("", "till"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.kill()
			s.end()
		}
	}()
	state, err := filepath.Abs(m.options.TPM)
	if err != nil {
		return nil, err
	}
	at := func(name string) string { return filepath.Join(s.sockets, name) }
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
	if s.tpm, err = child.Start(exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+state, // #nosec G204 -- fixed program
		"--ctrl", "type=unixio,path="+at("tpm"), "--flags", "startup-clear", "--terminate")); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // for QEMU to answer, on a busy machine
	defer cancel()
	if err := s.tpm.Until(ctx, func() error { _, err := os.Stat(at("tpm")); return err }); err != nil {
		return nil, err
	}
	qemu := exec.Command("qemu-system-x86_64", m.arguments(at)...) // #nosec G204 -- fixed program
	qemu.Stdout, qemu.Stderr = m.options.Serial, &s.said
	if m.options.Keyboard != nil {
		qemu.Stdin = m.options.Keyboard
	}
	if s.qemu, err = child.Start(qemu); err != nil {
		return nil, err
	}
	var conn net.Conn
	if err := s.qemu.Until(ctx, func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, "unix", at("qmp"))
		return err
	}); err != nil {
		return nil, err
	}
	s.monitor, err = newMonitor(ctx, conn, func(e Event) {
		if e.Name == "SHUTDOWN" && e.Reason == guestReset {
			e.Name = "RESET"
			s.reset.Store(true)
		}
		select {
		case m.events <- e:
		default:
		}
	})
	if err != nil {
		return nil, err
	}
	if !r.begin(s) {
		return nil, errOff
	}
	_, err = s.monitor.execute(ctx, "cont", nil)
	return s, err
}

// guestReset is why QEMU says that it ends when the guest or the watchdog has
// reset the machine [QEMU, QAPI: ShutdownCause].
const guestReset = "guest-reset"

// begin makes a start the one that the power is for; there may be none any more.
func (r *run) begin(s *start) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = s
	return !r.off
}

func (r *run) isOff() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.off
}

// cut takes the power away.
func (r *run) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.off = true
	if r.now != nil {
		r.now.kill()
	}
}

// ended is how QEMU ended by itself, with its own words.
func (s *start) ended() error {
	err := s.qemu.Wait()
	if err == nil {
		return nil
	}
	return fmt.Errorf("QEMU: %w: %s", err, bytes.TrimSpace(s.said.Bytes()))
}

func (s *start) kill() {
	for _, c := range []*child.Child{s.qemu, s.tpm} {
		if c != nil {
			c.Kill()
		}
	}
}

// end waits for what is left to end. A TPM whose QEMU has ended ends as well,
// when it has written what it knows.
func (s *start) end() {
	if s.qemu != nil {
		_ = s.qemu.Wait()
	}
	if s.monitor != nil {
		<-s.monitor.over
		_ = s.monitor.conn.Close()
	}
	if s.tpm != nil {
		_ = s.tpm.Wait()
	}
	_ = os.RemoveAll(s.sockets)
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
		"-device", "i6300esb", "-action", "watchdog=reset,reboot=shutdown",
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
	if !o.Clock.IsZero() {
		args = append(args, "-rtc", "base="+o.Clock.UTC().Format("2006-01-02T15:04:05"))
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
	return r.err
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

// Wait waits until the machine is off, and says if it ended by itself with an
// error.
func (m *Machine) Wait() error {
	r := m.current()
	if r == nil {
		return nil
	}
	<-r.over
	return r.err
}

// Plug puts a USB stick with that image into the machine, read-only. It is out at
// the next start.
func (m *Machine) Plug(ctx context.Context, image string) error {
	if _, err := m.ask(ctx, "blockdev-add", map[string]any{
		"driver": "raw", "node-name": "stick", "read-only": true, "file": map[string]any{"driver": "file", "filename": image},
	}); err != nil {
		return err
	}
	_, err := m.ask(ctx, "device_add", map[string]any{"driver": "usb-storage", "bus": "usb.0", "drive": "stick"})
	return err
}

// ask gives QEMU a command.
func (m *Machine) ask(ctx context.Context, command string, arguments map[string]any) (json.RawMessage, error) {
	r := m.current()
	if r == nil {
		return nil, errors.New("the machine is off")
	}
	return r.start().monitor.execute(ctx, command, arguments)
}

// Connections is what QEMU says of those that the machine has to the network, from
// which address to which.
func (m *Machine) Connections(ctx context.Context) (string, error) {
	b, err := m.ask(ctx, "human-monitor-command", map[string]any{"command-line": "info usernet"})
	if err != nil {
		return "", err
	}
	var said string
	return said, json.Unmarshal(b, &said)
}

// Press tells the keyboard of the machine, one that is not on USB, that a key is
// pressed down or still is: a held key says so again and again. Its names are
// QEMU's [QEMU, QAPI: QKeyCode].
func (m *Machine) Press(ctx context.Context, key string) error {
	_, err := m.ask(ctx, "input-send-event", map[string]any{"events": []any{
		map[string]any{"type": "key", "data": map[string]any{"down": true, "key": map[string]any{"type": "qcode", "data": key}}},
	}})
	return err
}

// Shutdown ends QEMU in order: the disk's cache is written, and the till is not
// asked. It is a power cut at a moment at which nothing is lost.
func (m *Machine) Shutdown(ctx context.Context) error {
	r := m.current()
	if r == nil {
		return nil
	}
	if _, err := r.start().monitor.execute(ctx, "quit", nil); err != nil {
		return err
	}
	select {
	case <-r.over:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// start is the one that runs, or ran last.
func (r *run) start() *start {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

// CPU is the time that QEMU has taken in all starts so far.
func (m *Machine) CPU() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.now == nil {
		return m.spent
	}
	if s := m.now.start(); s.qemu.Running() {
		return m.spent + s.qemu.CPU()
	}
	return m.spent
}
