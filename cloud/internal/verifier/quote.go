package verifier

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"errors"
	"math/big"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// Checks that a quote can fail; their names are stable.
const (
	checkMalformed = "quote.malformed"
	checkSignature = "quote.signature"
	checkBinding   = "quote.binding"
	checkReplayed  = "quote.replayed"
	checkSelection = "quote.selection"
	checkValues    = "quote.values"
)

// selections are what a quote may cover in the SHA-256 bank, and how many values
// that is: PCR 0 to 9 and 11, or 0 to 9 as agents of before 2026-11-27 quote them.
// A release whose policy names 11 refuses the latter [boot.Appraise].
var selections = map[string]int{"\xff\x0b": 11, "\xff\x03": 10}

// quote is what the TPM signed, once the signature holds.
type quote struct {
	extra    []byte // what it is bound to
	values   int    // how many registers it is over
	digest   []byte // over the registers
	reset    uint32 // boots since the TPM was made or cleared
	restart  uint32 // resumes since the last boot
	firmware uint64
}

// openQuote checks what can be known of a quote without knowing what it is an
// answer to: that the attestation key on file signed it, that a TPM made it,
// and that it covers exactly the registers that are looked at. The signature is
// over the bytes as they came, never over a re-encoding.
func openQuote(ak, quoted, signature []byte) (quote, *fleet.Finding) {
	key, err := signingKey(ak)
	if err != nil {
		return quote{}, fault(checkSignature, "no usable attestation key is on file (%v): enrol the device again", err)
	}
	r, s, err := parts(signature)
	if err != nil {
		return quote{}, fault(checkSignature, "the signature cannot be read: %v", err)
	}
	digest := sha256.Sum256(quoted)
	if !ecdsa.Verify(key, digest[:], r, s) {
		return quote{}, fault(checkSignature, "the signature is not by the attestation key on file: another TPM made it, or it was changed on the way")
	}
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](quoted)
	if err != nil {
		return quote{}, fault(checkMalformed, "what was signed cannot be read: %v", err)
	}
	if a.Magic != tpm2.TPMGeneratedValue || a.Type != tpm2.TPMSTAttestQuote {
		return quote{}, fault(checkMalformed, "what was signed is not a quote that a TPM made")
	}
	q, err := a.Attested.Quote()
	if err != nil {
		return quote{}, fault(checkMalformed, "what was signed cannot be read: %v", err)
	}
	sel := q.PCRSelect.PCRSelections
	n := 0
	if len(sel) == 1 && sel[0].Hash == tpm2.TPMAlgSHA256 {
		n = selections[string(bytes.TrimRight(sel[0].PCRSelect, "\x00"))]
	}
	if n == 0 {
		return quote{}, fault(checkSelection, "the quote is not over PCR 0 to 9 and 11 of the SHA-256 bank, nor over 0 to 9")
	}
	return quote{
		values: n, extra: a.ExtraData.Buffer, digest: q.PCRDigest.Buffer,
		reset: a.ClockInfo.ResetCount, restart: a.ClockInfo.RestartCount, firmware: a.FirmwareVersion,
	}, nil
}

// covers checks that pcrs are the values that were quoted, all and no others.
func (q quote) covers(pcrs [][]byte) *fleet.Finding {
	if len(pcrs) != q.values {
		return fault(checkValues, "%d register values came with a quote over %d", len(pcrs), q.values)
	}
	for _, p := range pcrs {
		if len(p) != sha256.Size {
			return fault(checkValues, "a register value has %d bytes", len(p))
		}
	}
	if digest := sha256.Sum256(slices.Concat(pcrs...)); !bytes.Equal(q.digest, digest[:]) {
		return fault(checkValues, "the register values are not those that were quoted")
	}
	return nil
}

// parts reads r and s: 32 bytes each, or a TPMT_SIGNATURE as agents sent until
// version 1 of the contract.
func parts(signature []byte) (r, s *big.Int, err error) {
	if len(signature) == 64 {
		return new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:]), nil
	}
	sig, err := tpm2.Unmarshal[tpm2.TPMTSignature](signature)
	if err != nil {
		return nil, nil, err
	}
	ec, err := sig.Signature.ECDSA()
	if err != nil || sig.SigAlg != tpm2.TPMAlgECDSA || ec.Hash != tpm2.TPMAlgSHA256 {
		return nil, nil, errors.New("it is not ECDSA with SHA-256")
	}
	return new(big.Int).SetBytes(ec.SignatureR.Buffer), new(big.Int).SetBytes(ec.SignatureS.Buffer), nil
}

// signingKey reads an attestation key and checks again that it is one: a
// restricted key signs nothing that only looks as if a TPM had made it.
func signingKey(public []byte) (*ecdsa.PublicKey, error) {
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
	if err != nil {
		return nil, err
	}
	at := pub.ObjectAttributes
	if !at.Restricted || !at.SignEncrypt || at.Decrypt || !at.FixedTPM || !at.FixedParent || !at.SensitiveDataOrigin {
		return nil, errors.New("it is not a restricted signing key fixed to its TPM")
	}
	key, err := tpm2.Pub(*pub)
	if err != nil {
		return nil, err
	}
	ec, ok := key.(*ecdsa.PublicKey)
	if !ok || ec.Curve != elliptic.P256() {
		return nil, errors.New("it is not ECDSA P-256")
	}
	return ec, nil
}
