package trust_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/tillward/tillward/provisioning/trust"
)

// party is a repository that nobody holds alone: root 2 of 3, targets and
// agent/prod 2 of 3, an online key.
type party struct {
	repo         *trust.Repository
	root, agents []ed25519.PrivateKey
	online       ed25519.PrivateKey
	dev          *trust.Client
}

func newParty(t *testing.T) *party {
	t.Helper()
	p := &party{repo: &trust.Repository{Dir: t.TempDir()}, online: newKey(t)}
	for range 3 {
		p.root, p.agents = append(p.root, newKey(t)), append(p.agents, newKey(t))
	}
	err := p.repo.Begin(map[string]trust.Signers{
		trust.RoleRoot: {Keys: public(p.root...), Threshold: 2}, trust.RoleTargets: {Keys: public(p.agents...), Threshold: 2},
		trust.RoleSnapshot: {Keys: public(p.online)}, trust.RoleTimestamp: {Keys: public(p.online)},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.repo.Delegate(trust.RoleAgent, trust.Signers{Keys: public(p.agents...), Threshold: 2}, nil); err != nil {
		t.Fatal(err)
	}
	p.signs(t, trust.RoleRoot, p.root[0], p.root[1])
	p.signs(t, trust.RoleTargets, p.agents[0], p.agents[1])
	if done := p.signs(t, trust.RoleAgent, p.agents[0], p.agents[2]); !slices.Equal(done, []string{trust.RoleAgent}) {
		t.Fatalf("complete: %v", done)
	}
	p.refresh(t)
	root, err := p.repo.Root()
	if err != nil {
		t.Fatal(err)
	}
	p.dev = &trust.Client{Dir: t.TempDir(), FactoryRoot: root, URL: base, Fetch: trust.FolderFetch(base, filepath.Join(p.repo.Dir, "metadata"))}
	return p
}

func public(keys ...ed25519.PrivateKey) (list []crypto.PublicKey) {
	for _, k := range keys {
		list = append(list, k.Public())
	}
	return list
}

func (p *party) refresh(t *testing.T) {
	t.Helper()
	if err := p.repo.Refresh(trust.Keys{trust.RoleTimestamp: {p.online}}); err != nil {
		t.Fatal(err)
	}
}

func (p *party) draft(t *testing.T, role string) *trust.Draft {
	t.Helper()
	return p.draftOf(t, p.repo.Dir, role)
}

// signs signs a role's draft with keys, each on its own, and merges.
func (p *party) signs(t *testing.T, role string, keys ...ed25519.PrivateKey) (done []string) {
	t.Helper()
	for _, k := range keys {
		s, err := p.draft(t, role).Sign(k)
		if err != nil {
			t.Fatal(err)
		}
		if done, err = p.repo.Merge([]trust.Signature{s}); err != nil {
			t.Fatal(err)
		}
	}
	return done
}

func (p *party) add(t *testing.T, path string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, []byte(path))
	if err := p.repo.Add([]trust.NewTarget{{Path: path, File: file, Custom: trust.Custom{Class: trust.ClassAgent, Version: "1.2.3"}}}, nil); err != nil {
		t.Fatal(err)
	}
}

func TestCeremonyReachesTheDevice(t *testing.T) {
	p := newParty(t)
	p.add(t, path)
	if _, err := p.dev.Target(t.Context(), path); !errors.Is(err, trust.ErrNoTarget) {
		t.Errorf("a draft: got %v, want ErrNoTarget", err)
	}
	p.signs(t, trust.RoleAgent, p.agents[0])
	p.refresh(t)
	if _, err := p.dev.Target(t.Context(), path); !errors.Is(err, trust.ErrNoTarget) {
		t.Errorf("below the threshold: got %v, want ErrNoTarget", err)
	}
	p.signs(t, trust.RoleAgent, p.agents[2])
	p.refresh(t)
	if _, err := p.dev.Target(t.Context(), path); err != nil {
		t.Error(err)
	}
}

// What somebody who holds fewer keys than must sign can do to a draft or to
// signatures. None of it may count.
func TestMergeRefuses(t *testing.T) {
	p := newParty(t)
	p.add(t, path)
	good, err := p.draft(t, trust.RoleAgent).Sign(p.agents[0])
	if err != nil {
		t.Fatal(err)
	}
	other := newParty(t)
	other.add(t, path)
	foreign, err := other.draft(t, trust.RoleAgent).Sign(other.agents[0])
	if err != nil {
		t.Fatal(err)
	}
	with := func(change func(*trust.Signature)) trust.Signature {
		s := good
		change(&s)
		return s
	}
	second, err := trust.TUFKeyID(p.agents[1].Public())
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		give []trust.Signature
		want error
	}{
		"by a key of another repository": {[]trust.Signature{foreign}, trust.ErrUnknownKey},
		"in another's name":              {[]trust.Signature{good, with(func(s *trust.Signature) { s.KeyID = second })}, trust.ErrBadSignature},
		"for another version":            {[]trust.Signature{with(func(s *trust.Signature) { s.Version++ })}, trust.ErrBadSignature},
		"for another role":               {[]trust.Signature{with(func(s *trust.Signature) { s.Role = trust.RoleRoot })}, nil},
		"not in hex":                     {[]trust.Signature{with(func(s *trust.Signature) { s.Sig = "xy" })}, trust.ErrBadSignature},
		"empty":                          {[]trust.Signature{with(func(s *trust.Signature) { s.Sig = "" })}, trust.ErrBadSignature},
		"twice":                          {[]trust.Signature{good, good}, nil},
	} {
		done, err := p.repo.Merge(tt.give)
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v and %v, want %v", name, done, err, tt.want)
		}
	}
	status, err := p.repo.Status()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range status {
		if s.Role == trust.RoleAgent && (s.Draft == nil || len(s.Draft.Signed) != 0) {
			t.Errorf("after what was refused: %+v, want an unsigned draft", s.Draft)
		}
	}
}

