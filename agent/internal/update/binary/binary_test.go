package binary_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/agent/internal/update/binary"
	"github.com/tillward/tillward/agent/internal/update/powercut"
	"github.com/tillward/tillward/provisioning/trust"
)

// program is an agent that is a small script.
func program(version string, exit int) []byte {
	return []byte(fmt.Sprintf("#!/bin/sh\n# version=%s\nexit %d\n%s", version, exit, strings.Repeat("# padding\n", 2000)))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// job is the release of a program that lies in dir.
func job(t testing.TB, dir, version string, exit int) update.Job {
	t.Helper()
	b := program(version, exit)
	sum := sha256.Sum256(b)
	file := filepath.Join(dir, "fetched-"+version)
	must(t, os.WriteFile(file, b, 0o600))
	return update.Job{
		Execution: "x-" + version, Component: binary.Component, Version: version, File: file,
		Target: trust.Target{
			Path: binary.Path("agent/"+version, "linux", "amd64"), SHA256: hex.EncodeToString(sum[:]), Length: int64(len(b)),
			Custom: trust.Custom{Class: "agent", Version: version, OS: "linux", Arch: "amd64"},
		},
	}
}

func handler(t testing.TB, dir, version, slot string, step func(string)) *binary.Handler {
	t.Helper()
	h, err := binary.New(binary.Options{Dir: dir, Version: version, Slot: slot, OS: "linux", Arch: "amd64", Step: step})
	must(t, err)
	return h
}

// started is the version of what the launcher chooses. What it chooses is
// whole.
func started(t testing.TB, dir, golden, version string) (runs, slot string) {
	t.Helper()
	path, slot := binary.Choose(dir, golden, version)
	b, err := os.ReadFile(path) // #nosec G304 -- the test's own
	must(t, err)
	_, rest, _ := strings.Cut(string(b), "# version=")
	runs, _, _ = strings.Cut(rest, "\n")
	if want := program(runs, 0); string(b) != string(want) {
		t.Fatalf("slot %s holds %d bytes of %q, not a whole agent", slot, len(b), runs)
	}
	return runs, slot
}

// install has a version run and kept.
func install(t testing.TB, dir, from, slot, version string) {
	t.Helper()
	h := handler(t, dir, from, slot, nil)
	j := job(t, dir, version, 0)
	must(t, h.Stage(t.Context(), j))
	if e, err := h.Move(t.Context(), j, update.Try); e != update.Restart || err != nil {
		t.Fatalf("try: %v, %v", e, err)
	}
	_, now := binary.Choose(dir, "golden", "0.0.1")
	h = handler(t, dir, version, now, nil)
	if truth, err := h.Running(t.Context(), binary.Component); err != nil || !truth.Trial || truth.Version != version || truth.Hash != j.Target.SHA256 || truth.Execution != j.Execution {
		t.Fatalf("on trial: %+v, %v", truth, err)
	}
	if _, err := h.Move(t.Context(), j, update.Keep); err != nil {
		t.Fatal(err)
	}
	if truth, err := h.Running(t.Context(), binary.Component); err != nil || truth.Trial {
		t.Fatalf("kept: %+v, %v", truth, err)
	}
}

// An image that brings a golden agent no older than the slots clears them; an
// older one leaves them alone.
func TestImageOvertakesSlots(t *testing.T) {
	for golden, want := range map[string]string{"1.1.0": "b", "1.2.0": binary.Golden, "1.3.0": binary.Golden, "not a version": "b"} {
		dir := t.TempDir()
		image := filepath.Join(t.TempDir(), "golden")
		must(t, os.WriteFile(image, program("1.0.0", 0), 0o700)) // #nosec G306 -- a program
		install(t, dir, "1.0.0", binary.Golden, "1.1.0")
		install(t, dir, "1.1.0", "a", "1.2.0")
		if _, slot := binary.Choose(dir, image, golden); slot != want {
			t.Errorf("golden %s: slot %s starts, want %s", golden, slot, want)
		}
		if want != binary.Golden {
			continue
		}
		// For good: an image that is gone back to finds no slot that it did not leave.
		if _, slot := binary.Choose(dir, image, "1.0.0"); slot != binary.Golden {
			t.Errorf("after golden %s: slot %s starts again", golden, slot)
		}
	}
}

// A slot that an agent of before wrote does not say its version: the agent in it
// does, when it starts.
func TestOlderSlotGetsItsVersion(t *testing.T) {
	dir := t.TempDir()
	install(t, dir, "1.0.0", binary.Golden, "1.1.0")
	must(t, os.Remove(filepath.Join(dir, "a", "tillward-agent.version")))
	if _, slot := binary.Choose(dir, "golden", "9.0.0"); slot != "a" {
		t.Fatalf("slot %s", slot)
	}
	handler(t, dir, "1.1.0", "a", nil)
	if _, slot := binary.Choose(dir, "golden", "9.0.0"); slot != binary.Golden {
		t.Errorf("slot %s starts though the image has overtaken it", slot)
	}
}

// What is on trial stays on trial when the record of it is damaged: its starts
// are counted, it does not count as kept, and what was before it runs in the end.
func TestDamagedTrial(t *testing.T) {
	for _, record := range []string{"", "{", "null", `{"slot":"c","previous":"a"}`, `{"slot":"b","previous":"../x"}`, "\x00\x00"} {
		dir := t.TempDir()
		golden := filepath.Join(t.TempDir(), "golden")
		must(t, os.WriteFile(golden, program("1.0.0", 0), 0o700)) // #nosec G306 -- a program
		install(t, dir, "1.0.0", binary.Golden, "1.1.0")
		h, j := handler(t, dir, "1.1.0", "a", nil), job(t, dir, "1.2.0", 0)
		must(t, h.Stage(t.Context(), j))
		_, err := h.Move(t.Context(), j, update.Try)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, "trial.json"), []byte(record), 0o600))
		for n := range 3 {
			v, slot := started(t, dir, golden, "1.0.0")
			if v != "1.2.0" {
				t.Fatalf("%q: start %d: %s runs", record, n, v)
			}
			if truth, err := handler(t, dir, v, slot, nil).Running(t.Context(), binary.Component); err != nil || !truth.Trial {
				t.Errorf("%q: start %d: %+v, %v", record, n, truth, err)
			}
			if n == 0 {
				must(t, os.WriteFile(filepath.Join(dir, "trial.json"), []byte(record), 0o600))
				if v, _ := started(t, dir, golden, "1.0.0"); v != "1.2.0" {
					t.Fatalf("%q: %s runs", record, v)
				}
			}
		}
		if v, slot := started(t, dir, golden, "1.0.0"); v != "1.0.0" || slot != binary.Golden {
			t.Errorf("%q: %s runs from %s after three starts", record, v, slot)
		}
	}
}

