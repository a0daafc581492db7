package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// ended are the states of an execution that are ends, in SQL.
const ended = `('SUCCEEDED', 'ALREADY_INSTALLED', 'FAILED', 'ROLLED_BACK', 'REJECTED', 'TIMED_OUT', 'CANCELED', 'REMOVED')`

const executionColumns = `e.n, e.id, e.rollout, e.device, e.wave, e.state, e.attempt, e.step, e.version, e.reason, e.text, e.from_value, e.to_value, e.done, e.total,
	e.bytes_wire, e.bytes_peer, e.bytes_medium, e.bytes_reused, e.offered_at, e.entered_at, e.updated_at`

// scanExecution scans into plain types first: 150,000 rows are read at once, and
// database/sql takes the long way for all others.
func scanExecution(row scanner) (numbered[fleet.Execution], error) {
	var n, wave, attempt, step, version, done, total, wire, peer, medium, reused, offered, entered, updated int64
	var id, rollout, device, state, reason, text, from, to string
	if err := row.Scan(&n, &id, &rollout, &device, &wave, &state, &attempt, &step, &version, &reason, &text, &from, &to, &done, &total,
		&wire, &peer, &medium, &reused, &offered, &entered, &updated); err != nil {
		return numbered[fleet.Execution]{}, found(err)
	}
	return numbered[fleet.Execution]{n, fleet.Execution{
		ID: fleet.ExecutionID(id), Rollout: fleet.RolloutID(rollout), Device: fleet.DeviceID(device), Wave: int(wave), State: fleet.ExecutionState(state),
		Attempt: int(attempt), Step: uint32(step), Version: version, Reason: reason, Text: text, From: from, To: to, // #nosec G115 -- as they were stored
		Done: uint64(done), Total: uint64(total), Bytes: fleet.Bytes{Wire: uint64(wire), Peer: uint64(peer), Medium: uint64(medium), Reused: uint64(reused)}, // #nosec G115 -- as they were stored
		OfferedAt: at(offered), EnteredAt: at(entered), UpdatedAt: at(updated),
	}}, nil
}

// chunk is how many rows one transaction of a long change writes: others write
// in between.
const chunk = 5000

// picks turns a filter into conditions on device d. Ids of devices are in a
// list of their own, so that a canary list of any length is one argument.
func picks(t fleet.TenantID, f fleet.Filter) (where string, args []any) {
	conds, args := []string{`d.tenant = ?`, `d.former_of = ''`}, []any{t}
	for _, c := range []struct{ cond, v string }{{`d."group" = ?`, f.Group}, {`d.model = ?`, f.Model}, {`d.site = ?`, f.Site}} {
		if c.v != "" {
			conds, args = append(conds, c.cond), append(args, c.v)
		}
	}
	if len(f.Devices) > 0 {
		conds, args = append(conds, `d.id IN (SELECT value FROM json_each(?))`), append(args, toJSON(f.Devices))
	}
	return strings.Join(conds, ` AND `), args
}

// enlisted is what is remembered of taking in the devices of a rollout.
type enlisted struct {
	members int64     // as they were counted
	rest    time.Time // not again before: looking at a large fleet is not cheap, and devices come in crowds
}

// Enlist adds a queued execution for each device that a rollout reaches and
// that has none, takes in again whom the filter picks again, and removes who
// was queued and is not picked any more. It says how many it added. It does
// nothing for a rollout that is not running, unless it is complete and takes
// joiners, and costs nothing while nobody came, left or moved.
func (s *Store) Enlist(ctx context.Context, id fleet.RolloutID) (int, error) {
	n, err := s.enlist(ctx, id)
	if err != nil {
		return n, fmt.Errorf("enlist for rollout %s: %w", id, err)
	}
	return n, nil
}

