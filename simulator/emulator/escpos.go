package emulator

import "bytes"

const (
	dle  = 0x10
	esc  = 0x1b
	fsep = 0x1c
	gs   = 0x1d
)

// Lengths of the parameters of commands that have a fixed number of them.
var (
	escFixed = map[byte]int{
		'@': 0, '2': 0, '<': 0, 'i': 0, 'm': 0, 'S': 0, 'L': 0, '\f': 0, 'v': 0,
		'a': 1, '!': 1, 'd': 1, 'J': 1, 't': 1, 'R': 1, 'E': 1, '-': 1, 'M': 1, '3': 1, '{': 1, 'G': 1, 'V': 1, ' ': 1, 'r': 1, '=': 1,
		'T': 1, 'e': 1, 'K': 1, 'U': 1, '?': 1, '%': 1, 'u': 1, 0x06: 1, // ESC ACK n asks a Star printer; others pass it over
		'$': 2, '\\': 2, 'c': 2, 'B': 2,
		'p': 3, 'W': 8,
	}
	gsFixed = map[byte]int{
		':': 0,
		'!': 1, 'B': 1, 'H': 1, 'f': 1, 'h': 1, 'w': 1, 'b': 1, 'a': 1, 'r': 1, 'I': 1, 'T': 1, '/': 1, 'j': 1,
		'L': 2, 'W': 2, 'P': 2, '$': 2, '\\': 2,
		'^': 3, 'z': 3, 'g': 4,
	}
	fsFixed = map[byte]int{'.': 0, '&': 0, 'C': 1, '!': 1, '-': 1, 'W': 1, 'S': 2, 'p': 2, '?': 2}
	// The functions of GS ( and FS (, all of which tell their length.
	gsCounted = "ACDEHKLMNPVkz"
	fsCounted = "ACEL"
)

// size returns the length of the first command of b, 0 when it is not there
// whole, and whether it is one that the printer knows. The rest of a command
// that it does not know is text to it, as to any printer.
func size(b []byte) (n int, known bool) {
	if len(b) == 0 {
		return 0, true
	}
	switch c := b[0]; c {
	case dle:
		return sizeDLE(b)
	case esc, gs, fsep:
		if len(b) < 2 {
			return 0, true
		}
		return map[byte]func([]byte) (int, bool){esc: sizeESC, gs: sizeGS, fsep: sizeFS}[c](b)
	}
	return 1, true // text, or a control character, which printers pass over when it means nothing
}

// sizeDLE is of real-time commands that were obeyed when they came.
func sizeDLE(b []byte) (int, bool) {
	if len(b) < 2 {
		return 0, true
	}
	switch b[1] {
	case 0x04, 0x05:
		return whole(b, 3), true
	case 0x14:
		if len(b) > 2 && b[2] == 8 {
			return whole(b, len(clearAll)), true
		}
		return whole(b, 5), true
	}
	return 1, false
}

func fixed(b []byte, table map[byte]int) (int, bool) {
	n, ok := table[b[1]]
	if !ok {
		return 2, false
	}
	return whole(b, 2+n), true
}

// whole returns n when so much is there.
func whole(b []byte, n int) int {
	if len(b) < n {
		return 0
	}
	return n
}

func pair(b []byte) int { return int(b[0]) + int(b[1])<<8 }

func sizeESC(b []byte) (int, bool) {
	switch b[1] {
	case '*': // bit image: m nL nH d...
		if len(b) < 5 {
			return 0, true
		}
		n := pair(b[3:])
		if b[2] >= 32 {
			n *= 3
		}
		return whole(b, 5+n), true
	case 'D': // tab stops, ended by NUL
		return bytes.IndexByte(b, 0) + 1, true
	case '&': // characters of the user: y c1 c2 and for each x d(x*y)
		if len(b) < 5 {
			return 0, true
		}
		n := 5
		for range int(b[4]) - int(b[3]) + 1 {
			if len(b) <= n {
				return 0, true
			}
			n += 1 + int(b[2])*int(b[n])
		}
		return whole(b, n), true
	case '(':
		return 2, false
	}
	return fixed(b, escFixed)
}

