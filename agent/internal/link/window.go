package link

import (
	"context"
	"fmt"
	"math"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/tillward/tillward/cloud/wire"
)

// The lanes of a connection. While little waits there is one, and all goes in
// the order in which it was recorded. With a backlog there are four: what is
// ordered stays so within its channel, and telemetry that is recorded now goes
// ahead of what was measured while the device was away.
const (
	now     = iota // results and states; with little waiting, everything
	trail          // audit and events
	fresh          // telemetry recorded since the window began
	backlog        // telemetry from before
	lanes
)

// lanesSince is the version of the contract that knows telemetry which goes ahead.
const lanesSince = 5

// fetched is how many messages of a lane are read from the spool at once.
const fetched = 16

var (
	nowChannels   = []string{string(wire.Result), string(wire.State)}
	trailChannels = []string{string(wire.Audit), string(wire.Event)}
	telemetry     = []string{string(wire.Telemetry)}
)

// window is the part of the spool that is on its way.
type window struct {
	lane    [lanes]lane
	begun   bool
	mark    uint64 // id of the newest message when the window began
	split   bool   // into lanes; else lane now has everything
	sent    bool   // something was
	turning bool   // the door or the lanes change: wait for what flies, then begin again
}

// lane is fetched in order, sent in order and forgotten in order.
type lane struct {
	channels []string // all of them when nil
	closed   bool     // nothing of it may leave the device
	after    uint64   // id of the last message fetched, or looked at
	waiting  []message
	flying   []flight
	empty    bool      // nothing was left behind after; a Wake ends it
	moved    time.Time // when an acknowledgement came last, or the first one became due
}

type message struct {
	id      uint64
	channel wire.Channel
	payload []byte
}

type flight struct {
	id    uint64
	sent  time.Time
	token mqtt.Token
}

// oldest returns the channel of the first acknowledgement that is due in a lane,
// nil when nothing flies.
func (w *window) oldest(n int) <-chan struct{} {
	if len(w.lane[n].flying) == 0 {
		return nil
	}
	return w.lane[n].flying[0].token.Done()
}

func (w *window) flying() (n int) {
	for i := range w.lane {
		n += len(w.lane[i].flying)
	}
	return n
}

// turn makes the rest of the spool go another way. What flies is waited for
// first, so that nothing is sent twice.
func (w *window) turn() {
	w.turning = true
	for n := range w.lane {
		w.lane[n].waiting = nil
	}
}

// wake ends that there was nothing more.
func (w *window) wake() {
	for n := range w.lane {
		w.lane[n].empty = n == backlog && w.lane[n].empty
	}
}

// rest begins to count the time without acknowledgement anew.
func (w *window) rest() {
	for n := range w.lane {
		w.lane[n].moved = time.Now()
	}
}

// begin decides how the spool goes out: by one lane, or by several when more
// waits than a window holds.
func (s *session) begin(ctx context.Context) error {
	w := &s.window
	*w = window{begun: true}
	w.rest()
	if !s.open {
		w.lane[now].channels = quarantined
	}
	waiting := s.l.o.Spool.Depth()
	mark, err := s.l.o.Spool.Newest(ctx)
	if err != nil {
		return err
	}
	w.mark = mark
	if w.split = s.lanes && waiting > uint64(s.l.o.Window); !w.split { // #nosec G115 -- small
		return nil
	}
	w.lane[now].channels, w.lane[trail].channels = nowChannels, trailChannels
	w.lane[fresh].channels, w.lane[backlog].channels = telemetry, telemetry
	w.lane[fresh].after = mark
	if !s.open {
		w.lane[trail].channels = []string{string(wire.Audit)}
		w.lane[fresh].closed, w.lane[backlog].closed = true, true
	}
	return nil
}

// fill sends until the window is full or the spool has no more. It returns when
// to look again although nothing has come.
func (s *session) fill(ctx context.Context) (again time.Duration, err error) {
	w := &s.window
	if w.turning || !w.begun {
		if w.flying() > 0 {
			return 0, nil
		}
		if err := s.begin(ctx); err != nil {
			return 0, err
		}
	}
	if !w.split {
		return 0, s.drain(ctx, now, s.l.o.Window)
	}
	// What is live first: the places of the others are limited, so that there is always one.
	for _, n := range [...]int{now, fresh} {
		if err := s.drain(ctx, n, s.l.o.Window); err != nil {
			return 0, err
		}
	}
	if err := s.drain(ctx, trail, max(1, s.l.o.Window/2)); err != nil {
		return 0, err
	}
	if again, err = s.beside(ctx); err != nil {
		return 0, err
	}
	if w.sent && w.flying() == 0 && w.lane[backlog].done() && s.passed() {
		w.turn()
		return s.fill(ctx)
	}
	return again, nil
}

// done reports whether all of a lane is gone and acknowledged.
func (l *lane) done() bool {
	return !l.closed && l.empty && len(l.waiting) == 0 && len(l.flying) == 0
}

// passed reports whether what is ordered and was there when the window began is
// on its way.
func (s *session) passed() bool {
	for _, n := range [...]int{now, trail} {
		if l := &s.window.lane[n]; l.next() <= s.window.mark {
			return false
		}
	}
	return true
}

// next is the id of the next message that is sent, or the least it can have.
func (l *lane) next() uint64 {
	switch {
	case len(l.waiting) > 0:
		return l.waiting[0].id
	case l.empty:
		return math.MaxUint64
	}
	return l.after + 1
}

