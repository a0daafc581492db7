package store

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const (
	slotLen    = 10 * time.Minute // in which trouble of one device is counted together
	keptSlots  = int64(30 * 24 * time.Hour / slotLen)
	trustedAge = time.Hour // of what a device tells late: when it was off, its hours are not counted either
)

func slotOf(ms int64) int64 { return ms / slotLen.Milliseconds() }

// trouble counts what went wrong on a device.
func (w *writer) trouble(ctx context.Context, device fleet.DeviceID, when time.Time, faults, reconnects int, crashes uint64) error {
	slot := slotOf(ms(when))
	if err := w.exec(ctx, `INSERT INTO trouble (slot, device, faults, reconnects, crashes) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (slot, device) DO UPDATE SET faults = trouble.faults + excluded.faults, reconnects = trouble.reconnects + excluded.reconnects, crashes = trouble.crashes + excluded.crashes`,
		slot, device, faults, reconnects, crashes); err != nil || slot <= w.slot {
		return err
	}
	w.slot = slot
	return w.exec(ctx, `DELETE FROM trouble WHERE slot < ?`, slot-keptSlots)
}

// RolloutHealth says what happened to the devices of a rollout, by model, and
// with an empty model to all: since they run the release, against what happened
// to those that were not offered it yet. The slot in which a device got the
// release counts for neither: what the update itself brought, a reconnect say,
// is no trouble.
//
// Trouble has its times: a shop opens, a service starts anew. So each slot of
// the updated devices is set against the same slot of the others, and slots in
// which there were no others are left out, if there were some in any: the
// counts of Control are weighted to that end.
//
// It is for the rollout loop and for whoever has read the rollout by its
// tenant.
func (s *Store) RolloutHealth(ctx context.Context, id fleet.RolloutID) (map[string]fleet.Health, error) {
	return s.RolloutHealthSince(ctx, id, time.Time{})
}

// RolloutHealthSince is RolloutHealth of the slots that began after a moment.
func (s *Store) RolloutHealthSince(ctx context.Context, id fleet.RolloutID, since time.Time) (map[string]fleet.Health, error) {
	from := int64(0)
	if !since.IsZero() {
		from = slotOf(ms(since)) + 1
	}
	models, err := s.exposed(ctx, id, from)
	if err == nil {
		err = s.troubled(ctx, id, models)
	}
	if err != nil {
		return nil, fmt.Errorf("health of rollout %s: %w", id, err)
	}
	health := map[string]fleet.Health{}
	all := &exposure{updated: map[int64]*slot{}, control: map[int64]*slot{}}
	for model, m := range models {
		all.devices[0], all.devices[1] = all.devices[0]+m.devices[0], all.devices[1]+m.devices[1]
		add(all.updated, m.updated)
		add(all.control, m.control)
		if model != "" {
			health[model] = m.health()
		}
	}
	health[""] = all.health()
	return health, nil
}

// slot is what some devices went through in one slot.
type slot struct {
	devices float64 // there in all of it
	trouble [3]float64
}

// exposure is what the devices of a model went through.
type exposure struct {
	devices          [2]int // updated, control
	updated, control map[int64]*slot
}

func add(to, from map[int64]*slot) {
	for n, s := range from {
		sum := of(to, n)
		sum.devices += s.devices
		for k := range s.trouble {
			sum.trouble[k] += s.trouble[k]
		}
	}
}

