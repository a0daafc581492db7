package escpos

// walker follows a stream of ESC/POS commands from one to the next, so that
// what looks like a command within a picture is none, and a question is only
// ever put between two commands. It keeps the first bytes of a command and
// none of its data [Epson ESC/POS reference: the format of each command].
type walker struct {
	head   [16]byte
	n      int   // of head that are there
	skip   int64 // bytes of data still to come
	toNUL  bool  // data that a NUL ends
	groups int   // pieces of data, each with a head of its own
	done   bool  // head is of a command that has ended
	last   byte  // of data
	murky  bool  // there was data that a printer may take for a question
	dots   int   // paper fed, as far as commands tell
	cuts   int
	kicks  int
	clears bool // something made the printer forget what it had got
}

// kind is what a command is to us.
type kind int

const (
	other    kind = iota
	reset         // ESC @, which may switch off what GS a has switched on
	statusOn      // GS a n
	query         // its answer comes in its turn: GS I, GS r, GS g 2
	realtime      // DLE EOT n
	urgent        // DLE ENQ and DLE DC4, obeyed at once
)

const (
	dotsPerLine = 30 // as long as nothing else is set
	dle         = 0x10
	esc         = 0x1b
	fsep        = 0x1c
	gs          = 0x1d
)

// between reports whether no command is half way.
func (w *walker) between() bool {
	return w.done || w.n == 0 && w.skip == 0 && !w.toNUL && w.groups == 0
}

// step takes the next byte and reports whether a command has ended with it;
// command tells which.
func (w *walker) step(c byte) bool {
	switch {
	case w.done:
		w.done, w.n = false, 0
	case w.skip > 0:
		w.data(c)
		w.skip--
		return w.skip == 0 && w.ends()
	case w.toNUL:
		w.data(c)
		if c != 0 {
			return false
		}
		w.toNUL = false
		return w.ends()
	}
	w.head[w.n] = c
	w.n++
	if w.groups > 0 {
		return w.piece()
	}
	need, then := measure(w.head[:w.n])
	if need < w.n { // DLE that begins nothing: what follows it may
		w.head[0], w.n = c, 1
		need, then = measure(w.head[:1])
	}
	if need > w.n {
		return false
	}
	w.skip, w.last = then, 0
	switch then {
	case untilNUL:
		w.skip, w.toNUL = 0, true
		return false
	case inGroups:
		w.skip, w.groups = 0, groups(w.head[:w.n])
		w.n = groupHead(w.head[1])
		return w.groups == 0 && w.ends()
	}
	return w.skip == 0 && w.ends()
}

// data looks whether a printer could find a question in what is none.
func (w *walker) data(c byte) {
	if w.last == dle && c == 0x04 {
		w.murky = true
	}
	w.last = c
}

// piece takes the head of one of several pieces of data: of ESC & the width of
// a character, of FS q the size of a picture.
func (w *walker) piece() bool {
	from := groupHead(w.head[1])
	h := w.head[from:w.n]
	switch {
	case w.head[1] == '&':
		w.skip = int64(w.head[2]) * int64(h[0])
	case len(h) < 4:
		return false
	default:
		w.skip = word(h) * word(h[2:]) * 8
	}
	w.n = from
	w.groups--
	return w.skip == 0 && w.ends()
}

// ends notes what the command was that has ended, unless more of it comes.
func (w *walker) ends() bool {
	if w.groups > 0 {
		return false
	}
	w.done = true
	h := w.head[:w.n]
	switch {
	case h[0] == '\n':
		w.dots += dotsPerLine
	case w.n < 2:
	case h[0] == esc && (h[1] == 'i' || h[1] == 'm'), h[0] == gs && h[1] == 'V':
		w.cuts++
	case h[0] == esc && h[1] == 'p', h[0] == dle && h[1] == 0x14 && h[2] == 1:
		w.kicks++
	case h[0] == dle && (h[1] == 0x05 && h[2] == 2 || h[1] == 0x14 && h[2] == 8):
		w.clears = true
	case h[0] == esc && h[1] == 'd':
		w.dots += int(h[2]) * dotsPerLine
	case h[0] == esc && h[1] == 'J':
		w.dots += int(h[2])
	case h[0] == gs && h[1] == 'v':
		w.dots += int(word(h[6:]))
	}
	return true
}

// command returns the command that has just ended, at most its first bytes.
func (w *walker) command() (kind, []byte) {
	h := w.head[:w.n]
	if len(h) < 2 {
		return other, h
	}
	switch {
	case h[0] == esc && h[1] == '@':
		return reset, h
	case h[0] == gs && h[1] == 'a':
		return statusOn, h
	case h[0] == gs && (h[1] == 'I' || h[1] == 'r'), h[0] == gs && h[1] == 'g' && h[2] == '2', h[0] == esc && (h[1] == 'v' || h[1] == 'u'):
		return query, h
	case h[0] == dle && h[1] == 0x04:
		return realtime, h
	case h[0] == dle:
		return urgent, h
	}
	return other, h
}

// perhaps reports whether the command that has begun may turn out to be one
// that is not simply passed on.
func (w *walker) perhaps() bool {
	if w.between() || w.skip > 0 || w.toNUL || w.groups > 0 {
		return false
	}
	switch h := w.head[:w.n]; h[0] {
	case dle:
		return true
	case gs:
		return len(h) < 2 || h[1] == 'a' || h[1] == 'I' || h[1] == 'r' || h[1] == 'g'
	case esc:
		return len(h) < 2 || h[1] == 'u'
	}
	return false
}

