// Package hal is what the rest of Tillward knows about hardware at the
// counter: printers, drawers, card readers, scanners, the box itself. It holds
// small interfaces and value types in UnifiedPOS words; drivers live in the
// folders below and know nothing of each other.
//
// A driver tells the truth: a sensor that is not there is Unknown, and Unknown
// never reads as healthy. No type here has a place for card data.
//
// It exports more names than other rooms because it is the vocabulary between
// every driver and the agent [UnifiedPOS 1.14.1, chapters 1 and 23-34].
package hal

import (
	"context"
	"fmt"
	"io"
	"iter"
	"time"

	"periph.io/x/conn/v3"
)

// Category is the UnifiedPOS device category.
type Category string

// The categories Tillward has drivers for; M_ marks our own.
const (
	POSPrinter  Category = "POSPrinter"
	CashDrawer  Category = "CashDrawer"
	SmartCardRW Category = "SmartCardRW"
	Scanner     Category = "Scanner"
	LineDisplay Category = "LineDisplay"
	Host        Category = "M_Host"
	Tamper      Category = "M_TamperSwitch"
	Door        Category = "M_DoorSwitch"
	Environment Category = "M_Environment" // temperature and supply inside the box
	Other       Category = "M_Other"       // there, and no driver knows what it is
)

// Tri is what a sensor says. The zero value is Unknown.
type Tri uint8

// The values of a Tri.
const (
	Unknown Tri = iota
	No
	Yes
)

// String returns Unknown, No or Yes.
func (t Tri) String() string {
	switch t {
	case No:
		return "No"
	case Yes:
		return "Yes"
	}
	return "Unknown"
}

// TriOf turns what a sensor that is there says into a Tri.
func TriOf(b bool) Tri {
	if b {
		return Yes
	}
	return No
}

// Power is the UnifiedPOS PowerState.
type Power string

// The power states [UnifiedPOS 1.14.1, 1.22].
const (
	PowerUnknown    Power = "PS_UNKNOWN"
	PowerOnline     Power = "PS_ONLINE"
	PowerOff        Power = "PS_OFF"
	PowerOffline    Power = "PS_OFFLINE"
	PowerOffOffline Power = "PS_OFF_OFFLINE"
)

// Health is the one light a person looks at.
type Health string

// The lights. NoSensor is for a device that cannot tell.
const (
	OK        Health = "OK"
	Attention Health = "Attention"
	Fault     Health = "Fault"
	Offline   Health = "Offline"
	NoSensor  Health = "Unknown"
)

// Claim says how a driver may hold its device.
type Claim string

// The claim modes: look from outside, share, or hold it.
const (
	Observe Claim = "observe"
	Share   Claim = "share"
	Own     Claim = "own"
)

// Info is a device's identity: the UnifiedPOS Equipment block, where it is
// and how it is held.
type Info struct {
	ID        string // as configured; stable over reboots
	Category  Category
	Driver    string
	Maker     string
	Model     string
	Serial    string
	Firmware  string
	Claim     Claim
	Simulated bool // no hardware behind it

	Key       string   // where it is, see package comment of hal/port: usb:04b8:0e15:SERIAL, tcp:192.0.2.10:9100, gpio:TAMPER_SW, ...
	Interface string   // UnifiedPOS Interface: USB, Ethernet, RS232, PCSC, GPIO, I2C; empty: not known
	Caps      []string // UnifiedPOS capabilities that it has, sorted: CapCoverSensor, CapRecEmptySensor, ...
	RollLines uint32   // line feeds of a full roll of paper; 0: not known
}

// Status is one look at a device.
type Status struct {
	Power   Power
	Sensors map[string]Tri // UnifiedPOS property names: CoverOpen, RecEmpty, RecNearEnd, SCPresentSensor, ...
	Health  Health
	Reason  string // code behind Health, e.g. REC_EMPTY
	Advice  string // what a person should do, one sentence
}

