package peers_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/makiuchi-d/gozxing"
	"github.com/makiuchi-d/gozxing/oned"
	"github.com/makiuchi-d/gozxing/qrcode"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/escpos"
	"github.com/tillward/tillward/simulator/emulator"
)

// present skips where there is no npm to install the peers with. On a machine
// that proves what lands, there has to be one.
func present(t *testing.T) {
	t.Helper()
	for _, program := range []string{"npm", "node"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("%s is missing: nothing was proved", program)
			}
			t.Skipf("%s is missing: the peers are not asked", program)
		}
	}
	if _, err := os.Stat("node_modules/.package-lock.json"); err != nil {
		t.Fatalf("the peers are not installed: make test does it, or npm ci in simulator/peers (%v)", err)
	}
}

// printer is one on the port that receiptio insists on, on an address of its
// own, drawn so that it meets nobody else's.
func printer(t *testing.T) *emulator.Printer {
	t.Helper()
	var err error
	for range 50 {
		addr := fmt.Sprintf("127.%d.%d.%d:9100", 1+rand.IntN(250), rand.IntN(255), 1+rand.IntN(254))
		var p *emulator.Printer
		if p, err = emulator.NewPrinter(addr); err == nil {
			t.Cleanup(func() { _ = p.Close() })
			return p
		}
	}
	t.Fatal(err)
	return nil
}

func peer(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "node", append([]string{"peer.mjs"}, args...)...)
	cmd.Stderr = os.Stderr
	return cmd
}

// asker is receiptio, asked for the state of one printer again and again.
type asker struct {
	t    *testing.T
	in   io.Writer
	out  *bufio.Scanner
	host string
}

func newAsker(t *testing.T, host string) *asker {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	cmd := peer(ctx, "status")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
		cancel()
	})
	return &asker{t: t, in: in, out: bufio.NewScanner(out), host: host}
}

func (a *asker) ask(options string) string {
	a.t.Helper()
	if _, err := fmt.Fprintf(a.in, "-d %s %s\n", a.host, options); err != nil {
		a.t.Fatal(err)
	}
	if !a.out.Scan() {
		a.t.Fatalf("receiptio has ended: %v", a.out.Err())
	}
	return a.out.Text()
}

