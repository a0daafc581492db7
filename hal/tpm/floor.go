package tpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// The rollback floor is an NV counter. What it stands at minus floorBase is the
// floor. A new counter begins above any that the TPM ever had, so each is
// brought to the same start; that takes at most floorBase flash writes, once.
// Nothing lowers it: a counter that is removed and made again goes on above.
const (
	floorBase = 256
	floorStep = 4096 // the most that one call raises it; a wrong number must not wear out the flash
)

// floorIndex is in the owner's range [TCG Registry of Reserved TPM 2.0 Handles
// 1.1, 2.2].
const floorIndex tpm2.TPMHandle = 0x01800F01

// floorPublic is the index as it is defined. Its Name, with written set, is in
// the policies that release keys sign, so it must be the same on all devices.
func floorPublic(written bool) tpm2.TPMSNVPublic {
	return tpm2.TPMSNVPublic{
		NVIndex: floorIndex, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8,
		Attributes: tpm2.TPMANV{
			NT: tpm2.TPMNTCounter, OwnerWrite: true, OwnerRead: true, AuthRead: true, NoDA: true, Written: written,
		},
	}
}

// Floor returns the rollback floor: approvals below it are refused. It makes
// the counter when there is none, which takes seconds on a discrete TPM.
func (t *TPM) Floor(ctx context.Context) (floor uint64, err error) {
	err = t.locked(ctx, func() error {
		_, floor, err = t.floor(ctx)
		return err
	})
	return floor, err
}

// RaiseFloor brings the rollback floor to the given number unless it is there or
// above. There is no way back: raise it only after the release is committed.
func (t *TPM) RaiseFloor(ctx context.Context, to uint64) error {
	return t.locked(ctx, func() error {
		name, now, err := t.floor(ctx)
		if err != nil {
			return err
		}
		if to > now && to-now > floorStep {
			return fmt.Errorf("raise floor from %d to %d: more than %d at once", now, to, floorStep)
		}
		for ; now < to; now++ {
			if err := t.increment(ctx, name); err != nil {
				return err
			}
		}
		return nil
	})
}

// floor returns the counter's name and the floor.
func (t *TPM) floor(ctx context.Context) (tpm2.TPM2BName, uint64, error) {
	if t.noFloor != nil {
		return tpm2.TPM2BName{}, 0, t.noFloor
	}
	name, written, err := t.floorName()
	if err != nil {
		return name, 0, err
	}
	if !written {
		if err := t.firstStep(ctx, name); err != nil {
			return name, 0, err
		}
		if name, _, err = t.floorName(); err != nil {
			return name, 0, err
		}
	}
	at, err := t.readFloor(name)
	if err != nil {
		return name, 0, err
	}
	for ; at < floorBase; at++ {
		if err := t.increment(ctx, name); err != nil {
			return name, 0, err
		}
	}
	return name, at - floorBase, nil
}

// firstStep writes a counter that was only defined: it finds out where it begins.
func (t *TPM) firstStep(ctx context.Context, name tpm2.TPM2BName) error {
	if err := t.increment(ctx, name); err != nil {
		return err
	}
	name, _, err := t.floorName()
	if err != nil {
		return err
	}
	at, err := t.readFloor(name)
	if err == nil && at > floorBase {
		err = t.dropFloor(name, at)
	}
	return err
}

// floorName finds the counter or defines it, and says whether it was written.
func (t *TPM) floorName() (tpm2.TPM2BName, bool, error) {
	return t.nameOf("floor counter", floorPublic)
}

// nameOf finds a counter of ours or defines it, and says whether it was written.
func (t *TPM) nameOf(what string, public func(written bool) tpm2.TPMSNVPublic) (tpm2.TPM2BName, bool, error) {
	pub := public(false)
	index := pub.NVIndex
	rsp, err := tpm2.NVReadPublic{NVIndex: index}.Execute(t.dev)
	if errors.Is(err, tpm2.TPMRCHandle) {
		_, err = tpm2.NVDefineSpace{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, PublicInfo: tpm2.New2B(pub),
		}.Execute(t.dev)
		if err != nil {
			return tpm2.TPM2BName{}, false, fmt.Errorf("define the %s %#x: %w", what, uint32(index), full(err))
		}
		rsp, err = tpm2.NVReadPublic{NVIndex: index}.Execute(t.dev)
	}
	if err != nil {
		return tpm2.TPM2BName{}, false, fmt.Errorf("look up the %s: %w", what, err)
	}
	for _, written := range []bool{false, true} {
		pub := public(written)
		want, err := tpm2.NVName(&pub)
		if err != nil {
			return tpm2.TPM2BName{}, false, fmt.Errorf("name of the %s: %w", what, err)
		}
		if bytes.Equal(rsp.NVName.Buffer, want.Buffer) {
			return rsp.NVName, written, nil
		}
	}
	return tpm2.TPM2BName{}, false, fmt.Errorf("NV %#x %w: remove it with tpm2_nvundefine %#x", uint32(index), errOthers, uint32(index))
}

var errOthers = errors.New("belongs to other software")

func (t *TPM) increment(ctx context.Context, name tpm2.TPM2BName) error {
	return t.countOn(ctx, "floor counter", floorIndex, name)
}

