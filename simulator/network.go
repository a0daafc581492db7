package simulator

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// Line is the network between one till and the service: a TCP forwarder on
// loopback that can be cut and healed. It counts what passes.
type Line struct {
	ln     net.Listener
	target string
	wg     sync.WaitGroup
	bytes  atomic.Int64

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]struct{}
}

// NewLine starts a forwarder from listen (port 0 picks a free one) to target.
func NewLine(ctx context.Context, listen, target string) (*Line, error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
	if err != nil {
		return nil, fmt.Errorf("listen for a till's line: %w", err)
	}
	l := &Line{ln: ln, target: target, conns: make(map[net.Conn]struct{})}
	l.wg.Go(l.accept)
	return l, nil
}

// Addr is what the till dials.
func (l *Line) Addr() string { return l.ln.Addr().String() }

// Bytes is how much has passed in both directions.
func (l *Line) Bytes() int64 { return l.bytes.Load() }

// Cut drops every connection and refuses new ones until Heal.
func (l *Line) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = true
	for c := range l.conns {
		_ = c.Close()
	}
}

// Heal lets connections through again.
func (l *Line) Heal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = false
}

// Close cuts the line for good and waits for its goroutines.
func (l *Line) Close() {
	_ = l.ln.Close()
	l.Cut()
	l.wg.Wait()
}

// hold registers c, or closes it when the line is cut.
func (l *Line) hold(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		_ = c.Close()
		return false
	}
	l.conns[c] = struct{}{}
	return true
}

func (l *Line) drop(c net.Conn) {
	_ = c.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
}

func (l *Line) accept() {
	for {
		c, err := l.ln.Accept()
		if err != nil {
			return
		}
		if l.hold(c) {
			l.wg.Go(func() { l.forward(c) })
		}
	}
}

func (l *Line) forward(in net.Conn) {
	defer l.drop(in)
	out, err := net.Dial("tcp", l.target)
	if err != nil || !l.hold(out) {
		return
	}
	defer l.drop(out)
	var wg sync.WaitGroup
	pump := func(dst, src net.Conn) {
		n, _ := io.Copy(dst, src)
		l.bytes.Add(n)
		_ = dst.Close() // half-open lines do not occur on a till's uplink
		_ = src.Close()
	}
	wg.Go(func() { pump(out, in) })
	pump(in, out)
	wg.Wait()
}
