package agent

import (
	"context"
	"errors"

	"github.com/tillward/tillward/agent/internal/vault"
	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/provisioning/trust"
)

// TPM is what the agent needs of a TPM; hal/tpm fits, behind a few lines of
// main.
type TPM interface {
	enrol.Endorser
	enrol.Prover
	enrol.Rescuer
	enrol.Renewer
	enrol.Rotator
	vault.TPM
	trust.Floor
	trust.Floor
	// Floor returns the rollback floor, and makes it on first use.
	Floor(ctx context.Context) (uint64, error)
	// RaiseFloor brings the rollback floor to the given number; there is no way back.
	RaiseFloor(ctx context.Context, to uint64) error
	// Anchor counts on and certifies the count, bound to what is given.
	Anchor(ctx context.Context, binding [32]byte) (attest, signature []byte, counter uint64, err error)
	Health(ctx context.Context) (TPMHealth, error)
	// Shutdown comes last before the power may go.
	Shutdown(ctx context.Context) error
	Close() error
}

// ErrSealedElsewhere is what Unseal of a TPM answers to what another TPM
// sealed, or itself before it was cleared.
var ErrSealedElsewhere = vault.ErrLost

// TPMHealth is what a TPM says of itself.
type TPMHealth struct {
	Manufacturer    string
	Firmware        uint64
	LockoutCounter  uint32 // authorisations counted as attacks
	MaxAuthFail     uint32 // at this many the TPM locks
	InLockout       bool
	PersistentAvail uint32 // keys that can still be persisted
}

// chip is the TPM as a thing that is measured: a counter of attacks that rises
// tells of other software, or of a thief, before the TPM locks.
type chip struct{ a *Agent }

// Info implements hal.Device.
func (chip) Info() hal.Info { return hal.Info{ID: "tpm", Category: hal.Host, Driver: "tpm"} }

// String implements conn.Resource.
func (chip) String() string { return "TPM" }

// Halt implements conn.Resource.
func (chip) Halt() error { return nil }

// Close implements io.Closer; the TPM is not the chip's to close.
func (chip) Close() error { return nil }

// Statistics implements hal.Statistics. What the spool writes is told with it:
// of the box itself there are not two to ask.
func (c chip) Statistics(ctx context.Context) ([]hal.Stat, error) {
	stats := c.a.spoolStats()
	h, err := c.a.tpmHealth(ctx)
	if err != nil {
		return stats, nil //nolint:nilerr // it is not open now; the trail says why
	}
	return append(stats, hal.Stat{Name: "tpm_lockout_count", Value: float64(h.LockoutCounter)}), nil
}

var errNoTPM = errors.New("the TPM is not open")

// tpmHealth asks the TPM that is open, if one is.
func (a *Agent) tpmHealth(ctx context.Context) (TPMHealth, error) {
	a.mu.Lock()
	dev := a.dev
	a.mu.Unlock()
	if dev == nil {
		return TPMHealth{}, errNoTPM
	}
	return dev.Health(ctx)
}

// openTPM opens the TPM and makes it the one that others may ask. Call the
// function that comes with it when it is not needed any more.
func (a *Agent) openTPM(ctx context.Context) (TPM, func(), error) {
	dev, err := a.o.OpenTPM(a.cfg.TPM.Device)
	if err != nil {
		return nil, nil, err
	}
	a.mu.Lock()
	a.dev = dev
	a.mu.Unlock()
	return dev, func() {
		a.mu.Lock()
		a.dev = nil
		a.mu.Unlock()
		if ctx.Err() != nil { // the agent ends, and perhaps the box
			if err := dev.Shutdown(context.WithoutCancel(ctx)); err != nil {
				a.log.Warn("TPM", "err", err)
			}
		}
		_ = dev.Close()
	}, nil
}
