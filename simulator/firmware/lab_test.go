//go:build firmware

package firmware_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/simulator/firmware"
)

// The releases of this lane.
const (
	first   = "1.0.0" // what the tills are flashed with
	talking = "1.0.1" // the same with a serial console, a clock without a battery and a reset button
	second  = "2.0.0"
	mute    = "3.0.0" // never reaches the service
	panics  = "4.0.0" // as soon as its init runs
	hangs   = "5.0.0"
)

// panicking ends the kernel; that of Buildroot has no SysRq, but all panic that
// are told to and have no memory left.
const panicking = `#!/bin/sh
echo c >/proc/sysrq-trigger
echo 2 >/proc/sys/vm/panic_on_oom
mount -t tmpfs -o size=8g none /mnt
cat /dev/zero >/mnt/fill
`

// hang stops all that runs, so that nobody feeds the watchdog.
const hang = "#!/bin/sh\nkill -STOP -1\nwhile :; do sleep 1000; done\n"

// specOf says how a release differs from the others.
func (l *lab) specOf(version string) (firmware.Spec, error) {
	s := firmware.Spec{
		Version: version, Model: l.fleet.Model(), Compatible: compatible, Vendor: l.fleet.vendor, Console: version == talking,
		RAUCCert: filepath.Join(l.fleet.keys, "rauc", "signing.pem"), RAUCKey: filepath.Join(l.fleet.keys, "rauc", "signing.key"),
		Env:     []string{"ROOT_MIB=36"}, // RAUC reads all of both slots, which takes its time here
		Overlay: map[string]string{}, BaseLog: l.baseLog, BaseUKI: l.baseUKI, Reference: l.reference,
	}
	switch version {
	case talking:
		// The machine has no battery for its clock: this is where the time comes from.
		_, port, err := net.SplitHostPort(l.clock)
		if err != nil {
			return s, err
		}
		s.Overlay["etc/tillward/time.conf"] = "server 10.0.2.2 iburst port " + port + "\n"
		s.Overlay["etc/tillward/nftables.d/time.nft"] = "add rule inet tillward vendor_output ip daddr 10.0.2.2 udp dport " + port + " accept\n"
		// And its keyboard is the button.
		s.Overlay["etc/tillward/board.conf"] = boardConf + "reset_key=KEY_POWER\nreset_device=AT Translated Set 2 keyboard\n"
	case mute:
		file, err := l.fleet.agentFile("10.0.2.2:9")
		if err != nil {
			return s, err
		}
		s.Overlay["etc/tillward/agent.toml"] = file
	case panics:
		s.Overlay["usr/libexec/tillward/rc.d/41-panic"] = panicking
	case hangs:
		s.Overlay["usr/libexec/tillward/rc.d/41-hang"] = hang
	}
	return s, nil
}

// lab is the bench with all that stands on it.
type lab struct {
	t                *testing.T
	dir              string
	kit              *firmware.Kit
	fleet            *fleet
	baseLog, baseUKI string
	clock            string       // address of the time server
	asked            atomic.Int64 // how often it was
	report           *report

	building sync.Mutex // one at a time: there are two cores
	images   map[string]firmware.Image
	released map[string]bool
}

// image builds a release, once.
func (l *lab) image(ctx context.Context, version string) (firmware.Image, error) {
	l.building.Lock()
	defer l.building.Unlock()
	if i, ok := l.images[version]; ok {
		return i, nil
	}
	i, err := l.build(ctx, version, filepath.Join(l.dir, "image", version))
	if err == nil {
		l.images[version] = i
	}
	return i, err
}

func (l *lab) build(ctx context.Context, version, dir string) (firmware.Image, error) {
	spec, err := l.specOf(version)
	if err != nil {
		return firmware.Image{}, err
	}
	i, err := l.kit.Build(ctx, spec, dir)
	if err != nil {
		return i, fmt.Errorf("image %s: %w", version, err)
	}
	return i, nil
}

// reference approves that what is sealed opens in an image: the agent's books and
// the key of the data partition. How it boots was worked out by the scripts that
// made it, from the boot that was watched. There are two ways to start it: at
// once, and after the firmware has tried a slot that holds nothing.
func (l *lab) reference(ctx context.Context, i firmware.Image) (string, error) {
	for _, what := range []string{"spool", "data"} {
		for _, log := range []string{"predicted.log", "predicted-failed-1.log"} {
			err := l.fleet.Provision(ctx, "boot", "approve", "--reference", i.Reference, "--key", l.fleet.sealKey(), "--log", filepath.Join(i.Dir, log), "--ref", what)
			if err != nil {
				return "", err
			}
		}
	}
	return i.Reference, nil
}

// flashed publishes how tills boot that leave the factory with a release.
func (l *lab) flashed(ctx context.Context, version string) (firmware.Image, error) {
	return l.publish(ctx, version, func(i firmware.Image) error { return l.sign(ctx, "boot", "--reference", i.Reference) })
}

// offered publishes a release as a bundle with its reference values.
func (l *lab) offered(ctx context.Context, version string) (firmware.Image, error) {
	return l.publish(ctx, version, func(i firmware.Image) error {
		return l.sign(ctx, "release", "--bundle", i.Bundle, "--model", l.fleet.Model(), "--boot", i.Reference)
	})
}

func (l *lab) publish(ctx context.Context, version string, how func(firmware.Image) error) (firmware.Image, error) {
	i, err := l.image(ctx, version)
	if err != nil {
		return i, err
	}
	l.building.Lock()
	defer l.building.Unlock()
	if l.released[version] {
		return i, nil
	}
	if err := how(i); err != nil {
		return i, err
	}
	l.released[version] = true
	return i, nil
}

