package wire

import (
	"fmt"
	"slices"
)

// Kinds of orders; the kind is part of what is signed, so that an order of one
// kind can never be taken for another.
const (
	OrderCommand = "command"
	OrderOffer   = "offer"
	OrderMedium  = "medium" // never sent: it lies on an update medium
	OrderHead    = "head"   // a Countersign
)

// Order is a signed message to one device. The signature covers kind and
// payload (provisioning/trust.SignOrder); the payload is a CommandOrder or an
// OfferOrder as bytes, verified before it is decoded.
type Order struct {
	Kind      string `cbor:"1,keyasint"`
	Payload   []byte `cbor:"2,keyasint"`
	KeyID     string `cbor:"3,keyasint"`
	Signature []byte `cbor:"4,keyasint"`
}

// Check implements Message.
func (m *Order) Check() error {
	if m.Kind != OrderCommand && m.Kind != OrderOffer && m.Kind != OrderMedium && m.Kind != OrderHead {
		return fmt.Errorf("order of kind %.20q: %w", m.Kind, ErrMalformed)
	}
	if len(m.Payload) == 0 || len(m.Signature) == 0 || len(m.Signature) > 512 {
		return fmt.Errorf("order without payload or signature: %w", ErrMalformed)
	}
	return checkName("key id", m.KeyID)
}

// Countersign is the service's word that it holds a device's audit trail up to
// this entry: signed as an order, sent at each connect, and kept by both sides.
type Countersign struct {
	V      uint16   `cbor:"1,keyasint"`
	Tenant string   `cbor:"2,keyasint"`
	Device string   `cbor:"3,keyasint"`
	Seq    uint64   `cbor:"4,keyasint"`
	Hash   [32]byte `cbor:"5,keyasint"`
	At     int64    `cbor:"6,keyasint"` // Unix milliseconds, by the service's clock
}

// Check implements Message.
func (m *Countersign) Check() error {
	if m.V == 0 || m.Seq == 0 || m.At <= 0 {
		return fmt.Errorf("countersignature without version, entry or time: %w", ErrMalformed)
	}
	if err := checkName("tenant", m.Tenant); err != nil {
		return err
	}
	return checkName("device", m.Device)
}

// CommandOrder asks one device to do one thing, once, before it expires.
type CommandOrder struct {
	V        uint16            `cbor:"1,keyasint"`
	ID       string            `cbor:"2,keyasint"`
	Tenant   string            `cbor:"3,keyasint"`
	Device   string            `cbor:"4,keyasint"`
	Counter  uint64            `cbor:"5,keyasint"` // grows with each command to this device
	IssuedAt int64             `cbor:"6,keyasint"` // Unix milliseconds
	NotAfter int64             `cbor:"7,keyasint"` // Unix milliseconds; later it must not run
	Verb     string            `cbor:"8,keyasint"` // identify, reboot, collect-logs, print-test, set-config, factory-reset
	Args     map[string]string `cbor:"9,keyasint,omitempty"`
	By       string            `cbor:"10,keyasint,omitempty"` // operator, for the device's audit trail
	Reason   string            `cbor:"11,keyasint,omitempty"`
}

// Check implements Message.
func (m *CommandOrder) Check() error {
	for _, f := range [...]struct{ name, v string }{{"id", m.ID}, {"tenant", m.Tenant}, {"device", m.Device}, {"verb", m.Verb}} {
		if err := checkName(f.name, f.v); err != nil {
			return err
		}
	}
	if m.V == 0 || m.Counter == 0 || m.NotAfter <= m.IssuedAt {
		return fmt.Errorf("command %s without version, counter or life: %w", m.ID, ErrMalformed)
	}
	if err := checkCount("arguments", len(m.Args), 32); err != nil {
		return err
	}
	for k, v := range m.Args {
		if err := checkName("argument", k); err != nil {
			return err
		}
		if err := checkText("argument "+k, v); err != nil {
			return err
		}
	}
	for _, s := range []string{m.By, m.Reason} {
		if err := checkText("command", s); err != nil {
			return err
		}
	}
	return nil
}

// Span is a stretch of time, from its first to before its last millisecond.
type Span struct {
	From int64 `cbor:"1,keyasint"` // Unix milliseconds
	To   int64 `cbor:"2,keyasint"`
}

