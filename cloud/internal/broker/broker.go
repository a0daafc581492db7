// Package broker lets devices in and carries their messages. It is the only
// importer of mochi-mqtt.
//
// It promises: who speaks is who the certificate says; only topics of the
// contract pass, and until the verifier has accepted a connection's evidence
// only those of the q door, and for good where the certificate opens no more; a
// PUBACK is written after the message was stored, or never - then the connection
// is closed, and nothing that came behind it on that connection is acknowledged,
// so that the device's order holds. A device that is cut off is gone at once,
// also while it comes in. Two connections of one identity that take turns are
// told as what they are: copies.
//
// It stores nothing, appraises nothing and decodes no payload. Only devices
// speak to it, so a down message is written to the one connection it is for;
// mochi's routing, its retained messages and its sessions are not used.
//
// The package is larger than 600 lines: whoever keeps a device's connection must
// also be who opens, closes and counts it.
package broker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/identity"
)

// Limits of one connection, of the handshake and of the end.
const (
	handshakeTime = 10 * time.Second
	handshakes    = 512              // at once
	connectTime   = 10 * time.Second // from handshake to CONNECT, and for Admit
	keepaliveMax  = 10 * time.Minute
	writeTime     = 20 * time.Second
	ackQueue      = 256         // messages of one device whose PUBACK is not written yet
	sendQueue     = 32          // down messages that wait for a slow reader
	violationsMax = 8           // of one connection, then it is closed
	noteEvery     = time.Minute // violations of one device that are told
	maxClients    = 20_000
	drainTime     = 5 * time.Second // for what was let in when the broker stops
	partTime      = 3 * time.Second // for the last word of a connection that was taken over
)

// ErrOffline means that the device has no connection open for that topic.
var ErrOffline = errors.New("device is not connected")

// Message is one up message. Ack must be called once: with nil after the
// commit, or with what went wrong.
type Message struct {
	Identity  identity.Identity
	Admission fleet.Admission // of the connection it came by
	Topic     wire.Topic
	Payload   []byte
	Exporter  []byte // keying material of the connection; names it
	Ack       func(error)
	// Dead reports whether the connection acknowledges nothing any more: a message
	// of it was not stored, it was cut off, or the device has come back by another
	// one. What it still has waiting need not be stored: the device sends it again.
	Dead func() bool
}

// Options of a Broker. All functions must be set.
type Options struct {
	Listener net.Listener // TCP
	TLS      *tls.Config  // with certificate; the broker sets the rest
	// Clients returns the authorities of device certificates. It is asked at each
	// handshake, so that they can change under a live fleet; it returns the same
	// pool as long as they do not.
	Clients       func() *x509.CertPool
	ExporterLabel string // RFC 8446, 7.5
	MaxClients    int64  // 20,000 when zero

	// Admit is asked once per connection, before it may do anything, what the
	// certificate opens.
	Admit func(ctx context.Context, id identity.Identity) (fleet.Admission, error)
	// Submit takes a message; false means no room: the connection is closed. It may
	// hold the connection up for a few seconds, which is then not read.
	Submit func(Message) bool
	// Presence tells of devices that come and go, one at a time. The last call
	// for a device is always how it is.
	Presence func(device fleet.DeviceID, online bool, at time.Time)
	// Ready tells that a device can be sent to: one that is trusted when it has
	// subscribed to the d door, one that is not (Restricted) by the q door after
	// each verdict.
	Ready func(device fleet.DeviceID)
	// Violation tells of what a device tried and may not, at most once a minute
	// for each device.
	Violation func(device, what string)
	// Refused tells of a device that Admit answered with fleet.ErrForbidden or
	// fleet.ErrNotFound, at most once a minute for each.
	Refused func(device string, err error)
	// Clone tells of two live connections of one identity, at most once in five
	// minutes for each device.
	Clone func(device, what string)
	Meter Meter
	Log   *slog.Logger
}

