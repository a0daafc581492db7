package agent

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tillward/tillward/agent/internal/attest"
	"github.com/tillward/tillward/agent/internal/command"
	"github.com/tillward/tillward/agent/internal/link"
	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/provisioning/trust"
)

// member is what makes this box a device of a fleet.
type member struct {
	enrol.Result
	cert  tls.Certificate
	leaf  *x509.Certificate
	roots *x509.CertPool
	keys  trust.Keyring
	http  *http.Client
	tuf   *trust.Client
}

// belong keeps the device a member and connected: TPM, identity, link. What
// fails is tried again with a growing pause.
func (a *Agent) belong(ctx context.Context) error {
	pause := time.Second
	told := ""
	for ctx.Err() == nil {
		began := time.Now()
		err := a.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if f, ok := errors.AsType[*foreign](err); ok {
			return f
		}
		if errors.Is(err, update.ErrRestart) {
			return err
		}
		if time.Since(began) > 5*time.Minute {
			pause = time.Second
		}
		wait := pause/2 + rand.N(pause) //nolint:gosec // jitter, not a secret
		if w, ok := errors.AsType[enrol.Wait](err); ok {
			wait = w.After
		} else {
			pause = min(2*pause, 5*time.Minute)
		}
		a.log.Warn("not a member of a fleet; trying again", slog.Duration("in", wait), slog.Any("err", err))
		if text := fmt.Sprint(err); text != told && !errors.Is(err, errReidentify) {
			told = text
			a.record(ctx, "enrol.failed", "warn", "", map[string]string{"reason": cut(text, wire.MaxText)})
		}
		if errors.Is(err, errReidentify) {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

// errReidentify asks for another enrolment at once.
var errReidentify = errors.New("the identity has to be renewed")

// once opens the TPM, becomes or finds out to be a member, and stays connected
// until something has to be done anew.
func (a *Agent) once(ctx context.Context) error {
	dev, done, err := a.openTPM(ctx)
	if err != nil {
		return err
	}
	defer done()
	signer, err := dev.Signer(ctx)
	if err != nil {
		return err
	}
	m, err := a.identity(ctx, dev, signer)
	if err != nil {
		return err
	}
	if m == nil {
		if m, err = a.join(ctx, dev, signer); err != nil {
			return err
		}
	}
	a.mu.Lock()
	a.member = m
	a.mu.Unlock()
	return a.connect(ctx, dev, m)
}

// identity reads the stored identity and checks that it is this TPM's and has
// time left; nil when the device has to enrol.
func (a *Agent) identity(ctx context.Context, dev TPM, signer crypto.Signer) (*member, error) {
	b, err := a.spool.Load(ctx, keyIdentity)
	if err != nil || len(b) == 0 {
		return nil, err
	}
	var res enrol.Result
	if err := json.Unmarshal(b, &res); err != nil {
		return nil, nil //nolint:nilerr // unreadable: enrol again
	}
	m, err := a.memberOf(res, signer)
	switch {
	case errors.Is(err, errOtherKey): // the disk of another box, or a TPM that was cleared
		return nil, a.whose(ctx, dev, res.Device)
	case errors.Is(err, errUnreadable):
		return nil, nil
	case err != nil:
		return nil, err
	}
	if left := time.Until(m.leaf.NotAfter); left < m.leaf.NotAfter.Sub(m.leaf.NotBefore)/3 {
		return nil, nil
	}
	return m, nil
}

// join enrols and keeps the result.
func (a *Agent) join(ctx context.Context, dev TPM, signer crypto.Signer) (*member, error) {
	roots, err := a.roots()
	if err != nil {
		return nil, err
	}
	at, err := a.findService(ctx)
	if err != nil {
		return nil, err
	}
	c := &enrol.Client{
		URL: at.Enrol, Roots: roots, ServerName: at.ServerName, Serial: a.serial(), Model: a.cfg.Model, Claim: at.Claim, TPM: dev,
	}
	res, err := c.Enrol(ctx)
	if err != nil {
		return nil, err
	}
	m, err := a.memberOf(res, signer)
	if err != nil {
		return nil, fmt.Errorf("the service's answer: %w", err)
	}
	b, err := json.Marshal(res)
	if err != nil {
		return nil, fmt.Errorf("keep identity: %w", err)
	}
	if err := a.keepIdentity(ctx, b); err != nil {
		return nil, fmt.Errorf("keep identity: %w", err)
	}
	a.record(ctx, "enrol.done", "info", res.Device, map[string]string{"tenant": res.Tenant, "tier": res.Tier})
	return m, nil
}

func (a *Agent) roots() (*x509.CertPool, error) {
	b, err := os.ReadFile(a.cfg.Service.Roots)
	if err != nil {
		return nil, fmt.Errorf("pinned roots of the service: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("pinned roots of the service: %s holds no certificate", a.cfg.Service.Roots)
	}
	return pool, nil
}

var (
	errOtherKey   = errors.New("the certificate is not for the key in this TPM")
	errUnreadable = errors.New("incomplete identity")
)

// memberOf makes a usable member of an enrolment's result; errOtherKey
// means that it is for a key in another TPM.
func (a *Agent) memberOf(res enrol.Result, signer crypto.Signer) (*member, error) {
	if len(res.Chain) == 0 || len(res.Brokers) == 0 || len(res.OrderKeys) == 0 {
		return nil, errUnreadable
	}
	leaf, err := x509.ParseCertificate(res.Chain[0])
	if err != nil {
		return nil, fmt.Errorf("%w: certificate: %w", errUnreadable, err)
	}
	if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(signer.Public()) {
		return nil, errOtherKey
	}
	roots, err := a.roots()
	if err != nil {
		return nil, err
	}
	m := &member{
		Result: res, leaf: leaf, roots: roots, keys: make(trust.Keyring),
		cert: tls.Certificate{Certificate: res.Chain, PrivateKey: signer, Leaf: leaf},
	}
	for _, k := range res.OrderKeys {
		m.keys[k.ID] = k.Public
	}
	if o := a.cfg.Service.Broker; o != "" {
		m.Brokers = []string{o}
	}
	if o := a.cfg.Service.Artifacts; o != "" {
		m.Artifacts = o + "/tuf"
	}
	m.http = &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{
			RootCAs: roots, ServerName: a.cfg.Service.ServerName, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{m.cert},
		},
		MaxConnsPerHost: 2, IdleConnTimeout: 30 * time.Second, ResponseHeaderTimeout: 30 * time.Second,
	}}
	factory, err := os.ReadFile(a.cfg.Update.Root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("TUF root of the image: %w", err)
	}
	m.tuf = &trust.Client{Dir: filepath.Join(a.cfg.StateDir, "tuf"), FactoryRoot: factory, URL: m.Artifacts + "/metadata", Fetch: m.fetch}
	return m, nil
}

// connect runs the link and what hangs on it.
func (a *Agent) connect(ctx context.Context, dev TPM, m *member) error {
	ev := &attest.Attester{
		Device: m.Device, Version: a.o.Version, Quoter: dev, Bind: enrol.ConnBinding, Next: a.heads.Next, Memory: a.spool, Log: a.log,
	}
	runner := command.New(command.Options{
		Tenant: m.Tenant, Device: m.Device, Verify: m.keys.VerifyOrder, Journal: a.spool, Record: a.journal.Record, Next: a.heads.Next,
		Verbs: a.verbs(m), Full: a.spool.Full, Log: a.log,
	})
	var last link.Status
	l, err := link.New(link.Options{
		Brokers: m.Brokers, ServerName: a.cfg.Service.ServerName, Roots: m.roots,
		Certificate: func() (tls.Certificate, error) { return m.cert, nil }, Tenant: m.Tenant, Device: m.Device, Spool: a.spool,
		ExporterLabel: enrol.ConnExporterLabel, Evidence: ev.Evidence, Judged: ev.Judged,
		Down: map[wire.Channel]func([]byte) bool{
			wire.DownCommand: runner.Submit, wire.DownConfig: runner.Submit,
			wire.DownOffer: func(b []byte) bool { return a.offered(ctx, m, b) },
		},
		Changed: func(s link.Status) { a.linkChanged(ctx, last, s); last = s },
		Log:     a.log,
	})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.Run(ctx) })
	g.Go(func() error { return runner.Run(ctx) })
	g.Go(func() error { return a.renew(ctx, m) })
	g.Go(func() error { return a.follow(ctx, m, dev) })
	return g.Wait()
}

