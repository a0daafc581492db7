package update_test

import (
	"testing"
	"time"

	"github.com/tillward/tillward/agent/internal/update"
)

func TestHours(t *testing.T) {
	at := func(s string) time.Time {
		v, err := time.Parse("Mon 2006-01-02 15:04", s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for text, want := range map[string]map[string]bool{
		"":            {"Wed 2026-11-25 12:00": true},
		"22:00-05:00": {"Wed 2026-11-25 21:59": false, "Wed 2026-11-25 22:00": true, "Thu 2026-11-26 04:59": true, "Thu 2026-11-26 05:00": false},
		"08:00-24:00": {"Wed 2026-11-25 23:59": true, "Thu 2026-11-26 00:00": false},
		"mon-fri 22:00-05:00, sun 00:00-24:00": {
			"Fri 2026-11-27 22:30": true, "Sat 2026-11-28 04:00": true, "Sat 2026-11-28 22:30": false, "Sun 2026-11-29 12:00": true,
			"Mon 2026-11-30 00:00": false, // the hours of Sunday end at midnight, those of Monday have not begun
		},
		"Sat-Mon 01:00-02:00": {"Sun 2026-11-29 01:30": true, "Mon 2026-11-30 01:30": true, "Tue 2026-12-01 01:30": false},
		"tue 23:00-01:00":     {"Wed 2026-11-25 00:30": true, "Tue 2026-11-24 00:30": false},
	} {
		var h update.Hours
		if err := h.UnmarshalText([]byte(text)); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		for s, open := range want {
			if got := h.Open(at(s)); got != open {
				t.Errorf("%q at %s: got %v, want %v", text, s, got, open)
			}
		}
	}
	for _, bad := range []string{"22-05", "25:00-26:00", "someday 01:00-02:00", "01:00-01:00", "01:00", "mon tue 01:00-02:00", ",", "24:00-01:00", "00:60-01:00", "1:00-2:00"} {
		var h update.Hours
		if err := h.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func FuzzHours(f *testing.F) {
	for _, s := range []string{"22:00-05:00", "mon-fri 22:00-05:00, sun 00:00-24:00", "sat 01:00-02:00", "x"} {
		f.Add(s, int64(1_700_000_000))
	}
	f.Fuzz(func(t *testing.T, s string, at int64) {
		var h, again update.Hours
		if h.UnmarshalText([]byte(s)) != nil {
			return
		}
		b, err := h.MarshalText()
		if err != nil || again.UnmarshalText(b) != nil {
			t.Fatalf("%q does not read back", b)
		}
		if when := time.Unix(at, 0).UTC(); h.Open(when) != again.Open(when) {
			t.Errorf("%q means another thing when it is read back", s)
		}
	})
}
