package fleet

import "time"

// Claim is what is shown for a device that nobody owns: the code on its label,
// alone or as the label's URI, or the word of an operator who sees it wait.
type Claim struct {
	Tenant      TenantID
	Device      DeviceID // may be empty when Code is the label's URI
	Code        string
	Site, Group string
	By          string
}

// Party is someone who owns devices, or shall.
type Party struct {
	Name   string
	Tenant TenantID // of his fleet service; may be empty
	Key    []byte   // Ed25519
}

// Transfer offers a device to its next owner.
type Transfer struct {
	Tenant      TenantID
	Device      DeviceID
	To          Party
	NotBefore   time.Time // when it may be accepted; zero: at once
	MayTransfer bool      // To may pass it on to anybody; else back only
	By          string
}

// Title is what the voucher of a device says.
type Title struct {
	Ownership

	Vendor, Model, Serial, Order string
	Holder                       Party
	Since                        time.Time
	MayTransfer                  bool
	Next                         *Party // of an open offer or override
	Override                     bool
	NotBefore                    time.Time // of the open offer or override
}

// Import is what became of one voucher of a file.
type Import struct {
	Device  DeviceID
	Serial  string
	Outcome string // accepted, held, known, releasing, override, refused
	Text    string
}

// Batch is what an imported manifest brought.
type Batch struct {
	Vendor, Batch, Order string
	Devices, Added       int
}

// Authority is a certificate that device certificates are signed with.
type Authority struct {
	Serial    string // hex
	NotBefore time.Time
	NotAfter  time.Time
	Current   bool // signs; the others are only believed
}
