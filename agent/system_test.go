package agent_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/agent"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/provisioning/trust"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// slots are two boot slots and a boot loader.
type slots struct {
	mu   sync.Mutex
	boot hal.Boot
}

func newSlots() *slots {
	return &slots{boot: hal.Boot{
		Compatible: "shop-box", Version: "1.0.0", Booted: "rootfs.0", Primary: "rootfs.0", Since: "1.3",
		Slots: []hal.Slot{
			{Name: "rootfs.0", Class: "rootfs", BootName: "A", Good: hal.Yes, Version: "1.0.0", Installs: 1, Activations: 1},
			{Name: "rootfs.1", Class: "rootfs", BootName: "B", Good: hal.Yes},
		},
	}}
}

func (s *slots) Status(context.Context) (hal.Boot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.boot
	b.Slots = slices.Clone(b.Slots)
	return b, nil
}

// Install takes the content of a bundle as its version.
func (s *slots) Install(_ context.Context, b hal.Bundle, _ func(int, string)) (string, error) {
	content, err := os.ReadFile(b.Source)
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.boot.Slots {
		if t := &s.boot.Slots[i]; t.Name != s.boot.Booted {
			sum := sha256.Sum256(content)
			t.Version, t.SHA256, t.Good = string(content), hex.EncodeToString(sum[:]), hal.No
			t.Installs++
			return t.Name, nil
		}
	}
	return "", errors.New("no other slot")
}

func (s *slots) Mark(_ context.Context, slot, state string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.boot.Slots {
		if t := &s.boot.Slots[i]; t.Name == slot {
			t.Good = hal.TriOf(state != "bad")
			if state == "active" {
				s.boot.Primary = slot
				t.Activations++
			}
		}
	}
	return nil
}

// start is what the boot loader does.
func (s *slots) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.boot.Booted = s.boot.Primary
}

// A system image is installed, booted on trial and kept; one of another channel
// the box does not take.
func TestSystemImage(t *testing.T) {
	f := newFleet(t)
	file := filepath.Join(t.TempDir(), "bundle.raucb")
	must(t, os.WriteFile(file, []byte("1.1.0"), 0o600))
	c := trust.Custom{Class: "os", Version: "1.1.0", RAUC: &trust.RAUC{Compatible: "shop-box", Version: "1.1.0", Format: "plain"}, Requires: map[string]string{"bootloader": "2025.10.0"}}
	for _, channel := range []string{"prod", "beta"} {
		f.release("os/"+model+"/"+channel+"/1.1.0/bundle.raucb", file, c)
	}
	b := f.box()
	rauc := newSlots()
	b.slots, b.cfg.Update.RAUC, b.cfg.Update.CheckFor = rauc, "unix:path=/nowhere", agent.Duration{Duration: 5 * time.Second}
	b.cfg.Update.Bootloader = filepath.Join(t.TempDir(), "bootloader")
	must(t, os.WriteFile(b.cfg.Update.Bootloader, []byte("2025.10.1\n"), 0o600))
	b.boot(tpmfarm.Default("agent/1.0.0"))
	component := "os/" + model + "/prod"
	runs := func(version string) func() bool {
		return func() bool {
			return slices.ContainsFunc(f.state.Installed, func(c wire.Installed) bool {
				return c.Component == component && c.Version == version && !c.Trial
			})
		}
	}
	f.until("the system is not told", runs("1.0.0"))
	if r := f.offerOf("os", "os/"+model+"/beta", "1.1.0", func(o *wire.OfferOrder) { o.Execution = "x-beta" }); r.State != "REJECTED" || r.Reason != "policy" {
		t.Errorf("another channel: got %+v", r)
	}
	done := make(chan wire.ResultReport)
	go func() { done <- f.offerOf("os", component, "1.1.0", nil) }()
	if err := <-b.ended; !errors.Is(err, agent.ErrReboot) {
		t.Fatalf("the agent ended with %v", err)
	}
	rauc.start()
	b.start()
	if r := <-done; r.State != "SUCCEEDED" || r.From != "1.0.0" {
		t.Errorf("got %+v", r)
	}
	f.until("the new system is not told", runs("1.1.0"))
	c.Version, c.RAUC.Version, c.Requires = "1.2.0", "1.2.0", map[string]string{"bootloader": "2026.1.0"}
	f.release(component+"/1.2.0/bundle.raucb", file, c)
	if r := f.offerOf("os", component, "1.2.0", nil); r.State != "REJECTED" || r.Reason != "requires" || !strings.Contains(r.Text, "needs bootloader 2026.1.0, and 2025.10.1 runs") {
		t.Errorf("a boot loader that is too old: got %+v", r)
	}
	if got := strings.Join(f.states("x-os-1.1.0"), " "); !strings.Contains(got, "INSTALLED REBOOTING") || !strings.HasSuffix(got, "CHECKING SUCCEEDED") {
		t.Errorf("states %s", got)
	}
}
