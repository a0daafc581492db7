package telemetry

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/tillward/tillward/cloud/wire"
)

// flush puts what has been gathered into the spool. What the spool refuses is
// lost and counted there; measuring goes on.
func (m *Monitor) flush(ctx context.Context) {
	dropped := m.dropped.Load()
	if m.o.Dropped != nil {
		dropped += m.o.Dropped()
	}
	if dropped > m.toldDrop {
		m.toldDrop = dropped
		m.samples = append(m.samples, wire.Sample{At: m.o.Now().UnixMilli(), Name: panDropped, Value: float64(dropped), Epoch: m.began.Unix()})
	}
	for batch := range slices.Chunk(m.samples, wire.MaxBatch) {
		m.put(ctx, classTelemetry, wire.Telemetry, map[string]uint64{samplesCounter: uint64(len(batch))}, func(h wire.Head) wire.Message {
			return &wire.TelemetryBatch{Head: h, Samples: batch}
		})
	}
	m.samples, m.sampleSize = m.samples[:0], 0
	m.flushEvents(ctx)
}

// flushEvents puts events and outcomes of checks; they do not wait for samples.
func (m *Monitor) flushEvents(ctx context.Context) {
	if len(m.events)+len(m.checks) > 0 {
		m.put(ctx, classEvent, wire.Event, nil, func(h wire.Head) wire.Message {
			return &wire.EventBatch{Head: h, Events: m.events, Checks: m.checks}
		})
	}
	m.events, m.checks, m.eventSize = m.events[:0], m.checks[:0], 0
}

// tell puts the state of the whole; false when it is not known yet. The first
// report waits for the first look at each peripheral: who starts anew has not
// forgotten that a cover is open, and must not say that nothing is known of it.
func (m *Monitor) tell(ctx context.Context) bool {
	if !m.looked && !m.complete() && time.Since(m.began) < m.o.Deadline+2*heed {
		return false
	}
	m.looked = true
	r := wire.StateReport{Peripherals: m.Snapshot(), SpoolDepth: m.o.Spool.Depth(), SpoolShed: m.o.Spool.Shed()}
	r.Peripherals = append(r.Peripherals, m.unclaimed()...)
	if n := len(r.Peripherals); n > wire.MaxPeripherals {
		r.Peripherals = r.Peripherals[:wire.MaxPeripherals] // what is configured comes first
		if !m.crowded {
			m.crowded = true
			m.o.Log.Warn("more peripherals than a report takes", "peripherals", n)
		}
	}
	var err error
	if r.Samples, err = m.o.Spool.Counter(ctx, samplesCounter); err != nil {
		m.o.Log.Error("sample counter cannot be read", "error", err)
	}
	if !m.o.Fill(&r) {
		return false
	}
	r.Head = wire.Head{V: wire.Version, Boot: wire.Boot{1}, Seq: 1}
	if _, err := wire.Encode(&r); errors.Is(err, wire.ErrLimit) { // too much to say: who and how go before what it can
		for i := range r.Peripherals {
			p := &r.Peripherals[i]
			p.Sensors, p.Caps, p.Maker, p.Firmware, p.Interface = nil, nil, "", "", ""
			p.Key = cut(p.Key, wire.MaxName)
		}
	}
	m.put(ctx, classState, wire.State, nil, func(h wire.Head) wire.Message {
		r.Head = h
		return &r
	})
	m.forget()
	return true
}

// complete reports whether each peripheral that can be asked has been, and had
// something to say.
func (m *Monitor) complete() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, at := range m.asked {
		if at.IsZero() || m.seen[id].Reason == "M_NOT_ASKED" {
			return false
		}
	}
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

func (m *Monitor) record(ctx context.Context, kind, severity, subject string, detail map[string]string) {
	if m.o.Record == nil {
		return
	}
	if err := m.o.Record(ctx, kind, severity, subject, detail); err != nil {
		m.o.Log.Error("peripheral not audited", "kind", kind, "peripheral", subject, "error", err)
	}
}
