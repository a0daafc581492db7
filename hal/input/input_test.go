package input_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/haltest"
	"github.com/tillward/tillward/hal/input"
	"github.com/tillward/tillward/simulator/emulator"
)

func plug(t *testing.T, root string, event int) *emulator.Scanner {
	t.Helper()
	s, err := emulator.NewScanner(root, event)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func open(t *testing.T, root, address string, options ...string) hal.Device {
	t.Helper()
	cfg := hal.Config{ID: "scanner", Address: address, Options: map[string]string{}}
	for i := 0; i < len(options); i += 2 {
		cfg.Options[options[i]] = options[i+1]
	}
	d, err := input.Driver{Root: root}.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	if _, err := d.(hal.StatusReader).Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d
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

func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain: %s", what)
		case <-tick.C:
		}
	}
}

func power(t *testing.T, d hal.Device, want hal.Power) {
	t.Helper()
	wait(t, string(want), func() bool {
		s, err := d.(hal.StatusReader).Status(t.Context())
		return err == nil && s.Power == want
	})
}

func TestConformance(t *testing.T) {
	haltest.Run(t, func(t *testing.T) haltest.Bench {
		s := plug(t, t.TempDir(), 3)
		var last hal.Device
		return haltest.Bench{
			Open: func(t *testing.T) hal.Device {
				d, err := input.Driver{Root: s.Root()}.Open(t.Context(), hal.Config{ID: "scanner", Address: "usb:05e0:1200:EMUSCAN03"})
				if err != nil {
					t.Fatal(err)
				}
				last = d
				return d
			},
			Unplug: func(on bool) { must(t, s.Set(emulator.Unplugged, on)) },
			Faults: []haltest.Fault{{Name: "gone", Set: func(on bool) { must(t, s.Set(emulator.Unplugged, on)) }, On: "POWER_OFF_OFFLINE", Off: "POWER_ONLINE"}},
			NotApplicable: map[int]string{
				2:  "a scanner is asked nothing: silence is how it always is",
				8:  "a scanner has no sensors",
				11: "a scanner puts nothing out",
			},
			Noise: func(on bool) {
				must(t, s.Set(emulator.Garbage, on))
				before := count(t, last, "GoodScanCount")
				must(t, s.Scan("12345670"))
				wait(t, "the code to be counted all the same", func() bool { return count(t, last, "GoodScanCount") == before+1 })
			},
			Feed: func(t *testing.T, d hal.Device, number string) {
				before := count(t, d, "GoodScanCount")
				must(t, s.Scan(number))
				wait(t, "the code to be counted", func() bool { return count(t, d, "GoodScanCount") == before+1 })
			},
			Observe: func(t *testing.T) hal.Device {
				return open(t, s.Root(), "/dev/input/event3")
			},
			Compete: func(context.Context) error {
				f, err := os.OpenFile(filepath.Join(s.Root(), "dev/input/event3"), os.O_RDONLY|syscall.O_NONBLOCK, 0)
				if err != nil {
					return err
				}
				return f.Close()
			},
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestCounts(t *testing.T) {
	s := plug(t, t.TempDir(), 0)
	d := open(t, s.Root(), "usb:05E0:1200")
	good := func(want float64) {
		t.Helper()
		wait(t, fmt.Sprintf("%v codes", want), func() bool { return count(t, d, "GoodScanCount") == want })
	}
	must(t, s.Scan("4006381333931"))
	good(1)
	must(t, s.Type("\n\n\n")) // Enter alone is no code
	must(t, s.Scan("https://example.org/?a=B"))
	good(2)
	must(t, s.Type("half"))
	must(t, s.Scan(" and half"))
	good(3)
	must(t, s.Set(emulator.HalfFrames, true))
	must(t, s.Scan("torn records"))
	good(4)
	if n := count(t, d, "CommunicationErrorCount"); n != 0 {
		t.Errorf("CommunicationErrorCount is %v with nothing wrong", n)
	}
	must(t, s.Set(emulator.HalfFrames, false))
	must(t, s.Set(emulator.LostKeys, true))
	must(t, s.Scan("1"))
	good(5)
	if n := count(t, d, "CommunicationErrorCount"); n != 1 {
		t.Errorf("CommunicationErrorCount is %v after keys were lost once, want 1", n)
	}
}

func TestOtherEnd(t *testing.T) {
	s := plug(t, t.TempDir(), 0)
	d := open(t, s.Root(), "usb:05e0:1200", "end", "tab")
	must(t, s.Type("123\n456\t"))
	wait(t, "one code", func() bool { return count(t, d, "GoodScanCount") == 1 })
}

func TestIdentity(t *testing.T) {
	root := t.TempDir()
	plug(t, root, 1)
	plug(t, root, 2)
	for _, c := range []struct{ address, key string }{
		{"usb:05e0:1200:EMUSCAN02", "usb:05e0:1200:EMUSCAN02"},
		{"usb:05e0:1200@1-3", "usb:05e0:1200@1-3"},
		{"/dev/input/event2", "usb:05e0:1200:EMUSCAN02"},
	} {
		i := open(t, root, c.address).Info()
		if i.Key != c.key || i.Serial != "EMUSCAN02" || i.Maker != "Emulated" || i.Model != "Bar Code Scanner" || i.Firmware != "1.10" || i.Interface != "USB" || i.Category != hal.Scanner || i.ID != "scanner" {
			t.Errorf("%s: got %+v", c.address, i)
		}
		if !i.Simulated {
			t.Errorf("%s: a FIFO does not say that it is one", c.address)
		}
	}
	pan := filepath.Join(root, "sys/devices/pci0000:00/usb1/1-3/serial")
	must(t, os.WriteFile(pan, []byte("4111111111111111\n"), 0o600))
	if i := open(t, root, "/dev/input/event2").Info(); i.Serial != "" || i.Key != "usb:05e0:1200@1-3" {
		t.Errorf("a serial number that could be a card number: got %+v", i)
	}
}

// TestStandIn counts on a FIFO that no sysfs knows, as the simulator's are to an
// agent.
func TestStandIn(t *testing.T) {
	s := plug(t, t.TempDir(), 0)
	d := open(t, "", filepath.Join(s.Root(), "dev/input/event0"))
	must(t, s.Scan("4006381333931"))
	wait(t, "a code", func() bool { return count(t, d, "GoodScanCount") == 1 })
	if i := d.Info(); !i.Simulated || i.Key != "evdev:event0" || i.Serial != "" {
		t.Errorf("got %+v", i)
	}
}

func TestReplug(t *testing.T) {
	s := plug(t, t.TempDir(), 0)
	must(t, s.Close())
	d := open(t, s.Root(), "usb:05e0:1200")
	power(t, d, hal.PowerOffOffline)
	must(t, s.Set(emulator.Unplugged, false))
	d.(hal.Nudger).Nudge()
	d.(hal.Nudger).Nudge() // never blocks
	power(t, d, hal.PowerOnline)
	must(t, s.Scan("1"))
	wait(t, "a code", func() bool { return count(t, d, "GoodScanCount") == 1 })
	must(t, s.Set(emulator.Unplugged, true))
	power(t, d, hal.PowerOffOffline)
	must(t, s.Set(emulator.Unplugged, false))
	power(t, d, hal.PowerOnline) // also without a nudge
	must(t, s.Scan("2"))
	wait(t, "a code after it", func() bool { return count(t, d, "GoodScanCount") == 2 })
}

func TestRefused(t *testing.T) {
	root := t.TempDir()
	plug(t, root, 0)
	plug(t, root, 2)
	mouse := plug(t, root, 1)
	must(t, os.WriteFile(filepath.Join(root, "sys/devices/pci0000:00/usb1/1-2/1-2:1.0/input/input1/capabilities/key"), []byte("1f0000 0 0 0 0\n"), 0o600))
	must(t, os.WriteFile(filepath.Join(root, "dev/input/file"), nil, 0o600))
	for _, c := range []struct {
		address, option, value string
		claim                  hal.Claim
		code                   string
	}{
		{address: "/dev/input/event0"},
		{address: "/dev/input/event0", claim: hal.Observe},
		{address: "/dev/input/event0", claim: hal.Own, code: "E_ILLEGAL"},
		{address: "/dev/input/event1", code: "E_ILLEGAL"}, // a mouse
		{address: "/dev/input/event0", option: "grab", value: "true", code: "E_ILLEGAL"},
		{address: "/dev/input/event0", option: "end", value: "space", code: "E_ILLEGAL"},
		{address: "event0", code: "E_ILLEGAL"},
		{address: "usb:05e0:1200", code: "E_ILLEGAL"}, // which of the two?
		{address: "usb:05e0:1200@1-3"},
		{address: "", code: "E_ILLEGAL"},
		{address: "usb:5e0:1200", code: "E_ILLEGAL"},
		{address: "usb:05e0:1200@../..", code: "E_ILLEGAL"},
		{address: "tcp:192.0.2.1:9100", code: "E_ILLEGAL"},
	} {
		cfg := hal.Config{ID: "x", Address: c.address, Claim: c.claim}
		if c.option != "" {
			cfg.Options = map[string]string{c.option: c.value}
		}
		d, err := input.Driver{Root: root}.Open(t.Context(), cfg)
		if c.code == "" {
			must(t, err)
			must(t, d.Close())
			continue
		}
		if !errors.Is(err, &hal.Error{Code: c.code}) {
			t.Errorf("%+v: got %v, want %s", c, err, c.code)
		}
	}
	d := open(t, root, "usb:05e0:1200:EMUSCAN01") // the mouse by its USB name is not the scanner
	power(t, d, hal.PowerOffOffline)
	must(t, mouse.Scan("1"))

	power(t, open(t, root, "/dev/input/file"), hal.PowerUnknown) // a file cannot be waited for
}

func TestCheckHealth(t *testing.T) {
	s := plug(t, t.TempDir(), 0)
	d := open(t, s.Root(), "usb:05e0:1200")
	h := d.(hal.HealthChecker)
	r, err := h.CheckHealth(t.Context(), hal.Internal)
	if err != nil || !r.OK || len(r.Checks) != 1 || r.Checks[0].ID != "reachable" || !r.Checks[0].OK {
		t.Errorf("internal: got %+v, %v", r, err)
	}
	if _, err := h.CheckHealth(t.Context(), hal.External); !errors.Is(err, &hal.Error{Code: "E_ILLEGAL"}) {
		t.Errorf("external: got %v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := h.CheckHealth(short, hal.Interactive); !errors.Is(err, &hal.Error{Code: "E_TIMEOUT"}) {
		t.Errorf("interactive, and nobody scans: got %v", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r, err = h.CheckHealth(t.Context(), hal.Interactive)
	}()
	wait(t, "the check to see a code", func() bool {
		must(t, s.Scan("4111111111111111"))
		select {
		case <-done:
			return true
		default:
			return false
		}
	})
	if err != nil || !r.OK || len(r.Checks) != 2 || strings.Contains(fmt.Sprintf("%+v", r), "1111") {
		t.Errorf("interactive: got %+v, %v", r, err)
	}
	must(t, s.Close())
	power(t, d, hal.PowerOffOffline)
	r, err = h.CheckHealth(t.Context(), hal.Internal)
	if err != nil || r.OK || len(r.Checks) != 1 || r.Checks[0].Code != "POWER_OFF_OFFLINE" {
		t.Errorf("internal, without a scanner: got %+v, %v", r, err)
	}
}

func record(kind, code uint16, value int32) []byte {
	b := make([]byte, input.RecordSize)
	at := b[input.RecordSize-8:]
	binary.NativeEndian.PutUint16(at, kind)
	binary.NativeEndian.PutUint16(at[2:], code)
	binary.NativeEndian.PutUint32(at[4:], uint32(value))
	return b
}

func TestRecords(t *testing.T) {
	key := func(code uint16, value int32) []byte { return record(1, code, value) }
	for _, c := range []struct {
		name          string
		in            []byte
		scans, errors int
	}{
		{"nothing", nil, 0, 0},
		{"enter alone", key(28, 1), 0, 0},
		{"a key and enter", append(key(2, 1), key(28, 1)...), 1, 0},
		{"the enter of the keypad", append(key(2, 1), key(96, 1)...), 1, 0},
		{"a key that is let go", append(key(2, 0), key(28, 1)...), 0, 0},
		{"a key that repeats", append(key(2, 2), key(28, 1)...), 0, 0},
		{"enter that repeats", append(append(key(2, 1), key(28, 1)...), key(28, 2)...), 1, 0},
		{"no record", record(0xabcd, 2, 1), 0, 1},
		{"keys after a loss do not count before the next report", append(record(0, 3, 0), key(28, 1)...), 0, 1},
		{"after it they do", append(append(record(0, 3, 0), record(0, 0, 0)...), key(28, 1)...), 1, 1},
	} {
		if scans, errs, _ := input.Take(c.in); scans != c.scans || errs != c.errors {
			t.Errorf("%s: got %d codes and %d errors, want %d and %d", c.name, scans, errs, c.scans, c.errors)
		}
	}
	for bitmap, want := range map[string]bool{
		"": false, "0": false, "10000000": true, "1f0000 0 0 0 0": false, "zz": false,
		"1000000000007 ff9f207ac14057ff febeffdfffefffff fffffffffffffffe": true,
	} {
		if got := input.HasEnter(bitmap); got != want {
			t.Errorf("Enter in %q: got %v, want %v", bitmap, got, want)
		}
	}
}

// TestNoCharacterIsKept is the rule that no key leaves a trace: whatever two
// codes of one shape are, all that is remembered of them is the same.
func TestNoCharacterIsKept(t *testing.T) {
	type1 := func(codes ...uint16) (b []byte) {
		for _, c := range codes {
			b = append(b, record(1, c, 1)...)
		}
		return b
	}
	for _, pair := range [][2][]byte{
		{type1(5, 2, 2, 2), type1(9)}, // a card number's first digits, and another length
		{type1(5, 2, 28), type1(3, 30, 31, 32, 28)},
	} {
		n1, _, one := input.Take(pair[0])
		n2, _, two := input.Take(pair[1])
		if one != two || n1 != n2 {
			t.Errorf("two codes leave %v and %v: something of them is kept", one, two)
		}
	}
	// Its twin: a test that could not tell a trace would prove nothing.
	if _, _, one := input.Take(type1(5)); one == func() any { _, _, k := input.Take(type1(5, 28)); return k }() {
		t.Error("a code begun and one ended leave the same")
	}
}

// FuzzRecords cuts a stream anywhere and wants the same counts.
func FuzzRecords(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(append(record(1, 2, 1), record(1, 28, 1)...))
	f.Add(append(record(0, 3, 0), record(0, 0, 0)...))
	f.Add(record(0xffff, 0xffff, -1))
	f.Fuzz(func(t *testing.T, b []byte) {
		scans, errs, _ := input.Take(b)
		if n := len(b) / input.RecordSize; scans < 0 || scans*2 > n+errs || errs > n {
			t.Errorf("%d codes and %d errors in %d records", scans, errs, n)
		}
		var pieces [][]byte
		for rest := b; len(rest) >= input.RecordSize; rest = rest[input.RecordSize:] {
			pieces = append(pieces, rest[:input.RecordSize])
		}
		if s, e, _ := input.Take(pieces...); s != scans || e != errs {
			t.Errorf("in pieces: %d codes and %d errors, at once %d and %d", s, e, scans, errs)
		}
	})
}

// FuzzKeys reads any bitmap of keys.
func FuzzKeys(f *testing.F) {
	for _, s := range []string{"", "10000000", "1f0000 0 0 0 0", "zz 10000000", "fffffffffffffffffffffffff", " \x00 1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if words := strings.Fields(s); input.HasEnter(s) && len(words) == 0 {
			t.Errorf("Enter among no keys: %q", s)
		}
	})
}
