package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const (
	usageBoots   = 4    // of one device that are read on; what older ones still have comes too late
	usageMore    = 64   // when it was away, and switched off each night
	usageSamples = 4096 // of one boot that are read at once
	usageEvents  = 1000
	keptBaseline = 30 // days

	usageQuery = `SELECT d.tenant, COALESCE(s.zone, ''), COALESCE(u.cursor, '{}'), COALESCE(u.body, '')
		FROM device d LEFT JOIN site s ON s.tenant = d.tenant AND s.name = d.site LEFT JOIN usage u ON u.device = d.id WHERE d.id = ?`
	bootsQuery   = `SELECT id, name, turn, front FROM boot WHERE device = ? AND turn > 0 ORDER BY turn DESC LIMIT ?`
	samplesQuery = `SELECT s.seq, s.idx, r.peripheral, r.name, s.at, s.value, s.epoch, s.kept FROM sample s CROSS JOIN series r
		WHERE s.boot = ? AND s.seq > ? AND s.seq <= ? AND r.id = s.series AND r.name IN ('ReceiptLineFeedCount', 'ReceiptLinePrintedCount', 'M_CardInsertedCount', 'M_CardResetFailedCount')
		ORDER BY s.seq, s.idx LIMIT ?`
	eventsQuery  = `SELECT n, at, peripheral, category, code FROM event WHERE device = ? AND n > ? ORDER BY n LIMIT ?`
	countedQuery = `SELECT ` + peripheralRow + ` FROM peripheral p WHERE p.device = ? AND p.category IN ('POSPrinter', 'SmartCardRW') ORDER BY p.id`
)

// Usage returns how the printers and readers of a device are used. It is for the
// worker that derives from it, whatever the tenant.
func (s *Store) Usage(ctx context.Context, device fleet.DeviceID) (fleet.Usage, error) {
	u := fleet.Usage{Device: device, Soon: map[string]bool{}}
	if err := s.usage(ctx, device, &u); err != nil {
		return fleet.Usage{}, fmt.Errorf("usage of device %s: %w", device, err)
	}
	return u, nil
}

func (s *Store) usage(ctx context.Context, device fleet.DeviceID, u *fleet.Usage) error {
	var cursor, body string
	if err := s.stmts.usage.QueryRowContext(ctx, device).Scan(&u.Tenant, &u.Zone, &cursor, &body); err != nil {
		return found(err)
	}
	u.Body = []byte(body)
	var from fleet.Cursor
	if err := json.Unmarshal([]byte(cursor), &from); err != nil {
		return fmt.Errorf("cursor: %w", err)
	}
	rows, err := s.stmts.counted.QueryContext(ctx, device)
	all, err := list(rows, err, scanStored)
	if err != nil {
		return err
	}
	for _, p := range all {
		u.Peripherals = append(u.Peripherals, p.Peripheral)
		u.Soon[p.ID] = p.soon
	}
	rows, err = s.stmts.boots.QueryContext(ctx, device, usageMore)
	boots, err := list(rows, err, func(r scanner) (b run, err error) { return b, r.Scan(&b.id, &b.name, &b.turn, &b.front) })
	if err != nil {
		return err
	}
	u.Next = fleet.Cursor{Boots: map[int64]int64{}, Event: from.Event}
	for _, b := range slices.Backward(boots) {
		if _, known := from.Boots[b.turn]; !known && len(from.Boots) > 0 && b.turn < slices.Min(slices.Collect(maps.Keys(from.Boots))) {
			continue
		}
		u.Next.Boots[b.turn] = from.Boots[b.turn]
		if u.More { // one run after the other
			continue
		}
		if err := s.usageSamples(ctx, b, u); err != nil {
			return err
		}
	}
	rows, err = s.stmts.events.QueryContext(ctx, device, from.Event, usageEvents)
	u.Events, err = list(rows, err, func(r scanner) (fleet.PeripheralEvent, error) {
		e := fleet.PeripheralEvent{Device: device}
		var when int64
		err := r.Scan(&u.Next.Event, &when, &e.Peripheral, &e.Category, &e.Code)
		e.At = at(when)
		return e, err
	})
	if len(u.Events) == usageEvents { // what was counted is for when all is known that happened meanwhile
		u.Samples, u.More = nil, true
		for turn := range u.Next.Boots {
			u.Next.Boots[turn] = from.Boots[turn]
		}
	}
	if !u.More && len(boots) > usageBoots { // of the others all is read
		maps.DeleteFunc(u.Next.Boots, func(turn, _ int64) bool { return turn < boots[usageBoots-1].turn })
	}
	return err
}

