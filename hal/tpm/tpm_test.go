package tpm_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// start returns a farm's TPM, stopped with the test.
func start(t *testing.T) *tpmfarm.TPM { return startKind(t, "P-256") }

// kinds are the endorsement keys that makers certify.
var kinds = []string{"P-256", "P-384", "RSA-2048"}

func startKind(t *testing.T, kind string) *tpmfarm.TPM {
	t.Helper()
	farm, err := tpmfarm.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(farm.Close)
	farm.RSA, farm.P384 = kind == "RSA-2048", kind == "P-384"
	chip, err := farm.Start(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return chip
}

func open(t *testing.T, chip *tpmfarm.TPM) *tpm.TPM {
	t.Helper()
	dev, err := tpm.Open("unix:" + chip.Socket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dev.Close() })
	return dev
}

// Many TPMs have room for three transient objects and three sessions, and a
// socket has no resource manager.
func TestNothingTransientStays(t *testing.T) {
	dev := open(t, start(t))
	ek, _, _, err := dev.Endorsement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := activate(t, dev, ek); err != nil {
		t.Fatal(err)
	}
	if _, _, err := dev.Certify(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := dev.Quote(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	idle(t, dev)
}

// idle checks that the TPM holds no session and no transient object.
func idle(t *testing.T, dev *tpm.TPM) {
	t.Helper()
	for _, first := range []uint32{0x02000000, 0x03000000, 0x80000000} {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 8}.Execute(tpm.Raw(dev))
		if err != nil {
			t.Fatal(err)
		}
		list, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			t.Fatal(err)
		}
		if len(list.Handle) > 0 {
			t.Errorf("the TPM still holds %#x", list.Handle)
		}
	}
}

// A service that sends nonsense must not use up the TPM's sessions.
func TestFailedActivationsLeaveNothing(t *testing.T) {
	dev := open(t, start(t))
	ek, _, _, err := dev.Endorsement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 8 {
		if _, err := dev.Activate(t.Context(), []byte{0, 1, 2}, []byte{3}); err == nil {
			t.Fatal("nonsense was activated")
		}
	}
	if _, err := activate(t, dev, ek); err != nil {
		t.Error(err)
	}
}

// Power cuts are daily business at a till; with keys that count as a
// dictionary attack swtpm would lock at the third.
func TestPowerCutsAreNoAttack(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) { powerCuts(t, startKind(t, kind)) })
	}
}

