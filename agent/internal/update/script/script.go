// Package script runs what vendors bring to install things that only they know,
// such as the firmware of a printer: a release of class script is a tree with a
// program `run`, called with a verb for each step of the update.
//
// It runs in a sandbox: a user, processes, mounts and a network of its own -
// the network has nothing in it - with the programs of the box and its own tree
// to look at, one folder to write in, the devices that the configuration names,
// limits on everything it could use up, and no way to any right. Where the
// kernel does not allow that, nothing runs at all. Which scripts there may be
// is configured; the release brings the rest.
//
// The verbs are stage, try, prove, keep, back and running; the exit code is the
// answer: 0 done; 64 unknown verb, which is done as well; 65 this is not for
// this box; 75 not yet, ask again; 76 done, and counts after a boot of the box.
// running prints the version that is in force. A verb that a power cut
// interrupted is called again. /release is the tree, /work the folder: it stays
// from call to call and is emptied when it grows too large.
package script

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/semver"

	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/agent/internal/update/shelf"
	"github.com/tillward/tillward/provisioning/tree"
	"github.com/tillward/tillward/provisioning/trust"
)

// Exit codes of a script [sysexits.h].
const (
	exitUsage    = 64
	exitNotFor   = 65
	exitTempFail = 75
	exitReboot   = 76
)

// Script is one that may be installed.
type Script struct {
	Name    string        // last part of its component
	Time    time.Duration // for each verb
	WorkMiB int           // of its work folder
	Devices []string      // below /dev, that its user has the right to
}

// Options of a Handler.
type Options struct {
	Dir     string // on the state partition
	Scripts []Script
	UID     int // user and group of scripts where the agent is root; 0: 65533
	Limits  tree.Limits
	Log     *slog.Logger
	Step    func(name string) // for tests: called before each change of the disk and each verb
}

// Handler implements update.Handler.
type Handler struct {
	o       Options
	scripts map[string]Script

	mu      sync.Mutex
	shelves map[string]*shelf.Shelf // by component
	fits    bool                    // a sandbox has stood
}

var _ update.Handler = (*Handler)(nil)

const defaultUID = 65533

// New returns a Handler.
func New(o Options) (*Handler, error) {
	h := &Handler{o: o, scripts: make(map[string]Script), shelves: make(map[string]*shelf.Shelf)}
	if h.o.Step == nil {
		h.o.Step = func(string) {}
	}
	switch {
	case os.Getuid() != 0:
		h.o.UID = 0
	case h.o.UID == 0:
		h.o.UID = defaultUID
	}
	for _, p := range view {
		if o.Dir == p || strings.HasPrefix(o.Dir, p+"/") {
			return nil, fmt.Errorf("folder of scripts %s: must not lie below %s, which every script may read", o.Dir, p)
		}
	}
	for _, s := range o.Scripts {
		if _, err := shelf.Name("ops/tenant/" + s.Name); err != nil {
			return nil, fmt.Errorf("script %q: %w", s.Name, err)
		}
		switch {
		case h.scripts[s.Name].Name != "":
			return nil, fmt.Errorf("script %s: the name is used twice", s.Name)
		case s.Time < time.Second || s.Time > time.Hour:
			return nil, fmt.Errorf("script %s: time %s must lie between 1s and 1h", s.Name, s.Time)
		case s.WorkMiB < 1 || s.WorkMiB > 1024:
			return nil, fmt.Errorf("script %s: work_mib %d must lie between 1 and 1024", s.Name, s.WorkMiB)
		}
		for _, d := range s.Devices {
			if filepath.Clean(d) != d || !strings.HasPrefix(d, "/dev/") {
				return nil, fmt.Errorf("script %s: device %q must be a path below /dev", s.Name, d)
			}
		}
		h.scripts[s.Name] = s
	}
	return h, nil
}

// Supported says why scripts cannot run on this box; nil when they can.
func (h *Handler) Supported(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.supported(ctx)
}