// glance is our own driver's look at a printer that somebody else owns.
func glance(t *testing.T, p *emulator.Printer, addr string) hal.Status {
	t.Helper()
	d, err := escpos.Driver{}.Open(t.Context(), hal.Config{
		ID: "peer", Address: addr, Claim: hal.Observe, Options: map[string]string{"ask": "true", "drawer_open_level": "high", "timeout": "2s"},
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

// Both read the same state from the same printer at the same time.
func TestReceiptioReadsEachState(t *testing.T) {
	present(t)
	t.Parallel()
	p := printer(t)
	host, _, _ := net.SplitHostPort(p.Addr())
	r := newAsker(t, host)
	yes := func(sensor string) func(hal.Status) bool {
		return func(s hal.Status) bool { return s.Sensors[sensor] == hal.Yes }
	}
	for _, tt := range []struct {
		fault   emulator.Fault
		options string
		want    string
		same    func(hal.Status) bool
	}{
		{"", "-q", "online", func(s hal.Status) bool { return s.Health == hal.OK }},
		{emulator.CoverOpen, "-q", "coveropen", yes("CoverOpen")},
		{emulator.PaperEnd, "-q", "paperempty", yes("RecEmpty")},
		{emulator.NearEnd, "-q", "online", yes("RecNearEnd")}, // receiptio has no word for it
		{emulator.CutterJam, "-q", "error", yes("M_CutterError")},
		{emulator.Mechanical, "-q", "error", yes("M_MechanicalError")},
		{emulator.Unrecoverable, "-q", "error", yes("M_UnrecoverableError")},
		{emulator.HeadHot, "-q", "error", yes("M_HeadTooHot")},
		{emulator.DrawerOpen, "-q drawer2", "draweropen", yes("DrawerOpened")},
		{"", "-q drawer2", "drawerclosed", func(s hal.Status) bool { return s.Sensors["DrawerOpened"] == hal.No }},
		{emulator.DrawerOpen, "-q drawer", "drawerclosed", yes("DrawerOpened")}, // the other cable: what is open for us is closed for it
		{"", "-q drawer", "draweropen", func(s hal.Status) bool { return s.Sensors["DrawerOpened"] == hal.No }},
		{emulator.CoverOpen, "-q -p escpos", "coveropen", yes("CoverOpen")},
		{emulator.Unplugged, "-q", "disconnect", func(s hal.Status) bool { return s.Power == hal.PowerOffOffline }},
	} {
		name := fmt.Sprintf("%s %s", tt.fault, tt.options)
		if tt.fault != "" {
			p.Set(tt.fault, true)
		}
		if s := glance(t, p, p.Addr()); !tt.same(s) {
			t.Errorf("%s: our driver reads %+v", name, s)
		}
		if got := r.ask(tt.options); got != tt.want {
			t.Errorf("%s: receiptio reads %q, want %q", name, got, tt.want)
		}
		if tt.fault != "" {
			p.Set(tt.fault, false)
		}
	}
	if u := p.Unknown(); len(u) > 0 {
		t.Errorf("commands that the printer does not know: %v", u)
	}
}

// A printer that answers nothing is off-line for receiptio, and not known for
// us, who cannot tell whether a till holds it.
func TestReceiptioReadsSilence(t *testing.T) {
	present(t)
	t.Parallel()
	p := printer(t)
	host, _, _ := net.SplitHostPort(p.Addr())
	r := newAsker(t, host)
	p.Set(emulator.Mute, true)
	if s := glance(t, p, p.Addr()); s.Power == hal.PowerOnline || s.Health == hal.OK {
		t.Errorf("our driver reads %+v", s)
	}
	if got := r.ask("-q"); got != "offline" {
		t.Errorf("receiptio reads %q, want offline", got)
	}
}

// job lets a peer print, and returns the printer after its cut.
func job(t *testing.T, do func(t *testing.T, p *emulator.Printer)) *emulator.Printer {
	t.Helper()
	p := printer(t)
	dir := os.Getenv("TILLWARD_RECEIPTS") // to look at what was printed
	if dir != "" {
		if err := p.SaveReceipts(filepath.Join(dir, strings.ReplaceAll(t.Name(), "/", "-"))); err != nil {
			t.Fatal(err)
		}
	}
	do(t, p)
	deadline, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for len(p.Receipts()) == 0 {
		select {
		case <-deadline.Done():
			t.Fatal("no receipt came out")
		case <-tick.C:
		}
	}
	if u := p.Unknown(); len(u) > 0 {
		t.Errorf("commands that are not known or not drawn: %v", u)
	}
	return p
}

// output runs a peer to its end.
func output(t *testing.T, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := peer(ctx, args...).Output()
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return out
}

// scanned reports whether the codes on the receipts are read by somebody else's
// scanner, which is moved over them as a hand does.
func scanned(t *testing.T, p *emulator.Printer, want ...string) {
	t.Helper()
	var got []string
	look := func(r gozxing.Reader, part gozxing.LuminanceSource, err error) {
		if err != nil {
			return
		}
		bitmap, err := gozxing.NewBinaryBitmap(gozxing.NewHybridBinarizer(part))
		if err != nil {
			t.Fatal(err)
		}
		if res, err := r.Decode(bitmap, nil); err == nil && !slices.Contains(got, res.GetText()) {
			got = append(got, res.GetText())
		}
	}
	for _, sheet := range p.Receipts() {
		source := gozxing.NewLuminanceSourceFromImage(sheet.Image())
		for y := 0; y < source.GetHeight(); y += 20 {
			for _, r := range []gozxing.Reader{oned.NewEAN13Reader(), oned.NewCode128Reader(), oned.NewCode39Reader()} {
				part, err := source.Crop(0, y, source.GetWidth(), min(20, source.GetHeight()-y))
				look(r, part, err)
			}
			part, err := source.Crop(0, y, source.GetWidth(), min(260, source.GetHeight()-y))
			look(qrcode.NewQRCodeReader(), part, err)
		}
	}
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("%q cannot be scanned; what can be is %q", w, got)
		}
	}
}

func TestReceiptioPrints(t *testing.T) {
	present(t)
	for _, model := range []string{"auto", "escpos", "epson", "citizen", "fit", "generic"} {
		t.Run(model, func(t *testing.T) {
			t.Parallel()
			p := job(t, func(t *testing.T, p *emulator.Printer) {
				host, _, _ := net.SplitHostPort(p.Addr())
				options := fmt.Sprintf("-d %s -t 20", host)
				if model != "auto" {
					options += " -p " + model
				}
				if got := strings.TrimSpace(string(output(t, "receiptio", options))); got != "success" {
					t.Errorf("receiptio says %q", got)
				}
			})
			scanned(t, p, "2012345678903", "TILL-0042", "https://example.org/receipt/0042")
		})
	}
}

func TestNodeThermalPrinterPrints(t *testing.T) {
	present(t)
	t.Parallel()
	p := job(t, func(t *testing.T, p *emulator.Printer) { output(t, "thermal", p.Addr()) })
	scanned(t, p, "2012345678903", "TILL-0042", "https://example.org/receipt/0042")
	if !p.Has(emulator.DrawerOpen) {
		t.Error("the drawer did not open")
	}
}

func TestReceiptPrinterEncoderPrints(t *testing.T) {
	present(t)
	for _, model := range []string{"", "epson-tm-t88vi", "epson-tm-t20iii", "epson-tm-m30iii"} {
		t.Run("model"+model, func(t *testing.T) {
			t.Parallel()
			p := job(t, func(t *testing.T, p *emulator.Printer) { send(t, p, output(t, "encoder", model)) })
			scanned(t, p, "2012345678903", "TILL-42", "TILL-0042", "https://example.org/receipt/0042")
			if !p.Has(emulator.DrawerOpen) {
				t.Error("the drawer did not open")
			}
		})
	}
}

// The twin that must fail: one command that nobody has, in the middle of a job
// that is known whole.
func TestAnInventedCommandIsTold(t *testing.T) {
	present(t)
	t.Parallel()
	p := printer(t)
	send(t, p, append([]byte("\x1b~\x1d~"), output(t, "encoder", "")...))
	deadline, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for len(p.Receipts()) == 0 && deadline.Err() == nil {
		<-tick.C
	}
	if got := p.Unknown(); !slices.Equal(got, []string{"1b7e", "1d7e"}) {
		t.Errorf("unknown commands: got %v, want the two that were invented", got)
	}
}

func send(t *testing.T, p *emulator.Printer, job []byte) {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(job); err != nil {
		t.Fatal(err)
	}
}
