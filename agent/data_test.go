package agent_test

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/agent"
	"github.com/tillward/tillward/agent/chip"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/provisioning/trust"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// approval is the boot reference of a release, as an image brings it.
func (f *fleet) approval(release string, fw tpmfarm.Firmware) boot.Reference {
	f.t.Helper()
	pcrs := map[int][]byte{}
	for i, v := range fw.Registers() {
		pcrs[i] = v
	}
	a, err := boot.SignApproval(f.seal, []byte("spool"), pcrs, 0)
	must(f.t, err)
	return boot.Reference{Version: 1, Model: model, Release: release, Approvals: []boot.Approval{a}}
}

// brings makes an image on the box bring a reference.
func (b *box) brings(r boot.Reference) {
	b.f.t.Helper()
	b.cfg.Update.SealKey = b.f.path("seal.pem")
	b.cfg.Update.References = []string{b.f.path("esp/*/boot.json")}
	file := b.f.path(filepath.Join("esp", "a", "boot.json"))
	must(b.f.t, os.MkdirAll(filepath.Dir(file), 0o700))
	must(b.f.t, os.WriteFile(file, r.Bytes(), 0o600))
}

// data asks for the key of the data partition as it is asked for at a start.
func (b *box) data(fw tpmfarm.Firmware) ([]byte, error) {
	b.f.t.Helper()
	b.stop()
	must(b.f.t, b.chip.Restart(b.f.t.Context()))
	must(b.f.t, fw.Boot(b.chip, b.cfg.TPM.EventLog))
	var out bytes.Buffer
	err := agent.DataKey(b.f.t.Context(), b.cfg, agent.Options{OpenTPM: chip.Open, Log: slog.New(slog.NewTextHandler(b.log, nil))}, &out)
	return out.Bytes(), err
}

// plain keeps the books from being locked, so that the data alone is sealed.
func (b *box) plain() {
	b.f.t.Helper()
	must(b.f.t, os.MkdirAll(filepath.Join(b.cfg.StateDir, "vault", "key.json.new"), 0o700))
}

// TestImageSealsBooks: no release says anything of this boot, and what the image
// on the box says of it is enough.
func TestImageSealsBooks(t *testing.T) {
	f := newFleet(t)
	b := f.box()
	b.brings(f.approval("os/box-9/prod/1.0.0", tpmfarm.Default(release)))
	b.boot(tpmfarm.Default(release))
	f.until("not sealed and started again", func() bool { return f.audited("vault.sealed") && f.has("link.up", 2) })
	f.chained()
}

// TestDataAtUpdate: data alone is sealed, and an update that would leave it
// closed is refused; one that brings an approval opens it without a network.
func TestDataAtUpdate(t *testing.T) {
	f := newFleet(t)
	good, next := tpmfarm.Default(release), tpmfarm.Default("agent/1.2.0")
	b := f.box()
	b.brings(f.approval("os/box-9/prod/1.0.0", good))
	key, err := b.data(good)
	must(t, err)
	if len(key) != 32 {
		t.Fatalf("a key of %d bytes", len(key))
	}
	b.plain()
	b.start()
	f.attested("not attested")
	f.program("1.1.0")
	if r := f.offer("1.1.0"); r.State != "REJECTED" || r.Reason != "unsealable" || !strings.Contains(r.Text, "boot reference") {
		t.Errorf("without a reference: got %s (%s) %q", r.State, r.Reason, r.Text)
	}
	f.program("1.2.0")
	f.reference("agent/1.2.0", next, 0)
	// The program is none: the way ends at its self-check, past what is tested.
	if r := f.offer("1.2.0"); r.State != "FAILED" || r.Reason != "selfcheck" {
		t.Errorf("with an approval: got %s (%s) %q", r.State, r.Reason, r.Text)
	}
	if got, err := b.data(next); err != nil || !bytes.Equal(got, key) {
		t.Errorf("after the update: got %x, %v, want %x", got, err, key)
	}
}

