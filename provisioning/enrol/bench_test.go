package enrol

import (
	"runtime"
	"sync/atomic"
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

// BenchmarkVerifier runs whole enrolments with every kind of EK; cpu-ms/op is
// what the threads spend that serve the two requests: EK chain, credential,
// proofs and both certificates, without TLS.
func BenchmarkVerifier(b *testing.B) {
	for name, kind := range map[string]struct{ rsa, p384 bool }{"P-256": {}, "P-384": {p384: true}, "RSA-2048": {rsa: true}} {
		b.Run(name, func(b *testing.B) {
			s := newSite(b, true)
			s.farm.RSA, s.farm.P384 = kind.rsa, kind.p384
			var used atomic.Int64
			s.around = func(serve func()) {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				began := spent(b, syscall.RUSAGE_THREAD)
				serve()
				used.Add(int64(spent(b, syscall.RUSAGE_THREAD) - began))
			}
			c := s.client(s.till(b))
			for b.Loop() {
				if _, err := c.Enrol(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(time.Duration(used.Load()).Seconds()*1000/float64(b.N), "cpu-ms/op")
		})
	}
}

// cpu is the time this process has spent.
func cpu(b *testing.B) time.Duration { return spent(b, syscall.RUSAGE_SELF) }

func spent(b *testing.B, who int) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(who, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