// A draft that says of itself who may sign it is not believed.
func TestDraftDoesNotNameItsSigners(t *testing.T) {
	p := newParty(t)
	p.add(t, path)
	d := p.draft(t, trust.RoleAgent)
	thief := newKey(t)
	by, err := metadata.Targets().FromBytes(d.Delegator)
	if err != nil {
		t.Fatal(err)
	}
	id, err := trust.TUFKeyID(thief.Public())
	if err != nil {
		t.Fatal(err)
	}
	key, err := metadata.KeyFromPublicKey(thief.Public())
	if err != nil {
		t.Fatal(err)
	}
	by.Signed.Delegations.Keys[id] = key
	by.Signed.Delegations.Roles[0].KeyIDs = []string{id}
	by.Signed.Delegations.Roles[0].Threshold = 1
	if d.Delegator, err = by.ToBytes(false); err != nil {
		t.Fatal(err)
	}
	s, err := d.Sign(thief) // on the thief's machine nobody hinders it
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	write(t, p.repo.DraftFile(trust.RoleAgent), b)
	if done, err := p.repo.Merge([]trust.Signature{s}); !errors.Is(err, trust.ErrUnknownKey) {
		t.Errorf("got %v and %v, want ErrUnknownKey", done, err)
	}
	// Who keeps a root sees it before signing.
	root, err := p.repo.Root()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Follows(root); !errors.Is(err, trust.ErrSignature) {
		t.Errorf("got %v, want ErrSignature", err)
	}
}

// A past that was made up is not shown as something that others have signed.
func TestMadeUpPastIsShownAsNew(t *testing.T) {
	p := newParty(t)
	p.add(t, path)
	d := p.draft(t, trust.RoleAgent)
	before, err := metadata.Targets().FromBytes(d.Metadata)
	if err != nil {
		t.Fatal(err)
	}
	before.Signed.Version--
	if d.Previous, err = before.ToBytes(false); err != nil {
		t.Fatal(err)
	}
	lines := func() string {
		l, err := d.Describe()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(l, "\n")
	}
	if strings.Contains(lines(), "+ "+path) {
		t.Fatal("the forgery does not hide anything")
	}
	root, err := p.repo.Root()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Follows(root); err != nil {
		t.Fatal(err)
	}
	if got := lines(); !strings.Contains(got, "+ "+path) {
		t.Errorf("got %s, want the target as a new one", got)
	}
}

