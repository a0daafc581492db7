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
	if m.Kind != OrderCommand && m.Kind != OrderOffer {
		return fmt.Errorf("order of kind %.20q: %w", m.Kind, ErrMalformed)
	}
	if len(m.Payload) == 0 || len(m.Signature) == 0 || len(m.Signature) > 512 {
		return fmt.Errorf("order without payload or signature: %w", ErrMalformed)
	}
	return checkName("key id", m.KeyID)
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
	Verb     string            `cbor:"8,keyasint"` // identify, reboot, collect-logs, print-test, set-config
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

// OfferOrder offers one device a release: one execution of a rollout. The
// device finds out by TUF whether the target is genuine; the order only points.
type OfferOrder struct {
	V         uint16 `cbor:"1,keyasint"`
	Execution string `cbor:"2,keyasint"`
	Tenant    string `cbor:"3,keyasint"`
	Device    string `cbor:"4,keyasint"`
	Class     string `cbor:"5,keyasint"` // agent
	Version   string `cbor:"6,keyasint"`
	Target    string `cbor:"7,keyasint"` // TUF target folder, e.g. agent/1.2.3; the device appends /tillward-agent-{os}-{arch}
	IssuedAt  int64  `cbor:"8,keyasint"` // Unix milliseconds
	NotAfter  int64  `cbor:"9,keyasint"`
	By        string `cbor:"10,keyasint,omitempty"`
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
	for _, s := range [...]string{m.Target, m.By} {
		if err := checkText("offer", s); err != nil {
			return err
		}
	}
	return nil
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
