// Package enrol is how a device becomes a member of a fleet and stays one: both
// halves of ENROL -> CHALLENGE -> EVIDENCE -> RESULT, of the renewal of
// certificates, of the change of the attestation key and of EST [RFC 7030], and
// the check of the quotes a device shows in between.
//
// It promises that a certificate is only issued for a key that lives in the
// TPM whose endorsement key is known to be genuine, over the very TLS channel
// the proof was made for: credential activation binds EK and AK, Certify the
// LDevID, Quote the boot state, and all of them the channel [RFC 9334; TCG TPM
// 2.0 Keys for Device Identity 1.0, 6.2]. It keeps no state of devices - who
// may join, and who has, is behind Directory and Registry - and drives no TPM:
// Prover and its like do, which hal/tpm fits. Whether a boot is a good one is
// for Options.Boot to say.
//
// What fails names its check (Check), in words that hold no secret.
//
// It exports more names than other rooms because it holds both halves, so that
// they are tested against each other.
package enrol

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"

	"github.com/fxamacker/cbor/v2"
)

// Version of the enrolment protocol; a service takes every older one.
//
//	1  2026-11-24  enrolment
//	2  2026-11-26  recovery key, event log, voucher; checks have names
const Version = 2

// Paths of the service. The two POSTs of an enrolment need no certificate.
const (
	PathEnrol    = "/v1/enrol"
	PathEvidence = "/v1/enrol/evidence"
)

// Labels of the TLS exporters [RFC 8446, 7.5] that bind enrolment and
// connection evidence to their channel.
const (
	enrolExporterLabel = "EXPORTER-tillward-enrol-v1"
	ConnExporterLabel  = "EXPORTER-tillward-conn-v1"
	exporterLen        = 32
)

const (
	maxBody  = 32 << 10
	maxLog   = 56 << 10 // of a packed event log
	maxBlob  = 4 << 10  // one certificate, public area or signed structure
	maxChain = 8
)

// ErrUnavailable is no refusal: the service could not find out. The device
// tries again later.
var ErrUnavailable = errors.New("the service could not find out")

// Errors a device acts on.
var (
	ErrUnclaimed = errors.New("nobody owns this device yet")
	ErrRefused   = errors.New("enrolment refused")
	ErrMessage   = errors.New("malformed enrolment message")
)

// request is ENROL: who the device says it is.
type request struct {
	V       uint16   `cbor:"1,keyasint"`
	Serial  string   `cbor:"2,keyasint,omitempty"`
	Model   string   `cbor:"3,keyasint,omitempty"`
	EK      []byte   `cbor:"4,keyasint"` // TPMT_PUBLIC
	EKCert  []byte   `cbor:"5,keyasint,omitempty"`
	EKChain [][]byte `cbor:"6,keyasint,omitempty"`
	AK      []byte   `cbor:"7,keyasint"` // TPMT_PUBLIC
	LDevID  []byte   `cbor:"8,keyasint"` // TPMT_PUBLIC
	Claim   string   `cbor:"9,keyasint,omitempty"`

	Recovery []byte `cbor:"10,keyasint,omitempty"` // TPMT_PUBLIC, since version 2
}

// challenge is CHALLENGE: only the TPM with both keys can answer it.
type challenge struct {
	ID         [16]byte `cbor:"1,keyasint"`
	Credential []byte   `cbor:"2,keyasint"` // TPMS_ID_OBJECT
	Secret     []byte   `cbor:"3,keyasint"` // encrypted seed
	Nonce      [32]byte `cbor:"4,keyasint"`
	ExpiresS   uint16   `cbor:"5,keyasint"`
}

// evidence is EVIDENCE: the answer.
type evidence struct {
	ID         [16]byte `cbor:"1,keyasint"`
	Proof      [32]byte `cbor:"2,keyasint"` // HMAC-SHA256(S, B)
	Certify    []byte   `cbor:"3,keyasint"` // TPMS_ATTEST
	CertifySig []byte   `cbor:"4,keyasint"` // TPMT_SIGNATURE
	Quote      []byte   `cbor:"5,keyasint"`
	QuoteSig   []byte   `cbor:"6,keyasint"`
	PCRs       [][]byte `cbor:"7,keyasint"`

	// Since version 2. The log stands here and not in ENROL: only who has an
	// open challenge is listened to at such length.
	CertifyRec    []byte `cbor:"8,keyasint,omitempty"`
	CertifyRecSig []byte `cbor:"9,keyasint,omitempty"`
	Log           []byte `cbor:"10,keyasint,omitempty"` // gzip of binary_bios_measurements
}

