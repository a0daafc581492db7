package store

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const releaseColumns = `n, id, class, version, targets, published_at, published_by, component, tenant, models, requires, withdrawn FROM "release"`

func scanRelease(row scanner) (numbered[fleet.Release], error) {
	var n int64
	var r fleet.Release
	var targets, models, requires string
	var published int64
	if err := row.Scan(&n, &r.ID, &r.Class, &r.Version, &targets, &published, &r.PublishedBy, &r.Component, &r.Tenant, &models, &requires, &r.Withdrawn); err != nil {
		return numbered[fleet.Release]{}, found(err)
	}
	for _, part := range []struct {
		text string
		to   any
	}{{targets, &r.Targets}, {models, &r.Models}, {requires, &r.Requires}} {
		if err := json.Unmarshal([]byte(part.text), part.to); err != nil {
			return numbered[fleet.Release]{}, fmt.Errorf("release %s: %w", r.ID, err)
		}
	}
	r.PublishedAt = at(published)
	return numbered[fleet.Release]{n, r}, nil
}

// component is what a release is one of: its id without the version.
func component(r fleet.Release) string {
	if end := len(r.ID) - len(r.Version) - 1; r.Component == "" && end > 0 {
		return string(r.ID)[:end]
	}
	return r.Component
}

// AddRelease notes a published release. One that is there already is
// fleet.ErrExists.
func (s *Store) AddRelease(ctx context.Context, r fleet.Release, ev fleet.AuditEvent) error {
	err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		n, err := w.changed(ctx, `INSERT INTO "release" (id, class, version, targets, published_at, published_by, component, tenant, models, requires, withdrawn)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING`,
			r.ID, r.Class, r.Version, toJSON(r.Targets), ms(r.PublishedAt), r.PublishedBy, component(r), r.Tenant, toJSON(r.Models), toJSON(r.Requires), r.Withdrawn)
		if err != nil {
			return err
		}
		if n == 0 {
			return fleet.ErrExists
		}
		return w.audit(ctx, ev.Tenant, ev)
	})
	if err != nil {
		return fmt.Errorf("add release %s: %w", r.ID, err)
	}
	return nil
}

// UpdateRelease notes what newer metadata says of a release that is there:
// which models it fits, what it requires, whether it was withdrawn. It reports
// whether that is news; what is none is not audited.
func (s *Store) UpdateRelease(ctx context.Context, r fleet.Release, ev fleet.AuditEvent) (news bool, err error) {
	err = s.tx(ctx, func(ctx context.Context, w *writer) error {
		have, err := scanRelease(w.row(ctx, `SELECT `+releaseColumns+` WHERE id = ?`, r.ID))
		if err != nil {
			return err
		}
		news = !slices.Equal(have.v.Models, r.Models) || !maps.Equal(have.v.Requires, r.Requires) || have.v.Withdrawn != r.Withdrawn || !slices.Equal(have.v.Targets, r.Targets)
		if !news {
			return nil
		}
		if err := w.exec(ctx, `UPDATE "release" SET targets = ?, models = ?, requires = ?, withdrawn = ? WHERE id = ?`,
			toJSON(r.Targets), toJSON(r.Models), toJSON(r.Requires), r.Withdrawn, r.ID); err != nil {
			return err
		}
		return w.audit(ctx, ev.Tenant, ev)
	})
	if err != nil {
		return false, fmt.Errorf("update release %s: %w", r.ID, err)
	}
	return news, nil
}

// Release returns one release, whoever's it is. What an operator asks for is
// for ReleaseOf.
func (s *Store) Release(ctx context.Context, id fleet.ReleaseID) (fleet.Release, error) {
	r, err := scanRelease(s.read.QueryRowContext(ctx, `SELECT `+releaseColumns+` WHERE id = ?`, id))
	if err != nil {
		return fleet.Release{}, fmt.Errorf("release %s: %w", id, err)
	}
	return r.v, nil
}

// ReleaseOf returns a release that tenant t may use: its own or a vendor's.
func (s *Store) ReleaseOf(ctx context.Context, t fleet.TenantID, id fleet.ReleaseID) (fleet.Release, error) {
	r, err := scanRelease(s.read.QueryRowContext(ctx, `SELECT `+releaseColumns+` WHERE id = ? AND tenant IN ('', ?)`, id, t))
	if err != nil {
		return fleet.Release{}, fmt.Errorf("release %s: %w", id, err)
	}
	return r.v, nil
}

// ReleasesOf lists the releases that tenant t may use, newest first.
func (s *Store) ReleasesOf(ctx context.Context, t fleet.TenantID, p fleet.Page) (items []fleet.Release, next string, err error) {
	return s.releases(ctx, p, ` AND tenant IN ('', ?)`, t)
}

// Releases lists releases, newest first.
func (s *Store) Releases(ctx context.Context, p fleet.Page) (items []fleet.Release, next string, err error) {
	return s.releases(ctx, p, ``)
}

func (s *Store) releases(ctx context.Context, p fleet.Page, where string, args ...any) (items []fleet.Release, next string, err error) {
	start, err := after(p, newest)
	if err != nil {
		return nil, "", err
	}
	limit := p.Bounded()
	args = slices.Concat([]any{start}, args, []any{limit + 1})
	rows, err := s.read.QueryContext(ctx, `SELECT `+releaseColumns+` WHERE n < ?`+where+` ORDER BY n DESC LIMIT ?`, args...) //nolint:gosec // joins the constants above
	found, err := list(rows, err, scanRelease)
	if err != nil {
		return nil, "", fmt.Errorf("list releases: %w", err)
	}
	items, next = values(found, limit)
	return items, next, nil
}
