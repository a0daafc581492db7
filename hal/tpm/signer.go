package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

// Signer returns the LDevID key for TLS; each signature is one TPM command. It
// stays the same key when another becomes the current one.
func (t *TPM) Signer(ctx context.Context) (s crypto.Signer, err error) {
	err = t.locked(ctx, func() error {
		t.ak.cur, t.ldevid.cur = nil, nil
		if err := t.ensure(); err != nil {
			return err
		}
		s, err = t.signer(t.ldevid.cur)
		return err
	})
	return s, err
}

// SignerFor returns the LDevID key, the next one or the recovery key, whichever
// has that public area.
func (t *TPM) SignerFor(ctx context.Context, public []byte) (s crypto.Signer, err error) {
	err = t.locked(ctx, func() error {
		k, err := t.named(public)
		if err != nil {
			return err
		}
		s, err = t.signer(k)
		return err
	})
	return s, err
}

func (t *TPM) signer(k *key) (crypto.Signer, error) {
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](k.public)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	pub, err := tpm2.Pub(*area)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	ec, ok := pub.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("signing key is a %T, not ECDSA", pub)
	}
	return &signer{tpm: t, key: k, pub: ec}, nil
}

type signer struct {
	tpm *TPM
	key *key
	pub *ecdsa.PublicKey
}

// Public implements crypto.Signer.
func (s *signer) Public() crypto.PublicKey { return s.pub }

// Sign implements crypto.Signer for SHA-256 digests; the TPM draws its own
// randomness.
func (s *signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != crypto.SHA256 {
		return nil, fmt.Errorf("sign in the TPM: only SHA-256, not %v", opts.HashFunc())
	}
	t := s.tpm
	t.mu.Lock()
	defer t.mu.Unlock()
	// A handle is used again by a later key, and a password session does not
	// bind the name: the signature would be another key's.
	if !bytes.Equal(t.held[s.key.Handle], s.key.Name.Buffer) {
		return nil, errors.New("sign in the TPM: the key was replaced: take the signer of the one in use")
	}
	rsp, err := tpm2.Sign{
		KeyHandle: auth(s.key),
		Digest:    tpm2.TPM2BDigest{Buffer: digest},
		InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUSigScheme(
			tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	}.Execute(t.dev)
	if err != nil {
		return nil, t.lost(fmt.Errorf("sign in the TPM: %w", err))
	}
	sig, err := rsp.Signature.Signature.ECDSA()
	if err != nil {
		return nil, fmt.Errorf("sign in the TPM: %w", err)
	}
	return asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(sig.SignatureR.Buffer), new(big.Int).SetBytes(sig.SignatureS.Buffer),
	})
}
