package app_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/agent/internal/update/app"
	"github.com/tillward/tillward/agent/internal/update/powercut"
	"github.com/tillward/tillward/provisioning/tree"
	"github.com/tillward/tillward/provisioning/trust"
)

const component = "ops/shop/pos"

// folder makes one that the user without rights may write.
func folder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o777)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// till is a box with an application that keeps what it is in the file `runs`.
type till struct {
	t    *testing.T
	dir  string // of the applications
	runs string
	*app.Handler
}

func start(t *testing.T, dir, runs string, step func(string)) till {
	t.Helper()
	h, err := app.New(app.Options{Dir: dir, Timeout: 10 * time.Second, Log: slog.New(slog.DiscardHandler), Step: step})
	if err != nil {
		t.Fatal(err)
	}
	return till{t, dir, runs, h}
}

// boot does what the image does: it starts what current leads to.
func (l till) boot() {
	l.t.Helper()
	_ = os.Remove(l.runs)
	if b, err := os.ReadFile(filepath.Join(l.dir, "pos", "current", "version")); err == nil {
		l.write(l.runs, string(b))
	}
}

func (l till) write(path, content string) {
	l.t.Helper()
	if err := errors.Join(os.WriteFile(path, []byte(content), 0o666), os.Chmod(path, 0o666)); err != nil {
		l.t.Fatal(err)
	}
}

// sells says which version is at work.
func (l till) sells() string {
	b, _ := os.ReadFile(l.runs)
	return strings.TrimSpace(string(b))
}

// release is an application that starts, stops, and is well while it runs.
func (l till) release(version string, change func(files, manifest map[string]any)) update.Job {
	return release(l.t, l.runs, version, change)
}

func release(t *testing.T, runs, version string, change func(files, manifest map[string]any)) update.Job {
	t.Helper()
	files := map[string]any{
		"version":   version,
		"bin/start": "#!/bin/sh\ncat version > $1\n",
		"bin/stop":  "#!/bin/sh\nrm -f $1\n",
		"bin/check": "#!/bin/sh\ncmp version $1\n",
		"data":      strings.Repeat("till\n", 2000),
	}
	manifest := map[string]any{
		"start": []string{"./bin/start", runs}, "stop": []string{"./bin/stop", runs}, "health": []string{"./bin/check", runs}, "later": true,
	}
	if change != nil {
		change(files, manifest)
	}
	if _, given := files["tillward.json"]; !given {
		b, err := json.Marshal(manifest)
		if err != nil {
			t.Fatal(err)
		}
		files["tillward.json"] = string(b)
	}
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if content == nil {
			continue
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content.(string)), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if err := tree.Pack(&b, dir); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "tree.tar")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b.Bytes())
	return update.Job{
		Execution: "x-" + version, Component: component, Version: version, File: file,
		Target: trust.Target{SHA256: hex.EncodeToString(sum[:]), Length: int64(b.Len()), Custom: trust.Custom{Class: trust.ClassApp, Version: version}},
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

func (l till) trees() []string {
	l.t.Helper()
	all, err := filepath.Glob(filepath.Join(l.dir, "pos", "*"))
	if err != nil {
		l.t.Fatal(err)
	}
	var names []string
	for _, p := range all {
		if fi, err := os.Lstat(p); err == nil && fi.IsDir() {
			names = append(names, filepath.Base(p))
		}
	}
	return names
}

func newTill(t *testing.T) till {
	return start(t, filepath.Join(folder(t), "apps"), filepath.Join(folder(t), "runs"), nil)
}

func TestApp(t *testing.T) {
	l := newTill(t)
	if got := l.truth(); got != (update.Truth{}) {
		t.Errorf("nothing is installed: %+v", got)
	}
	for _, v := range []string{"1.0.0", "1.1.0", "1.2.0"} {
		j := l.release(v, nil)
		l.stage(j)
		was := l.sells()
		if was == v {
			t.Errorf("%s sells before its trial", v)
		}
		l.move(j, update.Try)
		if got, want := l.truth(), (update.Truth{Version: v, Slot: v, Hash: j.Target.SHA256, Trial: true, Execution: j.Execution}); got != want {
			t.Errorf("on trial: %+v, want %+v", got, want)
		}
		l.move(j, update.Prove, update.Keep, update.Keep)
		if got := l.truth(); got.Version != v || got.Trial || l.sells() != v {
			t.Errorf("%s sells, truth %+v, want %s", l.sells(), got, v)
		}
	}
	if got := l.trees(); !slices.Equal(got, []string{"1.1.0", "1.2.0"}) {
		t.Errorf("trees %v, want exactly two", got)
	}
	if err := l.Health(t.Context(), component); err != nil {
		t.Errorf("health: %v", err)
	}
	seed := l.Seed(t.Context(), component)
	b, err := io.ReadAll(seed)
	if sum := sha256.Sum256(b); err != nil || hex.EncodeToString(sum[:]) != l.truth().Hash {
		t.Errorf("the seed is not what was installed: %v", err)
	}
	_ = seed.Close()
	_ = os.Remove(l.runs)
	if err := l.Health(t.Context(), component); err == nil {
		t.Error("what does not run is well")
	}
}

// An application that is not well goes back to the one before, which sells on.
func TestUnhealthy(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(files, manifest map[string]any)
		want   string
	}{
		"says so":         {func(f, _ map[string]any) { f["bin/check"] = "#!/bin/sh\necho the printer is not found >&2\nexit 3\n" }, "health: exit status 3: the printer is not found"},
		"does not answer": {func(f, m map[string]any) { f["bin/check"] = "#!/bin/sh\nsleep 600 & sleep 600\n"; m["timeout_s"] = 1 }, "health: not done within 1s"},
		"does not start":  {func(f, _ map[string]any) { f["bin/start"] = "#!/bin/sh\nexit 7\n" }, "start: exit status 7"},
		"starts nothing":  {func(f, _ map[string]any) { f["bin/start"] = "#!/bin/sh\nexit 0\n" }, "health: exit status"},
		"no such command": {func(_, m map[string]any) { m["health"] = []string{"./bin/nothing"} }, "no such file"},
		"not a program":   {func(f, _ map[string]any) { f["bin/check"] = "\x00\x01" }, "exec format error"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newTill(t)
			for _, v := range []string{"1.0.0", "1.1.0"} {
				j := l.release(v, nil)
				l.stage(j)
				l.move(j, update.Try, update.Prove, update.Keep)
			}
			j := l.release("1.2.0", tt.change)
			l.stage(j)
			l.move(j, update.Try)
			if _, err := l.Move(t.Context(), j, update.Prove); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("proved with %v, want %q", err, tt.want)
			}
			l.move(j, update.Back, update.Back)
			if got := l.truth(); got.Version != "1.1.0" || got.Trial || l.sells() != "1.1.0" {
				t.Errorf("%s sells, truth %+v", l.sells(), got)
			}
			if got := l.trees(); !slices.Equal(got, []string{"1.0.0", "1.1.0"}) {
				t.Errorf("trees %v, want exactly two", got)
			}
		})
	}
}

