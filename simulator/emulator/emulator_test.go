package emulator_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/escpos"
	"github.com/tillward/tillward/hal/pcsc"
	"github.com/tillward/tillward/simulator/emulator"
)

func printer(t *testing.T) *emulator.Printer {
	t.Helper()
	p, err := emulator.NewPrinter("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func dial(t *testing.T, p *emulator.Printer) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

// ask sends and compares the answer byte for byte with what a printer says.
func ask(t *testing.T, c net.Conn, send, want string) {
	t.Helper()
	if _, err := c.Write([]byte(send)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	for n := 0; n < len(got); {
		m, err := c.Read(got[n:])
		if err != nil {
			t.Fatalf("%x: got %x and %v, want %x", send, got[:n], err, want)
		}
		n += m
	}
	if string(got) != want {
		t.Errorf("%x: got %x, want %x", send, got, want)
	}
}

func TestPrinterAnswers(t *testing.T) {
	p := printer(t)
	c := dial(t, p)
	ask(t, c, "\x10\x04\x01", "\x12")
	ask(t, c, "\x1dI\x43", "_EMU-T80\x00")
	ask(t, c, "\x1dg2\x00\x94\x00", "_0\x00")
	ask(t, c, "\x1dr\x01", "\x00")
	ask(t, c, "\x1da\x0f", "\x10\x00\x00\x00")
	p.Set(emulator.NearEnd, true)
	ask(t, c, "", "\x10\x00\x03\x00")
	p.Set(emulator.PaperEnd, true)
	ask(t, c, "", "\x18\x00\x0f\x00")
	ask(t, c, "\x10\x04\x04", "\x7e")
	p.Set(emulator.CoverOpen, true)
	ask(t, c, "", "\x38\x00\x0f\x00")
	// Off-line: what is buffered waits, what is real-time does not.
	ask(t, c, "\x1dI\x43\x10\x04\x02", "\x36")
	p.Set(emulator.CoverOpen, false)
	ask(t, c, "", "\x18\x00\x0f\x00")
	p.LoadRoll(0)
	ask(t, c, "", "\x10\x00\x00\x00_EMU-T80\x00")
	if u := p.Unknown(); len(u) > 0 {
		t.Errorf("unknown commands: %v", u)
	}
}

func TestPrinterPrints(t *testing.T) {
	p := printer(t)
	c := dial(t, p)
	job := "\x1b@\x1ba\x01Hello\n\x1b!\x30World\n\x1dk\x49\x05{B123\x1d(k\x03\x001Q0\x1dv0\x00\x01\x00\x02\x00\x55\xaa\x1b*\x00\x02\x00ab\x1bd\x03\x1dV\x41\x03"
	ask(t, c, job+"\x1dr\x01", "\x00")
	if got := p.Jobs(); !slices.Equal(got, []string{"Hello\nWorld\n\n\n\n"}) {
		t.Errorf("jobs: got %q", got)
	}
	// Two lines of text, one of them double, a barcode, a picture of two dots, a picture, three lines and the way to the cutter: 431 dots.
	if p.Counter(148) != 14 || p.Counter(178) != 1 {
		t.Errorf("counters: %d lines, %d cuts; want 14 and 1", p.Counter(148), p.Counter(178))
	}
	ask(t, c, "\x1bz\x1dr\x01", "\x00")
	if u := p.Unknown(); !slices.Equal(u, []string{"1b7a"}) {
		t.Errorf("unknown commands: got %v, want the one", u)
	}
}

// The first connection has the printer; the second waits for it.
func TestPrinterServesOneConnection(t *testing.T) {
	p := printer(t)
	first, second := dial(t, p), dial(t, p)
	ask(t, first, "\x10\x04\x01", "\x12")
	if _, err := second.Write([]byte("\x10\x04\x01")); err != nil {
		t.Fatal(err)
	}
	_ = second.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := second.Read(make([]byte, 1)); err == nil {
		t.Errorf("the second connection got %d bytes while the first is open", n)
	}
	_ = first.Close()
	_ = second.SetReadDeadline(time.Now().Add(10 * time.Second))
	ask(t, second, "", "\x12")
}

func TestResetSwitchesStatusBackOff(t *testing.T) {
	p := printer(t)
	c := dial(t, p)
	ask(t, c, "\x1da\x0f", "\x10\x00\x00\x00")
	ask(t, c, "\x1b@\x1dr\x01", "\x00")
	p.Set(emulator.NearEnd, true)
	ask(t, c, "\x10\x04\x04", "\x1e") // and no frame before it
}

// Whatever is sent, the printer goes on answering.
func FuzzPrinter(f *testing.F) {
	f.Add([]byte("\x1b@hello\n\x1dV\x00"))
	f.Add([]byte("\x1dv0\x00\xff\xff\xff\xff"))
	f.Add([]byte("\x10\x14\x01"))
	f.Add([]byte("\x1bD\x01\x02"))
	f.Add([]byte("\x1dkI\x05{BabcI\x1d(k\x03\x001Q0\x1b&\x03 \x7f\x0c\x1cq\x01\x01\x00\x01\x00"))
	f.Add([]byte("\x1d(L\x0c\x000p0\x01\x011\x08\x00\x02\x00\xff\x81\x1d(L\x02\x0002\x1bL\x1bW\x00\x00\x00\x00\x10\x00\x10\x00x\x0c"))
	f.Fuzz(func(t *testing.T, junk []byte) {
		p := printer(t)
		c := dial(t, p)
		if _, err := c.Write(append(junk, 0, 0, 0, 0, 0, 0x10, 0x04, 0x03)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4096)
		for {
			n, err := c.Read(b)
			if err != nil {
				t.Fatalf("no answer after %x: %v", junk, err)
			}
			if slices.ContainsFunc(b[:n], func(c byte) bool { return c&0x93 == 0x12 }) { // status frames may follow
				return
			}
		}
	})
}

// A day as the drivers see it: they tell of everything, and as often as it was.
func TestDayOnDrivers(t *testing.T) {
	p := printer(t)
	r := virtualPCSCD(t, 1).Reader(0)
	paper, err := escpos.Driver{}.Open(t.Context(), hal.Config{ID: "receipt", Address: p.Addr(), Options: map[string]string{"drawer_open_level": "high"}})
	if err != nil {
		t.Fatal(err)
	}
	card, err := pcsc.Driver{}.Open(t.Context(), hal.Config{ID: "reader", Options: map[string]string{"socket": r.Socket, "reader": r.Name, "probe": "insert"}})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var heard []string
	var ears sync.WaitGroup
	for _, d := range []hal.Device{paper, card} {
		ears.Go(func() {
			for e, err := range d.(hal.Notifier).Events(t.Context()) {
				if err == nil {
					mu.Lock()
					heard = append(heard, e.Code)
					mu.Unlock()
				}
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	// same reports whether the drivers see what is.
	same := func() bool {
		s, err := paper.(hal.StatusReader).Status(ctx)
		if err != nil {
			return false
		}
		if p.Has(emulator.Unplugged) {
			return s.Power == hal.PowerOffOffline
		}
		for sensor, fault := range map[string]emulator.Fault{
			"CoverOpen": emulator.CoverOpen, "RecNearEnd": emulator.NearEnd, "RecEmpty": emulator.PaperEnd, "M_CutterError": emulator.CutterJam, "DrawerOpened": emulator.DrawerOpen,
		} {
			if s.Sensors[sensor] != hal.TriOf(p.Has(fault)) {
				return false
			}
		}
		s, err = card.(hal.StatusReader).Status(ctx)
		return err == nil && s.Sensors["SCPresentSensor"] == hal.TriOf(r.Card.Inserted())
	}
	// read is how often a card has answered; who pulls one out before tears it.
	read := func() (n float64) {
		list, err := card.(hal.Statistics).Statistics(ctx)
		for _, s := range list {
			if err == nil && s.Name == "M_TransmitCount" {
				n = s.Value
			}
		}
		return n
	}
	day, truth := emulator.Desk.Day(3)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	if err := emulator.Play(ctx, day, 1e12, p, r.Card, func(s emulator.Step, do func()) {
		before := read()
		do()
		for !same() || s.Act == emulator.InsertCard && read() == before || s.Act == emulator.TearCard && r.Card.Inserted() {
			select {
			case <-ctx.Done():
				t.Fatalf("after %q at %v the drivers see something else", s.Act, s.At)
			case <-tick.C:
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	_ = paper.Close()
	_ = card.Close()
	ears.Wait()
	for code, want := range map[string]int{
		"COVER_OPEN": truth.Covers, "COVER_OK": truth.Covers, "M_CUTTER_ERROR": truth.Jams, "M_CUTTER_OK": truth.Jams, "POWER_OFF_OFFLINE": truth.Pulls,
		"REC_NEAREMPTY": len(truth.NearEnd), "REC_EMPTY": len(truth.RunOut), "DRAWEROPEN": truth.Drawer, "DRAWERCLOSED": truth.Drawer,
		"CARD_PRESENT": truth.Cards, "NO_CARD": truth.Cards, "M_CARD_TORN": truth.Torn, "M_CARD_MUTE": truth.Worn,
	} {
		got := 0
		for _, h := range heard {
			if h == code {
				got++
			}
		}
		if got != want || want == 0 {
			t.Errorf("%s was told %d times, want %d", code, got, want)
		}
	}
}

func TestPlayEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := emulator.Play(ctx, []emulator.Step{{At: time.Hour}}, 1, printer(t), nil, nil); err == nil {
		t.Error("got no error")
	}
}

// Without the programs it says so with the error that the simulator falls back on.
func TestNoPCSCD(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := emulator.StartPCSCD(t.Context(), t.TempDir(), 1); !errors.Is(err, emulator.ErrNoPCSCD) {
		t.Errorf("got %v, want ErrNoPCSCD", err)
	}
}

// TestMain lets the test binary play a simulator that is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("EMULATOR_DIE_IN"); dir != "" {
		if _, err := emulator.StartPCSCD(context.Background(), dir, 1); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		pid, _ := os.ReadFile(filepath.Join(dir, "0", "run", "pcscd.pid"))
		fmt.Printf("%s\n", pid)
		select {}
	}
	os.Exit(m.Run())
}

// kill -9 at the simulator leaves no pcscd behind.
func TestNothingOutlivesTheSimulator(t *testing.T) {
	dir, err := os.MkdirTemp("", "emu")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "EMULATOR_DIE_IN="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 200)
	n, _ := out.Read(b)
	line := string(bytes.TrimSpace(b[:n]))
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	if _, err := fmt.Sscan(line, new(int)); err != nil {
		t.Fatalf("pcscd did not start: %q", line)
	}
	for {
		c, err := net.Dial("unix", filepath.Join(dir, "0", "run", "pcscd.comm"))
		if err != nil {
			return
		}
		_ = c.Close()
		select {
		case <-ctx.Done():
			t.Fatal("pcscd lives on")
		case <-tick.C:
		}
	}
}
