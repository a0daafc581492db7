package ingest_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/ingest"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/simulator/postgres"
)

// BenchmarkBacklog is a message of twenty samples of a backlog, from the queue into SQLite, with 16 devices whose windows
// are full. `tillward-sim bench --only backlog` goes the whole way.
func BenchmarkBacklog(b *testing.B) {
	const devices, window, samples = 16, 32, 20
	s, err := store.Open(b.Context(), postgres.Place(b), quiet)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	for d := range devices {
		if err := s.Enrol(b.Context(), fleet.Device{ID: fleet.DeviceID(fmt.Sprint("d", d)), Tenant: "main", Tier: fleet.TierC, EKHash: fmt.Sprint(d), EnrolledAt: noon}); err != nil {
			b.Fatal(err)
		}
	}
	i := ingest.New(ingest.Options{Store: s, Log: quiet, Stored: func(fleet.Intake, fleet.Outcome) {}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- i.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	}()
	payloads := make([][]byte, b.N)
	for n := range payloads {
		m := &wire.TelemetryBatch{Head: wire.Head{V: 1, Boot: wire.Boot{1, byte(n % devices)}, Seq: uint64(n/devices + 1), Sent: 1}}
		for k := range samples {
			m.Samples = append(m.Samples, wire.Sample{At: noon.UnixMilli() + int64(n), Peripheral: "receipt", Name: fmt.Sprint("M_Count", k), Value: float64(n), Epoch: 5})
		}
		payloads[n] = encode(b, m)
	}
	slots := make(chan struct{}, devices*window)
	var wg sync.WaitGroup
	b.ResetTimer()
	for n, p := range payloads {
		slots <- struct{}{}
		wg.Add(1)
		i.Submit(ingest.Message{
			Device: fleet.DeviceID(fmt.Sprint("d", n%devices)), Tenant: "main", Channel: wire.Telemetry, Payload: p, At: time.Now(),
			Ack: func(err error) {
				if err != nil {
					b.Error(err)
				}
				<-slots
				wg.Done()
			},
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N*samples)/b.Elapsed().Seconds(), "rows/s")
}
