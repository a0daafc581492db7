package slot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/slot"
	"github.com/tillward/tillward/hal/slot/slottest"
)

func TestMain(m *testing.M) { slottest.Main(m) }

// box is one with RAUC on it.
type box struct {
	*slottest.Box
	slot.RAUC
	t *testing.T
}

func start(t *testing.T, o slottest.Options) *box {
	t.Helper()
	b := slottest.New(t, o)
	return &box{b, slot.RAUC{Address: b.Address}, t}
}

func (b *box) status() hal.Boot {
	b.t.Helper()
	s, err := b.Status(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (b *box) slot(name string) hal.Slot {
	b.t.Helper()
	s, ok := b.status().Slot(name)
	if !ok {
		b.t.Fatalf("there is no slot %s", name)
	}
	return s
}

// untouched fails the test unless slot A is as it was made, runs and will.
func (b *box) untouched() {
	b.t.Helper()
	s := b.status()
	if s.Booted != "rootfs.0" || s.Primary != "rootfs.0" || b.Box.Primary() != "A" || !b.Good("A") {
		b.t.Errorf("runs %s, next %s (%s); want slot A as before", s.Booted, s.Primary, b.Box.Primary())
	}
	if got := b.Slot("rootfs.0"); !bytes.Equal(got, make([]byte, len(got))) {
		b.t.Error("the slot that runs was written")
	}
}

func TestInstall(t *testing.T) {
	for name, o := range map[string]slottest.Options{"files": {}, "devices": {Devices: true}} {
		t.Run(name, func(t *testing.T) {
			b := start(t, o)
			s := b.status()
			if s.Compatible != slottest.Compatible || s.Booted != "rootfs.0" || s.Primary != "rootfs.0" || s.Installing || len(s.Slots) != 2 || s.Since == "" {
				t.Errorf("status: %+v", s)
			}
			bundle := b.Bundle(slottest.Spec{Version: "2.0.0"})
			var last int
			to, err := b.Install(t.Context(), hal.Bundle{Source: bundle.Path, Format: "plain", ManifestHash: bundle.ManifestHash, Transaction: "x-1"},
				func(percent int, _ string) { last = percent })
			if err != nil || to != "rootfs.1" || last != 100 {
				t.Fatalf("got slot %q at %d %%, %v; want rootfs.1 at 100 %%", to, last, err)
			}
			if !bytes.HasPrefix(b.Slot("rootfs.1"), bundle.Content) {
				t.Error("the slot does not hold what the bundle does")
			}
			b.untouched()
			if got := b.slot("rootfs.1"); got.Version != "2.0.0" || got.Installs != 1 || got.Good != hal.No || got.SHA256 == "" || got.BootName != "B" {
				t.Errorf("slot: %+v; want version 2.0.0, written once, not to be started", got)
			}

			for _, state := range []string{"active", "good", "bad"} {
				if err := b.Mark(t.Context(), "rootfs.1", state); err != nil {
					t.Fatal(err)
				}
				if want := state != "bad"; b.Good("B") != want || (b.Box.Primary() == "B") != want {
					t.Errorf("marked %s: good %v, next %s", state, b.Good("B"), b.Box.Primary())
				}
				if state == "good" {
					b.Reboot()
					if s := b.status(); s.Booted != "rootfs.1" || s.Primary != "rootfs.1" {
						t.Errorf("after a restart runs %s, next %s", s.Booted, s.Primary)
					}
				}
			}
			if to, err = b.Install(t.Context(), hal.Bundle{Source: bundle.Path}, nil); err != nil || to != "rootfs.0" {
				t.Errorf("from the other slot: got %q, %v; want rootfs.0", to, err)
			}
		})
	}
}

// TestRefused has RAUC refuse what it must not install: what runs stays what it
// is, and the slot beside is not started.
func TestRefused(t *testing.T) {
	b := start(t, slottest.Options{})
	good := b.Bundle(slottest.Spec{Version: "2.0.0"})
	spoil := func(change func([]byte) []byte) string {
		content, err := os.ReadFile(good.Path)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "spoilt.raucb")
		if err := os.WriteFile(path, change(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, tt := range map[string]struct {
		path string
		want error
		text string
	}{
		"another box":       {b.Bundle(slottest.Spec{Version: "2.0.0", Compatible: "another"}).Path, hal.ErrIncompatible, "another"},
		"another authority": {b.Bundle(slottest.Spec{Version: "2.0.0", Foreign: true}).Path, hal.ErrUntrusted, "signature"},
		"flipped byte":      {spoil(func(c []byte) []byte { c[len(c)/3] ^= 1; return c }), hal.ErrUntrusted, "signature"},
		"cut":               {spoil(func(c []byte) []byte { return c[:len(c)/2] }), hal.ErrUntrusted, "signature"},
		"no bundle":         {spoil(func([]byte) []byte { return []byte(strings.Repeat("x", 4096)) }), hal.ErrUntrusted, ""},
		"not there":         {good.Path + "x", nil, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			to, err := b.Install(t.Context(), hal.Bundle{Source: tt.path, Format: "plain"}, nil)
			if err == nil || errors.Is(err, hal.ErrUntrusted) != errors.Is(tt.want, hal.ErrUntrusted) || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(strings.ToLower(err.Error()), tt.text) {
				t.Errorf("got slot %q, %v; want %v, %q", to, err, tt.want, tt.text)
			}
			b.untouched()
		})
	}
	if _, err := b.Install(t.Context(), hal.Bundle{Source: good.Path, Format: "plain"}, nil); err != nil {
		t.Errorf("the bundle that was spoilt: %v", err)
	}
}

// TestVerity installs a bundle whose blocks dm-verity checks. Where the kernel
// has none, RAUC must say so and leave all as it was.
func TestVerity(t *testing.T) {
	b := start(t, slottest.Options{})
	bundle := b.Bundle(slottest.Spec{Version: "2.0.0", Format: "verity"})
	in := hal.Bundle{Source: bundle.Path, Format: "verity", ManifestHash: bundle.ManifestHash}
	_, err := b.Install(t.Context(), in, nil)
	if f, serr := os.Open("/dev/mapper/control"); serr != nil {
		t.Log("this kernel has no device mapper: only the refusal was seen")
		if err == nil || !strings.Contains(err.Error(), "/dev/mapper/control") {
			t.Errorf("got %v, want what the kernel lacks", err)
		}
		b.untouched()
	} else {
		_ = f.Close()
		if err != nil || !bytes.HasPrefix(b.Slot("rootfs.1"), bundle.Content) {
			t.Errorf("got %v", err)
		}
	}
	if in.ManifestHash = strings.Repeat("0", 64); b.status().Before != "1.9" {
		if _, err := b.Install(t.Context(), in, nil); !errors.Is(err, hal.ErrUntrusted) {
			t.Errorf("another manifest: got %v, want %v", err, hal.ErrUntrusted)
		}
	}
}

// TestManifestHash insists on a manifest where the RAUC of this machine may not
// know how to.
func TestManifestHash(t *testing.T) {
	b := start(t, slottest.Options{})
	bundle := b.Bundle(slottest.Spec{Version: "2.0.0", Format: "verity"})
	for name, knows := range map[string][]string{
		"1.14": {"http-headers", "transaction-id", "require-manifest-hash"},
		"1.13": {"http-headers", "transaction-id"},
		"1.9":  nil,
	} {
		t.Run(name, func(t *testing.T) {
			m := b.ServeMock()
			m.Knows = knows
			in := hal.Bundle{Source: bundle.Path, Format: "verity", ManifestHash: strings.Repeat("0", 64), Transaction: "x-1"}
			if _, err := b.Install(t.Context(), in, nil); !errors.Is(err, hal.ErrUntrusted) {
				t.Errorf("another manifest: got %v, want %v", err, hal.ErrUntrusted)
			}
			b.untouched()
			in.ManifestHash = bundle.ManifestHash
			if to, err := b.Install(t.Context(), in, nil); err != nil || to != "rootfs.1" {
				t.Errorf("got %q, %v", to, err)
			}
		})
	}
}

func TestNoStream(t *testing.T) {
	b := start(t, slottest.Options{})
	in := hal.Bundle{Source: "http://127.0.0.1:9/x.raucb", Format: "verity", ManifestHash: strings.Repeat("0", 64)}
	if _, err := b.Install(t.Context(), in, nil); !errors.Is(err, hal.ErrNoStream) {
		t.Errorf("without NBD: got %v, want %v", err, hal.ErrNoStream)
	}
	m := b.ServeMock()
	b.Root = m.Root()
	if !b.status().Streams {
		t.Error("a new RAUC on a kernel with NBD: streams is false")
	}
	m.Knows = []string{"http-headers", "transaction-id"}
	if _, err := b.Install(t.Context(), in, nil); !errors.Is(err, hal.ErrNoStream) || !strings.Contains(err.Error(), "1.14") {
		t.Errorf("a RAUC that cannot insist on a manifest, from somebody who may serve two things: got %v, want %v", err, hal.ErrNoStream)
	}
	b.untouched()
}

// TestReadBackUnprivileged reads back as the agent's own user does: it has no
// capability, and the partitions are its group's to read.
func TestReadBackUnprivileged(t *testing.T) {
	const group = 65533
	b := start(t, slottest.Options{Devices: true})
	bundle := b.Bundle(slottest.Spec{Version: "2.0.0"})
	before := b.status()
	if _, err := b.Install(t.Context(), hal.Bundle{Source: bundle.Path}, nil); err != nil {
		t.Fatal(err)
	}
	after := b.status()
	written, _ := after.Slot("rootfs.1")
	for _, mine := range []bool{true, false} {
		owner := 0
		if mine {
			owner = group
		}
		if err := errors.Join(os.Chown(written.Device, 0, owner), os.Chmod(written.Device, 0o640)); err != nil { // #nosec G302 -- as on the box
			t.Fatal(err)
		}
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // and never unlocked: the thread ends with what it lost
			if err := drop(group); err != nil {
				done <- err
				return
			}
			_, err := slot.ReadBack(t.Context(), before, after)
			done <- err
		}()
		switch err := <-done; {
		case mine && err != nil:
			t.Errorf("a partition of its own group: %v", err)
		case !mine && (!errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "0640")):
			t.Errorf("a partition of root's: got %v, want what to do", err)
		}
	}
}

// drop makes the calling thread one of a user in one group, without powers.
func drop(group int) error {
	for _, call := range []struct{ trap, a, b uintptr }{
		{unix.SYS_SETGROUPS, 0, 0}, {unix.SYS_SETFSGID, uintptr(group), 0}, {unix.SYS_SETFSUID, 65534, 0},
	} {
		if _, _, e := unix.RawSyscall(call.trap, call.a, call.b, 0); e != 0 {
			return fmt.Errorf("system call %d: %w", call.trap, e)
		}
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return unix.Capset(&head, &none[0])
}

// hold makes a bundle whose installation stops after the slot was written.
// Reading from reached waits for that, writing to release lets it go on.
func (b *box) hold() (bundle slottest.Bundle, reached, release string) {
	b.t.Helper()
	reached, release = filepath.Join(b.Dir, "reached"), filepath.Join(b.Dir, "release")
	for _, fifo := range []string{reached, release} {
		if err := syscall.Mkfifo(fifo, 0o600); err != nil {
			b.t.Fatal(err)
		}
	}
	return b.Bundle(slottest.Spec{Version: "2.0.0", Hook: "echo >" + reached + "\nread x <" + release}), reached, release
}

// TestServiceDies ends RAUC in the middle of writing.
func TestServiceDies(t *testing.T) {
	b := start(t, slottest.Options{Activate: true})
	bundle, reached, _ := b.hold()
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		_, _ = os.ReadFile(reached)
		b.Kill()
	}()
	if to, err := b.Install(t.Context(), hal.Bundle{Source: bundle.Path}, nil); err == nil || !strings.Contains(err.Error(), "ended in the middle") {
		t.Errorf("got slot %q, %v; want the end of the service", to, err)
	}
	<-killed
	if b.Good("B") {
		t.Error("the slot that was being written may be started")
	}
	if _, err := b.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "journalctl") {
		t.Errorf("status without a service: %v; want where to look", err)
	}
	b.Reboot()
	b.untouched()
	if _, err := b.Install(t.Context(), hal.Bundle{Source: b.Bundle(slottest.Spec{Version: "2.0.1"}).Path}, nil); err != nil {
		t.Errorf("the next one: %v", err)
	}
}

