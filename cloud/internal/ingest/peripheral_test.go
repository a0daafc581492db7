package ingest_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
)

// TestOldAgents takes in what agents of every version of the contract send: the
// bytes that are kept beside it.
func TestOldAgents(t *testing.T) {
	for version := 1; version <= wire.Version; version++ {
		t.Run(fmt.Sprintf("v%d", version), func(t *testing.T) {
			x := start(t)
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			must(x.s.SetPresence(t.Context(), "a", true, noon))
			for _, c := range []wire.Channel{wire.State, wire.Telemetry, wire.Event} {
				text, err := os.ReadFile(fmt.Sprintf("../../wire/testdata/v%d/%s.hex", version, path.Base(string(c))))
				must(err)
				payload, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
				must(err)
				must(x.send(c, payload))
			}
			if got := x.kinds(); len(got) != 0 {
				t.Fatalf("noted: %v", got)
			}
			h, err := x.s.History(t.Context(), "main", "a", "printer-1", time.Time{})
			must(err)
			if h.Category != "POSPrinter" || h.Health != "Attention" || h.Reason != "REC_NEAREMPTY" || h.Since.UnixMilli() != 1795521590000 || h.Sensors["RecNearEnd"] != "Yes" {
				t.Errorf("got %+v", h.Peripheral)
			}
			if advice := fleet.Advice(h.Light); advice != "Have a new roll of paper ready." {
				t.Errorf("advice: got %q, want the service's own", advice)
			}
			series, err := x.s.PeripheralSeries(t.Context(), "main", "a", "printer-1")
			if err != nil || len(series) != 1 || series[0].Last != 12345 {
				t.Errorf("series: got %+v, %v", series, err)
			}
			events, _, err := x.s.Events(t.Context(), "main", "a", fleet.Page{})
			if err != nil || len(events) != 2 {
				t.Fatalf("events: got %+v, %v", events, err)
			}
			if version < 4 {
				if h.Claim != "" || h.RollLines != 0 || len(h.Checks) != 0 {
					t.Errorf("got %+v, want nothing that it did not say", h)
				}
				return
			}
			if h.Claim != "own" || h.Key != "usb:04b8:0e15:P-7" || h.Interface != "USB" || len(h.Caps) != 2 || h.RollLines != 18876 {
				t.Errorf("got %+v", h.Peripheral)
			}
			if len(h.Checks) != 1 || h.Checks[0].Level != "external" || h.Checks[0].OK || len(h.Checks[0].Steps) != 2 || h.Checks[0].Steps[1].Code != "REC_EMPTY" {
				t.Errorf("checks: got %+v", h.Checks)
			}
			if e := events[1]; e.Mono != 3600000 || e.Count != 7 {
				t.Errorf("event: got %+v", e)
			}
		})
	}
}

func guardedEvent(code, peripheral string, at int64) wire.PeripheralEvent {
	return wire.PeripheralEvent{At: at, Peripheral: peripheral, Category: "M_TamperSwitch", Code: code, From: "No", To: "Yes"}
}

// TestTampering has what is a matter of security in the service's trail: once
// for each time it happened, however often it was sent.
func TestTampering(t *testing.T) {
	x := start(t)
	batch := func(seq uint64, when time.Time, events ...wire.PeripheralEvent) {
		t.Helper()
		payload := encode(t, &wire.EventBatch{Head: wire.Head{V: wire.Version, Boot: wire.Boot{1}, Seq: seq, Sent: when.UnixMilli()}, Events: events})
		if err := x.sendAt(when, "a", wire.Event, payload); err != nil {
			t.Fatal(err)
		}
	}
	trail := func() (out []string) {
		evs, _, err := x.s.AuditTrail(t.Context(), "main", "", false, fleet.Page{Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range evs {
			out = append(out, ev.Severity+" "+ev.Kind+" "+ev.Subject+" "+ev.Detail["peripheral"])
		}
		return out
	}
	at := noon.UnixMilli()
	batch(1, noon, guardedEvent("M_TAMPERED", "lid", at), guardedEvent("M_DRAWER_UNEXPECTED_OPEN", "drawer", at), guardedEvent("M_TAMPER_OK", "lid", at), guardedEvent("COVER_OPEN", "receipt", at))
	batch(1, noon.Add(time.Hour), guardedEvent("M_TAMPERED", "lid", at), guardedEvent("M_DRAWER_UNEXPECTED_OPEN", "drawer", at), guardedEvent("M_TAMPER_OK", "lid", at), guardedEvent("COVER_OPEN", "receipt", at)) // again
	batch(2, noon.Add(time.Hour), guardedEvent("M_TAMPERED", "lid", at))
	batch(3, noon.Add(time.Hour), guardedEvent("M_TAMPERED", "back", at))
	want := []string{
		"alarm peripheral.tampered a lid", "warn peripheral.drawer_unexpected a drawer", "alarm peripheral.tampered a lid", "alarm peripheral.tampered a back",
	}
	if got := trail(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for seq := range uint64(50) { // a loose switch
		batch(100+seq, noon.Add(2*time.Hour), guardedEvent("M_TAMPERED", "lid", at))
	}
	if got := len(trail()); got > len(want)+5 {
		t.Errorf("%d entries: a loose switch fills the trail", got)
	}
}

// TestTamperingIsNotLost has the alarm of what the store could not take at first,
// however often it was sent until then, and of what came beside a batch that was
// sent again and again.
func TestTamperingIsNotLost(t *testing.T) {
	x := start(t)
	batch := func(seq uint64) []byte {
		return encode(t, &wire.EventBatch{Head: wire.Head{V: wire.Version, Boot: wire.Boot{1}, Seq: seq, Sent: noon.UnixMilli()}, Events: []wire.PeripheralEvent{guardedEvent("M_TAMPERED", "lid", noon.UnixMilli())}})
	}
	x.mu.Lock()
	x.fail = errors.New("disk is full")
	x.mu.Unlock()
	for range 10 {
		if err := x.send(wire.Event, batch(1)); err == nil {
			t.Fatal("acknowledged, and not stored")
		}
	}
	x.mu.Lock()
	x.fail = nil
	x.mu.Unlock()
	for range 10 { // its acknowledgement was lost
		if err := x.send(wire.Event, batch(1)); err != nil {
			t.Fatal(err)
		}
	}
	if got := x.kinds(); len(got) != 1 {
		t.Errorf("got %v, want one alarm", got)
	}
	if err := x.send(wire.Event, batch(2)); err != nil {
		t.Fatal(err)
	}
	if got := x.kinds(); len(got) != 2 {
		t.Errorf("got %v, want another", got)
	}
}

// TestTamperingOfMadeUpNames lets one device name peripherals that there are not.
func TestTamperingOfMadeUpNames(t *testing.T) {
	x := start(t)
	for seq := range uint64(4) {
		b := &wire.EventBatch{Head: wire.Head{V: wire.Version, Boot: wire.Boot{1}, Seq: seq + 1, Sent: noon.UnixMilli()}}
		for n := range 100 {
			b.Events = append(b.Events, guardedEvent("M_TAMPERED", fmt.Sprintf("lid-%d-%d", seq, n), noon.UnixMilli()))
		}
		x.ok(wire.Event, b)
	}
	if got := len(x.kinds()); got == 0 || got > 20 {
		t.Errorf("got %d entries, want some and no flood", got)
	}
}
