package store

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const rolloutColumns = `r.n, r.id, r.tenant, r."release", r.state, r.reason, r.auto, r.created_at, r.created_by, r.approved_at, r.approved_by, r.started_at, r.ended_at,
	r.spec, r.waves, r.holds, r.version FROM rollout r`

func scanRollout(row scanner) (numbered[fleet.Rollout], error) {
	var n int64
	var r fleet.Rollout
	var created, approved, started, ended int64
	var spec, waves, holds string
	if err := row.Scan(&n, &r.ID, &r.Tenant, &r.Release, &r.State, &r.Reason, &r.Auto, &created, &r.CreatedBy, &approved, &r.ApprovedBy, &started, &ended,
		&spec, &waves, &holds, &r.Version); err != nil {
		return numbered[fleet.Rollout]{}, found(err)
	}
	for _, part := range []struct {
		text string
		to   any
	}{{spec, &r.Spec}, {waves, &r.Waves}, {holds, &r.Holds}} {
		if err := json.Unmarshal([]byte(part.text), part.to); err != nil {
			return numbered[fleet.Rollout]{}, fmt.Errorf("rollout %s: %w", r.ID, err)
		}
	}
	r.CreatedAt, r.ApprovedAt, r.StartedAt, r.EndedAt = at(created), at(approved), at(started), at(ended)
	return numbered[fleet.Rollout]{n, r}, nil
}

// AddRollout adds a rollout of a release that is there and that its tenant may
// use, in the state it carries.
func (s *Store) AddRollout(ctx context.Context, r fleet.Rollout, ev fleet.AuditEvent) error {
	err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		var one int
		if err := w.row(ctx, `SELECT 1 FROM "release" WHERE id = ? AND tenant IN ('', ?)`, r.Release, r.Tenant).Scan(&one); err != nil {
			return fmt.Errorf("release %s: %w", r.Release, found(err))
		}
		n, err := w.changed(ctx, `INSERT INTO rollout (id, tenant, "release", state, reason, auto, created_at, created_by, approved_at, approved_by, started_at, ended_at, spec, waves, holds, joiners, version)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1) ON CONFLICT (id) DO NOTHING`,
			r.ID, r.Tenant, r.Release, r.State, r.Reason, r.Auto, ms(r.CreatedAt), r.CreatedBy, ms(r.ApprovedAt), r.ApprovedBy, ms(r.StartedAt), ms(r.EndedAt),
			toJSON(r.Spec), toJSON(some(r.Waves)), toJSON(some(r.Holds)), r.Spec.Joiners)
		if err != nil {
			return err
		}
		if n == 0 {
			return fleet.ErrExists
		}
		return w.audit(ctx, r.Tenant, ev)
	})
	if err != nil {
		return fmt.Errorf("add rollout %s: %w", r.ID, err)
	}
	s.completed(r)
	return nil
}