// Meter is told how often things happen and how long they take, on the way of
// each: it must neither wait nor allocate. What is nil hears nothing.
type Meter struct {
	// Connected tells of a connection that was let in or not, from the first byte
	// on; err says why not.
	Connected func(took time.Duration, err error)
	// Answered tells of a message from when it came to when its PUBACK can be
	// written, or is not.
	Answered func(channel wire.Channel, bytes int, took time.Duration, err error)
	// Sent tells of a message to a device that is queued for it, or not.
	Sent func(channel wire.Channel, bytes int, err error)
}

func (m *Meter) connected(began time.Time, err error) {
	if m.Connected != nil {
		m.Connected(time.Since(began), err)
	}
}

// Broker is the MQTT server of the fleet service.
type Broker struct {
	o        Options
	server   *mqtt.Server
	listener *listener
	ready    sync.WaitGroup // calls of Ready

	mu       sync.Mutex
	entering map[*session]bool     // not admitted yet; true: cut off meanwhile
	sessions map[string]*session   // by device
	conns    map[net.Conn]*session // by connection, taken-over ones too
	noted    map[string]time.Time  // what was told, and when
	copies   map[string]*copies    // takeovers of live connections, by device
	closing  bool
	letIn    int           // messages whose Ack was not called
	drained  chan struct{} // closed when closing and letIn is 0

	presence sync.Mutex
	told     map[string]bool // devices told to be online
}

// New returns a broker that serves when Run is called.
func New(o Options) (*Broker, error) {
	if o.TLS == nil || o.Clients == nil || o.Clients() == nil || (len(o.TLS.Certificates) == 0 && o.TLS.GetCertificate == nil) {
		return nil, errors.New("broker: give a certificate and the authorities of device certificates; without them any public authority would do")
	}
	if o.MaxClients == 0 {
		o.MaxClients = maxClients
	}
	caps := mqtt.NewDefaultServerCapabilities()
	caps.MaximumClients = o.MaxClients
	caps.MaximumMessageExpiryInterval = 60
	caps.MaximumClientWritesPending = sendQueue
	caps.MaximumSessionExpiryInterval = 0
	caps.MaximumPacketSize = wire.MaxMessage + wire.MaxTopic + 16
	caps.ReceiveMaximum = ackQueue
	caps.MaximumInflight = ackQueue
	caps.TopicAliasMaximum = 0
	caps.SharedSubAvailable = 0
	caps.MinimumProtocolVersion = 4
	caps.MaximumQos = 2 // not 1: mochi would quietly lower QoS 2 instead of letting us refuse it
	caps.RetainAvailable = 0
	caps.SubIDAvailable = 0
	b := &Broker{
		o: o, entering: map[*session]bool{}, sessions: map[string]*session{}, conns: map[net.Conn]*session{},
		noted: map[string]time.Time{}, copies: map[string]*copies{}, told: map[string]bool{}, drained: make(chan struct{}),
	}
	b.server = mqtt.New(&mqtt.Options{
		Capabilities:             caps,
		ClientNetReadBufferSize:  64,
		ClientNetWriteBufferSize: 1024,
		SysTopicResendInterval:   math.MaxInt32,
		// mochi logs whole packets, payloads included; what matters is logged here.
		Logger: slog.New(slog.DiscardHandler),
	})
	// Exactly one hook answers for authentication and access: hooks are OR-ed.
	if err := b.server.AddHook(&hook{b: b}, nil); err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	b.listener = newListener(o.Listener, config(o.TLS, o.Clients), o.Log, b.left, &b.o.Meter)
	if err := b.server.AddListener(b.listener); err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	return b, nil
}

// config is what the handshake goes by. The authorities are looked up in each
// one; a configuration is made anew only when they have changed.
func config(base *tls.Config, clients func() *x509.CertPool) *tls.Config {
	with := func(pool *x509.CertPool) *tls.Config {
		cfg := base.Clone()
		cfg.MinVersion = tls.VersionTLS13
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
		cfg.ClientCAs = pool
		cfg.SessionTicketsDisabled = true // a resumed session skips the client's signature
		cfg.GetConfigForClient = nil
		return cfg
	}
	var present atomic.Pointer[tls.Config]
	first := with(clients())
	present.Store(first)
	first = first.Clone()
	first.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		pool := clients()
		if pool == nil {
			return nil, errors.New("no authority of device certificates") // any public one would do
		}
		cfg := present.Load()
		if cfg.ClientCAs != pool {
			cfg = with(pool)
			present.Store(cfg)
		}
		return cfg, nil
	}
	return first
}

