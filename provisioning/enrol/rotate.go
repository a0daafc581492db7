package enrol

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/tillward/tillward/provisioning/identity"
)

// rotation is ROTATE: which AK is to follow.
type rotation struct {
	V          uint16 `cbor:"1,keyasint"`
	EK         []byte `cbor:"2,keyasint"` // TPMT_PUBLIC
	AK         []byte `cbor:"3,keyasint"` // TPMT_PUBLIC of the next one
	Certify    []byte `cbor:"4,keyasint"` // by the AK on file
	CertifySig []byte `cbor:"5,keyasint"`
}

// rotationProof is the answer to ROTATE's challenge.
type rotationProof struct {
	ID    [16]byte `cbor:"1,keyasint"`
	Proof [32]byte `cbor:"2,keyasint"` // HMAC-SHA256(S, B)
}

// followed is the answer to that.
type followed struct {
	AK []byte `cbor:"1,keyasint"` // TPMT_PUBLIC that counts from now on beside the old one
}

// rotateBinding is what the Certify over the next AK is bound to.
func rotateBinding(exporter, peer, ek []byte) [32]byte {
	sum := sha256.Sum256(peer)
	return bind("rotate-v1", exporter, sum[:], ek)
}

// rotate is the first step: the AK on file vouches for the next one, and the
// TPM is asked to show that both live in it.
func (s *Server) rotate(_ context.Context, c call, st Standing) (any, error) {
	if c.id.Role != identity.RoleMember {
		return nil, Refuse(checkRecovery, "a recovery certificate changes no keys; renew first")
	}
	req, err := decode[rotation](c.body)
	if err != nil {
		return nil, err
	}
	if req.V == 0 || req.V > Version {
		return nil, failed(checkMessage, "protocol version %d, this service speaks %d: %w", req.V, Version, ErrMessage)
	}
	if err := checkBlobs(req.EK, req.AK, req.Certify, req.CertifySig); err != nil {
		return nil, err
	}
	ek, _, err := endorsementKey(req.EK)
	if err != nil {
		return nil, err
	}
	if Hash(req.EK) != st.EKHash {
		return nil, failed(checkEK, "this is not the endorsement key that enrolled: %w", ErrProof)
	}
	if _, err := signingKey(req.AK); err != nil {
		return nil, err
	}
	if bytes.Equal(req.AK, st.AK) {
		return nil, failed(checkKey, "the next attestation key is the one in use: %w", ErrProof)
	}
	name, err := keyName(req.AK)
	if err != nil {
		return nil, failed(checkKey, "attestation key: %w: %w", ErrProof, err)
	}
	extra := certifyBinding(rotateBinding(c.exporter, c.peer.Raw, req.EK), name)
	by, err := st.speaks(func(ak []byte) error { return verifyCertify(ak, req.Certify, req.CertifySig, name, extra) })
	if err != nil {
		return nil, fmt.Errorf("next attestation key: %w", err)
	}
	at := &attempt{
		applicant: Applicant{Device: c.id.Device}, raw: c.body, ak: req.AK, by: by, exporter: c.exporter, expires: time.Now().Add(challengeLife),
	}
	return s.rotations.challenge(ek, at)
}

// rotated is the second step: what only that TPM could open is shown.
func (s *Server) rotated(ctx context.Context, c call, _ Standing) (any, error) {
	m, err := decode[rotationProof](c.body)
	if err != nil {
		return nil, err
	}
	at, _, err := s.rotations.redeem(m.ID, m.Proof, c.exporter)
	if err != nil {
		return nil, err
	}
	// The channel is the challenge's, so the certificate shown on it is too.
	done := Renewal{Shown: c.id, AK: at.by, NextAK: at.ak}
	if err := s.o.Registry.Renewed(ctx, done); err != nil {
		return nil, err
	}
	s.renewedBy(ctx, "enrol.ak-changed", done, map[string]string{})
	return followed{AK: at.ak}, nil
}
