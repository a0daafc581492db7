package main

import (
	"bytes"
	"io"
	"sync"
)

// tailLines is how many log lines are kept for collect-logs.
const tailLines = 2000

// tail passes a log on and keeps its last lines.
type tail struct {
	w io.Writer

	mu    sync.Mutex
	lines [][]byte
	next  int
}

func newTail(w io.Writer) *tail { return &tail{w: w} }

// Write implements io.Writer; slog writes a line at a time.
func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	line := bytes.Clone(b)
	if len(t.lines) < tailLines {
		t.lines = append(t.lines, line)
	} else {
		t.lines[t.next] = line
		t.next = (t.next + 1) % tailLines
	}
	t.mu.Unlock()
	return t.w.Write(b)
}

// last returns at most n lines, the newest at the end.
func (t *tail) last(n int) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	n = min(n, len(t.lines))
	var out []byte
	for i := len(t.lines) - n; i < len(t.lines); i++ {
		out = append(out, t.lines[(t.next+i)%len(t.lines)]...)
	}
	return out
}
