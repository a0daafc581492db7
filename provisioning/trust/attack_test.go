package trust_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/tillward/tillward/provisioning/trust"
)

// fleet is a repository as in the field: root 3 of 5, targets 2 of 3, agents 2
// of 3, one operator, and a device that has seen release 1.2.3.
func fleet(t *testing.T) *world {
	t.Helper()
	keys := make(trust.Keys)
	for role, n := range map[string]int{
		trust.RoleRoot: 5, trust.RoleTargets: 3, trust.RoleSnapshot: 1, trust.RoleTimestamp: 1, "agent/prod": 3, "ops/acme": 1,
	} {
		for range n {
			keys[role] = append(keys[role], newKey(t))
		}
	}
	repo, err := trust.InitRepository(t.TempDir(), keys, map[string]int{trust.RoleRoot: 3, trust.RoleTargets: 2, "agent/prod": 2})
	must(t, err)
	root, err := repo.Root()
	must(t, err)
	w := &world{repo: repo, keys: keys}
	w.dev = w.device(t, root)
	w.release(t, "1.2.3")
	_, err = w.dev.Target(t.Context(), path)
	must(t, err)
	return w
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// device is a new box with that root in its image.
func (w *world) device(t *testing.T, root []byte) *trust.Client {
	t.Helper()
	return &trust.Client{Dir: t.TempDir(), FactoryRoot: root, URL: base, Fetch: trust.FolderFetch(base, filepath.Join(w.repo.Dir, "metadata"))}
}

// forge changes metadata and signs it with the keys an attacker has.
func forge[T metadata.Roles](t *testing.T, from, to string, change func(m *metadata.Metadata[T]), keys ...ed25519.PrivateKey) {
	t.Helper()
	m := &metadata.Metadata[T]{}
	must(t, json.Unmarshal(read(t, from), m))
	change(m)
	m.ClearSignatures()
	for _, k := range keys {
		s, err := signature.LoadSigner(k, crypto.Hash(0))
		must(t, err)
		_, err = m.Sign(s)
		must(t, err)
	}
	must(t, m.ToFile(to, true))
}

const next = "agent/1.3.0/tillward-agent-linux-amd64"

// newest names the newest file of a role.
func (w *world) newest(t *testing.T, role string) string {
	t.Helper()
	for v := int64(99); v > 0; v-- {
		f := w.file(trust.MetadataFile(role, v))
		if _, err := os.Stat(f); err == nil {
			return f
		}
	}
	t.Fatalf("no %s", role)
	return ""
}

// reseal lets the holder of the online keys list versions of roles as he likes.
func (w *world) reseal(t *testing.T, change func(snapshot, timestamp map[string]*metadata.MetaFiles)) {
	t.Helper()
	snap := w.newest(t, trust.RoleSnapshot)
	var version int64
	var stamped map[string]*metadata.MetaFiles
	var listed map[string]*metadata.MetaFiles
	m, err := metadata.Snapshot().FromFile(snap)
	must(t, err)
	version = m.Signed.Version + 1
	forge(t, w.file("timestamp.json"), w.file("timestamp.json"), func(ts *metadata.Metadata[metadata.TimestampType]) {
		ts.Signed.Version++
		ts.Signed.Meta["snapshot.json"] = metadata.MetaFile(version)
		stamped, listed = ts.Signed.Meta, m.Signed.Meta
		change(listed, stamped)
	}, w.keys[trust.RoleTimestamp]...)
	forge(t, snap, w.file(fmt.Sprintf("%d.snapshot.json", version)), func(s *metadata.Metadata[metadata.SnapshotType]) {
		s.Signed.Version, s.Signed.Meta = version, listed
	}, w.keys[trust.RoleSnapshot]...)
}

// attack is what somebody does between a repository with release 1.3.0 and a
// device that knows 1.2.3.
type attack struct {
	name string
	do   func(t *testing.T, w *world)
	want error
	at   string // path that is asked for; next by default
}

const foreign = "agent/6.6.6/tillward-agent-linux-amd64"

// The attacks of the TUF specification, 1.5.2, each with the strongest position
// that it assumes. The twin of each is the same device, which takes the release
// before and after: what is refused is the attack and nothing else.
var attacks = []attack{
	{"arbitrary software: an own description of the target", func(t *testing.T, w *world) {
		f := w.newest(t, "agent/prod")
		forge(t, f, f, func(m *metadata.Metadata[metadata.TargetsType]) { m.Signed.Targets[next].Hashes["sha256"][0] ^= 1 }, newKey(t), newKey(t))
	}, trust.ErrSignature, ""},
	{"arbitrary software: signed by whoever holds all online keys", func(t *testing.T, w *world) {
		f := w.newest(t, "agent/prod")
		forge(t, f, f, func(m *metadata.Metadata[metadata.TargetsType]) { m.Signed.Targets[next].Hashes["sha256"][0] ^= 1 }, w.keys[trust.RoleSnapshot][0], w.keys[trust.RoleTimestamp][0])
		w.reseal(t, func(_, _ map[string]*metadata.MetaFiles) {})
	}, trust.ErrSignature, ""},
	{"arbitrary software: signed by an operator", func(t *testing.T, w *world) {
		f := w.newest(t, "agent/prod")
		forge(t, f, f, func(m *metadata.Metadata[metadata.TargetsType]) { m.Signed.Targets[next].Hashes["sha256"][0] ^= 1 }, w.keys["ops/acme"]...)
	}, trust.ErrSignature, ""},
	{"key compromise: one agent key of two", func(t *testing.T, w *world) {
		f := w.newest(t, "agent/prod")
		forge(t, f, f, func(m *metadata.Metadata[metadata.TargetsType]) { m.Signed.Targets[next].Hashes["sha256"][0] ^= 1 }, w.keys["agent/prod"][0])
	}, trust.ErrSignature, ""},
	{"key compromise: one agent key, its signature twice", func(t *testing.T, w *world) {
		f := w.newest(t, "agent/prod")
		forge(t, f, f, func(m *metadata.Metadata[metadata.TargetsType]) { m.Signed.Targets[next].Hashes["sha256"][0] ^= 1 }, w.keys["agent/prod"][0], w.keys["agent/prod"][0])
	}, trust.ErrSignature, ""},
	{"key compromise: two root keys of three", func(t *testing.T, w *world) {
		mine := newKey(t)
		forge(t, w.file("1.root.json"), w.file("2.root.json"), func(m *metadata.Metadata[metadata.RootType]) {
			m.Signed.Version = 2
			pub, err := metadata.KeyFromPublicKey(mine.Public())
			must(t, err)
			must(t, m.Signed.AddKey(pub, trust.RoleTargets))
			m.Signed.Roles[trust.RoleTargets].Threshold = 1
		}, w.keys[trust.RoleRoot][:2]...)
	}, trust.ErrSignature, ""},
	{"key compromise: one targets key, and the online keys", func(t *testing.T, w *world) {
		forge(t, w.newest(t, trust.RoleTargets), w.file("9.targets.json"), func(m *metadata.Metadata[metadata.TargetsType]) {
			m.Signed.Version = 9
			m.Signed.Delegations.Roles[0].Threshold = 1
		}, w.keys[trust.RoleTargets][0])
		w.reseal(t, func(snapshot, _ map[string]*metadata.MetaFiles) { snapshot["targets.json"] = metadata.MetaFile(9) })
	}, trust.ErrSignature, ""},
	{"endless data: the timestamp", func(t *testing.T, w *world) { endless(w, "timestamp.json") }, trust.ErrMismatch, ""},
	{"endless data: the snapshot", func(t *testing.T, w *world) { endless(w, ".snapshot.json") }, trust.ErrMismatch, ""},
	{"endless data: a delegated role", func(t *testing.T, w *world) { endless(w, ".agent%2Fprod.json") }, trust.ErrMismatch, ""},
	{"endless data: a root", func(t *testing.T, w *world) { endless(w, "2.root.json") }, trust.ErrMismatch, ""},
	{"extraneous dependencies: an operator names an agent", func(t *testing.T, w *world) {
		forge(t, w.newest(t, "ops/acme"), w.file("9.ops%2Facme.json"), func(m *metadata.Metadata[metadata.TargetsType]) {
			m.Signed.Version = 9
			m.Signed.Targets[foreign] = &metadata.TargetFiles{Path: foreign, Length: 1, Hashes: metadata.Hashes{"sha256": make([]byte, 32)}}
		}, w.keys["ops/acme"]...)
		w.reseal(t, func(snapshot, _ map[string]*metadata.MetaFiles) { snapshot["ops/acme.json"] = metadata.MetaFile(9) })
	}, trust.ErrNoTarget, foreign},
	{"extraneous dependencies: an operator delegates what is not his", func(t *testing.T, w *world) {
		mine := newKey(t)
		pub, err := metadata.KeyFromPublicKey(mine.Public())
		must(t, err)
		id, err := pub.ID()
		must(t, err)
		forge(t, w.newest(t, "ops/acme"), w.file("9.ops%2Facme.json"), func(m *metadata.Metadata[metadata.TargetsType]) {
			m.Signed.Version = 9
			m.Signed.Delegations = &metadata.Delegations{Keys: map[string]*metadata.Key{id: pub}, Roles: []metadata.DelegatedRole{{
				Name: "mine", KeyIDs: []string{id}, Threshold: 1, Paths: []string{"agent/*/*"},
			}}}
		}, w.keys["ops/acme"]...)
		must(t, metadata.Targets(time.Now().Add(time.Hour)).ToFile(w.file("1.mine.json"), true))
		forge(t, w.file("1.mine.json"), w.file("1.mine.json"), func(m *metadata.Metadata[metadata.TargetsType]) {
			m.Signed.Targets[foreign] = &metadata.TargetFiles{Path: foreign, Length: 1, Hashes: metadata.Hashes{"sha256": make([]byte, 32)}}
		}, mine)
		w.reseal(t, func(snapshot, _ map[string]*metadata.MetaFiles) {
			snapshot["ops/acme.json"], snapshot["mine.json"] = metadata.MetaFile(9), metadata.MetaFile(1)
		})
	}, trust.ErrNoTarget, foreign},
	{"malicious mirror: nothing but old files", func(t *testing.T, w *world) {
		must(t, os.Remove(w.file("timestamp.json")))
	}, os.ErrNotExist, ""},
	{"malicious mirror: an old timestamp of the device's", func(t *testing.T, w *world) {
		write(t, w.file("timestamp.json"), read(t, filepath.Join(w.dev.Dir, "cache", "timestamp.json")))
	}, trust.ErrNoTarget, ""}, // it lives on with what it knows
	{"mix-and-match: an older role under the new number", func(t *testing.T, w *world) {
		write(t, w.newest(t, "agent/prod"), read(t, filepath.Join(w.dev.Dir, "cache", "agent%2Fprod.json")))
	}, trust.ErrRollback, ""},
	{"mix-and-match: another role under the name", func(t *testing.T, w *world) {
		write(t, w.newest(t, "agent/prod"), read(t, w.newest(t, "ops/acme")))
	}, trust.ErrSignature, ""},
	{"mix-and-match: the older snapshot under the new number", func(t *testing.T, w *world) {
		write(t, w.newest(t, trust.RoleSnapshot), read(t, filepath.Join(w.dev.Dir, "cache", "snapshot.json")))
	}, trust.ErrRollback, ""},
	{"rollback: an older role in a newer snapshot, with the online keys", func(t *testing.T, w *world) {
		must(t, w.dev.Refresh(t.Context()))
		w.reseal(t, func(snapshot, _ map[string]*metadata.MetaFiles) { snapshot["agent/prod.json"] = metadata.MetaFile(1) })
	}, trust.ErrRollback, ""},
	{"rollback: a role is taken out of the snapshot, with the online keys", func(t *testing.T, w *world) {
		w.reseal(t, func(snapshot, _ map[string]*metadata.MetaFiles) { delete(snapshot, "agent/prod.json") })
	}, trust.ErrSignature, ""},
	{"rollback: the timestamp goes back", func(t *testing.T, w *world) {
		must(t, w.dev.Refresh(t.Context()))
		forge(t, w.file("timestamp.json"), w.file("timestamp.json"), func(m *metadata.Metadata[metadata.TimestampType]) { m.Signed.Version-- }, w.keys[trust.RoleTimestamp]...)
	}, trust.ErrRollback, ""},
	{"wrong software: another genuine release under the name", func(t *testing.T, w *world) {
		f := w.newest(t, "agent/prod")
		forge(t, f, f, func(m *metadata.Metadata[metadata.TargetsType]) { m.Signed.Targets[next] = m.Signed.Targets[path] }, w.keys["agent/prod"][1])
	}, trust.ErrSignature, ""},
	{"wrong software: two hashes to choose from", func(t *testing.T, w *world) {
		f := w.newest(t, "agent/prod")
		forge(t, f, f, func(m *metadata.Metadata[metadata.TargetsType]) {
			m.Signed.Targets[next].Hashes["sha512"] = make([]byte, 64)
		}, w.keys["agent/prod"]...)
	}, trust.ErrMismatch, ""},
	{"wrong software: no hash at all", func(t *testing.T, w *world) {
		f := w.newest(t, "agent/prod")
		forge(t, f, f, func(m *metadata.Metadata[metadata.TargetsType]) { m.Signed.Targets[next].Hashes = metadata.Hashes{} }, w.keys["agent/prod"]...)
	}, trust.ErrSignature, ""},
	{"malformed: a timestamp of nothing, with its key", func(t *testing.T, w *world) {
		forge(t, w.file("timestamp.json"), w.file("timestamp.json"), func(m *metadata.Metadata[metadata.TimestampType]) {
			m.Signed.Version++
			m.Signed.Meta = map[string]*metadata.MetaFiles{}
		}, w.keys[trust.RoleTimestamp]...)
	}, trust.ErrSignature, ""},
	{"malformed: a snapshot of nulls, with its keys", func(t *testing.T, w *world) {
		w.reseal(t, func(snapshot, _ map[string]*metadata.MetaFiles) {
			for n := range snapshot {
				snapshot[n] = nil
			}
		})
	}, trust.ErrSignature, ""},
	{"malformed: a target of null", func(t *testing.T, w *world) {
		f := w.newest(t, "agent/prod")
		forge(t, f, f, func(m *metadata.Metadata[metadata.TargetsType]) { m.Signed.Targets[next] = nil }, w.keys["agent/prod"]...)
	}, trust.ErrSignature, ""},
	{"freeze: a medium's timestamp on the network", func(t *testing.T, w *world) {
		long := &trust.Repository{Dir: w.repo.Dir, Life: 80 * 24 * time.Hour, Medium: "stick"}
		must(t, long.Refresh(w.keys))
	}, trust.ErrSignature, ""},
}

// endless lets a mirror send without end, whatever was asked for.
func endless(w *world, suffix string) {
	honest := w.dev.Fetch
	w.dev.Fetch = func(ctx context.Context, url string, limit int64) ([]byte, error) {
		if strings.HasSuffix(url, suffix) {
			return make([]byte, limit+1), nil // a fetcher stops there at the latest
		}
		return honest(ctx, url, limit)
	}
}

func TestAttacksOfTheSpecification(t *testing.T) {
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			w := fleet(t)
			fetch := w.dev.Fetch
			w.release(t, "1.3.0")
			honest := filepath.Join(t.TempDir(), "honest")
			must(t, os.CopyFS(honest, os.DirFS(w.repo.Dir)))
			a.do(t, w)
			if got, err := w.dev.Target(t.Context(), cmp.Or(a.at, next)); !errors.Is(err, a.want) {
				t.Errorf("got %+v and %v, want %v", got, err, a.want)
			}
			// The twin: without the attacker the release is taken, by the same device
			// unless it was the release keys that were misused.
			w.dev.Fetch = fetch
			must(t, os.RemoveAll(w.repo.Dir))
			must(t, os.CopyFS(w.repo.Dir, os.DirFS(honest)))
			for range 4 { // the service goes on, past what the attacker counted
				must(t, w.repo.Refresh(w.keys))
			}
			if errors.Is(a.want, trust.ErrMismatch) && strings.HasPrefix(a.name, "wrong") {
				w.dev = w.device(t, w.dev.FactoryRoot)
			}
			got, err := w.dev.Target(t.Context(), next)
			if errors.Is(err, trust.ErrRollback) || errors.Is(err, trust.ErrSignature) && strings.HasPrefix(a.name, "extraneous") { // he counted ahead: see TestFastForwardIsRecoveredFrom
				got, err = w.device(t, w.dev.FactoryRoot).Target(t.Context(), next)
			}
			if err != nil {
				t.Fatalf("without the attack: %v", err)
			}
			if err := got.CheckFile(filepath.Join(w.repo.Dir, "targets", got.File())); err != nil {
				t.Error(err)
			}
		})
	}
}

