package paper_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/makiuchi-d/gozxing"
	zaztec "github.com/makiuchi-d/gozxing/aztec"
	zmatrix "github.com/makiuchi-d/gozxing/datamatrix"
	"github.com/makiuchi-d/gozxing/oned"
	zqr "github.com/makiuchi-d/gozxing/qrcode"

	"github.com/tillward/tillward/simulator/emulator/paper"
)

// scan reads a code off the picture of a sheet, with a reader that is not ours.
func scan(t *testing.T, r gozxing.Reader, s *paper.Sheet) string {
	t.Helper()
	source, err := gozxing.NewBinaryBitmapFromImage(s.Image())
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.Decode(source, map[gozxing.DecodeHintType]any{gozxing.DecodeHintType_TRY_HARDER: true})
	if err != nil {
		return err.Error()
	}
	return got.GetText()
}

func TestBarcodesCanBeScanned(t *testing.T) {
	for _, tt := range []struct {
		name, cmd, want string
		reader          gozxing.Reader
	}{
		{"UPC-A", "\x1dk\x41\x0b03600029145", "036000291452", oned.NewUPCAReader()},
		{"UPC-A, ended", "\x1dk\x00036000291452\x00", "036000291452", oned.NewUPCAReader()},
		{"UPC-E", "\x1dk\x42\x06123456", "01234565", oned.NewUPCEReader()},
		{"UPC-E of UPC-A", "\x1dk\x42\x0b04210000526", "04252614", oned.NewUPCEReader()},
		{"EAN-13", "\x1dk\x43\x0c400638133393", "4006381333931", oned.NewEAN13Reader()},
		{"EAN-13, ended", "\x1dk\x024006381333931\x00", "4006381333931", oned.NewEAN13Reader()},
		{"EAN-8", "\x1dk\x44\x079638507", "96385074", oned.NewEAN8Reader()},
		{"CODE39", "\x1dk\x45\x07TILL-42", "TILL-42", oned.NewCode39Reader()},
		{"CODE39, with its stars", "\x1dk\x04*A B*\x00", "A B", oned.NewCode39Reader()},
		{"ITF", "\x1dk\x46\x0812345678", "12345678", oned.NewITFReader()},
		{"CODABAR", "\x1dk\x47\x08A12-345B", "12-345", oned.NewCodaBarReader()},
		{"CODE93", "\x1dk\x48\x07Till 93", "Till 93", oned.NewCode93Reader()},
		{"CODE128 B", "\x1dk\x49\x0c{BTillward{{", "Tillward{", oned.NewCode128Reader()},
		{"CODE128 A", "\x1dk\x49\x06{AA\x01B9", "A\x01B9", oned.NewCode128Reader()},
		{"CODE128 C", "\x1dk\x49\x05{C\x0c\x22\x63", "123499", oned.NewCode128Reader()},
		{"CODE128 mixed", "\x1dk\x49\x0e{Bab{C\x0c\x22{A9\x02{Bz", "ab12349\x02z", oned.NewCode128Reader()},
		{"CODE128 shift", "\x1dk\x49\x07{Ba{S\x03b", "a\x03b", oned.NewCode128Reader()},
		{"CODE128, by itself", "\x1dk\x4f\x05ab{c9", "ab{c9", oned.NewCode128Reader()},
	} {
		for module := byte(2); module <= 3; module++ {
			p := paper.New(paper.Wide)
			do(t, p, "\x1ba\x01", "\x1dh\x50", "\x1dw"+string([]byte{module}), "\x1dH\x02", tt.cmd)
			if got := scan(t, tt.reader, p.Cut(false)); got != tt.want {
				t.Errorf("%s, %d dots a module: scanned %q, want %q", tt.name, module, got, tt.want)
			}
		}
	}
}

