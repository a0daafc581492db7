package wire_test

import (
	"crypto/sha256"
	"errors"
	"flag"
	"testing"

	"github.com/tillward/tillward/cloud/wire"
)

// update rewrites the golden bytes of the newest version: go test ./cloud/wire -run Golden -update.
// A changed byte in a version that has been released is a broken device in the field.
var update = flag.Bool("update", false, "rewrite the golden bytes of the newest version")

// kind is one message of the contract: its golden sample and how its bytes are read. The samples
// use every field once, so that a key or a type that changes shows.
type kind struct {
	name   string
	sample wire.Message
	decode func([]byte) (wire.Message, error)
}

func of[T any, P interface {
	*T
	wire.Message
}](name string, sample T,
) kind {
	return kind{name, P(&sample), func(b []byte) (wire.Message, error) {
		m, err := wire.Decode[T, P](b)
		if err != nil {
			return nil, err
		}
		return P(&m), nil
	}}
}

func head(seq uint64) wire.Head {
	return wire.Head{V: 1, Boot: wire.Boot{0: 0xb0, 15: 0x07}, Seq: seq, Sent: 1795521600123}
}

func fill(n int, b byte) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = b + byte(i)
	}
	return out
}

// entries makes n chained audit entries, which is what every audit batch holds.
func entries(t testing.TB, n int) []wire.AuditEntry {
	t.Helper()
	var (
		out  []wire.AuditEntry
		prev [32]byte
	)
	for i := range n {
		r := wire.AuditRecord{
			Seq: uint64(i + 1), At: 1795521600000 + int64(i), Boot: wire.Boot{1}, Kind: "peripheral.fault", Severity: "warn",
			Subject: "printer-1", Detail: map[string]string{"code": "COVER_OPEN"}, Prev: prev,
			Mono: 3600000 + int64(i), Clock: wire.ClockSync, Actor: "person", Outcome: wire.Failure,
		}
		if i > 0 {
			r.Break = &wire.Break{Seq: uint64(i), Hash: prev}
			r.Anchor = &wire.Anchor{Attest: fill(120, 5), Signature: fill(64, 6), Counter: 301, Why: "break"}
		}
		e, err := wire.SealAudit(r)
		if err != nil {
			t.Fatal(err)
		}
		out, prev = append(out, e), e.Hash
	}
	return out
}

