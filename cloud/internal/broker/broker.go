// Package broker lets devices in and carries their messages. It is the only
// importer of mochi-mqtt.
//
// It promises: who speaks is who the certificate says; only topics of the
// contract pass, and until the verifier has accepted a connection's evidence
// only those of the q door; a PUBACK is written after the message was stored,
// or never - then the connection is closed, and nothing that came behind it on
// that connection is acknowledged, so that the device's order holds.
//
// It stores nothing, appraises nothing and decodes no payload. Only devices
// speak to it, so a down message is written to the one connection it is for;
// mochi's routing, its retained messages and its sessions are not used.
package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"sync"
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
)

// ErrOffline means that the device has no connection open for that topic.
var ErrOffline = errors.New("device is not connected")

// Message is one up message. Ack must be called once: with nil after the
// commit, or with what went wrong.
type Message struct {
	Identity identity.Identity
	Topic    wire.Topic
	Payload  []byte
	Exporter []byte // keying material of the connection it came by; names the connection
	Ack      func(error)
}

// Options of a Broker. All functions must be set.
type Options struct {
	Listener      net.Listener // TCP
	TLS           *tls.Config  // with certificate and client CAs; the broker sets the rest
	ExporterLabel string       // RFC 8446, 7.5
	MaxClients    int64        // 20,000 when zero

	// Admit is asked once per connection, before it may do anything.
	Admit func(ctx context.Context, id identity.Identity) error
	// Submit takes a message; false means no room: the connection is closed.
	Submit func(Message) bool
	// Presence tells of devices that come and go, one at a time. The last call
	// for a device is always how it is.
	Presence func(device fleet.DeviceID, online bool, at time.Time)
	// Ready tells that an attested device has subscribed and can be sent to.
	Ready func(device fleet.DeviceID)
	// Violation tells of what a device tried and may not, at most once a minute
	// for each device.
	Violation func(device, what string)
	Log       *slog.Logger
}

// Broker is the MQTT server of the fleet service.
type Broker struct {
	o        Options
	server   *mqtt.Server
	listener *listener
	ready    sync.WaitGroup // calls of Ready

	mu       sync.Mutex
	sessions map[string]*session   // by device
	conns    map[net.Conn]*session // by connection, taken-over ones too
	noted    map[string]time.Time  // last violation told, by device
	closing  bool
	letIn    int           // messages whose Ack was not called
	drained  chan struct{} // closed when closing and letIn is 0

	presence sync.Mutex
	told     map[string]bool // devices told to be online
}

// New returns a broker that serves when Run is called.
func New(o Options) (*Broker, error) {
	if o.TLS == nil || o.TLS.ClientCAs == nil || (len(o.TLS.Certificates) == 0 && o.TLS.GetCertificate == nil) {
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
		o: o, sessions: map[string]*session{}, conns: map[net.Conn]*session{}, noted: map[string]time.Time{},
		told: map[string]bool{}, drained: make(chan struct{}),
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
	cfg := o.TLS.Clone()
	cfg.MinVersion = tls.VersionTLS13
	cfg.ClientAuth = tls.RequireAndVerifyClientCert
	cfg.SessionTicketsDisabled = true // a resumed session skips the client's signature
	cfg.GetConfigForClient = nil
	b.listener = newListener(o.Listener, cfg, o.Log, b.left)
	if err := b.server.AddListener(b.listener); err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	return b, nil
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
	s := b.session(string(device))
	if s == nil {
		return ErrOffline
	}
	q := !open(s.Trust())
	if _, ok := s.client.State.Subscriptions.Get(wire.Down(s.id.Tenant, s.id.Device, q)); !ok {
		return ErrOffline
	}
	return s.send(wire.Topic{Tenant: s.id.Tenant, Device: s.id.Device, Quarantine: q, Channel: channel}, payload)
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
	return s.send(wire.Topic{Tenant: s.id.Tenant, Device: s.id.Device, Quarantine: true, Channel: wire.DownChallenge}, payload)
}

// Disconnect ends the device's connection.
func (b *Broker) Disconnect(device fleet.DeviceID, why string) {
	if s := b.session(string(device)); s != nil {
		b.o.Log.Info("disconnect device", slog.String("device", string(device)), slog.String("reason", why))
		s.client.Stop(errors.New(why))
	}
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

// Restricted reports whether the device has a connection, and only the q door
// on it.
func (b *Broker) Restricted(device fleet.DeviceID) bool {
	s := b.session(string(device))
	return s != nil && !open(s.Trust())
}

func (b *Broker) session(device string) *session {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sessions[device]
}

// of returns the session that cl is, or nil.
func (b *Broker) of(cl *mqtt.Client) *session {
	if s := b.session(cl.ID); s != nil && s.client == cl {
		return s
	}
	return nil
}

// join adds a session; the one before it of the same device ends. It is false
// when the broker stops.
func (b *Broker) join(s *session) bool {
	b.mu.Lock()
	if b.closing {
		b.mu.Unlock()
		return false
	}
	old := b.sessions[s.id.Device]
	b.sessions[s.id.Device], b.conns[s.client.Net.Conn] = s, s
	b.mu.Unlock()
	if old != nil {
		b.o.Log.Info("connection taken over", slog.String("device", s.id.Device))
		old.client.Stop(errors.New("taken over by a newer connection"))
	}
	return true
}

// left forgets the session of a connection, however it ended.
func (b *Broker) left(conn net.Conn) {
	b.mu.Lock()
	s := b.conns[conn]
	if s == nil {
		b.mu.Unlock()
		return
	}
	delete(b.conns, conn)
	if b.sessions[s.id.Device] == s {
		delete(b.sessions, s.id.Device)
	}
	b.mu.Unlock()
	close(s.gone)
	b.tell(s.id.Device)
}

// tell passes on whether the device is there. What is told is looked up while
// nobody else tells, so the last word is the truth in whatever order
// connections begin and end.
func (b *Broker) tell(device string) {
	b.presence.Lock()
	defer b.presence.Unlock()
	s := b.session(device)
	// One that is taking over and not yet established keeps what was told.
	online := s != nil && (s.established.Load() || b.told[device])
	if online == b.told[device] {
		return
	}
	if online {
		b.told[device] = true
	} else {
		delete(b.told, device)
	}
	b.o.Presence(fleet.DeviceID(device), online, time.Now())
}

// note tells of a violation, unless one of this device was told a moment ago.
func (b *Broker) note(device, what string) {
	now := time.Now()
	b.mu.Lock()
	if last, ok := b.noted[device]; ok && now.Sub(last) < noteEvery {
		b.mu.Unlock()
		return
	}
	if len(b.noted) >= 4096 {
		clear(b.noted) // some are told twice, the memory is bounded
	}
	b.noted[device] = now
	b.mu.Unlock()
	b.o.Log.Warn("device tried what it may not", slog.String("device", device), slog.String("what", what))
	b.o.Violation(device, what)
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
