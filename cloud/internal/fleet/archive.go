package fleet

import "time"

// TrailState is how far an audit trail has come, and how far it is proven.
type TrailState struct {
	Device  DeviceID // empty: the service's own
	Head    uint64
	Hash    [32]byte // of entry Head
	Broken  bool     // it did not hold, or entries are missing
	Missing uint64   // entries that are missing and may come yet
	Lost    uint64   // entries that were lost with a damaged file, as the device said and its TPM signed

	Base     uint64 // entries up to here are in segments
	BaseHash [32]byte

	Anchored      uint64 // entries up to here are covered by the TPM's word
	AnchorCounter uint64
	AnchoredAt    time.Time // by the device's clock
	Countersigned uint64
}

// AnchorKeys are how many of a device's attestation keys an anchor is held
// against: a device that renews its key all day long shall not make each of its
// anchors cost thousands of checks.
const AnchorKeys = 8

// AttestationKey is one that a device signs with, or has signed with.
type AttestationKey struct {
	Public      []byte // TPMT_PUBLIC
	Since       time.Time
	First, Last uint64 // anchors between these entries are signed with it; 0: none at hand
}

// AnchorSeen is an anchor in an audit trail, as it was judged when it came.
type AnchorSeen struct {
	Seq     uint64 // of its own entry
	Counter uint64
	Key     AttestationKey // that signed it; without Public: none did
	Fault   string         // empty: the TPM of the device signed it
}

// Countersigned is what the service told a device about its trail.
type Countersigned struct {
	Device DeviceID
	Seq    uint64
	Hash   [32]byte
	At     time.Time
	Order  []byte // signed, as it was sent
}

// Segment is a part of a trail that lies in a sealed file.
type Segment struct {
	N           int64
	Trail       DeviceID // empty: the service's own
	First, Last uint64
	Hash        [32]byte // of entry Last
	Entries     uint64
	File        string // its name in the archive folder
	SHA256      [32]byte
	Bytes       int64
	At          time.Time
}

// SegmentReport is what reading the file of a segment gave.
type SegmentReport struct {
	Segment
	Verdict  string // as of a sealed file, missing or unreadable
	FirstBad uint64
	Text     string
}

// RipeTrail is a trail with entries that are old enough to be put away.
type RipeTrail struct {
	Device   DeviceID
	Tenant   TenantID
	FormerOf DeviceID // whose past it is
	From     Head     // behind it they begin
	Last     uint64
	Held     bool // some are old enough and a sink has not sent them
}

// Head is a place in a trail.
type Head struct {
	Seq  uint64
	Hash [32]byte
}
