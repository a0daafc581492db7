package cloud

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/tillward/tillward/cloud/internal/broker"
	"github.com/tillward/tillward/cloud/internal/figures"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/identity"
)

// wireFigures makes what counts, before anything that is counted.
func (s *Service) wireFigures() (err error) {
	s.figures = figures.New(figures.Options{Store: s.store, Log: s.log})
	commits, rows, reads := s.figures.Op("store", "commit"), s.figures.Op("store-rows", "changed"), s.figures.Op("store-reads", "query")
	s.store.Observe(func(n int64, took time.Duration, err error) {
		commits.Done(how(err), took, 0)
		if how(err) == figures.Failed {
			s.commits.beat(err)
		} else {
			s.commits.beat(nil)
		}
		if err == nil {
			rows.Count(figures.OK, n)
		}
	}, func() { reads.Count(figures.OK, 1) })
	c := s.cfg.AccessLog
	if c.File == "" {
		return nil
	}
	if !filepath.IsAbs(c.File) {
		c.File = filepath.Join(s.cfg.DataDir, c.File)
	}
	s.access, err = figures.OpenLog(c.File, c.MaxMiB, c.Keep, s.log)
	return err
}

// timed counts what one thing that a part does took, and when it went well.
func (s *Service) timed(part, name string, p *pulse) func(took time.Duration, err error) {
	op := s.figures.Op(part, name)
	return func(took time.Duration, err error) {
		op.Done(figures.How(err), took, 0)
		p.beat(err)
	}
}

// meter counts what devices send and are sent by MQTT.
func (s *Service) meter() broker.Meter {
	up, down := map[wire.Channel]*figures.Op{}, map[wire.Channel]*figures.Op{}
	for _, c := range []wire.Channel{wire.Telemetry, wire.Live, wire.Event, wire.Audit, wire.State, wire.Result, wire.Evidence} {
		up[c] = s.figures.Op("mqtt-up", strings.TrimPrefix(string(c), "up/"))
	}
	for _, c := range []wire.Channel{wire.DownCommand, wire.DownOffer, wire.DownConfig, wire.DownChallenge} {
		down[c] = s.figures.Op("mqtt-down", strings.TrimPrefix(string(c), "down/"))
	}
	connects := s.figures.Op("mqtt-connect", "connect")
	return broker.Meter{
		Connected: func(took time.Duration, err error) {
			how := figures.OK
			if err != nil {
				how = figures.Refused
			}
			connects.Done(how, took, 0)
		},
		Answered: func(c wire.Channel, bytes int, took time.Duration, err error) {
			up[c].Done(figures.How(err), took, int64(bytes))
		},
		Sent: func(c wire.Channel, _ int, err error) {
			down[c].Count(figures.How(err), 1)
		},
	}
}

// send has a command sent, and counts it.
func (s *Service) send(ctx context.Context, r fleet.CommandRequest) (fleet.Command, error) {
	began := time.Now()
	c, err := s.dispatch.Send(ctx, r)
	s.figures.Op("dispatch", "send").Done(how(err), time.Since(began), 0)
	return c, err
}

// how tells what was asked wrongly from what went wrong.
func how(err error) figures.Outcome {
	for _, theirs := range []error{fleet.ErrInvalid, fleet.ErrNotFound, fleet.ErrExists, fleet.ErrConflict, fleet.ErrForbidden, fleet.ErrExpired, fleet.ErrRevoked, fleet.ErrReplaced} {
		if errors.Is(err, theirs) {
			return figures.Refused
		}
	}
	return figures.How(err)
}

// deliver sends a device the commands that have waited for it, and counts that.
func (s *Service) deliver(ctx context.Context, device fleet.DeviceID) error {
	began := time.Now()
	err := s.dispatch.Deliver(ctx, device)
	s.figures.Op("dispatch", "deliver").Done(figures.How(err), time.Since(began), 0)
	return err
}

// deviceRoute names what devices ask for by HTTPS.
func deviceRoute(pattern string) string {
	if _, path, ok := strings.Cut(pattern, " "); ok {
		pattern = path
	}
	if strings.HasPrefix(pattern, "/tuf/") {
		return "artifacts"
	}
	return strings.TrimPrefix(strings.TrimPrefix(pattern, "/v1/"), "/.well-known/")
}

// known tells the access log which device asks.
func (s *Service) known(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil {
			if id, err := identity.FromTLS(*r.TLS); err == nil {
				figures.Asks(r.Context(), id.Device)
			}
		}
		next.ServeHTTP(w, r)
	})
}
