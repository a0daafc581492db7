package boot_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"path/filepath"
	"testing"

	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

func sealingKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// The digest that the release machine computes is the one that a TPM comes to.
func TestPolicyIsThatOfTheTPM(t *testing.T) {
	key := sealingKey(t, elliptic.P256())
	values := map[int][]byte{0: bytes.Repeat([]byte{1}, 32), 7: bytes.Repeat([]byte{7}, 32), 9: make([]byte, 32), 23: bytes.Repeat([]byte{23}, 32)}
	for _, floor := range []uint64{0, 1, 300, 1 << 20} {
		a, err := boot.SignApproval(key, []byte("spool"), values, floor)
		if err != nil {
			t.Fatal(err)
		}
		want, err := tpm.PolicyDigest(values, floor)
		if err != nil || !bytes.Equal(a.Policy, want) {
			t.Errorf("floor %d: got %x, want %x (%v)", floor, a.Policy, want, err)
		}
		if !a.Signed(&key.PublicKey) || a.Signed(&sealingKey(t, elliptic.P256()).PublicKey) {
			t.Errorf("floor %d: signature", floor)
		}
		if !a.Fits(values) {
			t.Errorf("floor %d: does not fit what was approved", floor)
		}
		other := map[int][]byte{0: values[0], 7: values[7], 9: values[7], 23: values[23]}
		if a.Fits(other) || a.Fits(map[int][]byte{0: values[0]}) || a.Fits(nil) {
			t.Errorf("floor %d: fits another boot", floor)
		}
	}
}

func TestApprovalsThatAreNotSigned(t *testing.T) {
	p256, values := sealingKey(t, elliptic.P256()), map[int][]byte{0: make([]byte, 32)}
	for _, c := range []struct {
		name  string
		key   *ecdsa.PrivateKey
		ref   string
		pcrs  map[int][]byte
		floor uint64
	}{
		{"no key", nil, "spool", values, 0},
		{"P-384", sealingKey(t, elliptic.P384()), "spool", values, 0},
		{"no ref", p256, "", values, 0},
		{"long ref", p256, "a ref that is longer than thirty-two", values, 0},
		{"no register", p256, "spool", nil, 0},
		{"register 24", p256, "spool", map[int][]byte{24: make([]byte, 32)}, 0},
		{"short value", p256, "spool", map[int][]byte{0: make([]byte, 20)}, 0},
		{"floor too high", p256, "spool", values, 1<<20 + 1},
	} {
		if a, err := boot.SignApproval(c.key, []byte(c.ref), c.pcrs, c.floor); err == nil {
			t.Errorf("%s: got %+v", c.name, a)
		}
	}
}

// What is sealed to the release key opens in the boot that a reference
// approves, and in no other.
func TestApprovalOpensInItsBoot(t *testing.T) {
	key := sealingKey(t, elliptic.P256())
	approve := func(release string) boot.Approval {
		values, err := boot.Replay(tpmfarm.Default(release).Log())
		if err != nil {
			t.Fatal(err)
		}
		a, err := boot.SignApproval(key, []byte("spool"), map[int][]byte{4: values[4], 7: values[7], 8: values[8], 9: values[9]}, 0)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	inBoots(t, key, tpmfarm.Default, []string{running, offered}, func(release string, opens func(boot.Approval) (bool, error)) {
		for _, approved := range []string{running, offered} {
			if opened, err := opens(approve(approved)); opened != (approved == release) {
				t.Errorf("booted %s, approved %s: opened %v, %v", release, approved, opened, err)
			}
		}
	})
}

// An approval of a boot that was only foretold opens in that boot, on a TPM that
// real measurements went into, and neither before nor with another image.
func TestForetoldApprovalOpens(t *testing.T) {
	key := sealingKey(t, elliptic.P256())
	foretold, err := boot.Translate(unified(t, running).Log(), swapsOf(t, running, offered), 0)
	if err != nil {
		t.Fatal(err)
	}
	values, err := boot.Replay(foretold)
	if err != nil {
		t.Fatal(err)
	}
	state := make(map[int][]byte)
	for i, pcr := range boot.Quoted {
		if pcr == 4 || pcr == 7 || pcr == 9 || pcr == 11 {
			state[pcr] = values[i]
		}
	}
	approval, err := boot.SignApproval(key, []byte("spool"), state, 0)
	if err != nil {
		t.Fatal(err)
	}
	image := func(release string) tpmfarm.Firmware { return unified(t, release) }
	inBoots(t, key, image, []string{running, offered, offered + "-changed"}, func(release string, opens func(boot.Approval) (bool, error)) {
		if opened, err := opens(approval); opened != (release == offered) {
			t.Errorf("booted %s: opened %v, %v", release, opened, err)
		}
	})
}

// inBoots boots a TPM into one release after the other, with a secret that is
// sealed in the first of them, and asks in each what opens it.
func inBoots(t *testing.T, key *ecdsa.PrivateKey, of func(release string) tpmfarm.Firmware, releases []string, ask func(release string, opens func(boot.Approval) (bool, error))) {
	t.Helper()
	farm, err := tpmfarm.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(farm.Close)
	chip, err := farm.Start(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	public, err := tpm.ReleaseKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	var blob []byte
	for _, release := range releases {
		if err := chip.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := of(release).Boot(chip, filepath.Join(t.TempDir(), "log")); err != nil {
			t.Fatal(err)
		}
		dev, err := tpm.Open("unix:" + chip.Socket())
		if err != nil {
			t.Fatal(err)
		}
		if blob == nil {
			if blob, err = dev.Seal(t.Context(), public, []byte("spool"), []byte("secret")); err != nil {
				t.Fatal(err)
			}
		}
		ask(release, func(a boot.Approval) (bool, error) {
			got, err := dev.Unseal(t.Context(), public, blob, tpm.Approval(a))
			return err == nil && string(got) == "secret", err
		})
		if err := dev.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
