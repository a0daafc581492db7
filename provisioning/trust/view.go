package trust

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"
)

// Limits of what a repository may make a device fetch and hold. A role of a
// megabyte describes more than two thousand targets.
const (
	maxRoot      = 512 << 10
	maxTimestamp = 16 << 10
	maxSnapshot  = 1 << 20
	maxTargets   = 2 << 20
	maxRotations = 256  // roots in one refresh
	maxVisited   = 32   // roles that are asked for one target
	maxRoles     = 4096 // in all, where every target is listed
)

// patience is how long a refresh may take in all. What one file may take is
// the fetcher's to say; a mirror that hands out each just in time ends here.
const patience = 10 * time.Minute

var errSlow = fmt.Errorf("release metadata took more than %s in all; is the service or the way to it slow on purpose?", patience)

// view is one consistent state of a repository, as far as it was looked at. It
// does the reading and keeping; go-tuf's trusted set does the verifying.
type view struct {
	set    *trustedmetadata.TrustedMetadata
	cache  *cache
	medium bool // it is read from an update medium
	get    func(name string, limit int64) ([]byte, error)
}

// look refreshes the metadata and hands it to use.
func (c *Client) look(ctx context.Context, use func(*view) error) (err error) {
	c.box().mu.Lock()
	defer c.box().mu.Unlock()
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errSlow)
	defer cancel()
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}()
	// go-tuf follows pointers that a signed null leaves empty. Who holds one key
	// must not be able to stop the agent.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("release metadata is malformed: %v: %w", r, ErrSignature)
		}
	}()
	v := &view{medium: c.online != nil, cache: &cache{dir: filepath.Join(c.Dir, "cache")}, get: func(name string, limit int64) ([]byte, error) {
		b, err := c.Fetch(ctx, c.URL+"/"+name, limit)
		switch {
		case err != nil:
			return nil, fmt.Errorf("fetch release metadata: %w", err)
		case int64(len(b)) > limit:
			return nil, fmt.Errorf("%s has more than %d bytes: %w", name, limit, ErrMismatch)
		}
		return b, nil
	}}
	if c.online != nil {
		v.cache.dir, v.cache.held = "", map[string][]byte{}
	}
	low, now, err := c.open(ctx, v)
	if err != nil {
		return err
	}
	if err := v.refresh(); err != nil {
		return err
	}
	if err := use(v); err != nil {
		return err
	}
	if c.online != nil {
		return nil
	}
	v.cache.prune(v.set.Snapshot)
	return c.keepTime(low, now)
}

// refresh brings timestamp, snapshot and the top-level targets up to date
// [TUF 1.0.31, 5.4 to 5.6].
func (v *view) refresh() error {
	if err := v.timestamp(); err != nil {
		return err
	}
	if err := v.snapshot(); err != nil {
		return err
	}
	_, err := v.role(metadata.TARGETS, metadata.ROOT)
	return err
}

func (v *view) timestamp() error {
	const name = "timestamp.json"
	if b := v.cache.read(name, maxTimestamp); b != nil {
		_, _ = v.set.UpdateTimestamp(b) // one that does not count any more is none
	}
	b, err := v.get(name, maxTimestamp)
	if err != nil {
		return err
	}
	_, err = v.set.UpdateTimestamp(b)
	if is[*metadata.ErrEqualVersionNumber](err) {
		return nil // the one of the cache goes on counting; its expiry is looked at with the snapshot
	}
	if err != nil {
		return explain(err)
	}
	if of, ok := v.set.Timestamp.Signed.UnrecognizedFields[forMedium]; ok && !v.medium {
		return fmt.Errorf("timestamp was signed for the update medium %.80q and is served by another: %w", fmt.Sprint(of), ErrSignature)
	}
	return v.cache.write(name, b)
}

func (v *view) snapshot() error {
	const name = "snapshot.json"
	meta := v.set.Timestamp.Signed.Meta[name]
	if b := v.cache.read(name, maxSnapshot); b != nil {
		if _, err := v.set.UpdateSnapshot(b, true); err == nil {
			return nil
		}
	}
	b, err := v.get(versioned(v.set.Root, name, meta.Version), bound(meta.Length, maxSnapshot))
	if err != nil {
		return err
	}
	if _, err := v.set.UpdateSnapshot(b, false); err != nil {
		return explain(err)
	}
	return v.cache.write(name, b)
}

