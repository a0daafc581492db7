package emulator

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"time"
)

// Card is a chip card for one slot of a virtual reader, of a real pcscd or of a
// VirtualPCSCD. While it is in it is connected to the reader, which asks
// [vsmartcard vpcd protocol]: two bytes of length, then one byte 0 off, 1 on,
// 2 reset, 4 answer to reset, or a command for the card.
//
// The card has a payment directory with an application of a proprietary,
// unregistered identifier, and nothing else: no number, no name, no key.
type Card struct {
	dial    func(context.Context) (net.Conn, error) // to its slot of the reader
	changed chan struct{}

	mu       sync.Mutex
	inserted bool
	moves    uint32 // insertions and removals so far
	mute     bool
	tear     bool
	late     time.Duration
	says     []byte
	powered  bool
	conn     net.Conn
	commands [][]byte
}

// NewCard returns a card for the slot of a reader that somebody else plays: dial
// connects it there, and waits until there is one. Run keeps it connected.
func NewCard(dial func(context.Context) (net.Conn, error)) *Card {
	return &Card{dial: dial, changed: make(chan struct{}, 1)}
}

// ppse is the answer of the card to the selection of its payment directory.
var ppse = []byte("\x6f\x25\x84\x0e2PAY.SYS.DDF01\xa5\x13\xbf\x0c\x10\x61\x0e\x4f\x08\xf0TILLWD\x87\x01\x01\x90\x00")

var atr = []byte{0x3b, 0x02, 0x14, 0x50}

// Insert puts the card in.
func (c *Card) Insert() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.inserted {
		c.inserted = true
		c.moves++
	}
	c.tellLocked()
}

// tellLocked wakes whoever looks after the reader.
func (c *Card) tellLocked() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// Remove pulls it out.
func (c *Card) Remove() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.removeLocked()
}

func (c *Card) removeLocked() {
	if c.inserted {
		c.moves++
	}
	c.inserted, c.powered, c.tear = false, false, false
	if c.conn != nil {
		_ = c.conn.Close()
	}
	c.tellLocked()
}

// TearNext makes the card be pulled out during the next command to it.
func (c *Card) TearNext() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tear = true
}

// Mute makes the card not answer to reset, as one that is worn or the wrong
// way round.
func (c *Card) Mute(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mute = on
}

// Slow makes the card take so long for an answer.
func (c *Card) Slow(by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.late = by
}

// Say makes the card answer every command with this text and success, so that
// a test can see where it ends up.
func (c *Card) Say(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.says = append([]byte(text), 0x90, 0x00)
}

// Inserted reports whether the card is in.
func (c *Card) Inserted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inserted
}

// state is what a reader sees.
func (c *Card) state() (inserted bool, moves uint32, mute bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inserted, c.moves, c.mute
}

// Commands returns what was sent to the card.
func (c *Card) Commands() [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([][]byte(nil), c.commands...)
}

// Run keeps the card that is in connected to its reader, until ctx ends. A
// reader that is started again finds the card where it was.
func (c *Card) Run(ctx context.Context) {
	for ctx.Err() == nil {
		c.mu.Lock()
		inserted := c.inserted
		c.mu.Unlock()
		if inserted {
			if conn, err := c.dial(ctx); err == nil {
				c.meet(ctx, conn)
			}
		}
		wait := time.NewTimer(20 * time.Millisecond)
		select {
		case <-ctx.Done():
		case <-c.changed:
		case <-wait.C:
		}
		wait.Stop()
	}
}

// meet serves one connection, unless the card is out by now.
func (c *Card) meet(ctx context.Context, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	c.mu.Lock()
	if !c.inserted {
		c.mu.Unlock()
		_ = conn.Close()
		return
	}
	c.conn, c.powered = conn, false
	c.mu.Unlock()
	c.serve(conn)
}

func (c *Card) serve(conn net.Conn) {
	defer conn.Close()
	for {
		var n [2]byte
		if _, err := io.ReadFull(conn, n[:]); err != nil {
			return
		}
		cmd := make([]byte, binary.BigEndian.Uint16(n[:]))
		if _, err := io.ReadFull(conn, cmd); err != nil {
			return
		}
		answer, ok := c.obey(cmd)
		if !ok {
			return
		}
		c.think()
		if answer == nil {
			continue
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil { // #nosec G115 -- short
			return
		}
	}
}

// think takes the time that the card takes.
func (c *Card) think() {
	c.mu.Lock()
	late := c.late
	c.mu.Unlock()
	if late > 0 {
		time.Sleep(late)
	}
}

// obey returns the answer, nil for none; false when the card is gone.
func (c *Card) obey(cmd []byte) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.inserted {
		return nil, false
	}
	if len(cmd) != 1 {
		c.commands = append(c.commands, cmd)
		if c.tear {
			c.removeLocked()
			return nil, false
		}
		if c.says != nil {
			return c.says, true
		}
		if string(cmd) == "\x00\xa4\x04\x00\x0e2PAY.SYS.DDF01\x00" {
			return ppse, true
		}
		return []byte{0x6a, 0x82}, true
	}
	switch cmd[0] {
	case 0:
		c.powered = false
	case 1, 2:
		c.powered = true
	case 4:
		if c.mute && c.powered {
			c.powered = false
			return make([]byte, 40), true // longer than any: the reader takes it for no answer
		}
		return atr, true
	}
	return nil, true
}
