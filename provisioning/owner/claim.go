package owner

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/tillward/tillward/provisioning/identity"
)

const (
	claimDomain = "tillward-claim-v1"
	claimKey    = "tillward-claim-key-v1"
	claimURI    = "tillward:claim?d="

	codeLen   = 20 // characters of 5 random bits each
	groupLen  = 5
	maxClaim  = 128                                // bytes that ParseClaim looks at
	crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ" // no I, L, O, U
)

// Claim is the one-time code on the label of a device. Whoever holds it may
// claim the device, so only its Hash is ever stored.
type Claim struct {
	Device string // device id; empty when a person typed the code alone
	Code   string // 20 Crockford characters and a check character, as printed: "01234-56789-ABCDE-FGHJK-M"
}

// NewClaim makes the code of a device, 100 random bits.
func NewClaim(device string) Claim {
	random := make([]byte, codeLen)
	_, _ = rand.Read(random) // never fails
	code := make([]byte, codeLen)
	for i, b := range random {
		code[i] = crockford[b&31]
	}
	return Claim{Device: device, Code: group(string(code) + string(check(string(code))))}
}

// ParseClaim reads what a person typed or a scanner read: the code alone, or
// the label's whole URI. Case, spaces and hyphens do not matter, nor do O for 0
// and I or L for 1. A slip of one character, or two neighbours swapped, is
// found. Errors: ErrMalformed; they never hold the code.
func ParseClaim(text string) (Claim, error) {
	if len(text) > maxClaim {
		return Claim{}, fmt.Errorf("claim of %d bytes: %w", len(text), ErrMalformed)
	}
	var c Claim
	text = strings.TrimSpace(text)
	if len(text) >= len(claimURI) && strings.EqualFold(text[:len(claimURI)], claimURI) {
		device, code, ok := strings.Cut(text[len(claimURI):], "&c=")
		if !ok || !identity.ValidDevice(device) {
			return Claim{}, fmt.Errorf("claim code: not a label of a device: %w", ErrMalformed)
		}
		c.Device, text = device, code
	}
	code := strings.NewReplacer(" ", "", "-", "", "O", "0", "I", "1", "L", "1").Replace(strings.ToUpper(text))
	if len(code) != codeLen+1 || strings.Trim(code, crockford) != "" {
		return Claim{}, fmt.Errorf("claim code: %d letters and digits expected, compare it with the label: %w", codeLen+1, ErrMalformed)
	}
	if code[codeLen] != check(code[:codeLen]) {
		return Claim{}, fmt.Errorf("claim code: the last character does not fit the rest, compare it with the label: %w", ErrMalformed)
	}
	c.Code = group(code)
	return c, nil
}

// URI is what the label's QR code holds.
func (c Claim) URI() string { return claimURI + c.Device + "&c=" + c.Code }

// Hash is what manifest and service hold of the code: hex SHA-256 over a
// domain, the device and the code. Codes of other devices say nothing about
// it, and 100 random bits are beyond guessing.
func (c Claim) Hash() string {
	sum := sha256.Sum256(signed([]byte(claimDomain), []byte(c.Device), []byte(c.Code)))
	return hex.EncodeToString(sum[:])
}

// Matches reports whether the code is the one that hash was made from.
func (c Claim) Matches(hash string) bool {
	return c.Device != "" && subtle.ConstantTimeCompare([]byte(c.Hash()), []byte(hash)) == 1
}

// Key is the key that the code stands for. A vendor who does not know the
// buyer offers the voucher to its public half (Bearer); whoever holds the label
// accepts with it and passes the device on to himself at once.
func (c Claim) Key() ed25519.PrivateKey {
	seed := sha256.Sum256(signed([]byte(claimKey), []byte(c.Device), []byte(c.Code)))
	return ed25519.NewKeyFromSeed(seed[:])
}

// Bearer is the party that holds the label.
func (c Claim) Bearer() Party {
	return Party{Key: c.Key().Public().(ed25519.PublicKey), Name: "bearer of the label"}
}

func group(code string) string {
	var b strings.Builder
	for i, r := range code {
		if i > 0 && i%groupLen == 0 {
			b.WriteByte('-')
		}
		b.WriteRune(r)
	}
	return b.String()
}

// check is a polynomial over GF(32), x^5+x^2+1, at its generator: each
// character has another weight, so that one wrong character and two swapped
// neighbours always show.
func check(code string) byte {
	var c int
	for i := range len(code) {
		c = times2(c) ^ strings.IndexByte(crockford, code[i])
	}
	return crockford[times2(c)]
}

func times2(v int) int {
	v <<= 1
	if v > 31 {
		v ^= 0b100101
	}
	return v
}