// TestTimeout gives up on an installation, which RAUC goes on with; the next
// one waits for its end and does not take it for its own.
func TestTimeout(t *testing.T) {
	b := start(t, slottest.Options{})
	bundle, reached, release := b.hold()
	late := errors.New("too late")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		_, _ = os.ReadFile(reached)
		cancel(late)
	}()
	if _, err := b.Install(ctx, hal.Bundle{Source: bundle.Path}, nil); !errors.Is(err, late) {
		t.Errorf("got %v, want %v", err, late)
	}
	if s := b.status(); !s.Installing {
		t.Errorf("status while RAUC goes on: %+v", s)
	}
	other := b.Bundle(slottest.Spec{Version: "2.0.1", Compatible: "another"})
	done := make(chan error)
	go func() {
		_, err := b.Install(t.Context(), hal.Bundle{Source: other.Path}, nil)
		done <- err
	}()
	if err := os.WriteFile(release, []byte("\n"), 0); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, hal.ErrIncompatible) {
		t.Errorf("got %v, which is not the end of the second one", err)
	}
	if got := b.slot("rootfs.1"); got.Version != "2.0.0" {
		t.Errorf("the first one: %+v", got)
	}
	b.untouched()
}

// TestReadBack has a disk give back something else than was written.
func TestReadBack(t *testing.T) {
	for name, o := range map[string]slottest.Options{"file": {}, "device": {Devices: true}} {
		t.Run(name, func(t *testing.T) {
			b := start(t, o)
			worn := b.Bundle(slottest.Spec{Version: "2.0.0", Hook: `printf x | dd of="$RAUC_SLOT_DEVICE" bs=1 seek=300000 conv=notrunc 2>/dev/null`})
			if to, err := b.Install(t.Context(), hal.Bundle{Source: worn.Path}, nil); err == nil || !strings.Contains(err.Error(), "gives back") {
				t.Errorf("got slot %q, %v; want that the disk gives back other bytes", to, err)
			}
			b.untouched()
		})
	}
}