func powerCuts(t *testing.T, chip *tpmfarm.TPM) {
	for range 5 {
		dev := open(t, chip)
		ek, _, _, err := dev.Endorsement(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := activate(t, dev, ek); err != nil {
			t.Fatal(err)
		}
		if _, _, err := dev.Certify(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if _, _, _, err := dev.Quote(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		key, err := dev.Signer(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := key.Sign(nil, make([]byte, 32), crypto.SHA256); err != nil {
			t.Fatal(err)
		}
		if err := chip.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := attacks(t, open(t, chip)); n != 0 {
		t.Errorf("the TPM counted %d attacks in 5 power cuts", n)
	}
}

// The twin: one use of a key without noDA, one power cut, one attack counted.
func TestPowerCutWithAnotherKeyIsCounted(t *testing.T) {
	chip := start(t)
	dev := open(t, chip)
	srk, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(tpm.Raw(dev))
	if err != nil {
		t.Fatal(err)
	}
	parent := tpm2.AuthHandle{Handle: srk.ObjectHandle, Name: srk.Name, Auth: tpm2.PasswordAuth(nil)}
	tmpl := tpm2.ECCSRKTemplate
	tmpl.ObjectAttributes.NoDA = false
	made, err := tpm2.Create{
		ParentHandle: parent, InPublic: tpm2.New2B(tmpl),
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: []byte("auth")}}},
	}.Execute(tpm.Raw(dev))
	if err != nil {
		t.Fatal(err)
	}
	key, err := tpm2.Load{ParentHandle: parent, InPrivate: made.OutPrivate, InPublic: made.OutPublic}.Execute(tpm.Raw(dev))
	if err != nil {
		t.Fatal(err)
	}
	use := tpm2.AuthHandle{Handle: key.ObjectHandle, Name: key.Name, Auth: tpm2.PasswordAuth([]byte("auth"))}
	if _, err := (tpm2.Create{ParentHandle: use, InPublic: tpm2.New2B(tmpl)}).Execute(tpm.Raw(dev)); err != nil {
		t.Fatal(err)
	}
	if err := chip.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := attacks(t, open(t, chip)); n != 1 {
		t.Errorf("the TPM counted %d attacks, want 1", n)
	}
}

// attacks is the TPM's dictionary attack counter.
func attacks(t *testing.T, dev *tpm.TPM) uint32 {
	t.Helper()
	rsp, err := tpm2.GetCapability{
		Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTLockoutCounter), PropertyCount: 1,
	}.Execute(tpm.Raw(dev))
	if err != nil {
		t.Fatal(err)
	}
	props, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil {
		t.Fatal(err)
	}
	return props.TPMProperty[0].Value
}

// A quote tells how often the TPM was started, in clear.
func TestResetCountGrowsWithEachPowerCycle(t *testing.T) {
	chip := start(t)
	var last uint32
	for i := range 3 {
		dev := open(t, chip)
		attest, _, _, err := dev.Quote(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		a, err := tpm2.Unmarshal[tpm2.TPMSAttest](attest)
		if err != nil {
			t.Fatal(err)
		}
		if n := a.ClockInfo.ResetCount; i > 0 && n != last+1 {
			t.Errorf("reset count went from %d to %d", last, n)
		}
		last = a.ClockInfo.ResetCount
		if err := chip.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// The attributes that keep a private key in its TPM, read from the TPM.
func TestPrivateKeysStay(t *testing.T) {
	ak, ldevid, err := open(t, start(t)).Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, public := range map[string][]byte{"AK": ak, "LDevID": ldevid} {
		pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
		if err != nil {
			t.Fatal(err)
		}
		at := pub.ObjectAttributes
		if !at.FixedTPM || !at.FixedParent || !at.SensitiveDataOrigin || !at.NoDA || at.Restricted != (name == "AK") {
			t.Errorf("%s has attributes %+v", name, at)
		}
	}
}

func TestForeignKeyAtOurHandleIsNotUsed(t *testing.T) {
	dev := open(t, start(t))
	made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(tpm.Raw(dev))
	if err != nil {
		t.Fatal(err)
	}
	_, err = tpm2.EvictControl{
		Auth: tpm2.TPMRHOwner, ObjectHandle: &tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}, PersistentHandle: 0x8100F002,
	}.Execute(tpm.Raw(dev))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := dev.Keys(t.Context()); err == nil || !strings.Contains(err.Error(), "0x8100f002 holds a key of other software") {
		t.Errorf("got %v, want what is at the handle", err)
	}
}

// A command that broke off spoils neither the next one nor the keys.
func TestBrokenExchangeHeals(t *testing.T) {
	chip := start(t)
	dev := open(t, chip)
	key, err := dev.Signer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tpm.Break(dev)
	if _, err := key.Sign(nil, make([]byte, 32), crypto.SHA256); err == nil {
		t.Fatal("signed over a closed descriptor")
	}
	if _, err := key.Sign(nil, make([]byte, 32), crypto.SHA256); err != nil {
		t.Errorf("the next signature: %v", err)
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := key.Sign(nil, make([]byte, 32), crypto.SHA256); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: got %v, want os.ErrClosed", err)
	}
}

func TestKeysSurviveAPowerCycle(t *testing.T) {
	chip := start(t)
	dev := open(t, chip)
	ak, ldevid, err := dev.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = dev.Close()
	if err := chip.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	ak2, ldevid2, err := open(t, chip).Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(ak, ak2) || !bytes.Equal(ldevid, ldevid2) {
		t.Error("the keys changed with a power cycle")
	}
}

func TestSignerSignsWithTheLDevIDKey(t *testing.T) {
	key, err := open(t, start(t)).Signer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("handshake"))
	sig, err := key.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if !ecdsa.VerifyASN1(key.Public().(*ecdsa.PublicKey), digest[:], sig) {
		t.Error("signature does not verify")
	}
	if _, err := key.Sign(nil, digest[:], crypto.SHA384); err == nil {
		t.Error("signed a SHA-384 digest with a SHA-256 key")
	}
}

// An agent that is killed leaves objects and sessions behind; without a
// resource manager a few of them would fill the TPM for good.
func TestOpenTidiesUpAfterAKilledAgent(t *testing.T) {
	chip := start(t)
	for range 8 {
		dev := open(t, chip)
		if _, _, err := dev.Keys(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := tpm.Litter(dev); err != nil {
			t.Fatal(err)
		}
		_ = dev.Close() // the kernel does this for a killed process
	}
	dev := open(t, chip)
	ek, _, _, err := dev.Endorsement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := activate(t, dev, ek); err != nil {
		t.Error(err)
	}
}

func TestQuoteCoversTheRegisters(t *testing.T) {
	dev := open(t, start(t))
	extra := sha256.Sum256([]byte("nonce"))
	attest, sig, pcrs, err := dev.Quote(t.Context(), extra[:])
	if err != nil {
		t.Fatal(err)
	}
	if len(pcrs) != 11 || len(sig) == 0 {
		t.Fatalf("got %d PCRs and a signature of %d bytes, want 11 and some", len(pcrs), len(sig))
	}
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](attest)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.ExtraData.Buffer, extra[:]) {
		t.Errorf("extraData %x, want %x", a.ExtraData.Buffer, extra)
	}
	q, err := a.Attested.Quote()
	if err != nil {
		t.Fatal(err)
	}
	if sel := q.PCRSelect.PCRSelections; len(sel) != 1 || sel[0].Hash != tpm2.TPMAlgSHA256 || !bytes.Equal(sel[0].PCRSelect, []byte{0xff, 0x0b, 0}) {
		t.Errorf("got selection %+v, want PCR 0 to 9 and 11", sel)
	}
	h := sha256.New()
	for _, p := range pcrs {
		h.Write(p)
	}
	if got := h.Sum(nil); !bytes.Equal(got, q.PCRDigest.Buffer) {
		t.Errorf("digest of the values is %x, quoted is %x", got, q.PCRDigest.Buffer)
	}
}

func TestOpenSaysWhatToDo(t *testing.T) {
	if _, err := tpm.Open(t.TempDir()); err == nil || !strings.Contains(err.Error(), "write unix:") {
		t.Errorf("a folder: got %v, want how to write a software TPM", err)
	}
	if _, err := tpm.Open("unix:" + t.TempDir() + "/s"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a socket that is not there: got %v, want os.ErrNotExist", err)
	}
}