// TestClosedData: a boot that nobody approved leaves the data closed, and says
// so; as soon as somebody does, the agent asks to be started again.
func TestClosedData(t *testing.T) {
	f := newFleet(t)
	good, evil := tpmfarm.Default(release), tpmfarm.Default(release)
	evil.Event("kernel").Image = []byte("another kernel")
	b := f.box()
	b.brings(f.approval("os/box-9/prod/1.0.0", good))
	key, err := b.data(good)
	must(t, err)
	if _, err := b.data(evil); err == nil {
		t.Fatal("the data opens in a boot that nobody approved")
	}
	b.start()
	f.until("the alarm is not on record", func() bool { return f.audited("vault.data-closed") && f.has("link.up", 1) })
	if r := f.command(f.device(), "diagnose", nil); !strings.Contains(string(r.Output), "data closed") {
		t.Errorf("diagnose: got %q", r.Output)
	}
	f.reference(release, evil, 0) // it was good after all
	b.stop()
	b.start()
	f.until("not started again", func() bool { return f.has("agent.start", 3) })
	b.stop()
	if got, err := b.data(evil); err != nil || !bytes.Equal(got, key) {
		t.Errorf("approved later: got %x, %v, want %x", got, err, key)
	}
	f.chained()
	if n := len(slices.DeleteFunc(f.kinds(), func(k string) bool { return !strings.Contains(k, "vault.data-closed") })); n != 2 {
		t.Errorf("closed %d times, want 2: %q", n, f.kinds())
	}
}

// TestTrialClosesData: a system that comes up and does not open the data that
// was open before is undone, though everything else about it is well.
func TestTrialClosesData(t *testing.T) {
	f := newFleet(t)
	file := filepath.Join(t.TempDir(), "bundle.raucb")
	must(t, os.WriteFile(file, []byte("1.1.0"), 0o600))
	component := "os/" + model + "/prod"
	f.release(component+"/1.1.0/bundle.raucb", file, trust.Custom{
		Class: "os", Version: "1.1.0", RAUC: &trust.RAUC{Compatible: "shop-box", Version: "1.1.0", Format: "plain"},
	})
	good, next, other := tpmfarm.Default(release), tpmfarm.Default("os/1.1.0"), tpmfarm.Default("os/1.1.1")
	f.reference(component+"/1.1.0", next, 0)
	b := f.box()
	rauc := newSlots()
	b.slots, b.cfg.Update.RAUC, b.cfg.Update.CheckFor = rauc, "unix:path=/nowhere", agent.Duration{Duration: 5 * time.Second}
	b.brings(f.approval(component+"/1.0.0", good))
	_, err := b.data(good)
	must(t, err)
	b.plain()
	b.start()
	f.attested("not attested")
	done := make(chan wire.ResultReport)
	go func() { done <- f.offerOf("os", component, "1.1.0", nil) }()
	for first := true; first || rauc.boot.Booted == "rootfs.1"; first = false {
		select {
		case err := <-b.ended:
			if b.cancel(); !errors.Is(err, agent.ErrReboot) {
				t.Fatalf("the agent ended with %v", err)
			}
		case r := <-done:
			t.Fatalf("the update ended without a restart: %s %q", r.State, r.Text)
		}
		b.cancel = nil
		rauc.start()
		fw := good
		if rauc.boot.Booted == "rootfs.1" {
			fw = other // not the kernel that was approved
		}
		b.boot(fw)
	}
	if r := <-done; r.State != "ROLLED_BACK" || !strings.Contains(r.Text, "sealed") {
		t.Errorf("got %s (%s) %q", r.State, r.Reason, r.Text)
	}
	b.stop()
	if got := strings.Join(f.states("x-os-1.1.0"), " "); !strings.Contains(got, "CHECKING") {
		t.Errorf("states %s", got)
	}
	f.chained()
}
