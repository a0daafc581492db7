package star_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/star"
)

// Frames made by hand after the manuals [Star Line Mode Command
// Specifications, 5-2; CloudPRNT example of an 11 byte frame].
func TestDecodeGolden(t *testing.T) {
	healthy := []byte{0x23, 0x06, 0, 0, 0, 0, 0, 0, 0}
	old := []byte{0x0f, 0x02, 0x28, 0, 0, 0x08, 0}
	stream := slices.Concat(
		healthy,
		[]byte{0x13, 0x11}, // XOFF, XON
		old,
		[]byte{0x23, 0x86, 0, 0, 0, 0, 0, 0x62, 0, 0x00, 0x00},                           // over a network
		[]byte{0x23, 0x86, 0, 0, 0, 0, 0, 0, 0, 0x00, 0x08}, []byte("02:B\x00\x01\x14;"), // the answer to EOT behind it
		[]byte{0x23, 0x06, 0, 0},                // half a frame ...
		healthy,                                 // ... and a whole one
		[]byte{0xff, 0x80, 0x91},                // noise, one run
		[]byte("\x1b#*,HSP7000 Ver. 1.0\n\x00"), // version by cable
		[]byte{0x23, 0x86, 0, 0, 0, 0, 0, 0, 0, 0x00, 0x19}, []byte("10:B\x00\x12\x1b#*,TSP143Ver2.1\n\x00;")[:25], // and by network
		[]byte{0x23, 0x86, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}, // too much behind it
		healthy,
	)
	units, errs := star.Decode(stream)
	var frames [][]byte
	var versions []string
	flow := 0
	for _, u := range units {
		switch {
		case u.Flow:
			flow++
		case u.Frame != nil:
			frames = append(frames, u.Frame)
		default:
			versions = append(versions, u.Version)
		}
	}
	want := [][]byte{healthy, old, {0x23, 0x06, 0, 0, 0, 0, 0, 0x62, 0}, healthy, healthy, healthy, healthy}
	if !slices.EqualFunc(frames, want, bytes.Equal) {
		t.Errorf("frames: got %x, want %x", frames, want)
	}
	if w := []string{"HSP7000 Ver. 1.0", "TSP143Ver2.1"}; !slices.Equal(versions, w) {
		t.Errorf("versions: got %q, want %q", versions, w)
	}
	if flow != 2 || errs != 3 {
		t.Errorf("got %d XON and XOFF and %d errors; want 2, and 3: the half frame, the noise, the impossible length", flow, errs)
	}
}

func TestLook(t *testing.T) {
	frame := func(at int, bit byte) []byte {
		f := []byte{0x23, 0x06, 0, 0, 0, 0, 0, 0, 0}
		f[at] = bit
		return f
	}
	for _, test := range []struct {
		frame  []byte
		sensor string
	}{
		{frame(2, 0x20), "CoverOpen"},
		{frame(3, 0x04), "M_MechanicalError"},
		{frame(3, 0x08), "M_CutterError"},
		{frame(3, 0x20), "M_UnrecoverableError"},
		{frame(3, 0x40), "M_HeadTooHot"},
		{frame(4, 0x02), "M_MechanicalError"}, // head up
		{frame(4, 0x04), "M_MechanicalError"}, // presenter
		{frame(4, 0x08), "M_MechanicalError"}, // black mark
		{frame(5, 0x02), "RecNearEnd"},        // outer side
		{frame(5, 0x04), "RecNearEnd"},        // inner side
		{frame(5, 0x08), "RecEmpty"},
		{frame(4, 0x20), ""}, // page mode command
		{frame(6, 0x02), ""}, // stacker
		{frame(2, 0x04), ""}, // the drawer's pin, which needs the cable to be known
	} {
		power, sensors, _ := star.Look(test.frame)
		for name, is := range sensors {
			if want := hal.TriOf(name == test.sensor); is != want {
				t.Errorf("%x: %s is %v, want %v", test.frame, name, is, want)
			}
		}
		if power != hal.PowerOnline {
			t.Errorf("%x: got %s, want on-line", test.frame, power)
		}
	}
	if power, _, _ := star.Look(frame(2, 0x08)); power != hal.PowerOffline {
		t.Errorf("got %s, want off-line", power)
	}
	for counter, b := range map[int]byte{0: 0, 1: 0x02, 7: 0x0e, 8: 0x20, 21: 0x4a, 31: 0x6e} {
		if _, _, etb := star.Look(frame(7, b)); etb != counter {
			t.Errorf("status 6 %#x: got counter %d, want %d", b, etb, counter)
		}
	}
	if _, _, etb := star.Look([]byte{0x0f, 0x02, 0, 0, 0, 0, 0}); etb != -1 {
		t.Errorf("a model without counter: got %d", etb)
	}
}

