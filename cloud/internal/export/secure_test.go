package export_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tillward/tillward/cloud/internal/export"
	"github.com/tillward/tillward/cloud/internal/fleet"
)

var receivers = map[string]func(*testing.T, *authority) *daemon{"rsyslog": rsyslog, "syslog-ng": syslogNG}

// TestReceiversRefuse: whom we do not know gets nothing, and who does not know
// us is told to have failed; with everything right, the same event arrives.
func TestReceiversRefuse(t *testing.T) {
	for name, start := range receivers {
		t.Run(name, func(t *testing.T) {
			a, stranger := newAuthority(t, "house"), newAuthority(t, "stranger")
			d := start(t, a)
			d.up(t)
			cert, key := a.issue(t, "service.test")
			foreignCert, foreignKey := stranger.issue(t, "service.test")
			good := syslogSink(a, cert, key, d.addr, export.FormatSyslog)
			with := func(change func(*export.Sink)) export.Sink {
				s := good
				change(&s)
				return s
			}
			for what, tt := range map[string]struct {
				sink export.Sink
				want string
			}{
				"another authority":     {with(func(s *export.Sink) { s.CA = stranger.ca() }), "certificate"},
				"another name":          {with(func(s *export.Sink) { s.ServerName = "siem.example" }), "siem.example"},
				"no client certificate": {with(func(s *export.Sink) { s.Cert, s.Key = "", "" }), "closed the connection"},
				"a stranger's":          {with(func(s *export.Sink) { s.Cert, s.Key = foreignCert, foreignKey }), "closed the connection"},
			} {
				b := newBooks(t)
				b.fill(t, 1)
				x, stop := exporting(t, b, tt.sink)
				until(t, what+" fails", func() bool { return state(t, x).State == fleet.SinkFailing })
				if s := state(t, x); s.N != 0 || s.Sent != 0 || !strings.Contains(s.LastError, tt.want) {
					t.Errorf("%s: got %+v, want nothing confirmed and %q", what, s, tt.want)
				}
				if err := x.Test(t.Context(), "siem", "anna"); err == nil {
					t.Errorf("%s: a test event arrived", what)
				}
				stop()
			}
			if got := d.lines(t); len(got) != 0 {
				t.Errorf("somebody who was refused got through: %q", got)
			}
			b := newBooks(t)
			b.fill(t, 1)
			x, _ := exporting(t, b, good)
			until(t, "it is confirmed", func() bool { return state(t, x).N == 1 })
			must(t, x.Test(t.Context(), "siem", "anna"))
			until(t, "test event and its trace arrive", func() bool { return received(t, d) == 3 })
		})
	}
}

// TestHostileStaysOneEvent sends what tries to be more than one event through
// real receivers.
func TestHostileStaysOneEvent(t *testing.T) {
	for name, start := range receivers {
		for _, format := range formats {
			t.Run(name+" "+format, func(t *testing.T) {
				a, b := newAuthority(t, "house"), newBooks(t)
				for _, s := range hostile {
					ev := wicked(0, s).AuditEvent
					if ev.Kind == "" {
						ev.Kind = "device.changed"
					}
					must(t, b.Audit(t.Context(), ev))
				}
				d := start(t, a)
				d.up(t)
				cert, key := a.issue(t, "service.test")
				x, stop := exporting(t, b, syslogSink(a, cert, key, d.addr, format))
				until(t, "all is confirmed", func() bool { return state(t, x).N == int64(len(hostile)) })
				stop()
				d.down(t)
				lines := d.lines(t)
				if len(lines) != len(hostile) {
					t.Fatalf("%d events became %d lines", len(hostile), len(lines))
				}
				for i, l := range lines {
					if n := number.FindStringSubmatch(l); n == nil || n[1] != itoa(i+1) {
						t.Errorf("line %d has number %v: %.200q", i+1, n, l)
					}
				}
			})
		}
	}
}

// TestLognormalizer has liblognorm read a CEF line of every class, and hostile
// ones.
func TestLognormalizer(t *testing.T) {
	bin := program(t, "lognormalizer", "/usr/bin/lognormalizer", "/usr/lib/lognorm/lognormalizer")
	var in strings.Builder
	n := 0
	put := func(e fleet.TrailEntry) {
		n++
		e.N = int64(n)
		in.Write(append(export.Render(export.KindFile, export.FormatCEF, e), '\n'))
	}
	for _, c := range export.Classes() {
		put(sample(0, c.Kind, "info", ""))
		put(sample(0, c.Kind, "alarm", "till1"))
	}
	for _, s := range hostile {
		put(wicked(0, s))
	}
	parse := func(text string) []string {
		cmd := exec.CommandContext(t.Context(), bin, "-r", "testdata/cef.rulebase", "-e", "json")
		cmd.Stdin = strings.NewReader(text)
		out, err := cmd.Output()
		must(t, err)
		return strings.Split(strings.TrimSpace(string(out)), "\n")
	}
	out := parse(in.String())
	if len(out) != n {
		t.Fatalf("%d lines in, %d out", n, len(out))
	}
	for i, l := range out {
		if strings.Contains(l, "unparsed-data") || !strings.Contains(l, `"externalId": "`+itoa(i+1)+`"`) {
			t.Errorf("line %d: %.600s", i+1, l)
		}
	}
	// What is not escaped is not read, or read as something else.
	if out := parse("CEF:0|Tillward|Tillward|1|1|a|b|3|externalId=1 msg=\\q\n"); !strings.Contains(out[0], "unparsed-data") {
		t.Errorf("a line that is wrong was read: %s", out[0])
	}
}

// TestNeedsItsFiles: a service whose sinks cannot be what they should does not
// start, and says which file it is.
func TestNeedsItsFiles(t *testing.T) {
	dir := t.TempDir()
	a := newAuthority(t, "house")
	cert, key := a.issue(t, "service.test")
	weak, empty := filepath.Join(dir, "weak"), filepath.Join(dir, "empty.pem")
	must(t, os.WriteFile(weak, []byte("short\n"), 0o600))
	must(t, os.WriteFile(empty, nil, 0o600))
	hook := export.Sink{Name: "hook", Kind: export.KindWebhook, Format: export.FormatOCSF, Since: "start", URL: "https://x.example/in?token=hidden", Secret: weak}
	for want, s := range map[string]export.Sink{
		"weak holds less than 16":          hook,
		"empty.pem holds no certificate":   syslogSink(&authority{dir: dir, name: "empty"}, cert, key, "a:1", export.FormatCEF),
		"no such file":                     syslogSink(a, cert, filepath.Join(dir, "none"), "a:1", export.FormatCEF),
		"cert and key":                     syslogSink(a, cert, a.file("house-key"), "a:1", export.FormatCEF),
		`format "xml": use rfc5424, cef o`: {Name: "f", Kind: export.KindFile, Format: "xml", Since: "start", Path: "/x"},
	} {
		_, err := export.New(export.Options{Sinks: []export.Sink{s}})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hidden") || strings.Contains(err.Error(), "short") {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	x, err := export.New(export.Options{})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	must(t, x.Run(ctx))
}
