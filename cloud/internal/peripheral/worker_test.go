package peripheral_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/peripheral"
	"github.com/tillward/tillward/cloud/internal/store"
)

var quiet = slog.New(slog.DiscardHandler)

// bench is a store with devices, and a worker that derives from it.
type bench struct {
	*store.Store
	t    testing.TB
	seq  uint64
	stop func()
	w    *peripheral.Worker
	from peripheral.Store
	told chan fleet.DeviceID
}

func newBench(t testing.TB, soon time.Duration, devices ...fleet.Device) *bench {
	t.Helper()
	s, err := store.Open(t.Context(), t.TempDir(), quiet)
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	for _, d := range devices {
		d.Tier, d.EKHash, d.EnrolledAt = fleet.TierC, "ek-"+string(d.ID), time.Now()
		must(t, s.Enrol(t.Context(), d))
		must(t, s.SetPresence(t.Context(), d.ID, true, time.Now()))
	}
	b := &bench{Store: s, t: t, from: s, told: make(chan fleet.DeviceID, 1)}
	b.start(soon)
	t.Cleanup(func() { b.stop() })
	return b
}

func (b *bench) start(soon time.Duration) {
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan struct{})
	b.w = peripheral.New(peripheral.Options{Store: b.from, Soon: soon, Changed: b.tell, Log: quiet})
	go func() {
		defer close(done)
		_ = b.w.Run(ctx)
	}()
	b.stop = func() { cancel(); <-done }
}

// tell wakes who waits; nobody need.
func (b *bench) tell(d fleet.DeviceID) {
	select {
	case b.told <- d:
	default:
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// commit stores one message, as ingest does, and tells the worker.
func (b *bench) commit(in fleet.Intake) {
	b.t.Helper()
	b.seq++
	if in.Tenant == "" {
		in.Tenant = "main"
	}
	boot := [16]byte{1}
	in.At = time.Now()
	for i := range in.Samples {
		in.Samples[i].Seq, in.Samples[i].Index = b.seq, i
		if in.Samples[i].Boot == [16]byte{} {
			in.Samples[i].Boot = boot
		}
	}
	for i := range in.Events {
		in.Events[i].Boot, in.Events[i].Seq, in.Events[i].Index, in.Events[i].Peripheral, in.Events[i].Category = boot, b.seq, i, "receipt", "POSPrinter"
	}
	if in.Report != nil {
		in.Report.Boot, in.Report.Seq, in.Report.Sent = boot, b.seq, in.At
	}
	out, err := b.Commit(b.t.Context(), []fleet.Intake{in})
	must(b.t, err)
	b.w.Stored(in, out[0])
}

func printer(lines uint32) fleet.Peripheral {
	return fleet.Peripheral{
		ID: "receipt", Category: "POSPrinter", Maker: "Maker", Model: "P1", Power: "PS_ONLINE", RollLines: lines, Sensors: map[string]string{"CoverOpen": "No", "RecEmpty": "No"},
		Said: fleet.Light{Health: "OK", Since: time.Now().Add(-24 * time.Hour)},
	}
}

func (b *bench) reports(device fleet.DeviceID, p ...fleet.Peripheral) {
	b.t.Helper()
	b.commit(fleet.Intake{Device: device, Report: &fleet.Report{Peripherals: p}})
}

func (b *bench) counted(device fleet.DeviceID, at time.Time, lines float64) {
	b.t.Helper()
	b.commit(fleet.Intake{Device: device, Samples: []fleet.Sample{{At: at, Peripheral: "receipt", Name: "ReceiptLineFeedCount", Value: lines, Epoch: 5, Kept: true}}})
}

func (b *bench) happened(device fleet.DeviceID, at time.Time, codes ...string) {
	b.t.Helper()
	in := fleet.Intake{Device: device}
	for _, c := range codes {
		in.Events = append(in.Events, fleet.PeripheralEvent{At: at, Code: c})
	}
	b.commit(in)
}

// shows waits until a peripheral looks as it should.
func (b *bench) shows(device fleet.DeviceID, id, what string, ok func(fleet.Peripheral) bool) fleet.Peripheral {
	b.t.Helper()
	var last fleet.Peripheral
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		h, err := b.History(b.t.Context(), "main", device, id, time.Time{})
		must(b.t, err)
		if last = h.Peripheral; ok(last) {
			return last
		}
		select {
		case <-b.told:
		case <-time.After(20 * time.Millisecond):
		}
	}
	b.t.Fatalf("%s of %s does not show %s: %+v, paper %+v, reads %+v", id, device, what, last, last.Paper, last.Reads)
	return last
}

// now is how a peripheral looks.
func (b *bench) now(device fleet.DeviceID, id string) fleet.Peripheral {
	b.t.Helper()
	h, err := b.History(b.t.Context(), "main", device, id, time.Time{})
	must(b.t, err)
	return h.Peripheral
}

// read waits until all that came of a device was read.
func (b *bench) read(device fleet.DeviceID) {
	b.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		u, err := b.Usage(b.t.Context(), device)
		must(b.t, err)
		if len(u.Samples) == 0 && len(u.Events) == 0 {
			return
		}
		select {
		case <-b.told:
		case <-time.After(20 * time.Millisecond):
		}
	}
	b.t.Fatalf("what came of %s is not read", device)
}

