// Package link is the device's one connection to the fleet service: MQTT over
// TLS 1.3 with the device certificate, whose key may stay in a TPM.
//
// It owns when to connect, what is sent over which topics and in which order.
// It promises that a message leaves the spool only after the service has
// acknowledged it, that messages of a channel go out in the order of the spool,
// that nothing but evidence, state, audit and results leaves a device that is
// not attested, and that a lost connection is tried again for ever, with full
// jitter. Of a device that was away for long, telemetry that is recorded now
// goes ahead of what was saved up, on a topic that says so (wire.Live); the
// backlog goes beside it at a pace. It makes no message of its own beside asking for evidence, reads
// none but challenges, and stores nothing.
package link

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/tillward/tillward/cloud/wire"
)

// Spool holds the messages that wait.
type Spool interface {
	Next(ctx context.Context, after uint64, limit int, channels []string, yield func(id uint64, channel string, payload []byte)) error
	Done(ctx context.Context, ids ...uint64) error
	Newest(ctx context.Context) (id uint64, err error) // what is put later has a higher id
	Depth() uint64                                     // messages that wait
	Wake() <-chan struct{}                             // signalled after a put; the link is its only reader
}

// Options say whom to reach, as whom, and what goes through.
type Options struct {
	Brokers     []string                        // host:port, tried in order
	ServerName  string                          // name in the service's certificate; the host of the address when empty
	Roots       *x509.CertPool                  // the only authorities believed; the system's are never asked
	Certificate func() (tls.Certificate, error) // of the device; asked at each connect, so a renewed one is taken up
	Tenant      string
	Device      string

	Spool         Spool
	ExporterLabel string // provisioning/enrol.ConnExporterLabel
	// Evidence returns an encoded wire.EvidenceReport (agent/internal/attest);
	// full asks for register values and event log.
	Evidence func(ctx context.Context, exporter []byte, seq uint64, nonce []byte, full bool) ([]byte, error)
	// Judged is told each verdict before Changed is; nil: nobody listens.
	Judged func(ctx context.Context, verdict string)
	// Renew is told that the service asks for another certificate. It must not
	// block; nil: nobody listens. Certificate is asked at the next connect.
	Renew func()
	// Down takes messages from the service by channel. It must not block; what
	// it answers with false is not acknowledged, and the service sends it again
	// on the next connection.
	Down map[wire.Channel]func(payload []byte) bool
	// Changed is called at each change of Status, in order; it may block a little.
	Changed func(Status)

	KeepAlive  time.Duration // 30 s when zero
	Timeout    time.Duration // of a dial, an acknowledgement, a verdict; 30 s when zero
	Patience   time.Duration // with a service that has many devices' evidence to appraise; 10 times Timeout when zero
	BackoffMin time.Duration // 1 s when zero
	BackoffMax time.Duration // 5 min when zero
	Window     int           // messages in flight; 32 when zero
	// What waited when the connection was made goes beside what is recorded now
	// when it is more than a window: so many KiB a second, and so many messages in
	// flight at most.
	BacklogRate     int // 64 when zero; below zero: as fast as the service takes it
	BacklogMessages int // 8 when zero; at most a quarter of the window
	Log             *slog.Logger
	Time            func() time.Time // what the service's certificate is held against; nil: the system's
	// Inside wraps the connection inside TLS; nil: it stays as it is.
	Inside func(net.Conn) net.Conn
	// Dial opens the network connection below TLS; a plain dialer when nil.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Status is how the link stands.
type Status struct {
	Online  bool
	Verdict string // what the service said in this connection: "" (nothing yet), attested, degraded, quarantined, pending
	Reasons []string
	// The verdict explained: what was found, whose reference values the boot
	// has, what the device may do to be trusted again (wire.Action...), and when
	// a waiver ends that the verdict rests on.
	Findings []wire.Finding
	Release  string
	Actions  []string
	Until    time.Time
	Broker   string // address of the present or the last connection
	Err      error  // why the last connection ended or could not be made
}

// Open reports whether all channels are open to the device.
func (s Status) Open() bool { return s.Online && (s.Verdict == "attested" || s.Verdict == "degraded") }

// Link connects again and again. Make it with New and start it with Run.
type Link struct {
	o Options

	mu     sync.Mutex
	status Status
}

// New checks the options. It does not connect.
func New(o Options) (*Link, error) {
	switch {
	case len(o.Brokers) == 0:
		return nil, errors.New("link without a broker address")
	case o.Roots == nil:
		return nil, errors.New("link without the roots of the service")
	case o.Certificate == nil, o.Spool == nil, o.Evidence == nil, o.ExporterLabel == "":
		return nil, errors.New("link without certificate, spool or evidence")
	}
	for _, b := range o.Brokers {
		if _, _, err := net.SplitHostPort(b); err != nil {
			return nil, fmt.Errorf("broker address %q: %w", b, err)
		}
	}
	for _, c := range []wire.Channel{wire.Evidence, wire.DownChallenge} {
		if _, err := wire.ParseTopic(wire.Topic{Tenant: o.Tenant, Device: o.Device, Quarantine: true, Channel: c}.String()); err != nil {
			return nil, fmt.Errorf("tenant %q, device %q: %w", o.Tenant, o.Device, err)
		}
	}
	for c := range o.Down {
		if c.Up() || c == wire.DownChallenge {
			return nil, fmt.Errorf("%s is not for a handler", c)
		}
	}
	o.KeepAlive = or(o.KeepAlive, 30*time.Second)
	o.Timeout = or(o.Timeout, 30*time.Second)
	o.Patience = or(o.Patience, 10*o.Timeout)
	o.BackoffMin = or(o.BackoffMin, time.Second)
	o.BackoffMax = max(or(o.BackoffMax, 5*time.Minute), o.BackoffMin)
	o.Window = or(o.Window, 32)
	o.BacklogRate, o.BacklogMessages = or(o.BacklogRate, 64), or(o.BacklogMessages, 8)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{Timeout: o.Timeout, KeepAlive: o.KeepAlive}).DialContext
	}
	return &Link{o: o}, nil
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// Status returns how the link stands now.
func (l *Link) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.status
	s.Reasons, s.Findings, s.Actions = slices.Clone(s.Reasons), slices.Clone(s.Findings), slices.Clone(s.Actions)
	return s
}

