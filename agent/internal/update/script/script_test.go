package script_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/agent/internal/update/powercut"
	"github.com/tillward/tillward/agent/internal/update/script"
	"github.com/tillward/tillward/provisioning/tree"
	"github.com/tillward/tillward/provisioning/trust"
)

const component = "ops/shop/firmware"

// firmware is a script that takes /work/firmware for the memory of a device.
const firmware = `#!/bin/sh
set -e
cd /work
case $1 in
stage) cat /release/version > next; sync next ;;
try)
	if [ ! -e before ]; then cp firmware before.new 2>/dev/null || : > before.new; sync before.new; mv before.new before; fi
	cp next firmware.new; sync firmware.new; mv firmware.new firmware; sync . ;;
prove) [ "$(cat firmware)" = "$TILLWARD_VERSION" ] ;;
keep) rm -f before next; sync . ;;
back) if [ -e before ]; then if [ -s before ]; then cp before firmware.new; sync firmware.new; mv firmware.new firmware; else rm -f firmware; fi; rm before; sync .; fi ;;
running) cat firmware 2>/dev/null || : ;;
*) exit 64 ;;
esac
`

type till struct {
	t   *testing.T
	dir string
	*script.Handler
}

func start(t *testing.T, dir string, step func(string), change ...func(*script.Options)) till {
	t.Helper()
	o := script.Options{
		Dir: filepath.Join(dir, "scripts"), Log: slog.New(slog.DiscardHandler), Step: step,
		Scripts: []script.Script{{Name: "firmware", Time: 20 * time.Second, WorkMiB: 1}},
	}
	for _, c := range change {
		c(&o)
	}
	h, err := script.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return till{t, dir, h}
}

