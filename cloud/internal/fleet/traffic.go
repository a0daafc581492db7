package fleet

import "time"

// Intake is one message of a device, decoded. Everything in it is stored in
// one transaction or not at all.
type Intake struct {
	Device      DeviceID
	Tenant      TenantID
	At          time.Time // when it arrived
	Samples     []Sample
	Ahead       bool // the samples went ahead of older ones that the device still has
	Events      []PeripheralEvent
	Checks      []HealthCheck
	Audit       []AuditEvent
	Anchors     []AnchorSeen // of entries in Audit
	AnchorTold  bool         // the alarm of a bad one was raised a moment ago: not again
	AuditBroken bool         // the chain did not hold: the device is flagged for good
	Report      *Report
	CommandEnd  *CommandEnd
	Step        *ExecutionStep
	Service     *AuditEvent  // an entry for the service trail, such as a refusal
	Alarms      []AuditEvent // entries about Events, unless those were there before
}

// Report is a device's report of its state.
type Report struct {
	Boot         [16]byte
	Seq          uint64
	Sent         time.Time
	AgentVersion string
	Slot         string
	Raw          []byte
	Installed    []Installed
	FreeMiB      uint64
	Supply       string
	Share        string      // host:port where tills of the site may fetch content
	Execution    ExecutionID // in work; empty: none
	Crashes      uint64      // starts that no orderly end came before; only grows
	Peripherals  []Peripheral
}

// Outcome says what an intake changed. What was there before is counted as
// duplicate and changes nothing.
type Outcome struct {
	NewSamples, NewEvents, NewAudit int
	NewChecks                       int
	Peripherals                     int // that are not as they were
	Duplicates                      int
	Gap                             bool        // entries of the audit trail are missing, or were until now
	Forked                          uint64      // audit sequence that was stored before with other content; 0: none
	AnchorBad                       bool        // the alarm of a bad anchor was raised
	Sealed                          uint64      // audit sequence that came again and lies in a sealed file, whether with other content nobody can tell; 0: none
	Command                         *Command    // after it ended; nil when it had ended before
	Execution                       *Execution  // after it moved; nil when it did not
	Reconciled                      []Execution // moved because of what the device runs
}

// DeviceFilter picks devices; empty fields pick all.
type DeviceFilter struct {
	Site, Group string
	Trust       Trust
	Query       string // part of id, label, serial, site or model
	Online      *bool
	Former      bool // what devices left behind that moved on, instead of devices
}

// DevicePatch changes what an operator may change of a device; nil leaves a
// field as it is.
type DevicePatch struct{ Site, Group, Label *string }

// SeriesInfo is one measured quantity of a device.
type SeriesInfo struct {
	Peripheral, Name string
	Last             float64 // the newest value
	At               time.Time
	Count            uint64
}

// Point is one value at one time.
type Point struct {
	At    time.Time
	Value float64
}

// CommandFilter picks commands; empty fields pick all.
type CommandFilter struct {
	Device DeviceID
	State  CommandState
}

// ChainReport says whether an audit trail is whole.
type ChainReport struct {
	OK          bool
	Entries     uint64
	First, Last uint64 // sequence
	BrokenAt    uint64 // sequence of the first entry that does not fit; 0 when OK
	Text        string
}

// Summary is the fleet of one tenant in numbers.
type Summary struct {
	Devices, Online      int
	ByTrust              map[Trust]int
	ByVersion            map[string]int
	ByHealth             map[string]int
	Samples, AuditEvents uint64
}

// Listing is one line of a vendor's list: a TPM that may join a tenant, or that
// waits for a tenant to claim it.
type Listing struct {
	EKHash    string   // hex SHA-256 of the EK's TPMT_PUBLIC
	Tenant    TenantID // empty: nobody has claimed it
	Device    DeviceID
	Model     string
	Serial    string
	Site      string
	Group     string
	Vendor    string // who signed the manifest with the line; empty on a tenant's own list
	Batch     string
	Order     string    // number of the vendor's order
	ClaimHash string    // of the code on the label; empty when there is none or it was used
	ClaimedAt time.Time // zero: never, or on the tenant's list from the start
}

// ExecutionStep is one step of one device's part in a rollout.
type ExecutionStep struct {
	ID           ExecutionID
	State        ExecutionState
	Reason, Text string
	From, To     string // versions; empty leaves what is known
	Done, Total  uint64 // bytes
	Attempt      int    // 0: of an agent that does not count them
	Number       uint32 // of the report within the attempt; 0 as above
	Bytes        Bytes
	Version      int64 // of the execution that whoever decided saw; 0: of the device, which knows best
}

// CommandEnd is how a device says a command ended.
type CommandEnd struct {
	ID         CommandID
	State      CommandState
	Code, Text string
	Output     []byte
}
