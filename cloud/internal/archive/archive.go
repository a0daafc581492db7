// Package archive is an audit trail as a file: written by the service, sealed
// with its key, read and proven by whoever holds a copy, with no service and no
// database at hand.
//
// A sealed file is text, one JSON object a line. The first says whose trail it
// is and what it follows, then comes each entry with the bytes that were hashed
// beside what they say, each countersignature behind the entry that it is
// about, and at the end the seal: how many there are, the head of the chain,
// and the service's signature over all of it.
//
// Writer and Verify work line by line, so that ten million entries need no
// memory. Verify promises that each change of the file is found, and that it
// names the first record that is not what the device or the service wrote:
// changed, missing, out of order, or beyond the end. What it can say without a
// key given by hand is less, and it says so. The package opens no files, knows
// no SQL and asks nobody.
//
// The package exports more names than other rooms: the parts of a sealed file
// and of what is found in it are for its readers.
package archive

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
)

// Version of the format; a reader refuses a newer one.
const Version = 1

// What a sealed file can hold.
const (
	DeviceTrail  = "device"
	ServiceTrail = "service"
)

// What a line is.
const (
	lineHeader      = "header"
	lineEntry       = "entry"
	lineCountersign = "countersign"
	lineSeal        = "seal"
)

// sealKind is the kind of signature that a seal has: no order is of this kind.
const sealKind = "trail"

// Point is an entry of a trail by number and hash. Number 0 is the beginning.
type Point struct {
	Seq  uint64 `json:"seq"`
	Hash Hash   `json:"hash"`
}

// Key is a public key of a device's TPM or of the service.
type Key struct {
	ID     string    `json:"id,omitempty"` // of the service's
	Public []byte    `json:"public"`       // TPMT_PUBLIC, or the 32 bytes of Ed25519
	Since  time.Time `json:"since,omitzero"`
	Until  time.Time `json:"until,omitzero"` // zero: in use
}

// Header is the first line of a sealed file.
type Header struct {
	Line    string    `json:"line"`
	Version int       `json:"version"`
	What    string    `json:"what"` // DeviceTrail or ServiceTrail
	Tenant  string    `json:"tenant"`
	Device  string    `json:"device,omitempty"` // as the TPM and the certificates name it
	Name    string    `json:"name,omitempty"`   // as the service calls a device that left its tenant
	After   Point     `json:"after"`            // the entry before the first
	Last    uint64    `json:"last"`             // the newest entry that the service had
	AKs     []Key     `json:"attestation_keys,omitempty"`
	Keys    []Key     `json:"service_keys,omitempty"`
	MadeAt  time.Time `json:"made_at"`
	MadeBy  string    `json:"made_by"`
	Sum     string    `json:"sum"`
}

// Entry is one record of a trail: Body is what was hashed, and the rest is what
// it says - but for StoredAt and, of a device, Site, which are the service's word.
type Entry struct {
	Line     string            `json:"line"`
	Seq      uint64            `json:"seq"`
	At       time.Time         `json:"at"`
	StoredAt time.Time         `json:"stored_at"`
	Kind     string            `json:"kind"`
	Severity string            `json:"severity"`
	Actor    string            `json:"actor,omitempty"`
	Subject  string            `json:"subject,omitempty"`
	Outcome  string            `json:"outcome,omitempty"`
	Site     string            `json:"site,omitempty"`
	Tenant   fleet.TenantID    `json:"tenant,omitempty"` // on the service's trail: whom it concerns
	Detail   map[string]string `json:"detail,omitempty"`
	Body     []byte            `json:"body"`
	Hash     Hash              `json:"hash"`
	Prev     Hash              `json:"prev"`
	Sum      string            `json:"sum"`
}

// countersignLine is the service's signed word on the entry of the line before.
type countersignLine struct {
	Line  string    `json:"line"`
	Seq   uint64    `json:"seq"`
	At    time.Time `json:"at"`
	Order []byte    `json:"order"` // wire.Order with a wire.Countersign
	Sum   string    `json:"sum"`
}

