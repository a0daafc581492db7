package virtual_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/haltest"
	"github.com/tillward/tillward/hal/virtual"
)

func open(t *testing.T, options ...string) *virtual.Device {
	t.Helper()
	cfg := hal.Config{ID: "v", Options: map[string]string{}}
	for i := 0; i < len(options); i += 2 {
		cfg.Options[options[i]] = options[i+1]
	}
	d, err := virtual.Driver{}.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d.(*virtual.Device)
}

func TestConformance(t *testing.T) {
	for category, faults := range map[hal.Category][]haltest.Fault{
		hal.SmartCardRW: {
			{Name: "card", Sensor: "SCPresentSensor", On: "CARD_PRESENT", Off: "NO_CARD"},
			{Name: "mute card", Sensor: "M_CardMute", On: "M_CARD_MUTE", Off: "M_CARD_OK"},
			{Name: "no daemon", Sensor: "M_DaemonGone", On: "M_PCSCD_GONE", Off: "M_PCSCD_BACK"},
		},
		hal.POSPrinter: {
			{Name: "cover", Sensor: "CoverOpen", On: "COVER_OPEN", Off: "COVER_OK"},
			{Name: "paper low", Sensor: "RecNearEnd", On: "REC_NEAREMPTY", Off: "REC_PAPEROK"},
			{Name: "paper out", Sensor: "RecEmpty", On: "REC_EMPTY", Off: "REC_PAPEROK"},
			{Name: "cutter", Sensor: "M_CutterError", On: "M_CUTTER_ERROR", Off: "M_CUTTER_OK"},
		},
		hal.CashDrawer: {
			{Name: "open", Sensor: "DrawerOpened", On: "DRAWEROPEN", Off: "DRAWERCLOSED"},
			{Name: "unexpected", Sensor: "M_UnexpectedOpen", On: "M_DRAWER_UNEXPECTED_OPEN", Off: "M_DRAWER_SECURE"},
			{Name: "left open", Sensor: "M_LeftOpen", On: "M_DRAWER_LEFT_OPEN", Off: "M_DRAWER_SHUT"},
			{Name: "stuck", Sensor: "M_DrawerStuck", On: "M_DRAWER_STUCK", Off: "M_DRAWER_FREE"},
		},
		hal.Tamper: {{Name: "tampered", Sensor: "M_Tampered", On: "M_TAMPERED", Off: "M_TAMPER_OK"}},
		hal.Door:   {{Name: "door", Sensor: "M_DoorOpen", On: "M_DOOR_OPEN", Off: "M_DOOR_CLOSED"}},
		hal.Environment: {
			{Name: "hot", Sensor: "M_TempHigh", On: "M_TEMP_HIGH", Off: "M_TEMP_OK"},
			{Name: "low supply", Sensor: "M_SupplyLow", On: "M_SUPPLY_LOW", Off: "M_SUPPLY_OK"},
		},
		hal.Scanner:     nil,
		hal.LineDisplay: nil,
	} {
		t.Run(string(category), func(t *testing.T) {
			haltest.Run(t, func(t *testing.T) haltest.Bench { return bench(t, category, faults) })
		})
	}
}

// bench drives the device over its socket, as another process does.
func bench(t *testing.T, category hal.Category, faults []haltest.Fault) haltest.Bench {
	socket := filepath.Join(t.TempDir(), "s")
	send := func(o virtual.Order) {
		if err := virtual.Send(t.Context(), socket, o); err != nil {
			t.Error(err)
		}
	}
	power, kept := hal.PowerOnline, 1200.0 // as the next one that is opened finds it
	var dev *virtual.Device
	opens := func(t *testing.T) hal.Device {
		dev = open(t, "category", string(category), "control", "unix:"+socket)
		if err := errors.Join(dev.Do(virtual.Order{Power: power}), dev.Do(virtual.Order{Keep: "M_KeptCount", Value: kept})); err != nil {
			t.Error(err)
		}
		return dev
	}
	b := haltest.Bench{
		Open: opens,
		Unplug: func(on bool) {
			power = hal.PowerOnline
			if on {
				power = hal.PowerOffOffline
			}
			send(virtual.Order{Power: power})
		},
		Noise: func(on bool) {
			if on {
				_ = virtual.Send(t.Context(), socket, virtual.Order{Set: "no such name\x00"})
			}
		},
		Reset: func() {
			kept = 0
			send(virtual.Order{Keep: "M_KeptCount"})
		},
		Observe: opens,
		Compete: func(ctx context.Context) error {
			return virtual.Send(ctx, socket, virtual.Order{Measure: "temp_mc", Value: 1})
		},
		Output: func() int {
			n := 0.0
			list, _ := dev.Statistics(t.Context())
			for _, s := range list {
				if s.Name == "ReceiptLineFeedCount" || s.Name == "DrawerGoodOpenCount" {
					n += s.Value
				}
			}
			return int(n)
		},
		Feed: func(t *testing.T, _ hal.Device, number string) {
			for _, o := range []virtual.Order{{Event: number}, {Set: number}, {Count: number, By: 1}, {Keep: number}, {Measure: number}} {
				if err := virtual.Send(t.Context(), socket, o); err == nil {
					t.Errorf("%+v was obeyed", o)
				}
			}
		},
		NotApplicable: map[int]string{2: "it has no wire that could be silent: it answers from memory"},
	}
	for _, f := range faults {
		f.Set = func(on bool) { send(virtual.Order{Set: f.Sensor, To: &on}) }
		b.Faults = append(b.Faults, f)
		b.Unseen = append(b.Unseen, f.Sensor)
	}
	b.Blind = func(t *testing.T) hal.Device {
		d := open(t, "category", string(category))
		for _, name := range b.Unseen {
			if err := d.Do(virtual.Order{Set: name}); err != nil {
				t.Error(err)
			}
		}
		return d
	}
	if len(faults) == 0 {
		for _, n := range []int{3, 8, 13} {
			b.NotApplicable[n] = "a " + string(category) + " tells of its power alone"
		}
	}
	return b
}

