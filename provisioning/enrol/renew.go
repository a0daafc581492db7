package enrol

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/tillward/tillward/provisioning/identity"
)

// Paths for members, who come with their certificate.
const (
	PathRenew   = "/v1/renew"
	PathRotate  = "/v1/rotate-ak"
	PathRotated = "/v1/rotate-ak/proof"
)

// renewExporterLabel is that of everything a member proves over HTTPS.
const renewExporterLabel = "EXPORTER-tillward-renew-v1"

// Registry knows the members, and what was renewed.
type Registry interface {
	// Standing returns what is on file of the member that shows the certificate.
	// ErrRefused, made by Refuse, when it is revoked, replaced or not known.
	Standing(ctx context.Context, id identity.Identity) (Standing, error)
	// Renewed records what was issued before it leaves the service. It may never
	// arrive: the certificate that was shown, and the recovery certificate there
	// was, stay good until the one that follows is shown for the first time.
	Renewed(ctx context.Context, r Renewal) error
}

// Standing is what is on file of a member.
type Standing struct {
	AK     []byte // TPMT_PUBLIC
	NextAK []byte // counts like AK, until evidence by it makes it the AK; may be nil
	EKHash string
	Tier   identity.Tier
	Model  string
	Good   bool // the newest evidence was accepted: attested or degraded
}

// Renewal is what a member has got beside what it had.
type Renewal struct {
	Shown       identity.Identity // the certificate it came with
	AK          []byte            // that spoke for it, Standing's AK or NextAK; nil for EST
	Certificate identity.Identity // of a member; zero: none
	Recovery    identity.Identity // of the recovery key; zero: none
	NextAK      []byte            // is to follow AK; nil: no change
	ResetCount  uint32            // of the TPM; 0: it was not asked
}

// renewal is RENEW.
type renewal struct {
	V          uint16   `cbor:"1,keyasint"`
	LDevID     []byte   `cbor:"2,keyasint"` // TPMT_PUBLIC
	Certify    []byte   `cbor:"3,keyasint"`
	CertifySig []byte   `cbor:"4,keyasint"`
	Quote      []byte   `cbor:"5,keyasint"`
	QuoteSig   []byte   `cbor:"6,keyasint"`
	PCRs       [][]byte `cbor:"7,keyasint"`
	Log        []byte   `cbor:"8,keyasint,omitempty"` // gzip of binary_bios_measurements

	Recovery      []byte `cbor:"9,keyasint,omitempty"` // TPMT_PUBLIC
	CertifyRec    []byte `cbor:"10,keyasint,omitempty"`
	CertifyRecSig []byte `cbor:"11,keyasint,omitempty"`
}

// renewed is the answer to RENEW. Without Chain it says why there is none.
type renewed struct {
	Chain    [][]byte `cbor:"1,keyasint,omitempty"`
	Recovery [][]byte `cbor:"2,keyasint,omitempty"`
	Check    string   `cbor:"3,keyasint,omitempty"`
	Text     string   `cbor:"4,keyasint,omitempty"`
}

func (r renewal) check() error {
	if r.V == 0 || r.V > Version {
		return failed(checkMessage, "protocol version %d, this service speaks %d: %w", r.V, Version, ErrMessage)
	}
	if err := checkBlobs(r.LDevID, r.Recovery, r.Certify, r.CertifySig, r.Quote, r.QuoteSig, r.CertifyRec, r.CertifyRecSig); err != nil {
		return err
	}
	return checkLog(r.Log)
}

// renewBinding is what a renewal is bound to: this TLS channel, the certificate
// shown on it, the keys that are to be certified.
func renewBinding(exporter, peer, ldevid, recovery []byte) [32]byte {
	sum := sha256.Sum256(peer)
	return bind("renew-v1", exporter, sum[:], ldevid, recovery)
}

// member adds the member to a call: who it is by its certificate, and what is
// on file of it.
func (s *Server) member(do func(ctx context.Context, c call, st Standing) (any, error)) step {
	return func(ctx context.Context, c call) (any, string, error) {
		st, err := s.standing(ctx, c)
		if err != nil {
			return nil, c.id.Device, err
		}
		out, err := do(ctx, c, st)
		return out, c.id.Device, err
	}
}

func (s *Server) standing(ctx context.Context, c call) (Standing, error) {
	if c.peer == nil {
		return Standing{}, Refuse(checkIdentity, "come with the certificate of a member")
	}
	// A connection may outlive the certificate it began with.
	if now := time.Now(); now.After(c.peer.NotAfter) || now.Before(c.peer.NotBefore) {
		return Standing{}, Refuse(checkIdentity, "the certificate ended on %s; enrol again", c.peer.NotAfter.Format(time.RFC3339))
	}
	if n, _ := s.asked.next(kind{member: c.id.Device}, time.Now()); n > s.maxAsked {
		return Standing{}, errBusy // each certificate is a signature, a commit and an entry of the trail
	}
	st, err := s.o.Registry.Standing(ctx, c.id)
	if errors.Is(err, ErrRefused) && Check(err) == "" {
		err = &failure{checkIdentity, err}
	}
	return st, err
}

