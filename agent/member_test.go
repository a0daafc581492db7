package agent_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/provisioning/identity"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// attested waits until the device is connected and has told so.
func (f *fleet) attested(what string) {
	f.t.Helper()
	f.until(what, func() bool { return f.audited("link.up") })
}

// TestStickBeforeImage: a box whose image names nobody is unclaimed, then
// enrols by a stick that is plugged in while it waits.
func TestStickBeforeImage(t *testing.T) {
	f := newFleet(t)
	b := f.box()
	dir, err := os.MkdirTemp("", "stick-") // the number in t.TempDir is long enough for a card's, and the guard keeps such a path
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	stick := filepath.Join(dir, "tillward-service.toml")
	b.cfg.Service.Enrol, b.cfg.Service.Files = "", []string{stick}
	b.start()
	must(t, os.WriteFile(stick+".new", []byte("enrol = \""+f.https.URL+"\"\nserver_name = \"localhost\"\n"), 0o600))
	must(t, os.Rename(stick+".new", stick))
	f.attested("not attested by the stick")
	must(t, os.Remove(stick)) // it is needed no more
	b.stop()
	n := len(f.shown)
	b.start()
	f.until("not connected again", func() bool { return len(f.shown) > n })
	f.chained()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.audit {
		if r.Kind == "service.found" && r.Detail["source"] == "file" {
			return
		}
	}
	t.Error("the trail does not say who named the service")
}

// TestRenewalKeepsTheConnection asks for another certificate while the device
// is connected; it is shown at the next connect, and the old key is gone.
func TestRenewalKeepsTheConnection(t *testing.T) {
	f := newFleet(t)
	b := f.box()
	b.start()
	f.attested("not attested")
	f.say(f.device(), wire.Challenge{Need: wire.NeedRenew})
	f.until("not renewed", func() bool { return f.audited("identity.renewed") })
	if len(f.shown) != 1 {
		t.Errorf("connected %d times, want the one connection to stay", len(f.shown))
	}
	b.stop()
	b.start()
	f.until("not connected again", func() bool { return len(f.shown) > 1 && len(f.evidence) > 1 })
	if f.shown[0].Serial == f.shown[1].Serial {
		t.Error("the old certificate was shown again")
	}
	f.mu.Lock()
	last := f.evidence[len(f.evidence)-1]
	f.mu.Unlock()
	if last.PCRs != nil {
		t.Error("the boot is known: want steady evidence after the renewal")
	}
	f.chained()
}

// TestCutWhileRenewing cuts the power when the new identity is saved and the TPM
// still holds both keys, and again when it holds two attestation keys: the new
// ones are in use from the next start on, and the old ones gone.
func TestCutWhileRenewing(t *testing.T) {
	f := newFleet(t)
	b := f.box()
	b.start()
	f.attested("not attested")
	b.cut.Store(true)
	f.say(f.device(), wire.Challenge{Need: wire.NeedRenew})
	f.until("not renewed", func() bool { return f.renewals == 1 })
	b.until("the cut did not come", "power cut")
	b.stop()
	b.cut.Store(false)
	b.cfg.TPM.AKRotate.Duration = time.Millisecond
	b.start()
	f.until("not connected again", func() bool { return len(f.shown) > 1 && len(f.evidence) > 1 && f.audited("identity.rotated") })
	if f.shown[0].Serial == f.shown[1].Serial {
		t.Error("the old certificate was shown again")
	}
	b.cut.Store(true)
	f.mu.Lock()
	n := f.renewals
	f.mu.Unlock()
	f.until("no more keys", func() bool { return f.renewals > n })
	b.stop()
	b.cut.Store(false)
	b.cfg.TPM.AKRotate.Duration = 0
	f.mu.Lock()
	n = len(f.evidence)
	f.mu.Unlock()
	b.start()
	f.until("no evidence after the cut", func() bool { return len(f.evidence) > n })
	b.stop()
	if f.has("enrol.done", 2) {
		t.Error("the device enrolled again")
	}
	f.chained()
}

