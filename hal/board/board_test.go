package board_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/board"
)

func stats(t *testing.T, root string) map[string]float64 {
	t.Helper()
	d, err := board.Driver{Root: root}.Open(t.Context(), hal.Config{ID: "box"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	list, err := d.(hal.Statistics).Statistics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]float64{}
	for _, s := range list {
		m[s.Name] = s.Value
	}
	return m
}

func write(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestThisBox(t *testing.T) {
	m := stats(t, "")
	for _, name := range []string{"uptime_s", "memory_total_bytes", "memory_free_bytes", "disk_total_bytes", "disk_free_bytes"} {
		if m[name] <= 0 {
			t.Errorf("%s: got %v", name, m[name])
		}
	}
	if m["memory_free_bytes"] > m["memory_total_bytes"] || m["disk_free_bytes"] > m["disk_total_bytes"] {
		t.Errorf("more is free than there is: %v", m)
	}
}

func TestKnownBox(t *testing.T) {
	root := t.TempDir()
	write(t, root, map[string]string{
		"proc/uptime":                          "1234.56 99.00\n",
		"proc/loadavg":                         "0.42 0.30 0.20 1/100 999\n",
		"proc/meminfo":                         "MemTotal:        2048 kB\nMemFree:  1 kB\nMemAvailable:    1024 kB\nHugePages_Total:       7\n",
		"sys/class/thermal/thermal_zone0/temp": "41500\n",
		"sys/class/thermal/thermal_zone1/temp": "45250\n",
		"sys/class/thermal/thermal_zone2/temp": "-274000\n",
	})
	m := stats(t, root)
	for name, want := range map[string]float64{"uptime_s": 1234.56, "load1": 0.42, "memory_total_bytes": 2 << 20, "memory_free_bytes": 1 << 20, "temp_mc": 45250} {
		if m[name] != want {
			t.Errorf("%s: got %v, want %v", name, m[name], want)
		}
	}
}

// What a box does not tell is left out.
func TestBareBox(t *testing.T) {
	root := t.TempDir()
	write(t, root, map[string]string{"proc/uptime": "garbage", "proc/loadavg": "", "proc/meminfo": "MemTotal: many kB\n", "sys/class/thermal/thermal_zone0/temp": "hot"})
	m := stats(t, root)
	for _, name := range []string{"uptime_s", "load1", "memory_total_bytes", "memory_free_bytes", "temp_mc"} {
		if v, ok := m[name]; ok {
			t.Errorf("%s: got %v from nothing", name, v)
		}
	}
}

func TestBadConfig(t *testing.T) {
	for _, o := range []map[string]string{{"colour": "red"}, {"disk": "/nonexistent"}} {
		if _, err := (board.Driver{}).Open(t.Context(), hal.Config{ID: "box", Options: o}); !errors.Is(err, &hal.Error{Code: "E_ILLEGAL"}) {
			t.Errorf("%v: got %v, want E_ILLEGAL", o, err)
		}
	}
}
