package simulator

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/provisioning/ca"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/provisioning/identity"
)

const (
	benchFleet   = 16  // devices on software TPMs
	benchWindow  = 32  // publishes of one device in flight
	benchPublish = 500 // of one device in one run
)

// benchDevice is a device without an agent: it speaks the contract itself.
type benchDevice struct {
	tpm    *tpm.TPM
	signer crypto.Signer
	member enrol.Result
	roots  *x509.CertPool
	broker string
	boot   wire.Boot
	seq    uint64
}

// benchDevices enrols a small fleet and measures the service with it. The
// software TPMs are processes of their own: their CPU time is not counted,
// that of both ends of the protocol is.
func benchDevices(ctx context.Context, o BenchOptions) ([]Figure, error) {
	w, err := Open(ctx, Options{Dir: filepath.Join(o.Dir, "devices"), Bin: o.Bin, Unjudged: "attested", Out: io.Discard, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	defer w.Close()
	var fleet []*benchDevice
	defer func() {
		for _, d := range fleet {
			_ = d.tpm.Close()
		}
	}()
	for i := range benchFleet {
		d, err := w.benchDevice(ctx, i)
		if err != nil {
			return nil, err
		}
		fleet = append(fleet, d)
	}
	limit, err := verifies()
	if err != nil {
		return nil, err
	}
	enrolments, err := w.benchEnrol(ctx, fleet)
	if err != nil {
		return nil, err
	}
	verifier, err := w.benchVerifier(ctx, fleet)
	if err != nil {
		return nil, err
	}
	again, err := benchReattest(ctx)
	if err != nil {
		return nil, err
	}
	verifier[0].Beside, enrolments.Beside, again.Beside = &limit, &limit, &limit
	plain, err := benchHandshakes(ctx)
	if err != nil {
		return nil, err
	}
	connects, err := benchConnects(ctx, fleet)
	if err != nil {
		return nil, err
	}
	connects.Beside = &plain
	disk, err := appends(o.Dir)
	if err != nil {
		return nil, err
	}
	publishes, err := benchPublishes(ctx, fleet)
	if err != nil {
		return nil, err
	}
	publishes.Beside = &disk
	return append(verifier, again, enrolments, connects, publishes), nil
}

func (w *World) benchDevice(ctx context.Context, i int) (*benchDevice, error) {
	chip, err := w.farm.Start(ctx, filepath.Join(w.opt.Dir, "chips", strconv.Itoa(i)))
	if err != nil {
		return nil, err
	}
	dev, err := tpm.Open("unix:" + chip.Socket())
	if err != nil {
		return nil, err
	}
	d := &benchDevice{tpm: dev, roots: x509.NewCertPool(), broker: w.service.cfg.Device.MQTT, boot: wire.Boot{1, byte(i)}}
	if d.signer, err = dev.Signer(ctx); err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(w.service.roots())
	if err != nil {
		return nil, err
	}
	d.roots.AppendCertsFromPEM(pem)
	return d, nil
}

// benchEnrol enrols the fleet again and again. Client and service share the
// process, so the figure is a lower bound for the service alone.
func (w *World) benchEnrol(ctx context.Context, fleet []*benchDevice) (Figure, error) {
	var runs []float64
	total := 0.0
	for range benchRuns {
		began := cpu(syscall.RUSAGE_SELF)
		for _, d := range fleet {
			c := &enrol.Client{URL: "https://" + w.service.cfg.Device.HTTPS, Roots: d.roots, ServerName: "localhost", Model: "bench", TPM: d.tpm}
			res, err := c.Enrol(ctx)
			if err != nil {
				return Figure{}, fmt.Errorf("enrol: %w", err)
			}
			d.member = res
		}
		used := cpu(syscall.RUSAGE_SELF) - began
		total += used
		runs = append(runs, float64(len(fleet))/used)
	}
	f := figure("enrolments_per_cpu_second_both_ends", "1/s", runs)
	f.CPU = total
	return f, nil
}

// connect makes an MQTT connection, attested when prove is set.
func (d *benchDevice) connect(ctx context.Context, prove bool) (mqtt.Client, error) {
	var state tls.ConnectionState
	verdict := make(chan string, 1)
	o := mqtt.NewClientOptions().AddBroker("tls://" + d.broker).SetClientID(d.member.Device).SetAutoReconnect(false).
		SetProtocolVersion(4).SetKeepAlive(time.Minute).SetOrderMatters(false)
	o.SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) {
		c := &tls.Dialer{Config: &tls.Config{
			RootCAs: d.roots, ServerName: "localhost", MinVersion: tls.VersionTLS13,
			Certificates: []tls.Certificate{{Certificate: d.member.Chain, PrivateKey: d.signer}},
		}}
		conn, err := c.DialContext(ctx, "tcp", d.broker)
		if t, ok := conn.(*tls.Conn); ok {
			state = t.ConnectionState()
		}
		return conn, err
	})
	o.SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) {
		if c, err := wire.Decode[wire.Challenge](m.Payload()); err == nil && c.Verdict != "" {
			select {
			case verdict <- c.Verdict:
			default:
			}
		}
	})
	c := mqtt.NewClient(o)
	if t := c.Connect(); !t.WaitTimeout(20*time.Second) || t.Error() != nil {
		return nil, fmt.Errorf("connect: %w", errors.Join(t.Error(), ctx.Err()))
	}
	if !prove {
		return c, nil
	}
	exporter, err := state.ExportKeyingMaterial(enrol.ConnExporterLabel, nil, 32)
	if err != nil {
		return nil, err
	}
	extra := enrol.ConnBinding(d.member.Device, exporter, 1)
	quoted, sig, pcrs, err := d.tpm.Quote(ctx, extra[:])
	if err != nil {
		return nil, err
	}
	ev, err := wire.Encode(&wire.EvidenceReport{Head: d.head(), Quoted: quoted, Signature: sig, PCRs: pcrs, Seq: 1, AgentVersion: "bench"})
	if err != nil {
		return nil, err
	}
	if t := c.Subscribe(wire.Down(d.member.Tenant, d.member.Device, true), 1, nil); !t.WaitTimeout(20*time.Second) || t.Error() != nil {
		return nil, fmt.Errorf("subscribe: %w", t.Error())
	}
	topic := wire.Topic{Tenant: d.member.Tenant, Device: d.member.Device, Quarantine: true, Channel: wire.Evidence}
	c.Publish(topic.String(), 1, false, ev)
	select {
	case v := <-verdict:
		if v != "attested" {
			return nil, fmt.Errorf("verdict %s", v)
		}
		return c, nil
	case <-time.After(20 * time.Second):
		return nil, errors.New("no verdict")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (d *benchDevice) head() wire.Head {
	d.seq++
	return wire.Head{V: wire.Version, Boot: d.boot, Seq: d.seq, Sent: time.Now().UnixMilli()}
}

// benchConnects counts TLS handshakes with CONNECT, without evidence.
func benchConnects(ctx context.Context, fleet []*benchDevice) (Figure, error) {
	var runs []float64
	total := 0.0
	for range benchRuns {
		began := cpu(syscall.RUSAGE_SELF)
		for range 3 {
			for _, d := range fleet {
				c, err := d.connect(ctx, false)
				if err != nil {
					return Figure{}, err
				}
				c.Disconnect(0)
			}
		}
		used := cpu(syscall.RUSAGE_SELF) - began
		total += used
		runs = append(runs, float64(3*len(fleet))/used)
	}
	f := figure("mtls_connects_per_cpu_second_both_ends", "1/s", runs)
	f.CPU = total
	return f, nil
}

// benchHandshakes is the machine's own limit: mutual TLS 1.3 handshakes of
// crypto/tls with P-256 keys in software, both ends, nothing else.
func benchHandshakes(ctx context.Context) (Figure, error) {
	dir, err := os.MkdirTemp("", "tillward-bench-")
	if err != nil {
		return Figure{}, err
	}
	defer os.RemoveAll(dir)
	authority, err := ca.Open(dir, "bench", ca.Options{})
	if err != nil {
		return Figure{}, err
	}
	server, err := authority.IssueServer([]string{"localhost"}, time.Hour)
	if err != nil {
		return Figure{}, err
	}
	client, err := authority.IssueServer([]string{"device"}, time.Hour) // for its key
	if err != nil {
		return Figure{}, err
	}
	id := identity.Identity{Tenant: "bench", Device: identity.DeviceID([]byte("bench")), Tier: identity.TierC}
	signer, ok := client.PrivateKey.(crypto.Signer)
	if !ok {
		return Figure{}, errors.New("key cannot sign")
	}
	der, err := authority.IssueDevice(id, signer.Public(), time.Hour)
	if err != nil {
		return Figure{}, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(authority.Root())
	sc := &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: authority.Pool(), ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true}
	cc := &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: signer}}}
	const n = 48
	var runs []float64
	for range benchRuns {
		began := cpu(syscall.RUSAGE_SELF)
		for range n {
			a, b := net.Pipe()
			var wg sync.WaitGroup
			var serr error
			s := tls.Server(a, sc)
			wg.Go(func() { serr = s.HandshakeContext(ctx) })
			cerr := tls.Client(b, cc).HandshakeContext(ctx)
			wg.Wait()
			_, _ = a.Close(), b.Close()
			if err := errors.Join(serr, cerr); err != nil {
				return Figure{}, err
			}
		}
		runs = append(runs, n/(cpu(syscall.RUSAGE_SELF)-began))
	}
	return figure("plain_mutual_tls_handshakes_per_cpu_second_both_ends", "1/s", runs), nil
}

