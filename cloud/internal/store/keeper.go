package store

import (
	"context"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// What is on record in the trails is touched here and nowhere else. SQLite has
// triggers that let it happen behind a gate, which is open within one
// transaction. On PostgreSQL the service's role may not do it at all: two
// functions do, which work as another role and look for themselves whether it
// is right (roles/after.sql).

// renameTrail gives the trail of a device that left its owner, and what proves
// it, the name of the device that stands for its past.
func (w *writer) renameTrail(ctx context.Context, device fleet.DeviceID, former string) error {
	if w.pg {
		return w.exec(ctx, `SELECT audit_leave(?, ?)`, device, former)
	}
	if err := w.exec(ctx, `INSERT INTO audit_gate (why) VALUES ('leave')`); err != nil {
		return err
	}
	for _, query := range []string{
		`UPDATE audit SET device = ? WHERE device = ?`,
		`UPDATE countersign SET device = ? WHERE device = ?`,
		`UPDATE segment SET trail = ? WHERE trail = ?`,
	} {
		if err := w.exec(ctx, query, former, device); err != nil {
			return err
		}
	}
	return w.exec(ctx, `DELETE FROM audit_gate`)
}

// dropTrail deletes the rows of a trail up to an entry, as far as a segment
// holds them, and what was countersigned of them. The newest row of all stays:
// the numbers go on from there.
func (w *writer) dropTrail(ctx context.Context, id fleet.DeviceID, last uint64) (n int64, err error) {
	if w.pg {
		err := w.row(ctx, `SELECT audit_drop(?, ?)`, id, last).Scan(&n)
		return n, err
	}
	if err := w.exec(ctx, `INSERT INTO audit_gate (why) VALUES ('segment')`); err != nil {
		return 0, err
	}
	if n, err = w.changed(ctx, `DELETE FROM audit WHERE device = ? AND seq <= ? AND n < (SELECT MAX(n) FROM audit)`, id, last); err != nil {
		return 0, err
	}
	if err := w.exec(ctx, `DELETE FROM countersign WHERE device = ? AND seq <= ?`, id, last); err != nil {
		return 0, err
	}
	return n, w.exec(ctx, `DELETE FROM audit_gate`)
}
