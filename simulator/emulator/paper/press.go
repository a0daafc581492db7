// Package paper draws what an ESC/POS printer prints: text in a real typeface,
// pictures, barcodes and two-dimensional codes, as black and white dots of the
// head, cut where the job cuts.
//
// A Press is given one whole command after the other and says of each whether
// it is drawn in full; what it does not know it does not draw. It keeps no
// job, and it decides nothing about the state of the printer: whether there is
// paper, and who is told what, is the emulator's.
package paper

// Width is how many dots a head has, at eight to the millimetre.
const (
	Wide   = 576 // paper of 80 mm
	Narrow = 384 // of 58 mm

	defaultSpacing = 30
)

// Press is the head, the paper under it and all that commands have set.
type Press struct {
	width int
	settings
	line  line
	sheet *Sheet
	boxed *area // page mode

	// What survives ESC @.
	kept   map[int]*bitmap    // FS q
	keyed  map[string]*bitmap // GS ( L with a key code
	macros *bitmap            // GS *
	graph  *bitmap            // GS ( L, not yet printed
}

// settings are what ESC @ resets.
type settings struct {
	font         int
	bold         bool
	under        int
	inverted     bool
	rotated      bool
	upside       bool
	sx, sy       int
	space        int // to the right of each character
	align        byte
	spacing      int // between lines
	left, area   int // print area
	page, nation byte
	tabs         []int
	bar          barSettings
	codes        map[byte]*symbolSettings
}

// New has a head of so many dots.
func New(width int) *Press {
	p := &Press{width: width, kept: map[int]*bitmap{}, keyed: map[string]*bitmap{}}
	p.reset()
	p.sheet = newSheet(width)
	return p
}

// reset is ESC @, which throws away the line that has begun.
func (p *Press) reset() {
	tabs := make([]int, 0, 32)
	for x := 8; x <= 8*32; x += 8 {
		tabs = append(tabs, x*cells[0].w)
	}
	p.settings = settings{
		sx: 1, sy: 1, spacing: defaultSpacing, area: p.width, tabs: tabs,
		bar: barSettings{height: 162, module: 3}, codes: map[byte]*symbolSettings{},
	}
	p.line, p.boxed, p.graph = line{}, nil, nil
}

// Do obeys a whole command. It returns how far the paper moved, in dots, and
// whether all of the command is known and drawn.
func (p *Press) Do(cmd []byte) (fed int, known bool) {
	before := p.sheet.y
	known = p.do(cmd)
	return p.sheet.y - before, known
}

// Kick notes on the margin that the drawer got its pulse here.
func (p *Press) Kick(pin int) { p.sheet.kick(pin) }

// Cut ends the sheet and begins the next. What stands in the line that has
// begun is printed first.
func (p *Press) Cut(partial bool) *Sheet {
	p.flush(0)
	s := p.sheet
	s.partial = partial
	p.sheet = newSheet(p.width)
	return s
}

func (p *Press) do(cmd []byte) bool {
	switch c := cmd[0]; c {
	case 0x1b:
		return p.escape(cmd)
	case 0x1d:
		return p.group(cmd)
	case 0x1c:
		return p.kanji(cmd)
	case '\n':
		p.flush(p.spacing)
	case '\t':
		p.tab()
	case '\f':
		p.printPage(true)
	case 0x18:
		if p.boxed != nil {
			p.boxed.bits = newBitmap(p.boxed.w, p.boxed.h)
		}
	default:
		if c >= 0x20 && c != 0x7f {
			p.char(p.decode(c))
		}
	}
	return true
}

func le(b []byte) int { return int(b[0]) + int(b[1])<<8 }

// on reads the lowest bit, as most switches do.
func on(b byte) bool { return b&1 == 1 }

