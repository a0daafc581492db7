package tamper

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/tillward/tillward/provisioning/trust"
)

// tenantRole signs the applications of the tills: two of three keys.
const tenantRole = "ops/" + tenant

// short is how long a step may take where an attacker would stretch it. The
// service sets it with the rollout, and the device holds itself to it.
const (
	short    = 4 // seconds
	patience = (short + 20) * time.Second
)

// between lets do forge metadata of a release that no till has heard of, and
// puts the mirror with it between the till and the service.
func (l *lane) between(ctx context.Context, what string, do func(f fork, r release) error, want ...string) error {
	r, err := l.fresh(ctx)
	if err != nil {
		return err
	}
	f, err := l.s.fork()
	if err != nil {
		return err
	}
	if err := do(f, r); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	l.mirror.turn(f.meta(), nil)
	return l.try(ctx, what, r.id, usual, want...)
}

// serving is the same with metadata as it is and an act of the mirror.
func (l *lane) serving(ctx context.Context, what string, s steps, do func(r release) act, want ...string) error {
	r, err := l.fresh(ctx)
	if err != nil {
		return err
	}
	l.mirror.turn("", do(r))
	return l.try(ctx, what, r.id, s, want...)
}

func newKey() (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	return key, err
}

// others turns every byte into another one: as long as what was asked for.
func others(b []byte) []byte {
	out := bytes.Clone(b)
	for i := range out {
		out[i] ^= 0x55
	}
	return out
}

func arbitraryInstall(ctx context.Context, l *lane) error {
	mine, err := newKey()
	if err != nil {
		return err
	}
	another, err := newKey()
	if err != nil {
		return err
	}
	err = l.between(ctx, "an own description of the release, with own keys", func(f fork, r release) error {
		return f.role(tenantRole, func(m *targetsOf) error { return other(m, r.path) }, mine, another)
	}, "signature")
	if err != nil {
		return err
	}
	online, err := l.s.online()
	if err != nil {
		return err
	}
	err = l.between(ctx, "the same, signed by the key of snapshot and timestamp", func(f fork, r release) error {
		return f.role(tenantRole, func(m *targetsOf) error { return other(m, r.path) }, online)
	}, "signature")
	if err != nil {
		return err
	}
	err = l.serving(ctx, "another application in the place of it", usual, func(r release) act { return l.mirror.instead(r.id, others) }, "signature")
	if err != nil {
		return err
	}
	agent := "agent/" + l.s.opt.UpdateTo
	l.mirror.turn("", l.mirror.instead(agent, others))
	return l.try(ctx, "another agent in the place of the one that is released", agent, usual, "signature")
}

func endlessData(ctx context.Context, l *lane) error {
	for _, name := range []string{"timestamp.json", ".snapshot.json", ".ops%2Fdemo.json"} {
		err := l.serving(ctx, "a file of metadata without end: "+strings.Trim(name, "."), usual, func(release) act {
			return endless(func(n string) bool { return strings.HasPrefix(n, "metadata/") && strings.HasSuffix(n, name) })
		}, "signature")
		if err != nil {
			return err
		}
		l.bounded(time.Minute, 32<<20)
	}
	agent := "agent/" + l.s.opt.UpdateTo
	t, err := l.s.target(agent + "/tillward-agent-linux-amd64")
	if err != nil {
		if t, err = l.s.target(agent + "/tillward-agent-linux-arm64"); err != nil {
			return err
		}
	}
	l.mirror.turn("", endless(func(n string) bool { return content(n, agent) }))
	if err := l.try(ctx, "an agent without end", agent, usual, "signature"); err != nil {
		return err
	}
	l.bounded(time.Minute, t.Length+32<<20) // what lies in the buffers of the line was sent, too
	return nil
}

func extraneous(ctx context.Context, l *lane) error {
	// The other tenant has all his keys. What he says of ours no device finds.
	id := "ops/" + tenant + "/" + l.till.Name + "/6.6.6"
	if err := l.s.lie(ctx, id, trust.ClassApp, "6.6.6"); err != nil {
		return err
	}
	f, err := l.s.fork()
	if err != nil {
		return err
	}
	like := func(m *targetsOf) *metadata.TargetFiles { return m.Signed.Targets["ops/"+rival+"/till/1.0.0/tree.tar"] }
	err = f.role("ops/"+rival, func(m *targetsOf) error {
		named(m, id+"/tree.tar", like(m))
		named(m, "agent/6.6.6/tillward-agent-linux-amd64", like(m))
		return nil
	}, l.s.keys["ops/"+rival]...)
	if err != nil {
		return err
	}
	l.mirror.turn(f.meta(), nil)
	if err := l.try(ctx, "another tenant names an application of this one", id, usual, "incompatible"); err != nil {
		return err
	}
	// Our own tenant's signers name and delegate what is not theirs.
	if err := l.s.lie(ctx, "agent/6.6.6", trust.ClassAgent, "6.6.6"); err != nil {
		return err
	}
	return l.also(ctx, "the tenant's signers name an agent, and delegate agents", func(f fork, r release) error {
		mine := l.s.keys[tenantRole][0]
		pub, err := metadata.KeyFromPublicKey(mine.Public())
		if err != nil {
			return err
		}
		id, err := pub.ID()
		if err != nil {
			return err
		}
		return f.role(tenantRole, func(m *targetsOf) error {
			named(m, "agent/6.6.6/tillward-agent-linux-amd64", m.Signed.Targets[r.path])
			m.Signed.Delegations = &metadata.Delegations{Keys: map[string]*metadata.Key{id: pub}, Roles: []metadata.DelegatedRole{{
				Name: "mine", KeyIDs: []string{id}, Threshold: 1, Paths: []string{"agent/*/*"},
			}}}
			return nil
		}, l.s.keys[tenantRole]...)
	}, "agent/6.6.6", "incompatible")
}

