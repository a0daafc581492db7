package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const (
	keptSpans    = 2000                // of one peripheral
	keptSpanTime = 31 * 24 * time.Hour // after their end
	keptChecks   = 20                  // of one peripheral
	keptGone     = 64                  // peripherals of one device that are not there any more
	lostAtLeast  = time.Minute         // a connection that is back before was only broken
)

// peripherals takes in how the peripherals of a device are. While the till says
// the same of all of them nothing is read nor written here.
func (g *group) peripherals(ctx context.Context, in *Intake, out *Outcome, mark []byte) error {
	sum := markOf(in.Report.Peripherals)
	if bytes.Equal(sum[:], mark) {
		return nil
	}
	if err := g.w.exec(ctx, `UPDATE state SET peripherals = ? WHERE device = ?`, sum[:], in.Device); err != nil {
		return err
	}
	rows, err := g.w.rows(ctx, `SELECT `+peripheralRow+` FROM peripheral p WHERE p.device = ?`, in.Device)
	all, err := list(rows, err, scanStored)
	if err != nil {
		return fmt.Errorf("peripherals: %w", err)
	}
	have := make(map[string]stored, len(all))
	for _, p := range all {
		have[p.ID] = p
	}
	told := map[string]bool{}
	for _, said := range in.Report.Peripherals {
		if told[said.ID] {
			continue
		}
		told[said.ID] = true
		was, known := have[said.ID]
		delete(have, said.ID)
		next := was.heard(said, in)
		if known && next.same(was) {
			continue
		}
		if err := g.w.putPeripheral(ctx, was, next, known); err != nil {
			return fmt.Errorf("peripheral %s: %w", said.ID, err)
		}
		out.Peripherals++
	}
	for _, id := range slices.Sorted(maps.Keys(have)) {
		if p := have[id]; p.GoneAt.IsZero() {
			next := p
			next.GoneAt, next.SeenAt = in.At, in.At
			have[id] = next
			if err := g.w.putPeripheral(ctx, p, next, true); err != nil {
				return fmt.Errorf("peripheral %s: %w", id, err)
			}
			out.Peripherals++
		}
	}
	return g.w.dropGone(ctx, in.Device, have)
}

// markOf is SHA-256 of all that a till says of its peripherals.
func markOf(all []fleet.Peripheral) [32]byte {
	b := make([]byte, 0, 4096)
	add := func(text ...string) {
		for _, s := range text {
			b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
		}
	}
	for _, p := range all {
		add(p.ID, p.Category, p.Driver, p.Maker, p.Model, p.Serial, p.Firmware, p.Claim, p.Key, p.Interface, p.Power, p.Said.Health, p.Said.Reason)
		b = strconv.AppendBool(b, p.Simulated)
		b = binary.BigEndian.AppendUint32(b, p.RollLines)
		b = binary.AppendVarint(b, p.Said.Since.UnixMilli())
		b = binary.AppendUvarint(b, uint64(len(p.Caps)))
		add(p.Caps...)
		b = binary.AppendUvarint(b, uint64(len(p.Sensors)))
		for _, k := range slices.Sorted(maps.Keys(p.Sensors)) {
			add(k, p.Sensors[k])
		}
	}
	return sha256.Sum256(b)
}

// stored is a peripheral with what only the store needs to know.
type stored struct {
	fleet.Peripheral
	was         fleet.Light // before the till began to ask anew
	spans       int64
	soon, worse bool
}

const peripheralRow = `p.device, p.id, p.category, p.driver, p.maker, p.model, p.serial, p.firmware, p.simulated, p.claim, p."key", p.interface, p.caps, p.roll_lines,
	p.power, p.sensors, p.said_health, p.said_reason, p.said_since, p.was_health, p.was_reason, p.was_since, p.health, p.reason, p.since, p.spans, p.first_at, p.seen_at, p.gone_at,
	p.soon, p.worse, p.run_out_at, p.run_out_from, p.run_out_to, p.confidence, p.lines_left, p.lines_per_hour, p.basis, p.reads, p.read_failures, p.read_error_rate, p.fleet_error_rate`

