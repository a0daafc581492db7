package agent

import (
	"context"
	"errors"

	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/cloud/wire"
)

// watched is the spool, of which somebody outside is told what is put into it.
type watched struct {
	*spool.Spool
	kept func(channel wire.Channel, payload []byte, how Keeping) // nil: nobody is
}

// books are what rooms put messages into.
func (a *Agent) books() watched { return watched{a.spool, a.o.Kept} }

// tell runs put with a compose that tells what it makes.
func (w watched) tell(channel string, compose func() ([]byte, error), put func(func() ([]byte, error)) error) error {
	if w.kept == nil || compose == nil {
		return put(compose)
	}
	var last []byte // it may run twice
	err := put(func() ([]byte, error) {
		payload, err := compose()
		if err == nil {
			last = payload
			w.kept(wire.Channel(channel), payload, KeptBegun)
		}
		return payload, err
	})
	return w.end(channel, last, err)
}

// tally is what is lost with a message that the books give up.
func (a *Agent) tally(channel string, payload []byte) (samples uint64, from, to int64) {
	if a.o.Kept != nil {
		a.o.Kept(wire.Channel(channel), payload, KeptShed)
	}
	return tally(channel, payload)
}

// end tells how it ended.
func (w watched) end(channel string, payload []byte, err error) error {
	switch {
	case err == nil:
		w.kept(wire.Channel(channel), payload, KeptDone)
	case errors.Is(err, spool.ErrDisk), errors.Is(err, spool.ErrFull):
		w.kept(wire.Channel(channel), payload, KeptRefused)
	}
	return err
}

// Compose is that of the spool.
func (w watched) Compose(ctx context.Context, class, channel string, compose func() ([]byte, error), counts map[string]uint64) error {
	return w.tell(channel, compose, func(compose func() ([]byte, error)) error {
		return w.Spool.Compose(ctx, class, channel, compose, counts)
	})
}

// Save is that of the spool.
func (w watched) Save(ctx context.Context, key string, value []byte, channel string, compose func() ([]byte, error)) error {
	return w.tell(channel, compose, func(compose func() ([]byte, error)) error {
		return w.Spool.Save(ctx, key, value, channel, compose)
	})
}

// Append is that of the spool.
func (w watched) Append(ctx context.Context, key, channel string, link func(head []byte) (payload, newHead []byte, err error)) error {
	if w.kept == nil {
		return w.Spool.Append(ctx, key, channel, link)
	}
	var last []byte
	err := w.Spool.Append(ctx, key, channel, func(head []byte) (payload, newHead []byte, err error) {
		payload, newHead, err = link(head)
		if err == nil {
			last = payload
			w.kept(wire.Channel(channel), payload, KeptBegun)
		}
		return payload, newHead, err
	})
	return w.end(channel, last, err)
}
