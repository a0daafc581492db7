package attack

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/simulator/swarm"
)

// tpmTransport is a TPM without hal/tpm in between.
type tpmTransport = transport.TPM

// raw gives do the box's TPM for a moment.
func (b *box) raw(do func(tpmTransport) error) (err error) {
	if err := b.dev.Close(); err != nil {
		return err
	}
	defer func() {
		var e error
		b.dev, e = tpm.Open("unix:" + b.chip.Socket())
		err = errors.Join(err, e)
	}()
	t, err := linuxudstpm.Open(b.chip.Socket())
	if err != nil {
		return err
	}
	return errors.Join(do(t), t.Close())
}

// refusedEnrolment is what the service says to an enrolment.
func refusedEnrolment(err error) (outcome, error) {
	if err == nil {
		return outcome{answer: "enrolled"}, nil
	}
	if errors.Is(err, enrol.ErrRefused) {
		return outcome{true, enrol.Check(err), err.Error()}, nil
	}
	return outcome{}, err
}

// hands is a TPM of which the attacker has put some parts in himself.
type hands struct {
	*tpm.TPM
	endorsement func(ctx context.Context) (public, certificate []byte, chain [][]byte, err error)
	activate    func(ctx context.Context, credential, secret []byte) ([]byte, error)
	keys        func(ctx context.Context) (ak, ldevid []byte, err error)
}

// Endorsement implements enrol.Endorser.
func (h hands) Endorsement(ctx context.Context) (public, certificate []byte, chain [][]byte, err error) {
	if h.endorsement != nil {
		return h.endorsement(ctx)
	}
	return h.TPM.Endorsement(ctx)
}

// Activate implements enrol.Endorser.
func (h hands) Activate(ctx context.Context, credential, secret []byte) ([]byte, error) {
	if h.activate != nil {
		return h.activate(ctx, credential, secret)
	}
	return h.TPM.Activate(ctx, credential, secret)
}

// Keys implements enrol.Prover.
func (h hands) Keys(ctx context.Context) (ak, ldevid []byte, err error) {
	if h.keys != nil {
		return h.keys(ctx)
	}
	return h.TPM.Keys(ctx)
}

// enrolWith enrols a box with parts of its TPM exchanged.
func (b *box) enrolWith(ctx context.Context, h hands) (outcome, error) {
	h.TPM = b.dev
	c := b.client()
	c.TPM = h
	_, err := c.Enrol(ctx)
	return refusedEnrolment(err)
}

// softwareKey enrols keys in a file as if they were a TPM's.
func softwareKey(ctx context.Context, d *desk) (outcome, error) {
	own, err := swarm.NewAuthority(nil) // that nobody believes
	if err != nil {
		return outcome{}, err
	}
	_, _, err = d.software(ctx, own, "posing")
	return refusedEnrolment(err)
}

// wrongCertificate shows the EK certificate of another TPM.
func wrongCertificate(ctx context.Context, d *desk) (outcome, error) {
	victim, err := d.member(ctx, firmware())
	if err != nil {
		return outcome{}, err
	}
	b, err := d.box(ctx, firmware())
	if err != nil {
		return outcome{}, err
	}
	return b.enrolWith(ctx, hands{endorsement: func(ctx context.Context) ([]byte, []byte, [][]byte, error) {
		_, cert, chain, err := victim.dev.Endorsement(ctx)
		if err != nil {
			return nil, nil, nil, err
		}
		own, _, _, err := b.dev.Endorsement(ctx)
		return own, cert, chain, err
	}})
}

// foreignEndorsement shows the EK and certificate of a victim's TPM, which
// does not open the credential for the attacker.
func foreignEndorsement(ctx context.Context, d *desk) (outcome, error) {
	victim, err := d.member(ctx, firmware())
	if err != nil {
		return outcome{}, err
	}
	b, err := d.box(ctx, firmware())
	if err != nil {
		return outcome{}, err
	}
	b.name = victim.name // what is printed on his box, too
	return b.enrolWith(ctx, hands{
		endorsement: victim.dev.Endorsement,
		activate: func(context.Context, []byte, []byte) ([]byte, error) {
			guess := make([]byte, sha256.Size)
			_, _ = rand.Read(guess)
			return guess, nil
		},
	})
}

// foreignKey has a key certified that is in no TPM.
func foreignKey(ctx context.Context, d *desk) (outcome, error) {
	b, err := d.box(ctx, firmware())
	if err != nil {
		return outcome{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return outcome{}, err
	}
	return b.enrolWith(ctx, hands{keys: func(ctx context.Context) ([]byte, []byte, error) {
		ak, ldevid, err := b.dev.Keys(ctx)
		if err != nil {
			return nil, nil, err
		}
		area, err := tpm2.Unmarshal[tpm2.TPMTPublic](ldevid)
		if err != nil {
			return nil, nil, err
		}
		point, err := key.PublicKey.Bytes()
		if err != nil {
			return nil, nil, err
		}
		area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
		})
		return ak, tpm2.Marshal(*area), nil
	}})
}

