package cloud

import (
	"context"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/ingest"
	"github.com/tillward/tillward/cloud/wire"
)

// TestPaperEndsSoon follows what a till sends on its way through the rooms: to
// rows, to a prediction, to a light, and to whoever watches.
func TestPaperEndsSoon(t *testing.T) {
	s := newService(t)
	s.cfg.Peripheral.PaperSoon.Duration = 24 * time.Hour
	s.wirePeripherals()
	s.ingest = ingest.New(ingest.Options{Store: s.store, Stored: s.stored, Forked: s.forked, Log: s.log})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	for _, run := range []func(context.Context) error{s.ingest.Run, s.derived.Run} {
		go func() { done <- run(ctx) }()
	}
	t.Cleanup(func() {
		cancel()
		must(t, <-done)
		must(t, <-done)
	})
	must(t, s.store.Enrol(ctx, fleet.Device{ID: "d1", Tenant: "main", Tier: fleet.TierC, EKHash: "d1", EnrolledAt: time.Now()}))
	watch := s.hub.Subscribe(ctx, "main")
	s.presence("d1", true, time.Now())

	began := time.Now().Add(-5 * time.Hour)
	seq := uint64(0)
	send := func(c wire.Channel, m wire.Message) {
		t.Helper()
		payload, err := wire.Encode(m)
		must(t, err)
		ack := make(chan error, 1)
		if !s.ingest.Submit(ingest.Message{Device: "d1", Tenant: "main", Channel: c, Payload: payload, At: time.Now(), Ack: func(err error) { ack <- err }}) {
			t.Fatal("no room")
		}
		must(t, <-ack)
	}
	head := func() wire.Head {
		seq++
		return wire.Head{V: wire.Version, Boot: wire.Boot{1}, Seq: seq, Sent: time.Now().UnixMilli()}
	}
	send(wire.State, &wire.StateReport{Head: head(), AgentVersion: "1.0.0", Slot: "a", StartedAt: began.UnixMilli(), Peripherals: []wire.Peripheral{{
		ID: "receipt", Category: "POSPrinter", Driver: "escpos", Power: "PS_ONLINE", Health: "OK", Since: began.UnixMilli(), RollLines: 10_000,
		Sensors: map[string]string{"CoverOpen": "No", "RecEmpty": "No"},
	}}})
	send(wire.Event, &wire.EventBatch{Head: head(), Events: []wire.PeripheralEvent{
		{At: began.UnixMilli() + 1, Peripheral: "receipt", Category: "POSPrinter", Code: "REC_EMPTY"},
		{At: began.UnixMilli() + 2, Peripheral: "receipt", Category: "POSPrinter", Code: "REC_PAPEROK"},
	}})
	batch := wire.TelemetryBatch{Head: head()}
	for m := range 250 {
		batch.Samples = append(batch.Samples, wire.Sample{
			At: began.Add(time.Duration(m) * time.Minute).UnixMilli(), Peripheral: "receipt", Name: "ReceiptLineFeedCount", Value: float64(700 + 20*m), Epoch: 7, Kept: true,
		})
	}
	send(wire.Telemetry, &batch)

	told := 0
	for deadline := time.After(20 * time.Second); ; {
		h, err := s.store.History(ctx, "main", "d1", "receipt", time.Time{})
		must(t, err)
		if h.Reason == "M_PAPER_SOON" && told > 0 {
			if end := began.Add(500 * time.Minute); h.Paper == nil || h.Paper.RunOutAt.Sub(end).Abs() > 10*time.Minute || h.Paper.Basis != "configured" {
				t.Errorf("got %+v, want an end at %s", h.Paper, end)
			}
			return
		}
		select {
		case c := <-watch:
			if c.Kind == fleet.ChangedPeripheral && c.ID == "d1" {
				told++
			}
		case <-time.After(20 * time.Millisecond):
		case <-deadline:
			t.Fatalf("got %s %s and %+v, told %d times", h.Health, h.Reason, h.Paper, told)
		}
	}
}
