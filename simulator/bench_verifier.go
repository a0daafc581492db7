package simulator

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/tillward/tillward/provisioning/ca"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/provisioning/identity"
	"github.com/tillward/tillward/simulator/swarm"
)

// everybody lets every device with a trusted EK certificate in.
type everybody struct{}

// Owner implements enrol.Directory.
func (everybody) Owner(_ context.Context, a enrol.Applicant) (string, identity.Tier, error) {
	return "bench", a.Tier, nil
}

// Enrolled implements enrol.Directory.
func (everybody) Enrolled(context.Context, enrol.Member) error { return nil }

// benchVerifier measures what an enrolment costs the service: with the EKs of
// the fleet, and with RSA EKs below an RSA authority, which most makers have.
func (w *World) benchVerifier(ctx context.Context, fleet []*benchDevice) ([]Figure, error) {
	pem, err := os.ReadFile(w.farm.CA())
	if err != nil {
		return nil, err
	}
	makers := x509.NewCertPool()
	makers.AppendCertsFromPEM(pem)
	var chips []endorsed
	for _, d := range fleet {
		chips = append(chips, d.tpm)
	}
	seconds, err := w.verifierCPU(ctx, makers, chips)
	if err != nil {
		return nil, err
	}
	per := func(f func(float64) float64) (runs []float64) {
		for _, s := range seconds {
			runs = append(runs, f(s))
		}
		return runs
	}
	plain := figure("enrolments_per_cpu_second", "1/s", per(func(s float64) float64 { return 1 / s }))
	plain.CPU = sum(seconds) * float64(benchRounds*len(chips))

	key, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		return nil, err
	}
	maker, err := swarm.NewAuthority(key)
	if err != nil {
		return nil, err
	}
	makers = x509.NewCertPool()
	makers.AddCert(maker.Certificate())
	chips = nil
	for n := range uint64(benchFleet) {
		ek, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return nil, err
		}
		chips = append(chips, swarm.New("bench", n, maker, ek))
	}
	if seconds, err = w.verifierCPU(ctx, makers, chips); err != nil {
		return nil, err
	}
	rsaEK := figure("enrolment_cpu_ms_rsa_ek", "ms", per(func(s float64) float64 { return s * 1000 }))
	rsaEK.CPU = sum(seconds) * float64(benchRounds*len(chips))
	return []Figure{plain, rsaEK}, nil
}

// endorsed is what an enrolment needs of a TPM.
type endorsed interface {
	enrol.Endorser
	enrol.Prover
}

const benchRounds = 4 // threads are billed coarsely

func sum(v []float64) (s float64) {
	for _, x := range v {
		s += x
	}
	return s
}

// verifierCPU enrols TPMs at a service of which only the CPU time of the threads
// that serve the two requests counts: EK chain, credential, proofs and both
// certificates, without TLS and without a database. It returns the seconds of
// one enrolment, run by run.
func (w *World) verifierCPU(ctx context.Context, makers *x509.CertPool, chips []endorsed) ([]float64, error) {
	authority, err := ca.Open(filepath.Join(w.opt.Dir), "bench-ca", ca.Options{})
	if err != nil {
		return nil, err
	}
	handler := enrol.NewServer(enrol.Options{
		VirtualRoots: makers, Directory: everybody{}, Issuer: authority, Life: time.Hour,
		Welcome: func(context.Context, enrol.Member) (enrol.Result, error) { return enrol.Result{}, nil },
		Audit:   func(context.Context, string, string, string, map[string]string) {},
		Log:     slog.New(slog.DiscardHandler),
	})
	var used atomic.Int64 // microseconds
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		began := cpu(syscall.RUSAGE_THREAD)
		handler.ServeHTTP(rw, r)
		used.Add(int64((cpu(syscall.RUSAGE_THREAD) - began) * 1e6))
	}))
	cert, err := authority.IssueServer([]string{"localhost"}, time.Hour)
	if err != nil {
		return nil, err
	}
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true}
	srv.StartTLS()
	defer srv.Close()
	roots := x509.NewCertPool()
	roots.AddCert(authority.Root())
	var runs []float64
	for range benchRuns {
		used.Store(0)
		for range benchRounds {
			for _, chip := range chips {
				c := &enrol.Client{URL: srv.URL, Roots: roots, ServerName: "localhost", Model: "bench", TPM: chip}
				if _, err := c.Enrol(ctx); err != nil {
					return nil, fmt.Errorf("enrol: %w", err)
				}
			}
		}
		runs = append(runs, float64(used.Load())/1e6/float64(benchRounds*len(chips)))
	}
	return runs, nil
}
