package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const peripheralColumns = peripheralRow + `, d.online, d.last_seen, CASE WHEN d.label <> '' THEN d.label ELSE d.serial END, d.site FROM peripheral p JOIN device d ON d.id = p.device`

// scanPeripheral scans a peripheral as it is shown: while its till is lost,
// nothing is known of it, and nor is of one that is gone. A roll that should be
// at its end by now, at the latest, and is not, was predicted wrong.
func scanPeripheral(r scanner) (fleet.Peripheral, error) {
	var online bool
	var seen int64
	var label, site string
	p, err := scanStored(behindLast{r, []any{&online, &seen, &label, &site}})
	if err != nil {
		return fleet.Peripheral{}, err
	}
	p.Label, p.Site = label, site
	now := time.Now()
	if p.Paper != nil && (!p.Paper.Latest.After(now) || !online && !p.Paper.RunOutAt.After(now)) { // nobody knows what became of it
		p.Paper = nil
	}
	if !p.GoneAt.IsZero() {
		p.Last, p.Paper, p.Reads = p.Light, nil, nil
		p.Light = fleet.Light{Health: fleet.HealthUnknown, Reason: fleet.ReasonGone, Since: p.GoneAt}
		return p.Peripheral, nil
	}
	p.SeenAt = at(max(seen, ms(p.SeenAt)))
	if !online {
		p.Last = p.Light
		p.Light = fleet.Light{Health: fleet.HealthUnknown, Reason: fleet.ReasonTillOffline, Since: p.SeenAt}
	}
	return p.Peripheral, nil
}

// PeripheralsOf returns the peripherals that devices of tenant t have now, by
// device and id.
func (s *Store) PeripheralsOf(ctx context.Context, t fleet.TenantID, ids ...fleet.DeviceID) (map[fleet.DeviceID][]fleet.Peripheral, error) {
	of := make(map[fleet.DeviceID][]fleet.Peripheral, len(ids))
	if len(ids) == 0 {
		return of, nil
	}
	args := []any{t}
	for _, id := range ids {
		args = append(args, id)
	}
	rows, err := s.read.QueryContext(ctx, `SELECT `+peripheralColumns+` WHERE d.tenant = ? AND p.gone_at = 0 AND p.device IN (?`+strings.Repeat(`, ?`, len(ids)-1)+`) ORDER BY p.device, p.id`, args...) //nolint:gosec // joins constants
	all, err := list(rows, err, scanPeripheral)
	if err != nil {
		return nil, fmt.Errorf("peripherals of devices: %w", err)
	}
	for _, p := range all {
		of[p.Device] = append(of[p.Device], p)
	}
	return of, nil
}

// Peripherals lists the peripherals that devices of tenant t have now, by
// device and id.
func (s *Store) Peripherals(ctx context.Context, t fleet.TenantID, f fleet.PeripheralFilter, p fleet.Page) (items []fleet.Peripheral, next string, err error) {
	where := []string{`d.tenant = ?`, `d.former_of = ''`, `p.gone_at = 0`}
	args := []any{t}
	add := func(cond string, v ...any) { where, args = append(where, cond), append(args, v...) }
	// Few are in a state that somebody looks for: they are found by it. All others are read along the devices.
	device := `d.id`
	if f.Health != "" && f.Health != fleet.HealthUnknown || f.Reason != "" && f.Reason != fleet.ReasonTillOffline {
		device = `p.device`
	}
	if p.After != "" {
		after, id, ok := strings.Cut(p.After, "/")
		if !ok {
			return nil, "", fmt.Errorf("page after %.40q is not a key of this list: %w", p.After, fleet.ErrInvalid)
		}
		add(device+` >= ? AND (`+device+` > ? OR p.id > ?)`, after, after, id)
	}
	switch f.Health {
	case "":
	case fleet.HealthUnknown:
		add(`(d.online = 0 OR p.health = ?)`, f.Health)
	default:
		add(`d.online <> 0 AND p.health = ?`, f.Health)
	}
	switch f.Reason {
	case "":
	case fleet.ReasonTillOffline:
		add(`d.online = 0`)
	default:
		add(`d.online <> 0 AND p.reason = ?`, f.Reason)
	}
	if f.Category != "" {
		add(`p.category = ?`, f.Category)
	}
	if f.Site != "" {
		add(`d.site = ?`, f.Site)
	}
	if !f.RunOutBefore.IsZero() {
		add(`d.online <> 0 AND p.run_out_at > 0 AND p.run_out_at < ? AND p.run_out_to > ?`, ms(f.RunOutBefore), ms(time.Now()))
	}
	if f.Query != "" {
		like := "%" + strings.NewReplacer(`!`, `!!`, `%`, `!%`, `_`, `!_`).Replace(f.Query) + "%"
		add(`(lower(p.id) LIKE lower(?) ESCAPE '!' OR lower(p.model) LIKE lower(?) ESCAPE '!' OR lower(p.maker) LIKE lower(?) ESCAPE '!'
			OR lower(p.serial) LIKE lower(?) ESCAPE '!' OR lower(d.id) LIKE lower(?) ESCAPE '!' OR lower(d.label) LIKE lower(?) ESCAPE '!'
			OR lower(d.serial) LIKE lower(?) ESCAPE '!')`, like, like, like, like, like, like, like)
	}
	limit := p.Bounded()
	query := `SELECT ` + peripheralColumns + ` WHERE ` + strings.Join(where, ` AND `) + ` ORDER BY ` + device + `, p.id LIMIT ?` //nolint:gosec // joins the constants above
	rows, err := s.read.QueryContext(ctx, query, append(args, limit+1)...)
	items, err = list(rows, err, scanPeripheral)
	if err != nil {
		return nil, "", fmt.Errorf("list peripherals: %w", err)
	}
	items, next = page(items, limit, func(p fleet.Peripheral) string { return string(p.Device) + "/" + p.ID })
	return items, next, nil
}