// Arbitrary and wrong software once more: what was downloaded is another file.
func TestOtherContentIsRefused(t *testing.T) {
	w := fleet(t)
	w.release(t, "1.3.0")
	old, err := w.dev.Target(t.Context(), path)
	must(t, err)
	got, err := w.dev.Target(t.Context(), next)
	must(t, err)
	at := func(x trust.Target) string { return filepath.Join(w.repo.Dir, "targets", x.File()) }
	must(t, got.CheckFile(at(got)))
	for name, b := range map[string][]byte{
		"other release": read(t, at(old)), "more of it": append(read(t, at(got)), 'x'), "less of it": read(t, at(got))[:4], "nothing": nil,
	} {
		f := filepath.Join(t.TempDir(), "file")
		write(t, f, b)
		if err := got.CheckFile(f); !errors.Is(err, trust.ErrMismatch) {
			t.Errorf("%s: got %v, want ErrMismatch", name, err)
		}
	}
}

// Fast-forward: a thief of the online keys counts far ahead. The device cannot
// know better, until a root revokes them: then it forgets what they said.
func TestFastForwardIsRecoveredFrom(t *testing.T) {
	w := fleet(t)
	stolen := [2]ed25519.PrivateKey{w.keys[trust.RoleTimestamp][0], w.keys[trust.RoleSnapshot][0]}
	honest := filepath.Join(t.TempDir(), "honest")
	must(t, os.CopyFS(honest, os.DirFS(w.repo.Dir)))
	const far = 1 << 40
	snap := w.newest(t, trust.RoleSnapshot)
	forge(t, w.file("timestamp.json"), w.file("timestamp.json"), func(m *metadata.Metadata[metadata.TimestampType]) {
		m.Signed.Version, m.Signed.Meta["snapshot.json"] = far, metadata.MetaFile(far)
	}, stolen[0])
	forge(t, snap, w.file(fmt.Sprintf("%d.snapshot.json", far)), func(m *metadata.Metadata[metadata.SnapshotType]) { m.Signed.Version = far }, stolen[1])
	must(t, w.dev.Refresh(t.Context()))
	must(t, os.RemoveAll(w.repo.Dir))
	must(t, os.CopyFS(w.repo.Dir, os.DirFS(honest)))
	w.release(t, "1.3.0")
	if err := w.dev.Refresh(t.Context()); !errors.Is(err, trust.ErrRollback) {
		t.Fatalf("before the keys are revoked: got %v, want ErrRollback", err)
	}
	w.rotateOnline(t, newKey(t))
	if _, err := w.dev.Target(t.Context(), next); err != nil {
		t.Errorf("after the keys were revoked: %v", err)
	}
}

