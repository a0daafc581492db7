package simulator

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Line is the network between one till and the service: a TCP forwarder on
// loopback that can be cut, held and slowed down. It counts what passes.
type Line struct {
	ln     net.Listener
	target string
	wg     sync.WaitGroup
	bytes  atomic.Int64

	mu      sync.Mutex
	cut     bool
	weather Weather
	changed chan struct{} // closed when the weather is another
	conns   map[net.Conn]*way
}

// way is one connection through a line, of which both ends are in Line.conns.
type way struct {
	till net.Conn
	lost bool // one end is gone, and the other does not know
}

// Weather is how a line carries what it carries. The zero value is fair.
type Weather struct {
	Hole    bool          // nothing passes, and nobody is told: what is sent waits
	Latency time.Duration // of each piece
	Rate    int           // bytes a second; 0: as many as come
}

// NewLine starts a forwarder from listen (port 0 picks a free one) to target.
func NewLine(ctx context.Context, listen, target string) (*Line, error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
	if err != nil {
		return nil, fmt.Errorf("listen for a till's line: %w", err)
	}
	l := &Line{ln: ln, target: target, conns: make(map[net.Conn]*way), changed: make(chan struct{})}
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
	l.change()
}

// Carry makes the line carry in another way from now on. Ends that Half left
// open hear of it.
func (l *Line) Carry(w Weather) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.weather = w
	for _, is := range l.conns {
		is.lost = false
	}
	l.change()
}

// Half drops one end of every connection, the till's or the service's, and
// tells the other end nothing until Carry. New connections pass.
func (l *Line) Half(till bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c, of := range l.conns {
		of.lost = true
		if (of.till == c) == till {
			_ = c.Close()
		}
	}
	l.change()
}

// change tells of other weather. The caller holds mu.
func (l *Line) change() {
	close(l.changed)
	l.changed = make(chan struct{})
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
func (l *Line) hold(c net.Conn, of *way) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		_ = c.Close()
		return false
	}
	l.conns[c] = of
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
		if of := (&way{till: c}); l.hold(c, of) {
			l.wg.Go(func() { l.forward(of) })
		}
	}
}

func (l *Line) forward(of *way) {
	in := of.till
	defer l.drop(in)
	if l.pass(of, 0) != nil { // a hole answers nobody
		return
	}
	out, err := net.Dial("tcp", l.target)
	if err != nil || !l.hold(out, of) {
		return
	}
	defer l.drop(out)
	var wg sync.WaitGroup
	wg.Go(func() { l.pump(of, out, in) })
	l.pump(of, in, out)
	wg.Wait()
}

// pump carries what comes from src to dst until one of them ends. An end that
// meets a hole is told behind it, as on a till's uplink.
func (l *Line) pump(of *way, dst, src net.Conn) {
	buf := make([]byte, 16<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if l.pass(of, n) != nil {
				break
			}
			if _, err := dst.Write(buf[:n]); err != nil {
				break
			}
			l.bytes.Add(int64(n))
		}
		if err != nil {
			break
		}
	}
	_ = l.pass(of, 0)
	_ = dst.Close()
	_ = src.Close()
}

// pass waits until n bytes may pass, and fails when the line is
// cut.
func (l *Line) pass(of *way, n int) error {
	for {
		l.mu.Lock()
		w, changed, cut := l.weather, l.changed, l.cut
		w.Hole = w.Hole || of.lost
		l.mu.Unlock()
		if cut {
			return net.ErrClosed
		}
		if w.Hole {
			<-changed // Close cuts
			continue
		}
		wait := w.Latency
		if w.Rate > 0 {
			wait += time.Duration(n) * time.Second / time.Duration(w.Rate)
		}
		if n > 0 && wait > 0 {
			select {
			case <-time.After(wait):
			case <-changed:
			}
		}
		return nil
	}
}
