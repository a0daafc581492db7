package pcsc

import (
	"context"
	"net"
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

// Directories are all that may be sent to a card.
var Directories = [][]byte{selectPPSE, selectPSE}

// Transmit tries to send any command to a card over a connection that is open.
func Transmit(conn net.Conn, apdu []byte) (uint16, error) {
	return (&client{conn: conn, timeout: time.Second}).transmit(7, 1, apdu)
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

// Select does with a card what a payment application begins with.
func Select(ctx context.Context, socket, reader string) error {
	c, err := dial(ctx, socket, 5*time.Second)
	if err != nil {
		return err
	}
	defer c.close()
	_, _, err = c.selectDirectory(reader)
	return err
}

// USBOf is findUSB.
func USBOf(root, name string, alone bool) (key, maker, serial string, ok bool) {
	u, ok := findUSB(root, name, alone)
	return u.key, u.maker, u.serial, ok
}