// roleName is what a delegated role may be called: a path without tricks, that
// is none of the top-level roles.
// How long its parts may be is asked of brief.
var roleName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._~+-]*(/[A-Za-z0-9_][A-Za-z0-9._~+-]*){0,3}$`)

// brief reports whether no part of a path is longer than 64 bytes. A regular
// expression that counts so far takes 100 KB of a till for good.
func brief(path string) bool {
	for part := range strings.SplitSeq(path, "/") {
		if len(part) > 64 {
			return false
		}
	}
	return true
}

// role returns the metadata of a role that delegates or names targets.
func (v *view) role(role, parent string) (*metadata.Metadata[metadata.TargetsType], error) {
	if m, ok := v.set.Targets[role]; ok {
		return m, nil
	}
	if role != metadata.TARGETS && (!roleName.MatchString(role) || !brief(role) || role == metadata.ROOT || role == metadata.SNAPSHOT || role == metadata.TIMESTAMP) {
		return nil, fmt.Errorf("delegated role %.80q: not a name for one: %w", role, ErrSignature)
	}
	name := roleFile(role)
	meta := v.set.Snapshot.Signed.Meta[role+".json"]
	if meta == nil {
		return nil, fmt.Errorf("role %s is not in the snapshot: %w", role, ErrSignature)
	}
	if b := v.cache.read(name, maxTargets); b != nil {
		if m, err := v.set.UpdateDelegatedTargets(b, role, parent); err == nil {
			return m, nil
		}
	}
	b, err := v.get(versioned(v.set.Root, name, meta.Version), bound(meta.Length, maxTargets))
	if err != nil {
		return nil, fmt.Errorf("role %s: %w", role, err)
	}
	m, err := v.set.UpdateDelegatedTargets(b, role, parent)
	if err != nil {
		return nil, fmt.Errorf("role %s: %w", role, explain(err))
	}
	return m, v.cache.write(name, b)
}

// roleFile is the name of a role's metadata, as all clients of TUF ask for it.
func roleFile(role string) string { return url.PathEscape(role) + ".json" }

func versioned(root *metadata.Metadata[metadata.RootType], name string, version int64) string {
	if root.Signed.ConsistentSnapshot {
		return fmt.Sprintf("%d.%s", version, name)
	}
	return name
}

// bound is the length that was signed, if it was, or the limit.
func bound(length, limit int64) int64 {
	if length <= 0 || length > limit {
		return limit
	}
	return length
}

// step is a delegation to follow.
type step struct{ role, parent string }

// find walks the delegations in their order, trusted first, and returns the
// first role that names path and what it says [TUF 1.0.31, 5.6.7].
func (v *view) find(path string) (string, *metadata.TargetFiles, error) {
	todo, seen := []step{{metadata.TARGETS, metadata.ROOT}}, map[string]bool{}
	for len(todo) > 0 && len(seen) < maxVisited {
		s := todo[0]
		todo = todo[1:]
		if seen[s.role] {
			continue
		}
		seen[s.role] = true
		m, err := v.role(s.role, s.parent)
		if err != nil {
			return "", nil, fmt.Errorf("target %.200q: %w", path, err)
		}
		if info, ok := m.Signed.Targets[path]; ok {
			return s.role, info, nil
		}
		if m.Signed.Delegations == nil {
			continue
		}
		var next []step
		for _, d := range m.Signed.Delegations.GetRolesForTarget(path) {
			next = append(next, step{d.Name, s.role})
			if d.Terminating {
				todo = nil
				break
			}
		}
		todo = append(next, todo...)
	}
	return "", nil, fmt.Errorf("target %.200q: %w", path, ErrNoTarget)
}

// each walks every role there is. One that a delegation names and that has
// expired, or has signed nothing yet, does not hold up the others.
func (v *view) each(do func(role, path string, info *metadata.TargetFiles) error) error {
	todo, seen := []step{{metadata.TARGETS, metadata.ROOT}}, map[string]bool{}
	for len(todo) > 0 {
		s := todo[0]
		todo = todo[1:]
		if seen[s.role] {
			continue
		}
		seen[s.role] = true
		if len(seen) > maxRoles {
			return fmt.Errorf("more than %d delegated roles: %w", maxRoles, ErrMismatch)
		}
		if s.role != metadata.TARGETS && v.set.Snapshot.Signed.Meta[s.role+".json"] == nil {
			continue
		}
		m, err := v.role(s.role, s.parent)
		if s.role != metadata.TARGETS && errors.Is(err, ErrExpired) {
			continue
		}
		if err != nil {
			return err
		}
		for path, info := range m.Signed.Targets {
			if err := do(s.role, path, info); err != nil {
				return err
			}
		}
		if m.Signed.Delegations == nil {
			continue
		}
		for _, d := range m.Signed.Delegations.Roles {
			todo = append(todo, step{d.Name, s.role})
		}
	}
	return nil
}

// cache keeps what was verified, so that an older state is known for one. A
// file that is damaged counts as absent; the floors stay.
type cache struct {
	dir  string
	held map[string][]byte // in place of the folder
}

func (c *cache) read(name string, limit int64) []byte {
	if c.held != nil {
		return c.held[name]
	}
	b, err := readBounded(os.Open, filepath.Join(c.dir, name), limit)
	if err != nil {
		return nil
	}
	return b
}

func (c *cache) write(name string, b []byte) error {
	if c.held != nil {
		c.held[name] = b
		return nil
	}
	return writeFile(filepath.Join(c.dir, name), b)
}

func (c *cache) remove(name string) error {
	if c.held != nil {
		delete(c.held, name)
		return nil
	}
	if err := os.Remove(filepath.Join(c.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget %s: %w", name, err)
	}
	return syncDir(c.dir)
}

// prune removes what no snapshot names any more; what stays is only in the way.
func (c *cache) prune(s *metadata.Metadata[metadata.SnapshotType]) {
	keep := map[string]bool{"timestamp.json": true, "snapshot.json": true}
	for n := range s.Signed.Meta {
		keep[roleFile(strings.TrimSuffix(n, ".json"))] = true
	}
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !keep[e.Name()] {
			_ = os.Remove(filepath.Join(c.dir, e.Name()))
		}
	}
}
