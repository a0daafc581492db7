package export

import (
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// Class is a row of the table of classes.
type Class struct {
	ID         int
	Kind, Name string
}

// Classes is the table.
func Classes() (out []Class) {
	for _, c := range classes {
		out = append(out, Class{c.id, c.kind, c.name})
	}
	return out
}

// Render makes a line of e as a sink of that kind gets it.
func Render(kind, format string, e fleet.TrailEntry) []byte {
	return renderer{format: format, host: "fleet.example", version: "1.2.3", frame: kind == KindSyslog || format == FormatSyslog}.render(e, e.N-1)
}

// Patience has the syslog sinks of x wait only so long for the other end.
func Patience(x *Exporter, wait time.Duration) {
	for _, r := range x.roads {
		if o, ok := r.out.(*syslogOut); ok {
			o.wait = wait
		}
	}
}

// The escapes, what they do first, and how long a line may be.
var (
	EscapeSD, EscapeHeader, EscapeExtension, Clean = escapeSD, escapeHeader, escapeExtension, clean
	MaxLine                                        = maxLine
	Sign                                           = sign
)
