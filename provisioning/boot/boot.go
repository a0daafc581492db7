// Package boot knows how a device booted and how it should have: it reads the
// firmware's event log, holds the reference values that are signed with a
// release, and appraises the one against the other.
//
// It promises that no register counts by its log alone or its value alone: what
// a policy names must have been quoted and must be what the events of the log
// add up to. Of an event only register and digest decide; its type and its data
// are the device's word and only explain. Every refusal names check, register,
// event and release. It does not check the quote that the register values come
// from [provisioning/enrol], keeps nothing and asks nobody.
//
// The package exports more than eight names: the document of a release with its
// parts, and an appraisal with its parts, are what engineer, service and device
// share.
package boot

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
)

// Quoted are the registers that a TPM signs, in the order of their values: PCR 0
// to 9, and 11, which holds the parts of a unified kernel image. Agents of
// before 2026-11-27 quote the first ten. PCR 10 is never quoted: the kernel goes
// on extending it.
var Quoted = [...]int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11}

const imageParts = 11 // the register that not everybody quotes

// Limits of an event log.
const (
	MaxLog  = 56 << 10 // bytes packed, as a message takes it
	maxRaw  = 1 << 20  // bytes unpacked
	maxWhat = 128      // bytes
	maxSeen = 1024     // events; firmware writes 80 to 300
)

// Event is one measurement that a register's value proves. Type and What are
// the device's word.
type Event struct {
	PCR    int
	Type   uint32
	Digest [sha256.Size]byte
	What   string // name of the type and, where readable, what it is: printable ASCII, at most 128 bytes
}

// ErrLog is returned for an event log that cannot be read or does not add up to
// the register values; the text names the register.
var ErrLog = errors.New("event log does not hold")

// Pack compresses a log for a message. A log that stays above MaxLog is ErrLog.
func Pack(raw []byte) ([]byte, error) {
	if len(raw) > maxRaw {
		return nil, fmt.Errorf("event log of %d bytes, at most %d: %w", len(raw), maxRaw, ErrLog)
	}
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(raw); err != nil {
		return nil, fmt.Errorf("pack event log: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("pack event log: %w", err)
	}
	if b.Len() > MaxLog {
		return nil, fmt.Errorf("event log of %d bytes packed, at most %d: %w", b.Len(), MaxLog, ErrLog)
	}
	return b.Bytes(), nil
}

// Unpack is the inverse of Pack. It never makes more than a mebibyte out of
// what a device sends.
func Unpack(packed []byte) ([]byte, error) {
	if len(packed) > MaxLog {
		return nil, fmt.Errorf("event log of %d bytes packed, at most %d: %w", len(packed), MaxLog, ErrLog)
	}
	in := bytes.NewReader(packed)
	r, err := gzip.NewReader(in)
	if err != nil {
		return nil, fmt.Errorf("unpack event log: %w: %w", ErrLog, err)
	}
	r.Multistream(false)
	raw, err := io.ReadAll(io.LimitReader(r, maxRaw+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("unpack event log: %w: %w", ErrLog, err)
	case len(raw) > maxRaw:
		return nil, fmt.Errorf("event log of more than %d bytes: %w", maxRaw, ErrLog)
	case in.Len() > 0:
		return nil, fmt.Errorf("event log goes on behind its end: %w", ErrLog)
	}
	return raw, nil
}
