package verifier_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/cloud/internal/verifier"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

var quiet = slog.New(slog.DiscardHandler)

const model = "till-9"

var (
	here  = bytes.Repeat([]byte{1}, 32) // exporter of this connection
	there = bytes.Repeat([]byte{2}, 32) // of another one
)

// chip is a software TPM of a device and what it booted; a real one stands in its place in tpm_test.go.
type chip struct {
	t       testing.TB
	id      fleet.DeviceID
	key     *ecdsa.PrivateKey
	reset   uint32
	restart uint32
	version uint64 // of the TPM's own firmware
	fw      tpmfarm.Firmware

	before11 bool // its agent quotes PCR 0 to 9
}

func newChip(t testing.TB, id fleet.DeviceID, release string) *chip {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &chip{t: t, id: id, key: key, reset: 5, fw: tpmfarm.Default(release)}
}

// reboot is a power cycle into a firmware.
func (c *chip) reboot(fw tpmfarm.Firmware) { c.reset, c.fw = c.reset+1, fw }

func akPublic(t testing.TB, key *ecdsa.PublicKey, change ...func(*tpm2.TPMTPublic)) []byte {
	t.Helper()
	point, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	pub := tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			CurveID: tpm2.TPMECCNistP256, Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA,
				&tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
		}),
	}
	for _, f := range change {
		f(&pub)
	}
	return tpm2.Marshal(pub)
}

func (c *chip) ak() []byte { return akPublic(c.t, &c.key.PublicKey) }

// registers are the values that this agent's quote is over.
func (c *chip) registers() [][]byte {
	if c.before11 {
		return c.fw.Registers()[:10]
	}
	return c.fw.Registers()
}

// statement is the quote before it is signed.
func (c *chip) statement(extra [32]byte) tpm2.TPMSAttest {
	digest := sha256.Sum256(slices.Concat(c.registers()...))
	bits := []byte{0xff, 0x0b, 0}
	if c.before11 {
		bits[1] = 0x03
	}
	return tpm2.TPMSAttest{
		Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestQuote, QualifiedSigner: tpm2.TPM2BName{Buffer: make([]byte, 34)},
		ExtraData: tpm2.TPM2BData{Buffer: extra[:]}, ClockInfo: tpm2.TPMSClockInfo{ResetCount: c.reset, RestartCount: c.restart}, FirmwareVersion: c.version,
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{
			PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: bits}}},
			PCRDigest: tpm2.TPM2BDigest{Buffer: digest[:]},
		}),
	}
}

func (c *chip) sign(quoted []byte) []byte {
	digest := sha256.Sum256(quoted)
	r, s, err := ecdsa.Sign(rand.Reader, c.key, digest[:])
	if err != nil {
		c.t.Fatal(err)
	}
	return slices.Concat(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32)))
}

// steady is a quote alone; full comes with registers and log.
func (c *chip) steady(secret []byte, seq uint64) wire.EvidenceReport {
	quoted := tpm2.Marshal(c.statement(enrol.ConnBinding(string(c.id), secret, seq)))
	return wire.EvidenceReport{Head: wire.Head{V: wire.Version, Boot: wire.Boot{1}, Seq: seq}, Quoted: quoted, Signature: c.sign(quoted), Seq: seq}
}

func (c *chip) full(secret []byte, seq uint64) wire.EvidenceReport {
	m := c.steady(secret, seq)
	log, err := boot.Pack(c.fw.Log())
	if err != nil {
		c.t.Fatal(err)
	}
	m.PCRs, m.Log, m.AgentVersion = c.registers(), log, "1.0.0"
	return m
}

