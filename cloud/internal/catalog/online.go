package catalog

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/provisioning/trust"
)

// How the service keeps releases fresh. A timestamp lives for seven days, a
// snapshot for fourteen, so a day without the service is nothing and a device
// that is served old metadata notices within a week.
const (
	refreshEvery = 24 * time.Hour
	lookEvery    = time.Hour
	keepOld      = 16 // snapshots, for those who are just reading an older one
)

// complete puts beside an upload what is in place already and, where the root
// lets us, signs snapshot and timestamp over it. Whether all of it may be
// believed is found out afterwards, from the pinned root.
func (c *Catalog) complete(stage string) error {
	if err := c.inherit(stage, func(name string) bool { return strings.HasSuffix(name, ".root.json") }); err != nil {
		return err
	}
	repo := &trust.Repository{Dir: stage}
	online, err := c.online(repo)
	if err != nil {
		return fmt.Errorf("%w: %w", fleet.ErrInvalid, err)
	}
	if !online {
		if _, err := os.Stat(filepath.Join(stage, "metadata", "timestamp.json")); errors.Is(err, fs.ErrNotExist) && c.Key != nil {
			return fmt.Errorf("upload holds no metadata/timestamp.json, and the root does not let this service sign it: sign it, or name the service's key (tillward release online-key) for snapshot and timestamp in the next root: %w", fleet.ErrInvalid)
		}
		return nil
	}
	if _, err := os.Stat(filepath.Join(c.dir, "metadata", "timestamp.json")); err == nil {
		// Ours go on from ours, whatever an upload brings.
		names, err := filepath.Glob(filepath.Join(stage, "metadata", "*.snapshot.json"))
		if err != nil {
			return fmt.Errorf("take in upload: %w", err)
		}
		for _, n := range append(names, filepath.Join(stage, "metadata", "timestamp.json")) {
			if err := os.Remove(n); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("take in upload: %w", err)
			}
		}
	}
	if err := c.inherit(stage, func(string) bool { return true }); err != nil {
		return err
	}
	err = repo.Refresh(c.keys())
	if _, ours := errors.AsType[*fs.PathError](err); err != nil && !ours {
		err = fmt.Errorf("repository does not verify: %w: %w", fleet.ErrInvalid, err)
	}
	return err
}

