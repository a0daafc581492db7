package enrol

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/tillward/tillward/provisioning/identity"
)

// ErrKeys means that the TPM answers and does not hold the keys of the identity:
// it was cleared, or the disk is another box's. The device has to enrol anew.
var ErrKeys = errors.New("the TPM does not hold the keys of this identity")

// Rescuer is the part of a TPM with more keys than one; hal/tpm fits.
type Rescuer interface {
	// Recovery returns the TPMT_PUBLIC of the recovery key.
	Recovery(ctx context.Context) (public []byte, err error)
	// CertifyKey certifies one of its device keys by the AK.
	CertifyKey(ctx context.Context, public, extra []byte) (attest, signature []byte, err error)
	// SignerFor returns one of its device keys for TLS.
	SignerFor(ctx context.Context, public []byte) (crypto.Signer, error)
}

// Renewer is the part of a TPM that changes the LDevID key; hal/tpm fits. A
// power cut leaves the old key, the new one or both.
type Renewer interface {
	UseLDevID(ctx context.Context, public []byte) error        // that one is current
	NextLDevID(ctx context.Context) (public []byte, err error) // makes another beside it
	KeepLDevID(ctx context.Context, public []byte) error       // that one alone stays
}

// Rotator is the part of a TPM that changes the AK; hal/tpm fits.
type Rotator interface {
	UseAK(ctx context.Context, public []byte) error
	NextAK(ctx context.Context, unique []byte) (public []byte, err error)
	CertifyNextAK(ctx context.Context, extra []byte) (attest, signature []byte, err error)
	ActivateNextAK(ctx context.Context, credential, secret []byte) ([]byte, error)
	KeepAK(ctx context.Context, public []byte) error
}

// keys is a TPM that can do all of it.
type keys interface {
	Endorser
	Prover
	Rescuer
	Renewer
	Rotator
}

func (c *Client) keys() (keys, error) {
	k, ok := c.TPM.(keys)
	if !ok {
		return nil, errors.New("this TPM cannot change keys")
	}
	return k, nil
}

// Resume tells the TPM which keys the identity is about and removes what a
// power cut left beside them. Call it after each start, and after Enrol once
// the result is saved. It fills in what an older agent did not keep. ErrKeys
// means that the device has to enrol.
func (c *Client) Resume(ctx context.Context, have Result) (Result, error) {
	dev, err := c.keys()
	if err != nil {
		return have, err
	}
	if len(have.LDevID) == 0 || len(have.AK) == 0 {
		if have.AK, have.LDevID, err = dev.Keys(ctx); err != nil {
			return have, fmt.Errorf("look for keys: %w", err)
		}
	}
	cert, err := leaf(have.Chain)
	if err != nil {
		return have, fmt.Errorf("certificate: %w: %w", ErrKeys, err)
	}
	if key, _, err := deviceKey(have.LDevID, "LDevID key"); err != nil || !samePublic(key, cert.PublicKey) {
		return have, fmt.Errorf("certificate is for another key: %w", ErrKeys)
	}
	for _, keep := range []func() error{
		func() error { return dev.KeepLDevID(ctx, have.LDevID) },
		func() error { return dev.KeepAK(ctx, have.AK) },
	} {
		if err := keep(); err != nil {
			return have, missing(ctx, dev, have, err)
		}
	}
	return have, nil
}

// missing tells a TPM that holds other keys from one that does not answer.
func missing(ctx context.Context, dev keys, have Result, err error) error {
	ak, ldevid, e := dev.Keys(ctx)
	if e != nil {
		return errors.Join(err, e)
	}
	if bytes.Equal(ak, have.AK) && bytes.Equal(ldevid, have.LDevID) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrKeys, err)
}