func (s *Store) enlist(ctx context.Context, id fleet.RolloutID) (int, error) {
	var members int64
	if err := s.read.QueryRowContext(ctx, `SELECT n FROM counter WHERE name = 'member'`).Scan(&members); err != nil {
		return 0, err
	}
	began := time.Now()
	s.mu.Lock()
	last := s.enlisted[id]
	s.mu.Unlock()
	if last.members == members || began.Before(last.rest) {
		return 0, nil
	}
	r, err := scanRollout(s.read.QueryRowContext(ctx, `SELECT `+rolloutColumns+` WHERE r.id = ?`, id))
	if err != nil || !takesIn(r.v) {
		return 0, err
	}
	where, args := picks(r.v.Tenant, r.v.Spec.Filter)
	column := func(query string, args ...any) ([]string, error) {
		rows, err := s.read.QueryContext(ctx, query, args...)
		return list(rows, err, func(row scanner) (v string, err error) { return v, row.Scan(&v) })
	}
	add, err := column(`SELECT d.id FROM device d WHERE `+where+` AND NOT EXISTS (SELECT 1 FROM execution e WHERE e.rollout = ? AND e.device = d.id AND e.state <> 'REMOVED') ORDER BY d.id`,
		append(args, id)...)
	if err != nil {
		return 0, err
	}
	gone, err := column(`SELECT e.id FROM execution e JOIN device d ON d.id = e.device WHERE e.rollout = ? AND e.state = 'QUEUED' AND NOT (`+where+`)`, append([]any{id}, args...)...)
	if err != nil {
		return 0, err
	}
	last = enlisted{members: members}
	if took := time.Since(began); took > 50*time.Millisecond {
		last.rest = time.Now().Add(10 * took)
	}
	n := 0
	for part := range slices.Chunk(add, chunk) {
		added, err := s.enlistPart(ctx, r.v, part)
		if n += added; err != nil {
			return n, err
		}
	}
	for part := range slices.Chunk(gone, chunk) {
		if err := s.removePart(ctx, part); err != nil {
			return n, err
		}
	}
	s.mu.Lock()
	s.enlisted[id] = last
	s.mu.Unlock()
	return n, nil
}

func takesIn(r fleet.Rollout) bool {
	return r.State == fleet.RolloutRunning || r.State == fleet.RolloutCompleted && r.Spec.Joiners
}

func (s *Store) enlistPart(ctx context.Context, r fleet.Rollout, devices []string) (n int, err error) {
	err = s.tx(ctx, func(ctx context.Context, w *writer) error {
		now, err := scanRollout(w.row(ctx, `SELECT `+rolloutColumns+` WHERE r.id = ?`, r.ID))
		if err != nil || !takesIn(now.v) { // it was stopped meanwhile
			return err
		}
		change, err := w.count(ctx, "execution")
		if err != nil {
			return err
		}
		for _, d := range devices {
			added, err := w.changed(ctx, `INSERT INTO execution (id, rollout, device, state, updated_at, entered_at, changed)
				SELECT ?, ?, d.id, 'QUEUED', ?, ?, ? FROM device d WHERE d.id = ? AND d.tenant = ? AND d.former_of = ''
				ON CONFLICT (rollout, device) DO UPDATE SET state = 'QUEUED', reason = '', text = '', updated_at = excluded.updated_at, entered_at = excluded.entered_at,
				version = execution.version + 1, changed = excluded.changed WHERE execution.state = 'REMOVED'`,
				newID("x-"), r.ID, ms(w.now), ms(w.now), change, d, r.Tenant)
			if err != nil {
				return err
			}
			n += int(added)
		}
		return nil
	})
	if err != nil {
		n = 0
	}
	return n, err
}

func (s *Store) removePart(ctx context.Context, executions []string) error {
	return s.tx(ctx, func(ctx context.Context, w *writer) error {
		change, err := w.count(ctx, "execution")
		if err != nil {
			return err
		}
		for _, x := range executions {
			if err := w.exec(ctx, `UPDATE execution SET state = 'REMOVED', reason = 'left', text = 'it is not among the devices of the rollout any more', entered_at = ?, updated_at = ?,
				version = version + 1, changed = ? WHERE id = ? AND state = 'QUEUED'`, ms(w.now), ms(w.now), change, x); err != nil {
				return err
			}
		}
		return nil
	})
}

