package agent_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/agent"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

const release = "agent/1.0.0"

// readable returns the books in which something of the owner's can be read.
func (b *box) readable() (names []string) {
	b.f.t.Helper()
	files, err := filepath.Glob(filepath.Join(b.cfg.StateDir, "spool*"))
	must(b.f.t, err)
	for _, name := range files {
		content, err := os.ReadFile(name)
		must(b.f.t, err)
		// The kinds of the trail are in no plain value.
		if bytes.Contains(content, []byte("enrol.done")) || bytes.Contains(content, []byte("link.up")) {
			names = append(names, filepath.Base(name))
		}
	}
	return names
}

// has reports whether the trail holds so many entries of a kind; the caller
// holds the lock.
func (f *fleet) has(kind string, n int) bool {
	for _, r := range f.audit {
		if r.Kind == kind {
			n--
		}
	}
	return n <= 0
}

// TestBooksAreLocked is the way of the books: plain until a release approves
// the boot, then locked; closed in another boot, with quarantine and repair
// going on beside them; open again after the repair, and nothing lost.
func TestBooksAreLocked(t *testing.T) {
	f := newFleet(t)
	good, evil := tpmfarm.Default(release), tpmfarm.Default(release)
	evil.Event("kernel").Image = []byte("another kernel")
	f.reference(release, good, 0)
	b := f.sealed(good)
	f.command(f.device(), "collect-logs", nil)
	if r := f.command(f.device(), "diagnose", nil); r.State != "SUCCEEDED" || !strings.Contains(string(r.Output), "books encrypted") {
		t.Errorf("diagnose: got %s %q", r.State, r.Output)
	}
	b.stop()
	if names := b.readable(); names != nil {
		t.Errorf("readable in %q", names)
	}
	st, err := agent.ReadStatus(t.Context(), b.cfg, agent.Options{Version: "1.0.0"})
	if seq := uint64(len(f.kinds())); err != nil || st.AuditRecorded < seq || st.SpoolDepth > 10 {
		t.Errorf("status without the key: got %+v, %v, want %d entries and more", st, err, seq)
	}

	// What was recorded last has not been handed over: it stays in the books.
	f.set(func() { f.deaf[wire.Audit] = true })
	b.boot(good)
	f.until("not connected", func() bool { return len(f.evidence) > 3 })
	b.stop()
	f.set(func() { f.deaf[wire.Audit] = false })

	f.set(func() { f.verdict.Verdict = "quarantined" })
	b.boot(evil)
	f.until("the alarm is not on record", func() bool { return f.audited("vault.closed") })
	if r := f.command(f.device(), "diagnose", nil); r.State != "SUCCEEDED" || !strings.Contains(string(r.Output), "books locked") {
		t.Errorf("diagnose: got %s %q", r.State, r.Output)
	}
	args := map[string]string{"mark": "1:0123456789abcdef"}
	if r := f.command(f.device(), "relinquish", args); r.State != "FAILED" || !strings.Contains(r.Text, "cannot be opened") {
		t.Errorf("relinquish while a part of the trail is locked: got %s %q", r.State, r.Text)
	}
	b.stop()

	f.set(func() { f.verdict.Verdict = "attested" })
	b.boot(good)
	f.until("the books did not open", func() bool { return f.audited("vault.opened") })
	b.stop()
	f.chained()
	if names := b.readable(); names != nil {
		t.Errorf("after the repair: readable in %q", names)
	}
	if _, err := os.Stat(filepath.Join(b.cfg.StateDir, "spool.beside.db")); err == nil {
		t.Error("the plain books are still there")
	}
	if f.has("enrol.done", 2) {
		t.Error("the device enrolled again: its identity was lost on the way")
	}
}

// TestApprovalComesLater has a device whose boot nobody approved yet: it sells
// on in plain books beside the locked ones, and opens them as soon as a release
// approves the state.
func TestApprovalComesLater(t *testing.T) {
	f := newFleet(t)
	one, two := tpmfarm.Default(release), tpmfarm.Default("os/2.0.0")
	f.reference(release, one, 0)
	b := f.sealed(one)
	b.boot(two) // a system update that the release did not know
	f.until("the alarm is not on record", func() bool { return f.audited("vault.closed") })
	b.boot(one)
	f.until("the books did not open", func() bool { return f.audited("vault.opened") })
	f.chained()
}

