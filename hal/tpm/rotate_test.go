package tpm_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/hal/tpm"
)

// must fails the test at once when a step of its story fails.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func keysOf(t *testing.T, dev *tpm.TPM) (ak, ldevid []byte) {
	t.Helper()
	ak, ldevid, err := dev.Keys(t.Context())
	must(t, err)
	return ak, ldevid
}

// certifies checks that attest, signed by ak, speaks of the key public and of extra.
func certifies(t *testing.T, ak, public, extra, attest, signature []byte) {
	t.Helper()
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](attest)
	must(t, err)
	info, err := a.Attested.Certify()
	must(t, err)
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
	must(t, err)
	name, err := tpm2.ObjectName(area)
	must(t, err)
	if !bytes.Equal(info.Name.Buffer, name.Buffer) || !bytes.Equal(a.ExtraData.Buffer, extra) {
		t.Errorf("certified %x with %x, want %x with %x", info.Name.Buffer, a.ExtraData.Buffer, name.Buffer, extra)
	}
	sig, err := tpm2.Unmarshal[tpm2.TPMTSignature](signature)
	must(t, err)
	rs, err := sig.Signature.ECDSA()
	must(t, err)
	digest := sha256.Sum256(attest)
	if !ecdsa.VerifyASN1(ecKey(t, ak), digest[:], asn1Signature(t, rs.SignatureR.Buffer, rs.SignatureS.Buffer)) {
		t.Error("the AK did not sign this")
	}
}

func asn1Signature(t *testing.T, r, s []byte) []byte {
	t.Helper()
	b, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(r), new(big.Int).SetBytes(s)})
	must(t, err)
	return b
}

func ecKey(t *testing.T, public []byte) *ecdsa.PublicKey {
	t.Helper()
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
	must(t, err)
	key, err := tpm2.Pub(*area)
	must(t, err)
	return key.(*ecdsa.PublicKey)
}

// signs checks that the signer is the key public.
func signs(t *testing.T, key crypto.Signer, public []byte) {
	t.Helper()
	digest := sha256.Sum256([]byte("handshake"))
	sig, err := key.Sign(nil, digest[:], crypto.SHA256)
	must(t, err)
	if !ecdsa.VerifyASN1(ecKey(t, public), digest[:], sig) {
		t.Error("another key signed")
	}
}

func TestRecoveryKeyIsAnother(t *testing.T) {
	chip := start(t)
	dev := open(t, chip)
	ak, ldevid := keysOf(t, dev)
	recovery, err := dev.Recovery(t.Context())
	must(t, err)
	if bytes.Equal(recovery, ldevid) {
		t.Error("the recovery key is the LDevID key")
	}
	extra := make([]byte, 32)
	attest, sig, err := dev.CertifyKey(t.Context(), recovery, extra)
	must(t, err)
	certifies(t, ak, recovery, extra, attest, sig)
	key, err := dev.SignerFor(t.Context(), recovery)
	must(t, err)
	signs(t, key, recovery)
	must(t, chip.Restart(t.Context()))
	if again, err := open(t, chip).Recovery(t.Context()); err != nil || !bytes.Equal(again, recovery) {
		t.Errorf("after a power cycle: %x and %v, want %x", again, err, recovery)
	}
}

// The next LDevID key waits beside the old one until its certificate is there.
func TestLDevIDKeyIsRotated(t *testing.T) {
	chip := start(t)
	dev := open(t, chip)
	ak, first := keysOf(t, dev)
	old, err := dev.Signer(t.Context())
	must(t, err)
	current := first
	for range 3 { // both handles are spare in turn
		next, err := dev.NextLDevID(t.Context())
		must(t, err)
		if bytes.Equal(next, current) {
			t.Fatal("the next key is the current one")
		}
		must(t, dev.UseLDevID(t.Context(), current))
		if again, err := dev.NextLDevID(t.Context()); err != nil || !bytes.Equal(again, next) {
			t.Errorf("asked again: %x and %v, want %x", again, err, next)
		}
		if _, now := keysOf(t, dev); !bytes.Equal(now, current) {
			t.Error("the next key is in use before it was kept")
		}
		extra := make([]byte, 32)
		attest, sig, err := dev.CertifyKey(t.Context(), next, extra)
		must(t, err)
		certifies(t, ak, next, extra, attest, sig)
		for range 2 {
			must(t, dev.KeepLDevID(t.Context(), next))
		}
		if _, now := keysOf(t, dev); !bytes.Equal(now, next) {
			t.Error("the kept key is not in use")
		}
		if err := dev.UseLDevID(t.Context(), current); err == nil {
			t.Error("the old key is there still")
		}
		key, err := dev.Signer(t.Context())
		must(t, err)
		signs(t, key, next)
		attest, sig, err = dev.Certify(t.Context(), extra)
		must(t, err)
		certifies(t, ak, next, extra, attest, sig)
		current = next
	}
	if _, err := old.Sign(nil, make([]byte, 32), crypto.SHA256); err == nil || !strings.Contains(err.Error(), "was replaced") {
		t.Errorf("the first key's signer: got %v, want that the key was replaced", err)
	}
	if _, err := dev.SignerFor(t.Context(), first); err == nil {
		t.Error("a signer for a key that is gone")
	}
	if err := dev.KeepLDevID(t.Context(), first); err == nil {
		t.Error("a key that is gone was kept")
	}
	if _, now := keysOf(t, dev); !bytes.Equal(now, current) {
		t.Error("the wrong calls changed the key in use")
	}
}

