package local

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

var (
	errPage  = errors.New("a web page, and no point-of-sale application, wants to print")
	errFlood = errors.New("it sends without an end")
	errQuiet = errors.New("it has said nothing for too long")
)

// app is the connection of an application as a driver sees it: it ends when
// nothing comes for long, when too much comes without a pause, and, after the
// job under way, when the agent ends.
type app struct {
	c net.Conn

	mu      sync.Mutex
	first   bool // nothing was read yet
	last    time.Time
	burst   int
	counted uint64
	why     error
	ending  bool
	reading bool          // it is its turn to say something
	heard   chan struct{} // something was read
}

func newApp(c net.Conn) *app {
	return &app{c: c, first: true, last: time.Now(), heard: make(chan struct{}, 1)}
}

// Read implements io.Reader.
func (a *app) Read(b []byte) (int, error) {
	a.mu.Lock()
	if a.why != nil {
		a.mu.Unlock()
		return 0, a.why
	}
	if a.ending {
		_ = a.c.SetReadDeadline(time.Now().Add(pause / 4))
	} else {
		_ = a.c.SetReadDeadline(time.Now().Add(idle))
	}
	a.reading = true
	a.mu.Unlock()
	n, err := a.c.Read(b)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reading = false
	switch {
	case n > 0:
		return a.took(b[:n])
	case errors.Is(err, os.ErrDeadlineExceeded) && a.ending:
		return 0, io.EOF
	case errors.Is(err, os.ErrDeadlineExceeded):
		a.settle()
		return 0, errQuiet
	}
	return 0, err
}

// took looks at how much came, and at nothing else but the very first bytes: a
// page in a browser can talk to any port of its own box, and begins with HTTP.
func (a *app) took(b []byte) (int, error) {
	if a.first && isHTTP(b) {
		a.why = errPage
		return 0, errPage
	}
	a.first = false
	now := time.Now()
	if now.Sub(a.last) >= pause {
		a.settle()
	}
	a.last = now
	if a.burst += len(b); a.burst > maxBurst {
		a.why = errFlood
		return 0, errFlood
	}
	select {
	case a.heard <- struct{}{}:
	default:
	}
	return len(b), nil
}

// settle counts what came since the last pause.
func (a *app) settle() {
	if a.burst >= leastJob {
		a.counted++
	}
	a.burst = 0
}

// isHTTP reports whether b begins a request of a browser.
func isHTTP(b []byte) bool {
	for _, verb := range []string{"GET ", "POST ", "PUT ", "HEAD ", "OPTIONS ", "CONNECT ", "PATCH ", "DELETE "} {
		if bytes.HasPrefix(b, []byte(verb)) {
			return true
		}
	}
	return len(b) > 2 && b[0] == 0x16 && b[1] == 0x03 // TLS
}

// Write implements io.Writer.
func (a *app) Write(b []byte) (int, error) {
	_ = a.c.SetWriteDeadline(time.Now().Add(answerIn))
	return a.c.Write(b)
}

// silent is for how long nothing has come.
func (a *app) silent() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Since(a.last)
}

// resting is for how long the application could have said something, and has not.
func (a *app) resting() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.reading {
		return 0
	}
	return time.Since(a.last)
}

// finish ends the connection as soon as the application pauses, and in any case
// after the time that is left to it.
func (a *app) finish() {
	a.mu.Lock()
	a.ending = true
	busy := time.Since(a.last) < pause/4
	if !busy {
		_ = a.c.SetReadDeadline(time.Now())
	}
	a.mu.Unlock()
	if !busy {
		return
	}
	_ = a.c.SetReadDeadline(time.Now().Add(pause / 4))
	late := time.After(finish)
	quiet := time.NewTimer(pause / 4)
	defer quiet.Stop()
	for {
		select {
		case <-a.heard:
			quiet.Reset(pause / 4)
			continue
		case <-quiet.C:
		case <-late:
		}
		break
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.why == nil {
		a.why = io.EOF
	}
	_ = a.c.SetReadDeadline(time.Now())
}

// jobs is how many jobs came.
func (a *app) jobs() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.settle()
	return a.counted
}

// fault is why the application was cut off; nil: it was not.
func (a *app) fault() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if errors.Is(a.why, io.EOF) {
		return nil
	}
	return a.why
}
