package paper

import (
	"image"
	"image/color"
)

const (
	side   = 32 // dots of paper beside the print area: 4 mm
	table  = 12 // around the paper
	teeth  = 8  // of the cutter
	blank  = 16 // above the first line
	maxLen = 60000
)

// Sheet is a piece of paper, from one cut to the next.
type Sheet struct {
	bits    *bitmap
	y       int // how far it is out
	partial bool
	kicks   []kick
}

type kick struct{ y, pin int }

func newSheet(width int) *Sheet { return &Sheet{bits: newBitmap(width, 0)} }

// burn puts dots at where the head is.
func (s *Sheet) burn(b *bitmap, x int) {
	if s.y+b.h > maxLen {
		return
	}
	s.bits.grow(s.y + b.h)
	s.bits.put(b, x, s.y)
}

func (s *Sheet) feed(dots int) { s.y += dots }

func (s *Sheet) kick(pin int) {
	if len(s.kicks) < 100 {
		s.kicks = append(s.kicks, kick{s.y, pin})
	}
}

// Empty reports whether nothing is printed on it.
func (s *Sheet) Empty() bool { return s.bits.inked() == 0 }

// The colours of a picture.
var palette = color.Palette{
	color.Gray{0xff},                  // paper
	color.Gray{0x18},                  // ink
	color.RGBA{0xd9, 0xdc, 0xe0, 255}, // what it lies on
	color.RGBA{0x9a, 0xa1, 0xab, 255}, // edge of the paper
	color.RGBA{0xb4, 0x53, 0x09, 255}, // marks that no printer makes
}

const (
	white = iota
	black
	under
	edge
	mark
)

// Image draws the paper, with a margin. What no printer makes is brown: a notch
// at the left edge is a drawer's pulse, with as many strokes as its pin has
// number. A full cut has teeth, a partial one leaves a bridge.
func (s *Sheet) Image() *image.Paletted {
	w := s.bits.w + 2*side
	h := blank + min(max(s.y, s.bits.h), maxLen) + teeth
	img := image.NewPaletted(image.Rect(0, 0, w+2*table, h+2*table), palette)
	for i := range img.Pix {
		img.Pix[i] = under
	}
	for y := range h {
		for x := range w {
			v := uint8(white)
			bite := (x/2)%teeth - teeth/2 // the teeth of the cutter
			if bite < 0 {
				bite = -bite
			}
			switch {
			case y < teeth/2-bite+2, y > h-teeth+bite+2:
				continue
			case x == 0, x == w-1:
				v = edge
			}
			img.Pix[(y+table)*img.Stride+x+table] = v
		}
	}
	for y := range s.bits.h {
		for x := range s.bits.w {
			if s.bits.get(x, y) {
				img.Pix[(y+table+blank)*img.Stride+x+table+side] = black
			}
		}
	}
	s.marks(img, w, h)
	return img
}

func (s *Sheet) marks(img *image.Paletted, w, h int) {
	put := func(x, y int) {
		if image.Pt(x+table, y+table).In(img.Rect) {
			img.Pix[(y+table)*img.Stride+x+table] = mark
		}
	}
	for _, k := range s.kicks {
		for stroke := range k.pin {
			for i := range 14 {
				for j := range 3 {
					put(4+i, blank+k.y+stroke*6+j)
				}
			}
		}
	}
	if s.partial { // a bridge in the middle
		for x := w/2 - 20; x < w/2+20; x++ {
			for y := h - teeth; y < h+4; y++ {
				put(x, y)
			}
		}
	}
}