// certificate is what the device shows: the member's, or when that has ended
// the recovery certificate.
func (c *Client) certificate(ctx context.Context, dev keys, have Result) (*tls.Certificate, error) {
	var ended error
	for _, k := range []struct {
		chain  [][]byte
		public []byte
	}{{have.Chain, have.LDevID}, {have.Recovery, have.RecoveryKey}} {
		cert, err := leaf(k.chain)
		if err != nil {
			ended = errors.Join(ended, err)
			continue
		}
		if time.Now().After(cert.NotAfter) {
			ended = errors.Join(ended, fmt.Errorf("certificate ended on %s", cert.NotAfter.Format(time.RFC3339)))
			continue
		}
		key, err := dev.SignerFor(ctx, k.public)
		if err != nil {
			return nil, err
		}
		return &tls.Certificate{Certificate: k.chain, PrivateKey: key, Leaf: cert}, nil
	}
	return nil, fmt.Errorf("enrol again: %w", ended)
}

// Renew gets a certificate for a new LDevID key by the certificate in use; by
// the recovery certificate when that has ended. The recovery certificate is
// renewed with it when half of its life is over. The old key stays in use until the new identity is saved. When the
// device did not boot well only the recovery certificate is renewed: then the
// result is good and the error an ErrRefused that says why.
func (c *Client) Renew(ctx context.Context, have Result) (Result, error) {
	dev, err := c.keys()
	if err != nil {
		return have, err
	}
	cert, err := c.certificate(ctx, dev, have)
	if err != nil {
		return have, err
	}
	if err := dev.UseLDevID(ctx, have.LDevID); err != nil {
		return have, missing(ctx, dev, have, err)
	}
	next, err := dev.NextLDevID(ctx)
	if err != nil {
		return have, err
	}
	ch, err := c.dial(ctx, renewExporterLabel, cert)
	if err != nil {
		return have, err
	}
	defer ch.close()
	body, err := c.renewal(ctx, dev, ch, cert, next, halfway(have.Recovery))
	if err != nil {
		return have, err
	}
	out, _, err := post[renewed](ctx, ch.http, c.URL+PathRenew, body)
	if err != nil {
		return have, err
	}
	return c.renewed(ctx, dev, have, next, out)
}

// halfway reports whether half of a certificate's life is over, or there is none.
func halfway(chain [][]byte) bool {
	cert, err := leaf(chain)
	return err != nil || time.Until(cert.NotAfter) < cert.NotAfter.Sub(cert.NotBefore)/2
}

// renewal makes RENEW; rescue asks for a recovery certificate too.
func (c *Client) renewal(ctx context.Context, dev keys, ch *channel, cert *tls.Certificate, next []byte, rescue bool) ([]byte, error) {
	m := renewal{V: Version, LDevID: next, Log: c.log()}
	var err error
	if rescue {
		if m.Recovery, err = dev.Recovery(ctx); err != nil {
			return nil, err
		}
	}
	b := renewBinding(ch.exporter, cert.Certificate[0], m.LDevID, m.Recovery)
	if m.Certify, m.CertifySig, err = certifyKey(ctx, dev, m.LDevID, b); err != nil {
		return nil, err
	}
	if rescue {
		if m.CertifyRec, m.CertifyRecSig, err = certifyKey(ctx, dev, m.Recovery, b); err != nil {
			return nil, err
		}
	}
	if m.Quote, m.QuoteSig, m.PCRs, err = dev.Quote(ctx, b[:]); err != nil {
		return nil, err
	}
	body, err := encMode.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode renewal: %w", err)
	}
	return body, nil
}

// renewed keeps what came. First the identity is saved, then the TPM gives up
// the old key: between the two both keys are there, and the saved one counts.
func (c *Client) renewed(ctx context.Context, dev keys, have Result, next []byte, out renewed) (Result, error) {
	now := have
	if len(out.Chain) > 0 {
		if err := certifies(out.Chain, next, have, identity.RoleMember); err != nil {
			return have, err
		}
		now.Chain, now.LDevID = out.Chain, next
	}
	if len(out.Recovery) > 0 {
		public, err := dev.Recovery(ctx)
		if err != nil {
			return have, err
		}
		if err := certifies(out.Recovery, public, have, identity.RoleRecovery); err != nil {
			return have, err
		}
		now.Recovery, now.RecoveryKey = out.Recovery, public
	}
	if err := c.Save(ctx, now); err != nil {
		return have, fmt.Errorf("keep identity: %w", err)
	}
	if len(out.Chain) == 0 {
		return now, &failure{out.Check, fmt.Errorf("%w: %s", ErrRefused, out.Text)}
	}
	if err := dev.KeepLDevID(ctx, next); err != nil {
		return now, err
	}
	return now, nil
}