// drain sends of a lane while it has fewer than most messages in flight.
func (s *session) drain(ctx context.Context, n, most int) error {
	l := &s.window.lane[n]
	for !l.closed && len(l.flying) < most && s.window.flying() < s.l.o.Window {
		if m, err := s.peek(ctx, n); m == nil {
			return err
		}
		if n == trail && len(l.flying) >= s.pace.allowed() && l.waiting[0].id <= s.window.mark {
			return nil
		}
		if err := s.launch(n); err != nil {
			return err
		}
	}
	return nil
}

// beside sends backlog as its pace allows, behind the events and audit records
// that were recorded before it. It returns when the pace allows more.
func (s *session) beside(ctx context.Context) (again time.Duration, err error) {
	l := &s.window.lane[backlog]
	for !l.closed && len(l.flying) < min(s.pace.allowed(), max(1, s.l.o.Window/4)) && s.window.flying() < s.l.o.Window {
		m, err := s.peek(ctx, backlog)
		if m == nil || m.id > s.window.lane[trail].next() {
			return 0, err
		}
		if wait := s.pace.wait(time.Now()); wait > 0 {
			return wait, nil
		}
		s.pace.spend(len(m.payload))
		if err := s.launch(backlog); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// peek returns the next message of a lane, nil when there is none.
func (s *session) peek(ctx context.Context, n int) (*message, error) {
	l := &s.window.lane[n]
	if len(l.waiting) == 0 && !l.empty {
		top, err := s.l.o.Spool.Newest(ctx) // before it is read: what comes meanwhile is not passed over
		if err != nil {
			return nil, err
		}
		limit := fetched
		if !s.window.split {
			limit = s.l.o.Window
		}
		some := false
		err = s.l.o.Spool.Next(ctx, l.after, limit, l.channels, func(id uint64, channel string, payload []byte) {
			some = true
			if n == backlog && id > s.window.mark {
				l.empty = true
				return
			}
			l.waiting, l.after = append(l.waiting, message{id, wire.Channel(channel), payload}), id
		})
		if err != nil {
			return nil, err
		}
		if !some {
			l.empty, l.after = true, max(l.after, top)
		}
	}
	if len(l.waiting) == 0 {
		return nil, nil
	}
	return &l.waiting[0], nil
}

// launch sends the first message that waits in a lane.
func (s *session) launch(n int) error {
	l := &s.window.lane[n]
	m := l.waiting[0]
	l.waiting = l.waiting[1:]
	if len(l.flying) == 0 {
		l.moved = time.Now()
	}
	channel := m.channel
	if n == fresh && (!s.window.lane[backlog].done() || m.id > s.window.lane[trail].next()) {
		channel = wire.Live // something before it is still here
	}
	t, err := s.publish(channel, !s.open, m.payload)
	if err != nil {
		return err
	}
	l.flying = append(l.flying, flight{m.id, time.Now(), t})
	s.window.sent = true
	return nil
}

// forget removes from the spool what has been acknowledged of a lane. An
// acknowledgement that overtakes another waits for it, so that a cut leaves no
// hole.
func (s *session) forget(ctx context.Context, n int) error {
	l := &s.window.lane[n]
	var ids []uint64
	var failed error
	for len(l.flying) > 0 && failed == nil {
		f := l.flying[0]
		select {
		case <-f.token.Done():
		default:
			return s.done(ctx, n, ids)
		}
		if err := f.token.Error(); err != nil {
			failed = fmt.Errorf("%w: %w", errRefused, err)
			break
		}
		if s.window.split && f.id <= s.window.mark && n != now {
			s.pace.acked(f.sent, time.Now())
		}
		ids = append(ids, f.id)
		l.flying = l.flying[1:]
	}
	if err := s.done(ctx, n, ids); err != nil {
		return err
	}
	return failed
}

func (s *session) done(ctx context.Context, n int, ids []uint64) error {
	if len(ids) == 0 {
		return nil
	}
	s.acked += len(ids)
	s.window.lane[n].moved = time.Now()
	return s.l.o.Spool.Done(ctx, ids...)
}

// stalled returns how long it takes until a lane has gone without an
// acknowledgement for too long, and how long that is. A service that many
// devices came back to at once withholds the acknowledgement of what is old: to
// hang up and come back would only make its queue longer.
func (s *session) stalled() (left, patience time.Duration) {
	left = math.MaxInt64
	for n := range s.window.lane {
		l := &s.window.lane[n]
		if len(l.flying) == 0 {
			continue
		}
		p := s.l.o.Timeout
		if l.flying[0].id <= s.window.mark && n != fresh {
			p = max(p, s.l.o.Patience)
		}
		if d := p - time.Since(l.moved); d < left {
			left, patience = d, p
		}
	}
	return left, patience
}

// settle gives what flies a moment to be acknowledged before the agent ends, so
// that it need not be sent again.
func (s *session) settle() {
	ctx, cancel := context.WithTimeout(context.Background(), min(s.l.o.Timeout, time.Second))
	defer cancel()
	w := &s.window
	for w.flying() > 0 {
		n := 0
		select {
		case <-w.oldest(now):
			n = now
		case <-w.oldest(trail):
			n = trail
		case <-w.oldest(fresh):
			n = fresh
		case <-w.oldest(backlog):
			n = backlog
		case err := <-s.lost:
			s.l.o.Log.Debug("connection lost while ending", "error", err)
			return
		case <-ctx.Done():
			return
		}
		if s.forget(ctx, n) != nil {
			return
		}
	}
}
