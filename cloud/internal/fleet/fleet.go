// Package fleet is the domain of the fleet service: devices, sites, groups,
// releases, rollouts, executions, commands and audit events, the moves that
// are legal between their states, and the sentinel errors that the API maps to
// status codes.
//
// It does no I/O and knows no wire form, no SQL and no HTTP.
//
// The package exports more names than other rooms: it is the vocabulary that
// every room of the service shares (DESIGN.md, section 6).
package fleet

import (
	"errors"
	"time"
)

// Identifiers are types, so that one cannot be passed for another.
type (
	TenantID    string
	DeviceID    string
	ReleaseID   string // e.g. agent/1.2.3
	RolloutID   string
	ExecutionID string
	CommandID   string
)

// Errors of the domain. Callers wrap them with what was being done; the API
// maps them to HTTP in one place.
var (
	ErrNotFound  = errors.New("not found")
	ErrExists    = errors.New("already exists")
	ErrConflict  = errors.New("not possible in the present state")
	ErrInvalid   = errors.New("invalid")
	ErrForbidden = errors.New("not allowed")
	ErrExpired   = errors.New("expired")
)

// Tier says what a device's identity rests on (DESIGN.md, section 3).
type Tier string

// The tiers, strongest first.
const (
	TierA Tier = "A" // TPM with vendor EK certificate
	TierB Tier = "B" // TPM whose EK is on the vendor's signed list
	TierC Tier = "C" // virtual TPM
	TierD Tier = "D" // software key
)

// Trust is what the verifier last said about a device.
type Trust string

// The attestation states. Stale is silence; it heals by itself.
const (
	Pending     Trust = "pending"
	Attested    Trust = "attested"
	Degraded    Trust = "degraded"
	Quarantined Trust = "quarantined"
	Stale       Trust = "stale"
)

// Device is one box.
type Device struct {
	ID           DeviceID
	Tenant       TenantID
	Tier         Tier
	Model        string
	Serial       string
	Site         string
	Group        string
	Label        string
	EKHash       string // hex SHA-256 of the EK's TPMT_PUBLIC
	AKPublic     []byte // TPMT_PUBLIC of the attestation key
	CertSerial   string // hex serial number of the newest LDevID certificate
	CertNotAfter time.Time
	Trust        Trust
	TrustReasons []string
	AttestedAt   time.Time
	ResetCount   uint32 // of the TPM in the last accepted quote; never grows smaller until the device enrols again
	BootDigest   []byte // over the quoted registers, of the boot that was accepted last
	BootRelease  string // the release whose boot this device has committed to; older ones are refused
	Findings     []Finding
	Waiver       Waiver
	Next         Renewed   // certificate issued and not shown yet
	NextAK       []byte    // TPMT_PUBLIC of the attestation key that follows; nil when there is none
	Recovery     string    // hex serial number of the certificate that only opens quarantine
	RevokedAt    time.Time // zero: not revoked
	RevokedWhy   string
	FormerOf     DeviceID  // set on the past that a device left with the owner it had before
	LeftAt       time.Time // when it did
	Online       bool
	EnrolledAt   time.Time
	LastSeen     time.Time
	AgentVersion string
	Slot         string
	Installed    []Installed
	FreeMiB      uint64 // on its state partition; 0: not known
	Supply       string // mains, battery; empty: not known
	Share        string // host:port where it shares content with its site; empty: it does not
	State        []byte // newest wire.StateReport as it came; nil before the first
	AuditHead    uint64 // last audit sequence stored
	AuditBroken  bool   // the chain did not hold at some point, or entries are missing
	Samples      uint64 // samples stored
}

// Sample is one stored measurement.
type Sample struct {
	Device     DeviceID
	Boot       [16]byte
	Seq        uint64
	Index      int
	At         time.Time
	Peripheral string
	Name       string
	Value      float64
	Epoch      int64 // of a count: Unix seconds at which it began; 0: a measurement, or of an agent that does not say so
	Kept       bool  // the peripheral keeps the count itself
}