func (h *Handler) supported(ctx context.Context) error {
	if h.fits {
		return nil
	}
	base := filepath.Join(h.o.Dir, ".sandbox")
	s := spec{Root: filepath.Join(base, "root"), Release: filepath.Join(base, "none"), Work: filepath.Join(base, "work"), Quota: 1 << 20, Time: time.Minute}
	for _, d := range []string{s.Root, s.Release, s.Work} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("try a sandbox: %w", err)
		}
	}
	if _, _, _, err := s.run(ctx, h.o.UID); err != nil {
		return err
	}
	h.fits = true
	return nil
}

// open returns what is configured for a component, and its shelf.
func (h *Handler) open(component string) (Script, *shelf.Shelf, error) {
	name, err := shelf.Name(component)
	if err != nil {
		return Script{}, nil, err
	}
	c, ok := h.scripts[name]
	if !ok {
		return Script{}, nil, update.Fail("no-handler", "no script %s is configured on this box", name)
	}
	s := h.shelves[component]
	if s == nil {
		if s, _, err = shelf.Open(h.path(name, "releases"), component, shelf.Disk{Step: h.o.Step}); err != nil {
			return Script{}, nil, err
		}
		h.shelves[component] = s
	}
	return c, s, nil
}

func (h *Handler) path(name, what string) string { return filepath.Join(h.o.Dir, name, what) }

// call runs a verb of the tree in dir.
func (h *Handler) call(ctx context.Context, c Script, j update.Job, dir, verb string) (stdout, stderr *output, code int, err error) {
	work, root := h.path(c.Name, "work"), h.path(c.Name, "root")
	for _, d := range []string{work, root} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, nil, 0, fmt.Errorf("make a place for the script: %w", err)
		}
	}
	if h.o.UID != 0 {
		if err := os.Chown(work, h.o.UID, h.o.UID); err != nil {
			return nil, nil, 0, fmt.Errorf("make a place for the script: %w", err)
		}
	}
	s := spec{
		Root: root, Release: dir, Work: work, Devices: c.Devices, Args: []string{"/release/run", verb}, Quota: int64(c.WorkMiB) << 20, Time: c.Time,
		Env: []string{
			"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/work", "LANG=C.UTF-8",
			"TILLWARD_COMPONENT=" + j.Component, "TILLWARD_VERSION=" + j.Version, "TILLWARD_EXECUTION=" + j.Execution,
		},
	}
	h.o.Step(verb)
	stdout, stderr, code, err = s.run(ctx, h.o.UID)
	switch n, uerr := usage(work); { // looked at again: what fills it must not stop the next call
	case ctx.Err() != nil:
		return stdout, stderr, code, ctx.Err()
	case uerr != nil || n > s.Quota:
		err = errors.Join(err, clean(work))
	}
	if err == nil && code == -1 {
		err = fmt.Errorf("%s: killed, or not done within %s", verb, c.Time)
	}
	if err != nil && !errors.Is(err, errSandbox) {
		err = fmt.Errorf("script %s: %s: %w", c.Name, verb, err)
	}
	return stdout, stderr, code, err
}

// do runs a verb and tells what its answer means.
func (h *Handler) do(ctx context.Context, c Script, j update.Job, dir, verb string) (update.Effect, error) {
	_, stderr, code, err := h.call(ctx, c, j, dir, verb)
	switch {
	case errors.Is(err, errSandbox):
		return update.None, update.Fail("no-handler", "%w", err)
	case err != nil && ctx.Err() != nil:
		return update.None, err
	case err != nil:
		return update.None, update.Fail("install", "%w", err)
	}
	said := stderr.text()
	if said == "" {
		said = fmt.Sprintf("exit code %d", code)
	}
	switch code {
	case 0, exitUsage:
		return update.None, nil
	case exitReboot:
		return update.Reboot, nil
	case exitTempFail:
		return update.None, fmt.Errorf("script %s: %s: not yet: %s", c.Name, verb, said)
	case exitNotFor:
		return update.None, update.Refuse("incompatible", "script %s: %s: %s", c.Name, verb, said)
	}
	return update.None, update.Fail("install", "script %s: %s: %s", c.Name, verb, said)
}

