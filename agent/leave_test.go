package agent_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/provisioning/owner"
)

// deed is the voucher of the only box, and who may extend it.
type deed struct {
	f *fleet
	v owner.Voucher
}

// deed begins with the vendor and the tenant of the test as first owner.
func (f *fleet) deed(b *box) *deed {
	f.t.Helper()
	dev, err := tpm.Open(b.cfg.TPM.Device)
	must(f.t, err)
	ek, _, _, err := dev.Endorsement(f.t.Context())
	must(f.t, errors.Join(err, dev.Close()))
	d := &deed{f: f}
	d.v, err = owner.NewVoucher(f.vendor, owner.Product{Vendor: "V", EKHash: sha256.Sum256(ek), Model: model, Serial: "till-1"}, time.Now().Add(-time.Hour))
	must(f.t, err)
	d.sell(tenant)
	return d
}

// sell passes the box to a tenant; every owner has the vendor's key here.
func (d *deed) sell(to string) {
	d.f.t.Helper()
	key := d.f.vendor.Public().(ed25519.PublicKey)
	at := time.Now().Add(-time.Minute)
	v, err := d.v.Transfer(key, d.f.vendor, owner.Party{Key: key, Name: to, Tenant: to}, owner.Terms{MayTransfer: true}, at)
	must(d.f.t, err)
	d.v, err = v.Accept(key, d.f.vendor, at)
	must(d.f.t, err)
	d.f.set(func() { d.f.voucher = d.v.Bytes() })
}

// mark is what relinquish is told.
func (d *deed) mark() map[string]string {
	d.f.t.Helper()
	s, err := d.v.Verify(d.f.vendor.Public().(ed25519.PublicKey), time.Now(), owner.Mark{})
	must(d.f.t, err)
	return map[string]string{"mark": fmt.Sprintf("%d:%s", s.Mark.Count, hex.EncodeToString(s.Mark.Head))}
}

// sold is a box that is attested as the tenant's, with something of his on it.
func sold(t *testing.T) (*fleet, *box, *deed) {
	t.Helper()
	f := newFleet(t)
	b := f.box()
	b.cfg.Service.VendorKey = f.path("vendor.pem")
	pos := filepath.Join(t.TempDir(), "pos", "data")
	b.cfg.TenantData = []string{pos}
	must(t, os.MkdirAll(filepath.Join(pos, "deep"), 0o700))
	must(t, os.WriteFile(filepath.Join(pos, "deep", "receipts"), []byte("of the first owner"), 0o600))
	d := f.deed(b)
	b.start()
	f.attested("not attested")
	return f, b, d
}

// left lists what of the owner is on the box, beside the books.
func (b *box) left() (names []string) {
	b.f.t.Helper()
	for _, pattern := range []string{filepath.Join(b.cfg.StateDir, "tuf"), filepath.Join(b.cfg.StateDir, "leaving.json"), filepath.Join(b.cfg.TenantData[0], "*")} {
		found, err := filepath.Glob(pattern)
		must(b.f.t, err)
		names = append(names, found...)
	}
	return names
}

// TestRelinquish is a resale: the whole trail is stored, the success told, the
// owner's things wiped, and the box enrols with the next owner as a new one.
func TestRelinquish(t *testing.T) {
	f, b, d := sold(t)
	if r := f.command(f.device(), "set-config", map[string]string{"label": "till of the first owner"}); r.State != "SUCCEEDED" {
		t.Fatalf("got %+v", r)
	}
	first := f.shown[0]
	d.sell("next")
	f.set(func() { f.unowned = true }) // the next owner's service is another one
	r := f.command(f.device(), "relinquish", d.mark())
	if r.State != "SUCCEEDED" || !strings.Contains(string(r.Output), "audit entries are stored") {
		t.Fatalf("got %s (%s) %q", r.State, r.Text, r.Output)
	}
	b.until("the box does not ask for an owner", "nobody owns this device yet")
	f.chained()
	if n := len(f.kinds()); n == 0 || !strings.Contains(f.kinds()[n-1], "owner.relinquish") {
		t.Errorf("the trail ends with %q, want it complete", f.kinds())
	}
	if names := b.left(); names != nil {
		t.Errorf("left on the box: %q", names)
	}
	b.stop()

	// The next owner of the test has the same tenant name, and a longer chain.
	d.sell(tenant)
	f.set(func() { f.unowned = false; clear(f.audit); f.results = nil })
	n := len(f.shown)
	b.start()
	f.attested("not attested with the next owner")
	f.chained()
	f.mu.Lock()
	if f.shown[n].Serial == first.Serial {
		t.Error("the first owner's certificate was shown")
	}
	f.mu.Unlock()
	if r := f.command(f.device(), "identify", nil); strings.Contains(string(r.Output), "first owner") {
		t.Errorf("the next owner reads %q", r.Output)
	}
}