// All symbols of CODE128, and all short forms of UPC.
func TestTablesOfBarcodes(t *testing.T) {
	scanned := func(r gozxing.Reader, cmd string) string {
		p := paper.New(paper.Wide)
		do(t, p, "\x1ba\x01", "\x1dw\x02", cmd)
		return scan(t, r, p.Cut(false))
	}
	for v := range 100 {
		if got, want := scanned(oned.NewCode128Reader(), "\x1dk\x49\x03{C"+string([]byte{byte(v)})), fmt.Sprintf("%02d", v); got != want {
			t.Errorf("CODE128 symbol %d: scanned %q", v, got)
		}
	}
	for last := range 10 {
		six := fmt.Sprintf("5432%d%d", 9-last, last)
		if got := scanned(oned.NewUPCEReader(), "\x1dk\x42\x06"+six); !strings.HasPrefix(got, "0"+six) {
			t.Errorf("UPC-E %s: scanned %q", six, got)
		}
	}
	if got := scanned(oned.NewCode128Reader(), "\x1dk\x4a\x10(01)123456789012"); !strings.HasSuffix(got, "01123456789012") {
		t.Errorf("GS1-128: scanned %q", got)
	}
}

func TestSymbolsCanBeScanned(t *testing.T) {
	put := func(code byte, data string) string {
		n := len(data) + 3
		return "\x1d(k" + string([]byte{byte(n), byte(n >> 8), code, 80, 48}) + data
	}
	const url = "https://example.org/receipt/0042?total=12.50"
	for _, level := range "0123" {
		p := paper.New(paper.Wide)
		do(t, p, "\x1ba\x01", "\x1d(k\x04\x001A2\x00", "\x1d(k\x03\x001C\x05", "\x1d(k\x03\x001E"+string(level), put(49, url), "\x1d(k\x03\x001Q0")
		if got := scan(t, zqr.NewQRCodeReader(), p.Cut(false)); got != url {
			t.Errorf("QR, level %c: scanned %q", level, got)
		}
	}
	p := paper.New(paper.Wide)
	do(t, p, "\x1ba\x01", "\x1d(k\x03\x006C\x06", put(54, "TILL 0042"), "\x1d(k\x03\x006Q0")
	if got := scan(t, zmatrix.NewDataMatrixReader(), p.Cut(false)); got != "TILL 0042" {
		t.Errorf("Data Matrix: scanned %q", got)
	}
	do(t, p, "\x1d(k\x03\x005C\x06", put(53, "aztec 42"), "\x1d(k\x03\x005Q0")
	if got := scan(t, zaztec.NewAztecReader(), p.Cut(false)); got != "aztec 42" {
		t.Errorf("Aztec: scanned %q", got)
	}
	// Nothing at hand reads PDF417; its first and last pattern are always the same.
	do(t, p, "\x1ba\x00", "\x1d(k\x03\x000C\x02", put(48, "pdf 42"), "\x1d(k\x03\x000Q0")
	img := p.Cut(false).Image()
	var runs []int
	last := false
	for x := range paper.Wide {
		r, _, _, _ := img.At(left+x, top).RGBA()
		if black := r < 0x8000; black != last || len(runs) == 0 && black {
			runs, last = append(runs, 0), black
		}
		if len(runs) > 0 {
			runs[len(runs)-1]++
		}
	}
	if len(runs) < 20 || fmt.Sprint(runs[:8]) != "[16 2 2 2 2 2 2 6]" {
		t.Errorf("PDF417 begins with %v; want 8 1 1 1 1 1 1 3 times 2", runs)
	}
}

// Data that is not fit for a code, and codes that do not fit the paper, are
// said not to be drawn.
func TestBarcodesThatCannotBe(t *testing.T) {
	p := paper.New(paper.Narrow)
	do(t, p, "\x1dw\x06")
	for _, cmd := range []string{"\x1dk\x45\x10ABCDEFGHIJKLMNOP", "\x1dk\x42\x06abcdef", "\x1dk\x42\x071234567", "\x1dk\x43\x03123", "\x1dk\x47\x03123", "\x1dk\x46\x03123"} {
		if _, known := p.Do([]byte(cmd)); known {
			t.Errorf("%q is said to be drawn", cmd)
		}
	}
}
