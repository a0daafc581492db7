package agent

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
)

// Guard is the last look at texts before they are logged or leave the box: what
// could hold a card number is replaced by a fixed text, and counted. Drivers keep
// card data out by themselves; this is for what nobody thought of, such as the
// words of an error.
type Guard struct{ dropped atomic.Uint64 }

const (
	droppedLine = "a log line was dropped: it could hold a card number"
	droppedText = wire.AuditWithheld
)

// Dropped is how many texts have been dropped.
func (g *Guard) Dropped() uint64 { return g.dropped.Load() }

// Writer guards a log. It looks at lines as they will be read, so that message,
// attributes, groups and the texts of errors are all in it.
func (g *Guard) Writer(w io.Writer) io.Writer { return guardedLog{g, w} }

type guardedLog struct {
	g *Guard
	w io.Writer
}

// Write implements io.Writer; slog writes a line at a time.
func (l guardedLog) Write(b []byte) (int, error) {
	if !l.g.holds(string(b)) {
		return l.w.Write(b)
	}
	_, err := fmt.Fprintf(l.w, "time=%s level=WARN msg=%q count=%d\n", time.Now().Format(time.RFC3339), droppedLine, l.g.Dropped())
	return len(b), err
}

// holds reports whether s could hold a card number, and counts it.
func (g *Guard) holds(s string) bool {
	if !hal.MayHoldPAN(withoutDigests(s)) {
		return false
	}
	g.dropped.Add(1)
	return true
}

// text guards one text.
func (g *Guard) text(s string) string {
	if g.holds(s) {
		return droppedText
	}
	return s
}

// output guards what a command says, line by line: what is harmless stays.
func (g *Guard) output(b []byte) []byte {
	if !hal.MayHoldPAN(withoutDigests(string(b))) {
		return b
	}
	var out []byte
	for line := range bytes.Lines(b) {
		if g.holds(string(line)) {
			line = []byte(droppedText + "\n")
		}
		out = append(out, line...)
	}
	return out
}

// withoutDigests leaves out SHA-256 values in hex: by chance, one of two hundred
// holds a run of digits that passes for a card number, and without them a trail
// proves nothing. What has fewer letters than any but a few in ten thousand have
// is no digest.
func withoutDigests(s string) string {
	const size, letters = 64, 12
	if len(s) < size {
		return s
	}
	var b strings.Builder
	kept, run, alpha := 0, 0, 0
	end := func(i int) {
		if run == size && alpha >= letters {
			b.WriteString(s[kept : i-size])
			b.WriteByte('#')
			kept = i
		}
		run, alpha = 0, 0
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= '0' && c <= '9':
			run++
		case c >= 'a' && c <= 'f':
			run++
			alpha++
		case c >= 'A' && c <= 'Z', c >= 'g' && c <= 'z':
			run = size + 1 // part of a longer word
		default:
			end(i)
		}
	}
	end(len(s))
	if kept == 0 {
		return s
	}
	return b.String() + s[kept:]
}
