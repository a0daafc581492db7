package peers_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/star"
	"github.com/tillward/tillward/simulator/emulator"
)

// at calls do with addresses on the port that receiptio insists on until one
// is free.
func at(t *testing.T, do func(addr string) error) {
	t.Helper()
	var err error
	for range 50 {
		if err = do(fmt.Sprintf("127.%d.%d.%d:9100", 1+rand.IntN(250), rand.IntN(255), 1+rand.IntN(254))); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// starPrinter is one with a network card.
func starPrinter(t *testing.T) *emulator.Star {
	t.Helper()
	var p *emulator.Star
	at(t, func(addr string) (err error) {
		p, err = emulator.NewStar(addr, emulator.StarModel{Ethernet: true})
		return err
	})
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// glanceStar is our own driver's look at a printer that somebody else owns.
func glanceStar(t *testing.T, addr string) hal.Status {
	t.Helper()
	d, err := star.Driver{}.Open(t.Context(), hal.Config{
		ID: "peer", Address: addr, Claim: hal.Observe, Options: map[string]string{"ask": "true", "drawer_open_level": "high"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s, err := d.(hal.StatusReader).Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// starStates are what receiptio has words for, and what our driver reads then.
var starStates = []struct {
	fault   emulator.Fault
	options string
	want    string
	sensor  string // Yes for our driver; empty: all is well
}{
	{"", "-q", "online", ""},
	{emulator.CoverOpen, "-q", "coveropen", "CoverOpen"},
	{emulator.PaperEnd, "-q", "paperempty", "RecEmpty"},
	{emulator.NearEnd, "-q", "online", "RecNearEnd"}, // receiptio has no word for it
	{emulator.CutterJam, "-q", "error", "M_CutterError"},
	{emulator.Mechanical, "-q", "error", "M_MechanicalError"},
	{emulator.Unrecoverable, "-q", "error", "M_UnrecoverableError"},
	{emulator.DrawerOpen, "-q drawer", "draweropen", "DrawerOpened"},
	{"", "-q drawer", "drawerclosed", ""},
	{emulator.DrawerOpen, "-q drawer2", "drawerclosed", "DrawerOpened"}, // the other cable
}

// Both read the same state from the same Star printer.
func TestReceiptioReadsEachStateOfAStar(t *testing.T) {
	present(t)
	for _, model := range []string{"", " -p star", " -p starline"} {
		t.Run("model"+model, func(t *testing.T) {
			t.Parallel()
			p := starPrinter(t)
			host, _, _ := net.SplitHostPort(p.Addr())
			r := newAsker(t, host)
			for _, tt := range starStates {
				if tt.fault != "" {
					p.Set(tt.fault, true)
				}
				s := glanceStar(t, p.Addr())
				if tt.sensor != "" && s.Sensors[tt.sensor] != hal.Yes || tt.sensor == "" && s.Health != hal.OK {
					t.Errorf("%s: our driver reads %+v", tt.fault, s)
				}
				if got := r.ask(tt.options + model); got != tt.want {
					t.Errorf("%s %s: receiptio reads %q, want %q", tt.fault, tt.options, got, tt.want)
				}
				if tt.fault != "" {
					p.Set(tt.fault, false)
				}
			}
		})
	}
}

var starModels = []string{"star", "starline", "stargraphic", "starimpact", "starimpact2", "starimpact3"}

func TestReceiptioPrintsOnAStar(t *testing.T) {
	present(t)
	for _, model := range starModels {
		t.Run(model, func(t *testing.T) {
			t.Parallel()
			p := starPrinter(t)
			host, _, _ := net.SplitHostPort(p.Addr())
			printed(t, p, host, model)
		})
	}
}

// printed lets receiptio print, and looks at what came out. receiptio counts
// frames: when the answer to its question comes apart from the frame that
// greets it, it has its success at the first of the two ETB that enclose a job.
func printed(t *testing.T, p *emulator.Star, host, model string) {
	t.Helper()
	if got := strings.TrimSpace(string(output(t, "receiptio", fmt.Sprintf("-d %s -t 20 -p %s", host, model)))); got != "success" {
		t.Errorf("receiptio says %q", got)
	}
	deadline, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for len(p.Jobs()) == 0 && deadline.Err() == nil {
		<-tick.C
	}
	if u := p.Unknown(); len(u) > 0 {
		t.Errorf("commands that are not known: %v", u)
	}
	if text := strings.Join(p.Jobs(), ""); len(p.Jobs()) == 0 || model != "stargraphic" && (!strings.Contains(text, "Espresso") || !strings.Contains(text, "Thank you!")) {
		t.Errorf("printed %q, want the receipt, and a cut", text)
	}
}

// through is a Star printer on a serial line that our driver owns, and the
// address where applications print through it.
func through(t *testing.T) (p *emulator.Star, d hal.Device, host string) {
	t.Helper()
	p, err := emulator.NewStar("", emulator.StarModel{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	tty, err := p.OpenPTY()
	if err != nil {
		t.Fatal(err)
	}
	d, err = star.Driver{}.Open(t.Context(), hal.Config{ID: "through", Address: "serial:" + tty, Options: map[string]string{"drawer_open_level": "high"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	var l net.Listener
	at(t, func(addr string) (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	})
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				_ = d.(hal.Tunneler).Tunnel(ctx, conn)
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		all.Wait()
	})
	host, _, _ = net.SplitHostPort(l.Addr().String())
	return p, d, host
}

// An application that nobody has told sees a network printer behind our
// driver, in every state.
func TestReceiptioReadsThroughOurDriver(t *testing.T) {
	present(t)
	t.Parallel()
	p, d, host := through(t)
	r := newAsker(t, host)
	for _, tt := range starStates {
		if tt.fault != "" {
			p.Set(tt.fault, true)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		for ctx.Err() == nil {
			if s, err := d.(hal.StatusReader).Status(ctx); err == nil && (tt.sensor == "" && s.Health == hal.OK && s.Sensors["DrawerOpened"] == hal.No || tt.sensor != "" && s.Sensors[tt.sensor] == hal.Yes) {
				break
			}
		}
		cancel()
		if got := r.ask(tt.options + " -p star"); got != tt.want {
			t.Errorf("%s %s: receiptio reads %q, want %q", tt.fault, tt.options, got, tt.want)
		}
		if tt.fault != "" {
			p.Set(tt.fault, false)
		}
	}
}

func TestReceiptioPrintsThroughOurDriver(t *testing.T) {
	present(t)
	for _, model := range starModels {
		t.Run(model, func(t *testing.T) {
			t.Parallel()
			p, d, host := through(t)
			printed(t, p, host, model)
			list, err := d.(hal.Statistics).Statistics(t.Context())
			cuts := float64(len(p.Jobs()))
			if err != nil || !slices.ContainsFunc(list, func(s hal.Stat) bool { return s.Name == "PaperCutCount" && s.Value == cuts }) {
				t.Errorf("%v cuts are not counted: %v, %v", cuts, list, err)
			}
			if p.Mixed() > 0 {
				t.Error("the application's questions reached a printer that tells by itself")
			}
		})
	}
}
