package ingest

import (
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
)

// peripherals is what a till says of its peripherals. What an agent before
// version 4 advises is not taken over: the service knows what to do.
func peripherals(b wire.StateReport) []fleet.Peripheral {
	out := make([]fleet.Peripheral, 0, len(b.Peripherals))
	for _, p := range b.Peripherals {
		out = append(out, fleet.Peripheral{
			ID: p.ID, Category: p.Category, Driver: p.Driver, Maker: p.Maker, Model: p.Model, Serial: p.Serial, Firmware: p.Firmware, Simulated: p.Simulated,
			Claim: p.Claim, Key: p.Key, Interface: p.Interface, Caps: p.Caps, RollLines: p.RollLines, Power: p.Power, Sensors: p.Sensors,
			Said: fleet.Light{Health: p.Health, Reason: p.Reason, Since: time.UnixMilli(p.Since)},
		})
	}
	return out
}

// checks are the health checks of a batch.
func checks(device fleet.DeviceID, b wire.EventBatch) []fleet.HealthCheck {
	var out []fleet.HealthCheck
	for n, c := range b.Checks {
		h := fleet.HealthCheck{
			Device: device, Boot: b.Head.Boot, Seq: b.Head.Seq, Index: n, At: time.UnixMilli(c.At), Peripheral: c.Peripheral, Level: c.Level, OK: c.OK,
			Steps: make([]fleet.CheckStep, 0, len(c.Checks)),
		}
		for _, s := range c.Checks {
			h.Steps = append(h.Steps, fleet.CheckStep(s))
		}
		out = append(out, h)
	}
	return out
}

// guarded are the events that somebody must hear of who does not look at
// peripherals: the box was opened, or the drawer without a sale.
var guarded = map[string]struct{ kind, severity, what string }{
	"M_TAMPERED":               {"peripheral.tampered", "alarm", "its tamper switch says that the box was opened"},
	"M_DRAWER_UNEXPECTED_OPEN": {"peripheral.drawer_unexpected", "warn", "the drawer was opened and neither a sale nor a command asked for it"},
}

// bell is one kind of alarm of one peripheral, ring how often it went in a
// minute.
type (
	bell struct {
		device     fleet.DeviceID
		peripheral string
		code       string
	}
	ring struct {
		begun time.Time
		n     int
	}
)

const (
	ringsMost = 5  // of a bell in noteEvery: a switch that is loose must not fill the trail
	ringsAll  = 20 // of all bells of one device: nor must one that makes names up
)

// alarms are entries for the service's trail about what came in a batch. The
// store writes them when it has not seen the batch before; only then they have
// rung.
func (i *Ingest) alarms(m Message, events []wire.PeripheralEvent) (out []fleet.AuditEvent) {
	for _, e := range events {
		g, ok := guarded[e.Code]
		if !ok {
			continue
		}
		one, all := bell{m.Device, e.Peripheral, e.Code}, bell{device: m.Device}
		if i.rings(one, m.At) >= ringsMost || i.rings(all, m.At) >= ringsAll {
			continue
		}
		i.ringing[one]++
		i.ringing[all]++
		out = append(out, fleet.AuditEvent{
			At: m.At, Kind: g.kind, Severity: g.severity, Actor: "ingest", Subject: string(m.Device),
			Detail: map[string]string{
				"peripheral": e.Peripheral, "category": e.Category, "code": e.Code, "seen_at": time.UnixMilli(e.At).UTC().Format(time.RFC3339), "what": g.what,
			},
		})
	}
	return out
}

// rings is how often a bell rang in the minute before, and rings in the group
// that is being made.
func (i *Ingest) rings(k bell, at time.Time) int {
	n := i.ringing[k]
	if r := i.rung[k]; at.Sub(r.begun) < noteEvery {
		n += r.n
	}
	return n
}

// rang remembers alarms that are in the trail.
func (i *Ingest) rang(m Message, alarms []fleet.AuditEvent) {
	for _, ev := range alarms {
		for _, k := range [...]bell{{m.Device, ev.Detail["peripheral"], ev.Detail["code"]}, {device: m.Device}} {
			r := i.rung[k]
			if m.At.Sub(r.begun) >= noteEvery {
				r = ring{begun: m.At}
			}
			r.n++
			if len(i.rung) >= maxDevices {
				clear(i.rung)
			}
			i.rung[k] = r
		}
	}
}