// benchPublishes measures messages of about 300 bytes from publish to PUBACK,
// which the service writes after its commit.
func benchPublishes(ctx context.Context, fleet []*benchDevice) (Figure, error) {
	clients := make([]mqtt.Client, len(fleet))
	for i, d := range fleet {
		c, err := d.connect(ctx, true)
		if err != nil {
			return Figure{}, err
		}
		defer c.Disconnect(0)
		clients[i] = c
	}
	var runs []float64
	cpuBefore := cpu(syscall.RUSAGE_SELF)
	for range benchRuns {
		began := time.Now()
		errs := make([]error, len(fleet))
		var wg sync.WaitGroup
		for i, d := range fleet {
			wg.Go(func() { errs[i] = d.publish(clients[i]) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return Figure{}, err
		}
		runs = append(runs, float64(len(fleet)*benchPublish)/time.Since(began).Seconds())
	}
	f := figure("qos1_publishes_stored_per_second", "1/s", runs)
	f.CPU = cpu(syscall.RUSAGE_SELF) - cpuBefore
	return f, nil
}

func (d *benchDevice) publish(c mqtt.Client) error {
	topic := wire.Topic{Tenant: d.member.Tenant, Device: d.member.Device, Channel: wire.Telemetry}.String()
	slots := make(chan mqtt.Token, benchWindow)
	wait := func(t mqtt.Token) error {
		if !t.WaitTimeout(time.Minute) {
			return errors.New("no acknowledgement within a minute")
		}
		return t.Error()
	}
	for range benchPublish {
		b := wire.TelemetryBatch{Head: d.head()}
		for i := range 8 {
			b.Samples = append(b.Samples, wire.Sample{At: b.Head.Sent, Peripheral: "receipt", Name: "bench_series_" + strconv.Itoa(i), Value: float64(d.seq)})
		}
		payload, err := wire.Encode(&b)
		if err != nil {
			return err
		}
		if len(slots) == cap(slots) {
			if err := wait(<-slots); err != nil {
				return err
			}
		}
		slots <- c.Publish(topic, 1, false, payload)
	}
	close(slots)
	for t := range slots {
		if err := wait(t); err != nil {
			return err
		}
	}
	return nil
}
