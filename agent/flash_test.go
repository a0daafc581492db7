package agent

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/cloud/wire"
)

// A day of a till, for what its flash has to bear: measurements and reports at the
// default pace, and more events and entries than a busy day has.
const (
	dayPeripherals = 6 // with statistics of their own
	dayStats       = 12
	dayHost        = 24
	dayEvents      = 2000
	dayEntries     = 500
	dayPart        = 20 // so much of it is lived through
	dayMost        = 200 << 20
)

// TestDayOfFlash lives through a part of a day, by counts and not by time, and
// holds what the spool writes in all of it under the limit.
func TestDayOfFlash(t *testing.T) {
	for name, online := range map[string]bool{"connected": true, "alone": false} {
		t.Run(name, func(t *testing.T) {
			cfg := DefaultConfig()
			a := New(cfg, Options{})
			o := a.bookOptions()
			o.Key = make([]byte, 32)
			s, err := spool.Open(filepath.Join(t.TempDir(), "spool.db"), o)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			begun, _ := s.Written() // the reserve, once in the life of the file
			d := day{t: t, s: s, online: online}
			d.next = a.heads.Next
			d.live(cfg)
			bytes, messages := s.Written()
			bytes = (bytes - begun) * dayPart
			t.Logf("%d messages a day, %.1f MB written, %d bytes for each", messages*dayPart, float64(bytes)/1e6, bytes/(messages*dayPart))
			if bytes > dayMost/2 {
				t.Errorf("a day costs %d bytes; the limit is %d, and half of it is for what a block device adds", bytes, dayMost)
			}
			if messages*dayPart < dayEvents+dayEntries+86400/10 {
				t.Errorf("%d messages: this is no day", messages*dayPart)
			}
		})
	}
}

type day struct {
	t      *testing.T
	s      *spool.Spool
	next   func() wire.Head
	online bool
	after  uint64
}

// live lives through a part of the day, with batches as often as they can come.
func (d *day) live(cfg Config) {
	batches := int(24*time.Hour/cfg.Telemetry.Batch.Duration) / dayPart
	perMinute := int(time.Minute / cfg.Telemetry.Batch.Duration)
	every := func(i, count int) bool {
		return count > 0 && i%(max(1, batches/count)) == 0 && i/(batches/count) < count
	}
	samples := (dayHost + dayPeripherals*dayStats) * int(time.Minute/cfg.Telemetry.Stats.Duration) / perMinute
	for i := range batches {
		d.put(spool.Telemetry, wire.Telemetry, func(h wire.Head) wire.Message {
			b := &wire.TelemetryBatch{Head: h}
			for k := range samples {
				b.Samples = append(b.Samples, wire.Sample{
					At: h.Sent, Peripheral: fmt.Sprint("receipt-printer-", k%dayPeripherals), Name: fmt.Sprint("ReceiptLinePrintedCount", k), Value: float64(i), Epoch: h.Sent / 1000,
				})
			}
			return b
		})
		if every(i, dayEvents/dayPart) {
			d.put(spool.Event, wire.Event, func(h wire.Head) wire.Message {
				return &wire.EventBatch{Head: h, Events: []wire.PeripheralEvent{{
					At: h.Sent, Mono: h.Sent, Peripheral: "receipt-printer-1", Category: "POSPrinter", Code: "COVER_OPEN", From: "CLOSED", To: "OPEN",
				}}}
			})
			d.state() // each event is a change of state
		}
		if every(i, int(24*time.Hour/cfg.Telemetry.Heartbeat.Duration)/dayPart) {
			d.state()
		}
		if every(i, dayEntries/dayPart) {
			d.record()
		}
	}
}

func (d *day) state() {
	d.put(spool.State, wire.State, func(h wire.Head) wire.Message {
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
	})
}

func (d *day) record() {
	err := d.s.Append(d.t.Context(), keyAuditHead, string(wire.Audit), func(head []byte) ([]byte, []byte, error) {
		h := d.next()
		e, err := wire.SealAudit(wire.AuditRecord{
			Seq: uint64(len(head) + 1), Boot: h.Boot, At: h.Sent, Mono: h.Sent, Clock: "sync", Kind: "command.done", Severity: "info", Subject: "01JD5Q8Y6R3K",
			Outcome: "success", Actor: "operator-1", Detail: map[string]string{"verb": "print-test", "by": "operator-1", "counter": "4711", "peripheral": "receipt-printer-1"},
		})
		if err != nil {
			return nil, nil, err
		}
		b, err := wire.Encode(&wire.AuditBatch{Head: h, Entries: []wire.AuditEntry{e}})
		return b, append(make([]byte, 8), e.Hash[:]...), err
	})
	if err != nil {
		d.t.Fatal(err)
	}
	d.send()
}

func (d *day) put(class string, c wire.Channel, m func(wire.Head) wire.Message) {
	d.t.Helper()
	counts := map[string]uint64{}
	if class == spool.Telemetry {
		counts["telemetry.samples"] = 1
	}
	if err := d.s.Compose(d.t.Context(), class, string(c), func() ([]byte, error) { return wire.Encode(m(d.next())) }, counts); err != nil {
		d.t.Fatal(err)
	}
	d.send()
}

// send is the link: what is there goes, and is forgotten.
func (d *day) send() {
	if !d.online {
		return
	}
	var ids []uint64
	err := d.s.Next(context.Background(), d.after, 16, nil, func(id uint64, _ string, _ []byte) { ids, d.after = append(ids, id), id })
	if err == nil {
		err = d.s.Done(context.Background(), ids...)
	}
	if err != nil {
		d.t.Fatal(err)
	}
}
