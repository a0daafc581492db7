package tpm_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/hal/tpm"
)

// release is a release pipeline: its key and what it signs.
type release struct {
	key    *ecdsa.PrivateKey
	public []byte // TPMT_PUBLIC
}

var sealRef = []byte("spool")

func newRelease(t *testing.T) *release {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	public, err := tpm.ReleaseKey(&key.PublicKey)
	must(t, err)
	return &release{key, public}
}

// approve signs a state.
func (r *release) approve(t *testing.T, pcrs map[int][]byte, floor uint64) tpm.Approval {
	t.Helper()
	policy, err := tpm.PolicyDigest(pcrs, floor)
	must(t, err)
	digest := sha256.Sum256(slices.Concat(policy, sealRef))
	sig, err := ecdsa.SignASN1(rand.Reader, r.key, digest[:])
	must(t, err)
	return tpm.Approval{PCRs: slices.Collect(maps.Keys(pcrs)), Policy: policy, Ref: sealRef, Floor: floor, Signature: sig}
}

// extend changes a register, as another boot loader or kernel does, and returns
// its value.
func extend(t *testing.T, dev *tpm.TPM, pcr int) []byte {
	t.Helper()
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: bytes.Repeat([]byte{byte(pcr)}, 32)}}},
	}.Execute(tpm.Raw(dev))
	must(t, err)
	return booted(t, dev, pcr)[pcr]
}

// booted reads registers.
func booted(t *testing.T, dev *tpm.TPM, pcrs ...int) map[int][]byte {
	t.Helper()
	values := map[int][]byte{}
	for _, i := range pcrs {
		bits := make([]byte, 3)
		bits[i/8] = 1 << (i % 8)
		rsp, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{
			PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: bits}},
		}}.Execute(tpm.Raw(dev))
		must(t, err)
		values[i] = rsp.PCRValues.Digests[0].Buffer
	}
	return values
}

func refused(t *testing.T, what string, got []byte, err error) {
	t.Helper()
	if !errors.Is(err, tpm.ErrNotApproved) || got != nil {
		t.Errorf("%s: got %q and %v, want that the release key did not approve", what, got, err)
	}
}

func TestSealedSecretOpensInApprovedStatesOnly(t *testing.T) {
	chip := start(t)
	dev, release := open(t, chip), newRelease(t)
	secret := bytes.Repeat([]byte{7}, 32)
	blob, err := dev.Seal(t.Context(), release.public, sealRef, secret)
	must(t, err)
	if bytes.Contains(blob, secret) {
		t.Fatal("the blob shows the secret")
	}
	state := booted(t, dev, 0, 4, 7, 11)
	approval := release.approve(t, state, 0)
	for range 4 { // more than there are sessions and transient objects
		if got, err := dev.Unseal(t.Context(), release.public, blob, approval); err != nil || !bytes.Equal(got, secret) {
			t.Fatalf("got %x and %v, want %x", got, err, secret)
		}
	}
	idle(t, dev)

	wrong, stranger := approval, newRelease(t)
	wrong.Signature = stranger.approve(t, state, 0).Signature
	got, err := dev.Unseal(t.Context(), release.public, blob, wrong)
	refused(t, "another signer", got, err)
	got, err = dev.Unseal(t.Context(), stranger.public, blob, wrong)
	refused(t, "another signer with his own key", got, err)
	wrong = approval
	wrong.Ref = []byte("other")
	got, err = dev.Unseal(t.Context(), release.public, blob, wrong)
	refused(t, "another ref", got, err)
	wrong = approval
	wrong.PCRs = []int{0}
	got, err = dev.Unseal(t.Context(), release.public, blob, wrong)
	refused(t, "fewer registers than approved", got, err)
	wrong.PCRs = nil
	if _, err := dev.Unseal(t.Context(), release.public, blob, wrong); err == nil {
		t.Error("opened without a register")
	}
	wrong = approval
	wrong.Signature = []byte("none")
	got, err = dev.Unseal(t.Context(), release.public, blob, wrong)
	refused(t, "no signature", got, err)

	// An update changes the registers: the old approval does not fit, the new
	// release's opens the same blob.
	state[11] = extend(t, dev, 11)
	got, err = dev.Unseal(t.Context(), release.public, blob, approval)
	refused(t, "another state", got, err)
	if got, err := dev.Unseal(t.Context(), release.public, blob, release.approve(t, state, 0)); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("new release: got %x and %v, want %x", got, err, secret)
	}
	idle(t, dev)

	// The booted state comes back with a reboot, and a disk in another till.
	must(t, chip.Restart(t.Context()))
	dev = open(t, chip)
	if got, err := dev.Unseal(t.Context(), release.public, blob, approval); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("after a reboot: got %x and %v, want %x", got, err, secret)
	}
	other := open(t, start(t))
	if got, err := other.Unseal(t.Context(), release.public, blob, approval); !errors.Is(err, tpm.ErrOtherTPM) || got != nil {
		t.Errorf("on another TPM: got %q and %v", got, err)
	}
}