// renew ends the connection when two thirds of the certificate's life are
// over; what follows is an enrolment.
func (a *Agent) renew(ctx context.Context, m *member) error {
	life := m.leaf.NotAfter.Sub(m.leaf.NotBefore)
	timer := time.NewTimer(max(time.Until(m.leaf.NotAfter)-life/3, time.Second))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return nil
	case <-timer.C:
		return errReidentify
	}
}

// linkChanged records each connect and disconnect, and a failure when it is
// another than before.
func (a *Agent) linkChanged(ctx context.Context, was, is link.Status) {
	a.mu.Lock()
	a.online = is.Open()
	a.mu.Unlock()
	switch {
	case ctx.Err() != nil: // we are leaving ourselves
	case is.Open() && !was.Open():
		a.record(ctx, "link.up", "info", is.Broker, map[string]string{"verdict": is.Verdict})
		a.touch()
		select {
		case a.opened <- struct{}{}:
		default:
		}
	case was.Online && !is.Online:
		a.record(ctx, "link.down", "info", is.Broker, map[string]string{"reason": cut(fmt.Sprint(is.Err), wire.MaxText)})
	case is.Online && is.Verdict != was.Verdict && !is.Open() && is.Verdict != "":
		d := map[string]string{"verdict": is.Verdict}
		if len(is.Reasons) > 0 {
			d["reason"] = cut(is.Reasons[0], wire.MaxText)
		}
		a.record(ctx, "link.restricted", "alarm", is.Broker, d)
	case !is.Online && is.Err != nil && fmt.Sprint(is.Err) != fmt.Sprint(was.Err):
		a.log.Warn("no connection to the fleet service", slog.Any("err", is.Err))
	}
}

