package trust

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/config"
	"github.com/theupdateframework/go-tuf/v2/metadata/updater"
)

// Errors of releases; the text names the role or file.
var (
	ErrExpired   = errors.New("release metadata has expired")
	ErrSignature = errors.New("release metadata is not signed as it must be")
	ErrRollback  = errors.New("release metadata is older than what is known")
	ErrMismatch  = errors.New("file differs from what the release says")
	ErrNoTarget  = errors.New("no such target in the release")
)

// Fetch gets a file of at most limit bytes. A file that is not there is
// fs.ErrNotExist.
type Fetch func(ctx context.Context, url string, limit int64) ([]byte, error)

// Client is the device's view of a TUF repository. It keeps its own store of
// the newest verified root: go-tuf v2 starts again from whatever root it is
// given and would believe a key that was revoked since.
type Client struct {
	Dir         string // on the state partition
	FactoryRoot []byte // root.json of the image
	URL         string // of the metadata folder
	Fetch       Fetch
	NotBefore   time.Time // build date: no clock is believed to be earlier

	mu sync.Mutex
}

// Target is one artifact as the release describes it.
type Target struct {
	Path   string
	SHA256 string // hex
	Length int64
	Custom Custom
}

// File is where the target lies below the targets folder: with consistent
// snapshots the hash is part of its name.
func (t Target) File() string { return path.Join(path.Dir(t.Path), t.SHA256+"."+path.Base(t.Path)) }

// ClassBoot is the class of a target that holds the boot reference values of a
// release for a model. Nothing installs it.
const ClassBoot = "boot"

// Classes of artifacts.
const (
	ClassAgent  = "agent"
	ClassOS     = "os"
	ClassApp    = "app"
	ClassConfig = "config"
	ClassScript = "script"
)

// Custom is what a release says about a target beyond TUF.
type Custom struct {
	Class     string            `json:"class"`               // one of the classes, or ClassBoot
	Version   string            `json:"version"`             // of ClassBoot: the release, e.g. os/1.2.3
	OS        string            `json:"os,omitempty"`        // of programs
	Arch      string            `json:"arch,omitempty"`      // of programs
	Model     string            `json:"model,omitempty"`     // of ClassBoot
	Models    []string          `json:"models,omitempty"`    // boxes it fits; none: all
	Requires  map[string]string `json:"requires,omitempty"`  // component -> version at least, e.g. agent: 1.4.0
	Withdrawn bool              `json:"withdrawn,omitempty"` // nobody gets it any more; whoever runs it may go on
	Chunks    *Chunks           `json:"chunks,omitempty"`    // an index that makes a partial download possible
	RAUC      *RAUC             `json:"rauc,omitempty"`      // of ClassOS
	Unpacked  int64             `json:"unpacked,omitempty"`  // bytes that it takes on the disk, where they differ from Length
}

// Chunks names the chunk index of a target (provisioning/chunk), which lies
// beside it under its hash.
type Chunks struct {
	SHA256 string `json:"sha256"`
	Length int64  `json:"length"`
}

// RAUC is what a release says about a RAUC bundle; the manifest hash binds what
// RAUC installs to what TUF signed.
type RAUC struct {
	Compatible   string `json:"compatible"`
	Version      string `json:"version"`
	Format       string `json:"format"` // plain, verity, crypt
	ManifestHash string `json:"manifest_hash,omitempty"`
	MinRAUC      string `json:"min_rauc,omitempty"`
}

// floor is what must never be undercut, kept apart from the metadata.
type floor struct {
	RootVersion int64     `json:"root_version"`
	At          time.Time `json:"at"` // latest time a refresh succeeded
}

// Refresh fetches and checks the metadata up to the targets role.
func (c *Client) Refresh(ctx context.Context) error {
	_, err := c.refresh(ctx)
	return err
}

// Target refreshes the metadata and returns what the release says about path.
func (c *Client) Target(ctx context.Context, path string) (Target, error) {
	u, err := c.refresh(ctx)
	if err != nil {
		return Target{}, err
	}
	info, err := u.GetTargetInfo(path)
	if err != nil {
		return Target{}, fmt.Errorf("target %s: %w: %w", path, ErrNoTarget, err)
	}
	return target(path, info)
}

