package hal_test

import (
	"context"
	"errors"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/tillward/tillward/hal"
)

// A sensor that is not there never reads as healthy, whatever else there is.
func TestUnknownIsNeverHealthy(t *testing.T) {
	for _, c := range []struct {
		category hal.Category
		sensors  map[string]hal.Tri
	}{
		{hal.POSPrinter, nil},
		{hal.POSPrinter, map[string]hal.Tri{"CoverOpen": hal.No}},
		{hal.POSPrinter, map[string]hal.Tri{"CoverOpen": hal.No, "RecEmpty": hal.Unknown}},
		{hal.SmartCardRW, nil},
		{hal.CashDrawer, nil},
		{hal.Tamper, nil},
		{hal.Door, nil},
		{hal.Environment, nil},
		{hal.Environment, map[string]hal.Tri{"M_TempHigh": hal.Unknown}},
		{hal.Host, map[string]hal.Tri{"M_DiskLow": hal.No}},
		{hal.Other, map[string]hal.Tri{"CoverOpen": hal.No}},
	} {
		if s := hal.Judge(c.category, hal.PowerOnline, c.sensors); s.Health != hal.NoSensor {
			t.Errorf("%s with %v: got %s, want Unknown", c.category, c.sensors, s.Health)
		}
	}
	full := map[string]hal.Tri{"CoverOpen": hal.No, "RecEmpty": hal.No}
	if s := hal.Judge(hal.POSPrinter, hal.PowerUnknown, full); s.Health != hal.NoSensor {
		t.Errorf("power unknown: got %s, want Unknown", s.Health)
	}
	if s := hal.Judge(hal.POSPrinter, hal.PowerOnline, full); s.Health != hal.OK || s.Reason != "" {
		t.Errorf("all known and good: got %s %s, want OK", s.Health, s.Reason)
	}
}

func TestJudge(t *testing.T) {
	with := func(name string) map[string]hal.Tri {
		m := map[string]hal.Tri{"CoverOpen": hal.No, "RecEmpty": hal.No, "RecNearEnd": hal.No}
		m[name] = hal.Yes
		return m
	}
	for _, c := range []struct {
		power  hal.Power
		sensor string
		health hal.Health
		reason string
	}{
		{hal.PowerOnline, "RecNearEnd", hal.Attention, "REC_NEAREMPTY"},
		{hal.PowerOffline, "CoverOpen", hal.Fault, "COVER_OPEN"},
		{hal.PowerOffline, "RecEmpty", hal.Fault, "REC_EMPTY"},
		{hal.PowerOffline, "RecNearEnd", hal.Fault, "POWER_OFFLINE"},
		{hal.PowerOffline, "other", hal.Fault, "POWER_OFFLINE"},
		{hal.PowerOffOffline, "CoverOpen", hal.Offline, "POWER_OFF_OFFLINE"},
		{hal.PowerOff, "CoverOpen", hal.Offline, "POWER_OFF"},
		{hal.PowerOffOffline, "M_DaemonGone", hal.Offline, "M_PCSCD_GONE"},
	} {
		s := hal.Judge(hal.POSPrinter, c.power, with(c.sensor))
		if s.Health != c.health || s.Reason != c.reason || s.Advice == "" {
			t.Errorf("%s %s: got %s %s %q, want %s %s and an advice", c.power, c.sensor, s.Health, s.Reason, s.Advice, c.health, c.reason)
		}
	}
}

func events(t *testing.T, tr *hal.Tracker) []string {
	t.Helper()
	tr.Close()
	var codes []string
	for e, err := range tr.Events(t.Context()) {
		if errors.Is(err, hal.ErrClosed) {
			return codes
		}
		codes = append(codes, e.Code)
	}
	t.Fatal("the sequence ended without saying that the device is closed")
	return nil
}

func TestTrackerEvents(t *testing.T) {
	tr := hal.NewTracker(hal.POSPrinter, "ReceiptCoverOpenCount")
	good := map[string]hal.Tri{"CoverOpen": hal.No, "RecEmpty": hal.No, "RecNearEnd": hal.No}
	tr.Update(hal.PowerOnline, good) // the first sight of a healthy device is no news
	tr.Update(hal.PowerOnline, map[string]hal.Tri{"CoverOpen": hal.No, "RecEmpty": hal.No, "RecNearEnd": hal.Yes})
	tr.Update(hal.PowerOffline, map[string]hal.Tri{"CoverOpen": hal.Yes, "RecEmpty": hal.Yes, "RecNearEnd": hal.Yes})
	tr.Update(hal.PowerOffOffline, nil) // what it was is not forgotten meanwhile
	tr.Update(hal.PowerOnline, good)
	tr.Update(hal.PowerOnline, good)
	got := events(t, tr)
	want := []string{
		"REC_NEAREMPTY", "POWER_OFFLINE", "COVER_OPEN", "REC_EMPTY", "POWER_OFF_OFFLINE",
		"POWER_ONLINE", "COVER_OK", "REC_PAPEROK",
	}
	if !slices.Equal(got, want) {
		t.Errorf("events:\n got %v\nwant %v", got, want)
	}
	if i := slices.IndexFunc(tr.Stats(), func(s hal.Stat) bool { return s.Name == "ReceiptCoverOpenCount" }); i < 0 || tr.Stats()[i].Value != 1 {
		t.Errorf("ReceiptCoverOpenCount: got %v, want 1", tr.Stats())
	}
}

