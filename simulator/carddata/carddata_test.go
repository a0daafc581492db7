package carddata_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/agent"
	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/board"
	"github.com/tillward/tillward/hal/escpos"
	"github.com/tillward/tillward/hal/input"
	"github.com/tillward/tillward/hal/pcsc"
	"github.com/tillward/tillward/hal/star"
	"github.com/tillward/tillward/hal/virtual"
	"github.com/tillward/tillward/simulator/carddata"
	"github.com/tillward/tillward/simulator/emulator"
)

// out is all that a box has let out, or would when it is connected next.
type out struct {
	mu  sync.Mutex
	log bytes.Buffer
	dir string
}

func (o *out) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.log.Write(b)
}

// all is the log and each file that the agent keeps: in its spool are the
// messages to the service, the trail among them, as they go out.
func (o *out) all(t *testing.T) map[string][]byte {
	t.Helper()
	o.mu.Lock()
	files := map[string][]byte{"log": bytes.Clone(o.log.Bytes())}
	o.mu.Unlock()
	err := filepath.WalkDir(o.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		files[path], err = os.ReadFile(path)
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // SQLite makes and removes files beside it
		t.Fatal(err)
	}
	return files
}

// holds reports whether some file has all the words in it.
func (o *out) holds(t *testing.T, words ...string) bool {
	t.Helper()
	whole := bytes.Join(func() (list [][]byte) {
		for _, b := range o.all(t) {
			list = append(list, b)
		}
		return list
	}(), nil)
	for _, w := range words {
		if !bytes.Contains(whole, []byte(w)) {
			return false
		}
	}
	return true
}

// count is how often a word is in the spool. It is there for as long as nobody
// has taken the message.
func (o *out) count(t *testing.T, word string) int {
	t.Helper()
	most := 0
	for _, b := range o.all(t) {
		most = max(most, bytes.Count(b, []byte(word)))
	}
	return most
}

// box runs a real agent with the devices, which belongs to nobody: what it
// would tell waits in its spool. end stops it.
func box(t *testing.T, drivers *hal.Registry, bus hal.Bus, devices ...agent.DeviceConfig) (o *out, end func()) {
	t.Helper()
	o = &out{dir: filepath.Join(t.TempDir(), "state")}
	quick := agent.Duration{Duration: 100 * time.Millisecond}
	cfg := agent.DefaultConfig()
	cfg.StateDir, cfg.Model, cfg.Serial = o.dir, "desk", "till-1"
	cfg.Service = agent.ServiceConfig{Enrol: "https://127.0.0.1:1", Roots: filepath.Join(o.dir, "none")}
	cfg.TPM = agent.TPMConfig{Device: "none"}
	cfg.Update = agent.UpdateConfig{Root: filepath.Join(o.dir, "none"), CheckFor: cfg.Update.CheckFor, Channel: "prod"}
	cfg.Telemetry = agent.TelemetryConfig{Poll: quick, Stats: quick, Batch: quick, Heartbeat: quick}
	cfg.Devices = devices
	guard := new(agent.Guard)
	log := slog.New(slog.NewTextHandler(guard.Writer(o), &slog.HandlerOptions{Level: slog.LevelDebug}))
	a := agent.New(cfg, agent.Options{
		Version: "1.0.0", Drivers: drivers, Bus: bus, Guard: guard, Log: log,
		OpenTPM: func(string) (agent.TPM, error) { return nil, errors.New("this box has none") },
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	end = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the agent ended with %v", err)
		}
	})
	t.Cleanup(end)
	return o, end
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("waited in vain: %s", what)
		case <-tick.C:
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// plugged is a bus on which things say of themselves what is not theirs to say.
type plugged []hal.Candidate

// Watch implements hal.Bus.
func (p plugged) Watch(ctx context.Context, tell func(hal.Change)) error {
	for _, c := range p {
		tell(hal.Change{Candidate: c})
	}
	<-ctx.Done()
	return nil
}

// shop is all hardware at the counter, each an emulator.
type shop struct {
	dir     string
	receipt *emulator.Printer
	kitchen *emulator.Star
	scanner *emulator.Scanner
	cards   *emulator.VirtualPCSCD
}

