package emulator_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/pcsc"
	"github.com/tillward/tillward/simulator/emulator"
)

func virtualPCSCD(t *testing.T, readers int) *emulator.VirtualPCSCD {
	t.Helper()
	p, err := emulator.StartVirtualPCSCD(t.TempDir(), readers)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	return p
}

const ppse = "\x00\xa4\x04\x00\x0e2PAY.SYS.DDF01\x00"

// rawPCSC is a client of pcscd that shows what comes back, byte for byte.
type rawPCSC struct {
	t *testing.T
	c net.Conn
}

func dialPCSC(t *testing.T, socket string) rawPCSC {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	r := rawPCSC{t, c}
	r.call(0x11, words(4, 4, 0), "", 12)
	return r
}

func words(v ...uint32) []byte {
	var b []byte
	for _, w := range v {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	return b
}

func (r rawPCSC) read(n int) []byte {
	r.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(r.c, b); err != nil {
		r.t.Fatal(err)
	}
	return b
}

func (r rawPCSC) call(cmd uint32, body []byte, more string, n int) []byte {
	r.t.Helper()
	if _, err := r.c.Write(append(append(words(uint32(len(body)), cmd), body...), more...)); err != nil {
		r.t.Fatal(err)
	}
	return r.read(n)
}

func (r rawPCSC) connect(context uint32, reader string, share, protocol uint32) (answer []byte, card uint32) {
	name := make([]byte, 128)
	copy(name, reader)
	body := append(append(words(context), name...), words(share, protocol, 0, 0, 0)...)
	b := r.call(0x04, body, "", len(body))
	return b[144:], binary.NativeEndian.Uint32(b[140:]) // the protocol and the result
}

// transmit returns what comes back behind the handle.
func (r rawPCSC) transmit(card, protocol uint32, apdu string) []byte {
	b := r.call(0x09, words(card, protocol, 16, uint32(len(apdu)), protocol, 16, 264, 0), apdu, 32)
	return append(b[24:], r.read(int(binary.NativeEndian.Uint32(b[24:])))...)
}

// story is what a client sees of a reader, from one end of the protocol to the
// other.
func story(t *testing.T, r emulator.Reader) []string {
	t.Helper()
	var seen []string
	note := func(what string, b []byte) { seen = append(seen, fmt.Sprintf("%s: %x", what, b)) }
	c, w := dialPCSC(t, r.Socket), dialPCSC(t, r.Socket)
	// until waits for a number of changes, and notes the reader's entry then.
	until := func(what string, changes byte) {
		t.Helper()
		for {
			table := w.call(0x13, nil, "", 16*184)
			if table[128] >= changes {
				for _, entry := range [][]byte{table[:184], table[184:368]} {
					if entry[176] == 0 {
						clear(entry[140:173]) // what is left there of the last answer to reset
					}
				}
				note(what+", table", table[:2*184])
				note(what+", stop waiting", w.call(0x14, nil, "", 8))
				return
			}
			if b := w.read(8); !bytes.Equal(b, make([]byte, 8)) {
				t.Errorf("%s: told of a change with %x", what, b)
			}
		}
	}
	until("empty", 0)
	context := binary.NativeEndian.Uint32(c.call(0x01, words(2, 0, 0), "", 12)[4:])
	b, _ := c.connect(context, r.Name, 2, 3)
	note("connect, no card", b[4:])
	b, _ = c.connect(context, "no such reader", 2, 3)
	note("connect, no reader", b[4:])
	r.Card.Insert()
	until("inserted", 1)
	b, card := c.connect(context, r.Name, 2, 3)
	note("connect", b)
	note("select", c.transmit(card, 1, ppse))
	note("select another", c.transmit(card, 1, "\x00\xa4\x04\x00\x02\xf0\x01"))
	note("by another protocol", c.transmit(card, 2, ppse))
	b, _ = c.connect(context, r.Name, 1, 3)
	note("alone, while held", b[4:])
	note("table while held", c.call(0x12, nil, "", 16*184)[:184])
	note("status", c.call(0x0b, words(card, 0), "", 8)[4:])
	note("begin", c.call(0x07, words(card, 0), "", 8)[4:])
	note("end", c.call(0x08, words(card, 0, 0), "", 12)[8:])
	note("disconnect", c.call(0x06, words(card, 0, 0), "", 12)[8:])
	b, card = c.connect(context, r.Name, 1, 1)
	note("alone", b)
	b, _ = w.connect(context, r.Name, 2, 3)
	note("not alone, while held alone", b[4:])
	r.Card.Remove()
	until("removed", 2)
	note("select, card gone", c.transmit(card, 1, ppse))
	note("disconnect, card gone", c.call(0x06, words(card, 0, 0), "", 12)[8:])
	r.Card.Mute(true)
	r.Card.Insert()
	until("mute", 3)
	b, _ = c.connect(context, r.Name, 2, 3)
	note("connect, mute", b[4:])
	r.Card.Remove()
	r.Card.Mute(false)
	until("out", 4)
	note("release", c.call(0x02, words(context, 0), "", 8)[4:])
	return seen
}

// The virtual daemon says what the real one says, from greeting to good-bye.
func TestVirtualPCSCDIsLikeTheRealOne(t *testing.T) {
	real, err := emulator.StartPCSCD(t.Context(), t.TempDir(), 2)
	if err != nil {
		t.Fatal(err) // with ErrNoPCSCD it says what to install
	}
	t.Cleanup(real.Stop)
	want := story(t, real.Reader(0))
	got := story(t, virtualPCSCD(t, 2).Reader(0))
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) {
			t.Fatalf("%d steps, the real one has %d", len(got), len(want))
		}
		if got[i] != want[i] {
			t.Errorf("step %d:\n got %s\nreal %s", i, got[i], want[i])
		}
	}
}

