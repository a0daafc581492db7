// Package chip fits hal/tpm to the agent: the two may not know each other's
// types. Whoever makes an agent with a real TPM hands Open in.
package chip

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"

	"github.com/tillward/tillward/agent"
	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/provisioning/boot"
)

// TPM is a hal/tpm that the agent takes.
type TPM struct{ *tpm.TPM }

// Open opens the TPM at path.
func Open(path string) (agent.TPM, error) {
	dev, err := tpm.Open(path)
	if err != nil {
		return nil, err
	}
	return TPM{dev}, nil
}

// Seal implements agent.TPM.
func (c TPM) Seal(ctx context.Context, release *ecdsa.PublicKey, ref, secret []byte) ([]byte, error) {
	key, err := tpm.ReleaseKey(release)
	if err != nil {
		return nil, err
	}
	return c.TPM.Seal(ctx, key, ref, secret)
}

// Unseal implements agent.TPM.
func (c TPM) Unseal(ctx context.Context, release *ecdsa.PublicKey, blob []byte, a boot.Approval) ([]byte, error) {
	key, err := tpm.ReleaseKey(release)
	if err != nil {
		return nil, err
	}
	secret, err := c.TPM.Unseal(ctx, key, blob, tpm.Approval(a))
	if errors.Is(err, tpm.ErrOtherTPM) {
		err = fmt.Errorf("%w: %w", agent.ErrSealedElsewhere, err)
	}
	return secret, err
}

// Health implements agent.TPM.
func (c TPM) Health(ctx context.Context) (agent.TPMHealth, error) {
	h, err := c.TPM.Health(ctx)
	return agent.TPMHealth(h), err
}
