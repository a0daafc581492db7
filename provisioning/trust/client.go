package trust

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
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

// Client is the device's view of a TUF repository. It keeps the chain of roots
// that it has verified and starts from the image's root each time, so that
// neither a planted root nor a forgotten one is believed: go-tuf v2's updater
// starts from whatever root it is given and would believe a key that was revoked
// since.
type Client struct {
	Dir         string // on the state partition
	FactoryRoot []byte // root.json of the image
	URL         string // of the metadata folder
	Fetch       Fetch
	NotBefore   time.Time        // build date: no clock is believed to be earlier
	Now         func() time.Time // nil: the system's clock
	Floor       Floor            // that a wiped disk does not lower; nil: on the disk alone

	mu     sync.Mutex
	raised uint64  // what Floor stands at, once it was asked
	online *Client // of the same box, where this one reads a medium
}

// Floor keeps the highest version of the root that was ever verified where
// wiping the disk does not reach it; hal/tpm fits.
type Floor interface {
	RootFloor(ctx context.Context) (uint64, error)
	RaiseRootFloor(ctx context.Context, to uint64) error
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

// Refresh fetches and checks the metadata up to the targets role.
func (c *Client) Refresh(ctx context.Context) error {
	return c.look(ctx, func(*view) error { return nil })
}

// Target refreshes the metadata and returns what the release says about path,
// in the top-level targets role or the role it delegates the path to.
func (c *Client) Target(ctx context.Context, path string) (t Target, err error) {
	err = c.look(ctx, func(v *view) error {
		role, info, err := v.find(path)
		if err != nil {
			return err
		}
		t, err = target(path, info)
		if err == nil && c.online != nil && c.online.withdrawn(role, v.set.Targets[role], path) {
			t.Custom.Withdrawn = true
		}
		return err
	})
	return t, err
}

// Targets refreshes the metadata and returns every target that Target finds.
func (c *Client) Targets(ctx context.Context) (out []Target, err error) {
	err = c.look(ctx, func(v *view) error {
		return v.each(func(role, path string, info *metadata.TargetFiles) error {
			// What a role says about paths that it was not given does not count.
			if by, _, err := v.find(path); errors.Is(err, ErrNoTarget) || by != role {
				return nil
			} else if err != nil {
				return err
			}
			t, err := target(path, info)
			out = append(out, t)
			return err
		})
	})
	return out, err
}

// Freshness says when the newest verified timestamp was signed and when it
// expires; zero when there is none yet. After half of that time without another
// one somebody should be told: what expired stops updates, and who freezes a
// device in the past is seen here.
func (c *Client) Freshness() (signed, expires time.Time) {
	return freshness(filepath.Join(c.Dir, "cache", "timestamp.json"))
}

// Medium returns a client for the folder of an update medium, which holds
// metadata/ with a timestamp of its own. It trusts the roots that c trusts,
// respects the floors of c, and keeps nothing of what the medium says but a
// newer verified root: what is on the medium must not undercut or overtake what
// the service says. What the service has withdrawn, as far as this box knows,
// stays withdrawn.
func (c *Client) Medium(dir string) *Client {
	const base = "https://medium.invalid/metadata"
	return &Client{
		Dir: c.Dir, FactoryRoot: c.FactoryRoot, URL: base, Fetch: FolderFetch(base, filepath.Join(dir, "metadata")), NotBefore: c.NotBefore, Now: c.Now, Floor: c.Floor, online: c,
	}
}

func target(p string, info *metadata.TargetFiles) (Target, error) {
	if info == nil || info.Length < 0 {
		return Target{}, fmt.Errorf("target %.80q: not described: %w", p, ErrMismatch)
	}
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

// explain turns what go-tuf found wrong into our errors.
func explain(err error) error {
	for _, k := range []struct {
		is  bool
		err error
	}{
		{is[*metadata.ErrExpiredMetadata](err), ErrExpired},
		{is[*metadata.ErrUnsignedMetadata](err), ErrSignature},
		{is[*metadata.ErrBadVersionNumber](err) || is[*metadata.ErrEqualVersionNumber](err), ErrRollback},
		{is[*metadata.ErrLengthOrHashMismatch](err) || is[*json.SyntaxError](err), ErrMismatch},
	} {
		if k.is {
			return fmt.Errorf("%w: %w", k.err, err)
		}
	}
	return fmt.Errorf("%w: %w", ErrSignature, err)
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// FolderFetch fetches from a folder, for media, tools and tests; the URL must
// begin with base. Nothing outside the folder is read, and nothing but files:
// whoever hands in a medium may have put links and pipes on it.
func FolderFetch(base, dir string) Fetch {
	return func(_ context.Context, url string, limit int64) ([]byte, error) {
		name, ok := strings.CutPrefix(url, base+"/")
		if !ok || !fs.ValidPath(name) {
			return nil, fmt.Errorf("%s: %w", url, fs.ErrNotExist)
		}
		return readBounded(func(name string) (*os.File, error) {
			root, err := os.OpenRoot(dir + "/") // a folder: to open a pipe would take for ever
			if err != nil {
				return nil, err
			}
			defer root.Close()
			return root.OpenFile(filepath.FromSlash(name), os.O_RDONLY|syscall.O_NONBLOCK, 0)
		}, name, limit)
	}
}

// readBounded reads a plain file of at most limit bytes.
func readBounded(open func(string) (*os.File, error), name string, limit int64) ([]byte, error) {
	f, err := open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, errors.Join(err, fmt.Errorf("%s is no plain file: %w", name, ErrMismatch))
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes: %w", name, limit, ErrMismatch)
	}
	return b, err
}
