package emulator

import (
	"bytes"
	"fmt"
	"time"
)

// starEsc are the commands ESC c with so many parameters [Star Line Mode
// specification, chapter 3].
var starEsc = map[byte]int{
	'@': 0, ' ': 1, '-': 1, '_': 1, 'E': 0, 'F': 0, '4': 0, '5': 0, 'W': 1, 'h': 1, 'i': 2, 'M': 0, 'P': 0, ':': 0, 'R': 1, '$': 1,
	'a': 1, 'f': 1, 'I': 1, 'J': 1, 'j': 1, 'z': 1, '0': 0, '1': 0, '3': 1, 'A': 1, 'y': 1, 'l': 1, 'Q': 1, 'd': 1, 's': 2, 't': 2,
	'p': 0, 'q': 0, '%': 1, 'N': 1, 'O': 0, 'U': 1, 0x07: 2, 0x0c: 1,
}

// starGroup are the commands ESC GS c.
var starGroup = map[byte]int{0x03: 3, 0x07: 3, 'a': 1, 'A': 2, 'R': 2, 't': 1, 'h': 1, '=': 1}

// crossing is how long a question may be on its way.
const crossing = time.Second

// starTokens cuts what a printer receives into commands, so that what looks
// like a command inside an image is none.
type starTokens struct {
	held   []byte
	raster bool
}

func (t *starTokens) feed(b []byte) (out [][]byte) {
	t.held = append(t.held, b...)
	for len(t.held) > 0 {
		n := t.length(t.held)
		if n == 0 || n > len(t.held) {
			return out
		}
		cmd := bytes.Clone(t.held[:n])
		t.held = t.held[n:]
		if len(cmd) == 4 && cmd[1] == '*' {
			t.raster = cmd[3] == 'A'
		}
		out = append(out, cmd)
	}
	return out
}

// length returns how long the first command is; 0, or more than there is, when
// it is not complete.
func (t *starTokens) length(b []byte) int {
	word := func(at int) int { return int(b[at]) | int(b[at+1])<<8 }
	switch {
	case t.raster && (b[0] == 'b' || b[0] == 'k'):
		if len(b) < 3 {
			return 0
		}
		return 3 + word(1)
	case b[0] != esc:
		return 1
	case len(b) < 2:
		return 0
	}
	if n, ok := starEsc[b[1]]; ok {
		return 2 + n
	}
	until := func(end ...byte) int {
		i := bytes.Index(b[2:], end)
		if i < 0 {
			return 0
		}
		return 2 + i + len(end)
	}
	switch b[1] {
	case 0x06: // ESC ACK SOH, ESC ACK CAN
		return 3
	case 0x1e, 0x16: // ESC RS x n, ESC SYN x n
		return 4
	case gs:
		return starGrouped(b)
	case 'D', 'B': // tab stops
		return until(0)
	case 'b': // barcode
		return until(0x1e)
	case '#', '?': // memory switches, version, reset
		return until('\n', 0)
	case 'C':
		if len(b) > 2 && b[2] == 0 {
			return 4
		}
		return 3
	case '*': // ESC * r x, then digits and NUL but for A B C R
		if len(b) < 4 {
			return 0
		}
		if bytes.IndexByte([]byte("ABCR"), b[3]) >= 0 {
			return 4
		}
		return until(0)
	case 'K', 'L', 'k', 'X': // images: columns of 1, 1, 24 lines, 3 bytes
		if len(b) < 4 {
			return 0
		}
		return 4 + word(2)*map[byte]int{'K': 1, 'L': 1, 'k': 24, 'X': 3}[b[1]]
	}
	return 2
}

func starGrouped(b []byte) int {
	if len(b) < 3 {
		return 0
	}
	if n, ok := starGroup[b[2]]; ok {
		return 3 + n
	}
	word := func(at int) int {
		if len(b) < at+2 {
			return 1 << 20 // more than there is
		}
		return int(b[at]) | int(b[at+1])<<8
	}
	switch b[2] {
	case 'S': // raster image: m xL xH yL yH n d
		return 9 + word(4)*word(6)
	case '(', ')':
		return 6 + word(4)
	case '#':
		return bytes.Index(b, []byte{'\n', 0}) + 2
	case 'x', 'y': // PDF417, QR code
		switch {
		case len(b) < 5 && (len(b) < 4 || b[3] == 'S' || b[3] == 'D'):
			return 0
		case b[3] == 'S' && b[2] == 'x' && b[4] == '0':
			return 8
		case b[3] == 'S':
			return 6
		case b[3] == 'D' && b[2] == 'y':
			return 8 + word(6)
		case b[3] == 'D':
			return 6 + word(4)
		}
		return 4
	}
	return 3
}

