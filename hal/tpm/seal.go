package tpm

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

// ErrNotApproved means that the booted state, the floor or the signature is not
// what the release key approved: what is sealed stays closed.
var ErrNotApproved = errors.New("the release key did not approve this state")

// ErrOtherTPM means that something was sealed by another TPM, or by this one
// before it was cleared. Nobody can open it any more.
var ErrOtherTPM = errors.New("sealed by another TPM, or before this one was cleared")

const (
	maxSealed  = 128 // bytes; more is not required of a TPM [TCG PC Client Platform TPM Profile 1.05, MAX_SYM_DATA]
	maxRef     = 32  // bytes
	maxChanges = 8   // of registers while a policy is gone through
)

// Approval is a release key's signature over a policy: the state in which what
// is sealed may be opened.
type Approval struct {
	PCRs      []int  // registers of the SHA-256 bank that the policy names
	Policy    []byte // PolicyDigest of their values and the floor
	Ref       []byte // what Seal was called with
	Floor     uint64 // opens while the TPM's floor is at most this; 0: whatever the floor
	Signature []byte // ECDSA, ASN.1, over SHA-256(Policy || Ref) [TCG TPM 2.0 Library, part 3, 23.16]
}

// ReleaseKey returns the TPMT_PUBLIC that Seal and Unseal know a release key
// by, without a TPM. It is, with both coordinates 32 bytes big-endian:
// 0023 000B 00040040 0000 0010 0018 000B 0003 0010 0020 X 0020 Y.
func ReleaseKey(pub *ecdsa.PublicKey) ([]byte, error) {
	if pub == nil || pub.Curve != elliptic.P256() {
		return nil, errors.New("release key: not ECDSA P-256")
	}
	point, err := pub.Bytes() // 04 || X || Y
	if err != nil {
		return nil, fmt.Errorf("release key: %w", err)
	}
	area := signTemplate(false)
	area.ObjectAttributes = tpm2.TPMAObject{UserWithAuth: true, SignEncrypt: true}
	area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
	})
	return tpm2.Marshal(area), nil
}

// Seal encrypts secret (at most 128 bytes) so that only this TPM opens it, and
// only in a state that the release key approves for ref (at most 32 bytes). The
// blob is no secret; an update does not change it. On the way to the TPM the
// secret is encrypted to the storage root key.
func (t *TPM) Seal(ctx context.Context, releaseKey, ref, secret []byte) (blob []byte, err error) {
	if len(secret) == 0 || len(secret) > maxSealed {
		return nil, fmt.Errorf("seal: %d bytes, not 1 to %d: seal a key and encrypt with it", len(secret), maxSealed)
	}
	if len(ref) > maxRef {
		return nil, fmt.Errorf("seal: ref of %d bytes, not at most %d", len(ref), maxRef)
	}
	_, keyName, err := parseReleaseKey(releaseKey)
	if err != nil {
		return nil, err
	}
	calc, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return nil, err
	}
	if err := (tpm2.PolicyAuthorize{KeySign: *keyName, PolicyRef: tpm2.TPM2BDigest{Buffer: ref}}).Update(calc); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	area := tpm2.TPMTPublic{
		Type:             tpm2.TPMAlgKeyedHash,
		NameAlg:          tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, AdminWithPolicy: true, NoDA: true},
		AuthPolicy:       tpm2.TPM2BDigest{Buffer: calc.Hash().Digest},
	}
	err = t.locked(ctx, func() error {
		srk, salt, err := t.salted()
		if err != nil {
			return err
		}
		parent := auth(srk)
		parent.Auth = tpm2.HMAC(tpm2.TPMAlgSHA256, 16, salt, tpm2.AESEncryption(128, tpm2.EncryptIn))
		made, err := tpm2.Create{
			ParentHandle: parent, InPublic: tpm2.New2B(area),
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret}),
			}},
		}.Execute(t.dev)
		if err != nil {
			return fmt.Errorf("seal: %w", err)
		}
		blob = append(tpm2.Marshal(made.OutPrivate), tpm2.Marshal(made.OutPublic)...)
		return nil
	})
	return blob, err
}