// A stolen key below the threshold: the device takes nothing that it signed,
// before and after it is revoked, and goes on with what the others sign.
func TestStolenKey(t *testing.T) {
	p := newParty(t)
	stolen := p.agents[0]
	attack := func() {
		t.Helper()
		file := ""
		for v := range 9 {
			f := filepath.Join(p.repo.Dir, "metadata", trust.MetadataFile(trust.RoleAgent, int64(v)))
			if _, err := os.Stat(f); err == nil {
				file = f
			}
		}
		was := read(t, file)
		m, err := metadata.Targets().FromBytes(was)
		if err != nil {
			t.Fatal(err)
		}
		m.Signed.Targets["agent/6.6.6/tillward-agent-linux-amd64"] = m.Signed.Targets[path]
		resign(t, m, file, stolen)
		fresh := &trust.Client{Dir: t.TempDir(), FactoryRoot: p.dev.FactoryRoot, URL: base, Fetch: p.dev.Fetch}
		if _, err := fresh.Target(t.Context(), path); !errors.Is(err, trust.ErrSignature) {
			t.Errorf("got %v, want ErrSignature", err)
		}
		write(t, file, was)
	}
	p.add(t, path)
	p.signs(t, trust.RoleAgent, p.agents[0], p.agents[1])
	p.refresh(t)
	attack()

	id, err := trust.TUFKeyID(stolen.Public())
	if err != nil {
		t.Fatal(err)
	}
	fresh := newKey(t)
	if err := p.repo.Rotate(trust.RoleAgent, public(fresh), []string{id}, 0, nil); err != nil {
		t.Fatal(err)
	}
	p.signs(t, trust.RoleTargets, p.agents[1], p.agents[2])
	if _, err := p.draft(t, trust.RoleAgent).Sign(stolen); !errors.Is(err, trust.ErrUnknownKey) {
		t.Errorf("got %v, want ErrUnknownKey", err)
	}
	if done := p.signs(t, trust.RoleAgent, p.agents[1], fresh); !slices.Equal(done, []string{trust.RoleTargets, trust.RoleAgent}) {
		t.Errorf("complete: %v, want both at once", done)
	}
	p.refresh(t)
	if _, err := p.dev.Target(t.Context(), path); err != nil {
		t.Error(err)
	}
	attack()
}

// A root that follows from none is taken by no device of the old one, and does
// not disturb it.
func TestRecoveredRoot(t *testing.T) {
	p := newParty(t)
	p.add(t, path)
	p.signs(t, trust.RoleAgent, p.agents[0], p.agents[1])
	p.refresh(t)
	if err := p.dev.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	fresh := []ed25519.PrivateKey{newKey(t), newKey(t)}
	if err := p.repo.Recover(trust.Signers{Keys: public(fresh...)}); err != nil {
		t.Fatal(err)
	}
	p.signs(t, trust.RoleRoot, fresh...)
	p.refresh(t)
	if _, err := p.dev.Target(t.Context(), path); err != nil {
		t.Errorf("a device of the old root: %v", err)
	}
	recovered := read(t, filepath.Join(p.repo.Dir, "metadata", "101.root.json"))
	imaged := &trust.Client{Dir: t.TempDir(), FactoryRoot: recovered, URL: base, Fetch: p.dev.Fetch}
	if _, err := imaged.Target(t.Context(), path); err != nil {
		t.Errorf("a device whose image carries the new root: %v", err)
	}
	// Served as the next root it would be refused.
	write(t, filepath.Join(p.repo.Dir, "metadata", "2.root.json"), recovered)
	if err := p.dev.Refresh(t.Context()); !errors.Is(err, trust.ErrSignature) {
		t.Errorf("as the next root: got %v, want ErrSignature", err)
	}
}

func TestExpiredDraft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newParty(t)
		p.add(t, path)
		s, err := p.draft(t, trust.RoleAgent).Sign(p.agents[0])
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(91 * 24 * time.Hour)
		if _, err := p.draft(t, trust.RoleAgent).Sign(p.agents[1]); err == nil || !strings.Contains(err.Error(), "has expired while it waited") {
			t.Errorf("signed: got %v", err)
		}
		if done, err := p.repo.Merge([]trust.Signature{s}); err == nil || !strings.Contains(err.Error(), "has expired while it waited") {
			t.Errorf("merged: got %v and %v", done, err)
		}
	})
}