// TestDeafChip has a TPM that does not answer while the agent starts, and does a
// moment later: nothing of the plain books goes to the service before what waits
// in the locked ones.
func TestDeafChip(t *testing.T) {
	f := newFleet(t)
	fw := tpmfarm.Default(release)
	f.reference(release, fw, 0)
	b := f.sealed(fw)
	b.stop()
	b.deaf.Store(1)
	b.cfg.Service.Artifacts = "https://127.0.0.1:1" // nobody tells it that the boot is approved: that is on file
	b.boot(fw)
	f.until("the books did not open", func() bool { return f.audited("vault.opened") && f.has("link.up", 3) })
	f.chained()
	kinds := f.kinds()
	of := func(kind string) int {
		return slices.IndexFunc(kinds, func(k string) bool { return strings.Fields(k)[1] == kind })
	}
	if from, to := of("vault.closed"), of("vault.opened"); from < 0 || from > to ||
		slices.ContainsFunc(kinds[from:to], func(k string) bool { return strings.Fields(k)[1] == "link.up" }) {
		t.Errorf("the trail says %q: want no connection while the books were locked", kinds[max(0, from):])
	}
}

// TestRenewedWhileClosed changes both keys while the books are closed. When they
// open again they speak of keys that are gone; the device goes on as who it is,
// though nobody would enrol it.
func TestRenewedWhileClosed(t *testing.T) {
	f := newFleet(t)
	one, two := tpmfarm.Default(release), tpmfarm.Default("os/2.0.0")
	f.reference(release, one, 0)
	b := f.sealed(one)
	b.stop()
	b.cfg.TPM.AKRotate.Duration = time.Second
	b.boot(two)
	f.until("not connected beside the books", func() bool { return f.audited("vault.closed") && f.has("link.up", 3) })
	f.say(f.device(), wire.Challenge{Need: wire.NeedRenew})
	f.until("not renewed", func() bool { return f.audited("identity.renewed") && f.audited("identity.rotated") })
	b.stop()
	b.cfg.TPM.AKRotate.Duration = 0
	f.set(func() { f.refuse = enrol.Refuse("enrol.owner", "on no list any more") })
	b.boot(one)
	f.until("not connected with the books open", func() bool { return f.audited("vault.opened") && f.has("link.up", 4) })
	b.stop()
	b.boot(one) // by what is in the books now
	f.until("not connected again", func() bool { return f.has("link.up", 5) })
	f.chained()
	if f.audited("identity.lost") || f.audited("enrol.failed") {
		t.Errorf("the identity was taken for lost: %q", f.kinds())
	}
}

// TestLostBooks: a TPM that was changed, or cleared, opens nothing; the device
// begins anew and says so.
func TestLostBooks(t *testing.T) {
	f := newFleet(t)
	good := tpmfarm.Default(release)
	f.reference(release, good, 0)
	b := f.sealed(good)
	b.stop()
	var err error
	b.chip, err = f.farm.Start(t.Context(), t.TempDir())
	must(t, err)
	b.cfg.TPM.Device = "unix:" + b.chip.Socket()
	f.set(func() { clear(f.audit) }) // another device: its trail begins anew
	b.boot(good)
	f.until("the loss is not on record", func() bool { return f.audited("vault.lost") && f.audited("vault.sealed") && f.has("link.up", 2) })
	b.stop()
	f.chained()
	lost, err := filepath.Glob(filepath.Join(b.cfg.StateDir, "spool.db.lost-*"))
	must(t, err)
	if len(lost) == 0 {
		t.Error("the lost books were not kept")
	}
	if names := b.readable(); names != nil {
		t.Errorf("readable in %q", names)
	}
}

// TestSealedKeyIsGone: books that are locked with a key nobody has do not keep
// the agent from starting. A second loss, or a power cut in the middle of the
// first, does not throw away what was set aside.
func TestSealedKeyIsGone(t *testing.T) {
	f := newFleet(t)
	good := tpmfarm.Default(release)
	f.reference(release, good, 0)
	b := f.sealed(good)
	b.stop()
	key := filepath.Join(b.cfg.StateDir, "vault", "key.json")
	sealed, err := os.ReadFile(key)
	must(t, err)
	must(t, os.Remove(key))
	f.set(func() { clear(f.audit) })
	b.start()
	f.until("the loss is not on record", func() bool { return f.audited("vault.lost") && f.audited("vault.sealed") && f.has("link.up", 2) })
	b.stop()
	f.chained()
	lost := func() (names []string) {
		names, err := filepath.Glob(filepath.Join(b.cfg.StateDir, "spool.db.lost-*"))
		must(t, err)
		return names
	}
	kept := lost()
	if len(kept) == 0 {
		t.Fatal("the lost books were not kept")
	}
	// The power is cut when they are set aside and the key is not yet forgotten.
	must(t, errors.Join(os.Remove(filepath.Join(b.cfg.StateDir, "spool.db")), os.WriteFile(key, sealed[:len(sealed)/2], 0o600)))
	f.set(func() { clear(f.audit) })
	b.start()
	f.until("not started again", func() bool { return f.audited("vault.lost") && f.has("link.up", 1) })
	b.stop()
	if now := lost(); !slices.Equal(now, kept) {
		t.Errorf("kept %q, now %q", kept, now)
	}
}