// Result is RESULT: what a member of a fleet needs to know, and keeps.
type Result struct {
	Device    string     `cbor:"1,keyasint" json:"device"`
	Tenant    string     `cbor:"2,keyasint" json:"tenant"`
	Tier      string     `cbor:"3,keyasint" json:"tier"`
	Chain     [][]byte   `cbor:"4,keyasint" json:"chain"`     // LDevID certificate, then its issuer; DER
	Brokers   []string   `cbor:"5,keyasint" json:"brokers"`   // host:port
	Artifacts string     `cbor:"6,keyasint" json:"artifacts"` // base URL
	OrderKeys []OrderKey `cbor:"7,keyasint" json:"order_keys"`
	ReattestS uint32     `cbor:"8,keyasint" json:"reattest_s"` // seconds between attestations

	// Since version 2.
	Recovery [][]byte `cbor:"9,keyasint,omitempty" json:"recovery,omitempty"` // certificate of the recovery key, then its issuer; DER
	Voucher  []byte   `cbor:"10,keyasint,omitempty" json:"voucher,omitempty"` // who owns the device, as provisioning/owner reads it

	// The newest entry that the service has of the device's audit trail, if it has
	// one: a device that lost its own goes on behind it.
	TrailSeq  uint64 `cbor:"11,keyasint,omitempty" json:"-"`
	TrailHash []byte `cbor:"12,keyasint,omitempty" json:"-"`

	// What the device adds and never sends: which keys in its TPM this is about,
	// by their TPMT_PUBLIC. After a power cut there may be two of each.
	LDevID      []byte `cbor:"-" json:"ldevid,omitempty"`
	AK          []byte `cbor:"-" json:"ak,omitempty"`
	RecoveryKey []byte `cbor:"-" json:"recovery_key,omitempty"`
}

// OrderKey is a public key that commands and offers are signed with.
type OrderKey struct {
	ID     string `cbor:"1,keyasint" json:"id"`
	Public []byte `cbor:"2,keyasint" json:"public"` // Ed25519, 32 bytes
}

// problem is the answer to what cannot be granted.
type problem struct {
	Code   string `cbor:"1,keyasint"`
	Text   string `cbor:"2,keyasint"` // says what to do
	Check  string `cbor:"3,keyasint,omitempty"`
	Device string `cbor:"4,keyasint,omitempty"` // as the service knows who waits
}

var (
	encMode = must(cbor.CoreDetEncOptions().EncMode())
	decMode = must(cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		MaxNestedLevels: 6, MaxArrayElements: 64, MaxMapPairs: 32,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func decode[T any](b []byte) (T, error) {
	var m T
	if err := decMode.Unmarshal(b, &m); err != nil {
		var zero T
		return zero, failed(checkMessage, "%w: %w", ErrMessage, err)
	}
	return m, nil
}

func (r request) check() error {
	if r.V == 0 || r.V > Version {
		return failed(checkMessage, "protocol version %d, this service speaks %d: %w", r.V, Version, ErrMessage)
	}
	if err := checkBlobs(append([][]byte{r.EK, r.AK, r.LDevID, r.Recovery, r.EKCert}, r.EKChain...)...); err != nil {
		return err
	}
	if len(r.EKChain) > maxChain || len(r.Claim) > 64 {
		return failed(checkMessage, "chain of %d certificates: %w", len(r.EKChain), ErrMessage)
	}
	for _, s := range []string{r.Serial, r.Model} {
		if len(s) > 64 {
			return failed(checkMessage, "serial or model of %d bytes: %w", len(s), ErrMessage)
		}
		for _, c := range s {
			if c < ' ' || c > '~' {
				return failed(checkMessage, "serial or model holds a character outside printable ASCII: %w", ErrMessage)
			}
		}
	}
	return nil
}

func checkBlobs(blobs ...[]byte) error {
	for _, b := range blobs {
		if len(b) > maxBlob {
			return failed(checkMessage, "field of %d bytes: %w", len(b), ErrMessage)
		}
	}
	return nil
}

func checkLog(log []byte) error {
	if len(log) > maxLog {
		return failed(checkMessage, "event log of %d bytes: %w", len(log), ErrMessage)
	}
	return nil
}

// binding is what everything in EVIDENCE is bound to: this enrolment, this
// secret, this TLS channel, this ENROL.
func binding(id [16]byte, nonce [32]byte, secret, exporter, enrol []byte) [32]byte {
	sum := sha256.Sum256(enrol)
	return bind("enrol-v1", id[:], nonce[:], secret, exporter, sum[:])
}

// bind hashes parts so that none can pass for the end or the beginning of
// another.
func bind(label string, parts ...[]byte) [32]byte {
	h := sha256.New()
	for _, part := range append([][]byte{[]byte(label)}, parts...) {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part)))) // #nosec G115 -- parts are short
		h.Write(part)
	}
	return [32]byte(h.Sum(nil))
}

// certifyBinding is the extraData of the Certify over the key called name.
func certifyBinding(b [32]byte, name []byte) [32]byte {
	return sha256.Sum256(append(b[:], name...))
}

// ConnBinding is the extraData of a quote shown on an MQTT connection: secret
// is the connection's exporter, or the nonce of a challenge; seq counts the
// evidence of the connection from 1.
func ConnBinding(device string, secret []byte, seq uint64) [32]byte {
	return bind("conn-v1", []byte(device), secret, binary.BigEndian.AppendUint64(nil, seq))
}