// An approval is good up to its floor; there is no way down.
func TestRaisedFloorRefusesOldApprovals(t *testing.T) {
	chip := start(t)
	dev, release := open(t, chip), newRelease(t)
	blob, err := dev.Seal(t.Context(), release.public, sealRef, []byte("secret"))
	must(t, err)
	state := booted(t, dev, 7)
	old, next := release.approve(t, state, 1), release.approve(t, state, 2)
	opens := func(a tpm.Approval) error {
		got, err := dev.Unseal(t.Context(), release.public, blob, a)
		if err == nil && string(got) != "secret" {
			t.Errorf("opened %q", got)
		}
		return err
	}
	must(t, opens(old))
	must(t, dev.RaiseFloor(t.Context(), 1))
	must(t, opens(old))
	must(t, opens(next))
	for range 2 {
		must(t, dev.RaiseFloor(t.Context(), 2))
	}
	must(t, opens(next))
	refused(t, "old release", nil, opens(old))
	wrong := old
	wrong.Floor = 2
	refused(t, "old release that claims a newer floor", nil, opens(wrong))
	wrong.Floor = 0
	refused(t, "old release that claims no floor", nil, opens(wrong))
	must(t, dev.RaiseFloor(t.Context(), 1))
	if err := dev.RaiseFloor(t.Context(), 1<<40); err == nil {
		t.Error("raised the floor out of reach")
	}
	must(t, chip.Restart(t.Context()))
	dev = open(t, chip)
	if n, err := dev.Floor(t.Context()); err != nil || n != 2 {
		t.Errorf("floor %d and %v after a power cycle, want 2", n, err)
	}
	idle(t, dev)

	// Who removes the counter gains nothing.
	undefine(t, dev, 0x01800F01)
	if err := opens(old); err == nil || !strings.Contains(err.Error(), "the floor counter was removed") {
		t.Errorf("without the counter: got %v", err)
	}
	if _, err := dev.Floor(t.Context()); err == nil {
		t.Error("a counter that was removed has a floor")
	}
	must(t, opens(release.approve(t, state, 0)))
}

// To find out that a TPM cannot have a floor costs flash writes; a fleet asks
// for years.
func TestNoFloorIsFoundOutOnce(t *testing.T) {
	dev, release := open(t, start(t)), newRelease(t)
	blob, err := dev.Seal(t.Context(), release.public, sealRef, []byte("secret"))
	must(t, err)
	a := release.approve(t, booted(t, dev, 7), 1)
	must(t, dev.RaiseFloor(t.Context(), 1))
	undefine(t, dev, 0x01800F01)
	writes := 0
	tpm.Wrap(dev, func(cmd []byte, next func([]byte) ([]byte, error)) ([]byte, error) {
		switch command(cmd) {
		case tpm2.TPMCCNVDefineSpace, tpm2.TPMCCNVUndefineSpace, tpm2.TPMCCNVIncrement:
			writes++
		}
		return next(cmd)
	})
	for range 5 {
		if err := dev.RaiseFloor(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "the floor counter was removed") {
			t.Errorf("raised: %v", err)
		}
		if _, err := dev.Unseal(t.Context(), release.public, blob, a); err == nil {
			t.Error("opened without a floor")
		}
	}
	if writes > 3 {
		t.Errorf("%d writes to the TPM's memory, want one try", writes)
	}
}