func scanStored(r scanner) (stored, error) {
	var p stored
	var caps, sensors string
	var said, was, since, first, seen, gone, out, from, to int64
	var paper fleet.Paper
	var reads fleet.Reads
	err := r.Scan(&p.Device, &p.ID, &p.Category, &p.Driver, &p.Maker, &p.Model, &p.Serial, &p.Firmware, &p.Simulated, &p.Claim, &p.Key, &p.Interface, &caps, &p.RollLines,
		&p.Power, &sensors, &p.Said.Health, &p.Said.Reason, &said, &p.was.Health, &p.was.Reason, &was, &p.Health, &p.Reason, &since, &p.spans, &first, &seen, &gone,
		&p.soon, &p.worse, &out, &from, &to, &paper.Confidence, &paper.LinesLeft, &paper.LinesPerHour, &paper.Basis, &reads.Reads, &reads.Failures, &reads.Rate, &reads.FleetRate)
	if err != nil {
		return stored{}, found(err)
	}
	if err := json.Unmarshal([]byte(caps), &p.Caps); err != nil {
		return stored{}, fmt.Errorf("capabilities of %s: %w", p.ID, err)
	}
	if err := json.Unmarshal([]byte(sensors), &p.Sensors); err != nil {
		return stored{}, fmt.Errorf("sensors of %s: %w", p.ID, err)
	}
	p.Said.Since, p.was.Since, p.Since, p.FirstAt, p.SeenAt, p.GoneAt = at(said), at(was), at(since), at(first), at(seen), at(gone)
	if paper.Basis != "" {
		paper.RunOutAt, paper.Earliest, paper.Latest = at(out), at(from), at(to)
		p.Paper = &paper
	}
	if reads.Reads > 0 {
		reads.Worse = p.worse
		p.Reads = &reads
	}
	return p, nil
}

// heard is a peripheral after its till has spoken of it.
func (p stored) heard(said fleet.Peripheral, in *Intake) stored {
	next := p
	next.Category, next.Driver, next.Maker, next.Model, next.Serial, next.Firmware = said.Category, said.Driver, said.Maker, said.Model, said.Serial, said.Firmware
	next.Simulated, next.Claim, next.Key, next.Interface, next.Caps, next.RollLines = said.Simulated, said.Claim, said.Key, said.Interface, said.Caps, said.RollLines
	next.Device, next.ID, next.Power, next.Sensors = in.Device, said.ID, said.Power, said.Sensors
	next.SeenAt, next.GoneAt = in.At, time.Time{}
	if p.FirstAt.IsZero() {
		next.FirstAt = in.At
	}
	back := !p.GoneAt.IsZero()
	if back {
		next.Light, next.was = fleet.Light{}, fleet.Light{}
	}
	if !p.Said.Same(said.Said) || back || p.FirstAt.IsZero() {
		next.Said = said.Said
		next.Said.Since = p.since(said.Said.Since, in)
	}
	switch {
	case next.Said.Same(p.Said) || back:
	case next.Said.NotYet() && !p.Said.NotYet() && !p.FirstAt.IsZero():
		next.was = p.Light
	case !next.Said.NotYet() && !p.Said.NotYet():
		next.was = fleet.Light{}
	}
	next.turn(next.Said.Since)
	if next.Said.NotYet() {
		return next
	}
	if next.was.Health != "" && next.Light.Same(next.was) { // the till only asked anew: it has been so all the time
		next.Light.Since = next.was.Since
	}
	next.was = fleet.Light{}
	return next
}

