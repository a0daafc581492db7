package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const unitColumns = executionColumns + `, e.changed, d.model, d.site, d."group", d.last_seen, d.installed, d.free_mib, d.enrolled_at FROM execution e JOIN device d ON d.id = e.device`

// units scans units. Thousands of devices run the same: what they run is kept
// once for all of them.
type units struct {
	runs map[string]map[string]string
	last int64 // change
}

func (u *units) scan(row scanner) (numbered[fleet.Unit], error) {
	var unit fleet.Unit
	var changed, seen, enrolled, free int64
	var installed string
	e, err := scanExecution(behindLast{row, []any{&changed, &unit.Model, &unit.Site, &unit.Group, &seen, &installed, &free, &enrolled}})
	if err != nil {
		return numbered[fleet.Unit]{}, err
	}
	runs, err := u.running(e.v.Device, installed)
	if err != nil {
		return numbered[fleet.Unit]{}, err
	}
	u.last = max(u.last, changed)
	unit.Execution, unit.LastSeen, unit.FirstSeen, unit.Installed, unit.FreeMiB = e.v, at(seen), at(enrolled), runs, uint64(free) // #nosec G115 -- as it was stored
	return numbered[fleet.Unit]{e.n, unit}, nil
}

// running reads what a device runs.
func (u *units) running(device fleet.DeviceID, installed string) (map[string]string, error) {
	if runs, ok := u.runs[installed]; ok {
		return runs, nil
	}
	var all []fleet.Installed
	if err := json.Unmarshal([]byte(installed), &all); err != nil {
		return nil, fmt.Errorf("what device %s runs: %w", device, err)
	}
	runs := make(map[string]string, len(all))
	for _, i := range all {
		runs[i.Component] = i.Version
	}
	if u.runs == nil || len(u.runs) > maxRemembered {
		u.runs = map[string]map[string]string{}
	}
	u.runs[installed] = runs
	return runs, nil
}

// behindLast scans what stands after the columns of row into more.
type behindLast struct {
	row  scanner
	more []any
}

func (b behindLast) Scan(dest ...any) error { return b.row.Scan(slices.Concat(dest, b.more)...) }

