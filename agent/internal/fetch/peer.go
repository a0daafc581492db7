package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/time/rate"

	"github.com/tillward/tillward/provisioning/identity"
)

// contentPath is where a till serves content, by its hash: GET with ranges.
const contentPath = "/content/"

// Limits of serving: the till sells meanwhile, and each handshake costs its TPM
// a signature, before anything is known of who asks.
const (
	maxConns   = 16
	maxServing = 8
	handshakes = 4 // per second
	serveStall = 30 * time.Second
)

// Peering is how tills of a tenant know each other: by the certificates of
// their devices, in both directions. That a certificate was revoked they do not
// know; it lives for weeks, what it opens is no secret, and what it sends is
// verified.
type Peering struct {
	Certificate func() (*tls.Certificate, error) // one's own, with the chain
	Roots       func() (*x509.CertPool, error)   // authorities of the tenant's devices
	Tenant      func() string                    // one's own
	Now         func() time.Time                 // nil: time.Now
	Rate        int64                            // bytes per second that are served, at most; 0: as they go
}

// client asks other tills.
func (p *Peering) client() *http.Client {
	t := p.config()
	t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return p.Certificate() }
	// The name of a till is its device id, not its address: whom we talk to is
	// checked by VerifyConnection, which is always called.
	t.InsecureSkipVerify = true // #nosec G402 -- see above
	return &http.Client{
		// A till that sends us elsewhere has no business to.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			TLSClientConfig: t, DisableCompression: true, MaxConnsPerHost: 1, IdleConnTimeout: 30 * time.Second,
			DialContext:         (&net.Dialer{Timeout: 3 * time.Second, Control: near}).DialContext, // it is in the same room
			TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 10 * time.Second, MaxResponseHeaderBytes: 16 << 10,
		},
	}
}

// shared is the range of providers' own networks. [RFC 6598]
var shared = netip.MustParsePrefix("100.64.0.0/10")

// near refuses addresses that no till of the same site can have: whoever names
// tills to us shall not make us knock at doors elsewhere, nor where a hello is
// taken for something else - a printer prints it.
func near(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if p := at.Port(); p < 1024 || p >= 9100 && p <= 9109 {
		return fmt.Errorf("%s is no port that a till shares at", at)
	}
	ip := at.Addr().Unmap().WithZone("")
	if ip.IsPrivate() || ip.IsLoopback() || ip.IsLinkLocalUnicast() || shared.Contains(ip) {
		return nil
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	for _, a := range own {
		if n, ok := a.(*net.IPNet); ok && n.Contains(ip.AsSlice()) {
			return nil
		}
	}
	return fmt.Errorf("%s is not an address of this site", ip)
}

// config is what both ends have in common.
func (p *Peering) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, VerifyConnection: p.verify,
		SessionTicketsDisabled: true, // in a resumed session the other end signs nothing
	}
}

// verify accepts members of one's own tenant.
func (p *Peering) verify(s tls.ConnectionState) error {
	if len(s.PeerCertificates) == 0 {
		return fmt.Errorf("no certificate: %w", identity.ErrIdentity)
	}
	roots, err := p.Roots()
	if err != nil {
		return err
	}
	o := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if p.Now != nil {
		o.CurrentTime = p.Now()
	}
	for _, c := range s.PeerCertificates[1:] {
		o.Intermediates.AddCert(c)
	}
	leaf := s.PeerCertificates[0]
	if _, err := leaf.Verify(o); err != nil {
		return fmt.Errorf("certificate of the other till: %w", err)
	}
	id, err := identity.FromCertificate(leaf)
	switch {
	case err != nil:
		return err
	case id.Tenant != p.Tenant():
		return fmt.Errorf("device %s belongs to tenant %s: %w", id.Device, id.Tenant, identity.ErrIdentity)
	case id.Role != identity.RoleMember:
		return fmt.Errorf("certificate of device %s is for %s only: %w", id.Device, id.Role, identity.ErrIdentity)
	}
	return nil
}

// Serve lets other tills of the tenant have the contents that are whole here,
// until ctx ends. It closes ln.
func (f *Fetcher) Serve(ctx context.Context, ln net.Listener) error {
	p := f.o.Peers
	if p == nil {
		return errors.Join(errors.New("serving other tills needs a device certificate"), ln.Close())
	}
	t := p.config()
	t.ClientAuth = tls.RequireAnyClientCert // and VerifyConnection says whose
	t.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return p.Certificate() }
	srv := &http.Server{
		Handler: f.serving(slowest(p.Rate)), MaxHeaderBytes: 8 << 10,
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 30 * time.Second,
		ErrorLog: slog.NewLogLogger(f.o.Log.Handler(), slog.LevelDebug), // anybody in the shop can cause these
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	err := srv.Serve(tls.NewListener(newDoor(ctx, ln), t))
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve other tills: %w", err)
}

// serving answers GET /content/{sha256}.
func (f *Fetcher) serving(lim *rate.Limiter) http.Handler {
	busy := make(chan struct{}, maxServing)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sum, ok := strings.CutPrefix(r.URL.Path, contentPath)
		if !ok || !hexSum(sum) || r.Method != http.MethodGet || r.ContentLength != 0 {
			w.Header().Set("Connection", "close") // a body that may follow is not waited for
			http.NotFound(w, r)
			return
		}
		select {
		case busy <- struct{}{}:
			defer func() { <-busy }()
		default:
			w.Header().Set("Retry-After", "5")
			http.Error(w, "busy", http.StatusServiceUnavailable)
			return
		}
		c, err := os.Open(f.content(sum))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		defer c.Close()
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("ETag", `"`+sum+`"`)
		http.ServeContent(&slowly{w, http.NewResponseController(w), r.Context(), lim}, r, "", time.Time{}, c)
	})
}

// slowly is a ResponseWriter under a rate cap, which a till that does not read
// holds up for a while only.
type slowly struct {
	http.ResponseWriter
	control *http.ResponseController
	ctx     context.Context // of the request
	lim     *rate.Limiter   // nil: as they go
}

// Write implements io.Writer.
func (s *slowly) Write(b []byte) (int, error) {
	var n int
	for len(b) > 0 {
		part := b
		if s.lim != nil {
			part = b[:min(len(b), s.lim.Burst())]
			if err := s.lim.WaitN(s.ctx, len(part)); err != nil {
				return n, err
			}
		}
		if err := s.control.SetWriteDeadline(time.Now().Add(serveStall)); err != nil {
			return n, err
		}
		m, err := s.ResponseWriter.Write(part)
		n += m
		if err != nil {
			return n, err
		}
		b = b[m:]
	}
	return n, nil
}

// door lets in a few connections at a time, one after the other.
type door struct {
	net.Listener
	ctx  context.Context // of Serve
	room chan struct{}
	pace *rate.Limiter
}

func newDoor(ctx context.Context, ln net.Listener) *door {
	return &door{ln, ctx, make(chan struct{}, maxConns), rate.NewLimiter(handshakes, maxConns)}
}

// Accept implements net.Listener.
func (d *door) Accept() (net.Conn, error) {
	select {
	case d.room <- struct{}{}:
	case <-d.ctx.Done():
		return nil, d.ctx.Err()
	}
	if err := d.pace.Wait(d.ctx); err != nil {
		return nil, err
	}
	c, err := d.Listener.Accept()
	if err != nil {
		<-d.room
		return nil, err
	}
	return &visitor{Conn: c, leave: sync.OnceFunc(func() { <-d.room })}, nil
}

// visitor makes room when it leaves.
type visitor struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (v *visitor) Close() error {
	v.leave()
	return v.Conn.Close()
}
