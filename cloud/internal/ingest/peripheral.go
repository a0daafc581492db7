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