// Seal is the last line.
type Seal struct {
	Line      string `json:"line"`
	Entries   uint64 `json:"entries"`
	First     uint64 `json:"first"` // 0: there are none
	Head      Point  `json:"head"`  // the last entry; without entries what they would follow
	SHA256    Hash   `json:"sha256"`
	KeyID     string `json:"key_id"`
	Signature []byte `json:"signature,omitempty"`
}

// signed is what the signature covers: the seal as it is without one.
func (s Seal) signed() ([]byte, error) {
	s.Signature = nil
	return json.Marshal(s)
}

// Hash is written in hex.
type Hash [32]byte

// MarshalText implements encoding.TextMarshaler.
func (h Hash) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h[:])), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hash) UnmarshalText(b []byte) error {
	if len(b) != 2*len(h) {
		return errors.New("a hash has 64 hex digits")
	}
	_, err := hex.Decode(h[:], b)
	return err
}

// Signer seals; provisioning/trust.OrderSigner fits.
type Signer interface {
	Public() (id string, key ed25519.PublicKey)
	SignOrder(kind string, payload []byte) (keyID string, signature []byte, err error)
}

// Writer writes a sealed file.
type Writer struct {
	w      *bufio.Writer
	sum    hash.Hash
	header Header
	seal   Seal
	before string // the sum of the line before
	buf    bytes.Buffer
}

// NewWriter writes the first line to w. Entries come in the order of their
// numbers, the countersignatures of one right behind it, Close seals.
func NewWriter(w io.Writer, h Header) (*Writer, error) {
	h.Line, h.Version, h.Sum = lineHeader, Version, ""
	if h.What != DeviceTrail && h.What != ServiceTrail || (h.What == DeviceTrail) != (h.Device != "") {
		return nil, fmt.Errorf("a trail of %q %q: say device and which, or service", h.What, h.Device)
	}
	out := &Writer{w: bufio.NewWriterSize(w, 64<<10), sum: sha256.New(), header: h, seal: Seal{Line: lineSeal, Head: h.After}}
	return out, out.line(h)
}

// Entry writes an entry of the trail.
func (w *Writer) Entry(ev fleet.AuditEvent) error {
	if ev.Seq <= w.seal.Head.Seq {
		return fmt.Errorf("entry %d behind entry %d", ev.Seq, w.seal.Head.Seq)
	}
	e := Entry{
		Line: lineEntry, Seq: ev.Seq, At: ev.At.UTC(), StoredAt: ev.StoredAt.UTC(), Kind: ev.Kind, Severity: ev.Severity, Actor: ev.Actor, Subject: ev.Subject,
		Outcome: ev.Outcome, Site: ev.Site, Tenant: ev.Tenant, Detail: ev.Detail, Body: ev.Body, Hash: ev.Hash, Prev: ev.Prev,
	}
	if w.header.What == DeviceTrail {
		e.Tenant = "" // the header says it once
	}
	if err := w.line(e); err != nil {
		return err
	}
	if w.seal.Entries == 0 {
		w.seal.First = ev.Seq
	}
	w.seal.Entries++
	w.seal.Head = Point{ev.Seq, ev.Hash}
	return nil
}

// Countersign writes the service's word on the entry that was written last.
func (w *Writer) Countersign(order []byte, at time.Time) error {
	return w.line(countersignLine{Line: lineCountersign, Seq: w.seal.Head.Seq, At: at.UTC(), Order: order})
}

// Close seals the file.
func (w *Writer) Close(sign Signer) (Seal, error) {
	w.seal.KeyID, _ = sign.Public()
	w.sum.Sum(w.seal.SHA256[:0])
	payload, err := w.seal.signed()
	if err != nil {
		return Seal{}, fmt.Errorf("seal the trail: %w", err)
	}
	if _, w.seal.Signature, err = sign.SignOrder(sealKind, payload); err != nil {
		return Seal{}, fmt.Errorf("seal the trail: %w", err)
	}
	b, err := marshal(&w.buf, w.seal)
	if err != nil {
		return Seal{}, fmt.Errorf("seal the trail: %w", err)
	}
	_, err = w.w.Write(b)
	return w.seal, errors.Join(err, w.w.Flush())
}