func job(t *testing.T, version, run string) update.Job {
	t.Helper()
	dir := t.TempDir()
	err := errors.Join(os.WriteFile(filepath.Join(dir, "run"), []byte(run), 0o755), os.WriteFile(filepath.Join(dir, "version"), []byte(version), 0o644))
	var b bytes.Buffer
	file := filepath.Join(t.TempDir(), "script.tar")
	if err := errors.Join(err, tree.Pack(&b, dir), os.WriteFile(file, b.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b.Bytes())
	return update.Job{
		Execution: "x-" + version, Component: component, Version: version, File: file,
		Target: trust.Target{SHA256: hex.EncodeToString(sum[:]), Length: int64(b.Len()), Custom: trust.Custom{Class: trust.ClassScript, Version: version}},
	}
}

func (l till) stage(j update.Job) {
	l.t.Helper()
	if err := l.Stage(l.t.Context(), j); err != nil {
		l.t.Fatal(err)
	}
}

func (l till) move(j update.Job, moves ...update.Move) {
	l.t.Helper()
	for _, m := range moves {
		if e, err := l.Move(l.t.Context(), j, m); err != nil || e != update.None {
			l.t.Fatalf("move %d: effect %d, %v", m, e, err)
		}
	}
}

func (l till) truth() update.Truth {
	l.t.Helper()
	got, err := l.Running(l.t.Context(), component)
	if err != nil {
		l.t.Fatal(err)
	}
	return got
}

func (l till) file(names ...string) string {
	return filepath.Join(append([]string{l.dir, "scripts", "firmware"}, names...)...)
}

func TestScript(t *testing.T) {
	l := start(t, t.TempDir(), nil)
	if got := l.truth(); got != (update.Truth{}) {
		t.Errorf("nothing is installed: %+v", got)
	}
	if err := l.Supported(t.Context()); err != nil {
		t.Fatal(err)
	}
	one := job(t, "1.0.0", firmware)
	l.stage(one)
	l.move(one, update.Try)
	if got, want := l.truth(), (update.Truth{Version: "1.0.0", Slot: "1.0.0", Hash: one.Target.SHA256, Trial: true, Execution: one.Execution}); got != want {
		t.Errorf("on trial: %+v, want %+v", got, want)
	}
	l.move(one, update.Try, update.Prove, update.Keep, update.Keep)
	two := job(t, "1.1.0", strings.Replace(firmware, "prove) ", "prove) echo the printer is silent >&2; exit 1;", 1))
	l.stage(two)
	l.move(two, update.Try)
	if _, err := l.Move(t.Context(), two, update.Prove); err == nil || !strings.Contains(err.Error(), "the printer is silent") {
		t.Errorf("proved with %v", err)
	}
	l.move(two, update.Back, update.Back)
	if got, want := l.truth(), (update.Truth{Version: "1.0.0", Slot: "1.0.0", Hash: one.Target.SHA256}); got != want {
		t.Errorf("after going back: %+v, want %+v", got, want)
	}
	// What the device says counts, not what was installed.
	if err := os.WriteFile(l.file("work", "firmware"), []byte("0.9.0"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, want := l.truth(), (update.Truth{Version: "0.9.0", Slot: "1.0.0"}); got != want {
		t.Errorf("after a change at the device: %+v, want %+v", got, want)
	}
}

// The exit code is the answer.
func TestAnswers(t *testing.T) {
	for code, tt := range map[int]struct {
		effect update.Effect
		want   string
	}{
		0: {update.None, ""}, 64: {update.None, ""}, 76: {update.Reboot, ""},
		65: {update.None, "not for me"}, 75: {update.None, "not yet: not for me"}, 1: {update.None, "not for me"}, 255: {update.None, "not for me"},
	} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			l := start(t, t.TempDir(), nil)
			j := job(t, "1.0.0", fmt.Sprintf("#!/bin/sh\ncase $1 in stage) exit 0;; esac\necho not for me >&2\nexit %d\n", code))
			l.stage(j)
			effect, err := l.Move(t.Context(), j, update.Try)
			if effect != tt.effect || (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("effect %d, %v, want %d and %q", effect, err, tt.effect, tt.want)
			}
			got, err := l.Running(t.Context(), component)
			switch want := map[int]string{64: "1.0.0"}[code]; {
			case code == 75 && err == nil:
				t.Error("what is not known yet is told")
			case code != 75 && (err != nil || got.Version != want || !got.Trial):
				t.Errorf("truth %+v, %v, want version %q", got, err, want)
			}
			if _, err := l.Move(t.Context(), j, update.Back); err != nil {
				t.Errorf("it cannot be taken back: %v", err)
			}
			if got := l.truth(); got != (update.Truth{}) {
				t.Errorf("after going back: %+v", got)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	for name, tt := range map[string]struct {
		run    string
		change func(*update.Job)
		want   string
	}{
		"not configured":    {firmware, func(j *update.Job) { j.Component = "ops/shop/other" }, "no script other is configured"},
		"another class":     {firmware, func(j *update.Job) { j.Target.Custom.Class = trust.ClassApp }, "of class app"},
		"not for this box":  {"#!/bin/sh\necho no such printer >&2\nexit 65\n", nil, "no such printer"},
		"not a program":     {"\x00", nil, "exec format error"},
		"no interpreter":    {"#!/opt/vendor/sh\n", nil, "no such file"},
		"another hash":      {firmware, func(j *update.Job) { j.Target.SHA256 = strings.Repeat("0", 64) }, "does not hold"},
		"name leads out":    {firmware, func(j *update.Job) { j.Component = "ops/shop/../x" }, "must be ops/"},
		"killed by a limit": {"#!/bin/sh\nkill -9 $$\nkill -SEGV $$\nexit 9\n", nil, "exit code 9"}, // the first process of a sandbox bears its own signals
	} {
		t.Run(name, func(t *testing.T) {
			l := start(t, t.TempDir(), nil)
			j := job(t, "1.0.0", tt.run)
			if tt.change != nil {
				tt.change(&j)
			}
			err := l.Stage(t.Context(), j)
			for range 20 { // the race detector's own memory does not always fit the limit
				if err == nil || !strings.Contains(err.Error(), "runtime: cannot allocate memory") {
					break
				}
				err = l.Stage(t.Context(), j)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	for name, change := range map[string]func(*script.Options){
		"in sight":  func(o *script.Options) { o.Dir = "/usr/lib/tillward" },
		"no time":   func(o *script.Options) { o.Scripts[0].Time = 0 },
		"no room":   func(o *script.Options) { o.Scripts[0].WorkMiB = 0 },
		"two names": func(o *script.Options) { o.Scripts = append(o.Scripts, o.Scripts[0]) },
		"no name":   func(o *script.Options) { o.Scripts[0].Name = "../x" },
		"no device": func(o *script.Options) { o.Scripts[0].Devices = []string{"/etc/shadow"} },
		"tricky":    func(o *script.Options) { o.Scripts[0].Devices = []string{"/dev/../etc/shadow"} },
	} {
		o := script.Options{Dir: "/var/lib/tillward", Scripts: []script.Script{{Name: "a", Time: time.Minute, WorkMiB: 1}}}
		change(&o)
		if _, err := script.New(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// A script that was changed since it was installed never runs.
func TestTampered(t *testing.T) {
	l := start(t, t.TempDir(), nil)
	one := job(t, "1.0.0", firmware)
	l.stage(one)
	l.move(one, update.Try, update.Prove, update.Keep)
	evil := "#!/bin/sh\necho > /work/evil\necho 9.9.9\n"
	if err := os.WriteFile(l.file("releases", "1.0.0", "run"), []byte(evil), 0o755); err != nil {
		t.Fatal(err)
	}
	if got := l.truth(); got.Version != "" || got.Slot != "1.0.0" {
		t.Errorf("truth %+v", got)
	}
	two := job(t, "1.1.0", firmware)
	l.stage(two)
	l.move(two, update.Try)
	if err := os.WriteFile(l.file("releases", "1.1.0", "run"), []byte(evil), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, m := range []update.Move{update.Try, update.Prove, update.Keep} {
		if _, err := l.Move(t.Context(), two, m); err == nil || !strings.Contains(err.Error(), "does not hold") {
			t.Errorf("move %d: %v", m, err)
		}
	}
	l.move(two, update.Back)
	if _, err := os.Stat(l.file("work", "evil")); err == nil {
		t.Error("it ran")
	}
}

// The power is cut at each step. The device has the old firmware or the new,
// what is said is so, and the update can be finished or taken back.
func TestPowerCut(t *testing.T) {
	one, two := job(t, "1.0.0", firmware), job(t, "1.1.0", firmware)
	bad := job(t, "1.2.0", strings.Replace(firmware, "prove) ", "prove) exit 1;", 1))
	prepare := func(dir string) {
		l := start(t, dir, nil)
		l.stage(one)
		l.move(one, update.Try, update.Prove, update.Keep)
	}
	for name, j := range map[string]update.Job{"stays": two, "goes back": bad} {
		t.Run(name, func(t *testing.T) {
			cuts := powercut.Run(t, prepare, func(dir string, step func(string)) {
				l := start(t, dir, func(name string) {
					switch name { // package shelf cuts everywhere else
					case "stage", "try", "prove", "keep", "back", "rename previous", "rename current", "write state.json":
						step(name)
					}
				})
				l.stage(j)
				l.move(j, update.Try)
				if _, err := l.Move(t.Context(), j, update.Prove); err != nil {
					l.move(j, update.Back)
					return
				}
				l.move(j, update.Keep)
			}, func(t *testing.T, dir string) {
				l := start(t, dir, nil)
				got := l.truth()
				device, err := os.ReadFile(l.file("work", "firmware"))
				if err != nil || got.Version != string(device) || got.Version != "1.0.0" && got.Version != j.Version {
					t.Fatalf("the device has %s (%v), truth %+v", device, err, got)
				}
				if strings.HasSuffix(t.Name(), "the_end") && (got.Trial || (got.Version == j.Version) != (j.Version == two.Version)) {
					t.Errorf("what was done is not there to stay: %+v", got)
				}
				// As the agent goes on.
				want := j.Version
				if !got.Trial && got.Version != j.Version {
					l.stage(j)
				}
				if got.Version != j.Version {
					if _, err := l.Move(t.Context(), j, update.Try); err != nil && j.Version == two.Version {
						t.Fatal(err) // one that was given up is not tried again
					}
				}
				if _, err := l.Move(t.Context(), j, update.Prove); err == nil || !l.truth().Trial {
					l.move(j, update.Keep)
				} else {
					l.move(j, update.Back)
					want = "1.0.0"
				}
				if got := l.truth(); got.Version != want || got.Trial || want != map[bool]string{true: "1.1.0", false: "1.0.0"}[j.Version == two.Version] {
					t.Errorf("in the end %+v", got)
				}
			})
			if cuts < 16 {
				t.Errorf("only %d cuts", cuts)
			}
		})
	}
}
