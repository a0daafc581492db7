package cloud

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tillward/tillward/cloud/internal/account"
	"github.com/tillward/tillward/cloud/internal/archive/shelf"
	"github.com/tillward/tillward/cloud/internal/broker"
	"github.com/tillward/tillward/cloud/internal/catalog"
	"github.com/tillward/tillward/cloud/internal/dispatch"
	"github.com/tillward/tillward/cloud/internal/export"
	"github.com/tillward/tillward/cloud/internal/figures"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/ingest"
	"github.com/tillward/tillward/cloud/internal/live"
	"github.com/tillward/tillward/cloud/internal/owner"
	"github.com/tillward/tillward/cloud/internal/peripheral"
	"github.com/tillward/tillward/cloud/internal/rollout"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/cloud/internal/verifier"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/ca"
	"github.com/tillward/tillward/provisioning/ca/pkcs11"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/provisioning/identity"
	"github.com/tillward/tillward/provisioning/trust"
)

// Version of the service, set by main.
var Version = "0.0.0"

// serverCertLife is how long a server certificate lasts; it is renewed at a
// third of that.
const serverCertLife = 90 * 24 * time.Hour

// Service is an open fleet service with its listeners bound.
type Service struct {
	cfg    Config
	log    *slog.Logger
	tenant fleet.TenantID

	store    *store.Store
	catalog  *catalog.Catalog
	accounts *account.Accounts
	hub      *live.Hub
	devices  *ca.Authority // issues LDevID certificates
	root     *ca.Authority // issues what the service itself shows
	signer   *trust.OrderSigner
	token    *pkcs11.Token // that the device authority's keys are in; nil: in files
	owners   *owner.Registry
	server   *serverCert

	broker   *broker.Broker
	ingest   *ingest.Ingest
	verifier *verifier.Verifier
	dispatch *dispatch.Dispatch
	rollout  *rollout.Runner
	derived  *peripheral.Worker
	export   *export.Exporter
	figures  *figures.Book
	access   *figures.Log
	health   *figures.Watch

	began                       time.Time
	commits, appraisals, rounds pulse
	droppedLines                atomic.Uint64 // of the access log, as of the last look

	shelf *shelf.Shelf

	mqtt, https, operator, metrics net.Listener

	rotated  chan struct{} // the authority of devices signs with another key
	renewals renewals
}

// Addrs are the addresses the listeners are bound to.
type Addrs struct{ MQTT, HTTPS, Operator, Metrics string }

// New opens the data folder, making keys, authorities and the first operator
// token where there are none, and binds the listeners. Run serves.
func New(ctx context.Context, cfg Config, log *slog.Logger) (_ *Service, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Service{cfg: cfg, log: log, tenant: fleet.TenantID(cfg.Tenant), hub: &live.Hub{}, began: time.Now(), rotated: make(chan struct{}, 1)}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	where, err := cfg.Store.where(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	if s.store, err = store.Open(ctx, where, log); err != nil {
		return nil, err
	}
	if err := s.wireFigures(); err != nil {
		return nil, err
	}
	if err := s.store.AllOffline(ctx); err != nil { // nobody is connected to a service that just started
		return nil, err
	}
	if err := s.keys(); err != nil {
		return nil, err
	}
	if err := s.openCatalog(); err != nil {
		return nil, err
	}
	s.accounts = account.New(s.store)
	if err := s.bootstrap(ctx); err != nil {
		return nil, err
	}
	if err := s.listen(ctx); err != nil {
		return nil, err
	}
	if err := s.wire(); err != nil {
		return nil, err
	}
	if err := s.learnBoots(ctx); err != nil {
		// The fleet goes on being judged by what it was judged by.
		s.log.Error("boot reference values that cannot be learned; publish the repository again", slog.Any("err", err))
	}
	return s, nil
}

// keys opens or makes the authorities and the key that signs orders.
func (s *Service) keys() (err error) {
	dir := s.cfg.DataDir
	if err := s.openAuthorities(); err != nil {
		return err
	}
	pemRoot := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.root.Root().Raw})
	if err := os.WriteFile(filepath.Join(dir, "service-roots.pem"), pemRoot, 0o644); err != nil { // #nosec G306 -- public by nature
		return fmt.Errorf("write service roots: %w", err)
	}
	key, err := ownKey(dir, "order.key")
	if err != nil {
		return err
	}
	s.signer = trust.NewOrderSigner(key)
	s.server = &serverCert{root: s.root, names: s.cfg.Device.Names, issued: func(c *x509.Certificate) {
		s.audit(context.Background(), "authority.issued", "info", c.SerialNumber.Text(16), map[string]string{
			"names": strings.Join(s.cfg.Device.Names, " "), "ends": c.NotAfter.UTC().Format(time.RFC3339),
		})
	}}
	return nil
}