// TestImageWithoutReleaseKey: an image that knows no release key, an older one
// perhaps, goes on beside the locked books; the next one opens them again.
func TestImageWithoutReleaseKey(t *testing.T) {
	f := newFleet(t)
	good := tpmfarm.Default(release)
	f.reference(release, good, 3)
	b := f.sealed(good)
	b.stop()
	b.cfg.Update.SealKey = ""
	b.start()
	f.until("the alarm is not on record", func() bool { return f.audited("vault.closed") && f.has("link.up", 3) })
	b.stop()
	b.cfg.Update.SealKey = f.path("seal.pem")
	b.start()
	f.until("the books did not open", func() bool { return f.audited("vault.opened") })
	b.stop()
	f.chained()
	if f.has("enrol.done", 2) {
		t.Error("the device enrolled again: its identity was lost on the way")
	}
}

// TestNoReference: a release without boot reference for this model locks
// nothing; that is today's device.
func TestNoReference(t *testing.T) {
	f := newFleet(t)
	b := f.box()
	b.cfg.Update.SealKey = f.path("seal.pem")
	b.boot(tpmfarm.Default(release))
	f.attested("not attested")
	b.stop()
	if b.readable() == nil {
		t.Error("nothing can be read: the tests above look in the wrong place")
	}
	f.chained()
}

// TestFloorRises after the release is committed, when the box has booted into
// what allows it.
func TestFloorRises(t *testing.T) {
	f := newFleet(t)
	good := tpmfarm.Default(release)
	f.reference(release, good, 3)
	b := f.sealed(good)
	for range 100 { // it rises when the reference has been fetched
		if r := f.command(f.device(), "diagnose", nil); strings.Contains(string(r.Output), "rollback floor 3") {
			b.boot(good)
			f.until("the books do not open above the floor", func() bool { return f.has("link.up", 3) })
			if f.audited("vault.closed") {
				t.Error("the books stay locked")
			}
			return
		}
	}
	t.Error("the floor does not rise")
}

// TestAgentBesideAnImage: where a system image is what boots, another agent opens
// what is sealed, and needs no reference of its own.
func TestAgentBesideAnImage(t *testing.T) {
	f := newFleet(t)
	good := tpmfarm.Default(release)
	f.reference("os/"+model+"/prod/1.0.0", good, 0)
	b := f.box()
	b.slots, b.cfg.Update.RAUC, b.cfg.Update.SealKey = newSlots(), "unix:path=/nowhere", f.path("seal.pem")
	b.boot(good)
	f.until("not sealed and started again", func() bool { return f.audited("vault.sealed") && f.has("link.up", 2) })
	f.program("1.1.0")
	// The program is none: the way ends at its self-check, past what is tested.
	if r := f.offer("1.1.0"); r.State != "FAILED" || r.Reason != "selfcheck" {
		t.Errorf("got %s (%s) %q", r.State, r.Reason, r.Text)
	}
	b.stop()
}

// TestUpdateKeepsTheKey refuses a release that brings no approval for this box,
// with what to do, and takes one that does.
func TestUpdateKeepsTheKey(t *testing.T) {
	f := newFleet(t)
	good := tpmfarm.Default(release)
	f.reference(release, good, 0)
	b := f.sealed(good)
	f.program("1.1.0")
	if r := f.offer("1.1.0"); r.State != "REJECTED" || r.Reason != "unsealable" || !strings.Contains(r.Text, "boot reference") {
		t.Errorf("without a reference: got %s (%s) %q", r.State, r.Reason, r.Text)
	}
	f.program("1.2.0")
	f.reference("agent/1.2.0", tpmfarm.Default("agent/1.2.0"), 0)
	// The program is none: the way ends at its self-check, past what is tested.
	if r := f.offer("1.2.0"); r.State != "FAILED" || r.Reason != "selfcheck" {
		t.Errorf("with an approval: got %s (%s) %q", r.State, r.Reason, r.Text)
	}
	b.boot(tpmfarm.Default("agent/1.2.0")) // no network is needed for its approval: it is on file
	f.until("not started again", func() bool { return f.has("link.up", 3) })
	if f.audited("vault.closed") {
		t.Error("the books stay locked after the update")
	}
}

// TestForeignDisk puts the disk of one box, whose books are plain, into
// another: what it holds of the first is set aside, and said.
func TestForeignDisk(t *testing.T) {
	f := newFleet(t)
	b := f.box()
	b.boot(tpmfarm.Default(release))
	f.until("not attested", func() bool { return f.has("link.up", 1) })
	b.stop()
	var err error
	b.chip, err = f.farm.Start(t.Context(), t.TempDir())
	must(t, err)
	b.cfg.TPM.Device = "unix:" + b.chip.Socket()
	f.set(func() { clear(f.audit) }) // another device: its trail begins anew
	b.boot(tpmfarm.Default(release))
	f.until("the other box's disk is not on record", func() bool { return f.audited("identity.foreign") && f.has("link.up", 1) })
	b.stop()
	f.chained()
}
