package store

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// On PostgreSQL the samples of a group, and its events, are stored by COPY:
// nearly always they are new. When one is there already the group is begun
// again, carefully: then the database says which are new.

// added says which rows are new. A nil one knows of none.
type added struct {
	all  bool // COPY took them
	rows map[place3]bool
}

// place3 is the place of a sample or event: boot, sequence, index.
type place3 [3]int64

// isNew is true the first time.
func (a *added) isNew(boot int64, seq uint64, index int) bool {
	if a == nil {
		return false
	}
	k := place3{boot, int64(seq), int64(index)} // #nosec G115 -- number has looked at it
	had := a.all || a.rows[k]
	delete(a.rows, k)
	return had
}

// kept checks that a sample can be kept.
func kept(s fleet.Sample) error {
	if math.IsNaN(s.Value) || math.IsInf(s.Value, 0) {
		return fmt.Errorf("sample %s is not a number: %w", s.Name, fleet.ErrInvalid)
	}
	return number("sequence", s.Seq)
}

var (
	sampleColumns = []string{"boot", "seq", "idx", "series", "at", "value", "epoch", "kept"}
	eventColumns  = []string{"device", "boot", "seq", "idx", "at", "peripheral", "category", "code", "from_value", "to_value", "mono", "count"}
)

const (
	addSamples = `INSERT INTO sample (boot, seq, idx, series, at, value, epoch, kept)
		SELECT * FROM unnest($1::int8[], $2::int8[], $3::int8[], $4::int8[], $5::int8[], $6::float8[], $7::int8[], $8::int8[])
		ON CONFLICT DO NOTHING RETURNING boot, seq, idx`
	addEvents = `INSERT INTO event (device, boot, seq, idx, at, peripheral, category, code, from_value, to_value, mono, count)
		SELECT device, boot, seq, idx, at, peripheral, category, code, from_value, to_value, mono, count
		FROM unnest($1::text[], $2::int8[], $3::int8[], $4::int8[], $5::int8[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::int8[], $12::int8[])
		WITH ORDINALITY AS v (device, boot, seq, idx, at, peripheral, category, code, from_value, to_value, mono, count, place) ORDER BY place
		ON CONFLICT DO NOTHING RETURNING boot, seq, idx`
)

// copySamples writes the samples that are pending.
func (g *group) copySamples(ctx context.Context) error {
	rows := make([][]any, len(g.pending))
	for i, p := range g.pending {
		row, err := converted(p.args[:])
		if err != nil {
			return fmt.Errorf("sample: %w", err)
		}
		rows[i] = row
	}
	a, err := g.w.add(ctx, "sample", sampleColumns, addSamples, rows)
	if err != nil {
		return fmt.Errorf("samples: %w", err)
	}
	for _, p := range g.pending {
		if a.isNew(p.args[0].(int64), uint64(p.args[1].(int64)), int(p.args[2].(int64))) { // #nosec G115 -- as it was before
			g.stored(p)
		} else {
			p.out.Duplicates++
		}
	}
	g.pending = nil
	return nil
}

// ahead stores the events of all intakes.
func (g *group) ahead(ctx context.Context, in []Intake) (err error) {
	var rows [][]any
	for i := range in {
		if rows, err = g.gather(ctx, &in[i], rows); err != nil {
			return fmt.Errorf("device %s: %w", in[i].Device, err)
		}
	}
	if g.early, err = g.w.add(ctx, "event", eventColumns, addEvents, rows); err != nil {
		return fmt.Errorf("events: %w", err)
	}
	return nil
}

// add adds rows to a table: many of them by COPY, few or carefully by a
// statement that says which of them are new.
func (w *writer) add(ctx context.Context, table string, columns []string, query string, rows [][]any) (*added, error) {
	a := &added{}
	if len(rows) == 0 {
		return a, nil
	}
	if err := w.sync(ctx); err != nil {
		return nil, err
	}
	return a, w.raw(func(d *dialect) (err error) {
		if a.all = !w.careful && len(rows) >= manyRows; a.all {
			_, err = d.copy(ctx, table, columns, rows)
			w.changes += int64(len(rows))
			return err
		}
		a.rows, err = d.add(ctx, query, len(columns), rows)
		w.changes += int64(len(a.rows))
		return err
	})
}

// load reads what is on file of the devices of all intakes, and of their trails
// where there is something for those.
func (g *group) load(ctx context.Context, in []Intake) error {
	all, trails := map[fleet.DeviceID]bool{}, map[fleet.DeviceID]bool{}
	for i := range in {
		all[in[i].Device] = true
		if len(in[i].Audit) > 0 || in[i].AuditBroken {
			trails[in[i].Device] = true
		}
	}
	ids := func(set map[fleet.DeviceID]bool) string { return toJSON(slices.Sorted(maps.Keys(set))) }
	rows, err := g.w.rows(ctx, `SELECT id, tenant, site FROM device WHERE id IN (SELECT value FROM json_each(?))`, ids(all))
	if _, err = list(rows, err, func(r scanner) (struct{}, error) {
		var id fleet.DeviceID
		t := &tally{}
		err := r.Scan(&id, &t.tenant, &t.site)
		g.devices[id] = t
		return struct{}{}, err
	}); err != nil || len(trails) == 0 {
		return err
	}
	rows, err = g.w.rows(ctx, `SELECT device, head, hash, entries, broken, `+proofColumns+` FROM trail WHERE device IN (SELECT value FROM json_each(?))`, ids(trails))
	_, err = list(rows, err, func(r scanner) (struct{}, error) {
		var id fleet.DeviceID
		var t tally
		var hash []byte
		if err := r.Scan(append([]any{&id, &t.head, &hash, &t.entries, &t.broken}, t.proof.columns()...)...); err != nil {
			return struct{}{}, err
		}
		if have := g.devices[id]; have != nil {
			have.audit, have.head, have.entries, have.broken, have.proof = true, t.head, t.entries, t.broken, t.proof
			copy(have.hash[:], hash)
		}
		return struct{}{}, nil
	})
	return err
}

// gather adds the events of an intake to rows.
func (g *group) gather(ctx context.Context, in *Intake, rows [][]any) ([][]any, error) {
	if len(in.Events) == 0 {
		return rows, nil
	}
	if _, err := g.tally(in); err != nil {
		return nil, err
	}
	for _, e := range in.Events {
		if err := number("sequence", e.Seq); err != nil {
			return nil, err
		}
		boot, err := g.w.boot(ctx, in.Device, e.Boot)
		if err != nil {
			return nil, err
		}
		row, err := converted([]any{in.Device, boot, e.Seq, e.Index, deviceMS(e.At), e.Peripheral, e.Category, e.Code, e.From, e.To, e.Mono, e.Count})
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// add adds rows by one statement that takes a list for each column, and says
// which of them are new.
func (d *dialect) add(ctx context.Context, query string, columns int, rows [][]any) (map[place3]bool, error) {
	fresh := map[place3]bool{}
	if len(rows) == 0 {
		return fresh, nil
	}
	args := make([]any, columns)
	for c := range args {
		list := make([]any, len(rows))
		for r, row := range rows {
			list[r] = row[c]
		}
		args[c] = list
	}
	found, err := d.Conn.Conn().Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	var k place3
	_, err = pgx.ForEachRow(found, []any{&k[0], &k[1], &k[2]}, func() error {
		fresh[k] = true
		return nil
	})
	return fresh, err
}