// Run serves until ctx ends. Then it lets nothing more in, waits a little for
// the acknowledgement of what it let in, and disconnects every device; whoever
// takes messages should stop after it.
func (b *Broker) Run(ctx context.Context) error {
	// Not Serve: its event loop looks after sessions, wills and retained
	// messages that we refuse, and walks all clients twice a second for it.
	b.server.Listeners.ServeAll(b.server.EstablishConnection)
	<-ctx.Done()
	b.drain()
	if err := b.server.Close(); err != nil {
		return fmt.Errorf("stop MQTT: %w", err)
	}
	b.ready.Wait()
	return nil
}

// drain waits until what was let in is acknowledged and the PUBACKs are
// written, or until drainTime has passed.
func (b *Broker) drain() {
	end := time.NewTimer(drainTime)
	defer end.Stop()
	b.listener.stop()
	b.mu.Lock()
	b.closing = true
	if b.letIn == 0 {
		close(b.drained)
	}
	b.mu.Unlock()
	select {
	case <-b.drained:
	case <-end.C:
		b.o.Log.Warn("stopped with messages that were not acknowledged; devices send them again")
	}
	b.mu.Lock()
	open := make([]*session, 0, len(b.conns))
	for _, s := range b.conns {
		open = append(open, s)
	}
	b.mu.Unlock()
	for _, s := range open {
		select {
		case s.out <- last:
		default:
			s.client.Stop(errStopping) // it reads nothing
		}
	}
	for _, s := range open {
		select {
		case <-s.written:
		case <-end.C:
			return
		}
	}
}

var errStopping = errors.New("the service stops")

// Send writes payload to the device on channel, by the door its trust allows.
// ErrOffline when it is not there, does not listen or reads too slowly; nil
// does not mean that the device has it.
func (b *Broker) Send(device fleet.DeviceID, channel wire.Channel, payload []byte) error {
	_, err := b.sendTo(device, channel, payload, false)
	return err
}

// SendOpen is Send by the open door alone: what is not for a device that is not
// trusted does not reach one that has just lost it.
func (b *Broker) SendOpen(device fleet.DeviceID, channel wire.Channel, payload []byte) error {
	_, err := b.sendTo(device, channel, payload, true)
	return err
}

// Challenge is Send for a challenge, which only the connection that it went by
// may answer; it is named by its exporter.
func (b *Broker) Challenge(device fleet.DeviceID, payload []byte) (exporter []byte, err error) {
	return b.sendTo(device, wire.DownChallenge, payload, false)
}

func (b *Broker) sendTo(device fleet.DeviceID, channel wire.Channel, payload []byte, trusted bool) (exporter []byte, err error) {
	s := b.session(string(device))
	if s == nil {
		return nil, ErrOffline
	}
	q := !open(s.Trust())
	if q && trusted {
		return nil, ErrOffline
	}
	if _, ok := s.client.State.Subscriptions.Get(wire.Down(s.id.Tenant, s.id.Device, q)); !ok {
		return nil, ErrOffline
	}
	err = s.send(wire.Topic{Tenant: s.id.Tenant, Device: s.id.Device, Quarantine: q, Channel: channel}, payload)
	if b.o.Meter.Sent != nil {
		b.o.Meter.Sent(channel, len(payload), err)
	}
	return s.exporter, err
}

