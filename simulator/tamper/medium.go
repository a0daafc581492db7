package tamper

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/trust"
)

// mediumRefused is what a till notes of a stick whose order it does not take.
const mediumRefused = "update.medium-refused"

// stick plugs an update medium of that name into the till: metadata of a fork,
// the targets that are published, and an order by the service's key. What the
// order leaves out is usual.
func (l *lane) stick(name string, f fork, o wire.MediumOrder, items ...wire.MediumItem) error {
	key, err := trust.ReadKey(filepath.Join(l.s.service, "order.key"))
	if err != nil {
		return err
	}
	return l.stickBy(key, name, f, o, nil, items...)
}

func (l *lane) stickBy(key ed25519.PrivateKey, name string, f fork, o wire.MediumOrder, spoil func(dir string) error, items ...wire.MediumItem) error {
	o.V, o.ID, o.Tenant, o.By, o.Releases = wire.Version, cmp.Or(o.ID, name), cmp.Or(o.Tenant, tenant), "thief", items
	o.IssuedAt = cmp.Or(o.IssuedAt, time.Now().Add(-time.Minute).UnixMilli())
	o.NotAfter = cmp.Or(o.NotAfter, time.Now().Add(time.Hour).UnixMilli())
	order, err := signedOrder(o, key)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(l.s.world.Dir(), "stick-")
	if err != nil {
		return err
	}
	if err := copyTree(filepath.Join(dir, "metadata"), f.meta()); err != nil {
		return err
	}
	for _, i := range items {
		folder := i.Target
		if path.Base(folder) != i.Version {
			folder = path.Dir(folder)
		}
		at := filepath.Join("targets", filepath.FromSlash(folder))
		if err := copyTree(filepath.Join(dir, at), filepath.Join(l.s.service, "artifacts", at)); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "order.cbor"), order, 0o600); err != nil {
		return err
	}
	if spoil != nil {
		if err := spoil(dir); err != nil {
			return err
		}
	}
	return l.plug(name, dir)
}

// plug makes a folder a medium that is plugged in, at once.
func (l *lane) plug(name, dir string) error {
	slot := filepath.Join(l.till.Dir(), "media", name)
	return errors.Join(os.MkdirAll(slot, 0o700), os.Rename(dir, filepath.Join(slot, "tillward-update")))
}

// refusedStick waits until the till says what it thinks of a stick.
func (l *lane) refusedStick(ctx context.Context, what, name, execution, want string, began time.Time) error {
	folder := filepath.Join(l.till.Dir(), "media", name, "tillward-update")
	n, err := l.trail(ctx, what, func(n noted) bool {
		return n.Kind == mediumRefused && n.Subject == folder || n.Subject == execution && n.Detail["state"] != ""
	})
	if err != nil {
		return err
	}
	l.refuses(what, n, began, want)
	return nil
}

