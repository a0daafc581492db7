package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
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

	meter     *Meter
	accepting atomic.Bool

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
}

func newListener(ln net.Listener, cfg *tls.Config, log *slog.Logger, left func(net.Conn), meter *Meter) *listener {
	return &listener{ln: ln, cfg: cfg, log: log, left: left, meter: meter, slot: make(chan struct{}, handshakes), conns: map[net.Conn]struct{}{}}
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
	l.accepting.Store(true)
	defer l.accepting.Store(false)
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
	if d, ok := c.NetConn().(*deadlined); ok {
		d.hear()
	}
}

// handshake returns nil when the peer is not let in.
func (l *listener) handshake(conn net.Conn) *tls.Conn {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTime)
	defer cancel()
	began := time.Now()
	c := tls.Server(&deadlined{Conn: conn, accepted: began}, l.cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		l.meter.connected(began, err)
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
// cannot hold a goroutine for ever; and it can part with a peer to see whether
// there still is one.
type deadlined struct {
	net.Conn
	accepted time.Time
	parting  atomic.Bool
	old      int         // bytes that had come before and were not read yet
	alive    atomic.Bool // the peer said something after that
}

// Write implements net.Conn.
func (d *deadlined) Write(b []byte) (int, error) {
	if err := d.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return 0, err
	}
	return d.Conn.Write(b)
}

// Read implements net.Conn.
func (d *deadlined) Read(b []byte) (int, error) {
	n, err := d.Conn.Read(b)
	if n > 0 && d.parting.Load() {
		if d.old -= n; d.old < 0 {
			d.alive.Store(true)
		}
	}
	return n, err
}

// part lets Close only say goodbye. Who is there answers - TLS has a last word
// of its own [RFC 8446, 6.1] -, a connection whose other end is gone is silent.
// What lies unread is no answer: it may be the goodbye of a device that was
// started again.
func (d *deadlined) part() {
	if c, ok := d.Conn.(syscall.Conn); ok {
		if raw, err := c.SyscallConn(); err == nil {
			var buf [4096]byte
			_ = raw.Control(func(fd uintptr) {
				d.old, _, _ = syscall.Recvfrom(int(fd), buf[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
			})
			if d.old == len(buf) {
				d.old = math.MaxInt // more than that, and nobody knows how much
			}
			d.old = max(d.old, 0) // -1 when nothing lies there
		}
	}
	d.parting.Store(true)
}

// hear reads on when the reader was not reading while the connection was taken
// over: it had something in hand, or had not begun. Without it the peer's last
// word would go unheard.
func (d *deadlined) hear() {
	var buf [1024]byte
	for d.parting.Load() && !d.alive.Load() {
		if _, err := d.Read(buf[:]); err != nil {
			return
		}
	}
}

// Close implements net.Conn. When parting, the reader ends by the peer's last
// word or by the deadline; the listener closes the connection then.
func (d *deadlined) Close() error {
	half, ok := d.Conn.(interface{ CloseWrite() error })
	if !ok || !d.parting.Load() {
		return d.Conn.Close()
	}
	if err := d.Conn.SetReadDeadline(time.Now().Add(partTime)); err != nil {
		return d.Conn.Close()
	}
	return half.CloseWrite()
}

// SetDeadline implements net.Conn; while parting the deadline stands.
func (d *deadlined) SetDeadline(t time.Time) error {
	if d.parting.Load() {
		return d.SetWriteDeadline(t)
	}
	return d.Conn.SetDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (d *deadlined) SetReadDeadline(t time.Time) error {
	if d.parting.Load() {
		return nil
	}
	return d.Conn.SetReadDeadline(t)
}
