package agent

import (
	"context"
	"log/slog"

	"github.com/tillward/tillward/agent/internal/discover"
)

// FindService says where this box would enrol now and who said so, for -check.
func FindService(ctx context.Context, cfg Config, log *slog.Logger) (address, source string, err error) {
	s, err := cfg.discover(ctx, log)
	return s.Enrol, s.Source, err
}

func (c Config) discover(ctx context.Context, log *slog.Logger) (discover.Service, error) {
	return discover.Find(ctx, discover.Options{
		Files: c.Service.Files, Leases: c.Service.Leases, Log: log,
		Default: discover.Service{Enrol: c.Service.Enrol, ServerName: c.Service.ServerName, Roots: c.Service.Roots, Claim: c.Service.ClaimCode},
	})
}

// findService looks the service up anew at each try to enrol: a stick may be
// plugged in, and a lease come, at any time. What has changed is recorded.
func (a *Agent) findService(ctx context.Context) (discover.Service, error) {
	a.sought = true
	s, err := a.cfg.discover(ctx, a.log)
	if err != nil {
		return s, err
	}
	if s != a.found {
		a.found = s
		a.log.Info("fleet service found", slog.Any("service", s))
		a.record(ctx, "service.found", "info", s.Enrol, map[string]string{"source": word(s.Source), "server_name": s.ServerName})
	}
	return s, nil
}
