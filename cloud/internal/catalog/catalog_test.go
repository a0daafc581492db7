package catalog_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/tillward/tillward/cloud/internal/catalog"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/provisioning/trust"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is a repository and the catalog it is published to.
type world struct {
	*catalog.Catalog
	dir  string // of the catalog
	repo *trust.Repository
	keys trust.Keys
}

func newWorld(t *testing.T) *world {
	t.Helper()
	keys := trust.Keys{}
	for _, role := range []string{trust.RoleRoot, trust.RoleTargets, trust.RoleSnapshot, trust.RoleTimestamp} {
		k, err := trust.NewKey(filepath.Join(t.TempDir(), "key.pem"))
		must(t, err)
		keys[role] = []ed25519.PrivateKey{k}
	}
	repo, err := trust.InitRepository(t.TempDir(), keys, nil)
	must(t, err)
	dir := t.TempDir()
	c, err := catalog.Open(dir)
	must(t, err)
	w := &world{c, dir, repo, keys}
	w.release(t, "agent/1.0.0", "1.0.0")
	return w
}

// release adds a target of agent version to folder.
func (w *world) release(t *testing.T, folder, version string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "agent")
	must(t, os.WriteFile(file, []byte("agent "+version), 0o600))
	must(t, w.repo.Add([]trust.NewTarget{{Path: folder + "/bin", File: file, Custom: trust.Custom{Class: "agent", Version: version, OS: "linux", Arch: "amd64"}}}, w.keys))
}

func pack(t *testing.T, dir string) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	must(t, w.AddFS(os.DirFS(dir)))
	must(t, w.Close())
	return &b
}

func (w *world) publish(t *testing.T) ([]fleet.Release, error) {
	t.Helper()
	return w.Publish(t.Context(), pack(t, w.repo.Dir))
}

// TestDeviceFollows fetches what was published over HTTP, as a device does.
func TestDeviceFollows(t *testing.T) {
	w := newWorld(t)
	rs, err := w.publish(t)
	if err != nil || len(rs) != 1 || rs[0].ID != "agent/1.0.0" || rs[0].Class != "agent" || len(rs[0].Targets) != 1 {
		t.Fatalf("got %+v, %v", rs, err)
	}
	srv := httptest.NewServer(w.Handler())
	defer srv.Close()
	type answer struct {
		status int
		header http.Header
		body   []byte
	}
	get := func(path, ranges string) answer {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+path, nil)
		must(t, err)
		if ranges != "" {
			req.Header.Set("Range", ranges)
		}
		r, err := srv.Client().Do(req)
		must(t, err)
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		must(t, err)
		return answer{r.StatusCode, r.Header, b}
	}
	root, err := w.repo.Root()
	must(t, err)
	dev := &trust.Client{Dir: t.TempDir(), FactoryRoot: root, URL: srv.URL + "/metadata", Fetch: func(ctx context.Context, url string, _ int64) ([]byte, error) {
		r := get(url[len(srv.URL):], "")
		if r.status == http.StatusNotFound {
			return nil, os.ErrNotExist
		}
		return r.body, nil
	}}
	target, err := dev.Target(t.Context(), "agent/1.0.0/bin")
	must(t, err)
	part := get("/targets/"+target.File(), "bytes=6-")
	if part.status != http.StatusPartialContent || string(part.body) != "1.0.0" || part.header.Get("ETag") != `"`+target.SHA256+`"` {
		t.Errorf("resumed: got %d with %q, ETag %s", part.status, part.body, part.header.Get("ETag"))
	}
	w.release(t, "agent/1.1.0", "1.1.0")
	_, err = w.publish(t)
	must(t, err)
	if _, err := dev.Target(t.Context(), "agent/1.1.0/bin"); err != nil {
		t.Errorf("the next release: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(w.dir, "secret"), []byte("x"), 0o600))
	for _, path := range []string{"/", "/metadata/", "/targets/", "/targets/agent", "/targets/agent/", "/root.json", "/secret", "/trusted/root.json", "/metadata/../secret", "/targets/..%2fsecret", "/targets/%2e%2e/secret", "/metadata/evil.json"} {
		if r := get(path, ""); r.status != http.StatusNotFound {
			t.Errorf("%s: got %d, want 404", path, r.status)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, srv.URL+"/metadata/timestamp.json", nil)
	must(t, err)
	r, err := srv.Client().Do(req)
	must(t, err)
	if _ = r.Body.Close(); r.StatusCode != http.StatusNotFound {
		t.Errorf("DELETE: got %s", r.Status)
	}
}

// TestOnlyVerifiedMetadataIsPlaced adds metadata that nobody signed under a name
// that a later version will have.
func TestOnlyVerifiedMetadataIsPlaced(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"3.root.json", "9.targets.json", "9.snapshot.json", "1.other.json"} {
		must(t, os.WriteFile(filepath.Join(w.repo.Dir, "metadata", name), []byte("{}"), 0o600))
	}
	must(t, os.WriteFile(filepath.Join(w.repo.Dir, "targets", "stray"), []byte("x"), 0o600))
	if _, err := w.publish(t); err != nil {
		t.Fatal(err)
	}
	got, err := filepath.Glob(filepath.Join(w.dir, "metadata", "*"))
	must(t, err)
	for i, p := range got {
		got[i] = filepath.Base(p)
	}
	if want := []string{"1.agent%2Fprod.json", "1.root.json", "2.snapshot.json", "2.targets.json", "timestamp.json"}; !slices.Equal(got, want) {
		t.Errorf("in place: %v, want %v", got, want)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "targets", "stray")); err == nil {
		t.Error("a stray target was put in place")
	}
}