// padding returns how many zeros bring what has begun to its end; false when
// that would take more than max.
func (w *walker) padding(limit int) (int, bool) {
	probe := *w
	n := 0
	for ; !probe.between() && n <= limit; n++ {
		probe.step(0)
	}
	return n, n <= limit
}

const (
	untilNUL = -1
	inGroups = -2
)

func word(b []byte) int64 { return int64(b[0]) | int64(b[1])<<8 }

func groupHead(c byte) int {
	if c == '&' {
		return 5
	}
	return 3
}

func groups(h []byte) int {
	if h[1] == '&' {
		return max(0, int(h[4])-int(h[3])+1)
	}
	return int(h[2])
}

// How many parameters a command has; what is not there has none.
var (
	escParameters = [256]int8{
		'a': 1, '!': 1, 'd': 1, 'J': 1, 't': 1, 'R': 1, 'E': 1, '-': 1, 'M': 1, '3': 1, '{': 1, 'G': 1, 'V': 1, ' ': 1, 'r': 1, '=': 1,
		'T': 1, 'e': 1, 'K': 1, 'U': 1, '?': 1, '%': 1, 'u': 1, 0x06: 1, '$': 2, '\\': 2, 'c': 2, 'B': 2, 'f': 2, 'p': 3, 'W': 8, 'C': 1, 'F': 1,
	}
	gsParameters = [256]int8{
		'!': 1, 'B': 1, 'H': 1, 'f': 1, 'h': 1, 'w': 1, 'b': 1, 'a': 1, 'r': 1, 'I': 1, 'T': 1, '/': 1, 'j': 1, '#': 1, 'E': 1,
		'L': 2, 'W': 2, 'P': 2, '$': 2, '\\': 2, '^': 3, 'z': 3, 'g': 4,
	}
	fsParameters = [256]int8{'C': 1, '!': 1, '-': 1, 'W': 1, 'S': 2, 'p': 2, '?': 2}
)

// measure returns how long the head of the command is that h begins with, and,
// once h is that long, how much data follows it.
func measure(h []byte) (need int, data int64) {
	if len(h) == 1 {
		switch h[0] {
		case dle, esc, fsep, gs:
			return 2, 0
		}
		return 1, 0
	}
	// at returns what follows a head of n bytes.
	at := func(n int, data func() int64) (int, int64) {
		if len(h) < n {
			return n, 0
		}
		return n, data()
	}
	none := func() int64 { return 0 }
	switch h[0] {
	case dle:
		return measureDLE(h)
	case esc:
		switch h[1] {
		case '*': // m nL nH d...
			return at(5, func() int64 {
				if h[2] >= 32 {
					return 3 * word(h[3:])
				}
				return word(h[3:])
			})
		case 'D':
			return 2, untilNUL
		case '&': // y c1 c2 and for each x d(x*y)
			return at(5, func() int64 { return inGroups })
		case '(':
			return at(5, func() int64 { return word(h[3:]) })
		}
		return at(2+int(escParameters[h[1]]), none)
	case fsep:
		switch h[1] {
		case '(':
			return at(5, func() int64 { return word(h[3:]) })
		case 'q':
			return at(3, func() int64 { return inGroups })
		case 'g': // 1 m a1 a2 a3 a4 nL nH d..., or 2 without data
			return at(10, func() int64 {
				if h[2] == '1' {
					return word(h[8:])
				}
				return 0
			})
		case '2': // a character of 24 by 24 dots
			return at(4, func() int64 { return 72 })
		}
		return at(2+int(fsParameters[h[1]]), none)
	}
	switch h[1] {
	case '(':
		return at(5, func() int64 { return word(h[3:]) })
	case '8': // as GS ( L, with a length of four bytes
		return at(7, func() int64 { return word(h[3:]) | word(h[5:])<<16 })
	case 'V':
		if len(h) > 2 && h[2] >= 65 {
			return at(4, none)
		}
		return at(3, none)
	case 'k': // barcode: m d... NUL, or from 65 on m n d...
		if len(h) > 2 && h[2] < 65 {
			return at(3, func() int64 { return untilNUL })
		}
		return at(4, func() int64 { return int64(h[3]) })
	case 'v', 'Q': // picture: 0 m xL xH yL yH d...
		return at(8, func() int64 { return word(h[4:]) * word(h[6:]) })
	case '*': // x y d(x*y*8)
		return at(4, func() int64 { return int64(h[2]) * int64(h[3]) * 8 })
	case 'D': // a Windows bitmap, which tells its size itself
		return at(15, func() int64 { return max(0, word(h[11:])|word(h[13:])<<16-6) })
	case 'C':
		switch {
		case len(h) > 2 && h[2] == '1':
			return at(9, none)
		case len(h) > 2 && h[2] != '0' && h[2] != '2':
			return at(3, none)
		}
		return at(5, none)
	}
	return at(2+int(gsParameters[h[1]]), none)
}

func measureDLE(h []byte) (int, int64) {
	n := 1 // DLE alone means nothing, and what follows is looked at afresh
	switch h[1] {
	case 0x04:
		if n = 3; len(h) > 2 && (h[2] == 7 || h[2] == 8) {
			n = 4
		}
	case 0x05:
		n = 3
	case 0x14:
		n = 5
		if len(h) > 2 {
			switch h[2] {
			case 3:
				n = 8
			case 7:
				n = 4
			case 8:
				n = 10
			}
		}
	}
	return n, 0
}