// run is a boot whose telemetry is whole up to its front.
type run struct {
	id, turn, front int64
	name            []byte
}

// usageSamples reads the samples of a boot behind the cursor, as far as nothing
// before them is missing: whole batches, so that the cursor can stand between
// two.
func (s *Store) usageSamples(ctx context.Context, b run, u *fleet.Usage) error {
	rows, err := s.stmts.samples.QueryContext(ctx, b.id, u.Next.Boots[b.turn], b.front, usageSamples)
	batch, err := list(rows, err, func(r scanner) (fleet.Sample, error) {
		v := fleet.Sample{Device: u.Device}
		var when int64
		err := r.Scan(&v.Seq, &v.Index, &v.Peripheral, &v.Name, &when, &v.Value, &v.Epoch, &v.Kept)
		copy(v.Boot[:], b.name)
		v.At = at(when)
		return v, err
	})
	if err != nil || len(batch) == 0 {
		return err
	}
	last := batch[len(batch)-1].Seq
	if len(batch) == usageSamples {
		u.More = true
		cut := slices.IndexFunc(batch, func(v fleet.Sample) bool { return v.Seq == last })
		batch = batch[:cut] // a batch has fewer samples than are read at once
		last = batch[cut-1].Seq
	}
	u.Samples = append(u.Samples, batch...)
	u.Next.Boots[b.turn] = int64(last) // #nosec G115 -- as it was stored
	return nil
}

// Counting lists the devices with a printer or reader, by id. It is for the
// worker when it starts.
func (s *Store) Counting(ctx context.Context, p fleet.Page) (ids []fleet.DeviceID, next string, err error) {
	limit := p.Bounded()
	rows, err := s.read.QueryContext(ctx, `SELECT DISTINCT device FROM peripheral WHERE device > ? AND gone_at = 0 AND category IN ('POSPrinter', 'SmartCardRW') ORDER BY device LIMIT ?`, p.After, limit+1)
	ids, err = list(rows, err, func(r scanner) (id fleet.DeviceID, err error) { return id, r.Scan(&id) })
	if err != nil {
		return nil, "", fmt.Errorf("devices that count: %w", err)
	}
	ids, next = page(ids, limit, func(id fleet.DeviceID) string { return string(id) })
	return ids, next, nil
}

// Baseline is what all readers of a model have read since a day.
func (s *Store) Baseline(ctx context.Context, t fleet.TenantID, model string, since int64) (fleet.ReadDay, error) {
	d := fleet.ReadDay{Model: model, Day: since}
	err := s.read.QueryRowContext(ctx, `SELECT COALESCE(SUM(reads), 0), COALESCE(SUM(failures), 0) FROM read_baseline WHERE tenant = ? AND model = ? AND day >= ?`,
		t, model, since).Scan(&d.Reads, &d.Failures)
	if err != nil {
		return d, fmt.Errorf("reads of %s: %w", model, err)
	}
	return d, nil
}

