// Package trust says who may sign what, and checks it: orders from the fleet
// service (commands and offers, an online key), releases (TUF, offline keys),
// and vendors' lists of endorsement keys.
//
// It deals in bytes and files; what an order means is for others. It promises
// that a device can be made to run nothing but a target that the release keys
// signed, that is not expired and that replaces no newer metadata - whatever
// the fleet service, the network or a thief of the timestamp key does
// [TUF specification 1.0.31].
//
// It exports more names than other rooms because it holds both ends: what
// signs offline and what verifies on the device.
package trust

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// Errors of orders and lists.
var (
	ErrUnknownKey   = errors.New("signed with a key that is not trusted")
	ErrBadSignature = errors.New("signature does not match")
)

const orderDomain = "tillward-order-v1"

// OrderSigner signs orders with the fleet service's online key.
type OrderSigner struct {
	id  string
	key ed25519.PrivateKey
}

// NewOrderSigner returns a signer for key.
func NewOrderSigner(key ed25519.PrivateKey) *OrderSigner {
	return &OrderSigner{id: KeyID(key.Public().(ed25519.PublicKey)), key: key}
}

// KeyID names a public key: the first 8 bytes of its SHA-256, in hex.
func KeyID(pub ed25519.PublicKey) string {
	sum := sha256.Sum256(pub)
	return hex.EncodeToString(sum[:8])
}

// Public returns the id and the key devices verify with.
func (s *OrderSigner) Public() (id string, key ed25519.PublicKey) {
	return s.id, s.key.Public().(ed25519.PublicKey)
}

// SignOrder signs payload as an order of the given kind.
func (s *OrderSigner) SignOrder(kind string, payload []byte) (keyID string, signature []byte, err error) {
	sig, err := s.key.Sign(nil, signed(orderDomain, kind, payload), &ed25519.Options{})
	if err != nil {
		return "", nil, fmt.Errorf("sign %s: %w", kind, err)
	}
	return s.id, sig, nil
}

// Keyring holds the public keys orders may be signed with, by id.
type Keyring map[string]ed25519.PublicKey

// VerifyOrder checks the signature of an order. Errors: ErrUnknownKey,
// ErrBadSignature.
func (k Keyring) VerifyOrder(kind string, payload []byte, keyID string, signature []byte) error {
	pub, ok := k[keyID]
	if !ok {
		return fmt.Errorf("%s by key %.32q: %w", kind, keyID, ErrUnknownKey)
	}
	if len(pub) != ed25519.PublicKeySize || !ed25519.Verify(pub, signed(orderDomain, kind, payload), signature) {
		return fmt.Errorf("%s by key %s: %w", kind, keyID, ErrBadSignature)
	}
	return nil
}

// signed is what a signature covers: a domain, the kind and the payload, each
// with its length, so that nothing can be read as something else.
func signed(domain, kind string, payload []byte) []byte {
	out := make([]byte, 0, 12+len(domain)+len(kind)+len(payload))
	for _, part := range [][]byte{[]byte(domain), []byte(kind), payload} {
		out = binary.BigEndian.AppendUint32(out, uint32(len(part))) // #nosec G115 -- messages have at most 64 KiB
		out = append(out, part...)
	}
	return out
}

const listDomain = "tillward-ek-list-v1"

// ListedEK is one line of a vendor's batch: a TPM that left the line.
type ListedEK struct {
	EKHash string `json:"ek_sha256"` // hex SHA-256 of the EK's TPMT_PUBLIC
	Model  string `json:"model"`
	Serial string `json:"serial"`
}

// List is a vendor's signed batch.
type List struct {
	Entries   json.RawMessage `json:"entries"` // []ListedEK, as signed
	KeyID     string          `json:"key_id"`
	Signature []byte          `json:"signature"`
}

// SignList signs a batch with the vendor's key.
func SignList(key ed25519.PrivateKey, entries []ListedEK) (List, error) {
	raw, err := json.Marshal(entries)
	if err != nil {
		return List{}, fmt.Errorf("encode list: %w", err)
	}
	return List{
		Entries: raw, KeyID: KeyID(key.Public().(ed25519.PublicKey)), Signature: ed25519.Sign(key, signed(listDomain, "", raw)),
	}, nil
}

// VerifyList checks a batch against the vendor's public key and returns its
// lines.
func VerifyList(pub ed25519.PublicKey, l List) ([]ListedEK, error) {
	if l.KeyID != KeyID(pub) {
		return nil, fmt.Errorf("list by key %.32q: %w", l.KeyID, ErrUnknownKey)
	}
	if !ed25519.Verify(pub, signed(listDomain, "", l.Entries), l.Signature) {
		return nil, fmt.Errorf("list: %w", ErrBadSignature)
	}
	var out []ListedEK
	if err := json.Unmarshal(l.Entries, &out); err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	for _, e := range out {
		if b, err := hex.DecodeString(e.EKHash); err != nil || len(b) != sha256.Size {
			return nil, fmt.Errorf("list: ek_sha256 %.80q is not a SHA-256 in hex", e.EKHash)
		}
	}
	return out, nil
}
