package pcsc_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/haltest"
	"github.com/tillward/tillward/hal/pcsc"
	"github.com/tillward/tillward/simulator/emulator"
)

func daemon(t *testing.T, readers int) *emulator.PCSCD {
	t.Helper()
	p, err := emulator.StartPCSCD(t.Context(), t.TempDir(), readers)
	if err != nil {
		t.Fatal(err) // with ErrNoPCSCD it says what to install
	}
	t.Cleanup(p.Stop)
	return p
}

func open(t *testing.T, r emulator.Reader, options ...string) hal.Device {
	t.Helper()
	cfg := hal.Config{ID: "reader", Options: map[string]string{"socket": r.Socket, "reader": r.Name, "timeout": "500ms"}}
	for i := 0; i < len(options); i += 2 {
		cfg.Options[options[i]] = options[i+1]
	}
	d, err := pcsc.Driver{}.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func status(t *testing.T, d hal.Device, ok func(hal.Status) bool) hal.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := d.(hal.StatusReader).Status(ctx)
		if err == nil && ok(s) {
			return s
		}
		select {
		case <-ctx.Done():
			t.Fatalf("last status %+v, %v", s, err)
		case <-tick.C:
		}
	}
}

func count(t *testing.T, d hal.Device, name string) float64 {
	t.Helper()
	list, err := d.(hal.Statistics).Statistics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if s.Name == name {
			return s.Value
		}
	}
	t.Fatalf("no statistic %s in %v", name, list)
	return 0
}

func waitCount(t *testing.T, d hal.Device, name string, want float64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for count(t, d, name) != want {
		select {
		case <-ctx.Done():
			t.Fatalf("%s: got %v, want %v", name, count(t, d, name), want)
		case <-tick.C:
		}
	}
}

func empty(s hal.Status) bool  { return s.Sensors["SCPresentSensor"] == hal.No }
func filled(s hal.Status) bool { return s.Sensors["SCPresentSensor"] == hal.Yes }

// TestConformance holds the laws over a real pcscd, which is what goes away and
// hangs there, and over a stand-in, which can do what a real one does seldom.
func TestConformance(t *testing.T) {
	t.Run("pcscd", func(t *testing.T) {
		p := daemon(t, 2)
		haltest.Run(t, func(t *testing.T) haltest.Bench {
			b := bench(t, p.Reader(0))
			t.Cleanup(func() { p.Freeze(false) })
			b.Mute = p.Freeze
			b.Unplug = func(on bool) {
				if on {
					p.Halt()
				} else if err := p.Restart(t.Context()); err != nil {
					t.Error(err)
				}
			}
			b.NotApplicable[5] = "a real pcscd says nothing that means nothing; its stand-in does"
			return b
		})
	})
	t.Run("stand-in", func(t *testing.T) {
		haltest.Run(t, func(t *testing.T) haltest.Bench {
			p, err := emulator.StartVirtualPCSCD(t.TempDir(), 2)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(p.Stop)
			b := bench(t, p.Reader(0))
			b.Apart = true
			b.Mute = func(on bool) { p.Set(emulator.Mute, on) }
			b.Noise = func(on bool) { p.Set(emulator.Garbage, on) }
			b.Unplug = func(on bool) { p.Unplug(0, on) }
			b.Faults = append(b.Faults, haltest.Fault{Name: "no daemon", Alone: true, Sensor: "M_DaemonGone", On: "M_PCSCD_GONE", Off: "M_PCSCD_BACK", Set: func(on bool) {
				if on {
					p.Halt()
				} else if err := p.Restart(t.Context()); err != nil {
					t.Error(err)
				}
			}})
			return b
		})
	})
}

