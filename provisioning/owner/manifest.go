package owner

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Limits of a manifest.
const (
	MaxListed   = 100_000
	MaxManifest = 64 << 20 // bytes

	manifestVersion = 1
	manifestDomain  = "tillward-manifest-v1"
)

// Manifest is a vendor's batch: the devices that left the line, signed with
// the vendor's batch key. It takes the place of a list of EKs (trust.List).
type Manifest struct {
	Version int       `json:"version"` // set by SignManifest
	Vendor  string    `json:"vendor"`
	Batch   string    `json:"batch"`
	Order   string    `json:"order,omitempty"` // number of the order the batch was made for
	MadeAt  time.Time `json:"made_at"`
	Entries []Listed  `json:"entries"`
}

// Listed is one device of a batch. Device and ClaimHash follow from the EK and
// the label; SignManifest sets an empty Device.
type Listed struct {
	EKHash    string `json:"ek_sha256"` // hex SHA-256 of the EK's TPMT_PUBLIC, lower case
	Device    string `json:"device"`
	Model     string `json:"model"`
	Serial    string `json:"serial"`
	ClaimHash string `json:"claim_sha256,omitempty"` // Claim.Hash; empty when the device has no label
}

type signedManifest struct {
	Manifest  json.RawMessage `json:"manifest"` // as signed
	KeyID     string          `json:"key_id"`
	Signature []byte          `json:"signature"`
}

// SignManifest returns the file of a manifest, one line of JSON. Errors:
// ErrMalformed, ErrLimit, ErrDuplicate.
func SignManifest(key ed25519.PrivateKey, m Manifest) ([]byte, error) {
	m.Version = manifestVersion
	m.MadeAt = m.MadeAt.UTC().Truncate(time.Second)
	entries := make([]Listed, len(m.Entries))
	for i, e := range m.Entries {
		if b, err := hex.DecodeString(e.EKHash); e.Device == "" && err == nil && len(b) == sha256.Size {
			e.Device = DeviceOf([sha256.Size]byte(b))
		}
		entries[i] = e
	}
	m.Entries = entries
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	b, err := json.Marshal(signedManifest{
		Manifest: raw, KeyID: keyID(key.Public().(ed25519.PublicKey)), Signature: ed25519.Sign(key, signed([]byte(manifestDomain), raw)),
	})
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	if len(b) >= MaxManifest {
		return nil, fmt.Errorf("manifest has %d bytes: %w", len(b), ErrLimit)
	}
	return append(b, '\n'), nil
}

// OpenManifest checks the signature of a manifest's file with the vendor's key
// and returns what it lists. Errors: ErrSignature, ErrVersion, ErrMalformed,
// ErrLimit, ErrDuplicate.
func OpenManifest(pub ed25519.PublicKey, b []byte) (Manifest, error) {
	if len(b) > MaxManifest {
		return Manifest{}, fmt.Errorf("manifest has %d bytes: %w", len(b), ErrLimit)
	}
	var s signedManifest
	if err := strict(b, &s); err != nil {
		return Manifest{}, fmt.Errorf("manifest: %w: %w", ErrMalformed, err)
	}
	if len(pub) != ed25519.PublicKeySize || s.KeyID != keyID(pub) {
		return Manifest{}, fmt.Errorf("manifest by key %.32q, want %s: %w", s.KeyID, keyID(pub), ErrSignature)
	}
	if !ed25519.Verify(pub, signed([]byte(manifestDomain), s.Manifest), s.Signature) {
		return Manifest{}, fmt.Errorf("manifest: %w", ErrSignature)
	}
	// The version comes first: what a newer one means is not for us to say.
	var v struct{ Version int }
	if err := json.Unmarshal(s.Manifest, &v); err != nil {
		return Manifest{}, fmt.Errorf("manifest: %w: %w", ErrMalformed, err)
	}
	if v.Version != manifestVersion {
		return Manifest{}, fmt.Errorf("manifest of version %d: %w", v.Version, ErrVersion)
	}
	var m Manifest
	if err := strict(s.Manifest, &m); err != nil {
		return Manifest{}, fmt.Errorf("manifest: %w: %w", ErrMalformed, err)
	}
	if err := m.check(); err != nil {
		return Manifest{}, fmt.Errorf("manifest: %w", err)
	}
	return m, nil
}

// strict reads one JSON value without unknown fields and nothing behind it.
func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the document")
	}
	return nil
}

func (m *Manifest) check() error {
	if len(m.Entries) == 0 {
		return fmt.Errorf("no devices: %w", ErrMalformed)
	}
	if len(m.Entries) > MaxListed {
		return fmt.Errorf("%d devices, at most %d; sign several batches: %w", len(m.Entries), MaxListed, ErrLimit)
	}
	if m.MadeAt.IsZero() {
		return fmt.Errorf("made_at is missing: %w", ErrMalformed)
	}
	if err := errors.Join(checkName("vendor", m.Vendor, true), checkName("batch", m.Batch, true), checkName("order", m.Order, false)); err != nil {
		return err
	}
	devices, serials := make(map[string]int, len(m.Entries)), make(map[string]int, len(m.Entries))
	for i, e := range m.Entries {
		if err := e.Check(); err != nil {
			return fmt.Errorf("entry %d: %w", i+1, err)
		}
		if first, twice := devices[e.Device]; twice {
			return fmt.Errorf("entries %d and %d: device %s: %w", first, i+1, e.Device, ErrDuplicate)
		}
		if first, twice := serials[e.Serial]; twice {
			return fmt.Errorf("entries %d and %d: serial %q: %w", first, i+1, e.Serial, ErrDuplicate)
		}
		devices[e.Device], serials[e.Serial] = i+1, i+1
	}
	return nil
}

// Check reports what is wrong with one entry. Errors: ErrMalformed, ErrLimit.
func (e Listed) Check() error {
	if !isHash(e.EKHash) {
		return fmt.Errorf("ek_sha256 %.80q is not a SHA-256 in lower-case hex: %w", e.EKHash, ErrMalformed)
	}
	if e.ClaimHash != "" && !isHash(e.ClaimHash) {
		return fmt.Errorf("claim_sha256 %.80q is not a SHA-256 in lower-case hex: %w", e.ClaimHash, ErrMalformed)
	}
	ek, _ := hex.DecodeString(e.EKHash)
	return errors.Join(checkDevice(e.Device, ek), checkModel(e.Model), checkName("serial", e.Serial, true))
}

func isHash(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == sha256.Size && hex.EncodeToString(b) == s
}
