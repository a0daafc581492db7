package emulator

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"time"
)

// The commands of pcscd's clients [pcsc-lite winscard_msg.h], and the results
// and states that they see [pcsclite.h].
const (
	pcscEstablish   = 0x01
	pcscRelease     = 0x02
	pcscConnect     = 0x04
	pcscReconnect   = 0x05
	pcscDisconnect  = 0x06
	pcscBegin       = 0x07
	pcscEnd         = 0x08
	pcscTransmit    = 0x09
	pcscControl     = 0x0a
	pcscStatus      = 0x0b
	pcscCancel      = 0x0d
	pcscGetAttrib   = 0x0f
	pcscSetAttrib   = 0x10
	pcscVersion     = 0x11
	pcscGetStates   = 0x12
	pcscWaitChange  = 0x13
	pcscStopWaiting = 0x14

	pcscAbsent     = 0x02
	pcscPresent    = 0x04
	pcscSwallowed  = 0x08
	pcscPowered    = 0x10
	pcscNegotiable = 0x20

	rcUnknownReader = 0x80100009
	rcSharing       = 0x8010000b
	rcNoCard        = 0x8010000c
	rcProtocol      = 0x8010000f
	rcTorn          = 0x80100016
	rcReaderGone    = 0x80100017
	rcNoService     = 0x8010001d
	rcUnsupported   = 0x8010001f
	rcUnpowered     = 0x80100067
	rcRemoved       = 0x80100069

	protocolT0   = 1
	exclusive    = 1
	maxBody      = 64 << 10
	attributeATR = 0x00090303
)

// The bodies of the commands have fixed sizes; only two are followed by more.
var bodies = map[uint32]int{
	pcscEstablish: 12, pcscRelease: 8, pcscConnect: 152, pcscReconnect: 24, pcscDisconnect: 12, pcscBegin: 8, pcscEnd: 12, pcscTransmit: 32,
	pcscControl: 24, pcscStatus: 8, pcscCancel: 8, pcscGetAttrib: 280, pcscSetAttrib: 280, pcscVersion: 12, pcscGetStates: 0, pcscWaitChange: 0,
	pcscStopWaiting: 0,
}

// pcscClient is a connection to the daemon.
type pcscClient struct {
	d     *virtualDaemon
	conn  net.Conn
	out   chan []byte
	gone  chan struct{}
	once  sync.Once
	waits bool // for a change; guarded by the daemon's mutex, as is cards
	cards map[uint32]*grip
}

// grip is a connection to a card. It is of no use once the card was moved.
type grip struct {
	slot  *virtualSlot
	moves uint32
	alone bool
}

func (c *pcscClient) end() {
	c.once.Do(func() {
		close(c.gone)
		_ = c.conn.Close()
	})
}

// putLocked answers without waiting; who does not read is cut off.
func (c *pcscClient) putLocked(b []byte) {
	switch {
	case c.d.faults[Mute]:
		return
	case c.d.faults[Garbage]:
		b = bytes.Repeat([]byte{0xa5}, len(b))
	}
	select {
	case c.out <- b:
	default:
		c.end()
	}
}

func (c *pcscClient) write() {
	for {
		select {
		case <-c.gone:
			return
		case b := <-c.out:
			c.d.mu.Lock()
			slow := c.d.faults[Slow]
			c.d.mu.Unlock()
			if slow && !pause(lateBy, c.gone) {
				return
			}
			_ = c.conn.SetWriteDeadline(time.Now().Add(writeWithin))
			if _, err := c.conn.Write(b); err != nil {
				c.end()
				return
			}
		}
	}
}

