// Package catalog takes in signed releases and hands them to devices, and the
// boot reference values that were signed with them to the service.
//
// It promises that what devices can fetch is always a repository that verifies
// as a whole: an upload is checked beside the one in use, as a device that
// trusts the pinned root would check it, and then put in place targets first,
// timestamp last. An upload that is wrong changes nothing. Where the root lets
// the service's key sign snapshot and timestamp, it signs these two, which makes
// fresh what others signed, and nothing else.
package catalog

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/provisioning/durable"
	"github.com/tillward/tillward/provisioning/trust"
)

// Limits of an upload.
const (
	maxFiles = 10_000
	maxFile  = 2 << 30 // bytes
	maxTotal = 8 << 30
)

// Catalog is the artifact folder: root.json (pinned), metadata/, targets/.
type Catalog struct {
	// Fits may refuse an upload for its boot references, before anything of it is
	// put in place; nil: whatever is signed fits.
	Fits func(ctx context.Context, refs []fleet.BootReference) error
	// Key signs snapshot and timestamp where the root names it; nil: uploads carry
	// both.
	Key ed25519.PrivateKey

	dir string
	mu  sync.Mutex
}

// Open opens or makes the folder, and clears what an upload that was cut off
// has left.
func Open(dir string) (*Catalog, error) {
	for _, d := range []string{"metadata", "targets"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, fmt.Errorf("artifact folder: %w", err)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, ".upload-*"))
	if err != nil {
		return nil, fmt.Errorf("artifact folder: %w", err)
	}
	for _, l := range left {
		if err := os.RemoveAll(l); err != nil {
			return nil, fmt.Errorf("artifact folder: %w", err)
		}
	}
	return &Catalog{dir: dir}, nil
}

// Publish reads a repository as a tar stream (metadata/*.json, targets/**),
// verifies it, puts it in place, and returns every release in it. The first
// repository that is published pins its root: later ones must follow from it.
// Targets that are in place need not be sent again; where the service signs
// snapshot and timestamp, neither need other metadata.
// Errors are fleet.ErrInvalid when the upload is at fault.
func (c *Catalog) Publish(ctx context.Context, r io.Reader) ([]fleet.Release, error) {
	stage, err := os.MkdirTemp(c.dir, ".upload-")
	if err != nil {
		return nil, fmt.Errorf("take in upload: %w", err)
	}
	defer os.RemoveAll(stage)
	if err := unpack(r, stage); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.borrow(stage); err != nil {
		return nil, fmt.Errorf("take in upload: %w", err)
	}
	root, err := c.root(stage)
	if err != nil {
		return nil, err
	}
	if err := c.complete(stage); err != nil {
		return nil, err
	}
	// What has been verified before is the floor; it moves when the upload is in place.
	trusted, state := filepath.Join(c.dir, "trusted"), filepath.Join(stage, "trusted")
	if err := os.CopyFS(state, os.DirFS(trusted)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("copy what is trusted: %w", err)
	}
	targets, err := trust.VerifyRepository(ctx, stage, state, root)
	if err != nil {
		return nil, fmt.Errorf("repository does not verify: %w: %w", fleet.ErrInvalid, err)
	}
	found, err := releases(targets)
	if err != nil {
		return nil, err
	}
	refs, err := references(stage, targets)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", fleet.ErrInvalid, err)
	}
	if c.Fits != nil {
		if err := c.Fits(ctx, refs); err != nil {
			return nil, err
		}
	}
	names, err := verified(stage, root)
	if err != nil {
		return nil, err
	}
	if err := replace(filepath.Join(c.dir, "root.json"), root); err != nil {
		return nil, err
	}
	if err := c.place(stage, targets, names); err != nil {
		return nil, err
	}
	if err := os.Rename(trusted, filepath.Join(stage, "before")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("replace what is trusted: %w", err)
	}
	if err := os.Rename(state, trusted); err != nil {
		return nil, fmt.Errorf("replace what is trusted: %w", err)
	}
	return found, durable.SyncDir(c.dir)
}

// root returns the pinned root, or the first root of the very first upload. An
// operator may pin a later one by hand: one that was made because the keys of
// the old are lost follows from none.
func (c *Catalog) root(stage string) ([]byte, error) {
	pinned, err := os.ReadFile(filepath.Join(c.dir, "root.json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read pinned root: %w", err)
	}
	name := trust.MetadataFile(trust.RoleRoot, 1)
	if pinned != nil {
		var m struct{ Signed struct{ Version int64 } }
		if err := json.Unmarshal(pinned, &m); err != nil {
			return nil, fmt.Errorf("read pinned root: %w", err)
		}
		name = trust.MetadataFile(trust.RoleRoot, m.Signed.Version)
	}
	sent, err := os.ReadFile(filepath.Join(stage, "metadata", name)) // #nosec G304 -- our own folder
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read root: %w", err)
	case pinned != nil && err == nil && !bytes.Equal(sent, pinned):
		return nil, fmt.Errorf("metadata/%s is not the root this service and its devices trust; publish the repository they came with: %w", name, fleet.ErrInvalid)
	case pinned != nil:
		return pinned, nil
	case err != nil:
		return nil, fmt.Errorf("upload holds no metadata/%s; send the folder that tillward-provision made: %w", name, fleet.ErrInvalid)
	}
	return sent, nil
}

