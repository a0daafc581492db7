package escpos

import (
	"net"
	"time"

	"github.com/tillward/tillward/hal"
)

// Decode runs a stream through the decoder and returns its units by kind, and
// how many runs of bytes meant nothing.
func Decode(stream []byte) (realtime []byte, frames [][4]byte, blocks []string, errors int) {
	var d decoder
	for _, c := range stream {
		u, ok := d.feed(c)
		if !ok {
			continue
		}
		switch u.kind {
		case realtimeAnswer:
			realtime = append(realtime, u.b)
		case frameAnswer:
			frames = append(frames, u.frame)
		case blockAnswer:
			blocks = append(blocks, u.block)
		}
	}
	return realtime, frames, blocks, d.errors
}

// ParseCounter is parseCounter.
var ParseCounter = parseCounter

// Walked is what a walker makes of a stream.
type Walked struct {
	Ends              []int // where commands end
	Cuts, Kicks       int
	Dots              int
	Between, Murky    bool
	Padding           int
	CanBePadded       bool
	Questions, Urgent int
}

// Walk runs a stream through a walker.
func Walk(stream []byte, limit int) (r Walked) {
	var w walker
	for i, c := range stream {
		if w.step(c) {
			r.Ends = append(r.Ends, i+1)
			switch k, _ := w.command(); k {
			case query, realtime, statusOn:
				r.Questions++
			case urgent:
				r.Urgent++
			}
		}
	}
	r.Cuts, r.Kicks, r.Dots, r.Between, r.Murky = w.cuts, w.kicks, w.dots, w.between(), w.murky
	r.Padding, r.CanBePadded = w.padding(limit)
	return r
}

// Listens reads conn with a driver that panics at the first frame, and returns
// whether the connection was given up.
func Listens(conn net.Conn, track *hal.Tracker) bool {
	s := &session{
		conn: conn, learn: func(reading) hal.Status { panic("too much") }, noise: func(int) {}, contain: track.Contain,
		turn: make(chan struct{}, 1), lost: make(chan struct{}), oneWay: make(chan struct{}),
	}
	s.start(s.listen)
	defer s.end()
	select {
	case <-s.lost:
		return true
	case <-time.After(10 * time.Second):
		return false
	}
}