// TestRelinquishRefused: nothing goes by an argument that does not fit, and
// nothing before the trail is stored.
func TestRelinquishRefused(t *testing.T) {
	f, b, d := sold(t)
	old := d.mark()
	for what, args := range map[string]map[string]string{
		"no argument": nil, "no mark": {"mark": ""}, "garbage": {"mark": "all"}, "an older voucher": {"mark": "0:" + old["mark"][2:]},
		"a voucher that contradicts": {"mark": "2:0123456789abcdef"},
	} {
		if r := f.command(f.device(), "relinquish", args); r.State != "FAILED" || !strings.Contains(r.Text, "ownership of this box") {
			t.Errorf("%s: got %s %q", what, r.State, r.Text)
		}
	}
	// The service takes everything but the trail.
	d.sell("next")
	f.set(func() { f.deaf[wire.Audit] = true })
	f.order(f.device(), "relinquish", d.mark())
	n := len(f.evidence)
	f.until("no new connections", func() bool { return len(f.evidence) > n+2 })
	b.stop()
	if b.left() == nil {
		t.Errorf("left on the box: %q, want everything: the trail is not stored", b.left())
	}
	if _, err := os.Stat(filepath.Join(b.cfg.StateDir, "leaving.json")); err == nil {
		t.Error("the wipe has begun")
	}
	// When it listens again, and asks again, it gets the trail first.
	f.set(func() { f.deaf[wire.Audit] = false; f.unowned = true })
	b.start()
	f.until("not connected again", func() bool { return f.has("agent.start", 2) })
	if r := f.command(f.device(), "relinquish", d.mark()); r.State != "SUCCEEDED" {
		t.Errorf("asked again: got %s %q", r.State, r.Text)
	}
	b.until("the box does not ask for an owner", "nobody owns this device yet")
	f.chained()
	if names := b.left(); names != nil {
		t.Errorf("left on the box: %q", names)
	}
}

// TestLetGoAtOnce has a service that stores the success and cuts the device off
// before it can say so. The device does not wait for ever.
func TestLetGoAtOnce(t *testing.T) {
	f, b, d := sold(t)
	d.sell("next")
	f.set(func() { f.deaf[wire.Result] = true; f.unowned = true; f.locked[f.shown[0].Serial] = true })
	if r := f.command(f.device(), "relinquish", d.mark()); r.State != "SUCCEEDED" {
		t.Fatalf("got %+v", r)
	}
	b.until("the box does not ask for an owner", "nobody owns this device yet")
	f.chained()
	if names := b.left(); names != nil {
		t.Errorf("left on the box: %q", names)
	}
}

// TestCutWhileLeaving restarts the box after it has told its success and before
// it knows that the service has it: it tells it again, and goes on.
func TestCutWhileLeaving(t *testing.T) {
	f, b, d := sold(t)
	d.sell("next")
	f.set(func() { f.deaf[wire.Result] = true; f.unowned = true })
	if r := f.command(f.device(), "relinquish", d.mark()); r.State != "SUCCEEDED" {
		t.Fatalf("got %+v", r)
	}
	b.stop()
	if b.left() == nil {
		t.Errorf("left on the box: %q, want everything: the success may not be known", b.left())
	}
	f.set(func() { f.deaf[wire.Result] = false })
	b.start()
	b.until("the box does not ask for an owner", "nobody owns this device yet")
	f.chained()
	if names := b.left(); names != nil {
		t.Errorf("left on the box: %q", names)
	}
}

// TestWipeGoesOn starts a box whose wipe a power cut interrupted: nothing of the
// owner is opened before all of it is gone.
func TestWipeGoesOn(t *testing.T) {
	f, b, _ := sold(t)
	b.stop()
	n := len(f.shown)
	f.set(func() { f.unowned = true })
	must(t, os.WriteFile(filepath.Join(b.cfg.StateDir, "leaving.json"), []byte(`{"entries":4}`), 0o600))
	b.start()
	b.until("the box does not ask for an owner", "nobody owns this device yet")
	b.stop()
	if names := b.left(); names != nil || len(f.shown) != n {
		t.Errorf("left on the box: %q; connected %d times more", names, len(f.shown)-n)
	}
	mark, err := os.ReadFile(filepath.Join(b.cfg.StateDir, "owner.json"))
	if err != nil || !strings.Contains(string(mark), `"given":4`) {
		t.Errorf("the mark of the voucher: %s, %v, want it kept", mark, err)
	}
}

// TestWipeTriesAgain: a disk that is full for a while holds up the end of the
// wipe, not the rest of it, and costs the TPM one key.
func TestWipeTriesAgain(t *testing.T) {
	f, b, _ := sold(t)
	b.stop()
	f.set(func() { f.unowned = true })
	full := filepath.Join(b.cfg.StateDir, "owner.json.new") // the mark cannot be written
	must(t, errors.Join(os.Mkdir(full, 0o700), os.WriteFile(filepath.Join(b.cfg.StateDir, "leaving.json"), []byte(`{"entries":4}`), 0o600)))
	b.start()
	b.until("it does not try again", "trying again")
	if names := b.left(); len(names) != 1 || filepath.Base(names[0]) != "leaving.json" {
		t.Errorf("left on the box: %q, want the journal of the wipe alone", names)
	}
	key := b.ldevid()
	must(t, os.Remove(full))
	b.until("the box does not ask for an owner", "nobody owns this device yet")
	if !bytes.Equal(b.ldevid(), key) {
		t.Error("each try made another key")
	}
	if names := b.left(); names != nil {
		t.Errorf("left on the box: %q", names)
	}
}

// ldevid is the device key that the TPM holds.
func (b *box) ldevid() []byte {
	b.f.t.Helper()
	dev, err := tpm.Open(b.cfg.TPM.Device)
	must(b.f.t, err)
	_, public, err := dev.Keys(b.f.t.Context())
	must(b.f.t, errors.Join(err, dev.Close()))
	return public
}

// until waits for a line in the log.
func (b *box) until(what, line string) {
	b.f.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !strings.Contains(b.said(), line) {
		if time.Now().After(deadline) {
			b.f.t.Fatalf("%s; audit %q", what, b.f.kinds())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestOtherOwner: a service that the vendor's chain does not lead to gets
// nothing, though it has the pinned roots.
func TestOtherOwner(t *testing.T) {
	f := newFleet(t)
	b := f.box()
	b.cfg.Service.VendorKey = f.path("vendor.pem")
	f.deed(b).sell("somebody-else")
	b.start()
	b.until("it was not refused", "ownership of this box")
	b.stop()
	if len(f.shown) != 0 {
		t.Error("the device connected")
	}
}
