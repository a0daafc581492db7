package owner

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/tillward/tillward/provisioning/identity"
)

// Limits of vouchers.
const (
	MaxEntries  = 64 + reserved       // statements of one chain: 32 changes of hands, and then reserved
	MaxVoucher  = 32 << 10            // bytes of one voucher
	MinWait     = 14 * 24 * time.Hour // of an override, between its issue and its effect
	MaxVouchers = MaxListed           // in one order file

	reserved = 8 // entries that owners cannot use up, for overrides

	voucherVersion = 1
	voucherDomain  = "tillward-voucher-v1"
	entryDomain    = "tillward-voucher-entry-v1"
	pemType        = "TILLWARD VOUCHER"
)

// Kind is what a statement does.
type Kind uint64

// The statements. Each is signed by the one who alone may make it.
const (
	Offer    Kind = 1 // by the owner: the device shall be To's
	Accept   Kind = 2 // by To of the open offer or override: it is mine
	Override Kind = 3 // by the vendor, for a lost owner: it shall be To's after a wait
	Object   Kind = 4 // by the owner: the open offer or override is void
)

// String names the kind.
func (k Kind) String() string {
	if names := [...]string{"", "offer", "accept", "override", "object"}; k > 0 && int(k) < len(names) { // #nosec G115 -- compared after
		return names[k]
	}
	return fmt.Sprintf("kind %d", uint64(k))
}

// Party is someone who owns devices, or shall. As JSON it is the party file
// that a buyer sends to who shall offer him devices.
type Party struct {
	Key    ed25519.PublicKey `cbor:"1,keyasint" json:"public_key"`
	Name   string            `cbor:"2,keyasint" json:"name"`
	Tenant string            `cbor:"3,keyasint,omitempty" json:"tenant,omitempty"` // of the fleet service; empty for the vendor and the bearer of a label
}

// ParseParty reads a party file. Errors: ErrMalformed, ErrLimit.
func ParseParty(b []byte) (Party, error) {
	if len(b) > 4096 {
		return Party{}, fmt.Errorf("party file of %d bytes: %w", len(b), ErrLimit)
	}
	var p Party
	if err := strict(b, &p); err != nil {
		return Party{}, fmt.Errorf("party file: %w: %w", ErrMalformed, err)
	}
	if err := p.check(); err != nil {
		return Party{}, fmt.Errorf("party file: %w", err)
	}
	return p, nil
}

// Product is what a voucher is about, as the vendor says.
type Product struct {
	Vendor string
	EKHash [sha256.Size]byte // SHA-256 of the EK's TPMT_PUBLIC
	Model  string
	Serial string
	Order  string // number of the vendor's order; may be empty
}

// Voucher says who owns a device: the vendor's statement what it is, and a
// chain of entries. The fields are for reading; a voucher proves nothing before
// Verify. Its bytes are CBOR in core deterministic form [RFC 8949, 4.2.1].
type Voucher struct {
	Version   uint64  `cbor:"1,keyasint"`
	Vendor    string  `cbor:"2,keyasint"`
	Device    string  `cbor:"3,keyasint"` // device id
	EKHash    []byte  `cbor:"4,keyasint"`
	Model     string  `cbor:"5,keyasint"`
	Serial    string  `cbor:"6,keyasint"`
	Order     string  `cbor:"7,keyasint,omitempty"`
	MadeAt    int64   `cbor:"8,keyasint"` // Unix seconds
	Signature []byte  `cbor:"9,keyasint,omitempty"`
	Entries   []Entry `cbor:"10,keyasint,omitempty"`
}

// Entry is one statement of the chain.
type Entry struct {
	Kind        Kind   `cbor:"1,keyasint"`
	Prev        []byte `cbor:"2,keyasint"`           // SHA-256 of the statement before, its signature included
	At          int64  `cbor:"3,keyasint"`           // Unix seconds, as its maker says; never before the entry above
	To          *Party `cbor:"4,keyasint,omitempty"` // of Offer and Override
	NotBefore   int64  `cbor:"5,keyasint,omitempty"` // Unix seconds; nobody may accept earlier
	MayTransfer bool   `cbor:"6,keyasint,omitempty"` // To may pass the device on to anybody; else back only
	Signature   []byte `cbor:"7,keyasint,omitempty"`
}

// Mark is how far a chain was seen: the caller keeps the newest for each
// device, for ever. Its zero value is a chain never seen.
type Mark struct {
	Count int    // entries
	Head  []byte // SHA-256 of the last of them, or of the vendor's statement
}

