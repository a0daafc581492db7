package cloud

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/tillward/tillward/cloud/console"
	"github.com/tillward/tillward/cloud/internal/api"
	"github.com/tillward/tillward/cloud/internal/figures"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/rollout"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/provisioning/identity"
	"github.com/tillward/tillward/provisioning/makers"
)

// drain is how long requests may take to finish when the service stops.
const drain = 5 * time.Second

// serve runs h on ln until ctx ends.
func (s *Service) serve(ctx context.Context, ln net.Listener, cfg *tls.Config, h http.Handler) error {
	srv := &http.Server{
		Handler: h, TLSConfig: cfg, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), BaseContext: func(net.Listener) context.Context { return ctx },
	}
	if cfg != nil {
		ln = tls.NewListener(ln, cfg)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		_ = srv.Close()
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// serveDevices serves enrolment, which needs no client certificate, and
// artifacts, which do.
func (s *Service) serveDevices(ctx context.Context) error {
	tpmMakers, err := s.tpmMakers()
	if err != nil {
		return err
	}
	virtual, err := pool(s.cfg.Enrol.VirtualEKRoots)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	join := enrol.NewServer(enrol.Options{
		EKRoots: tpmMakers, VirtualRoots: virtual, Directory: &directory{s}, Registry: &directory{s}, Issuer: s.devices, Boot: s.booted,
		Life: time.Duration(s.cfg.Enrol.CertDays) * 24 * time.Hour, Welcome: s.welcome, Audit: s.audit, Log: s.log,
	})
	for _, path := range []string{
		enrol.PathEnrol, enrol.PathEvidence, enrol.PathRenew, enrol.PathRotate, enrol.PathRotated, enrol.PathCACerts, enrol.PathReenroll,
	} {
		mux.Handle(path, join)
	}
	artifacts := http.StripPrefix("/tuf", s.catalog.Handler())
	mux.HandleFunc("/tuf/", func(w http.ResponseWriter, r *http.Request) {
		id, err := identity.FromTLS(*r.TLS)
		if err == nil {
			_, err = s.admit(r.Context(), id)
		}
		if err != nil {
			http.Error(w, "a member's client certificate is needed", http.StatusForbidden)
			return
		}
		if ofAnother(r.URL.Path, id.Tenant) {
			http.NotFound(w, r)
			return
		}
		artifacts.ServeHTTP(w, r)
	})
	return s.serve(ctx, s.https, &tls.Config{
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { // authorities come and go while we run
			return &tls.Config{
				GetCertificate: s.server.get, ClientCAs: s.devices.Pool(), ClientAuth: tls.VerifyClientCertIfGiven,
				MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true,
			}, nil
		},
		MinVersion: tls.VersionTLS13,
	}, s.figures.Handler("device", s.access, deviceRoute, s.known(mux)))
}

// ofAnother reports whether a path below /tuf is the content of a release that
// another tenant than the one who asks has made. What there is of it stands in
// the metadata, which is for everybody.
func ofAnother(name, tenant string) bool {
	own, ok := strings.CutPrefix(strings.TrimPrefix(path.Clean("/"+name), "/"), "tuf/targets/ops/")
	whose, _, _ := strings.Cut(own, "/")
	return ok && whose != tenant
}

// serveOperators serves API and console.
func (s *Service) serveOperators(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.Handle("/v1/", s.figures.Handler("api", s.access, nil, api.New(api.Deps{
		Tenant: s.tenant, Store: s.store, Accounts: s.accounts, Send: s.send,
		Releases: releases{s},
		Watch:    s.hub.Subscribe, Changed: s.hub.Publish, Wake: s.rollout.Wake, Version: Version, Log: s.log,
		Preview: s.rollout.Preview, Why: s.rollout.Why, Check: rollout.Check, FourEyes: s.cfg.Rollout.Approval == ApprovalOther,
		Hours: func(text string) error {
			_, err := rollout.ParseHours(text)
			return err
		},
		Owners: s.owners, Exports: s.export, Trails: s.shelf, Challenge: s.verifier.Challenge, Disconnect: s.broker.Disconnect, Authorities: s.authorities, Reappraise: func(model string) { s.verifier.Reappraise(model) }, Rotate: s.rotate, Retire: s.retire,
		Known: figures.Asks, Figures: s.figures, Health: s.health.Parts,
	})))
	app := console.Handler()
	mux.Handle("/", s.figures.Handler("console", nil, func(string) string { return "files" }, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		app.ServeHTTP(w, r)
	})))
	if s.cfg.Operator.Plain {
		return s.serve(ctx, s.operator, nil, mux)
	}
	cfg := &tls.Config{GetCertificate: s.server.get, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	if s.cfg.Operator.Cert != "" {
		cert, err := tls.LoadX509KeyPair(s.cfg.Operator.Cert, s.cfg.Operator.Key)
		if err != nil {
			return fmt.Errorf("operator certificate: %w", err)
		}
		cfg.GetCertificate = nil
		cfg.Certificates = []tls.Certificate{cert}
	}
	return s.serve(ctx, s.operator, cfg, mux)
}

