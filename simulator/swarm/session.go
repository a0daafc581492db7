package swarm

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/enrol"
)

// exporterLen is that of the keying material evidence is bound to.
const exporterLen = 32

// Session is one MQTT 3.1.1 connection of a device: no goroutine, no buffer,
// one call at a time.
type Session struct {
	Exporter []byte // of the TLS connection; evidence is bound to it

	conn           *tls.Conn
	tenant, device string
	id             uint16                   // of the last packet
	early          []*packets.PublishPacket // came while something else was waited for
}

// Connect dials the broker at addr with the LDevID key and the certificate of
// member, connects and subscribes as an agent does before it proves itself.
// conf holds roots and server name.
func (d *Device) Connect(ctx context.Context, addr string, conf *tls.Config, member enrol.Result) (*Session, error) {
	key, err := d.Signer()
	if err != nil {
		return nil, err
	}
	conf = conf.Clone()
	conf.Certificates = []tls.Certificate{{Certificate: member.Chain, PrivateKey: key}}
	return Dial(ctx, addr, conf, member.Tenant, member.Device)
}

// Dial does what Connect does with whatever certificate and key are in conf.
func Dial(ctx context.Context, addr string, conf *tls.Config, tenant, device string) (*Session, error) {
	conf = conf.Clone()
	conf.MinVersion = tls.VersionTLS13
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	s := &Session{conn: tls.Client(raw, conf), tenant: tenant, device: device}
	if err := s.open(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("connect %s: %w", device, err)
	}
	return s, nil
}

func (s *Session) open(ctx context.Context) error {
	if err := s.conn.HandshakeContext(ctx); err != nil {
		return err
	}
	defer s.until(ctx)()
	state := s.conn.ConnectionState()
	var err error
	if s.Exporter, err = state.ExportKeyingMaterial(enrol.ConnExporterLabel, nil, exporterLen); err != nil {
		return err
	}
	c := &packets.ConnectPacket{
		FixedHeader:  packets.FixedHeader{MessageType: packets.Connect},
		ProtocolName: "MQTT", ProtocolVersion: 4, CleanSession: true, Keepalive: 60, ClientIdentifier: s.device,
	}
	if err := c.Write(s.conn); err != nil {
		return err
	}
	p, err := packets.ReadPacket(s.conn)
	if err != nil {
		return err
	}
	if a, ok := p.(*packets.ConnackPacket); !ok || a.ReturnCode != packets.Accepted {
		return fmt.Errorf("the broker answered CONNECT with %v", p)
	}
	return s.subscribe(true)
}

// Listen subscribes to what only a trusted device is sent.
func (s *Session) Listen(ctx context.Context) error {
	defer s.until(ctx)()
	return s.subscribe(false)
}

func (s *Session) subscribe(quarantine bool) error {
	sub := &packets.SubscribePacket{
		FixedHeader: packets.FixedHeader{MessageType: packets.Subscribe, Qos: 1}, MessageID: s.next(),
		Topics: []string{wire.Down(s.tenant, s.device, quarantine)}, Qoss: []byte{1},
	}
	if err := sub.Write(s.conn); err != nil {
		return err
	}
	for {
		p, err := s.read()
		if err != nil {
			return err
		}
		switch a := p.(type) {
		case *packets.PublishPacket: // what has waited comes at once
		case *packets.SubackPacket:
			if len(a.ReturnCodes) == 1 && a.ReturnCodes[0] <= 1 {
				return nil
			}
			return fmt.Errorf("the broker answered SUBSCRIBE with %v", a.ReturnCodes)
		default:
			return fmt.Errorf("the broker answered SUBSCRIBE with %T", p)
		}
	}
}

