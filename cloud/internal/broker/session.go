package broker

import (
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/identity"
)

// session is one live connection of a device.
type session struct {
	id          identity.Identity
	admission   fleet.Admission
	host        string // where it came from
	client      *mqtt.Client
	exporter    []byte
	out         chan packets.Packet // what waits to be written
	gone        chan struct{}       // closed when the connection has ended
	written     chan struct{}       // closed when nothing more is written
	established atomic.Bool         // CONNACK is out
	subscribed  atomic.Int32        // calls of Ready asked for
	replaced    atomic.Bool         // a newer connection of the device has taken over

	heir string // where the connection came from that took over; the lock of the Broker guards it

	mu         sync.Mutex
	trust      fleet.Trust
	dead       bool // a commit failed, or the device was cut off: nothing more is acknowledged
	waiting    int  // messages let in whose PUBACK is not written
	sending    int  // down messages not written
	packet     uint16
	violations int
}

// last in the queue ends the session.
var last packets.Packet

func newSession(id identity.Identity, cl *mqtt.Client, exporter []byte) *session {
	host, _, err := net.SplitHostPort(cl.Net.Remote)
	if err != nil {
		host = cl.Net.Remote
	}
	return &session{
		id: id, host: host, client: cl, exporter: exporter, trust: fleet.Pending,
		out: make(chan packets.Packet, ackQueue+sendQueue+1), gone: make(chan struct{}), written: make(chan struct{}),
	}
}

// Trust is what the connection's evidence has earned. Nothing earns more than
// what its certificate opens.
func (s *session) Trust() fleet.Trust {
	s.mu.Lock()
	defer s.mu.Unlock()
	if open(s.trust) && s.admission != fleet.AdmitMember {
		return fleet.Quarantined
	}
	return s.trust
}

func (s *session) setTrust(t fleet.Trust) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trust = t
}

// cut ends the connection for good: what is on its way is not taken any more.
func (s *session) cut(why error) {
	s.mu.Lock()
	s.dead = true
	s.mu.Unlock()
	s.client.Stop(why)
}

// conn is the connection below TLS.
func (s *session) conn() *deadlined {
	if c, ok := s.client.Net.Conn.(*tls.Conn); ok {
		if d, ok := c.NetConn().(*deadlined); ok {
			return d
		}
	}
	return &deadlined{}
}

// may says what the topic table allows: write for PUBLISH, else SUBSCRIBE.
func (s *session) may(topic string, write bool) bool {
	for _, q := range []bool{true, false} {
		if !write && topic == wire.Down(s.id.Tenant, s.id.Device, q) {
			return q || open(s.Trust())
		}
	}
	t, err := wire.ParseTopic(topic)
	return write && err == nil && t.Tenant == s.id.Tenant && t.Device == s.id.Device && t.Channel.Up() && (t.Quarantine || open(s.Trust()))
}

// violation counts what the device may not and says whether it is enough.
func (s *session) violation() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.violations++
	return s.violations >= violationsMax
}

// begin counts a message in; false when nothing of this connection may be
// acknowledged any more, or too much waits.
func (s *session) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead || s.waiting >= ackQueue {
		return false
	}
	s.waiting++
	return true
}

// Dead reports whether nothing of this connection is acknowledged any more.
func (s *session) Dead() bool {
	if s.replaced.Load() {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dead
}

// end has the PUBACK written, or closes the connection without one. Only the
// first failure closes; what comes behind it is dropped.
func (s *session) end(packet uint16, err error) {
	s.mu.Lock()
	first := err != nil && !s.dead
	s.dead = s.dead || err != nil
	dead := s.dead
	s.mu.Unlock()
	if first {
		s.client.Stop(fmt.Errorf("message was not stored: %w", err))
	}
	if !dead {
		s.out <- packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: packet} // begin keeps room for it
	}
}

// send queues a down message.
func (s *session) send(topic wire.Topic, payload []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sending >= sendQueue {
		return fmt.Errorf("%d messages wait to be read by %s: %w", s.sending, s.id.Device, ErrOffline)
	}
	s.sending++
	if s.packet++; s.packet == 0 {
		s.packet = 1
	}
	s.out <- packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, PacketID: s.packet, TopicName: topic.String(), Payload: payload,
	} // sending keeps room for it
	return nil
}

// write writes PUBACKs and down messages, apart from whoever has them: a
// device that reads slowly delays only itself.
func (s *session) write() {
	defer close(s.written)
	for {
		select {
		case <-s.gone:
			return
		case pk := <-s.out:
			switch pk.FixedHeader.Type {
			case packets.Puback, packets.Publish:
			default:
				s.client.Stop(errStopping)
				return
			}
			if err := s.client.WritePacket(pk); err != nil {
				s.client.Stop(err)
				return
			}
			s.mu.Lock()
			if pk.FixedHeader.Type == packets.Puback {
				s.waiting--
			} else {
				s.sending--
			}
			s.mu.Unlock()
		}
	}
}