// OfferOrder offers one device a release: one execution of a rollout. The
// device finds out by TUF whether the target is genuine; the order only points,
// and says when. Windows come as spans, worked out from the hours of the site by
// the service: a till has no time zones. Past the last span nothing is open.
type OfferOrder struct {
	V         uint16            `cbor:"1,keyasint"`
	Execution string            `cbor:"2,keyasint"`
	Tenant    string            `cbor:"3,keyasint"`
	Device    string            `cbor:"4,keyasint"`
	Class     string            `cbor:"5,keyasint"` // agent, os, app, config, script
	Version   string            `cbor:"6,keyasint"`
	Target    string            `cbor:"7,keyasint"` // TUF target folder, e.g. agent/1.2.3 or ops/main/pos/4.5.6
	IssuedAt  int64             `cbor:"8,keyasint"` // Unix milliseconds
	NotAfter  int64             `cbor:"9,keyasint"`
	By        string            `cbor:"10,keyasint,omitempty"`
	Attempt   uint32            `cbor:"11,keyasint,omitempty"` // of this execution, from 1; an older one is over
	Download  []Span            `cbor:"12,keyasint,omitempty"` // when it may be fetched; none: at any time
	Install   []Span            `cbor:"13,keyasint,omitempty"` // when the till may be touched; none: at any time
	Steps     map[string]uint32 `cbor:"14,keyasint,omitempty"` // seconds that a state may take, by its name
	Peers     []string          `cbor:"15,keyasint,omitempty"` // host:port of tills of the site that share what they have
	RateKiB   uint32            `cbor:"16,keyasint,omitempty"` // KiB per second at most; 0: as the device is configured
	Rollout   string            `cbor:"17,keyasint,omitempty"` // for the device's audit trail
}

// Check implements Message.
func (m *OfferOrder) Check() error {
	for _, f := range [...]struct{ name, v string }{
		{"execution", m.Execution}, {"tenant", m.Tenant}, {"device", m.Device}, {"class", m.Class}, {"version", m.Version},
	} {
		if err := checkName(f.name, f.v); err != nil {
			return err
		}
	}
	if m.V == 0 || m.NotAfter <= m.IssuedAt {
		return fmt.Errorf("offer %s without version or life: %w", m.Execution, ErrMalformed)
	}
	if m.Target == "" || len(m.Target) > 256 {
		return fmt.Errorf("offer %s target: %w", m.Execution, ErrLimit)
	}
	for _, s := range append([]string{m.Target, m.By, m.Rollout}, m.Peers...) {
		if err := checkText("offer", s); err != nil {
			return err
		}
	}
	for what, n := range map[string][2]int{"download spans": {len(m.Download), MaxSpans}, "install spans": {len(m.Install), MaxSpans}, "steps": {len(m.Steps), 16}, "peers": {len(m.Peers), MaxPeers}} {
		if err := checkCount(what, n[0], n[1]); err != nil {
			return err
		}
	}
	for _, s := range slices.Concat(m.Download, m.Install) {
		if s.To <= s.From {
			return fmt.Errorf("offer %s: span ends before it begins: %w", m.Execution, ErrMalformed)
		}
	}
	for k := range m.Steps {
		if err := checkName("step", k); err != nil {
			return err
		}
	}
	return nil
}

// MediumOrder lies, signed, on an update medium and names what a device of the
// tenant may install from it. Like an offer it only points.
type MediumOrder struct {
	V        uint16       `cbor:"1,keyasint"`
	ID       string       `cbor:"2,keyasint"` // executions are called {ID}-{component} in the trail
	Tenant   string       `cbor:"3,keyasint"`
	IssuedAt int64        `cbor:"4,keyasint"` // Unix milliseconds
	NotAfter int64        `cbor:"5,keyasint"`
	Releases []MediumItem `cbor:"6,keyasint"` // in the order to install them
	By       string       `cbor:"7,keyasint,omitempty"`
}

// MediumItem is one release on a medium.
type MediumItem struct {
	Class   string `cbor:"1,keyasint"`
	Version string `cbor:"2,keyasint"`
	Target  string `cbor:"3,keyasint"`
}

