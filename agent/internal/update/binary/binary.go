package binary

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/minio/selfupdate"

	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/provisioning/durable"
	"github.com/tillward/tillward/provisioning/trust"
)

// Component is what the agent is called among releases.
const Component = "agent"

// checkTime is how long the new binary may take to check itself.
const checkTime = time.Minute

// Options of a Handler.
type Options struct {
	Dir      string // of the slots
	Version  string // of the agent that runs
	Slot     string // it runs from
	OS, Arch string // that it is for
	// Step is called with the name of each step before it is taken; tests cut
	// the power there.
	Step func(name string)
}

// Handler installs agents; it implements update.Handler.
type Handler struct {
	o Options
	s slots
}

// New opens the folder of the slots.
func New(o Options) (*Handler, error) {
	for _, slot := range []string{"a", "b"} {
		if err := os.MkdirAll(filepath.Join(o.Dir, slot), 0o700); err != nil {
			return nil, fmt.Errorf("update slots: %w", err)
		}
	}
	if o.Step == nil {
		o.Step = func(string) {}
	}
	h := &Handler{o: o, s: slots{o.Dir}}
	// An older agent wrote the slot and said nothing: the launcher has to know.
	if o.Slot != Golden && h.s.version(o.Slot) != o.Version {
		if err := durable.Replace(h.s.path(o.Slot)+".version", []byte(o.Version+"\n")); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// Path names the target of an agent's release for a kind of box.
func Path(release, os, arch string) string { return release + "/" + program + "-" + os + "-" + arch }

// Stage writes the slot that nothing runs from, and lets the new binary check
// itself.
func (h *Handler) Stage(ctx context.Context, j update.Job) error {
	if c := j.Target.Custom; c.OS != h.o.OS || c.Arch != h.o.Arch {
		return update.Refuse("incompatible", "%s is an agent for %s/%s, not for %s/%s", j.Target.Path, c.OS, c.Arch, h.o.OS, h.o.Arch)
	}
	slot := h.spare()
	if h.s.current() == slot { // it broke, and was passed over: sound again it must not start before its trial
		h.o.Step("point at what runs")
		if err := h.s.point(h.o.Slot); err != nil {
			return err
		}
	}
	if err := h.write(slot, j.Target, j.File); err != nil {
		return err
	}
	h.o.Step("self-check")
	if err := selfCheck(ctx, h.s.path(slot)); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return update.Fail("selfcheck", "%w", err)
	}
	return nil
}

// spare is the slot that an update goes to.
func (h *Handler) spare() string {
	if h.o.Slot == Golden {
		return "a"
	}
	return other(h.o.Slot)
}

// Move implements update.Handler.
func (h *Handler) Move(_ context.Context, j update.Job, m update.Move) (update.Effect, error) {
	switch m {
	case update.Try:
		return h.try(j)
	case update.Keep:
		h.o.Step("keep")
		return update.None, h.s.setTrial(nil)
	case update.Back:
		return h.back(j)
	}
	return update.None, nil // that it runs and does its work is for the machine to see
}

// try makes the new slot the next to start.
func (h *Handler) try(j update.Job) (update.Effect, error) {
	slot := h.spare()
	if err := h.s.sound(slot); err != nil {
		return update.None, update.Fail("storage", "%w", err)
	}
	// The trial before the link: a cut between them starts the old slot, and
	// nothing is ever started that is not on trial.
	h.o.Step("trial")
	if err := h.s.setTrial(&trial{Slot: slot, Previous: h.o.Slot, Execution: j.Execution, Version: j.Version}); err != nil {
		return update.None, err
	}
	h.o.Step("link")
	if err := h.s.point(slot); err != nil {
		return update.None, err
	}
	h.o.Step("restart")
	return update.Restart, nil
}

// back ends the trial: the one before is started next, or runs already.
func (h *Handler) back(j update.Job) (update.Effect, error) {
	t := h.s.trial()
	switch {
	case t == nil:
		return update.None, nil
	case t.Slot == h.o.Slot && j.Version != "" && j.Version != h.o.Version: // a record that was damaged took what runs for it
		h.o.Step("end trial")
		return update.None, h.s.setTrial(nil)
	case t.Slot == h.o.Slot:
		h.o.Step("give up")
		why := t.Failed
		if why == "" {
			why = "it did not prove itself"
		}
		if err := h.s.giveUp(t, why); err != nil {
			return update.None, err
		}
		h.o.Step("restart")
		return update.Restart, nil
	}
	// The launcher went back, or the trial never began.
	h.o.Step("point back")
	if err := h.s.point(h.o.Slot); err != nil {
		return update.None, err
	}
	h.o.Step("end trial")
	return update.None, h.s.setTrial(nil)
}

// Running implements update.Handler.
func (h *Handler) Running(context.Context, string) (update.Truth, error) {
	t := update.Truth{Version: h.o.Version, Slot: h.o.Slot}
	if h.o.Slot != Golden {
		if b, err := os.ReadFile(h.s.path(h.o.Slot) + ".sha256"); err == nil {
			t.Hash = strings.TrimSpace(string(b))
		}
	}
	if on := h.s.trial(); on != nil {
		t.Trial, t.Failed, t.Execution = on.Slot == h.o.Slot, on.Failed, on.Execution
	}
	return t, nil
}

// write applies the file to the slot and checks what the disk gives back.
func (h *Handler) write(slot string, t trust.Target, file string) error {
	path := h.s.path(slot)
	sum, err := hex.DecodeString(t.SHA256)
	if err != nil {
		return update.Refuse("signature", "target hash: %w", err)
	}
	h.o.Step("unmark slot")
	if err := os.Remove(path + ".sha256"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("write slot %s: %w", slot, err)
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) { // selfupdate replaces, it does not create
		if err := os.WriteFile(path, nil, 0o700); err != nil { // #nosec G306 -- a program
			return fmt.Errorf("write slot %s: %w", slot, err)
		}
	}
	b, err := os.ReadFile(file) // #nosec G304 -- the staging file
	if err != nil {
		return fmt.Errorf("write slot %s: %w", slot, err)
	}
	h.o.Step("apply")
	err = selfupdate.Apply(bytes.NewReader(b), selfupdate.Options{
		TargetPath: path, TargetMode: 0o700, Checksum: sum, OldSavePath: path + ".old",
	})
	if err != nil {
		return fmt.Errorf("write slot %s: %w", slot, err)
	}
	_ = os.Remove(path + ".old")
	// selfupdate does not sync.
	f, err := os.Open(path) // #nosec G304 -- the slot
	if err != nil {
		return fmt.Errorf("write slot %s: %w", slot, err)
	}
	if err := errors.Join(f.Sync(), f.Close(), durable.SyncDir(filepath.Dir(path))); err != nil {
		return fmt.Errorf("write slot %s: %w", slot, err)
	}
	h.o.Step("read back")
	if err := t.CheckFile(path); err != nil {
		return update.Fail("storage", "slot %s after writing: %w", slot, err)
	}
	h.o.Step("name version")
	if err := durable.Replace(path+".version", []byte(t.Custom.Version+"\n")); err != nil {
		return err
	}
	h.o.Step("mark slot")
	return durable.Replace(path+".sha256", []byte(t.SHA256+"\n"))
}

// selfCheck runs the new binary once, without touching anything.
func selfCheck(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "-selfcheck") // #nosec G204 -- a verified slot
	cmd.WaitDelay = time.Second                         // who holds its output is not waited for
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("self-check of the new agent: %w: %.200s", err, out)
	}
	return nil
}
