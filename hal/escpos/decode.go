package escpos

import "github.com/tillward/tillward/hal"

const (
	realtimeAnswer = iota + 1 // to DLE EOT
	frameAnswer               // automatic status back, 4 bytes
	blockAnswer               // to GS I and GS g
	plainAnswer               // one byte: to GS r and GS I 1 to 3
	otherAnswer               // a block of another kind: to GS ( and DLE DC4 8
	flowControl               // XON or XOFF
)

// unit is one thing that a printer says.
type unit struct {
	kind  int
	b     byte
	frame [4]byte
	block string
}

// bytes is the unit as the printer has said it.
func (u unit) bytes() []byte {
	switch u.kind {
	case frameAnswer:
		return u.frame[:]
	case blockAnswer:
		return append(append([]byte{blockHead}, u.block...), 0)
	case otherAnswer:
		return append(append([]byte{otherHead}, u.block...), 0)
	}
	return []byte{u.b}
}

const (
	maxBlock  = 80 // bytes; real ones have less
	blockHead = 0x5f
	otherHead = 0x37
	xon       = 0x11
	xoff      = 0x13
)

// decoder takes the printer's stream apart: real-time answers, status frames,
// blocks and flow control come mixed, and are told apart by their fixed bits
// [Epson ESC/POS reference: DLE EOT, GS a, GS I].
type decoder struct {
	held   []byte
	bad    bool // within a run of bytes that mean nothing
	errors int  // such runs
}

// feed takes one byte and returns a unit when it is complete.
func (d *decoder) feed(c byte) (unit, bool) {
	if len(d.held) == 0 {
		return d.first(c)
	}
	if head := d.held[0]; head == blockHead || head == otherHead {
		switch {
		case c == 0 && head == otherHead:
			return d.done(unit{kind: otherAnswer, block: string(d.held[1:])})
		case c == 0:
			return d.done(unit{kind: blockAnswer, block: string(d.held[1:])})
		case c < 0x20 || c > 0x7e || len(d.held) > maxBlock:
			return d.restart(c)
		}
		d.held = append(d.held, c)
		return unit{}, false
	}
	if c&0x90 != 0 {
		return d.restart(c)
	}
	if d.held = append(d.held, c); len(d.held) < 4 {
		return unit{}, false
	}
	return d.done(unit{kind: frameAnswer, frame: [4]byte(d.held)})
}

func (d *decoder) first(c byte) (unit, bool) {
	switch {
	case c == xon || c == xoff:
		return unit{kind: flowControl, b: c}, true
	case c == blockHead, c == otherHead, c&0x93 == 0x10:
		d.held = append(d.held, c)
	case c&0x93 == 0x12:
		return d.done(unit{kind: realtimeAnswer, b: c})
	case c&0x90 == 0:
		return d.done(unit{kind: plainAnswer, b: c})
	default:
		d.fail()
	}
	return unit{}, false
}

func (d *decoder) done(u unit) (unit, bool) {
	d.held, d.bad = d.held[:0], false
	return u, true
}

// restart gives up what has begun and looks at c afresh.
func (d *decoder) restart(c byte) (unit, bool) {
	d.held = d.held[:0]
	d.fail()
	return d.first(c)
}

func (d *decoder) fail() {
	if !d.bad {
		d.errors++
	}
	d.bad = true
}

// reading is what a printer has said of itself; what it has not is Unknown.
type reading struct {
	drawerHigh, offline, cover, end, nearEnd    hal.Tri
	mechanical, cutter, unrecoverable, overheat hal.Tri
}

func bit(b, mask byte) hal.Tri { return hal.TriOf(b&mask != 0) }

// realtime takes in the answer to DLE EOT n.
func (r *reading) realtime(n, b byte) {
	switch n {
	case 1:
		r.drawerHigh, r.offline = bit(b, 0x04), bit(b, 0x08)
	case 2:
		r.cover = bit(b, 0x04)
	case 3:
		r.mechanical, r.cutter, r.unrecoverable, r.overheat = bit(b, 0x04), bit(b, 0x08), bit(b, 0x20), bit(b, 0x40)
	case 4:
		r.nearEnd, r.end = bit(b, 0x0c), bit(b, 0x60)
	}
}

// readFrame reads an automatic status frame.
func readFrame(f [4]byte) reading {
	return reading{
		drawerHigh: bit(f[0], 0x04), offline: bit(f[0], 0x08), cover: bit(f[0], 0x20),
		mechanical: bit(f[1], 0x04), cutter: bit(f[1], 0x08), unrecoverable: bit(f[1], 0x20), overheat: bit(f[1], 0x40),
		nearEnd: bit(f[2], 0x03), end: bit(f[2], 0x0c),
	}
}

func (r *reading) all() []*hal.Tri {
	return []*hal.Tri{&r.drawerHigh, &r.offline, &r.cover, &r.end, &r.nearEnd, &r.mechanical, &r.cutter, &r.unrecoverable, &r.overheat}
}

// over fills in what r does not know from what was known before.
func (r reading) over(before reading) reading {
	is, was := r.all(), before.all()
	for i := range is {
		if *is[i] == hal.Unknown {
			*is[i] = *was[i]
		}
	}
	return r
}

// answer is what a printer that reads so says to DLE EOT n; false when that is
// not known.
func (r reading) answer(n byte) (byte, bool) {
	b, known := byte(0x12), true
	put := func(is hal.Tri, mask byte) {
		known = known && is != hal.Unknown
		if is == hal.Yes {
			b |= mask
		}
	}
	switch n {
	case 1:
		put(r.offline, 0x08)
		if r.drawerHigh == hal.Yes {
			b |= 0x04
		}
	case 2:
		put(r.cover, 0x04)
		put(r.end, 0x20)
		for _, failed := range []hal.Tri{r.mechanical, r.cutter, r.unrecoverable, r.overheat} {
			if failed == hal.Yes {
				b |= 0x40
			}
		}
	case 3:
		put(r.cutter, 0x08)
		put(r.mechanical, 0x04)
		put(r.unrecoverable, 0x20)
		put(r.overheat, 0x40)
	case 4:
		put(r.end, 0x60)
		put(r.nearEnd, 0x0c)
	default:
		return 0, false
	}
	return b, known
}

// look puts a reading into UnifiedPOS words. Whether a high drawer pin means
// open depends on the cable; without a word from the configuration nobody knows.
func (r reading) look(drawerOpenHigh hal.Tri) (power hal.Power, sensors map[string]hal.Tri, drawer hal.Tri) {
	power = map[hal.Tri]hal.Power{hal.Yes: hal.PowerOffline, hal.No: hal.PowerOnline}[r.offline]
	if r.drawerHigh != hal.Unknown && drawerOpenHigh != hal.Unknown {
		drawer = hal.TriOf(r.drawerHigh == drawerOpenHigh)
	}
	return power, map[string]hal.Tri{
		"CoverOpen": r.cover, "RecEmpty": r.end, "RecNearEnd": r.nearEnd,
		"M_MechanicalError": r.mechanical, "M_CutterError": r.cutter, "M_UnrecoverableError": r.unrecoverable, "M_HeadTooHot": r.overheat,
	}, drawer
}
