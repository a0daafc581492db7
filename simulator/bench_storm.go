package simulator

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/tillward/tillward/cloud"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/simulator/swarm"
)

// stormAtOnce is how many devices speak at the same moment; the others queue,
// as they would behind a line that is full.
const stormAtOnce = 64

// storm is a fleet on the wire against a service in a process of its own, so
// that the CPU time of the two can be told apart.
type storm struct {
	devices []*swarm.Device
	members []enrol.Result
	pid     int
	enrolAt string // https URL
	broker  string
	api     string // http URL of operators
	conf    *tls.Config
	say     io.Writer
	store   string // URL of its database; empty: SQLite
	first   uint64 // sequence before the first of the working tills, which are in every run
}

// benchStorm enrols o.Storm devices with software keys and lets all of them
// come back twice, as after a power cut of a whole region: first from a boot
// the service has not seen, then from one it knows. It fails when one is
// refused.
func benchStorm(ctx context.Context, o BenchOptions) (figures []Figure, err error) {
	if o.Storm < 1 {
		return nil, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &storm{say: o.Say}
	maker, err := swarm.NewAuthority(nil)
	if err != nil {
		return nil, err
	}
	done, err := s.serve(ctx, o, maker)
	if err != nil {
		return nil, err
	}
	defer func() {
		cancel()
		err = errors.Join(err, <-done)
	}()
	for i := range o.Storm {
		s.devices = append(s.devices, swarm.New("storm", uint64(i), maker, nil)) // #nosec G115 -- counts up from 0
	}
	s.grow()
	for _, part := range []struct {
		name string
		do   func(ctx context.Context, i int) error
	}{
		{"storm_enrolment", s.join},
		{"storm_first_evidence", func(ctx context.Context, i int) error { return s.back(ctx, i, false) }},
		{"storm_reconnect", func(ctx context.Context, i int) error { return s.back(ctx, i, true) }},
	} {
		began, service, own := time.Now(), processCPU(s.pid), cpu(syscall.RUSAGE_SELF)
		refused, again, first := s.each(ctx, part.name, part.do)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if refused > 0 {
			return figures, fmt.Errorf("%s: %d of %d devices were refused; one of them: %w", part.name, refused, o.Storm, first)
		}
		used := processCPU(s.pid) - service
		f := figure(part.name+"_service_cpu_ms", "ms of CPU a device", []float64{used * 1000 / float64(o.Storm)})
		f.CPU, f.Devices, f.Wall, f.Retries = used, o.Storm, time.Since(began).Seconds(), again
		beside := figure("devices_own_cpu_ms", "ms of CPU a device", []float64{(cpu(syscall.RUSAGE_SELF) - own) * 1000 / float64(o.Storm)})
		f.Beside = &beside
		figures = append(figures, f)
	}
	bytes, err := s.capture(ctx)
	return append(figures, bytes...), err
}

// grow makes room for what the devices become.
func (s *storm) grow() { s.members = make([]enrol.Result, len(s.devices)) }

// capture counts what one steady reconnect puts on the wire, from the first
// byte of TLS to the verdict: payload of TCP, without its headers.
func (s *storm) capture(ctx context.Context) ([]Figure, error) {
	addr, counts, end, err := swarm.Tap(ctx, s.broker)
	if err != nil {
		return nil, err
	}
	defer end()
	c, err := s.devices[0].Connect(ctx, addr, s.conf, s.members[0])
	if err != nil {
		return nil, err
	}
	open := counts()
	e, err := s.devices[0].Steady(c.Exporter, 1, time.Now().UnixMilli())
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	v, err := c.Prove(ctx, e)
	if err == nil && v.Verdict != "attested" {
		err = fmt.Errorf("verdict %q", v.Verdict)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	all := counts()
	var out []Figure
	for _, part := range []struct {
		name  string
		bytes int64
	}{
		{"reconnect_evidence_message_bytes", int64(len(e))},
		{"reconnect_tls_connect_subscribe_up_bytes", open.Up},
		{"reconnect_tls_connect_subscribe_down_bytes", open.Down},
		{"reconnect_evidence_up_bytes", all.Up - open.Up},
		{"reconnect_verdict_down_bytes", all.Down - open.Down},
		{"reconnect_bytes", all.Up + all.Down},
	} {
		out = append(out, figure(part.name, "bytes", []float64{float64(part.bytes)}))
	}
	out[0].Limit = wire.MaxSteadyEvidence
	return out, c.Close()
}

// serve starts the service that ships, with what it needs for this fleet.
func (s *storm) serve(ctx context.Context, o BenchOptions, maker *swarm.Authority) (<-chan error, error) {
	dir := filepath.Join(o.Dir, "storm")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("storm: %w", err)
	}
	roots := filepath.Join(dir, "swarm.pem")
	if err := os.WriteFile(roots, maker.PEM(), 0o600); err != nil {
		return nil, fmt.Errorf("storm: %w", err)
	}
	ports, err := freePorts(ctx, 3)
	if err != nil {
		return nil, err
	}
	cfg := cloud.DefaultConfig()
	cfg.DataDir, cfg.Tenant, cfg.LogLevel = filepath.Join(dir, "service"), "storm", "error"
	cfg.Device.MQTT, cfg.Device.HTTPS, cfg.Operator.Listen = ports[0], ports[1], ports[2]
	cfg.Device.Names, cfg.Device.MaxClients = []string{"localhost", "127.0.0.1"}, o.Storm+stormAtOnce
	cfg.Operator.Plain, cfg.Metrics.Listen = true, ""
	cfg.Enrol.VirtualEKRoots, cfg.Enrol.AutoClaim = []string{roots}, true
	cfg.Attest.Unjudged = "attested"
	cfg.Store.URL = s.store
	file := filepath.Join(dir, "tillward.toml")
	if err := os.WriteFile(file, []byte(cfg.String()), 0o600); err != nil {
		return nil, fmt.Errorf("storm: %w", err)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(o.Bin, "tillward"), "serve", "--config", file) // #nosec G204 -- our own binary
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	cmd.Stderr = o.Say
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("storm: %w", err)
	}
	s.pid, s.enrolAt, s.broker, s.api = cmd.Process.Pid, "https://"+ports[1], ports[0], "http://"+ports[2]
	done := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		if ctx.Err() != nil {
			err = nil // it was told to end
		}
		done <- err
	}()
	if err := s.ready(ctx, ports[2]); err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(filepath.Join(cfg.DataDir, "service-roots.pem"))
	if err != nil {
		return nil, fmt.Errorf("storm: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	s.conf = &tls.Config{RootCAs: pool, ServerName: "localhost", MinVersion: tls.VersionTLS13}
	return done, nil
}

// ready waits until the service answers.
func (s *storm) ready(ctx context.Context, operator string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+operator+"/v1/openapi.json", nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			return resp.Body.Close()
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("the service does not answer: %w", err)
		}
	}
}

