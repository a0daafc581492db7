package star

import (
	"bytes"
	"strings"

	"github.com/tillward/tillward/hal"
)

const (
	frameUnit   = iota + 1 // automatic status, or the answer to ESC ACK SOH
	versionUnit            // the answer to ESC # *
	holdUnit               // XOFF: send no more
	goUnit                 // XON
)

// unit is one thing that a printer says.
type unit struct {
	kind    int
	frame   []byte // header and status, without what only networks add
	version string
}

const (
	minFrame   = 7     // up to status 5; shorter ones never were made
	maxData    = 0x200 // behind a frame, over a network
	maxVersion = 80
)

// decoder takes the printer's stream apart. What it says is told apart by
// fixed bits, but for what a network card adds behind a frame [Star Line Mode
// Command Specifications, appendix 2: automatic status, status transmission
// when using Ethernet].
type decoder struct {
	held   []byte
	want   int  // bytes of what has begun; 0: not known yet
	bad    bool // within a run of bytes that mean nothing
	errors int  // such runs
}

// feed takes one byte and returns the units that are complete with it.
func (d *decoder) feed(c byte) []unit {
	if len(d.held) == 0 {
		return d.first(c)
	}
	if d.held[0] == 0x1b {
		return d.text(c)
	}
	n := len(d.held)
	size := length(d.held[0])
	switch {
	case n == 1 && c&0x11 != 0, n > 1 && n < size && c&0x91 != 0:
		return d.restart(c)
	}
	d.held = append(d.held, c)
	n++
	network := d.held[1]&0x80 != 0
	switch {
	case n < size, network && n < size+2:
		return nil
	case !network:
		return d.frame(size)
	case n == size+2:
		more := int(d.held[size])<<8 | int(d.held[size+1])
		if more > maxData {
			return d.restart(c)
		}
		d.want = n + more
	}
	if n < d.want {
		return nil
	}
	return d.frame(size)
}

// length reads header 1. The number counts all bytes up to the last status.
func length(header byte) int { return int(header>>2&0x18 | header>>1&0x07) }

func (d *decoder) first(c byte) []unit {
	switch {
	case c == 0x11:
		return []unit{{kind: goUnit}}
	case c == 0x13:
		return []unit{{kind: holdUnit}}
	case c == 0x1b, c&0x91 == 0x01 && length(c) >= minFrame:
		d.held = append(d.held, c)
	default:
		d.fail()
	}
	return nil
}

// text takes in an answer that is written out: ESC # * , text LF NUL.
func (d *decoder) text(c byte) []unit {
	n := len(d.held)
	switch {
	case n < len(versionHead) && c != versionHead[n], n > maxVersion, c >= 0x7f:
		return d.restart(c)
	case c != 0:
		d.held = append(d.held, c)
		return nil
	}
	v := readVersion(d.held)
	d.done()
	return []unit{{kind: versionUnit, version: v}}
}

const versionHead = "\x1b#*"

// readVersion takes the text out of an answer to ESC # *.
func readVersion(b []byte) string {
	s, ok := strings.CutPrefix(string(b), versionHead)
	if !ok || len(s) > maxVersion {
		return ""
	}
	return strings.Trim(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s), " ,")
}

// frame ends a frame, and what a network card has sent behind it: type, colon,
// B, two bytes of length, status, semicolon.
func (d *decoder) frame(size int) []unit {
	out := []unit{{kind: frameUnit, frame: bytes.Clone(d.held[:size])}}
	if len(d.held) > size+2 {
		data := d.held[size+2:]
		if at := bytes.Index(data, []byte(versionHead)); at >= 0 {
			text, _, _ := bytes.Cut(data[at:], []byte{0})
			out = append(out, unit{kind: versionUnit, version: readVersion(text)})
		}
	}
	out[0].frame[1] &^= 0x80
	d.done()
	return out
}

func (d *decoder) done() { d.held, d.want, d.bad = d.held[:0], 0, false }

// restart gives up what has begun and looks at c afresh.
func (d *decoder) restart(c byte) []unit {
	d.held, d.want = d.held[:0], 0
	d.fail()
	return d.first(c)
}

func (d *decoder) fail() {
	if !d.bad {
		d.errors++
	}
	d.bad = true
}

// reading is what a frame says.
type reading struct {
	offline, cover, switched                    bool // switched: the compulsion switch is closed, which is the drawer's pin
	mechanical, cutter, unrecoverable, overheat bool
	overflow                                    bool
	end, nearEnd                                bool
	etb                                         int // the counter of ETB, 0 to 31; -1: this model has none
}

// readFrame reads a frame of at least minFrame bytes.
func readFrame(f []byte) reading {
	r := reading{
		switched: f[2]&0x04 != 0, offline: f[2]&0x08 != 0, cover: f[2]&0x20 != 0,
		mechanical: f[3]&0x04 != 0 || f[4]&0x0e != 0, // also: head up, presenter jammed, black mark not found
		cutter:     f[3]&0x08 != 0, unrecoverable: f[3]&0x20 != 0, overheat: f[3]&0x40 != 0,
		overflow: f[4]&0x40 != 0,
		nearEnd:  f[5]&0x06 != 0, // inner and outer side of the roll
		end:      f[5]&0x08 != 0,
		etb:      -1,
	}
	if len(f) > 8 {
		r.etb = int(f[7]>>1&0x07 | f[7]>>2&0x18)
	}
	return r
}

// look puts a reading into UnifiedPOS words.
func (r reading) look(nearEnd bool) (hal.Power, map[string]hal.Tri) {
	power := hal.PowerOnline
	if r.offline {
		power = hal.PowerOffline
	}
	s := map[string]hal.Tri{
		"CoverOpen": hal.TriOf(r.cover), "RecEmpty": hal.TriOf(r.end), "RecNearEnd": hal.TriOf(r.nearEnd),
		"M_MechanicalError": hal.TriOf(r.mechanical), "M_CutterError": hal.TriOf(r.cutter),
		"M_UnrecoverableError": hal.TriOf(r.unrecoverable), "M_HeadTooHot": hal.TriOf(r.overheat),
	}
	if !nearEnd {
		s["RecNearEnd"] = hal.Unknown
	}
	return power, s
}
