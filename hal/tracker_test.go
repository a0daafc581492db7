package hal_test

import (
	"context"
	"errors"
	"slices"
	"testing"

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

func TestRegistry(t *testing.T) {
	_, err := hal.NewRegistry().Open(t.Context(), "nosuch", hal.Config{ID: "x"})
	if !errors.Is(err, &hal.Error{Code: "E_NOSERVICE"}) {
		t.Errorf("got %v, want E_NOSERVICE", err)
	}
}
