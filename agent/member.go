package agent

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"github.com/tillward/tillward/agent/internal/discover"
	"github.com/tillward/tillward/agent/internal/member"
	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/provisioning/enrol"
)

const (
	// rejoinAfter is how often the service may ask a device that it still lets
	// in to enrol again.
	rejoinAfter = time.Hour
	rescueMin   = time.Minute // between two tries to enrol while the recovery certificate serves
	rescueMax   = time.Hour
	maxEventLog = 1 << 20 // bytes that are read of it
	// lookEvery is how often a box that waits to be a member looks whether
	// somebody names it another service.
	lookEvery = 2 * time.Second
)

// errReidentify asks for another look at the identity at once.
var errReidentify = errors.New("the identity has to be renewed")

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
		if errors.Is(err, errReidentify) || errors.Is(err, member.ErrEnded) || errors.Is(err, enrol.ErrKeys) {
			if time.Since(began) > 5*time.Second { // else something is wrong with it: no hurry
				continue
			}
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
		told = a.tellJoin(ctx, err, told)
		if a.rest(ctx, wait) {
			pause = time.Second
		}
	}
	return nil
}

// rest waits before the next try, but no longer than until a stick or a lease
// names another service than the last try was about, or another claim code:
// whoever plugs one in stands before the box. It reports whether one does.
func (a *Agent) rest(ctx context.Context, wait time.Duration) bool {
	over := time.After(wait)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-over:
			return false
		case <-tick.C:
		}
		if !a.sought {
			continue
		}
		// What is wrong with a source is said when it is tried.
		if s, err := a.cfg.discover(ctx, slog.New(slog.DiscardHandler)); err == nil && s != a.found {
			return true
		}
	}
}

// tellJoin records why the device is no member, unless that was told last.
func (a *Agent) tellJoin(ctx context.Context, err error, told string) string {
	kind, severity, detail := "enrol.failed", "warn", map[string]string{}
	text := fmt.Sprint(err)
	if w, ok := errors.AsType[enrol.Wait](err); ok {
		kind, severity, text = "enrol.unclaimed", "info", enrol.ErrUnclaimed.Error()
		detail["device"] = w.Device
	}
	if errors.Is(err, member.ErrOwner) {
		kind, severity = "owner.refused", "alarm"
	}
	if text == told || errors.Is(err, errReidentify) {
		return told
	}
	detail["reason"] = reason(err)
	if check := enrol.Check(err); check != "" {
		detail["check"] = check
	}
	a.record(ctx, kind, severity, "", detail)
	return text
}

// once opens the TPM, becomes or finds out to be a member, and stays connected
// until something has to be done anew.
func (a *Agent) once(ctx context.Context) error {
	a.sought = false
	dev, done, err := a.openTPM(ctx)
	if err != nil {
		return err
	}
	defer done()
	if a.opensNow(ctx, dev) {
		return a.reopen(ctx)
	}
	id, err := a.identity(ctx, dev)
	if err != nil {
		return err
	}
	if id == nil || id.Ended(a.o.Now()) || a.rejoin {
		if a.leaving.Load() { // nobody is there any more whose the device could be
			a.letGo()
			<-ctx.Done()
			return nil
		}
		a.joined = time.Now()
		fresh, err := a.join(ctx, dev)
		switch {
		case err == nil:
			id, a.rejoin, a.unusable = fresh, false, false
		case id == nil:
			return err
		case (id.Ended(a.o.Now()) || a.unusable) && id.Rescuable(a.o.Now()):
			if errors.Is(err, enrol.ErrRefused) {
				e := a.renewByRecovery(ctx, dev, *id)
				if errors.Is(e, errRecovered) {
					return errReidentify
				}
				a.log.Warn("renewal by the recovery certificate", slog.Any("err", e))
			}
			return a.rescue(ctx, dev, *id, err)
		case id.Ended(a.o.Now()):
			return err
		default: // what the certificate still opens is more than nothing
			a.tellJoin(ctx, err, "")
			a.rejoin = false
		}
	}
	return a.connect(ctx, dev, *id)
}

