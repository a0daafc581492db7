package enrol

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/provisioning/identity"
)

// begin is steps 1 and 2: appraise the EK, ask for the proof.
func (s *Server) begin(ctx context.Context, c call) (any, string, error) {
	req, err := decode[request](c.body)
	if err != nil {
		return nil, "", err
	}
	if err := req.check(); err != nil {
		return nil, "", err
	}
	ek, ekKey, err := endorsementKey(req.EK)
	if err != nil {
		return nil, "", err
	}
	a := Applicant{
		Device: identity.DeviceID(req.EK), EKHash: Hash(req.EK), Model: req.Model, Serial: req.Serial, Claim: req.Claim, From: c.from,
	}
	if err := req.keys(); err != nil {
		return nil, a.Device, err
	}
	var why error
	if a.Tier, why = s.appraise(ekKey, req); errors.Is(why, errOtherEK) {
		return nil, a.Device, why
	} else if why != nil {
		s.o.Log.InfoContext(ctx, "endorsement key without trusted certificate", slog.String("device", a.Device), slog.Any("err", why))
	}
	tenant, tier, err := s.o.Directory.Owner(ctx, a)
	if err != nil {
		return nil, a.Device, owner(err, why)
	}
	if tier != a.Tier && tier != identity.TierB {
		return nil, a.Device, fmt.Errorf("directory gave tier %q to a device with evidence for %q", tier, a.Tier)
	}
	at := &attempt{
		applicant: a, req: req, raw: c.body, ak: req.AK, exporter: c.exporter, tenant: tenant, tier: tier, expires: time.Now().Add(challengeLife),
	}
	ch, err := s.pending.challenge(ek, at)
	return ch, a.Device, err
}

// keys checks the public areas of a request.
func (r request) keys() error {
	if _, err := signingKey(r.AK); err != nil {
		return err
	}
	if _, _, err := deviceKey(r.LDevID, "LDevID key"); err != nil {
		return err
	}
	return checkRecoveryKey(r.Recovery, r.LDevID)
}

// owner names the check of a directory's refusal, and what the EK certificate
// has to do with it.
func owner(err, why error) error {
	if !errors.Is(err, ErrRefused) {
		return err
	}
	check := Check(err)
	if why != nil {
		if check == "" {
			check = Check(why)
		}
		err = fmt.Errorf("%w (%w)", err, why)
	}
	if check == "" {
		check = checkOwner
	}
	return &failure{check, err}
}

// appraise returns the tier an EK certificate gives, and why it gives none.
func (s *Server) appraise(ek crypto.PublicKey, req request) (identity.Tier, error) {
	if len(req.EKCert) == 0 {
		return "", failed(checkEKCert, "the TPM has no EK certificate: %w", ErrProof)
	}
	why := verifyEKCert(ek, req.EKCert, req.EKChain, s.o.EKRoots)
	if why == nil {
		return identity.TierA, nil
	}
	if s.o.VirtualRoots == nil || errors.Is(why, errOtherEK) {
		return "", why
	}
	if why = verifyEKCert(ek, req.EKCert, req.EKChain, s.o.VirtualRoots); why == nil {
		return identity.TierC, nil
	}
	return "", why
}

// challenge asks for proof that the TPM with this EK holds the AK of at.
func (p *pending) challenge(ek *tpm2.TPMTPublic, at *attempt) (challenge, error) {
	ch := challenge{ExpiresS: uint16(challengeLife / time.Second)}
	at.secret = make([]byte, 32)
	for _, b := range [][]byte{ch.ID[:], ch.Nonce[:], at.secret} {
		_, _ = rand.Read(b) // never fails [crypto/rand]
	}
	at.nonce = ch.Nonce
	name, err := keyName(at.ak)
	if err != nil {
		return ch, failed(checkKey, "attestation key: %w: %w", ErrProof, err)
	}
	kem, err := tpm2.ImportEncapsulationKey(ek)
	if err != nil {
		return ch, failed(checkKey, "endorsement key: %w: %w", ErrProof, err)
	}
	if ch.Credential, ch.Secret, err = tpm2.CreateCredential(rand.Reader, kem, name, at.secret); err != nil {
		return ch, fmt.Errorf("make credential: %w", err)
	}
	return ch, p.add(ch.ID, at)
}

