package agent

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/agent/internal/spool"
)

func openTestSettings(t *testing.T, path string) *settings {
	t.Helper()
	sp, err := spool.Open(path, spool.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sp.Close() })
	s, err := openSettings(t.Context(), sp)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestSettings changes settings, opens them again as after a restart, and shows
// that a change with one bad value changes nothing.
func TestSettings(t *testing.T) {
	path := filepath.Join(t.TempDir(), "spool.db")
	s := openTestSettings(t, path)
	none := s.hash()
	if got := s.period("poll_s", time.Minute); got != time.Minute {
		t.Errorf("nothing set: got %s, want what the file says", got)
	}
	if err := s.set(t.Context(), map[string]string{"label": "Kasse 3", "poll_s": "30"}); err != nil {
		t.Fatal(err)
	}
	if err := s.set(t.Context(), map[string]string{"log_level": "debug"}); err != nil {
		t.Fatal(err)
	}
	set := s.hash()
	if set == none {
		t.Error("the hash is the same as before")
	}
	for _, bad := range []struct{ key, value, want string }{
		{"", "", "no settings given"},
		{"shell", "sh", "setting \"shell\": only label"},
		{"label", strings.Repeat("x", 65), "at most 64"},
		{"label", "a\nb", "printable"},
		{"label", "a\x7f", "printable"},
		{"label", "\xff", "printable"},
		{"poll_s", "4", "from 5 to 3600"},
		{"poll_s", "3601", "from 5 to 3600"},
		{"poll_s", "5s", "whole number"},
		{"telemetry_s", "0", "from 1 to 3600"},
		{"log_level", "loud", "debug, info"},
	} {
		change := map[string]string{"label": "changed", bad.key: bad.value}
		if bad.key == "" {
			change = nil
		}
		if err := s.set(t.Context(), change); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%s = %q: got %v, want it refused with %q", bad.key, bad.value, err, bad.want)
		}
	}
	if err := s.spool.Close(); err != nil {
		t.Fatal(err)
	}
	again := openTestSettings(t, path)
	if again.get("label") != "Kasse 3" || again.period("poll_s", time.Minute) != 30*time.Second || again.get("log_level") != "debug" || again.hash() != set {
		t.Errorf("after a restart: %v", again.values)
	}
}
