package paper_test

import (
	"fmt"
	"hash/fnv"
	"image"
	"slices"
	"strings"
	"testing"

	"github.com/tillward/tillward/simulator/emulator/paper"
)

// Where the print area begins on a picture.
const left, top = 12 + 32, 12 + 16

func do(t *testing.T, p *paper.Press, cmds ...string) (fed int) {
	t.Helper()
	for _, c := range cmds {
		n, known := p.Do([]byte(c))
		if !known {
			t.Errorf("%q is not known", c)
		}
		fed += n
	}
	return fed
}

// text gives each byte as the command that it is.
func text(t *testing.T, p *paper.Press, s string) (fed int) {
	t.Helper()
	return do(t, p, strings.Split(s, "")...)
}

// latin gives each byte of a string as it is.
func latin(t *testing.T, p *paper.Press, s string) {
	t.Helper()
	for _, c := range []byte(s) {
		do(t, p, string([]byte{c}))
	}
}

// sum is of the dots of a part of the print area.
func sum(img image.Image, x, y, w, h int) uint64 {
	f := fnv.New64a()
	for j := range h {
		for i := range w {
			r, _, _, _ := img.At(left+x+i, top+y+j).RGBA()
			_, _ = f.Write([]byte{map[bool]byte{true: 1}[r < 0x8000]})
		}
	}
	return f.Sum64()
}

// learned knows characters of font A by their dots, from a sheet with one of
// each in a place of its own.
func learned(t *testing.T, chars string, set ...string) map[uint64]rune {
	t.Helper()
	p := paper.New(paper.Wide)
	do(t, p, set...)
	for _, c := range []byte(chars) {
		do(t, p, string([]byte{c}), "\n")
	}
	img := p.Cut(false).Image()
	known := map[uint64]rune{}
	for i, r := range []rune(chars) {
		known[sum(img, 0, i*30, 12, 24)] = r
	}
	return known
}

var ascii = func() string {
	var b strings.Builder
	for c := rune(0x20); c < 0x7f; c++ {
		b.WriteRune(c)
	}
	return b.String()
}()

// read returns the lines of a sheet in font A, so many dots apart.
func read(known map[uint64]rune, img image.Image, lines int) []string {
	var out []string
	for l := range lines {
		var b strings.Builder
		for c := range (img.Bounds().Dx() - 2*left) / 12 {
			r, ok := known[sum(img, c*12, l*30, 12, 24)]
			if !ok {
				r = '\ufffd'
			}
			b.WriteRune(r)
		}
		out = append(out, strings.TrimRight(b.String(), " "))
	}
	return out
}