func kinds(t testing.TB) []kind {
	t.Helper()
	return []kind{
		of("telemetry", wire.TelemetryBatch{Head: head(1), Samples: []wire.Sample{
			{At: 1795521600000, Peripheral: "printer-1", Name: "ReceiptLineFeedCount", Value: 12345, Epoch: 1795521500, Kept: true},
			{At: 1795521600001, Name: "temp_mc", Value: 45250.5},
			{At: 1795521600002, Name: "load_1m", Value: -0.1},
		}}),
		of("event", wire.EventBatch{Head: head(2), Events: []wire.PeripheralEvent{
			{At: 1795521600000, Peripheral: "printer-1", Category: "POSPrinter", Code: "COVER_OPEN", From: "No", To: "Yes", Mono: 3600000, Count: 7},
			{At: 1795521600001, Peripheral: "reader-1", Category: "SmartCardRW", Code: "CARD_PRESENT"},
		}, Checks: []wire.HealthCheck{
			{At: 1795521600002, Peripheral: "printer-1", Level: "external", Checks: []wire.CheckStep{{ID: "reachable", OK: true, MS: 12}, {ID: "page", Code: "REC_EMPTY", MS: 900}}},
		}}),
		of("audit", wire.AuditBatch{Head: head(3), Entries: entries(t, 2)}),
		of("state", wire.StateReport{
			Head: head(4), AgentVersion: "1.2.3", Slot: "a", StartedAt: 1795521500000, Model: "T-1000", Serial: "SN-0042",
			Peripherals: []wire.Peripheral{{
				ID: "printer-1", Category: "POSPrinter", Driver: "escpos", Maker: "Maker", Model: "Model", Serial: "P-7",
				Firmware: "1.0", Simulated: true, Power: "PS_ONLINE", Health: "Attention", Reason: "REC_NEAREMPTY",
				Advice: "Put in a new roll.", Since: 1795521590000, Sensors: map[string]string{"CoverOpen": "No", "RecNearEnd": "Yes"},
				Claim: "own", Key: "usb:04b8:0e15:P-7", Interface: "USB", Caps: []string{"CapCoverSensor", "CapRecEmptySensor"}, RollLines: 18876,
			}},
			SpoolDepth: 17, SpoolShed: 3, AuditHead: 99, Samples: 100000, Settings: "abc", Label: "Kasse 1, Köln",
			Installed: []wire.Installed{
				{Component: "agent", Version: "1.2.3", Slot: "a", Trial: true}, {Component: "ops/acme/pos", Version: "7.0.1", Hash: "00ff"},
			},
			FreeMiB: 512, Supply: "mains", Share: "10.0.0.7:8446", Execution: "ex-1", Crashes: 2,
		}),
		of("result", wire.ResultReport{
			Head: head(5), Kind: wire.OrderOffer, ID: "ex-1", State: "FAILED", Reason: "downgrade", Text: "older than what runs",
			Output: []byte("out"), From: "1.2.3", To: "1.2.2", Done: 10, Total: 20, Counter: 8,
			Attempt: 2, Step: 5, Wire: 1, Peer: 2, Medium: 3, Reused: 4,
		}),
		of("evidence", wire.EvidenceReport{
			Head: head(6), Quoted: fill(64, 1), Signature: fill(72, 100), PCRs: [][]byte{fill(32, 0), fill(32, 32)},
			Seq: 2, Nonce: fill(32, 7), AgentVersion: "1.2.3", Log: fill(40, 11),
		}),
		of("order", wire.Order{Kind: wire.OrderCommand, Payload: []byte{0xa0}, KeyID: "0011aabb", Signature: fill(64, 3)}),
		of("command", wire.CommandOrder{
			V: 1, ID: "cmd-1", Tenant: "acme", Device: "dev-1", Counter: 8, IssuedAt: 1795521600000, NotAfter: 1795525200000,
			Verb: "set-config", Args: map[string]string{"label": "Kasse 1", "poll": "30s"}, By: "ada", Reason: "moved",
		}),
		of("offer", wire.OfferOrder{
			V: 1, Execution: "ex-1", Tenant: "acme", Device: "dev-1", Class: "agent", Version: "1.2.3", Target: "agent/1.2.3",
			IssuedAt: 1795521600000, NotAfter: 1795525200000, By: "ada",
			Attempt: 1, Download: []wire.Span{{From: 1795521600000, To: 1795525200000}}, Install: []wire.Span{{From: 1795521600000, To: 1795521600001}},
			Steps: map[string]uint32{"CHECKING": 120}, Peers: []string{"10.0.0.7:8446"}, RateKiB: 512, Rollout: "ro-1",
		}),
		of("countersign", wire.Countersign{V: 5, Tenant: "acme", Device: "dev-1", Seq: 99, Hash: [32]byte(fill(32, 4)), At: 1795521600000}),
		of("medium", wire.MediumOrder{
			V: 1, ID: "md-1", Tenant: "acme", IssuedAt: 1795521600000, NotAfter: 1795525200000, By: "ada",
			Releases: []wire.MediumItem{{Class: "app", Version: "7.0.1", Target: "ops/acme/pos/7.0.1"}},
		}),
		of("challenge", wire.Challenge{
			V: 1, Nonce: fill(32, 9), Verdict: "quarantined", Reasons: []string{"pcr 7 differs"}, Need: wire.NeedLog,
			Findings: []wire.Finding{{Check: "boot.unknown-event", PCR: "7", Event: "EV_EFI_VARIABLE_AUTHORITY", Release: "os/1.2.3", Text: "pcr 7 differs"}},
			Release:  "os/1.2.3", Actions: []string{wire.ActionDiagnose, wire.ActionReboot}, Until: 1795525200000,
		}),
	}
}

