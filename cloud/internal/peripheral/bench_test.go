package peripheral_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// BenchmarkFold is what a sample of a printer that has been known for six weeks costs.
func BenchmarkFold(b *testing.B) {
	p := newTape(18876)
	for m := range 6 * 7 * 24 * 60 {
		if m%18 == 0 {
			p.total += 45 * day12(p.at)
		}
		p.count()
	}
	b.ReportAllocs()
	for b.Loop() {
		p.total += 45
		p.count()
		p.Predict(time.UTC)
	}
}

// BenchmarkDerive is what the worker does for a till with a printer and a reader of which a minute has come in.
func BenchmarkDerive(b *testing.B) {
	const tills = 500
	var devices []fleet.Device
	for n := range tills {
		devices = append(devices, fleet.Device{ID: fleet.DeviceID(fmt.Sprintf("d%03d", n)), Tenant: "main"})
	}
	x := newBench(b, 2*time.Hour, devices...)
	reader := fleet.Peripheral{ID: "reader", Category: "SmartCardRW", Model: "R1", Power: "PS_ONLINE", Sensors: map[string]string{"SCPresentSensor": "No"}, Said: fleet.Light{Health: "OK", Since: time.Now()}}
	began, minute := time.Now().Add(-1000*time.Hour), 0
	feed := func() {
		minute++
		for _, d := range devices {
			in := fleet.Intake{Device: d.ID}
			for _, s := range []struct {
				peripheral, name string
				value            float64
			}{{"receipt", "ReceiptLineFeedCount", float64(60 * minute)}, {"receipt", "PaperCutCount", float64(minute)}, {"reader", "M_CardInsertedCount", float64(minute)}, {"reader", "M_CardResetFailedCount", 0}} {
				in.Samples = append(in.Samples, fleet.Sample{At: began.Add(time.Duration(minute) * time.Minute), Peripheral: s.peripheral, Name: s.name, Value: s.value, Epoch: 7, Kept: true})
			}
			x.commit(in)
		}
	}
	for _, d := range devices {
		x.reports(d.ID, printer(18876), reader)
	}
	feed()
	x.stop()
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		feed()
		b.StartTimer()
		must(b, x.w.Once(b.Context()))
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*tills), "µs/till")
}
