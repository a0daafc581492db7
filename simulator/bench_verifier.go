package simulator

import (
	"context"
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
)

// everybody lets every device with a trusted EK certificate in.
type everybody struct{}

// Owner implements enrol.Directory.
func (everybody) Owner(_ context.Context, a enrol.Applicant) (string, identity.Tier, error) {
	return "bench", a.Tier, nil
}

// Enrolled implements enrol.Directory.
func (everybody) Enrolled(context.Context, enrol.Member) error { return nil }

// benchVerifier enrols the fleet at a service of which only the CPU time of
// the threads that serve the two requests counts: EK chain, credential,
// proofs and certificate, without TLS and without a database.
func (w *World) benchVerifier(ctx context.Context, fleet []*benchDevice) (Figure, error) {
	authority, err := ca.Open(filepath.Join(w.opt.Dir), "bench-ca", ca.Options{})
	if err != nil {
		return Figure{}, err
	}
	pem, err := os.ReadFile(w.farm.CA())
	if err != nil {
		return Figure{}, err
	}
	makers := x509.NewCertPool()
	makers.AppendCertsFromPEM(pem)
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
		return Figure{}, err
	}
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true}
	srv.StartTLS()
	defer srv.Close()
	roots := x509.NewCertPool()
	roots.AddCert(authority.Root())
	var runs []float64
	total := 0.0
	for range benchRuns {
		used.Store(0)
		const rounds = 4 // threads are billed coarsely
		for range rounds {
			for _, d := range fleet {
				c := &enrol.Client{URL: srv.URL, Roots: roots, ServerName: "localhost", Model: "bench", TPM: d.tpm}
				if _, err := c.Enrol(ctx); err != nil {
					return Figure{}, fmt.Errorf("enrol: %w", err)
				}
			}
		}
		s := float64(used.Load()) / 1e6
		total += s
		runs = append(runs, float64(rounds*len(fleet))/s)
	}
	f := figure("enrolments_per_cpu_second", "1/s", runs)
	f.CPU = total
	return f, nil
}