// rotateOnline publishes the next root, with another key for snapshot and
// timestamp.
func (w *world) rotateOnline(t *testing.T, key ed25519.PrivateKey) {
	t.Helper()
	from := w.newest(t, trust.RoleRoot)
	var version int64
	m, err := metadata.Root().FromFile(from)
	must(t, err)
	version = m.Signed.Version + 1
	forge(t, from, w.file(fmt.Sprintf("%d.root.json", version)), func(m *metadata.Metadata[metadata.RootType]) {
		m.Signed.Version = version
		pub, err := metadata.KeyFromPublicKey(key.Public())
		must(t, err)
		for _, role := range []string{trust.RoleSnapshot, trust.RoleTimestamp} {
			for _, id := range slices.Clone(m.Signed.Roles[role].KeyIDs) {
				must(t, m.Signed.RevokeKey(id, role))
			}
			must(t, m.Signed.AddKey(pub, role))
		}
	}, w.keys[trust.RoleRoot][:3]...)
	w.keys[trust.RoleSnapshot], w.keys[trust.RoleTimestamp] = []ed25519.PrivateKey{key}, []ed25519.PrivateKey{key}
	must(t, w.repo.Refresh(w.keys))
}

// Freeze: a mirror serves the same good metadata for ever. It ends with the
// timestamp, and an agent that looks at Freshness says so before.
func TestFreezeEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := fleet(t)
		begun := time.Now()
		signed, expires := w.dev.Freshness()
		if signed.Sub(begun).Abs() > time.Minute || expires.Sub(signed) != 7*24*time.Hour {
			t.Errorf("signed %s and ends %s, want now and in seven days", signed, expires)
		}
		time.Sleep(6 * 24 * time.Hour)
		must(t, w.dev.Refresh(t.Context()))
		if again, _ := w.dev.Freshness(); !again.Equal(signed) {
			t.Errorf("the same timestamp counts as signed %s, want %s", again, signed)
		}
		frozen := read(t, w.file("timestamp.json"))
		must(t, w.repo.Refresh(w.keys))
		fresh := read(t, w.file("timestamp.json"))
		write(t, w.file("timestamp.json"), frozen)
		time.Sleep(2 * 24 * time.Hour)
		if err := w.dev.Refresh(t.Context()); !errors.Is(err, trust.ErrExpired) {
			t.Errorf("frozen: got %v, want ErrExpired", err)
		}
		// A clock that is set back does not help: the latest good time is a floor.
		write(t, w.file("timestamp.json"), fresh)
		must(t, w.dev.Refresh(t.Context()))
	})
}