// TestWorker follows the paper of a printer over a change of its roll, a restart
// of the service in between, and a till that tells late.
func TestWorker(t *testing.T) {
	b := newBench(t, 2*time.Hour, fleet.Device{ID: "d1", Tenant: "main"})
	b.reports("d1", printer(10_000))
	began := time.Now().Add(-10 * time.Hour)
	at := func(minutes int) time.Time { return began.Add(time.Duration(minutes) * time.Minute) }
	b.counted("d1", at(0), 70_000)
	b.happened("d1", at(1), "REC_EMPTY", "COVER_OPEN", "REC_PAPEROK", "COVER_OK")
	for m := 2; m <= 300; m++ {
		b.counted("d1", at(m), 70_000+float64(m)*10)
	}
	p := b.shows("d1", "receipt", "a prediction", func(p fleet.Peripheral) bool { return p.Paper != nil && p.Paper.LinesLeft < 7090 })
	// 10,000 lines at 10 a minute from minute 1 on: the end is in minute 1001.
	if off := p.Paper.RunOutAt.Sub(at(1001)); off.Abs() > 20*time.Minute || p.Paper.Basis != "configured" || math.Abs(p.Paper.LinesPerHour-600) > 10 {
		t.Errorf("got %+v, which is off by %s", p.Paper, off)
	}
	if !p.Paper.Earliest.Before(p.Paper.RunOutAt) || !p.Paper.Latest.After(p.Paper.RunOutAt) || p.Paper.Confidence < 0.6 || p.Paper.Confidence > 1 {
		t.Errorf("got %+v, want a time between two others and some confidence", p.Paper)
	}
	if p.Health != "OK" {
		t.Errorf("got %s %s, want OK: there is paper for hours", p.Health, p.Reason)
	}

	b.stop()
	for m := 301; m <= 600; m++ { // while nobody derives
		b.counted("d1", at(m), 70_000+float64(m)*10)
	}
	b.start(12 * time.Hour)
	p = b.shows("d1", "receipt", "that paper ends soon", func(p fleet.Peripheral) bool { return p.Reason == "M_PAPER_SOON" })
	if off := p.Paper.RunOutAt.Sub(at(1001)); p.Health != "Attention" || off.Abs() > 20*time.Minute {
		t.Errorf("got %s, and %+v, which is off by %s", p.Health, p.Paper, off)
	}
	b.happened("d1", at(601), "REC_EMPTY", "REC_PAPEROK")
	for m := 602; m <= 620; m++ {
		b.counted("d1", at(m), 70_000+float64(m)*10)
	}
	p = b.shows("d1", "receipt", "that there is paper again", func(p fleet.Peripheral) bool { return p.Health == "OK" })
	if p.Paper.LinesLeft < 9000 {
		t.Errorf("got %+v, want a fresh roll", p.Paper)
	}
	h, err := b.History(t.Context(), "main", "d1", "receipt", time.Time{})
	must(t, err)
	if len(h.Spans) != 3 || h.Spans[1].Reason != "M_PAPER_SOON" {
		t.Errorf("spans: got %+v, want OK, M_PAPER_SOON, OK", h.Spans)
	}
}

