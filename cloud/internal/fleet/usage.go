package fleet

// Cursor says up to where the samples and events of a device were read.
type Cursor struct {
	Boots map[int64]int64 `json:"boots,omitempty"` // sequence of the last sample, by boot
	Event int64           `json:"event,omitempty"` // number of the last event
}

// Usage is how the printers and readers of a device are used: what was made of
// it up to a cursor, and what came since.
type Usage struct {
	Device      DeviceID
	Tenant      TenantID
	Zone        string // of its site
	Body        []byte // as it was put; empty: never
	Peripherals []Peripheral
	Soon        map[string]bool // by id: it shows that its paper ends soon
	Samples     []Sample
	Events      []PeripheralEvent
	Next        Cursor // behind what is here
	More        bool   // there is more behind that
}

// Derived is what was made of a Usage.
type Derived struct {
	Device      DeviceID
	Tenant      TenantID
	Body        []byte
	Cursor      Cursor
	Peripherals []DerivedPeripheral // of which something new is known
	Reads       []ReadDay           // that came to what all readers of a model have read
}

// DerivedPeripheral is what no sensor of a peripheral says.
type DerivedPeripheral struct {
	ID    string
	Paper *Paper
	Reads *Reads
	Soon  bool // its paper is at its end soon
}

// ReadDay is what the readers of one model have read on one day since 1970.
type ReadDay struct {
	Model           string
	Day             int64
	Reads, Failures uint64
}
