package tpm_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/provisioning/enrol"
)

// anchor makes one and checks it as the service does.
func anchor(t *testing.T, dev *tpm.TPM, ak []byte, n byte) uint64 {
	t.Helper()
	attest, sig, counter, err := dev.Anchor(t.Context(), [32]byte{n})
	must(t, err)
	must(t, enrol.VerifyAnchor(ak, [32]byte{n}, attest, sig, counter))
	return counter
}

// The counter goes up by one for each anchor, over restarts with and without an
// orderly stop, and moves no floor.
func TestAnchorsCountByOne(t *testing.T) {
	chip := start(t)
	dev := open(t, chip)
	ak, _, err := dev.Keys(t.Context())
	must(t, err)
	first := anchor(t, dev, ak, 0)
	for n := range byte(4) {
		if got := anchor(t, dev, ak, n); got != first+1+uint64(n) {
			t.Errorf("count %d, want %d", got, first+1+uint64(n))
		}
		if n%2 == 0 {
			must(t, dev.Shutdown(t.Context()))
		}
		must(t, dev.Close())
		must(t, chip.Restart(t.Context()))
		dev = open(t, chip)
	}
	idle(t, dev)
	// A floor that is asked for only later is there all the same.
	if n, err := dev.Floor(t.Context()); err != nil || n != 0 {
		t.Errorf("floor %d and %v, want 0", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, _, err := dev.Anchor(ctx, [32]byte{}); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that ended: got %v", err)
	}
}

// A counter that was removed comes back above: an anchor cannot be made again.
func TestRemovedAnchorCounterGoesOnAbove(t *testing.T) {
	dev := open(t, start(t))
	ak, _, err := dev.Keys(t.Context())
	must(t, err)
	before := anchor(t, dev, ak, 1)
	pub, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(0x01800F06)}.Execute(tpm.Raw(dev))
	must(t, err)
	_, err = tpm2.NVUndefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    tpm2.NamedHandle{Handle: 0x01800F06, Name: pub.NVName},
	}.Execute(tpm.Raw(dev))
	must(t, err)
	if after := anchor(t, dev, ak, 1); after <= before {
		t.Errorf("count %d after %d", after, before)
	}
}

// The counter cannot be written, whoever has the owner's authorization.
func TestAnchorCounterCannotBeWritten(t *testing.T) {
	dev := open(t, start(t))
	ak, _, err := dev.Keys(t.Context())
	must(t, err)
	before := anchor(t, dev, ak, 1)
	pub, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(0x01800F06)}.Execute(tpm.Raw(dev))
	must(t, err)
	_, err = tpm2.NVWrite{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    tpm2.NamedHandle{Handle: 0x01800F06, Name: pub.NVName}, Data: tpm2.TPM2BMaxNVBuffer{Buffer: make([]byte, 8)},
	}.Execute(tpm.Raw(dev))
	if !errors.Is(err, tpm2.TPMRCAttributes) {
		t.Errorf("written: %v", err)
	}
	if after := anchor(t, dev, ak, 1); after != before+1 {
		t.Errorf("count %d after %d", after, before)
	}
}

// Other software's index at our handle is neither used nor removed; one at the
// handle of the floor does not cost the anchors.
func TestForeignIndexIsNoAnchorCounter(t *testing.T) {
	foreign := func(t *testing.T, index tpm2.TPMHandle) *tpm.TPM {
		dev := open(t, start(t))
		_, err := tpm2.NVDefineSpace{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
				NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8, Attributes: tpm2.TPMANV{OwnerWrite: true, AuthRead: true, NoDA: true},
			}),
		}.Execute(tpm.Raw(dev))
		must(t, err)
		return dev
	}
	if _, _, _, err := foreign(t, 0x01800F06).Anchor(t.Context(), [32]byte{}); err == nil || !strings.Contains(err.Error(), "belongs to other software") {
		t.Errorf("got %v", err)
	}
	dev := foreign(t, 0x01800F01)
	ak, _, err := dev.Keys(t.Context())
	must(t, err)
	anchor(t, dev, ak, 1)
}
