package boot

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// SignApproval signs a state in which what was sealed under ref opens: the
// value of each register that counts, and the highest rollback floor at which
// it still does (0: any). key is the release's sealing key, P-256.
func SignApproval(key *ecdsa.PrivateKey, ref []byte, pcrs map[int][]byte, floor uint64) (Approval, error) {
	if key == nil || key.Curve != elliptic.P256() {
		return Approval{}, errors.New("sign approval: the sealing key is not ECDSA P-256")
	}
	policy, err := policyDigest(pcrs, floor)
	if err != nil {
		return Approval{}, fmt.Errorf("sign approval: %w", err)
	}
	a := Approval{PCRs: slices.Sorted(maps.Keys(pcrs)), Policy: policy, Ref: ref, Floor: floor}
	if a.Signature, err = ecdsa.SignASN1(rand.Reader, key, a.digest()); err != nil {
		return Approval{}, fmt.Errorf("sign approval: %w", err)
	}
	return a, a.check()
}

// Signed reports whether the approval was signed with the sealing key of pub.
func (a Approval) Signed(pub *ecdsa.PublicKey) bool {
	return ecdsa.VerifyASN1(pub, a.digest(), a.Signature)
}

// Fits reports whether the approval is for these register values, by number.
func (a Approval) Fits(pcrs map[int][]byte) bool {
	values := make(map[int][]byte)
	for _, p := range a.PCRs {
		values[p] = pcrs[p]
	}
	policy, err := policyDigest(values, a.Floor)
	return err == nil && string(policy) == string(a.Policy)
}

// digest is what a TPM verifies the signature over [TCG TPM 2.0 Library, part
// 3, 23.16].
func (a Approval) digest() []byte {
	sum := sha256.Sum256(slices.Concat(a.Policy, a.Ref))
	return sum[:]
}

// The rollback floor as hal/tpm defines it: NV counter 0x01800F01, of which
// this is the name, with 256 as floor 0.
const (
	floorBase   = 256
	floorPublic = "01800F01000B2206001200000008"
)

// policyDigest is hal/tpm.PolicyDigest, for a machine without a TPM: PolicyPCR,
// then PolicyNV when there is a floor.
func policyDigest(pcrs map[int][]byte, floor uint64) ([]byte, error) {
	if len(pcrs) == 0 {
		return nil, errors.New("a policy without registers would hold in any state")
	}
	if floor > maxFloor {
		return nil, fmt.Errorf("floor %d, at most %d", floor, maxFloor)
	}
	bits := make([]byte, 3)
	values := sha256.New()
	for _, p := range slices.Sorted(maps.Keys(pcrs)) {
		if p < 0 || p > 23 || len(pcrs[p]) != sha256.Size {
			return nil, fmt.Errorf("PCR %d with a value of %d bytes", p, len(pcrs[p]))
		}
		bits[p/8] |= 1 << (p % 8)
		values.Write(pcrs[p])
	}
	digest := hash(reset, unhex("0000017F"+"00000001000B03"), bits, values.Sum(nil))
	if floor > 0 {
		args := hash(binary.BigEndian.AppendUint64(nil, floorBase+floor), unhex("00000009"))
		name := slices.Concat(unhex("000B"), hash(unhex(floorPublic)))
		digest = hash(digest, unhex("00000149"), args, name)
	}
	return digest, nil
}

func hash(parts ...[]byte) []byte {
	sum := sha256.Sum256(slices.Concat(parts...))
	return sum[:]
}

// unhex is for constants.
func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic("boot: " + err.Error())
	}
	return b
}
