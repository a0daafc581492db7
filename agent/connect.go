package agent

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"golang.org/x/sync/errgroup"

	"github.com/tillward/tillward/agent/internal/attest"
	"github.com/tillward/tillward/agent/internal/command"
	"github.com/tillward/tillward/agent/internal/discover"
	"github.com/tillward/tillward/agent/internal/link"
	"github.com/tillward/tillward/agent/internal/member"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/provisioning/trust"
)

// patience is how long the service may turn a certificate away before the
// device enrols again: a service that starts may know nobody for a while.
const patience = 10 * time.Minute

// membership is what a connection stands on.
type membership struct {
	member.Identity
	roots     *x509.CertPool
	keys      trust.Keyring
	http      *http.Client
	transport *http.Transport
	tuf       *trust.Client

	mu   sync.Mutex
	cert tls.Certificate // shown at the next connect
	leaf *x509.Certificate
}

func (m *membership) certificate() (tls.Certificate, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cert, nil
}

// show makes another certificate the one that is shown from now on.
func (m *membership) show(c tls.Certificate) {
	m.mu.Lock()
	m.cert, m.leaf = c, c.Leaf
	m.mu.Unlock()
	m.transport.CloseIdleConnections()
}

// memberOf makes a membership that shows the certificate.
func (a *Agent) memberOf(dev TPM, id member.Identity, cert tls.Certificate) (*membership, error) {
	roots, err := a.roots()
	if err != nil {
		return nil, err
	}
	if id.ServerName == "" {
		id.ServerName = a.cfg.Service.ServerName // enrolled by an older agent
	}
	m := &membership{Identity: id, roots: roots, keys: make(trust.Keyring), cert: cert, leaf: cert.Leaf}
	for _, k := range id.OrderKeys {
		m.keys[k.ID] = k.Public
	}
	if o := a.cfg.Service.Broker; o != "" {
		m.Brokers = []string{o}
	}
	if o := a.cfg.Service.Artifacts; o != "" {
		m.Artifacts = o + "/tuf"
	}
	m.transport = &http.Transport{
		TLSClientConfig: &tls.Config{
			RootCAs: roots, ServerName: id.ServerName, MinVersion: tls.VersionTLS13, Time: a.clock.Now,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				c, err := m.certificate()
				return &c, err
			},
		},
		MaxConnsPerHost: 2, IdleConnTimeout: 30 * time.Second, TLSHandshakeTimeout: 30 * time.Second, ResponseHeaderTimeout: 30 * time.Second,
	}
	m.http = serviceClient(m.transport)
	factory, err := os.ReadFile(a.cfg.Update.Root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("TUF root of the image: %w", err)
	}
	m.tuf = &trust.Client{Dir: a.file("tuf"), FactoryRoot: factory, URL: m.Artifacts + "/metadata", Fetch: m.fetch, Now: a.clock.Now, Floor: dev}
	return m, nil
}

// connect shows the member's certificate, and renews it while it is connected.
func (a *Agent) connect(ctx context.Context, dev TPM, id member.Identity) error {
	shown := func(id member.Identity) (tls.Certificate, error) {
		key, err := dev.SignerFor(ctx, id.LDevID)
		return tls.Certificate{Certificate: id.Chain, PrivateKey: key, Leaf: id.Leaf()}, err
	}
	cert, err := shown(id)
	if err != nil {
		return err
	}
	m, err := a.memberOf(dev, id, cert)
	if err != nil {
		return err
	}
	at := discover.Service{Enrol: id.URL, ServerName: id.ServerName}
	if at.Enrol == "" { // enrolled by an older agent
		if at, err = a.findService(ctx); err != nil {
			return err
		}
	}
	c, err := a.client(dev, at)
	if err != nil {
		return err
	}
	have := id
	c.Save = func(ctx context.Context, r enrol.Result) error { return a.keepIdentity(ctx, have.With(r).Bytes()) }
	k := (&member.Keeper{
		Renewer: c, Rotate: a.cfg.TPM.AKRotate.Duration, Record: a.record, Wall: a.o.Now, Log: a.log,
		Changed: func(id member.Identity) {
			have = id
			cert, err := shown(id)
			if err != nil {
				a.log.Error("the new certificate cannot be shown yet", slog.Any("err", err))
				return
			}
			m.show(cert)
		},
	}).Keep(id)
	return a.stay(ctx, dev, m, k.Renew, k.Run)
}

