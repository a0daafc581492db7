package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/tillward/tillward/agent/internal/fetch"
	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/provisioning/trust"
)

// shareRetry is how long after a failure the agent tries again to share.
const shareRetry = time.Minute

// newFetcher wires the fetch room.
func (a *Agent) newFetcher() (*fetch.Fetcher, error) {
	c := a.cfg.Update
	left, _ := filepath.Glob(filepath.Join(a.file("agent"), "staging-*")) // of agents before; the pattern is well formed
	for _, f := range left {
		_ = os.Remove(f)
	}
	o := fetch.Options{
		Dir: a.file("fetch"), URL: a.targetsURL, Client: a.httpClient,
		Rate: int64(c.RateKiB) << 10, Daily: int64(c.BudgetMiB) << 20, Log: a.log,
	}
	if c.Peers || c.Share != "" {
		o.Peers = &fetch.Peering{
			Certificate: a.shown, Roots: a.tenantRoots, Now: a.clock.Now, Rate: int64(c.ShareRateKiB) << 10,
			Tenant: func() string {
				if m := a.current(); m != nil {
					return m.Tenant
				}
				return ""
			},
		}
	}
	if c.Share != "" {
		o.Keep = int64(c.KeepMiB) << 20
	}
	return fetch.New(o)
}

// shown is the certificate that other tills know this one by.
func (a *Agent) shown() (*tls.Certificate, error) {
	m := a.current()
	if m == nil {
		return nil, errNoMember
	}
	c, err := m.certificate()
	return &c, err
}

// tenantRoots are what certificates of the owner's devices begin with: the
// authorities that the own one came with, and the pinned roots.
func (a *Agent) tenantRoots() (*x509.CertPool, error) {
	c, err := a.shown()
	if err != nil {
		return nil, err
	}
	roots, err := a.roots()
	if err != nil {
		return nil, err
	}
	for _, der := range c.Certificate[1:] {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("own certificate: %w", err)
		}
		roots.AddCert(cert)
	}
	return roots, nil
}

func (a *Agent) targetsURL() string {
	if m := a.current(); m != nil {
		return m.Artifacts + "/targets"
	}
	return ""
}

func (a *Agent) httpClient() (*http.Client, error) {
	if m := a.current(); m != nil {
		return m.http, nil
	}
	return nil, errNoMember
}

// content fits the fetch room to the machine; it implements update.Content.
type content struct {
	a *Agent
	f *fetch.Fetcher
}

// Get implements update.Content.
func (c content) Get(ctx context.Context, o update.Order) (string, error) {
	file, err := c.f.Get(ctx, o.Target, c.request(o))
	return file, c.meaning(err)
}

// Open implements update.Content.
func (c content) Open(ctx context.Context, o update.Order) (io.ReaderAt, error) {
	s, err := c.f.Open(ctx, o.Target, c.request(o))
	if err != nil {
		return nil, c.meaning(err)
	}
	context.AfterFunc(ctx, func() { _ = s.Close() })
	return counted{s, o}, nil
}

// Drop implements update.Content.
func (c content) Drop(trust.Target) {
	if err := c.f.Done(); err != nil {
		c.a.log.Warn("what was fetched is not put away", slog.Any("err", err))
	}
}

// Held implements update.Content.
func (c content) Held(t trust.Target) int64 { return c.f.Held(t) }

func (c content) request(o update.Order) fetch.Request {
	r := fetch.Request{Rate: int64(o.RateKiB) << 10, Seed: o.Seed, FullAllowed: c.a.cfg.Update.FullDownload}
	if c.a.cfg.Update.Peers {
		r.Peers = o.Peers
	}
	if o.Medium != "" {
		r.Medium = filepath.Join(o.Medium, "targets")
	}
	r.Progress = func(p fetch.Progress) { o.Told(p.Done, p.Total, bytesOf(p.Bytes), p.Full) }
	return r
}

func bytesOf(b fetch.Bytes) update.Bytes {
	return update.Bytes{Wire: b.Wire, Peer: b.Peer, Medium: b.Medium, Reused: b.Reused}
}

// meaning says what an error of a fetch is to the machine: some pass by
// themselves, others do not.
func (c content) meaning(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fetch.ErrMismatch):
		return update.Refuse("signature", "%w", err)
	case errors.Is(err, fetch.ErrBudget):
		_, again := c.f.Left()
		return update.Hold("budget", "%d MiB of this day are spent; more from %s on", c.a.cfg.Update.BudgetMiB, again.UTC().Format(time.RFC3339))
	case errors.Is(err, fetch.ErrSpace):
		return update.Hold("space", "%v", err)
	case errors.Is(err, fetch.ErrFull):
		return update.Refuse("policy", "%w: set update.full_download, or bring it by a medium", err)
	}
	return err
}

// counted is a stream whose bytes are told.
type counted struct {
	*fetch.Stream
	o update.Order
}

// ReadAt implements io.ReaderAt.
func (c counted) ReadAt(b []byte, off int64) (int, error) {
	n, err := c.Stream.ReadAt(b, off)
	c.o.Told(off+int64(n), c.Size(), bytesOf(c.Bytes()), "")
	return n, err
}

// share lets the tills of the site have what this one has fetched.
func (a *Agent) share(ctx context.Context) error {
	if a.cfg.Update.Share == "" {
		return nil
	}
	for {
		ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.cfg.Update.Share)
		if err == nil {
			a.sharing(ln.Addr())
			err = a.fetcher.Serve(ctx, ln)
			a.sharing(nil)
		}
		if ctx.Err() != nil {
			return nil
		}
		a.log.Warn("nothing is shared with the tills of the site", slog.Duration("again_in", shareRetry), slog.Any("err", err))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(shareRetry):
		}
	}
}

func (a *Agent) sharing(at net.Addr) {
	a.mu.Lock()
	a.shared = at
	a.mu.Unlock()
	a.touch()
}

// sharedAt is where the tills of the site reach this one; empty: nowhere. A
// listener on every address is reached at that which leads to the service.
func (a *Agent) sharedAt() string {
	a.mu.Lock()
	at, m := a.shared, a.member
	a.mu.Unlock()
	tcp, ok := at.(*net.TCPAddr)
	if !ok || m == nil {
		return ""
	}
	if !tcp.IP.IsUnspecified() {
		return tcp.String()
	}
	c, err := net.Dial("udp", m.Brokers[0]) //nolint:noctx // sends nothing
	if err != nil {
		return ""
	}
	defer c.Close()
	own, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok {
		return ""
	}
	return (&net.TCPAddr{IP: own.IP, Port: tcp.Port}).String()
}
