package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const commandColumns = `n, id, device, tenant, counter, verb, args, issued_by, reason, issued_at, not_after, state, code, text, output, ended_at`

func scanCommand(r scanner) (numbered[fleet.Command], error) {
	var n int64
	var c fleet.Command
	var args string
	var issued, notAfter, ended int64
	if err := r.Scan(&n, &c.ID, &c.Device, &c.Tenant, &c.Counter, &c.Verb, &args, &c.By, &c.Reason, &issued, &notAfter,
		&c.State, &c.Code, &c.Text, &c.Output, &ended); err != nil {
		return numbered[fleet.Command]{}, found(err)
	}
	if err := json.Unmarshal([]byte(args), &c.Args); err != nil {
		return numbered[fleet.Command]{}, fmt.Errorf("arguments of command %s: %w", c.ID, err)
	}
	c.IssuedAt, c.NotAfter, c.EndedAt = at(issued), at(notAfter), at(ended)
	return numbered[fleet.Command]{n, c}, nil
}

// AddCommand queues a command for a device of its tenant, gives it the next
// counter of that device (and an id when it has none) and writes ev to the
// service trail.
func (s *Store) AddCommand(ctx context.Context, c fleet.Command, ev fleet.AuditEvent) (fleet.Command, error) {
	if c.ID == "" {
		c.ID = fleet.CommandID(newID("c-"))
	}
	c.State, c.Code, c.Text, c.Output, c.EndedAt = fleet.CommandQueued, "", "", nil, time.Time{}
	if c.Args == nil {
		c.Args = map[string]string{}
	}
	err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		if err := w.row(ctx, `UPDATE device SET command_counter = command_counter + 1 WHERE id = ? AND tenant = ? AND former_of = '' RETURNING command_counter`,
			c.Device, c.Tenant).Scan(&c.Counter); err != nil {
			return fmt.Errorf("device %s: %w", c.Device, found(err))
		}
		n, err := w.changed(ctx, `INSERT INTO command (id, tenant, device, counter, verb, args, issued_by, reason, issued_at, not_after, state)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING`,
			c.ID, c.Tenant, c.Device, c.Counter, c.Verb, toJSON(c.Args), c.By, c.Reason, ms(c.IssuedAt), ms(c.NotAfter), c.State)
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("command %s: %w", c.ID, fleet.ErrExists)
		}
		return w.audit(ctx, c.Tenant, ev)
	})
	if err != nil {
		return fleet.Command{}, fmt.Errorf("add command: %w", err)
	}
	return c, nil
}

// Command returns a command of tenant t.
func (s *Store) Command(ctx context.Context, t fleet.TenantID, id fleet.CommandID) (fleet.Command, error) {
	c, err := scanCommand(s.read.QueryRowContext(ctx, `SELECT `+commandColumns+` FROM command WHERE id = ? AND tenant = ?`, id, t))
	if err != nil {
		return fleet.Command{}, fmt.Errorf("command %s: %w", id, err)
	}
	return c.v, nil
}

// Commands lists the commands of tenant t, newest first.
func (s *Store) Commands(ctx context.Context, t fleet.TenantID, f CommandFilter, p fleet.Page) (items []fleet.Command, next string, err error) {
	start, err := after(p, newest)
	if err != nil {
		return nil, "", err
	}
	query, args := `SELECT `+commandColumns+` FROM command WHERE tenant = ? AND n < ?`, []any{t, start}
	if f.Device != "" {
		query, args = query+` AND device = ?`, append(args, f.Device)
	}
	if f.State != "" {
		query, args = query+` AND state = ?`, append(args, f.State)
	}
	limit := p.Bounded()
	rows, err := s.read.QueryContext(ctx, query+` ORDER BY n DESC LIMIT ?`, append(args, limit+1)...)
	found, err := list(rows, err, scanCommand)
	if err != nil {
		return nil, "", fmt.Errorf("list commands: %w", err)
	}
	items, next = values(found, limit)
	return items, next, nil
}

