package wire

import (
	"fmt"
	"math"
)

// Boot names one run of the agent: 16 random bytes drawn at each start. With
// Seq it makes each up message unique for all time.
type Boot [16]byte

// Head begins every up message. (Boot, Seq) identifies it: the same pair
// always carries the same bytes, so the service may drop what it has seen; but
// for telemetry, of which a device that runs out of room may send fewer samples
// the second time.
type Head struct {
	V    uint16 `cbor:"1,keyasint"`
	Boot Boot   `cbor:"2,keyasint"`
	Seq  uint64 `cbor:"3,keyasint"` // counts from 1 within a Boot, per channel order of recording
	Sent int64  `cbor:"4,keyasint"` // when it was recorded, Unix milliseconds by the device's clock
}

func (h Head) check() error {
	if h.V == 0 || h.Seq == 0 || h.Boot == (Boot{}) {
		return fmt.Errorf("head without version, boot or sequence: %w", ErrMalformed)
	}
	return nil
}

// Sample is one measured value.
type Sample struct {
	At         int64   `cbor:"1,keyasint"`           // Unix milliseconds
	Peripheral string  `cbor:"2,keyasint,omitempty"` // empty: the box itself
	Name       string  `cbor:"3,keyasint"`           // a UnifiedPOS statistic or host metric; unit in the name, e.g. temp_mc
	Value      float64 `cbor:"4,keyasint"`
	Epoch      int64   `cbor:"5,keyasint,omitempty"` // of a count: Unix seconds at which it began; within it a count only grows. 0: a measurement
	Kept       bool    `cbor:"6,keyasint,omitempty"` // the peripheral itself keeps the count: it goes on over a restart of the agent
}

// TelemetryBatch carries up to MaxBatch samples.
type TelemetryBatch struct {
	Head    Head     `cbor:"1,keyasint"`
	Samples []Sample `cbor:"2,keyasint"`
}

// Check implements Message.
func (m *TelemetryBatch) Check() error {
	if err := m.Head.check(); err != nil {
		return err
	}
	if err := checkCount("samples", len(m.Samples), MaxBatch); err != nil {
		return err
	}
	for _, s := range m.Samples {
		if err := checkName("sample name", s.Name); err != nil {
			return err
		}
		if s.Peripheral != "" {
			if err := checkName("peripheral", s.Peripheral); err != nil {
				return err
			}
		}
		if math.IsNaN(s.Value) || math.IsInf(s.Value, 0) {
			return fmt.Errorf("sample %s is not a number: %w", s.Name, ErrMalformed)
		}
	}
	return nil
}

// PeripheralEvent is one change seen on a peripheral, in UnifiedPOS words.
type PeripheralEvent struct {
	At         int64  `cbor:"1,keyasint"` // Unix milliseconds
	Peripheral string `cbor:"2,keyasint"`
	Category   string `cbor:"3,keyasint"` // POSPrinter, SmartCardRW, ...
	Code       string `cbor:"4,keyasint"` // COVER_OPEN, REC_EMPTY, POWER_OFFLINE, M_...
	From       string `cbor:"5,keyasint,omitempty"`
	To         string `cbor:"6,keyasint,omitempty"`
	Mono       int64  `cbor:"7,keyasint,omitempty"` // milliseconds since the box was switched on; At may jump, this does not
	Count      uint32 `cbor:"8,keyasint,omitempty"` // how often it came in the minute before, where it flapped and is told once; 0: once
}

// HealthCheck is the outcome of one check of a peripheral [UnifiedPOS 1.14.1,
// checkHealth].
type HealthCheck struct {
	At         int64       `cbor:"1,keyasint"` // Unix milliseconds, of its end
	Peripheral string      `cbor:"2,keyasint"`
	Level      string      `cbor:"3,keyasint"` // internal, external, interactive
	OK         bool        `cbor:"4,keyasint"`
	Checks     []CheckStep `cbor:"5,keyasint,omitempty"`
}

// CheckStep is one thing that a check looked at.
type CheckStep struct {
	ID   string `cbor:"1,keyasint"`
	OK   bool   `cbor:"2,keyasint"`
	Code string `cbor:"3,keyasint,omitempty"` // why not; of a card: its status word
	MS   uint32 `cbor:"4,keyasint"`           // milliseconds it took
}

