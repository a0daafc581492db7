package star

import "bytes"

// The commands that the driver sends [Star Line Mode Command Specifications,
// 3-14 status, 3-15 external device drive].
var (
	askStatus  = []byte{0x1b, 0x06, 0x01}      // ESC ACK SOH: at once; not while status comes by itself
	tellStatus = []byte{0x1b, 0x1e, 'a', 1}    // ESC RS a 1: from now on, and once now
	resetCount = []byte{0x1b, 0x1e, 'E', 0}    // ESC RS E 0: the counter of ETB is 0
	countUp    = []byte{0x17}                  // ETB: when all before it is printed, count and tell
	askVersion = []byte{0x1b, '#', '*', 10, 0} // ESC # *
	resetNow   = []byte{0x1b, 0x06, 0x18}      // ESC ACK CAN: at once; what waits in the buffer is lost
	kickDrawer = []byte{0x07}                  // BEL: drawer 1, in its turn
	kickNow    = []byte{0x1c}                  // FS: drawer 1, at once
)

// counts are what went through a filter.
type counts struct {
	lines, cuts, kicks int
	dots               int  // rows of images
	resets             bool // it may have changed the counter of ETB beyond adding to it
	counted            int  // ETB in it
	level              int  // what the counter is behind it, from what it was before
}

const dotsPerLine = 24

// filter passes a job through, command by command, so that what looks like a
// command inside an image is none. Two kinds it keeps from the printer: what
// would switch off the automatic status, and questions, which must not come
// while that is on; whoever wants to answer them sets asked.
type filter struct {
	counts
	asked  func(cmd []byte)
	held   []byte
	skip   int // bytes of data that follow and are passed as they are
	raster bool
}

// maxHeld is more than any command has before its data.
const maxHeld = 1024

// pass returns what the printer shall get of b. The result is valid until the
// next call.
func (f *filter) pass(b []byte) []byte {
	var out []byte
	for len(b) > 0 {
		if f.skip > 0 {
			n := min(f.skip, len(b))
			out, b = append(out, b[:n]...), b[n:]
			f.skip -= n
			continue
		}
		f.held = append(f.held, b[0])
		b = b[1:]
		head, data := f.length(f.held)
		if head > len(f.held) && len(f.held) < maxHeld {
			continue
		}
		out = append(out, f.note(f.held)...)
		f.held, f.skip = f.held[:0], data
	}
	return out
}

// idle reports whether the printer is not in the middle of a command.
func (f *filter) idle() bool { return len(f.held) == 0 && f.skip == 0 }

// rest returns what the printer still waits for, so that it does not take the
// next command for it.
func (f *filter) rest() []byte {
	n := f.skip
	f.held, f.skip = f.held[:0], 0
	return make([]byte, n)
}

// parameters are the commands ESC c with so many bytes of parameters.
var parameters = map[byte]int{
	' ': 1, '!': 1, '-': 1, '_': 1, 'W': 1, 'h': 1, 'i': 2, 'R': 1, '$': 1, 'a': 1, 'f': 1, 'I': 1, 'J': 1, 'j': 1, 'z': 1, '3': 1, 'A': 1,
	'y': 1, 'l': 1, 'Q': 1, 'd': 1, 's': 2, 't': 2, '%': 1, 'N': 1, 'U': 1, 0x07: 2, 0x0c: 1, 0x06: 1, 0x1e: 2, 0x16: 2,
}

// unfinished is longer than any command.
const unfinished = maxHeld + 1