// sign adds something to the repository of releases and brings it to the service.
func (l *lab) sign(ctx context.Context, what string, args ...string) error {
	repo, keys := filepath.Join(l.fleet.Dir(), "release", "repo"), filepath.Join(l.fleet.Dir(), "release", "keys")
	if err := l.fleet.Provision(ctx, append([]string{what, "add", "--repo", repo, "--keys", keys}, args...)...); err != nil {
		return err
	}
	return l.fleet.CLI(ctx, "release", "publish", "--repo", repo)
}

// till is one machine with what stands around it.
type till struct {
	*lab
	name, dir, id string
	flash         string // the release it was flashed with
	machine       *firmware.Machine
	counter       *firmware.Counter
	serial        *words
	seen          []string // what QEMU told of the machine
	mu            sync.Mutex
	rollout       string // the last one
	stages        map[string]*outcome
}

// words are what came over a serial line.
type words struct {
	mu   sync.Mutex
	said strings.Builder
	file *firmware.Stamped
}

func (w *words) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said.Write(b)
	return w.file.Write(b)
}

// len is how much was said.
func (w *words) len() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.said.Len()
}

// from returns what was said from a place on.
func (w *words) from(at int) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.said.String()[at:]
}

// box makes a till of a release: its disk, its TPM, which its maker has listed
// and somebody has claimed, and its counter. It is off.
func (l *lab) box(ctx context.Context, name, version string) (*till, error) {
	image, err := l.flashed(ctx, version)
	if err != nil {
		return nil, err
	}
	b, err := l.bare(ctx, name, version, image.Disk)
	if err != nil {
		return nil, err
	}
	chip, err := l.fleet.Chip(ctx, name)
	if err != nil {
		return nil, err
	}
	dev, err := tpm.Open("unix:" + chip.Socket())
	if err != nil {
		chip.Stop()
		return nil, err
	}
	label, err := l.fleet.Ship(ctx, dev, name)
	err = errors.Join(err, dev.Close())
	chip.Stop()
	if err != nil {
		return nil, err
	}
	b.id = label.Device
	file := filepath.Join(b.dir, "label")
	if err := os.WriteFile(file, []byte(label.URI()), 0o600); err != nil {
		return nil, err
	}
	return b, l.fleet.CLI(ctx, "claim", "code", "--file", file)
}

// bare is a machine with a copy of a disk, which was flashed with a version.
func (l *lab) bare(ctx context.Context, name, version, disk string) (*till, error) {
	b := &till{lab: l, name: name, flash: version, dir: filepath.Join(l.dir, name), stages: map[string]*outcome{}}
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return nil, err
	}
	own := filepath.Join(b.dir, "disk.img")
	if err := copyDisk(ctx, disk, own); err != nil {
		return nil, err
	}
	sockets, err := os.MkdirTemp("", "tillward-fw-") // a socket's path is short
	if err != nil {
		return nil, err
	}
	l.t.Cleanup(func() { _ = os.RemoveAll(sockets) })
	f, err := os.Create(filepath.Join(b.dir, "serial.log"))
	if err != nil {
		return nil, err
	}
	l.t.Cleanup(func() { _ = f.Close() })
	b.serial = &words{file: &firmware.Stamped{Out: f}}
	printer, reader := filepath.Join(sockets, "printer"), filepath.Join(sockets, "reader")
	if b.counter, err = firmware.NewCounter(printer, reader); err != nil {
		return nil, err
	}
	l.t.Cleanup(func() { _ = b.counter.Close() })
	o := firmware.MachineOptions{
		Disk: own, TPM: filepath.Join(l.fleet.Dir(), "chips", name), CCID: reader, Printer: printer, Serial: b.serial, Seed: *seedFlag,
	}
	if version == talking {
		o.Clock = time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	b.machine = l.kit.Machine(b.dir, o)
	b.serial.file.CPU = b.machine.CPU
	l.t.Cleanup(func() { _ = b.machine.Kill() })
	done := make(chan struct{})
	l.t.Cleanup(func() { close(done) })
	go func() {
		for {
			select {
			case <-done:
				return
			case e := <-b.machine.Events():
				b.mu.Lock()
				b.seen = append(b.seen, e.Name)
				b.mu.Unlock()
			}
		}
	}()
	return b, nil
}

// on waits until the till is on line and what is said of it holds.
func (b *till) on(ctx context.Context, what string, within time.Duration, ok func(device) bool) (device, error) {
	return b.fleet.until(ctx, b.id, b.name+" "+what, within, func(d device) bool { return d.Online && ok(d) })
}

// runs says which release of the system a till runs, and from which slot.
func (b *till) runs(ctx context.Context) (version, slot string, err error) {
	var u struct {
		Installed []struct{ Component, Version, Slot string }
	}
	err = b.fleet.Operator.Get(ctx, "/v1/devices/"+b.id+"/update", &u)
	for _, c := range u.Installed {
		if c.Component == system {
			return c.Version, c.Slot, err
		}
	}
	return "", "", err
}

// offer brings a release of the system to this till alone.
func (b *till) offer(ctx context.Context, version string) error {
	if _, err := b.offered(ctx, version); err != nil {
		return err
	}
	return b.roll(ctx, system+"/"+version)
}

// roll starts a rollout to this till alone.
func (b *till) roll(ctx context.Context, release string) error {
	var r struct{ ID string }
	err := b.fleet.Ask(ctx, &r, "rollout", "start", release, "--device", b.id)
	b.rollout = r.ID
	return err
}

// events are what QEMU has told of the machine so far.
func (b *till) events() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.seen)
}

// power switches the machine on, for longer than a stage: it is off when the
// test is over.
func (b *till) power() error { return b.machine.Start(b.t.Context()) }
