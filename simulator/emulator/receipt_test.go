package emulator_test

import (
	"image/png"
	"os"
	"path/filepath"
	"testing"

	"github.com/tillward/tillward/simulator/emulator"
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

// A ticket is as long as it is said to be, whoever prints it, and nothing in it
// is unknown.
func TestTicket(t *testing.T) {
	p := bare(t)
	c := pipe(t, p)
	for i, lines := range []int{1, 5, 14, 30, 110} {
		before := p.Counter(148)
		ask(t, c, string(emulator.Ticket(uint64(i), lines, lines == 30))+"\x1dr\x01", "\x00")
		if got := p.Counter(148) - before; got != uint64(lines) {
			t.Errorf("a ticket of %d lines took %d", lines, got)
		}
		if p.Has(emulator.DrawerOpen) != (lines >= 30) {
			t.Errorf("after the ticket of %d lines the drawer is open: %v", lines, p.Has(emulator.DrawerOpen))
		}
	}
	if u := p.Unknown(); len(u) > 0 || len(p.Receipts()) != 5 {
		t.Errorf("%d receipts, unknown %v", len(p.Receipts()), u)
	}
}

// The paper that a cut feeds is paper too: what stands in the line comes out,
// the rest of the way goes to the cutter, and the end of it is told.
func TestCutUsesPaper(t *testing.T) {
	p := bare(t)
	c := pipe(t, p)
	ask(t, c, "\x1da\x08", "\x10\x00\x00\x00")
	p.LoadRoll(403)
	ask(t, c, "no end of line\x1dV\x41\x00", "\x10\x00\x03\x00") // 24 dots and 96
	if got := p.Counter(148); got != 4 {
		t.Errorf("%d line feeds, want 4", got)
	}
	if len(p.Receipts()) != 1 {
		t.Errorf("%d receipts, want one", len(p.Receipts()))
	}
}