// TestRecoveredRoot goes on after the keys of the root were lost: devices of the
// old root and those whose image carries the new one read the same catalog, and
// once the operator has pinned the new root it may change its keys again.
func TestRecoveredRoot(t *testing.T) {
	w := newWorld(t)
	_, err := w.publish(t)
	must(t, err)
	key, err := trust.NewKey(filepath.Join(t.TempDir(), "key.pem"))
	must(t, err)
	sign := func() {
		t.Helper()
		d, err := trust.ReadDraft(w.repo.DraftFile(trust.RoleRoot))
		must(t, err)
		s, err := d.Sign(key)
		must(t, err)
		done, err := w.repo.Merge([]trust.Signature{s})
		if err != nil || len(done) != 1 {
			t.Fatalf("merged %v, %v", done, err)
		}
		must(t, w.repo.Refresh(w.keys))
		must(t, os.RemoveAll(filepath.Join(w.repo.Dir, "draft")))
	}
	device := func(root string) error {
		b, err := os.ReadFile(filepath.Join(w.repo.Dir, "metadata", root))
		must(t, err)
		const base = "https://catalog.invalid/metadata"
		dev := &trust.Client{Dir: t.TempDir(), FactoryRoot: b, URL: base, Fetch: trust.FolderFetch(base, filepath.Join(w.dir, "metadata"))}
		_, err = dev.Target(t.Context(), "agent/1.0.0/bin")
		return err
	}
	must(t, w.repo.Recover(trust.Signers{Keys: []crypto.PublicKey{key.Public()}}))
	sign()
	_, err = w.publish(t)
	must(t, err)
	must(t, device("1.root.json"))
	must(t, device("101.root.json"))

	must(t, w.repo.Renew([]string{trust.RoleRoot}, nil))
	sign()
	_, err = w.publish(t)
	must(t, err)
	served := filepath.Join(w.dir, "metadata", "102.root.json")
	if _, err := os.Stat(served); err == nil {
		t.Error("a root that does not follow from the pinned one is served")
	}
	b, err := os.ReadFile(filepath.Join(w.repo.Dir, "metadata", "101.root.json"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(w.dir, "root.json"), b, 0o600))
	must(t, os.RemoveAll(filepath.Join(w.dir, "trusted")))
	_, err = w.publish(t)
	must(t, err)
	if _, err := os.Stat(served); err != nil {
		t.Error(err)
	}
	must(t, device("1.root.json"))
	must(t, device("101.root.json"))
}