// TestLateBoot shows that what an earlier run of the agent left behind counts,
// though a later one was heard first.
func TestLateBoot(t *testing.T) {
	b := newBench(t, 0, fleet.Device{ID: "d1", Tenant: "main"})
	b.reports("d1", printer(10_000))
	began := time.Now().Add(-2 * time.Hour)
	sample := func(boot byte, minutes int, v float64) {
		b.commit(fleet.Intake{Device: "d1", Samples: []fleet.Sample{{
			Boot: [16]byte{boot}, At: began.Add(time.Duration(minutes) * time.Minute), Peripheral: "receipt", Name: "ReceiptLineFeedCount", Value: v, Epoch: 5, Kept: true,
		}}})
	}
	sample(9, 0, 1000)
	b.happened("d1", began.Add(time.Minute), "REC_EMPTY", "REC_PAPEROK")
	for m := 2; m < 100; m++ {
		sample(9, m, 1000+float64(m)*20)
	}
	b.shows("d1", "receipt", "a prediction", func(p fleet.Peripheral) bool { return p.Paper != nil && p.Paper.LinesLeft <= 8150 })
	sample(8, 100, 3500) // another boot
	sample(9, 101, 4000) // and the one before it again
	b.shows("d1", "receipt", "what both said", func(p fleet.Peripheral) bool { return p.Paper != nil && p.Paper.LinesLeft <= 7100 })
}

// poisoned is a store that cannot say anything of one device.
type poisoned struct {
	*store.Store
	device fleet.DeviceID
}

func (p poisoned) Usage(ctx context.Context, d fleet.DeviceID) (fleet.Usage, error) {
	if d == p.device {
		return fleet.Usage{}, errors.New("its row cannot be read")
	}
	return p.Store.Usage(ctx, d)
}

// TestPoison shows that a device of which nothing can be derived takes no other
// with it.
func TestPoison(t *testing.T) {
	b := newBench(t, 0, fleet.Device{ID: "d1", Tenant: "main"}, fleet.Device{ID: "d2", Tenant: "main"}, fleet.Device{ID: "d3", Tenant: "main"})
	b.stop()
	reader := fleet.Peripheral{ID: "reader", Category: "SmartCardRW", Model: "R1", Power: "PS_ONLINE", Said: fleet.Light{Health: "OK"}}
	for _, d := range []fleet.DeviceID{"d1", "d2", "d3"} {
		b.reports(d, reader)
		for _, v := range []float64{0, 10} {
			b.commit(fleet.Intake{Device: d, Samples: []fleet.Sample{{At: time.Now(), Peripheral: "reader", Name: "M_CardInsertedCount", Value: v, Epoch: 5}}})
		}
	}
	b.from = poisoned{b.Store, "d2"}
	b.start(0)
	for _, d := range []fleet.DeviceID{"d1", "d3"} {
		b.shows(d, "reader", "its reads", func(p fleet.Peripheral) bool { return p.Reads != nil })
	}
}

