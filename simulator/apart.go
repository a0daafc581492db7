package simulator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/tillward/tillward/simulator/child"
)

const (
	readyWithin = 2 * time.Minute // of a service that starts; a desk may be busy
	endedWithin = time.Minute     // of one that is told to end
)

// apart is the fleet service in a process of its own, as it ships, so that it
// can be killed.
type apart struct {
	bin string // tillward
	log io.Writer
	now *child.Child // nil: off
}

// spawn starts the process and waits until it answers. What has no port yet
// gets one that is free, and keeps it.
func (s *service) spawn(ctx context.Context) error {
	for _, addr := range []*string{&s.cfg.Device.MQTT, &s.cfg.Device.HTTPS, &s.cfg.Operator.Listen, &s.cfg.Metrics.Listen} {
		if strings.HasSuffix(*addr, ":0") {
			free, err := freePorts(ctx, 1)
			if err != nil {
				return err
			}
			*addr = free[0]
		}
	}
	file := filepath.Join(filepath.Dir(s.cfg.DataDir), "service.toml")
	if err := os.WriteFile(file, []byte(s.cfg.String()), 0o600); err != nil {
		return fmt.Errorf("start the fleet service: %w", err)
	}
	p := s.apart
	cmd := exec.Command(p.bin, "serve", "--config", file) // #nosec G204 -- our own binary
	cmd.Stdout, cmd.Stderr = p.log, p.log
	var err error
	if p.now, err = child.Start(cmd); err != nil {
		return fmt.Errorf("start the fleet service: %w", err)
	}
	return s.answers(ctx)
}

// answers waits until the service does.
func (s *service) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url()+"/v1/openapi.json", nil)
		if err != nil {
			return fmt.Errorf("start the fleet service: %w", err)
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			return resp.Body.Close()
		}
		select {
		case <-s.apart.now.Done():
			return fmt.Errorf("start the fleet service: it ended at once: %w; its words are in service.log", s.apart.now.Wait())
		case <-ctx.Done():
			return fmt.Errorf("start the fleet service: no answer: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// signal sends one to the process and waits for its end.
func (p *apart) signal(sig syscall.Signal) error {
	if p.now == nil {
		return nil
	}
	c := p.now
	p.now = nil
	_ = c.Signal(sig)
	select {
	case <-c.Done():
		if sig == syscall.SIGKILL {
			return nil
		}
		return c.Wait()
	case <-time.After(endedWithin):
		c.Kill()
		return errors.Join(errors.New("the fleet service did not end when it was told to"), c.Wait())
	}
}

// KillService is kill -9 at the service, which must be Apart; StartService
// brings it back.
func (w *World) KillService() error {
	if w.service.apart == nil {
		return errors.New("the fleet service runs in this process")
	}
	return w.service.apart.signal(syscall.SIGKILL)
}

// EndService tells the service to end, and waits for it.
func (w *World) EndService() error { return w.service.end() }

// StartService starts the service on the same addresses, with what it has stored.
func (w *World) StartService(ctx context.Context) error { return w.service.start(ctx) }