// OpenCommands returns what a device still has to be told at now, in the order
// of the counter. It is for dispatch.
func (s *Store) OpenCommands(ctx context.Context, device fleet.DeviceID, now time.Time) ([]fleet.Command, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT `+commandColumns+` FROM command
		WHERE device = ? AND state IN ('QUEUED', 'SENT') AND not_after > ? ORDER BY counter`, device, ms(now))
	found, err := list(rows, err, scanCommand)
	if err != nil {
		return nil, fmt.Errorf("open commands of %s: %w", device, err)
	}
	items, _ := values(found, len(found))
	return items, nil
}

// Unanswered lists the devices that have an open command which was issued
// before then; with queued, one that was not handed over.
func (s *Store) Unanswered(ctx context.Context, before time.Time, queued bool) ([]fleet.DeviceID, error) {
	states := `'QUEUED', 'SENT'`
	if queued {
		states = `'QUEUED'`
	}
	rows, err := s.read.QueryContext(ctx, `SELECT DISTINCT device FROM command WHERE state IN (`+states+`) AND issued_at < ?`, ms(before))
	ids, err := list(rows, err, func(r scanner) (id fleet.DeviceID, err error) { return id, r.Scan(&id) })
	if err != nil {
		return nil, fmt.Errorf("unanswered commands: %w", err)
	}
	return ids, nil
}

// MarkSent notes that a command was handed to its device. A command that was
// sent before or has ended stays as it is.
func (s *Store) MarkSent(ctx context.Context, id fleet.CommandID) error {
	err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		return w.exec(ctx, `UPDATE command SET state = 'SENT' WHERE id = ? AND state = 'QUEUED'`, id)
	})
	if err != nil {
		return fmt.Errorf("mark command %s sent: %w", id, err)
	}
	return nil
}

// ExpireCommands ends what is past its life at now, each with an entry in the
// service trail, and returns it.
func (s *Store) ExpireCommands(ctx context.Context, now time.Time) ([]fleet.Command, error) {
	var n int
	if err := s.read.QueryRowContext(ctx, `SELECT COUNT(*) FROM command WHERE state IN ('QUEUED', 'SENT') AND not_after <= ?`, ms(now)).Scan(&n); err != nil || n == 0 {
		return nil, err // the writer is not troubled for nothing
	}
	var out []fleet.Command
	err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		rows, err := w.rows(ctx, `UPDATE command SET state = 'EXPIRED', code = 'expired', ended_at = ?
			WHERE state IN ('QUEUED', 'SENT') AND not_after <= ? RETURNING `+commandColumns, ms(now), ms(now))
		found, err := list(rows, err, scanCommand)
		if err != nil {
			return err
		}
		out, _ = values(found, len(found))
		for _, c := range out {
			err := w.audit(ctx, c.Tenant, fleet.AuditEvent{
				At: now, Kind: "command.expired", Severity: "warn", Actor: "service", Subject: string(c.Device),
				Detail: map[string]string{"command": string(c.ID), "verb": c.Verb},
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("expire commands: %w", err)
	}
	return out, nil
}

// endCommand moves a command of that device to its end. A command ends once;
// only EXPIRED, which the service says from its own clock, gives way to what
// the device did. It returns nil when nothing moved.
func (w *writer) endCommand(ctx context.Context, device fleet.DeviceID, e CommandEnd) (*fleet.Command, error) {
	if !e.State.Ended() {
		return nil, nil
	}
	c, err := scanCommand(w.row(ctx, `UPDATE command SET state = ?, code = ?, text = ?, output = ?, ended_at = ?
		WHERE id = ? AND device = ? AND (state IN ('QUEUED', 'SENT') OR (state = 'EXPIRED' AND ? <> 'EXPIRED')) RETURNING `+commandColumns,
		e.State, e.Code, e.Text, e.Output, ms(w.now), e.ID, device, e.State))
	if errors.Is(err, fleet.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("end command %s: %w", e.ID, err)
	}
	return &c.v, nil
}
