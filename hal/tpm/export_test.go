package tpm

import "github.com/google/go-tpm/tpm2"

// Litter leaves a transient object and a session behind, as a killed agent does.
func Litter(t *TPM) error {
	if _, err := (tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}).Execute(t.dev); err != nil {
		return err
	}
	_, _, err := tpm2.PolicySession(t.dev, tpm2.TPMAlgSHA256, 16)
	return err
}