// ownKey opens a key of the service, or makes it at the first start.
func ownKey(dir, name string) (ed25519.PrivateKey, error) {
	path := filepath.Join(dir, name)
	key, err := trust.ReadKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		return trust.NewKey(path)
	}
	return key, err
}

// bootstrap makes the first operator token, once, and leaves it in a file that
// only the service's user can read.
func (s *Service) bootstrap(ctx context.Context) error {
	have, err := s.store.Tokens(ctx, s.tenant)
	if err != nil || len(have) > 0 {
		return err
	}
	plain, _, err := s.accounts.Issue(ctx, s.tenant, "admin", fleet.Admin, 0, "first start")
	if err != nil {
		return fmt.Errorf("make the first operator token: %w", err)
	}
	path := filepath.Join(s.cfg.DataDir, "admin.token")
	if err := os.WriteFile(path, []byte(plain+"\n"), 0o600); err != nil {
		return fmt.Errorf("write the first operator token: %w", err)
	}
	s.log.Info("first start: the operator token is in a file; sign in with it, make others, and remove the file", slog.String("path", path))
	return nil
}

func (s *Service) listen(ctx context.Context) error {
	for _, l := range []struct {
		to   *net.Listener
		addr string
	}{{&s.mqtt, s.cfg.Device.MQTT}, {&s.https, s.cfg.Device.HTTPS}, {&s.operator, s.cfg.Operator.Listen}, {&s.metrics, s.cfg.Metrics.Listen}} {
		if l.addr == "" {
			continue
		}
		ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", l.addr)
		if err != nil {
			return fmt.Errorf("%w; is another service running? choose other addresses in the configuration", err)
		}
		*l.to = ln
	}
	return nil
}

// wire joins the rooms.
func (s *Service) wire() (err error) {
	s.ingest = ingest.New(ingest.Options{Store: s.store, Stored: s.stored, Forked: s.forked, Anchor: s.anchored, Log: s.log})
	s.broker, err = broker.New(broker.Options{
		Listener: s.mqtt, TLS: &tls.Config{GetCertificate: s.server.get, MinVersion: tls.VersionTLS13}, Clients: s.devices.Pool,
		ExporterLabel: enrol.ConnExporterLabel, MaxClients: int64(s.cfg.Device.MaxClients),
		Admit: s.admit, Submit: s.submit, Presence: s.presence, Ready: s.ready, Violation: s.violation, Refused: s.refused, Clone: s.cloned, Log: s.log,
		Meter: s.meter(),
	})
	if err != nil {
		return err
	}
	s.renewals = renewals{current: s.issuer, came: s.broker.Issuer, tell: s.needRenew}
	changed := func(k fleet.ChangeKind) func(t fleet.TenantID, id string) {
		return func(t fleet.TenantID, id string) { s.hub.Publish(fleet.Change{Kind: k, ID: id, Tenant: t}) }
	}
	device, command, roll := changed(fleet.ChangedDevice), changed(fleet.ChangedCommand), changed(fleet.ChangedRollout)
	s.verifier = verifier.New(verifier.Options{
		Devices: s.store, Firmware: s.store, Link: s.broker, Every: s.cfg.Attest.Every.Duration, Unjudged: fleet.Trust(s.cfg.Attest.Unjudged),
		Changed: func(d fleet.Device) { device(d.Tenant, string(d.ID)) }, Log: s.log, Appraised: s.timed("verifier", "appraise", &s.appraisals),
	})
	s.dispatch = dispatch.New(dispatch.Options{
		Store: s.store, Signer: s.signer, Sender: s.broker, Changed: func(c fleet.Command) { command(c.Tenant, string(c.ID)) }, Log: s.log,
		Open: s.broker.SendOpen, Restricted: s.broker.Restricted,
		Present: func(d fleet.DeviceID) bool { return s.broker.Issuer(d) != "" || s.broker.Restricted(d) },
	})
	s.rollout = rollout.New(rollout.Options{
		Store: s.store, Link: s.broker, Open: s.broker.SendOpen, Changed: func(t fleet.TenantID, id fleet.RolloutID) { roll(t, string(id)) }, Log: s.log,
		Sign: func(kind string, m wire.Message) ([]byte, error) { return dispatch.Order(s.signer, kind, m) }, Round: s.timed("rollout", "round", &s.rounds),
	})
	s.wirePeripherals()
	if err := s.wireExport(); err != nil {
		return err
	}
	s.wireArchive()
	s.wireHealth()
	return s.wireOwners()
}