// The clock of a till may have lost its battery; a new box has the date of its
// build, an old one that of its last refresh.
func TestClockFloors(t *testing.T) {
	w := fleet(t)
	w.dev.NotBefore = time.Now().Add(8 * 24 * time.Hour)
	if err := w.dev.Refresh(t.Context()); !errors.Is(err, trust.ErrExpired) {
		t.Errorf("built after the metadata ended: got %v, want ErrExpired", err)
	}
	w.dev.NotBefore, w.dev.Now = time.Time{}, func() time.Time { return time.Now().Add(8 * 24 * time.Hour) }
	if err := w.dev.Refresh(t.Context()); !errors.Is(err, trust.ErrExpired) {
		t.Errorf("by the clock of the agent the metadata ended: got %v, want ErrExpired", err)
	}
	w.dev.Now = nil
	must(t, w.dev.Refresh(t.Context()))
	write(t, filepath.Join(w.dev.Dir, "floor.json"), fmt.Appendf(nil, `{"root_version":1,"at":%q}`, time.Now().Add(8*24*time.Hour).Format(time.RFC3339)))
	if err := w.dev.Refresh(t.Context()); !errors.Is(err, trust.ErrExpired) {
		t.Errorf("seen after the metadata ended: got %v, want ErrExpired", err)
	}
}