// bench is what a reader is like whoever its pcscd is.
func bench(t *testing.T, r emulator.Reader) haltest.Bench {
	card := r.Card
	t.Cleanup(func() {
		card.Mute(false)
		card.Remove()
		status(t, open(t, r), empty)
	})
	insert := func(on bool) {
		if on {
			card.Insert()
		} else {
			card.Remove()
		}
	}
	return haltest.Bench{
		Open: func(t *testing.T) hal.Device { return open(t, r) },
		Faults: []haltest.Fault{
			{Name: "card", Alone: true, Sensor: "SCPresentSensor", On: "CARD_PRESENT", Off: "NO_CARD", Set: insert},
			{Name: "mute card", Alone: true, Sensor: "M_CardMute", On: "M_CARD_MUTE", Off: "M_CARD_OK", Set: func(on bool) {
				card.Mute(on)
				insert(on)
			}},
		},
		Blind: func(t *testing.T) hal.Device {
			return open(t, emulator.Reader{Socket: r.Socket, Name: "no such reader"})
		},
		Unseen: []string{"SCPresentSensor", "M_CardMute"},
		Feed: func(t *testing.T, d hal.Device, number string) {
			card.Say("\x5a\x08" + number + ";" + number + "=2512")
			card.Insert() // and it stays in
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			rep, err := d.(hal.HealthChecker).CheckHealth(ctx, hal.Interactive)
			for err == nil && rep.Checks[len(rep.Checks)-1].Code == "E_FAILURE" && ctx.Err() == nil { // a busy machine took too long
				rep, err = d.(hal.HealthChecker).CheckHealth(ctx, hal.Interactive)
			}
			for i := range rep.Checks {
				rep.Checks[i].Took = 0 // a duration can have the digits of a number
			}
			if err != nil || !rep.OK || hal.MayHoldPAN(fmt.Sprint(rep)) || rep.Checks[len(rep.Checks)-1].Code != "9000" {
				t.Errorf("health check: %+v, %v; want the status word alone", rep, err)
			}
		},
		Observe: func(t *testing.T) hal.Device {
			card.Insert()
			d := open(t, r, "probe", "insert")
			status(t, d, filled)
			return d
		},
		Compete:       func(ctx context.Context) error { return pcsc.Select(ctx, r.Socket, r.Name) },
		NotApplicable: map[int]string{11: "a reader has nothing that moves"},
	}
}

// A daemon that is gone is told from a reader that is gone.
func TestDaemonGone(t *testing.T) {
	p := daemon(t, 1)
	d := open(t, p.Reader(0))
	nowhere := open(t, emulator.Reader{Socket: p.Reader(0).Socket, Name: "no such reader"})
	status(t, d, empty)
	if s := status(t, nowhere, func(hal.Status) bool { return true }); s.Reason != "POWER_OFF_OFFLINE" || s.Sensors["M_DaemonGone"] != hal.No {
		t.Errorf("a reader that is not there: %+v", s)
	}
	p.Halt()
	for _, d := range []hal.Device{d, nowhere} {
		s := status(t, d, func(s hal.Status) bool { return s.Sensors["M_DaemonGone"] == hal.Yes })
		if s.Reason != "M_PCSCD_GONE" || s.Health != hal.Offline || s.Power != hal.PowerOffOffline {
			t.Errorf("without pcscd: %+v", s)
		}
		rep, err := d.(hal.HealthChecker).CheckHealth(t.Context(), hal.Internal)
		if err != nil || rep.OK || len(rep.Checks) != 1 || rep.Checks[0].ID != "daemon" || rep.Checks[0].Code != "M_PCSCD_GONE" {
			t.Errorf("health check: %+v, %v", rep, err)
		}
	}
	if err := p.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.(hal.Nudger).Nudge()
	status(t, d, empty)
	heard := map[string]int{}
	_ = d.Close()
	for e, err := range d.(hal.Notifier).Events(t.Context()) {
		if err == nil {
			heard[e.Code]++
		}
	}
	for _, code := range []string{"POWER_OFF_OFFLINE", "M_PCSCD_GONE", "M_PCSCD_BACK", "POWER_ONLINE"} {
		if heard[code] != 1 {
			t.Errorf("%s was told %d times: %v", code, heard[code], heard)
		}
	}
	if n := count(t, d, "CommunicationErrorCount"); n != 0 {
		t.Errorf("a daemon that ends is no error of communication, got %v", n)
	}
}

// The card is pulled out while it is spoken to.
func TestTornCard(t *testing.T) {
	r := daemon(t, 1).Reader(0)
	d := open(t, r, "probe", "insert", "timeout", "10s") // a card that a busy machine keeps waiting is not asked again
	status(t, d, empty)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	seen := make(chan string, 20)
	go func() {
		for e, err := range d.(hal.Notifier).Events(ctx) {
			if err == nil {
				seen <- e.Code
			}
		}
	}()
	r.Card.Insert()
	waitCount(t, d, "M_TransmitCount", 1)
	r.Card.Remove()
	status(t, d, empty)
	r.Card.TearNext()
	r.Card.Insert()
	waitCount(t, d, "M_TransmitErrorCount", 1)
	waitCount(t, d, "M_CardRemovedCount", 2)
	waitCount(t, d, "M_CardInsertedCount", 2)
	for _, want := range []string{"CARD_PRESENT", "NO_CARD", "CARD_PRESENT", "M_CARD_TORN", "NO_CARD"} {
		select {
		case got := <-seen:
			if got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		case <-ctx.Done():
			t.Fatalf("waiting for %s", want)
		}
	}
	for _, c := range r.Card.Commands() {
		if !bytes.Equal(c, []byte("\x00\xa4\x04\x00\x0e2PAY.SYS.DDF01\x00")) {
			t.Errorf("the card was sent %x", c)
		}
	}
}