// since is when a state began by the clock of the till, if that can be: after
// the state before, not after it was told, and by a clock that agrees with ours
// to a day.
func (p stored) since(said time.Time, in *Intake) time.Time {
	if off := in.At.Sub(in.Report.Sent); said.UnixMilli() <= 0 || off < -24*time.Hour || off > 24*time.Hour {
		return in.At
	}
	if said.Before(p.Since) {
		said = p.Since
	}
	if !p.GoneAt.IsZero() && said.Before(p.GoneAt) {
		said = p.GoneAt
	}
	if said.After(in.At) {
		said = in.At
	}
	return said
}

// turn rolls the light up; when it changes, from a moment on.
func (p *stored) turn(from time.Time) {
	l := fleet.Roll(p.Peripheral, p.soon, p.worse)
	if p.Light.Same(l) {
		return
	}
	l.Since = from
	p.Light = l
}

func (p stored) same(o stored) bool {
	a, b := p.Peripheral, o.Peripheral
	return a.Category == b.Category && a.Driver == b.Driver && a.Maker == b.Maker && a.Model == b.Model && a.Serial == b.Serial && a.Firmware == b.Firmware &&
		a.Simulated == b.Simulated && a.Claim == b.Claim && a.Key == b.Key && a.Interface == b.Interface && slices.Equal(a.Caps, b.Caps) && a.RollLines == b.RollLines &&
		a.Power == b.Power && maps.Equal(a.Sensors, b.Sensors) && a.Said == b.Said && a.Light == b.Light && p.was == o.was && a.GoneAt.Equal(b.GoneAt)
}

// putPeripheral writes a row that changed, and what its light was before.
func (w *writer) putPeripheral(ctx context.Context, was, p stored, known bool) error {
	if known && was.GoneAt.IsZero() && (was.Light != p.Light || !p.GoneAt.IsZero()) {
		until := p.Since
		if !p.GoneAt.IsZero() {
			until = p.GoneAt
		}
		switch {
		case p.GoneAt.IsZero() && until.Before(was.Since): // what was cut is taken up again
			if err := w.exec(ctx, `DELETE FROM peripheral_span WHERE device = ? AND peripheral = ? AND from_at >= ?`, p.Device, p.ID, ms(until)); err != nil {
				return err
			}
		case until.After(was.Since):
			p.spans++
			if err := w.addSpan(ctx, p.Device, p.ID, p.spans, was.Health, was.Reason, was.Since, until); err != nil {
				return err
			}
		}
	}
	sensors, caps := p.Sensors, p.Caps
	if sensors == nil {
		sensors = map[string]string{}
	}
	if caps == nil {
		caps = []string{}
	}
	return w.exec(ctx, `INSERT INTO peripheral (device, id, category, driver, maker, model, serial, firmware, simulated, claim, "key", interface, caps, roll_lines,
		power, sensors, said_health, said_reason, said_since, was_health, was_reason, was_since, health, reason, since, spans, first_at, seen_at, gone_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (device, id) DO UPDATE SET category = excluded.category, driver = excluded.driver, maker = excluded.maker, model = excluded.model, serial = excluded.serial,
		firmware = excluded.firmware, simulated = excluded.simulated, claim = excluded.claim, "key" = excluded."key", interface = excluded.interface, caps = excluded.caps,
		roll_lines = excluded.roll_lines, power = excluded.power, sensors = excluded.sensors, said_health = excluded.said_health, said_reason = excluded.said_reason,
		said_since = excluded.said_since, was_health = excluded.was_health, was_reason = excluded.was_reason, was_since = excluded.was_since, health = excluded.health,
		reason = excluded.reason, since = excluded.since, spans = excluded.spans, seen_at = excluded.seen_at, gone_at = excluded.gone_at`,
		p.Device, p.ID, p.Category, p.Driver, p.Maker, p.Model, p.Serial, p.Firmware, p.Simulated, p.Claim, p.Key, p.Interface, toJSON(caps), p.RollLines,
		p.Power, toJSON(sensors), p.Said.Health, p.Said.Reason, ms(p.Said.Since), p.was.Health, p.was.Reason, ms(p.was.Since), p.Health, p.Reason, ms(p.Since),
		p.spans, ms(p.FirstAt), ms(p.SeenAt), ms(p.GoneAt))
}