// Whatever came before, the decoder finds its way back: what a network card
// may still owe is at most 512 bytes.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{0x23, 0x06, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{0x23, 0x86, 0, 0, 0, 0, 0, 0, 0, 1, 0xff})
	f.Add([]byte("\x1b#*,4111111111111111\n\x00"))
	f.Add([]byte{0x0f, 0x80, 0x6f, 0x1b, 0x13})
	f.Fuzz(func(t *testing.T, junk []byte) {
		good := []byte{0x23, 0x06, 0x28, 0, 0, 0x08, 0, 0x02, 0}
		units, _ := star.Decode(slices.Concat(junk, bytes.Repeat([]byte{0x80}, 0x200+31), good))
		if len(units) == 0 || !bytes.Equal(units[len(units)-1].Frame, good) {
			t.Errorf("lost after %x", junk)
		}
		for _, u := range units {
			if len(u.Version) > 80 || u.Frame != nil && (len(u.Frame) < 7 || len(u.Frame) > 31) {
				t.Errorf("a frame of %d bytes, a version of %d", len(u.Frame), len(u.Version))
			}
			if u.Frame != nil {
				star.Look(u.Frame)
			}
		}
	})
}

func TestPass(t *testing.T) {
	image := append([]byte("\x1b\x1dS\x01\x02\x00\x03\x00\x00"), 0x1b, 0x06, 0x01, 0x1b, 'd', 0x07) // 2 by 3 bytes that look like commands
	job := slices.Concat(
		[]byte("\x1b@\x1b\x1ea\x00\x1b i"), // ESC SP n takes the i
		[]byte("Hello\n"), image, []byte("\n"),
		[]byte("\x1b\x1dyD1\x00\x03\x00\x07\x07\x07\x1b\x1dyP"), // QR code
		[]byte("\x1bb413\x501234\x1e"),                          // barcode
		[]byte("\x1b*rA\x1b*rD1\x00b\x02\x00\x07\x07\x1b*rB"),   // raster mode, which opens the drawer too
		[]byte("\x1bk\x01\x00"), bytes.Repeat([]byte{0x0a}, 24),
		[]byte("\x1ba\x04\x07\x1bd3\x1b\x1d\x03\x01\x00\x00\x04"),
	)
	want := bytes.ReplaceAll(job, []byte("\x1b\x1ea\x00"), nil)
	want = want[:len(want)-1] // EOT
	for _, n := range []int{1, 2, 7, len(job)} {
		out, lines, cuts, kicks, dots, asked := star.Pass(job, n)
		if !bytes.Equal(out, want) {
			t.Errorf("in pieces of %d: got %q, want %q", n, out, want)
		}
		if lines != 6 || cuts != 1 || kicks != 2 || dots != 3+1+24 {
			t.Errorf("in pieces of %d: %d lines, %d cuts, %d kicks, %d dots; want 6, 1, 2, 28", n, lines, cuts, kicks, dots)
		}
		if w := [][]byte{{0x1b, 0x1e, 'a', 0}, {0x04}}; !slices.EqualFunc(asked, w, bytes.Equal) {
			t.Errorf("in pieces of %d: asked %x, want %x", n, asked, w)
		}
	}
}

// However a job is cut into pieces, the printer gets the same of it, and never
// a question.
func FuzzPass(f *testing.F) {
	f.Add([]byte("\x1b\x06\x01\x1b\x1dS\x01\xff\xff\xff\xff\x00x"), 3)
	f.Add([]byte("\x1b*rA\x1b#\x1bD\x1bC\x00\x07\n\x00"), 1)
	f.Fuzz(func(t *testing.T, job []byte, n int) {
		whole, lines, cuts, kicks, dots, _ := star.Pass(job, len(job)+1)
		parts, l, c, k, d, _ := star.Pass(job, 1+(n&0xff))
		if !bytes.Equal(whole, parts) || lines != l || cuts != c || kicks != k || dots != d {
			t.Errorf("%x: in pieces it is %x, whole %x", job, parts, whole)
		}
	})
}
