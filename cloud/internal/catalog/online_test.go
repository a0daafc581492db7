package catalog_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/tillward/tillward/cloud/internal/catalog"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/provisioning/trust"
)

// newOnline is a repository whose root names the key of the catalog, and whose
// signers do not have it: what they send has neither snapshot nor timestamp.
func newOnline(t *testing.T) *world {
	t.Helper()
	keys := trust.Keys{}
	for _, role := range []string{trust.RoleRoot, trust.RoleTargets, "agent/prod", "ops/acme", "online"} {
		k, err := trust.NewKey(filepath.Join(t.TempDir(), "key.pem"))
		must(t, err)
		keys[role] = []ed25519.PrivateKey{k}
	}
	dir := t.TempDir()
	c, err := catalog.Open(dir)
	must(t, err)
	c.Key = keys["online"][0]
	delete(keys, "online")
	all := trust.Keys{trust.RoleSnapshot: {c.Key}, trust.RoleTimestamp: {c.Key}}
	maps.Copy(all, keys)
	repo, err := trust.InitRepository(t.TempDir(), all, nil)
	must(t, err)
	w := &world{c, dir, repo, keys}
	w.unstamp(t)
	w.release(t, "agent/1.0.0", "1.0.0")
	return w
}

// unstamp takes away what the signers cannot sign.
func (w *world) unstamp(t *testing.T) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(w.repo.Dir, "metadata", "*snapshot.json"))
	must(t, err)
	for _, n := range append(names, filepath.Join(w.repo.Dir, "metadata", "timestamp.json")) {
		must(t, os.RemoveAll(n))
	}
}

// device follows the folder of the catalog.
func (w *world) device(t *testing.T) *trust.Client {
	t.Helper()
	root, err := w.repo.Root()
	must(t, err)
	const base = "https://catalog.invalid/metadata"
	return &trust.Client{Dir: t.TempDir(), FactoryRoot: root, URL: base, Fetch: trust.FolderFetch(base, filepath.Join(w.dir, "metadata"))}
}

func sees(t *testing.T, dev *trust.Client, paths ...string) {
	t.Helper()
	for _, p := range paths {
		if _, err := dev.Target(t.Context(), p); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
}

// The service signs snapshot and timestamp over what others signed.
func TestServiceSignsWhatIsFresh(t *testing.T) {
	w := newOnline(t)
	f, err := w.Freshness()
	if err != nil || !f.Signed.IsZero() || !bytes.Equal(f.Key, w.Key.Public().(ed25519.PublicKey)) {
		t.Errorf("before anything: %+v and %v", f, err)
	}
	if rs, err := w.publish(t); err != nil || len(rs) != 1 {
		t.Fatalf("got %v and %v", rs, err)
	}
	dev := w.device(t)
	sees(t, dev, "agent/1.0.0/bin")
	// The next upload is what changed and nothing else.
	w.release(t, "agent/1.1.0", "1.1.0")
	part := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(part, "metadata"), 0o700))
	must(t, os.CopyFS(filepath.Join(part, "targets", "agent", "1.1.0"), os.DirFS(filepath.Join(w.repo.Dir, "targets", "agent", "1.1.0"))))
	must(t, os.Link(filepath.Join(w.repo.Dir, "metadata", "3.agent%2Fprod.json"), filepath.Join(part, "metadata", "3.agent%2Fprod.json")))
	if rs, err := w.Publish(t.Context(), pack(t, part)); err != nil || len(rs) != 2 {
		t.Fatalf("a part: got %v and %v, want both releases", rs, err)
	}
	sees(t, dev, "agent/1.0.0/bin", "agent/1.1.0/bin")
	f, err = w.Freshness()
	if err != nil || !f.Online || time.Since(f.Signed) > time.Minute || len(f.Ends) != 6 || !f.Ends[trust.RoleTimestamp].After(time.Now().Add(6*24*time.Hour)) {
		t.Errorf("fresh: %+v and %v", f, err)
	}
	// A timestamp that an upload brings counts for nothing, be it ever so high.
	stamp := filepath.Join(w.repo.Dir, "metadata", "timestamp.json")
	must(t, metadata.Timestamp(time.Now().Add(time.Hour)).ToFile(stamp, false))
	must(t, os.WriteFile(filepath.Join(w.repo.Dir, "metadata", "99.snapshot.json"), []byte("{}"), 0o600))
	_, err = w.publish(t)
	must(t, err)
	sees(t, dev, "agent/1.1.0/bin")
	if _, err := os.Stat(filepath.Join(w.dir, "metadata", "99.snapshot.json")); err == nil {
		t.Error("a snapshot that nobody signed is in place")
	}
}