// EventBatch carries peripheral events in the order they were seen.
type EventBatch struct {
	Head   Head              `cbor:"1,keyasint"`
	Events []PeripheralEvent `cbor:"2,keyasint"`
	Checks []HealthCheck     `cbor:"3,keyasint,omitempty"`
}

// Check implements Message.
func (m *EventBatch) Check() error {
	if err := m.Head.check(); err != nil {
		return err
	}
	if err := checkCount("events", len(m.Events), MaxBatch); err != nil {
		return err
	}
	for _, e := range m.Events {
		for _, f := range [...]struct{ name, v string }{{"peripheral", e.Peripheral}, {"category", e.Category}, {"code", e.Code}} {
			if err := checkName(f.name, f.v); err != nil {
				return err
			}
		}
		for _, s := range [...]string{e.From, e.To} {
			if err := checkCode("event "+e.Code, s); err != nil {
				return err
			}
		}
	}
	if err := checkCount("health checks", len(m.Checks), MaxBatch); err != nil {
		return err
	}
	for _, c := range m.Checks {
		if err := c.check(); err != nil {
			return err
		}
	}
	return nil
}

func (c HealthCheck) check() error {
	if err := checkName("peripheral", c.Peripheral); err != nil {
		return err
	}
	if c.Level != "internal" && c.Level != "external" && c.Level != "interactive" {
		return fmt.Errorf("health check of level %.20q: %w", c.Level, ErrMalformed)
	}
	if err := checkCount("steps of a health check", len(c.Checks), MaxSteps); err != nil {
		return err
	}
	for _, s := range c.Checks {
		if err := checkName("step", s.ID); err != nil {
			return err
		}
		if err := checkCode("code", s.Code); err != nil {
			return err
		}
	}
	return nil
}

// Peripheral is the present state of one peripheral.
type Peripheral struct {
	ID        string            `cbor:"1,keyasint"`
	Category  string            `cbor:"2,keyasint"`
	Driver    string            `cbor:"3,keyasint"`
	Maker     string            `cbor:"4,keyasint,omitempty"`
	Model     string            `cbor:"5,keyasint,omitempty"`
	Serial    string            `cbor:"6,keyasint,omitempty"`
	Firmware  string            `cbor:"7,keyasint,omitempty"`
	Simulated bool              `cbor:"8,keyasint,omitempty"` // hal/virtual: no hardware behind it
	Power     string            `cbor:"9,keyasint"`           // PS_ONLINE, PS_OFF_OFFLINE, PS_UNKNOWN, ...
	Health    string            `cbor:"10,keyasint"`          // OK, Attention, Fault, Offline, Unknown
	Reason    string            `cbor:"11,keyasint,omitempty"`
	Advice    string            `cbor:"12,keyasint,omitempty"` // until version 3; since then the service knows what to do about a reason
	Since     int64             `cbor:"13,keyasint"`           // Health and Reason hold since, Unix milliseconds
	Sensors   map[string]string `cbor:"14,keyasint,omitempty"` // UnifiedPOS property -> Yes, No, Unknown
	Claim     string            `cbor:"15,keyasint,omitempty"` // observe, share, own
	Key       string            `cbor:"16,keyasint,omitempty"` // where it is, e.g. usb:04b8:0e15:SERIAL
	Interface string            `cbor:"17,keyasint,omitempty"` // USB, Ethernet, RS232, PCSC, GPIO, I2C
	Caps      []string          `cbor:"18,keyasint,omitempty"` // UnifiedPOS capabilities that it has, sorted
	RollLines uint32            `cbor:"19,keyasint,omitempty"` // line feeds of a full roll of paper; 0: not known
}

// Installed is one component that a device runs: boot truth, whatever a report
// of an execution said before.
type Installed struct {
	Component string `cbor:"1,keyasint"` // agent, os/{model}/{channel}, ops/{tenant}/{name}
	Version   string `cbor:"2,keyasint"`
	Slot      string `cbor:"3,keyasint,omitempty"`
	Hash      string `cbor:"4,keyasint,omitempty"` // of what was installed, hex; of a system image that of its bundle
	Trial     bool   `cbor:"5,keyasint,omitempty"` // it has not proved itself yet
}