// A record that was damaged after the way back takes what runs for what was on
// trial. That is not undone as well.
func TestDamagedTrialOfWhatRuns(t *testing.T) {
	dir := t.TempDir()
	install(t, dir, "1.0.0", binary.Golden, "1.1.0")
	must(t, os.WriteFile(filepath.Join(dir, "trial.json"), []byte("{"), 0o600))
	h := handler(t, dir, "1.1.0", "a", nil)
	if e, err := h.Move(t.Context(), job(t, dir, "1.2.0", 0), update.Back); e != update.None || err != nil {
		t.Errorf("back: %v, %v", e, err)
	}
	if v, _ := started(t, dir, "golden", "1.0.0"); v != "1.1.0" {
		t.Errorf("%s runs", v)
	}
	dir = t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "trial.json"), []byte("{"), 0o600))
	if truth, err := handler(t, dir, "1.0.0", binary.Golden, nil).Running(t.Context(), binary.Component); err != nil || truth.Trial {
		t.Errorf("the golden agent: %+v, %v", truth, err)
	}
}

// A slot that broke and was passed over is not started when it is written anew,
// before its trial.
func TestBrokenSlotStartsOnTrialOnly(t *testing.T) {
	dir := t.TempDir()
	golden := filepath.Join(t.TempDir(), "golden")
	must(t, os.WriteFile(golden, program("1.0.0", 0), 0o700)) // #nosec G306 -- a program
	install(t, dir, "1.0.0", binary.Golden, "1.1.0")
	must(t, os.WriteFile(filepath.Join(dir, "a", "tillward-agent"), []byte("rot"), 0o700)) // #nosec G306 -- a program
	if v, slot := started(t, dir, golden, "1.0.0"); v != "1.0.0" || slot != binary.Golden {
		t.Fatalf("%s starts from %s", v, slot)
	}
	h := handler(t, dir, "1.0.0", binary.Golden, nil)
	must(t, h.Stage(t.Context(), job(t, dir, "1.2.0", 0)))
	if v, slot := started(t, dir, golden, "1.0.0"); v != "1.0.0" || slot != binary.Golden {
		t.Errorf("%s starts from %s before its trial", v, slot)
	}
}

