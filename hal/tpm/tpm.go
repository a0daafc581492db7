// Package tpm keeps a device's identity in its TPM 2.0: endorsement key (EK),
// attestation key (AK), operational and recovery LDevID keys, and what is done
// with them - credential activation, certify, quote and TLS signatures - and
// seals secrets to booted states that a release key approved.
//
// Keys. EK: as the maker made it, from the TCG templates L-1 (RSA-2048), L-2
// (P-256) and H-3 (P-384), re-created when needed. AK: restricted ECDSA P-256,
// a primary key of the endorsement hierarchy (so that quotes show reset counts
// in clear), persisted. LDevID keys: ECDSA P-256 under the storage root key,
// persisted. All are made on first use, carry noDA - a power cut must not count
// as an attack - and are found again after a reboot. AK and LDevID key have two
// handles each, so that a rotation that a power cut interrupts leaves the old
// or the new one usable. No private key ever leaves the TPM.
//
// Sealing. What is sealed opens under PolicyAuthorize by the release key: an
// update brings a new signature, not a new blob. An NV counter is the floor
// below which old approvals are refused. Beside it lies another floor, that of
// the release root: the highest version that was verified, which a wiped disk
// does not forget; rootfloor.go says why that one is no counter.
//
// One descriptor and one mutex hold the TPM for the agent's life; transient
// objects are flushed at once, since many TPMs have room for three.
//
// The package does not decide whether a TPM is genuine; provisioning/enrol
// does. It expects empty owner and endorsement auth. It is larger than 600
// lines because one descriptor, one mutex and one table of handles must have
// one owner. [TCG EK Credential Profile 2.5; TCG TPM 2.0 Keys for Device
// Identity 1.0]
package tpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// On-die intermediates [TCG EK Credential Profile 2.5, 2.2.1.5].
const (
	nvChain   tpm2.TPMHandle = 0x01C00100 // on-die intermediates begin here
	nvChainTo tpm2.TPMHandle = 0x01C001FF
)

// quotedPCRs are PCR 0 to 9, firmware, boot loader, kernel and command line, and
// 11, the parts of a unified kernel image.
var quotedPCRs = [...]int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11}

// TPM is an open TPM. Its methods may be called from several goroutines. A TPM
// command cannot be called back: a context that ends keeps a method from
// beginning, not from finishing.
type TPM struct {
	mu  sync.Mutex
	dev transport.TPMCloser

	ak, ldevid pair
	held       map[tpm2.TPMHandle][]byte // name of the key last seen at a handle
	noFloor    error                     // this TPM cannot have a rollback floor
	anchors    bool                      // the counter of anchors may be made
}

// Open opens the TPM at path: a device node such as /dev/tpmrm0, or unix:PATH
// for a software TPM.
func Open(path string) (*TPM, error) {
	dev, err := dial(path)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(path, "unix:") {
		if err := tidy(dev); err != nil {
			_ = dev.Close()
			return nil, err
		}
	}
	return &TPM{
		dev:    dev,
		ak:     pair{what: "attestation key", slots: [2]tpm2.TPMHandle{handleAK, handleAK2}, tmpl: &akTemplate},
		ldevid: pair{what: "LDevID key", slots: [2]tpm2.TPMHandle{handleLDevID, handleLDevID2}, tmpl: &ldevidTemplate},
		held:   map[tpm2.TPMHandle][]byte{},
	}, nil
}

// Close closes the descriptor. Keys stay in the TPM.
func (t *TPM) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dev.Close()
}

// Certify lets the AK certify that the LDevID key lives in this TPM. It
// returns a TPMS_ATTEST and a TPMT_SIGNATURE as the TPM made them.
func (t *TPM) Certify(ctx context.Context, extra []byte) (attest, signature []byte, err error) {
	err = t.locked(ctx, func() error {
		if err := t.ensure(); err != nil {
			return err
		}
		attest, signature, err = t.certify(t.ldevid.cur, extra)
		return err
	})
	return attest, signature, err
}

