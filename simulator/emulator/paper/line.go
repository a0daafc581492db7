package paper

// line is what has been given but not printed: pieces side by side, which
// stand on the same base line.
type line struct {
	pieces []piece
	x      int // of the next
	w, h   int
}

type piece struct {
	b *bitmap
	x int
}

func (p *Press) areaWidth() int {
	if p.boxed != nil {
		return p.boxed.w
	}
	return max(1, min(p.area, p.width-p.left))
}

// char adds a character to the line, and begins a new one when it is full.
func (p *Press) char(r rune) {
	weight := 0
	if p.bold {
		weight = 1
	}
	b := faces()[p.font][weight].glyph(r)
	c := cells[p.font]
	if p.space > 0 || p.under > 0 {
		wide := newBitmap(c.w+p.space, c.h)
		wide.put(b, 0, 0)
		b = wide
		if p.under > 0 && !p.inverted && !p.rotated {
			b.fill(0, c.h-p.under, b.w, c.h)
		}
	}
	if p.inverted {
		b = b.invert()
	}
	if p.rotated {
		b = b.turn(1).scale(p.sy, p.sx)
	} else {
		b = b.scale(p.sx, p.sy)
	}
	p.add(b)
}

func (p *Press) add(b *bitmap) {
	if p.line.x > 0 && p.line.x+b.w > p.areaWidth() {
		p.flush(p.spacing)
	}
	l := &p.line
	l.pieces = append(l.pieces, piece{b, l.x})
	l.x += b.w
	l.w, l.h = max(l.w, l.x), max(l.h, b.h)
}

func (p *Press) tab() {
	for _, x := range p.tabs {
		if x > p.line.x && x < p.areaWidth() {
			p.line.x = x
			return
		}
	}
}

// flush prints the line and feeds so far, or as far as the line is high.
func (p *Press) flush(feed int) {
	l := p.line
	p.line = line{}
	if l.h > 0 {
		strip := newBitmap(p.areaWidth(), l.h)
		x0 := p.shift(l.w)
		for _, piece := range l.pieces {
			strip.put(piece.b, x0+piece.x, l.h-piece.b.h)
		}
		p.burn(strip)
	}
	p.feed(max(feed, l.h))
}

// shift is where something so wide begins.
func (p *Press) shift(w int) int {
	room := max(0, p.areaWidth()-w)
	switch p.align {
	case 1:
		return room / 2
	case 2:
		return room
	}
	return 0
}

// block prints a picture that is a line of its own.
func (p *Press) block(b *bitmap) {
	p.flush(0)
	if b.h == 0 {
		return
	}
	strip := newBitmap(p.areaWidth(), b.h)
	strip.put(b, p.shift(b.w), 0)
	p.burn(strip)
	p.feed(b.h)
}

// burn puts a strip as wide as the print area on the paper.
func (p *Press) burn(strip *bitmap) {
	if p.upside {
		strip = strip.turn(2)
	}
	if p.boxed != nil {
		p.boxed.bits.put(strip, 0, p.boxed.y)
		return
	}
	p.sheet.burn(strip, p.left)
}

func (p *Press) feed(dots int) {
	if p.boxed != nil {
		p.boxed.y += dots
		return
	}
	p.sheet.feed(dots)
}

// area is the print area of page mode.
type area struct {
	x, y0, w, h int
	y           int
	bits        *bitmap
}

const pageHeight = 1662 // dots, that page mode has at most

// pageMode knows the page that is written from left to right. Other
// directions are not drawn.
func (p *Press) pageMode(cmd []byte) bool {
	switch cmd[1] {
	case 'L':
		if p.boxed == nil {
			p.flush(0)
			p.boxed = &area{w: p.width, h: pageHeight, bits: newBitmap(p.width, pageHeight)}
		}
	case 'S':
		p.boxed, p.line = nil, line{}
	case '\f':
		p.printPage(false)
	case 'T':
		return cmd[2] == 0 || cmd[2] == '0'
	case 'W':
		x, y, w, h := le(cmd[2:]), le(cmd[4:]), le(cmd[6:]), le(cmd[8:])
		if p.boxed == nil {
			return true
		}
		if x >= p.width || y >= pageHeight || w == 0 || h == 0 {
			return false
		}
		p.flushBox()
		p.boxed = &area{x: x, y0: y, w: min(w, p.width-x), h: min(h, pageHeight-y), bits: p.boxed.bits}
		return x == 0 && y == 0 // further areas of a page are not drawn apart
	case '$':
		if p.boxed != nil {
			p.flushBox()
			p.boxed.y = le(cmd[2:])
		}
	case '\\':
		if p.boxed != nil {
			p.flushBox()
			p.boxed.y = max(0, p.boxed.y+int(int16(le(cmd[2:])))) // #nosec G115 -- a signed number
		}
	}
	return true
}

// flushBox puts the line on the page without a feed.
func (p *Press) flushBox() {
	y := p.boxed.y
	p.flush(0)
	p.boxed.y = y
}

// printPage prints the page, and goes back to lines when it ends.
func (p *Press) printPage(end bool) {
	if p.boxed == nil {
		return
	}
	p.flushBox()
	box := p.boxed
	p.sheet.burn(box.bits, box.x)
	p.sheet.feed(min(max(box.y, box.bits.inked()), box.h))
	if end {
		p.boxed = nil
	}
}
