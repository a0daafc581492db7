package verifier_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/verifier"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

func flip(b []byte, i int) []byte {
	b = slices.Clone(b)
	b[i] ^= 1
	return b
}

// forge signs a changed statement with the device's own key: what malware with access to the TPM's socket cannot do,
// since a restricted key signs only what the TPM made, and what is refused all the same.
func (c *chip) forge(m wire.EvidenceReport, change func(*tpm2.TPMSAttest)) wire.EvidenceReport {
	a := c.statement(enrol.ConnBinding(string(c.id), here, m.Seq))
	change(&a)
	m.Quoted = tpm2.Marshal(a)
	m.Signature = c.sign(m.Quoted)
	return m
}

func selecting(hash tpm2.TPMAlgID, bits ...byte) func(*tpm2.TPMSAttest) {
	return func(a *tpm2.TPMSAttest) {
		q, _ := a.Attested.Quote()
		a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{
			PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: hash, PCRSelect: bits}}}, PCRDigest: q.PCRDigest,
		})
	}
}

// TestQuote shows good evidence, and each way in which a quote can be bad: the check that speaks is named, the device
// is quarantined, and fresh good evidence heals it.
func TestQuote(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(own, other *chip, m *wire.EvidenceReport)
		ak     func(own *chip) []byte // on file
		check  string
	}{
		"good":                       {check: "boot.unjudged"}, // no release says how the model boots
		"registers alone":            {change: func(_, _ *chip, m *wire.EvidenceReport) { m.Log = nil }, check: "boot.unjudged"},
		"relayed: another device":    {change: func(_, other *chip, m *wire.EvidenceReport) { *m = other.full(here, 1) }, check: "quote.signature"},
		"relayed: another device id": {change: func(own, _ *chip, m *wire.EvidenceReport) { c := *own; c.id = "dev-2"; *m = c.full(here, 1) }, check: "quote.binding"},
		"another connection":         {change: func(own, _ *chip, m *wire.EvidenceReport) { *m = own.full(there, 1) }, check: "quote.binding"},
		"another sequence":           {change: func(_, _ *chip, m *wire.EvidenceReport) { m.Seq = 2 }, check: "quote.binding"},
		"no key on file":             {ak: func(*chip) []byte { return nil }, check: "quote.signature"},
		"key of another TPM on file": {ak: func(*chip) []byte { return newChip(t, "x", "os/1").ak() }, check: "quote.signature"},
		"key that may sign anything": {
			ak: func(own *chip) []byte {
				return akPublic(t, &own.key.PublicKey, func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = false })
			}, check: "quote.signature",
		},
		"key that was made elsewhere": {
			ak: func(own *chip) []byte {
				return akPublic(t, &own.key.PublicKey, func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false })
			}, check: "quote.signature",
		},
		"key on another curve": {
			ak: func(*chip) []byte {
				point, _ := p384.PublicKey.Bytes()
				return akPublic(t, &p384.PublicKey, func(p *tpm2.TPMTPublic) {
					p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP384})
					p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
						X: tpm2.TPM2BECCParameter{Buffer: point[1:49]}, Y: tpm2.TPM2BECCParameter{Buffer: point[49:]},
					})
				})
			}, check: "quote.signature",
		},
		"flipped bit":       {change: func(_, _ *chip, m *wire.EvidenceReport) { m.Quoted = flip(m.Quoted, len(m.Quoted)-1) }, check: "quote.signature"},
		"flipped signature": {change: func(_, _ *chip, m *wire.EvidenceReport) { m.Signature = flip(m.Signature, 63) }, check: "quote.signature"},
		"torn signature":    {change: func(_, _ *chip, m *wire.EvidenceReport) { m.Signature = m.Signature[:63] }, check: "quote.signature"},
		"not a TPM's magic": {change: func(own, _ *chip, m *wire.EvidenceReport) { *m = own.forge(*m, func(a *tpm2.TPMSAttest) { a.Magic++ }) }, check: "quote.malformed"},
		"bytes that are none": {change: func(own, _ *chip, m *wire.EvidenceReport) {
			m.Quoted = []byte("quote")
			m.Signature = own.sign(m.Quoted)
		}, check: "quote.malformed"},
		"a certify instead": {change: func(own, _ *chip, m *wire.EvidenceReport) {
			*m = own.forge(*m, func(a *tpm2.TPMSAttest) {
				a.Type = tpm2.TPMSTAttestCertify
				a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{})
			})
		}, check: "quote.malformed"},
		"selection without PCR 7": {change: func(own, _ *chip, m *wire.EvidenceReport) {
			*m = own.forge(*m, selecting(tpm2.TPMAlgSHA256, 0x7f, 0x0b, 0))
		}, check: "quote.selection"},
		"selection of PCR 10 beside": {change: func(own, _ *chip, m *wire.EvidenceReport) {
			*m = own.forge(*m, selecting(tpm2.TPMAlgSHA256, 0xff, 0x0f, 0))
		}, check: "quote.selection"},
		"selection of PCR 10 for 11": {change: func(own, _ *chip, m *wire.EvidenceReport) {
			*m = own.forge(*m, selecting(tpm2.TPMAlgSHA256, 0xff, 7, 0))
		}, check: "quote.selection"},
		"selection of an older agent": {change: func(own, _ *chip, m *wire.EvidenceReport) {
			own.before11 = true
			*m = own.full(here, 1)
		}, check: "boot.unjudged"},
		"values of an older agent": {change: func(_, _ *chip, m *wire.EvidenceReport) { m.PCRs = m.PCRs[:10] }, check: "quote.values"},
		"a value beside those of an older agent": {change: func(own, _ *chip, m *wire.EvidenceReport) {
			own.before11 = true
			*m = own.full(here, 1)
			m.PCRs = own.fw.Registers()
		}, check: "quote.values"},
		"selection of PCR 23 beside": {change: func(own, _ *chip, m *wire.EvidenceReport) {
			*m = own.forge(*m, selecting(tpm2.TPMAlgSHA256, 0xff, 0x0b, 0x80))
		}, check: "quote.selection"},
		"selection of the SHA-1 bank": {change: func(own, _ *chip, m *wire.EvidenceReport) {
			*m = own.forge(*m, selecting(tpm2.TPMAlgSHA1, 0xff, 0x0b, 0))
		}, check: "quote.selection"},
		"another register value": {change: func(_, _ *chip, m *wire.EvidenceReport) { m.PCRs[4] = flip(m.PCRs[4], 0) }, check: "quote.values"},
		"one register fewer":     {change: func(_, _ *chip, m *wire.EvidenceReport) { m.PCRs = m.PCRs[:9] }, check: "quote.values"},
		"one register more":      {change: func(_, _ *chip, m *wire.EvidenceReport) { m.PCRs = append(m.PCRs, m.PCRs[0]) }, check: "quote.values"},
		"registers in another order": {
			change: func(_, _ *chip, m *wire.EvidenceReport) { m.PCRs[4], m.PCRs[9] = m.PCRs[9], m.PCRs[4] }, check: "quote.values",
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := newSite(t)
			own, other := newChip(t, "dev-1", "os/1"), newChip(t, "dev-1", "os/1")
			honest := x.enrol(newChip(t, "dev-9", "os/1"))
			x.enrol(own)
			m := own.full(here, 1)
			if tt.change != nil {
				tt.change(own, other, &m)
			}
			if tt.ak != nil {
				x.enrolAK(own, tt.ak(own))
			}
			want := fleet.Quarantined
			if tt.check == "boot.unjudged" {
				want = fleet.Attested
			}
			got := x.show("dev-1", m)
			x.wantVerdict(name, got, want, tt.check)
			x.wantVerdict("an honest device beside it", x.show("dev-9", honest.full(here, 1)), fleet.Attested, "boot.unjudged")
			d := x.device("dev-1")
			kinds, ev := x.trail("dev-1")
			if d.Trust != want || d.Findings[0].Check != tt.check || !slices.Equal(kinds, []string{"attest." + string(want)}) || ev.Detail["check"] != tt.check || ev.Tenant != "main" {
				t.Fatalf("on file %s %+v, audit %v %+v", d.Trust, d.Findings, kinds, ev)
			}
			if want == fleet.Attested {
				if d.ResetCount != 5 || ev.Severity != "info" || len(got.Actions) != 0 {
					t.Errorf("got reset count %d, severity %s, actions %v", d.ResetCount, ev.Severity, got.Actions)
				}
				return
			}
			if len(d.BootDigest) != 0 || d.ResetCount != 0 || ev.Severity != "alarm" || !slices.Contains(got.Actions, wire.ActionDiagnose) {
				t.Errorf("got digest %x, reset count %d, severity %s, actions %v", d.BootDigest, d.ResetCount, ev.Severity, got.Actions)
			}
			// It heals by itself: fresh good evidence of the same TPM, the device as it was.
			x.enrolAK(own, own.ak())
			x.wantVerdict("afterwards", x.show("dev-1", own.full(here, 9)), fleet.Attested, "boot.unjudged")
		})
	}
}