func open(t *testing.T) *shop {
	t.Helper()
	dir, err := os.MkdirTemp("", "shop") // short, for the sockets in it
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &shop{dir: dir}
	s.receipt, err = emulator.NewPrinter("127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = s.receipt.Close() })
	s.kitchen, err = emulator.NewStar("127.0.0.1:0", emulator.StarModel{Ethernet: true})
	must(t, err)
	t.Cleanup(func() { _ = s.kitchen.Close() })
	s.scanner, err = emulator.NewScanner(t.TempDir(), 3)
	must(t, err)
	t.Cleanup(func() { _ = s.scanner.Close() })
	s.cards, err = emulator.StartVirtualPCSCD(t.TempDir(), 1)
	must(t, err)
	t.Cleanup(s.cards.Stop)
	return s
}

func (s *shop) drivers() *hal.Registry {
	return hal.NewRegistry(escpos.Driver{}, star.Driver{}, star.CloudPRNT{}, pcsc.Driver{}, virtual.Driver{}, input.Driver{Root: s.scanner.Root()}, board.Driver{})
}

const cloudAt = "127.83.17.4:8787" // an address of this test alone

func (s *shop) devices() []agent.DeviceConfig {
	r := s.cards.Reader(0)
	return []agent.DeviceConfig{
		{ID: "receipt", Driver: "escpos", Address: s.receipt.Addr(), Claim: "own", Print: "unix:" + s.dir + "/r", PrintProof: "unix:" + s.dir + "/rp"},
		{ID: "kitchen", Driver: "star", Address: s.kitchen.Addr(), Claim: "own", Print: "unix:" + s.dir + "/k"},
		{ID: "polls", Driver: "cloudprnt", Address: cloudAt, Claim: "own", Options: map[string]string{"mac": "00:11:62:01:02:03", "poll": "100ms"}},
		{ID: "scanner", Driver: "scanner", Address: "usb:05e0:1200:EMUSCAN03"},
		{ID: "reader", Driver: "pcsc", Options: map[string]string{"socket": r.Socket, "reader": r.Name, "probe": "insert"}},
		{ID: "thing", Driver: "virtual", Options: map[string]string{"control": "unix:" + s.dir + "/v"}},
		{ID: "box", Driver: "board"},
	}
}

// send writes to a socket of the agent's in pieces, and hangs up.
func send(t *testing.T, socket, text string) {
	t.Helper()
	c, err := net.DialTimeout("unix", socket, 10*time.Second)
	must(t, err)
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	for half := range strings.SplitSeq(text, "|") {
		if _, err := c.Write([]byte(half)); err != nil {
			return // it was refused, which is as well
		}
	}
	_ = c.(*net.UnixConn).CloseWrite()
	_, _ = c.Read(make([]byte, 4096)) // what it answers stays on the box
}

// No number that the hardware met leaves the box: not in a message to the
// service, not in the trail, not in the log, not in a file of the agent's.
func TestCardDataStays(t *testing.T) {
	dice := rand.New(rand.NewPCG(5, 16))
	deck := carddata.Deck(dice, 13)
	shop := open(t)
	var bus plugged
	for i, c := range deck {
		texts := c.Texts()
		text := func() string { return texts[dice.IntN(len(texts))] }
		bus = append(bus, hal.Candidate{
			Key: "usb:04b8:0e15:" + c.PAN, Interface: text(), Category: hal.Category(text()), Maker: text(), Model: text(), Serial: text(), Firmware: text(), Node: "/dev/usb/lp" + c.PAN,
		}, hal.Candidate{Key: fmt.Sprintf("usb:04b8:%04x@1-%d", i, i+1), Interface: "USB", Category: hal.Other, Maker: text(), Model: "there", Serial: c.PAN})
	}
	shop.receipt.SetSerial(deck[3].PAN)
	shop.kitchen.SetVersion("Ver" + deck[4].PAN)
	box, end := box(t, shop.drivers(), bus, shop.devices()...)
	polling, err := emulator.NewCloudStar(emulator.CloudConfig{URL: "http://" + cloudAt + "/", MAC: "00:11:62:01:02:03", Every: 50 * time.Millisecond})
	must(t, err)
	t.Cleanup(func() { _ = polling.Close() })
	eventually(t, "all devices are told", func() bool {
		return box.holds(t, "receipt", "kitchen", "polls", "scanner", "reader", "thing", "EMU-T80", "GoodScanCount", "SCPresentSensor", "there")
	})

	card := shop.cards.Reader(0).Card
	for _, c := range deck {
		for _, text := range c.Texts() {
			must(t, shop.scanner.Scan(c.PAN))
			polling.Scan(text)
			for _, o := range []virtual.Order{{Event: text}, {Set: text}, {Count: text, By: 1}, {Keep: text, Value: 1}, {Measure: text}, {Set: c.PAN[:6] + " " + c.PAN[6:]}} {
				_ = virtual.Send(t.Context(), shop.dir+"/v", o) // is refused
			}
		}
		n, err := strconv.ParseFloat(c.PAN, 64)
		must(t, err)
		for _, o := range []virtual.Order{{Keep: "PaperCutCount", Value: n}, {Measure: "temp_mc", Value: n}, {Count: "x", By: n}} {
			_ = virtual.Send(t.Context(), shop.dir+"/v", o)
		}
	}
	for i, c := range deck[:3] {
		card.Say("\x5a\x08" + c.PAN + c.Texts()[7])
		card.Insert()
		eventually(t, fmt.Sprintf("card %d is spoken to; %x", i, card.Commands()), func() bool { return len(card.Commands()) > i })
		card.Remove()
		eventually(t, "and taken out", func() bool { return box.count(t, "NO_CARD") > i })
	}
	for _, c := range deck[:4] {
		whole := strings.Join(c.Texts(), "\n")
		send(t, shop.dir+"/r", "\x1b@Card|"+whole[:len(whole)/2]+"|"+whole[len(whole)/2:]+"\n\x1dV\x00")
		send(t, shop.dir+"/rp", "Card "+whole+"\n\x1dV\x00")
		send(t, shop.dir+"/rp", c.PAN[:7]+"|"+c.PAN[7:])
		send(t, shop.dir+"/k", "\x1b@Card "+whole+"\n\x1bd\x02")
	}
	shop.receipt.Set(emulator.CoverOpen, true)
	eventually(t, "what came last is told", func() bool { return box.holds(t, "COVER_OPEN", "M_PanGuardDropCount") })
	send(t, shop.dir+"/rp", "Card "+deck[5].PAN) // is refused, and the trail may say why
	end()
	printed := strings.Join(shop.receipt.Jobs(), "")
	if !strings.Contains(printed, deck[0].PAN) {
		t.Error("the printer got no number, so that this shows little")
	}
	for name, b := range box.all(t) {
		for _, found := range carddata.Find(b, deck) {
			t.Errorf("%s: %s", filepath.Base(name), found)
		}
	}
	if box.holds(t, "DOE/CARD") {
		t.Error("a holder's name came out")
	}
}

// leak is a driver that lets numbers out, in forms that no guard can know.
type leak struct {
	hal.Device
	pan string
}

// Open implements hal.Driver.
func (l leak) Open(_ context.Context, cfg hal.Config) (hal.Device, error) {
	d, err := virtual.Driver{}.Open(context.Background(), hal.Config{ID: cfg.ID})
	return leak{d, l.pan}, err
}

// Name implements hal.Driver.
func (leak) Name() string { return "leak" }

// Info implements hal.Device.
func (l leak) Info() hal.Info {
	i := l.Device.Info()
	i.Model, i.Serial = base64.StdEncoding.EncodeToString([]byte(l.pan)), "S/N "+hex.EncodeToString([]byte(l.pan))
	return i
}

// Status implements hal.StatusReader.
func (l leak) Status(context.Context) (hal.Status, error) {
	return hal.Status{Power: hal.PowerOnline, Health: hal.Fault, Reason: "E_" + l.pan[:6] + "x" + l.pan[6:]}, nil
}

// Statistics implements hal.Statistics.
func (l leak) Statistics(context.Context) ([]hal.Stat, error) {
	n, err := strconv.ParseFloat(l.pan, 64)
	return []hal.Stat{{Name: "free_bytes", Value: n}}, err
}

// Events implements hal.Notifier.
func (l leak) Events(ctx context.Context) iter.Seq2[hal.Event, error] {
	return func(yield func(hal.Event, error) bool) {
		if yield(hal.Event{Code: "M_%3" + strings.Join(strings.Split(l.pan, ""), "%3")}, nil) {
			<-ctx.Done()
		}
	}
}

// Must fail: a driver that wants a number out and hides it from the guard is
// caught by what the test above looks with, in each of its ways.
func TestLeakIsFound(t *testing.T) {
	var c carddata.Card
	for seed := uint64(0); c.PAN == "" || hal.MayHoldPAN(hex.EncodeToString([]byte(c.PAN))); seed++ { // chance would guard some
		c = carddata.Deck(rand.New(rand.NewPCG(seed, 3)), 1)[4]
	}
	box, end := box(t, hal.NewRegistry(leak{pan: c.PAN}), nil, agent.DeviceConfig{ID: "leak", Driver: "leak"})
	eventually(t, "all is told", func() bool { return box.holds(t, "free_bytes", "S/N ", "M_%3") })
	end()
	var whole []byte
	for _, b := range box.all(t) {
		whole = append(whole, b...)
	}
	found := strings.Join(carddata.Find(whole, []carddata.Card{c}), "\n")
	for _, form := range []string{"base64", "hex", "digits", "float", "percent"} {
		if !strings.Contains(found, c.PAN+" as "+form) {
			t.Errorf("not found as %s: %s", form, found)
		}
	}
}
