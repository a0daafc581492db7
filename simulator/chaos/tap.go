package chaos

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"sync"

	"github.com/tillward/tillward/cloud/wire"
)

// MQTT 3.1.1 control packets, of which the tap knows two.
const (
	publish  = 3
	puback   = 4
	qosMask  = 0x06
	dupFlag  = 0x08
	firstOwn = 60000 // packet ids of copies; the agent's count up from 1
)

// tap stands between the agent's MQTT and its TLS. It sends packets twice, in
// both directions, and cuts the connection in the middle of one. Evidence it
// leaves alone: a quote that comes twice on one connection is an attack, and
// told as one (docs/THREATS.md, replay of evidence).
type tap struct {
	net.Conn
	w *witness

	mu   sync.Mutex // of what goes out
	out  []byte     // of a packet that is not whole
	late []byte     // a copy that is sent behind others
	own  uint16     // id of the last copy with one of its own
	rng  *rand.Rand

	in    []byte // of a packet that is not whole
	ready []byte // to be read
}

func newTap(c net.Conn, w *witness) *tap {
	return &tap{Conn: c, w: w, own: firstOwn, rng: rand.New(rand.NewPCG(rand.Uint64(), 1))} // #nosec G404 -- picks packets
}

// packet returns the first whole packet of b, and nil while there is none.
func packet(b []byte) []byte {
	length, shift := 0, 0
	for i := 1; i < len(b) && i < 5; i++ {
		length |= int(b[i]&0x7f) << shift
		shift += 7
		if b[i]&0x80 == 0 {
			if end := i + 1 + length; end <= len(b) {
				return b[:end]
			}
			return nil
		}
	}
	return nil
}

// body is where a packet begins behind its fixed header.
func body(p []byte) int {
	i := 1
	for p[i]&0x80 != 0 {
		i++
	}
	return i + 1
}

// idAt is where the packet id of a PUBLISH with QoS 1 is; 0: it has none.
func idAt(p []byte) int {
	if p[0]>>4 != publish || p[0]&qosMask == 0 {
		return 0
	}
	at := body(p)
	if at+2 > len(p) {
		return 0
	}
	at += 2 + int(binary.BigEndian.Uint16(p[at:]))
	if at+2 > len(p) {
		return 0
	}
	return at
}

// Write implements net.Conn.
func (t *tap) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.out = append(t.out, b...)
	for {
		p := packet(t.out)
		if p == nil {
			return len(b), nil
		}
		if err := t.send(p); err != nil {
			return 0, err
		}
		t.out = append(t.out[:0], t.out[len(p):]...)
	}
}

// send sends one packet, and what chance adds.
func (t *tap) send(p []byte) error {
	at := idAt(p)
	if at == 0 {
		_, err := t.Conn.Write(p)
		return err
	}
	if t.w.cutNow() {
		_, _ = t.Conn.Write(p[:len(p)/2])
		t.w.say(line{Kind: saidCut})
		if c, ok := t.Conn.(*tls.Conn); ok {
			_ = c.NetConn().Close() // no farewell
		}
		_ = t.Conn.Close()
		return net.ErrClosed
	}
	if _, err := t.Conn.Write(p); err != nil {
		return err
	}
	if t.late != nil && t.rng.IntN(3) == 0 {
		copied := t.late
		t.late = nil
		if err := t.again(copied, "sent again, behind others"); err != nil {
			return err
		}
	}
	if bytes.HasSuffix(p[:at], []byte("/"+wire.Evidence)) || t.rng.Float64() >= t.w.twice() {
		return nil
	}
	copied := append([]byte(nil), p...)
	switch t.rng.IntN(4) {
	case 0:
		copied[0] |= dupFlag
		return t.again(copied, "sent again, marked DUP")
	case 1:
		return t.again(copied, "sent again as it was")
	case 2:
		t.own = max(t.own+1, firstOwn)
		binary.BigEndian.PutUint16(copied[at:], t.own)
		return t.again(copied, "sent again under another id")
	}
	t.late = copied
	return nil
}

func (t *tap) again(p []byte, how string) error {
	_, err := t.Conn.Write(p)
	if err == nil {
		t.w.say(line{Kind: saidTwice, Name: how})
	}
	return err
}

// Read implements net.Conn.
func (t *tap) Read(b []byte) (int, error) {
	for len(t.ready) == 0 {
		var buf [4096]byte
		n, err := t.Conn.Read(buf[:])
		t.in = append(t.in, buf[:n]...)
		for p := packet(t.in); p != nil; p = packet(t.in) {
			t.take(p)
			t.in = append(t.in[:0], t.in[len(p):]...)
		}
		if err != nil && len(t.ready) == 0 {
			return 0, err
		}
	}
	n := copy(b, t.ready)
	t.ready = append(t.ready[:0], t.ready[n:]...)
	return n, nil
}

// take takes a packet in that the service sent.
func (t *tap) take(p []byte) {
	if p[0]>>4 == puback && len(p) == 4 {
		t.w.delivered()
		if binary.BigEndian.Uint16(p[2:]) > firstOwn {
			return // of a copy
		}
	}
	t.ready = append(t.ready, p...)
	if idAt(p) != 0 && rand.Float64() < t.w.twice() { // #nosec G404 -- as above
		copied := append([]byte(nil), p...)
		copied[0] |= dupFlag
		t.ready = append(t.ready, copied...)
		t.w.say(line{Kind: saidTwice, Name: "taken twice, marked DUP"})
	}
}