// TestSweep turns the light of a printer that says nothing more.
func TestSweep(t *testing.T) {
	b := newBench(t, 0, fleet.Device{ID: "d1", Tenant: "main"})
	b.reports("d1", printer(10_000))
	now := time.Now()
	b.counted("d1", now.Add(-2*time.Hour), 1000)
	b.happened("d1", now.Add(-119*time.Minute), "REC_EMPTY", "REC_PAPEROK")
	for m := 118; m >= 0; m-- {
		b.counted("d1", now.Add(-time.Duration(m)*time.Minute), 1000+float64(119-m)*50)
	}
	b.shows("d1", "receipt", "a prediction", func(p fleet.Peripheral) bool { return p.Paper != nil && p.Paper.LinesLeft < 4100 })
	got, err := b.RunningOut(t.Context(), now.Add(time.Hour), 0.5, 10, now)
	if err != nil || len(got) != 0 {
		t.Errorf("before its time: got %v, %v, want nobody", got, err)
	}
	got, err = b.RunningOut(t.Context(), now.Add(2*time.Hour), 0.5, 10, now)
	if err != nil || len(got) != 1 {
		t.Errorf("got %v, %v, want d1", got, err)
	}
	b.shows("d1", "receipt", "that paper ends soon", func(p fleet.Peripheral) bool { return p.Reason == "M_PAPER_SOON" })
	if got, err = b.RunningOut(t.Context(), now.Add(2*time.Hour), 0.5, 10, now); err != nil || len(got) != 0 {
		t.Errorf("a second time: got %v, %v, want nobody", got, err)
	}
}

// TestReaders compares readers of one model, of one tenant.
func TestReaders(t *testing.T) {
	var devices []fleet.Device
	for n := range 12 {
		devices = append(devices, fleet.Device{ID: fleet.DeviceID(fmt.Sprintf("d%02d", n)), Tenant: "main"})
	}
	devices = append(devices, fleet.Device{ID: "x1", Tenant: "other"})
	b := newBench(t, 0, devices...)
	reader := fleet.Peripheral{
		ID: "reader", Category: "SmartCardRW", Maker: "Maker", Model: "R1", Power: "PS_ONLINE", Sensors: map[string]string{"SCPresentSensor": "No"},
		Said: fleet.Light{Health: "OK", Since: time.Now().Add(-24 * time.Hour)},
	}
	for _, d := range devices {
		b.commit(fleet.Intake{Device: d.ID, Tenant: d.Tenant, Report: &fleet.Report{Peripherals: []fleet.Peripheral{reader}}})
		failures := 2.0
		switch d.ID {
		case "d03":
			failures = 40
		case "x1":
			failures = 190 // another tenant's: nobody's baseline here
		}
		for n, v := range []float64{0, 1} {
			b.commit(fleet.Intake{Device: d.ID, Tenant: d.Tenant, Samples: []fleet.Sample{
				{At: time.Now(), Peripheral: "reader", Name: "M_CardInsertedCount", Value: 200 * v, Epoch: 5, Seq: uint64(n)},
				{At: time.Now(), Peripheral: "reader", Name: "M_CardResetFailedCount", Value: failures * v, Epoch: 5},
			}})
		}
	}
	for _, d := range devices[:12] {
		b.shows(d.ID, "reader", "its reads", func(p fleet.Peripheral) bool { return p.Reads != nil && p.Reads.Reads == 200 })
	}
	// It is looked at again, now that all have counted.
	b.commit(fleet.Intake{Device: "d03", Samples: []fleet.Sample{{At: time.Now(), Peripheral: "reader", Name: "M_CardInsertedCount", Value: 201, Epoch: 5}}})
	p := b.shows("d03", "reader", "that it reads worse", func(p fleet.Peripheral) bool { return p.Reason == "M_READ_ERRORS" })
	if p.Health != "Attention" || !p.Reads.Worse || p.Reads.FleetRate != 0.01 || p.Reads.Rate < 0.19 {
		t.Errorf("got %s and %+v, want 0.2 against the 0.01 of the others", p.Health, p.Reads)
	}
	for _, d := range devices[:12] {
		if h, err := b.History(t.Context(), "main", d.ID, "reader", time.Time{}); err != nil || d.ID != "d03" && h.Health != "OK" {
			t.Errorf("%s: got %s %s, %v, want OK", d.ID, h.Health, h.Reason, err)
		}
	}
}

