package escpos_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/tillward/tillward/hal/escpos"
)

func TestDecodeGolden(t *testing.T) {
	stream := slices.Concat(
		[]byte{0x12},                         // on-line
		[]byte{0x38, 0x08, 0x0f, 0x00},       // off-line, cover open, cutter, no paper
		[]byte{0x13, 0x11},                   // XOFF, XON
		[]byte("_EMU-T80\x00"),               // a block
		[]byte{0x10, 0x00},                   // half a frame ...
		[]byte{0x72},                         // ... and an answer: paper is out
		[]byte{0xff, 0x80, 0x91},             // noise, one run
		[]byte{0x12},                         // on-line
		[]byte("_12\x80\x1e"),                // a block that breaks off, then near end
		[]byte{0x10, 0x00, 0x00, 0x00, 0x16}, // a frame, then the drawer
	)
	rt, frames, blocks, errs := escpos.Decode(stream)
	if want := []byte{0x12, 0x72, 0x12, 0x1e, 0x16}; !bytes.Equal(rt, want) {
		t.Errorf("real-time answers: got %x, want %x", rt, want)
	}
	if want := [][4]byte{{0x38, 0x08, 0x0f, 0}, {0x10}}; !slices.Equal(frames, want) {
		t.Errorf("frames: got %x, want %x", frames, want)
	}
	if want := []string{"EMU-T80"}; !slices.Equal(blocks, want) {
		t.Errorf("blocks: got %q, want %q", blocks, want)
	}
	if errs != 3 {
		t.Errorf("got %d errors, want 3: the half frame, the noise, the broken block", errs)
	}
}

// Whatever came before, the decoder finds its way back.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{0x12, 0x10, 0, 0, 0, '_', 'a', 0})
	f.Add([]byte{0x10, 0x5f, 0x5f, 0x93})
	f.Add(bytes.Repeat([]byte("_"), 300))
	f.Fuzz(func(t *testing.T, junk []byte) {
		good := []byte{0x80, 0x12, 0x38, 0x08, 0x0f, 0x00}
		rt, frames, blocks, _ := escpos.Decode(append(slices.Clone(junk), good...))
		if len(rt) == 0 || rt[len(rt)-1] != 0x12 || len(frames) == 0 || frames[len(frames)-1] != [4]byte{0x38, 0x08, 0x0f, 0} {
			t.Errorf("lost after %x: %x %x", junk, rt, frames)
		}
		for _, b := range blocks {
			if len(b) > 80 || bytes.ContainsFunc([]byte(b), func(r rune) bool { return r < 0x20 || r > 0x7e }) {
				t.Errorf("a block that is too long or not text: %q", b)
			}
		}
	})
}

func FuzzCounter(f *testing.F) {
	f.Add("1200")
	f.Add("4111111111111111")
	f.Fuzz(func(t *testing.T, s string) {
		if v, ok := escpos.ParseCounter(s); ok && (v >= 1e12 || len(s) > 12) {
			t.Errorf("%q gave %d", s, v)
		}
	})
}

// Must fail: a number long enough to be a card's is no counter.
func TestCounterRefusesCardNumber(t *testing.T) {
	if v, ok := escpos.ParseCounter("4111111111111"); ok {
		t.Errorf("got %d, want refused", v)
	}
}
