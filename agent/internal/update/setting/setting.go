// Package setting installs configurations: a release of class config is a JSON
// object of settings, which the box takes on trial as a whole and drops again
// when it cannot be reached with them.
//
// A setting that the release does not name is left alone; one that the version
// before named, and this one does not, is unset. Nothing is applied unless all
// of it is valid. A trial does not outlive the agent: when the power was cut,
// or the agent died of the settings, what was before is applied at the next
// start. What settings there are and how they take effect is the agent's.
package setting

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/agent/internal/update/shelf"
	"github.com/tillward/tillward/provisioning/trust"
)

// Box holds the settings of the agent.
type Box interface {
	// Validate says what is wrong with the values; it changes nothing.
	Validate(values map[string]string) error
	// Apply sets and unsets at once and for good, or changes nothing. It may be
	// asked for what is in force already.
	Apply(ctx context.Context, set map[string]string, unset []string) error
	// Current returns what is set.
	Current() map[string]string
}

// Options of a Handler.
type Options struct {
	Dir  string // on the state partition
	Box  Box
	Link func(ctx context.Context) error // nil when the service can be reached with the settings in force
	Log  *slog.Logger
	Step func(name string) // for tests: called before each change of the disk
}

// Handler implements update.Handler.
type Handler struct {
	o    Options
	disk shelf.Disk

	mu    sync.Mutex
	ended map[string]string // by file: why a trial is over that could not be taken back when the agent started
}

var _ update.Handler = (*Handler)(nil)

// version is one release as it is kept.
type version struct {
	Version string `json:"version"`
	Content []byte `json:"content"` // as it was signed
	SHA256  string `json:"sha256"`
}

// trial is a version in force that has not proved itself.
type trial struct {
	version
	Execution string            `json:"execution"`
	Before    map[string]string `json:"before"` // of what it touches, what was set
	Touch     []string          `json:"touch"`
	Failed    string            `json:"failed,omitempty"` // why it was given up; it may still be in force
}

// state is the file of a component.
type state struct {
	Component string   `json:"component"`
	Kept      *version `json:"kept,omitempty"`
	Staged    *version `json:"staged,omitempty"`
	Trial     *trial   `json:"trial,omitempty"`
	Failed    string   `json:"failed,omitempty"` // how the last trial ended without being asked
}

// Open returns the handler, after it has taken back what was on trial when the
// agent ended.
func Open(ctx context.Context, o Options) (*Handler, error) {
	h := &Handler{o: o, disk: shelf.Disk{Step: o.Step}, ended: make(map[string]string)}
	if err := h.disk.Folder(o.Dir, 0o700); err != nil {
		return nil, err
	}
	files, _ := filepath.Glob(filepath.Join(o.Dir, "*.json")) // the pattern is well formed
	for _, f := range files {
		s, err := h.load(f)
		if err != nil {
			o.Log.Error("record of settings is damaged", slog.String("file", filepath.Base(f)), slog.Any("err", err))
		}
		if s.Trial == nil {
			continue
		}
		why := s.Trial.Failed
		if why == "" {
			why = "the agent ended while the settings were on trial"
		}
		o.Log.Warn("settings on trial are taken back", slog.String("component", s.Component), slog.String("version", s.Trial.Version), slog.String("why", why))
		if err := h.back(ctx, f, s, why); err != nil { // a disk without room must not keep the agent from starting
			o.Log.Error("settings on trial cannot be taken back yet", slog.String("component", s.Component), slog.Any("err", err))
			h.ended[f] = why
		}
	}
	return h, nil
}

// file names the record of a component.
func (h *Handler) file(component string) (string, error) {
	name, err := shelf.Name(component)
	return filepath.Join(h.o.Dir, name+".json"), err
}

