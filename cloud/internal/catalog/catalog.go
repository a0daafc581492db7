// Package catalog takes in signed releases and hands them to devices.
//
// It promises that what devices can fetch is always a repository that verifies
// as a whole: an upload is checked beside the one in use, as a device that
// trusts the pinned root would check it, and then put in place targets first,
// timestamp last. An upload that is wrong changes nothing. It never signs.
package catalog

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
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
	dir string
	mu  sync.Mutex
}

// Open opens or makes the folder.
func Open(dir string) (*Catalog, error) {
	for _, d := range []string{"metadata", "targets"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, fmt.Errorf("artifact folder: %w", err)
		}
	}
	return &Catalog{dir: dir}, nil
}

// Publish reads a repository as a tar stream (metadata/*.json, targets/**),
// verifies it, puts it in place, and returns every release in it. The first
// repository that is published pins its root: later ones must follow from it.
// Errors are fleet.ErrInvalid when the upload is at fault.
func (c *Catalog) Publish(ctx context.Context, r io.Reader) ([]fleet.Release, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	stage, err := os.MkdirTemp(c.dir, ".upload-")
	if err != nil {
		return nil, fmt.Errorf("take in upload: %w", err)
	}
	defer os.RemoveAll(stage)
	if err := unpack(r, stage); err != nil {
		return nil, err
	}
	if err := c.borrow(stage); err != nil {
		return nil, err
	}
	root, err := c.root(stage)
	if err != nil {
		return nil, err
	}
	targets, err := trust.VerifyRepository(ctx, stage, filepath.Join(c.dir, "trusted"), root)
	if err != nil {
		return nil, fmt.Errorf("repository does not verify: %w: %w", fleet.ErrInvalid, err)
	}
	if err := c.place(stage, targets); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(c.dir, "root.json")); errors.Is(err, fs.ErrNotExist) {
		if err := replace(filepath.Join(c.dir, "root.json"), root); err != nil {
			return nil, err
		}
	}
	return releases(targets), nil
}

// root returns the pinned root, or the first root of the very first upload.
func (c *Catalog) root(stage string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(c.dir, "root.json"))
	if err == nil {
		return b, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read pinned root: %w", err)
	}
	b, err = os.ReadFile(filepath.Join(stage, "metadata", "1.root.json")) // #nosec G304 -- our own folder
	if err != nil {
		return nil, fmt.Errorf("upload holds no metadata/1.root.json; send the folder that tillward-provision made: %w", fleet.ErrInvalid)
	}
	return b, nil
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

// place moves the upload in: targets, then metadata, the timestamp last, which
// makes the rest visible.
func (c *Catalog) place(stage string, targets []trust.Target) error {
	for _, t := range targets {
		from, to := filepath.Join(stage, "targets", filepath.FromSlash(t.File())), filepath.Join(c.dir, "targets", filepath.FromSlash(t.File()))
		if _, err := os.Stat(to); err == nil {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			return fmt.Errorf("place %s: %w", t.Path, err)
		}
		if err := os.Rename(from, to); err != nil {
			return fmt.Errorf("place %s: %w", t.Path, err)
		}
		if err := syncFolder(filepath.Dir(to)); err != nil {
			return err
		}
	}
	names, err := filepath.Glob(filepath.Join(stage, "metadata", "*.json"))
	if err != nil {
		return fmt.Errorf("place metadata: %w", err)
	}
	slices.SortFunc(names, func(a, b string) int { // timestamp.json last
		at, bt := filepath.Base(a) == "timestamp.json", filepath.Base(b) == "timestamp.json"
		switch {
		case at == bt:
			return strings.Compare(a, b)
		case at:
			return 1
		}
		return -1
	})
	for _, n := range names {
		if err := os.Rename(n, filepath.Join(c.dir, "metadata", filepath.Base(n))); err != nil {
			return fmt.Errorf("place metadata: %w", err)
		}
		if err := syncFolder(filepath.Join(c.dir, "metadata")); err != nil {
			return err
		}
	}
	return nil
}

// releases groups targets by their folder, e.g. agent/1.2.3.
func releases(targets []trust.Target) []fleet.Release {
	byID := make(map[fleet.ReleaseID]*fleet.Release)
	var out []fleet.Release
	for _, t := range targets {
		id := fleet.ReleaseID(path.Dir(t.Path))
		if byID[id] == nil {
			byID[id] = &fleet.Release{ID: id, Class: t.Custom.Class, Version: t.Custom.Version, PublishedAt: time.Now()}
		}
		byID[id].Targets = append(byID[id].Targets, fleet.Target{Path: t.Path, SHA256: t.SHA256, Length: t.Length})
	}
	for _, r := range byID {
		out = append(out, *r)
	}
	slices.SortFunc(out, func(a, b fleet.Release) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out
}

// unpack writes a tar stream below dir: plain files of a repository only.
func unpack(r io.Reader, dir string) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("upload: %w: %w", fmt.Errorf(format, args...), fleet.ErrInvalid)
	}
	tr := tar.NewReader(r)
	var total int64
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return bad("not a tar stream: %w", err)
		}
		name := path.Clean(h.Name)
		switch {
		case h.Typeflag == tar.TypeDir:
			continue
		case h.Typeflag != tar.TypeReg:
			return bad("%.100q is not a plain file", h.Name)
		case !fs.ValidPath(name) || !wanted(name):
			return bad("%.100q does not belong to a repository; only metadata/*.json and targets/ do", h.Name)
		case n >= maxFiles || h.Size > maxFile || total+h.Size > maxTotal:
			return bad("too large")
		}
		total += h.Size
		to := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			return fmt.Errorf("take in upload: %w", err)
		}
		f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) // #nosec G304 -- cleaned, below our folder
		if err != nil {
			return fmt.Errorf("take in upload: %w", err)
		}
		_, err = io.CopyN(f, tr, h.Size)
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			return bad("%s: %w", name, err)
		}
	}
}

func wanted(name string) bool {
	dir, file := path.Split(name)
	return dir == "metadata/" && strings.HasSuffix(file, ".json") || strings.HasPrefix(name, "targets/")
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
	return syncFolder(filepath.Dir(p))
}

func syncFolder(dir string) error {
	d, err := os.Open(dir) // #nosec G304 -- our own folder
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return errors.Join(d.Sync(), d.Close())
}

// Handler serves metadata/ and targets/ with ranges. Folders are not listed.
// The caller decides who may ask.
func (c *Catalog) Handler() http.Handler {
	files := http.FileServer(http.Dir(c.dir))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(path.Clean(r.URL.Path), "/")
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