func sizeGS(b []byte) (int, bool) {
	switch b[1] {
	case '(':
		return counted(b, gsCounted)
	case '8': // as GS (, with a length of four bytes
		if len(b) < 3 {
			return 0, true
		}
		if b[2] != 'L' {
			return 3, false
		}
		if len(b) < 7 {
			return 0, true
		}
		return whole(b, 7+pair(b[3:])+pair(b[5:])<<16), true
	case 'V':
		if len(b) < 3 {
			return 0, true
		}
		if b[2] >= 65 {
			return whole(b, 4), true
		}
		return 3, true
	case 'k': // barcode: NUL-terminated, or counted from m = 65 on
		if len(b) < 4 {
			return 0, true
		}
		if b[2] >= 65 {
			return whole(b, 4+int(b[3])), true
		}
		end := bytes.IndexByte(b[3:], 0)
		return map[bool]int{true: 3 + end + 1}[end >= 0], true
	case 'v': // raster image: 0 m xL xH yL yH d...
		if len(b) < 8 {
			return 0, true
		}
		return whole(b, 8+pair(b[4:])*pair(b[6:])), true
	case '*': // downloaded image: x y d(x*y*8)
		if len(b) < 4 {
			return 0, true
		}
		return whole(b, 4+int(b[2])*int(b[3])*8), true
	}
	return fixed(b, gsFixed)
}

func sizeFS(b []byte) (int, bool) {
	switch b[1] {
	case '(':
		return counted(b, fsCounted)
	case 'q': // images to keep: n, and for each xL xH yL yH d(x*y*8)
		if len(b) < 3 {
			return 0, true
		}
		n := 3
		for range b[2] {
			if len(b) < n+4 {
				return 0, true
			}
			n += 4 + pair(b[n:])*pair(b[n+2:])*8
		}
		return whole(b, n), true
	}
	return fixed(b, fsFixed)
}

// counted is of commands with pL pH behind their function.
func counted(b []byte, functions string) (int, bool) {
	if len(b) < 5 {
		return 0, true
	}
	return whole(b, 5+pair(b[3:])), bytes.IndexByte([]byte(functions), b[2]) >= 0
}

// obeyLocked does what a whole command says.
func (p *Printer) obeyLocked(cmd []byte) {
	fed, drawn := p.press.Do(cmd)
	if !drawn {
		p.unknownLocked(cmd)
	}
	switch c := cmd[0]; {
	case c == '\n':
		p.job = append(p.job, '\n')
	case c == esc:
		p.escapeLocked(cmd)
	case c == gs:
		p.groupLocked(cmd)
	case c >= 0x20 && c != 0x7f:
		p.job = append(p.job, c)
	}
	if fed > 0 {
		p.feedLocked(fed)
		p.changedLocked()
	}
}

func (p *Printer) escapeLocked(cmd []byte) {
	switch cmd[1] {
	case '@':
		if !p.faults[KeepsStatusBack] {
			p.asb = 0 // as on most printers: who resets, resets for everybody
		}
	case 'd':
		p.job = append(p.job, bytes.Repeat([]byte{'\n'}, int(cmd[2]))...)
	case 'i', 'm':
		p.endJobLocked(cmd[1] == 'm')
	case 'p':
		p.press.Kick(1 + int(cmd[2]&1))
		p.kickLocked()
	case 'v':
		p.sensorLocked(1)
	case 'u':
		p.sensorLocked(2)
	}
}

func (p *Printer) groupLocked(cmd []byte) {
	switch cmd[1] {
	case 'V':
		if len(cmd) == 4 { // feed until what is printed last is past the cutter
			for _, dots := range []byte{0, cutterAway, cmd[3]} {
				fed, _ := p.press.Do([]byte{esc, 'J', dots})
				p.feedLocked(fed)
			}
		}
		p.endJobLocked(cmd[2]&1 == (cmd[2]&0x40)>>6^1)
	case 'a':
		if p.faults[NoStatusBack] {
			break
		}
		p.asb = cmd[2]
		if p.asb != 0 {
			p.frameOutLocked()
		}
	case 'r':
		p.sensorLocked(cmd[2])
	case 'I':
		p.identifyLocked(cmd[2])
	case 'g':
		p.maintenanceLocked(cmd)
	}
}