func TestSaysThatItIsSimulated(t *testing.T) {
	if i := open(t).Info(); !i.Simulated || i.Category != hal.SmartCardRW || !strings.Contains(i.Model, "virtual") {
		t.Errorf("got %+v, want a simulated card reader", i)
	}
}

func TestTornCardIsCounted(t *testing.T) {
	d := open(t)
	if err := d.Do(virtual.Order{Event: "M_CARD_TORN"}); err != nil {
		t.Fatal(err)
	}
	if list, _ := d.Statistics(t.Context()); !slices.ContainsFunc(list, func(s hal.Stat) bool { return s.Name == "M_TransmitErrorCount" && s.Value == 1 }) {
		t.Errorf("got %v, want one transmit error", list)
	}
}

func TestBadOrders(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	d := open(t, "control", "unix:"+socket)
	before := d.Info()
	for _, line := range []string{
		"", "{}", "nonsense", `{"set":"a b","to":true}`, `{"power":"PS_SLEEPY"}`, `{"count":"x","by":-1}`, `{"shut":"up"}`, `{"set":"` + strings.Repeat("x", 65) + `"}`,
	} {
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte(line + "\n"))
		b := make([]byte, 512)
		n, _ := c.Read(b)
		if !strings.Contains(string(b[:n]), `"error"`) {
			t.Errorf("%q: got %q, want an error", line, b[:n])
		}
		_ = c.Close()
	}
	if s, _ := d.Status(t.Context()); s.Health != hal.OK || !reflect.DeepEqual(d.Info(), before) {
		t.Errorf("a bad order changed the device: %+v", s)
	}
}

func TestControlSocketIsPrivateAndGoes(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	d := open(t, "control", "unix:"+socket)
	if fi, err := os.Stat(socket); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("got %v, %v; want mode 0600", fi, err)
	}
	if _, err := (virtual.Driver{}).Open(t.Context(), hal.Config{ID: "w", Options: map[string]string{"control": "unix:" + socket}}); !errors.Is(err, &hal.Error{Code: "E_FAILURE"}) {
		t.Errorf("a second device on the socket: got %v, want E_FAILURE", err)
	}
	_ = d.Close()
	if _, err := os.Stat(socket); err == nil {
		t.Error("the socket is left behind")
	}
}

// A killed agent leaves its socket; the next one takes it over.
func TestStaleSocketIsTakenOver(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = l.Close()
	open(t, "control", "unix:"+socket)
	yes := true
	if err := virtual.Send(t.Context(), socket, virtual.Order{Set: "SCPresentSensor", To: &yes}); err != nil {
		t.Error(err)
	}
}

func FuzzControl(f *testing.F) {
	f.Add(`{"set":"SCPresentSensor","to":true}`)
	f.Add(`{"event":"4111111111111111"}`)
	f.Add(`{"power":"PS_OFF"}{"count":"x","by":1e300}`)
	f.Fuzz(func(t *testing.T, line string) {
		d := open(t)
		_ = d.Obey(line)
		s, _ := d.Status(t.Context())
		list, _ := d.Statistics(t.Context())
		for name := range s.Sensors {
			if hal.MayHoldPAN(name) || len(name) > 64 {
				t.Errorf("bad sensor %q", name)
			}
		}
		for _, st := range list {
			if hal.MayHoldPAN(st.Name) || st.Value < 0 || st.Value > 1e9 {
				t.Errorf("bad statistic %+v", st)
			}
		}
	})
}
