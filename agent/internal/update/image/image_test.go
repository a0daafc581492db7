package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/agent/internal/update/image"
	"github.com/tillward/tillward/hal/slot"
	"github.com/tillward/tillward/hal/slot/slottest"
	"github.com/tillward/tillward/provisioning/trust"
)

func TestMain(m *testing.M) { slottest.Main(m) }

const component = "os/test/prod"

// till is a box with a Handler; its state outlives restarts of both.
type till struct {
	*slottest.Box
	*image.Handler
	t    *testing.T
	dir  string
	root string
}

func start(t *testing.T, o slottest.Options) *till {
	t.Helper()
	l := &till{Box: slottest.New(t, o), t: t, dir: t.TempDir()}
	if err := os.WriteFile(filepath.Join(l.dir, "os-release"), []byte("NAME=Test\nIMAGE_VERSION=\"1.0.0\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.restart()
	return l
}

// restart is one of the agent.
func (l *till) restart() {
	l.Handler = image.New(image.Options{
		Dir: l.dir, Slots: slot.RAUC{Address: l.Address, Root: l.root}, Log: slog.New(slog.DiscardHandler),
		BootID: l.BootID, Release: filepath.Join(l.dir, "os-release"),
	})
}

// reboot is one of the box.
func (l *till) reboot() {
	l.t.Helper()
	l.Reboot()
	l.restart()
}

func (l *till) job(v string, b slottest.Bundle, format string) update.Job {
	l.t.Helper()
	info, err := os.Stat(b.Path)
	if err != nil {
		l.t.Fatal(err)
	}
	return update.Job{Execution: "x-" + v, Component: component, Version: v, File: b.Path, Target: trust.Target{
		Path: component + "/" + v + "/bundle.raucb", SHA256: b.SHA256, Length: info.Size(),
		Custom: trust.Custom{
			Class: trust.ClassOS, Version: v,
			RAUC: &trust.RAUC{Compatible: slottest.Compatible, Version: v, Format: format, ManifestHash: b.ManifestHash},
		},
	}}
}

// plain makes a bundle and the job that installs it.
func (l *till) plain(v string) update.Job {
	l.t.Helper()
	return l.job(v, l.Bundle(slottest.Spec{Version: v}), "plain")
}

func (l *till) stage(j update.Job) {
	l.t.Helper()
	if err := l.Stage(l.t.Context(), j); err != nil {
		l.t.Fatal(err)
	}
}

func (l *till) move(j update.Job, m update.Move, want update.Effect) {
	l.t.Helper()
	if got, err := l.Move(l.t.Context(), j, m); err != nil || got != want {
		l.t.Fatalf("move %d: got %d, %v; want %d", m, got, err, want)
	}
}

// runs fails the test unless the box runs that and knows it.
func (l *till) runs(version, slot string, trial bool) update.Truth {
	l.t.Helper()
	got, err := l.Running(l.t.Context(), component)
	if err != nil {
		l.t.Fatal(err)
	}
	if got.Version != version || got.Slot != slot || got.Trial != trial {
		l.t.Errorf("truth: %+v; want %s in %s, trial %v", got, version, slot, trial)
	}
	return got
}

// next fails the test unless the boot loader starts that slot next, and the
// other one is as good as said.
func (l *till) next(bootname string, other bool) {
	l.t.Helper()
	o := "A"
	if bootname == "A" {
		o = "B"
	}
	if got := l.Primary(); got != bootname || !l.Good(bootname) || l.Good(o) != other {
		l.t.Errorf("next is %s (good %v), the other one good %v; want %s and %v", got, l.Good(got), l.Good(o), bootname, other)
	}
}

// ends says how an error ends an execution.
func ends(err error) string {
	text := fmt.Sprintf("%#v", err) // the machine's own business, otherwise
	_, text, ok := strings.Cut(text, `{state:"`)
	if !ok {
		return "tried again"
	}
	state, text, _ := strings.Cut(text, `", reason:"`)
	reason, _, _ := strings.Cut(text, `"`)
	return state + " " + reason
}

func TestUpdate(t *testing.T) {
	for name, o := range map[string]slottest.Options{"not activated": {}, "activated by RAUC": {Activate: true}} {
		t.Run(name, func(t *testing.T) {
			l := start(t, o)
			l.runs("1.0.0", "rootfs.0", false)
			two, three := l.plain("2.0.0"), l.plain("3.0.0")
			l.stage(two)
			l.next("A", o.Activate) // whatever comes now, it is not started before Try
			l.reboot()
			l.runs("1.0.0", "rootfs.0", false)
			l.move(two, update.Try, update.Reboot)
			l.move(two, update.Try, update.Reboot) // cut before it was known
			l.runs("1.0.0", "rootfs.0", false)
			l.reboot()

			l.runs("2.0.0", "rootfs.1", true)
			l.stage(two) // cut before it was known
			l.move(two, update.Try, update.None)
			if err := l.Stage(t.Context(), three); err == nil || ends(err) != "tried again" {
				t.Errorf("another one during the trial: %v", err)
			}
			l.move(two, update.Prove, update.None)
			l.move(two, update.Keep, update.None)
			l.runs("2.0.0", "rootfs.1", false)
			l.move(two, update.Keep, update.None)
			l.next("B", true)
			l.reboot()
			if got := l.runs("2.0.0", "rootfs.1", false); got.Hash == "" || got.Failed != "" {
				t.Errorf("truth: %+v", got)
			}

			l.stage(three)
			l.move(three, update.Try, update.Reboot)
			l.reboot()
			l.move(three, update.Prove, update.None)
			l.move(three, update.Keep, update.None)
			l.runs("3.0.0", "rootfs.0", false)
		})
	}
}

// TestBack takes back what came up and is not well.
func TestBack(t *testing.T) {
	l := start(t, slottest.Options{})
	j := l.plain("2.0.0")
	l.move(j, update.Back, update.None) // nothing was begun
	l.stage(j)
	l.move(j, update.Back, update.None) // not tried
	l.next("A", false)
	l.stage(j)
	l.move(j, update.Try, update.Reboot)
	l.reboot()
	l.move(j, update.Back, update.Reboot)
	l.next("A", false)
	l.restart() // cut before it was known
	l.runs("2.0.0", "rootfs.1", true)
	l.move(j, update.Back, update.Reboot)
	l.reboot()
	if got := l.runs("1.0.0", "rootfs.0", false); got.Failed != "" {
		t.Errorf("what we took back counts as the boot loader's doing: %+v", got)
	}
	l.move(j, update.Back, update.None)
	l.next("A", false)
	if _, err := l.Move(t.Context(), j, update.Try); ends(err) != "FAILED install" {
		t.Errorf("try what was taken back: %v", err)
	}
	if _, err := l.Move(t.Context(), j, update.Prove); err == nil {
		t.Error("what was taken back proves itself")
	}
}

// TestFallback has the boot loader give up on a system that does not come up.
func TestFallback(t *testing.T) {
	l := start(t, slottest.Options{})
	j := l.plain("2.0.0")
	l.stage(j)
	l.Break("B")
	l.move(j, update.Try, update.Reboot)
	l.reboot()
	if got := l.runs("1.0.0", "rootfs.0", false); !strings.Contains(got.Failed, "2.0.0") || !strings.Contains(got.Failed, "rootfs.0") {
		t.Errorf("truth: %+v; want that the boot loader came back", got)
	}
	for _, m := range []update.Move{update.Try, update.Prove, update.Keep} {
		if e, err := l.Move(t.Context(), j, m); err == nil || e != update.None {
			t.Errorf("move %d after the boot loader came back: got %d, %v", m, e, err)
		}
	}
	l.move(j, update.Back, update.None)
	if got := l.runs("1.0.0", "rootfs.0", false); got.Failed != "" {
		t.Errorf("truth after it was told: %+v", got)
	}
	l.next("A", false)
}

// TestFound ends trials that are only known by what Running tells.
func TestFound(t *testing.T) {
	for name, tt := range map[string]struct {
		move  update.Move
		want  update.Effect
		after string
	}{"kept": {update.Keep, update.None, "2.0.0"}, "taken back": {update.Back, update.Reboot, "1.0.0"}} {
		t.Run(name, func(t *testing.T) {
			l := start(t, slottest.Options{})
			j := l.plain("2.0.0")
			l.stage(j)
			l.move(j, update.Try, update.Reboot)
			l.reboot()
			found := update.Job{Execution: l.runs("2.0.0", "rootfs.1", true).Execution, Component: component}
			l.move(found, update.Prove, update.None)
			l.move(found, tt.move, tt.want)
			l.reboot()
			l.runs(tt.after, map[string]string{"2.0.0": "rootfs.1", "1.0.0": "rootfs.0"}[tt.after], false)
		})
	}
}

// TestUnprovedFallsBack shows that a trial that nobody ends is not for ever:
// the tries of the boot loader run out.
func TestUnprovedFallsBack(t *testing.T) {
	l := start(t, slottest.Options{})
	j := l.plain("2.0.0")
	l.stage(j)
	l.move(j, update.Try, update.Reboot)
	for range 3 {
		l.reboot()
		l.runs("2.0.0", "rootfs.1", true)
	}
	l.reboot()
	if got := l.runs("1.0.0", "rootfs.0", false); got.Failed == "" {
		t.Errorf("truth: %+v; want that the boot loader came back", got)
	}
}

// TestCutBeforeActive has the power go between our note and the boot loader's:
// it never had a chance, and that is no fallback.
func TestCutBeforeActive(t *testing.T) {
	l := start(t, slottest.Options{})
	j := l.plain("2.0.0")
	l.stage(j)
	l.Kill() // RAUC does not get to know
	if _, err := l.Move(t.Context(), j, update.Try); err == nil {
		t.Fatal("tried without RAUC")
	}
	l.Serve()
	cut := filepath.Join(l.dir, "os.json")
	note, err := os.ReadFile(cut)
	if err != nil {
		t.Fatal(err)
	}
	note = bytes.Replace(note, []byte(`"phase":"ready"`), []byte(`"phase":"trying","boot":"before"`), 1)
	if err := os.WriteFile(cut, note, 0o600); err != nil {
		t.Fatal(err)
	}
	l.reboot()
	if got := l.runs("1.0.0", "rootfs.0", false); got.Failed != "" {
		t.Errorf("truth: %+v; the boot loader was never told", got)
	}
	l.move(j, update.Try, update.Reboot)
	l.reboot()
	l.runs("2.0.0", "rootfs.1", true)
}

// TestNoteLost shows that what runs is told, kept and taken back without the
// state partition.
func TestNoteLost(t *testing.T) {
	for name, spoil := range map[string]func(string) error{
		"lost":    os.Remove,
		"spoiled": func(path string) error { return os.WriteFile(path, []byte("{\"execution\": 1"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			l := start(t, slottest.Options{})
			j := l.plain("2.0.0")
			l.stage(j)
			l.move(j, update.Try, update.Reboot)
			l.reboot()
			if err := spoil(filepath.Join(l.dir, "os.json")); err != nil {
				t.Fatal(err)
			}
			l.runs("2.0.0", "rootfs.1", false)
			l.move(j, update.Prove, update.None)
			l.move(j, update.Back, update.Reboot)
			l.reboot()
			l.runs("1.0.0", "rootfs.0", false)
			if _, err := l.Move(t.Context(), l.plain("9.0.0"), update.Keep); ends(err) != "FAILED install" {
				t.Errorf("keep what never ran: %v", err)
			}
		})
	}
}

// TestRefused has Stage refuse what must not be installed: nothing is written,
// nothing is started.
func TestRefused(t *testing.T) {
	l := start(t, slottest.Options{Activate: true})
	rauc := func(change func(*trust.RAUC)) func(*update.Job) {
		return func(j *update.Job) { change(j.Target.Custom.RAUC) }
	}
	flip := func(j *update.Job) {
		content, err := os.ReadFile(j.File)
		if err != nil {
			t.Fatal(err)
		}
		content[len(content)/2] ^= 1
		j.File = filepath.Join(t.TempDir(), "x.raucb")
		if err := os.WriteFile(j.File, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, tt := range map[string]struct {
		spec   slottest.Spec
		change func(*update.Job)
		want   string
		text   string
	}{
		"another compatible":        {slottest.Spec{}, rauc(func(r *trust.RAUC) { r.Compatible = "another" }), "REJECTED incompatible", "another"},
		"another compatible inside": {slottest.Spec{Compatible: "another"}, nil, "REJECTED incompatible", "mismatch"},
		"another authority":         {slottest.Spec{Foreign: true}, nil, "REJECTED signature", "signature"},
		"another version":           {slottest.Spec{}, rauc(func(r *trust.RAUC) { r.Version = "2.0.1" }), "REJECTED incompatible", "2.0.1"},
		"another version inside":    {slottest.Spec{Version: "2.0.1"}, nil, "FAILED install", `"2.0.1"`},
		"another class":             {slottest.Spec{}, func(j *update.Job) { j.Target.Custom.Class = trust.ClassApp }, "REJECTED incompatible", "class"},
		"no word on the bundle":     {slottest.Spec{}, func(j *update.Job) { j.Target.Custom.RAUC = nil }, "REJECTED incompatible", "publish"},
		"newer RAUC":                {slottest.Spec{}, rauc(func(r *trust.RAUC) { r.MinRAUC = "9.9" }), "REJECTED incompatible", "needs RAUC 9.9"},
		"flipped byte":              {slottest.Spec{}, flip, "FAILED storage", "changed on the disk"},
		"cut":                       {slottest.Spec{}, func(j *update.Job) { j.Target.Length++ }, "FAILED storage", "changed on the disk"},
		"flipped byte that TUF signed": {slottest.Spec{}, func(j *update.Job) {
			flip(j)
			j.Target.SHA256 = sha256Of(t, j.File)
		}, "REJECTED signature", "signature"},
		"neither file nor stream": {slottest.Spec{}, func(j *update.Job) { j.File = "" }, "tried again", "neither"},
		"stream of a plain bundle": {slottest.Spec{}, func(j *update.Job) {
			j.Content, j.File = bytes.NewReader(nil), ""
		}, "tried again", "plain"},
		"file that has gone": {slottest.Spec{}, func(j *update.Job) { j.File += "x" }, "tried again", "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.spec.Version == "" {
				tt.spec.Version = "2.0.0"
			}
			j := l.job("2.0.0", l.Bundle(tt.spec), "plain")
			if tt.change != nil {
				tt.change(&j)
			}
			err := l.Stage(t.Context(), j)
			if err == nil || ends(err) != tt.want || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %s: %v; want %s, %q", ends(err), err, tt.want, tt.text)
			}
			if _, err := l.Move(t.Context(), j, update.Try); err == nil {
				t.Error("it is tried all the same")
			}
			l.runs("1.0.0", "rootfs.0", false)
			if l.Primary() != "A" {
				t.Errorf("slot %s is started next", l.Primary())
			}
		})
	}
	l.stage(l.plain("2.0.0"))
}

// hold makes a job whose installation stops after the slot was written.
// Reading from reached waits for that, writing to release lets it go on.
func (l *till) hold() (j update.Job, reached, release string) {
	l.t.Helper()
	reached, release = filepath.Join(l.Dir, "reached"), filepath.Join(l.Dir, "release")
	for _, fifo := range []string{reached, release} {
		if err := syscall.Mkfifo(fifo, 0o600); err != nil {
			l.t.Fatal(err)
		}
	}
	return l.job("2.0.0", l.Bundle(slottest.Spec{Version: "2.0.0", Hook: "echo >" + reached + "\nread x <" + release}), "plain"), reached, release
}

// TestServiceDies ends RAUC in the middle of writing.
func TestServiceDies(t *testing.T) {
	l := start(t, slottest.Options{Activate: true})
	j, reached, _ := l.hold()
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		_, _ = os.ReadFile(reached)
		l.Kill()
	}()
	if err := l.Stage(t.Context(), j); ends(err) != "FAILED install" || !strings.Contains(err.Error(), "ended in the middle") {
		t.Errorf("got %s: %v; want that RAUC ended", ends(err), err)
	}
	<-killed
	l.runs("1.0.0", "rootfs.0", false) // RAUC is away, and that has not changed
	l.restart()
	if _, err := l.Running(t.Context(), component); err == nil {
		t.Error("what runs is told without anybody who knows")
	}
	l.reboot()
	l.runs("1.0.0", "rootfs.0", false)
	if _, err := l.Move(t.Context(), j, update.Try); ends(err) != "FAILED install" {
		t.Errorf("try what was half written: %v", err)
	}
	l.next("A", false)
}

// TestTimeout gives up on RAUC, which goes on and makes what it writes the one
// to start next: that must not happen.
func TestTimeout(t *testing.T) {
	l := start(t, slottest.Options{Activate: true})
	l.runs("1.0.0", "rootfs.0", false)
	j, reached, release := l.hold()
	late := errors.New("too late")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		_, _ = os.ReadFile(reached)
		cancel(late)
	}()
	if err := l.Stage(ctx, j); !errors.Is(err, late) {
		t.Errorf("got %v, want %v", err, late)
	}
	l.runs("1.0.0", "rootfs.0", false) // and still is
	if _, err := l.Move(t.Context(), j, update.Back); err == nil {
		t.Error("taken back while RAUC writes")
	}
	done := l.Completed()
	if err := os.WriteFile(release, []byte("\n"), 0); err != nil {
		t.Fatal(err)
	}
	<-done
	if l.Primary() != "B" {
		t.Fatalf("RAUC left slot %s to start: this test shows nothing", l.Primary())
	}
	l.restart()
	l.runs("1.0.0", "rootfs.0", false)
	if l.Primary() != "A" {
		t.Errorf("slot %s is started next", l.Primary())
	}
	if _, err := l.Move(t.Context(), j, update.Try); ends(err) != "FAILED install" {
		t.Errorf("try what nobody waited for: %v", err)
	}
	l.move(j, update.Back, update.None)
	l.reboot()
	l.runs("1.0.0", "rootfs.0", false)
}

func TestRunningOther(t *testing.T) {
	l := start(t, slottest.Options{})
	if got, err := l.Running(t.Context(), "agent"); err != nil || got != (update.Truth{}) {
		t.Errorf("got %+v, %v; want nothing", got, err)
	}
	if err := os.Remove(filepath.Join(l.dir, "os-release")); err != nil {
		t.Fatal(err)
	}
	l.runs("", "rootfs.0", false) // nobody knows
}
