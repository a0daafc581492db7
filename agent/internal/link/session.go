package link

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/tillward/tillward/cloud/wire"
)

// quarantined is what a device may send while it is not attested.
var quarantined = []string{string(wire.State), string(wire.Audit), string(wire.Result)}

const exporterLen = 32

// session is one connection.
type session struct {
	l        *Link
	client   mqtt.Client
	broker   string
	exporter []byte
	seq      uint64 // of the last evidence
	answered []byte // nonce that it was for; nil: none

	lost       chan error
	challenges chan wire.Challenge

	open   bool // all channels, over the d topics
	free   bool // the spool may be drained at all
	lanes  bool // the service takes telemetry that goes ahead
	window window
	pace   pace
	acked  int
}

// connect dials the brokers in turn. paho makes the MQTT connection and nothing
// else: no reconnecting and no session of its own, for the spool knows better.
func (l *Link) connect(ctx context.Context) (*session, error) {
	s := &session{l: l, lost: make(chan error, 1), challenges: make(chan wire.Challenge, 8)}
	var (
		state *tls.ConnectionState
		stop  = func() bool { return true }
	)
	o := mqtt.NewClientOptions().
		SetClientID(l.o.Device).
		SetProtocolVersion(4).
		SetCleanSession(true).
		SetAutoReconnect(false).
		SetConnectRetry(false).
		SetOrderMatters(true).
		SetAutoAckDisabled(true).
		SetKeepAlive(l.o.KeepAlive).
		SetPingTimeout(min(l.o.Timeout, l.o.KeepAlive)).
		SetConnectTimeout(l.o.Timeout).
		SetWriteTimeout(min(l.o.Timeout, 10*time.Second)).
		SetConnectionLostHandler(func(_ mqtt.Client, err error) { s.lost <- err }).
		SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) { s.receive(m) }).
		SetCustomOpenConnectionFn(func(u *url.URL, _ mqtt.ClientOptions) (net.Conn, error) {
			conn, err := l.dial(ctx, u.Host)
			if err != nil {
				return nil, fmt.Errorf("connect to %s: %w", u.Host, err)
			}
			cs := conn.ConnectionState()
			state, s.broker = &cs, u.Host
			stop = context.AfterFunc(ctx, func() { conn.NetConn().Close() }) // the MQTT handshake knows no context
			if l.o.Inside != nil {
				return l.o.Inside(conn), nil
			}
			return conn, nil
		})
	for _, b := range l.o.Brokers {
		o.AddBroker("tls://" + b)
	}
	s.client = mqtt.NewClient(o)
	token := s.client.Connect()
	<-token.Done()
	stop()
	if err := token.Error(); err != nil {
		return nil, err
	}
	s.pace = newPace(l.o.BacklogRate, l.o.BacklogMessages, time.Now())
	var err error
	if s.exporter, err = state.ExportKeyingMaterial(l.o.ExporterLabel, nil, exporterLen); err != nil {
		s.close()
		return nil, fmt.Errorf("keying material of the connection: %w", err)
	}
	return s, nil
}