// Units returns the executions of a rollout that changed since a cursor, with
// what is to be known of their devices, and the cursor to read on from. 0 reads
// all of them. What a device does that matters to the planner is a change of
// its open executions, too; that it was heard again is none. It is for the
// rollout loop.
func (s *Store) Units(ctx context.Context, id fleet.RolloutID, since int64) ([]fleet.Unit, int64, error) {
	u := units{last: since}
	rows, err := s.read.QueryContext(ctx, `SELECT `+unitColumns+` WHERE e.rollout = ? AND e.changed > ?`, id, since)
	items, err := list(rows, err, func(r scanner) (fleet.Unit, error) {
		n, err := u.scan(r)
		return n.v, err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("units of rollout %s: %w", id, err)
	}
	return items, u.last, nil
}

// Reach returns the devices of tenant t that a filter picks as a rollout would
// begin with them: queued, and in no wave. They have no execution yet, so they
// have no id of one.
func (s *Store) Reach(ctx context.Context, t fleet.TenantID, f fleet.Filter) ([]fleet.Unit, error) {
	where, args := picks(t, f)
	var u units
	rows, err := s.read.QueryContext(ctx, `SELECT d.id, d.model, d.site, d."group", d.last_seen, d.installed, d.free_mib, d.enrolled_at FROM device d WHERE `+where+` ORDER BY d.id`, args...) //nolint:gosec // joins constants
	all, err := list(rows, err, func(row scanner) (unit fleet.Unit, err error) {
		var seen, enrolled int64
		var installed string
		if err := row.Scan(&unit.Device, &unit.Model, &unit.Site, &unit.Group, &seen, &installed, &unit.FreeMiB, &enrolled); err != nil {
			return unit, err
		}
		unit.State, unit.Wave, unit.LastSeen, unit.FirstSeen = fleet.ExecQueued, -1, at(seen), at(enrolled)
		unit.Installed, err = u.running(unit.Device, installed)
		return unit, err
	})
	if err != nil {
		return nil, fmt.Errorf("devices that a rollout would reach: %w", err)
	}
	return all, nil
}

// RolloutUnits lists the executions of a rollout of tenant t that a filter
// picks, with their devices, in the order in which they were enlisted.
func (s *Store) RolloutUnits(ctx context.Context, t fleet.TenantID, id fleet.RolloutID, f fleet.ExecutionFilter, p fleet.Page) (items []fleet.Unit, next string, err error) {
	if _, err := s.Rollout(ctx, t, id); err != nil {
		return nil, "", err
	}
	start, err := after(p, 0)
	if err != nil {
		return nil, "", err
	}
	where, args := ``, []any{id, start}
	add := func(cond string, v any) { where, args = where+` AND `+cond, append(args, v) }
	if f.State != "" {
		add(`e.state = ?`, f.State)
	}
	if f.Wave != nil {
		add(`e.wave = ?`, *f.Wave)
	}
	if f.Model != "" {
		add(`d.model = ?`, f.Model)
	}
	if f.Site != "" {
		add(`d.site = ?`, f.Site)
	}
	limit := p.Bounded()
	rows, err := s.read.QueryContext(ctx, `SELECT `+unitColumns+` WHERE e.rollout = ? AND e.n > ?`+where+` ORDER BY e.n LIMIT ?`, append(args, limit+1)...) //nolint:gosec // joins the constants above
	found, err := list(rows, err, new(units).scan)
	if err != nil {
		return nil, "", fmt.Errorf("executions of rollout %s: %w", id, err)
	}
	items, next = values(found, limit)
	return items, next, nil
}

// DeviceUnits lists the executions of a device of tenant t, newest first.
func (s *Store) DeviceUnits(ctx context.Context, t fleet.TenantID, device fleet.DeviceID, p fleet.Page) (items []fleet.Unit, next string, err error) {
	if err := s.owns(ctx, t, device); err != nil {
		return nil, "", err
	}
	start, err := after(p, newest)
	if err != nil {
		return nil, "", err
	}
	limit := p.Bounded()
	rows, err := s.read.QueryContext(ctx, `SELECT `+unitColumns+` WHERE e.device = ? AND e.n < ? ORDER BY e.n DESC LIMIT ?`, device, start, limit+1)
	found, err := list(rows, err, new(units).scan)
	if err != nil {
		return nil, "", fmt.Errorf("executions of device %s: %w", device, err)
	}
	items, next = values(found, limit)
	return items, next, nil
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

// neutral is fleet.Execution.Neutral in SQL.
const neutral = `(state IN ('FAILED', 'TIMED_OUT') AND reason IN ('canceled', 'superseded', 'unreachable', 'waited', 'expired', 'busy') OR state = 'REJECTED' AND reason IN ('downgrade', 'expired'))`

// Neutral says how many executions of a rollout ended in a way that says
// nothing of the release. It is for whoever has read the rollout by its tenant.
func (s *Store) Neutral(ctx context.Context, id fleet.RolloutID) (n int, err error) {
	if err := s.read.QueryRowContext(ctx, `SELECT COUNT(*) FROM execution WHERE rollout = ? AND state IN ('FAILED', 'TIMED_OUT', 'REJECTED') AND `+neutral, id).Scan(&n); err != nil {
		return 0, fmt.Errorf("neutral ends of rollout %s: %w", id, err)
	}
	return n, nil
}

// Progress says where a rollout stands, wave by wave, and whence its bytes
// came. Who is not connected and was not heard since silent cannot be reached.
// It is for whoever has read the rollout by its tenant.
func (s *Store) Progress(ctx context.Context, id fleet.RolloutID, silent time.Time) (fleet.Progress, error) {
	p := fleet.Progress{Counts: map[fleet.ExecutionState]int{}, Waves: map[int]map[fleet.ExecutionState]int{}, Neutral: map[int]int{}, Unreachable: map[int]int{}}
	rows, err := s.read.QueryContext(ctx, `SELECT wave, state, COUNT(*), SUM(bytes_wire), SUM(bytes_peer), SUM(bytes_medium), SUM(bytes_reused),
		SUM(CASE WHEN `+neutral+` THEN 1 ELSE 0 END) FROM execution WHERE rollout = ? GROUP BY wave, state`, id)
	_, err = list(rows, err, func(r scanner) (struct{}, error) {
		var wave, n, neutral int
		var state fleet.ExecutionState
		var b fleet.Bytes
		err := r.Scan(&wave, &state, &n, &b.Wire, &b.Peer, &b.Medium, &b.Reused, &neutral)
		if neutral > 0 {
			p.Neutral[wave] += neutral
		}
		if p.Waves[wave] == nil {
			p.Waves[wave] = map[fleet.ExecutionState]int{}
		}
		p.Waves[wave][state] = n
		p.Counts[state] += n
		p.Bytes.Wire, p.Bytes.Peer, p.Bytes.Medium, p.Bytes.Reused = p.Bytes.Wire+b.Wire, p.Bytes.Peer+b.Peer, p.Bytes.Medium+b.Medium, p.Bytes.Reused+b.Reused
		return struct{}{}, err
	})
	if err != nil {
		return fleet.Progress{}, fmt.Errorf("progress of rollout %s: %w", id, err)
	}
	rows, err = s.read.QueryContext(ctx, `SELECT e.wave, COUNT(*) FROM execution e JOIN device d ON d.id = e.device
		WHERE e.rollout = ? AND e.state NOT IN `+ended+` AND d.online = 0 AND d.last_seen < ? GROUP BY e.wave`, id, ms(silent))
	_, err = list(rows, err, func(r scanner) (struct{}, error) {
		var wave, n int
		err := r.Scan(&wave, &n)
		p.Unreachable[wave] = n
		return struct{}{}, err
	})
	if err != nil {
		return fleet.Progress{}, fmt.Errorf("who of rollout %s is silent: %w", id, err)
	}
	return p, nil
}

// Peers returns where tills of a site share what they have, of those that are
// connected and have a release or run it. It is for the rollout loop.
func (s *Store) Peers(ctx context.Context, t fleet.TenantID, site string, release fleet.ReleaseID) ([]string, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT DISTINCT d.share FROM device d JOIN execution e ON e.device = d.id JOIN rollout r ON r.id = e.rollout
		WHERE d.tenant = ? AND d.site = ? AND d.share <> '' AND d.online <> 0 AND d.former_of = '' AND r."release" = ?
		AND e.state IN ('STAGED', 'INSTALLING', 'INSTALLED', 'REBOOTING', 'CHECKING', 'SUCCEEDED', 'ALREADY_INSTALLED') ORDER BY d.share`, t, site, release)
	peers, err := list(rows, err, func(r scanner) (v string, err error) { return v, r.Scan(&v) })
	if err != nil {
		return nil, fmt.Errorf("peers of site %s with release %s: %w", site, release, err)
	}
	return peers, nil
}