// stay runs the link and what hangs on it, and beside it what keeps the
// identity in order.
func (a *Agent) stay(ctx context.Context, dev TPM, m *membership, renew func(), keep func(context.Context) error) error {
	m.tuf.Floor = dev
	a.mu.Lock()
	a.member = m
	a.mu.Unlock()
	ev := &attest.Attester{
		Device: m.Device, Version: a.o.Version, Quoter: dev, Bind: enrol.ConnBinding, Next: a.heads.Next, Memory: a.spool, Log: a.log,
		EventLog: a.eventLog, Pack: boot.Pack,
	}
	runner := command.New(command.Options{
		Tenant: m.Tenant, Device: m.Device, Verify: m.keys.VerifyOrder, Journal: a.books(), Record: a.note, Next: a.heads.Next,
		Verbs: a.verbs(m, dev), Text: a.o.Guard.text, Output: a.o.Guard.output, Full: a.spool.Full, Now: a.o.Now, Log: a.log,
	})
	w := newWatch(a)
	l, err := link.New(link.Options{
		Brokers: m.Brokers, ServerName: m.ServerName, Roots: m.roots,
		Certificate: m.certificate, Tenant: m.Tenant, Device: m.Device, Spool: a.spool,
		ExporterLabel: enrol.ConnExporterLabel, Evidence: ev.Evidence, Judged: ev.Judged, Renew: renew,
		Down: map[wire.Channel]func([]byte) bool{
			wire.DownCommand: runner.Submit, wire.DownConfig: a.configured(ctx, m, runner),
			wire.DownOffer: func(b []byte) bool { return a.offered(ctx, m, b) },
		},
		BacklogRate: cmp.Or(a.cfg.Link.BacklogKiB, -1), BacklogMessages: a.cfg.Link.BacklogMessages,
		Changed: func(s link.Status) { a.learnTime(ctx, s.Err); w.changed(ctx, s) },
		Time:    a.clock.Now,
		Inside:  a.o.Inside,
		Log:     a.log,
	})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.Run(ctx) })
	g.Go(func() error { return runner.Run(ctx) })
	g.Go(func() error { return keep(ctx) })
	g.Go(func() error { return a.follow(ctx, m, dev) })
	g.Go(func() error { return a.watchMedia(ctx, m) })
	g.Go(func() error {
		return freshness{releases: m.tuf, now: a.clock.Now, record: a.record, log: a.log}.watch(ctx)
	})
	g.Go(func() error { return w.run(ctx) })
	return g.Wait()
}

// watch looks at how the link stands, and decides when the identity is the
// reason.
type watch struct {
	a       *Agent
	last    link.Status
	enrol   chan struct{} // the service advises to enrol again
	refused chan bool     // whether the service turns the certificate away
}

func newWatch(a *Agent) *watch {
	return &watch{a: a, enrol: make(chan struct{}, 1), refused: make(chan bool, 8)}
}

// run returns errReidentify when only another enrolment can help.
func (w *watch) run(ctx context.Context) error {
	var since <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.enrol:
			w.a.rejoin = true
			return errReidentify
		case r := <-w.refused:
			switch {
			case !r:
				since = nil
			case w.a.leaving.Load():
				w.a.letGo()
			case since == nil:
				since = time.After(patience)
			}
		case <-since:
			w.a.rejoin, w.a.unusable = true, true
			return errReidentify
		}
	}
}

// turnedAway reports whether the service itself refuses the certificate, as
// opposed to a network that fails.
func turnedAway(err error) bool {
	var remote *net.OpError
	return errors.As(err, &remote) && remote.Op == "remote error" || // a TLS alert
		errors.Is(err, packets.ErrorRefusedNotAuthorised) || errors.Is(err, packets.ErrorRefusedBadUsernameOrPassword) ||
		errors.Is(err, packets.ErrorRefusedIDRejected)
}