// addSpan keeps a time that is over, and drops a few of those that are too old
// or too many.
func (w *writer) addSpan(ctx context.Context, device fleet.DeviceID, peripheral string, n int64, health, reason string, from, to time.Time) error {
	if err := w.exec(ctx, `INSERT INTO peripheral_span (device, peripheral, n, health, reason, from_at, to_at) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
		device, peripheral, n, health, reason, ms(from), ms(to)); err != nil {
		return err
	}
	return w.exec(ctx, `DELETE FROM peripheral_span WHERE device = ? AND peripheral = ? AND (n <= ? OR to_at < ?)
		AND n <= (SELECT MIN(n) FROM peripheral_span WHERE device = ? AND peripheral = ?) + 8`,
		device, peripheral, n-keptSpans, ms(to.Add(-keptSpanTime)), device, peripheral)
}

// lost notes that a device is back that was lost.
func (w *writer) lost(ctx context.Context, device fleet.DeviceID, back time.Time) error {
	var online bool
	var seen int64
	if err := w.row(ctx, `SELECT online, last_seen FROM device WHERE id = ?`, device).Scan(&online, &seen); err != nil {
		return found(err)
	}
	if online || seen == 0 || back.Sub(at(seen)) < lostAtLeast {
		return nil
	}
	var n int64
	if err := w.row(ctx, `UPDATE device SET spans = spans + 1 WHERE id = ? RETURNING spans`, device).Scan(&n); err != nil {
		return err
	}
	return w.addSpan(ctx, device, "", n, fleet.HealthUnknown, fleet.ReasonTillOffline, at(seen), back)
}

// dropGone drops the peripherals that left a device first when there are too
// many of them, with all that is known of them.
func (w *writer) dropGone(ctx context.Context, device fleet.DeviceID, gone map[string]stored) error {
	if len(gone) <= keptGone {
		return nil
	}
	all := slices.SortedFunc(maps.Values(gone), func(a, b stored) int { return a.GoneAt.Compare(b.GoneAt) })
	for _, p := range all[:len(all)-keptGone] {
		for _, query := range []string{
			`DELETE FROM peripheral WHERE device = ? AND id = ?`,
			`DELETE FROM peripheral_span WHERE device = ? AND peripheral = ?`,
			`DELETE FROM health_check WHERE device = ? AND peripheral = ?`,
		} {
			if err := w.exec(ctx, query, device, p.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// checks keeps the outcomes of health checks, the newest of each peripheral.
func (g *group) checks(ctx context.Context, in *Intake, out *Outcome) error {
	for _, c := range in.Checks {
		if err := number("sequence", c.Seq); err != nil {
			return err
		}
		boot, err := g.w.boot(ctx, in.Device, c.Boot)
		if err != nil {
			return err
		}
		n, err := g.w.changed(ctx, `INSERT INTO health_check (device, boot, seq, idx, at, peripheral, level, ok, steps) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
			in.Device, boot, c.Seq, c.Index, deviceMS(c.At), c.Peripheral, c.Level, c.OK, toJSON(c.Steps))
		if err != nil {
			return fmt.Errorf("health check: %w", err)
		}
		if n == 0 {
			out.Duplicates++
			continue
		}
		out.NewChecks++
		if err := g.w.exec(ctx, `DELETE FROM health_check WHERE device = ? AND peripheral = ? AND n <= (SELECT n FROM health_check
			WHERE device = ? AND peripheral = ? ORDER BY n DESC LIMIT 1 OFFSET ?)`, in.Device, c.Peripheral, in.Device, c.Peripheral, keptChecks); err != nil {
			return fmt.Errorf("health check: %w", err)
		}
	}
	return nil
}