// stormTries is how often a device tries before it counts as refused: a
// connection may break, and an agent tries again. What the service refused is
// not tried again.
const stormTries = 3

// errJudged is a verdict that a good device must not get.
var errJudged = errors.New("not attested")

// each lets every device do something, stormAtOnce at a time, and returns how
// many could not, how often one had to try again, and why one could not.
func (s *storm) each(ctx context.Context, what string, do func(context.Context, int) error) (refused, again int, first error) {
	var next, failed, retries, done atomic.Int64
	var once sync.Once
	var wg sync.WaitGroup
	show := newProgress(s.say, what, len(s.devices))
	for range stormAtOnce {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(s.devices) {
					return
				}
				err := do(ctx, i)
				for try := 1; err != nil && try < stormTries && !errors.Is(err, errJudged) && !errors.Is(err, enrol.ErrRefused); try++ {
					retries.Add(1)
					err = do(ctx, i)
				}
				if err != nil {
					failed.Add(1)
					once.Do(func() { first = err })
				}
				show(int(done.Add(1)))
			}
		})
	}
	wg.Wait()
	return int(failed.Load()), int(retries.Load()), first
}

func (s *storm) join(ctx context.Context, i int) (err error) {
	c := &enrol.Client{URL: s.enrolAt, Roots: s.conf.RootCAs, ServerName: "localhost", Model: "storm", Serial: fmt.Sprint("S-", i), TPM: s.devices[i]}
	s.members[i], err = c.Enrol(ctx)
	return err
}

// back is one device's reconnect: TLS, CONNECT, evidence, verdict.
func (s *storm) back(ctx context.Context, i int, steady bool) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	c, err := s.devices[i].Connect(ctx, s.broker, s.conf, s.members[i])
	if err != nil {
		return err
	}
	evidence := s.devices[i].Evidence
	if steady {
		evidence = s.devices[i].Steady
	}
	b, err := evidence(c.Exporter, 1, time.Now().UnixMilli())
	if err != nil {
		return errors.Join(err, c.Close())
	}
	v, err := c.Prove(ctx, b)
	if err == nil && v.Verdict != "attested" {
		err = fmt.Errorf("%w: verdict %q: %v", errJudged, v.Verdict, v.Reasons)
	}
	return errors.Join(err, c.Close())
}

// freePorts returns loopback addresses that nobody listens on.
func freePorts(ctx context.Context, n int) (addrs []string, err error) {
	for range n {
		ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer ln.Close() //nolint:gocritic,revive // all stay taken until the last is found
		addrs = append(addrs, ln.Addr().String())
	}
	return addrs, nil
}

// newProgress returns a function that says how far something is, at most ten
// times in all; on a terminal a person sees it move.
func newProgress(w io.Writer, what string, total int) func(done int) {
	var told atomic.Int64
	return func(done int) {
		tenth := int64(done * 10 / max(total, 1))
		if before := told.Load(); tenth > before && told.CompareAndSwap(before, tenth) {
			fmt.Fprintf(w, "%s: %d of %d\n", what, done, total)
		}
	}
}