// sticks are update media that somebody has tampered with, has kept too long,
// or was not meant to have.
func sticks(ctx context.Context, l *lane) error {
	key, err := trust.ReadKey(filepath.Join(l.s.service, "order.key"))
	if err != nil {
		return err
	}
	mine, err := newKey()
	if err != nil {
		return err
	}
	online, err := l.s.online()
	if err != nil {
		return err
	}
	flip := func(pattern string) func(string) error {
		return func(dir string) error {
			names, err := filepath.Glob(filepath.Join(dir, pattern))
			if err != nil || len(names) == 0 {
				return errors.Join(err, errNoRelease)
			}
			b, err := os.ReadFile(names[0]) // #nosec G304 -- the scenario's own folder
			if err != nil {
				return err
			}
			b[len(b)/2] ^= 1
			return os.WriteFile(names[0], b, 0o600) // #nosec G703 -- the scenario's own folder
		}
	}
	r, err := l.fresh(ctx)
	if err != nil {
		return err
	}
	item := wire.MediumItem{Class: trust.ClassApp, Version: r.version, Target: r.path}
	f, err := l.s.fork()
	if err != nil {
		return err
	}
	forged, err := l.s.fork()
	if err != nil {
		return err
	}
	if err := forged.role(tenantRole, func(m *targetsOf) error { return other(m, r.path) }, l.s.keys[tenantRole][0]); err != nil {
		return err
	}
	expired, err := l.s.fork()
	if err != nil {
		return err
	}
	late := &trust.Repository{Dir: expired.dir, Life: time.Second, Medium: "late"}
	if err := late.Refresh(trust.Keys{trust.RoleSnapshot: {online}, trust.RoleTimestamp: {online}}); err != nil {
		return err
	}
	if err := until(ctx, time.Now().Add(2*time.Second)); err != nil {
		return err
	}
	past := wire.MediumOrder{IssuedAt: time.Now().Add(-2 * time.Hour).UnixMilli(), NotAfter: time.Now().Add(-time.Hour).UnixMilli()}
	component := "ops-" + tenant + "-" + l.till.Name
	// Those whose order is refused come together, those that go further one after
	// the other: a later one would take the place of an earlier.
	began := time.Now()
	for _, o := range []struct {
		name  string
		key   ed25519.PrivateKey
		order wire.MediumOrder
		spoil func(string) error
	}{
		{"own-key", mine, wire.MediumOrder{}, nil},
		{"order", key, wire.MediumOrder{}, flip("order.cbor")},
		{"old", key, past, nil},
		{"foreign", key, wire.MediumOrder{Tenant: rival}, nil},
	} {
		if err := l.stickBy(o.key, o.name, f, o.order, o.spoil, item); err != nil {
			return err
		}
	}
	for _, o := range []struct{ what, name string }{
		{"a stick with an order by an own key", "own-key"},
		{"a stick whose order was tampered with", "order"},
		{"a stick that was good until an hour ago", "old"},
		{"a stick for devices of another tenant", "foreign"},
	} {
		if err := l.refusedStick(ctx, o.what, o.name, o.name+"-"+component, "medium-refused", began); err != nil {
			return err
		}
	}
	for _, o := range []struct {
		what, name string
		f          fork
		spoil      func(string) error
		want       string
	}{
		{"a stick with metadata that one of two has signed", "forged", forged, nil, "signature"},
		{"a stick whose metadata has expired, under a fresh order", "late", expired, nil, "metadata-expired"},
		{"a stick with a flipped byte in the application, and a mirror with the same", "flipped", f, flip("targets/" + r.id + "/*.tree.tar"), "signature"},
	} {
		began := time.Now()
		l.mirror.turn("", l.mirror.instead(r.id, func(b []byte) []byte {
			b[len(b)/2] ^= 1
			return b
		}))
		if err := l.stickBy(key, o.name, o.f, wire.MediumOrder{}, o.spoil, item); err != nil {
			return err
		}
		if err := l.refusedStick(ctx, o.what, o.name, o.name+"-"+component, o.want, began); err != nil {
			return err
		}
	}
	// The twin: what the service itself writes on a stick, to a till without network.
	l.last = release{}
	l.honest = func(ctx context.Context) (bool, error) {
		dir, err := os.MkdirTemp(l.s.world.Dir(), "stick-")
		if err != nil {
			return false, err
		}
		if err := l.s.world.CLI(ctx, "release", "export-medium", r.id, "--to", dir); err != nil {
			return false, err
		}
		l.mirror.turn("", gone)
		if err := l.plug("honest", filepath.Join(dir, "tillward-update")); err != nil {
			return false, err
		}
		n, err := l.trail(ctx, "the honest stick", func(n noted) bool { return n.Detail["to"] == r.version && n.Detail["state"] == "SUCCEEDED" })
		l.mirror.honest()
		return n.Kind == "update.succeeded", err
	}
	return nil
}

// compromisedMedium makes media with the order key of the service, for another
// tenant's devices and with a release of another tenant.
func (l *lane) compromisedMedium(ctx context.Context) error {
	f, err := l.s.fork()
	if err != nil {
		return err
	}
	item := wire.MediumItem{Class: trust.ClassApp, Version: "1.0.0", Target: "ops/" + rival + "/till/1.0.0/tree.tar"}
	began := time.Now()
	if err := l.stick("other-tenant", f, wire.MediumOrder{Tenant: rival}, item); err != nil {
		return err
	}
	if err := l.stick("other-release", f, wire.MediumOrder{}, item); err != nil {
		return err
	}
	component := "ops-" + rival + "-till"
	if err := l.refusedStick(ctx, "a medium whose order is for another tenant", "other-tenant", "other-tenant-"+component, "medium-refused", began); err != nil {
		return err
	}
	return l.refusedStick(ctx, "a medium with another tenant's application for this one", "other-release", "other-release-"+component, "policy", began)
}
