package broker

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/identity"
)

// hook is the only place where mochi asks us. OnPublish returns nothing but
// nil or ErrRejectPacket: any other error is acknowledged as success, and a
// wrapped packets.Code panics the process.
type hook struct {
	mqtt.HookBase
	b *Broker
}

// ID implements mqtt.Hook.
func (h *hook) ID() string { return "tillward" }

// Provides implements mqtt.Hook.
func (h *hook) Provides(b byte) bool {
	return bytes.Contains([]byte{
		mqtt.OnConnect, mqtt.OnConnectAuthenticate, mqtt.OnACLCheck, mqtt.OnSessionEstablished, mqtt.OnSubscribed, mqtt.OnPublish, mqtt.OnDisconnect,
	}, []byte{b})
}

// guard keeps a panic of ours from ending the process; the connection ends.
func (h *hook) guard(cl *mqtt.Client, where string) {
	if r := recover(); r != nil {
		h.b.o.Log.Error("panic in broker", slog.String("where", where), slog.String("device", cl.ID), slog.Any("panic", r))
		cl.Stop(fmt.Errorf("internal error in %s", where))
	}
}

// OnConnect refuses what the contract does not know before anything else.
func (h *hook) OnConnect(cl *mqtt.Client, pk packets.Packet) (err error) {
	defer h.guard(cl, "connect")
	keepalive := time.Duration(pk.Connect.Keepalive) * time.Second
	switch {
	case pk.ProtocolVersion != 4:
		err = packets.ErrUnsupportedProtocolVersion
	case pk.Connect.WillFlag:
		err = errors.New("a last will is not part of the contract")
	case !pk.Connect.Clean:
		err = errors.New("only clean sessions: what matters is kept in the device's spool and the service's tables")
	case keepalive == 0 || keepalive > keepaliveMax:
		err = fmt.Errorf("keep-alive of %s, must lie between 1s and %s", keepalive, keepaliveMax)
	}
	if err != nil {
		h.b.o.Log.Warn("connection refused", slog.String("remote", cl.Net.Remote), slog.Any("err", err))
	}
	return err
}

// OnConnectAuthenticate reads the identity from the certificate; user name and
// password mean nothing.
func (h *hook) OnConnectAuthenticate(cl *mqtt.Client, _ packets.Packet) (ok bool) {
	defer h.guard(cl, "authenticate")
	conn, isTLS := cl.Net.Conn.(*tls.Conn)
	if !isTLS {
		return false
	}
	state := conn.ConnectionState()
	id, err := identity.FromTLS(state)
	if err == nil && cl.ID != id.Device {
		h.b.o.Violation(id.Device, fmt.Sprintf("client id %.40q is not that of the certificate", cl.ID))
		err = errors.New("client id differs from the certificate")
	}
	var exporter []byte
	if err == nil {
		exporter, err = state.ExportKeyingMaterial(h.b.o.ExporterLabel, nil, 32)
	}
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), connectTime)
		defer cancel()
		err = h.b.o.Admit(ctx, id)
	}
	if err != nil {
		h.b.o.Log.Warn("device refused", slog.String("device", id.Device), slog.String("remote", cl.Net.Remote), slog.Any("err", err))
		return false
	}
	s := &session{
		id: id, client: cl, exporter: exporter, acks: make(chan uint16, ackQueue), gone: make(chan struct{}), trust: fleet.Pending,
	}
	h.b.mu.Lock()
	old := h.b.sessions[id.Device]
	h.b.sessions[id.Device] = s
	h.b.mu.Unlock()
	if old != nil {
		close(old.gone)
		old.client.Stop(packets.ErrSessionTakenOver)
	}
	go s.acknowledge()
	return true
}

// OnSessionEstablished implements mqtt.Hook.
func (h *hook) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	defer h.guard(cl, "established")
	if s := h.b.of(cl); s != nil {
		h.b.o.Presence(fleet.DeviceID(s.id.Device), true, time.Now())
	}
}