// Programs of others, with the library of others, use the virtual daemon.
func TestVirtualPCSCDServesOthers(t *testing.T) {
	p := virtualPCSCD(t, 2)
	r := p.Reader(0)
	r.Card.Insert()
	run := func(in string, command ...string) string {
		t.Helper()
		if _, err := exec.LookPath(command[0]); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skipf("%v: apt-get install pcsc-tools", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, command[0], command[1:]...)
		cmd.Stdin, cmd.Env = strings.NewReader(in), append(os.Environ(), "PCSCLITE_CSOCK_NAME="+r.Socket)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v: %s", command, err, out)
		}
		return string(out)
	}
	if out := run("", "pcsc_scan", "-r"); !strings.Contains(out, p.Reader(0).Name) || !strings.Contains(out, p.Reader(1).Name) {
		t.Errorf("pcsc_scan lists\n%s", out)
	}
	if out := run("", "pcsc_scan", "-c"); !strings.Contains(out, "Card inserted") || !strings.Contains(out, "3B 02 14 50") || !strings.Contains(out, "Card removed") {
		t.Errorf("pcsc_scan sees\n%s", out)
	}
	if out := run(fmt.Sprintf("% X\n", ppse), "scriptor", "-r", r.Name, "-p", "T=0"); !strings.Contains(strings.Join(strings.Fields(out), " "), "87 01 01 90 00") {
		t.Errorf("scriptor is told\n%s", out)
	}
	if n := len(r.Card.Commands()); n != 1 {
		t.Errorf("the card got %d commands, want the one", n)
	}
}

// seen waits for a state of a reader as our driver sees it.
func seen(t *testing.T, d hal.Device, what string, ok func(hal.Status) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := d.(hal.StatusReader).Status(ctx)
		if err == nil && ok(s) {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: last seen %+v, %v", what, s, err)
		case <-tick.C:
		}
	}
}