func TestMuteCardIsCounted(t *testing.T) {
	r := daemon(t, 1).Reader(0)
	d := open(t, r)
	status(t, d, empty)
	r.Card.Mute(true)
	r.Card.Insert()
	s := status(t, d, func(s hal.Status) bool { return s.Sensors["M_CardMute"] == hal.Yes })
	if s.Health != hal.Attention || s.Reason != "M_CARD_MUTE" || count(t, d, "M_CardResetFailedCount") != 1 {
		t.Errorf("got %+v and %v failed resets", s, count(t, d, "M_CardResetFailedCount"))
	}
}

// Each reader has its own card, many beside each other on one daemon.
func TestReadersAreApart(t *testing.T) {
	p := daemon(t, 5)
	var devices []hal.Device
	for i := range 5 {
		devices = append(devices, open(t, p.Reader(i)))
		status(t, devices[i], empty)
	}
	for i := range 5 {
		p.Reader(i).Card.Insert()
		status(t, devices[i], filled)
		for j := i + 1; j < 5; j++ {
			if s := status(t, devices[j], func(hal.Status) bool { return true }); !empty(s) {
				t.Errorf("card in reader %d shows in reader %d", i, j)
			}
		}
	}
}

// Two daemons, as two simulators on one machine have them.
func TestDaemonsAreApart(t *testing.T) {
	a, b := daemon(t, 1).Reader(0), daemon(t, 1).Reader(0)
	da, db := open(t, a), open(t, b)
	status(t, da, empty)
	status(t, db, empty)
	a.Card.Insert()
	status(t, da, filled)
	if s := status(t, db, func(hal.Status) bool { return true }); !empty(s) {
		t.Error("a card in one daemon shows in the other")
	}
}

func table(names ...string) []byte {
	b := make([]byte, 16*184)
	for i, n := range names {
		copy(b[i*184:], n)
		binary.NativeEndian.PutUint32(b[i*184+128:], 7)
		binary.NativeEndian.PutUint32(b[i*184+132:], 0x34)
	}
	return b
}

func TestDecodeSlots(t *testing.T) {
	got, err := pcsc.DecodeSlots(table("ACME Reader 00 00", "", "Other\x01"))
	if err != nil || len(got) != 2 || got[0] != (pcsc.Slot{Name: "ACME Reader 00 00", Events: 7, State: 0x34}) || got[1].Name != "Other?" {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := pcsc.DecodeSlots(table(strings.Repeat("x", 128))); err == nil {
		t.Error("a name without an end: got no error")
	}
	if _, err := pcsc.DecodeSlots(nil); err == nil {
		t.Error("an empty table: got no error")
	}
}

func FuzzDecodeSlots(f *testing.F) {
	f.Add(table("ACME Reader 00 00"))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := pcsc.DecodeSlots(b)
		if err == nil && len(b) != 16*184 {
			t.Error("a table of the wrong size was taken")
		}
		for _, s := range list {
			if s.Name == "" || len(s.Name) > 127 || strings.ContainsFunc(s.Name, func(r rune) bool { return r < 0x20 || r > 0x7e }) {
				t.Errorf("bad name %q", s.Name)
			}
		}
	})
}

// A daemon that says anything at all, and stops anywhere, costs an error.
func FuzzDaemon(f *testing.F) {
	good := append([]byte{4, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0}, table("R")...)
	f.Add(good)
	f.Add(good[:50])
	f.Add([]byte{5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{4, 0, 0, 0, 4, 0, 0, 0, 0x1e, 0, 0x10, 0x80})
	f.Fuzz(func(t *testing.T, says []byte) {
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write(says)
			_ = c.(*net.UnixConn).CloseWrite()
			_, _ = c.Read(make([]byte, 1024))
			_ = c.Close()
		}()
		if err := pcsc.Greet(t.Context(), path); err == nil && len(says) < 12+16*184 {
			t.Error("less than a table was taken for one")
		}
	})
}
