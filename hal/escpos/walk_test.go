package escpos_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/tillward/tillward/hal/escpos"
)

// data is so many bytes that look like commands and are none.
func data(n int) string { return strings.Repeat("\x1dV\x00\x1bp\x00", n/6+1)[:n] }

// Each is one command; what lies in it is not.
var commands = []string{
	"a", "\n", "\r", "\x00", "\xff",
	"\x1b@", "\x1b2", "\x1bE\x01", "\x1b$\x00\x01", "\x1bp\x00\x19\xfa", "\x1bi", "\x1bm", "\x1bd\x05", "\x1bW12345678",
	"\x1bD\x08\x10\x00", "\x1b*\x00\x0c\x00" + data(12), "\x1b*\x21\x0c\x00" + data(36), "\x1b(A\x03\x00" + data(3),
	"\x1b&\x03\x41\x43\x02" + data(6) + "\x00" + "\x01" + data(3), "\x1b&\x03\x43\x41",
	"\x1c.", "\x1cC\x01", "\x1cS\x01\x02", "\x1c(A\x02\x00\x30\x00", "\x1c2\x77\x21" + data(72), "\x1cg1\x00\x00\x00\x00\x00\x04\x00" + data(4), "\x1cg2\x00\x00\x00\x00\x00\x04\x00",
	"\x1cq\x02\x01\x00\x01\x00" + data(8) + "\x01\x00\x02\x00" + data(16), "\x1cq\x00",
	"\x1d!\x11", "\x1dV\x00", "\x1dV\x42\x10", "\x1da\x0f", "\x1dI\x43", "\x1dr\x01", "\x1dg2\x00\x94\x00", "\x1d(L\x06\x00" + data(6), "\x1d8L\x06\x00\x00\x00" + data(6),
	"\x1dk\x04ABC\x00", "\x1dk\x49\x05{B123", "\x1dv0\x00\x02\x00\x03\x00" + data(6), "\x1dQ0\x00\x02\x00\x03\x00" + data(6), "\x1d*\x01\x02" + data(16),
	"\x1dD0C0\x20\x20\x01\x01BM\x0a\x00\x00\x00" + data(4), "\x1dC0\x03\x01", "\x1dC1\x01\x00\x09\x00\x01\x00", "\x1dC;", "\x1dC2\x01\x00", "\x1d^\x01\x02\x00", "\x1d:",
	"\x10\x04\x01", "\x10\x04\x07\x01", "\x10\x05\x02", "\x10\x14\x01\x00\x01", "\x10\x14\x08\x01\x03\x14\x01\x06\x02\x08", "\x10\x14\x03\x01\x02\x03\x04\x05", "\x10\x14\x07\x01",
}

func TestWalk(t *testing.T) {
	for _, c := range commands {
		w := escpos.Walk([]byte(c), 1<<20)
		if !slices.Equal(w.Ends, []int{len(c)}) || !w.Between {
			t.Errorf("%q: commands end at %v, between %v; want it to end at %d", c, w.Ends, w.Between, len(c))
		}
		for n := 1; n < len(c); n++ {
			if w := escpos.Walk([]byte(c[:n]), 1<<20); w.Between || !w.CanBePadded || w.Padding == 0 {
				t.Errorf("%q cut after %d: %+v; want it to be unfinished", c, n, w)
			}
		}
	}
	all := escpos.Walk([]byte(strings.Join(commands, "")), 0)
	if len(all.Ends) != len(commands) || all.Cuts != 4 || all.Kicks != 2 || all.Questions != 6 || all.Urgent != 5 {
		t.Errorf("got %d commands, %+v; want %d commands, 4 cuts, 2 kicks, 6 questions, 5 urgent ones", len(all.Ends), all, len(commands))
	}
	if want := 30 + 5*30 + 3; all.Dots != want {
		t.Errorf("got %d dots, want %d", all.Dots, want)
	}
}

// DLE alone means nothing, and what follows it may be a command.
func TestWalkStrayDLE(t *testing.T) {
	if w := escpos.Walk([]byte("\x10\x1dV\x00\x10\x10\x04\x01"), 0); w.Cuts != 1 || w.Questions != 1 {
		t.Errorf("got %+v, want a cut and a question", w)
	}
}

// A picture that a printer may find a question in is told.
func TestWalkMurky(t *testing.T) {
	if w := escpos.Walk([]byte("\x1dv0\x00\x03\x00\x01\x00\x10\x04\x01"), 0); !w.Murky || w.Questions != 0 {
		t.Errorf("got %+v, want it murky and without question", w)
	}
	if w := escpos.Walk([]byte("\x10\x04\x01"), 0); w.Murky {
		t.Error("a plain question is not murky")
	}
}

// A picture larger than anybody may fill up is told.
func TestWalkTooMuch(t *testing.T) {
	if w := escpos.Walk([]byte("\x1d8L\xff\xff\xff\xff"), 1000); w.CanBePadded {
		t.Errorf("got %+v", w)
	}
}

// Whatever came before, filling up leads to where a cut is a cut.
func FuzzWalk(f *testing.F) {
	for _, c := range commands {
		f.Add([]byte(c))
	}
	f.Fuzz(func(t *testing.T, junk []byte) {
		w := escpos.Walk(junk, 1<<16)
		if !w.CanBePadded {
			return
		}
		if w.Between != (w.Padding == 0) {
			t.Errorf("between %v, and %d zeros to come", w.Between, w.Padding)
		}
		full := escpos.Walk(slices.Concat(junk, bytes.Repeat([]byte{0}, w.Padding), []byte("\x1dV\x00")), 1<<16)
		padded := escpos.Walk(slices.Concat(junk, bytes.Repeat([]byte{0}, w.Padding)), 1<<16)
		if full.Cuts != padded.Cuts+1 || !full.Between || !padded.Between {
			t.Errorf("after %q and %d zeros a cut is none: %+v", junk, w.Padding, full)
		}
	})
}
