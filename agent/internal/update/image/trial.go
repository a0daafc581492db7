package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/provisioning/durable"
)

// Phases of a note.
const (
	staging = "staging" // RAUC was asked to write
	ready   = "ready"   // it has
	trying  = "trying"  // the boot loader is about to be told, or was
	back    = "back"    // it is told, or was, to take what ran before
)

// note is what must outlive a restart to know what it meant: os.json. Each
// phase is noted before its first step.
type note struct {
	Execution   string `json:"execution"`
	Version     string `json:"version"`
	From        string `json:"from"` // slot that ran
	To          string `json:"to,omitempty"`
	Phase       string `json:"phase"`
	Boot        string `json:"boot,omitempty"` // trying: id of the run of the box that asked for it
	Activations uint32 `json:"activations,omitempty"`
}

// onTrial reports whether what runs is what the note is about.
func (n note) onTrial(b hal.Boot) bool { return n.To != "" && n.To == b.Booted }

// Move implements update.Handler.
func (h *Handler) Move(ctx context.Context, j update.Job, m update.Move) (update.Effect, error) {
	b, err := h.settled(ctx)
	if err != nil {
		return update.None, err
	}
	n := h.note()
	if n.Execution != j.Execution {
		if n = h.guess(j, b); n.To == "" {
			if m == update.Back {
				return update.None, nil // nothing was begun, or all of it was taken back
			}
			return update.None, update.Fail("install", "nothing is staged of %s", j.Execution)
		}
	}
	switch m {
	case update.Try:
		return h.try(ctx, j, b, n)
	case update.Prove:
		return update.None, proved(j, b, n)
	case update.Keep:
		return update.None, h.commit(ctx, j, b, n)
	case update.Back:
		return h.back(ctx, b, n)
	}
	return update.None, fmt.Errorf("no such move: %d", m)
}

// guess finds out without a note: it is gone after Keep, which may have to be
// made again, and when the state partition was lost.
func (h *Handler) guess(j update.Job, b hal.Boot) note {
	runs, _ := b.Slot(b.Booted)
	if j.Target.Custom.RAUC == nil || holds(runs, j) != nil {
		return note{}
	}
	n := note{Execution: j.Execution, Version: j.Version, To: b.Booted, Phase: trying}
	for _, s := range b.Slots {
		if s.Class == runs.Class && s.BootName != "" && s.Name != runs.Name {
			n.From = s.Name
		}
	}
	return n
}

func (h *Handler) try(ctx context.Context, j update.Job, b hal.Boot, n note) (update.Effect, error) {
	if n.onTrial(b) {
		return update.None, nil
	}
	to, _ := b.Slot(n.To)
	switch {
	case n.Phase != ready && n.Phase != trying:
		return update.None, update.Fail("install", "nothing is staged of %s", j.Execution)
	case b.Booted != n.From:
		return update.None, update.Fail("install", "slot %s runs, which is neither what ran, %s, nor what was installed, %s", b.Booted, n.From, n.To)
	case h.fellBack(b, n):
		return update.None, update.Fail("install", "%s", fallback(b, n))
	}
	if err := holds(to, j); err != nil {
		return update.None, err
	}
	if n.Phase != trying || n.Boot != h.o.BootID() {
		n.Phase, n.Boot, n.Activations = trying, h.o.BootID(), to.Activations
		if err := h.keep(n); err != nil {
			return update.None, err
		}
	}
	if err := h.o.Slots.Mark(ctx, n.To, "active"); err != nil {
		return update.None, err
	}
	b, err := h.o.Slots.Status(ctx)
	if err != nil {
		return update.None, err
	}
	if b.Primary != n.To && b.Primary != "" {
		return update.None, update.Fail("install", "the boot loader was told to start slot %s next and goes on with %s: check RAUC's bootloader settings", n.To, b.Primary)
	}
	return update.Reboot, nil
}

// proved says what speaks against the new system; that it does its work is for
// the health checks to find out.
func proved(j update.Job, b hal.Boot, n note) error {
	if !n.onTrial(b) {
		return fmt.Errorf("slot %s runs, not %s with %s", b.Booted, n.To, n.Version)
	}
	runs, _ := b.Slot(b.Booted)
	return holds(runs, j)
}

func (h *Handler) commit(ctx context.Context, j update.Job, b hal.Boot, n note) error {
	if err := proved(j, b, n); err != nil {
		return err
	}
	if err := h.o.Slots.Mark(ctx, n.To, "good"); err != nil {
		return err
	}
	// With UEFI the slot comes first now, where it was to be started once.
	b, err := h.o.Slots.Status(ctx)
	if err != nil {
		return err
	}
	if b.Primary != n.To && b.Primary != "" { // started by hand, once
		if err := h.o.Slots.Mark(ctx, n.To, "active"); err != nil {
			return err
		}
	}
	return h.forget()
}