// line writes v with the sum of its bytes, by which a reader finds the line
// that was changed.
func (w *Writer) line(v any) error {
	b, err := marshal(&w.buf, v)
	if err != nil {
		return fmt.Errorf("encode a line of the trail: %w", err)
	}
	if len(b) > maxLine {
		return fmt.Errorf("a line of %d bytes, and no reader takes more than %d: %w", len(b), maxLine, ErrNoTrail)
	}
	w.before = fillSum(b, w.before)
	_, _ = w.sum.Write(b) // a hash takes everything
	_, err = w.w.Write(b)
	return err
}

// marshal encodes v as one line.
func marshal(buf *bytes.Buffer, v any) ([]byte, error) {
	buf.Reset()
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	err := enc.Encode(withSum(v))
	return buf.Bytes(), err
}

// noSum stands where the sum of a line will stand.
const noSum = "............"

// withSum makes room for the sum.
func withSum(v any) any {
	switch v := v.(type) {
	case Header:
		v.Sum = noSum
		return v
	case Entry:
		v.Sum = noSum
		return v
	case countersignLine:
		v.Sum = noSum
		return v
	}
	return v
}

// fillSum writes the sum of a line and of all before it, whose sum is given,
// into its place, and returns it. It tells a reader where something was
// changed; against whoever wants to deceive stand hashes and signatures.
func fillSum(line []byte, before string) string {
	at := sumAt(line)
	h := sha256.New()
	_, _ = h.Write([]byte(before))
	_, _ = h.Write(line[:at])
	sum := base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:9])
	copy(line[at:], sum)
	return sum
}

// sumAt is where the sum of a line stands, which ends in it, `"}` and a line feed.
func sumAt(line []byte) int { return max(len(line)-len(noSum)-3, 0) }

var errHash = errors.New("it does not match its hash")

// open reads what the body of an entry says, after checking its hash.
func (h Header) open(e Entry) (said Entry, rec wire.AuditRecord, err error) {
	if h.What == DeviceTrail {
		rec, err = wire.AuditEntry{Body: e.Body, Hash: e.Hash}.Open()
		actor := rec.Actor
		if actor == "" {
			actor = h.Device
			if h.Name != "" {
				actor = h.Name
			}
		}
		return Entry{
			Seq: rec.Seq, At: deviceTime(rec.At), Kind: rec.Kind, Severity: rec.Severity, Actor: shown(actor), Subject: shown(rec.Subject), Outcome: rec.Outcome,
			Site: e.Site, Detail: rec.Detail, Prev: rec.Prev,
		}, rec, err
	}
	if sha256.Sum256(e.Body) != e.Hash {
		return said, rec, errHash
	}
	var b struct { // as cloud/internal/store writes it
		Seq      uint64            `json:"seq"`
		At       int64             `json:"at"`
		Tenant   fleet.TenantID    `json:"tenant"`
		Kind     string            `json:"kind"`
		Severity string            `json:"severity"`
		Actor    string            `json:"actor"`
		Subject  string            `json:"subject"`
		Outcome  string            `json:"outcome"`
		Site     string            `json:"site"`
		Detail   map[string]string `json:"detail"`
		Prev     []byte            `json:"prev"`
	}
	if err := json.Unmarshal(e.Body, &b); err != nil {
		return Entry{}, rec, err
	}
	said = Entry{Seq: b.Seq, At: time.UnixMilli(b.At).UTC(), Tenant: b.Tenant, Kind: b.Kind, Severity: b.Severity, Actor: b.Actor, Subject: b.Subject, Outcome: b.Outcome, Site: b.Site, Detail: b.Detail}
	copy(said.Prev[:], b.Prev)
	return said, rec, nil
}

// shown is a text of a device as the service keeps it, in columns that cannot
// all hold a zero byte.
func shown(s string) string { return strings.ReplaceAll(s, "\x00", "\uFFFD") }

// deviceTime is a device's clock as the service shows it: never before 1970,
// never after 9999.
func deviceTime(ms int64) time.Time {
	const last = 253402300799999
	return time.UnixMilli(min(max(ms, 1), last)).UTC()
}
