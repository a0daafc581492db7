package tpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// The counter of anchors goes up by one for each anchor of the audit trail. It
// is a plain counter: an orderly one is cheaper and jumps at a power cut [TCG
// TPM 2.0 Library, part 1, 37.7.3], so that a jump would prove nothing. Each
// step is a flash write: 10 minutes apart these are 52,560 a year of the
// 500,000 that a maker vouches for.
//
// Whoever has the owner's authorization can remove it; one that is made again
// goes on above.
const anchorIndex tpm2.TPMHandle = 0x01800F06

// anchorPublic is the index as it is defined. The service knows its Name with
// written set, so it must be the same on all devices.
func anchorPublic(written bool) tpm2.TPMSNVPublic {
	return tpm2.TPMSNVPublic{
		NVIndex: anchorIndex, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8,
		Attributes: tpm2.TPMANV{
			NT: tpm2.TPMNTCounter, OwnerWrite: true, OwnerRead: true, AuthRead: true, NoDA: true, Written: written,
		},
	}
}

// Anchor counts on and lets the AK certify what the counter of anchors stands at
// then, bound to what is given. It returns a TPMS_ATTEST, r and s of an ECDSA
// signature with SHA-256, 32 bytes each, and the count. The first call on a TPM
// makes the counter, which takes as long as Floor.
func (t *TPM) Anchor(ctx context.Context, binding [32]byte) (attest, signature []byte, counter uint64, err error) {
	if err := t.floorFirst(ctx); err != nil {
		return nil, nil, 0, err
	}
	err = t.locked(ctx, func() error {
		if err := t.ensure(); err != nil {
			return err
		}
		name, err := t.countAnchor(ctx)
		if err != nil {
			return err
		}
		rsp, err := tpm2.NVCertify{
			SignHandle:     auth(t.ak.cur),
			AuthHandle:     tpm2.AuthHandle{Handle: anchorIndex, Name: name, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:        tpm2.NamedHandle{Handle: anchorIndex, Name: name},
			QualifyingData: tpm2.TPM2BData{Buffer: binding[:]},
			InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			Size:           8,
		}.Execute(t.dev)
		if err != nil {
			return t.lost(fmt.Errorf("certify the counter of anchors: %w", err))
		}
		attest = rsp.CertifyInfo.Bytes()
		if counter, err = certified(attest); err != nil {
			return err
		}
		signature, err = plain(&rsp.Signature)
		return err
	})
	if err != nil {
		return nil, nil, 0, err
	}
	return attest, signature, counter, nil
}

// countAnchor counts on, and returns the counter's name.
func (t *TPM) countAnchor(ctx context.Context) (tpm2.TPM2BName, error) {
	name, written, err := t.nameOf("counter of anchors", anchorPublic)
	if err != nil {
		return name, err
	}
	if err := t.countOn(ctx, "counter of anchors", anchorIndex, name); err != nil {
		return name, err
	}
	if !written { // the first step changes the name
		name, _, err = t.nameOf("counter of anchors", anchorPublic)
	}
	return name, err
}

// floorFirst makes the floor counter before that of anchors is there: made
// later, it would begin above all anchors and could be none. It takes a few steps
// at a time, so that signatures do not wait for all. A TPM that cannot have a
// floor has anchors all the same.
func (t *TPM) floorFirst(ctx context.Context) error {
	for done := false; !done; {
		err := t.locked(ctx, func() (err error) {
			if !t.anchors {
				_, err = tpm2.NVReadPublic{NVIndex: anchorIndex}.Execute(t.dev)
				t.anchors = err == nil || t.noFloor != nil
			}
			if !t.anchors && errors.Is(err, tpm2.TPMRCHandle) {
				t.anchors, err = t.floorSteps(ctx)
				if t.noFloor != nil || errors.Is(err, errOthers) {
					t.anchors = true
				}
			}
			if done = t.anchors; done {
				return nil
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// floorSteps brings the floor counter a little nearer to its start, and says
// whether it is there.
func (t *TPM) floorSteps(ctx context.Context) (done bool, err error) {
	const atOnce = 8
	name, written, err := t.floorName()
	if err != nil || !written {
		if err == nil { // whatever the first step finds out, floor does
			err = t.firstStep(ctx, name)
		}
		return false, err
	}
	at, err := t.readFloor(name)
	for n := 0; err == nil && n < atOnce && at < floorBase; n++ {
		err = t.increment(ctx, name)
		at++
	}
	return at >= floorBase, err
}

// certified returns the count of a TPMS_ATTEST.
func certified(attest []byte) (uint64, error) {
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](attest)
	if err != nil {
		return 0, fmt.Errorf("certified counter of anchors: %w", err)
	}
	c, err := a.Attested.NV()
	if err != nil {
		return 0, fmt.Errorf("certified counter of anchors: %w", err)
	}
	if len(c.NVContents.Buffer) != 8 {
		return 0, fmt.Errorf("certified counter of anchors: %d bytes", len(c.NVContents.Buffer))
	}
	return binary.BigEndian.Uint64(c.NVContents.Buffer), nil
}

// plain spells an ECDSA P-256 signature as r and s of 32 bytes each; a TPM
// leaves leading zeros out.
func plain(sig *tpm2.TPMTSignature) ([]byte, error) {
	ec, err := sig.Signature.ECDSA()
	if err != nil {
		return nil, fmt.Errorf("signature of an anchor: %w", err)
	}
	out := make([]byte, 64)
	r, s := bytes.TrimLeft(ec.SignatureR.Buffer, "\x00"), bytes.TrimLeft(ec.SignatureS.Buffer, "\x00")
	if len(r) > 32 || len(s) > 32 {
		return nil, fmt.Errorf("signature of an anchor: %d and %d bytes", len(r), len(s))
	}
	copy(out[32-len(r):32], r)
	copy(out[64-len(s):], s)
	return out, nil
}
