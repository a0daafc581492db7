package telemetry_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/agent/internal/telemetry"
	"github.com/tillward/tillward/hal"
)

// TestBoxThatSaysHowItIs holds that a box with sensors is shown like any
// peripheral, and that what it measures stays what the device itself measures.
func TestBoxThatSaysHowItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &desk{t: t}
		host := bell{&thing{info: hal.Info{ID: "box", Category: hal.Host, Driver: "board"}}, make(chan hal.Event, 1)}
		host.does(func(context.Context) (hal.Status, error) {
			return hal.Judge(hal.Host, hal.PowerOnline, map[string]hal.Tri{"M_DiskLow": hal.Yes, "M_MemoryLow": hal.No}), nil
		})
		host.stats = func(context.Context) ([]hal.Stat, error) { return []hal.Stat{{Name: "disk_free_bytes", Value: 7}}, nil }
		host.events <- hal.Event{Code: "M_DISK_LOW", From: "No", To: "Yes"}
		watch(t, d.options(host), func(m *telemetry.Monitor, after func(time.Duration)) {
			after(2 * time.Minute)
			if s := m.Snapshot(); len(s) != 1 || s[0].ID != "box" || s[0].Health != "Attention" || s[0].Reason != "M_DISK_LOW" {
				t.Errorf("the box shows as %+v", s)
			}
		})
		samples, events, _, _ := d.got()
		if len(samples) == 0 || samples[0].Name != "disk_free_bytes" || samples[0].Peripheral != "" {
			t.Errorf("samples %+v, want those of the device itself", samples)
		}
		if len(events) != 1 || events[0].Peripheral != "box" || events[0].Code != "M_DISK_LOW" {
			t.Errorf("events %+v", events)
		}
	})
}
