package paper

import (
	"image"
	"sync"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/gomono"
	"golang.org/x/image/font/gofont/gomonobold"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"
)

// cell is the size of a character, in dots of the head.
type cell struct {
	w, h     int
	size     float64 // of the typeface that fills it: Go Mono is 0.6 em wide
	baseline int
}

// Fonts A and B, as on most printers.
var cells = [2]cell{{12, 24, 20, 19}, {9, 17, 15, 13}}

// glyphs draws characters of one font and weight. It draws each once.
type glyphs struct {
	cell cell
	face font.Face

	mu   sync.Mutex
	seen map[rune]*bitmap
}

// faces are loaded when the first receipt is drawn, and are shared.
var faces = sync.OnceValue(func() [2][2]*glyphs {
	var out [2][2]*glyphs
	for weight, ttf := range [][]byte{gomono.TTF, gomonobold.TTF} {
		f, err := opentype.Parse(ttf)
		if err != nil {
			panic(err) // the font is part of the binary
		}
		for i, c := range cells {
			face, err := opentype.NewFace(f, &opentype.FaceOptions{Size: c.size, DPI: 72, Hinting: font.HintingFull})
			if err != nil {
				panic(err)
			}
			out[i][weight] = &glyphs{cell: c, face: face, seen: map[rune]*bitmap{}}
		}
	}
	return out
})

// ink is how dark a dot of the typeface must be to be burnt into the paper.
const ink = 0x68

// glyph returns the cell of a character. One that the font has not is a box.
func (g *glyphs) glyph(r rune) *bitmap {
	g.mu.Lock()
	defer g.mu.Unlock()
	if b := g.seen[r]; b != nil {
		return b
	}
	b := g.draw(r)
	g.seen[r] = b
	return b
}

func (g *glyphs) draw(r rune) *bitmap {
	c := g.cell
	b := newBitmap(c.w, c.h)
	if drawn := drawBox(b, r); drawn || r == ' ' || r == 0xa0 {
		return b
	}
	if _, has := g.face.GlyphAdvance(r); !has || r == 0xfffd {
		b.fill(1, 3, c.w-1, c.baseline)
		in := newBitmap(c.w, c.h)
		in.fill(2, 4, c.w-2, c.baseline-1)
		for i, v := range in.bits {
			b.bits[i] &^= v
		}
		return b
	}
	gray := image.NewGray(image.Rect(0, 0, c.w, c.h))
	d := font.Drawer{Dst: gray, Src: image.White, Face: g.face, Dot: fixed.P(0, c.baseline)}
	d.DrawString(string(r))
	for y := range c.h {
		for x := range c.w {
			if gray.GrayAt(x, y).Y >= ink {
				b.set(x, y)
			}
		}
	}
	return b
}

// The arms of the line drawing characters: left, up, right, down; 1 is a
// single line, 2 a double one.
var arms = map[rune]string{
	'─': "1010", '│': "0101", '┌': "0011", '┐': "1001", '└': "0110", '┘': "1100", '├': "0111", '┤': "1101", '┬': "1011", '┴': "1110", '┼': "1111",
	'═': "2020", '║': "0202", '╔': "0022", '╗': "2002", '╚': "0220", '╝': "2200", '╠': "0222", '╣': "2202", '╦': "2022", '╩': "2220", '╬': "2222",
	'╒': "0021", '╓': "0012", '╕': "2001", '╖': "1002", '╘': "0120", '╙': "0210", '╛': "2100", '╜': "1200",
	'╞': "0121", '╟': "0212", '╡': "2101", '╢': "1202", '╤': "2021", '╥': "1012", '╧': "2120", '╨': "1210", '╪': "2121", '╫': "1212",
	'╭': "0011", '╮': "1001", '╰': "0110", '╯': "1100",
}

// The blocks: x0, y0, x1, y1 in eighths of the cell.
var blocks = map[rune][4]int{
	'█': {0, 0, 8, 8}, '▀': {0, 0, 8, 4}, '▄': {0, 4, 8, 8}, '▌': {0, 0, 4, 8}, '▐': {4, 0, 8, 8},
	'▁': {0, 7, 8, 8}, '▂': {0, 6, 8, 8}, '▃': {0, 5, 8, 8}, '▅': {0, 3, 8, 8}, '▆': {0, 2, 8, 8}, '▇': {0, 1, 8, 8},
	'▉': {0, 0, 7, 8}, '▊': {0, 0, 6, 8}, '▋': {0, 0, 5, 8}, '▍': {0, 0, 3, 8}, '▎': {0, 0, 2, 8}, '▏': {0, 0, 1, 8}, '▔': {0, 0, 8, 1}, '▕': {7, 0, 8, 8},
	'■': {1, 2, 7, 6},
}

// drawBox draws what has to reach the edge of the cell, so that neighbours
// join.
func drawBox(b *bitmap, r rune) bool {
	if e, ok := blocks[r]; ok {
		b.fill(e[0]*b.w/8, e[1]*b.h/8, e[2]*b.w/8, e[3]*b.h/8)
		return true
	}
	switch r {
	case '░', '▒', '▓':
		for y := range b.h {
			for x := range b.w {
				odd := (x+y)%2 == 0
				if r == '▒' && odd || r == '░' && x%2 == 0 && y%2 == 0 || r == '▓' && (!odd || x%2 == 0) {
					b.set(x, y)
				}
			}
		}
		return true
	}
	if a, ok := arms[r]; ok {
		for _, step := range []int{outer, inner, single} { // a single line may pass through a double one
			for side := range 4 {
				drawArm(b, a, side, step)
			}
		}
		return true
	}
	return false
}

// The steps in which arms are drawn: double ones as thick bars, which are then
// hollowed out, and single ones.
const (
	outer = iota
	inner
	single
)

// drawArm does one step of one arm of a line drawing character.
func drawArm(b *bitmap, arms string, side, step int) {
	const half, apart = 1, 3 // dots: half a stroke, from the middle to each of two strokes
	arm := func(turn int) byte { return arms[(side+turn)%4] }
	// fill or clear a bar that is so wide, from the edge to so far past the middle.
	bar := func(width, past int) {
		cx, cy := b.w/2, b.h/2
		x0, y0, x1, y1 := cx-width, cy-width, cx+width, cy+width
		switch side {
		case 0:
			x0, x1 = 0, cx+past
		case 1:
			y0, y1 = 0, cy+past
		case 2:
			x0, x1 = cx-past, b.w
		default:
			y0, y1 = cy-past, b.h
		}
		if step == inner {
			b.clear(x0, y0, x1, y1)
		} else {
			b.fill(x0, y0, x1, y1)
		}
	}
	twice := arm(1) == '2' || arm(3) == '2'
	switch {
	case step == outer && arm(0) == '2':
		bar(apart+half, map[bool]int{true: apart + half, false: half}[twice])
	case step == inner && arm(0) == '2':
		switch {
		case twice:
			bar(apart-half, apart-half)
		case arm(2) == '2':
			bar(apart-half, half)
		default: // it ends at a single line, which stays
			bar(apart-half, -half)
		}
	case step != single || arm(0) != '1':
	case arm(1) == '2' && arm(3) == '2' && arm(2) == '0': // it ends at the double line
		bar(half, half-apart)
	case twice && arm(2) == '0': // it is the end of the double line
		bar(half, apart+half)
	default:
		bar(half, half)
	}
}
