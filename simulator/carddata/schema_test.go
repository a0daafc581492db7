package carddata_test

import (
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/tillward/tillward/cloud/wire"
)

// Of what kind a text in a message to the service is.
const (
	enum = "one of a few words"         // the contract refuses every other
	name = "bounded identifier"         // printable, without spaces, at most 64 bytes
	code = "bounded identifier or none" // the same, and may be left out
)

// schema is every text that may go up, by where it stands. What is of none of
// the three kinds is free text and needs a reason.
var schema = map[string]string{
	"TelemetryBatch.Samples[].Peripheral": code,
	"TelemetryBatch.Samples[].Name":       name,

	"EventBatch.Events[].Peripheral":    name,
	"EventBatch.Events[].Category":      name,
	"EventBatch.Events[].Code":          name,
	"EventBatch.Events[].From":          code,
	"EventBatch.Events[].To":            code,
	"EventBatch.Checks[].Peripheral":    name,
	"EventBatch.Checks[].Level":         enum,
	"EventBatch.Checks[].Checks[].ID":   name,
	"EventBatch.Checks[].Checks[].Code": code,

	"StateReport.Peripherals[].ID":            name,
	"StateReport.Peripherals[].Category":      name,
	"StateReport.Peripherals[].Driver":        name,
	"StateReport.Peripherals[].Power":         name,
	"StateReport.Peripherals[].Health":        name,
	"StateReport.Peripherals[].Reason":        code,
	"StateReport.Peripherals[].Claim":         code,
	"StateReport.Peripherals[].Interface":     code,
	"StateReport.Peripherals[].Caps[]":        name,
	"StateReport.Peripherals[].Sensors.key":   name,
	"StateReport.Peripherals[].Sensors.value": enum,
	"StateReport.Peripherals[].Maker":         "what the hardware calls its maker; guarded, at most 64 bytes",
	"StateReport.Peripherals[].Model":         "what the hardware calls itself; guarded, at most 64 bytes",
	"StateReport.Peripherals[].Serial":        "its serial number, to find it in the shop; guarded, at most 64 bytes",
	"StateReport.Peripherals[].Firmware":      "its firmware's version in its maker's words; guarded, at most 64 bytes",
	"StateReport.Peripherals[].Key":           "where it is plugged in, as configured or found; guarded, at most 128 bytes",
	"StateReport.Peripherals[].Advice":        "of agents before version 4; this one sends none",

	"StateReport.AgentVersion":          name,
	"StateReport.Slot":                  "of the agent: a, b or golden",
	"StateReport.Model":                 "of the box, as its image or its firmware says",
	"StateReport.Serial":                "of the box, as its firmware or the configuration says",
	"StateReport.Settings":              "a hash, by which the service knows its own settings again",
	"StateReport.Label":                 "the name that an operator gave the box",
	"StateReport.Supply":                "mains or battery",
	"StateReport.Share":                 "host:port of the configuration",
	"StateReport.Execution":             "the service's own number of an update",
	"StateReport.Installed[].Component": "the name of a release",
	"StateReport.Installed[].Version":   "the version of a release",
	"StateReport.Installed[].Slot":      "of the system: a or b, or as RAUC calls it",
	"StateReport.Installed[].Hash":      "of a release, in hex",

	"ResultReport.Kind":     enum,
	"ResultReport.ID":       name,
	"ResultReport.State":    name,
	"ResultReport.Reason":   "a code of an order that was not carried out",
	"ResultReport.Text":     "what a person should know of an order's outcome; guarded",
	"ResultReport.Output[]": "what a command that an operator gave said; guarded line by line",
	"ResultReport.From":     "the version of a release",
	"ResultReport.To":       "the version of a release",

	"EvidenceReport.AgentVersion": "of the agent; the service compares it",

	"AuditRecord.Kind":         name,
	"AuditRecord.Severity":     enum,
	"AuditRecord.Clock":        code,
	"AuditRecord.Outcome":      code,
	"AuditRecord.Actor":        "service, or operator: and an id; free text of agents before version 5 alone; guarded",
	"AuditRecord.Subject":      "an id, a version, a number or an address, as its kind says; free text of agents before version 5 alone; guarded",
	"AuditRecord.Detail.key":   name,
	"AuditRecord.Detail.value": "of the form that its kind says; free text of agents before version 5 alone; guarded",
	"AuditRecord.Anchor.Why":   name,
}

// notText are bytes that hold no text: keys, quotes, hashes and what is encoded by itself.
var notText = regexp.MustCompile(`^(.*\.Head\.Boot\[\]|EvidenceReport\.(Quoted|Signature|Nonce|Log)\[\]|EvidenceReport\.PCRs\[\]\[\]|AuditRecord\.(Boot|Prev|Anchor\.Attest|Anchor\.Signature|Break\.Hash)\[\])$`)

// audited makes a record a message: its check is that of sealing it.
type audited struct{ wire.AuditRecord }

// Check implements wire.Message.
func (a *audited) Check() error {
	_, err := wire.SealAudit(a.AuditRecord)
	return err
}