// After a power cut in the middle of a rotation the device says which key it
// has a certificate for; until then nothing is removed.
func TestRotationIsResumedAfterAPowerCut(t *testing.T) {
	chip := start(t)
	dev := open(t, chip)
	_, old := keysOf(t, dev)
	next, err := dev.NextLDevID(t.Context())
	must(t, err)
	must(t, chip.Restart(t.Context()))
	for _, public := range [][]byte{next, old} {
		dev = open(t, chip)
		if _, err := dev.NextLDevID(t.Context()); err == nil || !strings.Contains(err.Error(), "say first which is in use") {
			t.Errorf("two keys and none named: got %v", err)
		}
		must(t, dev.UseLDevID(t.Context(), public))
		if _, now := keysOf(t, dev); !bytes.Equal(now, public) {
			t.Error("the key in use is not the one that was named")
		}
		key, err := dev.Signer(t.Context())
		must(t, err)
		signs(t, key, public)
		must(t, dev.Close())
	}
	dev = open(t, chip)
	must(t, dev.KeepLDevID(t.Context(), next))
	must(t, chip.Restart(t.Context()))
	if _, now := keysOf(t, open(t, chip)); !bytes.Equal(now, next) {
		t.Error("after the rotation the old key is back")
	}
}

func TestAKIsRotated(t *testing.T) {
	chip := start(t)
	dev := open(t, chip)
	ek, _, _, err := dev.Endorsement(t.Context())
	must(t, err)
	current, ldevid := keysOf(t, dev)
	if _, _, err := dev.CertifyNextAK(t.Context(), nil); err == nil {
		t.Error("certified a next AK that is not there")
	}
	for i := range byte(3) { // both handles are spare in turn
		unique := bytes.Repeat([]byte{i + 1}, 32)
		dropped, err := dev.NextAK(t.Context(), bytes.Repeat([]byte{99}, 32))
		must(t, err)
		must(t, dev.UseAK(t.Context(), current))
		next, err := dev.NextAK(t.Context(), unique)
		must(t, err)
		if bytes.Equal(next, current) || bytes.Equal(next, dropped) {
			t.Fatal("another unique made the same AK")
		}
		if again, err := dev.NextAK(t.Context(), unique); err != nil || !bytes.Equal(again, next) {
			t.Errorf("asked again: %x and %v, want %x", again, err, next)
		}
		extra := make([]byte, 32)
		attest, sig, err := dev.CertifyNextAK(t.Context(), extra)
		must(t, err)
		certifies(t, current, next, extra, attest, sig)
		blob, secret := credential(t, ek, next)
		if got, err := dev.ActivateNextAK(t.Context(), blob, secret); err != nil || string(got) != "secret" {
			t.Errorf("activated %q and %v, want the secret", got, err)
		}
		if _, err := dev.Activate(t.Context(), blob, secret); err == nil {
			t.Error("the old AK opened what was made for the next one")
		}
		must(t, chip.Restart(t.Context())) // in the middle
		dev = open(t, chip)
		for range 2 {
			must(t, dev.KeepAK(t.Context(), next))
		}
		if now, same := keysOf(t, dev); !bytes.Equal(now, next) || !bytes.Equal(same, ldevid) {
			t.Error("the kept AK is not in use, or the LDevID key changed")
		}
		if err := dev.UseAK(t.Context(), current); err == nil {
			t.Error("the old AK is there still")
		}
		if _, err := dev.NextAK(t.Context(), unique); err == nil || !strings.Contains(err.Error(), "take another") {
			t.Errorf("the unique of the AK in use: got %v", err)
		}
		attest, sig, err = dev.Certify(t.Context(), extra)
		must(t, err)
		certifies(t, next, ldevid, extra, attest, sig)
		current = next
	}
	if _, err := dev.NextAK(t.Context(), make([]byte, 31)); err == nil {
		t.Error("a unique of 31 bytes was taken")
	}
}

// With two AKs and none named the wrong one could be removed.
func TestNoAKIsRemovedBeforeOneIsNamed(t *testing.T) {
	chip := start(t)
	dev := open(t, chip)
	first, _ := keysOf(t, dev)
	next, err := dev.NextAK(t.Context(), bytes.Repeat([]byte{1}, 32))
	must(t, err)
	must(t, chip.Restart(t.Context()))
	dev = open(t, chip)
	if _, err := dev.NextAK(t.Context(), bytes.Repeat([]byte{2}, 32)); err == nil || !strings.Contains(err.Error(), "say first which is in use") {
		t.Errorf("got %v", err)
	}
	must(t, dev.UseAK(t.Context(), next))
	must(t, dev.UseAK(t.Context(), first))
}