// twice enrols a TPM again in a box with another serial number.
func twice(ctx context.Context, d *desk) (outcome, error) {
	victim, err := d.member(ctx, firmware())
	if err != nil {
		return outcome{}, err
	}
	c := victim.client()
	c.Serial += "-copy"
	_, err = c.Enrol(ctx)
	return refusedEnrolment(err)
}

// downgradedTier brings a device of tier A back with the certificate of an
// authority of virtual TPMs.
func downgradedTier(ctx context.Context, d *desk) (outcome, error) {
	b, err := d.box(ctx, firmware())
	if err != nil {
		return outcome{}, err
	}
	// Two makers have certified this EK: the one of tier A first.
	ek, virtual, _, err := b.dev.Endorsement(ctx)
	if err != nil {
		return outcome{}, err
	}
	strong, err := d.maker.Endorse(ek)
	if err != nil {
		return outcome{}, err
	}
	with := func(cert []byte) hands {
		return hands{endorsement: func(context.Context) ([]byte, []byte, [][]byte, error) { return ek, cert, nil, nil }}
	}
	first, err := b.enrolWith(ctx, with(strong))
	if err != nil || first.refused {
		return outcome{}, errors.Join(err, fmt.Errorf("did not enrol with tier A: %s", first.answer))
	}
	return b.enrolWith(ctx, with(virtual))
}

// revokedEnrolment and revokedConnection come back after the operator has
// locked the device out.
func revokedEnrolment(ctx context.Context, d *desk) (outcome, error) {
	victim, _, err := d.revoked(ctx)
	if err != nil {
		return outcome{}, err
	}
	return refusedEnrolment(victim.enrol(ctx))
}

func revokedConnection(ctx context.Context, d *desk) (outcome, error) {
	victim, since, err := d.revoked(ctx)
	if err != nil {
		return outcome{}, err
	}
	s, err := victim.dial(ctx)
	if err == nil {
		return outcome{answer: "connected"}, s.Close()
	}
	check, text, err := d.noted(ctx, victim.member.Device, since)
	return outcome{err == nil, check, text}, err
}

// revoked is a member that was locked out.
func (d *desk) revoked(ctx context.Context) (*box, time.Time, error) {
	victim, err := d.member(ctx, firmware())
	if err != nil {
		return nil, time.Time{}, err
	}
	since := time.Now()
	return victim, since, d.world.Operator.Post(ctx, "/v1/devices/"+victim.member.Device+"/revoke", map[string]string{"reason": "stolen"}, nil)
}

// stolenBlob loads a key that another TPM made. The TPM itself refuses.
func stolenBlob(ctx context.Context, d *desk) (outcome, error) {
	victim, err := d.box(ctx, firmware())
	if err != nil {
		return outcome{}, err
	}
	thief, err := d.box(ctx, firmware())
	if err != nil {
		return outcome{}, err
	}
	var private tpm2.TPM2BPrivate
	var public tpm2.TPM2BPublic
	if err := victim.underSRK(func(t tpmTransport, srk tpm2.NamedHandle) error {
		made, err := tpm2.Create{ParentHandle: srk, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(t)
		if err != nil {
			return err
		}
		private, public = made.OutPrivate, made.OutPublic
		loaded, err := tpm2.Load{ParentHandle: srk, InPrivate: private, InPublic: public}.Execute(t)
		if err != nil {
			return fmt.Errorf("its own TPM does not load it: %w", err)
		}
		_, err = tpm2.FlushContext{FlushHandle: loaded.ObjectHandle}.Execute(t)
		return err
	}); err != nil {
		return outcome{}, err
	}
	var refusal error
	err = thief.underSRK(func(t tpmTransport, srk tpm2.NamedHandle) error {
		_, refusal = tpm2.Load{ParentHandle: srk, InPrivate: private, InPublic: public}.Execute(t)
		return nil
	})
	switch {
	case err != nil:
		return outcome{}, err
	case errors.Is(refusal, tpm2.TPMRCIntegrity):
		return outcome{true, "tpm.integrity", refusal.Error()}, nil
	case refusal != nil:
		return outcome{}, refusal
	}
	return outcome{answer: "another TPM loaded the key"}, nil
}

// underSRK does something below a storage root key.
func (b *box) underSRK(do func(t tpmTransport, srk tpm2.NamedHandle) error) error {
	return b.raw(func(t tpmTransport) error {
		srk, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(t)
		if err != nil {
			return err
		}
		err = do(t, tpm2.NamedHandle{Handle: srk.ObjectHandle, Name: srk.Name})
		_, flush := tpm2.FlushContext{FlushHandle: srk.ObjectHandle}.Execute(t)
		return errors.Join(err, flush)
	})
}
