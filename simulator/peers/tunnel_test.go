package peers_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/escpos"
	"github.com/tillward/tillward/simulator/emulator"
)

// tunnel lets peers reach a printer that our driver owns, and returns where.
func tunnel(t *testing.T, address string) (hal.Device, string) {
	t.Helper()
	d, err := escpos.Driver{}.Open(t.Context(), hal.Config{
		ID: "peer", Address: address, Claim: hal.Own, Options: map[string]string{"drawer": "till", "drawer_open_level": "high", "timeout": "2s"},
	})
	if err != nil {
		t.Fatal(err)
	}
	var l net.Listener
	for range 50 {
		if l, err = net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:9100", 1+rand.IntN(250), rand.IntN(255), 1+rand.IntN(254))); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_ = d.(hal.Tunneler).Tunnel(ctx, c)
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		wg.Wait()
		_ = d.Close()
	})
	host, _, _ := net.SplitHostPort(l.Addr().String())
	return d, host
}

// A program that was written for a printer alone reads the same through our
// driver, which owns the printer on a cable that the program knows nothing of,
// and prints through it; and the driver goes on reading all that.
func TestReceiptioThroughOurDriver(t *testing.T) {
	present(t)
	t.Parallel()
	p, err := emulator.NewPrinter("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	line, err := p.OpenPTY()
	if err != nil {
		t.Fatal(err)
	}
	d, host := tunnel(t, "serial:"+line+"?baud=115200")
	r := newAsker(t, host)
	drawer := d.(hal.Parent).Parts()[0]
	for _, tt := range []struct {
		fault   emulator.Fault
		options string
		want    string
		device  hal.Device
		sensor  string
	}{
		{"", "-q", "online", d, ""},
		{emulator.CoverOpen, "-q", "coveropen", d, "CoverOpen"},
		{emulator.PaperEnd, "-q", "paperempty", d, "RecEmpty"},
		{emulator.CutterJam, "-q", "error", d, "M_CutterError"},
		{emulator.DrawerOpen, "-q drawer2", "draweropen", drawer, "M_UnexpectedOpen"}, // nobody kicked it
		{"", "-q drawer2", "drawerclosed", d, ""},
		{emulator.CoverOpen, "-q -p escpos", "coveropen", d, "CoverOpen"},
		{"", "-q", "online", d, ""},
	} {
		set := func(on bool) {
			if tt.fault != "" {
				p.Set(tt.fault, on)
			}
		}
		set(true)
		if tt.sensor != "" {
			await(t, tt.device, func(s hal.Status) bool { return s.Sensors[tt.sensor] == hal.Yes })
		}
		if got := r.ask(tt.options); got != tt.want {
			t.Errorf("%s %s: receiptio reads %q, want %q", tt.fault, tt.options, got, tt.want)
		}
		set(false)
		await(t, d, func(s hal.Status) bool { return s.Health == hal.OK })
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if out, err := peer(ctx, "receiptio", "-d "+host).Output(); err != nil || strings.TrimSpace(string(out)) != "success" {
		t.Errorf("receiptio prints: %q, %v", out, err)
	}
	cmd := peer(ctx, "thermal", host+":9100")
	if err := cmd.Run(); err != nil {
		t.Errorf("node-thermal-printer: %v", err)
	}
	await(t, drawer, func(s hal.Status) bool {
		return s.Sensors["DrawerOpened"] == hal.Yes && s.Sensors["M_UnexpectedOpen"] == hal.No // it was in the job
	})
	if u := p.Unknown(); len(u) > 0 {
		t.Errorf("commands that the printer does not know: %v", u)
	}
}

func await(t *testing.T, d hal.Device, ok func(hal.Status) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		s, err := d.(hal.StatusReader).Status(ctx)
		if err == nil && ok(s) {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("last status %+v, %v", s, err)
		}
	}
}