// Unseal opens what Seal made. It fails with ErrNotApproved when the approval
// does not fit the release key, the ref, the booted state or the floor, and
// with ErrOtherTPM on another TPM. On the way from the TPM the secret is
// encrypted.
func (t *TPM) Unseal(ctx context.Context, releaseKey, blob []byte, a Approval) (secret []byte, err error) {
	area, _, err := parseReleaseKey(releaseKey)
	if err != nil {
		return nil, err
	}
	private, public, err := splitBlob(blob)
	if err != nil {
		return nil, err
	}
	pcrs, err := selectPCRs(a.PCRs)
	if err != nil {
		return nil, fmt.Errorf("approval: %w", err)
	}
	err = t.locked(ctx, func() error {
		srk, salt, err := t.salted()
		if err != nil {
			return err
		}
		ticket, err := t.verify(area, a)
		if err != nil {
			return err
		}
		item, err := tpm2.Load{ParentHandle: auth(srk), InPrivate: private, InPublic: public}.Execute(t.dev)
		if errors.Is(err, tpm2.TPMRCIntegrity) {
			return fmt.Errorf("load sealed object: %w: %w", ErrOtherTPM, err)
		}
		if err != nil {
			return fmt.Errorf("load sealed object: %w", err)
		}
		defer t.flush(item.ObjectHandle)
		sealed := &key{NamedHandle: tpm2.NamedHandle{Handle: item.ObjectHandle, Name: item.Name}}
		// Any PCR extended between policy and use ends the session; IMA extends
		// all the time.
		for range maxChanges {
			secret, err = t.unseal(ctx, sealed, salt, pcrs, ticket, a)
			if !errors.Is(err, tpm2.TPMRCPCRChanged) {
				return err
			}
		}
		return fmt.Errorf("unseal: registers keep changing, try again after start-up: %w", err)
	})
	return secret, err
}

func (t *TPM) unseal(ctx context.Context, sealed *key, salt tpm2.AuthOption, pcrs tpm2.TPMLPCRSelection, ticket *signed, a Approval) ([]byte, error) {
	var floor tpm2.TPM2BName
	var now uint64
	if a.Floor > 0 {
		var err error
		if floor, now, err = t.floor(ctx); err != nil {
			return nil, err
		}
	}
	sess, done, err := tpm2.PolicySession(t.dev, tpm2.TPMAlgSHA256, 16, salt, tpm2.AESEncryption(128, tpm2.EncryptOut))
	if err != nil {
		return nil, fmt.Errorf("start policy session: %w", err)
	}
	defer done() //nolint:errcheck // the next Open catches what this misses
	if _, err := (tpm2.PolicyPCR{PolicySession: sess.Handle(), Pcrs: pcrs}).Execute(t.dev); err != nil {
		return nil, fmt.Errorf("PCR policy: %w", err)
	}
	if a.Floor > 0 {
		if _, err := floorPolicy(floor, a.Floor, sess).Execute(t.dev); errors.Is(err, tpm2.TPMRCPolicy) {
			return nil, fmt.Errorf("approved up to floor %d, the TPM is at %d: update to a newer release: %w: %w", a.Floor, now, ErrNotApproved, err)
		} else if err != nil {
			return nil, fmt.Errorf("floor policy: %w", err)
		}
	}
	_, err = tpm2.PolicyAuthorize{
		PolicySession: sess.Handle(), ApprovedPolicy: tpm2.TPM2BDigest{Buffer: a.Policy}, PolicyRef: tpm2.TPM2BDigest{Buffer: a.Ref},
		KeySign: ticket.key, CheckTicket: ticket.ticket,
	}.Execute(t.dev)
	if errors.Is(err, tpm2.TPMRCValue) {
		return nil, fmt.Errorf("this boot differs from the approved one: %w: %w", ErrNotApproved, err)
	}
	if err != nil {
		return nil, fmt.Errorf("authorize policy: %w", err)
	}
	item := auth(sealed)
	item.Auth = sess
	rsp, err := tpm2.Unseal{ItemHandle: item}.Execute(t.dev)
	if errors.Is(err, tpm2.TPMRCPolicyFail) {
		return nil, fmt.Errorf("sealed for another release key or ref: %w: %w", ErrNotApproved, err)
	}
	if err != nil {
		return nil, fmt.Errorf("unseal: %w", err)
	}
	return rsp.OutData.Buffer, nil
}

// signed is the TPM's word that it has verified an approval's signature.
type signed struct {
	key    tpm2.TPM2BName
	ticket tpm2.TPMTTKVerified
}

