package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const releaseColumns = `n, id, class, version, targets, published_at, published_by FROM "release"`

func scanRelease(row scanner) (numbered[fleet.Release], error) {
	var n int64
	var r fleet.Release
	var targets string
	var published int64
	if err := row.Scan(&n, &r.ID, &r.Class, &r.Version, &targets, &published, &r.PublishedBy); err != nil {
		return numbered[fleet.Release]{}, found(err)
	}
	if err := json.Unmarshal([]byte(targets), &r.Targets); err != nil {
		return numbered[fleet.Release]{}, fmt.Errorf("targets of release %s: %w", r.ID, err)
	}
	r.PublishedAt = at(published)
	return numbered[fleet.Release]{n, r}, nil
}

// AddRelease notes a published release; releases belong to no tenant. A
// release that is there already is fleet.ErrExists.
func (s *Store) AddRelease(ctx context.Context, r fleet.Release, ev fleet.AuditEvent) error {
	err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		n, err := w.changed(ctx, `INSERT INTO "release" (id, class, version, targets, published_at, published_by) VALUES (?, ?, ?, ?, ?, ?)
			ON CONFLICT (id) DO NOTHING`, r.ID, r.Class, r.Version, toJSON(r.Targets), ms(r.PublishedAt), r.PublishedBy)
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

// Release returns one release.
func (s *Store) Release(ctx context.Context, id fleet.ReleaseID) (fleet.Release, error) {
	r, err := scanRelease(s.read.QueryRowContext(ctx, `SELECT `+releaseColumns+` WHERE id = ?`, id))
	if err != nil {
		return fleet.Release{}, fmt.Errorf("release %s: %w", id, err)
	}
	return r.v, nil
}

// Releases lists releases, newest first.
func (s *Store) Releases(ctx context.Context, p fleet.Page) (items []fleet.Release, next string, err error) {
	start, err := after(p, newest)
	if err != nil {
		return nil, "", err
	}
	limit := p.Bounded()
	rows, err := s.read.QueryContext(ctx, `SELECT `+releaseColumns+` WHERE n < ? ORDER BY n DESC LIMIT ?`, start, limit+1)
	found, err := list(rows, err, scanRelease)
	if err != nil {
		return nil, "", fmt.Errorf("list releases: %w", err)
	}
	items, next = values(found, limit)
	return items, next, nil
}

const rolloutColumns = `n, id, tenant, "release", "group", state, reason, created_at, created_by, ended_at, deadline, max_failed, repair`

func scanRollout(row scanner) (numbered[fleet.Rollout], error) {
	var n int64
	var r fleet.Rollout
	var created, ended, deadline int64
	if err := row.Scan(&n, &r.ID, &r.Tenant, &r.Release, &r.Group, &r.State, &r.Reason, &created, &r.CreatedBy, &ended, &deadline, &r.MaxFailed, &r.Repair); err != nil {
		return numbered[fleet.Rollout]{}, found(err)
	}
	r.CreatedAt, r.EndedAt, r.Deadline = at(created), at(ended), time.Duration(deadline)*time.Millisecond
	return numbered[fleet.Rollout]{n, r}, nil
}

// AddRollout adds a rollout of a release that is there, in the state it
// carries.
func (s *Store) AddRollout(ctx context.Context, r fleet.Rollout, ev fleet.AuditEvent) error {
	err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		var one int
		if err := w.row(ctx, `SELECT 1 FROM "release" WHERE id = ?`, r.Release).Scan(&one); err != nil {
			return fmt.Errorf("release %s: %w", r.Release, found(err))
		}
		n, err := w.changed(ctx, `INSERT INTO rollout (id, tenant, "release", "group", state, reason, created_at, created_by, ended_at, deadline, max_failed, repair)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING`,
			r.ID, r.Tenant, r.Release, r.Group, r.State, r.Reason, ms(r.CreatedAt), r.CreatedBy, ms(r.EndedAt), r.Deadline.Milliseconds(), r.MaxFailed, r.Repair)
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
	return nil
}

// Rollout returns a rollout of tenant t.
func (s *Store) Rollout(ctx context.Context, t fleet.TenantID, id fleet.RolloutID) (fleet.Rollout, error) {
	r, err := scanRollout(s.read.QueryRowContext(ctx, `SELECT `+rolloutColumns+` FROM rollout WHERE id = ? AND tenant = ?`, id, t))
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
	rows, err := s.read.QueryContext(ctx, `SELECT `+rolloutColumns+` FROM rollout WHERE tenant = ? AND n < ? ORDER BY n DESC LIMIT ?`, t, start, limit+1)
	found, err := list(rows, err, scanRollout)
	if err != nil {
		return nil, "", fmt.Errorf("list rollouts: %w", err)
	}
	items, next = values(found, limit)
	return items, next, nil
}

// RunningRollouts returns the running rollouts of every tenant, oldest first.
// It is for the rollout loop.
func (s *Store) RunningRollouts(ctx context.Context) ([]fleet.Rollout, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT `+rolloutColumns+` FROM rollout WHERE state = 'RUNNING' ORDER BY n`)
	found, err := list(rows, err, scanRollout)
	if err != nil {
		return nil, fmt.Errorf("running rollouts: %w", err)
	}
	items, _ := values(found, len(found))
	return items, nil
}

// SetRollout moves a rollout of tenant t to a state if it stands in one of
// from, and writes ev to the service trail. Standing elsewhere is
// fleet.ErrConflict. With ABORTED what was not offered yet is CANCELED.
func (s *Store) SetRollout(ctx context.Context, t fleet.TenantID, id fleet.RolloutID, from []fleet.RolloutState, to fleet.RolloutState, reason string, ev fleet.AuditEvent) (fleet.Rollout, error) {
	var r numbered[fleet.Rollout]
	err := s.tx(ctx, func(ctx context.Context, w *writer) (err error) {
		if r, err = scanRollout(w.row(ctx, `SELECT `+rolloutColumns+` FROM rollout WHERE id = ? AND tenant = ?`, id, t)); err != nil {
			return err
		}
		if !slices.Contains(from, r.v.State) {
			return fmt.Errorf("it is %s: %w", r.v.State, fleet.ErrConflict)
		}
		r.v.State, r.v.Reason = to, reason
		if to == fleet.RolloutCompleted || to == fleet.RolloutAborted {
			r.v.EndedAt = at(ms(w.now))
		}
		if err := w.exec(ctx, `UPDATE rollout SET state = ?, reason = ?, ended_at = ? WHERE id = ?`, to, reason, ms(r.v.EndedAt), id); err != nil {
			return err
		}
		if to == fleet.RolloutAborted { // what was offered goes on at the device; what was not never will
			err := w.exec(ctx, `UPDATE execution SET state = ?, reason = 'aborted', updated_at = ? WHERE rollout = ? AND state = ?`,
				fleet.ExecCanceled, ms(w.now), id, fleet.ExecQueued)
			if err != nil {
				return err
			}
		}
		return w.audit(ctx, t, ev)
	})
	if err != nil {
		return fleet.Rollout{}, fmt.Errorf("set rollout %s to %s: %w", id, to, err)
	}
	return r.v, nil
}

const executionColumns = `n, id, rollout, device, state, reason, text, from_value, to_value, done, total, offered_at, updated_at`

func scanExecution(row scanner) (numbered[fleet.Execution], error) {
	var n int64
	var e fleet.Execution
	var offered, updated int64
	if err := row.Scan(&n, &e.ID, &e.Rollout, &e.Device, &e.State, &e.Reason, &e.Text, &e.From, &e.To, &e.Done, &e.Total, &offered, &updated); err != nil {
		return numbered[fleet.Execution]{}, found(err)
	}
	e.OfferedAt, e.UpdatedAt = at(offered), at(updated)
	return numbered[fleet.Execution]{n, e}, nil
}

// Enlist adds a queued execution for each member of a running rollout's group
// that has none yet, and says how many it added. An empty group is all devices
// of the tenant.
func (s *Store) Enlist(ctx context.Context, id fleet.RolloutID) (int, error) {
	const members = ` FROM device d JOIN rollout r ON r.tenant = d.tenant AND (r."group" = '' OR r."group" = d."group")
		WHERE r.id = ? AND r.state = 'RUNNING' AND d.former_of = '' AND NOT EXISTS (SELECT 1 FROM execution e WHERE e.rollout = r.id AND e.device = d.id)`
	var n int
	if err := s.read.QueryRowContext(ctx, `SELECT COUNT(*)`+members, id).Scan(&n); err != nil {
		return 0, fmt.Errorf("enlist for rollout %s: %w", id, err)
	}
	if n == 0 {
		return 0, nil
	}
	err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		rows, err := w.rows(ctx, `SELECT d.id`+members+` ORDER BY d.id`, id)
		devices, err := list(rows, err, func(r scanner) (d fleet.DeviceID, err error) { return d, r.Scan(&d) })
		if err != nil {
			return err
		}
		n = len(devices)
		for _, d := range devices {
			if err := w.exec(ctx, `INSERT INTO execution (id, rollout, device, state, updated_at) VALUES (?, ?, ?, 'QUEUED', ?)`, newID("x-"), id, d, ms(w.now)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("enlist for rollout %s: %w", id, err)
	}
	return n, nil
}

// Executions lists the executions of a rollout of tenant t in the order in
// which they were enlisted.
func (s *Store) Executions(ctx context.Context, t fleet.TenantID, id fleet.RolloutID, p fleet.Page) (items []fleet.Execution, next string, err error) {
	if _, err := s.Rollout(ctx, t, id); err != nil {
		return nil, "", err
	}
	start, err := after(p, 0)
	if err != nil {
		return nil, "", err
	}
	limit := p.Bounded()
	rows, err := s.read.QueryContext(ctx, `SELECT `+executionColumns+` FROM execution WHERE rollout = ? AND n > ? ORDER BY n LIMIT ?`, id, start, limit+1)
	found, err := list(rows, err, scanExecution)
	if err != nil {
		return nil, "", fmt.Errorf("executions of rollout %s: %w", id, err)
	}
	items, next = values(found, limit)
	return items, next, nil
}

// OpenExecutions returns the executions of a device that have not ended and
// whose rollout is running, oldest first. It is for dispatch.
func (s *Store) OpenExecutions(ctx context.Context, device fleet.DeviceID) ([]fleet.Execution, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT e.n, e.id, e.rollout, e.device, e.state, e.reason, e.text, e.from_value, e.to_value, e.done, e.total, e.offered_at, e.updated_at
		FROM execution e JOIN rollout r ON r.id = e.rollout
		WHERE e.device = ? AND r.state = 'RUNNING' AND e.state NOT IN ('SUCCEEDED', 'ALREADY_INSTALLED', 'FAILED', 'ROLLED_BACK', 'REJECTED', 'TIMED_OUT', 'CANCELED')
		ORDER BY e.n`, device)
	found, err := list(rows, err, scanExecution)
	if err != nil {
		return nil, fmt.Errorf("open executions of %s: %w", device, err)
	}
	items, _ := values(found, len(found))
	return items, nil
}