// OnDisconnect implements mqtt.Hook. It also runs for a connection that was
// taken over, whose device is still there.
func (h *hook) OnDisconnect(cl *mqtt.Client, _ error, _ bool) {
	defer h.guard(cl, "disconnect")
	h.b.mu.Lock()
	s := h.b.sessions[cl.ID]
	last := s != nil && s.client == cl
	if last {
		delete(h.b.sessions, cl.ID)
	}
	h.b.mu.Unlock()
	if !last {
		return
	}
	close(s.gone)
	h.b.o.Presence(fleet.DeviceID(s.id.Device), false, time.Now())
}

// OnACLCheck is the topic table: write for PUBLISH, else SUBSCRIBE and the
// delivery of a down message.
func (h *hook) OnACLCheck(cl *mqtt.Client, topic string, write bool) (ok bool) {
	defer h.guard(cl, "access")
	s := h.b.of(cl)
	if s == nil {
		return false
	}
	ok = s.may(topic, write)
	if !ok {
		verb := "subscribe to"
		if write {
			verb = "publish on"
		}
		h.b.o.Violation(s.id.Device, fmt.Sprintf("may not %s %.128q while %s", verb, topic, s.Trust()))
	}
	return ok
}

func (s *session) may(topic string, write bool) bool {
	if !write {
		for _, q := range []bool{true, false} {
			if topic == wire.Down(s.id.Tenant, s.id.Device, q) {
				return q || open(s.Trust())
			}
		}
	}
	t, err := wire.ParseTopic(topic)
	return err == nil && t.Tenant == s.id.Tenant && t.Device == s.id.Device && t.Channel.Up() == write && (t.Quarantine || open(s.Trust()))
}

// OnSubscribed tells that a device listens on the open door.
func (h *hook) OnSubscribed(cl *mqtt.Client, pk packets.Packet, codes []byte) {
	defer h.guard(cl, "subscribed")
	s := h.b.of(cl)
	if s == nil {
		return
	}
	for i, f := range pk.Filters {
		if i < len(codes) && codes[i] < packets.ErrUnspecifiedError.Code && f.Filter == wire.Down(s.id.Tenant, s.id.Device, false) {
			go h.b.o.Ready(fleet.DeviceID(s.id.Device))
		}
	}
}

// OnPublish hands an up message to the committer and keeps mochi from
// acknowledging it; the PUBACK follows the commit.
func (h *hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (_ packets.Packet, err error) {
	if cl.Net.Inline {
		return pk, nil // a down message of ours
	}
	err = packets.ErrRejectPacket
	defer h.guard(cl, "publish")
	s := h.b.of(cl)
	if s == nil {
		cl.Stop(errors.New("no session"))
		return pk, err
	}
	refuse := func(what string) (packets.Packet, error) {
		h.b.o.Violation(s.id.Device, what)
		cl.Stop(errors.New(what))
		return pk, err
	}
	switch {
	case pk.FixedHeader.Qos != 1:
		return refuse(fmt.Sprintf("published with QoS %d, the contract has only 1", pk.FixedHeader.Qos))
	case pk.FixedHeader.Retain:
		return refuse("published a retained message")
	case len(pk.Payload) > wire.MaxMessage:
		return refuse(fmt.Sprintf("published %d bytes, at most %d", len(pk.Payload), wire.MaxMessage))
	}
	topic, perr := wire.ParseTopic(pk.TopicName)
	if perr != nil {
		return refuse("published on an unknown topic")
	}
	if !s.begin() {
		cl.Stop(errors.New("too many messages without acknowledgement"))
		return pk, err
	}
	packet := pk.PacketID
	ok := h.b.o.Submit(Message{
		Identity: s.id, Topic: topic, Payload: pk.Payload, Exporter: s.exporter, Ack: func(err error) { s.end(packet, err) },
	})
	if !ok {
		s.end(packet, errors.New("the service is full"))
	}
	return pk, err
}