// enrolAK puts another attestation key on file.
func (x *site) enrolAK(c *chip, ak []byte) {
	x.t.Helper()
	err := x.s.Enrol(x.t.Context(), fleet.Device{ID: c.id, Tenant: "main", Tier: fleet.TierA, Model: model, EKHash: string(c.id), AKPublic: ak, CertSerial: "1"})
	if err != nil {
		x.t.Fatal(err)
	}
}

// TestNoEvidenceCountsTwice replays good evidence: on its own connection, on the next, and the answer to a challenge.
func TestNoEvidenceCountsTwice(t *testing.T) {
	x := newSite(t)
	own := x.enrol(newChip(t, "dev-1", "os/1"))
	first := own.full(here, 1)
	x.wantVerdict("first", x.show("dev-1", first), fleet.Attested, "boot.unjudged")
	x.wantVerdict("again on its connection", x.show("dev-1", first), fleet.Quarantined, "quote.replayed")
	x.wantVerdict("on the next connection", x.showOn("dev-1", first, there, false), fleet.Quarantined, "quote.binding")
	challenged := func() []byte {
		t.Helper()
		if err := x.v.Challenge("dev-1"); err != nil {
			t.Fatal(err)
		}
		if c := x.last("dev-1"); len(c.Nonce) == 32 && c.Verdict == "" {
			return c.Nonce
		}
		t.Fatalf("challenge: got %+v", x.last("dev-1"))
		return nil
	}
	answer := own.full(challenged(), 2)
	x.wantVerdict("answer", x.showOn("dev-1", answer, there, false), fleet.Attested, "boot.unjudged")
	x.wantVerdict("answer again", x.showOn("dev-1", answer, there, false), fleet.Quarantined, "quote.replayed")
	x.wantVerdict("answer on the next connection", x.showOn("dev-1", answer, here, false), fleet.Quarantined, "quote.binding")
	// A challenge on request crosses one by the clock: both may be answered, a third replaces the oldest.
	nonces := [][]byte{challenged(), challenged(), challenged()}
	for i, want := range []fleet.Trust{fleet.Quarantined, fleet.Attested, fleet.Attested} {
		if got := x.showOn("dev-1", own.full(nonces[i], uint64(10+i)), here, false); got.Verdict != string(want) {
			t.Errorf("challenge %d: got %+v, want %s", i, got, want)
		}
	}
}

