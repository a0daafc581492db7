package road_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/simulator/swarm"
)

// serveEnv tells this program to be the service; its value is the configuration.
const serveEnv = "TILLWARD_ROAD_SERVICE"

func TestMain(m *testing.M) {
	if file := os.Getenv(serveEnv); file != "" {
		if err := serve(file); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func serve(file string) error {
	cfg, err := cloud.Load(file)
	if err != nil {
		return err
	}
	s, err := cloud.New(context.Background(), cfg, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError + 1})))
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(s.Addrs()); err != nil {
		return err
	}
	return s.Run(context.Background())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// service is the fleet service in a process that can be killed.
type service struct {
	t     testing.TB
	dir   string
	maker *swarm.Authority

	mu    sync.Mutex
	cmd   *exec.Cmd
	addrs cloud.Addrs
}

func newService(t testing.TB) *service {
	t.Helper()
	maker, err := swarm.NewAuthority(nil)
	must(t, err)
	s := &service{t: t, dir: t.TempDir(), maker: maker}
	roots := filepath.Join(s.dir, "swarm.pem")
	must(t, os.WriteFile(roots, maker.PEM(), 0o600))
	cfg := cloud.DefaultConfig()
	cfg.DataDir, cfg.LogLevel = filepath.Join(s.dir, "data"), "error"
	cfg.Device.MQTT, cfg.Device.HTTPS, cfg.Operator.Listen, cfg.Metrics.Listen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	cfg.Device.Names = []string{"localhost", "127.0.0.1"}
	cfg.Operator.Plain = true
	cfg.Enrol.VirtualEKRoots, cfg.Enrol.AutoClaim = []string{roots}, true
	cfg.Attest.Unjudged = "attested"
	must(t, os.WriteFile(filepath.Join(s.dir, "tillward.toml"), []byte(cfg.String()), 0o600))
	must(t, s.start())
	t.Cleanup(func() { s.kill(); s.wait() })
	return s
}

func (s *service) start() error {
	cmd := exec.Command(os.Args[0]) // #nosec G204 -- this very program
	cmd.Env = append(os.Environ(), serveEnv+"="+filepath.Join(s.dir, "tillward.toml"))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cmd = cmd
	return json.NewDecoder(out).Decode(&s.addrs)
}

// kill ends the process as a power cut would end it.
func (s *service) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.cmd.Process.Kill()
}

func (s *service) wait() { _ = s.cmd.Wait() }

// again kills the service and starts it anew, on other addresses.
func (s *service) again() {
	s.kill()
	s.wait()
	if err := s.start(); err != nil {
		s.t.Error(err)
	}
}

func (s *service) at() cloud.Addrs {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addrs
}

func (s *service) roots() *x509.CertPool {
	s.t.Helper()
	pem, err := os.ReadFile(filepath.Join(s.dir, "data", "service-roots.pem"))
	must(s.t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return pool
}

// get asks the API as an operator.
func (s *service) get(path string, out any) {
	s.t.Helper()
	token, err := os.ReadFile(filepath.Join(s.dir, "data", "admin.token"))
	must(s.t, err)
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, "http://"+s.at().Operator+path, nil)
	must(s.t, err)
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	resp, err := http.DefaultClient.Do(req)
	must(s.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(s.t, err)
	if resp.StatusCode != http.StatusOK {
		s.t.Fatalf("%s: %s: %s", path, resp.Status, b)
	}
	must(s.t, json.Unmarshal(b, out))
}

// member enrols the nth device of this test.
func (s *service) member(n uint64) (*swarm.Device, enrol.Result) {
	s.t.Helper()
	d := swarm.New("road", n, s.maker, nil)
	c := &enrol.Client{URL: "https://" + s.at().HTTPS, Roots: s.roots(), ServerName: "localhost", Model: "road", Serial: fmt.Sprint("S-", n), TPM: d}
	m, err := c.Enrol(s.t.Context())
	must(s.t, err)
	return d, m
}

// line is the network between till and service. It counts what the till sends,
// and ends connections in the middle of it.
type line struct {
	t      testing.TB
	ln     net.Listener
	target func() string
	wg     sync.WaitGroup

	mu     sync.Mutex
	random *rand.Rand
	fault  func(n int, random *rand.Rand) fault // asked once for the nth connection
	conns  map[net.Conn]bool
	closed bool
	faults map[string]int
	first  bytes.Buffer // what the first connection sent
	n      int
}

// fault is what happens to a connection when the till has sent so many bytes.
type fault struct {
	kind  string // "": nothing; cut; deaf: nothing more comes back, and then it is cut; kill: the service is killed
	after int
	deaf  int // bytes that still go up
	kill  func()
}

func newLine(t testing.TB, seed uint64, target func() string, fault func(n int, random *rand.Rand) fault) *line {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	l := &line{t: t, ln: ln, target: target, fault: fault, random: rand.New(rand.NewPCG(seed, 1)), conns: map[net.Conn]bool{}, faults: map[string]int{}} // #nosec G404 -- a test's
	l.wg.Go(l.accept)
	t.Cleanup(l.close)
	return l
}

func (l *line) close() {
	_ = l.ln.Close()
	l.mu.Lock()
	l.closed = true
	for c := range l.conns {
		_ = c.Close()
	}
	l.mu.Unlock()
	l.wg.Wait()
}

func (l *line) hold(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns[c] = true
	return !l.closed
}

func (l *line) accept() {
	for {
		c, err := l.ln.Accept()
		if err != nil {
			return
		}
		l.wg.Go(func() { l.carry(c) })
	}
}

func (l *line) carry(c net.Conn) {
	defer c.Close()
	s, err := net.DialTimeout("tcp", l.target(), 10*time.Second)
	if err != nil {
		return
	}
	defer s.Close()
	if !l.hold(c) || !l.hold(s) {
		return
	}
	l.mu.Lock()
	l.n++
	first := l.n == 1
	f := l.fault(l.n, l.random)
	l.mu.Unlock()
	var deaf sync.Once
	silent := make(chan struct{})
	var back sync.WaitGroup
	back.Go(func() {
		buf := make([]byte, 16<<10)
		for {
			n, err := s.Read(buf)
			if n > 0 {
				select {
				case <-silent: // swallowed: acknowledgements among it
				default:
					_, _ = c.Write(buf[:n])
				}
			}
			if err != nil {
				_ = c.Close()
				return
			}
		}
	})
	defer back.Wait()
	defer s.Close()
	buf := make([]byte, 4<<10)
	for sent := 0; ; {
		n, err := c.Read(buf)
		if n > 0 {
			if first {
				l.mu.Lock()
				l.first.Write(buf[:n])
				l.mu.Unlock()
			}
			if _, err := s.Write(buf[:n]); err != nil {
				return
			}
			sent += n
		}
		if f.kind == "" || sent < f.after {
			if err != nil {
				return
			}
			continue
		}
		if f.kind == "deaf" {
			deaf.Do(func() {
				close(silent)
				_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)) // its window is full by then
			})
			if err == nil && sent < f.after+f.deaf {
				continue
			}
		}
		l.mu.Lock()
		l.faults[f.kind]++
		l.mu.Unlock()
		if f.kind == "kill" {
			f.kill()
		}
		return
	}
}

// keys is what a link shows as a certificate.
func keys(t testing.TB, d *swarm.Device, m enrol.Result) tls.Certificate {
	t.Helper()
	key, err := d.Signer()
	must(t, err)
	return tls.Certificate{Certificate: m.Chain, PrivateKey: key}
}
