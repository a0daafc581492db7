package simulator

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/tillward/tillward/cloud"
)

// service runs the fleet service in this process, with its data in a folder,
// so that it can be stopped and started again on the same addresses.
type service struct {
	cfg  cloud.Config
	log  *slog.Logger
	run  *cloud.Service
	stop context.CancelFunc
	done chan error

	apart *apart // nil: it runs in this process
}

// start opens the service and waits until its listeners are bound.
func (s *service) start(ctx context.Context) error {
	if s.apart != nil {
		return s.spawn(ctx)
	}
	run, err := cloud.New(ctx, s.cfg, s.log)
	if err != nil {
		return fmt.Errorf("start the fleet service: %w", err)
	}
	s.run = run
	addrs := run.Addrs()
	s.cfg.Device.MQTT, s.cfg.Device.HTTPS, s.cfg.Operator.Listen = addrs.MQTT, addrs.HTTPS, addrs.Operator
	if addrs.Metrics != "" {
		s.cfg.Metrics.Listen = addrs.Metrics
	}
	ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	s.done = make(chan error, 1)
	go func() { s.done <- run.Run(ctx) }()
	return nil
}

// end stops the service and waits for it.
func (s *service) end() error {
	if s.apart != nil {
		return s.apart.signal(syscall.SIGTERM)
	}
	if s.stop == nil {
		return nil
	}
	s.stop()
	s.stop = nil
	return <-s.done
}

// restart stops the service and starts it again on the same addresses.
func (s *service) restart(ctx context.Context) error {
	if err := s.end(); err != nil {
		return err
	}
	return s.start(ctx)
}

// roots is the PEM file by which devices recognise the service.
func (s *service) roots() string { return filepath.Join(s.cfg.DataDir, "service-roots.pem") }

// tokenFile holds the operator token of the first start.
func (s *service) tokenFile() string { return filepath.Join(s.cfg.DataDir, "admin.token") }

func (s *service) url() string { return "http://" + s.cfg.Operator.Listen }

func (s *service) operator() (*Operator, error) {
	b, err := os.ReadFile(s.tokenFile())
	if err != nil {
		return nil, fmt.Errorf("read the operator token: %w", err)
	}
	return &Operator{base: s.url(), token: strings.TrimSpace(string(b)), client: &http.Client{}}, nil
}
