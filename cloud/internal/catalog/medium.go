package catalog

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/trust"
)

// mediumFolder is what devices look for on what is plugged in.
const mediumFolder = "tillward-update"

const maxMediumLife = 90 * 24 * time.Hour

// Export prepares an update medium and returns how long it is good for and what
// writes it, as a tar stream of the folder tillward-update: metadata with a
// timestamp that lives as long as the medium and counts on it alone, the targets
// of the releases, and an order that names them. Metadata that ends earlier ends
// the medium. Signed is how the service signs its orders.
func (c *Catalog) Export(ctx context.Context, m fleet.Medium, signed func(kind string, m wire.Message) ([]byte, error)) (ends time.Time, write func(io.Writer) error, err error) {
	if m.Life < time.Hour || m.Life > maxMediumLife {
		return ends, nil, fmt.Errorf("a medium lives for an hour to %d days: %w", maxMediumLife/(24*time.Hour), fleet.ErrInvalid)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.published() {
		return ends, nil, fmt.Errorf("nothing is published yet: %w", fleet.ErrNotFound)
	}
	targets, err := c.pick(m)
	if err != nil {
		return ends, nil, err
	}
	meta, ends, err := c.stamped(m)
	if err != nil {
		return ends, nil, err
	}
	now := time.Now()
	if !ends.After(now) {
		return ends, nil, fmt.Errorf("metadata of the releases has expired; it must be signed anew first: %w", fleet.ErrConflict)
	}
	order := &wire.MediumOrder{V: wire.Version, ID: m.ID, Tenant: string(m.Tenant), IssuedAt: now.UnixMilli(), NotAfter: ends.UnixMilli(), By: m.By}
	for _, t := range targets {
		order.Releases = append(order.Releases, wire.MediumItem{Class: t.Custom.Class, Version: t.Custom.Version, Target: t.Path})
	}
	if len(order.Releases) > wire.MaxMedium {
		return ends, nil, fmt.Errorf("a medium holds at most %d targets, these releases have %d; write several: %w", wire.MaxMedium, len(order.Releases), fleet.ErrInvalid)
	}
	if meta["order.cbor"], err = signed(wire.OrderMedium, order); err != nil {
		return ends, nil, fmt.Errorf("sign the medium: %w", err)
	}
	return ends, func(w io.Writer) error { return c.writeMedium(ctx, w, meta, targets) }, nil
}

// pick finds the targets of the releases, in the order they were asked for.
func (c *Catalog) pick(m fleet.Medium) ([]trust.Target, error) {
	all, err := (&trust.Repository{Dir: c.dir}).List()
	if err != nil {
		return nil, err
	}
	known, err := releases(all)
	if err != nil {
		return nil, err
	}
	var out []trust.Target
	for i, id := range m.Releases {
		at := slices.IndexFunc(known, func(r fleet.Release) bool { return r.ID == id && (r.Tenant == "" || r.Tenant == m.Tenant) })
		switch {
		case at < 0:
			return nil, fmt.Errorf("release %.100q: %w", id, fleet.ErrNotFound)
		case known[at].Withdrawn:
			return nil, fmt.Errorf("release %s was withdrawn: %w", id, fleet.ErrConflict)
		case slices.Contains(m.Releases[:i], id):
			return nil, fmt.Errorf("release %s is named twice: %w", id, fleet.ErrInvalid)
		}
		for _, t := range all {
			if path.Dir(t.Path) == string(id) {
				out = append(out, t)
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("name at least one release: %w", fleet.ErrInvalid)
	}
	return out, nil
}

// stamped returns the metadata for a medium, and when the first of it ends. The
// timestamp is signed for the medium where we may sign one.
func (c *Catalog) stamped(m fleet.Medium) (meta map[string][]byte, ends time.Time, err error) {
	stage, err := os.MkdirTemp(c.dir, ".upload-")
	if err != nil {
		return nil, ends, fmt.Errorf("medium: %w", err)
	}
	defer os.RemoveAll(stage)
	if err := c.inherit(stage, func(string) bool { return true }); err != nil {
		return nil, ends, fmt.Errorf("medium: %w", err)
	}
	repo := &trust.Repository{Dir: stage, Life: m.Life, Medium: m.ID}
	online, err := c.online(repo)
	if err != nil {
		return nil, ends, err
	}
	if online {
		if err := repo.Refresh(c.keys()); err != nil {
			return nil, ends, fmt.Errorf("medium: %w", err)
		}
	}
	last, err := repo.Expiries()
	if err != nil {
		return nil, ends, err
	}
	root, err := os.ReadFile(filepath.Join(c.dir, "root.json"))
	if err != nil {
		return nil, ends, fmt.Errorf("medium: %w", err)
	}
	names, err := verified(stage, root)
	if err != nil {
		return nil, ends, err
	}
	meta = map[string][]byte{}
	for _, n := range names {
		if meta[path.Join("metadata", n)], err = os.ReadFile(filepath.Join(stage, "metadata", n)); err != nil { // #nosec G304 -- our own folder
			return nil, ends, fmt.Errorf("medium: %w", err)
		}
	}
	ends = time.Now().Add(m.Life)
	for role, at := range last {
		// What nobody needs for these releases may end before.
		if at.Before(ends) && (!strings.Contains(role, "/") || needs(m.Releases, role)) {
			ends = at
		}
	}
	return meta, ends, nil
}

// needs reports whether a delegated role signs one of the releases.
func needs(ids []fleet.ReleaseID, role string) bool {
	return slices.ContainsFunc(ids, func(id fleet.ReleaseID) bool { return trust.RoleOf(path.Join(string(id), "x")) == role })
}

// writeMedium writes the tar stream. What has rotted on the disk ends it.
func (c *Catalog) writeMedium(ctx context.Context, w io.Writer, small map[string][]byte, targets []trust.Target) error {
	tw := tar.NewWriter(w)
	file := func(name string, size int64, r io.Reader) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		h := &tar.Header{Name: path.Join(mediumFolder, name), Typeflag: tar.TypeReg, Mode: 0o644, Size: size, Format: tar.FormatPAX}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		_, err := io.Copy(tw, r)
		return err
	}
	for _, t := range targets {
		parts := []struct {
			file, sum string
			size      int64
		}{{t.File(), t.SHA256, t.Length}}
		if k := t.Custom.Chunks; k != nil {
			parts = append(parts, struct {
				file, sum string
				size      int64
			}{t.ChunkFile(), k.SHA256, k.Length})
		}
		for _, p := range parts {
			f, err := os.Open(filepath.Join(c.dir, "targets", filepath.FromSlash(p.file)))
			if err != nil {
				return fmt.Errorf("medium: %w", err)
			}
			h := sha256.New()
			err = file(path.Join("targets", p.file), p.size, io.TeeReader(io.LimitReader(f, p.size), h))
			if err := errors.Join(err, f.Close()); err != nil {
				return fmt.Errorf("medium: %s: %w", t.Path, err)
			}
			if hex.EncodeToString(h.Sum(nil)) != p.sum {
				return fmt.Errorf("medium: %s has rotted on the disk; publish it again: %w", t.Path, fs.ErrInvalid)
			}
		}
	}
	// What makes a medium of it comes last, the order at the very end.
	names := slices.Sorted(maps.Keys(small))
	slices.SortStableFunc(names, func(a, b string) int { return strings.Count(b, "/") - strings.Count(a, "/") })
	for _, n := range names {
		if err := file(n, int64(len(small[n])), bytes.NewReader(small[n])); err != nil {
			return fmt.Errorf("medium: %w", err)
		}
	}
	return tw.Close()
}
