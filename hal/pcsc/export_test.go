package pcsc

import (
	"context"
	"time"
)

// Slot is a slot of the reader table, for tests.
type Slot struct {
	Name          string
	Events, State uint32
}

// DecodeSlots is decodeSlots.
func DecodeSlots(b []byte) ([]Slot, error) {
	list, err := decodeSlots(b)
	var out []Slot
	for _, s := range list {
		out = append(out, Slot{s.name, s.events, s.state})
	}
	return out, err
}

// ErrNotAllowed is errNotAllowed.
var ErrNotAllowed = errNotAllowed

// Transmit tries to send any command to the card in a reader.
func Transmit(ctx context.Context, socket string, apdu []byte) (uint16, error) {
	c, err := dial(ctx, socket, time.Second)
	if err != nil {
		return 0, err
	}
	defer c.close()
	return c.transmit(0, 1, apdu)
}

// Greet connects and looks at the table, as run does.
func Greet(ctx context.Context, socket string) error {
	c, err := dial(ctx, socket, time.Second)
	if err != nil {
		return err
	}
	defer c.close()
	_, err = c.watch()
	return err
}