// Where the service signs snapshots the folder has none, and is checked without.
func TestVerifyWithoutSnapshot(t *testing.T) {
	p := newParty(t)
	p.add(t, path)
	p.signs(t, trust.RoleAgent, p.agents[0], p.agents[1])
	if !p.repo.Stamped() {
		t.Error("there is a timestamp")
	}
	if err := os.Remove(filepath.Join(p.repo.Dir, "metadata", "timestamp.json")); err != nil {
		t.Fatal(err)
	}
	root := p.dev.FactoryRoot
	list, err := p.repo.Verify(root)
	if err != nil || len(list) != 1 || list[0].Path != path || p.repo.Stamped() {
		t.Fatalf("got %+v and %v, want one target", list, err)
	}
	file := filepath.Join(p.repo.Dir, "metadata", "2.agent%2Fprod.json")
	was := read(t, file)
	m, err := metadata.Targets().FromBytes(was)
	if err != nil {
		t.Fatal(err)
	}
	resign(t, m, file, p.agents[0])
	if _, err := p.repo.Verify(root); !errors.Is(err, trust.ErrSignature) {
		t.Errorf("below the threshold: got %v, want ErrSignature", err)
	}
	write(t, file, was)
	if _, err := p.repo.Verify(newParty(t).dev.FactoryRoot); !errors.Is(err, trust.ErrSignature) {
		t.Errorf("from another root: got %v, want ErrSignature", err)
	}
	write(t, filepath.Join(p.repo.Dir, "metadata", "2.root.json"), root)
	if _, err := p.repo.Verify(root); !errors.Is(err, trust.ErrSignature) {
		t.Errorf("with a root that does not follow: got %v, want ErrSignature", err)
	}
	if err := os.Remove(filepath.Join(p.repo.Dir, "metadata", "2.root.json")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(p.repo.Dir, "targets", list[0].File()), []byte("other"))
	if _, err := p.repo.Verify(root); !errors.Is(err, trust.ErrMismatch) {
		t.Errorf("another file: got %v, want ErrMismatch", err)
	}
}

// A power cut while drafts are published leaves some of them published, or
// published and still there as drafts. The next merge completes it.
func TestPowerCutWhilePublishing(t *testing.T) {
	p := newParty(t)
	p.add(t, path)
	fresh := newKey(t)
	gone, err := trust.TUFKeyID(p.agents[0].Public())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.repo.Rotate(trust.RoleTargets, public(fresh), []string{gone}, 0, nil); err != nil {
		t.Fatal(err)
	}
	if err := p.repo.Rotate(trust.RoleAgent, public(fresh), []string{gone}, 0, nil); err != nil {
		t.Fatal(err)
	}
	p.signs(t, trust.RoleRoot, p.root[0])
	p.signs(t, trust.RoleAgent, p.agents[1], fresh)
	p.signs(t, trust.RoleTargets, fresh, p.agents[1])
	before, after := t.TempDir(), t.TempDir()
	copyTree := func(to, from string) {
		t.Helper()
		if err := os.RemoveAll(to); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(to, os.DirFS(from)); err != nil {
			t.Fatal(err)
		}
	}
	copyTree(before, p.repo.Dir)
	s, err := p.draft(t, trust.RoleRoot).Sign(p.root[2])
	if err != nil {
		t.Fatal(err)
	}
	done, err := p.repo.Merge([]trust.Signature{s})
	if want := []string{trust.RoleRoot, trust.RoleTargets, trust.RoleAgent}; err != nil || !slices.Equal(done, want) {
		t.Fatalf("complete: %v, %v, want %v", done, err, want)
	}
	copyTree(after, p.repo.Dir)
	// The draft of the root as it was signed in full, just before it was published.
	root := p.draftOf(t, before, trust.RoleRoot)
	root.Metadata = read(t, filepath.Join(after, "metadata", "2.root.json"))
	signed, err := json.Marshal(root)
	if err != nil {
		t.Fatal(err)
	}
	steps := []string{"2.root.json", "2.targets.json", "2.agent%2Fprod.json"}
	drafts := []string{trust.RoleRoot, trust.RoleTargets, trust.RoleAgent}
	for cut := range 2*len(steps) + 1 {
		copyTree(p.repo.Dir, before)
		write(t, p.repo.DraftFile(trust.RoleRoot), signed)
		for i := range steps { // what happened before the cut: a file written, its draft removed
			if cut > 2*i {
				write(t, filepath.Join(p.repo.Dir, "metadata", steps[i]), read(t, filepath.Join(after, "metadata", steps[i])))
			}
			if cut > 2*i+1 {
				if err := os.Remove(p.repo.DraftFile(drafts[i])); err != nil {
					t.Fatal(err)
				}
			}
		}
		if _, err := p.repo.Merge(nil); err != nil {
			t.Errorf("cut %d: %v", cut, err)
			continue
		}
		for i, name := range steps {
			if got, want := read(t, filepath.Join(p.repo.Dir, "metadata", name)), read(t, filepath.Join(after, "metadata", name)); string(got) != string(want) {
				t.Errorf("cut %d: %s differs", cut, name)
			}
			if _, err := os.Stat(p.repo.DraftFile(drafts[i])); err == nil {
				t.Errorf("cut %d: the draft of %s is still there", cut, drafts[i])
			}
		}
		p.refresh(t)
		dev := &trust.Client{Dir: t.TempDir(), FactoryRoot: p.dev.FactoryRoot, URL: base, Fetch: p.dev.Fetch}
		if _, err := dev.Target(t.Context(), path); err != nil {
			t.Errorf("cut %d: %v", cut, err)
		}
	}
}

