package setting_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/agent/internal/update/powercut"
	"github.com/tillward/tillward/agent/internal/update/setting"
	"github.com/tillward/tillward/agent/internal/update/shelf"
	"github.com/tillward/tillward/provisioning/trust"
)

const component = "ops/shop/base"

// box keeps its settings on the same disk, as the agent does.
type box struct {
	t    *testing.T
	file string
	disk shelf.Disk
	err  error // of Apply
}

func (b *box) Validate(values map[string]string) error {
	for k, v := range values {
		if k != "label" && k != "poll_s" && k != "server" {
			return fmt.Errorf("setting %q is not known", k)
		}
		if k == "poll_s" && v == "0" {
			return errors.New("poll_s: at least 1")
		}
	}
	return nil
}

func (b *box) Apply(_ context.Context, set map[string]string, unset []string) error {
	if b.err != nil {
		return b.err
	}
	next := b.Current()
	maps.Copy(next, set)
	for _, k := range unset {
		delete(next, k)
	}
	return b.disk.Save(b.file, next)
}

func (b *box) Current() map[string]string {
	values := make(map[string]string)
	if err := b.disk.Load(b.file, &values); err != nil {
		b.t.Errorf("settings of the box: %v", err)
	}
	return values
}

// till is a box that cannot be reached with server = nowhere.
type till struct {
	*setting.Handler
	box *box
	t   *testing.T
}