// countOn raises a counter of ours by one.
func (t *TPM) countOn(ctx context.Context, what string, index tpm2.TPMHandle, name tpm2.TPM2BName) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err := tpm2.NVIncrement{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    tpm2.NamedHandle{Handle: index, Name: name},
	}.Execute(t.dev)
	if err != nil {
		return fmt.Errorf("raise the %s: %w", what, err)
	}
	return nil
}

func (t *TPM) readFloor(name tpm2.TPM2BName) (uint64, error) {
	rsp, err := tpm2.NVRead{
		AuthHandle: tpm2.AuthHandle{Handle: floorIndex, Name: name, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    tpm2.NamedHandle{Handle: floorIndex, Name: name},
		Size:       8,
	}.Execute(t.dev)
	if err != nil {
		return 0, fmt.Errorf("read the floor counter: %w", err)
	}
	if len(rsp.Data.Buffer) != 8 {
		return 0, fmt.Errorf("read the floor counter: %d bytes", len(rsp.Data.Buffer))
	}
	return binary.BigEndian.Uint64(rsp.Data.Buffer), nil
}

// dropFloor gives up on a TPM whose counters are past the start, be it that
// other software counted or that somebody removed our counter. To find it out
// costs flash writes, so that it is found out once.
func (t *TPM) dropFloor(name tpm2.TPM2BName, at uint64) error {
	_, err := tpm2.NVUndefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    tpm2.NamedHandle{Handle: floorIndex, Name: name},
	}.Execute(t.dev)
	t.noFloor = errors.Join(fmt.Errorf("a new counter of this TPM begins at %d, above %d: other software counted, or the floor counter was removed; "+
		"this device can open only what a release approves without a floor", at, floorBase), err)
	return t.noFloor
}

// PolicyDigest is the policy digest (SHA-256, 32 bytes) of a booted state: the
// value of each PCR of the SHA-256 bank that counts, and, unless it is 0, the
// highest rollback floor at which this release may still open what is sealed.
// A release pipeline computes it without a TPM and signs SHA-256(digest || ref)
// [TCG TPM 2.0 Library, part 3, 23.7, 23.9 and 23.16]. All numbers big-endian:
//
//	values = PCR values in ascending order of their index, one after another
//	bitmap = 3 bytes, bit (i mod 8) of byte (i div 8) for each index i
//	digest = SHA-256(zero32 || 0000017F || 00000001 000B 03 bitmap || SHA-256(values))
//	if floor > 0:
//	   args   = SHA-256(uint64(256 + floor) || 0000 || 0009)
//	   name   = 000B || SHA-256(01800F01 000B 22060012 0000 0008)
//	   digest = SHA-256(digest || 00000149 || args || name)
func PolicyDigest(pcrs map[int][]byte, floor uint64) ([]byte, error) {
	calc, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return nil, err
	}
	indices := slices.Sorted(maps.Keys(pcrs))
	sel, err := selectPCRs(indices)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	for _, i := range indices {
		if len(pcrs[i]) != sha256.Size {
			return nil, fmt.Errorf("PCR %d has %d bytes, not %d", i, len(pcrs[i]), sha256.Size)
		}
		h.Write(pcrs[i])
	}
	if err := (tpm2.PolicyPCR{PcrDigest: tpm2.TPM2BDigest{Buffer: h.Sum(nil)}, Pcrs: sel}).Update(calc); err != nil {
		return nil, fmt.Errorf("PCR policy: %w", err)
	}
	if floor > 0 {
		pub := floorPublic(true)
		name, err := tpm2.NVName(&pub)
		if err != nil {
			return nil, fmt.Errorf("name of the floor counter: %w", err)
		}
		if err := floorPolicy(*name, floor, nil).Update(calc); err != nil {
			return nil, fmt.Errorf("floor policy: %w", err)
		}
	}
	return calc.Hash().Digest, nil
}

// floorPolicy holds while the counter stands at floor or below.
func floorPolicy(name tpm2.TPM2BName, floor uint64, sess tpm2.Session) tpm2.PolicyNV {
	p := tpm2.PolicyNV{
		AuthHandle: tpm2.AuthHandle{Handle: floorIndex, Name: name, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    tpm2.NamedHandle{Handle: floorIndex, Name: name},
		OperandB:   tpm2.TPM2BOperand{Buffer: binary.BigEndian.AppendUint64(nil, floorBase+floor)},
		Operation:  tpm2.TPMEOUnsignedLE,
	}
	if sess != nil {
		p.PolicySession = sess.Handle()
	}
	return p
}

// selectPCRs names registers of the SHA-256 bank. None at all would be a policy
// that any state satisfies.
func selectPCRs(indices []int) (tpm2.TPMLPCRSelection, error) {
	if len(indices) == 0 {
		return tpm2.TPMLPCRSelection{}, errors.New("a policy without PCRs would hold in any state")
	}
	bits := make([]byte, 3)
	for _, i := range indices {
		if i < 0 || i > 23 {
			return tpm2.TPMLPCRSelection{}, fmt.Errorf("PCR %d: only 0 to 23", i)
		}
		bits[i/8] |= 1 << (i % 8)
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: bits}}}, nil
}