func (p *party) draftOf(t *testing.T, dir, role string) *trust.Draft {
	t.Helper()
	d, err := trust.ReadDraft((&trust.Repository{Dir: dir}).DraftFile(role))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// One key under two ids would count as two.
func TestKeyWithAnotherID(t *testing.T) {
	p := newParty(t)
	p.add(t, path)
	d := p.draft(t, trust.RoleAgent)
	id, err := trust.TUFKeyID(p.agents[0].Public())
	if err != nil {
		t.Fatal(err)
	}
	d.Delegator = json.RawMessage(strings.ReplaceAll(string(d.Delegator), id, strings.Repeat("ab", 32)))
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := trust.ParseDraft(b); !errors.Is(err, trust.ErrMismatch) {
		t.Errorf("got %v, want ErrMismatch", err)
	}
	if err := p.repo.Rotate(trust.RoleAgent, public(p.agents[0]), nil, 0, nil); err == nil {
		t.Error("the same key was added twice")
	}
}

// go-tuf takes keys of other curves and then verifies nothing they signed.
func TestOtherCurvesAreRefused(t *testing.T) {
	k, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := trust.TUFKeyID(k.Public()); err == nil {
		t.Errorf("got id %s for a key of P-384", id)
	}
	k, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p := newParty(t)
	if err := p.repo.Delegate("ops/main", trust.Signers{Keys: []crypto.PublicKey{k.Public()}}, nil); err != nil {
		t.Fatal(err)
	}
	s, err := p.draft(t, "ops/main").Sign(k)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.repo.Merge([]trust.Signature{s}); err != nil {
		t.Error(err)
	}
	if done := p.signs(t, trust.RoleTargets, p.agents[0], p.agents[1]); !slices.Equal(done, []string{trust.RoleTargets, "ops/main"}) {
		t.Errorf("complete: %v", done)
	}
}

// A repository from before there were delegations is read, and signed on.
func TestOldRepository(t *testing.T) {
	w := newWorld(t)
	if err := w.add(t, "old/thing", trust.Custom{}); err != nil {
		t.Fatal(err)
	}
	m, err := metadata.Targets().FromFile(w.file("2.targets.json"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(w.repo.Dir, "targets", "agent", "1.2.3")
	if err := os.MkdirAll(file, 0o700); err != nil {
		t.Fatal(err)
	}
	m.Signed.Targets[path] = m.Signed.Targets["old/thing"]
	old := trust.Target{Path: path, SHA256: m.Signed.Targets[path].Hashes["sha256"].String()}
	write(t, filepath.Join(w.repo.Dir, "targets", old.File()), []byte("old/thing"))
	resign(t, m, w.file("2.targets.json"), w.keys[trust.RoleTargets][0])
	if _, err := w.dev.Target(t.Context(), path); err != nil {
		t.Error(err)
	}
	if err := w.add(t, path, trust.Custom{}); err == nil {
		t.Error("what the old metadata has released was released again")
	}
	w.release(t, "1.2.4")
	for _, p := range []string{path, "agent/1.2.4/tillward-agent-linux-amd64"} {
		if _, err := w.dev.Target(t.Context(), p); err != nil {
			t.Error(err)
		}
	}
	if list, err := trust.VerifyRepository(t.Context(), w.repo.Dir, t.TempDir(), w.dev.FactoryRoot); err != nil || len(list) != 3 {
		t.Errorf("got %+v and %v, want three targets", list, err)
	}
}

func FuzzDraft(f *testing.F) {
	f.Add([]byte(`{"role":"agent/prod","metadata":{"signatures":[],"signed":{"_type":"targets","version":1,"targets":{}}},"delegator":{"signed":{"_type":"targets","delegations":{"keys":{},"roles":[{"name":"agent/prod","keyids":[],"threshold":1}]}}}}`))
	f.Add([]byte(`{"role":"root","metadata":{"signatures":[],"signed":{"_type":"root","version":1,"roles":{"root":null}}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := trust.ParseDraft(b)
		if err != nil {
			return
		}
		if _, err := d.Describe(); err != nil {
			t.Errorf("read, and then not described: %v", err)
		}
		_ = d.Follows(b)
	})
}