// offered takes an offer: the order is verified here, the release by TUF.
func (a *Agent) offered(ctx context.Context, m *member, payload []byte) bool {
	o, err := wire.Decode[wire.Order](payload)
	if err == nil && o.Kind != wire.OrderOffer {
		err = fmt.Errorf("order of kind %q on the offer topic", o.Kind)
	}
	if err == nil {
		err = m.keys.VerifyOrder(o.Kind, o.Payload, o.KeyID, o.Signature)
	}
	var offer wire.OfferOrder
	if err == nil {
		offer, err = wire.Decode[wire.OfferOrder](o.Payload)
	}
	if err == nil && (offer.Device != m.Device || offer.Tenant != m.Tenant || offer.Class != "agent") {
		err = errors.New("offer is for another device or of an unknown class")
	}
	if err != nil {
		a.log.Error("offer refused", slog.Any("err", err))
		a.record(ctx, "update.offer-refused", "alarm", "", map[string]string{"reason": cut(err.Error(), wire.MaxText)})
		return true
	}
	return a.machine.Submit(update.Offer{
		Execution: offer.Execution, Version: offer.Version, Target: offer.Target, NotAfter: time.UnixMilli(offer.NotAfter),
	})
}

// fetch gets a metadata file.
func (m *member) fetch(ctx context.Context, url string, limit int64) ([]byte, error) {
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

func (a *Agent) current() *member {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.member
}

var errNoMember = errors.New("the device is not a member of a fleet yet")

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

// releases asks TUF, once the device is a member.
type releases struct{ a *Agent }

// Target implements update.Releases.
func (r releases) Target(ctx context.Context, path string) (trust.Target, error) {
	m := r.a.current()
	if m == nil {
		return trust.Target{}, errNoMember
	}
	return m.tuf.Target(ctx, path)
}

func (r releases) refresh(ctx context.Context) error {
	m := r.a.current()
	if m == nil {
		return errNoMember
	}
	return m.tuf.Refresh(ctx)
}