// identity reads the stored identity and tells the TPM which keys it is about;
// nil when the device has to enrol.
func (a *Agent) identity(ctx context.Context, dev TPM) (*member.Identity, error) {
	b, err := a.spool.Load(ctx, keyIdentity)
	if err != nil || len(b) == 0 {
		return nil, err
	}
	id, err := member.Parse(b)
	if err != nil {
		a.log.Error("the stored identity cannot be used; enrolling again", slog.Any("err", err))
		return nil, nil
	}
	c, err := a.client(dev, discover.Service{Enrol: id.URL, ServerName: id.ServerName})
	if err != nil {
		return nil, err
	}
	res, err := c.Resume(ctx, id.Result)
	if errors.Is(err, enrol.ErrKeys) {
		if newer, ok := a.renewedBeside(ctx, id); ok {
			if r, e := c.Resume(ctx, newer.Result); e == nil {
				id, res, err = newer, r, nil
			}
		}
	}
	if errors.Is(err, enrol.ErrKeys) { // the disk of another box, or a TPM that was cleared
		return nil, a.whose(ctx, dev, id.Device)
	}
	if err != nil {
		return nil, err
	}
	if now := id.With(res); string(now.Bytes()) != string(b) {
		if err := a.keepIdentity(ctx, now.Bytes()); err != nil {
			return nil, fmt.Errorf("keep identity: %w", err)
		}
		id = now
	}
	return &id, nil
}

// renewedBeside returns the identity with the keys of its copy, which went on
// while the books were closed. Whoever wrote on the disk meanwhile may have
// changed it: only certificates and keys are taken, which TPM and service check.
func (a *Agent) renewedBeside(ctx context.Context, id member.Identity) (member.Identity, bool) {
	b, err := a.spool.Load(ctx, keyIdentityCopy)
	if err != nil {
		return id, false
	}
	is, err := member.Parse(b)
	if err != nil || is.Device != id.Device || is.Tenant != id.Tenant {
		return id, false
	}
	r := id.Result
	r.Chain, r.LDevID, r.AK, r.Recovery, r.RecoveryKey = is.Chain, is.LDevID, is.AK, is.Recovery, is.RecoveryKey
	id, err = member.Of(id.With(r))
	return id, err == nil
}

// client is the device's half of the protocols with the service.
func (a *Agent) client(dev TPM, at discover.Service) (*enrol.Client, error) {
	roots, err := a.roots()
	if err != nil {
		return nil, err
	}
	return &enrol.Client{
		URL: at.Enrol, Roots: roots, ServerName: at.ServerName, Serial: a.serial(), Model: a.cfg.Model, Claim: at.Claim, TPM: dev, Time: a.clock.Now,
		EventLog: func() []byte {
			raw, err := a.eventLog()
			if err != nil || len(raw) == 0 {
				return nil
			}
			gz, err := boot.Pack(raw)
			if err != nil {
				a.log.Warn("pack the event log of the firmware", slog.Any("err", err))
			}
			return gz
		},
	}, nil
}

// eventLog reads what the firmware measured; nothing when this box keeps no log.
func (a *Agent) eventLog() ([]byte, error) {
	if a.cfg.TPM.EventLog == "" {
		return nil, nil
	}
	f, err := os.Open(a.cfg.TPM.EventLog)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxEventLog))
}

// join enrols, checks whose the box is, and keeps the result.
func (a *Agent) join(ctx context.Context, dev TPM) (*member.Identity, error) {
	at, err := a.findService(ctx)
	if err != nil {
		return nil, err
	}
	c, err := a.client(dev, at)
	if err != nil {
		return nil, err
	}
	res, err := c.Enrol(ctx)
	if err != nil {
		a.learnTime(ctx, err)
		return nil, err
	}
	owner, err := a.ownership.Check(res.Device, res.Tenant, res.Voucher)
	if err != nil {
		return nil, err
	}
	id, err := member.Of(member.Identity{URL: at.Enrol, ServerName: at.ServerName}.With(res))
	if err != nil {
		return nil, fmt.Errorf("the service's answer: %w", err)
	}
	if err := a.behind(ctx, res.TrailSeq, res.TrailHash); err != nil {
		return nil, fmt.Errorf("go on with the trail: %w", err)
	}
	if err := a.keepIdentity(ctx, id.Bytes()); err != nil {
		return nil, fmt.Errorf("keep identity: %w", err)
	}
	if _, err := c.Resume(ctx, res); err != nil {
		return nil, fmt.Errorf("the service's answer: %w", err)
	}
	detail := map[string]string{"tenant": res.Tenant, "tier": res.Tier, "source": word(at.Source)}
	if owner != "" {
		detail["owner"] = "vouched"
	}
	a.log.Info("enrolled", slog.String("device", res.Device), slog.String("tenant", res.Tenant), slog.String("owner", owner), slog.String("source", at.Source))
	a.record(ctx, "enrol.done", "info", res.Device, detail)
	return &id, nil
}