// load reads a record. With an error it returns what could be read: a trial is
// taken back all the same.
func (h *Handler) load(file string) (state, error) {
	var s state
	if err := h.disk.Load(file, &s); err != nil {
		return state{}, err
	}
	if why := h.ended[file]; s.Trial != nil && s.Trial.Failed == "" {
		s.Trial.Failed = why
	}
	versions := []*version{s.Kept, s.Staged}
	if s.Trial != nil {
		versions = append(versions, &s.Trial.version)
	}
	for _, v := range versions {
		if v != nil && !v.intact() {
			return s, update.Fail("storage", "%s of %s: the disk does not hold what was installed", filepath.Base(file), v.Version)
		}
	}
	return s, nil
}

func (v version) intact() bool {
	sum := sha256.Sum256(v.Content)
	return hex.EncodeToString(sum[:]) == v.SHA256
}

// values of a version that has been checked.
func (v *version) values() map[string]string {
	if v == nil {
		return nil
	}
	values, _ := parse(v.Content) // nothing else is kept
	return values
}

// record loads what is known of the component.
func (h *Handler) record(component string) (file string, s state, err error) {
	if file, err = h.file(component); err != nil {
		return "", s, err
	}
	s, err = h.load(file)
	if s.Component != "" && s.Component != component {
		return "", state{}, update.Refuse("policy", "settings of %s are kept under the name of %s: give one of them another name", s.Component, component)
	}
	s.Component = component
	return file, s, err
}

// Stage implements update.Handler. It refuses what is not valid.
func (h *Handler) Stage(_ context.Context, j update.Job) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if j.Target.Custom.Class != trust.ClassConfig {
		return update.Refuse("incompatible", "%s is of class %s, not %s", j.Component, j.Target.Custom.Class, trust.ClassConfig)
	}
	file, s, err := h.record(j.Component)
	switch {
	case file == "":
		return err
	case err != nil && s.Trial == nil: // what is in force stays, what is known of it begins anew
		h.o.Log.Error("record of settings is damaged and begins anew", slog.String("component", j.Component), slog.Any("err", err))
		s = state{Component: j.Component}
	}
	if s.Trial != nil {
		if s.Trial.Version == j.Version && s.Trial.SHA256 == j.Target.SHA256 {
			return nil
		}
		return update.Fail("install", "%s is still on trial", s.Trial.Version)
	}
	b, err := read(j)
	if err != nil {
		return err
	}
	v := version{Version: j.Version, Content: b, SHA256: j.Target.SHA256}
	if !v.intact() {
		return update.Refuse("signature", "settings %s are not what was released", j.Version)
	}
	values, err := parse(b)
	if err == nil {
		err = h.o.Box.Validate(values)
	}
	if err != nil {
		return update.Refuse("incompatible", "settings %s: %w", j.Version, err)
	}
	s.Staged, s.Failed = &v, ""
	if err := h.disk.Save(file, s); err != nil {
		return err
	}
	_, err = h.load(file) // what the disk gives back
	return err
}

// Move implements update.Handler.
func (h *Handler) Move(ctx context.Context, j update.Job, m update.Move) (update.Effect, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	file, s, err := h.record(j.Component)
	if err != nil && (m != update.Back || s.Trial == nil) {
		return update.None, err
	}
	err = nil
	switch m {
	case update.Try:
		err = h.try(ctx, file, s, j.Execution)
	case update.Prove:
		err = h.prove(ctx, s)
	case update.Keep:
		if s.Trial != nil {
			s.Kept, s.Trial = &s.Trial.version, nil
			err = h.disk.Save(file, s)
		}
	case update.Back:
		switch {
		case s.Trial != nil:
			err = h.back(ctx, file, s, "")
		case s.Failed != "": // it was told
			s.Failed = ""
			err = h.disk.Save(file, s)
		}
	}
	return update.None, err
}

