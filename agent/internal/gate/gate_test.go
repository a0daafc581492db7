package gate_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/tillward/tillward/agent/internal/gate"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLock(t *testing.T) {
	l := gate.Lock{File: filepath.Join(t.TempDir(), "busy")}
	want := func(what string, held, stale bool) {
		t.Helper()
		by, old := l.Held()
		if (by != "") != held || (old != "") != stale {
			t.Errorf("%s: held by %q, stale %q; want %v, %v", what, by, old, held, stale)
		}
	}
	want("no file", false, false)
	write(t, l.File, "")
	want("an empty file", true, false)
	write(t, l.File, strconv.Itoa(os.Getpid())+"\n")
	want("a process that lives", true, false)

	gone := exec.CommandContext(t.Context(), "true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	write(t, l.File, strconv.Itoa(gone.Process.Pid))
	want("a process that is gone", false, true)

	f, err := os.Open(l.File)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	want("locked by somebody", true, false)
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	want("unlocked again", false, true)
}

func TestSupply(t *testing.T) {
	type supply map[string]string // file -> text
	mains := func(online string) supply { return supply{"type": "Mains", "online": online} }
	battery := func(status string) supply { return supply{"type": "Battery", "status": status} }
	for name, tt := range map[string]struct {
		supplies []supply
		want     string
	}{
		"nothing known":              {nil, ""},
		"mains":                      {[]supply{mains("1")}, gate.Mains},
		"mains, and a battery":       {[]supply{mains("1"), battery("Full")}, gate.Mains},
		"battery drains":             {[]supply{mains("0"), battery("Discharging")}, gate.Battery},
		"battery alone":              {[]supply{battery("Discharging")}, gate.Battery},
		"battery that says little":   {[]supply{mains("0"), battery("Unknown")}, gate.Battery},
		"sockets that nothing is in": {[]supply{{"type": "USB", "online": "0"}, {"type": "USB", "online": "0"}}, ""},
		"a scanner beside a socket":  {[]supply{{"type": "USB", "online": "0"}, {"type": "Battery", "scope": "Device", "status": "Discharging"}}, ""},
		"a scanner's battery":        {[]supply{{"type": "Battery", "scope": "Device", "status": "Discharging"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for i, s := range tt.supplies {
				for file, text := range s {
					write(t, filepath.Join(dir, strconv.Itoa(i), file), text+"\n")
				}
			}
			if got := gate.Supply(dir); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	if got := gate.Supply(filepath.Join(t.TempDir(), "none")); got != "" {
		t.Errorf("without a folder: %q", got)
	}
}
