package fleet

import "time"

// TrailEntry is an entry of any trail with its place among all of them.
type TrailEntry struct {
	N int64 // grows in the order they were stored, and leaves none out
	AuditEvent
}

// ExportCursor is how far a sink of the export has come.
type ExportCursor struct {
	N    int64     // of the last entry that its receiver has
	Sent uint64    // entries that it has
	Lost uint64    // entries that were deleted before they were sent
	At   time.Time // of the last step; zero: there was none

	Last      int64     // number of the last entry that its filter let pass, or behind which nobody knows
	Skipped   uint64    // entries that its filter kept back
	StalledAt time.Time // what waits waits since then, and the alarm was raised; zero: it was not
}

// ExportState is how a sink of the export does.
type ExportState struct {
	Name, Kind, Format string
	To                 string // where it sends, without secrets
	ExportCursor
	Lag       int64 // entries that its receiver does not have yet
	State     string
	LastError string    // of the newest failure
	FailedAt  time.Time // zero: it has not failed since the start

	FailingSince time.Time // zero: it does not fail
	Stalled      bool      // for so long that it is an alarm
}

// The states of a sink.
const (
	SinkIdle    = "idle"    // its receiver has everything
	SinkSending = "sending" // something is under way
	SinkFailing = "failing" // it tries again
)
