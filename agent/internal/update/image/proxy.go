package image

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	headerName = "X-Tillward-Stream"
	headerLook = "X-Tillward-Look" // of who only looks at the bundle, so far
	piece      = 256 << 10
	block      = 64 << 10
	maxPinned  = 8 << 20 // signature and manifest have some KiB, and the kernel reads ahead
	atOnce     = 8       // ranges; RAUC asks for as many as the kernel reads ahead

	// patience is how long a range may take. The kernel gives RAUC's block
	// device up when one read takes 300 s, and RAUC asks six times with a second
	// between.
	patience = 45 * time.Second
)

// proxy serves one bundle to RAUC, on the loopback interface, for as long as
// one installation takes. Who asks must know the path and a token that only
// RAUC was told. What it serves is checked by RAUC, not here: but what RAUC was
// served when it looked at the bundle it is served again when it installs it,
// whatever the content has become meanwhile.
type proxy struct {
	content io.ReaderAt
	length  int64
	path    string
	token   string
	host    string
	srv     *http.Server
	turns   chan struct{}

	mu     sync.Mutex
	err    error            // the last read that failed
	pinned map[int64][]byte // by the number of the block
}

func newProxy(content io.ReaderAt, length int64) *proxy {
	return &proxy{content: content, length: length, path: "/" + rand.Text() + ".raucb", token: rand.Text(), turns: make(chan struct{}, atOnce), pinned: map[int64][]byte{}}
}

// serve starts serving on a free port.
func serve(content io.ReaderAt, length int64) (*proxy, error) {
	p := newProxy(content, length)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("stream proxy: %w", err)
	}
	p.host = l.Addr().String()
	p.srv = &http.Server{Handler: p, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	go func() { _ = p.srv.Serve(l) }()
	return p, nil
}

func (p *proxy) url() string { return "http://" + p.host + p.path }

func (p *proxy) header() string { return headerName + ": " + p.token }

func (p *proxy) look() string { return headerLook + ": yes" }

func (p *proxy) close() { _ = p.srv.Close() }

// failed returns why a read failed last; nil also when there is no proxy.
func (p *proxy) failed() error {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// ServeHTTP implements http.Handler.
func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case subtle.ConstantTimeCompare([]byte(r.Header.Get(headerName)), []byte(p.token)) != 1:
		http.Error(w, "not yours", http.StatusForbidden)
		return
	case subtle.ConstantTimeCompare([]byte(r.URL.Path), []byte(p.path)) != 1:
		http.NotFound(w, r)
		return
	case r.Method != http.MethodGet:
		http.Error(w, "only GET", http.StatusMethodNotAllowed)
		return
	}
	from, to, ok := parseRange(r.Header.Get("Range"), p.length)
	if !ok {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", p.length))
		http.Error(w, "ask for one range of bytes", http.StatusRequestedRangeNotSatisfiable)
		return
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), patience, fmt.Errorf("no answer within %v", patience))
	defer cancel()
	select {
	case p.turns <- struct{}{}:
		defer func() { <-p.turns }()
	case <-ctx.Done():
		http.Error(w, "too much at once", http.StatusServiceUnavailable)
		return
	}
	if r.Header.Get(headerLook) != "" {
		if err := p.pin(ctx, from, to); err != nil {
			p.noteFailure(err)
			http.Error(w, "content is not to be had", http.StatusBadGateway)
			return
		}
	}
	p.send(ctx, w, from, to)
}

// send sends the bytes from from up to and without to.
func (p *proxy) send(ctx context.Context, w http.ResponseWriter, from, to int64) {
	for at := from; at < to; {
		b, err := p.read(ctx, at, min(piece, to-at))
		p.noteFailure(err)
		if err != nil {
			if at > from {
				panic(http.ErrAbortHandler) // cut: what was sent must not look whole
			}
			http.Error(w, "content is not to be had", http.StatusBadGateway)
			return
		}
		if at == from {
			h := w.Header()
			h.Set("Content-Type", "application/octet-stream")
			h.Set("Content-Length", strconv.FormatInt(to-from, 10))
			h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, p.length))
			w.WriteHeader(http.StatusPartialContent)
		}
		if _, err := w.Write(b); err != nil {
			return // RAUC has gone
		}
		at += int64(len(b))
	}
}

// noteFailure keeps why a read failed, or that it did not. When RAUC has gone,
// that says nothing of the content.
func (p *proxy) noteFailure(err error) {
	if !errors.Is(err, context.Canceled) {
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
	}
}

var errPinned = errors.New("RAUC looks at more of the bundle than its signature")

// pin has the blocks from from to to stay as they are now.
func (p *proxy) pin(ctx context.Context, from, to int64) error {
	for n := from / block; n*block < to; n++ {
		p.mu.Lock()
		_, there := p.pinned[n]
		room := len(p.pinned) < maxPinned/block
		p.mu.Unlock()
		if there {
			continue
		}
		if !room {
			return errPinned
		}
		b, err := p.read(ctx, n*block, min(block, p.length-n*block))
		if err != nil {
			return err
		}
		p.mu.Lock()
		if p.pinned[n] == nil { // else somebody was served the other one
			p.pinned[n] = b
		}
		p.mu.Unlock()
	}
	return nil
}

// fix replaces what is pinned in a piece that begins at at.
func (p *proxy) fix(b []byte, at int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	end := at + int64(len(b))
	for n := at / block; n*block < end; n++ {
		if was := p.pinned[n]; was != nil {
			from := max(at, n*block)
			copy(b[from-at:], was[from-n*block:])
		}
	}
}

// read reads a piece. Reading cannot be stopped, so it is left behind when it
// takes too long.
func (p *proxy) read(ctx context.Context, at, n int64) ([]byte, error) {
	type result struct {
		b   []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		b := make([]byte, n)
		got, err := p.content.ReadAt(b, at)
		switch {
		case int64(got) == n:
			err = nil // io.EOF may come with the last bytes
		case err == nil, errors.Is(err, io.EOF):
			err = io.ErrUnexpectedEOF
		}
		done <- result{b, err}
	}()
	select {
	case got := <-done:
		if got.err != nil {
			return nil, fmt.Errorf("bytes from %d: %w", at, got.err)
		}
		p.fix(got.b, at)
		return got.b, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("bytes from %d: %w", at, context.Cause(ctx))
	}
}

// parseRange reads "bytes=a-b" or "bytes=a-" and returns where to begin and
// where to stop; ok is false for anything else, and for what begins after the
// end.
func parseRange(s string, length int64) (from, to int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes=")
	first, last, dash := strings.Cut(s, "-")
	if !ok || !dash {
		return 0, 0, false
	}
	number := func(s string) (int64, bool) {
		n, err := strconv.ParseUint(s, 10, 63)
		return int64(n), err == nil
	}
	if from, ok = number(first); !ok || from >= length {
		return 0, 0, false
	}
	if last == "" {
		return from, length, true
	}
	if to, ok = number(last); !ok || to < from {
		return 0, 0, false
	}
	return from, min(to, length-1) + 1, true
}
