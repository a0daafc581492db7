package wire

import (
	"crypto/sha256"
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
	Prev     [32]byte          `cbor:"8,keyasint"` // Hash of the entry before; zero for the first
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
