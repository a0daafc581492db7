package pcsc_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/hal/pcsc"
)

// sent tries to transmit a command and returns what went out to pcscd, which
// answers what it is told to.
func sent(t *testing.T, apdu, answer []byte) (out []byte, sw uint16, err error) {
	t.Helper()
	here, there := net.Pipe()
	got := make(chan []byte)
	go func() {
		defer there.Close()
		b := make([]byte, 512)
		_ = there.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := there.Read(b)
		if err == nil {
			_ = there.SetWriteDeadline(time.Now().Add(5 * time.Second))
			_, _ = there.Write(answer)
		}
		got <- b[:n]
	}()
	sw, err = pcsc.Transmit(here, apdu)
	_ = here.Close()
	return <-got, sw, err
}

// answered is what pcscd says of a transmission: the head, then what the card said.
func answered(rv uint32, card []byte) []byte {
	b := make([]byte, 32)
	binary.NativeEndian.PutUint32(b[24:], uint32(len(card)))
	binary.NativeEndian.PutUint32(b[28:], rv)
	return append(b, card...)
}

// Must fail: nothing but the selection of a payment directory is ever sent.
// Whatever else somebody tries is refused before a byte goes out.
func TestOnlyTheDirectoryIsSelected(t *testing.T) {
	for name, apdu := range map[string][]byte{
		"READ RECORD":            {0x00, 0xb2, 0x01, 0x0c, 0x00},
		"GET PROCESSING OPTIONS": {0x80, 0xa8, 0x00, 0x00, 0x02, 0x83, 0x00, 0x00},
		"GENERATE AC":            {0x80, 0xae, 0x80, 0x00, 0x00},
		"GET DATA":               {0x80, 0xca, 0x9f, 0x17, 0x00},
		"INTERNAL AUTHENTICATE":  {0x00, 0x88, 0x00, 0x00, 0x04, 1, 2, 3, 4, 0x00},
		"VERIFY":                 {0x00, 0x20, 0x00, 0x80, 0x08, 0x24, 0x12, 0x34, 0xff, 0xff, 0xff, 0xff, 0xff},
		"READ BINARY":            {0x00, 0xb0, 0x00, 0x00, 0x00},
		"SELECT of an AID":       {0x00, 0xa4, 0x04, 0x00, 0x07, 0xa0, 0, 0, 0, 3, 0x10, 0x10},
		"SELECT next":            []byte("\x00\xa4\x04\x02\x0e2PAY.SYS.DDF01\x00"),
		"one byte more":          []byte("\x00\xa4\x04\x00\x0e2PAY.SYS.DDF01\x00\x00"),
		"one byte less":          []byte("\x00\xa4\x04\x00\x0e2PAY.SYS.DDF01"),
		"another channel":        []byte("\x01\xa4\x04\x00\x0e2PAY.SYS.DDF01\x00"),
		"nothing":                nil,
	} {
		out, _, err := sent(t, apdu, answered(0, []byte{0x90, 0x00}))
		if !errors.Is(err, pcsc.ErrNotAllowed) || len(out) > 0 {
			t.Errorf("%s: got %v and %x sent, want refused before a byte goes out", name, err, out)
		}
	}
	for _, apdu := range pcsc.Directories {
		out, sw, err := sent(t, apdu, answered(0, []byte("\x6f\x05\x5a\x03\x41\x11\x11\x90\x00")))
		if err != nil || sw != 0x9000 || !bytes.HasSuffix(out, apdu) {
			t.Errorf("%x: got %04x, %v, sent %x", apdu, sw, err, out)
		}
	}
}

// There is one place that speaks to a card, and it asks whether it may.
func TestOneWayToTheCard(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	uses := 0
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		uses += strings.Count(string(b), "cmdTransmit")
		for _, other := range []string{"0x0A", "0x0a", "cmdControl", "cmdGetAttrib", "cmdSetAttrib"} { // ways around it [winscard_msg.h]
			if strings.Contains(string(b), "= "+other+"\n") {
				t.Errorf("%s knows the command %s", f, other)
			}
		}
	}
	if uses != 2 {
		t.Errorf("cmdTransmit stands %d times in the source, want twice: where it is named, and in transmit", uses)
	}
}

// Whatever is tried, only the two go out; whatever is answered, only the status
// word comes back.
func FuzzAPDU(f *testing.F) {
	good := answered(0, []byte("\x6f\x23\x84\x0e2PAY.SYS.DDF01\x90\x00"))
	for _, apdu := range pcsc.Directories {
		f.Add(apdu, good)
	}
	f.Add([]byte{0x00, 0xb2, 0x01, 0x0c, 0x00}, good)
	f.Add(pcsc.Directories[0], good[:31])
	f.Add(pcsc.Directories[0], answered(0x80100069, nil))
	f.Add(pcsc.Directories[0], answered(0, []byte{0x90}))
	f.Add(pcsc.Directories[1], answered(0, bytes.Repeat([]byte("4"), 300)))
	f.Fuzz(func(t *testing.T, apdu, answer []byte) {
		out, sw, err := sent(t, apdu, answer)
		allowed := slices.ContainsFunc(pcsc.Directories, func(d []byte) bool { return bytes.Equal(d, apdu) })
		if !allowed && (!errors.Is(err, pcsc.ErrNotAllowed) || len(out) > 0) {
			t.Errorf("%x was sent: %x, %v", apdu, out, err)
		}
		if err == nil {
			n := int(binary.NativeEndian.Uint32(answer[24:]))
			if want := binary.BigEndian.Uint16(answer[32+n-2:]); sw != want {
				t.Errorf("got status word %04x, want %04x", sw, want)
			}
		}
		if err != nil && errors.Is(err, io.ErrShortBuffer) {
			t.Errorf("got %v", err)
		}
	})
}