// What the real daemon cannot be made to do: a reader is pulled out, the daemon
// falls silent or talks nonsense.
func TestVirtualReaderFaults(t *testing.T) {
	p := virtualPCSCD(t, 17) // on two daemons
	r := p.Reader(16)
	if r.Socket == p.Reader(0).Socket {
		t.Error("seventeen readers on one daemon")
	}
	d, err := pcsc.Driver{}.Open(t.Context(), hal.Config{ID: "reader", Options: map[string]string{"socket": r.Socket, "reader": r.Name, "probe": "insert"}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	online := func(s hal.Status) bool { return s.Power == hal.PowerOnline }
	gone := func(s hal.Status) bool { return s.Power != hal.PowerOnline }
	seen(t, d, "start", online)
	r.Card.Insert()
	seen(t, d, "card", func(s hal.Status) bool { return s.Sensors["SCPresentSensor"] == hal.Yes })
	p.Unplug(16, true)
	seen(t, d, "reader gone", gone)
	if r.Card.Inserted() {
		t.Error("the card stayed where the reader was")
	}
	p.Unplug(16, false)
	seen(t, d, "reader back", online)
	p.Halt()
	seen(t, d, "daemon gone", gone)
	if err := p.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	seen(t, d, "daemon back", online)
	r.Card.Mute(true)
	r.Card.Insert()
	seen(t, d, "mute", func(s hal.Status) bool { return s.Sensors["M_CardMute"] == hal.Yes })
	r.Card.Remove()
	r.Card.Mute(false)
	seen(t, d, "out", func(s hal.Status) bool { return s.Sensors["SCPresentSensor"] == hal.No })
	c := dialPCSC(t, r.Socket)
	p.Set(emulator.Mute, true)
	if _, err := c.c.Write(words(0, 0x12)); err != nil {
		t.Fatal(err)
	}
	_ = c.c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := c.c.Read(make([]byte, 1)); err == nil {
		t.Errorf("a silent daemon said %d bytes", n)
	}
	p.Set(emulator.Mute, false)
	p.Set(emulator.Garbage, true)
	_ = c.c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if b := c.call(0x12, nil, "", 16*184); bytes.IndexFunc(b, func(r rune) bool { return r == 0 }) >= 0 {
		t.Error("a daemon that talks nonsense said something else")
	}
	p.Set(emulator.Garbage, false)
	for _, bad := range [][]byte{words(0, 0x99), words(4, 0x12, 0), words(32, 0x09, 0, 1, 16, 1<<30, 1, 16, 264, 0), words(8, 0x0b, 77, 0)} {
		c := dialPCSC(t, r.Socket)
		if _, err := c.c.Write(bad); err != nil {
			t.Fatal(err)
		}
		if n, err := c.c.Read(make([]byte, 1)); err == nil {
			t.Errorf("%x was answered with %d bytes, want the connection closed", bad, n)
		}
	}
}

// A torn card is one that goes while it is spoken to.
func TestVirtualCardIsTorn(t *testing.T) {
	r := virtualPCSCD(t, 1).Reader(0)
	r.Card.Slow(time.Millisecond)
	r.Card.Insert()
	c := dialPCSC(t, r.Socket)
	context := binary.NativeEndian.Uint32(c.call(0x01, words(2, 0, 0), "", 12)[4:])
	_, card := c.connect(context, r.Name, 2, 3)
	r.Card.TearNext()
	if b := c.transmit(card, 1, ppse); binary.NativeEndian.Uint32(b[4:]) != 0x80100016 || r.Card.Inserted() {
		t.Errorf("got %x, card in: %v; want SCARD_E_NOT_TRANSACTED and no card", b, r.Card.Inserted())
	}
}

// Whatever a client sends, the daemon serves the next one.
func FuzzVirtualPCSCD(f *testing.F) {
	f.Add(append(words(12, 0x11), words(4, 4, 0)...))
	f.Add(append(words(12, 0x01), words(2, 0, 0)...))
	f.Add(words(0, 0x13))
	f.Add(append(words(32, 0x09), make([]byte, 32)...))
	f.Add(append(words(152, 0x04), make([]byte, 152)...))
	f.Fuzz(func(t *testing.T, junk []byte) {
		r := virtualPCSCD(t, 1).Reader(0)
		c, err := net.Dial("unix", r.Socket)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(junk)
		_ = c.(*net.UnixConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c)
		_ = c.Close()
		dialPCSC(t, r.Socket).call(0x12, nil, "", 16*184)
	})
}

// A folder with a long name gets a short one for its socket, and it goes again.
func TestVirtualPCSCDInALongFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	p, err := emulator.StartVirtualPCSCD(dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	socket := p.Reader(0).Socket
	dialPCSC(t, socket)
	p.Stop()
	if _, err := os.Stat(filepath.Dir(socket)); err == nil {
		t.Errorf("%s is left behind", filepath.Dir(socket))
	}
}
