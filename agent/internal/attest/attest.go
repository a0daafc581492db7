// Package attest makes the evidence that a device shows for itself: a quote of
// its TPM over the state it booted into, bound to one TLS connection or to the
// nonce of one challenge [RFC 9334].
//
// It owns what is quoted and how it is packed. It promises that no evidence is
// made which could be shown on another connection. It holds no key and knows no
// network: the TPM quotes, the link carries.
package attest

import (
	"context"
	"errors"
	"fmt"

	"github.com/tillward/tillward/cloud/wire"
)

// Quoter quotes the boot state; hal/tpm fits.
type Quoter interface {
	// Quote signs the PCRs together with extraData by the attestation key.
	// quoted is a TPMS_ATTEST, signature a TPMT_SIGNATURE, pcrs the SHA-256
	// values in the order of the selection.
	Quote(ctx context.Context, extraData []byte) (quoted, signature []byte, pcrs [][]byte, err error)
}

// Attester makes the evidence of one device.
type Attester struct {
	Device  string // device id, part of the binding
	Version string // of the agent
	Quoter  Quoter
	// Bind computes what the quote is bound to (provisioning/enrol.ConnBinding):
	// secret is the exporter of the connection or the nonce of a challenge.
	Bind func(deviceID string, secret []byte, seq uint64) [32]byte
	Next func() wire.Head // numbers messages
}

const secretLen = 32 // bytes of an exporter and of a nonce

// Evidence returns an encoded wire.EvidenceReport. nonce is that of a
// challenge; without one the evidence is bound to exporter, the keying
// material of the connection. seq counts up within a connection.
func (a *Attester) Evidence(ctx context.Context, exporter []byte, seq uint64, nonce []byte) ([]byte, error) {
	secret := exporter
	if len(nonce) > 0 {
		secret = nonce
	}
	if len(secret) != secretLen {
		return nil, fmt.Errorf("evidence bound to %d bytes, want %d", len(secret), secretLen)
	}
	if seq == 0 {
		return nil, errors.New("evidence without sequence")
	}
	binding := a.Bind(a.Device, secret, seq)
	quoted, signature, pcrs, err := a.Quoter.Quote(ctx, binding[:])
	if err != nil {
		return nil, fmt.Errorf("quote: %w", err)
	}
	return wire.Encode(&wire.EvidenceReport{
		Head: a.Next(), Quoted: quoted, Signature: signature, PCRs: pcrs,
		Seq: seq, Nonce: nonce, AgentVersion: a.Version,
	})
}
