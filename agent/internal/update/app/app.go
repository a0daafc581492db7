// Package app installs point-of-sale applications: a release of class app is a
// tree that is unpacked beside the one that runs and becomes it by a link.
//
// Each application has a folder of its name with its versions; `current` leads
// to the one that runs and is what the image starts, `previous` to the one
// before (package shelf). tillward.json in the tree names commands that start,
// stop and check the application; they run as a user without rights. The
// handler does not supervise: after a boot the image starts what current leads
// to, on trial or not.
//
// A new version stays when its health command succeeds and the tree is still
// what was released, else the one before is current and started again.
package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/agent/internal/update/shelf"
	"github.com/tillward/tillward/provisioning/tree"
	"github.com/tillward/tillward/provisioning/trust"
)

// Options of a Handler.
type Options struct {
	Dir     string        // where the applications lie
	User    string        // who their commands run as; empty: the agent's own user, or nobody where that is root
	Timeout time.Duration // of a command whose manifest says nothing
	Limits  tree.Limits
	Log     *slog.Logger
	Step    func(name string) // for tests: called before each change of the disk and each command
}

// Handler implements update.Handler.
type Handler struct {
	o  Options
	as *syscall.Credential

	mu      sync.Mutex
	shelves map[string]*shelf.Shelf // by component
	started map[string]string       // by component, the folder that was started since the agent was
}

var _ update.Handler = (*Handler)(nil)

// New returns a Handler.
func New(o Options) (*Handler, error) {
	as, err := credential(o.User)
	if err != nil {
		return nil, err
	}
	if o.Timeout <= 0 || o.Timeout > maxTimeout {
		return nil, fmt.Errorf("time for a command of an application %s: must lie between 1s and %s", o.Timeout, maxTimeout)
	}
	if o.Step == nil {
		o.Step = func(string) {}
	}
	return &Handler{o: o, as: as, shelves: make(map[string]*shelf.Shelf), started: make(map[string]string)}, nil
}

// shelf opens the shelf of a component, once. What was stopped, or had to be
// started, when a power cut fell is started again.
func (h *Handler) shelf(ctx context.Context, component string) (*shelf.Shelf, error) {
	name, err := shelf.Name(component)
	if err != nil {
		return nil, err
	}
	if s := h.shelves[component]; s != nil {
		return s, nil
	}
	s, halted, err := shelf.Open(filepath.Join(h.o.Dir, name), component, shelf.Disk{Step: h.o.Step})
	if err != nil {
		return nil, err
	}
	if halted {
		h.restart(ctx, component, s)
	}
	h.shelves[component] = s
	return s, nil
}

// Stage implements update.Handler.
func (h *Handler) Stage(ctx context.Context, j update.Job) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if j.Target.Custom.Class != trust.ClassApp {
		return update.Refuse("incompatible", "%s is of class %s, not %s", j.Component, j.Target.Custom.Class, trust.ClassApp)
	}
	s, err := h.shelf(ctx, j.Component)
	if err != nil {
		return err
	}
	dir, err := s.Stage(ctx, j, h.o.Limits)
	if err != nil {
		return err
	}
	if _, err := read(dir); err != nil {
		return errors.Join(update.Refuse("incompatible", "application %s: %w", j.Version, err), s.Drop())
	}
	return nil
}

// Move implements update.Handler.
func (h *Handler) Move(ctx context.Context, j update.Job, m update.Move) (update.Effect, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, err := h.shelf(ctx, j.Component)
	if err != nil {
		return update.None, err
	}
	switch m {
	case update.Try:
		err = h.try(ctx, j, s)
	case update.Prove:
		err = h.prove(ctx, j, s)
	case update.Keep:
		err = s.Keep()
	case update.Back:
		err = h.back(ctx, j, s)
	}
	return update.None, err
}

// try stops what runs, switches, and starts the new version. One that does not
// start may yet do so while it is proved.
func (h *Handler) try(ctx context.Context, j update.Job, s *shelf.Shelf) error {
	stopped := false
	err := s.Try(j.Execution, func(dir string) error {
		if dir == "" {
			return nil
		}
		stopped = true
		return h.call(ctx, j.Component, dir, "stop")
	})
	if err != nil {
		if stopped { // it may be half stopped
			h.restart(ctx, j.Component, s)
		}
		return err
	}
	delete(h.started, j.Component)
	if err := h.start(ctx, j.Component, s); err != nil {
		h.o.Log.Warn("application on trial does not start", slog.String("component", j.Component), slog.String("version", j.Version), slog.Any("err", err))
	}
	return nil
}