func (l *Link) dial(ctx context.Context, address string) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, l.o.Timeout)
	defer cancel()
	raw, err := l.o.Dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	name := l.o.ServerName
	if name == "" {
		name, _, _ = net.SplitHostPort(address) // New has checked it
	}
	conn := tls.Client(raw, &tls.Config{
		MinVersion:           tls.VersionTLS13,
		RootCAs:              l.o.Roots,
		ServerName:           name,
		GetClientCertificate: l.present,
		Time:                 l.o.Time,
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// close ends the connection; the last acknowledgements are not waited for here.
func (s *session) close() { s.client.Disconnect(0) }

// run subscribes, proves itself and drains the spool until the connection or
// ctx ends.
func (s *session) run(ctx context.Context) error {
	if err := s.subscribe(ctx, true); err != nil {
		return err
	}
	if err := s.prove(ctx, nil, false); err != nil {
		return err
	}
	// Without a verdict in time the device is pending; it then reports over the q topics.
	verdict := time.After(s.l.o.Timeout)
	stalled, again := time.NewTimer(s.l.o.Timeout), time.NewTimer(s.l.o.Timeout)
	defer stalled.Stop()
	defer again.Stop()
	w := &s.window
	for {
		again.Stop()
		if s.free {
			wait, err := s.fill(ctx)
			if err != nil {
				return err
			}
			if wait > 0 {
				again.Reset(wait)
			}
		}
		left, patience := s.stalled()
		stalled.Reset(max(0, left))
		var err error
		select {
		case <-ctx.Done():
			s.settle()
			return ctx.Err()
		case err := <-s.lost:
			return fmt.Errorf("connection lost: %w", err)
		case c := <-s.challenges:
			err = s.challenged(ctx, c)
		case <-verdict:
			s.free = true
		case <-w.oldest(now):
			err = s.forget(ctx, now)
		case <-w.oldest(trail):
			err = s.forget(ctx, trail)
		case <-w.oldest(fresh):
			err = s.forget(ctx, fresh)
		case <-w.oldest(backlog):
			err = s.forget(ctx, backlog)
		case <-s.l.o.Spool.Wake():
			w.wake()
		case <-again.C: // the pace of the backlog allows more
		case <-stalled.C:
			err = fmt.Errorf("no acknowledgement for %v", patience)
		}
		if err != nil {
			return err
		}
	}
}

// packetIDInUse is how the service's broker refuses a subscription whose packet
// id is that of a message it has in flight to us, though the ids of the two
// directions have nothing to do with each other [MQTT 3.1.1, 2.3.1]. The next
// try has another id.
const packetIDInUse = 0x91

func (s *session) subscribe(ctx context.Context, q bool) error {
	filter := wire.Down(s.l.o.Tenant, s.l.o.Device, q)
	for try := 1; ; try++ {
		t, err := s.send(func() mqtt.Token { return s.client.Subscribe(filter, 1, nil) })
		if err == nil {
			err = s.wait(ctx, t, s.l.o.Timeout)
		}
		if err != nil {
			return fmt.Errorf("subscribe to %s: %w", filter, err)
		}
		code := byte(0)
		if sub, ok := t.(*mqtt.SubscribeToken); ok {
			code = sub.Result()[filter]
		}
		switch {
		case code <= 2:
			return nil
		case code != packetIDInUse || try == 10:
			return fmt.Errorf("subscribe to %s: refused by the service with %#x", filter, code)
		}
	}
}

// prove sends evidence, bound to the connection or to a challenge. When a whole
// fleet comes back at once the service acknowledges as fast as it can appraise:
// to hang up and come back would only make its queue longer. A connection that
// is dead is noticed all the same, by its keep-alive.
func (s *session) prove(ctx context.Context, nonce []byte, full bool) error {
	s.seq++
	report, err := s.evidence(ctx, nonce, full)
	if err != nil {
		return fmt.Errorf("make evidence: %w", err)
	}
	t, err := s.publish(wire.Evidence, true, report)
	if err == nil {
		err = s.wait(ctx, t, s.l.o.Patience)
	}
	if err != nil {
		return fmt.Errorf("send evidence: %w", err)
	}
	s.window.rest() // what flies could not be looked after meanwhile
	return nil
}

func (s *session) evidence(ctx context.Context, nonce []byte, full bool) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s.l.o.Timeout)
	defer cancel()
	return s.l.o.Evidence(ctx, s.exporter, s.seq, nonce, full)
}

func (s *session) publish(c wire.Channel, q bool, payload []byte) (mqtt.Token, error) {
	topic := wire.Topic{Tenant: s.l.o.Tenant, Device: s.l.o.Device, Quarantine: q, Channel: c}.String()
	return s.send(func() mqtt.Token { return s.client.Publish(topic, 1, false, payload) })
}