func TestStageRefuses(t *testing.T) {
	dir := t.TempDir()
	h := handler(t, dir, "1.0.0", binary.Golden, nil)
	other := job(t, dir, "1.1.0", 0)
	other.Target.Custom.Arch = "arm64"
	sick := job(t, dir, "1.2.0", 1)
	swapped := job(t, dir, "1.3.0", 0)
	must(t, os.WriteFile(swapped.File, program("1.3.1", 0), 0o600))
	for name, j := range map[string]update.Job{"another machine": other, "fails its self-check": sick, "another file": swapped} {
		if err := h.Stage(t.Context(), j); err == nil {
			t.Errorf("%s: staged", name)
		}
		if name != "fails its self-check" {
			if _, err := h.Move(t.Context(), j, update.Try); err == nil {
				t.Errorf("%s: tried", name)
			}
		}
	}
}

// Wherever the power goes on the way there and back, a whole agent starts, and
// the new one on trial only.
func TestPowerCut(t *testing.T) {
	golden := filepath.Join(t.TempDir(), "golden")
	must(t, os.WriteFile(golden, program("1.0.0", 0), 0o700)) // #nosec G306 -- a program
	prepare := func(dir string) {
		install(t, dir, "1.0.0", binary.Golden, "1.1.0")
		job(t, dir, "1.2.0", 0)
	}
	there := func(dir string, step func(string)) {
		h, j := handler(t, dir, "1.1.0", "a", step), job(t, dir, "1.2.0", 0)
		must(t, h.Stage(t.Context(), j))
		_, err := h.Move(t.Context(), j, update.Try)
		must(t, err)
	}
	cuts := powercut.Run(t, prepare, there, func(t *testing.T, dir string) {
		v, slot := started(t, dir, golden, "1.0.0")
		truth, err := handler(t, dir, v, slot, nil).Running(t.Context(), binary.Component)
		must(t, err)
		switch v {
		case "1.1.0":
			if truth.Trial {
				t.Errorf("the old one is on trial: %+v", truth)
			}
		case "1.2.0":
			if !truth.Trial {
				t.Errorf("the new one is not on trial: %+v", truth)
			}
		default:
			t.Errorf("%s starts from %s", v, slot)
		}
	})
	if cuts < 15 {
		t.Errorf("only %d cuts", cuts)
	}
	for name, last := range map[string]update.Move{"keep": update.Keep, "back": update.Back} {
		t.Run(name, func(t *testing.T) {
			powercut.Run(t, func(dir string) {
				prepare(dir)
				there(dir, nil)
				binary.Choose(dir, golden, "1.0.0")
			}, func(dir string, step func(string)) {
				h, j := handler(t, dir, "1.2.0", "b", step), job(t, dir, "1.2.0", 0)
				e, err := h.Move(t.Context(), j, last)
				must(t, err)
				if e != update.Restart {
					return
				}
				v, slot := started(t, dir, golden, "1.0.0")
				_, err = handler(t, dir, v, slot, step).Move(t.Context(), j, last)
				must(t, err)
			}, func(t *testing.T, dir string) {
				v, slot := started(t, dir, golden, "1.0.0")
				truth, err := handler(t, dir, v, slot, nil).Running(t.Context(), binary.Component)
				must(t, err)
				if v == "1.2.0" && last == update.Back && !truth.Trial || v == "1.1.0" && (last == update.Keep || truth.Trial) || v == "1.0.0" {
					t.Errorf("%s starts from %s: %+v", v, slot, truth)
				}
			})
		})
	}
}