func (s *Service) wirePeripherals() {
	s.derived = peripheral.New(peripheral.Options{
		Store: s.store, Soon: s.cfg.Peripheral.PaperSoon.Duration, Log: s.log,
		Changed: func(id fleet.DeviceID) {
			s.hub.Publish(fleet.Change{Kind: fleet.ChangedPeripheral, ID: string(id), Tenant: s.tenant})
		},
	})
}

// Addrs returns where the listeners are bound.
func (s *Service) Addrs() Addrs {
	addr := func(l net.Listener) string {
		if l == nil {
			return ""
		}
		return l.Addr().String()
	}
	return Addrs{addr(s.mqtt), addr(s.https), addr(s.operator), addr(s.metrics)}
}

// Run serves until ctx ends, then lets what is under way finish and closes.
func (s *Service) Run(ctx context.Context) (err error) {
	defer s.close()
	s.begun(ctx)
	defer func() { s.ended(err) }()
	g, ctx := errgroup.WithContext(ctx)
	for _, run := range []func(context.Context) error{
		s.broker.Run, s.ingest.Run, s.verifier.Run, s.dispatch.Run, s.rollout.Run, s.derived.Run, s.export.Run, s.shelf.Run, s.owners.Run, s.figures.Run, s.access.Run, s.health.Run, s.keepFresh, s.watchCertificates, s.rollCertificates, s.serveDevices, s.serveOperators, s.serveMetrics,
	} {
		g.Go(func() error { return run(ctx) })
	}
	a := s.Addrs()
	s.log.Info("fleet service runs", slog.String("mqtt", a.MQTT), slog.String("https", a.HTTPS), slog.String("operator", a.Operator), slog.String("version", Version))
	return g.Wait()
}

func (s *Service) close() {
	for _, l := range []net.Listener{s.mqtt, s.https, s.operator, s.metrics} {
		if l != nil {
			_ = l.Close()
		}
	}
	if s.token != nil {
		if err := s.token.Close(); err != nil {
			s.log.Error("close the token", slog.Any("err", err))
		}
	}
	if s.store != nil {
		if err := s.store.Close(); err != nil {
			s.log.Error("close the store", slog.Any("err", err))
		}
	}
}

// admit says what a member's certificate opens: the newest one, a recovery
// certificate, and nothing else.
func (s *Service) admit(ctx context.Context, id identity.Identity) (fleet.Admission, error) {
	if err := s.signs(id.Issuer); err != nil {
		return "", err
	}
	return s.store.Admit(ctx, fleet.DeviceID(id.Device), fleet.TenantID(id.Tenant), id.Serial)
}

// refused raises the alarm of a certificate that is worth nothing any more and
// is shown all the same.
func (s *Service) refused(device string, err error) {
	switch {
	case errors.Is(err, fleet.ErrRevoked):
		s.audit(context.Background(), "identity.revoked", "alarm", device, map[string]string{"what": "came with a certificate that was revoked"})
	case errors.Is(err, fleet.ErrReplaced):
		s.audit(context.Background(), "identity.replaced", "alarm", device, map[string]string{
			"what": "came with a certificate that has been replaced; is there a copy of this device?",
		})
	case errors.Is(err, fleet.ErrNotFound):
		severity, what := "alarm", "came with a certificate that our authority signed and is no member: was the database set back, or does somebody else have the key?"
		if _, left, err := s.owners.Left(context.Background(), fleet.DeviceID(device)); err == nil && left {
			severity, what = "warn", "came with a certificate of before it was given to its next owner"
		}
		s.audit(context.Background(), "identity.unknown", severity, device, map[string]string{"what": what})
	default:
		s.violation(device, err.Error())
	}
}

// cloned raises the alarm of two live connections of one identity.
func (s *Service) cloned(device, what string) {
	s.audit(context.Background(), "identity.clone", "alarm", device, map[string]string{"what": what})
}

// forked raises the alarm of an audit chain that goes on in two ways.
func (s *Service) forked(device fleet.DeviceID, what string) {
	s.cloned(string(device), what+": a copy of the device speaks, or it lost what it had said")
}