// Slow retrieval: each file comes just in time, and the whole never. The twin is
// slow by nature and gets there.
func TestSlowRetrievalEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := fleet(t)
		honest := w.dev.Fetch
		slow := func(each time.Duration) trust.Fetch {
			return func(ctx context.Context, url string, limit int64) ([]byte, error) {
				select {
				case <-time.After(each):
					return honest(ctx, url, limit)
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}
		}
		w.release(t, "1.3.0")
		w.dev.Fetch = slow(4 * time.Minute)
		begun := time.Now()
		err := w.dev.Refresh(t.Context())
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "more than 10m0s") {
			t.Errorf("got %v, want it given up and said why", err)
		}
		if took := time.Since(begun); took > 11*time.Minute {
			t.Errorf("it took %s", took)
		}
		w.dev.Fetch = slow(time.Minute)
		if _, err := w.dev.Target(t.Context(), next); err != nil {
			t.Errorf("a slow line: %v", err)
		}
	})
}

// nv is a floor that a wiped disk does not lower.
type nv struct {
	at     uint64
	broken error
}

func (n *nv) RootFloor(context.Context) (uint64, error) { return n.at, n.broken }

func (n *nv) RaiseRootFloor(_ context.Context, to uint64) error {
	n.at = max(n.at, to)
	return n.broken
}