// TestRottenTargetHeals publishes once more over a target that has rotted.
func TestRottenTargetHeals(t *testing.T) {
	w := newWorld(t)
	_, err := w.publish(t)
	must(t, err)
	names, err := filepath.Glob(filepath.Join(w.dir, "targets", "agent", "1.0.0", "*"))
	if err != nil || len(names) != 1 {
		t.Fatalf("targets: %v, %v", names, err)
	}
	must(t, os.WriteFile(names[0], []byte("rotten"), 0o600))
	_, err = w.publish(t)
	must(t, err)
	if b, err := os.ReadFile(names[0]); err != nil || string(b) != "agent 1.0.0" {
		t.Errorf("got %q, %v", b, err)
	}
}

// TestTargetsMayBeLeftOut sends the metadata and only the new target.
func TestTargetsMayBeLeftOut(t *testing.T) {
	w := newWorld(t)
	_, err := w.publish(t)
	must(t, err)
	w.release(t, "agent/1.1.0", "1.1.0")
	must(t, os.RemoveAll(filepath.Join(w.repo.Dir, "targets", "agent", "1.0.0")))
	if rs, err := w.publish(t); err != nil || len(rs) != 2 {
		t.Errorf("got %v, %v; want both releases", rs, err)
	}
}

// TestReleaseIsWhatIsSigned publishes a target whose folder and description disagree.
func TestReleaseIsWhatIsSigned(t *testing.T) {
	w := newWorld(t)
	w.release(t, "agent/9.9.9", "1.0.1")
	if _, err := w.publish(t); !errors.Is(err, fleet.ErrInvalid) {
		t.Errorf("got %v, want it refused", err)
	}
	if left, err := filepath.Glob(filepath.Join(w.dir, "metadata", "*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestCutOff breaks the stream in the middle, and the process in an upload: no
// rest stays.
func TestCutOff(t *testing.T) {
	w := newWorld(t)
	r := io.MultiReader(io.LimitReader(pack(t, w.repo.Dir), 2000), failing{})
	if _, err := w.Publish(t.Context(), r); !errors.Is(err, fleet.ErrInvalid) || !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v", err)
	}
	must(t, os.MkdirAll(filepath.Join(w.dir, ".upload-123", "targets"), 0o700))
	_, err := catalog.Open(w.dir)
	must(t, err)
	if left, err := filepath.Glob(filepath.Join(w.dir, ".upload-*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrClosedPipe }

// FuzzPublish uploads whatever there is: what gets in is a repository that a
// device takes.
func FuzzPublish(f *testing.F) {
	keys := trust.Keys{}
	for _, role := range []string{trust.RoleRoot, trust.RoleTargets, trust.RoleSnapshot, trust.RoleTimestamp} {
		keys[role] = []ed25519.PrivateKey{ed25519.NewKeyFromSeed(bytes.Repeat([]byte(role[:1]), ed25519.SeedSize))}
	}
	repo, err := trust.InitRepository(f.TempDir(), keys, nil)
	must(f, err)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	must(f, w.AddFS(os.DirFS(repo.Dir)))
	must(f, w.Close())
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:b.Len()/2])
	f.Add([]byte{})
	root, err := repo.Root()
	must(f, err)
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		c, err := catalog.Open(dir)
		must(t, err)
		if _, err := c.Publish(t.Context(), bytes.NewReader(b)); err != nil {
			if left, _ := filepath.Glob(filepath.Join(dir, "metadata", "*")); len(left) != 0 {
				t.Errorf("refused, and left %v", left)
			}
			return
		}
		if pinned, err := os.ReadFile(filepath.Join(dir, "root.json")); err != nil || !bytes.Equal(pinned, root) {
			return // a repository of somebody else, who may be the first
		}
		const base = "https://catalog.invalid/metadata"
		dev := &trust.Client{Dir: t.TempDir(), FactoryRoot: root, URL: base, Fetch: trust.FolderFetch(base, filepath.Join(dir, "metadata"))}
		if err := dev.Refresh(t.Context()); err != nil {
			t.Errorf("published, and no device takes it: %v", err)
		}
	})
}
