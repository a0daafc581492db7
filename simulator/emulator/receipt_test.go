package emulator_test

import (
	"image/png"
	"os"
	"path/filepath"
	"testing"

	"github.com/tillward/tillward/simulator/emulator/paper"
)

// Pictures are written of what tills send and of what the day prints, and the
// paper that is drawn is the paper that is counted.
func TestReceiptsAreSaved(t *testing.T) {
	p := bare(t)
	dir := filepath.Join(t.TempDir(), "receipts")
	if err := p.SaveReceipts(dir); err != nil {
		t.Fatal(err)
	}
	for _, lines := range []int{1, 2, 13, 14, 20, 60} {
		before := p.Counter(148)
		if !p.Receipt(lines) {
			t.Fatal("the printer is off-line")
		}
		if got := p.Counter(148) - before; got != uint64(lines) {
			t.Errorf("%d lines were counted, want %d", got, lines)
		}
		sheets := p.Receipts()
		if h := sheets[len(sheets)-1].Image().Rect.Dy(); h != lines*30+2*12+16+8 {
			t.Errorf("a receipt of %d lines is %d dots high, want 30 a line and the edges", lines, h)
		}
	}
	c := pipe(t, p)
	ask(t, c, "from the till\n\x1dV\x00\x1dV\x00\x1dr\x01", "\x00") // the second cut cuts off nothing
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	list, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(list) != 7 {
		t.Fatalf("got %v, %v; want seven pictures", list, err)
	}
	for _, file := range list {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		img, err := png.Decode(f)
		_ = f.Close()
		if err != nil || img.Bounds().Dx() != paper.Wide+2*(32+12) {
			t.Errorf("%s: %v, %v", file, img, err)
		}
	}
}

func TestReceiptsThatCannotBeSaved(t *testing.T) {
	p := bare(t)
	dir := t.TempDir()
	if err := p.SaveReceipts(filepath.Join(dir, "no", "\x00")); err == nil {
		t.Error("a folder that cannot be: got no error")
	}
	gone := filepath.Join(dir, "gone")
	if err := p.SaveReceipts(gone); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	p.Receipt(20)
	if err := p.Close(); err == nil {
		t.Error("a picture was lost without a word")
	}
}

func TestNarrowPaper(t *testing.T) {
	p := bare(t)
	p.SetWidth(paper.Narrow)
	c := pipe(t, p)
	ask(t, c, "x\n\x1dV\x00\x1dr\x01", "\x00")
	if w := p.Receipts()[0].Image().Rect.Dx(); w != paper.Narrow+2*(32+12) {
		t.Errorf("the picture is %d dots wide", w)
	}
}
