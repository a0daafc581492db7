package tpm

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"
)

// Health is what the TPM says of itself [TCG TPM 2.0 Library, part 2, 6.13].
type Health struct {
	Manufacturer    string // four letters such as IFX, STM or IBM
	Firmware        uint64 // vendor's version: TPM_PT_FIRMWARE_VERSION_1 in the upper half, _2 in the lower
	LockoutCounter  uint32 // authorisations counted as attacks; our keys add none
	MaxAuthFail     uint32 // at this many the TPM locks; our keys still work then
	InLockout       bool
	PersistentAvail uint32 // keys that can still be persisted, as the TPM estimates
}

// inLockout is the bit of TPMA_PERMANENT.
const inLockout = 1 << 9

// Health reads the TPM's properties in two commands; a till asks every minute.
func (t *TPM) Health(ctx context.Context) (h Health, err error) {
	err = t.locked(ctx, func() error {
		fixed, err := t.properties(tpm2.TPMPTManufacturer, tpm2.TPMPTFirmwareVersion2)
		if err != nil {
			return err
		}
		now, err := t.properties(tpm2.TPMPTPermanent, tpm2.TPMPTMaxAuthFail)
		if err != nil {
			return err
		}
		h = Health{
			Manufacturer:   strings.TrimRight(string(binary.BigEndian.AppendUint32(nil, fixed[tpm2.TPMPTManufacturer])), " \x00"),
			Firmware:       uint64(fixed[tpm2.TPMPTFirmwareVersion1])<<32 | uint64(fixed[tpm2.TPMPTFirmwareVersion2]),
			LockoutCounter: now[tpm2.TPMPTLockoutCounter], MaxAuthFail: now[tpm2.TPMPTMaxAuthFail],
			InLockout: now[tpm2.TPMPTPermanent]&inLockout != 0, PersistentAvail: now[tpm2.TPMPTHRPersistentAvail],
		}
		return nil
	})
	return h, err
}

// property reads one property; 0 when the TPM does not have it.
func (t *TPM) property(id tpm2.TPMPT) (uint32, error) {
	props, err := t.properties(id, id)
	return props[id], err
}

// properties reads those from one to another of a group; one that the TPM does
// not have is missing.
func (t *TPM) properties(from, to tpm2.TPMPT) (map[tpm2.TPMPT]uint32, error) {
	props := make(map[tpm2.TPMPT]uint32)
	for from <= to {
		rsp, err := tpm2.GetCapability{
			Capability: tpm2.TPMCapTPMProperties, Property: uint32(from), PropertyCount: uint32(to - from + 1),
		}.Execute(t.dev)
		if err != nil {
			return nil, fmt.Errorf("read TPM property %#x: %w", uint32(from), err)
		}
		list, err := rsp.CapabilityData.Data.TPMProperties()
		if err != nil {
			return nil, fmt.Errorf("read TPM property %#x: %w", uint32(from), err)
		}
		// A TPM goes on with the next property it has, and may return fewer than
		// were asked for.
		for _, p := range list.TPMProperty {
			if p.Property <= to {
				props[p.Property] = p.Value
			}
		}
		n := len(list.TPMProperty)
		if n == 0 || !rsp.MoreData || list.TPMProperty[n-1].Property < from {
			break
		}
		from = list.TPMProperty[n-1].Property + 1
	}
	return props, nil
}

// Shutdown tells the TPM that the power may go: an orderly stop costs no count
// against attacks and no clock [TCG TPM 2.0 Library, part 3, 9.4]. Any command
// after it makes the stop disorderly again, so it comes last.
func (t *TPM) Shutdown(ctx context.Context) error {
	return t.locked(ctx, func() error {
		if _, err := (tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}).Execute(t.dev); err != nil {
			return fmt.Errorf("orderly stop of the TPM: %w", err)
		}
		return nil
	})
}
