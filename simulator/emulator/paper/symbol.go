package paper

import (
	"image/color"

	"github.com/boombuler/barcode"
	"github.com/boombuler/barcode/aztec"
	"github.com/boombuler/barcode/datamatrix"
	"github.com/boombuler/barcode/pdf417"
	"rsc.io/qr"
)

// The codes of GS ( k.
const (
	pdf417Code = 48
	qrCode     = 49
	aztecCode  = 53
	matrixCode = 54
)

// symbolSettings are of one code of GS ( k; what is stored stays until it is
// replaced.
type symbolSettings struct {
	module, row int // dots
	level       int
	data        string
}

// symbol is GS ( k: settings, data and the order to print, apart [Epson
// ESC/POS reference: GS ( k].
func (p *Press) symbol(par []byte) bool {
	if len(par) < 3 {
		return false
	}
	s := p.codes[par[0]]
	if s == nil {
		s = &symbolSettings{module: 3, row: 3}
		switch par[0] {
		case pdf417Code:
			s.level = 1
		case qrCode, aztecCode, matrixCode:
		default:
			return false
		}
		p.codes[par[0]] = s
	}
	code, fn, n := par[0], par[1], int(par[2])
	switch {
	case fn == 80:
		s.data = string(par[3:])
	case fn == 81:
		return p.printSymbol(code, s)
	case fn == 65 || code == pdf417Code && (fn == 66 || fn == 70) || code != qrCode && fn == 66:
		// how many columns and rows, which model, square or not: as it comes
	case fn == 67:
		s.module = max(1, min(n, 16))
	case fn == 68 && code == pdf417Code:
		s.row = max(2, min(n, 8))
	case fn == 69 && code == pdf417Code:
		if len(par) > 3 && n == 48 {
			s.level = int(par[3]) - 48
		}
	case fn == 69:
		s.level = n
	default:
		return false
	}
	return true
}

func (p *Press) printSymbol(code byte, s *symbolSettings) bool {
	if s.data == "" {
		return true // nothing stored: a printer prints nothing
	}
	var b *bitmap
	if code == qrCode {
		c, err := qr.Encode(s.data, qr.Level(max(0, min(s.level-48, 3))))
		if err != nil {
			return false
		}
		b = newBitmap(c.Size, c.Size)
		for y := range c.Size {
			for x := range c.Size {
				if c.Black(x, y) {
					b.set(x, y)
				}
			}
		}
		b = b.scale(s.module, s.module)
	} else {
		var c barcode.Barcode
		var err error
		switch code {
		case pdf417Code:
			c, err = pdf417.Encode(s.data, byte(max(0, min(s.level, 8))))
		case aztecCode:
			c, err = aztec.Encode([]byte(s.data), max(5, min(s.level, 95)), 0)
		default:
			c, err = datamatrix.Encode(s.data)
		}
		if err != nil {
			return false
		}
		b = drawn(c)
		if code == pdf417Code { // two dots a row as it comes
			b = b.scale(s.module, max(1, s.module*s.row/2))
		} else {
			b = b.scale(s.module, s.module)
		}
	}
	if b.w > p.areaWidth() {
		return false
	}
	p.block(b)
	return true
}

// drawn takes over a code that somebody else has drawn.
func drawn(c barcode.Barcode) *bitmap {
	r := c.Bounds()
	b := newBitmap(r.Dx(), r.Dy())
	for y := range b.h {
		for x := range b.w {
			if color.GrayModel.Convert(c.At(r.Min.X+x, r.Min.Y+y)).(color.Gray).Y < 128 {
				b.set(x, y)
			}
		}
	}
	return b
}