// State is what a verified voucher says.
type State struct {
	Owner       Party
	MayTransfer bool     // Owner may pass the device on to anybody
	Pending     *Pending // an open offer or override; Owner is still owner
	Since       time.Time
	Mark        Mark // to keep once what follows from State is done

	from ed25519.PublicKey // who Owner has the device from
	last int64
}

// Pending is an offer or override that nobody accepted yet.
type Pending struct {
	To          Party
	Override    bool
	IssuedAt    time.Time // as the issuer says; who keeps vouchers counts the wait of an override from the day he saw it
	NotBefore   time.Time // acceptance is void before
	MayTransfer bool
}

var (
	encMode cbor.EncMode
	decMode cbor.DecMode
)

func init() {
	var err error
	if encMode, err = cbor.CoreDetEncOptions().EncMode(); err != nil {
		panic(err)
	}
	decMode, err = cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		UTF8:              cbor.UTF8RejectInvalid,
		MaxNestedLevels:   8,
		MaxArrayElements:  MaxEntries,
		MaxMapPairs:       16,
	}.DecMode()
	if err != nil {
		panic(err)
	}
}

func encode(v any) []byte {
	b, err := encMode.Marshal(v)
	if err != nil { // plain structs of ours always encode
		panic(err)
	}
	return b
}

// root is the vendor's statement without and with its signature.
func (v Voucher) root(signature []byte) []byte {
	v.Entries, v.Signature = nil, signature
	return signed([]byte(voucherDomain), encode(v))
}

// statement is what the signature of an entry covers; the device is in it by
// way of the hash before.
func (e Entry) statement(signature []byte) []byte {
	e.Signature = signature
	return signed([]byte(entryDomain), encode(e))
}

// head is the hash that the next entry must name after n entries.
func (v Voucher) head(n int) []byte {
	b := v.root(v.Signature)
	if n > 0 {
		b = v.Entries[n-1].statement(v.Entries[n-1].Signature)
	}
	sum := sha256.Sum256(b)
	return sum[:]
}

// NewVoucher returns the voucher of a device that is still the vendor's.
// Errors: ErrMalformed, ErrLimit.
func NewVoucher(vendor ed25519.PrivateKey, p Product, at time.Time) (Voucher, error) {
	v := Voucher{
		Version: voucherVersion, Vendor: p.Vendor, Device: DeviceOf(p.EKHash), EKHash: p.EKHash[:], Model: p.Model, Serial: p.Serial,
		Order: p.Order, MadeAt: at.Unix(),
	}
	v.Signature = ed25519.Sign(vendor, v.root(nil))
	if err := v.check(); err != nil {
		return Voucher{}, err
	}
	return v, nil
}

// Bytes returns the voucher as DecodeVoucher reads it.
func (v Voucher) Bytes() []byte { return encode(v) }

// DecodeVoucher reads a voucher. It takes exactly the bytes that Bytes writes
// and checks their form; only Verify says what they are worth. Errors:
// ErrMalformed, ErrVersion, ErrLimit.
func DecodeVoucher(b []byte) (Voucher, error) {
	if len(b) > MaxVoucher {
		return Voucher{}, fmt.Errorf("voucher of %d bytes: %w", len(b), ErrLimit)
	}
	var v Voucher
	err := decMode.Unmarshal(b, &v)
	// A newer version may well hold what this one does not know.
	if v.Version > voucherVersion {
		return Voucher{}, fmt.Errorf("voucher of version %d: %w", v.Version, ErrVersion)
	}
	if err != nil {
		return Voucher{}, fmt.Errorf("voucher: %w: %w", ErrMalformed, err)
	}
	if err := v.check(); err != nil {
		return Voucher{}, err
	}
	if !bytes.Equal(v.Bytes(), b) {
		return Voucher{}, fmt.Errorf("voucher: not in its one valid form: %w", ErrMalformed)
	}
	return v, nil
}

// EncodeOrder writes an order file: vouchers as PEM blocks, one after the
// other. A file with one voucher is the same.
func EncodeOrder(vouchers []Voucher) []byte {
	var b bytes.Buffer
	for _, v := range vouchers {
		_ = pem.Encode(&b, &pem.Block{Type: pemType, Bytes: v.Bytes()}) // no headers, and a Buffer: never fails
	}
	return b.Bytes()
}

