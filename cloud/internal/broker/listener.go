package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/listeners"
)

// listener does the TLS handshake before mochi sees the connection: a bounded
// number at once, each with a deadline. It outlives none of its connections.
type listener struct {
	ln   net.Listener
	cfg  *tls.Config
	log  *slog.Logger
	left func(net.Conn) // a connection that mochi had has ended
	slot chan struct{}
	wg   sync.WaitGroup
	once sync.Once

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
}

func newListener(ln net.Listener, cfg *tls.Config, log *slog.Logger, left func(net.Conn)) *listener {
	return &listener{ln: ln, cfg: cfg, log: log, left: left, slot: make(chan struct{}, handshakes), conns: map[net.Conn]struct{}{}}
}

// Init implements listeners.Listener.
func (l *listener) Init(*slog.Logger) error { return nil }

// ID implements listeners.Listener.
func (l *listener) ID() string { return "devices" }

// Address implements listeners.Listener.
func (l *listener) Address() string { return l.ln.Addr().String() }

// Protocol implements listeners.Listener.
func (l *listener) Protocol() string { return "mqtts" }

// Serve implements listeners.Listener.
func (l *listener) Serve(establish listeners.EstablishFn) {
	pause := 5 * time.Millisecond
	for {
		conn, err := l.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, say: it passes
			l.log.Error("accept device connection", slog.Any("err", err))
			time.Sleep(pause)
			pause = min(2*pause, time.Second)
			continue
		}
		pause = 5 * time.Millisecond
		l.slot <- struct{}{}
		if !l.hold(conn) {
			<-l.slot
			_ = conn.Close()
			return
		}
		go func() {
			defer l.release(conn)
			c := l.handshake(conn)
			<-l.slot
			if c != nil {
				l.serve(c, establish)
			}
		}()
	}
}

// hold remembers a connection; false when there are to be no more.
func (l *listener) hold(conn net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.conns[conn] = struct{}{}
	l.wg.Add(1)
	return true
}

func (l *listener) release(conn net.Conn) {
	_ = conn.Close()
	l.mu.Lock()
	delete(l.conns, conn)
	l.mu.Unlock()
	l.wg.Done()
}

// serve hands a connection to mochi until it ends. What a device sends must
// not be able to end more than its own connection.
func (l *listener) serve(c *tls.Conn, establish listeners.EstablishFn) {
	defer l.left(c)
	defer func() {
		if r := recover(); r != nil {
			l.log.Error("panic in MQTT library", slog.String("remote", c.RemoteAddr().String()), slog.Any("panic", r))
		}
	}()
	if err := establish(l.ID(), c); err != nil {
		l.log.Debug("connection ended", slog.String("remote", c.RemoteAddr().String()), slog.Any("err", err))
	}
}

// handshake returns nil when the peer is not let in.
func (l *listener) handshake(conn net.Conn) *tls.Conn {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTime)
	defer cancel()
	c := tls.Server(&deadlined{conn}, l.cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		l.log.Info("handshake refused", slog.String("remote", conn.RemoteAddr().String()), slog.Any("err", err))
		return nil
	}
	_ = c.SetReadDeadline(time.Now().Add(connectTime)) // replaced by the keep-alive after CONNECT
	return c
}

// stop accepts no more connections.
func (l *listener) stop() { _ = l.ln.Close() }

// Close implements listeners.Listener: it ends every connection, and those
// that are still in their handshake too.
func (l *listener) Close(closeClients listeners.CloseFn) {
	l.once.Do(func() {
		l.stop()
		l.mu.Lock()
		l.closed = true
		for conn := range l.conns {
			_ = conn.Close()
		}
		l.mu.Unlock()
		closeClients(l.ID())
	})
	l.wg.Wait()
}

// deadlined gives every write a deadline, so that a peer which does not read
// cannot hold a goroutine for ever.
type deadlined struct{ net.Conn }

// Write implements net.Conn.
func (d *deadlined) Write(b []byte) (int, error) {
	if err := d.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return 0, err
	}
	return d.Conn.Write(b)
}