// send hands a packet to paho, which waits for its write timeout when the
// connection is lost between its look at the state and its hand-over; nobody
// needs to wait with it.
func (s *session) send(hand func() mqtt.Token) (mqtt.Token, error) {
	taken := make(chan mqtt.Token, 1)
	go func() { taken <- hand() }()
	select {
	case t := <-taken:
		return t, nil
	case err := <-s.lost:
		s.lost <- err // run ends by it
		return nil, fmt.Errorf("connection lost: %w", err)
	}
}

func (s *session) wait(ctx context.Context, t mqtt.Token, patience time.Duration) error {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case <-t.Done():
		return t.Error()
	case err := <-s.lost:
		s.lost <- err // run ends by it
		return fmt.Errorf("connection lost: %w", err)
	case <-timeout.C:
		return fmt.Errorf("no answer for %v", patience)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// challenged follows what the service says of the device: a nonce asks for
// evidence, a need for more than that, a verdict opens or closes channels.
func (s *session) challenged(ctx context.Context, c wire.Challenge) error {
	if c.Need == wire.NeedRenew && s.l.o.Renew != nil {
		s.l.o.Renew()
	}
	// A message may come twice, and an answer counts once: the second would be
	// taken for somebody else's.
	if len(c.Nonce) > 0 && !bytes.Equal(c.Nonce, s.answered) {
		s.answered = c.Nonce
		if err := s.prove(ctx, c.Nonce, c.Need == wire.NeedLog); err != nil {
			return err
		}
	}
	if c.Verdict == "" {
		return nil
	}
	if s.l.o.Judged != nil {
		s.l.o.Judged(ctx, c.Verdict)
	}
	st := s.l.Status()
	st.Verdict, st.Reasons, st.Findings, st.Release, st.Actions = c.Verdict, c.Reasons, c.Findings, c.Release, c.Actions
	st.Until = time.Time{}
	if c.Until != 0 {
		st.Until = time.UnixMilli(c.Until)
	}
	open := st.Open()
	if open && !s.open {
		if err := s.subscribe(ctx, false); err != nil {
			return err
		}
	}
	if takes := c.V >= lanesSince; open != s.open || takes != s.lanes {
		s.lanes = takes
		s.window.turn()
	}
	s.open, s.free = open, true
	s.l.change(st)
	return nil
}

// receive runs on paho's goroutine and must not block it.
func (s *session) receive(m mqtt.Message) {
	t, err := wire.ParseTopic(m.Topic())
	if err != nil || t.Channel.Up() || t.Tenant != s.l.o.Tenant || t.Device != s.l.o.Device {
		s.l.o.Log.Warn("message on a topic that is not for this device", "topic", m.Topic())
		m.Ack()
		return
	}
	if t.Channel == wire.DownChallenge {
		c, err := wire.Decode[wire.Challenge](m.Payload())
		if err != nil {
			s.l.o.Log.Warn("challenge cannot be read", "error", err)
			m.Ack()
			return
		}
		select {
		case s.challenges <- c:
			m.Ack()
		default:
			s.l.o.Log.Warn("challenges come faster than they can be answered")
		}
		return
	}
	take, ok := s.l.o.Down[t.Channel]
	if !ok {
		s.l.o.Log.Warn("nobody takes messages of this channel", "channel", string(t.Channel))
		m.Ack()
		return
	}
	if take(m.Payload()) {
		m.Ack()
		return
	}
	s.l.o.Log.Warn("message not taken; the service sends it again", "channel", string(t.Channel))
}

var errRefused = errors.New("message was not acknowledged")

// subject renders a raw distinguished name of a certificate request.
func subject(raw []byte) string {
	var seq pkix.RDNSequence
	if _, err := asn1.Unmarshal(raw, &seq); err != nil {
		return "an unreadable name"
	}
	var n pkix.Name
	n.FillFromRDNSequence(&seq)
	return n.String()
}