// prove asks whether the new version does its work. It is started if it was
// not since the agent was: the box may have been off.
func (h *Handler) prove(ctx context.Context, j update.Job, s *shelf.Shelf) error {
	dir, t, onTrial := s.Current()
	if !onTrial {
		return update.Fail("storage", "%s is not on trial", j.Version)
	}
	if err := s.Check(t); err != nil {
		return update.Fail("storage", "application %s: %w", t.Version, err)
	}
	if err := h.start(ctx, j.Component, s); err != nil {
		return err
	}
	return h.call(ctx, j.Component, dir, "health")
}

// back stops the new version and starts the one before. Once the links are
// back it is not to fail any more: it would be asked for again and again.
func (h *Handler) back(ctx context.Context, j update.Job, s *shelf.Shelf) error {
	if dir, _, onTrial := s.Current(); onTrial {
		if err := h.call(ctx, j.Component, dir, "stop"); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			h.o.Log.Warn("application does not stop", slog.String("component", j.Component), slog.Any("err", err))
		}
	}
	if err := s.Back(); err != nil {
		return err
	}
	h.restart(ctx, j.Component, s)
	return s.Drop()
}

// start starts what is current, unless it was started since the agent was.
func (h *Handler) start(ctx context.Context, component string, s *shelf.Shelf) error {
	dir, _, _ := s.Current()
	if dir == "" || h.started[component] == dir {
		return nil
	}
	if err := h.call(ctx, component, dir, "start"); err != nil {
		return err
	}
	h.started[component] = dir
	return nil
}

// restart starts what is current again.
func (h *Handler) restart(ctx context.Context, component string, s *shelf.Shelf) {
	delete(h.started, component)
	if err := h.start(ctx, component, s); err != nil {
		h.o.Log.Error("application does not start", slog.String("component", component), slog.Any("err", err))
	}
}

// call runs a command of the tree in dir, if it has it.
func (h *Handler) call(ctx context.Context, component, dir, what string) error {
	m, err := read(dir)
	if err != nil {
		return err
	}
	c := command{what: what, dir: dir, as: h.as, timeout: h.o.Timeout, lasting: what == "start"}
	switch what {
	case "start":
		c.args = m.Start
	case "stop":
		c.args = m.Stop
	default:
		c.args = m.Health
	}
	if len(c.args) == 0 {
		return nil
	}
	if m.Timeout > 0 {
		c.timeout = time.Duration(m.Timeout) * time.Second
	}
	c.env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "LANG=C.UTF-8",
		"TILLWARD_COMPONENT=" + component, "TILLWARD_TREE=" + dir, "TILLWARD_CURRENT=" + filepath.Join(filepath.Dir(dir), "current"),
	}
	h.o.Step(what)
	return c.run(ctx)
}

// Running implements update.Handler: the tree that current leads to is read
// from the disk.
func (h *Handler) Running(ctx context.Context, component string) (update.Truth, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, err := h.shelf(ctx, component)
	if err != nil {
		return update.Truth{}, err
	}
	t, err := s.Truth()
	if err != nil {
		return t, fmt.Errorf("application %s: %w", component, err)
	}
	return t, nil
}

// Health asks what is current whether it does its work; nil also when nothing
// is, or it has no way to say.
func (h *Handler) Health(ctx context.Context, component string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, err := h.shelf(ctx, component)
	if err != nil {
		return err
	}
	dir, _, _ := s.Current()
	if dir == "" {
		return nil
	}
	return h.call(ctx, component, dir, "health")
}

// Seed returns the archive of what is current, as the seed of the next
// download; nil when nothing is. It must be closed.
func (h *Handler) Seed(ctx context.Context, component string) io.ReadCloser {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, err := h.shelf(ctx, component)
	if err != nil {
		return nil
	}
	return s.Seed()
}
