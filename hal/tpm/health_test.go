package tpm_test

import (
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/hal/tpm"
)

func TestHealth(t *testing.T) {
	dev := open(t, start(t))
	_, _ = keysOf(t, dev)
	h, err := dev.Health(t.Context())
	must(t, err)
	if h.Manufacturer != "IBM" || h.Firmware == 0 || h.LockoutCounter != 0 || h.MaxAuthFail == 0 || h.InLockout || h.PersistentAvail == 0 {
		t.Errorf("got %+v", h)
	}
}

// TestHealthIsCheap: it is asked every minute for years, over a slow bus. A TPM
// that returns one property at a time is read all the same.
func TestHealthIsCheap(t *testing.T) {
	dev := open(t, start(t))
	want, err := dev.Health(t.Context())
	must(t, err)
	asked := 0
	tpm.Wrap(dev, func(cmd []byte, next func([]byte) ([]byte, error)) ([]byte, error) { asked++; return next(cmd) })
	if h, err := dev.Health(t.Context()); err != nil || h != want || asked > 2 {
		t.Errorf("got %+v, %v after %d commands, want two at most", h, err, asked)
	}
	tpm.Unwrap(dev)
	tpm.Wrap(dev, func(cmd []byte, next func([]byte) ([]byte, error)) ([]byte, error) {
		cmd[len(cmd)-1] = 1 // the count of GetCapability
		return next(cmd)
	})
	if h, err := dev.Health(t.Context()); err != nil || h != want {
		t.Errorf("one at a time: got %+v, %v, want %+v", h, err, want)
	}
}

// lock guesses the auth of a key without noDA until the TPM locks.
func lock(t *testing.T, dev *tpm.TPM) {
	t.Helper()
	raw := tpm.Raw(dev)
	srk, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(raw)
	must(t, err)
	parent := tpm2.AuthHandle{Handle: srk.ObjectHandle, Name: srk.Name, Auth: tpm2.PasswordAuth(nil)}
	tmpl := tpm2.ECCSRKTemplate
	tmpl.ObjectAttributes.NoDA = false
	made, err := tpm2.Create{
		ParentHandle: parent, InPublic: tpm2.New2B(tmpl),
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: []byte("auth")}}},
	}.Execute(raw)
	must(t, err)
	key, err := tpm2.Load{ParentHandle: parent, InPrivate: made.OutPrivate, InPublic: made.OutPublic}.Execute(raw)
	must(t, err)
	for range 10 {
		guess := tpm2.AuthHandle{Handle: key.ObjectHandle, Name: key.Name, Auth: tpm2.PasswordAuth([]byte("guess"))}
		if _, err := (tpm2.Create{ParentHandle: guess, InPublic: tpm2.New2B(tmpl)}).Execute(raw); err == nil {
			t.Fatal("the guess was right")
		}
	}
	for _, h := range []tpm2.TPMHandle{key.ObjectHandle, srk.ObjectHandle} {
		_, err := tpm2.FlushContext{FlushHandle: h}.Execute(raw)
		must(t, err)
	}
}

// Other software may lock the TPM; that is seen, and sells on.
func TestLockoutIsSeen(t *testing.T) {
	dev := open(t, start(t))
	lock(t, dev)
	h, err := dev.Health(t.Context())
	must(t, err)
	if !h.InLockout || h.LockoutCounter < h.MaxAuthFail {
		t.Errorf("got %+v, want a locked TPM", h)
	}
}

// TestOrderlyStop: only after Shutdown does the TPM's clock count as safe at
// the next start; a power cut is told apart.
func TestOrderlyStop(t *testing.T) {
	chip := start(t)
	for _, orderly := range []bool{true, false} {
		dev := open(t, chip)
		_, _ = keysOf(t, dev)
		if orderly {
			must(t, dev.Shutdown(t.Context()))
		}
		must(t, dev.Close())
		must(t, chip.Restart(t.Context()))
		again := open(t, chip)
		quoted, _, _, err := again.Quote(t.Context(), make([]byte, 32))
		must(t, err)
		must(t, again.Close())
		area, err := tpm2.Unmarshal[tpm2.TPMSAttest](quoted)
		must(t, err)
		if area.ClockInfo.Safe != tpm2.TPMIYesNo(orderly) {
			t.Errorf("stopped orderly %v: the clock is safe %v", orderly, area.ClockInfo.Safe)
		}
	}
}