// TestAKRotation changes the attestation key beside the connection; evidence by
// the new one is taken, and a restart finds the new one in use.
func TestAKRotation(t *testing.T) {
	f := newFleet(t)
	b := f.box()
	b.cfg.TPM.AKRotate.Duration = time.Second
	b.start()
	f.until("not changed", func() bool { return f.audited("identity.rotated") })
	b.cfg.TPM.AKRotate.Duration = 0
	b.stop()
	n := len(f.evidence)
	b.start()
	f.until("no evidence by the new key", func() bool { return len(f.evidence) > n })
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.nextAK) != 1 || f.has("enrol.done", 2) {
		t.Errorf("%d next keys on file; enrolled twice %v", len(f.nextAK), f.has("enrol.done", 2))
	}
}

// TestShortLife lets certificates live for seconds: the device renews in time
// and never enrols again.
func TestShortLife(t *testing.T) {
	f := newFleet(t)
	f.life = 9 * time.Second
	b := f.box()
	b.cfg.TPM.AKRotate.Duration = time.Minute
	b.start()
	f.until("not renewed twice", func() bool {
		n := 0
		for _, r := range f.audit {
			if r.Kind == "identity.renewed" {
				n++
			}
		}
		return n >= 2
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	joined := 0
	for _, r := range f.audit {
		if r.Kind == "enrol.done" {
			joined++
		}
	}
	if joined != 1 || len(f.shown) != 1 {
		t.Errorf("enrolled %d and connected %d times, want one each", joined, len(f.shown))
	}
}

// TestRecovery has a device whose certificate ended while it was off, and a
// service that refuses to enrol it: the recovery certificate opens the
// quarantine, commands work, and when the service gives in it is a member again.
func TestRecovery(t *testing.T) {
	f := newFleet(t)
	f.life = 2 * time.Second
	b := f.box()
	b.start()
	f.attested("not attested")
	b.stop()
	f.set(func() {
		f.refuse = enrol.Refuse("enrol.owner", "blocked by the operator")
		f.frozen = true
		f.life = time.Hour
	})
	<-time.After(2 * time.Second) // the certificate has ended
	n := len(f.shown)
	b.start()
	f.until("the recovery certificate was not shown", func() bool { return len(f.shown) > n && f.shown[len(f.shown)-1].Role == identity.RoleRecovery })
	f.until("not on record", func() bool { return f.audited("identity.recovery") && f.audited("attest.quarantined") })
	if r := f.command(f.device(), "diagnose", nil); r.State != "SUCCEEDED" || !strings.Contains(string(r.Output), "recovery certificate") {
		t.Errorf("diagnose over the q door: got %s %s %q", r.State, r.Text, r.Output)
	}
	f.chained()
	b.stop()
	f.set(func() { f.refuse = nil })
	n = len(f.shown)
	b.start()
	f.until("not a member again", func() bool { return len(f.shown) > n && f.shown[len(f.shown)-1].Role == "" })
	f.chained()
}

// TestRenewedByRecovery has a device whose certificate ended while it was off
// and that nobody enrols anew: by its recovery certificate it gets another.
func TestRenewedByRecovery(t *testing.T) {
	f := newFleet(t)
	f.life = 2 * time.Second
	b := f.box()
	b.start()
	f.attested("not attested")
	b.stop()
	f.set(func() { f.refuse = enrol.Refuse("enrol.owner", "the list is gone"); f.life = time.Hour })
	<-time.After(2 * time.Second) // the certificate has ended
	n := len(f.shown)
	b.start()
	f.until("not a member again", func() bool { return len(f.shown) > n })
	if id := f.shown[n]; id.Role != "" || id.Serial == f.shown[0].Serial {
		t.Errorf("shown: %+v, want another certificate of a member", id)
	}
	f.until("not on record", func() bool { return f.audited("identity.renewed") })
	f.chained()
}

// TestClockIsBehind: a till without a battery thinks that its service's
// certificate has not begun. It enrols, connects and renews all the same, and
// says so.
func TestClockIsBehind(t *testing.T) {
	f := newFleet(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(90, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	root, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	must(t, err)
	roots, err := os.OpenFile(f.path("roots.pem"), os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	must(t, errors.Join(pem.Encode(roots, &pem.Block{Type: "CERTIFICATE", Bytes: root}), roots.Close()))
	later := &x509.Certificate{
		SerialNumber: big.NewInt(2), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().AddDate(20, 0, 0), NotAfter: time.Now().AddDate(21, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	leaf, err := x509.CreateCertificate(rand.Reader, later, tmpl, key.Public(), key)
	must(t, err)
	f.server.Store(&tls.Certificate{Certificate: [][]byte{leaf}, PrivateKey: key})
	b := f.box()
	b.start()
	f.attested("not attested")
	f.until("not on record", func() bool { return f.audited("clock.behind") })
	f.say(f.device(), wire.Challenge{Need: wire.NeedRenew})
	f.until("not renewed", func() bool { return f.audited("identity.renewed") })
	b.stop()
	b.start() // the link finds out by itself
	f.until("not connected again", func() bool { return f.has("link.up", 2) && f.has("clock.behind", 2) })
}

// TestUnclaimed waits as long as the service says, and tells so once.
func TestUnclaimed(t *testing.T) {
	f := newFleet(t)
	f.unowned = true
	b := f.box()
	b.start()
	b.until("the device did not ask", "nobody owns this device yet")
	if n := strings.Count(b.said(), "trying again"); n != 1 {
		t.Errorf("asked %d times at once, want it to wait for the 60 s that the service says", n)
	}
}

// TestStopWhileStarting ends an agent before it has begun: that is no failure,
// and the next one finds everything in order.
func TestStopWhileStarting(t *testing.T) {
	f := newFleet(t)
	b := f.box()
	for range 5 {
		b.start()
		b.stop()
	}
	b.start()
	f.attested("not attested after it was stopped five times")
	f.chained()
}

// TestStickEndsTheWait: whoever plugs in a stick with the label's code need not
// wait as long as the service says.
func TestStickEndsTheWait(t *testing.T) {
	f := newFleet(t)
	f.unowned = true
	b := f.box()
	stick := filepath.Join(t.TempDir(), "tillward-service.toml")
	b.cfg.Service.Files = []string{stick}
	b.start()
	b.until("the device did not ask", "nobody owns this device yet")
	f.set(func() { f.unowned = false })
	must(t, os.WriteFile(stick+".new", []byte("enrol = \""+f.https.URL+"\"\nserver_name = \"localhost\"\nclaim = \"ABCD-EFGH\"\n"), 0o600))
	must(t, os.Rename(stick+".new", stick))
	f.attested("not attested by the stick")
	if n := strings.Count(b.said(), "trying again"); n != 1 {
		t.Errorf("asked %d times in vain, want once", n)
	}
}

func (b *box) said() string {
	b.log.mu.Lock()
	defer b.log.mu.Unlock()
	return b.log.b.String()
}

// TestDiagnose tells what an operator needs, and fits into a result.
func TestDiagnose(t *testing.T) {
	f := newFleet(t)
	b := f.box()
	b.cfg.Telemetry.Stats.Duration, b.cfg.Telemetry.Batch.Duration = 100*time.Millisecond, 100*time.Millisecond
	b.boot(tpmfarm.Default("agent/1.0.0"))
	f.attested("not attested")
	f.until("the TPM's count of attacks is not told", func() bool { n, ok := f.samples["tpm_lockout_count"]; return ok && n == 0 })
	r := f.command(f.device(), "diagnose", nil)
	if r.State != "SUCCEEDED" || len(r.Output) > wire.MaxOutput {
		t.Fatalf("got %s (%s), %d bytes", r.State, r.Text, len(r.Output))
	}
	for _, want := range []string{"slot golden", "MiB free", "certificate ", "recovery certificate ", "TPM IBM", "lockout count 0", "PCR 9 ", "covers the registers", "/boot/bzImage"} {
		if !strings.Contains(string(r.Output), want) {
			t.Errorf("the diagnosis lacks %q:\n%s", want, r.Output)
		}
	}
}

// TestVerdictIsExplained puts the service's words into the device's trail.
func TestVerdictIsExplained(t *testing.T) {
	f := newFleet(t)
	f.verdict = wire.Challenge{Verdict: "degraded", Release: "agent/1.0.0", Findings: []wire.Finding{
		{Check: "boot.unknown-event", PCR: "7", Event: "0badcafe", Release: "agent/1.0.0", Text: "approve the event, or look at the box"},
		{Check: "tpm.firmware", Text: "old"},
	}}
	f.box().start()
	f.until("not on record", func() bool { return f.audited("attest.degraded") })
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.audit {
		if d := r.Detail; r.Kind == "attest.degraded" && (r.Severity != "warn" || d["check"] != "boot.unknown-event" || d["pcr"] != "7" || d["event"] != "0badcafe" ||
			d["release"] != "agent/1.0.0" || d["also"] != "tpm.firmware") {
			t.Errorf("got %+v", r)
		}
	}
}