// Derive keeps what was derived for some devices, all at once, and returns those
// of which something shows that did not before. A device that is not there any
// more is passed over.
func (s *Store) Derive(ctx context.Context, all []fleet.Derived, now time.Time) (changed []fleet.DeviceID, err error) {
	err = s.tx(ctx, func(ctx context.Context, w *writer) error {
		changed = nil
		for _, d := range all {
			n, err := w.changed(ctx, `INSERT INTO usage (device, cursor, body) SELECT id, ?, ? FROM device WHERE id = ? AND tenant = ?
				ON CONFLICT (device) DO UPDATE SET cursor = excluded.cursor, body = excluded.body`, toJSON(d.Cursor), string(d.Body), d.Device, d.Tenant)
			if err != nil {
				return err
			}
			if n == 0 {
				continue
			}
			for _, r := range d.Reads {
				if err := w.addReads(ctx, d.Tenant, r, now.Unix()/(24*60*60)); err != nil {
					return err
				}
			}
			for _, p := range d.Peripherals {
				if err := w.derive(ctx, d.Device, p, now); err != nil {
					return fmt.Errorf("peripheral %s of device %s: %w", p.ID, d.Device, err)
				}
			}
			if len(d.Peripherals) > 0 {
				changed = append(changed, d.Device)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("keep what was derived: %w", err)
	}
	return changed, nil
}

func (w *writer) addReads(ctx context.Context, t fleet.TenantID, r fleet.ReadDay, today int64) error {
	if err := w.exec(ctx, `INSERT INTO read_baseline (tenant, model, day, reads, failures) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (tenant, model, day) DO UPDATE SET reads = read_baseline.reads + excluded.reads, failures = read_baseline.failures + excluded.failures`,
		t, r.Model, r.Day, r.Reads, r.Failures); err != nil {
		return err
	}
	return w.exec(ctx, `DELETE FROM read_baseline WHERE tenant = ? AND model = ? AND day < ?`, t, r.Model, today-keptBaseline)
}

func (w *writer) derive(ctx context.Context, device fleet.DeviceID, d fleet.DerivedPeripheral, now time.Time) error {
	p, err := scanStored(w.row(ctx, `SELECT `+peripheralRow+` FROM peripheral p WHERE p.device = ? AND p.id = ?`, device, d.ID))
	if err != nil {
		return err
	}
	var paper fleet.Paper
	if d.Paper != nil {
		paper = *d.Paper
	}
	var reads fleet.Reads
	if d.Reads != nil {
		reads = *d.Reads
	}
	if err := w.light(ctx, p, d.Soon, reads.Worse, now); err != nil {
		return err
	}
	return w.exec(ctx, `UPDATE peripheral SET run_out_at = ?, run_out_from = ?, run_out_to = ?, confidence = ?, lines_left = ?, lines_per_hour = ?, basis = ?,
		reads = ?, read_failures = ?, read_error_rate = ?, fleet_error_rate = ? WHERE device = ? AND id = ?`,
		ms(paper.RunOutAt), ms(paper.Earliest), ms(paper.Latest), paper.Confidence, paper.LinesLeft, paper.LinesPerHour, paper.Basis,
		reads.Reads, reads.Failures, reads.Rate, reads.FleetRate, device, d.ID)
}

// light sets what is derived of a peripheral's light, from now on.
func (w *writer) light(ctx context.Context, p stored, soon, worse bool, now time.Time) error {
	if p.soon == soon && p.worse == worse {
		return nil
	}
	next := p
	next.soon, next.worse = soon, worse
	if now.Before(p.Since) {
		now = p.Since
	}
	if p.GoneAt.IsZero() { // of what is gone the light stays as it was last
		next.turn(now)
	}
	if !next.same(p) {
		if err := w.putPeripheral(ctx, p, next, true); err != nil {
			return err
		}
	}
	return w.exec(ctx, `UPDATE peripheral SET soon = ?, worse = ? WHERE device = ? AND id = ?`, soon, worse, p.Device, p.ID)
}

// RunningOut turns the light of printers whose paper is predicted to end before
// a moment and that did not show it yet, at most so many at once, and returns
// their devices. Only a prediction of which one is that sure counts, and none
// that was wrong: by which the roll would be at its end already.
func (s *Store) RunningOut(ctx context.Context, before time.Time, sure float64, limit int, now time.Time) ([]fleet.DeviceID, error) {
	const query = ` FROM peripheral p WHERE p.run_out_at > 0 AND p.run_out_at < ? AND p.run_out_to > ? AND p.soon = 0 AND p.gone_at = 0 AND p.confidence >= ?`
	var one int
	err := s.read.QueryRowContext(ctx, `SELECT 1`+query+` LIMIT 1`, ms(before), ms(now), sure).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil // the writer is not troubled for nothing
	}
	of := map[fleet.DeviceID]bool{}
	if err == nil {
		err = s.tx(ctx, func(ctx context.Context, w *writer) error {
			rows, err := w.rows(ctx, `SELECT `+peripheralRow+query+` ORDER BY p.run_out_at LIMIT ?`, ms(before), ms(now), sure, limit)
			all, err := list(rows, err, scanStored)
			if err != nil {
				return err
			}
			for _, p := range all {
				of[p.Device] = true
				if err := w.light(ctx, p, true, p.worse, now); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err != nil {
		return nil, fmt.Errorf("printers whose paper ends soon: %w", err)
	}
	return slices.Sorted(maps.Keys(of)), nil
}
