// Package tpm keeps a device's identity in its TPM 2.0: endorsement key (EK),
// attestation key (AK) and the operational LDevID key, and what is done with
// them - credential activation, certify, quote and TLS signatures.
//
// Keys. EK: as the maker made it, from the TCG templates L-1 (RSA-2048), L-2
// (P-256) and H-3 (P-384), re-created when needed. AK: restricted ECDSA P-256, a primary key of the endorsement
// hierarchy (so that quotes show reset counts in clear), persisted. LDevID:
// ECDSA P-256 under the storage root key, persisted. All are made on first
// use, carry noDA - a power cut must not count as an attack - and are found
// again after a reboot. No private key ever leaves the TPM.
//
// One descriptor and one mutex hold the TPM for the agent's life; transient
// objects are flushed at once, since many TPMs have room for three.
//
// The package does not decide whether a TPM is genuine; provisioning/enrol
// does. [TCG EK Credential Profile 2.5; TCG TPM 2.0 Keys for Device Identity 1.0]
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
	"slices"
	"strings"
	"sync"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Persistent handles of ours in the owner's range [TCG Registry of Reserved
// TPM 2.0 Handles 1.1, 2.3].
const (
	handleSRK    tpm2.TPMHandle = 0x81000001
	handleAK     tpm2.TPMHandle = 0x8100F001
	handleLDevID tpm2.TPMHandle = 0x8100F002
)

// On-die intermediates [TCG EK Credential Profile 2.5, 2.2.1.5].
const (
	nvChain   tpm2.TPMHandle = 0x01C00100 // on-die intermediates begin here
	nvChainTo tpm2.TPMHandle = 0x01C001FF
)

// quotedPCRs are PCR 0 to 9: firmware, boot loader, kernel and command line.
const quotedPCRs = 10

// TPM is an open TPM. Its methods may be called from several goroutines. A TPM
// command cannot be called back: a context that ends keeps a method from
// beginning, not from finishing.
type TPM struct {
	mu  sync.Mutex
	dev transport.TPMCloser

	ak, ldevid       *tpm2.NamedHandle
	akPub, ldevidPub []byte
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
	return &TPM{dev: dev}, nil
}

// Close closes the descriptor. Keys stay in the TPM.
func (t *TPM) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dev.Close()
}

// Keys makes the AK and the LDevID key unless they are there, and returns
// their public areas (TPMT_PUBLIC).
func (t *TPM) Keys(ctx context.Context) (ak, ldevid []byte, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	if err := t.ensure(); err != nil {
		return nil, nil, err
	}
	return t.akPub, t.ldevidPub, nil
}

func (t *TPM) ensure() error {
	if t.ak == nil {
		h, pub, err := t.persistent(handleAK, &akTemplate, func() (*tpm2.CreatePrimaryResponse, error) {
			return tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(akTemplate)}.Execute(t.dev)
		})
		if err != nil {
			return fmt.Errorf("attestation key: %w", err)
		}
		t.ak, t.akPub = h, pub
	}
	if t.ldevid == nil {
		h, pub, err := t.ensureLDevID()
		if err != nil {
			return fmt.Errorf("LDevID key: %w", err)
		}
		t.ldevid, t.ldevidPub = h, pub
	}
	return nil
}

// persistent returns the object at handle; when nothing is there it persists
// what create returns.
func (t *TPM) persistent(handle tpm2.TPMHandle, tmpl *tpm2.TPMTPublic, create func() (*tpm2.CreatePrimaryResponse, error)) (*tpm2.NamedHandle, []byte, error) {
	if h, pub, err := t.find(handle, tmpl); err == nil || !errors.Is(err, tpm2.TPMRCHandle) {
		return h, pub, err
	}
	made, err := create()
	if err != nil {
		return nil, nil, fmt.Errorf("create: %w", err)
	}
	defer t.flush(made.ObjectHandle)
	return t.persist(made.ObjectHandle, made.Name, handle)
}

func (t *TPM) persist(object tpm2.TPMHandle, name tpm2.TPM2BName, handle tpm2.TPMHandle) (*tpm2.NamedHandle, []byte, error) {
	_, err := tpm2.EvictControl{
		Auth:             tpm2.TPMRHOwner,
		ObjectHandle:     &tpm2.NamedHandle{Handle: object, Name: name},
		PersistentHandle: handle,
	}.Execute(t.dev)
	if err != nil {
		return nil, nil, fmt.Errorf("persist at %#x: %w", uint32(handle), err)
	}
	return t.read(handle)
}

// ensureLDevID finds or makes the LDevID key below the storage root key.
func (t *TPM) ensureLDevID() (*tpm2.NamedHandle, []byte, error) {
	if h, pub, err := t.find(handleLDevID, &ldevidTemplate); err == nil || !errors.Is(err, tpm2.TPMRCHandle) {
		return h, pub, err
	}
	srk, _, err := t.persistent(handleSRK, nil, func() (*tpm2.CreatePrimaryResponse, error) {
		tmpl := tpm2.ECCSRKTemplate
		tmpl.ObjectAttributes.NoDA = true
		return tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tmpl)}.Execute(t.dev)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("storage root key: %w", err)
	}
	parent := tpm2.AuthHandle{Handle: srk.Handle, Name: srk.Name, Auth: tpm2.PasswordAuth(nil)}
	made, err := tpm2.Create{ParentHandle: parent, InPublic: tpm2.New2B(ldevidTemplate)}.Execute(t.dev)
	if err != nil {
		return nil, nil, fmt.Errorf("create: %w", err)
	}
	loaded, err := tpm2.Load{ParentHandle: parent, InPrivate: made.OutPrivate, InPublic: made.OutPublic}.Execute(t.dev)
	if err != nil {
		return nil, nil, fmt.Errorf("load: %w", err)
	}
	defer t.flush(loaded.ObjectHandle)
	return t.persist(loaded.ObjectHandle, loaded.Name, handleLDevID)
}