// A device that was away is told as back, whatever was in between: a printer
// that another program holds for a moment is neither there nor gone.
func TestTrackerBackFromUnknown(t *testing.T) {
	tr := hal.NewTracker(hal.POSPrinter)
	for _, p := range []hal.Power{
		hal.PowerUnknown, hal.PowerOnline, hal.PowerUnknown, hal.PowerOnline, hal.PowerOffOffline, hal.PowerUnknown, hal.PowerOffOffline,
		hal.PowerUnknown, hal.PowerOnline,
	} {
		tr.Update(p, nil)
	}
	if got, want := events(t, tr), []string{"POWER_OFF_OFFLINE", "POWER_ONLINE"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v: each once, and nothing of a device that nobody could ask", got, want)
	}
}

// The newest events are kept when nobody listens, and what is lost is counted.
func TestTrackerNeverBlocks(t *testing.T) {
	tr := hal.NewTracker(hal.CashDrawer)
	for i := range 201 {
		tr.Update(hal.PowerOnline, map[string]hal.Tri{"DrawerOpened": hal.TriOf(i%2 == 0)})
	}
	got := events(t, tr)
	if len(got) != 64 || got[63] != "DRAWEROPEN" {
		t.Errorf("got %d events ending in %q, want the newest 64", len(got), got[len(got)-1])
	}
	for _, s := range tr.Stats() {
		if s.Name == "M_EventsDroppedCount" && s.Value == 201-64 {
			return
		}
	}
	t.Errorf("got %v, want 137 events counted as dropped", tr.Stats())
}

// Replaying the events gives what the last look shows.
func TestEventsEqualSnapshots(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		tr := hal.NewTracker(hal.POSPrinter)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		cover := hal.No
		tri := rapid.SampledFrom([]hal.Tri{hal.Unknown, hal.No, hal.Yes})
		last := hal.No
		for range rapid.IntRange(1, 30).Draw(rt, "looks") {
			is := tri.Draw(rt, "cover")
			if is != hal.Unknown {
				last = is
			}
			tr.Update(hal.PowerOnline, map[string]hal.Tri{"CoverOpen": is})
		}
		tr.Close()
		for e, err := range tr.Events(ctx) {
			switch {
			case err != nil:
			case e.Code == "COVER_OPEN":
				cover = hal.Yes
			case e.Code == "COVER_OK":
				cover = hal.No
			}
		}
		if cover != last {
			rt.Fatalf("events say %v, the last look %v", cover, last)
		}
	})
}

// What is counted here begins with the tracker, what the device counts begins
// again when it falls, and a measurement never began.
func TestEpochs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now().Unix()
		tr := hal.NewTracker(hal.POSPrinter, "CommunicationErrorCount")
		get := func(name string) hal.Stat {
			for _, s := range tr.Stats() {
				if s.Name == name {
					return s
				}
			}
			return hal.Stat{}
		}
		tr.Count("CommunicationErrorCount", 2)
		tr.Count("CommunicationErrorCount", -1)
		tr.Count("CommunicationErrorCount", math.NaN())
		tr.Measure("temp_mc", 41000)
		tr.Set("ReceiptLineFeedCount", 100)
		time.Sleep(time.Minute)
		tr.Set("ReceiptLineFeedCount", 130)
		tr.Measure("temp_mc", 40000)
		for _, want := range []hal.Stat{
			{Name: "CommunicationErrorCount", Value: 2, Epoch: start},
			{Name: "ReceiptLineFeedCount", Value: 130, Epoch: start, Kept: true},
			{Name: "temp_mc", Value: 40000},
		} {
			if got := get(want.Name); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		}
		tr.Set("ReceiptLineFeedCount", 5) // another printer, or a reset one
		if got, want := get("ReceiptLineFeedCount"), (hal.Stat{Name: "ReceiptLineFeedCount", Value: 5, Epoch: start + 60, Kept: true}); got != want {
			t.Errorf("after a reset: got %+v, want %+v", got, want)
		}
		tr.Set("ReceiptLineFeedCount", 4)
		if got := get("ReceiptLineFeedCount"); got.Epoch != start+61 {
			t.Errorf("reset twice in a second: got epoch %d, want %d", got.Epoch, start+61)
		}
		tr.Close()
		if again := hal.NewTracker(hal.POSPrinter, "x").Stats()[0]; again.Epoch <= start {
			t.Errorf("opened again: epoch %d, want one after %d", again.Epoch, start)
		}
	})
}