// realtimeLocked obeys what a printer does not put into its buffer.
func (p *Star) realtimeLocked(cmd []byte) bool {
	switch {
	case len(cmd) == 3 && cmd[0] == esc && cmd[1] == 0x06:
		if cmd[2] == 0x01 {
			p.askedLocked()
			p.tellLocked()
			return true
		}
		if cmd[2] == 0x18 { // reset: what waits is lost
			p.queue, p.job, p.etb, p.etbDone, p.since = nil, nil, 0, false, time.Time{}
			p.auto = p.model.Ethernet || p.model.Status
			return true
		}
	case cmd[0] == 0x05: // ENQ
		p.askedLocked()
		p.answerLocked("01", []byte{bits(0, map[byte]bool{
			0x80: p.hasLocked(DrawerOpen), 0x20: len(p.queue) == 0, 0x08: p.hasLocked(PaperEnd), 0x04: p.hasLocked(CoverOpen) || p.hasLocked(Unrecoverable),
		})})
		return true
	case cmd[0] == 0x04: // EOT
		p.askedLocked()
		p.answerLocked("02", []byte{bits(0x10, map[byte]bool{0x08: p.hasLocked(PaperEnd), 0x04: p.hasLocked(NearEnd)})})
		return true
	case cmd[0] == 0x1c || cmd[0] == 0x1a: // FS, SUB: the drawers, at once
		p.kickLocked()
		return true
	}
	return false
}

// askedLocked notes a question that must not come while frames come by
// themselves. A network card answers it all the same.
func (p *Star) askedLocked() {
	if p.auto && !p.since.IsZero() && time.Since(p.since) > crossing {
		p.mixed++
	}
}

func (p *Star) kickLocked() {
	if !p.faults[DrawerStuck] {
		p.faults[DrawerOpen] = true
		p.changedLocked()
	}
}

func (p *Star) feedLocked(lines int) {
	p.paper -= lines
	p.lines += lines
	p.changedLocked()
}

// commandLocked obeys what comes in its turn.
func (p *Star) commandLocked(cmd []byte) {
	if p.faults[LosesJobs] {
		return
	}
	switch c := cmd[0]; {
	case c == esc:
		p.escapeLocked(cmd)
	case c == '\n':
		p.job = append(p.job, c)
		p.feedLocked(1)
	case c == 0x07, c == 0x19: // BEL, EM: the drawers, in their turn
		p.kickLocked()
	case c == 0x17: // ETB
		p.etb = (p.etb + 1) & 0x1f
		p.etbDone = true
		if p.auto {
			p.tellLocked()
		}
	case c == 0x18: // CAN
		p.job, p.etb, p.etbDone = nil, 0, false
	case c >= 0x20 && c != 0x7f:
		if len(cmd) == 1 {
			p.job = append(p.job, c)
		}
	case bytes.IndexByte([]byte{0, '\t', '\v', '\f', '\r', 0x0e, 0x0f, 0x11, 0x12, 0x13, 0x14}, c) < 0:
		p.unknown = append(p.unknown, fmt.Sprintf("%02x", c))
	}
}

func (p *Star) escapeLocked(cmd []byte) {
	switch c := cmd[1]; c {
	case 'd', 0x0c: // cut
		p.cuts++
		p.jobs = append(p.jobs, string(p.job))
		p.job = nil
	case 'a': // feed
		p.job = append(p.job, '\n')
		p.feedLocked(int(cmd[2]))
	case 0x1e:
		switch {
		case cmd[2] == 'a' && !p.model.Ethernet && !p.model.Fixed && !p.faults[NoStatusBack]:
			if on := cmd[3]&1 != 0; on != p.auto {
				p.auto, p.since = on, time.Time{}
			}
			p.tellLocked() // once, either way
		case cmd[2] == 'E':
			p.etb, p.etbDone = 0, false
		}
	case '#':
		if bytes.Equal(cmd, []byte("\x1b#*\n\x00")) && !p.faults[NoVersion] {
			p.answerLocked("10", []byte("\x1b#*,"+p.version+"\n\x00"))
		}
	case gs, 'D', 'B', 'b', '*', 'K', 'L', 'k', 'X', '?', 'C', 0x06, 0x16:
		if c == gs && len(cmd) == 3 && starGroup[cmd[2]] == 0 {
			p.unknown = append(p.unknown, fmt.Sprintf("%x", cmd))
		}
	default:
		if _, ok := starEsc[c]; !ok {
			p.unknown = append(p.unknown, fmt.Sprintf("%x", cmd))
		}
	}
}
