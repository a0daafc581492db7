package wire

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// AuditRecord is what happened, before it is chained.
type AuditRecord struct {
	Seq      uint64            `cbor:"1,keyasint"` // counts from 1 for the life of the device, never reused
	At       int64             `cbor:"2,keyasint"` // Unix milliseconds
	Boot     Boot              `cbor:"3,keyasint"`
	Kind     string            `cbor:"4,keyasint"` // enrol.done, link.up, command.done, update.committed, peripheral.fault, ...
	Severity string            `cbor:"5,keyasint"` // info, warn, alarm
	Subject  string            `cbor:"6,keyasint,omitempty"`
	Detail   map[string]string `cbor:"7,keyasint,omitempty"`
	Prev     [32]byte          `cbor:"8,keyasint"`            // Hash of the entry before; zero for the first
	Mono     int64             `cbor:"9,keyasint,omitempty"`  // milliseconds since the box was switched on; At may jump, this does not
	Clock    string            `cbor:"10,keyasint,omitempty"` // what At rests on: ClockNone, ...
	Actor    string            `cbor:"11,keyasint,omitempty"` // who did it, e.g. operator:ada, service, person; empty: the device itself
	Outcome  string            `cbor:"12,keyasint,omitempty"` // success, failure, refused; empty: nothing was tried
	Anchor   *Anchor           `cbor:"13,keyasint,omitempty"` // of kind audit.anchor
	Break    *Break            `cbor:"14,keyasint,omitempty"` // of kind audit.break
}

// What the wall time of a record rests on.
const (
	ClockNone = "none" // nothing: no battery, and nobody told it
	ClockRTC  = "rtc"  // a clock that went on while the box was off
	ClockHeld = "held" // at least as late as the service's certificate
	ClockSync = "sync" // kept in step by NTP or PTP
)

// Outcomes of a record.
const (
	Success = "success"
	Failure = "failure"
	Refused = "refused"
)

// Anchor is a TPM's word that a chain had come this far: a certified reading of
// a counter that only grows [TPM 2.0 part 3, 31.16 TPM2_NV_Certify], bound to
// the entry before by AnchorBinding and signed by the attestation key. An
// anchor cannot be made anew with an older count.
type Anchor struct {
	Attest    []byte `cbor:"1,keyasint"` // TPMS_ATTEST of type TPM_ST_ATTEST_NV
	Signature []byte `cbor:"2,keyasint"` // ECDSA P-256 over SHA-256, r and s, 32 bytes each
	Counter   uint64 `cbor:"3,keyasint"` // as Attest says
	Why       string `cbor:"4,keyasint"` // boot, stop, count, time, break
}

// Break says that entries were lost with a damaged file: what is known for
// certain ends at Seq, what may have been written ends before the record's own
// number. The anchor that follows signs it.
type Break struct {
	Seq  uint64   `cbor:"1,keyasint"`
	Hash [32]byte `cbor:"2,keyasint"` // of entry Seq; zero when there is none
}

// AnchorBinding is what an anchor is bound to: the head of the chain at that
// moment, which is the entry before the anchor's own.
func AnchorBinding(device string, seq uint64, hash [32]byte) [32]byte {
	h := sha256.New()
	h.Write([]byte("tillward audit anchor v1\x00" + device + "\x00"))
	_ = binary.Write(h, binary.BigEndian, seq) // a hash takes everything
	h.Write(hash[:])
	return [32]byte(h.Sum(nil))
}

// AuditEntry is one link of a device's audit chain: Body is an AuditRecord as
// it was written, Hash is SHA-256 of Body. Body holds the previous hash, so a
// changed, missing or added entry breaks every hash behind it.
type AuditEntry struct {
	Body []byte   `cbor:"1,keyasint"`
	Hash [32]byte `cbor:"2,keyasint"`
}

// SealAudit encodes r and hashes it. The caller sets Seq and Prev.
func SealAudit(r AuditRecord) (AuditEntry, error) {
	if err := r.check(); err != nil {
		return AuditEntry{}, err
	}
	b, err := encMode.Marshal(r)
	if err != nil {
		return AuditEntry{}, fmt.Errorf("encode audit record: %w", err)
	}
	if len(b) > MaxAuditBody {
		return AuditEntry{}, fmt.Errorf("audit record of %d bytes: %w", len(b), ErrLimit)
	}
	return AuditEntry{Body: b, Hash: sha256.Sum256(b)}, nil
}

// Open decodes the entry's record after checking its hash.
func (e AuditEntry) Open() (AuditRecord, error) {
	var r AuditRecord
	if len(e.Body) > MaxAuditBody {
		return r, fmt.Errorf("audit record of %d bytes: %w", len(e.Body), ErrLimit)
	}
	if sha256.Sum256(e.Body) != e.Hash {
		return r, fmt.Errorf("audit record does not match its hash: %w", ErrMalformed)
	}
	if err := decMode.Unmarshal(e.Body, &r); err != nil {
		return AuditRecord{}, fmt.Errorf("audit record: %w: %w", ErrMalformed, err)
	}
	return r, r.check()
}

func (r AuditRecord) check() error {
	if r.Seq == 0 {
		return fmt.Errorf("audit record without sequence: %w", ErrMalformed)
	}
	if err := checkName("audit kind", r.Kind); err != nil {
		return err
	}
	switch r.Severity {
	case "info", "warn", "alarm":
	default:
		return fmt.Errorf("audit severity %.20q: %w", r.Severity, ErrMalformed)
	}
	if err := checkText("audit subject", r.Subject); err != nil {
		return err
	}
	if err := checkText("audit actor", r.Actor); err != nil {
		return err
	}
	for _, s := range []string{r.Clock, r.Outcome} {
		if err := checkCode("audit clock or outcome", s); err != nil {
			return err
		}
	}
	if a := r.Anchor; a != nil {
		if len(a.Attest) == 0 || len(a.Attest) > 512 || len(a.Signature) != 64 {
			return fmt.Errorf("audit anchor without attestation or signature: %w", ErrMalformed)
		}
		if err := checkName("reason of an audit anchor", a.Why); err != nil {
			return err
		}
	}
	if r.Break != nil && r.Break.Seq >= r.Seq {
		return fmt.Errorf("audit break that lies ahead: %w", ErrMalformed)
	}
	if err := checkCount("audit details", len(r.Detail), 16); err != nil {
		return err
	}
	for k, v := range r.Detail {
		if err := checkName("audit detail", k); err != nil {
			return err
		}
		if err := checkText("audit detail "+k, v); err != nil {
			return err
		}
	}
	return nil
}

// AuditBatch carries consecutive entries of the chain.
type AuditBatch struct {
	Head    Head         `cbor:"1,keyasint"`
	Entries []AuditEntry `cbor:"2,keyasint"`
}

// Check implements Message. It checks sizes only; whether the chain holds is
// for the reader to decide with AuditEntry.Open.
func (m *AuditBatch) Check() error {
	if err := m.Head.check(); err != nil {
		return err
	}
	if len(m.Entries) == 0 {
		return fmt.Errorf("audit batch without entries: %w", ErrMalformed)
	}
	if err := checkCount("audit entries", len(m.Entries), MaxBatch); err != nil {
		return err
	}
	for _, e := range m.Entries {
		if len(e.Body) == 0 || len(e.Body) > MaxAuditBody {
			return fmt.Errorf("audit record of %d bytes: %w", len(e.Body), ErrLimit)
		}
	}
	return nil
}