// Online reports whether the device is connected, attested or not.
func (l *Link) Online() bool { return l.Status().Online }

func (l *Link) change(to Status) {
	l.mu.Lock()
	l.status = to
	l.mu.Unlock()
	if l.o.Changed != nil {
		l.o.Changed(to)
	}
}

// Run connects, sends and receives until ctx ends, and returns ctx's error. It
// no longer uses the spool when it returns.
func (l *Link) Run(ctx context.Context) error {
	failures := 0
	for {
		useful, err := l.once(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if useful {
			failures = 0
		}
		wait := backoff(l.o.BackoffMin, l.o.BackoffMax, failures)
		failures++
		l.o.Log.Warn("no connection to the fleet service", "error", advise(err), "attempt", failures, "again_in", wait.Round(time.Millisecond))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// backoff draws from the whole range that doubles with each failure, so that a
// fleet which lost its service at one moment does not come back at one moment.
func backoff(least, most time.Duration, failures int) time.Duration {
	ceiling := most
	if failures < 20 {
		ceiling = min(most, least<<failures)
	}
	return rand.N(ceiling) + 1 //nolint:gosec // spreads load, guards nothing
}

// once makes one connection and stays with it until it ends. It reports
// whether the connection was of use, which starts the back-off anew: a service
// that takes connections and drops them again is not called in a hurry.
func (l *Link) once(ctx context.Context) (useful bool, err error) {
	began := time.Now()
	s, err := l.connect(ctx)
	if err != nil {
		last := l.Status()
		if last.Online || errText(last.Err) != errText(err) {
			l.change(Status{Broker: last.Broker, Err: err})
		}
		return false, err
	}
	l.change(Status{Online: true, Broker: s.broker})
	err = s.run(ctx)
	s.close()
	l.change(Status{Broker: s.broker, Err: err})
	return s.acked > 0 || time.Since(began) > time.Minute, err
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// advise adds what a person should do, where the error shows it.
func advise(err error) error {
	var (
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		invalid  x509.CertificateInvalidError
		remote   *net.OpError
	)
	switch {
	case errors.As(err, &unknown):
		return fmt.Errorf("%w: the service shows a certificate of an authority this device does not know; check the address, or give the device the service's roots", err)
	case errors.As(err, &hostname):
		return fmt.Errorf("%w: the certificate is for another name; check the broker address and the server name", err)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("%w: check the clock of this device first, then the certificate of the service", err)
	case errors.As(err, &remote) && remote.Op == "remote error", // a TLS alert
		errors.Is(err, packets.ErrorRefusedNotAuthorised), errors.Is(err, packets.ErrorRefusedBadUsernameOrPassword), errors.Is(err, packets.ErrorRefusedIDRejected):
		return fmt.Errorf("%w: the service refuses this device; look at it in the console, or enrol it again", err)
	}
	return err
}

// issuer is the refusal to show the device certificate to a service that asks
// for one of another authority: it would only be answered with a bare alert.
type issuer struct{ ours, accepted string }

func (e issuer) Error() string {
	return "the service asks for a device certificate of " + e.accepted + ", this device has one of " + e.ours +
		": it is enrolled with another service; check the broker address, or enrol the device again"
}

// present picks the device certificate for what the service asks.
func (l *Link) present(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
	cert, err := l.o.Certificate()
	if err != nil {
		return nil, fmt.Errorf("device certificate: %w", err)
	}
	if cert.Leaf == nil && len(cert.Certificate) > 0 {
		if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return nil, fmt.Errorf("device certificate: %w", err)
		}
	}
	if cert.Leaf == nil {
		return nil, errors.New("device certificate is empty: enrol the device")
	}
	if now := time.Now(); now.After(cert.Leaf.NotAfter) {
		return nil, fmt.Errorf("device certificate expired %s: renew it, or enrol the device again", cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	if err := l.accepted(asked, cert); err != nil {
		return nil, err
	}
	return &cert, nil
}

// accepted checks that the service believes in the issuer of the certificate.
func (l *Link) accepted(asked *tls.CertificateRequestInfo, cert tls.Certificate) error {
	if len(asked.AcceptableCAs) == 0 {
		return nil // any, then
	}
	for _, der := range cert.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("device certificate: %w", err)
		}
		if slices.ContainsFunc(asked.AcceptableCAs, func(name []byte) bool { return bytes.Equal(name, c.RawIssuer) }) {
			return nil
		}
	}
	var names []string
	for _, raw := range asked.AcceptableCAs {
		names = append(names, subject(raw))
	}
	return issuer{ours: cert.Leaf.Issuer.String(), accepted: strings.Join(names, " or ")}
}
