package tpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// Persistent handles of ours in the owner's range [TCG Registry of Reserved
// TPM 2.0 Handles 1.1, 2.3]. The AK and the LDevID key have two each, so that
// the next one is there before the old one goes.
const (
	handleSRK      tpm2.TPMHandle = 0x81000001
	handleAK       tpm2.TPMHandle = 0x8100F001
	handleLDevID   tpm2.TPMHandle = 0x8100F002
	handleLDevID2  tpm2.TPMHandle = 0x8100F003
	handleRecovery tpm2.TPMHandle = 0x8100F004
	handleAK2      tpm2.TPMHandle = 0x8100F005
)

// akTemplate is the AK's public area. Changing unique makes another key.
var akTemplate = signTemplate(true)

// ldevidTemplate is the public area of the LDevID key.
var ldevidTemplate = signTemplate(false)

func signTemplate(restricted bool) tpm2.TPMTPublic {
	scheme := tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(
		tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})}
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true,
			NoDA: true, Restricted: restricted, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256, Scheme: scheme}),
	}
}

// key is an object at a persistent handle.
type key struct {
	tpm2.NamedHandle
	public []byte // TPMT_PUBLIC
}

// pair is a key that is rotated between two handles.
type pair struct {
	what   string
	slots  [2]tpm2.TPMHandle
	tmpl   *tpm2.TPMTPublic
	chosen []byte // public area that use named; nil: the first handle that is filled
	cur    *key   // nil when it has to be looked for
}

// Keys makes the AK and the LDevID key unless they are there, and returns
// their public areas (TPMT_PUBLIC). While a rotation is under way these are
// the ones UseAK and UseLDevID named, or else those at the first handles.
// After TPM2_Clear the LDevID key is another one, and the AK the device's
// first.
func (t *TPM) Keys(ctx context.Context) (ak, ldevid []byte, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	t.ak.cur, t.ldevid.cur = nil, nil
	if err := t.ensure(); err != nil {
		return nil, nil, err
	}
	return t.ak.cur.public, t.ldevid.cur.public, nil
}

// Recovery makes the recovery LDevID key unless it is there, and returns its
// public area: a P-256 key bound to no boot state, for a certificate that opens
// nothing but quarantine.
func (t *TPM) Recovery(ctx context.Context) (public []byte, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	k, err := t.find(handleRecovery, &ldevidTemplate)
	if errors.Is(err, tpm2.TPMRCHandle) {
		k, err = t.makeLDevID(handleRecovery)
	}
	if err != nil {
		return nil, fmt.Errorf("recovery key: %w", err)
	}
	return k.public, nil
}

func (t *TPM) ensure() error {
	if err := t.ensureOne(&t.ak, func() (*key, error) { return t.primary(handleAK, akTemplate, tpm2.TPMRHEndorsement) }); err != nil {
		return err
	}
	return t.ensureOne(&t.ldevid, func() (*key, error) { return t.makeLDevID(handleLDevID) })
}

func (t *TPM) ensureOne(p *pair, create func() (*key, error)) error {
	if p.cur != nil {
		return nil
	}
	keys, err := t.stored(p)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(keys, func(k *key) bool { return bytes.Equal(k.public, p.chosen) }); i >= 0 {
		p.cur = keys[i]
		return nil
	}
	p.chosen = nil
	if len(keys) > 0 {
		p.cur = keys[0]
		return nil
	}
	if p.cur, err = create(); err != nil {
		return fmt.Errorf("%s: %w", p.what, err)
	}
	return nil
}

// stored returns the keys of a pair that are in the TPM.
func (t *TPM) stored(p *pair) ([]*key, error) {
	var keys []*key
	for _, handle := range p.slots {
		k, err := t.find(handle, p.tmpl)
		if errors.Is(err, tpm2.TPMRCHandle) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.what, err)
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// primary makes a primary key and persists it at handle.
func (t *TPM) primary(handle tpm2.TPMHandle, tmpl tpm2.TPMTPublic, hierarchy tpm2.TPMHandle) (*key, error) {
	made, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(tmpl)}.Execute(t.dev)
	if err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	defer t.flush(made.ObjectHandle)
	return t.persist(made.ObjectHandle, made.Name, handle)
}