// PeripheralEvent is one stored change of a peripheral.
type PeripheralEvent struct {
	Device     DeviceID
	Boot       [16]byte
	Seq        uint64
	Index      int
	At         time.Time
	Peripheral string
	Category   string
	Code       string
	From, To   string
	Mono       int64  // milliseconds since the box was switched on; 0: not told
	Count      uint32 // how often it came in the minute before, where it flapped; 0: once
}

// AuditEvent is one entry of an audit trail: of a device (Device set, chained
// by the device) or of the service itself (Device empty, chained by the store).
type AuditEvent struct {
	Device   DeviceID
	Tenant   TenantID // whose it is; empty on the service's own trail: of the service as a whole
	Seq      uint64
	At       time.Time
	StoredAt time.Time
	Kind     string
	Severity string // info, warn, alarm
	Actor    string // operator, device or room that acted
	Subject  string
	Outcome  string // success, failure, refused; empty: nothing was tried
	Site     string // of the device or of what it is about, when it was stored
	Detail   map[string]string
	Body     []byte // what Hash covers
	Hash     [32]byte
	Prev     [32]byte
}

// CommandState is where a command stands.
type CommandState string

// The states of a command.
const (
	CommandQueued    CommandState = "QUEUED"    // waits for the device
	CommandSent      CommandState = "SENT"      // handed to the broker for the live connection
	CommandSucceeded CommandState = "SUCCEEDED" // the ends
	CommandFailed    CommandState = "FAILED"
	CommandRejected  CommandState = "REJECTED"
	CommandExpired   CommandState = "EXPIRED"
)

// Ended reports whether the state is final.
func (s CommandState) Ended() bool {
	return s == CommandSucceeded || s == CommandFailed || s == CommandRejected || s == CommandExpired
}

// Verbs lists what an operator may ask for.
func Verbs() []string {
	return []string{"identify", "reboot", "collect-logs", "print-test", "check-health", "set-config", "diagnose", FactoryReset}
}

// FactoryReset is the verb that gives up what lies on a device. It takes an
// admin, a reason, and the device's id once more as its argument.
const FactoryReset = "factory-reset"

// Command is one order to one device.
type Command struct {
	ID       CommandID
	Device   DeviceID
	Tenant   TenantID
	Counter  uint64
	Verb     string
	Args     map[string]string
	By       string
	Reason   string
	IssuedAt time.Time
	NotAfter time.Time
	State    CommandState
	Code     string // reason code of a bad end
	Text     string
	Output   []byte
	EndedAt  time.Time
}

// Page asks for part of a list by keyset: up to Limit items after the item
// whose key is After (empty: from the start). Limit 0 means 100, at most 1000.
type Page struct {
	After string
	Limit int
}

// Bounded returns the limit to use.
func (p Page) Bounded() int {
	if p.Limit <= 0 {
		return 100
	}
	return min(p.Limit, 1000)
}

// Role says what an operator token may do; each role includes those before.
type Role string

// The roles of the first cut.
const (
	Viewer   Role = "viewer"   // sees everything of its tenant
	Operator Role = "operator" // sends commands, starts rollouts
	Admin    Role = "admin"    // publishes releases, manages tokens and devices
)

// Covers reports whether r includes need.
func (r Role) Covers(need Role) bool {
	rank := map[Role]int{Viewer: 1, Operator: 2, Admin: 3}
	return rank[r] != 0 && rank[need] != 0 && rank[r] >= rank[need]
}

// Token is an operator's access token. Only its hash is ever stored.
type Token struct {
	ID        string
	Name      string
	Tenant    TenantID
	Role      Role
	Hash      [32]byte
	CreatedAt time.Time
	ExpiresAt time.Time // zero: does not expire
	RevokedAt time.Time
}
