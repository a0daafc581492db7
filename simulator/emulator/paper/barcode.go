package paper

import (
	"image/color"
	"strings"

	"github.com/boombuler/barcode"
	"github.com/boombuler/barcode/codabar"
	"github.com/boombuler/barcode/code39"
	"github.com/boombuler/barcode/code93"
	"github.com/boombuler/barcode/ean"
	"github.com/boombuler/barcode/twooffive"
)

// barSettings are of GS h, GS w, GS H and GS f.
type barSettings struct {
	height, module int
	above, below   bool // the text
	font           int
}

func (p *Press) setBar(what, n byte) {
	switch what {
	case 'h':
		p.bar.height = max(1, int(n))
	case 'w':
		p.bar.module = max(1, min(int(n), 8))
	case 'H':
		p.bar.above, p.bar.below = n&1 != 0, n&2 != 0
	case 'f':
		p.bar.font = int(n & 1)
	}
}

// bars are the widths of bar, space, bar and so on, in modules; a wide one of
// a code with two widths is 0.
type bars []int

// barcode is GS k. Data that the code cannot hold prints nothing and is not
// known.
func (p *Press) barcode(cmd []byte) bool {
	m, data := cmd[2], string(cmd[3:])
	if m >= 65 {
		m, data = m-65, data[1:]
	} else {
		data = strings.TrimSuffix(data, "\x00")
	}
	b, text, ok := encodeBars(m, data)
	if !ok {
		return false
	}
	n := p.bar.module
	wide := (5*n + 1) / 2
	var runs []int
	width := 0
	for _, w := range b {
		dots := w * n
		if w == 0 {
			dots = wide
		}
		runs = append(runs, dots)
		width += dots
	}
	if width > p.areaWidth() {
		return false // a printer prints none that does not fit
	}
	p.flush(0)
	c := cells[p.bar.font]
	h, y := p.bar.height, 0
	if p.bar.above {
		y = c.h
	}
	total := y + h
	if p.bar.below {
		total += c.h
	}
	pic := newBitmap(max(width, len(text)*c.w), total)
	x := (pic.w - width) / 2
	for i, w := range runs {
		if i%2 == 0 {
			pic.fill(x, y, x+w, y+h)
		}
		x += w
	}
	for i, r := range text {
		glyph := faces()[p.bar.font][0].glyph(r)
		x := (pic.w-len(text)*c.w)/2 + i*c.w
		if p.bar.above {
			pic.put(glyph, x, 0)
		}
		if p.bar.below {
			pic.put(glyph, x, y+h)
		}
	}
	p.block(pic)
	return true
}

// encodeBars returns the bars of system m, counted from 0, and the text for
// people.
func encodeBars(m byte, data string) (bars, string, bool) {
	twoWidths := false
	var code barcode.Barcode
	var err error
	switch m {
	case 0: // UPC-A is EAN-13 that begins with 0
		if len(data) != 11 && len(data) != 12 {
			return nil, "", false
		}
		code, err = ean.Encode("0" + data)
	case 1:
		return encodeUPCE(data)
	case 2:
		if len(data) != 12 && len(data) != 13 {
			return nil, "", false
		}
		code, err = ean.Encode(data)
	case 3:
		if len(data) != 7 && len(data) != 8 {
			return nil, "", false
		}
		code, err = ean.Encode(data)
	case 4:
		twoWidths = true
		data = strings.Trim(data, "*")
		code, err = code39.Encode(data, false, false)
		data = "*" + data + "*"
	case 5:
		twoWidths = true
		code, err = twooffive.Encode(data, true)
	case 6:
		twoWidths = true
		data = strings.ToUpper(data)
		code, err = codabar.Encode(data)
	case 7:
		code, err = code93.Encode(data, true, true)
	case 8:
		return encode128(data)
	case 9: // GS1-128
		return encodeGS1(data)
	case 14: // CODE128 that chooses its sets
		return encode128("{B" + strings.ReplaceAll(data, "{", "{{"))
	default:
		return nil, "", false
	}
	if err != nil || data == "" {
		return nil, "", false
	}
	if text := code.Content(); m < 4 {
		data = strings.TrimPrefix(text, map[bool]string{true: "0"}[m == 0])
	}
	return runs(code, twoWidths), data, true
}

// runs reads the widths out of a drawn code.
func runs(code barcode.Barcode, twoWidths bool) bars {
	var out bars
	n, last := 0, true
	w := code.Bounds().Dx()
	for x := range w + 1 {
		black := x < w && color.GrayModel.Convert(code.At(code.Bounds().Min.X+x, code.Bounds().Min.Y)).(color.Gray).Y < 128
		if x < w && black == last {
			n++
			continue
		}
		if twoWidths && n > 1 {
			n = 0
		}
		if x > 0 {
			out = append(out, n)
		}
		n, last = 1, black
	}
	return out
}

// The left halves of EAN digits, odd parity: space, bar, space, bar.
var digitsOdd = [10]string{"3211", "2221", "2122", "1411", "1132", "1231", "1114", "1312", "1213", "3112"}

// Which digits of UPC-E have even parity, by check digit, for number system 0
// [GS1 General Specifications, 5.2.2.4].
var parityE = [10]string{"EEEOOO", "EEOEOO", "EEOOEO", "EEOOOE", "EOEEOO", "EOOEEO", "EOOOEE", "EOEOEO", "EOEOOE", "EOOEOE"}

// encodeUPCE takes the six digits, seven with the number system, eight with the
// check digit, or the UPC-A that it is short for, as printers do.
func encodeUPCE(data string) (bars, string, bool) {
	if strings.Trim(data, "0123456789") != "" {
		return nil, "", false
	}
	switch len(data) {
	case 6:
		data = "0" + data
	case 7, 8:
		data = data[:7]
	case 11, 12:
		short, ok := shorten(data[:11])
		if !ok {
			return nil, "", false
		}
		data = short
	default:
		return nil, "", false
	}
	if data[0] != '0' {
		return nil, "", false
	}
	six := data[1:]
	check := checkDigit(lengthen(six))
	out := bars{1, 1, 1}
	for i, d := range []byte(six) {
		pattern := digitsOdd[d-'0']
		for j := range 4 {
			k := j
			if parityE[check][i] == 'E' {
				k = 3 - j
			}
			out = append(out, int(pattern[k]-'0'))
		}
	}
	return append(out, 1, 1, 1, 1, 1, 1), data + string(rune('0'+check)), true
}

// lengthen makes the eleven digits of UPC-A of the six of UPC-E.
func lengthen(s string) string {
	switch s[5] {
	case '0', '1', '2':
		return "0" + s[:2] + s[5:] + "0000" + s[2:5]
	case '3':
		return "0" + s[:3] + "00000" + s[3:5]
	case '4':
		return "0" + s[:4] + "00000" + s[4:5]
	}
	return "0" + s[:5] + "0000" + s[5:]
}

// shorten is the other way, where there is one. It returns seven digits.
func shorten(a string) (string, bool) {
	for _, six := range []string{a[1:3] + a[8:11] + a[3:4], a[1:4] + a[9:11] + "3", a[1:5] + a[10:11] + "4", a[1:6] + a[10:11]} {
		if lengthen(six) == a {
			return "0" + six, true
		}
	}
	return "", false
}

// checkDigit is of an UPC-A without it.
func checkDigit(eleven string) int {
	sum := 0
	for i, d := range []byte(eleven) {
		sum += int(d-'0') * map[bool]int{true: 3, false: 1}[i%2 == 0]
	}
	return (10 - sum%10) % 10
}
