package cloud

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// fleetMetrics tells how many devices are how, and how rollouts go. What takes a
// walk over all devices is asked for anew every now and then, however often
// somebody scrapes.
type fleetMetrics struct {
	service *Service

	mu      sync.Mutex
	asked   time.Time
	devices map[fleet.Trust]int
	roll    map[fleet.RolloutID]map[fleet.ExecutionState]int
}

const (
	fleetEvery = 30 * time.Second
	fleetTime  = 10 * time.Second
)

var (
	buildInfo        = prometheus.NewDesc("tillward_build_info", "Always 1; the version of the service is in its label.", []string{"version"}, nil)
	devicesConnected = prometheus.NewDesc("tillward_devices_connected", "Devices with an open MQTT connection.", nil, nil)
	devicesTrust     = prometheus.NewDesc("tillward_devices", "Devices of the tenant, by what they are trusted.", []string{"trust"}, nil)
	rolloutDevices   = prometheus.NewDesc("tillward_rollout_devices", "Devices of a rollout that runs, by where they stand.", []string{"rollout", "release", "state"}, nil)
	accessDropped    = prometheus.NewDesc("tillward_access_log_dropped_total", "Lines of the access log that found no room.", nil, nil)
)

// Describe implements prometheus.Collector.
func (m *fleetMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{buildInfo, devicesConnected, devicesTrust, rolloutDevices, accessDropped} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *fleetMetrics) Collect(ch chan<- prometheus.Metric) {
	s := m.service
	ch <- prometheus.MustNewConstMetric(buildInfo, prometheus.GaugeValue, 1, Version)
	ch <- prometheus.MustNewConstMetric(devicesConnected, prometheus.GaugeValue, float64(len(s.broker.Connected())))
	ch <- prometheus.MustNewConstMetric(accessDropped, prometheus.CounterValue, float64(s.access.Dropped()))
	m.mu.Lock()
	defer m.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), fleetTime)
	defer cancel()
	if time.Since(m.asked) > fleetEvery {
		if err := m.ask(ctx); err != nil {
			s.log.Error("count devices for the metrics", slog.Any("err", err))
		}
		m.asked = time.Now()
	}
	for _, t := range []fleet.Trust{fleet.Pending, fleet.Attested, fleet.Degraded, fleet.Quarantined, fleet.Stale} {
		ch <- prometheus.MustNewConstMetric(devicesTrust, prometheus.GaugeValue, float64(m.devices[t]), string(t))
	}
	for id, states := range m.roll {
		rollout, release, _ := strings.Cut(string(id), " ")
		for state, n := range states {
			ch <- prometheus.MustNewConstMetric(rolloutDevices, prometheus.GaugeValue, float64(n), rollout, release, strings.ToLower(string(state)))
		}
	}
}

// ask counts anew. m.mu is held.
func (m *fleetMetrics) ask(ctx context.Context) error {
	s := m.service
	sum, err := s.store.Summary(ctx, s.tenant)
	if err != nil {
		return err
	}
	running, err := s.store.RunningRollouts(ctx)
	if err != nil {
		return err
	}
	roll := map[fleet.RolloutID]map[fleet.ExecutionState]int{}
	for _, r := range running {
		p, err := s.store.Progress(ctx, r.ID, time.Now().Add(-24*time.Hour))
		if err != nil {
			return err
		}
		roll[fleet.RolloutID(string(r.ID)+" "+string(r.Release))] = p.Counts
	}
	m.devices, m.roll = sum.ByTrust, roll
	return nil
}