// learnTime goes on by a later time than the clock's when the service's own
// certificate shows that the clock is behind.
func (a *Agent) learnTime(ctx context.Context, failed error) {
	if failed == nil {
		return
	}
	roots, err := a.roots()
	if err != nil {
		return // that is said elsewhere
	}
	if behind, ok := a.clock.Learn(failed, roots); ok {
		a.log.Warn("the clock of this box is behind, perhaps for want of a battery; going on by the service's certificate", slog.Duration("behind", behind))
		a.record(ctx, "clock.behind", "warn", "", map[string]string{"by": behind.Round(time.Second).String()})
	}
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

// vendorKey reads the vendor's key of the image; nil when none is configured.
func (a *Agent) vendorKey() (ed25519.PublicKey, error) {
	if a.cfg.Service.VendorKey == "" {
		return nil, nil
	}
	b, err := os.ReadFile(a.cfg.Service.VendorKey)
	if err != nil {
		return nil, fmt.Errorf("service.vendor_key: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("service.vendor_key: %s holds no PEM block", a.cfg.Service.VendorKey)
	}
	pub, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("service.vendor_key: %w", err)
	}
	key, ok := pub.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("service.vendor_key: %s holds a %T, not an Ed25519 key", a.cfg.Service.VendorKey, pub)
	}
	return key, nil
}

// rescue connects with the recovery certificate, which opens quarantine alone,
// and goes on trying to enrol.
func (a *Agent) rescue(ctx context.Context, dev TPM, id member.Identity, why error) error {
	key, err := dev.SignerFor(ctx, id.RecoveryKey)
	if err != nil {
		return errors.Join(why, err)
	}
	a.log.Error("the certificate cannot be used and enrolment fails; going on with the recovery certificate", slog.Any("err", why))
	a.record(ctx, "identity.recovery", "alarm", id.Device, map[string]string{"reason": reason(why), "check": enrol.Check(why)})
	m, err := a.memberOf(dev, id, tls.Certificate{Certificate: id.Recovery, PrivateKey: key, Leaf: id.Rescue()})
	if err != nil {
		return err
	}
	return a.stay(ctx, dev, m, nil, func(ctx context.Context) error { return a.recover(ctx, dev, id) })
}

// recover tries to enrol, or to renew by the recovery certificate, until one of
// them works.
func (a *Agent) recover(ctx context.Context, dev TPM, id member.Identity) error {
	told := ""
	for pause := rescueMin; ; pause = min(2*pause, rescueMax) {
		wait := pause/2 + rand.N(pause/2) //nolint:gosec // jitter, not a secret
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		_, err := a.join(ctx, dev)
		if errors.Is(err, enrol.ErrRefused) {
			err = errors.Join(err, a.renewByRecovery(ctx, dev, id))
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			a.rejoin, a.unusable = false, false
			return errReidentify
		case errors.Is(err, errRecovered):
			a.rejoin, a.unusable = false, false
			return errReidentify
		}
		a.log.Warn("still no other certificate", slog.Any("err", err))
		told = a.tellJoin(ctx, err, told)
	}
}

var errRecovered = errors.New("renewed by the recovery certificate")

// renewByRecovery never returns nil: errRecovered when it worked.
func (a *Agent) renewByRecovery(ctx context.Context, dev TPM, id member.Identity) error {
	if !id.Ended(a.o.Now()) {
		return errors.New("the certificate has not ended: only enrolment replaces it")
	}
	c, err := a.client(dev, discover.Service{Enrol: id.URL, ServerName: id.ServerName})
	if err != nil {
		return err
	}
	c.Save = func(ctx context.Context, r enrol.Result) error { return a.keepIdentity(ctx, id.With(r).Bytes()) }
	if _, err := c.Renew(ctx, id.Result); err != nil {
		return err
	}
	a.record(ctx, "identity.renewed", "warn", id.Device, map[string]string{"by": "recovery"})
	return errRecovered
}

// wantsEnrol decides whether the service's advice to enrol again is followed:
// not more often than it can help.
func (a *Agent) wantsEnrol(actions []string) bool {
	return slices.Contains(actions, wire.ActionEnrol) && time.Since(a.joined) > rejoinAfter && !a.leaving.Load()
}
