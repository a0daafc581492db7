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

// Health reads the TPM's properties; none of them costs the TPM much.
func (t *TPM) Health(ctx context.Context) (h Health, err error) {
	err = t.locked(ctx, func() error {
		var fw1, fw2, maker, permanent uint32
		for _, p := range []struct {
			id  tpm2.TPMPT
			out *uint32
		}{
			{tpm2.TPMPTManufacturer, &maker},
			{tpm2.TPMPTFirmwareVersion1, &fw1},
			{tpm2.TPMPTFirmwareVersion2, &fw2},
			{tpm2.TPMPTPermanent, &permanent},
			{tpm2.TPMPTLockoutCounter, &h.LockoutCounter},
			{tpm2.TPMPTMaxAuthFail, &h.MaxAuthFail},
			{tpm2.TPMPTHRPersistentAvail, &h.PersistentAvail},
		} {
			if *p.out, err = t.property(p.id); err != nil {
				return err
			}
		}
		h.Manufacturer = strings.TrimRight(string(binary.BigEndian.AppendUint32(nil, maker)), " \x00")
		h.Firmware = uint64(fw1)<<32 | uint64(fw2)
		h.InLockout = permanent&inLockout != 0
		return nil
	})
	return h, err
}

// property reads one property; 0 when the TPM does not have it.
func (t *TPM) property(id tpm2.TPMPT) (uint32, error) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(id), PropertyCount: 1}.Execute(t.dev)
	if err != nil {
		return 0, fmt.Errorf("read TPM property %#x: %w", uint32(id), err)
	}
	props, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil {
		return 0, fmt.Errorf("read TPM property %#x: %w", uint32(id), err)
	}
	// A TPM answers with the next property when it does not have this one.
	if len(props.TPMProperty) == 0 || props.TPMProperty[0].Property != id {
		return 0, nil
	}
	return props.TPMProperty[0].Value, nil
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