// TestAnswerKeptBack: a device is challenged in a good boot, keeps its answer back, and shows it from the bad boot after
// that, on a connection of its own. The quote is genuine, of the right TPM, and its challenge was never answered.
func TestAnswerKeptBack(t *testing.T) {
	x := newSite(t)
	own := x.enrol(newChip(t, "dev-1", "os/1"))
	x.publish("os/1", own.fw)
	x.wantVerdict("good boot", x.show("dev-1", own.full(here, 1)), fleet.Attested, "")
	if err := x.v.Challenge("dev-1"); err != nil {
		t.Fatal(err)
	}
	kept := own.full(x.last("dev-1").Nonce, 2)
	own.reboot(tpmfarm.Default("os/1, changed by night"))
	x.wantVerdict("of the boot before", x.showOn("dev-1", kept, there, false), fleet.Quarantined, "quote.binding")
}

// TestVerdictIsForItsConnection: the device reconnected while its evidence was appraised.
func TestVerdictIsForItsConnection(t *testing.T) {
	x := newSite(t)
	own := x.enrol(newChip(t, "dev-1", "os/1"))
	x.exporter["dev-1"] = there
	err := x.v.Appraise(t.Context(), verifier.Evidence{Device: "dev-1", Payload: encode(t, own.full(here, 1)), Exporter: here})
	if err != nil || len(x.sent["dev-1"]) != 0 {
		t.Errorf("got %+v sent to the new connection, %v, want nothing", x.sent, err)
	}
}

