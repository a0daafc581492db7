//go:build halvm

// The tests of the machine. Each is one suite: init.sh runs them one by one.

package halvm_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
)

// within waits until something has become so. The machine is slow.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
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

func put(t *testing.T, text string, path ...string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(path...), []byte(text), 0o600))
}

func get(t *testing.T, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	must(t, err)
	return strings.TrimSpace(string(b))
}

func open(t *testing.T, d hal.Driver, cfg hal.Config) hal.Device {
	t.Helper()
	dev, err := d.Open(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { _ = dev.Close() })
	return dev
}

func status(t *testing.T, d hal.Device) hal.Status {
	t.Helper()
	s, err := d.(hal.StatusReader).Status(t.Context())
	must(t, err)
	return s
}

func count(t *testing.T, d hal.Device, name string) float64 {
	t.Helper()
	list, err := d.(hal.Statistics).Statistics(t.Context())
	must(t, err)
	for _, s := range list {
		if s.Name == name {
			return s.Value
		}
	}
	t.Fatalf("no statistic %s in %v", name, list)
	return 0
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(pattern)
	must(t, err)
	return names
}
