package emulator

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
)

const (
	dle = 0x10
	esc = 0x1b
	fs  = 0x1c
	gs  = 0x1d
)

// realtime picks the commands out of the stream that a printer obeys at once,
// off-line or not, wherever they stand.
type realtime struct {
	held []byte
}

// take returns the bytes that are not part of a real-time command.
func (r *realtime) take(c byte, do func(...byte)) []byte {
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
			}
		}
	}
	if len(h) < want {
		return nil
	}
	r.held = nil
	if want >= 3 {
		do(h...)
		return nil
	}
	return h
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
			p.faults[CutterJam] = false
			if cmd[2] == 2 {
				p.buffer = nil
			}
			p.changedLocked()
		}
	case 0x14:
		if cmd[2] == 1 {
			p.kickLocked()
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
	failed := has(CutterJam) || has(Unrecoverable) || has(HeadHot)
	switch n {
	case 1:
		return bits(0x12, map[byte]bool{0x04: has(DrawerOpen), 0x08: p.offlineLocked()}), true
	case 2:
		return bits(0x12, map[byte]bool{0x04: has(CoverOpen), 0x20: has(PaperEnd), 0x40: failed}), true
	case 3:
		return bits(0x12, map[byte]bool{0x08: has(CutterJam), 0x20: has(Unrecoverable), 0x40: has(HeadHot)}), true
	case 4:
		return bits(0x12, map[byte]bool{0x0c: has(NearEnd), 0x60: has(PaperEnd)}), true
	}
	return 0, false
}

func (p *Printer) offlineLocked() bool {
	return slices.ContainsFunc([]Fault{CoverOpen, PaperEnd, CutterJam, HeadHot, Unrecoverable, Offline}, p.hasLocked)
}

// frameLocked is the automatic status back [Epson ESC/POS reference: GS a].
func (p *Printer) frameLocked() [4]byte {
	has := p.hasLocked
	return [4]byte{
		bits(0x10, map[byte]bool{0x04: has(DrawerOpen), 0x08: p.offlineLocked(), 0x20: has(CoverOpen)}),
		bits(0, map[byte]bool{0x08: has(CutterJam), 0x20: has(Unrecoverable), 0x40: has(HeadHot)}),
		bits(0, map[byte]bool{0x03: has(NearEnd), 0x0c: has(PaperEnd)}),
		0,
	}
}