// find returns the object at handle, which must be of our making: other
// software may have put its own key there.
func (t *TPM) find(handle tpm2.TPMHandle, tmpl *tpm2.TPMTPublic) (*tpm2.NamedHandle, []byte, error) {
	h, public, err := t.read(handle)
	if err != nil || tmpl == nil {
		return h, public, err
	}
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
	if err != nil {
		return nil, nil, fmt.Errorf("public area of %#x: %w", uint32(handle), err)
	}
	pub.Unique = tmpl.Unique
	if !bytes.Equal(tpm2.Marshal(*pub), tpm2.Marshal(*tmpl)) {
		return nil, nil, fmt.Errorf("handle %#x holds a key of other software: move it, or remove it with tpm2_evictcontrol -c %#x", uint32(handle), uint32(handle))
	}
	return h, public, nil
}

// read returns handle's name and public area.
func (t *TPM) read(handle tpm2.TPMHandle) (*tpm2.NamedHandle, []byte, error) {
	rsp, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(t.dev)
	if err != nil {
		return nil, nil, fmt.Errorf("read public area of %#x: %w", uint32(handle), err)
	}
	pub, err := rsp.OutPublic.Contents()
	if err != nil {
		return nil, nil, fmt.Errorf("public area of %#x: %w", uint32(handle), err)
	}
	return &tpm2.NamedHandle{Handle: handle, Name: rsp.Name}, tpm2.Marshal(*pub), nil
}

func (t *TPM) flush(handle tpm2.TPMHandle) {
	_, _ = tpm2.FlushContext{FlushHandle: handle}.Execute(t.dev) // tidy catches what this misses
}

// Certify lets the AK certify that the LDevID key lives in this TPM. It
// returns a TPMS_ATTEST and a TPMT_SIGNATURE as the TPM made them.
func (t *TPM) Certify(ctx context.Context, extra []byte) (attest, signature []byte, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	if err := t.ensure(); err != nil {
		return nil, nil, err
	}
	rsp, err := tpm2.Certify{
		ObjectHandle:   auth(t.ldevid),
		SignHandle:     auth(t.ak),
		QualifyingData: tpm2.TPM2BData{Buffer: extra},
		InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
	}.Execute(t.dev)
	if err != nil {
		return nil, nil, fmt.Errorf("certify LDevID key: %w", err)
	}
	return rsp.CertifyInfo.Bytes(), tpm2.Marshal(rsp.Signature), nil
}

// Quote lets the AK sign PCR 0 to 9 of the SHA-256 bank together with extra
// (32 bytes). It returns TPMS_ATTEST, TPMT_SIGNATURE and the PCR values, read
// again until they are those that were quoted.
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
			SignHandle:     auth(t.ak),
			QualifyingData: tpm2.TPM2BData{Buffer: extra},
			InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			PCRSelect:      selection(),
		}.Execute(t.dev)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("quote: %w", err)
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
	for len(out) < quotedPCRs {
		sel := tpm2.TPMSPCRSelection{Hash: tpm2.TPMAlgSHA256, PCRSelect: make([]byte, 3)}
		for i := len(out); i < quotedPCRs; i++ {
			sel.PCRSelect[i/8] |= 1 << (i % 8)
		}
		rsp, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{sel}}}.Execute(t.dev)
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
	return out[:quotedPCRs], nil
}

// Signer returns the LDevID key for TLS; each signature is one TPM command.
func (t *TPM) Signer(ctx context.Context) (crypto.Signer, error) {
	_, ldevid, err := t.Keys(ctx)
	if err != nil {
		return nil, err
	}
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](ldevid)
	if err != nil {
		return nil, fmt.Errorf("LDevID key: %w", err)
	}
	key, err := tpm2.Pub(*pub)
	if err != nil {
		return nil, fmt.Errorf("LDevID key: %w", err)
	}
	ec, ok := key.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("LDevID key is a %T, not ECDSA", key)
	}
	return &signer{tpm: t, pub: ec}, nil
}

type signer struct {
	tpm *TPM
	pub *ecdsa.PublicKey
}

// Public implements crypto.Signer.
func (s *signer) Public() crypto.PublicKey { return s.pub }

// Sign implements crypto.Signer for SHA-256 digests; the TPM draws its own
// randomness.
func (s *signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != crypto.SHA256 {
		return nil, fmt.Errorf("sign with LDevID key: only SHA-256, not %v", opts.HashFunc())
	}
	t := s.tpm
	t.mu.Lock()
	defer t.mu.Unlock()
	rsp, err := tpm2.Sign{
		KeyHandle: auth(t.ldevid),
		Digest:    tpm2.TPM2BDigest{Buffer: digest},
		InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUSigScheme(
			tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	}.Execute(t.dev)
	if err != nil {
		return nil, fmt.Errorf("sign with LDevID key: %w", err)
	}
	sig, err := rsp.Signature.Signature.ECDSA()
	if err != nil {
		return nil, fmt.Errorf("sign with LDevID key: %w", err)
	}
	return asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(sig.SignatureR.Buffer), new(big.Int).SetBytes(sig.SignatureS.Buffer),
	})
}

func auth(h *tpm2.NamedHandle) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: tpm2.PasswordAuth(nil)}
}

func selection() tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: []byte{0xff, 0x03, 0}}}}
}