// try applies what is staged. The trial is recorded first: whatever a cut
// leaves in force is known to be on trial.
func (h *Handler) try(ctx context.Context, file string, s state, execution string) error {
	if s.Trial == nil {
		if s.Staged == nil {
			return update.Fail("storage", "nothing is staged")
		}
		next, kept, now := s.Staged.values(), s.Kept.values(), h.o.Box.Current()
		if err := h.o.Box.Validate(next); err != nil { // the agent may have changed since
			return update.Refuse("incompatible", "settings %s: %w", s.Staged.Version, err)
		}
		t := &trial{version: *s.Staged, Execution: execution, Before: make(map[string]string)}
		touch := maps.Clone(next)
		maps.Copy(touch, kept)
		t.Touch = slices.Sorted(maps.Keys(touch))
		for _, k := range t.Touch {
			if v, ok := now[k]; ok {
				t.Before[k] = v
			}
		}
		s.Trial, s.Staged = t, nil
		if err := h.disk.Save(file, s); err != nil {
			return err
		}
	}
	if s.Trial.Failed != "" {
		return update.Fail("install", "%s was given up: %s", s.Trial.Version, s.Trial.Failed)
	}
	return h.apply(ctx, s.Trial.values(), s.Trial.Touch, "apply "+s.Trial.Version)
}

// apply sets the values and unsets what else was touched.
func (h *Handler) apply(ctx context.Context, set map[string]string, touch []string, step string) error {
	var unset []string
	for _, k := range touch {
		if _, ok := set[k]; !ok {
			unset = append(unset, k)
		}
	}
	if h.o.Step != nil {
		h.o.Step(step)
	}
	if err := h.o.Box.Apply(ctx, set, unset); err != nil {
		return fmt.Errorf("apply settings: %w", err)
	}
	return nil
}

// prove holds when the settings are in force and the service can be reached.
func (h *Handler) prove(ctx context.Context, s state) error {
	if s.Trial == nil || s.Trial.Failed != "" {
		return update.Fail("storage", "no settings are on trial")
	}
	if off := differs(h.o.Box.Current(), s.Trial.values()); off != "" {
		return fmt.Errorf("not in force: %s", off)
	}
	return h.o.Link(ctx)
}

// differs names the settings that are not as wanted.
func differs(now, want map[string]string) string {
	var off []string
	for k, v := range want {
		if got, ok := now[k]; !ok || got != v {
			off = append(off, k)
		}
	}
	slices.Sort(off)
	return strings.Join(off, ", ")
}

// back applies what was before the trial. That it was given up is recorded
// first: it is never taken for proved.
func (h *Handler) back(ctx context.Context, file string, s state, why string) error {
	if s.Trial.Failed == "" {
		s.Trial.Failed = why
		if why == "" {
			s.Trial.Failed = "it was taken back"
		}
		if err := h.disk.Save(file, s); err != nil {
			return err
		}
	}
	if err := h.apply(ctx, s.Trial.Before, s.Trial.Touch, "take back "+s.Trial.Version); err != nil {
		return err
	}
	s.Failed, s.Trial = why, nil
	if err := h.disk.Save(file, s); err != nil {
		return err
	}
	delete(h.ended, file)
	return nil
}

// Running implements update.Handler. The hash is that of what was installed
// only while all of it is in force: an operator may have set one of the values
// since. Failed stays until Back, or the next Stage.
func (h *Handler) Running(_ context.Context, component string) (update.Truth, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	file, s, err := h.record(component)
	switch {
	case file == "":
		return update.Truth{}, err
	case err != nil:
		h.o.Log.Error("record of settings is damaged", slog.String("component", component), slog.Any("err", err))
		return update.Truth{Slot: "damaged", Trial: s.Trial != nil, Failed: s.Failed}, nil
	}
	v, t := s.Kept, update.Truth{Failed: s.Failed}
	if s.Trial != nil {
		v, t.Trial, t.Execution = &s.Trial.version, true, s.Trial.Execution
	}
	if v == nil {
		return t, nil
	}
	t.Version, t.Hash = v.Version, v.SHA256
	if differs(h.o.Box.Current(), v.values()) != "" {
		t.Slot, t.Hash = "changed", ""
	}
	return t, nil
}
