package telemetry

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
)

// flush puts what has been gathered into the spool. What the spool refuses is
// lost and counted there; measuring goes on.
func (m *Monitor) flush(ctx context.Context) {
	if m.dropped > m.toldDrop {
		m.toldDrop = m.dropped
		m.samples = append(m.samples, wire.Sample{At: time.Now().UnixMilli(), Name: panDropped, Value: float64(m.dropped)})
	}
	for batch := range slices.Chunk(m.samples, wire.MaxBatch) {
		m.put(ctx, classTelemetry, wire.Telemetry, map[string]uint64{samplesCounter: uint64(len(batch))}, func(h wire.Head) wire.Message {
			return &wire.TelemetryBatch{Head: h, Samples: batch}
		})
	}
	for batch := range slices.Chunk(m.events, wire.MaxBatch) {
		m.put(ctx, classTelemetry, wire.Event, nil, func(h wire.Head) wire.Message {
			return &wire.EventBatch{Head: h, Events: batch}
		})
	}
	m.samples, m.events, m.sampleSize, m.eventSize = m.samples[:0], m.events[:0], 0, 0
}

// tell puts the state of the whole; false when it is not known yet.
func (m *Monitor) tell(ctx context.Context) bool {
	r := wire.StateReport{Peripherals: m.Snapshot(), SpoolDepth: m.o.Spool.Depth(), SpoolShed: m.o.Spool.Shed()}
	if len(r.Peripherals) > wire.MaxPeripherals {
		r.Peripherals = r.Peripherals[:wire.MaxPeripherals]
	}
	var err error
	if r.Samples, err = m.o.Spool.Counter(ctx, samplesCounter); err != nil {
		m.o.Log.Error("sample counter cannot be read", "error", err)
	}
	if !m.o.Fill(&r) {
		return false
	}
	r.Head = wire.Head{V: wire.Version, Boot: wire.Boot{1}, Seq: 1}
	if _, err := wire.Encode(&r); errors.Is(err, wire.ErrLimit) { // too much to say: who and how go before what to do
		for i := range r.Peripherals {
			p := &r.Peripherals[i]
			p.Sensors, p.Advice, p.Maker, p.Firmware = nil, "", "", ""
			p.Model, p.Serial, p.Reason = cut(p.Model, wire.MaxName), cut(p.Serial, wire.MaxName), cut(p.Reason, wire.MaxName)
		}
	}
	m.put(ctx, classLatest, wire.State, nil, func(h wire.Head) wire.Message {
		r.Head = h
		return &r
	})
	return true
}

func (m *Monitor) put(ctx context.Context, class string, c wire.Channel, counts map[string]uint64, message func(wire.Head) wire.Message) {
	err := m.o.Spool.Compose(ctx, class, string(c), func() ([]byte, error) { return wire.Encode(message(m.o.Next())) }, counts)
	if err == nil || ctx.Err() != nil {
		return
	}
	if now := time.Now(); now.Sub(m.lastLost) > time.Minute {
		m.lastLost = now
		m.o.Log.Error("message not spooled; telemetry is being lost", "channel", string(c), "error", err)
	}
}

// flaps counts how often a code came within the present minute.
type flaps map[flap]int

type flap struct{ peripheral, category, code string }

const flapLimit = 5 // of one code of one peripheral in a minute; more are told as a count

// pass reports whether e is to be told by itself.
func (f flaps) pass(e wire.PeripheralEvent) bool {
	k := flap{e.Peripheral, e.Category, e.Code}
	f[k]++
	return f[k] <= flapLimit
}

// collapse tells the counts of the minute that ends and begins the next.
func (m *Monitor) collapse(ctx context.Context) {
	now := time.Now().UnixMilli()
	for k, n := range m.flaps {
		if n > flapLimit {
			m.addEvent(ctx, wire.PeripheralEvent{
				At: now, Peripheral: k.peripheral, Category: k.category, Code: k.code,
				From: "M_FLAPPING", To: strconv.Itoa(n) + " times a minute",
			})
		}
	}
	for k, n := range m.faults {
		if n > flapLimit {
			m.record(ctx, k.code, "warn", k.peripheral, map[string]string{"category": k.category, "flapping": strconv.Itoa(n) + " times a minute"})
		}
	}
	clear(m.flaps)
	clear(m.faults)
}

// clean makes a peripheral fit for the contract and blanks what may be a card
// number. A driver reads these texts from hardware, which may say anything.
func (m *Monitor) clean(p wire.Peripheral) wire.Peripheral {
	for _, s := range []*string{&p.ID, &p.Category, &p.Driver, &p.Power, &p.Health} {
		*s = identifier(m.guarded(*s))
	}
	for _, s := range []*string{&p.Maker, &p.Model, &p.Serial, &p.Firmware, &p.Reason, &p.Advice} {
		*s = cut(m.guarded(*s), wire.MaxText)
	}
	for s, otherwise := range map[*string]string{&p.Category: "Unknown", &p.Driver: "unknown", &p.Power: "PS_UNKNOWN", &p.Health: "Unknown"} {
		if *s == "" {
			*s = otherwise
		}
	}
	sensors := make(map[string]string, len(p.Sensors))
	for _, k := range slices.Sorted(maps.Keys(p.Sensors)) {
		v := p.Sensors[k]
		if name := identifier(m.guarded(k)); name != "" && len(sensors) < 32 && (v == "Yes" || v == "No" || v == "Unknown") {
			sensors[name] = v
		}
	}
	p.Sensors = sensors
	if len(sensors) == 0 {
		p.Sensors = nil
	}
	return p
}

func (m *Monitor) guarded(s string) string {
	if s != "" && hal.MayHoldPAN(s) {
		m.dropped++
		return ""
	}
	return s
}

// identifier makes s a name that the contract takes.
func identifier(s string) string {
	s = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '_'
		}
		return r
	}, s)
	return s[:min(len(s), wire.MaxName)]
}

// cut shortens s to limit bytes of UTF-8.
func cut(s string, limit int) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit]
}
