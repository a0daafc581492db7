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
// number at once, each with a deadline.
type listener struct {
	ln   net.Listener
	cfg  *tls.Config
	log  *slog.Logger
	slot chan struct{}
	wg   sync.WaitGroup
	once sync.Once
}

func newListener(ln net.Listener, cfg *tls.Config, log *slog.Logger) *listener {
	return &listener{ln: ln, cfg: cfg, log: log, slot: make(chan struct{}, handshakes)}
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
		l.wg.Go(func() {
			c := l.handshake(conn)
			<-l.slot
			if c != nil {
				_ = establish(l.ID(), c) // every end is reported by the hook
			}
		})
	}
}

// handshake returns nil when the peer is not let in.
func (l *listener) handshake(conn net.Conn) net.Conn {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTime)
	defer cancel()
	c := tls.Server(&deadlined{conn}, l.cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		l.log.Info("handshake refused", slog.String("remote", conn.RemoteAddr().String()), slog.Any("err", err))
		return nil
	}
	_ = c.SetReadDeadline(time.Now().Add(connectTime)) // replaced by the keep-alive after CONNECT
	return c
}

// Close implements listeners.Listener.
func (l *listener) Close(closeClients listeners.CloseFn) {
	l.once.Do(func() {
		_ = l.ln.Close()
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