// serveMetrics serves Prometheus metrics and health on loopback.
func (s *Service) serveMetrics(ctx context.Context) error {
	if s.metrics == nil {
		return nil
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		&fleetMetrics{service: s},
		exportMetrics{s.export.States, s.log}, ingestMetrics{s.ingest.Stats}, s.figures, s.health,
	)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", s.healthz)
	return s.serve(ctx, s.metrics, nil, mux)
}

// welcome is what every new member is told.
func (s *Service) welcome(ctx context.Context, m enrol.Member) (enrol.Result, error) {
	voucher, err := s.voucher(ctx, m.Device)
	if err != nil {
		return enrol.Result{}, err
	}
	seq, hash, err := s.store.AuditHead(ctx, fleet.DeviceID(m.Device))
	if err != nil && !errors.Is(err, fleet.ErrNotFound) {
		return enrol.Result{}, err
	}
	host := s.cfg.Device.Advertise
	if host == "" {
		host = s.cfg.Device.Names[0]
	}
	id, key := s.signer.Public()
	return enrol.Result{
		Brokers: []string{join(host, s.mqtt)}, Artifacts: "https://" + join(host, s.https) + "/tuf",
		OrderKeys: []enrol.OrderKey{{ID: id, Public: key}}, ReattestS: uint32(s.cfg.Attest.Every.Seconds()), Voucher: voucher,
		TrailSeq: seq, TrailHash: hash[:],
	}, nil
}

func join(host string, l net.Listener) string {
	port := 0
	if a, ok := l.Addr().(*net.TCPAddr); ok {
		port = a.Port
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

// tpmMakers holds the authorities of tier A: pinned ones of the folder, which
// are believed each for itself, and what the configuration names beside them.
func (s *Service) tpmMakers() (*x509.CertPool, error) {
	e := s.cfg.Enrol
	p := x509.NewCertPool()
	if len(e.Makers) > 0 {
		open := makers.Builtin
		if e.MakersDir != "" {
			open = func() (*makers.Folder, error) { return makers.Open(os.DirFS(e.MakersDir)) }
		}
		folder, err := open()
		if err != nil {
			return nil, fmt.Errorf("enrol.makers: %w", err)
		}
		believed, err := folder.Believed(e.Makers...)
		if err != nil {
			return nil, fmt.Errorf("enrol.makers: %w; see tillward-provision maker list", err)
		}
		for _, c := range believed {
			p.AddCert(c.Certificate)
		}
	}
	return p, addFiles(p, e.EKRoots)
}

// pool reads PEM files of certificate authorities; nil when there are none.
func pool(files []string) (*x509.CertPool, error) {
	if len(files) == 0 {
		return nil, nil
	}
	p := x509.NewCertPool()
	return p, addFiles(p, files)
}

func addFiles(p *x509.CertPool, files []string) error {
	for _, f := range files {
		b, err := os.ReadFile(f) // #nosec G304 -- the operator names the file
		if err != nil {
			return fmt.Errorf("EK authorities: %w", err)
		}
		if !p.AppendCertsFromPEM(b) {
			return fmt.Errorf("EK authorities: %s holds no certificate", f)
		}
	}
	return nil
}
