package emulator_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tillward/tillward/simulator/emulator"
)

// bare is a printer without a network.
func bare(t *testing.T) *emulator.Printer {
	t.Helper()
	p, err := emulator.NewPrinter("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// pipe connects to a printer within the process.
func pipe(t *testing.T, p *emulator.Printer) net.Conn {
	t.Helper()
	near, far := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- p.Serve(far) }()
	t.Cleanup(func() {
		_ = near.Close()
		if err := <-served; err != nil {
			t.Logf("the line ended with %v", err)
		}
	})
	_ = near.SetDeadline(time.Now().Add(10 * time.Second))
	return near
}

// What DLE EOT 1 to 4 and the frame of GS a say of each fault.
func TestPrinterTellsEachFault(t *testing.T) {
	p := bare(t)
	c := pipe(t, p)
	ask(t, c, "\x1da\xff", "\x10\x00\x00\x00")
	for _, tt := range []struct {
		fault emulator.Fault
		eot   string
		frame string
	}{
		{emulator.DrawerOpen, "\x16\x12\x12\x12", "\x14\x00\x00\x00"},
		{emulator.CoverOpen, "\x1a\x16\x12\x12", "\x38\x00\x00\x00"},
		{emulator.Offline, "\x1a\x12\x12\x12", "\x18\x00\x00\x00"},
		{emulator.Waiting, "\x3a\x12\x12\x12", "\x18\x01\x00\x00"},
		{emulator.FeedButton, "\x5a\x1a\x12\x12", "\x58\x02\x00\x00"},
		{emulator.PaperEnd, "\x1a\x32\x12\x72", "\x18\x00\x0c\x00"},
		{emulator.NearEnd, "\x12\x12\x12\x1e", "\x10\x00\x03\x00"},
		{emulator.Mechanical, "\x1a\x52\x16\x12", "\x18\x04\x00\x00"},
		{emulator.CutterJam, "\x1a\x52\x1a\x12", "\x18\x08\x00\x00"},
		{emulator.Unrecoverable, "\x1a\x52\x32\x12", "\x18\x20\x00\x00"},
		{emulator.HeadHot, "\x1a\x52\x52\x12", "\x18\x40\x00\x00"},
	} {
		p.Set(tt.fault, true)
		ask(t, c, "", tt.frame)
		ask(t, c, "\x10\x04\x01\x10\x04\x02\x10\x04\x03\x10\x04\x04", tt.eot)
		p.Set(tt.fault, false)
		ask(t, c, "", "\x10\x00\x00\x00")
	}
	if u := p.Unknown(); len(u) > 0 {
		t.Errorf("unknown commands: %v", u)
	}
}

// GS a tells what it was asked to tell, and no more.
func TestStatusBackIsMasked(t *testing.T) {
	for mask, told := range map[string]emulator.Fault{"\x01": emulator.DrawerOpen, "\x02": emulator.Offline, "\x04": emulator.Mechanical, "\x08": emulator.NearEnd, "\x40": emulator.FeedButton} {
		p := bare(t)
		c := pipe(t, p)
		ask(t, c, "\x1da"+mask, "\x10\x00\x00\x00")
		for _, other := range []emulator.Fault{emulator.DrawerOpen, emulator.NearEnd} {
			if other != told {
				p.Set(other, true)
				p.Set(other, false)
			}
		}
		p.Set(told, true)
		b := make([]byte, 4)
		if _, err := io.ReadFull(c, b); err != nil || string(b) == "\x10\x00\x00\x00" {
			t.Errorf("GS a %x: got %x, %v; want a frame with %q alone", mask, b, err, told)
		}
		if b[0]&0x04 != 0 && told != emulator.DrawerOpen || b[2]&0x03 != 0 && told != emulator.NearEnd {
			t.Errorf("GS a %x told of something else: %x", mask, b)
		}
	}
}

func TestPrinterTellsOfItself(t *testing.T) {
	p := bare(t)
	c := pipe(t, p)
	ask(t, c, "\x1dI\x01\x1dI\x02\x1dI\x03", "\x20\x02\x04")
	ask(t, c, "\x1dI\x41\x1dI\x42\x1dI\x43\x1dI\x44\x1dI\x45", "_1.04 ESC/POS\x00_TILLWARD\x00_EMU-T80\x00_EMU0000001\x00_\x00")
	ask(t, c, "\x1dr\x02\x1dr\x04", "\x00\x00")
	p.Set(emulator.DrawerOpen, true)
	ask(t, c, "\x1dr\x02", "\x01")
	if u := p.Unknown(); len(u) > 0 {
		t.Errorf("unknown commands: %v", u)
	}
	ask(t, c, "\x1dI\x0b\x1dr\x09\x1dg2\x00\x07\x00\x1dr\x01", "\x00")
	if got := strings.Join(p.Unknown(), " "); got != "1d490b 1d7209 1d6732000700" {
		t.Errorf("unknown commands: got %s", got)
	}
	p.Set(emulator.NoIdentity, true)
	p.Set(emulator.NoCounters, true)
	ask(t, c, "\x1dI\x43\x1dg2\x00\x94\x00\x1dr\x01", "\x00")
}

func TestCountersOutliveThePrinter(t *testing.T) {
	file := filepath.Join(t.TempDir(), "counters")
	p := bare(t)
	if err := p.KeepCounters(file); err != nil {
		t.Fatal(err)
	}
	p.Receipt(30)
	c := pipe(t, p)
	ask(t, c, "\x1dg2\x00\x14\x00\x1dg0\x00\x14\x00\x1dg0\x00\x94\x00\x1dg2\x00\x14\x00", "_30\x00_0\x00")
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	q := bare(t)
	if err := q.KeepCounters(file); err != nil {
		t.Fatal(err)
	}
	if q.Counter(20) != 0 || q.Counter(148) != 30 || q.Counter(178) != 1 {
		t.Errorf("got %d, %d lines and %d cuts; want 0, 30 and 1", q.Counter(20), q.Counter(148), q.Counter(178))
	}
	if err := os.WriteFile(file, []byte("no counters"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := q.KeepCounters(file); err == nil {
		t.Error("a file that holds something else: got no error")
	}
}

func TestRecovery(t *testing.T) {
	p := bare(t)
	c := pipe(t, p)
	p.Set(emulator.CutterJam, true)
	ask(t, c, "first\n\x10\x04\x01", "\x1a")
	ask(t, c, "\x10\x05\x01\x1dr\x01", "\x00")
	p.Set(emulator.Mechanical, true)
	ask(t, c, "lost\n\x10\x04\x01\x10\x05\x02\x10\x04\x01", "\x1a\x12")
	ask(t, c, "second\n\x1dV\x00\x1dr\x01", "\x00")
	if got := strings.Join(p.Jobs(), "|"); got != "first\nsecond\n" {
		t.Errorf("printed %q; want the first and the second, for DLE ENQ 2 clears", got)
	}
	p.Set(emulator.Unrecoverable, true)
	ask(t, c, "\x10\x05\x01\x10\x04\x03", "\x32")
	ask(t, c, "x\x10\x14\x08\x01\x03\x14\x01\x06\x02\x08", "\x37\x25\x00")
	p.Set(emulator.Unrecoverable, false)
	ask(t, c, "\x10\x14\x01\x00\x01\x10\x04\x01", "\x16") // the drawer's pulse in real time
}

// Picture data may look like a question. It is answered, and is data as well.
func TestQuestionWithinAPicture(t *testing.T) {
	p := bare(t)
	c := pipe(t, p)
	ask(t, c, "\x1dv0\x00\x03\x00\x02\x00\x10\x04\x01\x10\x04\x04after\n\x1dV\x00", "\x12\x12")
	ask(t, c, "\x1dr\x01", "\x00")
	if got := strings.Join(p.Jobs(), "|"); got != "after\n" || len(p.Unknown()) > 0 {
		t.Errorf("printed %q, unknown %v", got, p.Unknown())
	}
}

// What came is printed, even when who sent it has gone.
func TestJobOutlivesItsConnection(t *testing.T) {
	p := printer(t)
	c := dial(t, p)
	p.Set(emulator.CoverOpen, true)
	if _, err := c.Write([]byte("late\n\x1dV\x00\x1dv0\x00\xff\xff")); err != nil { // the last is cut short
		t.Fatal(err)
	}
	_ = c.Close()
	c = dial(t, p)
	ask(t, c, "\x10\x04\x02", "\x16")
	p.Set(emulator.CoverOpen, false)
	ask(t, c, "\x1dr\x01", "\x00")
	if got := strings.Join(p.Jobs(), "|"); got != "late\n" {
		t.Errorf("printed %q, want the job", got)
	}
	p.Set(emulator.CoverOpen, true)
	if _, err := c.Write([]byte("lost\n\x1dV\x00\x10\x04\x01")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	p.Set(emulator.Unplugged, true)
	p.Set(emulator.Unplugged, false)
	p.Set(emulator.CoverOpen, false)
	ask(t, dial(t, p), "\x1dr\x01", "\x00")
	if n := len(p.Jobs()); n != 1 {
		t.Errorf("%d jobs came out; want 1, for power was lost", n)
	}
}

func TestSerialLine(t *testing.T) {
	p := bare(t)
	path, err := p.OpenPTY()
	if err != nil {
		t.Fatal(err)
	}
	open := func() *os.File {
		f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY|syscall.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		return f
	}
	say := func(f *os.File, send, want string) {
		t.Helper()
		if _, err := f.Write([]byte(send)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(f, got); err != nil || string(got) != want {
			t.Errorf("%x: got %x, %v; want %x", send, got, err, want)
		}
	}
	f := open()
	say(f, "hello\r\n\x1dV\x00\x1dr\x01", "\x00")
	say(f, "\x1da\x0f", "\x10\x00\x00\x00")
	p.Set(emulator.CoverOpen, true)
	say(f, "", "\x38\x00\x00\x00")
	p.Set(emulator.CoverOpen, false)
	say(f, "", "\x10\x00\x00\x00")
	_ = f.Close()
	f = open() // the cable stays, and the printer on it
	say(f, "\x10\x04\x01", "\x12")
	p.Set(emulator.SpeaksXonXoff, true)
	p.Set(emulator.PaperEnd, true)
	say(f, "", "\x13\x18\x00\x0c\x00")
	p.LoadRoll(0)
	say(f, "", "\x11\x10\x00\x00\x00")
	p.Set(emulator.Unplugged, true) // it says nothing, but there is no connection to lose
	if _, err := f.Write([]byte("\x10\x04\x01")); err != nil {
		t.Fatal(err)
	}
	_ = f.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := f.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("unplugged: got %d bytes, %v", n, err)
	}
	p.Set(emulator.Unplugged, false)
	_ = f.SetReadDeadline(time.Now().Add(10 * time.Second))
	say(f, "\x10\x04\x01", "\x12")
	_ = f.Close()
	if got := strings.Join(p.Jobs(), "|"); got != "hello\n" {
		t.Errorf("printed %q", got)
	}
}

// A connection has the printer for as long as it is there, then the cable has it
// again.
func TestConnectionBeforeCable(t *testing.T) {
	p := printer(t)
	path, err := p.OpenPTY()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.OpenPTY(); err == nil {
		t.Error("a second serial line: got no error")
	}
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_ = f.SetDeadline(time.Now().Add(10 * time.Second))
	c := dial(t, p)
	ask(t, c, "\x10\x04\x01", "\x12")
	if _, err := f.Write([]byte("by the cable\n\x1dV\x00\x10\x04\x01")); err != nil {
		t.Fatal(err)
	}
	ask(t, c, "by the network\n\x1dV\x00\x1dr\x01", "\x00")
	_ = c.Close()
	b := make([]byte, 1)
	if _, err := io.ReadFull(f, b); err != nil || b[0] != 0x12 {
		t.Errorf("got %x, %v", b, err)
	}
	ask(t, dial(t, p), "\x1dr\x01", "\x00")
	if got := strings.Join(p.Jobs(), "|"); got != "by the network\n|by the cable\n" {
		t.Errorf("printed %q", got)
	}
}

// Without power it refuses connections, and nobody else gets its address.
func TestUnpluggedRefuses(t *testing.T) {
	p := printer(t)
	c := dial(t, p)
	ask(t, c, "\x10\x04\x01", "\x12")
	p.Set(emulator.Unplugged, true)
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection outlived the power")
	}
	for range 100 {
		if c, err := net.Dial("tcp", p.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("got %v, %v; want refused", c, err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if l.Addr().String() == p.Addr() {
			t.Error("somebody else got the address")
		}
		_ = l.Close()
	}
	p.Set(emulator.Unplugged, false)
	ask(t, dial(t, p), "\x10\x04\x01", "\x12")
	if q, err := emulator.NewPrinter(p.Addr()); err == nil {
		_ = q.Close()
		t.Error("two printers on one address")
	}
	for _, bad := range []string{"nowhere", "192.0.2.1:0"} {
		if q, err := emulator.NewPrinter(bad); err == nil {
			_ = q.Close()
			t.Errorf("a printer at %s", bad)
		}
	}
}

func TestFaultsOfTheInterface(t *testing.T) {
	p := printer(t)
	p.Set(emulator.Slow, true)
	c := dial(t, p)
	began := time.Now()
	ask(t, c, "\x10\x04\x01", "\x12")
	if d := time.Since(began); d < 200*time.Millisecond {
		t.Errorf("a slow printer answered after %v", d)
	}
	p.Set(emulator.Slow, false)
	p.Set(emulator.RefusesSecond, true)
	if n, err := dial(t, p).Read(make([]byte, 1)); err == nil {
		t.Errorf("a second connection read %d bytes, want it closed", n)
	}
	p.Set(emulator.HangsUp, true)
	if _, err := c.Write([]byte("\x10\x04\x01")); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d bytes, want it closed", n)
	}
	p.Set(emulator.HangsUp, false)
	p.Set(emulator.ClosesAfterAJob, true)
	c = dial(t, p)
	ask(t, c, "\x10\x04\x01", "\x12")
	if _, err := c.Write([]byte("x\n\x1dV\x00")); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d bytes, want it closed", n)
	}
	p.Set(emulator.ClosesAfterAJob, false)
	p.Set(emulator.KeepsStatusBack, true)
	c = dial(t, p)
	ask(t, c, "\x1da\x0f\x1b@\x1dr\x01", "\x10\x00\x00\x00\x00")
	p.Set(emulator.NearEnd, true)
	ask(t, c, "", "\x10\x00\x03\x00")
}

// A printer with a pace takes its time, and stops when it is closed.
func TestPace(t *testing.T) {
	p := bare(t)
	c := pipe(t, p)
	p.SetPace(20 * time.Millisecond)
	began := time.Now()
	ask(t, c, "\n\n\n\n\n\x1dr\x01", "\x00")
	if d := time.Since(began); d < 100*time.Millisecond {
		t.Errorf("five lines took %v, want 20 ms each", d)
	}
	p.SetPace(time.Hour)
	if _, err := c.Write([]byte("\n\n")); err != nil {
		t.Fatal(err)
	}
}
