package tamper

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/trust"
)

// compromised has all of the fleet service. Its planner offers, signed with the
// order key, what stands in its database; the mirror serves what is wanted.
func compromised(ctx context.Context, l *lane) error {
	online, err := l.s.online()
	if err != nil {
		return err
	}
	for _, o := range []struct{ what, id, class, version, want string }{
		{"an agent that nobody signed", "agent/6.6.7", trust.ClassAgent, "6.6.7", "incompatible"},
		{"an older agent", "agent/" + oldAgent, trust.ClassAgent, oldAgent, "downgrade"},
		{"an older agent that is called a newer one", "agent/" + oldAgent, trust.ClassAgent, "6.6.8", "signature"},
		{"an agent for another model", "agent/" + otherModel, trust.ClassAgent, otherModel, "incompatible"},
		{"an application of another tenant", "ops/" + rival + "/till/1.0.0", trust.ClassApp, "1.0.0", "policy"},
		{"an application that is called an agent", "ops/" + rival + "/till/1.0.0", trust.ClassAgent, "1.0.0", "policy"},
		{"settings that nobody signed", "ops/" + tenant + "/base/6.6.6", trust.ClassConfig, "6.6.6", "incompatible"},
		{"a script", "ops/" + tenant + "/pinpad/6.6.6", trust.ClassScript, "6.6.6", "no-handler"},
		{"something that is no version", "agent/newest", trust.ClassAgent, "newest", "incompatible"},
	} {
		if err := l.s.lie(ctx, o.id, o.class, o.version); err != nil {
			return err
		}
		if err := l.try(ctx, o.what, o.id, usual, o.want); err != nil {
			return err
		}
	}
	if err := l.s.lie(ctx, "agent/"+oldAgent, trust.ClassAgent, oldAgent); err != nil {
		return err
	}
	// What the service can sign itself says nothing of a release.
	err = l.between(ctx, "a release of its own, in metadata signed by its own key", func(f fork, r release) error {
		return f.role(tenantRole, func(m *targetsOf) error { return other(m, r.path) }, online)
	}, "signature")
	if err != nil {
		return err
	}
	// Orders of other kinds, made with the order key: for another tenant's devices.
	return l.compromisedMedium(ctx)
}

// fastForward is played last: it takes another root to get over it.
func fastForward(ctx context.Context, l *lane) error {
	stamp := func(m *metadata.Metadata[metadata.TimestampType]) error {
		m.Signed.Version = 1 << 40
		return nil
	}
	mine, err := newKey()
	if err != nil {
		return err
	}
	err = l.between(ctx, "a timestamp counted far ahead, with an own key", func(f fork, _ release) error {
		return forge(f.file("timestamp.json"), f.file("timestamp.json"), stamp, mine)
	}, "signature")
	if err != nil {
		return err
	}
	online, err := l.s.online()
	if err != nil {
		return err
	}
	// With the service's key the till believes it, and takes the present for the
	// past: updates stop.
	r, err := l.fresh(ctx)
	if err != nil {
		return err
	}
	f, err := l.s.fork()
	if err != nil {
		return err
	}
	if err := f.reseal(1<<40, online, func(map[string]*metadata.MetaFiles) {}); err != nil {
		return err
	}
	l.mirror.turn(f.meta(), nil)
	if err := l.try(ctx, "a thief of the service's key counts far ahead; meanwhile an older agent", "agent/"+oldAgent, usual, "downgrade"); err != nil {
		return err
	}
	if err := l.s.lie(ctx, "agent/6.6.9", trust.ClassAgent, "6.6.9"); err != nil {
		return err
	}
	if err := l.try(ctx, "the same, and an agent that nobody signed", "agent/6.6.9", usual, "incompatible"); err != nil {
		return err
	}
	l.mirror.honest()
	if err := l.try(ctx, "the honest state after that is taken for an old one, until the root names another key", r.id, usual, "rollback"); err != nil {
		return err
	}
	if err := l.s.rotate(ctx); err != nil {
		return err
	}
	l.last = r
	return nil
}

