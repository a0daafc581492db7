// Package port opens the cables of printer-like peripherals: a network socket,
// a node of the USB printer class, a serial line. Where a peripheral is, is
// written as an address, and parsed here and nowhere else:
//
//	192.0.2.10:9100            the same as tcp:192.0.2.10:9100
//	usb:04b8:0e15              the only printer of that kind
//	usb:04b8:0e15:J5ZK012345   the one with that serial number
//	usb:04b8:0e15@1-1.2        the one in that socket
//	/dev/usb/lp0               whatever has that node now
//	serial:/dev/ttyS0?baud=9600&parity=none&bits=8&stop=1&flow=none
//
// Every connection has deadlines on both ways, so that a device that is stuck
// holds nobody up, and a device that talks without an end is read slowly. The
// package promises to tell a device that is held by
// somebody else from one that is not there, and to look for a USB device
// without touching it. It knows nothing of what is said over the cable, tries
// no cable that was not named, and takes no device from whoever holds it.
package port

import (
	"context"
	"errors"
	"io"
	"net"
	"time"
)

// Conn is an open cable. Read returns what is there, and waits for something;
// a deadline ends the wait with os.ErrDeadlineExceeded. A net.Conn is a Conn.
type Conn interface {
	io.ReadWriteCloser
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}

// What Open and Find fail with, apart from what the system says.
var (
	ErrInUse    = errors.New("in use by another program")
	ErrAbsent   = errors.New("not there")
	ErrNoNode   = errors.New("there, but no driver of the kernel serves it as a printer") // usblp is not loaded, or somebody took it off
	ErrNoAccess = errors.New("no right to open it")
	ErrOneWay   = errors.New("tells nothing: its cable goes one way only") // what Read of such a Conn returns
)

const sendBuffer = 8 << 10

// Open opens the address. A device that is not there now may be there later:
// where a USB device is, is looked up at each call.
func (a Address) Open(ctx context.Context) (Conn, error) {
	switch a.kind {
	case usbNode:
		return a.openLP()
	case serialLine:
		return a.openSerial()
	}
	c, err := (&net.Dialer{KeepAlive: 15 * time.Second}).DialContext(ctx, "tcp", a.target)
	if err != nil {
		return nil, err
	}
	t, ok := c.(*net.TCPConn)
	if !ok {
		return c, nil
	}
	_ = t.SetWriteBuffer(sendBuffer) // what a device that stands has not taken is to be little
	return &wire{TCPConn: t}, nil
}
