package fleet

import (
	"slices"
	"time"
)

// The healths of a peripheral. Unknown is never as good as OK.
const (
	HealthOK        = "OK"
	HealthAttention = "Attention"
	HealthFault     = "Fault"
	HealthOffline   = "Offline"
	HealthUnknown   = "Unknown"
)

// Reasons that the service gives itself; all others come from the till.
const (
	ReasonTillOffline = "M_TILL_OFFLINE"
	ReasonReadErrors  = "M_READ_ERRORS"
	ReasonPaperSoon   = "M_PAPER_SOON"
	ReasonGone        = "M_GONE"
	reasonNotAsked    = "M_NOT_ASKED"
)

// Light is how a peripheral is, why, and since when.
type Light struct {
	Health string
	Reason string
	Since  time.Time
}

// Same reports whether two lights show the same, since whenever.
func (l Light) Same(o Light) bool { return l.Health == o.Health && l.Reason == o.Reason }

// NotYet reports whether nothing is known yet: the till has just begun to ask.
func (l Light) NotYet() bool {
	return l.Health == HealthUnknown && (l.Reason == "" || l.Reason == reasonNotAsked)
}

// Peripheral is one peripheral of one device.
type Peripheral struct {
	Device    DeviceID
	ID        string
	Category  string // UnifiedPOS control
	Driver    string
	Maker     string
	Model     string
	Serial    string
	Firmware  string
	Simulated bool
	Claim     string // observe, share, own
	Key       string // where it is, e.g. usb:04b8:0e15:SERIAL
	Interface string
	Caps      []string
	RollLines uint32 // line feeds of a full roll; 0: not known
	Power     string
	Sensors   map[string]string // Yes, No, Unknown

	Said  Light // by the till
	Light       // what the service shows: Said, what it has derived, and whether the till is there
	Last  Light // while the till is lost, and of what is gone: how it was then

	FirstAt time.Time
	SeenAt  time.Time
	GoneAt  time.Time // zero: in the newest report of its till

	Paper *Paper // nil: no prediction
	Reads *Reads // nil: no reader, or never read

	Label string // of the device, or its serial number
	Site  string
}

// Paper says when a roll of paper will be at its end.
type Paper struct {
	RunOutAt     time.Time
	Earliest     time.Time // with four in five
	Latest       time.Time
	Confidence   float64 // 0 to 1
	LinesLeft    float64
	LinesPerHour float64 // until then
	Basis        string  // configured, learned, near_end
}

// Reads is how well a card reader reads, beside all others of its model.
type Reads struct {
	Reads     uint64
	Failures  uint64
	Rate      float64 // failures of reads
	FleetRate float64
	Worse     bool // than the others, and not by chance
}

// PeripheralFilter picks peripherals; empty fields pick all that are there.
type PeripheralFilter struct {
	Health, Category, Reason, Site string
	Query                          string // part of id, model, maker or serial, or of the device's id, label or serial
	RunOutBefore                   time.Time
}

// Span is a time in which one state held.
type Span struct {
	Health   string
	Reason   string
	From, To time.Time // a zero To: until now
}

// Duration is how long and how often one state held.
type Duration struct {
	Health string
	Reason string
	Time   time.Duration
	Times  int
}

// HealthCheck is the outcome of one check of a peripheral.
type HealthCheck struct {
	Device     DeviceID
	Boot       [16]byte
	Seq        uint64
	Index      int
	At         time.Time
	Peripheral string
	Level      string // internal, external, interactive
	OK         bool
	Steps      []CheckStep
}

// CheckStep is one thing that a check looked at.
type CheckStep struct {
	ID   string `json:"id"`
	OK   bool   `json:"ok"`
	Code string `json:"code"`
	MS   uint32 `json:"ms"`
}

// PeripheralHistory is what is known of the past of one peripheral.
type PeripheralHistory struct {
	Peripheral
	Spans  []Span // newest first; the first one holds now, unless the peripheral is gone
	Lost   []Span // in which its till was lost, newest first
	Checks []HealthCheck
}

// healthRank orders health from good to bad; Unknown is worse than OK and never
// hides a fault.
var healthRank = map[string]int{HealthOK: 1, HealthUnknown: 2, HealthAttention: 3, HealthOffline: 4, HealthFault: 5}

// Worst is the health of a device with these peripherals.
func Worst(all []Peripheral) string {
	worst := ""
	for _, p := range all {
		if healthRank[p.Health] > healthRank[worst] {
			worst = p.Health
		}
	}
	if worst == "" {
		return HealthUnknown
	}
	return worst
}

// vitalSensors are those without which a category is never OK, each list a set
// of which one is enough. The agent knows the same; the service does not rely on
// it. Of a category that is not here nobody knows what matters.
var vitalSensors = map[string][][]string{
	"POSPrinter":     {{"CoverOpen"}, {"RecEmpty"}},
	"CashDrawer":     {{"DrawerOpened"}},
	"Scanner":        {}, // its power tells
	"LineDisplay":    {},
	"SmartCardRW":    {{"SCPresentSensor"}},
	"M_TamperSwitch": {{"M_Tampered"}},
	"M_DoorSwitch":   {{"M_DoorOpen"}},
	"M_Environment":  {{"M_TempHigh", "M_SupplyLow"}},
	"M_Host":         {{"M_DiskLow"}, {"M_MemoryLow"}},
}

// Roll is the light of a peripheral from what its till says of it and from what
// is derived: that its paper ends soon, that it reads worse than others. It
// never shows better than it was said, and nothing unknown as OK.
func Roll(p Peripheral, soon, worse bool) Light {
	l := p.Said
	if healthRank[l.Health] == 0 {
		l.Health, l.Reason = HealthUnknown, reasonNotAsked
	}
	if l.Health == HealthOK {
		l.Health, l.Reason = proven(p)
	}
	if l.Health == HealthUnknown && l.Reason == "" {
		l.Reason = reasonNotAsked
	}
	if l.Health == HealthOK || l.Health == HealthUnknown {
		switch {
		case soon:
			l.Health, l.Reason = HealthAttention, ReasonPaperSoon
		case worse:
			l.Health, l.Reason = HealthAttention, ReasonReadErrors
		}
	}
	return l
}

// proven is what an OK is worth.
func proven(p Peripheral) (health, reason string) {
	switch p.Power {
	case "PS_ONLINE":
	case "PS_OFF", "PS_OFF_OFFLINE":
		return HealthOffline, "POWER_OFF_OFFLINE"
	case "PS_OFFLINE":
		return HealthFault, "POWER_OFFLINE"
	default:
		return HealthUnknown, reasonNotAsked
	}
	vital, known := vitalSensors[p.Category]
	if !known {
		return HealthUnknown, "M_NO_SENSOR"
	}
	for _, one := range vital {
		if !slices.ContainsFunc(one, func(name string) bool { return p.Sensors[name] == "Yes" || p.Sensors[name] == "No" }) {
			return HealthUnknown, "M_NO_SENSOR"
		}
	}
	return HealthOK, ""
}