// A tree that is changed while it is on trial is not kept, however well it says
// it is, and one that was kept is no version any more.
func TestTampered(t *testing.T) {
	l := newTill(t)
	one := l.release("1.0.0", nil)
	l.stage(one)
	l.move(one, update.Try, update.Prove, update.Keep)
	two := l.release("1.1.0", nil)
	l.stage(two)
	l.move(two, update.Try, update.Prove)
	l.write(filepath.Join(l.dir, "pos", "1.1.0", "bin", "check"), "#!/bin/sh\nexit 0\n")
	if _, err := l.Move(t.Context(), two, update.Prove); err == nil || !strings.Contains(err.Error(), "does not hold") {
		t.Errorf("it is proved: %v", err)
	}
	if got := l.truth(); got.Version != "" || !got.Trial {
		t.Errorf("truth %+v", got)
	}
	l.move(two, update.Back)
	if got := l.truth(); got.Version != "1.0.0" || l.sells() != "1.0.0" {
		t.Errorf("%s sells, truth %+v", l.sells(), got)
	}
	l.write(filepath.Join(l.dir, "pos", "1.0.0", "data"), "x")
	if got := l.truth(); got.Version != "" || got.Slot != "1.0.0" {
		t.Errorf("truth %+v", got)
	}
}

// The user that commands run as cannot change the application.
func TestCommandsHaveNoRights(t *testing.T) {
	l := newTill(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	j := l.release("1.0.0", func(f, m map[string]any) {
		f["bin/check"] = "#!/bin/sh\nenv\nid -u\ncat $2 && echo LEAK\necho x > version && echo WRITTEN\nexit 1\n"
		m["health"] = []string{"./bin/check", l.runs, secret}
	})
	l.stage(j)
	t.Setenv("TILLWARD_SECRET", "LEAK")
	l.move(j, update.Try)
	_, err := l.Move(t.Context(), j, update.Prove)
	if err == nil || strings.Contains(err.Error(), "TILLWARD_SECRET") {
		t.Errorf("the agent's environment: %v", err)
	}
	if os.Getuid() != 0 {
		return // there is no other user to be
	}
	if !strings.Contains(err.Error(), "65534") || strings.Contains(err.Error(), "LEAK") || strings.Contains(err.Error(), "WRITTEN") {
		t.Errorf("got %v", err)
	}
	if _, err := app.New(app.Options{User: "root", Timeout: time.Minute}); err == nil || !strings.Contains(err.Error(), "all rights") {
		t.Errorf("as root: %v", err)
	}
	if _, err := app.New(app.Options{User: "no-such-user", Timeout: time.Minute}); err == nil {
		t.Error("as an unknown user: no error")
	}
	if _, err := app.New(app.Options{}); err == nil {
		t.Error("without a time limit: no error")
	}
}

// What a start leaves running lives on; what a check leaves does not.
func TestWhatRunsOn(t *testing.T) {
	l := newTill(t)
	pids := folder(t)
	j := l.release("1.0.0", func(f, m map[string]any) {
		f["bin/start"] = "#!/bin/sh\ncat version > $1\nsleep 600 &\necho $! > $2/start\n"
		f["bin/check"] = "#!/bin/sh\nsleep 600 &\necho $! > $2/check\n"
		m["start"], m["health"] = []string{"./bin/start", l.runs, pids}, []string{"./bin/check", l.runs, pids}
	})
	pid := func(name string) int {
		b, err := os.ReadFile(filepath.Join(pids, name))
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	l.stage(j)
	l.move(j, update.Try)
	t.Cleanup(func() { _ = syscall.Kill(pid("start"), syscall.SIGKILL) })
	l.move(j, update.Prove)
	if !alive(pid("start")) {
		t.Error("what was started is gone")
	}
	for until := time.Now().Add(10 * time.Second); alive(pid("check")); { // it is killed, and takes its time to die
		if time.Now().After(until) {
			t.Fatal("what the check left runs on")
		}
	}
}

// alive reports whether the process runs; one that was killed may be a zombie
// that nobody waits for.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

func TestRefusals(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(files, manifest map[string]any)
		job    func(*update.Job)
		want   string
	}{
		"manifest is no JSON":      {func(f, _ map[string]any) { f["tillward.json"] = "{" }, nil, "tillward.json"},
		"command of nowhere":       {func(_, m map[string]any) { m["health"] = []string{"check"} }, nil, "must begin with ./"},
		"command outside":          {func(_, m map[string]any) { m["health"] = []string{"./../../bin/sh"} }, nil, "must begin with ./"},
		"endless":                  {func(_, m map[string]any) { m["timeout_s"] = 601 }, nil, "must lie between"},
		"too many arguments":       {func(_, m map[string]any) { m["stop"] = slices.Repeat([]string{"/bin/true"}, 65) }, nil, "at most 64"},
		"too large":                {func(f, _ map[string]any) { f["tillward.json"] = "{}" + strings.Repeat(" ", 64<<10) }, nil, "more than"},
		"another class":            {nil, func(j *update.Job) { j.Target.Custom.Class = trust.ClassScript }, "of class script"},
		"name leads out":           {nil, func(j *update.Job) { j.Component = "ops/shop/.." }, "must be ops/"},
		"another one of that name": {nil, func(j *update.Job) { j.Component = "ops/other/pos" }, "another name"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newTill(t)
			one := l.release("1.0.0", nil)
			l.stage(one)
			l.move(one, update.Try, update.Prove, update.Keep)
			j := l.release("1.1.0", tt.change)
			if tt.job != nil {
				tt.job(&j)
			}
			if err := l.Stage(t.Context(), j); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if _, err := l.Move(t.Context(), j, update.Try); err == nil {
				t.Error("it is tried all the same")
			}
			if got := l.trees(); !slices.Equal(got, []string{"1.0.0"}) || l.sells() != "1.0.0" {
				t.Errorf("%s sells, trees %v", l.sells(), got)
			}
		})
	}
}

