// Package owner says what left a vendor's line and whose it is since: the
// signed manifest of a batch, the claim code on a device's label, and the
// ownership voucher - a chain of signed statements from the vendor to the
// present owner.
//
// It promises that nobody becomes owner without a statement of the owner
// before him and one of his own, that the vendor's way around a lost owner is
// slow and can be stopped by the owner, and that a chain which was seen once
// can only grow. It reads no clock and no file, holds no keys and keeps no
// state: the caller remembers the Mark of each chain.
//
// It exports more names, and is larger, than other rooms because vendor, service and device
// each need one end of the same three documents, which must not drift apart.
package owner

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/tillward/tillward/provisioning/identity"
)

// Errors that callers decide on. They are wrapped with what was wrong.
var (
	ErrMalformed = errors.New("malformed")
	ErrVersion   = errors.New("of a version that this program does not know; update it")
	ErrLimit     = errors.New("beyond the limits")
	ErrDuplicate = errors.New("listed twice")
	ErrSignature = errors.New("signature does not match")
	ErrState     = errors.New("not possible as the voucher stands")
	ErrEarly     = errors.New("not effective yet")
	ErrSealed    = errors.New("the owner may not pass the device on, other than back to whom it came from")
	ErrStale     = errors.New("voucher is older than, or contradicts, one that was seen before")
)

// Limits of names in every document of this room, in bytes.
const maxName = 64

// encoding is that of device ids [identity.DeviceID].
var encoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// DeviceOf returns the device id that belongs to the SHA-256 of an EK's public
// area, as identity.DeviceID does for the area itself.
func DeviceOf(ekHash [sha256.Size]byte) string { return encoding.EncodeToString(ekHash[:15]) }

// signed is what a signature or a hash covers: each part with its length, so
// that nothing can be read as something else.
func signed(parts ...[]byte) []byte {
	n := 0
	for _, p := range parts {
		n += 4 + len(p)
	}
	out := make([]byte, 0, n)
	for _, p := range parts {
		out = binary.BigEndian.AppendUint32(out, uint32(len(p))) // #nosec G115 -- documents have at most 64 MiB
		out = append(out, p...)
	}
	return out
}

func keyID(pub ed25519.PublicKey) string {
	sum := sha256.Sum256(pub)
	return hex.EncodeToString(sum[:8])
}

// checkName refuses what could not stand on a label or in a log line.
func checkName(what, s string, needed bool) error {
	switch {
	case s == "" && needed:
		return fmt.Errorf("%s is missing: %w", what, ErrMalformed)
	case len(s) > maxName:
		return fmt.Errorf("%s has %d bytes, at most %d: %w", what, len(s), maxName, ErrLimit)
	case !utf8.ValidString(s) || strings.TrimSpace(s) != s || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 }):
		return fmt.Errorf("%s %q: %w", what, s, ErrMalformed)
	}
	return nil
}

// checkModel allows what a device certificate can carry [identity.Template].
func checkModel(s string) error {
	if strings.ContainsFunc(s, func(r rune) bool { return r > '~' }) {
		return fmt.Errorf("model %q: only printable ASCII fits a certificate: %w", s, ErrMalformed)
	}
	return checkName("model", s, true)
}

// checkDevice ties a device id to the hash of its EK.
func checkDevice(device string, ekHash []byte) error {
	if len(ekHash) != sha256.Size {
		return fmt.Errorf("hash of the EK has %d bytes: %w", len(ekHash), ErrMalformed)
	}
	if !identity.ValidDevice(device) || device != DeviceOf([sha256.Size]byte(ekHash)) {
		return fmt.Errorf("device %.40q is not that of its EK: %w", device, ErrMalformed)
	}
	return nil
}
