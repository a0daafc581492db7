package fleet

import "time"

// TrailQuery asks for entries of all trails that a tenant may see; what is
// empty is not asked for.
type TrailQuery struct {
	Who      string   // actor: an operator, a device or a room
	What     string   // kind, or a class of kinds with its dot: "update."
	Device   DeviceID // its own entries, and those of the service about it
	Site     string
	Subject  string
	Severity string
	Outcome  string
	Trail    string    // TrailService or TrailDevices; empty: all
	From, To time.Time // when it was stored: not before From, and before To
	Happened bool      // From and To are about when it happened, by the clock of whoever recorded it

	// OldestFirst reads on in the order of storing: what has come since.
	OldestFirst bool
}

// Which trails a search looks into.
const (
	TrailService = "service"
	TrailDevices = "devices"
)

// TrailFound is one page of a search.
type TrailFound struct {
	Items   []TrailEntry
	Next    string    // cursor of what follows; empty: everything was looked at
	Newest  string    // cursor behind all that there was: with OldestFirst, what comes later
	Reached time.Time // when the last entry that was looked at was stored; zero: none was
}