func TestNobodyThere(t *testing.T) {
	r := slot.RAUC{Address: "unix:path=" + filepath.Join(t.TempDir(), "bus")}
	if _, err := r.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "is dbus-daemon running?") {
		t.Errorf("status: %v; want what to look at", err)
	}
	if err := r.Mark(t.Context(), "rootfs.0", "good"); err == nil {
		t.Error("mark: no error")
	}
	if _, err := r.Install(t.Context(), hal.Bundle{}, nil); err == nil {
		t.Error("install: no error")
	}
}

func TestMarkUnknown(t *testing.T) {
	b := start(t, slottest.Options{})
	if err := b.Mark(t.Context(), "rootfs.9", "bad"); err == nil || !strings.Contains(err.Error(), "rootfs.9") {
		t.Errorf("got %v, want that there is none", err)
	}
	b.untouched()
}

func TestClassify(t *testing.T) {
	for text, want := range map[string]error{
		"Installation error: Compatible mismatch: Expected 'a' but bundle manifest has 'b'":   hal.ErrIncompatible,
		"Version mismatch: Expected at least '2' but bundle manifest has '1'":                 hal.ErrTooOld,
		"signature verification failed: Verify error: unable to get local issuer certificate": hal.ErrUntrusted,
		"Refusing to install bundle with unexpected hash (expected 1, got 2)":                 hal.ErrUntrusted,
		"Bundle format 'plain' not allowed":                                                   hal.ErrUntrusted,
		"Bundle format 'plain' not supported in streaming mode":                               hal.ErrNoStream,
		"Remote bundle access not supported, recompile with -Dstreaming=true":                 hal.ErrNoStream,
		"failed to resolve 'nbd' netlink family - BLK_DEV_NBD not enabled in kernel?":         hal.ErrNoStream,
		"Failed updating slot rootfs.1: failed to copy: Input/output error":                   nil,
		"Failed mounting bundle: Failed to open /dev/mapper/control: No such device":          nil,
		"failed to configure streaming: The requested URL returned error: 403":                nil,
	} {
		err := slot.Classify(text)
		for _, e := range []error{hal.ErrIncompatible, hal.ErrTooOld, hal.ErrUntrusted, hal.ErrNoStream} {
			if errors.Is(err, e) != errors.Is(want, e) {
				t.Errorf("%s: got %v, want %v", text, err, want)
			}
		}
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%q does not quote RAUC", err)
		}
	}
}