func (p *Press) escape(cmd []byte) bool {
	n := byte(0)
	if len(cmd) > 2 {
		n = cmd[2]
	}
	switch cmd[1] {
	case '@':
		p.reset()
	case '!':
		p.font, p.bold, p.under = int(n&1), n&0x08 != 0, int(n>>7)
		p.sx, p.sy = 1+int(n>>5&1), 1+int(n>>4&1)
	case 'M':
		switch n {
		case 0, 1, '0', '1':
			p.font = int(n & 1)
		default:
			return false
		}
	case 'E', 'G':
		p.bold = on(n)
	case '-':
		p.under = int(n & 3)
	case 'V':
		p.rotated = n&3 != 0
	case '{':
		p.upside = on(n)
	case ' ':
		p.space = int(n)
	case 'a':
		p.align = n & 3
	case '2':
		p.spacing = defaultSpacing
	case '3':
		p.spacing = int(n)
	case 'J':
		p.flush(int(n))
	case 'd':
		p.flush(int(n) * p.spacing)
	case 't':
		if pages[n] == nil {
			return false
		}
		p.page = n
	case 'R':
		if nations[n] == "" {
			return false
		}
		p.nation = n
	case 'D':
		p.tabs = p.tabs[:0]
		for _, column := range cmd[2 : len(cmd)-1] {
			p.tabs = append(p.tabs, int(column)*(cells[p.font].w+p.space)*p.sx)
		}
	case '$':
		p.line.x = le(cmd[2:])
	case '\\':
		p.line.x = max(0, p.line.x+int(int16(le(cmd[2:])))) // #nosec G115 -- a signed number
	case '*':
		return p.bitImage(cmd)
	case 'L', 'S', 'W', 'T', '\f':
		return p.pageMode(cmd)
	case '<', '=', '?', '%', '&', 'B', 'K', 'U', 'c', 'e', 'i', 'm', 'p', 'r', 'u', 'v', 0x06:
		return cmd[1] != '&' && (cmd[1] != '%' || n == 0) // characters of the user are not drawn
	default:
		return false
	}
	return true
}

func (p *Press) group(cmd []byte) bool {
	n := cmd[2%len(cmd)]
	switch cmd[1] {
	case '!':
		p.sx, p.sy = 1+int(n>>4&7), 1+int(n&7)
	case 'B':
		p.inverted = on(n)
	case 'L':
		p.left = min(le(cmd[2:]), p.width)
	case 'W':
		p.area = le(cmd[2:])
	case '$', '\\':
		return p.pageMode(cmd)
	case 'H', 'f', 'h', 'w':
		p.setBar(cmd[1], n)
	case 'k':
		return p.barcode(cmd)
	case 'v':
		return p.rasterImage(cmd)
	case '(':
		switch cmd[2] {
		case 'L':
			return p.graphics(cmd[5:])
		case 'k':
			return p.symbol(cmd[5:])
		case 'A', 'C', 'D', 'E', 'H', 'K', 'M', 'N', 'V', 'z':
			return true // nothing that shows, or nothing that this head can do
		}
		return false
	case '8':
		return p.graphics(cmd[7:])
	case '*':
		p.macros = columns(int(cmd[2])*8, int(cmd[3]), cmd[4:])
	case '/':
		if p.macros != nil {
			p.block(p.macros.scale(1+int(n&1), 1+int(n>>1&1)))
		}
	case 'T':
		p.flush(0)
	case 'V', 'a', 'r', 'I', 'g', 'z', 'j', 'P', 'b', 'E':
	default:
		return false
	}
	return true
}

// kanji is FS: what has two bytes a character is not drawn, but its settings
// are known.
func (p *Press) kanji(cmd []byte) bool {
	switch cmd[1] {
	case '.', 'C', '!', '-', 'W', 'S', '?', '(':
	case 'q':
		p.keep(cmd[2:])
	case 'p':
		b := p.kept[int(cmd[2])]
		if b == nil {
			return false
		}
		p.block(b.scale(1+int(cmd[3]&1), 1+int(cmd[3]>>1&1)))
	default: // FS & among them
		return false
	}
	return true
}
