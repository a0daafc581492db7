package cloud

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestExports runs a service with a sink: what it records arrives, and its
// metrics say how far the sink is.
func TestExports(t *testing.T) {
	dir := t.TempDir()
	cfg := DefaultConfig()
	cfg.DataDir = filepath.Join(dir, "data")
	cfg.Device.MQTT, cfg.Device.HTTPS, cfg.Operator.Listen, cfg.Metrics.Listen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	cfg.Export = []ExportConfig{{Name: "disk", Kind: "file", Format: "cef", Path: filepath.Join(dir, "trail")}}
	s, err := New(t.Context(), cfg, slog.New(slog.DiscardHandler))
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	defer func() {
		cancel()
		must(t, <-ended)
	}()
	s.audit(ctx, "identity.clone", "alarm", "till1", map[string]string{"what": "two of them"})
	for end := time.Now().Add(90 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		text, err := os.ReadFile(cfg.Export[0].Path)
		page := metricsOf(t, s)
		if err == nil && strings.Contains(string(text), "|2304|Two devices with one identity|9|") && strings.Contains(page, "tillward_export_lag{sink=\"disk\"} 0\n") &&
			strings.Contains(page, "tillward_export_sent_total{sink=\"disk\"} 3\n") && strings.Contains(page, "tillward_export_failing{sink=\"disk\"} 0\n") && strings.Contains(page, "tillward_export_lost_total{sink=\"disk\"} 0\n") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("got %s, %v, and %s", text, err, page)
		}
	}
}

func metricsOf(t *testing.T, s *Service) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.Addrs().Metrics+"/metrics", nil)
	must(t, err)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	return string(b)
}