// The service makes fresh what the right people signed, and nothing else.
func TestServiceSignsNothingElse(t *testing.T) {
	stranger, err := trust.NewKey(filepath.Join(t.TempDir(), "key.pem"))
	must(t, err)
	forged := func(from, to string, change func(m *metadata.Metadata[metadata.TargetsType]), key ed25519.PrivateKey) func(*testing.T, *world) {
		return func(t *testing.T, w *world) {
			at := func(n string) string { return filepath.Join(w.repo.Dir, "metadata", n) }
			m, err := metadata.Targets().FromFile(at(from))
			must(t, err)
			m.Signed.Version++
			change(m)
			if key == nil {
				key = w.keys["ops/acme"][0]
			}
			m.ClearSignatures()
			resign(t, m, key)
			must(t, m.ToFile(at(to), false))
		}
	}
	for name, spoil := range map[string]func(*testing.T, *world){
		"a role by a stranger":  forged("2.agent%2Fprod.json", "3.agent%2Fprod.json", func(*metadata.Metadata[metadata.TargetsType]) {}, stranger),
		"a role by an operator": forged("2.agent%2Fprod.json", "3.agent%2Fprod.json", func(*metadata.Metadata[metadata.TargetsType]) {}, nil),
		"delegations by a stranger": forged("1.targets.json", "2.targets.json", func(m *metadata.Metadata[metadata.TargetsType]) {
			m.Signed.Delegations.Roles[0].KeyIDs = m.Signed.Delegations.Roles[1].KeyIDs
		}, stranger),
		"a root by a stranger": func(t *testing.T, w *world) {
			at := filepath.Join(w.repo.Dir, "metadata", "2.root.json")
			m, err := metadata.Root().FromFile(filepath.Join(w.repo.Dir, "metadata", "1.root.json"))
			must(t, err)
			m.Signed.Version = 2
			m.ClearSignatures()
			resign(t, m, stranger)
			must(t, m.ToFile(at, false))
		},
		"a version that is published, changed": func(t *testing.T, w *world) {
			at := filepath.Join(w.repo.Dir, "metadata", "2.agent%2Fprod.json")
			m, err := metadata.Targets().FromFile(at)
			must(t, err)
			m.Signed.Expires = m.Signed.Expires.Add(time.Hour)
			m.ClearSignatures()
			resign(t, m, w.keys["agent/prod"][0])
			must(t, m.ToFile(at, false))
		},
		"garbage": func(t *testing.T, w *world) {
			must(t, os.WriteFile(filepath.Join(w.repo.Dir, "metadata", "3.agent%2Fprod.json"), []byte("{"), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newOnline(t)
			_, err := w.publish(t)
			must(t, err)
			before := files(t, w.dir)
			spoil(t, w)
			if _, err := w.publish(t); !errors.Is(err, fleet.ErrInvalid) {
				t.Errorf("got %v, want it refused", err)
			}
			if after := files(t, w.dir); after != before {
				t.Errorf("the folder changed:\n%s\nwas\n%s", after, before)
			}
			sees(t, w.device(t), "agent/1.0.0/bin")
		})
	}
}

func resign[T metadata.Roles](t *testing.T, m *metadata.Metadata[T], key ed25519.PrivateKey) {
	t.Helper()
	s, err := signature.LoadSigner(key, crypto.Hash(0))
	must(t, err)
	_, err = m.Sign(s)
	must(t, err)
}

// files lists what is in place with its content.
func files(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	for _, sub := range []string{"metadata", "targets", "trusted"} {
		must(t, filepath.WalkDir(filepath.Join(dir, sub), func(p string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			c, err := os.ReadFile(p)
			b.WriteString(p + " " + string(c) + "\n")
			return err
		}))
	}
	return b.String()
}

// A root that does not name the service's key leaves freshness to the signers.
func TestForeignRootIsNotSignedFor(t *testing.T) {
	w := newWorld(t)
	key, err := trust.NewKey(filepath.Join(t.TempDir(), "key.pem"))
	must(t, err)
	w.Key = key
	_, err = w.publish(t)
	must(t, err)
	want, err := os.ReadFile(filepath.Join(w.repo.Dir, "metadata", "timestamp.json"))
	must(t, err)
	if got, err := os.ReadFile(filepath.Join(w.dir, "metadata", "timestamp.json")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("in place: %s and %v, want the signers' timestamp", got, err)
	}
	if f, err := w.Freshness(); err != nil || f.Online {
		t.Errorf("got %+v and %v, want it not online", f, err)
	}
	w.unstamp(t)
	if _, err := w.publish(t); !errors.Is(err, fleet.ErrInvalid) || !strings.Contains(err.Error(), "tillward release online-key") {
		t.Errorf("without a timestamp: got %v, want what to do", err)
	}
}

// runs lets the catalog run for a while, in its own time.
func (w *world) runs(t *testing.T, d time.Duration) (failed []error, ends []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		must(t, w.Run(ctx, func(err error) { failed = append(failed, err) }, func(role string, _ time.Time) { ends = append(ends, role) }))
	})
	wg.Wait()
	slices.Sort(ends)
	return failed, ends
}