// full is one of each message that goes up, with every text in it.
func full() map[string]wire.Message {
	head := wire.Head{V: wire.Version, Boot: wire.Boot{1}, Seq: 1}
	return map[string]wire.Message{
		"TelemetryBatch": &wire.TelemetryBatch{Head: head, Samples: []wire.Sample{{Peripheral: "p", Name: "n"}}},
		"EventBatch": &wire.EventBatch{
			Head: head, Events: []wire.PeripheralEvent{{Peripheral: "p", Category: "c", Code: "o", From: "f", To: "t"}},
			Checks: []wire.HealthCheck{{Peripheral: "p", Level: "internal", Checks: []wire.CheckStep{{ID: "i", Code: "c"}}}},
		},
		"StateReport": &wire.StateReport{
			Head: head, AgentVersion: "1", Slot: "a", Model: "m", Serial: "s", Settings: "s", Label: "l", Supply: "s", Share: "s", Execution: "e",
			Installed: []wire.Installed{{Component: "c", Version: "v", Slot: "s", Hash: "h"}},
			Peripherals: []wire.Peripheral{{
				ID: "i", Category: "c", Driver: "d", Maker: "m", Model: "m", Serial: "s", Firmware: "f", Power: "p", Health: "h", Reason: "r", Advice: "a", Claim: "c", Key: "k",
				Interface: "i", Caps: []string{"c"}, Sensors: map[string]string{"s": "Yes"},
			}},
		},
		"ResultReport":   &wire.ResultReport{Head: head, Kind: wire.OrderCommand, ID: "i", State: "s", Reason: "r", Text: "t", Output: []byte("o"), From: "f", To: "t"},
		"EvidenceReport": &wire.EvidenceReport{Head: head, Quoted: []byte("q"), Signature: []byte("s"), PCRs: [][]byte{make([]byte, 32)}, Nonce: []byte("n"), AgentVersion: "v", Log: []byte("l")},
		"AuditRecord": &audited{wire.AuditRecord{
			Seq: 2, Kind: "k", Severity: "info", Subject: "s", Detail: map[string]string{"k": "v"}, Clock: "c", Actor: "a", Outcome: "o",
			Anchor: &wire.Anchor{Attest: []byte("a"), Signature: make([]byte, 64), Why: "w"}, Break: &wire.Break{Seq: 1},
		}},
	}
}

// texts calls visit with each text in a message: where it stands, and how to put
// another in its place.
func texts(at string, v reflect.Value, visit func(at string, set func(string))) {
	switch v.Kind() {
	case reflect.Pointer:
		texts(at, v.Elem(), visit)
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Type().Field(i)
			below := at + "." + f.Name
			if f.Anonymous {
				below = at
			}
			texts(below, v.Field(i), visit)
		}
	case reflect.Slice, reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			visit(at+"[]", func(s string) {
				if v.Kind() == reflect.Slice {
					v.SetBytes([]byte(s))
				}
			})
			return
		}
		for i := range v.Len() {
			texts(at+"[]", v.Index(i), visit)
		}
	case reflect.Map:
		k := v.MapKeys()[0]
		was := v.MapIndex(k)
		visit(at+".key", func(s string) { v.Clear(); v.SetMapIndex(reflect.ValueOf(s), was) })
		visit(at+".value", func(s string) { v.Clear(); v.SetMapIndex(k, reflect.ValueOf(s)) })
	case reflect.String:
		visit(at, func(s string) { v.SetString(s) })
	case reflect.Bool, reflect.Int64, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float64:
	default:
		panic(fmt.Sprintf("%s is a %s, of which nobody has thought here", at, v.Type()))
	}
}

// There is no free text in what goes up but what is listed with its reason, and
// what is called a word or an identifier is held to that by the contract.
func TestNoFreeText(t *testing.T) {
	seen := map[string]bool{}
	for _, what := range slices.Sorted(maps.Keys(full())) {
		m := full()[what]
		if err := m.Check(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		texts(what, reflect.ValueOf(m), func(at string, _ func(string)) {
			if notText.MatchString(at) {
				return
			}
			seen[at] = true
			kind := schema[at]
			if kind == "" {
				t.Errorf("%s is a text that nobody has listed: make it a word or an identifier, or say here why it must be free", at)
				return
			}
			bad := map[string][]string{
				enum: {"", "other", "Yes.", "a b"},
				name: {"", "a b", "a\n", "é", strings.Repeat("x", wire.MaxName+1)},
				code: {"a b", "a\n", "é", strings.Repeat("x", wire.MaxName+1)},
			}[kind]
			for _, text := range bad {
				if accepts(what, at, text) {
					t.Errorf("%s is to be a %s, and the contract takes %q", at, kind, text)
				}
			}
		})
	}
	for at := range schema {
		if !seen[at] {
			t.Errorf("%s is listed and in no message", at)
		}
	}
}

// accepts reports whether the contract takes the text at that place.
func accepts(what, at, text string) bool {
	m := full()[what]
	texts(what, reflect.ValueOf(m), func(here string, set func(string)) {
		if here == at {
			set(text)
		}
	})
	return m.Check() == nil
}

// Must fail: the test above finds a text that the contract takes whatever it says.
func TestFreeTextIsFound(t *testing.T) {
	if !accepts("StateReport", "StateReport.Label", "Till 3, by the door") || !accepts("AuditRecord", "AuditRecord.Detail.value", "a b") {
		t.Error("a free text is refused: the test could not tell")
	}
	if accepts("EventBatch", "EventBatch.Events[].Code", "a b") {
		t.Error("an identifier with a space is taken")
	}
}