// Must fail: a card number does not come out as a count.
func TestNoCountIsACardNumber(t *testing.T) {
	tr := hal.NewTracker(hal.Scanner)
	tr.Count("GoodScanCount", 4111111111111111)
	tr.Set("PaperCutCount", 378282246310005)
	tr.Measure("temp_mc", 6011000990139424)
	tr.Measure("supply_mv", math.NaN())
	for _, s := range tr.Stats() {
		if s.Name != "M_PanGuardDropCount" || s.Value != 4 {
			t.Errorf("got %+v, want that four were dropped", s)
		}
	}
}

// A device opened again within the second it was closed in counts from nothing,
// and says so.
func TestEpochOfReopenedDevice(t *testing.T) {
	first := hal.NewTracker(hal.Scanner, "GoodScanCount")
	first.Count("GoodScanCount", 7)
	first.Close()
	second := hal.NewTracker(hal.Scanner, "GoodScanCount")
	if a, b := first.Stats()[0], second.Stats()[0]; a.Epoch == b.Epoch {
		t.Errorf("both have epoch %d, and the count fell from %v to %v", a.Epoch, a.Value, b.Value)
	}
}

func TestHoursPowered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := hal.NewTracker(hal.LineDisplay)
		hours := func() float64 {
			for _, s := range tr.Stats() {
				if s.Name == "HoursPoweredCount" {
					return s.Value
				}
			}
			return -1
		}
		time.Sleep(3 * time.Hour)
		if h := hours(); h != -1 {
			t.Errorf("nothing is known of the device, got %v hours", h)
		}
		tr.Update(hal.PowerOnline, nil)
		time.Sleep(90 * time.Minute)
		tr.Update(hal.PowerOffline, nil)
		time.Sleep(40 * time.Minute)
		tr.Update(hal.PowerOffOffline, nil)
		time.Sleep(5 * time.Hour)
		if h := hours(); h != 2 {
			t.Errorf("got %v hours, want 2", h)
		}
		tr.Update(hal.PowerOnline, nil)
		time.Sleep(50 * time.Minute)
		if h := hours(); h != 3 {
			t.Errorf("got %v hours, want 3", h)
		}
		tr.Set("HoursPoweredCount", 1200) // it keeps its own
		if h := hours(); h != 1200 {
			t.Errorf("got %v hours, want what the device says", h)
		}
	})
}

// Every sensor with events of its own is judged, but for those that are the
// normal course of things; and every verdict says what to do.
func TestSensorsAreJudged(t *testing.T) {
	for sensor, health := range map[string]hal.Health{
		"CoverOpen": hal.Fault, "M_CutterError": hal.Fault, "M_DrawerStuck": hal.Fault, "M_Tampered": hal.Fault, "M_DiskFailing": hal.Fault,
		"M_HeadTooHot": hal.Fault, "M_MechanicalError": hal.Fault, "M_UnrecoverableError": hal.Fault, "RecEmpty": hal.Fault,
		"M_CardMute": hal.Attention, "M_ClockUnsynced": hal.Attention, "M_DiskLow": hal.Attention, "M_DoorOpen": hal.Attention,
		"M_HostHot": hal.Attention, "M_LeftOpen": hal.Attention, "M_MemoryLow": hal.Attention, "M_SupplyLow": hal.Attention,
		"M_TempHigh": hal.Attention, "M_UnexpectedOpen": hal.Attention, "RecNearEnd": hal.Attention, "M_DaemonGone": hal.Offline,
		"DrawerOpened": hal.OK, "SCPresentSensor": hal.OK,
	} {
		tr := hal.NewTracker(hal.LineDisplay) // which has no sensor that it stands on
		s := tr.Update(hal.PowerOnline, map[string]hal.Tri{sensor: hal.Yes})
		if s.Health != health || (health != hal.OK && (s.Reason == "" || s.Advice == "")) {
			t.Errorf("%s: got %s %q %q, want %s with a reason and an advice", sensor, s.Health, s.Reason, s.Advice, health)
		}
		tr.Update(hal.PowerOnline, map[string]hal.Tri{sensor: hal.No})
		got := events(t, tr)
		if len(got) != 2 || got[0] == got[1] || (health != hal.OK && got[0] != s.Reason) {
			t.Errorf("%s: got events %v, want that it came, as %q, and that it went", sensor, got, s.Reason)
		}
	}
}

func TestRegistry(t *testing.T) {
	_, err := hal.NewRegistry().Open(t.Context(), "nosuch", hal.Config{ID: "x"})
	if !errors.Is(err, &hal.Error{Code: "E_NOSERVICE"}) {
		t.Errorf("got %v, want E_NOSERVICE", err)
	}
}