// read takes the next packet and acknowledges it, when it is to be.
func (s *Session) read() (packets.ControlPacket, error) {
	p, err := packets.ReadPacket(s.conn)
	if err != nil {
		return nil, err
	}
	if m, ok := p.(*packets.PublishPacket); ok && m.Qos == 1 {
		ack := &packets.PubackPacket{FixedHeader: packets.FixedHeader{MessageType: packets.Puback}, MessageID: m.MessageID}
		if err := ack.Write(s.conn); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// until ends what blocks on the connection when ctx does.
func (s *Session) until(ctx context.Context) (done func()) {
	stop := context.AfterFunc(ctx, func() { _ = s.conn.NetConn().Close() })
	return func() { stop() }
}

func (s *Session) next() uint16 {
	s.id++
	return s.id
}

// Prove publishes evidence and returns the verdict. What else arrives is
// acknowledged and dropped.
func (s *Session) Prove(ctx context.Context, evidence []byte) (wire.Challenge, error) {
	verdict, err := s.prove(ctx, evidence)
	if err != nil {
		return wire.Challenge{}, fmt.Errorf("evidence of %s: %w", s.device, errors.Join(err, ctx.Err()))
	}
	return verdict, nil
}

func (s *Session) prove(ctx context.Context, evidence []byte) (verdict wire.Challenge, err error) {
	defer s.until(ctx)()
	topic := wire.Topic{Tenant: s.tenant, Device: s.device, Quarantine: true, Channel: wire.Evidence}
	p := &packets.PublishPacket{
		FixedHeader: packets.FixedHeader{MessageType: packets.Publish, Qos: 1}, TopicName: topic.String(), MessageID: s.next(), Payload: evidence,
	}
	if err := p.Write(s.conn); err != nil {
		return verdict, err
	}
	for acked := false; !acked || verdict.Verdict == ""; {
		got, err := s.read()
		if err != nil {
			return verdict, err
		}
		switch m := got.(type) {
		case *packets.PubackPacket:
			acked = acked || m.MessageID == p.MessageID
		case *packets.PublishPacket:
			if c, err := wire.Decode[wire.Challenge](m.Payload); err == nil && c.Verdict != "" {
				verdict = c
			}
		}
	}
	return verdict, nil
}

// Publish sends a message by the door that its channel has for a trusted
// device, and waits until it is acknowledged.
func (s *Session) Publish(ctx context.Context, c wire.Channel, payload []byte) error {
	defer s.until(ctx)()
	topic := wire.Topic{Tenant: s.tenant, Device: s.device, Channel: c}
	p := &packets.PublishPacket{
		FixedHeader: packets.FixedHeader{MessageType: packets.Publish, Qos: 1}, TopicName: topic.String(), MessageID: s.next(), Payload: payload,
	}
	if err := p.Write(s.conn); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	for {
		got, err := s.read()
		if err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		switch a := got.(type) {
		case *packets.PubackPacket:
			if a.MessageID == p.MessageID {
				return nil
			}
		case *packets.PublishPacket:
			s.early = append(s.early, a)
		}
	}
}

// Send is Publish without the wait: it returns the packet id that Acked will
// return. A device has no more than its window on the way.
func (s *Session) Send(ctx context.Context, c wire.Channel, payload []byte) (uint16, error) {
	defer s.until(ctx)()
	topic := wire.Topic{Tenant: s.tenant, Device: s.device, Channel: c}
	if s.next() == 0 { // not a packet id [MQTT 3.1.1, 2.3.1]
		s.next()
	}
	p := &packets.PublishPacket{
		FixedHeader: packets.FixedHeader{MessageType: packets.Publish, Qos: 1}, TopicName: topic.String(), MessageID: s.id, Payload: payload,
	}
	if err := p.Write(s.conn); err != nil {
		return 0, fmt.Errorf("publish: %w", errors.Join(err, ctx.Err()))
	}
	return s.id, nil
}

// Acked waits for the next acknowledgement and returns its packet id.
func (s *Session) Acked(ctx context.Context) (uint16, error) {
	defer s.until(ctx)()
	for {
		got, err := s.read()
		if err != nil {
			return 0, fmt.Errorf("wait for an acknowledgement: %w", errors.Join(err, ctx.Err()))
		}
		switch a := got.(type) {
		case *packets.PubackPacket:
			return a.MessageID, nil
		case *packets.PublishPacket:
			s.early = append(s.early, a)
		}
	}
}

// Next waits for the next message that the service sends.
func (s *Session) Next(ctx context.Context) (wire.Channel, []byte, error) {
	defer s.until(ctx)()
	for {
		var m *packets.PublishPacket
		if len(s.early) > 0 {
			m, s.early = s.early[0], s.early[1:]
		} else {
			p, err := s.read()
			if err != nil {
				return "", nil, fmt.Errorf("wait for %s: %w", s.device, errors.Join(err, ctx.Err()))
			}
			m, _ = p.(*packets.PublishPacket)
		}
		if m == nil {
			continue
		}
		t, err := wire.ParseTopic(m.TopicName)
		if err != nil {
			return "", nil, fmt.Errorf("topic %.128q: %w", m.TopicName, err)
		}
		return t.Channel, m.Payload, nil
	}
}

// Ping keeps a silent connection open. It may be called while another call
// waits: what it writes is one piece.
func (s *Session) Ping() error {
	return (&packets.PingreqPacket{FixedHeader: packets.FixedHeader{MessageType: packets.Pingreq}}).Write(s.conn)
}

// Close says DISCONNECT and hangs up.
func (s *Session) Close() error {
	d := &packets.DisconnectPacket{FixedHeader: packets.FixedHeader{MessageType: packets.Disconnect}}
	return errors.Join(d.Write(s.conn), s.conn.Close())
}
