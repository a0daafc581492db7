package swarm

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// Recovery implements enrol.Rescuer.
func (d *Device) Recovery(context.Context) ([]byte, error) { return d.public(roleRecovery) }

// CertifyKey implements enrol.Rescuer.
func (d *Device) CertifyKey(_ context.Context, public, extra []byte) (attest, signature []byte, err error) {
	role, err := d.roleOf(public)
	if err != nil {
		return nil, nil, err
	}
	return d.certify(role, extra)
}

// SignerFor implements enrol.Rescuer.
func (d *Device) SignerFor(_ context.Context, public []byte) (crypto.Signer, error) {
	role, err := d.roleOf(public)
	if err != nil {
		return nil, err
	}
	return d.key(role)
}

// roleOf finds the device key with that public area.
func (d *Device) roleOf(public []byte) (string, error) {
	for _, role := range []string{roleLDevID, roleRecovery} {
		mine, err := d.public(role)
		if err != nil {
			return "", err
		}
		if bytes.Equal(mine, public) {
			return role, nil
		}
	}
	return "", errors.New("the device does not hold the key that was named")
}

// certify is what TPM2_Certify says of a key.
func (d *Device) certify(role string, extra []byte) (attest, signature []byte, err error) {
	pub, err := d.area(role)
	if err != nil {
		return nil, nil, err
	}
	name, err := tpm2.ObjectName(&pub)
	if err != nil {
		return nil, nil, fmt.Errorf("certify: %w", err)
	}
	return d.attest(tpm2.TPMSTAttestCertify, extra, tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{Name: *name}))
}