// TestResetCount: a TPM that counts fewer boots, or fewer resumes in a boot, was cleared or copied.
func TestResetCount(t *testing.T) {
	x := newSite(t)
	own := x.enrol(newChip(t, "dev-1", "os/1"))
	own.restart = 2
	x.wantVerdict("first", x.show("dev-1", own.full(here, 1)), fleet.Attested, "boot.unjudged")
	own.restart = 1
	got := x.show("dev-1", own.full(here, 2))
	x.wantVerdict("fewer resumes", got, fleet.Quarantined, "tpm.reset-count")
	if !slices.Contains(got.Actions, wire.ActionEnrol) {
		t.Errorf("actions: got %v, want enrol", got.Actions)
	}
	own.restart = 3
	x.wantVerdict("a resume", x.show("dev-1", own.full(here, 3)), fleet.Attested, "boot.unjudged")
	own.reset, own.restart = 6, 0
	x.wantVerdict("a reboot", x.show("dev-1", own.full(here, 4)), fleet.Attested, "boot.unjudged")
	own.reset = 5
	x.wantVerdict("fewer boots", x.show("dev-1", own.full(here, 5)), fleet.Quarantined, "tpm.reset-count")
	if d := x.device("dev-1"); d.ResetCount != 6 {
		t.Errorf("on file %d boots, want 6", d.ResetCount)
	}
	// A waiver is no word against it.
	waive(x, "dev-1")
	x.wantVerdict("with a waiver", x.show("dev-1", own.full(here, 6)), fleet.Quarantined, "tpm.reset-count")
	x.enrolAK(own, own.ak()) // enrolled again, as it was told to
	x.wantVerdict("enrolled again", x.show("dev-1", own.full(here, 7)), fleet.Attested, "boot.unjudged")
}

// TestResetCountInQuarantine: boots that were refused are counted too, until the device enrols again.
func TestResetCountInQuarantine(t *testing.T) {
	x := newSite(t)
	x.publish("os/1", tpmfarm.Default("os/1"))
	own := x.enrol(newChip(t, "dev-1", "os/1"))
	own.restart = 3
	own.reboot(tpmfarm.Default("os/evil"))
	x.wantVerdict("a bad boot", x.show("dev-1", own.full(here, 1)), fleet.Quarantined, "boot.unknown-event")
	bad := own.reset
	own.reset, own.fw = bad-1, tpmfarm.Default("os/1")
	x.wantVerdict("the boot before", x.show("dev-1", own.full(here, 2)), fleet.Quarantined, "tpm.reset-count")
	own.reset, own.restart = bad, 0 // as a TPM counts that was cleared
	x.wantVerdict("fewer resumes", x.show("dev-1", own.full(here, 3)), fleet.Quarantined, "tpm.reset-count")
	x.enrolAK(own, own.ak())
	x.wantVerdict("enrolled again", x.show("dev-1", own.full(here, 4)), fleet.Attested, "")
}

// TestFirmware: a TPM's own firmware cannot change without a reset.
func TestFirmware(t *testing.T) {
	x := newSite(t)
	own := x.enrol(newChip(t, "dev-1", "os/1"))
	own.version = 1
	x.wantVerdict("first", x.show("dev-1", own.full(here, 1)), fleet.Attested, "boot.unjudged")
	own.version = 2
	x.wantVerdict("another one in the same boot", x.show("dev-1", own.full(here, 2)), fleet.Quarantined, "tpm.firmware")
	own.reset++
	x.wantVerdict("after a reset", x.show("dev-1", own.full(here, 3)), fleet.Attested, "boot.unjudged")
}

// TestNextAK: the key that follows is taken when it first signs, and then the old one is worth nothing.
func TestNextAK(t *testing.T) {
	x := newSite(t)
	own, next := x.enrol(newChip(t, "dev-1", "os/1")), newChip(t, "dev-1", "os/1")
	x.wantVerdict("a key nobody knows", x.show("dev-1", next.full(here, 1)), fleet.Quarantined, "quote.signature")
	if err := x.s.SetRenewed(t.Context(), "dev-1", fleet.Renewed{}, "", next.ak()); err != nil {
		t.Fatal(err)
	}
	x.wantVerdict("the old key, meanwhile", x.show("dev-1", own.full(here, 2)), fleet.Attested, "boot.unjudged")
	x.wantVerdict("the next key, for another connection", x.show("dev-1", next.full(there, 3)), fleet.Quarantined, "quote.binding")
	if d := x.device("dev-1"); !bytes.Equal(d.AKPublic, own.ak()) {
		t.Error("a quote for another connection put the next key in use")
	}
	x.wantVerdict("the next key", x.show("dev-1", next.full(here, 4)), fleet.Attested, "boot.unjudged")
	if d := x.device("dev-1"); !bytes.Equal(d.AKPublic, next.ak()) || len(d.NextAK) != 0 {
		t.Error("the next key is not the one on file")
	}
	x.wantVerdict("the old key, afterwards", x.show("dev-1", own.full(here, 5)), fleet.Quarantined, "quote.signature")
}