// Event is a change on a device.
type Event struct {
	At   time.Time
	Code string // UnifiedPOS status update, e.g. COVER_OPEN, or M_*
	From string
	To   string
}

// Stat is one counter or measurement; the unit is part of the name where it is
// not a count (temp_mc, free_bytes).
type Stat struct {
	Name  string
	Value float64
	// Epoch is when the count began, in Unix seconds; 0 for a measurement, which
	// may rise and fall. Within an epoch a count only grows.
	Epoch int64
	// Kept is a count that the device itself keeps: it goes on over a restart of
	// the agent, and a new epoch that does not begin lower is no new beginning.
	Kept bool
}

// Device is one open device. What else it can do is found by type assertion.
type Device interface {
	conn.Resource // String and Halt
	Info() Info
	io.Closer
}

// StatusReader is a device that can be asked how it is. A device that cannot
// be reached is no error but a Status with a power state that says so.
type StatusReader interface {
	Status(ctx context.Context) (Status, error)
}

// Notifier is a device that tells of changes by itself. The sequence ends with
// the context, or with an error when the device is lost.
type Notifier interface {
	Events(ctx context.Context) iter.Seq2[Event, error]
}

// Statistics is a device that counts. Counters only grow until the device is
// reset.
type Statistics interface {
	Statistics(ctx context.Context) ([]Stat, error)
}

// Level of a health check [UnifiedPOS 1.14.1, checkHealth].
type Level int

// The levels: no physical change; the device moves; a person takes part.
const (
	Internal Level = iota + 1
	External
	Interactive
)

// Report is the outcome of a health check.
type Report struct {
	OK     bool
	Text   string // one sentence; for the person at the box, it does not leave it
	Checks []Check
}

// Check is one thing that a health check looked at.
type Check struct {
	ID   string // e.g. reachable, status, paper, page, card
	OK   bool
	Code string // why not, as Status.Reason or Error.Code; of a card: its status word
	Took time.Duration
}

// HealthChecker is a device that can test itself. Internal never causes
// physical output; External does, e.g. a test print.
type HealthChecker interface {
	CheckHealth(ctx context.Context, level Level) (Report, error)
}

// DrawerKicker opens a cash drawer.
type DrawerKicker interface {
	OpenDrawer(ctx context.Context) error
}

// Parent is a device with others behind it that share its cable, as a cash
// drawer does that of a printer. Parts live and are closed with their parent.
type Parent interface {
	Parts() []Device
}

// Nudger is a device that can be told that its place on a bus has changed, so
// that it looks there now and not when its patience ends. Nudge never blocks.
type Nudger interface {
	Nudge()
}

// Config is what a driver is told about one device.
type Config struct {
	ID      string
	Address string
	Claim   Claim
	Options map[string]string
}

// Driver opens devices of one kind. Opening does not need the device to be
// there: a printer that is switched off opens and reports PS_OFF_OFFLINE.
// Unknown options are an error.
type Driver interface {
	Name() string
	Open(ctx context.Context, cfg Config) (Device, error)
}

// Checker is a driver that can be asked about a configuration before it is
// used. Check refuses, as an E_ILLEGAL with everything that is wrong, what Open
// would refuse wherever it is opened. It opens nothing, reads no file and looks
// at no device. What it does not refuse it describes: the device and then its
// parts, as they are known before they are found.
type Checker interface {
	Check(cfg Config) ([]Info, error)
}

// Error is a failed operation on a device, with its UnifiedPOS code.
type Error struct {
	Code string // E_OFFLINE, E_TIMEOUT, E_ILLEGAL, E_NOHARDWARE, E_NOEXIST, E_BUSY, E_FAILURE
	Op   string
	Err  error
}

// Error implements error.
func (e *Error) Error() string {
	if e.Err == nil {
		return e.Op + ": " + e.Code
	}
	return fmt.Sprintf("%s: %s: %v", e.Op, e.Code, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is an Error with the same code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && t.Op == "" && t.Err == nil
}