// rotate revokes the keys of the service and of those who sign agents, as after
// a theft.
func (s *siege) rotate(ctx context.Context) error {
	before, err := s.fork()
	if err != nil {
		return err
	}
	s.revoked = before
	if s.stolen, err = s.online(); err != nil {
		return err
	}
	old, err := trust.TUFKeyID(s.stolen.Public())
	if err != nil {
		return err
	}
	file := filepath.Join(s.service, "online.key")
	if err := errors.Join(os.Rename(file, file+".revoked"), s.world.RestartService(ctx)); err != nil {
		return err
	}
	for _, role := range []string{trust.RoleSnapshot, trust.RoleTimestamp} {
		if err := os.Remove(filepath.Join(s.folder("keys"), role+".pem")); err != nil {
			return err
		}
	}
	sign := func(args ...string) error {
		return s.world.Provision(ctx, append(args, "--repo", s.folder("repo"), "--keys", s.folder("keys"))...)
	}
	for _, role := range []string{trust.RoleSnapshot, trust.RoleTimestamp} {
		if err := sign("release", "rotate", role, "--revoke", old, "--add", filepath.Join(s.service, "online.pub")); err != nil {
			return err
		}
	}
	args := []string{"release", "rotate", trust.RoleAgent}
	for i, k := range s.keys[trust.RoleAgent] {
		id, err := trust.TUFKeyID(k.Public())
		if err != nil {
			return err
		}
		file := filepath.Join(s.folder("keys"), "agent", fmt.Sprintf("prod-%d.pem", i+11))
		if err := s.world.Provision(ctx, "key", "create", file, "--public", file+".pub"); err != nil {
			return err
		}
		args = append(args, "--revoke", id, "--add", file+".pub")
	}
	return s.publish(ctx, func() error { return sign(args...) })
}

// withheldRoot comes after fastForward: keys were revoked, and a mirror keeps
// the root that says so from the till.
func withheldRoot(ctx context.Context, l *lane) error {
	if l.s.revoked.dir == "" {
		if err := l.s.rotate(ctx); err != nil {
			return err
		}
		if ok, err := l.takes(ctx); err != nil || !ok {
			return errors.Join(err, fmt.Errorf("the till does not follow the root: %s", l.unwilling))
		}
		if err := l.begins(ctx); err != nil {
			return err
		}
	}
	const id = "agent/6.7.0"
	if err := l.s.lie(ctx, id, trust.ClassAgent, "6.7.0"); err != nil {
		return err
	}
	// Enough stolen keys, all of them revoked.
	f := l.s.revoked
	err := f.role(trust.RoleAgent, func(m *targetsOf) error {
		for p, t := range m.Signed.Targets {
			if strings.HasPrefix(p, "agent/"+l.s.opt.UpdateTo+"/") {
				named(m, path.Join(id, path.Base(p)), t)
				return nil
			}
		}
		return errNoRelease
	}, l.s.keys[trust.RoleAgent]...)
	if err != nil {
		return err
	}
	if err := f.reseal(1000, l.s.stolen, func(map[string]*metadata.MetaFiles) {}); err != nil {
		return err
	}
	l.mirror.turn(f.meta(), nil)
	if err := l.try(ctx, "an agent signed with revoked keys, and the root that revoked them is kept back", id, usual, "signature"); err != nil {
		return err
	}
	began := time.Now()
	if err := l.stick("revoked", f, wire.MediumOrder{Tenant: tenant}, wire.MediumItem{Class: trust.ClassAgent, Version: "6.7.0", Target: id}); err != nil {
		return err
	}
	n, err := l.trail(ctx, "the stick", func(n noted) bool { return n.Subject == "revoked-agent" && n.Detail["state"] != "" })
	if err != nil {
		return err
	}
	l.refuses("the same from a stick", n, began, "signature")
	// A box that has forgotten everything but what is in its TPM.
	l.till.Stop()
	if err := errors.Join(os.RemoveAll(filepath.Join(l.till.Dir(), "media")), os.RemoveAll(filepath.Join(l.till.Dir(), "state"))); err != nil {
		return err
	}
	l.till.Boot(ctx)
	if err := l.settled(ctx); err != nil {
		return err
	}
	// It does not know its applications any more, though they are there.
	disk := l.before.disk
	err = l.s.world.Until(ctx, l.till.Name+" tells what it still knows", func(ctx context.Context) (bool, error) {
		now, err := l.truth(ctx)
		l.before = now
		return err == nil && !slices.ContainsFunc(now.said, func(i installed) bool { return i.Component != "agent" }), err
	})
	if err != nil {
		return err
	}
	if l.wiped = true; l.before.disk != disk {
		return fmt.Errorf("the wiped till has other applications than before: was %s, is %s", disk, l.before.disk)
	}
	return l.try(ctx, "the same, and the till's state partition was wiped: its TPM remembers", id, usual, "rollback")
}

// copyTree copies what is there of a folder.
func copyTree(to, from string) error {
	err := os.CopyFS(to, os.DirFS(from))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// signedOrder is the order of an update medium.
func signedOrder(o wire.MediumOrder, key ed25519.PrivateKey) ([]byte, error) {
	payload, err := wire.Encode(&o)
	if err != nil {
		return nil, err
	}
	out := wire.Order{Kind: wire.OrderMedium, Payload: payload}
	if out.KeyID, out.Signature, err = trust.NewOrderSigner(key).SignOrder(out.Kind, payload); err != nil {
		return nil, err
	}
	return wire.Encode(&out)
}