// moved notes that members of filters came, left or changed.
func (w *writer) moved(ctx context.Context) error {
	_, err := w.count(ctx, "member")
	return err
}

// touch makes the open executions of a device news to whoever reads changes:
// something else of the device did.
func (w *writer) touch(ctx context.Context, device fleet.DeviceID) error {
	n, err := w.changed(ctx, `UPDATE execution SET changed = (SELECT n + 1 FROM counter WHERE name = 'execution') WHERE device = ? AND state NOT IN `+ended, device)
	if err == nil && n > 0 {
		_, err = w.count(ctx, "execution")
	}
	return err
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

// MoveExecutions is MoveExecution for many at once, some hundred in a
// transaction, and says how many moved. The service's trail tells of each that
// ended so, in one entry where they are many.
func (s *Store) MoveExecutions(ctx context.Context, steps []ExecutionStep, when time.Time) (moved int, err error) {
	for part := range slices.Chunk(steps, 500) { // devices have their say in between
		n := 0
		err := s.tx(ctx, func(ctx context.Context, w *writer) error {
			var ended []fleet.Execution
			for _, step := range part {
				e, err := w.moveExecution(ctx, "", step, when)
				if err != nil {
					return err
				}
				if e == nil {
					continue
				}
				if n++; e.State.Ended() {
					ended = append(ended, *e)
				}
			}
			return w.told(ctx, ended, when)
		})
		if err != nil {
			return moved, fmt.Errorf("move %d executions: %w", len(part), err)
		}
		moved += n
	}
	return moved, nil
}

// moveExecution is MoveExecution inside a transaction. With a device, only an
// execution of that device moves.
func (w *writer) moveExecution(ctx context.Context, device fleet.DeviceID, step ExecutionStep, when time.Time) (*fleet.Execution, error) {
	if err := errors.Join(number("bytes done", step.Done), number("bytes in total", step.Total), number("bytes", step.Bytes.Wire),
		number("bytes", step.Bytes.Peer), number("bytes", step.Bytes.Medium), number("bytes", step.Bytes.Reused)); err != nil {
		return nil, fmt.Errorf("move execution %s: %w", step.ID, err)
	}
	row, err := scanExecution(w.row(ctx, `SELECT `+executionColumns+` FROM execution e WHERE e.id = ? AND (e.device = ? OR ? = '')`, step.ID, device, device))
	if errors.Is(err, fleet.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("move execution %s: %w", step.ID, err)
	}
	if !row.v.Takes(step) {
		return nil, nil
	}
	e := stepped(row.v, step, at(ms(when)))
	change, err := w.count(ctx, "execution")
	if err != nil {
		return nil, fmt.Errorf("move execution %s: %w", step.ID, err)
	}
	if err := w.exec(ctx, `UPDATE execution SET state = ?, attempt = ?, step = ?, version = ?, changed = ?, reason = ?, text = ?, from_value = ?, to_value = ?, done = ?, total = ?,
		bytes_wire = ?, bytes_peer = ?, bytes_medium = ?, bytes_reused = ?, offered_at = ?, entered_at = ?, updated_at = ? WHERE id = ?`,
		e.State, e.Attempt, e.Step, e.Version, change, e.Reason, e.Text, e.From, e.To, e.Done, e.Total,
		e.Bytes.Wire, e.Bytes.Peer, e.Bytes.Medium, e.Bytes.Reused, ms(e.OfferedAt), ms(e.EnteredAt), ms(e.UpdatedAt), e.ID); err != nil {
		return nil, fmt.Errorf("move execution %s: %w", step.ID, err)
	}
	if e.State.Ended() {
		if err := w.settleBoot(ctx, e); err != nil {
			return nil, fmt.Errorf("settle boot of execution %s: %w", step.ID, err)
		}
	}
	return &e, nil
}

// stepped is e after a step that it takes.
func stepped(e fleet.Execution, step ExecutionStep, when time.Time) fleet.Execution {
	if e.State == fleet.ExecQueued && (step.Attempt > e.Attempt || step.Attempt == 0 && !step.State.Ended()) {
		// Another attempt. What was fetched before stays on the device and is counted there.
		e.Attempt, e.Step, e.OfferedAt, e.Done, e.Total = e.Attempt+1, 0, time.Time{}, 0, 0
	}
	if e.State != step.State {
		e.EnteredAt = when
	}
	e.State, e.Reason, e.Text, e.UpdatedAt = step.State, step.Reason, step.Text, when
	e.Version++
	e.Step = max(e.Step, step.Number)
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
	e.Bytes = fleet.Bytes{
		Wire: max(e.Bytes.Wire, step.Bytes.Wire), Peer: max(e.Bytes.Peer, step.Bytes.Peer), Medium: max(e.Bytes.Medium, step.Bytes.Medium), Reused: max(e.Bytes.Reused, step.Bytes.Reused),
	}
	if e.OfferedAt.IsZero() && e.Attempt > 0 && e.State != fleet.ExecCanceled {
		e.OfferedAt = e.UpdatedAt // the first move is the offer, whatever is heard of it first
	}
	return e
}

// told writes down what the planner ended by itself.
func (w *writer) told(ctx context.Context, ended []fleet.Execution, when time.Time) error {
	type end struct {
		rollout fleet.RolloutID
		state   fleet.ExecutionState
		reason  string
	}
	count := map[end]int{}
	for _, e := range ended {
		count[end{e.Rollout, e.State, e.Reason}]++
	}
	for _, e := range ended {
		k := end{e.Rollout, e.State, e.Reason}
		n := count[k]
		if n == 0 {
			continue
		}
		ev := fleet.AuditEvent{
			At: when, Kind: "rollout.ended", Severity: "info", Actor: "rollout", Subject: string(e.Device),
			Detail: map[string]string{"rollout": string(e.Rollout), "execution": string(e.ID), "state": string(e.State), "reason": e.Reason},
		}
		if n > maxTold {
			ev.Subject, ev.Detail = string(e.Rollout), map[string]string{"state": string(e.State), "reason": e.Reason, "devices": strconv.Itoa(n)}
			count[k] = 0
		}
		if e.State == fleet.ExecTimedOut {
			ev.Severity, ev.Outcome = "warn", fleet.Failure
		}
		if err := w.auditOf(ctx, e.Rollout, ev); err != nil {
			return err
		}
	}
	return nil
}

// maxTold is up to how many devices are told of one by one.
const maxTold = 20

// auditOf is audit for an event of whoever owns the rollout.
func (w *writer) auditOf(ctx context.Context, id fleet.RolloutID, ev fleet.AuditEvent) error {
	var t fleet.TenantID
	if err := w.row(ctx, `SELECT tenant FROM rollout WHERE id = ?`, id).Scan(&t); err != nil {
		return fmt.Errorf("rollout %s: %w", id, found(err))
	}
	return w.audit(ctx, t, ev)
}

// RetryExecution queues an execution again that ended in a way that may pass,
// with an entry in the service's trail. The attempt is counted when it is offered. fleet.ErrConflict: it ended
// otherwise, has changed since version was read, or its rollout was stopped.
func (s *Store) RetryExecution(ctx context.Context, id fleet.ExecutionID, version int64, when time.Time) error {
	err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		e, err := scanExecution(w.row(ctx, `SELECT `+executionColumns+` FROM execution e WHERE e.id = ?`, id))
		if err != nil {
			return err
		}
		r, err := scanRollout(w.row(ctx, `SELECT `+rolloutColumns+` WHERE r.id = ?`, e.v.Rollout))
		switch {
		case err != nil:
			return err
		case !takesIn(r.v): // it was stopped meanwhile
			return fmt.Errorf("its rollout is %s: %w", r.v.State, fleet.ErrConflict)
		case !e.v.Retryable():
			return fmt.Errorf("it is %s: %w", e.v.State, fleet.ErrConflict)
		case e.v.Version != version:
			return fmt.Errorf("it has changed: %w", fleet.ErrConflict)
		}
		if err := w.requeue(ctx, e.v, when); err != nil {
			return err
		}
		return w.audit(ctx, r.v.Tenant, fleet.AuditEvent{
			At: when, Kind: "rollout.retried", Severity: "info", Actor: "rollout", Subject: string(e.v.Device),
			Detail: map[string]string{"rollout": string(r.v.ID), "execution": string(id), "attempt": strconv.Itoa(e.v.Attempt), "was": string(e.v.State), "reason": e.v.Reason},
		})
	})
	if err != nil {
		return fmt.Errorf("retry execution %s: %w", id, err)
	}
	return nil
}

