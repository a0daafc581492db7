package export

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"
)

const (
	dialWait    = 10 * time.Second
	writeWait   = 30 * time.Second
	confirmWait = 30 * time.Second
)

// syslogOut speaks to a syslog receiver: TLS, octets counted [RFC 5425, 4.3].
//
// Syslog knows no answer. What proves that everything arrived is the end of
// the connection: we say that nothing follows, and the receiver closes its side
// only after it has read that. Where it closes or breaks off before, nobody
// knows, and all is sent again that was sent on this connection. A receiver
// that keeps a connection open for half a minute whose end it was told does so
// for ever: it is believed when its machine has acknowledged every byte, or it
// would get the same again and again.
type syslogOut struct {
	addr string
	tls  *tls.Config
	wait time.Duration // for the end of its side

	conn  *tls.Conn
	tcp   *net.TCPConn
	ended chan error // how its side ended
}

func newSyslog(s Sink) (*syslogOut, error) {
	cfg, err := clientTLS(s)
	if err != nil {
		return nil, err
	}
	if cfg.ServerName = s.ServerName; cfg.ServerName == "" {
		cfg.ServerName, _, _ = net.SplitHostPort(s.Address)
	}
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(4) // a connection is short
	return &syslogOut{addr: s.Address, tls: cfg, wait: confirmWait}, nil
}

// clientTLS is how a sink is spoken to: by whose word, and who we are.
func clientTLS(s Sink) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.CA != "" {
		b, err := os.ReadFile(s.CA)
		if err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("ca: %s holds no certificate", s.CA)
		}
	}
	if s.Cert != "" {
		cert, err := tls.LoadX509KeyPair(s.Cert, s.Key)
		if err != nil {
			return nil, fmt.Errorf("cert and key: %w", err)
		}
		cfg.Certificates = []tls.Certificate{cert}
	}
	return cfg, nil
}

func (o *syslogOut) dial(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dialWait)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", o.addr)
	if err != nil {
		return err
	}
	tcp, ok := raw.(*net.TCPConn)
	if !ok {
		_ = raw.Close()
		return errors.New("not a TCP connection")
	}
	conn := tls.Client(tcp, o.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return err
	}
	ended := make(chan error, 1)
	go func() { // ends with the connection
		_, err := io.Copy(io.Discard, conn)
		ended <- err
	}()
	o.conn, o.tcp, o.ended = conn, tcp, ended
	return nil
}

func (o *syslogOut) send(ctx context.Context, lines []line) error {
	if o.conn == nil {
		if err := o.dial(ctx); err != nil {
			return err
		}
	}
	var buf []byte
	for _, l := range lines {
		buf = strconv.AppendInt(buf, int64(len(l.b)), 10)
		buf = append(append(buf, ' '), l.b...)
	}
	select {
	case err := <-o.ended:
		o.close()
		return closed(err)
	default:
	}
	stop := context.AfterFunc(ctx, func() { _ = o.tcp.SetWriteDeadline(time.Now()) })
	defer stop()
	if err := o.conn.SetWriteDeadline(time.Now().Add(writeWait)); err != nil {
		return err
	}
	if _, err := o.conn.Write(buf); err != nil {
		select {
		case why := <-o.ended: // says more: with TLS 1.3 a refused certificate is heard of only now
			o.close()
			return closed(why)
		case <-time.After(time.Second):
		}
		return err
	}
	return nil
}

func closed(err error) error {
	if err == nil {
		return errClosed
	}
	return fmt.Errorf("%w: %w", errClosed, err)
}

func (o *syslogOut) confirm(ctx context.Context) error {
	if o.conn == nil {
		return nil
	}
	defer o.close()
	select {
	case err := <-o.ended: // before it was told to
		return closed(err)
	default:
	}
	if err := o.conn.CloseWrite(); err != nil {
		return err
	}
	if err := o.tcp.CloseWrite(); err != nil {
		return err
	}
	late := time.NewTimer(o.wait)
	defer late.Stop()
	select {
	case err := <-o.ended:
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) { // nil is TLS's own end
			return closed(err)
		}
		if err := o.tcp.SetReadDeadline(time.Now().Add(o.wait)); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, o.tcp); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return closed(err)
		}
	case <-late.C:
	case <-ctx.Done(): // who is in a hurry has no proof
		return fmt.Errorf("the receiver has not closed yet: %w", ctx.Err())
	}
	return acknowledged(ctx, o.tcp)
}

func (o *syslogOut) close() {
	if o.conn == nil {
		return
	}
	_ = o.tcp.Close() // TLS would wait to say so
	o.conn, o.tcp, o.ended = nil, nil, nil
}
