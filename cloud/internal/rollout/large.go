package rollout

import (
	"fmt"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// Large returns a step over a rollout of many devices, for measuring: in the
// middle of its way with all that makes a step dear (hours, lanes, what a
// release requires), or the first one, which assigns every device its wave.
func Large(devices int, first bool) func() Plan {
	noon := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	ro := fleet.Rollout{
		ID: "ro", State: fleet.RolloutRunning, StartedAt: noon.Add(-time.Hour),
		Spec: fleet.Spec{
			PerSite: 2, InFlight: 2000, Download: "20:00-06:00", Install: "mon-sat 22:00-05:00",
			Waves: []fleet.Wave{{Name: "canary", Percent: 1, Soak: time.Hour}, {Name: "tenth", Percent: 10, Soak: time.Hour}, {Name: "rest"}},
		},
		Waves: []fleet.WaveStatus{{State: fleet.WavePassed}, {State: fleet.WavePassed}, {State: fleet.WaveRunning, StartedAt: noon.Add(-time.Minute)}},
	}
	units := make([]fleet.Unit, devices)
	runs := map[string]string{"agent": "1.0.0", "os/m/prod": "3.0.0"}
	zones := []string{"Europe/Berlin", "Europe/London", "America/New_York", ""}
	v := View{
		Release: fleet.Release{ID: "agent/2.0.0", Component: "agent", Version: "2.0.0", Requires: map[string]string{"os": "2.0.0"}, Targets: []fleet.Target{{Path: "agent/2.0.0/a", Length: 10 << 20}}},
		Sites:   map[string]fleet.Site{},
	}
	there := make(map[fleet.DeviceID]Presence, devices)
	for i := range units {
		u := &units[i]
		*u = fleet.Unit{
			Execution: fleet.Execution{ID: fleet.ExecutionID(fmt.Sprintf("x-%012d", i)), Device: fleet.DeviceID(fmt.Sprintf("device-%016d", i)), State: fleet.ExecQueued, Wave: 2, EnteredAt: noon.Add(-time.Hour)},
			Model:     fmt.Sprintf("model-%d", i%23), Site: fmt.Sprintf("site-%05d", i/5), LastSeen: noon.Add(-time.Minute), Installed: runs, FreeMiB: 900,
		}
		v.Sites[u.Site] = fleet.Site{Name: u.Site, Zone: zones[i/5%len(zones)]}
		there[u.Device] = Here
		switch {
		case i%10 < 3:
			there[u.Device] = Away
		case i%10 < 7:
			u.State, u.Attempt, u.OfferedAt, u.Wave = fleet.ExecSucceeded, 1, noon.Add(-time.Hour), i%3
		case i%100 == 8:
			u.State, u.Attempt, u.OfferedAt, u.EnteredAt = fleet.ExecWaiting, 1, noon.Add(-time.Minute), noon.Add(-time.Minute)
		case i%1000 == 9:
			u.State, u.Attempt, u.OfferedAt = fleet.ExecFailed, 3, noon.Add(-time.Hour)
		}
	}
	v.Presence = func(d fleet.DeviceID) Presence { return there[d] }
	if first {
		ro.Waves = nil
		for i := range units {
			u := &units[i]
			u.State, u.Wave, u.OfferedAt, u.Attempt = fleet.ExecQueued, -1, time.Time{}, 0
		}
	}
	return func() Plan { return Next(noon, ro, units, v) }
}
