package emulator

import "slices"

// realtime picks the commands out of the stream that a printer obeys at once,
// off-line or not, wherever they stand.
type realtime struct {
	held []byte
}

// clearAll is DLE DC4 8 with its fixed parameters, which guard against chance.
const clearAll = "\x10\x14\x08\x01\x03\x14\x01\x06\x02\x08"

// take returns bytes once it is known whether they are a real-time command.
func (r *realtime) take(c byte) (held []byte, urgent bool) {
	r.held = append(r.held, c)
	h := r.held
	want := 1
	if h[0] == dle {
		want = 2
		if len(h) > 1 {
			switch h[1] {
			case 0x04, 0x05: // DLE EOT n, DLE ENQ n
				want = 3
			case 0x14: // DLE DC4 fn m t
				want = 5
				if len(h) > 2 && h[2] == 8 {
					want = len(clearAll)
				}
			}
		}
	}
	if len(h) < want {
		return nil, false
	}
	r.held = nil
	return h, want >= 3
}

// answerLocked obeys a real-time command [Epson ESC/POS reference: DLE EOT, DLE ENQ,
// DLE DC4].
func (p *Printer) answerLocked(cmd ...byte) {
	switch cmd[1] {
	case 0x04:
		if b, ok := p.eotLocked(cmd[2]); ok {
			p.sendLocked(b)
		}
	case 0x05:
		if cmd[2] == 1 || cmd[2] == 2 {
			p.faults[CutterJam], p.faults[Mechanical], p.faults[Waiting] = false, false, false
			if cmd[2] == 2 {
				p.buffer, p.tail = nil, nil
			}
			p.changedLocked()
		}
	case 0x14:
		switch {
		case cmd[2] == 1:
			p.kickLocked()
		case string(cmd) == clearAll:
			p.buffer, p.tail, p.job = nil, nil, nil
			p.sendLocked(0x37, 0x25, 0x00)
		}
	}
}

func bits(base byte, set map[byte]bool) byte {
	for bit, on := range set {
		if on {
			base |= bit
		}
	}
	return base
}

func (p *Printer) eotLocked(n byte) (byte, bool) {
	has := p.hasLocked
	failed := has(CutterJam) || has(Unrecoverable) || has(HeadHot) || has(Mechanical)
	switch n {
	case 1:
		return bits(0x12, map[byte]bool{0x04: has(DrawerOpen), 0x08: p.offlineLocked(), 0x20: has(Waiting), 0x40: has(FeedButton)}), true
	case 2:
		return bits(0x12, map[byte]bool{0x04: has(CoverOpen), 0x08: has(FeedButton), 0x20: has(PaperEnd), 0x40: failed}), true
	case 3:
		return bits(0x12, map[byte]bool{0x04: has(Mechanical), 0x08: has(CutterJam), 0x20: has(Unrecoverable), 0x40: has(HeadHot)}), true
	case 4:
		return bits(0x12, map[byte]bool{0x0c: has(NearEnd), 0x60: has(PaperEnd)}), true
	}
	return 0, false
}

var stops = []Fault{CoverOpen, PaperEnd, CutterJam, HeadHot, Mechanical, Unrecoverable, Offline, FeedButton, Waiting}

func (p *Printer) offlineLocked() bool { return p.offlineForLocked("") }

// offlineForLocked leaves one reason out.
func (p *Printer) offlineForLocked(but Fault) bool {
	return slices.ContainsFunc(stops, func(f Fault) bool { return f != but && p.hasLocked(f) })
}

// frameLocked is the automatic status back [Epson ESC/POS reference: GS a].
func (p *Printer) frameLocked() [4]byte {
	has := p.hasLocked
	return [4]byte{
		bits(0x10, map[byte]bool{0x04: has(DrawerOpen), 0x08: p.offlineLocked(), 0x20: has(CoverOpen), 0x40: has(FeedButton)}),
		bits(0, map[byte]bool{
			0x01: has(Waiting), 0x02: has(FeedButton), 0x04: has(Mechanical), 0x08: has(CutterJam), 0x20: has(Unrecoverable), 0x40: has(HeadHot),
		}),
		bits(0, map[byte]bool{0x03: has(NearEnd), 0x0c: has(PaperEnd)}),
		0,
	}
}

// What each bit of GS a watches, by the byte of the frame.
var watched = map[byte][3]byte{
	0x01: {0x04, 0, 0},    // drawer
	0x02: {0x68, 0x01, 0}, // on-line or not
	0x04: {0, 0x6c, 0},    // errors
	0x08: {0, 0, 0x0f},    // paper
	0x40: {0, 0x02, 0},    // feed button
}

// changedLocked sends the status when it differs in what GS a has enabled.
func (p *Printer) changedLocked() {
	p.work.Broadcast()
	p.flowLocked()
	f := p.frameLocked()
	for bit, masks := range watched {
		if p.asb&bit == 0 {
			continue
		}
		for i, m := range masks {
			if (f[i]^p.sent[i])&m != 0 {
				p.frameOutLocked()
				return
			}
		}
	}
}

func (p *Printer) frameOutLocked() {
	p.sent = p.frameLocked()
	if p.faults[HalfFrames] {
		p.sendLocked(p.sent[:2]...)
		return
	}
	p.sendLocked(p.sent[:]...)
}
