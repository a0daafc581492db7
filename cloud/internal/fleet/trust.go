package fleet

import (
	"fmt"
	"time"
)

// Why an identity is not let in or not given. Each is one of the domain's
// errors as well, so that whoever maps those needs to know nothing of these.
var (
	ErrRevoked     = fmt.Errorf("the identity was revoked: %w", ErrForbidden)
	ErrReplaced    = fmt.Errorf("the certificate was replaced by a newer one: %w", ErrForbidden)
	ErrClaim       = fmt.Errorf("the claim code is wrong or was used before: %w", ErrForbidden)
	ErrManyKeys    = fmt.Errorf("it has had too many attestation keys: %w", ErrConflict)
	ErrOtherSerial = fmt.Errorf("the key is on file with another serial number: %w", ErrConflict)
)

// Finding is one sentence of an appraisal: which check spoke, about which
// register and event, measured against which release. Check is a stable name,
// Text is for people [draft-ietf-rats-ar4si].
type Finding struct {
	Check   string `json:"check"`
	PCR     string `json:"pcr,omitempty"`
	Event   string `json:"event,omitempty"`
	Release string `json:"release,omitempty"`
	Text    string `json:"text"`
}

// Attestation is the result of one appraisal, kept when it says something new.
type Attestation struct {
	Device     DeviceID
	At         time.Time
	Trust      Trust
	Release    string // whose reference values the boot has; empty when nothing was judged
	ResetCount uint32 // of the TPM
	Digest     []byte // over the quoted registers
	Findings   []Finding
	Until      time.Time // end of the waiver that alone made it acceptable; zero: nothing was waived
}

// Accepted reports whether the verdict lets the device in.
func (a Attestation) Accepted() bool { return a.Trust == Attested || a.Trust == Degraded }

// Admission is what a device's certificate opens.
type Admission string

// A member's certificate opens what its evidence earns; a recovery certificate,
// and a device that is being given up, only the q door.
const (
	AdmitMember     Admission = "member"
	AdmitQuarantine Admission = "quarantine"
)

// Waiver lets a quarantined device in until a date, on somebody's word.
type Waiver struct {
	Until  time.Time
	By     string
	Reason string
}

// Covers reports whether the waiver holds at t.
func (w Waiver) Covers(t time.Time) bool { return t.Before(w.Until) }

// BootReference is what one release makes one model boot into.
type BootReference struct {
	Model       string
	Release     ReleaseID
	Body        []byte // boot.Reference as it was signed
	PublishedAt time.Time
}

// Approval is what was decided about a firmware event.
type Approval string

// A firmware event waits until somebody decides, once for the whole model.
const (
	ApprovalOpen     Approval = "open"
	ApprovalGranted  Approval = "approved"
	ApprovalRejected Approval = "rejected"
)

// FirmwareEvent is an event of a model's firmware that no reference knows. It
// is decided once for the model, by each tenant for his own devices.
type FirmwareEvent struct {
	Tenant  TenantID
	Model   string
	PCR     int
	Digest  string // hex SHA-256
	What    string
	Devices int // that have shown it
	FirstAt time.Time
	First   DeviceID
	State   Approval
	By      string
	At      time.Time // of the decision
}

// Renewed is a certificate that was issued beside the one in use. The older one
// ends when the newer is first shown.
type Renewed struct {
	CertSerial string
	NotAfter   time.Time
}

// Waiting is a genuine device that nobody owns yet.
type Waiting struct {
	Device  DeviceID
	EKHash  string
	Tier    Tier // by its EK certificate; empty when only a list could vouch for it
	Model   string
	Serial  string
	From    string // address it asked from last
	FirstAt time.Time
	LastAt  time.Time
	Listed  bool // on a vendor's manifest, so that a claim code exists
	Claimed bool // by the tenant that asks; it has not come back since
}

// Ownership is where a device stands between two owners.
type Ownership struct {
	Device   DeviceID
	Voucher  []byte // the chain as it was signed
	Entries  int    // the highest count that was seen; a shorter chain is refused
	Owner    string // whom the voucher names
	State    OwnershipState
	Deadline time.Time // of an override
}

// OwnershipState is where a transfer stands.
type OwnershipState string

// A device is owned; or was offered to a next owner, who has to accept; or has
// been accepted and gives up what it holds of the old owner first.
const (
	Owned     OwnershipState = "owned"
	Offered   OwnershipState = "offered"
	Releasing OwnershipState = "releasing"
	Released  OwnershipState = "released"
)