func start(t *testing.T, dir string, step func(string)) till {
	t.Helper()
	b := &box{t: t, file: filepath.Join(dir, "box"), disk: shelf.Disk{Step: step}}
	h, err := setting.Open(t.Context(), setting.Options{
		Dir: filepath.Join(dir, "settings"), Box: b, Log: slog.New(slog.DiscardHandler), Step: step,
		Link: func(context.Context) error {
			if b.Current()["server"] == "nowhere" {
				return errors.New("the service is not reached")
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return till{h, b, t}
}

func job(t *testing.T, version, content string) update.Job {
	t.Helper()
	file := filepath.Join(t.TempDir(), "settings.json")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(content))
	return update.Job{
		Execution: "x", Component: component, Version: version, File: file,
		Target: trust.Target{SHA256: hex.EncodeToString(sum[:]), Length: int64(len(content)), Custom: trust.Custom{Class: trust.ClassConfig, Version: version}},
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

func (l till) has(want string) {
	l.t.Helper()
	if got := fmt.Sprint(l.box.Current()); got != "map["+want+"]" {
		l.t.Errorf("the box has %s, want map[%s]", got, want)
	}
}

func TestSettings(t *testing.T) {
	dir := t.TempDir()
	l := start(t, dir, nil)
	if err := l.box.Apply(t.Context(), map[string]string{"label": "Kasse 3"}, nil); err != nil {
		t.Fatal(err)
	}
	one := job(t, "1.0.0", `{"poll_s": 30, "server": "one"}`)
	l.stage(one)
	l.has("label:Kasse 3")
	l.move(one, update.Try, update.Try, update.Prove)
	if got, want := l.truth(), (update.Truth{Version: "1.0.0", Hash: one.Target.SHA256, Trial: true, Execution: one.Execution}); got != want {
		t.Errorf("on trial: %+v, want %+v", got, want)
	}
	l.move(one, update.Keep, update.Keep)
	l.has("label:Kasse 3 poll_s:30 server:one")

	// What the next version does not name any more is unset, and set again when it goes.
	two := job(t, "1.1.0", `{"label": "new", "server": "nowhere"}`)
	l.stage(two)
	l.move(two, update.Try)
	l.has("label:new server:nowhere")
	if _, err := l.Move(t.Context(), two, update.Prove); err == nil || !strings.Contains(err.Error(), "not reached") {
		t.Errorf("it is proved without a link: %v", err)
	}
	if err := l.Stage(t.Context(), job(t, "1.2.0", `{"label": "x"}`)); err == nil || !strings.Contains(err.Error(), "still on trial") {
		t.Errorf("another is staged during a trial: %v", err)
	}
	l.move(two, update.Back, update.Back)
	l.has("label:Kasse 3 poll_s:30 server:one")
	if got, want := l.truth(), (update.Truth{Version: "1.0.0", Hash: one.Target.SHA256}); got != want {
		t.Errorf("after going back: %+v, want %+v", got, want)
	}

	// An operator's hand shows.
	if err := l.box.Apply(t.Context(), map[string]string{"poll_s": "5"}, nil); err != nil {
		t.Fatal(err)
	}
	if got, want := l.truth(), (update.Truth{Version: "1.0.0", Slot: "changed"}); got != want {
		t.Errorf("after a change by hand: %+v, want %+v", got, want)
	}
}

// A trial ends with the agent.
func TestEndedOnTrial(t *testing.T) {
	dir := t.TempDir()
	l := start(t, dir, nil)
	one, two := job(t, "1.0.0", `{"server": "one"}`), job(t, "1.1.0", `{"server": "two"}`)
	l.stage(one)
	l.move(one, update.Try, update.Keep)
	l.stage(two)
	l.move(two, update.Try)
	l = start(t, dir, nil)
	l.has("server:one")
	got := l.truth()
	if got.Version != "1.0.0" || got.Trial || !strings.Contains(got.Failed, "on trial") {
		t.Errorf("truth %+v", got)
	}
	if _, err := l.Move(t.Context(), two, update.Prove); err == nil {
		t.Error("what was taken back is proved")
	}
	l.move(two, update.Keep) // there is nothing to keep
	l.move(two, update.Back)
	if got := l.truth(); got.Version != "1.0.0" || got.Failed != "" {
		t.Errorf("truth after it was told: %+v", got)
	}
}

func TestRefusals(t *testing.T) {
	for name, tt := range map[string]struct {
		content string
		change  func(*update.Job)
		want    string
	}{
		"unknown":        {`{"label": "x", "shell": "sh"}`, nil, "not known"},
		"out of range":   {`{"label": "x", "poll_s": 0}`, nil, "at least 1"},
		"not an object":  {`["label"]`, nil, "one JSON object"},
		"deep":           {`{"label": {"a": 1}}`, nil, "must be text"},
		"null":           {`{"label": null}`, nil, "must be text"},
		"twice":          {`{"label": "a", "label": "b"}`, nil, "every name once"},
		"empty":          {`{}`, nil, "no setting"},
		"two objects":    {`{"label": "a"} {"label": "b"}`, nil, "follows"},
		"cut":            {`{"label": "a"`, nil, "EOF"},
		"too large":      {`{"label": "` + strings.Repeat("a", 64<<10) + `"}`, nil, "at most 65536"},
		"another's":      {`{"label": "x"}`, func(j *update.Job) { j.Target.SHA256 = strings.Repeat("0", 64) }, "not what was released"},
		"another class":  {`{"label": "x"}`, func(j *update.Job) { j.Target.Custom.Class = trust.ClassApp }, "of class app"},
		"no content":     {`{"label": "x"}`, func(j *update.Job) { j.File = "" }, "no content"},
		"name leads out": {`{"label": "x"}`, func(j *update.Job) { j.Component = "ops/shop/../base" }, "must be ops/"},
		"name is taken":  {`{"label": "x"}`, func(j *update.Job) { j.Component = "ops/other/base" }, "another name"},
	} {
		t.Run(name, func(t *testing.T) {
			l := start(t, t.TempDir(), nil)
			first := job(t, "0.9.0", `{"label": "first"}`)
			l.stage(first)
			l.move(first, update.Try, update.Keep)
			j := job(t, "1.0.0", tt.content)
			if tt.change != nil {
				tt.change(&j)
			}
			if err := l.Stage(t.Context(), j); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if _, err := l.Move(t.Context(), j, update.Try); err == nil {
				t.Error("it is tried all the same")
			}
			l.has("label:first")
		})
	}
}

// A record that was changed after writing is noticed, and a trial is taken back
// all the same.
func TestTampered(t *testing.T) {
	dir := t.TempDir()
	l := start(t, dir, nil)
	one, two := job(t, "1.0.0", `{"server": "one"}`), job(t, "1.1.0", `{"server": "two"}`)
	l.stage(one)
	l.move(one, update.Try, update.Keep)
	l.stage(two)
	l.move(two, update.Try)
	file := filepath.Join(dir, "settings", "base.json")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(b), two.Target.SHA256)
	b[at] ^= 1
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := l.truth(); got.Version != "" || got.Slot != "damaged" {
		t.Errorf("truth %+v", got)
	}
	if _, err := l.Move(t.Context(), two, update.Prove); err == nil || !strings.Contains(err.Error(), "does not hold") {
		t.Errorf("it is proved: %v", err)
	}
	l.move(two, update.Back)
	l.has("server:one")
	if got := l.truth(); got.Version != "1.0.0" {
		t.Errorf("truth %+v", got)
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	l = start(t, dir, nil)
	if got := l.truth(); got.Version != "" {
		t.Errorf("truth %+v", got)
	}
	l.stage(two)
	l.move(two, update.Try, update.Prove, update.Keep)
	if got := l.truth(); got.Version != "1.1.0" {
		t.Errorf("truth %+v", got)
	}
}

// A box that cannot apply stays on trial until it goes back.
func TestApplyFails(t *testing.T) {
	l := start(t, t.TempDir(), nil)
	j := job(t, "1.0.0", `{"server": "one"}`)
	l.stage(j)
	l.box.err = errors.New("the disk is full")
	if _, err := l.Move(t.Context(), j, update.Try); err == nil {
		t.Error("got nil")
	}
	if _, err := l.Move(t.Context(), j, update.Prove); err == nil || !strings.Contains(err.Error(), "not in force: server") {
		t.Errorf("got %v", err)
	}
	if _, err := l.Move(t.Context(), j, update.Back); err == nil {
		t.Error("got nil")
	}
	if _, err := l.Move(t.Context(), j, update.Try); err == nil || !strings.Contains(err.Error(), "given up") {
		t.Errorf("what was given up is tried again: %v", err)
	}
	l.box.err = nil
	l.move(j, update.Back)
	l.has("")
}

// A box that cannot take settings back when it starts has to start all the same.
// They are not proved meanwhile, and go when they can.
func TestStartsWhereNothingCanBeTakenBack(t *testing.T) {
	dir := t.TempDir()
	l := start(t, dir, nil)
	j := job(t, "1.0.0", `{"server": "one"}`)
	l.stage(j)
	l.move(j, update.Try)
	b := &box{t: t, file: filepath.Join(dir, "box"), err: errors.New("the disk is full")}
	h, err := setting.Open(t.Context(), setting.Options{
		Dir: filepath.Join(dir, "settings"), Box: b, Log: slog.New(slog.DiscardHandler), Link: func(context.Context) error { return nil },
	})
	if err != nil {
		t.Fatalf("it does not start: %v", err)
	}
	l = till{h, b, t}
	if _, err := l.Move(t.Context(), j, update.Prove); err == nil {
		t.Error("what outlived the agent is proved")
	}
	b.err = nil
	l.move(j, update.Back)
	l.has("")
	l.stage(j)
	l.move(j, update.Try, update.Prove, update.Keep)
	l.has("server:one")
}

// The power is cut at each step. After the next start the box has the old
// settings or the new, whole, and what it says of them is so.
func TestPowerCut(t *testing.T) {
	one, two := job(t, "1.0.0", `{"label": "one", "server": "one"}`), job(t, "1.1.0", `{"poll_s": 2, "server": "two"}`)
	prepare := func(dir string) {
		l := start(t, dir, nil)
		l.stage(one)
		l.move(one, update.Try, update.Keep)
	}
	for name, last := range map[string]update.Move{"keep": update.Keep, "back": update.Back} {
		t.Run(name, func(t *testing.T) {
			cuts := powercut.Run(t, prepare, func(dir string, step func(string)) {
				l := start(t, dir, step)
				l.stage(two)
				l.move(two, update.Try, update.Prove, last)
			}, func(t *testing.T, dir string) {
				l := start(t, dir, nil)
				got := l.truth()
				switch {
				case got.Trial:
					t.Errorf("the trial outlived the agent: %+v", got)
				case got.Version == "1.0.0" && got.Hash == one.Target.SHA256:
					l.has("label:one server:one")
				case got.Version == "1.1.0" && got.Hash == two.Target.SHA256 && last == update.Keep:
					l.has("poll_s:2 server:two")
				default:
					t.Errorf("truth %+v", got)
				}
				if strings.HasSuffix(t.Name(), "the_end") && (got.Version == "1.1.0") != (last == update.Keep) {
					t.Errorf("what was done is not there to stay: %+v", got)
				}
				if got.Version == "1.0.0" { // and it can be had again
					l.stage(two)
					l.move(two, update.Try, update.Prove, update.Keep)
					l.has("poll_s:2 server:two")
				}
			})
			if cuts < 16 {
				t.Errorf("only %d cuts", cuts)
			}
		})
	}
}