// requeue keeps attempt and step, so that what comes late is known as old.
func (w *writer) requeue(ctx context.Context, e fleet.Execution, when time.Time) error {
	change, err := w.count(ctx, "execution")
	if err != nil {
		return err
	}
	return w.exec(ctx, `UPDATE execution SET state = 'QUEUED', reason = 'retry', text = ?, done = 0, total = 0, offered_at = 0, entered_at = ?, updated_at = ?,
		version = version + 1, changed = ? WHERE id = ?`, text(fmt.Sprintf("attempt %d ended %s: %s", e.Attempt, e.State, e.Reason)), ms(when), ms(when), change, e.ID)
}

// RetryRollout queues again what ended in a way that may pass, of one device or,
// with an empty id, of all devices of a rollout of tenant t, and says how much
// that was. ev goes to the service trail.
func (s *Store) RetryRollout(ctx context.Context, t fleet.TenantID, id fleet.RolloutID, device fleet.DeviceID, ev fleet.AuditEvent) (n int, err error) {
	err = s.tx(ctx, func(ctx context.Context, w *writer) error {
		r, err := scanRollout(w.row(ctx, `SELECT `+rolloutColumns+` WHERE r.id = ? AND r.tenant = ?`, id, t))
		if err != nil {
			return err
		}
		if r.v.State != fleet.RolloutRunning && r.v.State != fleet.RolloutPaused { // nobody would see to it
			return fmt.Errorf("it is %s; start another one: %w", r.v.State, fleet.ErrConflict)
		}
		rows, err := w.rows(ctx, `SELECT `+executionColumns+` FROM execution e WHERE e.rollout = ? AND (e.state IN ('FAILED', 'TIMED_OUT') OR e.state = 'REJECTED' AND e.reason = 'expired') AND (e.device = ? OR ? = '')`, id, device, device)
		es, err := list(rows, err, scanExecution)
		if err != nil {
			return err
		}
		for _, e := range es {
			if err := w.requeue(ctx, e.v, w.now); err != nil {
				return err
			}
		}
		if n = len(es); n == 0 {
			return fmt.Errorf("nothing of it ended FAILED or TIMED_OUT: %w", fleet.ErrConflict)
		}
		return w.audit(ctx, t, ev)
	})
	if err != nil {
		return 0, fmt.Errorf("retry rollout %s: %w", id, err)
	}
	return n, nil
}

// AssignWaves notes which wave executions of a rollout are in.
func (s *Store) AssignWaves(ctx context.Context, id fleet.RolloutID, waves map[fleet.ExecutionID]int) error {
	ids := make([]fleet.ExecutionID, 0, len(waves))
	for x := range waves {
		ids = append(ids, x)
	}
	slices.Sort(ids)
	for part := range slices.Chunk(ids, chunk) {
		err := s.tx(ctx, func(ctx context.Context, w *writer) error {
			change, err := w.count(ctx, "execution")
			if err != nil {
				return err
			}
			for _, x := range part {
				if err := w.exec(ctx, `UPDATE execution SET wave = ?, changed = ? WHERE id = ? AND rollout = ? AND wave <> ?`, waves[x], change, x, id, waves[x]); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("assign waves of rollout %s: %w", id, err)
		}
	}
	return nil
}