// length returns how long the command at the beginning of b is, and how much
// data follows it. A command that is not complete is longer than b.
func (f *filter) length(b []byte) (head, data int) {
	word := func(at int) int {
		if len(b) < at+2 {
			return 0
		}
		return int(b[at]) | int(b[at+1])<<8
	}
	until := func(end ...byte) int {
		if len(b) < 3 || !bytes.HasSuffix(b[2:], end) {
			return unfinished
		}
		return len(b)
	}
	switch {
	case f.raster && (b[0] == 'b' || b[0] == 'k'):
		return 3, word(1)
	case b[0] != 0x1b:
		return 1, 0
	case len(b) < 2:
		return 2, 0
	}
	switch c := b[1]; c {
	case 0x1d:
		return group(b, word)
	case 'D', 'B': // tab stops
		return until(0), 0
	case 'b': // barcode
		return until(0x1e), 0
	case '#', '?': // memory switches, version, reset
		return until(10, 0), 0
	case 'C': // length of page, in lines or with NUL in inches
		if len(b) > 2 && b[2] == 0 {
			return 4, 0
		}
		return 3, 0
	case '*': // ESC * r and a letter, for most with digits and NUL
		if len(b) < 4 {
			return 4, 0
		}
		if bytes.IndexByte([]byte("ABCR"), b[3]) >= 0 {
			return 4, 0
		}
		return until(0), 0
	case 'K', 'L':
		return 4, word(2)
	case 'k':
		return 4, 24 * word(2)
	case 'X':
		return 4, 3 * word(2)
	default:
		return 2 + parameters[c], 0
	}
}

// group returns the length of ESC GS and a letter.
func group(b []byte, word func(int) int) (head, data int) {
	if len(b) < 3 {
		return 3, 0
	}
	switch c := b[2]; c {
	case 0x03, 0x07:
		return 6, 0
	case 'A', 'R':
		return 5, 0
	case 'a', 't', 'h', '=':
		return 4, 0
	case 'S': // image: m xL xH yL yH n
		return 9, word(4) * word(6)
	case '(', ')':
		return 6, word(4)
	case '#':
		if !bytes.HasSuffix(b, []byte{10, 0}) {
			return unfinished, 0
		}
		return len(b), 0
	case 'x', 'y': // PDF417, QR code: S settings, D data, P print, I inquire
		switch {
		case len(b) < 4, len(b) < 5 && (b[3] == 'S' || b[3] == 'D'):
			return len(b) + 1, 0
		case b[3] == 'S' && c == 'x' && b[4] == '0':
			return 8, 0
		case b[3] == 'S':
			return 6, 0
		case b[3] == 'D' && c == 'y':
			return 8, word(6)
		case b[3] == 'D':
			return 6, word(4)
		}
		return 4, 0
	}
	return 3, 0
}

// note counts a command, and returns what the printer shall get of it.
func (f *filter) note(cmd []byte) []byte {
	switch cmd[0] {
	case 0x0a:
		f.lines++
	case 0x04, 0x05: // EOT, ENQ
		return f.keep(cmd)
	case 0x07, 0x19, 0x1a, 0x1c: // the drawers, in their turn and at once
		f.kicks++
	case 0x17:
		f.counted++
		f.level = (f.level + 1) & 0x1f
	case 0x18:
		f.resets, f.level = true, 0
	case 'b', 'k':
		if len(cmd) == 3 {
			f.dots++
		}
	case 0x1b:
		return f.escape(cmd)
	}
	return cmd
}

func (f *filter) escape(cmd []byte) []byte {
	if len(cmd) < 3 {
		return cmd
	}
	switch c, n := cmd[1], cmd[2]; {
	case c == 0x06 && n == 0x01:
		return f.keep(cmd)
	case c == 0x1e && n == 'a' && len(cmd) == 4:
		return f.keep(cmd)
	case c == 0x1e && n == 'E', c == 0x06 && n == 0x18, c == '?':
		f.resets, f.level = true, 0
	case c == 'd', c == 0x0c:
		f.cuts++
	case c == 'a':
		f.lines += int(n)
	case c == 'k':
		f.dots += 24
	case c == '*' && len(cmd) > 3:
		switch cmd[3] {
		case 'A':
			f.raster = true
		case 'B':
			f.raster = false
		case 'D':
			f.kicks++
		}
	case c == 0x1d && n == 'S' && len(cmd) == 9:
		f.dots += int(cmd[6]) | int(cmd[7])<<8
	}
	return cmd
}

// keep holds a command back from the printer.
func (f *filter) keep(cmd []byte) []byte {
	if f.asked != nil {
		f.asked(bytes.Clone(cmd))
	}
	return nil
}
