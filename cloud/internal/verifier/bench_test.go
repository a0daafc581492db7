package verifier_test

import (
	"context"
	"crypto/sha256"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/verifier"
	"github.com/tillward/tillward/provisioning/boot"
)

// onFile keeps one device in memory: what an appraisal costs without a database.
type onFile struct {
	*desk
	refs []fleet.BootReference
}

func (o *onFile) Appraised(context.Context, fleet.Attestation, bool, ...fleet.AuditEvent) error {
	return nil
}

func (o *onFile) References(context.Context, string) ([]fleet.BootReference, error) {
	return o.refs, nil
}

// BenchmarkReattest is the CPU time of one appraisal, without a database: of the quote alone, and with registers and
// event log. Compare cpu-ms/op with 0.3, the most that a quote alone may cost.
func BenchmarkReattest(b *testing.B) {
	for name, steady := range map[string]bool{"steady": true, "full": false} {
		b.Run(name, func(b *testing.B) {
			c := newChip(b, "dev-1", "os/1")
			events, err := boot.ParseLog(c.fw.Log(), c.fw.Registers())
			if err != nil {
				b.Fatal(err)
			}
			ref := boot.Observe(model, "os/1", "main", []int{0, 4, 7, 8, 9}, events)
			o := &onFile{desk: &desk{exporter: here}, refs: []fleet.BootReference{{Model: model, Release: "os/1", Body: ref.Bytes()}}}
			digest := sha256.Sum256(slices.Concat(c.fw.Registers()...))
			o.d = fleet.Device{
				ID: "dev-1", Tenant: "main", Model: model, AKPublic: c.ak(), Trust: fleet.Attested, BootDigest: digest[:], BootRelease: "os/1", ResetCount: c.reset,
			}
			v := verifier.New(verifier.Options{
				Devices: o, Firmware: o, Link: o.desk, Every: time.Minute, Changed: func(fleet.Device) {}, Log: quiet,
			})
			at := time.Now()
			var shown []verifier.Evidence
			for i := range 512 {
				m := c.full(here, uint64(i+1))
				if steady {
					m = c.steady(here, uint64(i+1))
				}
				shown = append(shown, verifier.Evidence{Device: "dev-1", Payload: encode(b, m), Exporter: here})
			}
			b.ResetTimer()
			began := cpu(b)
			for i := 0; b.Loop(); i++ {
				e := shown[i%len(shown)]
				if i%len(shown) == 0 && i > 0 { // another connection, for the sequence to begin again
					b.StopTimer()
					v = verifier.New(verifier.Options{
						Devices: o, Firmware: o, Link: o.desk, Every: time.Minute, Changed: func(fleet.Device) {}, Log: quiet,
					})
					b.StartTimer()
				}
				at = at.Add(time.Minute)
				e.At = at
				if err := v.Appraise(b.Context(), e); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric((cpu(b)-began)/float64(b.N), "cpu-ms/op")
			if got := o.last(); got.Verdict != "attested" {
				b.Fatalf("got %+v", got)
			}
		})
	}
}

// cpu is the time that this process has used, in milliseconds.
func cpu(b *testing.B) float64 {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e6
}
