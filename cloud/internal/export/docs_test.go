package export_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/tillward/tillward/cloud/internal/export"
	"github.com/tillward/tillward/cloud/internal/fleet"
)

var rewrite = flag.Bool("rewrite", false, "write the tables of docs/siem.md")

const siem = "../../../docs/siem.md"

// fields is the dictionary: where each thing is in each format.
var fields = [][5]string{
	{"n", "`n`", "`externalId`", "`metadata.sequence`", "number of the entry among all trails, in the order they were stored; grows by one. 0: a test event"},
	{"prev", "`prev`", "`cn2` (prev)", "`unmapped.prev`", "`n` of the entry that this sink got before: without a filter one less"},
	{"trail", "`trail`", "`cs1` (trail)", "`unmapped.trail`", "`service`, or the id of the device whose trail it is"},
	{"seq", "`seq`", "`cn1` (seq)", "`unmapped.seq`", "number of the entry in its trail"},
	{"class", "`class`", "Signature ID", "`unmapped.class`", "stable id of the kind of event; 0: a kind that this version does not know"},
	{"kind", "`kind`, MSGID", "`cat`", "`metadata.event_code`, `status_code`", "the kind of event"},
	{"name", "MSG", "Name, `msg`", "`message`", "what happened, and to what"},
	{"severity", "`severity`, PRI", "Severity, `cs4` (severity)", "`severity_id`", "info (6, 3, 1), warn (4, 6, 3) or alarm (1, 9, 4)"},
	{"time", "TIMESTAMP", "`end`", "`time`", "when it happened by the clock of who recorded it"},
	{"stored", "`stored`", "`rt`", "`metadata.logged_time`", "when the service stored it"},
	{"tenant", "`tenant`", "`cs3` (tenant)", "`metadata.tenant_uid`", "whose it is"},
	{"actor", "`actor`", "`suser`", "`actor.user.name`, `user.name`", "who acted: an operator's token, a room of the service, a device, or an address nobody knows"},
	{"subject", "`subject`", "`cs2` (subject)", "`unmapped.subject`, `entity.uid`", "what it was done to"},
	{"outcome", "`outcome`", "`outcome`", "`unmapped.outcome`", "what came of it: success, failure or refused, where that is known"},
	{"site", "`site`", "`cs6` (site)", "`unmapped.site`", "the site that it happened at, as that was called then"},
	{"device", "HOSTNAME", "`deviceExternalId`", "`device.uid`", "the device, in its own trail"},
	{"hash", "`hash`", "`cs5` (hash)", "`unmapped.hash`", "SHA-256 of the entry in its trail; `tillward audit verify` goes by it"},
	{"detail", "`detail@32473`", "`ad.NAME`", "`unmapped.detail.NAME`", "what else is known, by name"},
	{"truncated", "`truncated=\"1\"`", "`TillwardTruncated=1`", "`metadata.is_truncated`", "the line would have been longer than 8192 bytes: values of its detail are cut, the last left out"},
}

// generated is what stands between the marks of the page.
func generated() map[string]string {
	var dict, rows, lines strings.Builder
	dict.WriteString("| | RFC 5424 | CEF | OCSF | what it is |\n|---|---|---|---|---|\n")
	for _, f := range fields {
		fmt.Fprintf(&dict, "| %s |\n", strings.Join(f[:], " | "))
	}
	rows.WriteString("| id | kind | name |\n|---|---|---|\n")
	for _, c := range export.Classes() {
		fmt.Fprintf(&rows, "| %d | `%s` | %s |\n", c.ID, c.Kind, c.Name)
	}
	lines.WriteString("```\n")
	for i, c := range export.Classes() {
		e := sample(int64(i+1), c.Kind, "info", "")
		e.Hash = [32]byte{}
		e.Detail = map[string]string{"reason": "why"}
		switch c.ID / 100 {
		case 32, 40, 50, 51, 52, 53:
			e.Device, e.Actor, e.Subject = "till1", "till1", "x1"
		}
		lines.Write(export.Render(export.KindFile, export.FormatCEF, e))
		lines.WriteByte('\n')
	}
	lines.WriteString("```\n")
	var three strings.Builder
	e := sample(7, "device.revoked", "alarm", "")
	three.WriteString("```\n")
	for _, f := range formats {
		three.Write(export.Render(export.KindSyslog, f, e))
		three.WriteByte('\n')
	}
	three.WriteString("```\n")
	return map[string]string{"fields": dict.String(), "classes": rows.String(), "samples": lines.String(), "formats": three.String()}
}

// TestDocs compares the page that a security team reads with what is sent.
func TestDocs(t *testing.T) {
	b, err := os.ReadFile(siem)
	must(t, err)
	page := string(b)
	for name, text := range generated() {
		from, to := "<!-- "+name+" -->\n", "<!-- end of "+name+" -->\n"
		before, rest, ok := strings.Cut(page, from)
		was, after, ended := strings.Cut(rest, to)
		if !ok || !ended {
			t.Fatalf("%s has no marks %s", siem, name)
		}
		if was != text && !*rewrite {
			t.Errorf("%s: %s is out of date; go test ./cloud/internal/export -run TestDocs -rewrite", siem, name)
		}
		page = before + from + text + to + after
	}
	if *rewrite {
		must(t, os.WriteFile(siem, []byte(page), 0o644))
	}
}

// TestDocsNameEveryField finds each field of the dictionary in a line.
func TestDocsNameEveryField(t *testing.T) {
	e := sample(7, "device.revoked", "alarm", fleet.DeviceID("till1"))
	e.Subject, e.Outcome, e.Site = "x", "success", "berlin"
	syslog, cef := string(export.Render(export.KindSyslog, export.FormatSyslog, e)), string(export.Render(export.KindFile, export.FormatCEF, e))
	for _, f := range fields {
		key, _, _ := strings.Cut(strings.Trim(strings.Split(f[1], ",")[0], "`"), "=")
		if f[0] != "truncated" && key == strings.ToLower(key) && !strings.Contains(syslog, key) {
			t.Errorf("%s is not in %s", key, syslog)
		}
		key = strings.Trim(strings.Split(f[2], " ")[0], "`")
		if f[0] != "truncated" && f[0] != "detail" && strings.HasPrefix(f[2], "`") && !strings.Contains(cef, key+"=") {
			t.Errorf("%s is not in %s", key, cef)
		}
	}
}