// StateReport says how the device is now; the newest one replaces all before.
type StateReport struct {
	Head         Head         `cbor:"1,keyasint"`
	AgentVersion string       `cbor:"2,keyasint"`
	Slot         string       `cbor:"3,keyasint"` // a, b or golden: boot truth
	StartedAt    int64        `cbor:"4,keyasint"` // Unix milliseconds
	Model        string       `cbor:"5,keyasint,omitempty"`
	Serial       string       `cbor:"6,keyasint,omitempty"`
	Peripherals  []Peripheral `cbor:"7,keyasint,omitempty"`
	SpoolDepth   uint64       `cbor:"8,keyasint"`            // messages waiting
	SpoolShed    uint64       `cbor:"9,keyasint"`            // telemetry messages given up for lack of space since provisioning
	AuditHead    uint64       `cbor:"10,keyasint"`           // last audit sequence recorded
	Samples      uint64       `cbor:"11,keyasint"`           // samples recorded since provisioning
	Settings     string       `cbor:"12,keyasint,omitempty"` // hash of the settings in force
	Label        string       `cbor:"13,keyasint,omitempty"` // name an operator gave by set-config
	Installed    []Installed  `cbor:"14,keyasint,omitempty"`
	FreeMiB      uint64       `cbor:"15,keyasint,omitempty"` // on the state partition
	Supply       string       `cbor:"16,keyasint,omitempty"` // mains, battery; empty: not known
	Share        string       `cbor:"17,keyasint,omitempty"` // host:port where tills of the site may fetch content by its hash
	Execution    string       `cbor:"18,keyasint,omitempty"` // in work; empty: none
	Crashes      uint64       `cbor:"19,keyasint,omitempty"` // starts of the agent that no orderly end came before
}

// Check implements Message.
func (m *StateReport) Check() error {
	if err := m.Head.check(); err != nil {
		return err
	}
	if err := checkName("agent version", m.AgentVersion); err != nil {
		return err
	}
	if err := checkCount("peripherals", len(m.Peripherals), MaxPeripherals); err != nil {
		return err
	}
	for _, s := range []string{m.Slot, m.Model, m.Serial, m.Settings, m.Label, m.Supply, m.Share, m.Execution} {
		if err := checkText("state", s); err != nil {
			return err
		}
	}
	if err := checkCount("components", len(m.Installed), MaxInstalled); err != nil {
		return err
	}
	for _, c := range m.Installed {
		if c.Component == "" || c.Version == "" {
			return fmt.Errorf("component without name or version: %w", ErrMalformed)
		}
		for _, s := range []string{c.Component, c.Version, c.Slot, c.Hash} {
			if err := checkText("component", s); err != nil {
				return err
			}
		}
	}
	for _, p := range m.Peripherals {
		for _, f := range [...]struct{ name, v string }{
			{"peripheral", p.ID}, {"category", p.Category}, {"driver", p.Driver}, {"power", p.Power}, {"health", p.Health},
		} {
			if err := checkName(f.name, f.v); err != nil {
				return err
			}
		}
		for _, s := range []string{p.Maker, p.Model, p.Serial, p.Firmware, p.Advice} {
			if err := checkText("peripheral "+p.ID, s); err != nil {
				return err
			}
		}
		if len(p.Key) > MaxTopic {
			return fmt.Errorf("peripheral %s: key: %w", p.ID, ErrLimit)
		}
		if err := checkText("peripheral "+p.ID, p.Key); err != nil {
			return err
		}
		for _, s := range []string{p.Reason, p.Claim, p.Interface} {
			if err := checkCode("peripheral "+p.ID, s); err != nil {
				return err
			}
		}
		if err := checkCount("capabilities", len(p.Caps), 32); err != nil {
			return err
		}
		for _, c := range p.Caps {
			if err := checkName("capability", c); err != nil {
				return err
			}
		}
		if err := checkCount("sensors", len(p.Sensors), 32); err != nil {
			return err
		}
		for k, v := range p.Sensors {
			if err := checkName("sensor", k); err != nil {
				return err
			}
			if v != "Yes" && v != "No" && v != "Unknown" {
				return fmt.Errorf("sensor %s is %.20q, not Yes, No or Unknown: %w", k, v, ErrMalformed)
			}
		}
	}
	return nil
}