// TestBacklog has a till come back after weeks, and go on: of a roll that should
// have been at its end long ago nothing is said, and no light turns for it.
func TestBacklog(t *testing.T) {
	b := newBench(t, 2*time.Hour, fleet.Device{ID: "d1", Tenant: "main"})
	b.reports("d1", printer(10_000))
	began := time.Now().Add(-20 * 24 * time.Hour)
	at := func(minutes int) time.Time { return began.Add(time.Duration(minutes) * time.Minute) }
	b.counted("d1", at(0), 70_000)
	b.happened("d1", at(1), "REC_EMPTY", "REC_PAPEROK")
	for m := 2; m <= 300; m++ {
		b.counted("d1", at(m), 70_000+float64(m)*10)
	}
	b.read("d1")
	if p := b.now("d1", "receipt"); p.Paper != nil || p.Health != "OK" {
		t.Errorf("weeks later: got %s %s and %+v, want nothing", p.Health, p.Reason, p.Paper)
	}
	for m := 10; m >= 0; m-- { // it was away meanwhile
		b.counted("d1", time.Now().Add(-time.Duration(m)*time.Minute), 74_000-float64(m)*10)
	}
	b.shows("d1", "receipt", "a prediction", func(p fleet.Peripheral) bool {
		return p.Paper != nil && p.Paper.LinesLeft < 6100 && p.Paper.RunOutAt.After(time.Now())
	})
	h, err := b.History(t.Context(), "main", "d1", "receipt", time.Time{})
	must(t, err)
	if len(h.Spans) != 1 {
		t.Errorf("spans: got %+v, want OK all the time", h.Spans)
	}
}

// TestClockAhead shows that a till whose clock runs ahead by years is taken at
// the service's, and that the clock may be put right.
func TestClockAhead(t *testing.T) {
	b := newBench(t, 2*time.Hour, fleet.Device{ID: "d1", Tenant: "main"}, fleet.Device{ID: "d2", Tenant: "main"})
	reader := fleet.Peripheral{ID: "reader", Category: "SmartCardRW", Model: "R1", Power: "PS_ONLINE", Sensors: map[string]string{"SCPresentSensor": "No"}, Said: fleet.Light{Health: "OK"}}
	b.reports("d1", reader)
	b.reports("d2", reader)
	count := func(device fleet.DeviceID, boot byte, at time.Time, epoch time.Time, n float64) {
		b.commit(fleet.Intake{Device: device, Samples: []fleet.Sample{{Boot: [16]byte{boot}, At: at, Peripheral: "reader", Name: "M_CardInsertedCount", Value: n, Epoch: epoch.Unix()}}})
	}
	now := time.Now()
	wrong := now.AddDate(10, 0, 0)
	count("d2", 2, now, now, 0)
	count("d2", 2, now, now, 30)
	b.shows("d2", "reader", "its reads", func(p fleet.Peripheral) bool { return p.Reads != nil })
	count("d1", 1, wrong, wrong, 0)
	count("d1", 1, wrong.Add(time.Minute), wrong, 50)
	b.shows("d1", "reader", "its reads", func(p fleet.Peripheral) bool { return p.Reads != nil && p.Reads.Reads == 50 })
	count("d1", 3, time.Now(), now, 7)
	b.shows("d1", "reader", "what it read by the right clock", func(p fleet.Peripheral) bool { return p.Reads.Reads == 57 })
	today := time.Now().Unix() / 86400
	if d, err := b.Baseline(t.Context(), "main", "R1", today-1); err != nil || d.Reads != 87 {
		t.Errorf("baseline: got %+v, %v, want all 87", d, err)
	}
	if d, err := b.Baseline(t.Context(), "main", "R1", today+2); err != nil || d.Reads != 0 {
		t.Errorf("baseline of days to come: got %+v, %v, want nothing", d, err)
	}

	b.reports("d1", printer(10_000))
	at := func(minutes int) time.Time { return wrong.Add(time.Duration(minutes) * time.Minute) }
	b.counted("d1", at(0), 70_000)
	b.happened("d1", at(1), "REC_EMPTY", "REC_PAPEROK")
	for m := 2; m <= 20; m++ {
		b.counted("d1", at(m), 70_000+float64(m)*10)
	}
	b.read("d1")
	if p := b.now("d1", "receipt").Paper; p != nil && p.RunOutAt.After(time.Now().AddDate(1, 0, 0)) {
		t.Errorf("paper: got %+v, want no time by the clock of the till", p)
	}
}
