package local_test

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/agent/internal/local"
	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/escpos"
	"github.com/tillward/tillward/simulator/emulator"
)

// counter is a till with a real driver, on the emulator of a printer.
func counter(t *testing.T) (*emulator.Printer, *shop) {
	t.Helper()
	p, err := emulator.NewPrinter("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	d, err := escpos.Driver{}.Open(t.Context(), hal.Config{ID: "front", Address: p.Addr(), Claim: hal.Own, Options: map[string]string{"timeout": "2s"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	h := open(t, func(o *local.Options) { o.Printer = func(context.Context) hal.Device { return d } })
	eventually(t, "on-line", func() bool {
		st, err := d.(hal.StatusReader).Status(t.Context())
		return err == nil && st.Health == hal.OK
	})
	return p, h
}

// ask sends a question in real time and reads the one byte of the answer.
func ask(t *testing.T, c net.Conn, n byte) byte {
	t.Helper()
	if _, err := c.Write([]byte{0x10, 0x04, n}); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 1)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return b[0]
}

const slip = "\x1b@Thank you\n\x1dV\x00"

// TestRealPrinter holds that software which speaks ESC/POS works through the
// socket without a change: it asks how the printer is, and prints; that another
// program prints for proof beside it; and that both are told of a paper end.
func TestRealPrinter(t *testing.T) {
	p, h := counter(t)
	till := h.dial(t, "print")
	if b := ask(t, till, 4); b != 0x12 {
		t.Errorf("paper sensor %#x, want 0x12", b)
	}
	if _, err := io.WriteString(till, slip); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the till's receipt is printed", func() bool { return strings.Contains(strings.Join(p.Jobs(), ""), "Thank you") })
	if a := h.handIn(t, "\x1b@For proof\n\x1dV\x00"); !a.Printed || !a.Confirmed || a.Cuts != 1 || a.Bytes != 15 {
		t.Errorf("beside a till that stays connected: %+v", a)
	}
	p.Set(emulator.PaperEnd, true)
	eventually(t, "the till sees the paper end", func() bool { return ask(t, till, 4)&0x60 == 0x60 })
	if a := h.handIn(t, slip); a.Printed || a.Code != "REC_EMPTY" || a.Error == "" {
		t.Errorf("without paper: %+v", a)
	}
	p.Set(emulator.PaperEnd, false)
	eventually(t, "the till sees the paper", func() bool { return ask(t, till, 4) == 0x12 })
	before := len(p.Jobs())
	if a := h.handIn(t, slip); !a.Printed || !a.Confirmed {
		t.Errorf("with paper again: %+v", a)
	}
	if n := len(p.Jobs()) - before; n != 1 {
		t.Errorf("%d receipts came out for one", n)
	}
	if u := p.Unknown(); len(u) > 0 {
		t.Errorf("unknown commands: %v", u)
	}
}

// TestManyTills holds that receipts of several programs come out whole.
func TestManyTills(t *testing.T) {
	p, h := counter(t)
	var wg sync.WaitGroup
	for i := range 4 {
		c := h.dial(t, "print")
		wg.Go(func() {
			defer c.Close()
			word := strings.Repeat(string(rune('a'+i)), 40)
			for range 3 {
				_, _ = io.WriteString(c, "\x1b@"+strings.Repeat(word+"\n", 20)+"\x1dV\x00")
			}
			_ = c.CloseWrite()
			_, _ = io.Copy(io.Discard, c)
		})
	}
	wg.Wait()
	eventually(t, "all are out", func() bool { return len(p.Jobs()) == 12 })
	for _, job := range p.Jobs() {
		if n := strings.Count(job, job[:1]); n != 800 {
			t.Errorf("mixed: %q", job)
		}
	}
}

// TestPrinterComesLate holds that a till which talks while the printer is off
// sees an end, and prints when it comes again.
func TestPrinterComesLate(t *testing.T) {
	p, h := counter(t)
	p.Set(emulator.Mute, true)
	p.Drop()
	c := h.dial(t, "print")
	_, _ = io.WriteString(c, slip)
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Errorf("the till is kept waiting: %v", err)
	}
	p.Set(emulator.Mute, false)
	before := len(p.Jobs())
	eventually(t, "printed", func() bool { return h.handIn(t, slip).Printed })
	if n := len(p.Jobs()) - before; n != 1 {
		t.Errorf("%d receipts came out for one: what nobody waits for is not to be printed", n)
	}
}
