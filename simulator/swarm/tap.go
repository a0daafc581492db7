package swarm

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"sync"
)

// Record is one TLS record as it lies on the wire [RFC 8446, 5.1].
type Record struct {
	Up    bool  // from the device to the service
	Type  uint8 // 22 handshake, 20 change of cipher, 21 alert, 23 all that is encrypted
	Bytes int   // with its header of 5 bytes
}

// Traffic is what has passed a Tap: payload of TCP, without its headers.
type Traffic struct {
	Conns    int // connections that were made
	Up, Down int64
	Records  []Record // the first 4096, in order of their last byte; none when it is not TLS
}

// maxRecords bounds what a Tap remembers: it is made for single connections.
const maxRecords = 4096

// Tap forwards TCP from addr, on loopback, to target and counts what passes.
// end drops the connections and waits; counts still answers after it.
func Tap(ctx context.Context, target string) (addr string, counts func() Traffic, end func(), err error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, nil, fmt.Errorf("tap %s: %w", target, err)
	}
	t := &tap{target: target, conns: make(map[net.Conn]struct{})}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	t.wg.Go(func() { t.accept(ctx, ln) })
	return ln.Addr().String(), t.counts, func() {
		cancel()
		_ = ln.Close()
		t.drop()
		t.wg.Wait()
	}, nil
}

type tap struct {
	target string
	wg     sync.WaitGroup

	mu    sync.Mutex
	ended bool
	conns map[net.Conn]struct{}
	seen  Traffic
}

func (t *tap) counts() Traffic {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.seen
	c.Records = slices.Clone(c.Records)
	return c
}

func (t *tap) drop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	for c := range t.conns {
		_ = c.Close()
	}
}

// hold keeps c until the tap ends; false when it has.
func (t *tap) hold(c net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		_ = c.Close()
		return false
	}
	t.conns[c] = struct{}{}
	return true
}

func (t *tap) leave(c net.Conn) {
	_ = c.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, c)
}

func (t *tap) accept(ctx context.Context, ln net.Listener) {
	for {
		in, err := ln.Accept()
		if err != nil {
			return
		}
		if t.hold(in) {
			t.wg.Go(func() { t.forward(ctx, in) })
		}
	}
}

func (t *tap) forward(ctx context.Context, in net.Conn) {
	defer t.leave(in)
	out, err := (&net.Dialer{}).DialContext(ctx, "tcp", t.target)
	if err != nil || !t.hold(out) {
		return
	}
	defer t.leave(out)
	t.mu.Lock()
	t.seen.Conns++
	t.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { t.pump(out, in, true) })
	t.pump(in, out, false)
	wg.Wait()
}

// pump copies one direction; a byte is counted before it is passed on, so
// whoever got an answer finds all that led to it in counts.
func (t *tap) pump(dst, src net.Conn, up bool) {
	defer func() { _, _ = dst.Close(), src.Close() }()
	s := splitter{up: up}
	buf := make([]byte, 16<<10)
	for {
		n, err := src.Read(buf)
		t.count(&s, buf[:n], up)
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (t *tap) count(s *splitter, b []byte, up bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if up {
		t.seen.Up += int64(len(b))
	} else {
		t.seen.Down += int64(len(b))
	}
	records := s.feed(b)
	t.seen.Records = append(t.seen.Records, records[:min(len(records), maxRecords-len(t.seen.Records))]...)
}

// splitter cuts one direction of a connection into TLS records.
type splitter struct {
	up    bool
	plain bool // what passes is not TLS
	head  []byte
	left  int // of the record's body
}

const (
	headerLen = 5
	maxBody   = 1<<14 + 256 // of a TLS 1.3 record
)

// feed returns the records that end in b.
func (s *splitter) feed(b []byte) (out []Record) {
	for len(b) > 0 && !s.plain {
		if len(s.head) < headerLen {
			n := min(headerLen-len(s.head), len(b))
			s.head, b = append(s.head, b[:n]...), b[n:]
			if len(s.head) < headerLen {
				return out
			}
			s.left = int(binary.BigEndian.Uint16(s.head[3:]))
			if s.plain = s.head[0] < 20 || s.head[0] > 23 || s.head[1] != 3 || s.left == 0 || s.left > maxBody; s.plain {
				return out
			}
		}
		n := min(s.left, len(b))
		s.left, b = s.left-n, b[n:]
		if s.left == 0 {
			out = append(out, Record{Up: s.up, Type: s.head[0], Bytes: headerLen + int(binary.BigEndian.Uint16(s.head[3:]))})
			s.head = s.head[:0]
		}
	}
	return out
}