// A tree without a manifest is data: being whole is all it has to prove.
func TestData(t *testing.T) {
	l := newTill(t)
	j := l.release("1.0.0", func(f, _ map[string]any) { f["tillward.json"] = nil })
	l.stage(j)
	l.move(j, update.Try, update.Prove, update.Keep)
	if got := l.truth(); got.Version != "1.0.0" {
		t.Errorf("truth %+v", got)
	}
}

// An application that does not stop goes on, and nothing has changed.
func TestDoesNotStop(t *testing.T) {
	l := newTill(t)
	one := l.release("1.0.0", func(f, _ map[string]any) { f["bin/stop"] = "#!/bin/sh\nrm -f $1\nexit 1\n" })
	l.stage(one)
	l.move(one, update.Try, update.Prove, update.Keep)
	two := l.release("1.1.0", nil)
	l.stage(two)
	if _, err := l.Move(t.Context(), two, update.Try); err == nil || !strings.Contains(err.Error(), "stop: exit status 1") {
		t.Errorf("got %v", err)
	}
	if got := l.truth(); got.Version != "1.0.0" || got.Trial || l.sells() != "1.0.0" {
		t.Errorf("%s sells, truth %+v", l.sells(), got)
	}
}

// A command ends with the agent.
func TestCanceled(t *testing.T) {
	l := newTill(t)
	j := l.release("1.0.0", func(f, _ map[string]any) { f["bin/check"] = "#!/bin/sh\necho > $1.checks\nsleep 600\n" })
	l.stage(j)
	l.move(j, update.Try)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for {
			if _, err := os.Stat(l.runs + ".checks"); err == nil || t.Context().Err() != nil {
				cancel()
				return
			}
		}
	}()
	if _, err := l.Move(ctx, j, update.Prove); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// The power is cut at each step, also between stopping the old application and