// back makes the old slot the first one before the new one is barred: wherever
// the power is cut, one is left to start.
func (h *Handler) back(ctx context.Context, b hal.Boot, n note) (update.Effect, error) {
	on := n.onTrial(b)
	if on && n.From == "" {
		return update.None, errors.New("there is no other slot to go back to")
	}
	if on {
		n.Phase = back
		if err := h.keep(n); err != nil {
			return update.None, err
		}
	}
	if b.Primary != n.From {
		if err := h.o.Slots.Mark(ctx, n.From, "active"); err != nil {
			return update.None, err
		}
	}
	if n.To != "" {
		if err := h.o.Slots.Mark(ctx, n.To, "bad"); err != nil {
			return update.None, err
		}
	}
	if on {
		return update.Reboot, nil
	}
	return update.None, h.forget()
}

// Lasts reports whether the boot loader would start what is on trial once more,
// if nobody ended the trial. With UEFI it would not: the firmware forgets what
// it is to start next as soon as it starts it.
func (h *Handler) Lasts(ctx context.Context) bool {
	b, err := h.o.Slots.Status(ctx)
	return err != nil || b.Primary == "" || b.Primary == b.Booted
}

// Running implements update.Handler. A box has one system, whatever the
// component is called.
func (h *Handler) Running(ctx context.Context, component string) (update.Truth, error) {
	if !strings.HasPrefix(component, "os/") {
		return update.Truth{}, nil
	}
	b, err := h.settled(ctx)
	if err != nil {
		h.mu.Lock()
		known := h.runs
		h.mu.Unlock()
		if known == nil {
			return update.Truth{}, err
		}
		b = *known // RAUC is busy, or away: what runs has not changed
	}
	n := h.note()
	s, _ := b.Slot(b.Booted)
	t := update.Truth{Version: s.Version, Slot: s.Name, Hash: s.Hash, Trial: n.onTrial(b)}
	if t.Version == "" {
		t.Version = b.Version
	}
	if t.Version == "" {
		t.Version = h.imageVersion()
	}
	if t.Hash == "" {
		t.Hash = s.SHA256
	}
	if t.Trial {
		t.Execution = n.Execution
	}
	if h.fellBack(b, n) {
		t.Execution, t.Failed = n.Execution, fallback(b, n)
	}
	if t.Trial || t.Failed != "" {
		t.Execution = n.Execution
	}
	return t, nil
}

// fellBack reports whether the boot loader was told to start the new system,
// had the occasion, and runs the old one. The power may have gone just before
// it was told: RAUC counts how often it told it.
func (h *Handler) fellBack(b hal.Boot, n note) bool {
	if n.Phase != trying || b.Booted != n.From || n.Boot == h.o.BootID() {
		return false
	}
	to, _ := b.Slot(n.To)
	return to.Activations != n.Activations || to.Installs == 0 // 0: RAUC has no place to count
}

func fallback(b hal.Boot, n note) string {
	return fmt.Sprintf("the boot loader was told to start %s in slot %s and came back with slot %s: the new system did not come up", n.Version, n.To, b.Booted)
}

// settled says what can be started, once RAUC has nothing to do. What it wrote
// without having been waited for, and may have made the one to start next, is
// not to be started unasked.
func (h *Handler) settled(ctx context.Context) (hal.Boot, error) {
	b, err := h.o.Slots.Status(ctx)
	if err != nil {
		return b, err
	}
	if b.Installing {
		return b, errors.New("RAUC is busy with an installation")
	}
	if n := h.note(); (n.Phase == staging || n.Phase == ready) && b.Booted == n.From && b.Primary != "" && b.Primary != n.From {
		if err := h.o.Slots.Mark(ctx, n.From, "active"); err != nil {
			return b, err
		}
		if b, err = h.o.Slots.Status(ctx); err != nil {
			return b, err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.runs = &b
	return b, nil
}

// note reads the note. One that cannot be read counts as none: it was written
// whole or not at all, and what runs can be told without it.
func (h *Handler) note() (n note) {
	h.mu.Lock()
	defer h.mu.Unlock()
	content, err := os.ReadFile(h.path())
	if err != nil || json.Unmarshal(content, &n) != nil {
		return note{}
	}
	return n
}

func (h *Handler) path() string { return filepath.Join(h.o.Dir, "os.json") }

// keep writes the note so that a power cut leaves the old one or this one.
func (h *Handler) keep(n note) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	content, err := json.Marshal(n)
	if err != nil {
		return err
	}
	if err := durable.Replace(h.path(), content); err != nil {
		return fmt.Errorf("note the trial: %w", err)
	}
	return nil
}

// forget removes the note.
func (h *Handler) forget() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := os.Remove(h.path()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("end the trial: %w", err)
	}
	return durable.SyncDir(h.o.Dir)
}