// changed records each connect, verdict and disconnect, and a failure when it
// is another than before.
func (w *watch) changed(ctx context.Context, is link.Status) {
	a, was := w.a, w.last
	w.last = is
	a.mu.Lock()
	a.online, a.held = is.Open(), is.Online && is.Verdict == "quarantined"
	a.mu.Unlock()
	if ctx.Err() != nil { // we are leaving ourselves
		return
	}
	switch {
	case is.Open() && !was.Open():
		a.record(ctx, "link.up", "info", is.Broker, map[string]string{"verdict": is.Verdict})
		poke(a.looks) // what runs counts, and is told on every connect
		poke(a.opened)
	case was.Online && !is.Online:
		a.log.Warn("the connection to the fleet service is down", slog.String("broker", is.Broker), slog.Any("err", is.Err))
		a.record(ctx, "link.down", "info", is.Broker, map[string]string{"reason": reason(is.Err)})
	case is.Online && is.Verdict != was.Verdict && !is.Open() && is.Verdict != "":
		d := map[string]string{"verdict": is.Verdict}
		if len(is.Findings) > 0 {
			d["reason"] = is.Findings[0].Check
		}
		a.log.Warn("the fleet service restricts this box", slog.String("verdict", is.Verdict), slog.Any("reasons", is.Reasons))
		a.record(ctx, "link.restricted", "alarm", is.Broker, d)
	case !is.Online && is.Err != nil && fmt.Sprint(is.Err) != fmt.Sprint(was.Err):
		a.log.Warn("no connection to the fleet service", slog.Any("err", is.Err))
	}
	a.tellVerdict(ctx, is)
	if is.Online && a.wantsEnrol(is.Actions) {
		poke(w.enrol)
	}
	if is.Online || is.Err != nil {
		select {
		case w.refused <- !is.Online && turnedAway(is.Err):
		default: // others are on their way
		}
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// appraisal is what the service said.
type appraisal struct {
	verdict  string
	findings []wire.Finding
}

// tellVerdict puts the service's appraisal into the trail: which check spoke,
// about which event, measured against which release.
func (a *Agent) tellVerdict(ctx context.Context, is link.Status) {
	if !is.Online || is.Verdict == "" || is.Verdict == a.told.verdict && slices.Equal(is.Findings, a.told.findings) {
		return
	}
	a.told = appraisal{is.Verdict, is.Findings}
	severity := map[string]string{"degraded": "warn", "quarantined": "alarm"}[is.Verdict]
	if severity == "" {
		severity = "info"
	}
	detail := map[string]string{}
	put := func(k, v string) {
		if v != "" {
			detail[k] = v
		}
	}
	put("release", is.Release)
	put("may", strings.Join(is.Actions, " "))
	if !is.Until.IsZero() {
		put("until", is.Until.UTC().Format(time.RFC3339))
	}
	for i, f := range is.Findings {
		if i == 0 {
			put("check", f.Check)
			put("pcr", f.PCR)
			put("event", f.Event)
			put("release", f.Release)
			continue
		}
		put("also", strings.TrimSpace(detail["also"]+" "+f.Check))
	}
	if len(is.Findings) > 0 {
		a.log.Warn("the service appraised this box", slog.String("verdict", is.Verdict), slog.Any("findings", is.Findings))
	}
	a.record(ctx, "attest."+is.Verdict, severity, is.Broker, detail)
}

// serviceClient asks the service and nobody else: one that sends us on could make
// every till of a fleet knock at whatever stands in the network of its shop.
func serviceClient(t http.RoundTripper) *http.Client {
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// fetchTime is how long a metadata file may take: a service that stops in the
// middle of one must not hold up what comes after.
const fetchTime = 2 * time.Minute

// fetch gets a metadata file.
func (m *membership) fetch(ctx context.Context, url string, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := m.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, fmt.Errorf("%s: %w", url, fs.ErrNotExist)
	default:
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	var b bytes.Buffer
	_, err = io.Copy(&b, io.LimitReader(resp.Body, limit+1))
	return b.Bytes(), err
}

func (a *Agent) current() *membership {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.member
}

var errNoMember = errors.New("the device is not a member of a fleet yet")