// verified names the metadata of a repository that a device looks at, in the
// order to place it: what else an upload holds nobody has checked.
func verified(stage string, root []byte) ([]string, error) {
	type role struct {
		Signed struct {
			Version int64
			Meta    map[string]struct{ Version int64 }
		}
	}
	read := func(name string) (r role, err error) {
		b, err := os.ReadFile(filepath.Join(stage, "metadata", filepath.FromSlash(name))) // #nosec G304 -- our own folder
		if err == nil {
			err = json.Unmarshal(b, &r)
		}
		if err != nil {
			return r, fmt.Errorf("read %s: %w", name, err)
		}
		return r, nil
	}
	var first role
	if err := json.Unmarshal(root, &first); err != nil {
		return nil, fmt.Errorf("read root: %w", err)
	}
	var names []string
	for v := first.Signed.Version; ; v++ {
		name := fmt.Sprintf("%d.root.json", v)
		_, err := os.Stat(filepath.Join(stage, "metadata", name))
		if err == nil {
			names = append(names, name)
		} else if v > first.Signed.Version {
			break // the first is the pinned one, which need not be sent again
		}
	}
	stamp, err := read("timestamp.json")
	if err != nil {
		return nil, err
	}
	snapshot := fmt.Sprintf("%d.snapshot.json", stamp.Signed.Meta["snapshot.json"].Version)
	snap, err := read(snapshot)
	if err != nil {
		return nil, err
	}
	for name, m := range snap.Signed.Meta {
		name = trust.MetadataFile(strings.TrimSuffix(name, ".json"), m.Version)
		if _, err := os.Stat(filepath.Join(stage, "metadata", name)); err == nil { // a role that is delegated no more stays in the snapshot
			names = append(names, name)
		}
	}
	return append(names, snapshot, "timestamp.json"), nil
}

// borrow links targets that are in place already and were not sent again.
func (c *Catalog) borrow(stage string) error {
	have := filepath.Join(c.dir, "targets")
	return filepath.WalkDir(have, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(have, p)
		if err != nil {
			return err
		}
		to := filepath.Join(stage, "targets", rel)
		if _, err := os.Stat(to); err == nil {
			return nil
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			return err
		}
		return os.Link(p, to) // #nosec G122 -- our own folder, which nobody else writes
	})
}

// place moves the upload in: targets, then the named metadata, of which the
// last makes the rest visible.
func (c *Catalog) place(stage string, targets []trust.Target, names []string) error {
	for _, t := range targets {
		// What is there is replaced: it may have rotted, and what was sent has just been verified.
		name := filepath.Join("targets", filepath.FromSlash(t.File()))
		if err := os.MkdirAll(filepath.Dir(filepath.Join(c.dir, name)), 0o700); err != nil {
			return fmt.Errorf("place %s: %w", t.Path, err)
		}
		if err := os.Rename(filepath.Join(stage, name), filepath.Join(c.dir, name)); err != nil {
			return fmt.Errorf("place %s: %w", t.Path, err)
		}
		if index := t.ChunkFile(); index != "" {
			index = filepath.Join("targets", filepath.FromSlash(index))
			if err := os.Rename(filepath.Join(stage, index), filepath.Join(c.dir, index)); err != nil {
				return fmt.Errorf("place the chunk index of %s: %w", t.Path, err)
			}
		}
		if err := durable.SyncDir(filepath.Dir(filepath.Join(c.dir, name))); err != nil {
			return err
		}
	}
	for _, n := range names {
		if err := os.Rename(filepath.Join(stage, "metadata", n), filepath.Join(c.dir, "metadata", n)); err != nil {
			return fmt.Errorf("place metadata: %w", err)
		}
		if err := durable.SyncDir(filepath.Join(c.dir, "metadata")); err != nil {
			return err
		}
	}
	return nil
}

func replace(p string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(p), ".new-")
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(p), err)
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(p), err)
	}
	if err := os.Rename(f.Name(), p); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(p), err)
	}
	return durable.SyncDir(filepath.Dir(p))
}

// Handler serves metadata/ and targets/ with ranges. Folders are not listed.
// The caller decides who may ask.
func (c *Catalog) Handler() http.Handler {
	files := http.FileServer(http.Dir(c.dir))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(path.Clean(r.URL.Path), "/")
		if role, ok := strings.CutPrefix(name, "metadata/"); ok && strings.Contains(role, "/") {
			// Who asks for the name as it is written on the disk has its %2F read as a slash.
			name = "metadata/" + strings.ReplaceAll(role, "/", "%2F")
			r = r.Clone(r.Context())
			r.URL.Path, r.URL.RawPath = "/"+name, ""
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead || !wanted(name) || strings.HasSuffix(r.URL.Path, "/") {
			http.NotFound(w, r)
			return
		}
		if fi, err := os.Stat(filepath.Join(c.dir, filepath.FromSlash(name))); err != nil || fi.IsDir() {
			http.NotFound(w, r)
			return
		}
		if strings.HasPrefix(name, "targets/") {
			sum, _, _ := strings.Cut(path.Base(name), ".")
			w.Header().Set("ETag", `"`+sum+`"`) // the name holds the hash
		}
		files.ServeHTTP(w, r)
	})
}
