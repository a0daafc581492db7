package tpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// UseLDevID says which LDevID key is the current one, by its public area: the
// one there is a certificate for. A device calls it after each start, because
// a power cut may have left two. It fails when the TPM holds no such key.
func (t *TPM) UseLDevID(ctx context.Context, public []byte) error {
	return t.locked(ctx, func() error { return t.use(&t.ldevid, public) })
}

// NextLDevID makes a second LDevID key beside the current one, unless it is
// there, and returns its public area. The current one stays current.
func (t *TPM) NextLDevID(ctx context.Context) (public []byte, err error) {
	err = t.locked(ctx, func() error {
		if err := t.ensure(); err != nil {
			return err
		}
		k, err := t.next(&t.ldevid)
		if err == nil && k == nil {
			if k, err = t.makeLDevID(t.ldevid.spare()); err != nil {
				err = fmt.Errorf("next %s: %w", t.ldevid.what, err)
			}
		}
		if err != nil {
			return err
		}
		public = k.public
		return nil
	})
	return public, err
}

// KeepLDevID makes the LDevID key with that public area the current one and
// removes the other. Called again it changes nothing.
func (t *TPM) KeepLDevID(ctx context.Context, public []byte) error {
	return t.locked(ctx, func() error { return t.keep(&t.ldevid, public) })
}

// UseAK says which AK is the current one, as UseLDevID does: the one the fleet
// service has on file.
func (t *TPM) UseAK(ctx context.Context, public []byte) error {
	return t.locked(ctx, func() error { return t.use(&t.ak, public) })
}

// NextAK makes another AK beside the current one and returns its public area.
// unique (32 bytes, random, no secret) is the X coordinate in the template
// [TCG TPM 2.0 Library, part 3, 24.1]: the same unique makes the same key, and
// another one takes the place of a next AK that was not kept.
func (t *TPM) NextAK(ctx context.Context, unique []byte) (public []byte, err error) {
	if len(unique) != 32 {
		return nil, fmt.Errorf("next AK: unique has %d bytes, not 32", len(unique))
	}
	err = t.locked(ctx, func() error {
		k, err := t.makeNextAK(unique)
		if err != nil {
			return fmt.Errorf("next %s: %w", t.ak.what, err)
		}
		public = k.public
		return nil
	})
	return public, err
}

func (t *TPM) makeNextAK(unique []byte) (*key, error) {
	if err := t.ensure(); err != nil {
		return nil, err
	}
	old, err := t.next(&t.ak)
	if err != nil {
		return nil, err
	}
	tmpl := akTemplate
	tmpl.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: unique}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
	})
	made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tmpl)}.Execute(t.dev)
	if err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	defer t.flush(made.ObjectHandle)
	if bytes.Equal(made.Name.Buffer, t.ak.cur.Name.Buffer) {
		return nil, errors.New("this unique makes the current one: take another")
	}
	if old != nil {
		if bytes.Equal(made.Name.Buffer, old.Name.Buffer) {
			return old, nil
		}
		if err := t.evict(old); err != nil {
			return nil, err
		}
	}
	return t.persist(made.ObjectHandle, made.Name, t.ak.spare())
}

// CertifyNextAK lets the current AK certify the next one, as Certify does.
func (t *TPM) CertifyNextAK(ctx context.Context, extra []byte) (attest, signature []byte, err error) {
	err = t.locked(ctx, func() error {
		k, err := t.nextAK()
		if err != nil {
			return err
		}
		attest, signature, err = t.certify(k, extra)
		return err
	})
	return attest, signature, err
}

// ActivateNextAK opens a credential that names the next AK, as Activate does.
func (t *TPM) ActivateNextAK(ctx context.Context, blob, secret []byte) (opened []byte, err error) {
	err = t.locked(ctx, func() error {
		k, err := t.nextAK()
		if err != nil {
			return err
		}
		opened, err = t.activate(k, blob, secret)
		return err
	})
	return opened, err
}

// KeepAK makes the AK with that public area the current one and removes the
// other. Called again it changes nothing.
func (t *TPM) KeepAK(ctx context.Context, public []byte) error {
	return t.locked(ctx, func() error { return t.keep(&t.ak, public) })
}

func (t *TPM) nextAK() (*key, error) {
	if err := t.ensure(); err != nil {
		return nil, err
	}
	k, err := t.next(&t.ak)
	if err == nil && k == nil {
		err = errors.New("there is no next AK: make it first")
	}
	return k, err
}

func (t *TPM) locked(ctx context.Context, f func() error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	return f()
}

// spare is the handle that the current key is not at.
func (p *pair) spare() tpm2.TPMHandle {
	if p.cur.Handle == p.slots[0] {
		return p.slots[1]
	}
	return p.slots[0]
}

// next returns the key beside the current one, nil when there is none. With two
// keys somebody must have said which is current: the wrong one would be removed.
func (t *TPM) next(p *pair) (*key, error) {
	k, err := t.find(p.spare(), p.tmpl)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("next %s: %w", p.what, err)
	}
	if p.chosen == nil {
		return nil, fmt.Errorf("the TPM holds two keys for the %s: say first which is in use", p.what)
	}
	return k, nil
}

// use makes the key with that public area the current one.
func (t *TPM) use(p *pair, public []byte) error {
	keys, err := t.stored(p)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if bytes.Equal(k.public, public) {
			p.chosen, p.cur = bytes.Clone(public), k
			return nil
		}
	}
	return fmt.Errorf("%s: the TPM does not hold the key that was named: enrol again", p.what)
}

// keep makes the key with that public area the current one and removes the
// other one; a power cut leaves both or the one.
func (t *TPM) keep(p *pair, public []byte) error {
	if err := t.use(p, public); err != nil {
		return err
	}
	old, err := t.next(p)
	if err != nil || old == nil {
		return err
	}
	return t.evict(old)
}