// exposed reads when how many devices were there, until they were heard last.
func (s *Store) exposed(ctx context.Context, id fleet.RolloutID, from int64) (map[string]*exposure, error) {
	models := map[string]*exposure{}
	length := slotLen.Milliseconds()
	whole := slotOf(ms(time.Now())) - 1 // the last slot that is over
	rows, err := s.read.QueryContext(ctx, `SELECT model, good, first, CASE WHEN online <> 0 OR last > ? THEN ? ELSE last END AS until, COUNT(*)
		FROM (SELECT d.model, d.online, CASE WHEN e.state IN ('SUCCEEDED', 'ALREADY_INSTALLED') THEN 1 ELSE 0 END AS good,
			CASE WHEN e.state IN ('SUCCEEDED', 'ALREADY_INSTALLED') THEN e.entered_at / ? + 1 WHEN r.started_at > d.enrolled_at THEN r.started_at / ? ELSE d.enrolled_at / ? + 1 END AS first,
			d.last_seen / ? AS last
			FROM rollout r JOIN execution e ON e.rollout = r.id JOIN device d ON d.id = e.device
			WHERE r.id = ? AND (e.state IN ('SUCCEEDED', 'ALREADY_INSTALLED') OR e.state = 'QUEUED' AND e.attempt = 0)) AS x
		GROUP BY model, good, first, until`, whole, whole, length, length, length, length, id)
	_, err = list(rows, err, func(r scanner) (struct{}, error) {
		var model string
		var good bool
		var first, until int64
		var n int
		err := r.Scan(&model, &good, &first, &until, &n)
		m := models[model]
		if m == nil {
			m = &exposure{updated: map[int64]*slot{}, control: map[int64]*slot{}}
			models[model] = m
		}
		slots, which := m.control, 1
		if good {
			slots, which = m.updated, 0
		}
		m.devices[which] += n
		if first = max(first, whole-keptSlots, from); first <= until { // for now, how many more there are than in the slot before
			of(slots, first).devices += float64(n)
			of(slots, until+1).devices -= float64(n)
		}
		return struct{}{}, err
	})
	for _, m := range models {
		for _, slots := range []map[int64]*slot{m.updated, m.control} {
			n := 0.0
			for k := whole - keptSlots; k <= whole; k++ {
				if d := slots[k]; d != nil {
					n += d.devices
				}
				switch {
				case n > 0:
					of(slots, k).devices = n
				default:
					delete(slots, k)
				}
			}
			delete(slots, whole+1)
		}
	}
	return models, err
}

// of returns a slot, new if need be.
func of(slots map[int64]*slot, n int64) *slot {
	if slots[n] == nil {
		slots[n] = &slot{}
	}
	return slots[n]
}

// troubled adds what went wrong in those slots.
func (s *Store) troubled(ctx context.Context, id fleet.RolloutID, models map[string]*exposure) error {
	length := slotLen.Milliseconds()
	// In this order: trouble is found by its time, which would be all of it once more for each device.
	rows, err := s.read.QueryContext(ctx, `SELECT d.model, CASE WHEN e.state = 'QUEUED' THEN 0 ELSE 1 END AS good, t.slot, SUM(t.faults), SUM(t.reconnects), SUM(t.crashes)
		FROM rollout r CROSS JOIN trouble t CROSS JOIN execution e CROSS JOIN device d
		WHERE t.slot >= r.started_at / ? AND r.id = ? AND e.rollout = r.id AND e.device = t.device AND d.id = e.device AND t.slot > d.enrolled_at / ? AND (e.state IN ('SUCCEEDED', 'ALREADY_INSTALLED') AND t.slot > e.entered_at / ? OR e.state = 'QUEUED' AND e.attempt = 0)
		GROUP BY d.model, good, t.slot`, length, id, length, length)
	_, err = list(rows, err, func(r scanner) (struct{}, error) {
		var model string
		var good bool
		var n int64
		var t [3]float64
		err := r.Scan(&model, &good, &n, &t[0], &t[1], &t[2])
		m := models[model]
		if m == nil { // came between the two reads
			return struct{}{}, err
		}
		slots := m.control
		if good {
			slots = m.updated
		}
		if slots[n] != nil { // else nobody was there in all of it
			slots[n].trouble = t
		}
		return struct{}{}, err
	})
	return err
}

// health sets one against the other.
func (m *exposure) health() fleet.Health {
	var updated, control, expected slot
	both := 0.0
	for n, u := range m.updated {
		c := m.control[n]
		if c == nil || c.devices == 0 {
			continue
		}
		both += u.devices
		control.devices += c.devices
		for k := range u.trouble {
			updated.trouble[k] += u.trouble[k]
			expected.trouble[k] += u.devices * c.trouble[k] / c.devices
		}
	}
	updated.devices = both
	if both == 0 { // nothing to compare with: what there is
		for _, u := range m.updated {
			updated.devices += u.devices
			for k := range u.trouble {
				updated.trouble[k] += u.trouble[k]
			}
		}
	} else {
		for k := range expected.trouble {
			control.trouble[k] = expected.trouble[k] * control.devices / both
		}
	}
	return fleet.Health{Updated: faults(m.devices[0], updated), Control: faults(m.devices[1], control)}
}

func faults(devices int, s slot) fleet.Faults {
	n := func(v float64) int { return int(math.Round(v)) }
	return fleet.Faults{Devices: devices, Hours: s.devices * slotLen.Hours(), Peripheral: n(s.trouble[0]), Reconnects: n(s.trouble[1]), Crashes: n(s.trouble[2])}
}