// also is between, with an offer of something else than what is released.
func (l *lane) also(ctx context.Context, what string, do func(f fork, r release) error, id string, want ...string) error {
	r, err := l.fresh(ctx)
	if err != nil {
		return err
	}
	f, err := l.s.fork()
	if err != nil {
		return err
	}
	if err := do(f, r); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	l.mirror.turn(f.meta(), nil)
	return l.try(ctx, what, id, usual, want...)
}

func freeze(ctx context.Context, l *lane) error {
	online, err := l.s.online()
	if err != nil {
		return err
	}
	// What the till is shown is good, and soon not fresh any more.
	f, err := l.s.fork()
	if err != nil {
		return err
	}
	const life = 5 * time.Second
	keys := trust.Keys{trust.RoleSnapshot: {online}, trust.RoleTimestamp: {online}}
	if err := (&trust.Repository{Dir: f.dir, Life: life}).Refresh(keys); err != nil {
		return err
	}
	ended := time.Now().Add(life)
	l.mirror.turn(f.meta(), nil)
	r, err := l.fresh(ctx)
	if err != nil {
		return err
	}
	if err := l.try(ctx, "the state of before, while it is good: the release is not in it", r.id, usual, "incompatible", "metadata-expired"); err != nil {
		return err
	}
	if err := until(ctx, ended.Add(time.Second)); err != nil {
		return err
	}
	if err := l.try(ctx, "the same when its time is over", r.id, usual, "metadata-expired"); err != nil {
		return err
	}
	return l.s.advance(ctx, f)
}

// until waits for a time.
func until(ctx context.Context, at time.Time) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Until(at)):
		return nil
	}
}

// gone has nothing.
func gone(w http.ResponseWriter, r *http.Request, _ string) bool {
	http.NotFound(w, r)
	return true
}

func maliciousMirror(ctx context.Context, l *lane) error {
	if err := l.serving(ctx, "a mirror that has nothing", steps{"OFFERED": short}, func(release) act { return gone }, "timeout"); err != nil {
		return err
	}
	l.bounded(patience, 1<<20)
	if err := l.serving(ctx, "a mirror whose metadata is no metadata", usual, func(release) act {
		return func(w http.ResponseWriter, _ *http.Request, name string) bool {
			if name != "metadata/timestamp.json" {
				return false
			}
			_, _ = w.Write([]byte(`{"signed":{},"signatures":[]}`))
			return true
		}
	}, "signature"); err != nil {
		return err
	}
	return l.serving(ctx, "a mirror that has all but the content", steps{"OFFERED": 60, "DOWNLOADING": short}, func(r release) act {
		return func(w http.ResponseWriter, q *http.Request, name string) bool {
			if !strings.HasPrefix(name, "targets/") {
				return false
			}
			http.Error(w, "come back later", http.StatusServiceUnavailable)
			return true
		}
	}, "timeout")
}

func mixAndMatch(ctx context.Context, l *lane) error {
	older := func(f fork, role string) error {
		file, version, err := f.newest(role)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(f.file(trust.MetadataFile(role, version-1)))
		if err != nil {
			return err
		}
		return os.WriteFile(file, b, 0o600) // #nosec G703 -- the scenario's own folder
	}
	if err := l.between(ctx, "the older version of a role under the number of the newer", func(f fork, _ release) error { return older(f, tenantRole) }, "rollback", "signature"); err != nil {
		return err
	}
	if err := l.between(ctx, "the older snapshot under the number of the newer", func(f fork, _ release) error { return older(f, trust.RoleSnapshot) }, "rollback", "signature"); err != nil {
		return err
	}
	return l.between(ctx, "another role under the name", func(f fork, _ release) error {
		file, _, err := f.newest(tenantRole)
		if err != nil {
			return err
		}
		from, _, err := f.newest("ops/" + rival)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(from) // #nosec G304 -- the scenario's own folder
		if err != nil {
			return err
		}
		return os.WriteFile(file, b, 0o600) // #nosec G703 -- the scenario's own folder
	}, "signature")
}