func TestAge(t *testing.T) {
	for want, offers := range map[string]string{
		"1.3 1.9":   `<method name="InstallBundle"/>`,
		"1.9 1.13":  `<method name="InstallBundle"/><method name="InspectBundle"/>`,
		"1.13 1.16": `<method name="InspectBundle"/><method name="GetArtifactStatus"/>`,
		"1.16 ":     `<method name="GetArtifactStatus"/><property type="s" name="SystemVersion"/>`,
		" 1.3":      `<method name="Install"/>`,
	} {
		if since, before := slot.Age(offers); since+" "+before != want {
			t.Errorf("%s: got %q %q, want %q", offers, since, before, want)
		}
	}
}

// TestGroups finds the slot to start among slots that belong together.
func TestGroups(t *testing.T) {
	now := hal.Boot{Booted: "rootfs.0", Slots: []hal.Slot{
		{Name: "appfs.0", Class: "appfs", Parent: "rootfs.0"},
		{Name: "appfs.1", Class: "appfs", Parent: "rootfs.1"},
		{Name: "rootfs.0", Class: "rootfs", BootName: "A"},
		{Name: "rootfs.1", Class: "rootfs", BootName: "B"},
		{Name: "rescue.0", Class: "rescue", BootName: "R"},
	}}
	for name, tt := range map[string]struct {
		written []string
		change  func([]hal.Slot)
		want    string // empty: an error
	}{
		"the other group":       {[]string{"appfs.1", "rootfs.1"}, nil, "rootfs.1"},
		"a part of it":          {[]string{"appfs.1"}, nil, "rootfs.1"},
		"nothing":               {nil, nil, "rootfs.1"},
		"what runs":             {[]string{"rootfs.0"}, nil, ""},
		"a part of what runs":   {[]string{"appfs.0", "rootfs.1"}, nil, ""},
		"two that are started":  {[]string{"rootfs.1", "rescue.0"}, nil, ""},
		"none that is started":  {[]string{"rootfs.1"}, func(s []hal.Slot) { s[3].BootName = "" }, ""},
		"a circle":              {[]string{"appfs.1"}, func(s []hal.Slot) { s[3].Parent = "appfs.1" }, "rootfs.1"},
		"a parent that is not":  {[]string{"appfs.1"}, func(s []hal.Slot) { s[1].Parent = "x" }, ""},
		"a disk that is not":    {[]string{"rootfs.1"}, func(s []hal.Slot) { s[3].Type, s[3].SHA256, s[3].Device = "raw", "00", "/nowhere" }, ""},
		"a disk that is short":  {[]string{"rootfs.1"}, func(s []hal.Slot) { s[3].Type, s[3].SHA256, s[3].Device, s[3].Size = "raw", "00", "/dev/null", 1 }, ""},
		"a file system changes": {[]string{"rootfs.1"}, func(s []hal.Slot) { s[3].Type, s[3].SHA256, s[3].Device = "ext4", "00", "/nowhere" }, "rootfs.1"},
	} {
		t.Run(name, func(t *testing.T) {
			after := now
			after.Slots = append([]hal.Slot(nil), now.Slots...)
			for i := range after.Slots {
				for _, w := range tt.written {
					if after.Slots[i].Name == w {
						after.Slots[i].Installs++
					}
				}
			}
			if tt.change != nil {
				tt.change(after.Slots)
			}
			got, err := slot.ReadBack(t.Context(), now, after)
			if got != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

// TestMalformed shows that nothing on the bus makes us panic.
func TestMalformed(t *testing.T) {
	for _, v := range []any{"", "x", int32(-1), uint32(1), uint64(1 << 63), []string{"a"}, []any{}, []int32{1, 2, 3}, map[string]string{}, true} {
		slot.Malformed(v)
	}
	if _, ok := (hal.Boot{Slots: []hal.Slot{{}}}).Slot(""); ok {
		t.Error("a slot without a name was found")
	}
}
