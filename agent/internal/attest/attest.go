// Package attest makes the evidence that a device shows for itself: a quote of
// its TPM over the state it booted into, bound to one TLS connection or to the
// nonce of one challenge [RFC 9334].
//
// It owns what is quoted, how it is packed, and when the quote alone is enough:
// while the TPM's reset count and the registers are those of the boot that the
// service accepted last. It promises that no evidence is made which could be
// shown on another connection. It holds no key and knows no network: the TPM
// quotes, the link carries.
package attest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/cloud/wire"
)

// Quoter quotes the boot state; hal/tpm fits.
type Quoter interface {
	// Quote signs the PCRs together with extraData by the attestation key.
	// quoted is a TPMS_ATTEST, signature a TPMT_SIGNATURE, pcrs the SHA-256
	// values in the order of the selection.
	Quote(ctx context.Context, extraData []byte) (quoted, signature []byte, pcrs [][]byte, err error)
}

// Memory keeps a value over restarts; agent/internal/spool fits.
type Memory interface {
	Load(ctx context.Context, key string) ([]byte, error)
	Save(ctx context.Context, key string, value []byte, channel string, compose func() ([]byte, error)) error
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
	// EventLog reads what the firmware measured (binary_bios_measurements). nil,
	// or no bytes, when this box keeps no log.
	EventLog func() ([]byte, error)
	Pack     func(raw []byte) ([]byte, error) // compresses a log (provisioning/boot.Pack)
	Memory   Memory                           // nil: each start of the agent shows full evidence once
	Log      *slog.Logger

	mu     sync.Mutex
	shown  boot // in the newest evidence
	known  boot // accepted by the service; empty: none
	loaded bool // known has been read from Memory
}

const (
	secretLen = 32 // bytes of an exporter and of a nonce
	keyBoot   = "attest/boot"
)

// Evidence returns an encoded wire.EvidenceReport. nonce is that of a
// challenge; without one the evidence is bound to exporter, the keying
// material of the connection. seq counts up within a connection. full asks for
// register values and event log though the boot may be known.
func (a *Attester) Evidence(ctx context.Context, exporter []byte, seq uint64, nonce []byte, full bool) ([]byte, error) {
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
	m := wire.EvidenceReport{Head: a.Next(), Quoted: quoted, Seq: seq}
	if m.Signature, err = compact(signature); err != nil {
		return nil, err
	}
	b, err := bootOf(quoted)
	if err != nil {
		return nil, err
	}
	if full || !a.knows(ctx, b) {
		m.PCRs, m.AgentVersion, m.Log = pcrs, a.Version, a.log()
	}
	return wire.Encode(&m)
}

// Judged takes what the service said of the newest evidence: a boot that it
// accepted needs no log again, one that it refused needs it the next time.
func (a *Attester) Judged(ctx context.Context, verdict string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	was := a.known
	switch verdict {
	case "attested", "degraded":
		a.known = a.shown
	case "quarantined":
		a.known = boot{}
	}
	if a.known == was || a.Memory == nil {
		return
	}
	if err := a.Memory.Save(ctx, keyBoot, a.known.bytes(), "", nil); err != nil && ctx.Err() == nil {
		a.warn("remember the accepted boot", err)
	}
}

// knows notes what is shown and reports whether the service has accepted it
// before.
func (a *Attester) knows(ctx context.Context, b boot) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.shown = b
	if !a.loaded && a.Memory != nil {
		v, err := a.Memory.Load(ctx, keyBoot)
		if err != nil {
			a.warn("recall the accepted boot", err)
			return false
		}
		a.known, a.loaded = bootFrom(v), true
	}
	return a.known == b && b != (boot{})
}

// log returns the packed event log. Evidence without one is still evidence:
// the service says what it misses, and the device stays in reach for a repair.
func (a *Attester) log() []byte {
	if a.EventLog == nil {
		return nil
	}
	raw, err := a.EventLog()
	if err != nil {
		a.warn("read the event log of the firmware", err)
		return nil
	}
	if len(raw) == 0 {
		return nil
	}
	gz, err := a.Pack(raw)
	if err != nil {
		a.warn("pack the event log of the firmware", err)
		return nil
	}
	return gz
}

func (a *Attester) warn(doing string, err error) {
	if a.Log != nil {
		a.Log.Warn("evidence is larger than it need be, or lacks the event log", slog.String("doing", doing), slog.Any("err", err))
	}
}

// compact turns a TPMT_SIGNATURE into r and s, 32 bytes each: a TPM leaves out
// leading zeros or does not, as its maker likes.
func compact(signature []byte) ([]byte, error) {
	sig, err := tpm2.Unmarshal[tpm2.TPMTSignature](signature)
	if err != nil {
		return nil, fmt.Errorf("signature of the quote: %w", err)
	}
	ec, err := sig.Signature.ECDSA()
	if err != nil {
		return nil, fmt.Errorf("signature of the quote is not ECDSA: %w", err)
	}
	out := make([]byte, 64)
	for i, n := range [][]byte{ec.SignatureR.Buffer, ec.SignatureS.Buffer} {
		for len(n) > 32 && n[0] == 0 {
			n = n[1:]
		}
		if len(n) > 32 {
			return nil, fmt.Errorf("signature of the quote has a part of %d bytes, P-256 has 32", len(n))
		}
		copy(out[32*(i+1)-len(n):], n)
	}
	return out, nil
}