// some is a list that is [] in JSON when it is empty.
func some[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

// Rollout returns a rollout of tenant t.
func (s *Store) Rollout(ctx context.Context, t fleet.TenantID, id fleet.RolloutID) (fleet.Rollout, error) {
	r, err := scanRollout(s.read.QueryRowContext(ctx, `SELECT `+rolloutColumns+` WHERE r.id = ? AND r.tenant = ?`, id, t))
	if err != nil {
		return fleet.Rollout{}, fmt.Errorf("rollout %s: %w", id, err)
	}
	return r.v, nil
}

// Rollouts lists the rollouts of tenant t, newest first.
func (s *Store) Rollouts(ctx context.Context, t fleet.TenantID, p fleet.Page) (items []fleet.Rollout, next string, err error) {
	start, err := after(p, newest)
	if err != nil {
		return nil, "", err
	}
	limit := p.Bounded()
	rows, err := s.read.QueryContext(ctx, `SELECT `+rolloutColumns+` WHERE r.tenant = ? AND r.n < ? ORDER BY r.n DESC LIMIT ?`, t, start, limit+1)
	found, err := list(rows, err, scanRollout)
	if err != nil {
		return nil, "", fmt.Errorf("list rollouts: %w", err)
	}
	items, next = values(found, limit)
	return items, next, nil
}

// RunningRollouts returns the rollouts of every tenant that somebody has to
// see to, oldest first: those that run, are paused or end, those that are
// complete while devices are still at it, and of each component and filter the
// newest that is complete, if it takes joiners. It is for the rollout loop.
func (s *Store) RunningRollouts(ctx context.Context) ([]fleet.Rollout, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT `+rolloutColumns+` WHERE r.state IN ('RUNNING', 'PAUSED', 'ABORTING') OR r.state = 'COMPLETED' AND EXISTS
		(SELECT 1 FROM execution e WHERE e.rollout = r.id AND e.state IN ('QUEUED', 'OFFERED', 'WAITING', 'DOWNLOADING', 'STAGED', 'INSTALLING', 'INSTALLED', 'REBOOTING', 'CHECKING')) ORDER BY r.n`)
	all, err := list(rows, err, scanRollout)
	if err != nil {
		return nil, fmt.Errorf("running rollouts: %w", err)
	}
	complete, err := s.complete(ctx)
	if err != nil {
		return nil, fmt.Errorf("complete rollouts: %w", err)
	}
	newest := map[string]finished{} // by what they were for
	var more []int64
	for _, c := range complete {
		if _, later := newest[c.what]; !later {
			if newest[c.what] = c; c.joiners {
				more = append(more, c.n)
			}
			continue
		}
		// One that is at it yet must hear of the one that came after it.
		if slices.ContainsFunc(all, func(r numbered[fleet.Rollout]) bool { return r.n == c.n }) {
			more = append(more, newest[c.what].n)
		}
	}
	rows, err = s.read.QueryContext(ctx, `SELECT `+rolloutColumns+` WHERE r.n IN (SELECT CAST(value AS BIGINT) FROM json_each(?))`, toJSON(some(more)))
	late, err := list(rows, err, scanRollout)
	if err != nil {
		return nil, fmt.Errorf("complete rollouts: %w", err)
	}
	all = append(all, late...)
	slices.SortFunc(all, func(a, b numbered[fleet.Rollout]) int { return cmp.Compare(a.n, b.n) })
	all = slices.CompactFunc(all, func(a, b numbered[fleet.Rollout]) bool { return a.n == b.n })
	items, _ := values(all, len(all))
	return items, nil
}

// finished is a rollout that is complete.
type finished struct {
	n       int64
	what    string // tenant, component and filter
	joiners bool
}

// history is all that is complete, as it was read last.
type history struct {
	known    bool
	changes  int // that the store has seen
	complete []finished
}

// complete lists the rollouts that are complete, newest first. The loop asks
// each second, and few are added in a day.
func (s *Store) complete(ctx context.Context) ([]finished, error) {
	s.mu.Lock()
	h := s.history
	s.mu.Unlock()
	if h.known {
		return h.complete, nil
	}
	rows, err := s.read.QueryContext(ctx, `SELECT r.n, r.tenant, l.component, r.joiners, r.spec FROM rollout r JOIN "release" l ON l.id = r."release" WHERE r.state = 'COMPLETED' ORDER BY r.n DESC`)
	h.complete, err = list(rows, err, func(row scanner) (e finished, err error) {
		var tenant, component, text string
		var spec struct {
			Filter fleet.Filter `json:"filter"`
		}
		if err := row.Scan(&e.n, &tenant, &component, &e.joiners, &text); err != nil {
			return e, err
		}
		err = json.Unmarshal([]byte(text), &spec)
		e.what = tenant + "\x00" + component + "\x00" + toJSON(spec.Filter)
		return e, err
	})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.changes == s.history.changes { // else one was added while we read
		h.known = true
		s.history = h
	}
	return h.complete, nil
}

// completed notes that a rollout is complete.
func (s *Store) completed(r fleet.Rollout) {
	if r.State != fleet.RolloutCompleted {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.history = history{changes: s.history.changes + 1}
}

// SaveRollout writes where a rollout stands, if nobody has changed it since it
// was read: r.Version says which one that was; a newer one is
// fleet.ErrConflict. What was not offered yet is CANCELED with a rollout that
// is aborted or superseded, or completed and takes no joiners. The events go to the service trail.
func (s *Store) SaveRollout(ctx context.Context, r fleet.Rollout, events ...fleet.AuditEvent) (fleet.Rollout, error) {
	var saved numbered[fleet.Rollout]
	err := s.tx(ctx, func(ctx context.Context, w *writer) (err error) {
		n, err := w.changed(ctx, `UPDATE rollout SET "release" = ?, created_by = ?, state = ?, reason = ?, auto = ?, approved_at = ?, approved_by = ?, started_at = ?, ended_at = ?, spec = ?, waves = ?, holds = ?, joiners = ?,
			version = version + 1 WHERE id = ? AND tenant = ? AND version = ?`,
			r.Release, r.CreatedBy, r.State, r.Reason, r.Auto, ms(r.ApprovedAt), r.ApprovedBy, ms(r.StartedAt), ms(r.EndedAt), toJSON(r.Spec), toJSON(some(r.Waves)), toJSON(some(r.Holds)), r.Spec.Joiners,
			r.ID, r.Tenant, r.Version)
		if err != nil {
			return err
		}
		if saved, err = scanRollout(w.row(ctx, `SELECT `+rolloutColumns+` WHERE r.id = ? AND r.tenant = ?`, r.ID, r.Tenant)); err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("somebody else has changed it: %w", fleet.ErrConflict)
		}
		if err := w.stop(ctx, r); err != nil {
			return err
		}
		for _, ev := range events {
			if err := w.audit(ctx, r.Tenant, ev); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fleet.Rollout{}, fmt.Errorf("save rollout %s as %s: %w", r.ID, r.State, err)
	}
	s.completed(r)
	return saved.v, nil
}

// stop takes back what a rollout that stops has not offered yet; what was
// offered goes on at the device.
func (w *writer) stop(ctx context.Context, r fleet.Rollout) error {
	reason := map[fleet.RolloutState]string{
		fleet.RolloutAborting: "aborted", fleet.RolloutAborted: "aborted", fleet.RolloutSuperseded: "superseded", fleet.RolloutCompleted: "completed",
	}[r.State]
	if reason == "" || r.State == fleet.RolloutCompleted && r.Spec.Joiners {
		return nil
	}
	change, err := w.count(ctx, "execution")
	if err != nil {
		return err
	}
	return w.exec(ctx, `UPDATE execution SET state = 'CANCELED', reason = ?, entered_at = ?, updated_at = ?, version = version + 1, changed = ? WHERE rollout = ? AND state = 'QUEUED'`,
		reason, ms(w.now), ms(w.now), change, r.ID)
}

// count gives the next number of its kind.
func (w *writer) count(ctx context.Context, name string) (n int64, err error) {
	return n, w.row(ctx, `UPDATE counter SET n = n + 1 WHERE name = ? RETURNING n`, name).Scan(&n)
}
