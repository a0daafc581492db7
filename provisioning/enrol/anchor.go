package enrol

import (
	"bytes"
	"encoding/binary"

	"github.com/google/go-tpm/tpm2"
)

// anchorName is the name of the counter of anchors [TCG TPM 2.0 Library, part
// 1, 16]: it says that the index is a counter, that only the owner counts on,
// and that it was counted on. It is the same in every TPM; hal/tpm defines it.
var anchorName = must(tpm2.NVName(&tpm2.TPMSNVPublic{
	NVIndex: 0x01800F06, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8,
	Attributes: tpm2.TPMANV{NT: tpm2.TPMNTCounter, OwnerWrite: true, OwnerRead: true, AuthRead: true, NoDA: true, Written: true},
}))

// VerifyAnchor checks an anchor of an audit trail: that the TPM of the AK (a
// TPMT_PUBLIC) certified that its counter of anchors stood at counter, and bound
// that to binding (32 bytes: device and head of the chain). attest is a
// TPMS_ATTEST, signature r and s of 32 bytes each or a TPMT_SIGNATURE. Errors
// are ErrProof and name a check.
//
// It says nothing of the order: in one trail each anchor has a greater counter
// than the one before, of the same AK or of another.
func VerifyAnchor(ak []byte, binding [32]byte, attest, signature []byte, counter uint64) error {
	a, err := verifyAttest(ak, attest, signature, tpm2.TPMSTAttestNV, binding)
	if err != nil {
		return &failure{checkAnchor, err}
	}
	c, err := a.Attested.NV()
	if err != nil {
		return failed(checkAnchor, "anchor body: %w: %w", ErrProof, err)
	}
	switch {
	case !bytes.Equal(c.IndexName.Buffer, anchorName.Buffer):
		return failed(checkAnchor, "another index than the counter of anchors was certified: %w", ErrProof)
	case c.Offset != 0 || len(c.NVContents.Buffer) != 8:
		return failed(checkAnchor, "not the whole counter was certified: %w", ErrProof)
	case binary.BigEndian.Uint64(c.NVContents.Buffer) != counter:
		return failed(checkAnchor, "the counter stood at %d, not at %d: %w", binary.BigEndian.Uint64(c.NVContents.Buffer), counter, ErrProof)
	}
	return nil
}
