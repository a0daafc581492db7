package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/cloud/wire"
)

// What the books cost, for benchmarks and tests: an agent without peripherals and
// without a service.

// A day of a till: measurements and reports at the pace of the configuration, in
// as many batches as can come, and more events and entries than a busy day has.
const (
	dayPeripherals = 6 // with statistics of their own
	dayStats       = 12
	dayHost        = 24
	dayEvents      = 2000
	dayEntries     = 500

	// DayPart is which part of a day is lived through.
	DayPart = 20
)

// Books are the books of an agent that does nothing else.
type Books struct {
	a     *Agent
	after uint64
}

// OpenBooks opens the books in the state folder of a configuration as the agent
// does. Close them with Close.
func OpenBooks(ctx context.Context, cfg Config, o Options) (*Books, error) {
	a := New(cfg, o)
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, err
	}
	if err := a.openBooks(ctx); err != nil {
		return nil, err
	}
	if err := a.openJournal(ctx); err != nil {
		return nil, errors.Join(err, a.spool.Close())
	}
	return &Books{a: a}, nil
}

// Close closes the books.
func (b *Books) Close() error { return b.a.spool.Close() }

// Written is how many bytes have been written since the books were opened, and
// how many messages have been stored.
func (b *Books) Written() (bytes, messages uint64) { return b.a.spool.Written() }

// Record adds an entry to the trail. It returns when the entry survives a power cut.
func (b *Books) Record(ctx context.Context) error {
	return b.a.note(ctx, "command.done", "info", "01JD5Q8Y6R3K", map[string]string{"verb": "print-test", "by": "operator-1"})
}

// Day lives through a part of a day, by counts and not by time, and returns what
// all of it writes. Online, each message is handed over before the next comes.
func (b *Books) Day(ctx context.Context, online bool) (bytes, messages uint64, err error) {
	before, stored := b.Written()
	t := b.a.cfg.Telemetry
	batches := int(24*time.Hour/t.Batch.Duration) / DayPart
	per := func(count int) func(int) bool {
		every := max(1, batches*DayPart/count)
		return func(i int) bool { return i%every == 0 && i/every < (count+DayPart-1)/DayPart }
	}
	event, entry, state := per(dayEvents), per(dayEntries), per(int(24*time.Hour/t.Heartbeat.Duration))
	samples := (dayHost + dayPeripherals*dayStats) * int(t.Batch.Duration) / int(t.Stats.Duration)
	for i := range batches {
		err := b.put(ctx, spool.Telemetry, wire.Telemetry, telemetryOf(samples, i))
		if event(i) { // each is a change of state
			err = errors.Join(err, b.put(ctx, spool.Event, wire.Event, eventOf), b.put(ctx, spool.State, wire.State, stateOf))
		}
		if state(i) {
			err = errors.Join(err, b.put(ctx, spool.State, wire.State, stateOf))
		}
		if entry(i) {
			err = errors.Join(err, b.Record(ctx))
		}
		if online {
			err = errors.Join(err, b.send(ctx))
		}
		if i%max(1, int(b.a.cfg.Spool.Window.Duration/t.Batch.Duration)) == 0 {
			err = errors.Join(err, b.a.spool.Sync()) // the window has passed
		}
		if err != nil {
			return 0, 0, err
		}
	}
	bytes, messages = b.Written()
	return (bytes - before) * DayPart, (messages - stored) * DayPart, nil
}

func (b *Books) put(ctx context.Context, class string, c wire.Channel, make func(wire.Head) wire.Message) error {
	counts := map[string]uint64{}
	if class == spool.Telemetry {
		counts["telemetry.samples"] = 1
	}
	return b.a.spool.Compose(ctx, class, string(c), func() ([]byte, error) { return wire.Encode(make(b.a.heads.Next())) }, counts)
}

// send is the link: what is there goes, and is forgotten.
func (b *Books) send(ctx context.Context) error {
	var ids []uint64
	err := b.a.spool.Next(ctx, b.after, 16, nil, func(id uint64, _ string, _ []byte) { ids, b.after = append(ids, id), id })
	for _, id := range ids { // acknowledged one by one
		err = errors.Join(err, b.a.spool.Done(ctx, id))
	}
	return err
}

func telemetryOf(samples, value int) func(wire.Head) wire.Message {
	return func(h wire.Head) wire.Message {
		b := &wire.TelemetryBatch{Head: h}
		for k := range samples {
			b.Samples = append(b.Samples, wire.Sample{
				At: h.Sent, Peripheral: fmt.Sprint("receipt-printer-", k%dayPeripherals), Name: fmt.Sprint("ReceiptLinePrintedCount", k),
				Value: float64(value), Epoch: h.Sent / 1000,
			})
		}
		return b
	}
}

func eventOf(h wire.Head) wire.Message {
	return &wire.EventBatch{Head: h, Events: []wire.PeripheralEvent{{
		At: h.Sent, Mono: h.Sent, Peripheral: "receipt-printer-1", Category: "POSPrinter", Code: "COVER_OPEN", From: "CLOSED", To: "OPEN",
	}}}
}

func stateOf(h wire.Head) wire.Message {
	r := &wire.StateReport{Head: h, AgentVersion: "1.2.3", Slot: "a", Model: "Model T", Serial: "T-0001"}
	for k := range dayPeripherals {
		r.Peripherals = append(r.Peripherals, wire.Peripheral{
			ID: fmt.Sprint("receipt-printer-", k), Category: "POSPrinter", Driver: "escpos", Maker: "A maker", Model: "A model", Serial: "X1", Firmware: "1.0 ESC/POS",
			Power: "PS_ONLINE", Health: "OK", Since: h.Sent, Claim: "own", Key: "usb:04b8:0e15:X1", Interface: "USB",
			Sensors: map[string]string{"CoverOpen": "No", "RecEmpty": "No", "RecNearEnd": "No", "SlpEmpty": "Unknown", "JrnEmpty": "Unknown"},
			Caps:    []string{"CapRecPapercut", "CapRecPresent", "CapCoverSensor", "CapRecEmptySensor", "CapRecNearEndSensor"},
		})
	}
	return r
}