func rollback(ctx context.Context, l *lane) error {
	// The state of now, to be shown again when the till has seen a later one.
	old, err := l.s.fork()
	if err != nil {
		return err
	}
	if ok, err := l.takes(ctx); err != nil || !ok {
		return errors.Join(err, fmt.Errorf("the till does not take what makes the old state an old one: %s", l.unwilling))
	}
	if err := l.begins(ctx); err != nil {
		return err
	}
	r, err := l.fresh(ctx)
	if err != nil {
		return err
	}
	l.mirror.turn(old.meta(), nil)
	if err := l.try(ctx, "everything as it was before", r.id, usual, "rollback"); err != nil {
		return err
	}
	online, err := l.s.online()
	if err != nil {
		return err
	}
	var shown fork
	err = l.between(ctx, "a newer snapshot that lists an older role, by a thief of its key", func(f fork, _ release) error {
		shown = f
		return f.reseal(1, online, func(listed map[string]*metadata.MetaFiles) { listed[tenantRole+".json"] = metadata.MetaFile(1) })
	}, "rollback")
	if err != nil {
		return err
	}
	if err := l.s.advance(ctx, shown); err != nil {
		return err
	}
	l.mirror.honest()
	return l.try(ctx, "an older agent, well signed, is offered", "agent/"+oldAgent, usual, "downgrade")
}

func slowRetrieval(ctx context.Context, l *lane) error {
	err := l.serving(ctx, "metadata, a byte at a time", steps{"OFFERED": short}, func(release) act {
		return l.mirror.slow(func(n string) bool { return n == "metadata/timestamp.json" })
	}, "timeout")
	if err != nil {
		return err
	}
	l.bounded(patience, 64<<10)
	err = l.serving(ctx, "content, a byte at a time", steps{"OFFERED": 60, "DOWNLOADING": short}, func(r release) act {
		return l.mirror.slow(func(n string) bool { return content(n, r.id) })
	}, "timeout")
	if err == nil {
		l.bounded(patience, 1<<20)
	}
	return err
}

func belowThreshold(ctx context.Context, l *lane) error {
	one := l.s.keys[tenantRole][0]
	err := l.between(ctx, "one key of the two that must sign a release", func(f fork, r release) error {
		return f.role(tenantRole, func(m *targetsOf) error { return other(m, r.path) }, one)
	}, "signature")
	if err != nil {
		return err
	}
	online, err := l.s.online()
	if err != nil {
		return err
	}
	err = l.between(ctx, "that key, and keys of others who sign something else", func(f fork, r release) error {
		return f.role(tenantRole, func(m *targetsOf) error { return other(m, r.path) }, one, online, l.s.keys["ops/"+rival][0], l.s.keys[trust.RoleTargets][0])
	}, "signature")
	if err != nil {
		return err
	}
	err = l.between(ctx, "that key, twice", func(f fork, r release) error {
		return f.role(tenantRole, func(m *targetsOf) error { return other(m, r.path) }, one, one)
	}, "signature")
	if err != nil {
		return err
	}
	return l.between(ctx, "two keys of the three that must sign a root", func(f fork, _ release) error {
		mine, err := newKey()
		if err != nil {
			return err
		}
		file, version, err := f.newest(trust.RoleRoot)
		if err != nil {
			return err
		}
		return forge(file, f.file(trust.MetadataFile(trust.RoleRoot, version+1)), func(m *metadata.Metadata[metadata.RootType]) error {
			m.Signed.Version = version + 1
			pub, err := metadata.KeyFromPublicKey(mine.Public())
			if err != nil {
				return err
			}
			m.Signed.Roles[trust.RoleTargets].Threshold = 1
			return m.Signed.AddKey(pub, trust.RoleTargets)
		}, l.s.keys[trust.RoleRoot][:2]...)
	}, "signature")
}

func wrongSoftware(ctx context.Context, l *lane) error {
	before, err := l.fresh(ctx)
	if err != nil {
		return err
	}
	old, err := l.s.target(before.path)
	if err != nil {
		return err
	}
	content, err := l.mirror.file(filepath.Join("targets", old.File()))
	if err != nil {
		return err
	}
	return l.serving(ctx, "another genuine release of the same application in its place", usual, func(r release) act {
		return l.mirror.instead(r.id, func([]byte) []byte { return content })
	}, "signature")
}

func flippedByte(ctx context.Context, l *lane) error {
	var resumed atomic.Bool
	err := l.serving(ctx, "an application, cut, and a byte flipped in what is asked for then", usual, func(r release) act {
		return l.mirror.cutThenFlip(r.id, &resumed)
	}, "signature")
	if err != nil {
		return err
	}
	var again atomic.Bool
	agent := "agent/" + l.s.opt.UpdateTo
	l.mirror.turn("", l.mirror.cutThenFlip(agent, &again))
	if err := l.try(ctx, "an agent in the same way", agent, usual, "signature"); err != nil {
		return err
	}
	if !resumed.Load() || !again.Load() {
		return errors.New("the till did not go on where it was cut: this was no attack on a resumed range")
	}
	return nil
}