// certifies checks that a chain begins with a certificate of a key, for the same
// device as before.
func certifies(chain [][]byte, public []byte, have Result, role identity.Role) error {
	cert, err := leaf(chain)
	if err != nil {
		return fmt.Errorf("the service's answer: %w", err)
	}
	key, _, err := deviceKey(public, "device key")
	if err != nil {
		return err
	}
	if !samePublic(key, cert.PublicKey) {
		return errors.New("the service's answer: certificate is for another key")
	}
	id, err := identity.FromCertificate(cert)
	if err != nil {
		return fmt.Errorf("the service's answer: %w", err)
	}
	if id.Device != have.Device || id.Tenant != have.Tenant || id.Role != role {
		return fmt.Errorf("the service's answer: certificate is for device %s of %s in role %q", id.Device, id.Tenant, id.Role)
	}
	return nil
}

// RotateAK makes another AK, lets the old one vouch for it and shows that both
// live in this TPM. From then on the service takes evidence by either; the
// first by the new one ends the old one.
func (c *Client) RotateAK(ctx context.Context, have Result) (Result, error) {
	dev, err := c.keys()
	if err != nil {
		return have, err
	}
	cert, err := c.certificate(ctx, dev, have)
	if err != nil {
		return have, err
	}
	if err := dev.UseAK(ctx, have.AK); err != nil {
		return have, missing(ctx, dev, have, err)
	}
	ek, _, _, err := dev.Endorsement(ctx)
	if err != nil {
		return have, fmt.Errorf("read endorsement key: %w", err)
	}
	unique := make([]byte, 32)
	_, _ = rand.Read(unique) // never fails [crypto/rand]
	next, err := dev.NextAK(ctx, unique)
	if err != nil {
		return have, err
	}
	ch, err := c.dial(ctx, renewExporterLabel, cert)
	if err != nil {
		return have, err
	}
	defer ch.close()
	if err := c.follow(ctx, dev, ch, rotation{V: Version, EK: ek, AK: next}, cert.Leaf); err != nil {
		return have, err
	}
	now := have
	now.AK = next
	if err := c.Save(ctx, now); err != nil {
		return have, fmt.Errorf("keep identity: %w", err)
	}
	if err := dev.KeepAK(ctx, next); err != nil {
		return now, err
	}
	return now, nil
}

// follow runs the two requests of a rotation.
func (c *Client) follow(ctx context.Context, dev keys, ch *channel, m rotation, cert *x509.Certificate) error {
	name, err := keyName(m.AK)
	if err != nil {
		return fmt.Errorf("name of the next attestation key: %w", err)
	}
	extra := certifyBinding(rotateBinding(ch.exporter, cert.Raw, m.EK), name)
	if m.Certify, m.CertifySig, err = dev.CertifyNextAK(ctx, extra[:]); err != nil {
		return err
	}
	body, err := encMode.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode rotation: %w", err)
	}
	asked, _, err := post[challenge](ctx, ch.http, c.URL+PathRotate, body)
	if err != nil {
		return err
	}
	secret, err := dev.ActivateNextAK(ctx, asked.Credential, asked.Secret)
	if err != nil {
		return fmt.Errorf("answer the challenge: %w", err)
	}
	b := binding(asked.ID, asked.Nonce, secret, ch.exporter, body)
	answer, err := encMode.Marshal(rotationProof{ID: asked.ID, Proof: proof(secret, b)})
	if err != nil {
		return fmt.Errorf("encode rotation: %w", err)
	}
	done, _, err := post[followed](ctx, ch.http, c.URL+PathRotated, answer)
	if err != nil {
		return err
	}
	if !bytes.Equal(done.AK, m.AK) {
		return errors.New("the service's answer: another attestation key follows")
	}
	return nil
}