// Targets refreshes the metadata and returns every target of the top-level
// targets role.
func (c *Client) Targets(ctx context.Context) ([]Target, error) {
	u, err := c.refresh(ctx)
	if err != nil {
		return nil, err
	}
	var out []Target
	for p, info := range u.GetTopLevelTargets() {
		t, err := target(p, info)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

func target(p string, info *metadata.TargetFiles) (Target, error) {
	sum, ok := info.Hashes["sha256"]
	if !ok || len(info.Hashes) != 1 || len(sum) != 32 {
		return Target{}, fmt.Errorf("target %s: must carry exactly one hash, sha256: %w", p, ErrMismatch)
	}
	if !fs.ValidPath(p) {
		return Target{}, fmt.Errorf("target %.80q: not a plain path: %w", p, ErrMismatch)
	}
	t := Target{Path: p, SHA256: sum.String(), Length: info.Length}
	if info.Custom != nil {
		if err := json.Unmarshal(*info.Custom, &t.Custom); err != nil {
			return Target{}, fmt.Errorf("target %s: custom: %w", p, err)
		}
	}
	return t, nil
}

func (c *Client) refresh(ctx context.Context) (*updater.Updater, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	cache := filepath.Join(c.Dir, "cache")
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return nil, fmt.Errorf("metadata folder: %w", err)
	}
	root, low, err := c.root()
	if err != nil {
		return nil, err
	}
	cfg, err := config.New(c.URL, root)
	if err != nil {
		return nil, fmt.Errorf("release metadata: %w", err)
	}
	cfg.LocalMetadataDir, cfg.LocalTargetsDir = cache, cache
	cfg.Fetcher = fetcher(func(url string, limit int64) ([]byte, error) { return c.Fetch(ctx, url, limit) })
	u, err := updater.New(cfg)
	if err != nil {
		return nil, explain(err)
	}
	now := time.Now()
	for _, t := range []time.Time{c.NotBefore, low.At} {
		if t.After(now) {
			now = t // the clock of a till may have lost its battery
		}
	}
	u.UnsafeSetRefTime(now)
	failed := u.Refresh()
	// Also after a failure: a root that was verified is never forgotten.
	if err := c.keep(u, low, now, failed == nil); err != nil {
		return nil, err
	}
	if failed != nil {
		return nil, explain(failed)
	}
	return u, nil
}

// root returns the newest verified root and the floor.
func (c *Client) root() ([]byte, floor, error) {
	var low floor
	if b, err := os.ReadFile(filepath.Join(c.Dir, "floor.json")); err == nil {
		if err := json.Unmarshal(b, &low); err != nil {
			return nil, low, fmt.Errorf("floor of the release metadata is unreadable, remove %s to start from the image's root: %w", c.Dir, err)
		}
	}
	candidates := [][]byte{c.FactoryRoot}
	if b, err := os.ReadFile(filepath.Join(c.Dir, "root.json")); err == nil {
		candidates = append(candidates, b)
	}
	var best []byte
	version := int64(-1)
	for _, b := range candidates {
		m, err := metadata.Root().FromBytes(b)
		if err == nil && m.Signed.Version > version {
			best, version = b, m.Signed.Version
		}
	}
	switch {
	case best == nil:
		return nil, low, fmt.Errorf("no readable TUF root: the image's root.json is missing or broken: %w", ErrSignature)
	case version < low.RootVersion:
		return nil, low, fmt.Errorf("root version %d is below the floor %d: %w", version, low.RootVersion, ErrRollback)
	}
	return best, low, nil
}

// keep stores the root the updater arrived at, and raises the floor.
func (c *Client) keep(u *updater.Updater, low floor, now time.Time, fresh bool) error {
	set := u.GetTrustedMetadataSet()
	if set.Root == nil {
		return nil
	}
	next := floor{RootVersion: max(low.RootVersion, set.Root.Signed.Version), At: low.At}
	if fresh && now.After(next.At.Add(time.Hour)) {
		next.At = now
	}
	if next.RootVersion > low.RootVersion || low.RootVersion == 0 {
		b, err := set.Root.ToBytes(false)
		if err != nil {
			return fmt.Errorf("keep root: %w", err)
		}
		if err := writeFile(filepath.Join(c.Dir, "root.json"), b); err != nil {
			return err
		}
	}
	if next == low {
		return nil
	}
	b, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("keep floor: %w", err)
	}
	return writeFile(filepath.Join(c.Dir, "floor.json"), b)
}

// writeFile replaces the file at path in one step that survives a power cut.
func writeFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return errors.Join(d.Sync(), d.Close())
}

// fetcher fits go-tuf's Fetcher.
type fetcher func(url string, limit int64) ([]byte, error)

// DownloadFile implements go-tuf's fetcher.Fetcher.
func (f fetcher) DownloadFile(url string, limit int64, _ time.Duration) ([]byte, error) {
	b, err := f(url, limit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &metadata.ErrDownloadHTTP{StatusCode: 404, URL: url}
	}
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, &metadata.ErrDownloadLengthMismatch{Msg: fmt.Sprintf("%s has more than %d bytes", url, limit)}
	}
	return b, nil
}

// explain turns go-tuf's errors into ours.
func explain(err error) error {
	for _, k := range []struct {
		is  bool
		err error
	}{
		{is[*metadata.ErrExpiredMetadata](err), ErrExpired},
		{is[*metadata.ErrUnsignedMetadata](err), ErrSignature},
		{is[*metadata.ErrBadVersionNumber](err) || is[*metadata.ErrEqualVersionNumber](err), ErrRollback},
		{is[*metadata.ErrLengthOrHashMismatch](err) || is[*metadata.ErrDownloadLengthMismatch](err), ErrMismatch},
		{is[*metadata.ErrRepository](err), ErrSignature},
	} {
		if k.is {
			return fmt.Errorf("%w: %w", k.err, err)
		}
	}
	if _, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("%w: %w", ErrMismatch, err)
	}
	return fmt.Errorf("fetch release metadata: %w", err)
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// FolderFetch fetches from a folder, for tools and tests; the URL must begin
// with base.
func FolderFetch(base, dir string) Fetch {
	return func(_ context.Context, url string, limit int64) ([]byte, error) {
		name, ok := strings.CutPrefix(url, base)
		if !ok || !fs.ValidPath(strings.TrimPrefix(name, "/")) {
			return nil, fmt.Errorf("%s: %w", url, fs.ErrNotExist)
		}
		b, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		if err == nil && int64(len(b)) > limit {
			return nil, fmt.Errorf("%s has more than %d bytes: %w", name, limit, ErrMismatch)
		}
		return b, err
	}
}