// verify lets the TPM check the signature. The owner's hierarchy signs the
// ticket; one of the null hierarchy would be empty.
func (t *TPM) verify(area *tpm2.TPMTPublic, a Approval) (*signed, error) {
	var rs struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(a.Signature, &rs); err != nil || len(rest) > 0 || !fits(rs.R) || !fits(rs.S) {
		return nil, fmt.Errorf("approval: not an ECDSA signature: %w", ErrNotApproved)
	}
	if len(a.Policy) != sha256.Size {
		return nil, fmt.Errorf("approval: policy of %d bytes: %w", len(a.Policy), ErrNotApproved)
	}
	digest := sha256.New()
	digest.Write(a.Policy)
	digest.Write(a.Ref)
	pub, err := tpm2.LoadExternal{InPublic: tpm2.New2B(*area), Hierarchy: tpm2.TPMRHOwner}.Execute(t.dev)
	if err != nil {
		return nil, fmt.Errorf("load release key: %w", err)
	}
	defer t.flush(pub.ObjectHandle)
	rsp, err := tpm2.VerifySignature{
		KeyHandle: tpm2.NamedHandle{Handle: pub.ObjectHandle, Name: pub.Name},
		Digest:    tpm2.TPM2BDigest{Buffer: digest.Sum(nil)},
		Signature: tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash:       tpm2.TPMAlgSHA256,
			SignatureR: tpm2.TPM2BECCParameter{Buffer: rs.R.FillBytes(make([]byte, 32))},
			SignatureS: tpm2.TPM2BECCParameter{Buffer: rs.S.FillBytes(make([]byte, 32))},
		})},
	}.Execute(t.dev)
	if errors.Is(err, tpm2.TPMRCSignature) {
		return nil, fmt.Errorf("approval: signed by another key: %w: %w", ErrNotApproved, err)
	}
	if err != nil {
		return nil, fmt.Errorf("verify approval: %w", err)
	}
	return &signed{key: pub.Name, ticket: rsp.Validation}, nil
}

func fits(n *big.Int) bool { return n != nil && n.Sign() > 0 && n.BitLen() <= 256 }

// salted finds the storage root key and a session option that encrypts to it:
// a probe on the TPM's bus sees no secret.
func (t *TPM) salted() (*key, tpm2.AuthOption, error) {
	srk, err := t.srk()
	if err != nil {
		return nil, nil, err
	}
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](srk.public)
	if err != nil {
		return nil, nil, fmt.Errorf("storage root key: %w", err)
	}
	return srk, tpm2.Salted(srk.Handle, *area), nil
}

func parseReleaseKey(public []byte) (*tpm2.TPMTPublic, *tpm2.TPM2BName, error) {
	area, err := parsePublic(public)
	if err != nil {
		return nil, nil, fmt.Errorf("release key: %w", err)
	}
	name, err := tpm2.ObjectName(area)
	if err != nil {
		return nil, nil, fmt.Errorf("release key: %w", err)
	}
	return area, name, nil
}

// splitBlob takes a blob of Seal apart: TPM2B_PRIVATE, TPM2B_PUBLIC.
func splitBlob(blob []byte) (private tpm2.TPM2BPrivate, public tpm2.TPM2BPublic, err error) {
	var parts [2][]byte
	for i := range parts {
		if len(blob) < 2 || len(blob)-2 < int(binary.BigEndian.Uint16(blob)) {
			return private, public, errors.New("sealed blob is cut off")
		}
		n := 2 + int(binary.BigEndian.Uint16(blob))
		parts[i], blob = blob[2:n], blob[n:]
	}
	if len(blob) > 0 {
		return private, public, errors.New("sealed blob goes on behind its end")
	}
	area, err := parsePublic(parts[1])
	if err != nil {
		return private, public, fmt.Errorf("sealed blob: %w", err)
	}
	return tpm2.TPM2BPrivate{Buffer: parts[0]}, tpm2.New2B(*area), nil
}

// parsePublic reads a TPMT_PUBLIC and nothing behind it.
func parsePublic(b []byte) (*tpm2.TPMTPublic, error) {
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](b)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(tpm2.Marshal(*area), b) {
		return nil, errors.New("not a public area alone")
	}
	return area, nil
}
