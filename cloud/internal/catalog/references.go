package catalog

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/provisioning/trust"
)

// References returns the boot reference values of the repository that is in
// place, as they were signed; none when nothing was published yet. They verified
// when they came in, so that what the fleet is judged by does not end with the
// dates of the metadata.
func (c *Catalog) References(ctx context.Context) ([]fleet.BootReference, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(c.dir, "metadata", "timestamp.json")); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	targets, err := (&trust.Repository{Dir: c.dir}).List()
	if err != nil {
		return nil, fmt.Errorf("boot references: %w", err)
	}
	return references(c.dir, targets)
}

// references reads the targets of class boot in the repository at dir.
func references(dir string, targets []trust.Target) ([]fleet.BootReference, error) {
	var out []fleet.BootReference
	for _, t := range targets {
		if t.Custom.Class != trust.ClassBoot {
			continue
		}
		b, err := readTarget(dir, t)
		if err != nil {
			return nil, err
		}
		r, err := boot.ParseTarget(t.Path, b)
		if err != nil {
			return nil, err
		}
		if t.Custom.Model != r.Model || t.Custom.Version != r.Release {
			return nil, fmt.Errorf("target %.100q says that it is for %.80q and %.64q, its file says for %s and %s; make it with tillward-provision boot", t.Path, t.Custom.Version, t.Custom.Model, r.Release, r.Model)
		}
		out = append(out, fleet.BootReference{Model: r.Model, Release: fleet.ReleaseID(r.Release), Body: b, PublishedAt: time.Now()})
	}
	return out, nil
}

// readTarget reads a small target and checks it again: the disk may have
// rotted.
func readTarget(dir string, t trust.Target) ([]byte, error) {
	if t.Length > boot.MaxReference {
		return nil, fmt.Errorf("target %.100q has %d bytes, boot references have at most %d", t.Path, t.Length, boot.MaxReference)
	}
	f, err := os.Open(filepath.Join(dir, "targets", filepath.FromSlash(t.File()))) // #nosec G304 -- our own folder
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", t.Path, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, t.Length+1))
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", t.Path, err)
	}
	if sum := sha256.Sum256(b); int64(len(b)) != t.Length || hex.EncodeToString(sum[:]) != t.SHA256 {
		return nil, fmt.Errorf("target %s: %w: publish the repository again", t.Path, trust.ErrMismatch)
	}
	return b, nil
}
