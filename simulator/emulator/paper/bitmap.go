package paper

// bitmap is black on white, a bit a dot, rows padded to whole bytes.
type bitmap struct {
	w, h, stride int
	bits         []byte
}

func newBitmap(w, h int) *bitmap {
	w, h = max(w, 0), max(h, 0)
	stride := (w + 7) / 8
	return &bitmap{w: w, h: h, stride: stride, bits: make([]byte, stride*h)}
}

// raster takes rows of whole bytes as printers get them; missing data is white.
func raster(w, h int, data []byte) *bitmap {
	b := newBitmap(w, h)
	copy(b.bits, data)
	if w%8 != 0 {
		for y := range b.h {
			b.bits[y*b.stride+b.stride-1] &= 0xff << (8 - w%8)
		}
	}
	return b
}

// columns takes columns of n bytes each, as bit image commands have them.
func columns(w, n int, data []byte) *bitmap {
	b := newBitmap(w, n*8)
	for x := range w {
		for i := range n {
			for bit := range 8 {
				if at := x*n + i; at < len(data) && data[at]&(0x80>>bit) != 0 {
					b.set(x, i*8+bit)
				}
			}
		}
	}
	return b
}

func (b *bitmap) set(x, y int) {
	if x >= 0 && y >= 0 && x < b.w && y < b.h {
		b.bits[y*b.stride+x/8] |= 0x80 >> (x % 8)
	}
}

func (b *bitmap) get(x, y int) bool {
	return x >= 0 && y >= 0 && x < b.w && y < b.h && b.bits[y*b.stride+x/8]&(0x80>>(x%8)) != 0
}

func (b *bitmap) fill(x0, y0, x1, y1 int) {
	for y := max(y0, 0); y < min(y1, b.h); y++ {
		for x := max(x0, 0); x < min(x1, b.w); x++ {
			b.set(x, y)
		}
	}
}

func (b *bitmap) clear(x0, y0, x1, y1 int) {
	for y := max(y0, 0); y < min(y1, b.h); y++ {
		for x := max(x0, 0); x < min(x1, b.w); x++ {
			b.bits[y*b.stride+x/8] &^= 0x80 >> (x % 8)
		}
	}
}

// put lays another picture over this one.
func (b *bitmap) put(src *bitmap, x0, y0 int) {
	for y := range src.h {
		row := src.bits[y*src.stride : (y+1)*src.stride]
		for i, v := range row {
			for bit := 0; v != 0; bit, v = bit+1, v<<1 {
				if v&0x80 != 0 {
					b.set(x0+i*8+bit, y0+y)
				}
			}
		}
	}
}

// grow makes it at least h dots high.
func (b *bitmap) grow(h int) {
	if h > b.h {
		b.bits = append(b.bits, make([]byte, (h-b.h)*b.stride)...)
		b.h = h
	}
}

// scale makes each dot sx by sy dots.
func (b *bitmap) scale(sx, sy int) *bitmap {
	if sx == 1 && sy == 1 {
		return b
	}
	out := newBitmap(b.w*sx, b.h*sy)
	for y := range b.h {
		for x := range b.w {
			if b.get(x, y) {
				out.fill(x*sx, y*sy, (x+1)*sx, (y+1)*sy)
			}
		}
	}
	return out
}

func (b *bitmap) invert() *bitmap {
	out := newBitmap(b.w, b.h)
	for y := range b.h {
		for x := range b.w {
			if !b.get(x, y) {
				out.set(x, y)
			}
		}
	}
	return out
}

// turn rotates by quarters, clockwise.
func (b *bitmap) turn(quarters int) *bitmap {
	switch quarters & 3 {
	case 0:
		return b
	case 2:
		out := newBitmap(b.w, b.h)
		for y := range b.h {
			for x := range b.w {
				if b.get(x, y) {
					out.set(b.w-1-x, b.h-1-y)
				}
			}
		}
		return out
	}
	out := newBitmap(b.h, b.w)
	for y := range b.h {
		for x := range b.w {
			switch {
			case !b.get(x, y):
			case quarters&3 == 1:
				out.set(b.h-1-y, x)
			default:
				out.set(y, b.w-1-x)
			}
		}
	}
	return out
}

// inked returns the height down to the last row with a black dot.
func (b *bitmap) inked() int {
	for y := b.h; y > 0; y-- {
		for _, v := range b.bits[(y-1)*b.stride : y*b.stride] {
			if v != 0 {
				return y
			}
		}
	}
	return 0
}