func TestLimits(t *testing.T) {
	long := func(n int) string { return stringOf('a', n) }
	samples := func(n int) []wire.Sample {
		s := make([]wire.Sample, n)
		for i := range s {
			s[i] = wire.Sample{At: 1, Name: "x", Value: 1}
		}
		return s
	}
	state := func(change func(*wire.StateReport)) *wire.StateReport {
		s := wire.StateReport{Head: head(1), AgentVersion: "1", Slot: "a", Peripherals: []wire.Peripheral{
			{ID: "p", Category: "c", Driver: "d", Power: "PS_ONLINE", Health: "OK"},
		}}
		change(&s)
		return &s
	}
	command := func(change func(*wire.CommandOrder)) *wire.CommandOrder {
		c := wire.CommandOrder{V: 1, ID: "i", Tenant: "t", Device: "d", Counter: 1, IssuedAt: 1, NotAfter: 2, Verb: "identify"}
		change(&c)
		return &c
	}
	evidence := func(change func(*wire.EvidenceReport)) *wire.EvidenceReport {
		e := wire.EvidenceReport{Head: head(1), Quoted: []byte{1}, Signature: []byte{1}, AgentVersion: "1"}
		change(&e)
		return &e
	}
	args := func(n int) map[string]string {
		m := map[string]string{}
		for i := range n {
			m["k"+stringOf('a', i+1)] = "v"
		}
		return m
	}
	nan := 0.0
	nan /= nan

	tests := []struct {
		name string
		m    wire.Message
		want error
	}{
		{"full batch", &wire.TelemetryBatch{Head: head(1), Samples: samples(wire.MaxBatch)}, nil},
		{"batch of one too many", &wire.TelemetryBatch{Head: head(1), Samples: samples(wire.MaxBatch + 1)}, wire.ErrLimit},
		{"head without sequence", &wire.TelemetryBatch{Head: head(0)}, wire.ErrMalformed},
		{"head without boot", &wire.TelemetryBatch{Head: wire.Head{V: 1, Seq: 1}}, wire.ErrMalformed},
		{"head without version", &wire.TelemetryBatch{Head: wire.Head{Boot: wire.Boot{1}, Seq: 1}}, wire.ErrMalformed},
		{"longest name", &wire.TelemetryBatch{Head: head(1), Samples: []wire.Sample{{Name: long(wire.MaxName)}}}, nil},
		{"name too long", &wire.TelemetryBatch{Head: head(1), Samples: []wire.Sample{{Name: long(wire.MaxName + 1)}}}, wire.ErrLimit},
		{"no name", &wire.TelemetryBatch{Head: head(1), Samples: []wire.Sample{{}}}, wire.ErrLimit},
		{"name with a blank", &wire.TelemetryBatch{Head: head(1), Samples: []wire.Sample{{Name: "a b"}}}, wire.ErrMalformed},
		{"name outside ASCII", &wire.TelemetryBatch{Head: head(1), Samples: []wire.Sample{{Name: "ä"}}}, wire.ErrMalformed},
		{"peripheral with a newline", &wire.TelemetryBatch{Head: head(1), Samples: []wire.Sample{{Name: "a", Peripheral: "p\n"}}}, wire.ErrMalformed},
		{"not a number", &wire.TelemetryBatch{Head: head(1), Samples: []wire.Sample{{Name: "a", Value: nan}}}, wire.ErrMalformed},
		{"event without code", &wire.EventBatch{Head: head(1), Events: []wire.PeripheralEvent{{Peripheral: "p", Category: "c"}}}, wire.ErrLimit},
		{"event with a long end", &wire.EventBatch{Head: head(1), Events: []wire.PeripheralEvent{{Peripheral: "p", Category: "c", Code: "C", To: long(65)}}}, wire.ErrLimit},
		{"event outside UTF-8", &wire.EventBatch{Head: head(1), Events: []wire.PeripheralEvent{{Peripheral: "p", Category: "c", Code: "C", To: "\xff"}}}, wire.ErrMalformed},
		{"audit without entries", &wire.AuditBatch{Head: head(1)}, wire.ErrMalformed},
		{"audit of one too many", &wire.AuditBatch{Head: head(1), Entries: make([]wire.AuditEntry, wire.MaxBatch+1)}, wire.ErrLimit},
		{"audit body too long", &wire.AuditBatch{Head: head(1), Entries: []wire.AuditEntry{{Body: fill(wire.MaxAuditBody+1, 0)}}}, wire.ErrLimit},
		{"longest text", state(func(s *wire.StateReport) { s.Label = long(wire.MaxText) }), nil},
		{"text too long", state(func(s *wire.StateReport) { s.Label = long(wire.MaxText + 1) }), wire.ErrLimit},
		{"text outside UTF-8", state(func(s *wire.StateReport) { s.Peripherals[0].Serial = "SN\xff\xfe" }), wire.ErrMalformed},
		{"sensor of a fourth state", state(func(s *wire.StateReport) { s.Peripherals[0].Sensors = map[string]string{"CoverOpen": "Maybe"} }), wire.ErrMalformed},
		{"too many sensors", state(func(s *wire.StateReport) { s.Peripherals[0].Sensors = args(33) }), wire.ErrLimit},
		{"too many peripherals", state(func(s *wire.StateReport) { s.Peripherals = make([]wire.Peripheral, wire.MaxPeripherals+1) }), wire.ErrLimit},
		{"peripheral without power", state(func(s *wire.StateReport) { s.Peripherals[0].Power = "" }), wire.ErrLimit},
		{"result of no kind", &wire.ResultReport{Head: head(1), ID: "i", State: "FAILED"}, wire.ErrMalformed},
		{"longest output", &wire.ResultReport{Head: head(1), Kind: wire.OrderCommand, ID: "i", State: "SUCCEEDED", Output: make([]byte, wire.MaxOutput)}, nil},
		{"output too long", &wire.ResultReport{Head: head(1), Kind: wire.OrderCommand, ID: "i", State: "SUCCEEDED", Output: make([]byte, wire.MaxOutput+1)}, wire.ErrLimit},
		{"evidence without quote", evidence(func(e *wire.EvidenceReport) { e.Quoted = nil }), wire.ErrLimit},
		{"PCR of 20 bytes", evidence(func(e *wire.EvidenceReport) { e.PCRs = [][]byte{make([]byte, 20)} }), wire.ErrMalformed},
		{"25 PCRs", evidence(func(e *wire.EvidenceReport) { e.PCRs = make([][]byte, 25) }), wire.ErrLimit},
		{"long nonce", evidence(func(e *wire.EvidenceReport) { e.Nonce = make([]byte, 65) }), wire.ErrLimit},
		{"order of another kind", &wire.Order{Kind: "root", Payload: []byte{1}, KeyID: "k", Signature: []byte{1}}, wire.ErrMalformed},
		{"order without signature", &wire.Order{Kind: wire.OrderCommand, Payload: []byte{1}, KeyID: "k"}, wire.ErrMalformed},
		{"order with a huge signature", &wire.Order{Kind: wire.OrderCommand, Payload: []byte{1}, KeyID: "k", Signature: make([]byte, 513)}, wire.ErrMalformed},
		{"plain command", command(func(*wire.CommandOrder) {}), nil},
		{"command without counter", command(func(c *wire.CommandOrder) { c.Counter = 0 }), wire.ErrMalformed},
		{"command that was never valid", command(func(c *wire.CommandOrder) { c.NotAfter = c.IssuedAt }), wire.ErrMalformed},
		{"command for nobody", command(func(c *wire.CommandOrder) { c.Device = "" }), wire.ErrLimit},
		{"32 arguments", command(func(c *wire.CommandOrder) { c.Args = args(32) }), nil},
		{"33 arguments", command(func(c *wire.CommandOrder) { c.Args = args(33) }), wire.ErrLimit},
		{"argument too long", command(func(c *wire.CommandOrder) { c.Args = map[string]string{"k": long(513)} }), wire.ErrLimit},
		{"offer with an empty span", &wire.OfferOrder{
			V: 1, Execution: "e", Tenant: "t", Device: "d", Class: "agent", Version: "1", Target: "a", NotAfter: 1, Install: []wire.Span{{From: 2, To: 2}},
		}, wire.ErrMalformed},
		{"offer with too many peers", &wire.OfferOrder{
			V: 1, Execution: "e", Tenant: "t", Device: "d", Class: "agent", Version: "1", Target: "a", NotAfter: 1, Peers: make([]string, wire.MaxPeers+1),
		}, wire.ErrLimit},
		{"medium without releases", &wire.MediumOrder{V: 1, ID: "m", Tenant: "t", NotAfter: 1}, wire.ErrMalformed},
		{"medium with too many releases", &wire.MediumOrder{V: 1, ID: "m", Tenant: "t", NotAfter: 1, Releases: make([]wire.MediumItem, wire.MaxMedium+1)}, wire.ErrLimit},
		{"component without version", state(func(s *wire.StateReport) { s.Installed = []wire.Installed{{Component: "agent"}} }), wire.ErrMalformed},
		{"too many components", state(func(s *wire.StateReport) { s.Installed = make([]wire.Installed, wire.MaxInstalled+1) }), wire.ErrLimit},
		{"offer without target", &wire.OfferOrder{V: 1, Execution: "e", Tenant: "t", Device: "d", Class: "agent", Version: "1", NotAfter: 1}, wire.ErrLimit},
		{"offer without life", &wire.OfferOrder{V: 1, Execution: "e", Tenant: "t", Device: "d", Class: "agent", Version: "1", Target: "a"}, wire.ErrMalformed},
		{"offer with a target outside UTF-8", &wire.OfferOrder{V: 1, Execution: "e", Tenant: "t", Device: "d", Class: "agent", Version: "1", Target: "\xff", NotAfter: 1}, wire.ErrMalformed},
		{"challenge that asks and says nothing", &wire.Challenge{V: 1}, wire.ErrMalformed},
		{"challenge with a short nonce", &wire.Challenge{V: 1, Nonce: make([]byte, 16)}, wire.ErrMalformed},
		{"17 reasons", &wire.Challenge{V: 1, Verdict: "pending", Reasons: make([]string, 17)}, wire.ErrLimit},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := wire.Encode(tt.m)
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}

	t.Run("message too large", func(t *testing.T) {
		batch := wire.EventBatch{Head: head(1)}
		for range wire.MaxBatch {
			batch.Events = append(batch.Events, wire.PeripheralEvent{
				Peripheral: long(64), Category: long(64), Code: long(64), From: long(64), To: long(64),
			})
		}
		if _, err := wire.Encode(&batch); !errors.Is(err, wire.ErrLimit) {
			t.Errorf("encode: got %v, want %v", err, wire.ErrLimit)
		}
		if _, err := wire.Decode[wire.EventBatch](make([]byte, wire.MaxMessage+1)); !errors.Is(err, wire.ErrLimit) {
			t.Errorf("decode: got %v, want %v", err, wire.ErrLimit)
		}
	})
}