// TestVersion1 appraises the bytes that an agent of version 1 sent: with registers, agent version
// and a TPMT_SIGNATURE, made by a software TPM.
func TestVersion1(t *testing.T) {
	x := newSite(t)
	own := x.enrol(newChip(t, "dev-1", "os/1"))
	x.enrolAK(own, golden(t, "v1-ak"))
	payload := golden(t, "v1-evidence")
	x.exporter["dev-1"] = here
	if err := x.v.Appraise(t.Context(), verifier.Evidence{Device: "dev-1", Payload: payload, Exporter: here}); err != nil {
		t.Fatal(err)
	}
	x.wantVerdict("version 1", x.last("dev-1"), fleet.Attested, "boot.unjudged")
	// The twin: the same bytes on another connection.
	x.exporter["dev-1"] = there
	if err := x.v.Appraise(t.Context(), verifier.Evidence{Device: "dev-1", Payload: payload, Exporter: there}); err != nil {
		t.Fatal(err)
	}
	x.wantVerdict("version 1, relayed", x.last("dev-1"), fleet.Quarantined, "quote.binding")
	// It cannot be asked for a log; where a release wants one, that is what it is told.
	x.publish("os/1", tpmfarm.Default("os/1"))
	m := own.full(here, 10)
	m.Log, m.Nonce = nil, here
	m.Signature = tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
		Hash: tpm2.TPMAlgSHA256, SignatureR: tpm2.TPM2BECCParameter{Buffer: m.Signature[:32]}, SignatureS: tpm2.TPM2BECCParameter{Buffer: m.Signature[32:]},
	})})
	x.enrolAK(own, own.ak())
	x.wantVerdict("version 1, judged", x.show("dev-1", m), fleet.Quarantined, "boot.no-log")
}

// golden reads testdata/{name}.hex.
func golden(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile("testdata/" + name + ".hex")
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func FuzzAppraise(f *testing.F) {
	c := newChip(f, "dev-1", "os/1")
	f.Add(encode(f, c.full(here, 1)))
	f.Add(encode(f, c.steady(here, 1)))
	f.Add(golden(f, "v1-evidence"))
	f.Fuzz(func(t *testing.T, payload []byte) {
		k := &desk{d: fleet.Device{ID: "dev-1", Trust: fleet.Pending}, exporter: here}
		if err := k.verifier().Appraise(t.Context(), verifier.Evidence{Device: "dev-1", Payload: payload, Exporter: here}); err != nil {
			t.Fatal(err)
		}
		if k.d.Trust != fleet.Quarantined || k.last().Verdict != "quarantined" {
			t.Errorf("got %s, %+v", k.d.Trust, k.last())
		}
	})
}

// FuzzStatement has the attestation key sign anything, as a key in software could: nothing but a quote for this
// connection over these registers is accepted, and nothing ends the process.
func FuzzStatement(f *testing.F) {
	c := newChip(f, "dev-1", "os/1")
	good := tpm2.Marshal(c.statement(enrol.ConnBinding("dev-1", here, 1)))
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(tpm2.Marshal(c.statement(enrol.ConnBinding("dev-1", there, 1))))
	f.Fuzz(func(t *testing.T, quoted []byte) {
		c.t = t
		m := c.full(here, 1)
		if len(quoted) == 0 || len(quoted) > 1024 {
			return
		}
		m.Quoted, m.Signature = quoted, c.sign(quoted)
		k := &desk{d: fleet.Device{ID: "dev-1", Trust: fleet.Pending, AKPublic: c.ak()}, exporter: here}
		if err := k.verifier().Appraise(t.Context(), verifier.Evidence{Device: "dev-1", Payload: encode(t, m), Exporter: here}); err != nil {
			t.Fatal(err)
		}
		binding := enrol.ConnBinding("dev-1", here, 1)
		if k.d.Trust == fleet.Attested && !bytes.Contains(quoted, binding[:]) {
			t.Errorf("accepted %x, which is bound to something else", quoted)
		}
		if bytes.Equal(quoted, good) != (k.d.Trust == fleet.Attested) && len(quoted) != len(good) {
			t.Errorf("got %s %+v", k.d.Trust, k.d.Findings)
		}
	})
}
