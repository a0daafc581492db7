package tamper

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	_ "github.com/mattn/go-sqlite3" // whoever has the service has its database

	"github.com/tillward/tillward/provisioning/trust"
	"github.com/tillward/tillward/simulator"
)

const (
	tenant = "demo"  // whose the tills are
	rival  = "rival" // another one of the same service
)

// signers are as in the field: no one person can release anything.
var signers = []simulator.Signer{
	{Role: trust.RoleRoot, Keys: 5, Need: 3},
	{Role: trust.RoleTargets, Keys: 3, Need: 2},
	{Role: trust.RoleAgent, Keys: 3, Need: 2},
	{Role: "ops/" + tenant, Keys: 3, Need: 2},
	{Role: "ops/" + rival, Keys: 1, Need: 1},
	{Role: "os/" + model + "/prod", Keys: 2, Need: 2},
}

const model = "tillward-sim-1"

// siege is the fleet under attack, and what its attackers have got hold of.
type siege struct {
	world   *simulator.World
	opt     simulator.Options
	service string // data folder of the service
	keys    trust.Keys
	db      *sql.DB
	lanes   []*lane
	box     *box // boot slots of the last till

	revoked fork               // what was published before keys were revoked
	stolen  ed25519.PrivateKey // that of the service, which was revoked

	mu sync.Mutex // held while the folder of the repository changes
}

// open starts everything, and waits until the tills are attested.
func open(ctx context.Context, o simulator.Options, tills int) (_ *siege, err error) {
	o.Tills, o.Signers = tills, signers
	s := &siege{opt: o}
	if s.world, err = simulator.Open(ctx, o); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	s.service = filepath.Join(s.world.Dir(), "service")
	if s.keys, err = trust.ReadKeys(s.folder("keys")); err != nil {
		return nil, err
	}
	if s.db, err = sql.Open("sqlite3", "file:"+filepath.Join(s.service, "tillward.db")+"?_busy_timeout=20000"); err != nil {
		return nil, err
	}
	if s.box, err = newBox(ctx, s.world.Dir()); err != nil {
		return nil, err
	}
	for _, t := range s.world.Tills {
		l := &lane{s: s, till: t}
		s.lanes = append(s.lanes, l)
		if l.mirror, err = newMirror(ctx, s.service); err != nil {
			return nil, err
		}
		if err = t.Mirror(l.mirror.url); err != nil {
			return nil, err
		}
	}
	l := s.lanes[len(s.lanes)-1]
	if l.box = s.box; s.box.there() {
		if err = l.till.Slots(s.box.address(), s.box.power); err != nil {
			return nil, err
		}
	}
	for _, t := range s.world.Tills {
		t.Boot(ctx)
	}
	if err = s.releases(ctx); err != nil {
		return nil, err
	}
	for _, l := range s.lanes {
		if err = l.settled(ctx); err != nil {
			return nil, err
		}
		if ok, err := l.takes(ctx); err != nil || !ok { // something that a mix could be made of
			return nil, errors.Join(err, fmt.Errorf("%s does not take the first release", l.till.Name))
		}
	}
	return s, nil
}

func (s *siege) close() {
	s.world.Close()
	for _, l := range s.lanes {
		if l.mirror != nil {
			l.mirror.close()
		}
	}
	if s.box != nil {
		s.box.close()
	}
	if s.db != nil {
		_ = s.db.Close()
	}
}

func (s *siege) folder(what string) string { return filepath.Join(s.world.Dir(), "release", what) }

// online is the key with which the service signs snapshot and timestamp.
func (s *siege) online() (ed25519.PrivateKey, error) {
	return trust.ReadKey(filepath.Join(s.service, "online.key"))
}

// releases publishes what is there from the beginning: an agent that may be
// installed, one that is older than what runs, one for another model, and an
// application of another tenant.
func (s *siege) releases(ctx context.Context) error {
	if err := s.world.Release(ctx, s.opt.UpdateTo, s.opt.Next); err != nil {
		return err
	}
	stub := filepath.Join(s.world.Dir(), "stub")
	if err := os.WriteFile(stub, []byte("#!/bin/sh\nexit 0\n"), 0o600); err != nil {
		return err
	}
	tree, err := s.tree("1.0.0")
	if err != nil {
		return err
	}
	return s.publish(ctx, func() error {
		return errors.Join(
			s.sign(ctx, "--binary", stub, "--version", oldAgent),
			s.sign(ctx, "--binary", stub, "--version", otherModel, "--models", "another-model"),
			s.sign(ctx, "--tree", tree, "--tenant", rival, "--name", "till", "--version", "1.0.0"),
		)
	}, "agent/"+oldAgent, "agent/"+otherModel, "ops/"+rival+"/till/1.0.0")
}

