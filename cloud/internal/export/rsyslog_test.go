package export_test

import (
	"bytes"
	"flag"
	"os"
	"testing"

	"github.com/tillward/tillward/cloud/internal/export"
)

var events = flag.Int("events", 3000, "events that real receivers get across two restarts; 20000 is what is promised")

func syslogSink(a *authority, cert, key, addr, format string) export.Sink {
	return export.Sink{Name: "siem", Kind: export.KindSyslog, Format: format, Since: "start", Address: addr, CA: a.ca(), Cert: cert, Key: key}
}

// TestRestarts sends to a real receiver that is restarted twice on the way.
func TestRestarts(t *testing.T) {
	for name, start := range receivers {
		t.Run(name, func(t *testing.T) {
			a, b := newAuthority(t, "house"), newBooks(t)
			d := start(t, a)
			d.up(t)
			cert, key := a.issue(t, "service.test")
			b.fill(t, *events/3)
			x, stop := exporting(t, b, syslogSink(a, cert, key, d.addr, export.FormatSyslog))
			restarts := 0
			for part := 1; part <= 2; part++ {
				at := part * *events / 3
				if part == 2 {
					b.fill(t, *events/3)
				}
				until(t, "a part arrives", func() bool { return received(t, d) > at-*events/6 })
				d.down(t) // in the middle of it
				if part == 1 {
					b.fill(t, *events/3-1)
				}
				d.up(t)
				restarts++
			}
			b.fill(t, 1+*events%3)
			until(t, "everything is confirmed", func() bool {
				s := state(t, x)
				return s.Lag == 0 && s.N >= int64(*events)
			})
			stop()
			d.down(t)
			doubles := counted(t, d.lines(t), *events)
			t.Logf("%s: %d of %d events across %d restarts, %d twice", name, *events, *events, restarts, doubles)
		})
	}
}

func received(t *testing.T, d *daemon) int {
	t.Helper()
	b, err := os.ReadFile(d.raw)
	if err != nil {
		return 0
	}
	return bytes.Count(b, []byte("\n"))
}