// CertifyKey does what Certify does for the LDevID key, the next one or the
// recovery key, whichever has that public area.
func (t *TPM) CertifyKey(ctx context.Context, public, extra []byte) (attest, signature []byte, err error) {
	err = t.locked(ctx, func() error {
		if err := t.ensure(); err != nil {
			return err
		}
		k, err := t.named(public)
		if err != nil {
			return err
		}
		attest, signature, err = t.certify(k, extra)
		return err
	})
	return attest, signature, err
}

func (t *TPM) certify(k *key, extra []byte) (attest, signature []byte, err error) {
	rsp, err := tpm2.Certify{
		ObjectHandle:   auth(k),
		SignHandle:     auth(t.ak.cur),
		QualifyingData: tpm2.TPM2BData{Buffer: extra},
		InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
	}.Execute(t.dev)
	if err != nil {
		return nil, nil, t.lost(fmt.Errorf("certify the key at %#x: %w", uint32(k.Handle), err))
	}
	return rsp.CertifyInfo.Bytes(), tpm2.Marshal(rsp.Signature), nil
}

// named returns the signing key with that public area.
func (t *TPM) named(public []byte) (*key, error) {
	keys, err := t.stored(&t.ldevid)
	if err != nil {
		return nil, err
	}
	k, err := t.find(handleRecovery, &ldevidTemplate)
	if err == nil {
		keys = append(keys, k)
	} else if !errors.Is(err, tpm2.TPMRCHandle) {
		return nil, fmt.Errorf("recovery key: %w", err)
	}
	for _, k := range keys {
		if bytes.Equal(k.public, public) {
			return k, nil
		}
	}
	return nil, errors.New("the TPM does not hold the key that was named")
}

// Quote lets the AK sign PCR 0 to 9 and 11 of the SHA-256 bank together with extra
// (32 bytes). It returns TPMS_ATTEST, TPMT_SIGNATURE and the PCR values in that
// order, read again until they are those that were quoted.
func (t *TPM) Quote(ctx context.Context, extra []byte) (attest, signature []byte, pcrs [][]byte, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, nil, nil, err
	}
	if err := t.ensure(); err != nil {
		return nil, nil, nil, err
	}
	for range 4 {
		before, err := t.pcrs()
		if err != nil {
			return nil, nil, nil, err
		}
		rsp, err := tpm2.Quote{
			SignHandle:     auth(t.ak.cur),
			QualifyingData: tpm2.TPM2BData{Buffer: extra},
			InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			PCRSelect:      selection(quotedPCRs[:]),
		}.Execute(t.dev)
		if err != nil {
			return nil, nil, nil, t.lost(fmt.Errorf("quote: %w", err))
		}
		after, err := t.pcrs()
		if err != nil {
			return nil, nil, nil, err
		}
		if slices.EqualFunc(before, after, bytes.Equal) {
			return rsp.Quoted.Bytes(), tpm2.Marshal(rsp.Signature), after, nil
		}
	}
	return nil, nil, nil, errors.New("quote: registers keep changing, try again after start-up")
}

// pcrs reads the quoted registers; a TPM returns at most eight at a time.
func (t *TPM) pcrs() ([][]byte, error) {
	var out [][]byte
	for len(out) < len(quotedPCRs) {
		rsp, err := tpm2.PCRRead{PCRSelectionIn: selection(quotedPCRs[len(out):])}.Execute(t.dev)
		if err != nil {
			return nil, fmt.Errorf("read PCRs: %w", err)
		}
		if len(rsp.PCRValues.Digests) == 0 {
			return nil, errors.New("read PCRs: the TPM has no SHA-256 bank")
		}
		for _, d := range rsp.PCRValues.Digests {
			out = append(out, d.Buffer)
		}
	}
	return out[:len(quotedPCRs)], nil
}

// selection names registers of the SHA-256 bank.
func selection(pcrs []int) tpm2.TPMLPCRSelection {
	bits := make([]byte, 3)
	for _, p := range pcrs {
		bits[p/8] |= 1 << (p % 8)
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: bits}}}
}