// Versions of agents beside the one that may be installed.
const (
	oldAgent   = "0.0.1"
	otherModel = "7.0.0"
)

// sign makes a release with the tool, as those who sign would together.
func (s *siege) sign(ctx context.Context, args ...string) error {
	return s.world.Provision(ctx, append([]string{"release", "add", "--repo", s.folder("repo"), "--keys", s.folder("keys")}, args...)...)
}

// publish signs and hands the repository to the service: all metadata, and the
// content of these releases. Nobody else signs meanwhile.
func (s *siege) publish(ctx context.Context, sign func() error, releases ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := sign(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(s.world.Dir(), "upload-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Mkdir(filepath.Join(dir, "targets"), 0o700); err != nil {
		return err
	}
	for _, part := range append([]string{"metadata"}, releases...) {
		if part != "metadata" {
			part = path.Join("targets", part)
		}
		from := filepath.Join(s.folder("repo"), filepath.FromSlash(part))
		if err := os.CopyFS(filepath.Join(dir, filepath.FromSlash(part)), os.DirFS(from)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return s.world.CLI(ctx, "release", "publish", "--repo", dir)
}

// advance has the service sign snapshot and timestamp anew until they are ahead
// of what a thief of its key has shown.
func (s *siege) advance(ctx context.Context, f fork) error {
	far, err := stamped(f.meta())
	if err != nil {
		return err
	}
	for {
		now, err := stamped(filepath.Join(s.service, "artifacts", "metadata"))
		if err != nil || now > far {
			return err
		}
		if err := s.publish(ctx, nothing); err != nil {
			return err
		}
	}
}

func nothing() error { return nil }

// tree is an application of a version, which always has the same size.
func (s *siege) tree(version string) (string, error) {
	dir, err := os.MkdirTemp(s.world.Dir(), "tree-")
	if err != nil {
		return "", err
	}
	data := make([]byte, 256<<10)
	_, _ = rand.Read(data)
	// It takes a moment to find out whether it does its work.
	return dir, errors.Join(
		os.WriteFile(filepath.Join(dir, "check"), []byte("#!/bin/sh\nexec sleep 0.3\n"), 0o700), // #nosec G306 -- a program
		os.WriteFile(filepath.Join(dir, "tillward.json"), []byte(`{"health": ["./check"]}`), 0o600),
		os.WriteFile(filepath.Join(dir, "data"), data, 0o600),
		os.WriteFile(filepath.Join(dir, "version"), fmt.Appendf(nil, "%20s", version), 0o600),
	)
}

// lie writes a release into the service's database that is not as it says, or
// is not at all. The service offers what its database holds.
func (s *siege) lie(ctx context.Context, id, class, version string) error {
	_, err := s.db.ExecContext(ctx, `INSERT INTO "release" (id, class, version, targets, published_at, published_by, component, tenant, models, requires, withdrawn)
		VALUES (?, ?, ?, '[]', ?, 'thief', ?, '', '[]', '{}', 0)
		ON CONFLICT (id) DO UPDATE SET class = excluded.class, version = excluded.version, component = excluded.component, tenant = '', models = '[]'`,
		id, class, version, time.Now().UnixMilli(), "lie/"+strings.ReplaceAll(id, "/", "-"))
	if err != nil {
		return fmt.Errorf("write the database of the service: %w", err)
	}
	return nil
}

// renamed is a copy of a program that says it is another version of the same
// length.
func renamed(ctx context.Context, program, dir, from, to string) (string, error) {
	b, err := os.ReadFile(program) // #nosec G304 -- our own binary
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "agent-"+to)
	for at := 0; ; {
		i := strings.Index(string(b[at:]), from)
		if i < 0 || len(from) != len(to) {
			return "", fmt.Errorf("%s does not hold its version, %s, in a form that could be changed", program, from)
		}
		i += at
		at = i + 1
		copy(b[i:], to)
		if err := os.WriteFile(out, b, 0o700); err != nil { // #nosec G306 -- a program
			return "", err
		}
		says, err := exec.CommandContext(ctx, out, "-version").Output() // #nosec G204 -- our own binary
		if err == nil && strings.TrimSpace(string(says)) == to {
			return out, nil
		}
		copy(b[i:], from)
	}
}