// The metadata stays fresh while the service runs, and a device that slept
// through it is content. The twin: it ends where nobody runs.
func TestReleasesStayFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, idle := newOnline(t), newOnline(t)
		for _, x := range []*world{w, idle} {
			_, err := x.publish(t)
			must(t, err)
		}
		dev := w.device(t)
		sees(t, dev, "agent/1.0.0/bin")
		failed, ends := w.runs(t, 30*24*time.Hour)
		if len(failed) != 0 || len(ends) != 0 {
			t.Errorf("failed %v, ending %v", failed, ends)
		}
		sees(t, dev, "agent/1.0.0/bin")
		sees(t, w.device(t), "agent/1.0.0/bin")
		if signed, expires := dev.Freshness(); time.Since(signed) > 25*time.Hour || expires.Sub(signed) != 7*24*time.Hour {
			t.Errorf("signed %s, ends %s, now %s", signed, expires, time.Now())
		}
		if names, err := filepath.Glob(filepath.Join(w.dir, "metadata", "*.snapshot.json")); err != nil || len(names) > 20 {
			t.Errorf("%d snapshots, %v", len(names), err)
		}
		if err := idle.device(t).Refresh(t.Context()); !errors.Is(err, trust.ErrExpired) {
			t.Errorf("where nobody runs: got %v, want ErrExpired", err)
		}
		// It makes up for it as soon as it runs again.
		idle.runs(t, time.Minute)
		sees(t, idle.device(t), "agent/1.0.0/bin")
		// What others must sign it says in time, once.
		_, ends = w.runs(t, 45*24*time.Hour)
		if want := []string{"agent/prod", "ops/acme"}; !slices.Equal(ends, want) {
			t.Errorf("ending: %v, want %v", ends, want)
		}
	})
}

// A power cut may fall between any two files that a publication puts in place:
// the old repository is whole until the timestamp is there, and the next
// refresh takes in what is there already.
func TestPowerCutWhilePlacing(t *testing.T) {
	w := newOnline(t)
	_, err := w.publish(t)
	must(t, err)
	before := t.TempDir()
	must(t, os.CopyFS(before, os.DirFS(w.dir)))
	w.release(t, "agent/1.1.0", "1.1.0")
	_, err = w.publish(t)
	must(t, err)
	after := w.dir
	for n, added := range []([]string){
		nil,
		{"targets/agent/1.1.0"},
		{"targets/agent/1.1.0", "metadata/3.agent%2Fprod.json"},
		{"targets/agent/1.1.0", "metadata/3.agent%2Fprod.json", "metadata/2.snapshot.json"},
	} {
		cut := &world{dir: t.TempDir(), repo: w.repo, keys: w.keys}
		must(t, os.CopyFS(cut.dir, os.DirFS(before)))
		for _, name := range added {
			if strings.HasPrefix(name, "targets") {
				must(t, os.CopyFS(filepath.Join(cut.dir, name), os.DirFS(filepath.Join(after, name))))
				continue
			}
			b, err := os.ReadFile(filepath.Join(after, name))
			must(t, err)
			must(t, os.WriteFile(filepath.Join(cut.dir, name), b, 0o600))
		}
		dev := cut.device(t)
		sees(t, dev, "agent/1.0.0/bin")
		if cut.Catalog, err = catalog.Open(cut.dir); err != nil {
			t.Fatal(err)
		}
		cut.Key = w.Key
		if rs, err := cut.publish(t); err != nil || len(rs) != 2 {
			t.Errorf("cut %d: the same once more: %v and %v", n, rs, err)
		}
		sees(t, dev, "agent/1.0.0/bin", "agent/1.1.0/bin")
	}
}

