package fleet

import (
	"errors"
	"time"
)

// Errors of sign-in.
var (
	ErrUnauthenticated = errors.New("no valid access token: sign in, or send one as Authorization: Bearer")
	ErrTooMany         = errors.New("too many failed sign-ins from this address: wait five minutes")
)

// Principal is a signed-in operator.
type Principal struct {
	Name    string
	Tenant  TenantID
	Role    Role
	TokenID string
	Cookie  bool // came by the session cookie, so a browser may have been tricked
}

// CommandRequest is what an operator asks of one device.
type CommandRequest struct {
	Device DeviceID
	Tenant TenantID
	Verb   string
	Args   map[string]string
	By     string
	Reason string
	Life   time.Duration // 0: an hour
}

// ChangeKind says what sort of thing changed.
type ChangeKind string

// The kinds of changes.
const (
	ChangedDevice  ChangeKind = "device"
	ChangedCommand ChangeKind = "command"
	ChangedRollout ChangeKind = "rollout"
	ChangedRelease ChangeKind = "release"
	ChangedAudit   ChangeKind = "audit"
	ChangedEvent   ChangeKind = "event"
	Resync         ChangeKind = "resync" // changes were lost: fetch everything again

	ChangedPeripheral ChangeKind = "peripheral" // one of the device with this id
)

// Change says that a thing is different now; the reader fetches what it shows.
type Change struct {
	Kind   ChangeKind
	ID     string
	Tenant TenantID
}