// starting the new. After the boot a whole version sells and is known; the
// update can be finished, or taken back.
func TestPowerCut(t *testing.T) {
	runs := filepath.Join(folder(t), "runs")
	one, two := release(t, runs, "1.0.0", nil), release(t, runs, "1.1.0", nil)
	three := release(t, runs, "1.2.0", func(f, _ map[string]any) { f["bin/check"] = "#!/bin/sh\nexit 1\n" })
	prepare := func(dir string) {
		l := start(t, dir, runs, nil)
		for _, j := range []update.Job{one, two} {
			l.stage(j)
			l.move(j, update.Try, update.Prove, update.Keep)
		}
	}
	next := release(t, runs, "1.3.0", nil)
	for name, job := range map[string]update.Job{"stays": next, "goes back": three} {
		t.Run(name, func(t *testing.T) {
			cuts := powercut.Run(t, prepare, func(dir string, step func(string)) {
				l := start(t, dir, runs, step)
				l.stage(job)
				l.move(job, update.Try)
				if _, err := l.Move(t.Context(), job, update.Prove); err != nil {
					l.move(job, update.Back)
					return
				}
				l.move(job, update.Keep)
			}, func(t *testing.T, dir string) {
				l := start(t, dir, runs, nil)
				l.boot()
				got := l.truth()
				if got.Version != l.sells() || got.Version != two.Version && got.Version != job.Version {
					t.Fatalf("%s sells, truth %+v", l.sells(), got)
				}
				if strings.HasSuffix(t.Name(), "the_end") && (got.Trial || (got.Version == job.Version) != (job.Version == next.Version)) {
					t.Errorf("what was done is not there to stay: %+v", got)
				}
				// As the agent goes on: it begins anew with what is not current.
				if got.Version != job.Version {
					l.stage(job)
					l.move(job, update.Try)
				}
				want := []string{"1.1.0", "1.3.0"}
				if _, err := l.Move(t.Context(), job, update.Prove); err == nil || !l.truth().Trial {
					l.move(job, update.Keep)
				} else if job.Version == next.Version {
					t.Errorf("it is not well: %v", err)
				} else {
					l.move(job, update.Back)
					want = []string{"1.0.0", "1.1.0"}
				}
				if got := l.truth(); got.Version != want[1] || got.Trial || l.sells() != want[1] {
					t.Errorf("in the end %s sells, truth %+v", l.sells(), got)
				}
				if got := l.trees(); !slices.Equal(got, want) {
					t.Errorf("trees %v, want exactly %v", got, want)
				}
			})
			if cuts < 30 {
				t.Errorf("only %d cuts", cuts)
			}
		})
	}
}

// An agent that ends between stopping and switching starts the application
// again when it comes back, without a boot.
func TestAgentEndsHalfWay(t *testing.T) {
	l := newTill(t)
	one, two := l.release("1.0.0", nil), l.release("1.1.0", nil)
	l.stage(one)
	l.move(one, update.Try, update.Prove, update.Keep)
	stopped := false
	dies := start(t, l.dir, l.runs, func(step string) {
		if stopped = stopped || step == "stop"; stopped && step == "rename previous" {
			panic("the agent ends")
		}
	})
	dies.stage(two)
	func() {
		defer func() { _ = recover() }()
		dies.move(two, update.Try)
	}()
	if l.sells() != "" {
		t.Fatalf("%s sells, want nothing", l.sells())
	}
	l = start(t, l.dir, l.runs, nil)
	if got := l.truth(); got.Version != "1.0.0" || l.sells() != "1.0.0" {
		t.Errorf("%s sells, truth %+v", l.sells(), got)
	}
}