// Metadata that has rotted heals when it is published again, as targets do.
func TestRottenMetadataHeals(t *testing.T) {
	w := newOnline(t)
	_, err := w.publish(t)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(w.dir, "metadata", "2.agent%2Fprod.json"), []byte("rotten"), 0o600))
	if failed, _ := w.runs(t, time.Millisecond); len(failed) == 0 {
		t.Error("nobody heard of it")
	}
	_, err = w.publish(t)
	must(t, err)
	sees(t, w.device(t), "agent/1.0.0/bin")
}

func long(n int) string { return strings.Repeat("a", n) }

// TestReleaseForms groups targets of every component, and refuses what is none.
func TestReleaseForms(t *testing.T) {
	w := newOnline(t)
	add := func(path string, c trust.Custom) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "file")
		must(t, os.WriteFile(file, []byte(path), 0o600))
		must(t, w.repo.Add([]trust.NewTarget{{Path: path, File: file, Custom: c}}, w.keys))
	}
	add("os/POS_500/prod/2.0.0/bundle.raucb", trust.Custom{Class: "os", Version: "2.0.0", Models: []string{"POS 500"}, Requires: map[string]string{"agent": "1.0.0"}, Withdrawn: true})
	add("ops/acme/till/3.0.0/tree.tar", trust.Custom{Class: "app", Version: "3.0.0"})
	add("agent/1.0.0/tillward-agent-linux-arm64", trust.Custom{Class: "agent", Version: "1.0.0", Models: []string{"POS 500"}})
	rs, err := w.publish(t)
	must(t, err)
	if len(rs) != 3 {
		t.Fatalf("got %+v, want three", rs)
	}
	if r := rs[0]; r.ID != "agent/1.0.0" || r.Component != "agent" || len(r.Targets) != 2 || len(r.Models) != 0 || r.Tenant != "" {
		t.Errorf("agent: %+v", r)
	}
	if r := rs[1]; r.ID != "ops/acme/till/3.0.0" || r.Component != "ops/acme/till" || r.Tenant != "acme" || r.Class != "app" {
		t.Errorf("app: %+v", r)
	}
	if r := rs[2]; r.Component != "os/POS_500/prod" || r.Version != "2.0.0" || !r.Withdrawn || !slices.Equal(r.Models, []string{"POS 500"}) || r.Requires["agent"] != "1.0.0" {
		t.Errorf("os: %+v", r)
	}
	for _, bad := range []struct {
		path string
		c    trust.Custom
	}{
		{"agent/2.0/tillward-agent-linux-amd64", trust.Custom{Class: "agent", Version: "2.0"}},
		{"agent/2.0.0/tillward-agent-linux-amd64", trust.Custom{Class: "app", Version: "2.0.0"}},
		{"agent/2.00.0/tillward-agent-linux-amd64", trust.Custom{Class: "agent", Version: "2.00.0"}},
		{"agent/2.0.0-a..b/tillward-agent-linux-amd64", trust.Custom{Class: "agent", Version: "2.0.0-a..b"}},
		{"agent/2.0.0-" + long(60) + "/tillward-agent-linux-amd64", trust.Custom{Class: "agent", Version: "2.0.0-" + long(60)}},
		{"agent/222222222.222222222.2-" + long(46) + "/a", trust.Custom{Class: "agent", Version: "222222222.222222222.2-" + long(46)}},
		{"ops/acme/" + long(250) + "/3.0.0/tree.tar", trust.Custom{Class: "app", Version: "3.0.0"}},
		{"agent/2.0.0/tillward-agent-linux-amd64", trust.Custom{Class: "agent", Version: "2.0.1"}},
		{"os/POS_500/prod/2.0.0/bundle.raucb", trust.Custom{Class: "agent", Version: "2.0.0"}},
		{"ops/acme/till/3.0.0/tree.tar", trust.Custom{Class: "os", Version: "3.0.0"}},
		{"ops/acme/3.0.0/tree.tar", trust.Custom{Class: "app", Version: "3.0.0"}},
	} {
		w := newOnline(t)
		file := filepath.Join(t.TempDir(), "file")
		must(t, os.WriteFile(file, []byte("x"), 0o600))
		must(t, w.repo.Add([]trust.NewTarget{{Path: bad.path, File: file, Custom: bad.c}}, w.keys))
		if _, err := w.publish(t); !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("%s %+v: got %v, want it refused", bad.path, bad.c, err)
		}
	}
}
