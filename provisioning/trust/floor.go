package trust

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"
)

// floor is what must never be undercut, kept apart from the metadata. One that
// is damaged counts as absent, as a wiped disk does: the floor that does not
// lie on the disk stays, and so do the roots.
type floor struct {
	RootVersion int64     `json:"root_version"`
	At          time.Time `json:"at"` // latest time a refresh succeeded
}

const floorFile = "floor.json"

// open walks the chain of roots from the image's to the newest, first those on
// the disk, then those of the repository, and makes sure that it ends at the
// floor or above [TUF 1.0.31, 5.3]. The chain, not the newest root alone, is
// what is kept: a root that was planted on the disk does not follow from the
// image's.
func (c *Client) open(ctx context.Context, v *view) (low floor, now time.Time, err error) {
	for _, d := range []string{"cache", "roots"} {
		if err := os.MkdirAll(filepath.Join(c.Dir, d), 0o700); err != nil {
			return low, now, fmt.Errorf("metadata folder: %w", err)
		}
	}
	if b, err := readBounded(os.Open, filepath.Join(c.Dir, floorFile), maxTimestamp); err == nil {
		if json.Unmarshal(b, &low) != nil {
			low = floor{}
		}
	}
	nv, err := c.nvFloor(ctx)
	if err != nil {
		return low, now, err
	}
	if v.set, err = trustedmetadata.New(c.FactoryRoot); err != nil {
		return low, now, fmt.Errorf("no readable TUF root: the image's root.json is missing or broken: %w: %w", ErrSignature, err)
	}
	now = time.Now()
	if c.Now != nil {
		now = c.Now()
	}
	for _, t := range []time.Time{c.NotBefore, low.At} {
		if t.After(now) {
			now = t // the clock of a till may have lost its battery
		}
	}
	v.set.RefTime = now
	for {
		b, err := readBounded(os.Open, c.rootFile(v.set.Root.Signed.Version+1), maxRoot)
		if err != nil {
			break
		}
		if _, err := v.set.UpdateRoot(b); err != nil {
			break // damaged: the repository has it, too
		}
	}
	err = c.followRoots(v)
	version := v.set.Root.Signed.Version
	// Also after a failure: a root that was verified is never forgotten.
	if err := c.raise(ctx, &low, version); err != nil {
		return low, now, err
	}
	if err != nil {
		return low, now, err
	}
	if least := max(low.RootVersion, int64(min(nv, 1<<62))); version < least {
		return low, now, fmt.Errorf("root version %d is below the floor %d; whoever serves the metadata withholds newer roots: %w", version, least, ErrRollback)
	}
	return low, now, nil
}

func (c *Client) rootFile(version int64) string {
	return filepath.Join(c.Dir, "roots", fmt.Sprintf("%d.root.json", version))
}

// followRoots fetches and keeps the roots that follow.
func (c *Client) followRoots(v *view) error {
	for range maxRotations {
		before := v.set.Root
		next := before.Signed.Version + 1
		b, err := v.get(fmt.Sprintf("%d.root.json", next), maxRoot)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		after, err := v.set.UpdateRoot(b)
		if err != nil {
			return fmt.Errorf("root %d: %w", next, explain(err))
		}
		// Whoever held a key that is no more may have counted far ahead with it:
		// what the role said is forgotten before the new root counts [TUF 1.0.31, 5.3.11].
		if c.online == nil && (turned(before, after, metadata.TIMESTAMP) || turned(before, after, metadata.SNAPSHOT)) {
			for _, name := range []string{"timestamp.json", "snapshot.json"} {
				if err := v.cache.remove(name); err != nil {
					return err
				}
			}
		}
		if err := writeFile(c.rootFile(next), b); err != nil {
			return err
		}
	}
	return fmt.Errorf("more than %d new roots at once: %w", maxRotations, ErrMismatch)
}

// turned reports whether other keys sign for a role than before.
func turned(before, after *metadata.Metadata[metadata.RootType], role string) bool {
	keys := func(m *metadata.Metadata[metadata.RootType]) []string {
		if m.Signed.Roles[role] == nil {
			return nil
		}
		return slices.Sorted(slices.Values(m.Signed.Roles[role].KeyIDs))
	}
	return !slices.Equal(keys(before), keys(after))
}

// box is the client that keeps: c, or the one whose medium c reads.
func (c *Client) box() *Client {
	if c.online != nil {
		return c.online
	}
	return c
}

// nvFloor asks the floor that is not on the disk, once.
func (c *Client) nvFloor(ctx context.Context) (uint64, error) {
	if c.Floor == nil {
		return 0, nil
	}
	at := c.box()
	if at.raised == 0 {
		n, err := c.Floor.RootFloor(ctx)
		if err != nil {
			return 0, fmt.Errorf("floor of the release root: %w", err)
		}
		at.raised = n
	}
	return at.raised, nil
}

// raise brings both floors to a verified root.
func (c *Client) raise(ctx context.Context, low *floor, version int64) error {
	if version > low.RootVersion {
		low.RootVersion = version
		if err := c.keepFloor(*low); err != nil {
			return err
		}
	}
	at := c.box()
	if c.Floor == nil || version <= 0 || uint64(version) <= at.raised {
		return nil
	}
	if err := c.Floor.RaiseRootFloor(ctx, uint64(version)); err != nil {
		return fmt.Errorf("floor of the release root: %w", err)
	}
	at.raised = uint64(version)
	return nil
}

// keepTime moves the floor of the clock, at most once an hour.
func (c *Client) keepTime(low floor, now time.Time) error {
	if !now.After(low.At.Add(time.Hour)) {
		return nil
	}
	low.At = now
	return c.keepFloor(low)
}

func (c *Client) keepFloor(low floor) error {
	b, err := json.Marshal(low)
	if err != nil {
		return fmt.Errorf("keep floor: %w", err)
	}
	return writeFile(filepath.Join(c.Dir, floorFile), b)
}

// withdrawn reports whether the box learned from the service, later than m was
// signed, that nobody gets the target any more.
func (c *Client) withdrawn(role string, m *metadata.Metadata[metadata.TargetsType], path string) bool {
	b, err := readBounded(os.Open, filepath.Join(c.Dir, "cache", roleFile(role)), maxTargets)
	if err != nil {
		return false
	}
	known, err := metadata.Targets().FromBytes(b)
	if err != nil || known.Signed.Version <= m.Signed.Version {
		return false
	}
	t, err := target(path, known.Signed.Targets[path])
	return err == nil && t.Custom.Withdrawn
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
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir) // #nosec G304 -- our own folder
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return errors.Join(d.Sync(), d.Close())
}
