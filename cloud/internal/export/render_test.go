package export_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/tillward/tillward/cloud/internal/export"
	"github.com/tillward/tillward/cloud/internal/fleet"
)

// sample is an entry of a kind as it may look.
func sample(n int64, kind, severity string, device fleet.DeviceID) fleet.TrailEntry {
	at := time.Date(2026, 11, 26, 18, 30, 0, 250e6, time.UTC)
	e := fleet.TrailEntry{N: n, AuditEvent: fleet.AuditEvent{
		Device: device, Tenant: "main", Seq: 42, At: at, StoredAt: at.Add(time.Second), Kind: kind, Severity: severity, Actor: "anna", Subject: "d1",
		Detail: map[string]string{"reason": `a "quoted" [reason] = x|y\z`},
	}}
	if device != "" {
		e.Actor, e.Subject = string(device), ""
	}
	for i := range e.Hash {
		e.Hash[i] = byte(i)
	}
	return e
}

func TestLines(t *testing.T) {
	const hash = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
	for _, tt := range []struct {
		kind, format, want string
		e                  fleet.TrailEntry
	}{
		{
			export.KindSyslog, export.FormatSyslog,
			`<105>1 2026-11-26T18:30:00.250Z fleet.example tillward - device.revoked [tillward@32473 n="7" prev="6" trail="service" seq="42" class="1205" kind="device.revoked" severity="alarm" tenant="main" actor="anna" subject="d1" stored="2026-11-26T18:30:01.25Z" hash="` + hash + `"][detail@32473 reason="a \"quoted\" [reason\] = x|y\\z"] Device revoked: d1`,
			sample(7, "device.revoked", "alarm", ""),
		},
		{
			export.KindSyslog, export.FormatCEF,
			`<110>1 2026-11-26T18:30:00.250Z till1 tillward - agent.start [tillward@32473 n="8" prev="7" trail="till1" seq="42"] CEF:0|Tillward|Tillward|1.2.3|5001|Agent started|3|end=1795717800250 rt=1795717801250 externalId=8 cat=agent.start msg=Agent started suser=till1 deviceExternalId=till1 cn1Label=seq cn1=42 cn2Label=prev cn2=7 cs1Label=trail cs1=till1 cs3Label=tenant cs3=main cs4Label=severity cs4=info cs5Label=hash cs5=` + hash + ` ad.reason=a "quoted" [reason] \= x|y\\z`,
			sample(8, "agent.start", "info", "till1"),
		},
		{
			export.KindFile, export.FormatCEF,
			`CEF:0|Tillward|Tillward|1.2.3|0|Event of an unknown kind|6|end=1795717800250 rt=1795717801250 externalId=9 cat=quantum.flux msg=Event of an unknown kind suser=till1 deviceExternalId=till1 cn1Label=seq cn1=42 cn2Label=prev cn2=8 cs1Label=trail cs1=till1 cs3Label=tenant cs3=main cs4Label=severity cs4=warn cs5Label=hash cs5=` + hash + ` ad.reason=a "quoted" [reason] \= x|y\\z`,
			sample(9, "quantum.flux", "warn", "till1"),
		},
		{
			export.KindFile, export.FormatOCSF,
			`{"activity_id":9,"actor":{"user":{"name":"anna"}},"category_uid":3,"class_uid":3004,"entity":{"type":"device","uid":"d1"},"message":"Device revoked: d1","metadata":{"event_code":"device.revoked","log_name":"audit","log_provider":"tillward","logged_time":1795717801250,"product":{"name":"Tillward","vendor_name":"Tillward","version":"1.2.3"},"sequence":7,"tenant_uid":"main","uid":"service/42","version":"1.8.0"},"severity":"High","severity_id":4,"status_code":"device.revoked","time":1795717800250,"type_uid":300409,"unmapped":{"class":1205,"detail.reason":"a \"quoted\" [reason] = x|y\\z","hash":"` + hash + `","prev":6,"seq":42,"subject":"d1","trail":"service"}}`,
			sample(7, "device.revoked", "alarm", ""),
		},
	} {
		if got := string(export.Render(tt.kind, tt.format, tt.e)); got != tt.want {
			t.Errorf("%s %s: got\n%s\nwant\n%s", tt.kind, tt.format, got, tt.want)
		}
	}
}

var formats = []string{export.FormatSyslog, export.FormatCEF, export.FormatOCSF}

// hostile is text that tries to be more than one event.
var hostile = []string{
	"\n<34>1 2026-01-01T00:00:00Z evil su - - - all is well", "\r\n12 <34>1 - - -", "x\" n=\"1\"] [y", `\`, `\\"`, `a\]b]`, "CEF:0|a|b|c|1|d|1|", "|x|", `\|`, "k=v cs1=evil", `\=`,
	"\x00\x07\x1b[2J", "\u2028\u2029\u0085", "\u202egnp.exe", "\xff\xfe", strings.Repeat("\"", 5000), strings.Repeat("é", 9000), strings.Repeat("\n", 3000), strings.Repeat("\x01", 3000), strings.Repeat("\x01\xff\\", 500), "",
}