// MoveExecution moves an execution if fleet says that it may move there, or
// notes that more bytes are done in the state it stands in. It returns nil
// when neither is so, and fleet.ErrInvalid for more bytes than can be kept.
func (s *Store) MoveExecution(ctx context.Context, step ExecutionStep, when time.Time) (*fleet.Execution, error) {
	var e *fleet.Execution
	err := s.tx(ctx, func(ctx context.Context, w *writer) (err error) {
		e, err = w.moveExecution(ctx, "", step, when)
		return err
	})
	return e, err
}

// moveExecution is MoveExecution inside a transaction. With a device, only an
// execution of that device moves.
func (w *writer) moveExecution(ctx context.Context, device fleet.DeviceID, step ExecutionStep, when time.Time) (*fleet.Execution, error) {
	if err := errors.Join(number("bytes done", step.Done), number("bytes in total", step.Total)); err != nil {
		return nil, fmt.Errorf("move execution %s: %w", step.ID, err)
	}
	row, err := scanExecution(w.row(ctx, `SELECT `+executionColumns+` FROM execution WHERE id = ? AND (device = ? OR ? = '')`, step.ID, device, device))
	if errors.Is(err, fleet.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("move execution %s: %w", step.ID, err)
	}
	e := row.v
	further := step.State == e.State && !e.State.Ended() && step.Done > e.Done
	if !further && !e.State.MayBecome(step.State) {
		return nil, nil
	}
	e.State, e.Reason, e.Text, e.UpdatedAt = step.State, step.Reason, step.Text, at(ms(when))
	if step.From != "" {
		e.From = step.From
	}
	if step.To != "" {
		e.To = step.To
	}
	if step.Total != 0 {
		e.Done, e.Total = step.Done, step.Total
	} else { // not known to the device, or not said again
		e.Done = max(e.Done, step.Done)
	}
	if e.OfferedAt.IsZero() && e.State != fleet.ExecCanceled {
		e.OfferedAt = e.UpdatedAt // the first move is the offer, whatever is heard of it first
	}
	if err := w.exec(ctx, `UPDATE execution SET state = ?, reason = ?, text = ?, from_value = ?, to_value = ?, done = ?, total = ?, offered_at = ?, updated_at = ? WHERE id = ?`,
		e.State, e.Reason, e.Text, e.From, e.To, e.Done, e.Total, ms(e.OfferedAt), ms(e.UpdatedAt), e.ID); err != nil {
		return nil, fmt.Errorf("move execution %s: %w", step.ID, err)
	}
	if e.State.Ended() {
		if err := w.settleBoot(ctx, e); err != nil {
			return nil, fmt.Errorf("settle boot of execution %s: %w", step.ID, err)
		}
	}
	return &e, nil
}

// Counts says how many executions of a rollout stand where. It is for the
// rollout loop and for whoever has read the rollout by its tenant.
func (s *Store) Counts(ctx context.Context, id fleet.RolloutID) (map[fleet.ExecutionState]int, error) {
	counts := map[fleet.ExecutionState]int{}
	rows, err := s.read.QueryContext(ctx, `SELECT state, COUNT(*) FROM execution WHERE rollout = ? GROUP BY state`, id)
	_, err = list(rows, err, func(r scanner) (struct{}, error) {
		var state fleet.ExecutionState
		var n int
		err := r.Scan(&state, &n)
		counts[state] = n
		return struct{}{}, err
	})
	if err != nil {
		return nil, fmt.Errorf("counts of rollout %s: %w", id, err)
	}
	return counts, nil
}