// A probe on the wires between processor and TPM sees no secret.
func TestSecretDoesNotCrossTheBus(t *testing.T) {
	dev, release := open(t, start(t)), newRelease(t)
	var bus bytes.Buffer
	tpm.Wrap(dev, func(cmd []byte, next func([]byte) ([]byte, error)) ([]byte, error) {
		rsp, err := next(cmd)
		bus.Write(cmd)
		bus.Write(rsp)
		return rsp, err
	})
	secret := bytes.Repeat([]byte{7, 8, 9, 10}, 8)
	blob, err := dev.Seal(t.Context(), release.public, sealRef, secret)
	must(t, err)
	if _, err := dev.Unseal(t.Context(), release.public, blob, release.approve(t, booted(t, dev, 7), 0)); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(bus.Bytes(), secret[:8]) {
		t.Error("the secret crossed the bus in clear")
	}
	if !bytes.Contains(bus.Bytes(), sealRef) {
		t.Error("the probe sees nothing at all")
	}
}

func undefine(t *testing.T, dev *tpm.TPM, index tpm2.TPMHandle) {
	t.Helper()
	pub, err := tpm2.NVReadPublic{NVIndex: index}.Execute(tpm.Raw(dev))
	must(t, err)
	_, err = tpm2.NVUndefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    tpm2.NamedHandle{Handle: index, Name: pub.NVName},
	}.Execute(tpm.Raw(dev))
	must(t, err)
}

// A power cut while the counter is brought to its start is made up for.
func TestFloorCounterIsBroughtToItsStart(t *testing.T) {
	chip := start(t)
	for _, cut := range []int{1, 2, 100} {
		dev, n := open(t, chip), 0
		tpm.Wrap(dev, func(cmd []byte, next func([]byte) ([]byte, error)) ([]byte, error) {
			if command(cmd) == tpm2.TPMCCNVIncrement {
				if n++; n == cut {
					return nil, errors.New("power cut")
				}
			}
			return next(cmd)
		})
		if _, err := dev.Floor(t.Context()); err == nil {
			t.Fatal("no error")
		}
		must(t, chip.Restart(t.Context()))
	}
	dev := open(t, chip)
	if n, err := dev.Floor(t.Context()); err != nil || n != 0 {
		t.Errorf("floor %d and %v, want 0", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := dev.RaiseFloor(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that ended: got %v", err)
	}
}

// Other software's index at our handle is neither used nor removed.
func TestForeignIndexIsNoFloor(t *testing.T) {
	dev := open(t, start(t))
	_, err := tpm2.NVDefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
			NVIndex: 0x01800F01, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8, Attributes: tpm2.TPMANV{OwnerWrite: true, AuthRead: true, NoDA: true},
		}),
	}.Execute(tpm.Raw(dev))
	must(t, err)
	if _, err := dev.Floor(t.Context()); err == nil || !strings.Contains(err.Error(), "belongs to other software") {
		t.Errorf("got %v", err)
	}
}

// Integrity measurements extend registers all the time; a policy session does
// not survive that.
func TestUnsealIsTriedAgainWhenRegistersChange(t *testing.T) {
	dev, release := open(t, start(t)), newRelease(t)
	blob, err := dev.Seal(t.Context(), release.public, sealRef, []byte("secret"))
	must(t, err)
	approval := release.approve(t, booted(t, dev, 7), 0)
	changes := 3
	tpm.Wrap(dev, func(cmd []byte, next func([]byte) ([]byte, error)) ([]byte, error) {
		if command(cmd) == tpm2.TPMCCUnseal && changes > 0 {
			changes--
			extend(t, tpm.Below(dev), 10)
		}
		return next(cmd)
	})
	if got, err := dev.Unseal(t.Context(), release.public, blob, approval); err != nil || string(got) != "secret" || changes != 0 {
		t.Errorf("got %q and %v with %d changes left", got, err, changes)
	}
	changes = 1000
	if _, err := dev.Unseal(t.Context(), release.public, blob, approval); err == nil || !strings.Contains(err.Error(), "keep changing") || changes < 900 {
		t.Errorf("registers that never rest: got %v", err)
	}
	idle(t, tpm.Below(dev))
}