// redeem closes the challenge that an answer speaks of, and returns what
// everything in the answer is bound to.
func (p *pending) redeem(id [16]byte, mac [32]byte, exporter []byte) (*attempt, [32]byte, error) {
	at := p.take(id)
	if at == nil || time.Now().After(at.expires) {
		return nil, [32]byte{}, failed(checkChallenge, "no such challenge, or it was answered or has expired: %w", ErrProof)
	}
	if subtle.ConstantTimeCompare(exporter, at.exporter) != 1 {
		return at, [32]byte{}, failed(checkBinding, "answer came over another TLS channel than its challenge: %w", ErrProof)
	}
	b := binding(id, at.nonce, at.secret, exporter, at.raw)
	want := proof(at.secret, b)
	if subtle.ConstantTimeCompare(mac[:], want[:]) != 1 {
		return at, b, failed(checkActivation, "the TPM with this endorsement key did not open the credential: %w", ErrProof)
	}
	return at, b, nil
}

// finish is steps 3 and 4: check the proof, issue the certificates.
func (s *Server) finish(ctx context.Context, c call) (any, string, error) {
	ev, err := decode[evidence](c.body)
	if err != nil {
		return nil, "", err
	}
	if err := checkLog(ev.Log); err != nil {
		return nil, "", err
	}
	at, b, err := s.pending.redeem(ev.ID, ev.Proof, c.exporter)
	if at == nil {
		return nil, "", err
	}
	device := at.applicant.Device
	if err != nil {
		return nil, device, err
	}
	if n, _ := s.asked.next(kind{member: device}, time.Now()); n > s.maxAsked {
		return nil, device, errBusy // it is that TPM; nobody else is counted for it
	}
	pub, err := certified(at.ak, at.req.LDevID, "LDevID key", ev.Certify, ev.CertifySig, b)
	if err != nil {
		return nil, device, err
	}
	var recovery crypto.PublicKey
	if len(at.req.Recovery) > 0 {
		if recovery, err = certified(at.ak, at.req.Recovery, "recovery key", ev.CertifyRec, ev.CertifyRecSig, b); err != nil {
			return nil, device, err
		}
	}
	q, err := VerifyQuote(at.ak, ev.Quote, ev.QuoteSig, ev.PCRs, b)
	if err != nil {
		return nil, device, fmt.Errorf("quote: %w", err)
	}
	id := identity.Identity{Tenant: at.tenant, Device: device, Tier: at.tier, Model: at.applicant.Model}
	if err := s.judge(ctx, true, id, ev.PCRs, ev.Log); err != nil {
		return nil, device, err
	}
	res, err := s.admit(ctx, at, id, pub, recovery, q)
	return res, device, err
}

// admit issues the certificates, records the member and tells it what to know.
func (s *Server) admit(ctx context.Context, at *attempt, id identity.Identity, pub, recovery crypto.PublicKey, q Quoted) (Result, error) {
	m := Member{EKHash: at.applicant.EKHash, SerialNo: at.applicant.Serial, AK: at.ak, ResetCount: q.ResetCount}
	chain, issued, err := s.issue(id, pub)
	if err != nil {
		return Result{}, err
	}
	m.Identity = issued
	var rescue [][]byte
	if recovery != nil {
		id.Role = identity.RoleRecovery
		if rescue, m.Recovery, err = s.issue(id, recovery); err != nil {
			return Result{}, err
		}
	}
	if err := s.o.Directory.Enrolled(ctx, m); err != nil {
		return Result{}, owner(err, nil)
	}
	s.o.Audit(ctx, "enrol.done", "info", m.Device, map[string]string{
		"tier": string(m.Tier), "certificate": m.Serial, "recovery": m.Recovery.Serial, "model": m.Model,
	})
	res, err := s.o.Welcome(ctx, m)
	if err != nil {
		return Result{}, err
	}
	res.Device, res.Tenant, res.Tier = m.Device, m.Tenant, string(m.Tier)
	res.Chain, res.Recovery = chain, rescue
	return res, nil
}

// certified checks that the AK certified a device key for the binding b.
func certified(ak, public []byte, what string, attest, signature []byte, b [32]byte) (crypto.PublicKey, error) {
	pub, name, err := deviceKey(public, what)
	if err != nil {
		return nil, err
	}
	if err := verifyCertify(ak, attest, signature, name, certifyBinding(b, name)); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return pub, nil
}

// checkRecoveryKey checks the public area of a recovery key, if there is one.
// It must be another key than the LDevID's: what a boot state binds would be
// bound for both.
func checkRecoveryKey(recovery, ldevid []byte) error {
	if len(recovery) == 0 {
		return nil
	}
	pub, _, err := deviceKey(recovery, "recovery key")
	if err != nil {
		return err
	}
	if other, _, err := deviceKey(ldevid, "LDevID key"); err == nil && other.Equal(pub) {
		return failed(checkKey, "recovery key is the LDevID key: %w", ErrProof)
	}
	return nil
}
