package trust_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/tillward/tillward/provisioning/trust"
)

// world is a repository, its keys and a device.
type world struct {
	repo *trust.Repository
	keys trust.Keys
	dev  *trust.Client
}

const base = "https://repo.invalid/metadata"

func newWorld(t *testing.T) *world {
	t.Helper()
	keys := make(trust.Keys)
	for _, role := range []string{trust.RoleRoot, trust.RoleTargets, trust.RoleSnapshot, trust.RoleTimestamp} {
		keys[role] = []ed25519.PrivateKey{newKey(t)}
	}
	repo, err := trust.InitRepository(t.TempDir(), keys, nil)
	if err != nil {
		t.Fatal(err)
	}
	root, err := repo.Root()
	if err != nil {
		t.Fatal(err)
	}
	return &world{repo: repo, keys: keys, dev: &trust.Client{
		Dir: t.TempDir(), FactoryRoot: root, URL: base, Fetch: trust.FolderFetch(base, filepath.Join(repo.Dir, "metadata")),
	}}
}

func newKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	k, err := trust.NewKey(filepath.Join(t.TempDir(), "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

const path = "agent/1.2.3/tillward-agent-linux-amd64"

func (w *world) release(t *testing.T, version string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(file, []byte("binary "+version), 0o600); err != nil {
		t.Fatal(err)
	}
	err := w.repo.Add([]trust.NewTarget{{
		Path: "agent/" + version + "/tillward-agent-linux-amd64", File: file,
		Custom: trust.Custom{Class: "agent", Version: version, OS: "linux", Arch: "amd64"},
	}}, w.keys)
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) file(name string) string { return filepath.Join(w.repo.Dir, "metadata", name) }

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func resign[T metadata.Roles](t *testing.T, m *metadata.Metadata[T], file string, key ed25519.PrivateKey) {
	t.Helper()
	s, err := signature.LoadSigner(key, crypto.Hash(0))
	if err != nil {
		t.Fatal(err)
	}
	m.ClearSignatures()
	if _, err := m.Sign(s); err != nil {
		t.Fatal(err)
	}
	if err := m.ToFile(file, true); err != nil {
		t.Fatal(err)
	}
}

func TestReleaseReachesTheDevice(t *testing.T) {
	w := newWorld(t)
	w.release(t, "1.2.3")
	got, err := w.dev.Target(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if got.Custom.Version != "1.2.3" || got.Length != 12 {
		t.Errorf("got %+v", got)
	}
	if err := got.CheckFile(filepath.Join(w.repo.Dir, "targets", got.File())); err != nil {
		t.Error(err)
	}
	if _, err := w.dev.Target(t.Context(), "agent/9/none"); !errors.Is(err, trust.ErrNoTarget) {
		t.Errorf("got %v, want ErrNoTarget", err)
	}
	if err := w.repo.Refresh(w.keys); err != nil {
		t.Fatal(err)
	}
	if _, err := w.dev.Target(t.Context(), path); err != nil {
		t.Errorf("after a refresh: %v", err)
	}
}

// Each attack changes what the device is served; none may be believed.
func TestAttacks(t *testing.T) {
	for name, tt := range map[string]struct {
		attack func(*testing.T, *world)
		want   error
	}{
		"flipped byte in targets": {func(t *testing.T, w *world) {
			f := w.file("1.agent%2Fprod.json")
			write(t, f, bytes.Replace(read(t, f), []byte(`"1.2.3"`), []byte(`"1.2.4"`), 1))
		}, trust.ErrSignature},
		"expired timestamp": {func(t *testing.T, w *world) {
			m, err := metadata.Timestamp().FromFile(w.file("timestamp.json"))
			if err != nil {
				t.Fatal(err)
			}
			m.Signed.Version++
			m.Signed.Expires = time.Now().Add(-time.Minute).UTC()
			resign(t, m, w.file("timestamp.json"), w.keys[trust.RoleTimestamp][0])
		}, trust.ErrExpired},
		"timestamp by another key": {func(t *testing.T, w *world) {
			m, err := metadata.Timestamp().FromFile(w.file("timestamp.json"))
			if err != nil {
				t.Fatal(err)
			}
			m.Signed.Version++
			resign(t, m, w.file("timestamp.json"), newKey(t))
		}, trust.ErrSignature},
		"huge timestamp": {func(t *testing.T, w *world) {
			write(t, w.file("timestamp.json"), make([]byte, 1<<20))
		}, trust.ErrMismatch},
		"garbage": {func(t *testing.T, w *world) {
			write(t, w.file("timestamp.json"), []byte("{"))
		}, trust.ErrMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.release(t, "1.2.3")
			tt.attack(t, w)
			if _, err := w.dev.Target(t.Context(), path); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestOlderMetadataIsRefused(t *testing.T) {
	w := newWorld(t)
	w.release(t, "1.2.3")
	old := read(t, w.file("timestamp.json"))
	w.release(t, "1.2.4")
	if err := w.dev.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	write(t, w.file("timestamp.json"), old)
	if err := w.dev.Refresh(t.Context()); !errors.Is(err, trust.ErrRollback) {
		t.Errorf("got %v, want ErrRollback", err)
	}
}

// The trap of go-tuf v2: started from the factory root, it believes a key that
// a newer root, which the device has seen, revoked.
func TestRevokedKeyStaysRevoked(t *testing.T) {
	w := newWorld(t)
	w.release(t, "1.2.3")
	stolen := w.keys[trust.RoleTimestamp][0]
	before := read(t, w.file("timestamp.json"))
	rotate(t, w, newKey(t))
	if err := w.dev.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The mirror withholds the new root and serves what the stolen key signs.
	if err := os.Remove(w.file("2.root.json")); err != nil {
		t.Fatal(err)
	}
	write(t, w.file("timestamp.json"), before)
	m, err := metadata.Timestamp().FromFile(w.file("timestamp.json"))
	if err != nil {
		t.Fatal(err)
	}
	m.Signed.Version += 10
	resign(t, m, w.file("timestamp.json"), stolen)
	if err := w.dev.Refresh(t.Context()); !errors.Is(err, trust.ErrSignature) {
		t.Errorf("got %v, want ErrSignature", err)
	}
	// Even when the store of roots is lost the floor holds.
	if err := os.RemoveAll(filepath.Join(w.dev.Dir, "roots")); err != nil {
		t.Fatal(err)
	}
	if err := w.dev.Refresh(t.Context()); !errors.Is(err, trust.ErrRollback) {
		t.Errorf("without the stored root: got %v, want ErrRollback", err)
	}
}

// rotate publishes root version 2 with another timestamp key.
func rotate(t *testing.T, w *world, key ed25519.PrivateKey) {
	t.Helper()
	root, err := metadata.Root().FromFile(w.file("1.root.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range root.Signed.Roles[trust.RoleTimestamp].KeyIDs {
		if err := root.Signed.RevokeKey(id, trust.RoleTimestamp); err != nil {
			t.Fatal(err)
		}
	}
	pub, err := metadata.KeyFromPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if err := root.Signed.AddKey(pub, trust.RoleTimestamp); err != nil {
		t.Fatal(err)
	}
	root.Signed.Version = 2
	resign(t, root, w.file("2.root.json"), w.keys[trust.RoleRoot][0])
	w.keys[trust.RoleTimestamp] = []ed25519.PrivateKey{key}
	if err := w.repo.Refresh(w.keys); err != nil {
		t.Fatal(err)
	}
}

func TestThreshold(t *testing.T) {
	keys := make(trust.Keys)
	for _, role := range []string{trust.RoleRoot, trust.RoleTargets, trust.RoleSnapshot, trust.RoleTimestamp} {
		keys[role] = []ed25519.PrivateKey{newKey(t), newKey(t)}
	}
	repo, err := trust.InitRepository(t.TempDir(), keys, map[string]int{trust.RoleTimestamp: 2, trust.RoleTargets: 1})
	if err != nil {
		t.Fatal(err)
	}
	root, err := repo.Root()
	if err != nil {
		t.Fatal(err)
	}
	dev := &trust.Client{Dir: t.TempDir(), FactoryRoot: root, URL: base, Fetch: trust.FolderFetch(base, filepath.Join(repo.Dir, "metadata"))}
	if err := dev.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	keys[trust.RoleTimestamp] = keys[trust.RoleTimestamp][:1] // the other signer is away
	if err := repo.Refresh(keys); err == nil {
		t.Error("signed a timestamp that no device takes")
	}
	file := filepath.Join(repo.Dir, "metadata", "timestamp.json")
	m, err := metadata.Timestamp().FromFile(file)
	if err != nil {
		t.Fatal(err)
	}
	m.Signed.Version++
	resign(t, m, file, keys[trust.RoleTimestamp][0])
	if err := dev.Refresh(t.Context()); !errors.Is(err, trust.ErrSignature) {
		t.Errorf("one signature of two: got %v, want ErrSignature", err)
	}
}

func TestReleaseNeverChanges(t *testing.T) {
	w := newWorld(t)
	w.release(t, "1.2.3")
	file := filepath.Join(t.TempDir(), "agent")
	write(t, file, []byte("other"))
	if err := w.repo.Add([]trust.NewTarget{{Path: path, File: file}}, w.keys); err == nil {
		t.Error("a released target was replaced")
	}
}

// Boot references are targets like others; a device sees what they are for.
func TestBootReferenceIsATarget(t *testing.T) {
	w := newWorld(t)
	w.release(t, "1.2.3")
	file := filepath.Join(t.TempDir(), "reference.json")
	write(t, file, []byte("{}\n"))
	want := trust.Custom{Class: trust.ClassBoot, Version: "agent/1.2.3", Model: "POS 500"}
	if err := w.repo.Add([]trust.NewTarget{{Path: "boot/POS_500/agent_1.2.3.json", File: file, Custom: want}}, w.keys); err != nil {
		t.Fatal(err)
	}
	root, err := w.repo.Root()
	if err != nil {
		t.Fatal(err)
	}
	verified, err := trust.VerifyRepository(t.Context(), w.repo.Dir, t.TempDir(), root)
	if err != nil || len(verified) != 2 || !reflect.DeepEqual(verified[1].Custom, want) {
		t.Fatalf("got %+v and %v, want %+v second", verified, err, want)
	}
	if listed, err := w.repo.List(); err != nil || !reflect.DeepEqual(listed, verified) {
		t.Errorf("listed %+v and %v, want %+v", listed, err, verified)
	}
	if _, err := (&trust.Repository{Dir: t.TempDir()}).List(); err == nil {
		t.Error("a folder without a repository was listed")
	}
}

func TestFlippedTargetIsFound(t *testing.T) {
	w := newWorld(t)
	w.release(t, "1.2.3")
	root, err := w.repo.Root()
	if err != nil {
		t.Fatal(err)
	}
	got, err := trust.VerifyRepository(t.Context(), w.repo.Dir, t.TempDir(), root)
	if err != nil || len(got) != 1 {
		t.Fatalf("got %v and %v, want one target", got, err)
	}
	f := filepath.Join(w.repo.Dir, "targets", got[0].File())
	b := read(t, f)
	b[3] ^= 1
	write(t, f, b)
	if _, err := trust.VerifyRepository(t.Context(), w.repo.Dir, t.TempDir(), root); !errors.Is(err, trust.ErrMismatch) {
		t.Errorf("got %v, want ErrMismatch", err)
	}
}

func TestNetworkFailureIsNoVerdict(t *testing.T) {
	w := newWorld(t)
	gone := errors.New("no route")
	w.dev.Fetch = func(context.Context, string, int64) ([]byte, error) { return nil, gone }
	err := w.dev.Refresh(t.Context())
	if !errors.Is(err, gone) || errors.Is(err, trust.ErrSignature) || errors.Is(err, trust.ErrExpired) {
		t.Errorf("got %v, want the network's error alone", err)
	}
}

func TestOrders(t *testing.T) {
	s := trust.NewOrderSigner(newKey(t))
	id, pub := s.Public()
	ring := trust.Keyring{id: pub}
	keyID, sig, err := s.SignOrder("command", []byte("payload"))
	if err != nil {
		t.Fatal(err)
	}
	if err := ring.VerifyOrder("command", []byte("payload"), keyID, sig); err != nil {
		t.Error(err)
	}
	for name, tt := range map[string]struct {
		kind, payload, key string
		want               error
	}{
		"other kind":    {"offer", "payload", keyID, trust.ErrBadSignature},
		"other payload": {"command", "payloae", keyID, trust.ErrBadSignature},
		"shifted":       {"commandp", "ayload", keyID, trust.ErrBadSignature},
		"other key":     {"command", "payload", "0000", trust.ErrUnknownKey},
	} {
		if err := ring.VerifyOrder(tt.kind, []byte(tt.payload), tt.key, sig); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", name, err, tt.want)
		}
	}
}

func TestEKList(t *testing.T) {
	key := newKey(t)
	pub := key.Public().(ed25519.PublicKey)
	const hash = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
	l, err := trust.SignList(key, []trust.ListedEK{{EKHash: hash, Model: "m", Serial: "s"}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := trust.VerifyList(pub, l); err != nil || len(got) != 1 || got[0].EKHash != hash {
		t.Errorf("got %v and %v", got, err)
	}
	l.Entries = bytes.Replace(l.Entries, []byte(`"s"`), []byte(`"t"`), 1)
	if _, err := trust.VerifyList(pub, l); !errors.Is(err, trust.ErrBadSignature) {
		t.Errorf("changed list: got %v, want ErrBadSignature", err)
	}
	if _, err := trust.VerifyList(newKey(t).Public().(ed25519.PublicKey), l); !errors.Is(err, trust.ErrUnknownKey) {
		t.Errorf("other vendor: got %v, want ErrUnknownKey", err)
	}
}

func FuzzMetadata(f *testing.F) {
	f.Add([]byte(`{"signed":{"_type":"timestamp","version":1}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &trust.Client{Dir: t.TempDir(), FactoryRoot: b, URL: base, Fetch: func(context.Context, string, int64) ([]byte, error) { return b, nil }}
		if err := c.Refresh(t.Context()); err == nil {
			t.Error("believed what nobody signed")
		}
	})
}
