package broker

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/identity"
)

// hook is the only place where mochi asks us. OnPublish returns nothing but
// ErrRejectPacket: any other error is acknowledged as success, and a wrapped
// packets.Code panics the process.
type hook struct {
	mqtt.HookBase
	b *Broker
}

// ID implements mqtt.Hook.
func (h *hook) ID() string { return "tillward" }

// Provides implements mqtt.Hook.
func (h *hook) Provides(b byte) bool {
	return bytes.Contains([]byte{
		mqtt.OnConnect, mqtt.OnConnectAuthenticate, mqtt.OnACLCheck, mqtt.OnSessionEstablished, mqtt.OnSubscribed, mqtt.OnPublish,
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
		h.b.o.Meter.connected(accepted(cl.Net.Conn), err)
	}
	return err
}

// accepted is when a connection came in.
func accepted(c net.Conn) time.Time {
	if t, ok := c.(*tls.Conn); ok {
		if d, ok := t.NetConn().(*deadlined); ok {
			return d.accepted
		}
	}
	return time.Now()
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
		h.b.note(id.Device, fmt.Sprintf("client id %.40q is not that of the certificate", cl.ID))
		err = errors.New("client id differs from the certificate")
	}
	var exporter []byte
	if err == nil {
		exporter, err = state.ExportKeyingMaterial(h.b.o.ExporterLabel, nil, 32)
	}
	if err == nil {
		err = h.admit(newSession(id, cl, exporter))
	}
	h.b.o.Meter.connected(accepted(conn), err)
	if err != nil {
		h.b.o.Log.Warn("device refused", slog.String("device", id.Device), slog.String("remote", cl.Net.Remote), slog.Any("err", err))
		return false
	}
	return true
}

// admit asks what the certificate opens. Who is cut off meanwhile stays out:
// the answer may be older than that.
func (h *hook) admit(s *session) (err error) {
	h.b.enter(s)
	defer h.b.entered(s)
	ctx, cancel := context.WithTimeout(context.Background(), connectTime)
	defer cancel()
	s.admission, err = h.b.o.Admit(ctx, s.id)
	if (errors.Is(err, fleet.ErrForbidden) || errors.Is(err, fleet.ErrNotFound)) && h.b.news("refusal of "+s.id.Device) {
		h.b.o.Refused(s.id.Device, err)
	}
	if err != nil {
		return err
	}
	if err := h.b.join(s); err != nil {
		return err
	}
	go s.write() // until left closes s.gone
	return nil
}

// OnSessionEstablished implements mqtt.Hook.
func (h *hook) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	defer h.guard(cl, "established")
	if s := h.b.of(cl); s != nil {
		s.established.Store(true)
		h.b.tell(s.id.Device)
	}
}

// OnACLCheck is the topic table. A refused PUBLISH ends the connection (mochi
// does it), a refused SUBSCRIBE is told to the device, a few times.
func (h *hook) OnACLCheck(cl *mqtt.Client, topic string, write bool) (ok bool) {
	defer h.guard(cl, "access")
	s := h.b.of(cl)
	if s == nil {
		return false
	}
	if s.may(topic, write) {
		return true
	}
	verb := "subscribe to"
	if write {
		verb = "publish on"
	}
	h.b.note(s.id.Device, fmt.Sprintf("may not %s %.128q while %s", verb, topic, s.Trust()))
	if s.violation() {
		cl.Stop(errors.New("too many refusals"))
	}
	return false
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
			h.ready(s)
			return
		}
	}
}

// ready calls Ready apart from the reader, one call at a time however often
// the device subscribes.
func (h *hook) ready(s *session) {
	if s.subscribed.Add(1) > 1 {
		return
	}
	h.b.ready.Go(func() {
		defer h.guard(s.client, "ready")
		for {
			n := s.subscribed.Load()
			h.b.o.Ready(fleet.DeviceID(s.id.Device))
			if s.subscribed.CompareAndSwap(n, 0) {
				return
			}
		}
	})
}

// OnPublish hands an up message to the committer and keeps mochi from
// acknowledging it; the PUBACK follows the commit.
func (h *hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (_ packets.Packet, err error) {
	err = packets.ErrRejectPacket
	defer h.guard(cl, "publish")
	s := h.b.of(cl)
	if s == nil {
		cl.Stop(errors.New("no session"))
		return pk, err
	}
	topic, perr := wire.ParseTopic(pk.TopicName)
	var what string
	switch {
	case pk.FixedHeader.Qos != 1:
		what = fmt.Sprintf("published with QoS %d, the contract has only 1", pk.FixedHeader.Qos)
	case pk.FixedHeader.Retain:
		what = "published a retained message"
	case len(pk.Payload) > wire.MaxMessage:
		what = fmt.Sprintf("published %d bytes, at most %d", len(pk.Payload), wire.MaxMessage)
	case perr != nil || !topic.Channel.Up():
		what = "published on an unknown topic"
	}
	if what != "" {
		h.b.note(s.id.Device, what)
		cl.Stop(errors.New(what))
		return pk, err
	}
	if !h.b.begin() {
		return pk, err // the broker stops; not acknowledged, so the device sends it again
	}
	if !s.begin() {
		h.b.end()
		cl.Stop(errors.New("too many messages without acknowledgement"))
		return pk, err
	}
	packet, came, size := pk.PacketID, time.Now(), len(pk.Payload)
	done := func(err error) {
		s.end(packet, err)
		h.b.end()
		if h.b.o.Meter.Answered != nil {
			h.b.o.Meter.Answered(topic.Channel, size, time.Since(came), err)
		}
	}
	if !h.submit(Message{Identity: s.id, Admission: s.admission, Topic: topic, Payload: pk.Payload, Exporter: s.exporter, Ack: done, Dead: s.Dead}) {
		done(errors.New("the service is full"))
	}
	return pk, err
}

// submit turns a panic into a refusal, so that the message is still ended.
func (h *hook) submit(m Message) (ok bool) {
	defer func() {
		if r := recover(); r != nil {
			h.b.o.Log.Error("panic in broker", slog.String("where", "submit"), slog.String("device", m.Identity.Device), slog.Any("panic", r))
			ok = false
		}
	}()
	return h.b.o.Submit(m)
}
