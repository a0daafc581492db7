package tpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/google/go-tpm/tpm2"
)

// The floor of the release root is the highest version of the TUF root that
// this box has verified. It is a field of bits that can be set and never
// cleared [TCG TPM 2.0 Library, part 1, 37.2.4], one for each version. A
// counter would be the obvious thing, but a new counter begins above any that
// the TPM ever had: it would cost hundreds of flash writes to bring it to a
// start that is the same everywhere, and, made first, it would push the counter
// of the sealing floor past its own start.
//
// What removes the index, with the owner's authorization or by clearing the TPM,
// removes the floor; the one on the disk stays then. Who can do that holds the
// running system or the box and its firmware password.
const (
	rootIndices = 4
	rootBits    = 64 // of one index
)

// rootIndex is the first of rootIndices, in the owner's range like floorIndex.
const rootIndex tpm2.TPMHandle = 0x01800F02

// rootPublic is the index as it is defined.
func rootPublic(index tpm2.TPMHandle, written bool) tpm2.TPMSNVPublic {
	return tpm2.TPMSNVPublic{
		NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8,
		Attributes: tpm2.TPMANV{
			NT: tpm2.TPMNTBits, OwnerWrite: true, OwnerRead: true, AuthRead: true, NoDA: true, Written: written,
		},
	}
}

// RootFloor returns the highest version of the release root that RaiseRootFloor
// was called with; 0 when it never was.
func (t *TPM) RootFloor(ctx context.Context) (floor uint64, err error) {
	err = t.locked(ctx, func() error {
		for i := rootIndices - 1; i >= 0; i-- {
			_, value, err := t.rootBits(rootIndex + tpm2.TPMHandle(i))
			if err != nil {
				return err
			}
			if value != 0 {
				floor = uint64(i*rootBits + bits.Len64(value)) // #nosec G115 -- at most 256
				return nil
			}
		}
		return nil
	})
	return floor, err
}

// RaiseRootFloor brings the floor of the release root to a version, or to 256,
// which is as far as it goes, unless it is there or above. There is no way back.
func (t *TPM) RaiseRootFloor(ctx context.Context, to uint64) error {
	if to == 0 {
		return nil
	}
	to = min(to, rootIndices*rootBits)                   // beyond, the floor on the disk counts: a box must not lose its updates for it
	index := rootIndex + tpm2.TPMHandle((to-1)/rootBits) // #nosec G115 -- at most 3
	bit := uint64(1) << ((to - 1) % rootBits)
	return t.locked(ctx, func() error {
		name, value, err := t.rootBits(index)
		if err != nil || value >= bit {
			return err
		}
		if len(name.Buffer) == 0 {
			if err := t.defineRoot(index); err != nil {
				return err
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := t.setBits(index, bit); err != nil {
			return fmt.Errorf("raise the floor of the release root: %w", err)
		}
		return nil
	})
}

func (t *TPM) defineRoot(index tpm2.TPMHandle) error {
	_, err := tpm2.NVDefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, PublicInfo: tpm2.New2B(rootPublic(index, false)),
	}.Execute(t.dev)
	if err != nil {
		return fmt.Errorf("define the floor of the release root %#x: %w", uint32(index), full(err))
	}
	return nil
}

// setBits is TPM2_NV_SetBits [TCG TPM 2.0 Library, part 3, 31.10], which go-tpm
// v0.9.8 does not have, with the owner's empty password.
func (t *TPM) setBits(index tpm2.TPMHandle, bits uint64) error {
	const length = 10 + 4 + 4 + 4 + 9 + 8
	cmd := make([]byte, 0, length)
	cmd = binary.BigEndian.AppendUint16(cmd, uint16(tpm2.TPMSTSessions))
	for _, n := range []uint32{length, uint32(tpm2.TPMCCNVSetBits), uint32(tpm2.TPMRHOwner), uint32(index), 9, uint32(tpm2.TPMRSPW)} {
		cmd = binary.BigEndian.AppendUint32(cmd, n)
	}
	cmd = append(cmd, 0, 0, 0, 0, 0) // no nonce, no attributes, no password
	rsp, err := t.dev.Send(binary.BigEndian.AppendUint64(cmd, bits))
	if err != nil {
		return err
	}
	if len(rsp) < 10 {
		return fmt.Errorf("answer of %d bytes", len(rsp))
	}
	if rc := tpm2.TPMRC(binary.BigEndian.Uint32(rsp[6:])); rc != tpm2.TPMRCSuccess {
		return rc
	}
	return nil
}

// rootBits returns name and value of an index; no name when it is not defined.
func (t *TPM) rootBits(index tpm2.TPMHandle) (tpm2.TPM2BName, uint64, error) {
	rsp, err := tpm2.NVReadPublic{NVIndex: index}.Execute(t.dev)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return tpm2.TPM2BName{}, 0, nil
	}
	if err != nil {
		return tpm2.TPM2BName{}, 0, fmt.Errorf("look up the floor of the release root: %w", err)
	}
	is := func(written bool) bool {
		pub := rootPublic(index, written)
		want, err := tpm2.NVName(&pub)
		return err == nil && bytes.Equal(rsp.NVName.Buffer, want.Buffer)
	}
	switch {
	case is(false): // defined, and the power was cut before its first bit
		return rsp.NVName, 0, nil
	case !is(true):
		return tpm2.TPM2BName{}, 0, fmt.Errorf("NV %#x belongs to other software: remove it with tpm2_nvundefine %#x", uint32(index), uint32(index))
	}
	got, err := tpm2.NVRead{
		AuthHandle: tpm2.AuthHandle{Handle: index, Name: rsp.NVName, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    tpm2.NamedHandle{Handle: index, Name: rsp.NVName}, Size: 8,
	}.Execute(t.dev)
	if err != nil {
		return tpm2.TPM2BName{}, 0, fmt.Errorf("read the floor of the release root: %w", err)
	}
	if len(got.Data.Buffer) != 8 {
		return tpm2.TPM2BName{}, 0, fmt.Errorf("read the floor of the release root: %d bytes", len(got.Data.Buffer))
	}
	return rsp.NVName, binary.BigEndian.Uint64(got.Data.Buffer), nil
}