// What was printed is read back from the picture, character by character.
func TestTextIsDrawn(t *testing.T) {
	known := learned(t, ascii)
	if len(known) != len(ascii) {
		t.Fatalf("%d pictures of %d characters: some look the same", len(known), len(ascii))
	}
	p := paper.New(paper.Wide)
	if fed := text(t, p, "Total\t\t12.50\n"); fed != 30 {
		t.Errorf("a line fed %d dots, want 30", fed)
	}
	do(t, p, "\x1ba\x01")
	text(t, p, "centre\n")
	do(t, p, "\x1ba\x02")
	text(t, p, "right\n")
	do(t, p, "\x1ba\x00")
	text(t, p, strings.Repeat("0123456789", 5)+"\n") // two characters too many
	do(t, p, "\x1dL\x18\x00", "\x1dW\x48\x00")       // 2 columns from the left, 6 wide
	text(t, p, "narrow\nworld!?\n")
	do(t, p, "\x1b@", "\x1b$\x60\x00")
	text(t, p, "at 8")
	do(t, p, "\x1b\\\xf4\xff\n"[:4]) // one column back
	text(t, p, "9\n")
	do(t, p, "\x1bD\x03\x06\x00")
	text(t, p, "a\tb\tc\td\n")
	want := []string{
		"Total           12.50", "                     centre", "                                           right",
		"012345678901234567890123456789012345678901234567", "89", "  narrow", "  world!", "  ?", "        at \ufffd", "a  b  cd",
	}
	if got := read(known, p.Cut(false).Image(), 10); !slices.Equal(got, want) {
		t.Errorf("read\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	q := paper.New(paper.Narrow)
	text(t, q, strings.Repeat("x", 33)+"\n")
	if got := read(known, q.Cut(false).Image(), 2); got[0] != strings.Repeat("x", 32) || got[1] != "x" {
		t.Errorf("on 58 mm: read %q", got)
	}
}

// Each style looks like itself and takes the room that it should.
func TestStyles(t *testing.T) {
	style := func(set string, s string) (img image.Image, fed int) {
		p := paper.New(paper.Wide)
		do(t, p, set)
		fed = text(t, p, s+"\n")
		return p.Cut(false).Image(), fed
	}
	plain, _ := style("\x1b!\x00", "A")
	for set, want := range map[string]struct{ w, h, fed int }{
		"\x1bE\x01": {12, 24, 30}, "\x1b-\x01": {12, 24, 30}, "\x1b-\x02": {12, 24, 30}, "\x1dB\x01": {12, 24, 30}, "\x1bV\x01": {24, 12, 30},
		"\x1b!\x10": {12, 48, 48}, "\x1b!\x20": {24, 24, 30}, "\x1d!\x77": {96, 192, 192}, "\x1bM\x01": {9, 17, 30}, "\x1b{\x01": {12, 24, 30}, "\x1bR\x02": {12, 24, 30},
	} {
		img, fed := style(set, "A")
		if fed != want.fed {
			t.Errorf("%q fed %d dots, want %d", set, fed, want.fed)
		}
		if set == "\x1bR\x02" {
			continue // A is A in German
		}
		if sum(img, 0, 0, 24, 24) == sum(plain, 0, 0, 24, 24) {
			t.Errorf("%q looks like plain text", set)
		}
		if set != "\x1b{\x01" && sum(img, want.w, 0, 48, want.h) != sum(img, 400, 0, 48, want.h) {
			t.Errorf("%q is wider than %d dots", set, want.w)
		}
	}
	// Upside down begins at the right, and is the same dots the other way round.
	img, _ := style("\x1b{\x01", "A")
	for y := range 24 {
		for x := range 12 {
			if a, b := img.At(left+paper.Wide-1-x, top+23-y), plain.At(left+x, top+y); a != b {
				t.Fatalf("upside down: dot %d,%d differs", x, y)
			}
		}
	}
	a, _ := style("\x1bR\x02", "[")
	b, _ := style("\x1bt\x10", "\xc4")
	if sum(a, 0, 0, 12, 24) == sum(plain, 0, 0, 12, 24) || sum(b, 0, 0, 12, 24) == 0 {
		t.Error("national characters are not drawn")
	}
}

// Letters of the code pages are those that they should be: the same letter of
// two pages is the same picture, and none is the box that stands for nothing.
func TestCodePages(t *testing.T) {
	one := func(page byte, c string) uint64 {
		p := paper.New(paper.Wide)
		do(t, p, "\x1bt"+string([]byte{page}))
		latin(t, p, c)
		do(t, p, "\n")
		return sum(p.Cut(false).Image(), 0, 0, 12, 24)
	}
	nothing := one(13, "\xe7") // CP857 has none there
	for name, same := range map[string][]uint64{
		"e acute":        {one(0, "\x82"), one(2, "\x82"), one(16, "\xe9"), one(18, "\x82"), one(19, "\x82"), one(40, "\xe9")},
		"euro":           {one(19, "\xd5"), one(16, "\x80"), one(40, "\xa4"), one(45, "\x80"), one(13, "\xd5")},
		"Cyrillic zhe":   {one(17, "\x86"), one(46, "\xc6"), one(44, "\x86")},
		"Greek omega":    {one(14, "\x97"), one(15, "\xd9"), one(47, "\xd9")},
		"horizontal bar": {one(0, "\xc4"), one(1, "\x95"), one(2, "\xc4"), one(35, "\xc4")},
		"dotless i":      {one(13, "\x8d"), one(48, "\xfd")},
	} {
		for _, s := range same {
			if s != same[0] || s == nothing {
				t.Errorf("%s: got pictures %x", name, same)
			}
		}
	}
	for _, page := range []byte{6, 20, 41, 255} {
		if _, known := paper.New(paper.Wide).Do([]byte{0x1b, 't', page}); known {
			t.Errorf("code page %d is said to be known", page)
		}
	}
}

func TestPictures(t *testing.T) {
	// A frame of 16 by 16 dots, by each of the ways to print one.
	frame := "\xff\xff" + strings.Repeat("\x80\x01", 14) + "\xff\xff"
	columns := "\xff\xff" + strings.Repeat("\x80\x01", 14) + "\xff\xff"
	three := "\xff\xff\x00" + strings.Repeat("\x80\x01\x00", 14) + "\xff\xff\x00"
	store := "\x1d(L\x2a\x000\x70\x30\x01\x011\x10\x00\x10\x00" + frame
	want := uint64(0)
	for name, cmds := range map[string][]string{
		"GS v 0":             {"\x1dv0\x00\x02\x00\x10\x00" + frame},
		"GS ( L":             {store, "\x1d(L\x02\x0002"},
		"GS ( L, columns":    {strings.Replace(store, "0\x70", "0\x71", 1)[:15] + columns, "\x1d(L\x02\x00\x30\x32"},
		"GS 8 L":             {"\x1d8L\x2a\x00\x00\x000\x70\x30\x01\x011\x10\x00\x10\x00" + frame, "\x1d(L\x02\x00\x30\x02"},
		"GS ( L, with a key": {"\x1d(L\x2b\x000\x430AB\x01\x10\x00\x10\x001" + frame, "\x1d(L\x06\x000\x45AB\x01\x01"},
		"ESC *":              {"\x1b*\x21\x10\x00" + three, "\n"},
		"FS q":               {"\x1cq\x01\x02\x00\x02\x00" + columns, "\x1cp\x01\x00"},
		"GS *":               {"\x1d*\x02\x02" + columns, "\x1d/\x00"},
	} {
		p := paper.New(paper.Wide)
		fed := do(t, p, cmds...)
		img := p.Cut(false).Image()
		got := sum(img, 0, 0, 48, 16)
		if want == 0 {
			want = got
		}
		if got != want || sum(img, 0, 0, 48, 16) == sum(img, 100, 0, 48, 16) {
			t.Errorf("%s: the frame is not there", name)
		}
		if rows := map[bool]int{true: 30, false: 16}[name == "ESC *"]; fed != rows {
			t.Errorf("%s: fed %d dots, want %d", name, fed, rows)
		}
	}
	p := paper.New(paper.Wide)
	if fed := do(t, p, "\x1dv0\x03\x02\x00\x10\x00"+frame); fed != 32 {
		t.Errorf("a picture of double size fed %d dots, want 32", fed)
	}
	if _, known := p.Do([]byte("\x1cp\x09\x00")); known {
		t.Error("a picture that nobody stored is said to be printed")
	}
}

func TestPageMode(t *testing.T) {
	known := learned(t, ascii)
	p := paper.New(paper.Wide)
	do(t, p, "\x1bL", "\x1bW\x00\x00\x00\x00\x40\x02\x00\x02", "\x1bT\x00", "\x1d$\x1e\x00")
	text(t, p, "below")
	do(t, p, "\x1d$\x00\x00")
	text(t, p, "above")
	if fed := do(t, p, "\f"); fed < 48 || fed > 60 {
		t.Errorf("the page fed %d dots, want about two lines", fed)
	}
	if got := read(known, p.Cut(false).Image(), 2); got[0] != "above" || got[1] != "below" {
		t.Errorf("read %q", got)
	}
	do(t, p, "\x1bL")
	if _, known := p.Do([]byte("\x1bT\x01")); known {
		t.Error("a page from bottom to top is said to be drawn")
	}
}

// What is not drawn is said so.
func TestUnknown(t *testing.T) {
	p := paper.New(paper.Wide)
	for _, cmd := range []string{
		"\x1bz", "\x1d\x01", "\x1c\x02", "\x1c&", "\x1bM\x05", "\x1bR\x63", "\x1d(Q\x02\x00ab", "\x1d(k\x03\x003Q0", "\x1dk\x41\x03abc", "\x1dk\x4b\x02ab",
		"\x1dk\x02123\x00", "\x1dk\x49\x05plain", "\x1dk\x49\x04{Bx{", "\x1bL\x1bT\x03"[2:], "\x1b*\x07\x01\x00x",
	} {
		if _, known := p.Do([]byte(cmd)); known {
			t.Errorf("%q is said to be drawn", cmd)
		}
	}
	if !p.Cut(false).Empty() {
		t.Error("something was drawn")
	}
}

// The marks are of a colour that no printer has, and beside the print area.
func TestMarks(t *testing.T) {
	p := paper.New(paper.Wide)
	text(t, p, "x\n")
	p.Kick(1)
	p.Kick(2)
	text(t, p, "x\n")
	s := p.Cut(true)
	img := s.Image()
	colours := map[string]int{}
	for y := range img.Rect.Dy() {
		for x := range left - 12 {
			colours[fmt.Sprint(img.At(x+12, y))]++
		}
	}
	if len(colours) < 4 {
		t.Errorf("the margin has the colours %v; want paper, edge, table and marks", colours)
	}
	if !p.Cut(false).Empty() || s.Empty() {
		t.Error("Empty says the opposite")
	}
}