// A withheld root after a revocation, on a box that knows it, on one whose disk
// was wiped, and the twin: without the floor of the TPM the wiped one would
// believe the thief.
func TestWithheldRoot(t *testing.T) {
	w := fleet(t)
	tpm := &nv{}
	w.dev.Floor = tpm
	before := filepath.Join(t.TempDir(), "before")
	must(t, os.CopyFS(before, os.DirFS(w.repo.Dir)))
	stolen := w.keys[trust.RoleTimestamp][0]
	w.rotateOnline(t, newKey(t))
	must(t, w.dev.Refresh(t.Context()))
	if tpm.at != 2 {
		t.Errorf("floor %d after root 2", tpm.at)
	}
	thief := trust.FolderFetch(base, filepath.Join(before, "metadata"))
	f := filepath.Join(before, "metadata", "timestamp.json")
	forge(t, f, f, func(m *metadata.Metadata[metadata.TimestampType]) { m.Signed.Version += 10 }, stolen)

	honest := w.dev.Fetch
	w.dev.Fetch = thief
	if err := w.dev.Refresh(t.Context()); !errors.Is(err, trust.ErrSignature) {
		t.Errorf("a box that knows root 2: got %v, want ErrSignature", err)
	}
	wiped := w.device(t, w.dev.FactoryRoot)
	wiped.Floor, wiped.Fetch = tpm, thief
	if err := wiped.Refresh(t.Context()); !errors.Is(err, trust.ErrRollback) {
		t.Errorf("a wiped box: got %v, want ErrRollback", err)
	}
	wiped.Fetch = honest
	must(t, wiped.Refresh(t.Context()))
	// Damaged instead of wiped is the same.
	must(t, os.RemoveAll(filepath.Join(wiped.Dir, "roots")))
	write(t, filepath.Join(wiped.Dir, "floor.json"), []byte("{"))
	wiped.Fetch = thief
	if err := wiped.Refresh(t.Context()); !errors.Is(err, trust.ErrRollback) {
		t.Errorf("a damaged box: got %v, want ErrRollback", err)
	}
	naked := w.device(t, w.dev.FactoryRoot)
	naked.Fetch = thief
	if err := naked.Refresh(t.Context()); err != nil {
		t.Errorf("the twin without a floor: got %v; the attack is none", err)
	}
	// A TPM that does not answer is no reason to do without.
	wiped.Fetch = honest
	wiped = w.device(t, w.dev.FactoryRoot)
	wiped.Floor = &nv{broken: errors.New("no answer")}
	if err := wiped.Refresh(t.Context()); err == nil || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("without an answer of the TPM: got %v", err)
	}
}

