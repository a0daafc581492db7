package broker

import (
	"errors"
	"log/slog"
	"net"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// This file knows who is there: sessions that come, take over and leave.

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

// join adds a session; the one before it of the same device ends, and whether
// anybody was behind it will be seen.
func (b *Broker) join(s *session) error {
	b.mu.Lock()
	if b.closing || b.entering[s] {
		b.mu.Unlock()
		return errCutOff
	}
	old := b.sessions[s.id.Device]
	b.sessions[s.id.Device], b.conns[s.client.Net.Conn] = s, s
	if old != nil {
		old.heir = s.host
		old.replaced.Store(true)
	}
	b.mu.Unlock()
	if old != nil {
		b.o.Log.Info("connection taken over", slog.String("device", s.id.Device), slog.String("from", old.host), slog.String("by", s.host))
		old.conn().part()
		old.client.Stop(errors.New("taken over by a newer connection"))
	}
	return nil
}

var errCutOff = errors.New("the device was cut off while it connected, or the service stops")

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
	var copied string
	if s.heir != "" && s.conn().alive.Load() {
		copied = b.takenOver(s.id.Device, s.host, s.heir, time.Now())
	}
	b.mu.Unlock()
	close(s.gone)
	b.tell(s.id.Device)
	if copied != "" {
		b.o.Log.Error("two live connections of one identity; is there a copy of this device?", slog.String("device", s.id.Device), slog.String("what", copied))
		b.o.Clone(s.id.Device, copied)
	}
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
