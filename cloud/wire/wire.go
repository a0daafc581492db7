// Package wire is the contract between a device and the fleet service: the
// MQTT topics, the messages, their limits and one increasing Version.
//
// It owns how bytes look and nothing else: no I/O, no clock, no keys. Messages
// are CBOR in core deterministic form with small integer keys [RFC 8949,
// 4.2.1]. Fields are only ever added and keys are never used again, because
// agents live in the field for years; unknown fields are skipped, never an
// error. Golden bytes of each message of each version stay in testdata.
//
// The package exports more names than other rooms: each message is a plain
// struct that both sides must be able to spell, and they belong on one page.
package wire

import (
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"
)

// Version is the newest version of the contract that this code speaks. It is
// carried in the Head of every up message and in every order.
//
//	1  2026-11-24  telemetry, event, audit, state, result, evidence up;
//	               command, offer, config, challenge, verdict down
//	2  2026-11-26  evidence without register values while the boot is known, with an
//	               event log when it is not; verdicts that explain themselves
//	3  2026-11-26  offers of any class with windows, step times, attempt and peers;
//	               what is installed, power and space in the state; step numbers and
//	               bytes by source in results; orders for update media
//	4  2026-11-26  counts with epoch and keeper, events with monotonic time and count,
//	               health checks; peripherals say how they are held, where they are and
//	               what they can, and give no advice any more
//	5  2026-11-26  audit records with monotonic time, clock, actor and outcome, and with
//	               details of known names and no free text; anchors and breaks of the
//	               chain; countersignatures of its head
const Version = 5

// Limits of the contract, enforced on both sides.
const (
	MaxMessage     = 64 << 10       // bytes of one MQTT payload
	MaxBatch       = 256            // samples, events or audit entries in one message
	MaxTopic       = 128            // bytes of a topic
	MaxName        = 64             // bytes of an identifier: peripheral, sample, verb, sensor
	MaxText        = 512            // bytes of a human-readable text
	MaxOutput      = 32 << 10       // bytes of a command's output in its result
	MaxPeripherals = 64             // peripherals of one device
	MaxAuditBody   = 4 << 10        // bytes of one audit entry's body
	MaxSpooled     = 60 << 10       // bytes a batch may grow to before it is closed
	MaxLog         = 56 << 10       // bytes of an event log, compressed
	MaxInstalled   = 32             // components of one device
	MaxSpans       = 64             // windows of one kind in an offer
	MaxSteps       = 16             // steps of one health check
	MaxPeers       = 8              // tills of the same site named in an offer
	MaxMedium      = 32             // releases on one update medium
	ClockSkewNoted = 24 * time.Hour // a larger skew is noted, never refused
)

// MaxSteadyEvidence bounds the bytes of evidence that tells nothing new.
const MaxSteadyEvidence = 256

const maxReasons = 16 // reasons, findings, actions of one verdict

// Errors a caller can decide on. They are wrapped with the field or the size
// that was wrong.
var (
	ErrMalformed = errors.New("malformed message")
	ErrLimit     = errors.New("message outside the limits of the contract")
	ErrTopic     = errors.New("not a topic of the contract")
)

var (
	encMode cbor.EncMode
	decMode cbor.DecMode
)

func init() {
	opts := cbor.CoreDetEncOptions()
	var err error
	if encMode, err = opts.EncMode(); err != nil {
		panic(err)
	}
	decMode, err = cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
		MaxNestedLevels:  8,
		MaxArrayElements: 1024,
		MaxMapPairs:      256,
		UTF8:             cbor.UTF8RejectInvalid,
	}.DecMode()
	if err != nil {
		panic(err)
	}
}

// Message is any message of the contract: it can say whether its fields are
// within the limits.
type Message interface{ Check() error }

// Encode checks m against the limits and returns its deterministic CBOR form.
// It returns ErrLimit when m is too large for one MQTT message.
func Encode(m Message) ([]byte, error) {
	if err := m.Check(); err != nil {
		return nil, err
	}
	b, err := encMode.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", m, err)
	}
	if len(b) > MaxMessage {
		return nil, fmt.Errorf("encode %T: %d bytes: %w", m, len(b), ErrLimit)
	}
	return b, nil
}

// Decode parses b into a message and checks it against the limits. It returns
// ErrMalformed or ErrLimit; a decoded message is safe to use as it is.
func Decode[T any, P interface {
	*T
	Message
}](b []byte) (T, error) {
	var m T
	if len(b) > MaxMessage {
		return m, fmt.Errorf("decode %T: %d bytes: %w", m, len(b), ErrLimit)
	}
	if err := decMode.Unmarshal(b, &m); err != nil {
		var zero T
		return zero, fmt.Errorf("decode %T: %w: %w", m, ErrMalformed, err)
	}
	if err := P(&m).Check(); err != nil {
		var zero T
		return zero, fmt.Errorf("decode %T: %w", m, err)
	}
	return m, nil
}

// HeadOf reads no more of an up message than its head: enough to know how long
// it has waited. What it takes need not be a message that Decode takes.
func HeadOf(b []byte) (Head, error) {
	if len(b) > MaxMessage {
		return Head{}, fmt.Errorf("head of %d bytes: %w", len(b), ErrLimit)
	}
	var m struct {
		Head Head `cbor:"1,keyasint"`
	}
	if len(b) > 2 && b[0] > 0xa0 && b[0] < 0xb8 && b[1] == 1 { // a map, and the head comes first, as Encode writes it
		if _, err := decMode.UnmarshalFirst(b[2:], &m.Head); err != nil {
			return Head{}, fmt.Errorf("head: %w: %w", ErrMalformed, err)
		}
		return m.Head, m.Head.check()
	}
	if err := decMode.Unmarshal(b, &m); err != nil {
		return Head{}, fmt.Errorf("head: %w: %w", ErrMalformed, err)
	}
	return m.Head, m.Head.check()
}

func checkName(field, s string) error {
	if s == "" || len(s) > MaxName {
		return fmt.Errorf("%s of %d bytes: %w", field, len(s), ErrLimit)
	}
	for _, r := range s {
		if r <= ' ' || r > '~' {
			return fmt.Errorf("%s %q holds a character outside printable ASCII: %w", field, s, ErrMalformed)
		}
	}
	return nil
}

// checkCode takes a name, or nothing.
func checkCode(field, s string) error {
	if s == "" {
		return nil
	}
	return checkName(field, s)
}

func checkText(field, s string) error {
	if len(s) > MaxText {
		return fmt.Errorf("%s of %d bytes: %w", field, len(s), ErrLimit)
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("%s is not UTF-8: %w", field, ErrMalformed) // the decoder would refuse it for ever
	}
	return nil
}

func checkCount(field string, n, limit int) error {
	if n > limit {
		return fmt.Errorf("%d %s, at most %d: %w", n, field, limit, ErrLimit)
	}
	return nil
}
