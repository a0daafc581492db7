package enrol

import (
	"syscall"
	"testing"
	"time"
)

// BenchmarkEnrol runs whole enrolments; cpu-ms/op is what this process spends
// on both halves and TLS, the TPM being a process of its own.
func BenchmarkEnrol(b *testing.B) {
	s := newSite(b, true)
	c := s.client(s.till(b))
	before := cpu(b)
	for b.Loop() {
		if _, err := c.Enrol(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	used := cpu(b) - before
	b.ReportMetric(used.Seconds()*1000/float64(b.N), "cpu-ms/op")
	b.ReportMetric(float64(b.N)/used.Seconds(), "enrolments/cpu-s")
}

// cpu is the time this process has spent.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