// Verdict sets what one connection of the device may do and tells it so on the
// q door, where it listens from the start. The connection is named by its
// exporter: evidence speaks for the connection that it came by and for no
// other, so ErrOffline when another one has taken its place.
func (b *Broker) Verdict(device fleet.DeviceID, exporter []byte, trust fleet.Trust, payload []byte) error {
	s := b.session(string(device))
	if s == nil || string(s.exporter) != string(exporter) {
		return ErrOffline
	}
	s.setTrust(trust)
	if err := s.send(wire.Topic{Tenant: s.id.Tenant, Device: s.id.Device, Quarantine: true, Channel: wire.DownChallenge}, payload); err != nil {
		return err
	}
	if trust != fleet.Pending && !open(s.Trust()) {
		(&hook{b: b}).ready(s) // it stays at the q door, where help waits for it
	}
	return nil
}

// Disconnect ends the device's connection, also one that is just being made:
// whoever calls it has made sure that Admit refuses the next one, or does not
// mind it. Nothing that was published and not stored yet is taken any more.
func (b *Broker) Disconnect(device fleet.DeviceID, why string) {
	b.mu.Lock()
	s := b.sessions[string(device)]
	for e := range b.entering {
		if e.id.Device == string(device) {
			b.entering[e] = true
		}
	}
	b.mu.Unlock()
	if s != nil {
		b.o.Log.Info("disconnect device", slog.String("device", string(device)), slog.String("reason", why))
		s.cut(errors.New(why))
	}
}

// DisconnectAll ends every connection whose certificate is of that issuer, by
// the hex identifier of its key.
func (b *Broker) DisconnectAll(issuer, why string) {
	b.mu.Lock()
	var cut []*session
	for _, s := range b.sessions {
		if s.id.Issuer == issuer {
			cut = append(cut, s)
		}
	}
	for e := range b.entering {
		if e.id.Issuer == issuer {
			b.entering[e] = true
		}
	}
	b.mu.Unlock()
	b.o.Log.Info("disconnect devices", slog.Int("devices", len(cut)), slog.String("reason", why))
	for _, s := range cut {
		s.cut(errors.New(why))
	}
}

// enter notes a connection that waits to be admitted.
func (b *Broker) enter(s *session) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.entering[s] = false
}

// entered forgets it again, let in or not.
func (b *Broker) entered(s *session) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.entering, s)
}

// Connected lists the devices that are connected, with what their connection
// has earned.
func (b *Broker) Connected() map[fleet.DeviceID]fleet.Trust {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make(map[fleet.DeviceID]fleet.Trust, len(b.sessions))
	for d, s := range b.sessions {
		out[fleet.DeviceID(d)] = s.Trust()
	}
	return out
}

// Accepting reports whether devices are let in: it runs, and was not stopped.
func (b *Broker) Accepting() bool { return b.listener.accepting.Load() }

// Issuer is the hex identifier of the key that signed the certificate a member
// is connected by; empty when it is not, or came with a certificate that opens
// quarantine alone.
func (b *Broker) Issuer(device fleet.DeviceID) string {
	s := b.session(string(device))
	if s == nil || s.admission != fleet.AdmitMember {
		return ""
	}
	return s.id.Issuer
}

// Restricted reports whether the device has a connection, and only the q door
// on it.
func (b *Broker) Restricted(device fleet.DeviceID) bool {
	s := b.session(string(device))
	return s != nil && !open(s.Trust())
}

// note tells of a violation, unless one of this device was told a moment ago.
func (b *Broker) note(device, what string) {
	if !b.news("violation of " + device) {
		return
	}
	b.o.Log.Warn("device tried what it may not", slog.String("device", device), slog.String("what", what))
	b.o.Violation(device, what)
}

// news reports whether what was not told a moment ago, and notes that it is.
func (b *Broker) news(what string) bool {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if last, ok := b.noted[what]; ok && now.Sub(last) < noteEvery {
		return false
	}
	if len(b.noted) >= 4096 {
		clear(b.noted) // some are told twice, the memory is bounded
	}
	b.noted[what] = now
	return true
}

// begin counts a message in; false when the broker stops.
func (b *Broker) begin() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closing {
		return false
	}
	b.letIn++
	return true
}

func (b *Broker) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.letIn--
	if b.closing && b.letIn == 0 {
		close(b.drained)
	}
}

func open(t fleet.Trust) bool { return t == fleet.Attested || t == fleet.Degraded }