// A root that somebody with the disk in his hands planted does not follow from
// the image's.
func TestPlantedRootIsNotBelieved(t *testing.T) {
	w := fleet(t)
	other := fleet(t) // of the attacker
	other.rotateOnline(t, newKey(t))
	for _, name := range []string{"1.root.json", "2.root.json"} {
		write(t, filepath.Join(w.dev.Dir, "roots", name), read(t, other.file(name)))
	}
	write(t, filepath.Join(w.dev.Dir, "root.json"), read(t, other.file("2.root.json")))
	must(t, os.RemoveAll(filepath.Join(w.dev.Dir, "cache")))
	honest := w.dev.Fetch
	w.dev.Fetch = other.dev.Fetch
	if err := w.dev.Refresh(t.Context()); !errors.Is(err, trust.ErrSignature) {
		t.Errorf("got %v, want ErrSignature", err)
	}
	w.dev.Fetch = honest
	must(t, w.dev.Refresh(t.Context()))
}

// A newer image may carry a newer root than the disk, and an older one an older.
func TestImageAndDiskMayDiffer(t *testing.T) {
	w := fleet(t)
	w.rotateOnline(t, newKey(t))
	must(t, w.dev.Refresh(t.Context()))
	w.rotateOnline(t, newKey(t))
	w.dev.FactoryRoot = read(t, w.file("3.root.json"))
	must(t, w.dev.Refresh(t.Context()))
	w.dev.FactoryRoot = read(t, w.file("1.root.json"))
	must(t, w.dev.Refresh(t.Context()))
	w.dev.FactoryRoot = nil
	if err := w.dev.Refresh(t.Context()); !errors.Is(err, trust.ErrSignature) || !strings.Contains(err.Error(), "root.json is missing") {
		t.Errorf("an image without a root: got %v", err)
	}
}

// Whatever a power cut or a bad sector leaves of the cache, the next refresh
// puts right; and what it knew that was not damaged still counts.
func TestDamagedCacheHeals(t *testing.T) {
	w := fleet(t)
	names, err := filepath.Glob(filepath.Join(w.dev.Dir, "*", "*"))
	if err != nil || len(names) < 4 {
		t.Fatalf("got %v and %v, want the cache", names, err)
	}
	for _, name := range append(names, filepath.Join(w.dev.Dir, "floor.json")) {
		good := read(t, name)
		for what, b := range map[string][]byte{
			"cut": good[:len(good)/2], "empty": nil, "zeros": make([]byte, len(good)), "null": []byte("null"),
			"flipped": bytes.Replace(good, []byte(`version`), []byte(`wersion`), 1), "huge": bytes.Repeat(good, 1+(4<<20)/len(good)),
		} {
			write(t, name, b)
			if _, err := w.dev.Target(t.Context(), path); err != nil {
				t.Errorf("%s of %s: %v", what, filepath.Base(name), err)
			}
		}
	}
	must(t, os.Mkdir(filepath.Join(w.dev.Dir, "cache", "left"), 0o700))
	write(t, filepath.Join(w.dev.Dir, "cache", "tuf_tmp123"), []byte("x"))
	must(t, w.dev.Refresh(t.Context()))
	if left, _ := filepath.Glob(filepath.Join(w.dev.Dir, "cache", "[lt]*")); len(left) != 2 { // timestamp.json and targets.json
		t.Errorf("left in the cache: %v", left)
	}
}