func encode(t testing.TB, m wire.EvidenceReport) []byte {
	t.Helper()
	b, err := wire.Encode(&m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// site is a verifier on a real store, and the connections of its devices.
type site struct {
	t testing.TB
	s *store.Store
	v *verifier.Verifier

	mu       sync.Mutex
	sent     map[fleet.DeviceID][]wire.Challenge
	exporter map[fleet.DeviceID][]byte // of who is connected
}

func newSite(t testing.TB, change ...func(*verifier.Options)) *site {
	t.Helper()
	s, err := store.Open(t.Context(), t.TempDir(), quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	x := &site{t: t, s: s, sent: map[fleet.DeviceID][]wire.Challenge{}, exporter: map[fleet.DeviceID][]byte{}}
	o := verifier.Options{
		Devices: s, Firmware: s, Link: x, Every: time.Minute, Unjudged: fleet.Attested, Log: quiet,
		Changed: func(fleet.Device) {},
	}
	for _, f := range change {
		f(&o)
	}
	x.v = verifier.New(o)
	return x
}

// enrol puts a device on file and connects it.
func (x *site) enrol(c *chip) *chip {
	x.t.Helper()
	err := x.s.Enrol(x.t.Context(), fleet.Device{
		ID: c.id, Tenant: "main", Tier: fleet.TierA, Model: model, EKHash: string(c.id), AKPublic: c.ak(), EnrolledAt: time.Now(), CertSerial: "1",
	})
	if err != nil {
		x.t.Fatal(err)
	}
	x.exporter[c.id] = here
	return c
}

// publish makes and stores reference values of a known-good boot.
func (x *site) publish(release string, fw tpmfarm.Firmware, change ...func(*boot.Reference)) {
	x.t.Helper()
	events, err := boot.ParseLog(fw.Log(), fw.Registers())
	if err != nil {
		x.t.Fatal(err)
	}
	r := boot.Observe(model, release, "main", []int{0, 4, 7, 8, 9}, events)
	for _, f := range change {
		f(&r)
	}
	err = x.s.PutReferences(x.t.Context(), []fleet.BootReference{{Model: model, Release: fleet.ReleaseID(release), Body: r.Bytes(), PublishedAt: time.Now()}})
	if err != nil {
		x.t.Fatal(err)
	}
	x.v.Forget(model)
}

func (x *site) Challenge(id fleet.DeviceID, payload []byte) ([]byte, error) {
	x.mu.Lock()
	present := x.exporter[id]
	x.mu.Unlock()
	return present, x.take(id, payload)
}

func (x *site) Verdict(id fleet.DeviceID, exporter []byte, trust fleet.Trust, payload []byte) error {
	x.mu.Lock()
	present := x.exporter[id]
	x.mu.Unlock()
	if !bytes.Equal(exporter, present) {
		return errors.New("another connection")
	}
	m, err := wire.Decode[wire.Challenge](payload)
	if err != nil || m.Verdict != string(trust) {
		x.t.Errorf("verdict %q for a connection that is set to %s: %v", m.Verdict, trust, err)
	}
	return x.take(id, payload)
}

func (x *site) Disconnect(id fleet.DeviceID, _ string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.exporter, id)
}

func (x *site) take(id fleet.DeviceID, payload []byte) error {
	m, err := wire.Decode[wire.Challenge](payload)
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.exporter[id] == nil {
		return errors.New("offline")
	}
	x.sent[id] = append(x.sent[id], m)
	return nil
}

func (x *site) Connected() map[fleet.DeviceID]fleet.Trust {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := map[fleet.DeviceID]fleet.Trust{}
	for id := range x.exporter {
		out[id] = fleet.Pending
	}
	return out
}

// last is the newest message to a device.
func (x *site) last(id fleet.DeviceID) wire.Challenge {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.sent[id]) == 0 {
		return wire.Challenge{}
	}
	return x.sent[id][len(x.sent[id])-1]
}

// show appraises evidence on this connection and returns what the device is told.
func (x *site) show(id fleet.DeviceID, m wire.EvidenceReport) wire.Challenge {
	x.t.Helper()
	return x.showOn(id, m, here, false)
}

func (x *site) showOn(id fleet.DeviceID, m wire.EvidenceReport, exporter []byte, restricted bool) wire.Challenge {
	x.t.Helper()
	x.mu.Lock()
	x.exporter[id] = exporter
	x.mu.Unlock()
	err := x.v.Appraise(x.t.Context(), verifier.Evidence{Device: id, Payload: encode(x.t, m), Exporter: exporter, Restricted: restricted, At: time.Now()})
	if err != nil {
		x.t.Fatal(err)
	}
	return x.last(id)
}

func (x *site) device(id fleet.DeviceID) fleet.Device {
	x.t.Helper()
	d, err := x.s.DeviceByID(x.t.Context(), id)
	if err != nil {
		x.t.Fatal(err)
	}
	return d
}

// trail are the kinds of the service's entries about a device, and the newest.
func (x *site) trail(id fleet.DeviceID) (kinds []string, newest fleet.AuditEvent) {
	x.t.Helper()
	evs, _, err := x.s.AuditTrail(x.t.Context(), "main", "", false, fleet.Page{Limit: 1000})
	if err != nil {
		x.t.Fatal(err)
	}
	for _, ev := range evs {
		if ev.Subject == string(id) && ev.Actor == "verifier" {
			kinds, newest = append(kinds, ev.Kind), ev
		}
	}
	return kinds, newest
}

// check is that of the finding that spoke first; empty when none did.
func check(c wire.Challenge) string {
	if len(c.Findings) == 0 {
		return ""
	}
	return c.Findings[0].Check
}

func (x *site) wantVerdict(what string, got wire.Challenge, trust fleet.Trust, spoke string) {
	x.t.Helper()
	if got.Verdict != string(trust) || check(got) != spoke {
		x.t.Errorf("%s: got %q by %q (%+v), want %s by %q", what, got.Verdict, check(got), got, trust, spoke)
	}
}

func by(name string) fleet.AuditEvent {
	return fleet.AuditEvent{Kind: "test", Severity: "info", Actor: name, Subject: "till"}
}

// run serves the queue until the test ends.
func (x *site) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- x.v.Run(ctx) }()
	x.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			x.t.Error(err)
		}
	})
}
