package verifier_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// TestRealTPM lets a software TPM boot a virtual firmware, boot again, boot what an attacker changed, and come back.
func TestRealTPM(t *testing.T) {
	f, err := tpmfarm.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	hw, err := f.Start(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "log")
	good, bad := tpmfarm.Default("os/1"), tpmfarm.Default("os/1")
	bad.Event("kernel").Image = []byte("kernel with a back door")
	x := newSite(t)
	x.publish("os/1", good)
	x.exporter["dev-1"] = here

	// evidence of the TPM as it is now.
	evidence := func(secret []byte, seq uint64, full bool) wire.EvidenceReport {
		t.Helper()
		dev, err := tpm.Open("unix:" + hw.Socket())
		if err != nil {
			t.Fatal(err)
		}
		defer dev.Close()
		ak, _, err := dev.Keys(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := x.s.DeviceByID(t.Context(), "dev-1"); err != nil {
			d := fleet.Device{ID: "dev-1", Tenant: "main", Tier: fleet.TierC, Model: model, EKHash: "ek", AKPublic: ak, EnrolledAt: time.Now(), CertSerial: "1"}
			if err := x.s.Enrol(t.Context(), d); err != nil {
				t.Fatal(err)
			}
		}
		extra := enrol.ConnBinding("dev-1", secret, seq)
		quoted, signature, pcrs, err := dev.Quote(t.Context(), extra[:])
		if err != nil {
			t.Fatal(err)
		}
		m := wire.EvidenceReport{Head: wire.Head{V: wire.Version, Boot: wire.Boot{1}, Seq: seq}, Quoted: quoted, Seq: seq}
		sig, err := tpm2.Unmarshal[tpm2.TPMTSignature](signature)
		if err != nil {
			t.Fatal(err)
		}
		ec, err := sig.Signature.ECDSA()
		if err != nil {
			t.Fatal(err)
		}
		pad := func(b []byte) []byte { return slices.Concat(make([]byte, 32-len(b)), b) }
		m.Signature = slices.Concat(pad(ec.SignatureR.Buffer), pad(ec.SignatureS.Buffer))
		if !full {
			return m
		}
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if m.Log, err = boot.Pack(raw); err != nil {
			t.Fatal(err)
		}
		m.PCRs = pcrs
		return m
	}
	boots := func(fw tpmfarm.Firmware) {
		t.Helper()
		if err := hw.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := fw.Boot(hw, file); err != nil {
			t.Fatal(err)
		}
	}
	boots(good)
	x.wantVerdict("good boot", x.show("dev-1", evidence(here, 1, true)), fleet.Attested, "")
	steady := evidence(here, 2, false)
	if b := encode(t, steady); len(b) > wire.MaxSteadyEvidence {
		t.Errorf("steady evidence of %d bytes", len(b))
	}
	x.wantVerdict("quote alone", x.show("dev-1", steady), fleet.Attested, "")
	before := x.device("dev-1").ResetCount
	boots(bad)
	got := x.show("dev-1", evidence(here, 3, false))
	if got.Need != wire.NeedLog {
		t.Fatalf("after another boot: got %+v, want to be asked for the log", got)
	}
	got = x.show("dev-1", evidence(got.Nonce, 4, true))
	x.wantVerdict("another kernel", got, fleet.Quarantined, "boot.unknown-event")
	if got.Findings[0].PCR != "9" {
		t.Errorf("got %+v, want PCR 9 named", got.Findings[0])
	}
	boots(good)
	x.wantVerdict("good again", x.show("dev-1", evidence(here, 5, true)), fleet.Attested, "")
	if after := x.device("dev-1").ResetCount; after != before+2 {
		t.Errorf("reset count went from %d to %d, want two more", before, after)
	}
}