func TestAuditChain(t *testing.T) {
	e := entries(t, 3)
	var prev [32]byte
	for i, e := range e {
		r, err := e.Open()
		if err != nil {
			t.Fatal(err)
		}
		if r.Prev != prev || r.Seq != uint64(i+1) || sha256.Sum256(e.Body) != e.Hash {
			t.Errorf("entry %d: got sequence %d and previous hash %x, want %d and %x", i, r.Seq, r.Prev, i+1, prev)
		}
		prev = e.Hash
	}

	t.Run("changed body", func(t *testing.T) {
		bad := e[1]
		bad.Body = append([]byte(nil), bad.Body...)
		bad.Body[len(bad.Body)-1] ^= 1
		if _, err := bad.Open(); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("got %v, want %v", err, wire.ErrMalformed)
		}
	})
	t.Run("body that is no record", func(t *testing.T) {
		body := []byte{0x80}
		if _, err := (wire.AuditEntry{Body: body, Hash: sha256.Sum256(body)}).Open(); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("got %v, want %v", err, wire.ErrMalformed)
		}
	})
	t.Run("refused records", func(t *testing.T) {
		good := wire.AuditRecord{Seq: 1, Kind: "link.up", Severity: "info"}
		for name, change := range map[string]func(*wire.AuditRecord){
			"no sequence":       func(r *wire.AuditRecord) { r.Seq = 0 },
			"no kind":           func(r *wire.AuditRecord) { r.Kind = "" },
			"unknown severity":  func(r *wire.AuditRecord) { r.Severity = "fatal" },
			"subject not UTF-8": func(r *wire.AuditRecord) { r.Subject = "\xc3" },
			"17 details": func(r *wire.AuditRecord) {
				r.Detail = map[string]string{}
				for i := range 17 {
					r.Detail["k"+stringOf('a', i+1)] = ""
				}
			},
			"body too long": func(r *wire.AuditRecord) {
				r.Detail = map[string]string{}
				for i := range 16 {
					r.Detail["k"+stringOf('a', i+1)] = stringOf('x', wire.MaxText)
				}
			},
		} {
			r := good
			change(&r)
			if _, err := wire.SealAudit(r); err == nil {
				t.Errorf("%s: sealed, want an error", name)
			}
		}
		if _, err := wire.SealAudit(good); err != nil {
			t.Errorf("good record: %v", err)
		}
	})
}

func stringOf(c byte, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = c
	}
	return string(b)
}