// History returns one peripheral of a device of tenant t, also one that is gone,
// with its states that ended after a moment, the times in which its till was
// lost, and the outcomes of its health checks.
func (s *Store) History(ctx context.Context, t fleet.TenantID, device fleet.DeviceID, id string, since time.Time) (fleet.PeripheralHistory, error) {
	var h fleet.PeripheralHistory
	var err error
	h.Peripheral, err = scanPeripheral(s.read.QueryRowContext(ctx, `SELECT `+peripheralColumns+` WHERE p.device = ? AND p.id = ? AND d.tenant = ?`, device, id, t))
	if err == nil {
		h.Spans, err = s.spans(ctx, device, id, since)
	}
	if err == nil {
		h.Lost, err = s.spans(ctx, device, "", since)
	}
	if err == nil {
		h.Checks, err = s.healthChecks(ctx, device, id)
	}
	if err != nil {
		return fleet.PeripheralHistory{}, fmt.Errorf("peripheral %s of device %s: %w", id, device, err)
	}
	if l := h.Last; l.Health != "" && h.GoneAt.IsZero() { // lost
		h.Spans = append([]fleet.Span{{Health: l.Health, Reason: l.Reason, From: l.Since}}, h.Spans...)
		h.Lost = append([]fleet.Span{{Health: h.Health, Reason: h.Reason, From: h.Since}}, h.Lost...)
	} else if h.GoneAt.IsZero() {
		h.Spans = append([]fleet.Span{{Health: h.Health, Reason: h.Reason, From: h.Since}}, h.Spans...)
	}
	return h, nil
}

// spans are those that ended after a moment, newest first.
func (s *Store) spans(ctx context.Context, device fleet.DeviceID, id string, since time.Time) ([]fleet.Span, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT health, reason, from_at, to_at FROM peripheral_span WHERE device = ? AND peripheral = ? AND to_at > ? ORDER BY n DESC`, device, id, ms(since))
	return list(rows, err, func(r scanner) (v fleet.Span, err error) {
		var from, to int64
		err = r.Scan(&v.Health, &v.Reason, &from, &to)
		v.From, v.To = at(from), at(to)
		return v, err
	})
}

func (s *Store) healthChecks(ctx context.Context, device fleet.DeviceID, id string) ([]fleet.HealthCheck, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT at, level, ok, steps FROM health_check WHERE device = ? AND peripheral = ? ORDER BY n DESC LIMIT ?`, device, id, keptChecks)
	return list(rows, err, func(r scanner) (fleet.HealthCheck, error) {
		c := fleet.HealthCheck{Device: device, Peripheral: id}
		var when int64
		var steps string
		if err := r.Scan(&when, &c.Level, &c.OK, &steps); err != nil {
			return c, err
		}
		c.At = at(when)
		return c, json.Unmarshal([]byte(steps), &c.Steps)
	})
}

// PeripheralSeries lists what one peripheral of a device of tenant t counts and
// measures.
func (s *Store) PeripheralSeries(ctx context.Context, t fleet.TenantID, device fleet.DeviceID, id string) ([]SeriesInfo, error) {
	if err := s.owns(ctx, t, device); err != nil {
		return nil, fmt.Errorf("series: %w", err)
	}
	rows, err := s.read.QueryContext(ctx, `SELECT peripheral, name, last, last_at, count FROM series WHERE device = ? AND peripheral = ? ORDER BY name`, device, id)
	items, err := list(rows, err, scanSeries)
	if err != nil {
		return nil, fmt.Errorf("series of %s of %s: %w", id, device, err)
	}
	return items, nil
}