// changedLocked sends the status when it differs in what GS a has enabled.
func (p *Printer) changedLocked() {
	p.work.Broadcast()
	f := p.frameLocked()
	masks := [4][3]byte{{0x04, 0, 0}, {0x28, 0, 0}, {0, 0x6c, 0}, {0, 0, 0x0f}}
	for bit, mask := range masks {
		if p.asb&(1<<bit) == 0 {
			continue
		}
		for i, m := range mask {
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

func (p *Printer) feedLocked(lines int) {
	p.paper -= lines
	p.counters[20] += uint64(lines)
	p.counters[148] += uint64(lines)
	p.counters[21] += uint64(lines)
	p.counters[149] += uint64(lines)
}

func (p *Printer) cutLocked() {
	p.counters[50]++
	p.counters[178]++
}

func (p *Printer) kickLocked() {
	if !p.faults[DrawerStuck] {
		p.faults[DrawerOpen] = true
		p.changedLocked()
	}
}

// lengths of commands with a fixed number of parameters.
var (
	escFixed = map[byte]int{
		'@': 0, '2': 0, '<': 0, 'i': 0, 'm': 0, 'a': 1, '!': 1, 'd': 1, 'J': 1, 't': 1, 'R': 1, 'E': 1, '-': 1, 'M': 1, '3': 1,
		'{': 1, 'G': 1, 'V': 1, ' ': 1, 'r': 1, '=': 1, 'S': 0, 'L': 0, 'T': 1, '$': 2, '\\': 2, 'c': 2, 'p': 3, 'B': 2, 'e': 1, 'K': 1,
	}
	gsFixed = map[byte]int{
		'!': 1, 'B': 1, 'H': 1, 'f': 1, 'h': 1, 'w': 1, 'b': 1, 'a': 1, 'r': 1, 'I': 1, 'L': 2, 'W': 2, 'P': 2, '$': 2, '\\': 2, 'T': 1, '/': 1, ':': 0, '^': 3,
	}
	fsFixed = map[byte]int{'.': 0, '&': 0, 'C': 1, '!': 1, '-': 1, 'W': 1, 'S': 2, 'p': 2}
)

// command obeys the first command of b and returns its length, or 0 when it
// is not complete.
func (p *Printer) command(b []byte) int {
	if len(b) == 0 {
		return 0
	}
	switch c := b[0]; {
	case c == '\n':
		p.job = append(p.job, '\n')
		p.feedLocked(1)
		p.changedLocked()
		return 1
	case c == esc, c == gs, c == fs:
		if len(b) < 2 {
			return 0
		}
		switch c {
		case esc:
			return p.escape(b)
		case gs:
			return p.group(b)
		}
		if b[1] == '(' {
			return p.counted(b)
		}
		return p.fixed(b, fsFixed)
	case c == '\r', c == '\t', c == '\f', c == 0x18, c == 0:
		return 1
	case c >= 0x20 && c != 0x7f:
		p.job = append(p.job, c)
		return 1
	}
	p.unknown = append(p.unknown, fmt.Sprintf("%02x", b[0]))
	return 1
}

// fixed returns the length of a command by table.
func (p *Printer) fixed(b []byte, table map[byte]int) int {
	n, ok := table[b[1]]
	switch {
	case !ok:
		p.unknown = append(p.unknown, fmt.Sprintf("%02x%02x", b[0], b[1]))
		return 2
	case len(b) < 2+n:
		return 0
	}
	return 2 + n
}

// counted returns the length of a command with pL pH behind its function.
func (p *Printer) counted(b []byte) int {
	if len(b) < 5 || len(b) < 5+int(b[3])+int(b[4])<<8 {
		return 0
	}
	return 5 + int(b[3]) + int(b[4])<<8
}

func (p *Printer) escape(b []byte) int {
	switch b[1] {
	case '*': // bit image: m nL nH d...
		if len(b) < 5 {
			return 0
		}
		n := int(b[3]) + int(b[4])<<8
		if b[2] >= 32 {
			n *= 3
		}
		return whole(b, 5+n)
	case 'D': // tab stops, ended by NUL
		end := bytes.IndexByte(b, 0)
		return end + 1
	}
	n := p.fixed(b, escFixed)
	if n == 0 {
		return 0
	}
	switch b[1] {
	case '@':
		p.asb = 0 // as on real printers: who resets, resets for everybody
	case 'd':
		for range b[2] {
			p.job = append(p.job, '\n')
		}
		p.feedLocked(int(b[2]))
		p.changedLocked()
	case 'i', 'm':
		p.endJob()
	case 'p':
		p.kickLocked()
	}
	return n
}

func whole(b []byte, n int) int {
	if len(b) < n {
		return 0
	}
	return n
}

func (p *Printer) endJob() {
	p.cutLocked()
	p.jobs = append(p.jobs, string(p.job))
	p.job = nil
}

func (p *Printer) group(b []byte) int {
	switch b[1] {
	case '(':
		return p.counted(b)
	case 'V':
		if len(b) < 3 {
			return 0
		}
		n := 3
		if b[2] >= 65 {
			if n = 4; len(b) < n {
				return 0
			}
		}
		p.endJob()
		return n
	case 'k': // barcode: NUL-terminated, or counted from m = 65 on
		if len(b) < 4 {
			return 0
		}
		if b[2] >= 65 {
			return whole(b, 4+int(b[3]))
		}
		end := bytes.IndexByte(b[3:], 0)
		if end < 0 {
			return 0
		}
		return 3 + end + 1
	case 'v': // raster image: 0 m xL xH yL yH d...
		if len(b) < 8 {
			return 0
		}
		return whole(b, 8+(int(b[4])+int(b[5])<<8)*(int(b[6])+int(b[7])<<8))
	case 'g':
		return p.maintenance(b)
	}
	n := p.fixed(b, gsFixed)
	if n == 0 {
		return 0
	}
	switch b[1] {
	case 'a':
		if p.faults[NoStatusBack] {
			break
		}
		p.asb = b[2]
		if p.asb != 0 {
			p.frameOutLocked()
		}
	case 'r':
		if b[2] == 1 || b[2] == '1' {
			f := p.frameLocked()
			p.sendLocked(f[2])
		}
	case 'I':
		p.identify(b[2])
	}
	return n
}

func (p *Printer) identify(n byte) {
	answers := map[byte]string{65: "1.04 ESC/POS", 66: "TILLWARD", 67: "EMU-T80", 68: p.serial}
	if s, ok := answers[n]; ok {
		p.block(s)
	} else if n >= 1 && n <= 3 {
		p.sendLocked(0x02)
	}
}

func (p *Printer) block(s string) {
	p.sendLocked(append(append([]byte{0x5f}, s...), 0)...)
}

// maintenance is GS g 0 m nL nH (reset) and GS g 2 m nL nH (tell).
func (p *Printer) maintenance(b []byte) int {
	if len(b) < 6 {
		return 0
	}
	n := int(b[4]) + int(b[5])<<8
	v, known := p.counters[n]
	switch {
	case b[2] == '0' && known && n < 128:
		p.counters[n] = 0
	case b[2] == '2' && known:
		p.block(strconv.FormatUint(v, 10))
	}
	return 6
}
