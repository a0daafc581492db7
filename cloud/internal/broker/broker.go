// Package broker lets devices in and carries their messages. It is the only
// importer of mochi-mqtt.
//
// It promises: who speaks is who the certificate says; only topics of the
// contract pass, and until the verifier has accepted a connection's evidence
// only those of the q door; a PUBACK is written after the message was stored,
// or never - then the connection is closed, and nothing that came behind it on
// that connection is acknowledged, so that the device's order holds.
//
// It stores nothing, appraises nothing and decodes no payload.
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
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/identity"
)

// Limits of one connection and of the handshake.
const (
	handshakeTime = 15 * time.Second
	handshakes    = 64               // at once
	connectTime   = 10 * time.Second // from handshake to CONNECT
	keepaliveMax  = 10 * time.Minute
	writeTime     = 20 * time.Second
	ackQueue      = 256 // acknowledgements a slow reader may leave waiting
)

// ErrOffline means that the device has no connection open for that topic.
var ErrOffline = errors.New("device is not connected")

// Message is one up message. Ack must be called once: with nil after the
// commit, or with what went wrong.
type Message struct {
	Identity identity.Identity
	Topic    wire.Topic
	Payload  []byte
	Exporter []byte // keying material of the connection it came by
	Ack      func(error)
}

// Options of a Broker.
type Options struct {
	Listener      net.Listener // TCP
	TLS           *tls.Config  // with certificate and client CAs; the broker sets the rest
	ExporterLabel string       // RFC 8446, 7.5
	MaxClients    int64

	// Admit is asked once per connection, before it may do anything.
	Admit func(ctx context.Context, id identity.Identity) error
	// Submit takes a message; false means no room: the connection is closed.
	Submit func(Message) bool
	// Presence tells of connections that begin and end.
	Presence func(device fleet.DeviceID, online bool, at time.Time)
	// Ready tells that an attested device has subscribed and can be sent to.
	Ready func(device fleet.DeviceID)
	// Violation tells of what a device tried and may not.
	Violation func(device, what string)
	Log       *slog.Logger
}

// Broker is the MQTT server of the fleet service.
type Broker struct {
	o      Options
	server *mqtt.Server

	mu       sync.Mutex
	sessions map[string]*session // by device
}

// session is one live connection of a device.
type session struct {
	id       identity.Identity
	client   *mqtt.Client
	exporter []byte
	acks     chan uint16
	gone     chan struct{}

	mu      sync.Mutex
	trust   fleet.Trust
	dead    bool // a commit failed: nothing more is acknowledged
	waiting int  // messages let in whose PUBACK is not yet on its way
}

// New returns a broker that serves when Run is called.
func New(o Options) (*Broker, error) {
	caps := mqtt.NewDefaultServerCapabilities()
	caps.MaximumClients = o.MaxClients
	caps.MaximumClientWritesPending = 32
	caps.MaximumSessionExpiryInterval = 0
	caps.MaximumPacketSize = wire.MaxMessage + wire.MaxTopic + 16
	caps.ReceiveMaximum = 256
	caps.MaximumInflight = 256
	caps.TopicAliasMaximum = 0
	caps.SharedSubAvailable = 0
	caps.MinimumProtocolVersion = 4
	caps.MaximumQos = 2 // not 1: mochi would quietly lower QoS 2 instead of letting us refuse it
	caps.RetainAvailable = 0
	caps.SubIDAvailable = 0
	b := &Broker{o: o, sessions: make(map[string]*session)}
	b.server = mqtt.New(&mqtt.Options{
		Capabilities:             caps,
		ClientNetReadBufferSize:  1024,
		ClientNetWriteBufferSize: 1024,
		InlineClient:             true,
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
	if err := b.server.AddListener(newListener(o.Listener, cfg, o.Log)); err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	return b, nil
}

// Run serves until ctx ends, then disconnects every device.
func (b *Broker) Run(ctx context.Context) error {
	if err := b.server.Serve(); err != nil {
		return fmt.Errorf("serve MQTT: %w", err)
	}
	<-ctx.Done()
	if err := b.server.Close(); err != nil {
		return fmt.Errorf("stop MQTT: %w", err)
	}
	return nil
}

// Send publishes payload to the device on channel, by the door its trust
// allows. ErrOffline when there is nobody to send to; nil does not mean that
// the device has it.
func (b *Broker) Send(device fleet.DeviceID, channel wire.Channel, payload []byte) error {
	s := b.session(string(device))
	if s == nil {
		return ErrOffline
	}
	q := !open(s.Trust())
	topic := wire.Topic{Tenant: s.id.Tenant, Device: s.id.Device, Quarantine: q, Channel: channel}
	filter := wire.Down(s.id.Tenant, s.id.Device, q)
	if _, ok := s.client.State.Subscriptions.Get(filter); !ok {
		return ErrOffline
	}
	if err := b.server.Publish(topic.String(), payload, false, 1); err != nil {
		return fmt.Errorf("send to %s: %w", device, err)
	}
	return nil
}

// Verdict sets what the device's connection may do and tells it so on the q
// door, where it listens from the start.
func (b *Broker) Verdict(device fleet.DeviceID, trust fleet.Trust, payload []byte) error {
	s := b.session(string(device))
	if s == nil {
		return ErrOffline
	}
	s.mu.Lock()
	s.trust = trust
	s.mu.Unlock()
	topic := wire.Topic{Tenant: s.id.Tenant, Device: s.id.Device, Quarantine: true, Channel: wire.DownChallenge}
	if err := b.server.Publish(topic.String(), payload, false, 1); err != nil {
		return fmt.Errorf("send verdict to %s: %w", device, err)
	}
	return nil
}

// Disconnect ends the device's connection.
func (b *Broker) Disconnect(device fleet.DeviceID, why string) {
	if s := b.session(string(device)); s != nil {
		b.o.Log.Info("disconnect device", slog.String("device", string(device)), slog.String("reason", why))
		s.client.Stop(errors.New(why))
	}
}

// Connected lists the devices that are connected, with their trust.
func (b *Broker) Connected() map[fleet.DeviceID]fleet.Trust {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make(map[fleet.DeviceID]fleet.Trust, len(b.sessions))
	for d, s := range b.sessions {
		out[fleet.DeviceID(d)] = s.Trust()
	}
	return out
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

// Trust is what the connection's evidence has earned.
func (s *session) Trust() fleet.Trust {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trust
}

func open(t fleet.Trust) bool { return t == fleet.Attested || t == fleet.Degraded }

// begin counts a message in; false when nothing of this connection may be
// acknowledged any more.
func (s *session) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead || s.waiting >= ackQueue {
		return false
	}
	s.waiting++
	return true
}

// end writes the PUBACK, or closes the connection without one.
func (s *session) end(packet uint16, err error) {
	s.mu.Lock()
	if err != nil {
		s.dead = true
	}
	dead := s.dead
	s.mu.Unlock()
	if dead {
		s.client.Stop(fmt.Errorf("message was not stored: %w", err))
		return
	}
	s.acks <- packet // never blocks: begin lets no more than ackQueue in
}

// acknowledge writes PUBACKs, apart from the committer: a device that reads
// slowly delays only itself.
func (s *session) acknowledge() {
	for {
		select {
		case <-s.gone:
			return
		case id := <-s.acks:
			s.mu.Lock()
			s.waiting--
			s.mu.Unlock()
			err := s.client.WritePacket(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: id})
			if err != nil {
				s.client.Stop(err)
				return
			}
		}
	}
}