// Check implements Message.
func (m *MediumOrder) Check() error {
	for _, f := range [...]struct{ name, v string }{{"medium", m.ID}, {"tenant", m.Tenant}} {
		if err := checkName(f.name, f.v); err != nil {
			return err
		}
	}
	if m.V == 0 || m.NotAfter <= m.IssuedAt || len(m.Releases) == 0 {
		return fmt.Errorf("medium %s without version, life or release: %w", m.ID, ErrMalformed)
	}
	if err := checkCount("releases", len(m.Releases), MaxMedium); err != nil {
		return err
	}
	for _, r := range m.Releases {
		for _, f := range [...]struct{ name, v string }{{"class", r.Class}, {"version", r.Version}} {
			if err := checkName(f.name, f.v); err != nil {
				return err
			}
		}
		if r.Target == "" || len(r.Target) > 256 {
			return fmt.Errorf("medium %s target: %w", m.ID, ErrLimit)
		}
		if err := checkText("target", r.Target); err != nil {
			return err
		}
	}
	return checkText("medium", m.By)
}

// What a Challenge may ask for beside a quote.
const (
	NeedLog   = "log"   // evidence with register values and event log
	NeedRenew = "renew" // another certificate, now: the authority changes
)

// What a device may do to become trusted again.
const (
	ActionDiagnose = "diagnose" // let the service collect what is needed to see what is wrong
	ActionUpdate   = "update"   // take a repair update
	ActionReboot   = "reboot"
	ActionEnrol    = "enrol" // forget the identity and enrol again
)

// Finding is one sentence of an appraisal, on the wire as it is in the console
// and in both audit trails: which check spoke, about which register and event,
// measured against which release [draft-ietf-rats-ar4si].
type Finding struct {
	Check   string `cbor:"1,keyasint"` // a stable name, e.g. boot.unknown-event
	PCR     string `cbor:"2,keyasint,omitempty"`
	Event   string `cbor:"3,keyasint,omitempty"`
	Release string `cbor:"4,keyasint,omitempty"`
	Text    string `cbor:"5,keyasint"` // for people; says what to do
}

// Challenge asks for fresh evidence now, or tells the outcome of the last.
// Verdict is empty in a plain challenge.
type Challenge struct {
	V        uint16    `cbor:"1,keyasint"`
	Nonce    []byte    `cbor:"2,keyasint,omitempty"` // 32 bytes when evidence is asked for
	Verdict  string    `cbor:"3,keyasint,omitempty"` // attested, degraded, quarantined, pending
	Reasons  []string  `cbor:"4,keyasint,omitempty"`
	Need     string    `cbor:"5,keyasint,omitempty"` // NeedLog, NeedRenew
	Findings []Finding `cbor:"6,keyasint,omitempty"` // the verdict explained
	Release  string    `cbor:"7,keyasint,omitempty"` // whose reference values the boot has; empty: not judged
	Actions  []string  `cbor:"8,keyasint,omitempty"` // what the device may do: diagnose, update, reboot, enrol
	Until    int64     `cbor:"9,keyasint,omitempty"` // the verdict rests on a waiver that ends then, Unix milliseconds
}

// Check implements Message.
func (m *Challenge) Check() error {
	if m.V == 0 || (len(m.Nonce) != 0 && len(m.Nonce) != 32) || (len(m.Nonce) == 0 && m.Verdict == "" && m.Need == "") {
		return fmt.Errorf("challenge without nonce, verdict or need: %w", ErrMalformed)
	}
	if err := checkCount("reasons", len(m.Reasons), maxReasons); err != nil {
		return err
	}
	if err := checkCount("findings", len(m.Findings), maxReasons); err != nil {
		return err
	}
	if err := checkCount("actions", len(m.Actions), maxReasons); err != nil {
		return err
	}
	for _, f := range m.Findings {
		if err := checkName("check", f.Check); err != nil {
			return err
		}
		for _, s := range [...]string{f.PCR, f.Event, f.Release, f.Text} {
			if err := checkText("finding "+f.Check, s); err != nil {
				return err
			}
		}
	}
	for _, s := range slices.Concat([]string{m.Verdict, m.Need, m.Release}, m.Reasons, m.Actions) {
		if err := checkText("challenge", s); err != nil {
			return err
		}
	}
	return nil
}
