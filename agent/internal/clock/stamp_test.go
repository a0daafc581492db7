package clock_test

import (
	"slices"
	"testing"
	"time"

	"github.com/tillward/tillward/agent/internal/clock"
	"github.com/tillward/tillward/cloud/wire"
)

// TestRests holds what the wall time is said to rest on: the worst that is known.
func TestRests(t *testing.T) {
	for _, tt := range []struct {
		held, synced, rtc bool
		year              int
		want              string
	}{
		{year: 2030, want: wire.ClockNone},
		{rtc: true, year: 1970, want: wire.ClockNone},
		{rtc: true, year: 2030, want: wire.ClockRTC},
		{synced: true, year: 2030, want: wire.ClockSync},
		{synced: true, rtc: true, year: 2030, want: wire.ClockSync},
		{held: true, synced: true, rtc: true, year: 2030, want: wire.ClockHeld},
	} {
		if got := clock.Rests(tt.held, tt.synced, tt.rtc, tt.year); got != tt.want {
			t.Errorf("%+v: got %s", tt, got)
		}
	}
}

func TestStamp(t *testing.T) {
	var c clock.Clock
	before := time.Now()
	at, mono, quality := c.Stamp()
	if at.Before(before) || mono <= 0 || !slices.Contains([]string{wire.ClockNone, wire.ClockRTC, wire.ClockSync}, quality) {
		t.Errorf("got %s, %s and %s", at, mono, quality)
	}
	if _, later, _ := c.Stamp(); later < mono {
		t.Errorf("the box was on for %s, then for %s", mono, later)
	}
}