// ResultReport tells how an order went on. A command reports once; an offer
// (an execution) reports each state it enters.
type ResultReport struct {
	Head    Head   `cbor:"1,keyasint"`
	Kind    string `cbor:"2,keyasint"`           // OrderCommand or OrderOffer
	ID      string `cbor:"3,keyasint"`           // command id or execution id
	State   string `cbor:"4,keyasint"`           // command: SUCCEEDED, FAILED, REJECTED, EXPIRED; execution: see fleet.ExecutionState
	Reason  string `cbor:"5,keyasint,omitempty"` // a code: signature, expired, downgrade, incompatible, window, ...
	Text    string `cbor:"6,keyasint,omitempty"` // what a person should know
	Output  []byte `cbor:"7,keyasint,omitempty"` // command output, at most MaxOutput
	From    string `cbor:"8,keyasint,omitempty"` // version before
	To      string `cbor:"9,keyasint,omitempty"` // version offered
	Done    uint64 `cbor:"10,keyasint,omitempty"`
	Total   uint64 `cbor:"11,keyasint,omitempty"` // bytes
	Counter uint64 `cbor:"12,keyasint,omitempty"` // the order's counter
	Attempt uint32 `cbor:"13,keyasint,omitempty"` // of the execution, as offered
	Step    uint32 `cbor:"14,keyasint,omitempty"` // counts the reports of an attempt; a lower one is old news
	Wire    uint64 `cbor:"15,keyasint,omitempty"` // bytes fetched from the service,
	Peer    uint64 `cbor:"16,keyasint,omitempty"` // from tills of the site,
	Medium  uint64 `cbor:"17,keyasint,omitempty"` // from a medium,
	Reused  uint64 `cbor:"18,keyasint,omitempty"` // and taken from what was there
}

// Check implements Message.
func (m *ResultReport) Check() error {
	if err := m.Head.check(); err != nil {
		return err
	}
	if m.Kind != OrderCommand && m.Kind != OrderOffer {
		return fmt.Errorf("result of kind %.20q: %w", m.Kind, ErrMalformed)
	}
	if err := checkName("id", m.ID); err != nil {
		return err
	}
	if err := checkName("state", m.State); err != nil {
		return err
	}
	for _, s := range []string{m.Reason, m.Text, m.From, m.To} {
		if err := checkText("result", s); err != nil {
			return err
		}
	}
	return checkCount("bytes of output", len(m.Output), MaxOutput)
}

// EvidenceReport is the attestation evidence of one connection [RFC 9334]. It
// is the first message after CONNECT and the answer to each Challenge. The
// quote's extraData binds it to the TLS connection, or to the challenge.
//
// Steady evidence, of a boot that the service has accepted before, is the quote
// alone and stays within MaxSteadyEvidence bytes. When the boot changed, or the
// service asks for it (NeedLog), the values of the registers and the event log
// come with it.
type EvidenceReport struct {
	Head         Head     `cbor:"1,keyasint"`
	Quoted       []byte   `cbor:"2,keyasint"`           // TPMS_ATTEST as the TPM made it
	Signature    []byte   `cbor:"3,keyasint"`           // ECDSA r || s, 32 bytes each; until version 1 a TPMT_SIGNATURE
	PCRs         [][]byte `cbor:"4,keyasint,omitempty"` // SHA-256 values in the order of the selection
	Seq          uint64   `cbor:"5,keyasint"`           // of the binding, counts up within the connection
	Nonce        []byte   `cbor:"6,keyasint,omitempty"` // until version 1; since then the quote says what it answers
	AgentVersion string   `cbor:"7,keyasint,omitempty"` // left out of steady evidence
	Log          []byte   `cbor:"8,keyasint,omitempty"` // gzip of binary_bios_measurements
}

// Check implements Message.
func (m *EvidenceReport) Check() error {
	if err := m.Head.check(); err != nil {
		return err
	}
	if len(m.Quoted) == 0 || len(m.Quoted) > 1024 || len(m.Signature) == 0 || len(m.Signature) > 1024 || len(m.Nonce) > 64 {
		return fmt.Errorf("quote of %d and signature of %d bytes: %w", len(m.Quoted), len(m.Signature), ErrLimit)
	}
	if err := checkCount("PCRs", len(m.PCRs), 24); err != nil {
		return err
	}
	if err := checkCount("bytes of event log", len(m.Log), MaxLog); err != nil {
		return err
	}
	for _, p := range m.PCRs {
		if len(p) != 32 {
			return fmt.Errorf("PCR of %d bytes: %w", len(p), ErrMalformed)
		}
	}
	if m.AgentVersion == "" {
		return nil
	}
	return checkName("agent version", m.AgentVersion)
}