// submit routes an up message: evidence to the verifier, the rest to ingest.
func (s *Service) submit(m broker.Message) bool {
	device, tenant, now := fleet.DeviceID(m.Identity.Device), fleet.TenantID(m.Identity.Tenant), time.Now()
	if m.Topic.Channel != wire.Evidence {
		return s.ingest.Submit(ingest.Message{Device: device, Tenant: tenant, Channel: m.Topic.Channel, Payload: m.Payload, At: now, Ack: m.Ack, Dead: m.Dead})
	}
	return s.verifier.Submit(verifier.Evidence{Device: device, Payload: m.Payload, Exporter: m.Exporter, Restricted: m.Admission != fleet.AdmitMember, At: now}, m.Ack)
}

// stored tells consoles and the rollout what a commit changed.
func (s *Service) stored(in fleet.Intake, out fleet.Outcome) {
	s.derived.Stored(in, out)
	tell := func(k fleet.ChangeKind, id string) { s.hub.Publish(fleet.Change{Kind: k, ID: id, Tenant: in.Tenant}) }
	if out.NewSamples > 0 || in.Report != nil || in.AuditBroken || out.Gap {
		tell(fleet.ChangedDevice, string(in.Device))
	}
	if out.Peripherals > 0 || out.NewChecks > 0 {
		tell(fleet.ChangedPeripheral, string(in.Device))
	}
	if out.NewEvents > 0 {
		tell(fleet.ChangedEvent, string(in.Device))
	}
	if out.NewAudit > 0 || out.NewEvents > 0 && len(in.Alarms) > 0 {
		tell(fleet.ChangedAudit, string(in.Device))
	}
	if out.Command != nil {
		tell(fleet.ChangedCommand, string(out.Command.ID))
		s.owners.Ended(*out.Command)
	}
	moved := out.Reconciled
	if out.Execution != nil {
		moved = append(moved, *out.Execution)
	}
	for _, e := range moved {
		tell(fleet.ChangedRollout, string(e.Rollout))
	}
	if len(moved) > 0 {
		s.rollout.Wake()
	}
}

func (s *Service) presence(device fleet.DeviceID, online bool, at time.Time) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.store.SetPresence(ctx, device, online, at); err != nil && !errors.Is(err, fleet.ErrNotFound) { // it has left the tenant
		s.log.Error("presence", slog.String("device", string(device)), slog.Any("err", err))
	}
	s.hub.Publish(fleet.Change{Kind: fleet.ChangedDevice, ID: string(device), Tenant: s.tenant})
	s.hub.Publish(fleet.Change{Kind: fleet.ChangedPeripheral, ID: string(device), Tenant: s.tenant}) // nothing is known of them, or again
}

// ready sends a device what has waited for it.
func (s *Service) ready(device fleet.DeviceID) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := s.owners.Ready(ctx, device); err != nil {
		s.log.Error("give a device up", slog.String("device", string(device)), slog.Any("err", err))
	}
	if err := s.deliver(ctx, device); err != nil {
		s.log.Error("deliver commands", slog.String("device", string(device)), slog.Any("err", err))
	}
	s.rollout.Deliver(device)
	if err := s.countersign(ctx, device); err != nil {
		s.log.Error("countersign an audit trail", slog.String("device", string(device)), slog.Any("err", err))
	}
	s.renew(device)
}

func (s *Service) violation(device, what string) {
	s.audit(context.Background(), "broker.violation", "alarm", device, map[string]string{"what": what})
}

// audit writes to the service's own trail.
func (s *Service) audit(ctx context.Context, kind, severity, subject string, detail map[string]string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	ev := fleet.AuditEvent{Tenant: s.tenant, At: time.Now(), Kind: kind, Severity: severity, Actor: "service", Subject: subject, Detail: detail}
	if err := s.store.Audit(ctx, ev); err != nil {
		s.log.Error("audit", slog.String("kind", kind), slog.Any("err", err))
	}
	s.hub.Publish(fleet.Change{Kind: fleet.ChangedAudit, ID: subject, Tenant: s.tenant})
}

// serverCert issues the service's certificate and renews it in time.
type serverCert struct {
	root   *ca.Authority
	names  []string
	issued func(*x509.Certificate)

	mu   sync.Mutex
	cert *tls.Certificate
	made time.Time
}

func (c *serverCert) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	cert, fresh, err := c.current()
	if fresh {
		c.issued(cert.Leaf)
	}
	return cert, err
}

func (c *serverCert) current() (_ *tls.Certificate, fresh bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cert == nil || time.Since(c.made) > serverCertLife/3 {
		cert, err := c.root.IssueServer(c.names, serverCertLife)
		if err == nil && cert.Leaf == nil {
			cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0])
		}
		if err != nil {
			return nil, false, err
		}
		c.cert, c.made, fresh = &cert, time.Now(), true
	}
	return c.cert, fresh, nil
}