// The formula of PolicyDigest's comment, written out: what the release pipeline
// does without this package.
func TestPolicyDigestIsItsFormula(t *testing.T) {
	const zero = "0000000000000000000000000000000000000000000000000000000000000000"
	pcr7, pcr11 := bytes.Repeat([]byte{7}, 32), bytes.Repeat([]byte{11}, 32)
	hash := func(parts ...string) string {
		b, err := hex.DecodeString(strings.Join(parts, ""))
		must(t, err)
		sum := sha256.Sum256(b)
		return hex.EncodeToString(sum[:])
	}
	values := hash(hex.EncodeToString(pcr7), hex.EncodeToString(pcr11))
	want := hash(zero, "0000017F", "00000001", "000B", "03", "800800", values)
	got, err := tpm.PolicyDigest(map[int][]byte{11: pcr11, 7: pcr7}, 0)
	if err != nil || hex.EncodeToString(got) != want {
		t.Errorf("got %x and %v, want %s", got, err, want)
	}
	args := hash(hex.EncodeToString(binary.BigEndian.AppendUint64(nil, 256+3)), "0000", "0009")
	want = hash(want, "00000149", args, "000B", hash("01800F01", "000B", "22060012", "0000", "0008"))
	got, err = tpm.PolicyDigest(map[int][]byte{11: pcr11, 7: pcr7}, 3)
	if err != nil || hex.EncodeToString(got) != want {
		t.Errorf("with a floor: got %x and %v, want %s", got, err, want)
	}
	for name, pcrs := range map[string]map[int][]byte{"no PCR": {}, "PCR 24": {24: pcr7}, "a short PCR": {7: pcr7[:20]}} {
		if _, err := tpm.PolicyDigest(pcrs, 0); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestReleaseKeyIsItsFormula(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	point, err := key.PublicKey.Bytes()
	must(t, err)
	want := "0023000b000400400000" + "00100018000b00030010" + "0020" + hex.EncodeToString(point[1:33]) + "0020" + hex.EncodeToString(point[33:])
	if got, err := tpm.ReleaseKey(&key.PublicKey); err != nil || hex.EncodeToString(got) != want {
		t.Errorf("got %x and %v, want %s", got, err, want)
	}
	other, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(t, err)
	if _, err := tpm.ReleaseKey(&other.PublicKey); err == nil {
		t.Error("a P-384 release key was taken")
	}
}

func TestSealRefusesWhatDoesNotFit(t *testing.T) {
	dev, release := open(t, start(t)), newRelease(t)
	for name, tt := range map[string]struct{ key, ref, secret []byte }{
		"nothing":       {release.public, sealRef, nil},
		"too much":      {release.public, sealRef, make([]byte, 129)},
		"a long ref":    {release.public, make([]byte, 33), []byte("secret")},
		"no public key": {[]byte("no"), sealRef, []byte("secret")},
	} {
		if _, err := dev.Seal(t.Context(), tt.key, tt.ref, tt.secret); err == nil {
			t.Errorf("%s was sealed", name)
		}
	}
	full := bytes.Repeat([]byte{9}, 128)
	blob, err := dev.Seal(t.Context(), release.public, make([]byte, 32), full)
	must(t, err)
	for _, cut := range [][]byte{nil, blob[:1], blob[:40], blob[:len(blob)-1], append(bytes.Clone(blob), 0)} {
		if _, err := dev.Unseal(t.Context(), release.public, cut, release.approve(t, booted(t, dev, 7), 0)); err == nil {
			t.Errorf("a blob of %d bytes was opened", len(cut))
		}
	}
}

// A blob is a file on the disk: anybody may have written it.
func FuzzSealedBlob(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{0, 1, 9, 0, 2, 0, 8})
	f.Add(slices.Concat([]byte{0, 1, 9}, tpm2.Marshal(tpm2.New2B(tpm2.ECCSRKTemplate))))
	f.Fuzz(func(t *testing.T, blob []byte) {
		if again, err := tpm.Resplit(blob); err == nil && !bytes.Equal(again, blob) {
			t.Errorf("%x reads as %x", blob, again)
		}
	})
}