// Stage implements update.Handler.
func (h *Handler) Stage(ctx context.Context, j update.Job) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if j.Target.Custom.Class != trust.ClassScript {
		return update.Refuse("incompatible", "%s is of class %s, not %s", j.Component, j.Target.Custom.Class, trust.ClassScript)
	}
	c, s, err := h.open(j.Component)
	if err != nil {
		return err
	}
	if err := h.supported(ctx); err != nil {
		if errors.Is(err, errSandbox) {
			return update.Fail("no-handler", "%w", err)
		}
		return err
	}
	dir, err := s.Stage(ctx, j, h.o.Limits)
	if err != nil {
		return err
	}
	if fi, err := os.Lstat(filepath.Join(dir, "run")); err != nil || !fi.Mode().IsRegular() || fi.Mode()&0o100 == 0 {
		return errors.Join(update.Refuse("incompatible", "script %s %s has no program run at its top", c.Name, j.Version), s.Drop())
	}
	_, err = h.do(ctx, c, j, dir, "stage")
	return err
}

// Move implements update.Handler.
func (h *Handler) Move(ctx context.Context, j update.Job, m update.Move) (update.Effect, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c, s, err := h.open(j.Component)
	if err != nil {
		return update.None, err
	}
	if m == update.Try {
		if err := s.Try(j.Execution, func(string) error { return nil }); err != nil {
			return update.None, err
		}
	}
	dir, t, onTrial := s.Current()
	var sound error
	if onTrial {
		if sound = s.Check(t); sound != nil {
			sound = update.Fail("storage", "script %s %s: %w", c.Name, t.Version, sound)
		}
	}
	switch m {
	case update.Try, update.Prove:
		if !onTrial {
			return update.None, update.Fail("storage", "script %s %s is not on trial", c.Name, j.Version)
		}
		if sound != nil {
			return update.None, sound
		}
		return h.do(ctx, c, j, dir, map[update.Move]string{update.Try: "try", update.Prove: "prove"}[m])
	case update.Keep:
		effect := update.None
		if onTrial {
			if sound != nil {
				return update.None, sound
			}
			if effect, err = h.do(ctx, c, j, dir, "keep"); err != nil {
				return update.None, err
			}
		}
		return effect, s.Keep()
	case update.Back:
		return h.back(ctx, c, j, s, sound)
	}
	return update.None, fmt.Errorf("move %d is not known", m)
}

// back lets the script undo what it did, and takes it away. A script that fails
// at it is not asked again: what is in force, the one before says. One that was
// changed is not asked at all.
func (h *Handler) back(ctx context.Context, c Script, j update.Job, s *shelf.Shelf, sound error) (update.Effect, error) {
	effect := update.None
	if dir, _, onTrial := s.Current(); onTrial {
		err := sound
		if err == nil {
			effect, err = h.do(ctx, c, j, dir, "back")
		}
		if ctx.Err() != nil {
			return update.None, ctx.Err()
		}
		if err != nil {
			h.o.Log.Error("script does not undo what it did", slog.String("component", j.Component), slog.String("version", j.Version), slog.Any("err", err))
		}
	}
	if err := s.Back(); err != nil {
		return update.None, err
	}
	return effect, s.Drop()
}

// Running implements update.Handler: the script says what is in force. One that
// was changed since it was installed is not asked.
func (h *Handler) Running(ctx context.Context, component string) (update.Truth, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c, s, err := h.open(component)
	if err != nil {
		return update.Truth{}, err
	}
	t, err := s.Truth()
	if err != nil || t.Version == "" {
		return t, err
	}
	dir, _, _ := s.Current()
	out, _, code, err := h.call(ctx, c, update.Job{Component: component, Version: t.Version}, dir, "running")
	said := ""
	switch {
	case err != nil && ctx.Err() != nil, err == nil && code == exitTempFail:
		return t, fmt.Errorf("script %s does not say what runs yet: %w", c.Name, errors.Join(err, errTempFail))
	case err == nil && code == exitUsage:
		said = t.Version
	case err != nil || code != 0:
		h.o.Log.Warn("script does not say what is in force", slog.String("component", component), slog.Int("code", code), slog.Any("err", err))
	default:
		if said = firstLine(out); !semver.IsValid("v" + said) {
			said = ""
		}
	}
	if said != t.Version {
		t.Version, t.Hash = said, "" // the tree is not where it comes from
	}
	return t, nil
}

var errTempFail = errors.New("ask again")