// speaks returns the AK of the member for which prove holds.
func (st Standing) speaks(prove func(ak []byte) error) ([]byte, error) {
	first := failed(checkKey, "no attestation key is on file; enrol again: %w", ErrRefused)
	for i, ak := range [][]byte{st.AK, st.NextAK} {
		if len(ak) == 0 {
			continue
		}
		err := prove(ak)
		if err == nil {
			return ak, nil
		}
		if i == 0 {
			first = err
		}
	}
	return nil, first
}

// renew issues another certificate for a key that the member's TPM holds, after
// fresh evidence. A recovery certificate is issued however the device booted:
// it is there for those that did not boot well.
func (s *Server) renew(ctx context.Context, c call, st Standing) (any, error) {
	req, err := decode[renewal](c.body)
	if err != nil {
		return nil, err
	}
	if err := req.check(); err != nil {
		return nil, err
	}
	if err := checkRecoveryKey(req.Recovery, req.LDevID); err != nil {
		return nil, err
	}
	b := renewBinding(c.exporter, c.peer.Raw, req.LDevID, req.Recovery)
	var pub, recovery crypto.PublicKey
	var q Quoted
	ak, err := st.speaks(func(ak []byte) (err error) {
		if pub, err = certified(ak, req.LDevID, "LDevID key", req.Certify, req.CertifySig, b); err != nil {
			return err
		}
		if len(req.Recovery) > 0 {
			if recovery, err = certified(ak, req.Recovery, "recovery key", req.CertifyRec, req.CertifyRecSig, b); err != nil {
				return err
			}
		}
		if q, err = VerifyQuote(ak, req.Quote, req.QuoteSig, req.PCRs, b); err != nil {
			return fmt.Errorf("quote: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	id := identity.Identity{Tenant: c.id.Tenant, Device: c.id.Device, Tier: st.Tier, Model: st.Model}
	out, done := renewed{}, Renewal{Shown: c.id, AK: ak, ResetCount: q.ResetCount}
	bad := s.rise(ctx, c.id, id, req, st)
	switch {
	case bad == nil:
		if out.Chain, done.Certificate, err = s.issue(id, pub); err != nil {
			return nil, err
		}
	case recovery == nil || !errors.Is(bad, ErrRefused):
		return nil, bad
	default:
		out.Check, out.Text = Check(bad), clip(bad.Error())
	}
	if recovery != nil {
		id.Role = identity.RoleRecovery
		if out.Recovery, done.Recovery, err = s.issue(id, recovery); err != nil {
			return nil, err
		}
	}
	if err := s.o.Registry.Renewed(ctx, done); err != nil {
		return nil, err
	}
	s.renewedBy(ctx, "enrol.renewed", done, map[string]string{"check": out.Check, "reason": out.Text})
	return out, nil
}

// rise says why no member's certificate may leave, or nothing. Where nobody
// judges how a device boots, what was made of its newest evidence counts, and a
// recovery certificate opens no more.
func (s *Server) rise(ctx context.Context, shown, id identity.Identity, req renewal, st Standing) error {
	switch {
	case s.o.Boot != nil:
		return s.judge(ctx, false, id, req.PCRs, req.Log)
	case shown.Role == identity.RoleRecovery:
		return Refuse(checkRecovery, "a recovery certificate opens no more where nothing judges the boot; enrol again")
	case !st.Good:
		return Refuse(checkGood, "the newest evidence of the device was not good; let it attest first")
	}
	return nil
}

// renewedBy writes a renewal down.
func (s *Server) renewedBy(ctx context.Context, kind string, r Renewal, detail map[string]string) {
	severity := "info"
	if detail["check"] != "" {
		severity = "warn"
	}
	maps.Copy(detail, map[string]string{
		"shown": r.Shown.Serial, "role": string(r.Shown.Role), "certificate": r.Certificate.Serial, "recovery": r.Recovery.Serial,
	})
	maps.DeleteFunc(detail, func(_, v string) bool { return v == "" })
	s.o.Audit(ctx, kind, severity, r.Shown.Device, detail)
}

// leaf parses the first certificate of a chain.
func leaf(chain [][]byte) (*x509.Certificate, error) {
	if len(chain) == 0 {
		return nil, errors.New("there is no certificate")
	}
	return x509.ParseCertificate(chain[0])
}