// srk finds or makes the storage root key, the parent of what is not a primary
// key.
func (t *TPM) srk() (*key, error) {
	k, err := t.find(handleSRK, nil)
	if errors.Is(err, tpm2.TPMRCHandle) {
		tmpl := tpm2.ECCSRKTemplate
		tmpl.ObjectAttributes.NoDA = true
		k, err = t.primary(handleSRK, tmpl, tpm2.TPMRHOwner)
	}
	if err != nil {
		return nil, fmt.Errorf("storage root key: %w", err)
	}
	return k, nil
}

// makeLDevID makes a key of the LDevID template below the storage root key and
// persists it at handle.
func (t *TPM) makeLDevID(handle tpm2.TPMHandle) (*key, error) {
	parent, err := t.srk()
	if err != nil {
		return nil, err
	}
	made, err := tpm2.Create{ParentHandle: auth(parent), InPublic: tpm2.New2B(ldevidTemplate)}.Execute(t.dev)
	if err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	loaded, err := tpm2.Load{ParentHandle: auth(parent), InPrivate: made.OutPrivate, InPublic: made.OutPublic}.Execute(t.dev)
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	defer t.flush(loaded.ObjectHandle)
	return t.persist(loaded.ObjectHandle, loaded.Name, handle)
}

func (t *TPM) persist(object tpm2.TPMHandle, name tpm2.TPM2BName, handle tpm2.TPMHandle) (*key, error) {
	_, err := tpm2.EvictControl{
		Auth:             tpm2.TPMRHOwner,
		ObjectHandle:     &tpm2.NamedHandle{Handle: object, Name: name},
		PersistentHandle: handle,
	}.Execute(t.dev)
	if err != nil {
		return nil, fmt.Errorf("persist at %#x: %w", uint32(handle), full(err))
	}
	return t.read(handle)
}

// full says what to do when there is no room in the TPM.
func full(err error) error {
	if !errors.Is(err, tpm2.TPMRCNVSpace) {
		return err
	}
	return fmt.Errorf("the TPM's memory is full: list what other software keeps there (tpm2_getcap handles-persistent, tpm2_nvreadpublic), "+
		"remove what is not needed (tpm2_evictcontrol -c, tpm2_nvundefine) and try again: %w", err)
}

// evict removes a persistent key for ever.
func (t *TPM) evict(k *key) error {
	_, err := tpm2.EvictControl{Auth: tpm2.TPMRHOwner, ObjectHandle: &k.NamedHandle, PersistentHandle: k.Handle}.Execute(t.dev)
	if err != nil {
		return fmt.Errorf("remove the key at %#x: %w", uint32(k.Handle), err)
	}
	delete(t.held, k.Handle)
	return nil
}

// find returns the object at handle, which must be of our making: other
// software may have put its own key there.
func (t *TPM) find(handle tpm2.TPMHandle, tmpl *tpm2.TPMTPublic) (*key, error) {
	k, err := t.read(handle)
	if err != nil || tmpl == nil {
		return k, err
	}
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](k.public)
	if err != nil {
		return nil, fmt.Errorf("public area of %#x: %w", uint32(handle), err)
	}
	pub.Unique = tmpl.Unique
	if !bytes.Equal(tpm2.Marshal(*pub), tpm2.Marshal(*tmpl)) {
		return nil, fmt.Errorf("handle %#x holds a key of other software: move it, or remove it with tpm2_evictcontrol -c %#x", uint32(handle), uint32(handle))
	}
	return k, nil
}

// read returns handle's name and public area.
func (t *TPM) read(handle tpm2.TPMHandle) (*key, error) {
	rsp, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(t.dev)
	if err != nil {
		return nil, fmt.Errorf("read public area of %#x: %w", uint32(handle), err)
	}
	pub, err := rsp.OutPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("public area of %#x: %w", uint32(handle), err)
	}
	t.held[handle] = rsp.Name.Buffer
	return &key{NamedHandle: tpm2.NamedHandle{Handle: handle, Name: rsp.Name}, public: tpm2.Marshal(*pub)}, nil
}

// lost explains the error of a command whose key is not there any more, and
// lets the next call look for keys again.
func (t *TPM) lost(err error) error {
	if !errors.Is(err, tpm2.TPMRCHandle) {
		return err
	}
	t.ak.cur, t.ldevid.cur = nil, nil
	return fmt.Errorf("the key is gone, the TPM was cleared: enrol again: %w", err)
}

func (t *TPM) flush(handle tpm2.TPMHandle) {
	_, _ = tpm2.FlushContext{FlushHandle: handle}.Execute(t.dev) // tidy catches what this misses
}

func auth(k *key) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: k.Handle, Name: k.Name, Auth: tpm2.PasswordAuth(nil)}
}
