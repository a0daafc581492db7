package link

import (
	"context"
	"fmt"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/tillward/tillward/cloud/wire"
)

// window is the part of the spool that is on its way: fetched in order, sent in
// order, forgotten in order.
type window struct {
	after   uint64 // id of the last message fetched
	waiting []message
	flying  []flight
	empty   bool      // nothing was left behind after; a Wake ends it
	turning bool      // the door changes: wait for what flies, then begin again
	moved   time.Time // when an acknowledgement came last, or the first one became due
}

type message struct {
	id      uint64
	channel wire.Channel
	payload []byte
}

type flight struct {
	id    uint64
	token mqtt.Token
}

// oldest returns the channel of the first acknowledgement that is due, nil when
// nothing flies.
func (w *window) oldest() <-chan struct{} {
	if len(w.flying) == 0 {
		return nil
	}
	return w.flying[0].token.Done()
}

// turn makes the rest of the spool go through the other door. What flies is
// waited for first, so that nothing is sent twice.
func (w *window) turn() { w.turning, w.waiting = true, nil }

// fill sends until the window is full or the spool has no more.
func (s *session) fill(ctx context.Context) error {
	w := &s.window
	if w.turning {
		if len(w.flying) > 0 {
			return nil
		}
		*w = window{moved: w.moved}
	}
	var channels []string
	if !s.open {
		channels = quarantined
	}
	for len(w.flying) < s.l.o.Window {
		if len(w.waiting) == 0 {
			if w.empty {
				return nil
			}
			err := s.l.o.Spool.Next(ctx, w.after, s.l.o.Window, channels, func(id uint64, channel string, payload []byte) {
				w.waiting, w.after = append(w.waiting, message{id, wire.Channel(channel), payload}), id
			})
			if err != nil {
				return err
			}
			if len(w.waiting) == 0 {
				w.empty = true
				return nil
			}
		}
		m := w.waiting[0]
		w.waiting = w.waiting[1:]
		if len(w.flying) == 0 {
			w.moved = time.Now()
		}
		t, err := s.publish(m.channel, !s.open, m.payload)
		if err != nil {
			return err
		}
		w.flying = append(w.flying, flight{m.id, t})
	}
	return nil
}

// forget removes from the spool what has been acknowledged. An acknowledgement
// that overtakes another waits for it, so that a cut leaves no hole.
func (s *session) forget(ctx context.Context) error {
	w := &s.window
	var ids []uint64
	var failed error
	for len(w.flying) > 0 && failed == nil {
		f := w.flying[0]
		select {
		case <-f.token.Done():
		default:
			return s.done(ctx, ids)
		}
		if err := f.token.Error(); err != nil {
			failed = fmt.Errorf("%w: %w", errRefused, err)
			break
		}
		ids = append(ids, f.id)
		w.flying = w.flying[1:]
	}
	if err := s.done(ctx, ids); err != nil {
		return err
	}
	return failed
}

func (s *session) done(ctx context.Context, ids []uint64) error {
	if len(ids) == 0 {
		return nil
	}
	s.acked += len(ids)
	s.window.moved = time.Now()
	return s.l.o.Spool.Done(ctx, ids...)
}

// settle gives what flies a moment to be acknowledged before the agent ends, so
// that it need not be sent again.
func (s *session) settle() {
	ctx, cancel := context.WithTimeout(context.Background(), min(s.l.o.Timeout, time.Second))
	defer cancel()
	for len(s.window.flying) > 0 {
		select {
		case <-s.window.oldest():
			if s.forget(ctx) != nil {
				return
			}
		case err := <-s.lost:
			s.l.o.Log.Debug("connection lost while ending", "error", err)
			return
		case <-ctx.Done():
			return
		}
	}
}