// wicked is an entry of hostile text in every place.
func wicked(n int64, s string) fleet.TrailEntry {
	e := sample(n, "device.changed", "warn", "")
	e.Kind, e.Severity, e.Tenant, e.Actor, e.Subject = s, s, fleet.TenantID(s), s, s
	e.Detail = map[string]string{s: s, "also" + s: s, "plain": "p"}
	return e
}

// TestHostile: whatever a field holds, the line is one line, no longer than
// promised, and valid UTF-8.
func TestHostile(t *testing.T) {
	for _, s := range hostile {
		for _, format := range formats {
			e := wicked(1, s)
			for _, dev := range []fleet.DeviceID{"", fleet.DeviceID(s)} {
				e.Device = dev
				oneLine(t, export.Render(export.KindSyslog, format, e))
			}
		}
	}
}

func oneLine(t *testing.T, b []byte) {
	t.Helper()
	if len(b) > export.MaxLine || !utf8.Valid(b) || strings.ContainsFunc(string(b), func(c rune) bool { return c < ' ' || c == 0x7f || c >= 0x80 && c < 0xa0 || c == 0x2028 || c == 0x2029 }) {
		t.Errorf("%d bytes are no line: %.300q", len(b), b)
	}
}

// TestTruncated: a line that would be too long says that something is missing,
// one that is not does not, and only detail is missing.
func TestTruncated(t *testing.T) {
	for format, says := range map[string]string{export.FormatSyslog: ` truncated="1"`, export.FormatCEF: " TillwardTruncated=1 ", export.FormatOCSF: `"is_truncated":true`} {
		e := sample(1, "command.done", "info", "till1")
		for i := range 32 {
			e.Detail[strings.Repeat("k", i+1)] = strings.Repeat("x", 256)
		}
		b := export.Render(export.KindSyslog, format, e)
		oneLine(t, b)
		if !bytes.Contains(b, []byte(says)) || !bytes.Contains(b, []byte("command.done")) || !bytes.Contains(b, []byte(`n="1"`)) {
			t.Errorf("%s: got %.500s, want it to say %s", format, b, says)
		}
		if b := export.Render(export.KindSyslog, format, sample(1, "command.done", "info", "till1")); bytes.Contains(b, []byte(says)) {
			t.Errorf("%s: a short line says that it is truncated: %s", format, b)
		}
	}
}

// FuzzEscapes reads what was escaped with readers of its own: nothing ends
// before its end, and nothing is lost but what cannot be in a line.
func FuzzEscapes(f *testing.F) {
	for _, s := range hostile {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, p := range []struct {
			name, got, want, ends string
			plain                 map[byte]byte
		}{
			{"structured data", export.EscapeSD(s), export.Clean(s, ""), `"]`, map[byte]byte{'"': '"', ']': ']', '\\': '\\'}},
			{"CEF header", export.EscapeHeader(s), export.Clean(s, ""), "|", map[byte]byte{'|': '|', '\\': '\\'}},
			{"CEF extension", export.EscapeExtension(s), export.Clean(s, "\r\n"), "=\r\n", map[byte]byte{'=': '=', '\\': '\\', 'n': '\n', 'r': '\r'}},
		} {
			var back []byte
			for i := 0; i < len(p.got); i++ {
				c := p.got[i]
				if strings.IndexByte(p.ends, c) >= 0 {
					t.Fatalf("%s: %q ends at %d in the middle", p.name, p.got, i)
				}
				if c == '\\' {
					if i++; i == len(p.got) || p.plain[p.got[i]] == 0 {
						t.Fatalf("%s: %q has an escape at %d that nobody knows", p.name, p.got, i)
					}
					c = p.plain[p.got[i]]
				}
				back = append(back, c)
			}
			if string(back) != p.want {
				t.Errorf("%s: got %q back, want %q", p.name, back, p.want)
			}
			if strings.ContainsAny(p.got, "\r\n\x00") || !utf8.ValidString(p.got) {
				t.Errorf("%s: %q is no part of a line", p.name, p.got)
			}
		}
	})
}

// FuzzRender makes lines of whatever an agent may say.
func FuzzRender(f *testing.F) {
	for _, s := range hostile {
		f.Add(s, s, int64(1))
	}
	f.Fuzz(func(t *testing.T, a, b string, n int64) {
		e := wicked(n, a)
		e.Device, e.Detail[b] = fleet.DeviceID(b), a
		for _, format := range formats {
			oneLine(t, export.Render(export.KindSyslog, format, e))
			oneLine(t, export.Render(export.KindFile, format, e))
		}
		if b := export.Render(export.KindFile, export.FormatOCSF, e); !json.Valid(b) {
			t.Errorf("no JSON: %s", b)
		}
	})
}