// inherit links metadata that is in place into an upload. What was sent again
// must be the same: devices never ask twice for a version.
func (c *Catalog) inherit(stage string, want func(name string) bool) error {
	entries, err := os.ReadDir(filepath.Join(c.dir, "metadata"))
	if err != nil {
		return fmt.Errorf("take in upload: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(stage, "metadata"), 0o700); err != nil {
		return fmt.Errorf("take in upload: %w", err)
	}
	for _, e := range entries {
		name := filepath.Join("metadata", e.Name())
		if !want(e.Name()) || !wanted(filepath.ToSlash(name)) {
			continue
		}
		have, to := filepath.Join(c.dir, name), filepath.Join(stage, name)
		if err := os.Link(have, to); !errors.Is(err, fs.ErrExist) {
			if err != nil {
				return fmt.Errorf("take in upload: %w", err)
			}
			continue
		}
		before, err := os.ReadFile(have) // #nosec G304 -- our own folder
		if err != nil {
			return fmt.Errorf("take in upload: %w", err)
		}
		after, err := os.ReadFile(to) // #nosec G304 -- our own folder
		if err != nil {
			return fmt.Errorf("take in upload: %w", err)
		}
		if !bytes.Equal(before, after) && !c.vouched(e.Name(), after) {
			return fmt.Errorf("%s is published already and differs from what was sent; a version is signed once, give the new one the next number: %w", name, fleet.ErrInvalid)
		}
	}
	return nil
}

// vouched reports whether metadata that differs from what is in place is what
// was verified when it came in: then the disk has eaten the one in place, and
// the one that was sent heals it.
func (c *Catalog) vouched(name string, b []byte) bool {
	_, role, _ := strings.Cut(name, ".")
	for _, kept := range []string{filepath.Join("cache", role), filepath.Join("roots", name)} {
		if was, err := os.ReadFile(filepath.Join(c.dir, "trusted", kept)); err == nil && bytes.Equal(was, b) { // #nosec G304 -- our own folder
			return true
		}
	}
	return false
}

// online reports whether we sign snapshot and timestamp of a repository.
func (c *Catalog) online(repo *trust.Repository) (bool, error) {
	if c.Key == nil {
		return false, nil
	}
	return repo.Online(c.Key.Public())
}

func (c *Catalog) keys() trust.Keys {
	return trust.Keys{trust.RoleSnapshot: {c.Key}, trust.RoleTimestamp: {c.Key}}
}

// published reports whether there is a repository.
func (c *Catalog) published() bool {
	_, err := os.Stat(filepath.Join(c.dir, "metadata", "timestamp.json"))
	return err == nil
}

// Run keeps snapshot and timestamp fresh until ctx ends. failed hears why it
// could not; ends hears, once, of metadata that others must sign anew before it
// expires.
func (c *Catalog) Run(ctx context.Context, failed func(error), ends func(role string, at time.Time)) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	told := map[string]time.Time{}
	for {
		if err := c.refresh(); err != nil {
			failed(err)
		}
		f, err := c.Freshness()
		if err != nil {
			failed(err)
		}
		for role, at := range f.Ends {
			own := f.Online && (role == trust.RoleSnapshot || role == trust.RoleTimestamp)
			if own || time.Until(at) > notice(role) || told[role].Equal(at) {
				continue
			}
			told[role] = at
			ends(role, at)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// notice is how long before its end somebody must hear of metadata: signers
// have to come together for some of it.
func notice(role string) time.Duration {
	switch role {
	case trust.RoleTimestamp:
		return 3 * 24 * time.Hour
	case trust.RoleSnapshot:
		return 5 * 24 * time.Hour
	case trust.RoleRoot, trust.RoleTargets:
		return 60 * 24 * time.Hour
	}
	return 21 * 24 * time.Hour
}

// refresh signs snapshot and timestamp anew once a day. Files of the next
// version are put beside those in use; the timestamp, which makes them visible,
// is replaced last and in one step.
func (c *Catalog) refresh() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.published() {
		return nil
	}
	repo := &trust.Repository{Dir: c.dir}
	online, err := c.online(repo)
	if err != nil || !online {
		return err
	}
	signed, expires := repo.Freshness()
	if age := time.Since(signed); age >= 0 && age < refreshEvery && time.Until(expires) > refreshEvery {
		return nil
	}
	if err := repo.Refresh(c.keys()); err != nil {
		return fmt.Errorf("keep releases fresh: %w", err)
	}
	return c.prune()
}

// prune removes snapshots that nobody asks for any more.
func (c *Catalog) prune() error {
	names, err := filepath.Glob(filepath.Join(c.dir, "metadata", "*.snapshot.json"))
	if err != nil {
		return fmt.Errorf("old snapshots: %w", err)
	}
	version := func(n string) int {
		v, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(n), ".snapshot.json"))
		if err != nil {
			return 0
		}
		return v
	}
	newest := 0
	for _, n := range names {
		newest = max(newest, version(n))
	}
	for _, n := range names {
		if version(n) < newest-keepOld {
			if err := os.Remove(n); err != nil {
				return fmt.Errorf("old snapshots: %w", err)
			}
		}
	}
	return nil
}

// Freshness says how fresh the releases are, and who keeps them so.
func (c *Catalog) Freshness() (fleet.Freshness, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var f fleet.Freshness
	if c.Key != nil {
		f.Key, _ = c.Key.Public().(ed25519.PublicKey)
	}
	if !c.published() {
		return f, nil
	}
	repo := &trust.Repository{Dir: c.dir}
	var err error
	if f.Online, err = c.online(repo); err != nil {
		return f, err
	}
	f.Signed, _ = repo.Freshness()
	f.Ends, err = repo.Expiries()
	return f, err
}
