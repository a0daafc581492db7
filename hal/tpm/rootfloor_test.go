package tpm_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/hal/tpm"
)

// The floor of the release root goes up, over all its indices, and never down.
func TestRootFloorNeverGoesDown(t *testing.T) {
	chip := start(t)
	dev := open(t, chip)
	floor := func(want uint64) {
		t.Helper()
		if n, err := dev.RootFloor(t.Context()); err != nil || n != want {
			t.Errorf("floor %d and %v, want %d", n, err, want)
		}
	}
	floor(0)
	must(t, dev.RaiseRootFloor(t.Context(), 0))
	floor(0)
	for _, to := range []uint64{1, 2, 5, 64, 65, 130, 256} {
		must(t, dev.RaiseRootFloor(t.Context(), to))
		floor(to)
		must(t, dev.RaiseRootFloor(t.Context(), 1))
		floor(to)
	}
	// Recoveries of the root count far ahead: beyond its room it stays, and a box
	// goes on to be updated.
	must(t, dev.RaiseRootFloor(t.Context(), 257))
	floor(256)
	must(t, dev.Close())
	must(t, chip.Restart(t.Context()))
	dev = open(t, chip)
	floor(256)
	idle(t, dev)
	// It neither moves the sealing floor nor is moved by it.
	must(t, dev.RaiseFloor(t.Context(), 3))
	floor(256)
	if n, err := dev.Floor(t.Context()); err != nil || n != 3 {
		t.Errorf("sealing floor %d and %v, want 3", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := dev.RaiseRootFloor(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that ended: got %v", err)
	}
}

// The twin: whoever runs with the owner's authorization cannot lower it by
// writing, only by removing the index, which is then gone and not low.
func TestRootFloorCannotBeWritten(t *testing.T) {
	dev := open(t, start(t))
	must(t, dev.RaiseRootFloor(t.Context(), 7))
	pub, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(0x01800F02)}.Execute(tpm.Raw(dev))
	must(t, err)
	_, err = tpm2.NVWrite{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    tpm2.NamedHandle{Handle: tpm2.TPMHandle(0x01800F02), Name: pub.NVName}, Data: tpm2.TPM2BMaxNVBuffer{Buffer: make([]byte, 8)},
	}.Execute(tpm.Raw(dev))
	if !errors.Is(err, tpm2.TPMRCAttributes) {
		t.Errorf("written: %v", err)
	}
	if n, err := dev.RootFloor(t.Context()); err != nil || n != 7 {
		t.Errorf("floor %d and %v, want 7", n, err)
	}
}

// Other software's index at our handle is neither used nor removed.
func TestForeignIndexIsNoRootFloor(t *testing.T) {
	dev := open(t, start(t))
	_, err := tpm2.NVDefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
			NVIndex: 0x01800F02, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8, Attributes: tpm2.TPMANV{OwnerWrite: true, AuthRead: true, NoDA: true},
		}),
	}.Execute(tpm.Raw(dev))
	must(t, err)
	if _, err := dev.RootFloor(t.Context()); err == nil || !strings.Contains(err.Error(), "belongs to other software") {
		t.Errorf("got %v", err)
	}
	if err := dev.RaiseRootFloor(t.Context(), 2); err == nil || !strings.Contains(err.Error(), "belongs to other software") {
		t.Errorf("raised: got %v", err)
	}
}
