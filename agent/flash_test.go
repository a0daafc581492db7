package agent_test

import (
	"log/slog"
	"testing"

	"github.com/tillward/tillward/agent"
)

// TestDayOfFlash holds what the books write in a day under the limit of 200 MB:
// under half of it, because a block device writes more than it is given.
func TestDayOfFlash(t *testing.T) {
	const most = 100_000_000
	for name, online := range map[string]bool{"connected": true, "alone": false} {
		t.Run(name, func(t *testing.T) {
			cfg := agent.DefaultConfig()
			cfg.StateDir = t.TempDir()
			b, err := agent.OpenBooks(t.Context(), cfg, agent.Options{Log: slog.New(slog.DiscardHandler)})
			must(t, err)
			defer func() { must(t, b.Close()) }()
			bytes, messages, err := b.Day(t.Context(), online)
			must(t, err)
			t.Logf("%d messages a day, %.1f MB written, %d bytes for each", messages, float64(bytes)/1e6, bytes/max(1, messages))
			if bytes > most || bytes < most/100 {
				t.Errorf("a day costs %d bytes, want at most %d", bytes, most)
			}
			if messages < 2000+500+86400/10 {
				t.Errorf("%d messages: this is no day", messages)
			}
		})
	}
}