// DecodeOrder reads an order file. Errors: those of DecodeVoucher, and
// ErrDuplicate for a device that is in it twice.
func DecodeOrder(b []byte) ([]Voucher, error) {
	var out []Voucher
	seen := map[string]bool{}
	for b = bytes.TrimSpace(b); len(b) > 0; b = bytes.TrimSpace(b) {
		n := len(out) + 1
		if n > MaxVouchers {
			return nil, fmt.Errorf("order file: more than %d vouchers: %w", MaxVouchers, ErrLimit)
		}
		if !bytes.HasPrefix(b, []byte("-----BEGIN "+pemType+"-----")) { // pem.Decode passes over anything
			return nil, fmt.Errorf("order file: no voucher where number %d should start: %w", n, ErrMalformed)
		}
		block, rest := pem.Decode(b)
		if block == nil || block.Type != pemType || len(block.Headers) > 0 {
			return nil, fmt.Errorf("order file: voucher %d: %w", n, ErrMalformed)
		}
		v, err := DecodeVoucher(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("order file: number %d: %w", n, err)
		}
		if seen[v.Device] {
			return nil, fmt.Errorf("order file: device %s: %w", v.Device, ErrDuplicate)
		}
		seen[v.Device] = true
		out, b = append(out, v), rest
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("order file: no voucher in it: %w", ErrMalformed)
	}
	return out, nil
}

// check looks at the form of all fields, not at signatures.
func (v Voucher) check() error {
	if v.Version != voucherVersion {
		return fmt.Errorf("voucher of version %d: %w", v.Version, ErrVersion)
	}
	if len(v.Entries) > MaxEntries {
		return fmt.Errorf("voucher: %d entries, at most %d: %w", len(v.Entries), MaxEntries, ErrLimit)
	}
	for _, err := range []error{
		checkDevice(v.Device, v.EKHash), checkName("vendor", v.Vendor, true), checkModel(v.Model),
		checkName("serial", v.Serial, true), checkName("order", v.Order, false), checkSignature(v.Signature), checkTime(v.MadeAt),
	} {
		if err != nil {
			return fmt.Errorf("voucher: %w", err)
		}
	}
	for i, e := range v.Entries {
		if err := e.check(); err != nil {
			return fmt.Errorf("voucher: entry %d (%s): %w", i+1, e.Kind, err)
		}
	}
	return nil
}

func (e Entry) check() error {
	if len(e.Prev) != sha256.Size {
		return fmt.Errorf("hash of the entry before has %d bytes: %w", len(e.Prev), ErrMalformed)
	}
	if err := checkSignature(e.Signature); err != nil {
		return err
	}
	if err := checkTime(e.At); err != nil {
		return err
	}
	switch e.Kind {
	case Offer, Override:
		if e.To == nil {
			return fmt.Errorf("for nobody: %w", ErrMalformed)
		}
		if err := checkTime(e.NotBefore); err != nil {
			return err
		}
		return e.To.check()
	case Accept, Object:
		if e.To != nil || e.NotBefore != 0 || e.MayTransfer {
			return fmt.Errorf("says more than it may: %w", ErrMalformed)
		}
		return nil
	}
	return fmt.Errorf("no such statement: %w", ErrMalformed)
}

func (p Party) check() error {
	if len(p.Key) != ed25519.PublicKeySize {
		return fmt.Errorf("owner's key has %d bytes: %w", len(p.Key), ErrMalformed)
	}
	if p.Tenant != "" && !identity.ValidTenant(p.Tenant) {
		return fmt.Errorf("tenant %.40q: lower-case letters, digits and inner hyphens: %w", p.Tenant, ErrMalformed)
	}
	return checkName("owner's name", p.Name, true)
}

func checkSignature(s []byte) error {
	if len(s) != ed25519.SignatureSize {
		return fmt.Errorf("signature has %d bytes: %w", len(s), ErrMalformed)
	}
	return nil
}

// checkTime keeps to the years 1970 to 9999, which all formats can write.
func checkTime(unix int64) error {
	if unix < 1 || unix >= 253_402_300_800 {
		return fmt.Errorf("time %d: %w", unix, ErrMalformed)
	}
	return nil
}

// String names the mark, for a log line.
func (m Mark) String() string {
	return fmt.Sprintf("%d:%s", m.Count, hex.EncodeToString(m.Head[:min(8, len(m.Head))]))
}