// serve answers one client until it goes or says what pcscd does not know.
func (c *pcscClient) serve() {
	defer func() {
		c.end()
		c.d.mu.Lock()
		delete(c.d.clients, c)
		c.d.mu.Unlock()
	}()
	for {
		head := make([]byte, 8)
		if _, err := io.ReadFull(c.conn, head); err != nil {
			return
		}
		n, cmd := binary.NativeEndian.Uint32(head), binary.NativeEndian.Uint32(head[4:])
		want, known := bodies[cmd]
		if !known || int(n) != want {
			return
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(c.conn, body); err != nil {
			return
		}
		if !c.obey(cmd, body) {
			return
		}
	}
}

func word(b []byte, at int) uint32       { return binary.NativeEndian.Uint32(b[at:]) }
func setWord(b []byte, at int, v uint32) { binary.NativeEndian.PutUint32(b[at:], v) }

// obey answers a command: its body comes back with the results in it.
func (c *pcscClient) obey(cmd uint32, body []byte) bool {
	result := len(body) - 4 // where most have it
	var data []byte
	if cmd == pcscTransmit || cmd == pcscControl {
		n := word(body, map[uint32]int{pcscTransmit: 12, pcscControl: 8}[cmd])
		if n > maxBody {
			return false
		}
		data = make([]byte, n)
		if _, err := io.ReadFull(c.conn, data); err != nil {
			return false
		}
	}
	if cmd == pcscTransmit {
		return c.transmit(body, data)
	}
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	switch cmd {
	case pcscVersion:
		if word(body, 0) != 4 || word(body, 4) != 4 {
			setWord(body, result, rcNoService)
		}
		setWord(body, 0, 4)
		setWord(body, 4, 4)
	case pcscEstablish:
		c.d.handles++
		setWord(body, 4, c.d.handles)
	case pcscRelease, pcscCancel:
	case pcscConnect:
		setWord(body, result, c.connectLocked(body))
	case pcscReconnect, pcscStatus, pcscBegin, pcscEnd, pcscDisconnect, pcscGetAttrib, pcscControl, pcscSetAttrib:
		if c.cards[word(body, 0)] == nil {
			return false // as from pcscd, who takes it for an attack
		}
		setWord(body, result, c.holdLocked(cmd, body))
	case pcscGetStates:
		body = c.d.tableLocked()
	case pcscWaitChange:
		c.waits = true
		body = c.d.tableLocked()
	case pcscStopWaiting:
		if !c.waits {
			return true // the change is on its way and is the answer
		}
		c.waits = false
		body = make([]byte, 8)
	}
	c.putLocked(body)
	return true
}

// connectLocked is of hContext, reader's name, share mode, protocols, and back
// a handle and the protocol.
func (c *pcscClient) connectLocked(body []byte) uint32 {
	name, _, _ := bytes.Cut(body[4:132], []byte{0})
	s := c.d.slotLocked(string(name))
	if s == nil {
		return rcUnknownReader
	}
	c.d.lookLocked(s)
	switch {
	case s.state&pcscPresent == 0:
		return rcNoCard
	case s.state&pcscPowered == 0:
		return rcUnpowered
	case word(body, 136)&protocolT0 == 0:
		return rcProtocol
	}
	alone := word(body, 132) == exclusive
	for other := range c.d.clients {
		for _, g := range other.cards {
			if g.slot == s && g.moves == s.seen && (alone || g.alone) {
				return rcSharing
			}
		}
	}
	c.d.handles++
	s.spoke = protocolT0
	c.cards[c.d.handles] = &grip{slot: s, moves: s.seen, alone: alone}
	setWord(body, 140, c.d.handles)
	setWord(body, 144, protocolT0)
	return 0
}

// gripLocked finds the card behind a handle of this client, if it is the same
// card still.
func (c *pcscClient) gripLocked(handle uint32) (*grip, uint32) {
	g := c.cards[handle]
	if g.slot.gone {
		return g, rcReaderGone
	}
	c.d.lookLocked(g.slot)
	if g.slot.seen != g.moves {
		return g, rcRemoved
	}
	return g, 0
}

// holdLocked is of what needs a handle.
func (c *pcscClient) holdLocked(cmd uint32, body []byte) uint32 {
	_, rc := c.gripLocked(word(body, 0))
	switch {
	case cmd == pcscDisconnect:
		delete(c.cards, word(body, 0))
		return 0
	case rc != 0:
	case cmd == pcscReconnect:
		setWord(body, 16, protocolT0)
	case cmd == pcscGetAttrib && word(body, 4) == attributeATR:
		copy(body[8:], atr)
		setWord(body, 272, uint32(len(atr))) // #nosec G115 -- 4
	case cmd == pcscGetAttrib, cmd == pcscControl, cmd == pcscSetAttrib:
		return rcUnsupported
	}
	return rc
}

// transmit is of hCard, the protocol to send by and its header, lengths and the
// same to receive. The card is asked without the lock, for it may be slow.
func (c *pcscClient) transmit(body, apdu []byte) bool {
	c.d.mu.Lock()
	if c.cards[word(body, 0)] == nil {
		c.d.mu.Unlock()
		return false
	}
	g, rc := c.gripLocked(word(body, 0))
	if rc == 0 && word(body, 4) != protocolT0 {
		rc = rcProtocol
	}
	c.d.mu.Unlock()
	var answer []byte
	if rc == 0 {
		g.slot.card.think()
		var there bool
		if answer, there = g.slot.card.obey(apdu); !there {
			rc = rcTorn
		}
	}
	if room := word(body, 24); rc == 0 && uint32(len(answer)) > room { // #nosec G115 -- short
		answer = answer[:room]
	}
	setWord(body, 24, uint32(len(answer))) // #nosec G115 -- short
	setWord(body, 28, rc)
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	c.putLocked(append(body, answer...))
	return true
}