// FuzzSigned has the right keys sign whatever metadata there is: who holds one
// must not be able to stop an agent, or to have it believe what is none.
func FuzzSigned(f *testing.F) {
	for _, seed := range []string{
		`{"signed":{"_type":"timestamp","spec_version":"1.0.31","version":9,"expires":"2099-01-01T00:00:00Z","meta":{"snapshot.json":{"version":4}}},"signatures":[]}`,
		`{"signed":{"_type":"timestamp","spec_version":"1.0.31","version":9,"expires":"2099-01-01T00:00:00Z","meta":{"snapshot.json":null}},"signatures":[]}`,
		`{"signed":{"_type":"snapshot","spec_version":"1.0.31","version":3,"expires":"2099-01-01T00:00:00Z","meta":{"targets.json":null,"agent/prod.json":{"version":3}}},"signatures":[]}`,
		`{"signed":{"_type":"targets","spec_version":"1.0.31","version":1,"expires":"2099-01-01T00:00:00Z","targets":{"a":null},"delegations":{"keys":{"x":null},"roles":[{"name":"../x","keyids":["x"],"threshold":1,"paths":["**"]}]}},"signatures":[]}`,
		`{"signed":{"_type":"root","spec_version":"1.0.31","version":2,"expires":"2099-01-01T00:00:00Z","consistent_snapshot":true,"keys":{"a":null},"roles":{"root":null,"timestamp":null,"snapshot":null,"targets":null}},"signatures":[]}`,
	} {
		f.Add([]byte(seed))
	}
	keys := trust.Keys{}
	for _, role := range []string{trust.RoleRoot, trust.RoleTargets, trust.RoleSnapshot, trust.RoleTimestamp, "agent/prod"} {
		keys[role] = []ed25519.PrivateKey{ed25519.NewKeyFromSeed(bytes.Repeat([]byte(role[:1]), ed25519.SeedSize))}
	}
	repo, err := trust.InitRepository(f.TempDir(), keys, nil)
	if err != nil {
		f.Fatal(err)
	}
	root, err := repo.Root()
	if err != nil {
		f.Fatal(err)
	}
	honest := trust.FolderFetch(base, filepath.Join(repo.Dir, "metadata"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for role, forged := range map[string][]byte{
			"timestamp.json": signedBy[metadata.TimestampType](b, keys[trust.RoleTimestamp][0]), "snapshot.json": signedBy[metadata.SnapshotType](b, keys[trust.RoleSnapshot][0]),
			"targets.json": signedBy[metadata.TargetsType](b, keys[trust.RoleTargets][0]), "2.root.json": signedBy[metadata.RootType](b, keys[trust.RoleRoot][0]),
		} {
			if forged == nil {
				continue
			}
			dev := &trust.Client{Dir: t.TempDir(), FactoryRoot: root, URL: base, Fetch: func(ctx context.Context, url string, limit int64) ([]byte, error) {
				if strings.HasSuffix(url, role) {
					return forged, nil
				}
				return honest(ctx, url, limit)
			}}
			if got, err := dev.Target(t.Context(), "os/x/prod/1.0.0/bundle.raucb"); err == nil && role != "targets.json" {
				t.Errorf("found %+v by what the holder of another role signed", got)
			}
			if _, err := dev.Targets(t.Context()); err != nil && err.Error() == "" {
				t.Error("an error without a word")
			}
		}
	})
}

func signedBy[T metadata.Roles](b []byte, key ed25519.PrivateKey) (out []byte) {
	defer func() { // what go-tuf cannot even sign
		if recover() != nil {
			out = nil
		}
	}()
	m := &metadata.Metadata[T]{}
	s, err := signature.LoadSigner(key, crypto.Hash(0))
	if err != nil || json.Unmarshal(b, m) != nil {
		return nil
	}
	m.ClearSignatures()
	if _, err := m.Sign(s); err != nil {
		return nil
	}
	if out, err = m.ToBytes(false); err != nil {
		return nil
	}
	return out
}
